"""How far the student can be trusted: does it say what its teacher says, and is it as sure as it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import sqrt
from typing import Any

from medkd.report import numbers
from medkd.report.evidence import REGIONS, Fidelity
from medkd.report.figures import FAINT, GRID, INK, Figure, axis, frame
from medkd.report.summary import RunSummary

REGION_TITLES = {
    "foreground": "Inside the structures",
    "boundary": "Near their edges",
    "background": "Background",
    "all": "All voxels",
}
CALIBRATION_PX = 340


def fidelity_table(run: RunSummary) -> dict[str, Any]:
    """Return agreement and KL divergence by arm and region as text; ``rows`` is empty where none was measured."""
    found = {(f.arm, f.teacher, f.region): f for f in run.fidelity}
    regions = [region for region in REGIONS if any(f.region == region for f in run.fidelity)]
    shown = {arm.name: arm for arm in run.arms}
    teachers = list(dict.fromkeys(f.teacher for f in run.fidelity))
    rows = []
    for arm, teacher in dict.fromkeys((f.arm, f.teacher) for f in run.fidelity):
        of = [found.get((arm, teacher, region)) for region in regions]
        rows.append(
            {
                "arm": shown.get(arm),
                "name": arm,
                "teacher": shown[teacher].shown if teacher in shown else teacher,
                "agreement": [_percent(f.agreement if f else None) for f in of],
                "kl": [numbers.NOTHING if not f or f.kl_nats is None else _kl(f.kl_nats) for f in of],
            }
        )
    return {
        "regions": [REGION_TITLES[region] for region in regions],
        "several": len(teachers) > 1,
        "teacher": shown[teachers[0]].shown if len(teachers) == 1 and teachers[0] in shown else "the teacher",
        "has_kl": any(f.kl_nats is not None for f in run.fidelity),
        "rows": rows,
        "sentence": _fidelity_sentence(run),
    }


def fidelity(run: RunSummary, colours: Mapping[str, str]) -> Figure | None:
    """Return the share of voxels with another class than the teacher's, by region (log scale); None where unknown."""
    of = [f for f in run.fidelity if f.agreement is not None and f.agreement < 1]
    regions = [region for region in REGIONS if region != "all" and any(f.region == region for f in of)]
    arms = [arm for arm in run.arms if any(f.arm == arm.name for f in of)]
    if not of or not regions or not arms:
        return None
    traces: list[dict[str, Any]] = []
    for arm in arms:
        mine = [f for f in of if f.arm == arm.name and f.region in regions]
        traces.append(
            {
                "x": [100 * (1 - f.agreement) for f in mine if f.agreement is not None],
                "y": [regions.index(f.region) for f in mine],
                "mode": "markers",
                "marker": {"size": 13, "color": colours[arm.name], "line": {"color": "white", "width": 1.5}},
                "hovertext": [_fidelity_hover(run, f) for f in mine],
                "hoverinfo": "text",
            }
        )
    layout = frame(70 + 46 * len(regions), left=8, top=6)
    layout["xaxis"] = axis(
        "Voxels with another class than the teacher's (%, log scale)", type="log", tickformat="~g", dtick="D2"
    )
    layout["yaxis"] = {
        "tickvals": list(range(len(regions))),
        "ticktext": [REGION_TITLES[region] for region in regions],
        "range": [len(regions) - 0.5, -0.5],
        "automargin": True,
        "ticklabelstandoff": 8,
        "gridcolor": GRID,
        "zeroline": False,
        "fixedrange": True,
        "tickfont": {"size": 13, "color": INK},
    }
    return {"data": traces, "layout": layout}


def outcomes_table(run: RunSummary) -> dict[str, Any]:
    """Return, by class, in which share of the voxels student and teacher are right or wrong; ``rows`` may be empty."""
    student = run.arm("student")
    measured = [one for one in run.outcomes if student and one.arm == student.name and one.both_right is not None]
    rows = []
    for one in measured:
        shares = (one.both_right, one.arm_only, one.teacher_only, one.both_wrong)
        rows.append(
            {
                "label": one.label,
                "shares": [_percent(share) for share in shares],
                "widths": [round(100 * (share or 0.0), 2) for share in shares],
            }
        )
    return {"rows": rows}


