"""The arms and the classes as tables: for the page, a terminal, a spreadsheet and a program."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medkd.report import numbers
from medkd.report.packing import plain
from medkd.report.scores import Scores
from medkd.report.study import Study
from medkd.report.summary import Arm, RunSummary
from medkd.report.verdict import verdict


@dataclass(frozen=True)
class ArmLine:
    """One arm: how many cases were measured, metric -> mean over patients, and class -> metric -> mean."""

    arm: Arm
    cases: int
    means: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]


COSTS: tuple[tuple[str, str], ...] = (
    ("parameters", "Parameters"),
    ("macs", "MACs"),
    ("latency_s", "Latency (s)"),
    ("memory_mb", "Peak memory (MB)"),
    ("weights_mb", "Weights (MB)"),
)
"""Cost columns: field (of an arm, but for ``weights_mb``) and heading."""


def arm_lines(run: RunSummary, scores: Scores | None = None) -> tuple[ArmLine, ...]:
    """Return the means of every arm, in the order of the run."""
    scores = scores or Scores(run.rows)
    return tuple(
        ArmLine(
            arm,
            scores.cases(arm.name),
            {metric: scores.mean(arm.name, metric) for metric in scores.metrics},
            {
                label: {metric: scores.mean(arm.name, metric, label) for metric in scores.metrics}
                for label in scores.labels
            },
        )
        for arm in run.arms
    )


def cost(arm: Arm, name: str) -> float | None:
    """Return a cost of :data:`COSTS`; weights in MB (10^6 bytes)."""
    if name == "weights_mb":
        return None if arm.weights_bytes is None else arm.weights_bytes / 1e6
    value = getattr(arm, name)
    return None if value is None else float(value)


def cost_text(arm: Arm, name: str) -> str:
    """Return a cost as text, its unit in the heading."""
    value = cost(arm, name)
    return numbers.count(value) if name in ("parameters", "macs") else numbers.seconds(value)


def arms_table(run: RunSummary) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of text of the main table."""
    lines = arm_lines(run)
    metrics = list(lines[0].means) if lines else []
    head = ["Arm", "Cases", *map(numbers.metric_title, metrics), *(title for _, title in COSTS)]
    body = [
        [
            line.arm.shown,
            str(line.cases),
            *(numbers.metric_value(metric, line.means[metric]) for metric in metrics),
            *(cost_text(line.arm, name) for name, _ in COSTS),
        ]
        for line in lines
    ]
    return head, body


CASE_PARTS = ("load", "prepare", "network", "restore", "write")
"""The parts of a case that are timed, in their order."""


