"""The verb that measures what any tool predicted: ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medkd.cli.terminal import AsJson, fail, note, say_json, table

if TYPE_CHECKING:
    from medkd.evaluation.cases import Row
    from medkd.evaluation.summary import Summary


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Predicted label maps.", show_default=False)],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="True ones, of the same names.", show_default=False)],
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names: a dataset.json or a list [one beside LABELS, or numbers]."),
    ] = None,
    metrics: Annotated[str, typer.Option(help="Names with commas between them.")] = "dice,hd95_mm,nsd_1mm",
    surfaces: Annotated[
        Literal["surfel", "voxel"], typer.Option(help="What a surface is: as surface-distance, or as MONAI has it.")
    ] = "surfel",
    lesions: Annotated[
        str | None, typer.Option(help="Classes whose lesions count [those named lesion, tumour...].")
    ] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Accept predictions on other grids.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cases at a time.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write every score as CSV.")] = None,
    as_json: AsJson = False,
) -> int:
    """Measure label maps against true ones.

    Two folders, of medkd or of any other tool, matched by file name; or of a folder for each case with a file for each
    class. What cannot be scored is told, the rest is done, and the exit code is 2.
    """
    from medkd.cli.watch import advance, counted
    from medkd.evaluation.cases import write_rows
    from medkd.evaluation.classes import labels_beside
    from medkd.evaluation.folders import evaluate_folders
    from medkd.evaluation.metrics import EMPTY_POLICY
    from medkd.evaluation.summary import summarise
    from medkd.pipeline.folder import disk_errors

    names = _listed(metrics)
    if classes is None and (classes := labels_beside(labels)) is not None:
        note(f"medkd: class names from {classes}")
    with counted("evaluate") as bar:
        rows, problems = evaluate_folders(
            predictions,
            labels,
            classes,
            names,
            convention=surfaces,
            lesions=None if lesions is None else _listed(lesions),
            jobs=jobs,
            resample=resample,
            progress=lambda done, of: advance(bar, done, of),
        )
    if out is not None:
        with disk_errors(out):
            write_rows(out, rows)
    lines = [line for name in names for line in summarise(rows, name)]
    if as_json:
        told = {"rows": [row.to_record() for row in rows], "summary": [line.to_json() for line in lines]}
        about = {"surfaces": surfaces, "empty_classes": EMPTY_POLICY}
        say_json({**told, "problems": [asdict(problem) for problem in problems], **about})
    elif rows:
        body = [_cells(line) for line in lines if line.n or not _of_lesions(line, rows)]
        table(("class", "metric", "cases", "absent", "mean", "sd", "median"), body, numbers=(2, 3, 4, 5, 6))
    for problem in problems:
        note(f"medkd: {problem.sentence}")
    unscored = {problem.case for problem in problems if not problem.scored}
    return fail(f"{len(unscored)} cases could not be scored") if unscored else 0


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _of_lesions(line: Summary, rows: Sequence[Row]) -> bool:
    """Return whether the line is empty because its class is an organ that is there, not lesions."""
    from medkd.evaluation.metrics import lesion_metric

    there = any(row.label == line.label and not row.absent for row in rows)
    return there and lesion_metric(line.metric) is not None


def _cells(line: Summary) -> tuple[object, ...]:
    numbers = ("-" if value != value else f"{value:.4f}" for value in (line.mean, line.sd, line.median))
    return (line.label, line.metric, line.n, line.absent, *numbers)
