"""Overlap of two sets of voxels, from their counts."""

from __future__ import annotations

IGNORE = -1
"""The same as :data:`medkd.types.IGNORE`, without loading torch into every process that scores a case."""


def dice(both: int, in_ref: int, in_pred: int) -> float:
    """Dice coefficient of two sets by their sizes; NaN when both are empty.

    Args:
        both: voxels in the reference and in the prediction.
        in_ref: voxels in the reference.
        in_pred: voxels in the prediction.
    """
    return 2 * both / (in_ref + in_pred) if in_ref + in_pred else float("nan")


def iou(both: int, in_ref: int, in_pred: int) -> float:
    """Intersection over union (Jaccard index) of two sets by their sizes; NaN when both are empty."""
    union = in_ref + in_pred - both
    return both / union if union else float("nan")
