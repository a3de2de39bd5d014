"""Counts and overlaps against hand-made numbers."""

import math

import numpy as np
import pytest

from medkd import types
from medkd.evaluation import overlap


def test_dice_and_iou_of_hand_counted_sets() -> None:
    assert overlap.dice(both=2, in_ref=3, in_pred=5) == pytest.approx(0.5)
    assert overlap.iou(both=2, in_ref=3, in_pred=5) == pytest.approx(1 / 3)
    assert overlap.dice(0, 0, 4) == 0 == overlap.iou(0, 4, 0)
    assert math.isnan(overlap.dice(0, 0, 0))
    assert math.isnan(overlap.iou(0, 0, 0))


def test_encode_counts_every_pair_and_nothing_where_ignored() -> None:
    ref = np.array([[[0, 7, 7, -1]], [[300, 300, 0, 5]]], np.int16)
    pred = np.array([[[7, 7, 300, 7]], [[300, 0, 9, 7]]], np.int16)
    codes_pred, codes_ref, counts = overlap.encode(pred, ref, [7, 300])
    assert codes_ref.tolist() == [[[0, 1, 1, 0]], [[2, 2, 0, 0]]]
    assert codes_pred.tolist() == [[[1, 1, 2, 0]], [[2, 0, 0, 1]]]
    assert counts.tolist() == [[2, 2, 0], [0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_encode_takes_every_integer_type(dtype: type[np.integer]) -> None:
    top = min(np.iinfo(dtype).max, 40_000)
    ref = np.array([[0, top], [1, 1]], dtype)
    _, codes, counts = overlap.encode(ref, ref, [1, int(top)])
    assert codes.tolist() == [[0, 2], [1, 1]]
    assert np.diag(counts).tolist() == [1, 2, 1]
    assert counts.sum() == 4


def test_ignore_is_the_one_of_all_floors() -> None:
    assert overlap.IGNORE == types.IGNORE
