"""How far probabilities can be believed: expected calibration error and Brier score of one case.

Both are taken over voxels. In a volume that is mostly air every voxel of it is sure and right, so a number over all
voxels flatters: give ``where`` (the foreground, a band around its boundary) and say which it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medkd.evaluation.overlap import IGNORE

BINS = 15
"""Bins of equal width between 0 and 1, the number that papers on calibration use."""


class Reliability(NamedTuple):
    """What a reliability diagram shows; every field is ``(bins,)``.

    Args:
        confidence: mean probability of the chosen class in a bin; NaN where it is empty.
        accuracy: share of its voxels where that class is the label; NaN where it is empty.
        share: share of all counted voxels; sums to 1.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    share: NDArray[np.float64]


def reliability(
    probabilities: Any, label: NDArray[np.integer], *, bins: int = BINS, where: NDArray[np.bool_] | None = None
) -> Reliability:
    """Sort voxels by the probability of their most probable class, and see how often that class is right.

    Args:
        probabilities: ``(K, *S)`` that sum to 1 over K; an array, or anything that gives one when sliced.
        label: ``(*S)`` class indices from 0 to K - 1; :data:`medkd.types.IGNORE` counts for nothing.
        bins: number of bins of equal width; a probability on a border belongs to the lower one.
        where: ``(*S)``, True where voxels count.

    Raises:
        ValueError: shapes or class indices do not fit, or no voxel counts.
    """
    count, sure, right = (np.zeros(bins) for _ in range(3))
    for p, y in _slabs(probabilities, label, where):
        best = p.argmax(0)
        confidence = np.take_along_axis(p, best[None], 0)[0].astype(np.float64)
        place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        count += np.bincount(place, minlength=bins)
        sure += np.bincount(place, confidence, minlength=bins)
        right += np.bincount(place, best == y, minlength=bins)
    _refuse_nothing(count.sum())
    there = np.where(count > 0, count, np.nan)
    return Reliability(sure / there, right / there, count / count.sum())


def ece(
    probabilities: Any, label: NDArray[np.integer], *, bins: int = BINS, where: NDArray[np.bool_] | None = None
) -> float:
    """Return the expected calibration error in [0, 1]: the gap of confidence and accuracy, mean over voxels.

    Of the most probable class, in bins of equal width (Guo et al., *On Calibration of Modern Neural Networks*, ICML
    2017, eq. 3). Arguments and errors as in :func:`reliability`.
    """
    found = reliability(probabilities, label, bins=bins, where=where)
    return expected_gap(found)


def expected_gap(found: Reliability) -> float:
    """Return the expected calibration error of a diagram: to have both from one pass over the voxels."""
    return float(np.nansum(found.share * np.abs(found.confidence - found.accuracy)))


def brier(probabilities: Any, label: NDArray[np.integer], *, where: NDArray[np.bool_] | None = None) -> float:
    """Return the Brier score in [0, 2]: squared error of all K probabilities, summed over K, mean over voxels.

    The definition for several classes (Brier 1950); for two classes it is twice what programs for binary outcomes
    give. Arguments and errors as in :func:`reliability`.
    """
    total, voxels = 0.0, 0
    for p, y in _slabs(probabilities, label, where):
        of_label = np.take_along_axis(p, y[None], 0)[0]
        total += float((p.astype(np.float64) ** 2).sum() - 2 * of_label.sum(dtype=np.float64)) + y.size
        voxels += y.size
    _refuse_nothing(voxels)
    return total / voxels


def _slabs(
    probabilities: Any, label: NDArray[np.integer], where: NDArray[np.bool_] | None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield ``(K, N)`` probabilities and ``(N,)`` labels of the voxels that count, slice by slice, to save memory."""
    shape = tuple(probabilities.shape)
    if shape[1:] != label.shape or (where is not None and where.shape != label.shape):
        told = "" if where is None else f" and where {where.shape}"
        raise ValueError(f"probabilities {shape} (K, *S), label {label.shape}{told} do not lie on one grid")
    for here in range(label.shape[0]):
        counts = label[here] != IGNORE
        if where is not None:
            counts &= where[here]
        if counts.any():
            y = label[here][counts].astype(np.int64)
            if y.min() < 0 or y.max() >= shape[0]:
                raise ValueError(f"label holds {y.min()} to {y.max()}, but there are {shape[0]} classes")
            yield np.asarray(probabilities[:, here])[:, counts].astype(np.float32), y


def _refuse_nothing(voxels: float) -> None:
    if not voxels:
        raise ValueError("no voxel counts: every label is ignored, or the mask is empty")
