from __future__ import annotations

import pytest

from medkd.report import content
from medkd.report.scores import Scores
from medkd.report.summary import Arm, Parity


def test_grey_values_are_differences_from_the_teacher(make_run) -> None:
    run = make_run()
    table = content.arms(run, Scores(run.rows))
    teacher, student = table["rows"][:2]
    assert {cell["under"] for cell in teacher["cells"]} == {""}
    assert [cell["under"] for cell in student["cells"]][-5:] == [
        "120× less",
        "74× less",
        "15× less",
        "15× less",
        "120× less",
    ]
    assert student["cells"][0]["under"].startswith("−0.02")


def test_classes_have_gaps_and_the_intervals_of_the_paired_test(make_run) -> None:
    run = make_run()
    dice, *others = content.classes(run, Scores(run.rows))
    assert dice["metric"] == "dice"
    assert dice["gaps"] == ["Student − control", "Student − teacher"]
    assert dice["rows"][0]["interval"] == "+0.006 to +0.014"
    assert dice["rows"][-1]["cases"] == 16
    assert not any(table["has_interval"] for table in others)


def test_arms_without_a_value_have_no_column(make_run) -> None:
    run = make_run(arms=(*make_run().arms[1:2], Arm("student.control2", "control")))
    table = content.classes(run, Scores(run.rows))[0]
    assert [arm.name for arm in table["arms"]] == ["student"]
    assert table["gaps"] == []


def test_only_the_control_can_show_that_distillation_hurt(make_run) -> None:
    assert [row["verdict"] for row in content.comparisons(make_run())] == ["helped", "worse", "helped"]


def test_only_perfect_agreement_is_a_hundred_percent(make_run) -> None:
    exports = (
        Parity("onnx", 2, 2.4e-6, 0.99999999, {"liver": 0.99991, "spleen": None}),
        Parity("bundle", 2, 0.0, 1.0, {"liver": 1.0}),
        Parity("openvino", note="not installed"),
    )
    rows = content.parity(make_run(parity=exports))
    assert [row["agreement"] for row in rows] == ["99.9999 %", "100 %", "–"]
    assert [row["lowest"] for row in rows] == ["0.9999 (liver)", "1", "–"]
    assert [row["difference"] for row in rows] == ["2.4 × 10⁻⁶", "0", "–"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (42.4, "42 s"), (250, "4 min 10 s"), (11100, "3 h 05 min"), (59.7, "1 min 00 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert content.duration(seconds) == text


def test_provenance_leaves_out_what_is_not_known(make_run) -> None:
    found = content.provenance(make_run())
    assert "Reference" not in dict(found["facts"])
    assert dict(found["licences"]) == {"data": "CC-BY-SA 4.0", "teachers": "Apache-2.0"}
    assert found["total"] == "1 h 48 min"


def test_a_teacher_that_is_no_arm_is_drawn_in_the_teachers_colour(make_run) -> None:
    run = make_run(arms=make_run().arms[1:2])
    legend = content.slice_legend(run, {"student": "#123456"})
    assert [(key["role"], key["name"]) for key in legend] == [("teacher", "Teacher"), ("student", "Student")]
    assert legend[0]["colour"] in content.slices(run, Scores(run.rows), {"student": "#123456"})[0]["svg"]
