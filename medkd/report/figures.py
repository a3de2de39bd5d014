"""The figures as Plotly descriptions (plain dicts, Plotly itself is not needed to make them).

Text that comes from the user is escaped here, because Plotly reads a little HTML in its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from math import log10
from statistics import fmean
from typing import Any

from medkd.report import numbers
from medkd.report.palette import translucent
from medkd.report.scores import Scores
from medkd.report.summary import Arm, RunSummary

Figure = dict[str, Any]

INK, FAINT, GRID = "#1C2024", "#60646C", "#E6E8EB"
FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MOST_CLASSES = 16
"""More are not shown in the figure, the table has them all."""
FRONTIER_PX = 280
MOST_PAIRS = 80
"""With more cases the lines between pairs are a grey mass."""


def per_class(run: RunSummary, colours: Mapping[str, str], scores: Scores | None = None) -> Figure | None:
    """Return Dice per class: a point per case and arm, the mean as a bar, and on the right student minus control.

    None where no Dice was measured. Classes beyond :data:`MOST_CLASSES` are those where student and
    teacher (or control) differ least.
    """
    scores = scores or Scores(run.rows)
    arms = [arm for arm in run.arms if scores.case_means(arm.name, "dice")]
    labels = shown_classes(run, scores)
    if not arms or not labels:
        return None
    student, control = run.arm("student"), run.arm("control")
    paired = student in arms and control in arms
    step = 0.78 / len(arms)
    lane = {arm.name: (i - (len(arms) - 1) / 2) * step for i, arm in enumerate(arms)}
    # A case has the same scatter in every arm, so that the lines between arms end at its points.
    cases = {case for arm in arms for label in labels for case in scores.by_case(arm.name, "dice", label)}
    scatter = {case: _jitter(i) for i, case in enumerate(sorted(cases))}
    traces: list[dict[str, Any]] = []
    traces += _joined(
        scores,
        labels,
        lambda arm, case: lane[arm.name] + scatter[case] * step,
        sorted((arm for arm in (run.arm("teacher"), student, control) if arm in arms), key=arms.index),
    )
    for arm in arms:
        values = [(row, scores.by_case(arm.name, "dice", label)) for row, label in enumerate(labels)]
        points = [
            (case, v, row + lane[arm.name] + scatter[case] * step, labels[row])
            for row, of in values
            for case, v in sorted(of.items())
        ]
        traces.append(_points(arm.shown, points, colours[arm.name], "x", numbers.metric_value))
        means = [(fmean(of.values()), row + lane[arm.name]) for row, of in values if of]
        traces.append(_bars(means, step, colours[arm.name], "x"))
    if paired and student and control:
        gaps, means = [], []
        for row, label in enumerate(labels):
            a, b = scores.by_case(student.name, "dice", label), scores.by_case(control.name, "dice", label)
            of = {case: a[case] - b[case] for case in sorted(a.keys() & b.keys())}
            gaps += [(case, v, row + _jitter(i) * 0.5, label) for i, (case, v) in enumerate(of.items())]
            means += [(fmean(of.values()), float(row))] if of else []
        traces.append(_points("student − control", gaps, FAINT, "x2", numbers.difference))
        traces.append(_bars(means, 0.5, INK, "x2"))
    height = 80 + len(labels) * max(44, (24 if len(labels) <= 8 else 17) * len(arms))
    layout = frame(height, left=8, top=34)
    layout["yaxis"] = {
        "tickvals": list(range(len(labels))),
        "ticktext": [escape(label) for label in labels],
        "zeroline": False,
        "range": [len(labels) - 0.45, -0.55],
        "showgrid": False,
        "ticklabelstandoff": 8,
        "automargin": True,
        "fixedrange": True,
        "tickfont": {"size": 13, "color": INK},
    }
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": row + 0.5,
            "y1": row + 0.5,
            "line": {"color": GRID, "width": 1},
            "layer": "below",
        }
        for row in range(len(labels) - 1)
    ]
    layout["xaxis"] = axis("Dice", domain=[0, 0.68] if paired else [0, 1])
    layout["annotations"] = [_heading("Dice, one point a case", 0)]
    if paired:
        layout["xaxis2"] = axis(
            "Difference in Dice", domain=[0.73, 1], zeroline=True, zerolinecolor=INK, anchor="y", tickformat=".2~f"
        )
        layout["annotations"].append(_heading("Student − control", 0.73))
    return {"data": traces, "layout": layout}


def shown_classes(run: RunSummary, scores: Scores) -> list[str]:
    """Return the classes of the figure in their own order: all, or those where the student differs most."""
    labels = [label for label in scores.labels if any(scores.by_case(arm.name, "dice", label) for arm in run.arms)]
    if len(labels) <= MOST_CLASSES:
        return labels
    student = run.arm("student")
    others = [arm for arm in (run.arm("teacher"), run.arm("control")) if arm]

    def gap(label: str) -> float:
        mine = scores.mean(student.name, "dice", label) if student else None
        theirs = [scores.mean(arm.name, "dice", label) for arm in others]
        return max((abs(mine - value) for value in theirs if mine is not None and value is not None), default=0.0)

    chosen = set(sorted(labels, key=gap, reverse=True)[:MOST_CLASSES])
    return [label for label in labels if label in chosen]


def frontier(run: RunSummary, colours: Mapping[str, str], scores: Scores | None = None) -> Figure | None:
    """Return mean Dice against measured latency (log scale), with the line no arm is above and left of."""
    scores = scores or Scores(run.rows)
    spots = [
        (arm, arm.latency_s, dice)
        for arm in run.arms
        if arm.latency_s and (dice := scores.mean(arm.name, "dice")) is not None
    ]
    if len(spots) < 2:
        return None
    best: list[tuple[float, float]] = []
    for _, seconds, dice in sorted(spots, key=lambda spot: (spot[1], -spot[2])):
        if not best or dice > best[-1][1]:
            best.append((seconds, dice))
    fastest, slowest = min(s for _, s, _ in spots), max(s for _, s, _ in spots)
    # Names stand to the left of their points, where the dotted line never runs: leave room for the fastest one's.
    span = max(log10(slowest / fastest), 0.5)
    ends = [log10(fastest) - 0.22 * span, log10(slowest) + 0.06 * span]
    bottom, top = min(d for *_, d in spots), max(d for *_, d in spots)
    pad = max(0.25 * (top - bottom), 0.004)
    floor, ceiling = bottom - pad, min(1.0, top + pad)
    line = {
        "x": [*(s for s, _ in best), 10 ** ends[1]],
        "y": [*(d for _, d in best), best[-1][1]],
        "mode": "lines",
        "line": {"shape": "hv", "color": "#B9BBC6", "width": 1.5, "dash": "dot"},
        "hoverinfo": "skip",
    }
    traces: list[dict[str, Any]] = [line]
    notes = []
    shifts = _apart([(dice - floor) / (ceiling - floor) * FRONTIER_PX for *_, dice in spots])
    for (arm, seconds, dice), shift in zip(spots, shifts, strict=True):
        hover = (
            f"<b>{escape(arm.shown)}</b><br>Dice {numbers.metric_value('dice', dice)}<br>{numbers.seconds(seconds)} s"
        )
        traces.append(
            {
                "x": [seconds],
                "y": [dice],
                "mode": "markers",
                "hovertemplate": f"{hover}<extra></extra>",
                "marker": {"size": 13, "color": colours[arm.name], "line": {"color": "white", "width": 1.5}},
            }
        )
        notes.append(
            {
                "x": log10(seconds),
                "y": dice,
                "text": escape(arm.shown),
                "showarrow": False,
                "xanchor": "right",
                "xshift": -11,
                "yshift": shift,
                "font": {"color": colours[arm.name], "size": 13},
            }
        )
    layout = frame(FRONTIER_PX + 60, left=56, top=14)
    layout["xaxis"] = axis("Latency (s, log scale)", type="log", range=ends, dtick="D2", tickformat="~g")
    layout["yaxis"] = {
        "title": {"text": "Mean Dice"},
        "range": [floor, ceiling],
        "gridcolor": GRID,
        "zeroline": False,
        "tickformat": ".3~f",
        "nticks": 6,
    }
    layout["annotations"] = notes
    return {"data": traces, "layout": layout}


def _apart(heights: Sequence[float], least: float = 17.0) -> list[float]:
    """Return by how much to lift each label, in pixels, so that no two are closer than ``least``."""
    lifts = [0.0] * len(heights)
    before = -least
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        before = max(heights[i], before + least)
        lifts[i] = before - heights[i]
    return lifts


def _joined(
    scores: Scores, labels: Sequence[str], place: Callable[[Arm, str], float], order: Sequence[Arm]
) -> list[dict[str, Any]]:
    """Return thin lines that join the same case from arm to arm; ``place(arm, case)`` is a point's height in a row."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, label in enumerate(labels):
        values = [(arm, scores.by_case(arm.name, "dice", label)) for arm in order]
        cases = sorted({case for _, of in values for case in of})
        if len(cases) > MOST_PAIRS:
            continue
        for case in cases:
            found = [(of[case], row + place(arm, case)) for arm, of in values if case in of]
            if len(found) > 1:
                x += [*(value for value, _ in found), None]
                y += [*(height for _, height in found), None]
    if not x:
        return []
    return [
        {"x": x, "y": y, "mode": "lines", "line": {"color": "rgba(28,32,36,0.14)", "width": 1}, "hoverinfo": "skip"}
    ]


