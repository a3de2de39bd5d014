"""Overlaps against hand-made numbers."""

import math

import pytest

from medkd import types
from medkd.evaluation import overlap


def test_dice_and_iou_of_hand_counted_sets() -> None:
    assert overlap.dice(both=2, in_ref=3, in_pred=5) == pytest.approx(0.5)
    assert overlap.iou(both=2, in_ref=3, in_pred=5) == pytest.approx(1 / 3)
    assert overlap.dice(0, 0, 4) == 0 == overlap.iou(0, 4, 0)
    assert math.isnan(overlap.dice(0, 0, 0))
    assert math.isnan(overlap.iou(0, 0, 0))


def test_ignore_is_the_one_of_all_floors() -> None:
    assert overlap.IGNORE == types.IGNORE
