"""From a canonical volume to the grid and intensities of a plan, and back.

Resampling keeps the field of view: the outer edges of the first and last voxel stay where they are, so a
structure keeps its place in mm whatever the voxel size (the ``grid_mode`` of :func:`scipy.ndimage.zoom`).
Interpolation is separable, so it is done axis by axis with the one-dimensional operator that scipy applies,
kept as a sparse matrix: the same numbers as one three-dimensional zoom, in a fraction of its time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from medkd.data.formats import voxel_size
from medkd.data.plan import IntensityRule, Plan
from medkd.data.strides import thick_axis
from medkd.data.volume import Geometry, Volume
from medkd.errors import UserError

Float = NDArray[np.float32]
Shape = tuple[int, int, int]

SAME_SPACING = 1e-3
"""mm; voxel sizes nearer than this are the same and are not resampled."""
ZERO_SHARE = 0.25
"""Share of exactly zero voxels above which an MR volume counts as cut out (as nnU-Net's rule)."""
SLAB_VOXELS = 2_000_000
"""Voxels of one class that stand at full size at a time while probabilities are restored."""
TIE = 1e-5
"""Head start of the nearest voxel's class, far below any real difference in occupancy."""


@dataclass(frozen=True)
class Restore:
    """What is needed to bring a result back to the canonical and the original grid.

    Args:
        geometry: the original grid, for :func:`medkd.data.volume.write_label`.
        affine: ``(4, 4)`` voxel to world in mm of the canonical grid.
        canonical_shape: ``(X, Y, Z)`` of the canonical volume.
        shape: spatial shape of the prepared image.
        spacing_mm: voxel size of the prepared image, as the plan has it.
    """

    geometry: Geometry
    affine: NDArray[np.float64]
    canonical_shape: Shape
    shape: Shape
    spacing_mm: tuple[float, float, float]


def prepare_image(volume: Volume, plan: Plan) -> tuple[Float, Restore]:
    """Normalise ``volume`` and resample it to the voxel size of ``plan``.

    Args:
        volume: canonical volume, ``(C, X, Y, Z)``.
        plan: gives ``spacing_mm`` and one intensity rule per channel.

    Returns:
        ``(C, *S)`` float32 without unit, and the way back. Cubic in plane, nearest across an axis more than
        three times thicker; overshoot of the spline is clipped to the range of the channel.

    Raises:
        UserError: the number of channels is not that of the plan.
    """
    channels = volume.array.shape[0]
    if channels != len(plan.intensity):
        raise UserError(
            f"the image has {channels} channels but the plan was made for {len(plan.intensity)}: "
            "give one file per channel, in the order of the dataset"
        )
    source = _shape(volume.array.shape[1:])
    spacing = voxel_size(volume.affine)
    shape = resampled_shape(source, spacing, plan.spacing_mm)
    operators = _operators(source, shape, spacing, plan.spacing_mm, order=3)
    out = np.empty((channels, *shape), np.float32)
    for index, rule in enumerate(plan.intensity):
        channel = normalise(volume.array[index], rule)
        out[index] = np.clip(_apply(operators, channel), channel.min(), channel.max())
    return out, Restore(volume.geometry, volume.affine, source, shape, plan.spacing_mm)


def prepare_label(
    label: NDArray[Any],
    like: Volume | NDArray[np.float64],
    plan: Plan,
    shape: Sequence[int] | None = None,
    *,
    declared: Collection[int] | None = None,
) -> NDArray[np.int16]:
    """Resample a label to the grid of the prepared image; values are chosen, never invented.

    Args:
        label: ``(X, Y, Z)`` integers on the canonical grid; IGNORE (-1) takes part like a class.
        like: the canonical volume, or its ``(4, 4)`` affine in mm.
        plan: gives ``spacing_mm``.
        shape: spatial shape of the prepared image; worked out when omitted.
        declared: label values that may occur besides IGNORE; not checked when omitted.

    Returns:
        ``(*S)`` int16: the class with the greatest linearly interpolated occupancy.

    Raises:
        UserError: the label holds a value that is not declared.
    """
    if declared is not None:
        unknown = sorted({int(value) for value in np.unique(label)} - set(declared) - {-1})
        if unknown:
            raise UserError(
                f"the label holds the undeclared values {unknown}: declare them in the dataset, or remove them"
            )
    spacing = voxel_size(like if isinstance(like, np.ndarray) else like.affine)
    source = _shape(label.shape)
    target = _shape(shape) if shape is not None else resampled_shape(source, spacing, plan.spacing_mm)
    return _resample_label(label, target, spacing, plan.spacing_mm)


def restore_label(label: NDArray[Any], restore: Restore) -> NDArray[np.int16]:
    """Bring a label ``(*S)`` from the prepared grid back to the canonical grid, as :func:`prepare_label` does."""
    _check(label.shape, restore)
    return _resample_label(label, restore.canonical_shape, restore.spacing_mm, voxel_size(restore.affine))


def restore_probabilities(probabilities: NDArray[Any], restore: Restore) -> NDArray[np.int16]:
    """Bring class probabilities to the canonical grid and return the most probable class.

    Slab by slab and class by class with a running maximum, so that memory does not grow with the classes.

    Args:
        probabilities: ``(K, *S)`` on the prepared grid (probabilities or any other scores).
        restore: from :func:`prepare_image`.

    Returns:
        ``(X, Y, Z)`` int16 on the canonical grid; ties go to the lower class.
    """
    _check(probabilities.shape[1:], restore)
    x, y, z = restore.canonical_shape
    first, *others = way_back(restore)
    label = np.zeros((x, y, z), np.int16)
    rows = max(1, SLAB_VOXELS // (y * z))
    for start in range(0, x, rows):
        slab = slice(start, min(start + rows, x))
        best: Float | None = None
        for k in range(probabilities.shape[0]):
            part = np.asarray(probabilities[k] if first is not None else probabilities[k, slab], np.float32)
            score = _apply((None if first is None else first[slab], *others), part)
            if best is None:
                best = score.copy()
                continue
            wins = score > best
            label[slab][wins] = k
            best[wins] = score[wins]
    return label


def way_back(restore: Restore) -> tuple[Operator, ...]:
    """Return the interpolation from the prepared to the canonical grid, one operator an axis."""
    spacing = voxel_size(restore.affine)
    return _operators(restore.shape, restore.canonical_shape, restore.spacing_mm, spacing, order=1)


def normalise(channel: NDArray[Any], rule: IntensityRule) -> Float:
    """Return one channel ``(X, Y, Z)`` in the units that a network sees (about zero mean and unit deviation).

    ``ct`` clips to the rule's bounds in HU and scales by the rule's foreground statistics. ``zscore`` uses the
    volume's own; where more than a quarter of the voxels are exactly zero, those of the rest, and zero stays zero.
    """
    values = np.asarray(channel, np.float32)
    if rule.kind == "ct":
        return _scale(np.clip(values, rule.low, rule.high), rule.mean, rule.std)
    body = values != 0
    if not body.any() or body.mean() >= 1 - ZERO_SHARE:
        return _scale(values, values.mean(dtype=np.float64), values.std(dtype=np.float64))
    inside = values[body].astype(np.float64)
    return np.where(body, _scale(values, inside.mean(), inside.std()), np.float32(0))


def _scale(values: Float, mean: float, std: float) -> Float:
    return (values - np.float32(mean)) / np.float32(max(std, 1e-8))


def resampled_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Shape:
    """Return the number of voxels of ``target_mm`` that best fill the extent of ``shape`` at ``spacing_mm``."""
    return _shape(
        n if abs(old - new) < SAME_SPACING else max(1, round(n * old / new))
        for n, old, new in zip(shape, spacing_mm, target_mm, strict=True)
    )


Operator = Any
"""A sparse ``(n_out, n_in)`` interpolation matrix, or None where the axis stays (scipy.sparse has no useful types)."""


def _operators(
    source: Shape, target: Shape, spacing_mm: Sequence[float], target_mm: Sequence[float], *, order: int
) -> tuple[Operator, ...]:
    """Return one operator an axis; across an axis that is thick before or after, the nearest voxel (as nnU-Net)."""
    thick = thick_axis(spacing_mm)
    if thick is None:
        thick = thick_axis(target_mm)
    return tuple(
        None if n == m else _operator(n, m, 0 if axis == thick else order)
        for axis, (n, m) in enumerate(zip(source, target, strict=True))
    )


@lru_cache(maxsize=64)
def _operator(n: int, m: int, order: int) -> Operator:
    # The response of scipy's zoom to every unit vector: a band, since the spline's tails die out quickly.
    zoom: Any = ndimage.zoom
    dense = zoom(np.eye(n), (m / n, 1), order=order, mode="nearest", grid_mode=True) if n > 1 else np.ones((m, 1))
    dense[np.abs(dense) < 1e-6] = 0
    return sparse.csr_matrix(dense / dense.sum(1, keepdims=True), dtype=np.float32)


def _apply(operators: Sequence[Operator], array: Float) -> Float:
    for axis, operator in enumerate(operators):
        if operator is not None:
            moved = np.moveaxis(array, axis, 0)
            flat = operator @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
            array = np.moveaxis(flat.reshape(-1, *moved.shape[1:]), 0, axis)
    return array


def _resample_label(
    label: NDArray[Any], target: Shape, spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> NDArray[np.int16]:
    source = _shape(label.shape)
    if source == target:
        return label.astype(np.int16)
    linear = _operators(source, target, spacing_mm, target_mm, order=1)
    # The nearest voxel's class wins ties, which halving makes common: a fixed winner would grow or shrink organs.
    near = [np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1) for n, m in zip(source, target, strict=True)]
    nearest_voxel = label[np.ix_(*near)].astype(np.int16)
    out = nearest_voxel.copy()
    best = np.zeros(target, np.float32)
    for value, box in _boxes(label):
        reach, parts = _reach(linear, box)
        score = _apply(parts, (label[box] == value).astype(np.float32))
        score += np.where(nearest_voxel[reach] == value, np.float32(TIE), np.float32(-TIE))
        wins = score > best[reach]
        out[reach][wins] = value
        best[reach][wins] = score[wins]
    return out


def _boxes(label: NDArray[Any]) -> list[tuple[int, tuple[slice, ...]]]:
    """Return every value of ``label`` with its bounding box: a small organ need not cost a whole volume."""
    values, codes = np.unique(label, return_inverse=True)
    boxes = ndimage.find_objects(codes.reshape(label.shape).astype(np.int32) + 1)
    return [(int(value), box) for value, box in zip(values, boxes, strict=True)]


def _reach(operators: Sequence[Operator], box: tuple[slice, ...]) -> tuple[tuple[slice, ...], list[Operator]]:
    """Return the part of the target grid that voxels of ``box`` can touch, and the operators between the two."""
    reach: list[slice] = []
    parts: list[Operator] = []
    for operator, side in zip(operators, box, strict=True):
        if operator is None:
            reach.append(side)
            parts.append(None)
            continue
        columns = operator[:, side]
        rows = np.flatnonzero(np.diff(columns.indptr))
        span = slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0)
        reach.append(span)
        parts.append(columns[span])
    return tuple(reach), parts


def _check(shape: Sequence[int], restore: Restore) -> None:
    if tuple(shape) != restore.shape:
        raise ValueError(f"the result has shape {tuple(shape)} but the prepared image has {restore.shape}")


def _shape(values: Any) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z
