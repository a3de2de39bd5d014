"""Lesions counted by hand, and by a slow flood fill."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medkd.evaluation.lesions import Lesions, count_lesions, pair_ious


def boxes(
    *places: tuple[int, int, int], size: int = 2, shape: tuple[int, int, int] = (12, 12, 12)
) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[tuple(slice(start, start + size) for start in place)] = True
    return mask


def test_found_missed_and_false() -> None:
    ref = boxes((0, 0, 0), (6, 0, 0), (0, 6, 0))
    pred = boxes((0, 0, 1), (6, 0, 0), (6, 6, 6), (9, 9, 9))
    found = count_lesions(pred, ref, 0.1)
    assert found == Lesions(found=2, missed=1, false=2)
    assert (found.recall, found.precision) == (2 / 3, 0.5)
    assert found.f1 == pytest.approx(4 / 7)


def test_the_threshold() -> None:
    """Half shared along one axis: IoU 1 / 3."""
    pair = boxes((0, 0, 1)), boxes((0, 0, 0))
    assert count_lesions(*pair, 1 / 3).found == 1
    assert count_lesions(*pair, 0.34).found == 0


def test_voxels_that_touch_by_a_corner_are_one_lesion() -> None:
    mask = boxes((0, 0, 0), (2, 2, 2))
    assert pair_ious(mask, mask) == ([1.0], 1, 1)
    flat = np.eye(4, dtype=bool)
    assert pair_ious(flat, flat) == ([1.0], 1, 1)


def test_one_prediction_over_two_lesions_finds_one() -> None:
    ref = boxes((0, 0, 0), (3, 0, 0))
    pred = np.zeros_like(ref)
    pred[:5, :2, :2] = True
    assert count_lesions(pred, ref, 0.1) == Lesions(found=1, missed=1, false=0)


def test_two_pieces_of_one_lesion_find_it_once() -> None:
    ref = np.zeros((12, 4, 4), bool)
    ref[1:11] = True
    pred = ref.copy()
    pred[6] = False
    assert count_lesions(pred, ref, 0.1) == Lesions(found=1, missed=0, false=1)
    assert pair_ious(pred, ref)[0] == [0.5]  # the larger piece


def test_no_lesions() -> None:
    nothing, some = boxes(), boxes((0, 0, 0), (6, 6, 6))
    neither = count_lesions(nothing, nothing, 0.1)
    assert neither == Lesions(0, 0, 0)
    assert all(math.isnan(value) for value in (neither.f1, neither.recall, neither.precision))
    missed, false = count_lesions(nothing, some, 0.1), count_lesions(some, nothing, 0.1)
    assert (missed.f1, missed.recall, missed.precision) == (0, 0, 0)
    assert (false.f1, false.precision) == (0, 0)
    assert math.isnan(false.recall)


def flood(mask: NDArray[np.bool_]) -> list[set[tuple[int, ...]]]:
    left = {tuple(map(int, place)) for place in np.argwhere(mask)}
    found = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            at = edge.pop()
            part.add(at)
            for step in np.ndindex(*[3] * mask.ndim):
                near = tuple(a + s - 1 for a, s in zip(at, step, strict=True))
                if near in left:
                    left.remove(near)
                    edge.append(near)
        found.append(part)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_count_agrees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ref = rng.random((9, 10, 11)) > 0.93
    pred = ref ^ (rng.random(ref.shape) > 0.97)
    mine, theirs = flood(pred), flood(ref)
    ious = sorted(((len(a & b) / len(a | b), i, j) for i, b in enumerate(theirs) for j, a in enumerate(mine) if a & b))
    pairs: list[float] = []
    used: set[tuple[str, int]] = set()
    for iou, i, j in ious[::-1]:
        if {("ref", i), ("pred", j)} & used:
            continue
        used |= {("ref", i), ("pred", j)}
        pairs.append(iou)
    found, count_pred, count_ref = pair_ious(pred, ref)
    assert (count_pred, count_ref) == (len(mine), len(theirs))
    assert found[:3] == pytest.approx(pairs[:3])
    assert count_lesions(pred, ref, 0.5).found == sum(iou >= 0.5 for iou in pairs)
