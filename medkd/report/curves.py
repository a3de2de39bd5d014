"""Training curves: log lines to one small figure a quantity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain
from math import ceil, isfinite, log10
from statistics import fmean
from typing import Any

from medkd.report.figures import FAINT, GRID, Figure, axis, frame
from medkd.report.palette import translucent
from medkd.report.summary import Curve, RunSummary

MOST_POINTS = 200
"""A longer curve is shown as means over equal stretches."""

Series = tuple[list[float], list[float]]


def series(lines: Iterable[Mapping[str, Any]]) -> tuple[Series, dict[str, Series]]:
    """Return (steps, values) of the mean validation Dice, and of every loss term by name; gaps are left out."""
    dice: Series = ([], [])
    terms: dict[str, Series] = {}
    for line in lines:
        found = [(terms.setdefault(name, ([], [])), value) for name, value in line.get("terms", {}).items()]
        if "dice" in line.get("scores", {}):
            found.append((dice, line["scores"]["dice"]))
        for (steps, values), value in found:
            if value is not None and isfinite(value):
                steps.append(float(line["step"]))
                values.append(float(value))
    return dice, {name: of for name, of in terms.items() if of[0]}


def panels(run: RunSummary, colours: Mapping[str, str]) -> list[tuple[str, Figure]]:
    """Return (title, figure) of the validation Dice and of every loss term, arms in their colours."""
    read = [(curve, *series(curve.lines)) for curve in run.curves]
    found: list[tuple[str, Figure]] = []
    if any(dice[0] for _, dice, _ in read):
        of = [(curve, dice) for curve, dice, _ in read if dice[0]]
        found.append(("Validation Dice", _panel(run, of, colours, log=False)))
    for name in dict.fromkeys(name for _, _, terms in read for name in terms):
        of = [(curve, terms[name]) for curve, _, terms in read if name in terms]
        found.append((f"Loss term: {name}", _panel(run, of, colours, log=True)))
    return found


def _panel(run: RunSummary, of: Sequence[tuple[Curve, Series]], colours: Mapping[str, str], *, log: bool) -> Figure:
    shown = {arm.name: arm.shown for arm in run.arms}
    # An arm of many trainings (folds, seeds, teachers) is a bundle of thinner lines.
    many = {arm for arm in shown if sum(curve.arm == arm for curve, _ in of) > 1}
    traces = []
    for curve, (steps, values) in of:
        colour = colours.get(curve.arm, FAINT)
        name = shown.get(curve.arm, curve.arm) + (f", {curve.title}" if curve.title else "")
        x, y = _thin(steps, values)
        traces.append(
            {
                "x": x,
                "y": y,
                "mode": "lines",
                "name": escape(name),
                "line": {
                    "color": translucent(colour, 0.55) if curve.arm in many else colour,
                    "width": 1.3 if curve.arm in many else 2,
                },
                "hovertemplate": f"<b>{escape(name)}</b><br>step %{{x:,}}: %{{y:.3f}}<extra></extra>",
            }
        )
    values = list(chain.from_iterable(series[1] for _, series in of))
    layout = frame(230, left=48, top=6)
    layout["xaxis"] = axis("Step", nticks=5, rangemode="tozero", tickformat=",")
    layout["yaxis"] = {"gridcolor": GRID, "zeroline": False, "nticks": 5}
    if log and min(values) > 0 and max(values) / min(values) > 20:
        decades = log10(max(values) / min(values))
        layout["yaxis"] |= {"type": "log", "dtick": 1 if decades > 2.5 else "D2", "tickformat": "~g"}
    return {"data": traces, "layout": layout}


def _thin(steps: Sequence[float], values: Sequence[float]) -> Series:
    if len(steps) <= MOST_POINTS:
        return list(steps), list(values)
    width = ceil(len(steps) / MOST_POINTS)
    cuts = range(0, len(steps), width)
    return [fmean(steps[i : i + width]) for i in cuts], [fmean(values[i : i + width]) for i in cuts]
