"""``medkd run`` and ``medkd check``."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli.terminal import AsJson, Device, fail, note, say, say_json
from medkd.errors import UserError

if TYPE_CHECKING:
    from medkd.pipeline.run import Finished

File = Annotated[Path, typer.Argument(metavar="FILE", help="The run's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one value, as train.steps=500.")
]
RESUME = "interrupted; finished nodes are kept, run the same command to resume"


def run(
    file: File,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Do one stage and what it needs.")] = None,
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="Nodes at a time, each in a process of its own.")] = 1,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all runs; this one goes to DIR/<name>.")] = Path(
        "runs"
    ),
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Do what is not done yet of a run.

    Stopped, the same command goes on where it was. A changed setting redoes only what depends on it.
    """
    from medkd.cli.watch import Watch
    from medkd.pipeline.config import load_config
    from medkd.pipeline.run import run as do

    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        config = load_config(file, overrides or (), networks=True)
        with Watch() as watch:
            finished = do(config, runs=runs, only=only, jobs=jobs, device=device, progress=watch)
    except KeyboardInterrupt:
        return fail(RESUME, code=130)
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        say_json(_record(finished))
    elif not finished.outcome.failed:
        _tell(finished, only)
    return _failures(finished)


def check(file: File, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Find mistakes without training.

    Looks at keys, stages, methods, networks and data, and plays a step of every stage on noise.
    """
    from medkd.pipeline.check import check as do

    try:
        config, findings = do(file, overrides or ())
    except UserError as error:
        if not as_json:
            raise
        say_json({"ok": False, "errors": str(error).splitlines(), "findings": []})
        return 2
    if as_json:
        say_json({"ok": True, "errors": [], "findings": findings})
    else:
        for finding in findings:
            say(finding)
        say(f"{config.name}: nothing wrong found")
    return 0


def _terminated(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C: workers first, and with the same promise."""
    note(f"medkd: {RESUME}")
    raise SystemExit(128 + number)


def _tell(finished: Finished, only: str | None) -> None:
    from medkd.cli.watch import clock, nodes

    outcome = finished.outcome
    if not outcome.done:
        say(f"all {len(outcome.reused)} nodes were already done; nothing to do")
    else:
        again = f", {len(outcome.reused)} were already done" if outcome.reused else ""
        say(f"{nodes(len(outcome.done))} done in {clock(finished.seconds)}{again}")
    if finished.report is not None:
        for line in _verdict(finished):
            say(line)
    if (export := finished.export) is not None:
        say(f"student: {export}")
    if finished.report is not None:
        say(f"report: {finished.report}")
    elif only is not None:
        say(f"stage {only}: {finished.folder / 'nodes'}; without --only the rest and the report follow")


def _verdict(finished: Finished) -> list[str]:
    """Return the first lines of the report."""
    import json

    from medkd.report.summary import RunSummary
    from medkd.report.verdict import verdict

    node = next(node for node in finished.ended if node.kind == "report")
    file = finished.node_folder(node) / "summary.json"
    if not file.is_file():
        return []
    found = verdict(RunSummary.from_json(json.loads(file.read_text(encoding="utf-8"))))
    return [line for line in (found.evidence or found.headline, found.lost) if line]


def _record(finished: Finished) -> dict[str, object]:
    outcome = finished.outcome
    return {
        "folder": finished.folder,
        "report": finished.report,
        "export": finished.export,
        "seconds": round(finished.seconds, 3),
        "done": [node.name for node in outcome.done],
        "reused": [node.name for node in outcome.reused],
        "failed": {node.name: failure.message for node, failure in outcome.failed.items()},
        "skipped": [node.name for node in outcome.skipped],
        "nodes": {node.name: finished.node_folder(node) for node in finished.ended},
    }


def _failures(finished: Finished) -> int:
    """Print one line a failed node, and the traceback of what is our fault."""
    from medkd.cli.watch import nodes

    outcome = finished.outcome
    if not outcome.failed:
        return 0
    traces = [failure.trace for failure in outcome.failed.values() if failure.trace]
    for trace in dict.fromkeys(traces):
        note(trace)
    which = "" if any(failure.halts for failure in outcome.failed.values()) else " that need them"
    held = f", {nodes(len(outcome.skipped))}{which} not begun" if outcome.skipped else ""
    told = [f"{node.name}: {failure.message}" for node, failure in outcome.failed.items()]
    if len(told) == 1:
        return fail(f"{told[0]} ({nodes(len(finished.ended))} done and kept{held})", code=1 if traces else 2)
    head = f"{nodes(len(told))} failed ({nodes(len(finished.ended))} done and kept{held}):"
    return fail("\n  ".join([head, *told]), code=1 if traces else 2)
