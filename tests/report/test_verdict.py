from __future__ import annotations

import dataclasses

import pytest

from medkd.report.summary import Arm, Comparison
from medkd.report.verdict import verdict


def test_the_verdict_is_the_students_dice_against_the_control(make_run) -> None:
    run = make_run()
    found = verdict(dataclasses.replace(run, comparisons=run.comparisons[::-1]))
    assert found.outcome == "helped"
    assert found.headline == "Distillation helped: mean Dice rose by 0.034."
    assert found.evidence == run.comparisons[0].sentence


@pytest.mark.parametrize(
    ("outcome", "metric", "difference", "headline"),
    [("hurt", "dice", -0.012, "Distillation hurt: mean Dice fell by 0.012."),
     ("helped", "hd95_mm", -1.31, "Distillation helped: mean HD95 (mm) fell by 1.31."),
     ("helped", "dice", 0.0003, "Distillation helped: mean Dice rose by 0.0003."),
     ("not shown", "dice", 0.004, "Distillation was not shown to help or hurt: mean Dice +0.004."),
     ("not shown", "dice", None, "Distillation was not shown to help or hurt.")],
)  # fmt: skip
def test_headlines(make_run, outcome: str, metric: str, difference: float | None, headline: str) -> None:
    comparison = Comparison("student", "student.control", metric, "…", outcome, difference)
    assert verdict(make_run(comparisons=(comparison,))).headline == headline


def test_without_a_control_nothing_is_claimed(make_run) -> None:
    run = make_run()
    alone = dataclasses.replace(run, arms=tuple(arm for arm in run.arms if arm.role != "control"))
    for found in (verdict(alone), verdict(make_run(comparisons=()))):
        assert found.outcome == "not measured"
        assert "was not measured" in found.headline
        assert found.evidence == ""


def test_what_was_lost_names_the_gap_the_worst_class_and_the_saving(make_run) -> None:
    lost = verdict(make_run()).lost
    assert lost.startswith(
        "Against the teacher ensemble the student loses 0.025 in mean Dice (0.895 to 0.869), most in lesion"
    )
    assert lost.endswith("It has 120× fewer parameters, takes 15× less time and needs 15× less memory.")


def test_a_student_above_its_teacher_is_told_so_and_a_larger_one_too(make_run) -> None:
    run = make_run(arms=(Arm("student", "teacher", "nnunet", parameters=10), Arm("teachers", "student", parameters=20)))
    lost = verdict(run).lost
    assert (
        lost
        == "The student is 0.025 above nnunet (the teacher) in mean Dice (0.869 to 0.895). It has 2.0× more parameters."
    )


def test_no_teacher_no_loss(make_run) -> None:
    run = make_run()
    assert verdict(dataclasses.replace(run, arms=run.arms[1:])).lost == ""
