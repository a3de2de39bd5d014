"""A run asked whether it is good enough."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from medkd.errors import UserError
from medkd.report.gate import first_seed, gate, parse_bounds, rows_of
from medkd.report.summary import RunSummary


def with_gap(run: RunSummary, gap: float) -> RunSummary:
    """The student lower than its teacher by ``gap`` in every case."""
    taught = {(r["case"], r["label"]): r["dice"] for r in run.rows if r["arm"] == "teachers"}
    rows = tuple(
        {**r, "dice": float(str(taught[r["case"], r["label"]])) - gap} if r["arm"] == "student" else r for r in run.rows
    )
    return dataclasses.replace(run, rows=rows)


def test_bounds_by_class_and_mean(make_run: Any) -> None:
    run = with_gap(make_run(), 0.0)
    found = gate(run, least_dice={"liver": 0.5, "mean": 0.5, "lesion": 0.99})
    assert [check.passed for check in found.checks] == [True, True, False]
    assert not found.passed
    assert found.checks[0].condition == "Dice of liver at least 0.5"
    assert found.checks[1].condition == "mean Dice at least 0.5"
    assert found.checks[2].why.endswith("too low")
    assert found.arm == "student"
    assert gate(run, least_dice={"liver": 0.5}, arm="student.control").arm == "student.control"


def test_a_value_just_below_its_bound_is_shown_so() -> None:
    run = RunSummary(
        name="r",
        arms=(),
        rows=tuple({"arm": "s", "case": "c", "label": "liver", "dice": value} for value in (0.89996,)),
    )
    from medkd.report.summary import Arm

    run = dataclasses.replace(run, arms=(Arm("s", "student"),))
    (check,) = gate(run, least_dice={"liver": 0.9}).checks
    assert (check.passed, check.found, check.value) == (False, "0.89996", 0.89996)
    assert gate(run, least_dice={"liver": 0.89996}).passed


def test_a_class_that_no_case_has_cannot_pass(make_run: Any) -> None:
    run = make_run()
    gone = tuple({**r, "dice": None} if r["label"] == "lesion" else r for r in run.rows)
    (check,) = gate(dataclasses.replace(run, rows=gone), least_dice={"lesion": 0.0}).checks
    assert (check.passed, check.why) == (False, "no test case has the class")


@pytest.mark.parametrize(("gap", "passed"), [(0.0, True), (0.008, True), (0.012, False)])
def test_non_inferiority_to_the_teacher(make_run: Any, gap: float, passed: bool) -> None:
    found = gate(with_gap(make_run(), gap), noninferior=0.01)
    (check,) = found.checks
    assert check.passed is passed
    assert check.condition == "Dice at most 0.01 below teachers"
    assert check.value == pytest.approx(-gap, abs=1e-9)
    assert json.loads(json.dumps(found.to_json()))["passed"] is passed
    assert found.table()[1][0][2] == ("pass" if passed else "FAIL")


def test_few_patients_show_nothing(make_run: Any) -> None:
    run = with_gap(make_run(), -0.1)
    few = dataclasses.replace(run, rows=tuple(r for r in run.rows if r["case"] in ("abd_000", "abd_001")))
    (check,) = gate(few, noninferior=0.01).checks
    assert (check.passed, check.why) == (False, "fewer than 6 patients")


def test_a_student_is_compared_with_the_seed_that_taught_it(make_run: Any) -> None:
    run = with_gap(make_run(), 0.005)
    taught = dataclasses.replace(run.arms[0], teaching_seed=5)
    other = [{**r, "seed": 7, "dice": 0.1} for r in run.rows if r["arm"] == "teachers"]
    good = [{**r, "seed": 5} for r in run.rows if r["arm"] == "teachers"]
    rest = [r for r in run.rows if r["arm"] != "teachers"]
    more = dataclasses.replace(run, arms=(taught, *run.arms[1:]), rows=(*other, *good, *rest))
    assert gate(more, noninferior=0.01).checks[0].value == pytest.approx(-0.005)
    assert first_seed(run, "teachers") is None


def test_missing_numbers_are_no_numbers(make_run: Any) -> None:
    rows = rows_of(RunSummary.from_json(json.loads(json.dumps(make_run().to_json()))), "student")
    assert any(row.values["dice"] != row.values["dice"] for row in rows)
    assert len(rows) == 24 * 2 * 6


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "without a condition"),
        ({"least_dice": {"livr": 0.9}}, "no such class.*liver"),
        ({"least_dice": {"liver": 90}}, "Dice lies between 0 and 1"),
        ({"noninferior": 0.01, "arm": "studen"}, "--arm studen: run abdomen-ct has no such arm.*student"),
        ({"noninferior": 0.01, "against": "nobody"}, "--against nobody"),
        ({"noninferior": -1.0}, "must be positive"),
        ({"least_dice": {"liver": 0.1}, "against": "teachers"}, "add --noninferior"),
    ],
)
def test_what_cannot_be_asked_is_told(make_run: Any, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        gate(make_run(), **asked)


def test_a_run_without_a_student_or_dice_is_told(make_run: Any) -> None:
    run = make_run()
    with pytest.raises(UserError, match="has no student: name an arm by --arm; it has teachers"):
        gate(dataclasses.replace(run, arms=run.arms[:1]), least_dice={"mean": 0.1})
    rows = tuple({k: v for k, v in r.items() if k != "dice"} for r in run.rows)
    with pytest.raises(UserError, match="not measured by dice"):
        gate(dataclasses.replace(run, rows=rows), least_dice={"mean": 0.1})


def test_bounds_are_read() -> None:
    assert parse_bounds(["liver=0.9", "mean = 0.8", "a=b=0.5"]) == {"liver": 0.9, "mean": 0.8, "a=b": 0.5}
    for text in ("liver", "liver=", "=0.9", "liver=high"):
        with pytest.raises(UserError, match="not a bound"):
            parse_bounds([text])
