from __future__ import annotations

import pytest

from medkd.report import trust
from medkd.report.palette import arm_colours
from medkd.report.summary import Fidelity, Outcome, Reliability


@pytest.fixture
def told(make_run, evidence):
    run = make_run(**evidence)
    return run, arm_colours(run.arms)


def test_agreement_by_region_with_the_control_beside(told) -> None:
    run, colours = told
    table = trust.fidelity_table(run)
    assert table["regions"] == ["Inside the structures", "Near their edges", "Background"]
    assert [row["arm"].name for row in table["rows"]] == ["student", "student.control"]
    assert table["rows"][0]["agreement"] == ["97.0 %", "84.0 %", "99.97 %"]
    assert table["rows"][0]["kl"] == ["0.039", "0.21", "0.00039"]
    assert "near the edges" in table["sentence"]
    assert "84.0 % of the voxels, more often than the control (79.0 %)" in table["sentence"]
    figure = trust.fidelity(run, colours)
    assert [round(x, 3) for x in figure["data"][0]["x"]] == [3, 16, 0.03]
    assert figure["data"][0]["marker"]["color"] == colours["student"]


def test_only_perfect_agreement_is_a_hundred_percent(make_run) -> None:
    values = (Fidelity("student", "t", "background", 0.99999), Fidelity("student", "t", "foreground", 1.0))
    table = trust.fidelity_table(make_run(fidelity=values))
    assert table["rows"][0]["agreement"] == ["100 %", "> 99.99 %"]
    assert not table["has_kl"]
    assert trust.fidelity(make_run(fidelity=values[1:]), {}) is None  # a log scale has no place for it


def test_calibration_says_which_way_an_arm_errs(told) -> None:
    run, colours = told
    teachers, student = trust.calibration_table(run)
    assert (student["ece"], student["brier"], student["lean"]) == ("0.023", "0.070", "too sure by 2.3 points")
    assert teachers["lean"] == "–"
    shy = Reliability("student", None, None, ((0.6, 0.9, 1.0),))
    assert trust.calibration_table(make_with(run, shy))[0]["lean"] == "not sure enough by 30.0 points"
    figure = trust.calibration(run, colours)
    assert len(figure["data"]) == 2  # the dotted line, and the one arm that has bins
    assert figure["data"][1]["x"] == [0.45, 0.7, 0.97]


def make_with(run, *reliability):
    from dataclasses import replace

    return replace(run, reliability=reliability)


def test_who_is_right_is_told_of_the_student_by_class(make_run) -> None:
    shares = (0.7, 0.06, 0.16, 0.08)
    outcomes = (
        Outcome("student", "teachers", "pancreas", 1000, *shares),
        Outcome("student.control", "teachers", "pancreas", 1000, *shares),
        Outcome("student", "teachers", "lesion"),
    )
    (row,) = trust.outcomes_table(make_run(outcomes=outcomes))["rows"]
    assert (row["label"], row["shares"], row["widths"]) == (
        "pancreas", ["70.0 %", "6.0 %", "16.0 %", "8.0 %"], [70, 6, 16, 8],
    )  # fmt: skip
    assert trust.outcomes_table(make_run())["rows"] == []


def test_nothing_measured_is_no_section(make_run) -> None:
    run = make_run()
    assert trust.fidelity_table(run)["rows"] == []
    assert trust.calibration_table(run) == []
    assert trust.fidelity(run, {}) is None
    assert trust.calibration(run, {}) is None