def _points(
    name: str, points: Iterable[tuple[str, float, float, str]], colour: str, axis: str, text: Any
) -> dict[str, Any]:
    found = list(points)
    return {
        "x": [value for _, value, _, _ in found],
        "y": [y for _, _, y, _ in found],
        "mode": "markers",
        "xaxis": axis,
        "hovertext": [
            f"<b>{escape(case)}</b>, {escape(label)}<br>{escape(name)}: {text('dice', value)}"
            for case, value, _, label in found
        ],
        "hoverinfo": "text",
        "marker": {"size": 6, "color": translucent(colour, 0.5 if len(found) < 400 else 0.3)},
    }


def _bars(means: Iterable[tuple[float, float]], step: float, colour: str, axis: str) -> dict[str, Any]:
    """Return short upright strokes at the means."""
    x: list[float | None] = []
    y: list[float | None] = []
    for value, centre in means:
        x += [value, value, None]
        y += [centre - 0.4 * step, centre + 0.4 * step, None]
    return {"x": x, "y": y, "mode": "lines", "xaxis": axis, "line": {"color": colour, "width": 3}, "hoverinfo": "skip"}


def _jitter(i: int) -> float:
    """Return the i-th of an even scatter over [-0.2, 0.2] (golden ratio), the same on every day."""
    return ((i * 0.6180339887) % 1.0 - 0.5) * 0.4


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return a light axis."""
    return {"title": {"text": title}, "gridcolor": GRID, "zeroline": False, **settings}


def _heading(text: str, x: float) -> dict[str, Any]:
    return {
        "text": f"<b>{text}</b>",
        "xref": "paper",
        "yref": "paper",
        "x": x,
        "y": 1,
        "yanchor": "bottom",
        "xanchor": "left",
        "yshift": 8,
        "showarrow": False,
        "font": {"size": 13, "color": INK},
    }


def frame(height: int, *, left: int, top: int) -> dict[str, Any]:
    """Return the layout that all figures share; height and margins in pixels."""
    return {
        "height": height,
        "margin": {"l": left, "r": 12, "t": top, "b": 46},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "font": {"family": FONT, "size": 12, "color": FAINT},
        "dragmode": "zoom",
        "hoverlabel": {"bgcolor": "white", "bordercolor": "#B9BBC6", "font": {"color": INK, "family": FONT}},
    }
