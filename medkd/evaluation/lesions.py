"""Lesions one by one: which are found, missed, or made up.

A lesion is a connected component of its class, where voxels that touch by a face, edge or corner are connected (26
neighbours; 8 in two dimensions). A predicted and a reference lesion are the same one when their IoU reaches the
threshold. Each has at most one partner: pairs are taken by falling IoU. A reference lesion without partner is missed, a
predicted one without partner is false; so one prediction across two lesions finds one of them, and a lesion predicted
in two pieces is found once, with one false piece, if the larger piece suffices.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Lesions(NamedTuple):
    """How many lesions were found (pairs), missed (in the reference only) and false (in the prediction only)."""

    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """``2 found / (2 found + missed + false)``; NaN where there is no lesion at all."""
        return _share(2 * self.found, self.missed + self.false)

    @property
    def recall(self) -> float:
        """Share of the reference's lesions that were found; NaN where it has none."""
        return _share(self.found, self.missed)

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are true; 0 where none was predicted though the reference has some."""
        return _share(self.found, self.false) if self.found + self.false or not self.missed else 0.0


def pair_ious(pred: NDArray[np.bool_], ref: NDArray[np.bool_]) -> tuple[list[float], int, int]:
    """Pair lesions by falling IoU, each at most once.

    Args:
        pred: ``(*S)``, two or three axes.
        ref: ``(*S)``.

    Returns:
        The IoU of every pair, falling; the number of predicted and of reference lesions.
    """
    import cc3d  # LGPL, loaded where lesions are asked for

    neighbours: Literal[8, 26] = 8 if pred.ndim == 2 else 26
    parts_pred, count_pred = cc3d.connected_components(pred, connectivity=neighbours, return_N=True)
    parts_ref, count_ref = cc3d.connected_components(ref, connectivity=neighbours, return_N=True)
    size_pred = np.bincount(parts_pred[pred], minlength=count_pred + 1)
    size_ref = np.bincount(parts_ref[ref], minlength=count_ref + 1)
    both = pred & ref
    codes = parts_ref[both].astype(np.int64) * (count_pred + 1) + parts_pred[both]
    pairs, shared = np.unique(codes, return_counts=True)
    of_ref, of_pred = np.divmod(pairs, count_pred + 1)
    ious = shared / (size_ref[of_ref] + size_pred[of_pred] - shared)
    free_ref, free_pred = np.ones(count_ref + 1, bool), np.ones(count_pred + 1, bool)
    taken: list[float] = []
    for at in np.argsort(-ious, kind="stable"):
        if free_ref[of_ref[at]] and free_pred[of_pred[at]]:
            free_ref[of_ref[at]] = free_pred[of_pred[at]] = False
            taken.append(float(ious[at]))
    return taken, int(count_pred), int(count_ref)


def count_lesions(pred: NDArray[np.bool_], ref: NDArray[np.bool_], iou: float) -> Lesions:
    """Count the lesions of one class; see the module for when two are the same.

    Args:
        pred: ``(*S)``, two or three axes.
        ref: ``(*S)``.
        iou: least IoU of a pair, above 0.
    """
    return at_iou(*pair_ious(pred, ref), iou)


def at_iou(pairs: list[float], count_pred: int, count_ref: int, iou: float) -> Lesions:
    """Return the counts at one threshold from :func:`pair_ious`: to have several from one search."""
    found = sum(one >= iou - 1e-9 for one in pairs)
    return Lesions(found, count_ref - found, count_pred - found)


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else float("nan")
