"""Overlap of two label maps, from one table of counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IGNORE = -1
"""The same as :data:`medkd.types.IGNORE`, without loading torch into every process that scores a case."""


def encode(
    pred: NDArray[np.integer], ref: NDArray[np.integer], values: Sequence[int]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int64]]:
    """Number the wanted classes from 1 and count every (reference, prediction) pair in one pass.

    Args:
        pred: ``(*S)`` predicted label values.
        ref: ``(*S)`` reference label values; where it is :data:`medkd.types.IGNORE` nothing is counted.
        values: the label values of interest, without background.

    Returns:
        ``pred`` and ``ref`` as ``(*S)`` codes, 0 for all other values, ``i + 1`` for ``values[i]``; and the
        ``(K + 1, K + 1)`` confusion counts, rows reference, columns prediction.
    """
    classes = len(values) + 1
    codes_pred, codes_ref = (np.empty(ref.shape, np.uint16) for _ in range(2))
    counts = np.zeros(classes**2, np.int64)
    look_pred, look_ref = _lookup(pred, values), _lookup(ref, values)
    # slab by slab: indexing needs 64-bit copies, which would be four times the volume when made at once
    for here in range(ref.shape[0]):
        code_ref = look_ref[0][ref[here].astype(np.int64) - look_ref[1]]
        code_pred = look_pred[0][pred[here].astype(np.int64) - look_pred[1]]
        code_pred[ref[here] == IGNORE] = 0
        codes_pred[here], codes_ref[here] = code_pred, code_ref
        counts += np.bincount((code_ref * classes + code_pred).ravel(), minlength=classes**2)
    return codes_pred, codes_ref, counts.reshape(classes, classes)


def _lookup(array: NDArray[np.integer], values: Sequence[int]) -> tuple[NDArray[np.int64], int]:
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    table = np.zeros(high - low + 1, np.int64)
    for code, value in enumerate(values, start=1):
        if low <= value <= high:
            table[value - low] = code
    return table, low


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
