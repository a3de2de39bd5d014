from __future__ import annotations

import pytest

from medkd.report.curves import MOST_POINTS, panels, series
from medkd.report.palette import arm_colours
from medkd.report.summary import Curve

go = pytest.importorskip("plotly.graph_objects")


def test_terms_and_validation_are_told_apart() -> None:
    dice, terms = series([
        {"step": 10, "terms": {"supervised": 1.0, "dice": 0.4}, "lr": 0.1},
        {"step": 20, "terms": {"supervised": float("nan"), "dice": None}},
        {"step": 20, "scores": {"dice": 0.7, "dice/liver": 0.9}, "best": 0.7, "seconds": 3},
    ])  # fmt: skip
    assert dice == ([20.0], [0.7])
    assert terms == {"supervised": ([10.0], [1.0]), "dice": ([10.0], [0.4])}


def test_a_panel_a_quantity_in_the_arms_colours(make_run) -> None:
    run = make_run()
    colours = arm_colours(run.arms)
    found = panels(run, colours)
    assert [title for title, _ in found] == ["Validation Dice", "Loss term: supervised", "Loss term: kd"]
    for _, figure in found:
        go.Figure(figure)
    assert len(found[1][1]["data"]) == 7
    assert {trace["name"] for trace in found[2][1]["data"]} == {"Student, seed 0", "Student, seed 1"}


def test_a_long_curve_is_averaged_not_cut(make_run) -> None:
    lines = tuple({"step": i, "terms": {"kd": float(i)}} for i in range(5 * MOST_POINTS))
    run = make_run(curves=(Curve("student", lines),))
    trace = panels(run, arm_colours(run.arms))[0][1]["data"][0]
    assert len(trace["x"]) == MOST_POINTS
    assert sum(trace["y"]) / MOST_POINTS == pytest.approx((5 * MOST_POINTS - 1) / 2)


def test_no_log_no_panel(make_run) -> None:
    assert panels(make_run(curves=(Curve("student", ()),)), {}) == []
