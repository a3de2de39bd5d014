"""The leaderboard as files: one HTML page, Markdown, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from medkd.errors import UserError
from medkd.evaluation.metrics import higher_is_better
from medkd.report import numbers
from medkd.report.leaderboard import Entry, Group, Leaderboard
from medkd.report.packing import plain
from medkd.report.palette import ROLE_COLOURS
from medkd.report.tables import markdown, table_csv

STEM = "leaderboard"
_OTHER = "#8A6D00"


def write_leaderboard(board: Leaderboard, folder: Path) -> dict[str, Path]:
    """Write ``leaderboard.html``, ``.md``, ``.csv`` and ``.json`` into a folder and return them by suffix.

    Raises:
        UserError: Jinja2 is not installed, or the folder cannot be written.
    """
    texts = {
        "html": render(board),
        "md": leaderboard_markdown(board),
        "csv": leaderboard_csv(board),
        "json": json.dumps(leaderboard_json(board), indent=1) + "\n",
    }
    paths = {suffix: folder / f"{STEM}.{suffix}" for suffix in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            part = paths[suffix].with_name(f".{paths[suffix].name}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(paths[suffix])
    except OSError as error:
        raise UserError(f"the leaderboard cannot be written to {folder}: {error.strerror}") from error
    return paths


def group_table(board: Leaderboard, group: Group) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of text of one table."""
    title = numbers.metric_title(board.metric)
    head = ["Arm", "Run", "Methods", "Seeds", f"Mean {title}", "To teacher", "To control", "95 % interval"]
    head += ["p (Holm)", "Verdict", "Parameters", "Latency (s)"]
    body = [
        [
            entry.arm,
            ", ".join(entry.runs),
            " + ".join(entry.methods) or numbers.NOTHING,
            seeds_text(board, entry),
            numbers.metric_value(board.metric, entry.mean),
            numbers.difference(board.metric, entry.gap),
            numbers.difference(board.metric, entry.difference),
            numbers.interval(board.metric, entry.ci_low, entry.ci_high),
            numbers.p_value(entry.holm_p),
            entry.verdict or numbers.NOTHING,
            numbers.count(entry.parameters),
            numbers.seconds(entry.latency_s),
        ]
        for entry in group.entries
    ]
    return head, body


def seeds_text(board: Leaderboard, entry: Entry) -> str:
    """Return how many seeds there are and how far apart their means lie: ``3 (0.841–0.853)``."""
    values = sorted(entry.by_seed.values())
    if len(values) < 2:
        return str(len(entry.seeds))
    low, high = (numbers.metric_value(board.metric, value) for value in (values[0], values[-1]))
    return f"{len(entry.seeds)} ({low}–{high})"


def leaderboard_markdown(board: Leaderboard) -> str:
    """Return every table as Markdown, under its data."""
    tables = [f"{group.title}\n\n{markdown(*group_table(board, group))}" for group in board.groups]
    return "\n".join([f"{board.headline}\n", *tables])


def leaderboard_json(board: Leaderboard) -> dict[str, Any]:
    """Return everything at full precision."""
    found: dict[str, Any] = plain(board)
    return {"headline": board.headline, **found}


def leaderboard_csv(board: Leaderboard) -> str:
    """Return one line an entry over all tables, the table told by its data; a column ``dice[liver]`` for each class."""
    lines = []
    for group in board.groups:
        for entry in group.entries:
            flat = asdict(entry)
            per_class, by_seed = flat.pop("per_class"), flat.pop("by_seed")
            for name in ("runs", "methods", "seeds"):
                flat[name] = " ".join(str(one) for one in flat[name])
            lines.append(
                {
                    "data": group.title,
                    **flat,
                    **{f"{board.metric}[seed {seed}]": value for seed, value in by_seed.items()},
                    **{f"{board.metric}[{label}]": value for label, value in per_class.items()},
                }
            )
    return table_csv([{k: "" if v is None else v for k, v in line.items()} for line in lines])


def render(board: Leaderboard) -> str:
    """Return the page as HTML text that asks the network for nothing.

    Raises:
        UserError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise UserError(f"the report needs {error.name}, which is absent: pip install 'medkd[report]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("leaderboard.html.j2"))
    runs = list(dict.fromkeys(run for group in board.groups for entry in group.entries for run in entry.runs))
    return template.render(
        board=board,
        runs=runs,
        groups=[_shown(board, group) for group in board.groups],
        metric=numbers.metric_title(board.metric),
        higher=higher_is_better(board.metric),
        style=Markup(_resource("report.css")),  # noqa: S704 a file of this package
    )


def _shown(board: Leaderboard, group: Group) -> dict[str, Any]:
    head, body = group_table(board, group)
    reach = _reach(group.entries)
    rows = [
        {"entry": entry, "cells": cells, "colour": ROLE_COLOURS.get(entry.role, _OTHER), "bar": _bar(entry, reach)}
        for entry, cells in zip(group.entries, body, strict=True)
    ]
    return {"group": group, "head": head, "rows": rows, "bars": reach > 0}


def _reach(entries: Iterable[Entry]) -> float:
    """Return the largest end of an interval, so that all bars of a table share one scale around zero."""
    ends = [abs(end) for entry in entries for end in (entry.ci_low, entry.ci_high) if end is not None]
    return max(ends, default=0.0)


def _bar(entry: Entry, reach: float) -> dict[str, float] | None:
    """Return where interval and difference lie on a line from 0 to 100, zero at 50."""
    if not reach or entry.difference is None or entry.ci_low is None or entry.ci_high is None:
        return None
    low, at, high = (50 + 48 * value / reach for value in (entry.ci_low, entry.difference, entry.ci_high))
    return {"low": round(low, 2), "at": round(at, 2), "high": round(high, 2)}


def _resource(name: str) -> str:
    return files("medkd.report").joinpath("templates", name).read_text(encoding="utf-8")
