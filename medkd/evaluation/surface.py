"""Distances between two surfaces in mm, under one of two conventions.

``surfel`` (the default): the surface is made of the elements of :mod:`medkd.evaluation.surfels`, which lie between
voxels, and each counts by its area. HD95 is, in each direction, the least distance within which 95 % of the area lies.
The numbers are those of DeepMind's ``surface-distance``, which most challenges and published tables of NSD use; MONAI's
surface Dice gives the same with ``use_subvoxels=True``.

``voxel``: the surface is the set of boundary voxels, those with a face neighbour outside the object, and each counts
once. HD95 is the percentile with linear interpolation. The numbers are those of MONAI's metrics as they are by default.

In both, distances are Euclidean between points of the surfaces, beyond the edge of the volume is outside, HD95 is the
larger of both directions, and ASSD and NSD are means over both surfaces together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from medkd.evaluation import surfels

Convention = Literal["surfel", "voxel"]
CONVENTIONS: tuple[Convention, ...] = ("surfel", "voxel")

SLACK_MM = 1e-6
"""A distance that equals the tolerance is within it, whatever the rounding of ``spacing * steps``."""
SLACK_SHARE = 1e-9
"""The same for an area that is exactly 95 % of the whole."""
DENSE = 1 / 12
"""With more points than this share of the voxels, a distance map of all voxels is faster than a search per point."""

_Floats = NDArray[np.float64]


class Gaps(NamedTuple):
    """What two surfaces are apart.

    Args:
        pred_to_ref: mm from every point of the predicted surface to the nearest of the reference's.
        ref_to_pred: the other way round.
        size_pred: area (length in 2-D) of every predicted surface element; None where each counts once.
        size_ref: the same of the reference.
    """

    pred_to_ref: _Floats
    ref_to_pred: _Floats
    size_pred: _Floats | None = None
    size_ref: _Floats | None = None


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the boundary voxels of ``mask (*S)``: those with a face neighbour that is not in it."""
    padded, inner = np.pad(mask, 1), mask.copy()
    for axis in range(mask.ndim):
        for part in (slice(None, -2), slice(2, None)):
            where = [slice(1, -1)] * mask.ndim
            where[axis] = part
            inner &= padded[tuple(where)]
    return mask & ~inner


def gaps(
    pred: NDArray[np.bool_],
    ref: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    convention: Convention = "surfel",
) -> Gaps:
    """Measure both surfaces against each other.

    Args:
        pred: ``(*S)`` predicted object, not empty.
        ref: ``(*S)`` reference object, not empty.
        spacing_mm: voxel size along ``*S``.
        convention: which points make a surface, and what each counts; see the module.

    Raises:
        ValueError: one of the objects is empty; the distance to nothing is for the caller to define. Surfels of
            neither two nor three axes.
    """
    if not pred.any() or not ref.any():
        raise ValueError("surface distances need two objects, one of them is empty")
    spacing = tuple(float(step) for step in spacing_mm)
    if convention == "voxel":
        edge_pred, edge_ref = boundary(pred), boundary(ref)
        return Gaps(_nearest(edge_pred, edge_ref, spacing), _nearest(edge_ref, edge_pred, spacing))
    size = surfels.sizes(spacing)
    code_pred, code_ref = surfels.codes(pred), surfels.codes(ref)
    edge_pred, edge_ref = ((code > 0) & (code < len(size) - 1) for code in (code_pred, code_ref))
    return Gaps(
        _nearest(edge_pred, edge_ref, spacing),
        _nearest(edge_ref, edge_pred, spacing),
        size[code_pred[edge_pred]],
        size[code_ref[edge_ref]],
    )


def _nearest(start: NDArray[np.bool_], goal: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> _Floats:
    """Return the mm from every point of ``start`` to the nearest of ``goal``, in the order of the array."""
    found = np.zeros(np.count_nonzero(start), np.float64)
    apart = ~goal[start]  # what both surfaces share is at distance 0
    moved = np.count_nonzero(apart)
    if moved > DENSE * goal.size:
        return np.asarray(distance_transform_edt(~goal, sampling=spacing_mm)[start], np.float64)
    if moved:
        # A tree over the points beats distance maps: several times faster on organs, and its memory follows the
        # surfaces, not the box around them (one stray voxel far away makes that box the whole volume).
        spacing = np.asarray(spacing_mm, np.float64)
        tree = KDTree(np.argwhere(goal) * spacing, leafsize=16, compact_nodes=False, balanced_tree=False)
        found[apart] = tree.query(np.argwhere(start)[apart] * spacing)[0]
    return found


def hausdorff_mm(found: Gaps, percentile: float = 95.0) -> float:
    """Hausdorff distance in mm: the larger of both directions' percentiles, see the module for their definition."""
    return max(
        _percentile(found.pred_to_ref, found.size_pred, percentile),
        _percentile(found.ref_to_pred, found.size_ref, percentile),
    )


def _percentile(mm: _Floats, size: _Floats | None, percentile: float) -> float:
    if size is None:
        return float(np.percentile(mm, percentile))
    order = np.argsort(mm)
    area = np.cumsum(size[order])
    place = int(np.searchsorted(area, (percentile / 100 - SLACK_SHARE) * area[-1]))
    return float(mm[order[place]])


def assd_mm(found: Gaps) -> float:
    """Average symmetric surface distance in mm: the mean over both surfaces, by area for surfels."""
    mm, size = _joined(found)
    return float(np.average(mm, weights=size))


def nsd(found: Gaps, tolerance_mm: float) -> float:
    """Normalised surface Dice in [0, 1]: the share of both surfaces within ``tolerance_mm`` of the other."""
    mm, size = _joined(found)
    return float(np.average(mm <= tolerance_mm + SLACK_MM, weights=size))


def _joined(found: Gaps) -> tuple[_Floats, _Floats | None]:
    mm = np.concatenate([found.pred_to_ref, found.ref_to_pred])
    if found.size_pred is None or found.size_ref is None:
        return mm, None
    return mm, np.concatenate([found.size_pred, found.size_ref])
