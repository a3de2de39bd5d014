"""Matching rows, the table of differences, and the bootstrap against formulas."""

from dataclasses import replace

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.evaluation.cases import Row
from medkd.evaluation.pairs import Cells, Pair, bootstrap, cells, match

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


def test_the_table_averages_classes_and_folds_then_seeds_then_cases() -> None:
    pairs = [
        Pair(0, 0, "1", "p", "x", 0.4, 0.0),
        Pair(0, 0, "1", "p", "y", 0.2, 0.0),
        Pair(0, 1, "1", "p", "x", 0.5, 0.0),
        Pair(1, 0, "2", "p", "x", 0.8, 0.0),
        Pair(1, 1, "3", "q", "x", 0.1, 0.0),
    ]
    found = cells(pairs)
    assert found.table == pytest.approx(np.array([[0.3, 0.5], [0.8, NAN], [NAN, 0.1]]), nan_ok=True)
    assert found.per_patient() == pytest.approx([0.6, 0.1])


def test_the_bootstrap_of_patients_has_the_spread_of_theory() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    drawn = bootstrap(Cells(values[:, None], np.arange(200)), 4000, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(values.std() / 200**0.5, rel=0.05)


def test_cases_of_one_patient_are_no_new_patients() -> None:
    """Ten patients measured ten times each know no more than ten patients."""
    values = np.random.default_rng(0).standard_normal(10)
    many = Cells(np.repeat(values, 10)[:, None], np.repeat(np.arange(10), 10))
    few = Cells(values[:, None], np.arange(10))
    spread = [bootstrap(found, 4000, np.random.default_rng(1)).std() for found in (many, few)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_cases_vary_within_their_patient() -> None:
    drawn = bootstrap(Cells(np.array([[0.0], [1.0]]), np.array([0, 0])), 4000, np.random.default_rng(0))
    assert sorted(set(drawn.tolist())) == [0, 0.5, 1]
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.03)


def test_seeds_that_differ_widen_the_interval_and_more_patients_do_not_help() -> None:
    table = np.tile([0.0, 0.1, 0.2], (500, 1)) + 1e-3 * np.random.default_rng(0).standard_normal((500, 3))
    drawn = bootstrap(Cells(table, np.arange(500)), 2000, np.random.default_rng(0))
    assert drawn.std() > 0.1 / 3**0.5  # at least the standard error of three seeds with sd 0.1
    calm = bootstrap(Cells(table - [0.0, 0.1, 0.2], np.arange(500)), 2000, np.random.default_rng(0))
    assert calm.std() < 2e-4


def test_holes_in_the_table_are_no_numbers() -> None:
    table = np.array([[0.1, NAN], [NAN, 0.1], [0.1, 0.1]])
    drawn = bootstrap(Cells(table, np.arange(3)), 500, np.random.default_rng(0))
    assert drawn == pytest.approx(0.1)