def case_costs_table(run: RunSummary) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of text: what a whole case costs, file to file, by arm and device; seconds and MB."""
    shown = {arm.name: arm.shown for arm in run.arms}
    head = ["Arm", "Device", "Case (s)", *(part.capitalize() for part in CASE_PARTS), "Memory (MB)", "One window (s)"]
    body = [
        [
            shown.get(one.arm, one.arm),
            one.device if one.case_device_memory_mb is None else f"{one.device} ({one.case_device_memory_mb:.0f} MB)",
            numbers.seconds(one.seconds_per_case),
            *(numbers.seconds(one.case_seconds.get(part)) for part in CASE_PARTS),
            numbers.megabytes(one.case_memory_mb),
            numbers.seconds(one.window_seconds),
        ]
        for one in run.case_costs
    ]
    return head, body


def classes_table(run: RunSummary, metric: str = "dice") -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of text: one class a row, one arm a column, mean over patients."""
    lines = arm_lines(run)
    labels = list(lines[0].per_class) if lines else []
    body = [
        [label, *(numbers.metric_value(metric, line.per_class[label].get(metric)) for line in lines)]
        for label in labels
    ]
    return ["Class", *(line.arm.shown for line in lines)], body


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, columns padded so that it also reads in a terminal; numbers to the right."""
    escaped = [[cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in row] for row in body]
    widths = [max([3, len(title), *(len(row[i]) for row in escaped)]) for i, title in enumerate(head)]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(head), f"|{rule}|", *map(line, escaped)]) + "\n"


def arms_markdown(run: RunSummary) -> str:
    """Return the main table as Markdown."""
    return markdown(*arms_table(run))


def arms_json(run: RunSummary) -> list[dict[str, Any]]:
    """Return one dict an arm, for ``--json``: full precision, units in the names, None where unmeasured."""
    return [
        {
            "arm": line.arm.name,
            "role": line.arm.role,
            "cases": line.cases,
            **line.means,
            "per_class": line.per_class,
            "parameters": line.arm.parameters,
            "macs": line.arm.macs,
            "latency_s": line.arm.latency_s,
            "memory_mb": line.arm.memory_mb,
            "weights_bytes": line.arm.weights_bytes,
        }
        for line in arm_lines(run)
    ]


def arms_csv(run: RunSummary) -> str:
    """Return the main table as CSV, full precision; a column ``dice[liver]`` for each metric and class."""
    flat = []
    for line in arms_json(run):
        per_class = line.pop("per_class")
        flat.append(line | {f"{m}[{label}]": v for label, of in per_class.items() for m, v in of.items()})
    return table_csv(flat)


def comparisons_csv(run: RunSummary) -> str:
    """Return every paired test as CSV, one line for the mean over classes and one a class, full precision."""
    lines: list[dict[str, Any]] = []
    for one in run.comparisons:
        flat = asdict(one)
        per_class, notes = flat.pop("per_class"), flat.pop("notes")
        lines.append({**flat, "label": "", "holm_p": None, "notes": " ".join(notes)})
        head = {name: flat[name] for name in ("arm_a", "arm_b", "metric")}
        shared = {"label", "n_patients", "difference", "ci_low", "ci_high", "wilcoxon_p", "holm_p", "verdict"}
        lines += [{**head, **{k: v for k, v in of.items() if k in shared}} for of in per_class]
    return table_csv([{name: "" if value is None else value for name, value in line.items()} for line in lines])


def report_json(run: RunSummary) -> dict[str, Any]:
    """Return all numbers of the report but the single cases (``cases.csv``) and the pictures."""
    parts = (
        "comparisons",
        "study",
        "fidelity",
        "outcomes",
        "reliability",
        "lost",
        "case_costs",
        "parity",
        "data",
        "provenance",
    )
    told = verdict(run)
    return {
        "name": run.name,
        "verdict": asdict(told),
        "arms": arms_json(run),
        **{name: plain(getattr(run, name)) for name in parts},
        "cost_note": run.cost_note,
        "warnings": list(run.warnings),
    }


def report_files(run: RunSummary) -> dict[str, str]:
    """Return file name -> text of what lies beside the page: JSON for programs, CSV for spreadsheets, Markdown."""
    found = {
        "report.json": json.dumps(report_json(run), indent=1, allow_nan=False) + "\n",
        "arms.csv": arms_csv(run),
        "cases.csv": cases_csv(run),
        "comparisons.csv": comparisons_csv(run),
        "table.md": arms_markdown(run) + "\n",
    }
    for name, parts in (("lost", run.lost), ("fidelity", run.fidelity), ("outcomes", run.outcomes)):
        if parts:
            found[f"{name}.csv"] = table_csv([{k: "" if v is None else v for k, v in plain(p).items()} for p in parts])
    return {**found, **(study_files(run.study) if run.study else {})}


def cases_csv(run: RunSummary) -> str:
    """Return every measured row as CSV; an empty cell where nothing was measured."""
    return table_csv([dict(row) for row in run.rows])


def study_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of text of the deciding metric, the baseline last."""
    metric = study.metrics[0]
    mean = f"Mean {numbers.metric_title(metric)}"
    head = ["Method", mean, "Difference", "95 % interval", "Wilcoxon p (Holm)", "Verdict"]
    body = [
        [
            line.method,
            numbers.metric_value(metric, line.mean),
            numbers.difference(metric, line.difference),
            numbers.interval(metric, line.ci_low, line.ci_high),
            numbers.p_value(line.holm_p),
            line.verdict,
        ]
        for line in study.main
    ]
    base = numbers.metric_value(metric, study.main[0].baseline)
    return head, [*body, [f"{study.baseline} (baseline)", base, *[numbers.NOTHING] * 4]]


def study_files(study: Study) -> dict[str, str]:
    """Return file name -> text: ``study.md`` of the deciding metric, ``study.csv`` and ``study.json`` of all."""
    return {
        "study.md": f"{study.headline} {study.evidence}\n\n{markdown(*study_table(study))}",
        "study.csv": table_csv([asdict(line) for line in study.lines]),
        "study.json": json.dumps(plain(study), indent=1) + "\n",
    }


def table_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV, columns in the order in which they first come; no cell starts like a formula."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([{name: _cell(value) for name, value in row.items()} for row in rows])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    # A spreadsheet would run a name that starts like a formula.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return value
