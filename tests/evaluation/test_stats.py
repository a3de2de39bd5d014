"""Verdicts on made-up arms with a known effect."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.evaluation.cases import Row
from medkd.evaluation.stats import paired

Make = Callable[..., tuple[list[Row], list[Row]]]


@pytest.mark.parametrize(("shift", "verdict"), [(0.02, "helped"), (-0.02, "hurt")])
def test_a_real_effect_is_found(arms: Make, shift: float, verdict: str) -> None:
    result = paired(*arms(np.random.default_rng(3), shift))
    assert result.verdict == verdict
    assert result.ci_low < shift < result.ci_high
    assert result.difference == pytest.approx(shift, abs=0.006)
    assert np.sign(result.effect_size) == np.sign(shift)
    assert (result.probability_better > 0.5) == (shift > 0)
    assert result.sentence.startswith(f"Distillation {verdict}: mean Dice {'+' if shift > 0 else '-'}0.0")
    assert {line.verdict for line in result.per_class} == {verdict}


def test_lower_is_better_for_distances(arms: Make) -> None:
    rng = np.random.default_rng(0)
    result = paired(*arms(rng, -0.5, metric="hd95_mm", level=4, noise=0.3), "hd95_mm")
    assert result.verdict == "helped"
    assert result.difference < 0 < result.effect_size
    assert result.mean_a < result.mean_b
    assert " mm (lower is better; 95 % interval -" in result.sentence


def test_noise_is_no_effect_in_most_draws(arms: Make) -> None:
    rng = np.random.default_rng(0)
    verdicts = [paired(*arms(rng, 0.0), draws=500).verdict for _ in range(20)]
    assert verdicts.count("not shown") >= 18


def test_seeds_that_disagree_show_nothing(arms: Make) -> None:
    """One lucky seed of three: patients are many, seeds are few."""
    a, b = arms(np.random.default_rng(0), 0.0, noise=0.005)
    lucky = [replace(row, values={"dice": row.values["dice"] + 0.06 * (row.seed == 0)}) for row in a]
    result = paired(lucky, b)
    assert result.wilcoxon_p < 0.001
    assert result.verdict == "not shown"
    assert result.reason == "the interval includes 0"


def test_few_patients_show_nothing_however_large_the_effect(arms: Make) -> None:
    result = paired(*arms(np.random.default_rng(0), 0.3, patients=5))
    assert result.verdict == "not shown"
    assert result.reason == "fewer than 6 patients"
    assert "fewer than 6 patients" in result.sentence
    assert paired(*arms(np.random.default_rng(0), 0.3, patients=6)).verdict == "helped"
    assert paired(*arms(np.random.default_rng(0), 0.3, patients=1)).verdict == "not shown"


def test_one_seed_is_told(arms: Make) -> None:
    result = paired(*arms(np.random.default_rng(3), 0.02, seeds=1))
    assert result.n_seeds == 1
    assert "One seed only" in result.sentence
    assert "One seed" not in paired(*arms(np.random.default_rng(3), 0.02)).sentence


def test_cases_of_a_patient_are_told_and_do_not_count_as_patients(arms: Make) -> None:
    a, b = arms(np.random.default_rng(3), 0.02)
    merged = [[replace(row, patient=f"p{int(row.case[4:]) // 8}") for row in arm] for arm in (a, b)]
    result = paired(*merged)
    assert (result.n_cases, result.n_patients) == (40, 5)
    assert "over 40 cases of 5 patients and 3 seeds" in result.sentence
    assert result.verdict == "not shown"


def test_the_same_arm_twice_is_no_difference(arms: Make) -> None:
    a, _ = arms(np.random.default_rng(0))
    result = paired(a, a)
    assert (result.difference, result.wilcoxon_p, result.verdict) == (0, 1, "not shown")
    assert result.probability_better == 0.5


def test_the_order_of_rows_does_not_matter(arms: Make) -> None:
    a, b = arms(np.random.default_rng(0), 0.01)
    mixed = [random.Random(0).sample(arm, len(arm)) for arm in (a, b)]
    first, second = paired(a, b), paired(*mixed)
    assert first.sentence == second.sentence
    assert first.ci_low == second.ci_low


def test_one_class_may_be_hurt_while_the_mean_is_not(arms: Make) -> None:
    a, b = arms(np.random.default_rng(1), 0.0)
    a = [replace(row, values={"dice": row.values["dice"] + (-0.03 if row.label == "organ1" else 0.03)}) for row in a]
    result = paired(a, b)
    assert result.verdict == "not shown"
    assert [line.verdict for line in result.per_class] == ["helped", "hurt"]
    assert all(line.holm_p >= line.wilcoxon_p for line in result.per_class)
    assert [line.n_pairs for line in result.per_class] == [120, 120]


@pytest.mark.parametrize(("margin", "shown"), [(0.02, True), (0.005, False)])
def test_non_inferiority(arms: Make, margin: float, shown: bool) -> None:
    result = paired(
        *arms(np.random.default_rng(5), -0.008), margin=margin, subject="The student instead of the teachers"
    )
    assert result.non_inferior is shown
    assert result.noninferiority_p is not None
    assert (result.noninferiority_p < 0.025) == shown == (result.ci_low > -margin)
    words = "yes, one-sided p = 0.0" if shown else "not shown, one-sided p = "
    assert f"student within {100 * margin:g} Dice points of student.control: {words}" in result.sentence


def test_a_loss_of_just_the_margin_is_seldom_called_none(arms: Make) -> None:
    """The type-I error of the non-inferiority test, at the worst truth that it should not accept."""
    rng = np.random.default_rng(0)
    found = [paired(*arms(rng, -0.01, patients=20, seeds=1), margin=0.01, draws=300) for _ in range(120)]
    assert np.mean([one.non_inferior for one in found]) < 0.06


def test_the_verdict_errs_seldom_where_there_is_no_effect(arms: Make) -> None:
    rng = np.random.default_rng(1)
    found = [paired(*arms(rng, 0.0, patients=12, seeds=2, classes=1), draws=300) for _ in range(150)]
    assert np.mean([one.verdict != "not shown" for one in found]) < 0.08


def test_an_effect_of_some_classes_only_is_told(arms: Make) -> None:
    a, b = arms(np.random.default_rng(1), 0.0, classes=6, noise=0.005)
    some = [replace(row, values={"dice": row.values["dice"] + 0.06 * (row.label == "organ0")}) for row in a]
    result = paired(some, b)
    assert result.verdict == "helped"
    assert result.classes_low < 0 < result.classes_high
    assert "It speaks of these classes" in result.sentence
    every = paired([replace(row, values={"dice": row.values["dice"] + 0.02}) for row in a], b)
    assert (every.verdict, every.classes_low > 0) == ("helped", True)
    assert "these classes" not in every.sentence
    assert np.isnan(paired(*arms(np.random.default_rng(1))).classes_low)  # two classes are no sample


def test_non_inferiority_of_distances_and_of_few_patients(arms: Make) -> None:
    worse = arms(np.random.default_rng(0), 0.5, metric="hd95_mm", level=4, noise=0.3)
    assert paired(*worse, "hd95_mm", margin=1.5).non_inferior
    assert not paired(*worse, "hd95_mm", margin=0.3).non_inferior
    assert not paired(*arms(np.random.default_rng(0), 0.3, patients=5), margin=0.1).non_inferior


def test_what_was_left_out_is_told(arms: Make) -> None:
    a, b = arms(np.random.default_rng(3), 0.02)
    gone = {"values": {"dice": float("nan")}, "voxels_ref": 0, "voxels_pred": 0}
    a[0], b[0], a[2] = replace(a[0], **gone), replace(b[0], **gone), replace(a[2], **gone)  # type: ignore[arg-type]
    b[2] = replace(b[2], values={"dice": 0.0}, voxels_ref=0)
    result = paired(a, b[:-1])
    assert (result.n_pairs, result.n_dropped) == (238, 2)
    assert (
        "2 left out: 1 of a class that neither the reference nor an arm has, 1 that only one arm has."
        in result.sentence
    )
    assert "1 counted where one arm alone predicted a class that is not there." in result.sentence


def test_a_class_that_is_always_absent_keeps_its_line(arms: Make) -> None:
    a, b = arms(np.random.default_rng(3), 0.02)
    both = [
        [
            replace(row, values={"dice": np.nan}, voxels_ref=0, voxels_pred=0) if row.label == "organ1" else row
            for row in arm
        ]
        for arm in (a, b)
    ]
    result = paired(*both)
    assert [line.label for line in result.per_class] == ["organ0", "organ1"]
    assert (result.per_class[1].n_pairs, result.per_class[1].verdict) == (0, "not shown")
    assert result.per_class[0].holm_p == result.per_class[0].wilcoxon_p
    nothing = paired(*([row for row in arm if row.label == "organ1"] for arm in both))
    assert "could not be judged" in nothing.sentence


def test_json_is_plain(arms: Make) -> None:
    record = paired(*arms(np.random.default_rng(0), patients=1)).to_json()
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert record["effect_size"] is None


@pytest.mark.parametrize("margin", [0.0, -0.1, float("nan")])
def test_a_margin_must_be_a_loss(arms: Make, margin: float) -> None:
    with pytest.raises(UserError, match="must be positive"):
        paired(*arms(np.random.default_rng(0)), margin=margin)
