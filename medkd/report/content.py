"""The page's tables as text, ready for the template, which only lays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medkd.report import numbers
from medkd.report.palette import ROLE_COLOURS
from medkd.report.scores import Scores
from medkd.report.slices import slice_svg
from medkd.report.summary import Comparison, RunSummary
from medkd.report.tables import COSTS, arm_lines, cost, cost_text


def arms(run: RunSummary, scores: Scores) -> dict[str, Any]:
    """Return headings and rows of the main table; under each value how it differs from the teacher's."""
    lines = arm_lines(run, scores)
    teacher = next((line for line in lines if line.arm.role == "teacher"), None)
    rows = []
    for line in lines:
        apart = teacher if teacher is not None and line.arm is not teacher.arm else None
        cells = []
        for metric in scores.metrics:
            mine, theirs = line.means[metric], apart.means[metric] if apart else None
            gap = numbers.difference(metric, mine - theirs) if mine is not None and theirs is not None else ""
            cells.append({"value": numbers.metric_value(metric, mine), "under": gap})
        for name, _ in COSTS:
            mine, theirs = cost(line.arm, name), cost(apart.arm, name) if apart else None
            cells.append({"value": cost_text(line.arm, name), "under": _times(mine, theirs)})
        rows.append({"arm": line.arm, "cases": line.cases, "cells": cells})
    return {
        "metrics": [numbers.metric_title(metric) for metric in scores.metrics],
        "costs": [title for _, title in COSTS],
        "teacher": teacher.arm.shown if teacher else "",
        "rows": rows,
    }


def classes(run: RunSummary, scores: Scores) -> list[dict[str, Any]]:
    """Return one table a metric, Dice first: class, each arm's mean, student minus control, student minus teacher."""
    lines = [line for line in arm_lines(run, scores) if line.cases]
    student, control, teacher = run.arm("student"), run.arm("control"), run.arm("teacher")
    tables = []
    for metric in sorted(scores.metrics, key=lambda name: name != "dice"):
        measured = {line.arm.name for line in lines}
        pairs = [(student, other) for other in (control, teacher) if student and other]
        pairs = [pair for pair in pairs if {arm.name for arm in pair} <= measured]
        rows = []
        for label in scores.labels:
            values = {line.arm.name: line.per_class[label][metric] for line in lines}
            gaps = []
            for mine, other in pairs:
                a, b = values[mine.name], values[other.name]
                gaps.append(numbers.difference(metric, a - b if a is not None and b is not None else None))
            interval_text = _class_interval(run, metric, label)
            rows.append(
                {
                    "label": label,
                    "values": [numbers.metric_value(metric, value) for value in values.values()],
                    "gaps": gaps,
                    "interval": interval_text,
                    "cases": len({case for arm in run.arms for case in scores.by_case(arm.name, metric, label)}),
                }
            )
        tables.append(
            {
                "metric": metric,
                "title": numbers.metric_title(metric),
                "arms": [line.arm for line in lines],
                "gaps": [f"Student − {'control' if other.role == 'control' else 'teacher'}" for _, other in pairs],
                "has_interval": any(row["interval"] for row in rows),
                "rows": rows,
            }
        )
    return tables


def comparisons(run: RunSummary) -> list[dict[str, Any]]:
    """Return the paired tests as rows of text."""
    shown = {arm.name: arm for arm in run.arms}
    return [
        {
            "a": shown.get(c.arm_a),
            "b": shown.get(c.arm_b),
            "names": (c.arm_a, c.arm_b),
            "metric": numbers.metric_title(c.metric),
            "difference": numbers.difference(c.metric, c.difference),
            "interval": numbers.interval(c.metric, c.ci_low, c.ci_high),
            "p": numbers.p_value(c.wilcoxon_p),
            "cases": c.n_cases,
            "seeds": c.n_seeds,
            "verdict": _outcome(run, c),
            "sentence": c.sentence,
            "notes": c.notes,
        }
        for c in run.comparisons
    ]


def slice_legend(run: RunSummary, colours: Mapping[str, str]) -> list[dict[str, str]]:
    """Return role, name and colour of the contours beside the label's; a teacher from a file is no arm but is drawn."""
    roles = ("teacher", "student") if any(view.teacher is not None for view in run.slices) else ("student",)
    found = [(role, run.arm(role)) for role in roles]
    return [
        {
            "role": role,
            "name": arm.shown if arm else role.capitalize(),
            "colour": colours[arm.name] if arm else ROLE_COLOURS[role],
        }
        for role, arm in found
    ]


