"""Rows of two arms, matched: the same class of the same case under the same fold and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm as normal
from scipy.stats import t as student

from medkd.errors import UserError
from medkd.evaluation.cases import Row, higher_is_better

_Key = tuple[int, int, str, str]


@dataclass(frozen=True)
class Pair:
    """One class of one case, by both arms."""

    fold: int
    seed: int
    case: str
    patient: str
    label: str
    a: float
    b: float


@dataclass(frozen=True)
class Matched:
    """The pairs of two arms and what was left out.

    Args:
        pairs: pairs with two finite values.
        labels: class names in the order of arm a's rows, also those without a pair.
        absent: pairs left out because the class is in neither arm's map nor the reference.
        broken: pairs left out because a value is not finite although the class is there.
        alone: rows without a partner in the other arm.
        false_alarms: pairs kept where the reference lacks the class and one arm alone predicted it.
    """

    pairs: tuple[Pair, ...]
    labels: tuple[str, ...] = ()
    absent: int = 0
    broken: int = 0
    alone: int = 0
    false_alarms: int = 0

    @property
    def dropped(self) -> int:
        """How many pairs and lonely rows no number counts."""
        return self.absent + self.broken + self.alone


def match(a: Iterable[Row], b: Iterable[Row], metric: str) -> Matched:
    """Pair the rows of two arms by (fold, seed, case, label).

    A class that is absent for both arms (NaN, see :mod:`medkd.evaluation.cases`) is left out. Where the reference lacks
    it and one arm alone predicted it, the arm that left it out was right and gets the best value (1, or a distance
    of 0): dropping such pairs would hide every organ that the other arm invented.

    Raises:
        UserError: an arm has two rows for one key, no row of the metric, or nothing matches.
    """
    best = 1.0 if higher_is_better(metric) else 0.0
    one, two = _by_key(a, metric), _by_key(b, metric)
    pairs, absent, broken, false_alarms = [], 0, 0, 0
    shared = sorted(one.keys() & two.keys())
    for key in shared:
        rows = one[key], two[key]
        if all(row.absent for row in rows):
            absent += 1
            continue
        values = [best if row.absent else row.values[metric] for row in rows]
        if not all(math.isfinite(value) for value in values):
            broken += 1
            continue
        false_alarms += any(row.absent for row in rows)
        fold, seed, case, label = key
        pairs.append(Pair(fold, seed, case, rows[0].patient, label, *values))
    if not shared:
        raise UserError("the two arms share no case of the same fold and seed: compare arms of one run")
    labels = tuple(dict.fromkeys(row.label for row in one.values()))
    return Matched(tuple(pairs), labels, absent, broken, len(one) + len(two) - 2 * len(shared), false_alarms)


def _by_key(rows: Iterable[Row], metric: str) -> dict[_Key, Row]:
    found: dict[_Key, Row] = {}
    for row in rows:
        key = (row.fold, row.seed, row.case, row.label)
        if key in found:
            raise UserError(
                f"arm {row.arm!r} has two rows for {row.label!r} of case {row.case!r} (fold {row.fold}, "
                f"seed {row.seed}): give each arm by itself"
            )
        if metric not in row.values:
            raise UserError(f"arm {row.arm!r} was not measured by {metric}: add it to the metrics and evaluate again")
        found[key] = row
    if not found:
        raise UserError("an arm without rows cannot be compared: evaluate it first")
    return found


@dataclass(frozen=True)
class Cells:
    """Values as a table: one line a case, one column a seed, and the patient of each line.

    Args:
        table: ``(cases, seeds)`` mean value over classes (and folds), NaN where there is none.
        patient: ``(cases,)`` index of the patient.
    """

    table: NDArray[np.float64]
    patient: NDArray[np.int64]

    def per_patient(self) -> NDArray[np.float64]:
        """Return ``(patients,)``: mean over a patient's cases of the mean over seeds."""
        by_case = np.nanmean(self.table, axis=1)
        return np.asarray(np.bincount(self.patient, by_case) / np.bincount(self.patient), np.float64)


def cells(pairs: Iterable[Pair], value: Callable[[Pair], float] = lambda pair: pair.a - pair.b) -> Cells:
    """Arrange the differences of pairs, or another ``value`` of them, by case and seed."""
    listed = list(pairs)
    cases = {name: at for at, name in enumerate(dict.fromkeys((pair.patient, pair.case) for pair in listed))}
    seeds = {name: at for at, name in enumerate(sorted({pair.seed for pair in listed}))}
    patients = {name: at for at, name in enumerate(dict.fromkeys(patient for patient, _ in cases))}
    total, count = np.zeros((2, len(cases), len(seeds)))
    for pair in listed:
        here = cases[pair.patient, pair.case], seeds[pair.seed]
        total[here] += value(pair)
        count[here] += 1
    table = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Cells(table, np.array([patients[patient] for patient, _ in cases], np.int64))


def bootstrap(found: Cells, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the mean difference again and again: patients, within a patient its cases, and the seeds.

    Every patient weighs the same, as in :meth:`Cells.per_patient`. Seeds cross patients, so one draw uses one sample
    of seeds for all of them. Two or three seeds resampled say too little of how seeds differ; where the seeds differ by
    more than cases within a seed explain, their effect is widened by Student's t for that few (simulated with a strong
    effect of 3 seeds on 100 patients: the 95 % interval holds the truth in 91 % of runs, instead of 82 %).

    Returns:
        ``(draws,)`` mean differences.
    """
    table = _widen_seeds(found.table)
    cases, seeds = table.shape
    sizes = np.bincount(found.patient)
    picked = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    weight = picked[:, found.patient].astype(np.float64)
    for patient in np.flatnonzero(sizes > 1):
        size, lines = int(sizes[patient]), np.flatnonzero(found.patient == patient)
        # a patient drawn k times gives k samples of its cases, each worth 1 / size
        weight[:, lines] = rng.multinomial(picked[:, patient] * size, np.full(size, 1 / size)) / size
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(np.float64)
    there = np.isfinite(table)
    # float64 products of (draws, seeds) and (seeds, cases); a case none of whose seeds was drawn has no weight
    count = drawn @ there.T.astype(np.float64)
    total = drawn @ np.where(there, table, 0).T
    mean = np.divide(total, count, out=np.zeros((draws, cases)), where=count > 0)
    weight *= count > 0
    mass = weight.sum(axis=1)
    return np.asarray((weight * mean).sum(axis=1)[mass > 0] / mass[mass > 0], np.float64)


def _widen_seeds(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale the seeds' effect in ``(cases, seeds)`` for their number, by the share of it that is not noise."""
    cases, seeds = table.shape
    if cases < 2 or seeds < 2:
        return table
    within = table - np.nanmean(table, axis=1, keepdims=True)
    # a seed without a case in common with the others cannot be told from its cases: its effect reads 0
    effect = np.nanmean(within, axis=0)
    between = cases * float((effect**2).sum()) / (seeds - 1)
    noise = float(np.nansum((within - effect) ** 2)) / ((cases - 1) * (seeds - 1))
    real = max(0.0, 1 - noise / between) if between > 0 else 0.0
    few = math.sqrt(seeds / (seeds - 1)) * float(student.ppf(0.975, seeds - 1) / normal.ppf(0.975))
    return np.asarray(table + real * (few - 1) * effect, np.float64)
