"""The sentence of a comparison, word for word."""

from dataclasses import replace

import pytest

from medkd.evaluation.stats import Paired
from medkd.evaluation.words import metric_name, metric_unit, sentence

RESULT = Paired(
    metric="dice",
    higher_is_better=True,
    arm_a="student",
    arm_b="student.control",
    mean_a=0.863,
    mean_b=0.85,
    difference=0.013,
    ci_low=0.008,
    ci_high=0.019,
    level=0.95,
    wilcoxon_p=0.0003,
    effect_size=0.8,
    probability_better=0.8,
    margin=None,
    non_inferior=None,
    n_patients=40,
    n_cases=40,
    n_seeds=3,
    n_folds=5,
    n_pairs=240,
    n_dropped=0,
    per_class=(),
    verdict="helped",
    reason="",
    notes=(),
)


def test_helped() -> None:
    assert sentence(RESULT, "Distillation") == (
        "Distillation helped: mean Dice +0.013 (95 % interval +0.008 to +0.019, Wilcoxon p = 0.0003) "
        "over 40 cases and 3 seeds."
    )


def test_not_shown_with_reason_unit_and_notes() -> None:
    change = {"difference": -0.004, "ci_low": -0.2, "ci_high": 0.1, "wilcoxon_p": 0.4567, "n_seeds": 1, "n_cases": 1}
    words = {"verdict": "not shown", "reason": "the interval includes 0", "notes": ("One seed only.",)}
    result = replace(RESULT, metric="hd95_mm", higher_is_better=False, n_patients=1, **change, **words)  # type: ignore[arg-type]
    assert sentence(result, "KD") == (
        "KD was not shown to help or hurt: mean HD95 -0.004 mm (lower is better; 95 % interval -0.200 to +0.100 mm, "
        "Wilcoxon p = 0.46) over 1 case and 1 seed; the interval includes 0. One seed only."
    )


def test_tiny_effects_keep_a_digit_and_tiny_p_a_bound() -> None:
    tiny = replace(RESULT, difference=0.0002, ci_low=0.0001, ci_high=0.0003, wilcoxon_p=1e-9)
    assert "+0.0002 (95 % interval +0.0001 to +0.0003, Wilcoxon p < 0.0001)" in sentence(tiny, "KD")


@pytest.mark.parametrize(
    ("metric", "name", "unit"),
    [
        ("nsd_2.5mm", "NSD at 2.5 mm", ""),
        ("hd95_mm", "HD95", "mm"),
        ("volume_error_ml", "volume error", "ml"),
        ("iou", "IoU", ""),
    ],
)
def test_names_and_units(metric: str, name: str, unit: str) -> None:
    assert (metric_name(metric), metric_unit(metric)) == (name, unit)


def test_zero_has_no_minus() -> None:
    assert "Dice +0.000 (" in sentence(replace(RESULT, difference=-0.0), "KD")
    assert "interval -0.00001" in sentence(replace(RESULT, ci_low=-0.00001), "KD")
    assert "interval +0.00000" in sentence(replace(RESULT, ci_low=-1e-9), "KD")
