"""Predictions of any tool against references: two folders in, rows and problems out."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medkd.errors import UserError, nearest
from medkd.evaluation.cases import Row, measure_rows
from medkd.evaluation.classes import read_labels
from medkd.evaluation.maps import by_files, read_map, read_on_grid, values_of
from medkd.evaluation.matching import Problem, match_files
from medkd.evaluation.measure import Labels
from medkd.evaluation.metrics import DEFAULT_METRICS, higher_is_better
from medkd.evaluation.overlap import IGNORE
from medkd.evaluation.surface import Convention


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
    labels: Labels | None
    ignore: int | None
    metrics: tuple[str, ...]
    convention: Convention
    lesions: tuple[str, ...] | None
    resample: bool
    arm: str
    patient: str


def evaluate_folders(
    pred: Path,
    ref: Path,
    labels: Labels | Path | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    convention: Convention = "surfel",
    lesions: Collection[str] | None = None,
    jobs: int = 1,
    resample: bool = False,
    patients: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every prediction that has a reference; what cannot be scored is told and the rest is done.

    Args:
        pred: folder of predicted label maps, of folders with a file per class, or one file.
        ref: the same of the references.
        labels: class name -> value, or a file that :func:`medkd.evaluation.classes.read_labels` reads. By default
            every value found is a class of its own, named by its number; in folders of cases, every file is one.
        metrics: as in :func:`medkd.evaluation.measure.measure_case`, like the next two.
        convention: what a surface is.
        lesions: classes whose lesions are counted.
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
    found, problems = match_files(pred, ref)
    names, ignore = read_labels(labels) if isinstance(labels, Path) else (labels, None)
    if names and (unknown := sorted(set(lesions or ()) - set(names))):
        raise UserError(f"no class is called {unknown[0]!r}{nearest(unknown[0], names)}; there are {', '.join(names)}")
    tasks = [
        _Task(
            case,
            *files,
            names,
            ignore,
            tuple(metrics),
            convention,
            None if lesions is None else tuple(lesions),
            resample,
            pred.name,
            (patients or {}).get(case, case),
        )
        for case, files in found.items()
    ]
    done: dict[str, Scores] = {}
    for case, scores in _run(tasks, jobs):
        done[case] = scores
        if progress is not None:
            progress(len(done), len(tasks))
    ordered = [done[task.case] for task in tasks]
    problems = [*problems, *(problem for scores in ordered for problem in scores.problems)]
    rows = [row for scores in ordered for row in scores.rows]
    return Scores(rows, sorted(problems, key=lambda told: told.case))


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
    told: list[str] = []
    try:
        rows = _rows(task, told)
    except UserError as error:
        return Scores([], [Problem(task.case, f"case {task.case}: {error}", scored=False)])
    except MemoryError:
        words = f"case {task.case}: there is not enough memory for it; use fewer jobs"
        return Scores([], [Problem(task.case, words, scored=False)])
    return Scores(rows, [Problem(task.case, f"case {task.case}: {sentence}", scored=True) for sentence in told])


def _rows(task: _Task, told: list[str]) -> list[Row]:
    """Return the rows of a case; what a reader must know of them goes to ``told``."""
    names = task.labels or by_files(task.pred, task.ref)
    reference = read_map(task.ref, names)
    predicted = read_on_grid(task.pred, names, reference, resample=task.resample)
    told += [f"the prediction {sentence}" for sentence in predicted.told]
    told += [f"the reference {sentence}" for sentence in reference.told]
    pred, ref = predicted.array, reference.array
    if task.ignore is not None:
        ref[ref == task.ignore] = IGNORE
    in_pred, in_ref = values_of(pred), values_of(ref)
    labels = names or {str(value): value for value in sorted(in_pred | in_ref) if value > 0}
    named = {value for given in labels.values() for value in ((given,) if isinstance(given, int) else given)}
    for which, values in (("prediction", in_pred), ("reference", in_ref)):
        if extra := sorted(values - named - {0, IGNORE}):
            listed = f"label value{'s' if len(extra) > 1 else ''} {', '.join(map(str, extra))}"
            told.append(f"the {which} has {listed} that the labels do not name, counted as background")
    return measure_rows(
        pred,
        ref,
        reference.spacing_mm,
        labels,
        task.metrics,
        convention=task.convention,
        lesions=None if task.lesions is None else [name for name in task.lesions if name in labels],
        case=task.case,
        patient=task.patient,
        arm=task.arm,
    )