def slices(run: RunSummary, scores: Scores, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the worst cases: the picture with its contours, and the case's Dice by arm."""
    roles = {key["role"]: key["colour"] for key in slice_legend(run, colours)}
    means = {arm.name: scores.case_means(arm.name, "dice") for arm in run.arms}
    return [
        {
            "view": view,
            "svg": slice_svg(view, roles, run.data.labels),
            "dice": [
                (arm, numbers.metric_value("dice", means[arm.name][view.case]))
                for arm in run.arms
                if view.case in means[arm.name]
            ],
        }
        for view in run.slices
    ]


def parity(run: RunSummary) -> list[dict[str, Any]]:
    """Return the exports as rows of text."""
    rows = []
    for export in run.parity:
        overlaps = {label: value for label, value in export.dice.items() if value is not None}
        rows.append(
            {
                "name": export.name,
                "cases": export.cases or numbers.NOTHING,
                "difference": numbers.NOTHING
                if export.max_abs_difference is None
                else _tiny(export.max_abs_difference),
                "agreement": numbers.NOTHING if export.voxel_agreement is None else _share(export.voxel_agreement),
                "lowest": _lowest(overlaps),
                "note": export.note,
            }
        )
    return rows


def provenance(run: RunSummary) -> dict[str, Any]:
    """Return the provenance as lists of (name, text), empty ones left out."""
    p = run.provenance
    data = run.data
    facts = [
        ("Data", data.name),
        ("Reference", data.reference),
        ("Cases", ", ".join(f"{size} {name}" for name, size in data.sizes.items())),
        ("Data hash", p.data_hash),
        ("Seeds", ", ".join(str(seed) for seed in p.seeds)),
        ("Folds", ", ".join(str(fold) for fold in p.folds)),
        ("Leakage", p.leakage),
        ("Made", p.created),
        ("Device", p.device),
        ("Command", p.command),
    ]
    licences = {**({"data": data.licence} if data.licence and data.name not in p.licences else {}), **p.licences}
    return {
        "facts": [(name, text) for name, text in facts if text],
        "licences": list(licences.items()),
        "teachers": list(p.teachers.items()),
        "versions": list(p.versions.items()),
        "nodes": [
            (node, p.keys.get(node, ""), duration(p.seconds[node]) if node in p.seconds else "")
            for node in dict.fromkeys([*p.keys, *p.seconds])
        ],
        "total": duration(sum(p.seconds.values())) if p.seconds else "",
    }


def duration(seconds: float) -> str:
    """Return a wall time for people: ``12 s``, ``4 min 10 s``, ``3 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _outcome(run: RunSummary, c: Comparison) -> str:
    """Return ``helped`` or ``hurt`` where distillation alone is the difference, ``better`` or ``worse`` elsewhere."""
    control = run.arm("control")
    if control is not None and c.arm_b == control.name:
        return c.verdict
    return {"helped": "better", "hurt": "worse"}.get(c.verdict, c.verdict)


def _class_interval(run: RunSummary, metric: str, label: str) -> str:
    student, control = run.arm("student"), run.arm("control")
    found = run.comparison(student.name, control.name, metric) if student and control else None
    for one in found.per_class if found else ():
        if one.get("label") == label and one.get("ci_low") is not None:
            return numbers.interval(metric, one.get("ci_low"), one.get("ci_high"))
    return ""


def _times(mine: float | None, theirs: float | None) -> str:
    if not mine or not theirs:
        return ""
    text = numbers.ratio(max(mine, theirs), min(mine, theirs))
    return "same" if not text else f"{text} {'less' if mine < theirs else 'more'}"


def _tiny(value: float) -> str:
    """Return a very small number as 1.2 × 10⁻⁶."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}"


def _lowest(overlaps: Mapping[str, float]) -> str:
    if not overlaps:
        return numbers.NOTHING
    label = min(overlaps, key=lambda name: overlaps[name])
    return f"{overlaps[label]:.4f} ({label})" if overlaps[label] < 1 else "1"


def _share(value: float) -> str:
    """Return a share in percent; only perfect agreement is 100 %."""
    if value == 1:
        return "100 %"
    return f"{min(value * 100, 99.9999):.4f} %"
