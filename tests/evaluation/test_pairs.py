"""Matching rows of two arms."""

from dataclasses import replace

import pytest

from medkd.errors import UserError
from medkd.evaluation.cases import Row
from medkd.evaluation.pairs import match, spread

NAN = float("nan")


def row(arm: str, case: str, value: float, **more: object) -> Row:
    given = {"stage": "", "fold": 0, "seed": 0, "patient": case, "label": "liver", "voxels_ref": 5, "voxels_pred": 5}
    return Row(arm=arm, case=case, values={"dice": value}, **{**given, **more})  # type: ignore[arg-type]


def test_pairs_are_found_by_fold_seed_case_and_label_in_any_order() -> None:
    a = [row("a", "1", 0.9), row("a", "1", 0.8, seed=1), row("a", "1", 0.7, label="spleen"), row("a", "2", 0.6, fold=1)]
    b = [replace(one, arm="b", values={"dice": one.values["dice"] - 0.1}) for one in reversed(a)]
    found = match(a, b, "dice")
    assert [round(pair.a - pair.b, 9) for pair in found.pairs] == [0.1] * 4
    assert found.labels == ("liver", "spleen")
    assert found.dropped == 0


def test_what_is_left_out_is_counted_by_reason() -> None:
    gone = {"voxels_ref": 0, "voxels_pred": 0}
    a = [row("a", "1", 0.9), row("a", "2", NAN, **gone), row("a", "3", NAN), row("a", "4", 0.5)]
    b = [row("b", "1", 0.8), row("b", "2", NAN, **gone), row("b", "3", 0.5), row("b", "5", 0.5)]
    found = match(a, b, "dice")
    assert (len(found.pairs), found.absent, found.broken, found.alone, found.dropped) == (1, 1, 1, 2, 4)


def test_an_invented_organ_is_held_against_the_arm_that_invented_it() -> None:
    a = [row("a", "1", 0.0, voxels_ref=0)]
    b = [row("b", "1", NAN, voxels_ref=0, voxels_pred=0)]
    found = match(a, b, "dice")
    assert (found.pairs[0].a, found.pairs[0].b, found.false_alarms, found.dropped) == (0, 1, 1, 0)
    far = [replace(a[0], values={"hd95_mm": 50.0})], [replace(b[0], values={"hd95_mm": NAN})]
    assert match(*far, "hd95_mm").pairs[0].b == 0


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([], [row("b", "1", 1)], "without rows"),
        ([row("a", "1", 1)], [row("b", "2", 1)], "share no case"),
        ([row("a", "1", 1), row("a", "1", 1)], [row("b", "1", 1)], "'a' has two rows for 'liver' of case '1'"),
        ([row("a", "1", 1)], [replace(row("b", "1", 1), values={"iou": 1.0})], "'b' was not measured by dice"),
    ],
)
def test_mistakes_are_told(a: list[Row], b: list[Row], words: str) -> None:
    with pytest.raises(UserError, match=words):
        match(a, b, "dice")


def test_one_training_is_paired_with_several() -> None:
    taught = [row("t", "1", 0.7, seed=5), row("t", "1", 0.1, seed=2)]
    assert [(one.seed, one.values["dice"]) for one in spread(taught, (4, 3, 4), own=5)] == [(3, 0.7), (4, 0.7)]
    assert [(one.seed, one.values["dice"]) for one in spread(taught, (0,))] == [(0, 0.1)]
    assert spread([], (0, 1)) == []
