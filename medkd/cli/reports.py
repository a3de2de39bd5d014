"""Verbs that tell what finished runs are worth: ``report`` and ``gate``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli.terminal import AsJson, fail, say, say_json, table
from medkd.errors import UserError

if TYPE_CHECKING:
    from medkd.report.summary import RunSummary


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Finished runs.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the files [the run's, or of several the one above them]."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What ranks several runs.")] = "dice",
    niivue: Annotated[
        bool, typer.Option("--niivue", help="Fetch NiiVue once from npm, checked, so that pages draw in 3-D too.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Write the page of a run again, or rank several.

    Of one run: the page, and the tables beside it. Of several: a leaderboard as HTML, Markdown, CSV and JSON. Runs that
    were tested on different cases stand in tables of their own. Trains and measures nothing.
    """
    found = {folder: read_summary(folder) for folder in dict.fromkeys(folders)}
    if niivue:
        from medkd.report.niivue import fetch_niivue

        fetch_niivue()
    if len(found) == 1:
        ((folder, run),) = found.items()
        return _one(folder, run, out or folder, as_json=as_json)
    return _many(found, out, metric, as_json=as_json)


def gate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.", show_default=False)],
    least: Annotated[
        list[str] | None,
        typer.Option("--min-dice", metavar="CLASS=X", help="Least mean Dice of a class, or of the mean; repeatable."),
    ] = None,
    noninferior: Annotated[
        float | None, typer.Option(metavar="MARGIN", help="Loss of Dice that is accepted, and must be excluded.")
    ] = None,
    arm: Annotated[str | None, typer.Option(metavar="ARM", help="The arm in question [the student].")] = None,
    against: Annotated[str | None, typer.Option(metavar="ARM", help="Compare with this arm [the teacher].")] = None,
    as_json: AsJson = False,
) -> int:
    """Ask whether a run is good enough.

    The exit code is 0 where every condition holds, 1 where one does not, 2 where it cannot be asked.
    """
    from medkd.report.gate import gate as ask
    from medkd.report.gate import parse_bounds

    bounds = parse_bounds(least or ())
    found = ask(read_summary(folder), least_dice=bounds, noninferior=noninferior, arm=arm, against=against)
    if as_json:
        say_json(found.to_json())
    else:
        table(*found.table())
    if found.passed:
        return 0
    count = sum(not check.passed for check in found.checks)
    return fail(f"{found.arm} of {found.run} fails {count} of {len(found.checks)} conditions", code=1)


def _one(folder: Path, run: RunSummary, out: Path, *, as_json: bool) -> int:
    from medkd.pipeline.folder import disk_errors, write_text
    from medkd.report.card import model_card
    from medkd.report.page import write_report
    from medkd.report.tables import arms_json, arms_table, report_files
    from medkd.report.verdict import verdict

    told = verdict(run)
    if as_json:
        say_json({str(folder): {"arms": arms_json(run), "verdict": asdict(told)}})
        return 0
    head, body = arms_table(run)
    table(head, body, numbers=range(1, len(head)))
    for line in (told.evidence or told.headline, told.lost):
        if line:
            say(line)
    page = write_report(run, out / "report.html")
    with disk_errors(out):
        for name, text in {**report_files(run), "model_card.md": model_card(run)}.items():
            write_text(out / name, text)
    say(f"report: {page}")
    return 0


def _many(found: dict[Path, RunSummary], out: Path | None, metric: str, *, as_json: bool) -> int:
    from medkd.evaluation.metrics import higher_is_better
    from medkd.report.leaderboard import leaderboard
    from medkd.report.leaderboard_page import group_table, leaderboard_json, write_leaderboard

    higher_is_better(metric)  # an unknown one is told before anything is written
    board = leaderboard(_named(found), metric)
    if as_json:
        say_json(leaderboard_json(board))
        return 0
    for group in board.groups:
        say(group.title)
        head, body = group_table(board, group)
        narrow = [i for i, title in enumerate(head) if title not in ("Parameters", "p (Holm)")]  # a terminal is
        table([head[i] for i in narrow], [[row[i] for i in narrow] for row in body], numbers=(4, 5, 6, 7, 9))
    say(board.headline)
    above = Path(os.path.commonpath([folder.resolve().parent for folder in found]))
    for suffix, path in write_leaderboard(board, out or above).items():
        if suffix == "html":
            say(f"leaderboard: {path}")
    return 0


def _named(found: dict[Path, RunSummary]) -> dict[str, RunSummary]:
    """Return the runs by the names of their folders, or by their paths where two share one."""
    names = [folder.resolve().name for folder in found]
    return {
        name if names.count(name) == 1 else str(folder): run
        for name, (folder, run) in zip(names, found.items(), strict=True)
    }


def read_summary(folder: Path) -> RunSummary:
    """Return what the newest report of a run's folder tells.

    Raises:
        UserError: the run is not finished.
    """
    from medkd.pipeline.folder import read_manifest
    from medkd.report.summary import RunSummary

    done = [node for node in (folder / "nodes").glob("report-*") if read_manifest(node) is not None]
    if not done:
        raise UserError(f"{folder} is no folder of a finished run; give runs/<name>, after medkd run")
    newest = max(done, key=lambda node: (node / "manifest.json").stat().st_mtime)
    return RunSummary.from_json(json.loads((newest / "summary.json").read_text(encoding="utf-8")))