def calibration_table(run: RunSummary) -> list[dict[str, Any]]:
    """Return ECE and Brier score by arm as text."""
    shown = {arm.name: arm for arm in run.arms}
    return [
        {
            "arm": shown.get(one.arm),
            "name": one.arm,
            "ece": numbers.NOTHING if one.ece is None else f"{one.ece:.3f}",
            "brier": numbers.NOTHING if one.brier is None else f"{one.brier:.3f}",
            "lean": _lean(one.bins),
        }
        for one in run.reliability
    ]


def calibration(run: RunSummary, colours: Mapping[str, str]) -> Figure | None:
    """Return the reliability diagram: how often an arm is right, against how sure it is; None without bins."""
    drawn = [one for one in run.reliability if one.bins]
    if not drawn:
        return None
    shown = {arm.name: arm.shown for arm in run.arms}
    traces: list[dict[str, Any]] = [
        {
            "x": [0, 1],
            "y": [0, 1],
            "mode": "lines",
            "line": {"color": "#B9BBC6", "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for one in drawn:
        name, colour = shown.get(one.arm, one.arm), colours.get(one.arm, FAINT)
        traces.append(
            {
                "x": [confidence for confidence, _, _ in one.bins],
                "y": [accuracy for _, accuracy, _ in one.bins],
                "mode": "lines+markers",
                "cliponaxis": False,
                "line": {"color": colour, "width": 2},
                # Area of a point: how many voxels it speaks for.
                "marker": {
                    "size": [5 + 16 * sqrt(max(share, 0)) for _, _, share in one.bins],
                    "color": colour,
                    "opacity": 0.8,
                },
                "hovertext": [
                    f"<b>{escape(name)}</b><br>sure {c:.0%}, right {a:.0%}<br>{s:.2%} of the voxels"
                    for c, a, s in one.bins
                ],
                "hoverinfo": "text",
            }
        )
    lowest = min(min(c, a) for one in drawn for c, a, _ in one.bins)
    start = max(0.0, min(0.5, lowest) - 0.03)
    layout = frame(CALIBRATION_PX, left=52, top=6)
    layout["xaxis"] = axis("How sure (mean probability)", range=[start, 1.015], tickformat=".0%", nticks=6)
    layout["yaxis"] = axis("How often right", range=[start, 1.015], tickformat=".0%", nticks=6)
    return {"data": traces, "layout": layout}


def _fidelity_sentence(run: RunSummary) -> str:
    """Return how the student's agreement with its teacher at the edges compares with the control's."""
    student, control = run.arm("student"), run.arm("control")
    if student is None or control is None:
        return ""
    for region, where in (("boundary", "near the edges of the structures"), ("foreground", "inside the structures")):
        at = {f.arm: f.agreement for f in run.fidelity if f.region == region and f.agreement is not None}
        if student.name in at and control.name in at:
            mine, theirs = at[student.name], at[control.name]
            than = "more often than" if mine > theirs else "less often than" if mine < theirs else "as often as"
            return (
                f"Where it matters most, {where}, the student says what its teacher says in {_percent(mine)} "
                f"of the voxels, {than} the control ({_percent(theirs)})."
            )
    return ""


def _fidelity_hover(run: RunSummary, f: Fidelity) -> str:
    shown = {arm.name: arm.shown for arm in run.arms}
    lines = [
        f"<b>{escape(shown.get(f.arm, f.arm))}</b>, {REGION_TITLES[f.region].lower()}",
        f"agrees with {escape(shown.get(f.teacher, f.teacher))} in {_percent(f.agreement)}",
        f"{f.n_voxels:,} voxels" if f.n_voxels else "",
    ]
    return "<br>".join(line for line in lines if line)


def _lean(bins: Sequence[tuple[float, float, float]]) -> str:
    """Return whether an arm is too sure or not sure enough, weighing bins by their voxels."""
    if not bins:
        return numbers.NOTHING
    gap = sum(share * (confidence - accuracy) for confidence, accuracy, share in bins) / (sum(b[2] for b in bins) or 1)
    if abs(gap) < 0.005:
        return "about right"
    return f"{'too sure' if gap > 0 else 'not sure enough'} by {100 * abs(gap):.1f} points"


def _percent(value: float | None) -> str:
    """Return a share in percent; only a perfect one is 100 %."""
    if value is None:
        return numbers.NOTHING
    if value >= 0.99995:
        return "100 %" if value == 1 else "> 99.99 %"
    return f"{100 * value:.2f} %" if value > 0.995 else f"{100 * value:.1f} %"


def _kl(value: float) -> str:
    return "< 0.0001" if 0 <= value < 0.00005 else numbers.significant(value, 2)
