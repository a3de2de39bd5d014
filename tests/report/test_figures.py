from __future__ import annotations

import json

import pytest

from medkd.report import figures
from medkd.report.palette import arm_colours
from medkd.report.scores import Scores
from medkd.report.summary import Arm

go = pytest.importorskip("plotly.graph_objects")


def check(figure: figures.Figure) -> None:
    go.Figure(figure)  # refuses attributes that Plotly does not know
    json.dumps(figure, allow_nan=False)


def test_per_class_shows_every_case_and_pairs_student_with_control(make_run) -> None:
    run = make_run()
    figure = figures.per_class(run, arm_colours(run.arms))
    check(figure)
    values = Scores(run.rows).by_case("student", "dice", "pancreas")
    points = [t for t in figure["data"] if t["mode"] == "markers" and t["xaxis"] == "x"]
    assert len(points) == len(run.arms)
    assert set(values.values()) <= set(points[1]["x"])
    gaps = [t for t in figure["data"] if t["mode"] == "markers" and t["xaxis"] == "x2"]
    assert len(gaps[0]["x"]) == 24 * 5 + 16
    assert figure["layout"]["yaxis"]["ticktext"][-1] == "lesion"


def test_per_class_without_a_control_has_no_second_panel(make_run) -> None:
    run = make_run(arms=make_run().arms[:2])
    figure = figures.per_class(run, arm_colours(run.arms))
    check(figure)
    assert "xaxis2" not in figure["layout"]


def test_per_class_without_dice_is_no_figure(make_run) -> None:
    run = make_run(rows=({"arm": "student", "case": "a", "label": "liver", "hd95_mm": 3.0},))
    assert figures.per_class(run, arm_colours(run.arms)) is None


def test_of_many_classes_those_that_differ_most_are_shown_in_their_order(make_run) -> None:
    rows = []
    for i in range(30):
        gap = 0.3 if i in (3, 28) else 0.001 * i
        rows += [{"arm": arm, "case": "a", "label": f"c{i}", "dice": 0.9 - (gap if arm == "student" else 0)}
                 for arm in ("student", "student.control")]  # fmt: skip
    run = make_run(rows=tuple(rows))
    shown = figures.shown_classes(run, Scores(run.rows))
    assert len(shown) == figures.MOST_CLASSES
    assert {"c3", "c28"} <= set(shown)
    assert "c0" not in shown
    assert shown == sorted(shown, key=lambda label: int(label[1:]))


def test_frontier_draws_the_line_through_the_best(make_run) -> None:
    run = make_run()
    figure = figures.frontier(run, arm_colours(run.arms))
    check(figure)
    line, *points = figure["data"]
    assert line["x"][:-1] == [1.46, 1.47, 21.4]
    assert line["y"] == sorted(line["y"])
    assert len(points) == len(run.arms)


def test_frontier_needs_two_measured_arms(make_run) -> None:
    arms = (Arm("student", "student", latency_s=1.0), Arm("teachers", "teacher"))
    assert figures.frontier(make_run(arms=arms), arm_colours(arms)) is None


def test_names_never_reach_plotly_as_markup(make_run) -> None:
    arms = tuple(Arm(a.name, a.role, f"<b>{a.role}</b>", latency_s=a.latency_s) for a in make_run().arms)
    rows = tuple({**row, "label": "<a href='x'>", "case": "<i>"} for row in make_run().rows)
    run = make_run(arms=arms, rows=rows)
    for figure in (figures.per_class(run, arm_colours(arms)), figures.frontier(run, arm_colours(arms))):
        text = json.dumps(figure)
        assert "<b>teacher" not in text
        assert "<a href" not in text
        assert "<i>" not in text


def test_labels_that_would_collide_are_pushed_apart() -> None:
    heights = [100.0, 101.0, 40.0]
    lifts = figures._apart(heights, 17)
    ends = sorted(h + lift for h, lift in zip(heights, lifts, strict=True))
    assert ends == [40.0, 100.0, 117.0]
