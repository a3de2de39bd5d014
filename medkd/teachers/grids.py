"""Answers of one grid on another, in world coordinates: teacher and student may differ in spacing, crop and axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from medkd.errors import UserError

Float = NDArray[np.float32]
Affine = NDArray[np.float64]

SAME = 1e-3
"""Two grids are one when no corner is further apart than this share of a voxel."""
SKEW = 1e-6
"""Voxels by which an axis may lean over its whole length and still count as straight."""
MARGIN = 1.0
"""Voxels beyond the teacher's outermost centres to which its answer there is carried on; further out is background."""


def prepared_affine(affine: Affine, shape: Sequence[int], prepared: Sequence[int]) -> Affine:
    """Return the voxel-to-world affine of a prepared image.

    Args:
        affine: ``(4, 4)`` of the canonical volume, mm.
        shape: its ``(X, Y, Z)``.
        prepared: ``(*S)`` of the prepared image, which fills the same field of view edge to edge.
    """
    step = np.array(shape, float) / np.array(prepared, float)
    inside = np.diag([*step, 1.0])
    inside[:3, 3] = (step - 1) / 2
    return affine @ inside


def onto_grid(probabilities: NDArray[Any], affine: Affine, target_affine: Affine, target_shape: Sequence[int]) -> Float:
    """Resample class probabilities to another grid: trilinear, at the same points in the world, summing to one.

    Args:
        probabilities: ``(K, *s)``; class 0 is background.
        affine: ``(4, 4)``, voxel of ``s`` to mm.
        target_affine: ``(4, 4)``, voxel of the wanted grid to mm.
        target_shape: ``(*S)`` of the wanted grid.

    Returns:
        ``(K, *S)`` float32. On the same grid the numbers are those given. Points outside the given grid are background.

    Raises:
        UserError: the two grids do not touch.
    """
    shape = tuple(int(side) for side in target_shape)
    given = np.asarray(probabilities, np.float32)
    across = np.linalg.inv(affine) @ target_affine  # wanted voxel -> given voxel
    if shape == given.shape[1:] and _nowhere_apart(across, shape):
        return given
    out, inside = _straight(given, across, shape) if _is_straight(across, shape) else _oblique(given, across, shape)
    if not inside.any():
        raise UserError("the teacher's answer and the case do not overlap in space; are they of the same scan?")
    out[:, ~inside] = 0
    out[0, ~inside] = 1
    total = out.sum(0)
    # Interpolated distributions sum to one but for rounding, unless what was given did not.
    np.divide(out, np.where(total > 0, total, 1), out=out)
    out[0][total <= 0] = 1
    return out


def _corners(shape: Sequence[int]) -> NDArray[np.float64]:
    corners = np.array(np.meshgrid(*[(0.0, side - 1.0) for side in shape], indexing="ij")).reshape(3, -1)
    return np.vstack([corners, np.ones(corners.shape[1])])


def _nowhere_apart(across: Affine, shape: Sequence[int]) -> bool:
    corners = _corners(shape)
    return bool(np.abs((across @ corners - corners)[:3]).max() <= SAME)


def _is_straight(across: Affine, shape: Sequence[int]) -> bool:
    """Tell whether every wanted axis runs along one given axis."""
    lean = np.abs(across[:3, :3]) * np.array(shape)
    main = lean.argmax(0)
    if len(set(main.tolist())) < 3:
        return False
    lean[main, range(3)] = 0
    return bool(lean.max() <= SKEW)


def _straight(given: Float, across: Affine, shape: tuple[int, ...]) -> tuple[Float, NDArray[np.bool_]]:
    """Interpolate axis by axis: the same numbers as all at once, in a fraction of the time."""
    main = np.abs(across[:3, :3]).argmax(0)  # given axis along which each wanted axis runs
    out = given.transpose(0, *(int(axis) + 1 for axis in main))
    inside = np.ones(shape, bool)
    for axis, source in enumerate(main):
        at = across[source, axis] * np.arange(shape[axis]) + across[source, 3]
        side = given.shape[source + 1]
        line: list[int] = [1, 1, 1]
        line[axis] = -1
        inside &= ((at >= -MARGIN) & (at <= side - 1 + MARGIN)).reshape(line)
        moved = np.moveaxis(out, axis + 1, 0)
        flat = _operator(at, side) @ np.ascontiguousarray(moved).reshape(side, -1)
        out = np.moveaxis(flat.reshape(-1, *moved.shape[1:]), 0, axis + 1)
    return np.ascontiguousarray(out, np.float32), inside


def _operator(at: NDArray[np.float64], side: int) -> Any:
    """Return the sparse ``(n, side)`` matrix that reads a line of ``side`` voxels at the positions ``at``."""
    at = np.clip(at, 0, side - 1)
    low = np.minimum(at.astype(int), max(side - 2, 0))
    high = np.minimum(low + 1, side - 1)
    share = (at - low).astype(np.float32)
    rows = np.arange(len(at))
    weights = np.concatenate([1 - share, share])
    return sparse.csr_matrix((weights, (np.tile(rows, 2), np.concatenate([low, high]))), shape=(len(at), side))


def _oblique(given: Float, across: Affine, shape: tuple[int, ...]) -> tuple[Float, NDArray[np.bool_]]:
    out = np.empty((given.shape[0], *shape), np.float32)
    inside = np.empty(shape, bool)
    for k in range(given.shape[0]):
        ndimage.affine_transform(given[k], across, output_shape=shape, output=out[k], order=1, mode="nearest")
    _, y, z = np.meshgrid(0, np.arange(shape[1]), np.arange(shape[2]), indexing="ij", sparse=True)
    for x in range(shape[0]):  # row by row, since positions of a whole volume take more room than the volume
        row = np.ones((1, shape[1], shape[2]), bool)
        for axis in range(3):
            a, b, c, d = across[axis]
            at = a * x + b * y + c * z + d
            row &= (at >= -MARGIN) & (at <= given.shape[axis + 1] - 1 + MARGIN)
        inside[x] = row[0]
    return out, inside
