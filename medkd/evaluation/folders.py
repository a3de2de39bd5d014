"""Predictions of any tool against references: two folders in, rows and problems out."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from medkd.data.layouts import read_json
from medkd.data.volume import Volume, read_label, read_volume
from medkd.errors import UserError
from medkd.evaluation.cases import Row, measure_rows
from medkd.evaluation.matching import Problem, match_files
from medkd.evaluation.metrics import DEFAULT_METRICS, higher_is_better
from medkd.evaluation.overlap import IGNORE


class Scores(NamedTuple):
    """What :func:`evaluate_folders` found.

    Args:
        rows: one per class and case that could be scored.
        problems: one sentence per thing that a reader must know, in the order of the cases.
    """

    rows: list[Row]
    problems: list[Problem]


@dataclass(frozen=True)
class _Task:
    case: str
    pred: Path
    ref: Path
    labels: Mapping[str, int] | None
    metrics: tuple[str, ...]
    resample: bool
    arm: str
    patient: str


def evaluate_folders(
    pred: Path,
    ref: Path,
    labels: Mapping[str, int] | Path | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    jobs: int = 1,
    resample: bool = False,
    patients: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every prediction that has a reference; what cannot be scored is told and the rest is done.

    Args:
        pred: folder of predicted label maps, or one file.
        ref: folder of reference label maps, or one file.
        labels: class name -> value, or a JSON file with the key ``labels`` (MSD or nnU-Net); by default every
            value found is a class of its own, named by its number.
        metrics: as in :func:`medkd.evaluation.cases.measure_case`.
        jobs: processes.
        resample: bring predictions from other grids to the reference's by nearest neighbour, instead of refusing.
        patients: case -> patient, where a patient has several cases.
        progress: called with (cases done, cases in all).

    Returns:
        Rows and problems. A missing prediction has no rows; it is among the problems. ``arm`` is the name of ``pred``.

    Raises:
        UserError: a folder is missing, no names match, or labels or metrics are wrong.
    """
    for metric in metrics:
        higher_is_better(metric)
    names = read_labels(labels) if isinstance(labels, Path) else labels
    found, problems = match_files(pred, ref)
    tasks = [
        _Task(case, *files, names, tuple(metrics), resample, pred.name, (patients or {}).get(case, case))
        for case, files in found.items()
    ]
    done: dict[str, Scores] = {}
    for case, scores in _run(tasks, jobs):
        done[case] = scores
        if progress is not None:
            progress(len(done), len(tasks))
    ordered = [done[task.case] for task in tasks]
    problems = [*problems, *(problem for scores in ordered for problem in scores.problems)]
    return Scores([row for scores in ordered for row in scores.rows], sorted(problems, key=lambda told: told.case))


def read_labels(path: Path) -> dict[str, int]:
    """Read name -> value from the key ``labels`` of a JSON file: ``{"1": "liver"}`` (MSD) or ``{"liver": 1}``.

    Raises:
        UserError: no such file or key, or values that are not single whole numbers.
    """
    if not path.is_file():
        raise UserError(f"file {path} with the labels does not exist")
    content = read_json(path)
    table = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} has no key labels that maps names to values")
    named: dict[str, int] = {}
    for key, value in table.items():
        name, number = (str(value), key) if str(key).isdigit() else (str(key), value)
        if isinstance(number, bool) or not str(number).isdigit():
            raise UserError(f"{path}: label {name!r} has the value {number!r}, and medkd scores one value per class")
        named[name] = int(number)
    return named


def _run(tasks: Sequence[_Task], jobs: int) -> Iterator[tuple[str, Scores]]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from ((task.case, _score(task)) for task in tasks)
        return
    # spawned, not forked: the parent may hold threads of torch, and a fork of those can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        futures = {pool.submit(_score, task): task for task in tasks}
        for future in as_completed(futures):
            task = futures[future]
            try:
                yield task.case, future.result()
            except BrokenExecutor:
                told = f"case {task.case}: a worker was killed, most likely for want of memory; use fewer jobs"
                yield task.case, Scores([], [Problem(task.case, told, scored=False)])


def _score(task: _Task) -> Scores:
    """Score one case; whatever is wrong with its files becomes a problem."""
    problems: list[Problem] = []
    try:
        volume = read_volume(task.ref)
        reference = read_label(task.ref, like=volume)
        predicted, moved = _on_grid(task, volume)
        if moved:
            told = f"case {task.case}: {task.pred.name} was resampled to the reference's grid by nearest neighbour"
            problems.append(Problem(task.case, told, scored=True))
        labels = task.labels or _found(predicted, reference)
        for which, array in (("prediction", predicted), ("reference", reference)):
            if extra := sorted({*np.unique(array).tolist()} - {0, IGNORE} - set(labels.values())):
                told = (
                    f"case {task.case}: the {which} has {_values(extra)} that the labels do not name, "
                    "counted as background"
                )
                problems.append(Problem(task.case, told, scored=True))
        rows = measure_rows(
            predicted,
            reference,
            volume.spacing_mm,
            labels,
            task.metrics,
            case=task.case,
            patient=task.patient,
            arm=task.arm,
        )
    except UserError as error:
        return Scores([], [Problem(task.case, f"case {task.case}: {error}", scored=False)])
    return Scores(rows, problems)


def _on_grid(task: _Task, reference: Volume) -> tuple[NDArray[np.int16], bool]:
    """Return the prediction on the reference's grid, and whether it had to be moved there."""
    try:
        return read_label(task.pred, like=reference), False
    except UserError as refused:
        label = read_label(task.pred)  # raises by itself where the file, not its grid, is the trouble
        moving = read_volume(task.pred)
        if not task.resample:
            raise UserError(
                f"prediction {task.pred} lies on another grid than reference {task.ref}: "
                f"{_grid(moving)} against {_grid(reference)}; write it on the reference's grid or ask for resampling"
            ) from refused
    step: Any = np.linalg.inv(moving.affine) @ reference.affine
    # grid-constant: the outer half of a border voxel still belongs to it, only what lies beyond is background
    moved = affine_transform(label, step[:3, :3], step[:3, 3], reference.shape, order=0, mode="grid-constant", cval=0)
    return np.asarray(moved, np.int16), True


def _grid(volume: Volume) -> str:
    spacing = " x ".join(f"{step:.3g}" for step in volume.spacing_mm)
    origin = ", ".join(f"{place:.4g}" for place in volume.affine[:3, 3])
    return f"shape {volume.shape}, spacing {spacing} mm, first voxel at ({origin}) mm"


def _found(*arrays: NDArray[np.int16]) -> dict[str, int]:
    values = {value for array in arrays for value in np.unique(array).tolist()}
    return {str(value): value for value in sorted(values) if value > 0}


def _values(values: Iterable[int]) -> str:
    listed = list(values)
    return f"label value{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"
