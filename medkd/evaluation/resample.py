"""Differences as a table, and its mean drawn again and again: patients, cases, trainings, classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm as normal
from scipy.stats import t as student

from medkd.evaluation.pairs import Pair


@dataclass(frozen=True)
class Cells:
    """Values as a table: one line a case, one column a seed, one layer a class.

    Args:
        table: ``(cases, seeds, classes)``, NaN where there is none.
        patient: ``(cases,)`` index of the patient.
        fold: ``(cases,)`` index of the fold whose networks predicted the case.
    """

    table: NDArray[np.float64]
    patient: NDArray[np.int64]
    fold: NDArray[np.int64]

    def by_seed(self) -> NDArray[np.float64]:
        """Return ``(cases, seeds)``: mean over the classes that are there, NaN where there is none."""
        return np.asarray(weighted(self.table, np.ones((1, self.table.shape[2])))[0], np.float64)

    def per_patient(self) -> NDArray[np.float64]:
        """Return ``(patients,)``: mean over a patient's cases of the mean over seeds."""
        by_case = np.nanmean(self.by_seed(), axis=1)
        return np.asarray(np.bincount(self.patient, by_case) / np.bincount(self.patient), np.float64)


def cells(pairs: Iterable[Pair], value: Callable[[Pair], float] = lambda pair: pair.a - pair.b) -> Cells:
    """Arrange the differences of pairs, or another ``value`` of them, by case, seed and class."""
    listed = list(pairs)
    lines = {name: at for at, name in enumerate(dict.fromkeys((x.patient, x.case, x.fold) for x in listed))}
    seeds = {name: at for at, name in enumerate(sorted({pair.seed for pair in listed}))}
    labels = {name: at for at, name in enumerate(dict.fromkeys(pair.label for pair in listed))}
    patients = {name: at for at, name in enumerate(dict.fromkeys(patient for patient, _, _ in lines))}
    folds = {name: at for at, name in enumerate(dict.fromkeys(fold for _, _, fold in lines))}
    table = np.full((len(lines), len(seeds), len(labels)), np.nan)
    for pair in listed:  # a key comes once, see match()
        table[lines[pair.patient, pair.case, pair.fold], seeds[pair.seed], labels[pair.label]] = value(pair)
    patient = np.array([patients[name] for name, _, _ in lines], np.int64)
    return Cells(table, patient, np.array([folds[name] for _, _, name in lines], np.int64))


def weighted(table: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of ``(*X, n)`` for each line of weights ``(m, n)``, as ``(m, *X)``.

    What is not finite has no weight; where nothing has, the mean is NaN.
    """
    there = np.isfinite(table)
    total = np.tensordot(weights, np.where(there, table, 0.0), (1, table.ndim - 1))
    mass = np.tensordot(weights, there.astype(np.float64), (1, table.ndim - 1))
    return np.asarray(np.divide(total, mass, out=np.full_like(total, np.nan), where=mass > 0), np.float64)


def bootstrap(found: Cells, draws: int, rng: np.random.Generator, *, classes: bool = False) -> NDArray[np.float64]:
    """Draw the mean difference again and again: patients, within a patient its cases, the trainings, and the classes.

    Every patient weighs the same, as in :meth:`Cells.per_patient`. A training is a seed in a fold: it crosses the
    patients of its fold, so one draw uses one sample of seeds for all of them, and each fold has its own.

    Few values resampled vary too little, so what patients and trainings do is widened by Student's t for their number;
    of trainings only where they differ by more than cases within a training explain. Simulated: the 95 % interval holds
    the truth in 93 to 95 % of runs with 6 to 30 patients and one training, and with a strong effect of 3 seeds on 100
    patients of one fold in 91 %, instead of 82 %.

    Args:
        found: the differences.
        draws: how many.
        rng: the source of chance.
        classes: draw the classes too, one sample for all patients, widened likewise: then the mean speaks of classes
            like these, not of these.

    Returns:
        ``(draws,)`` mean differences.
    """
    table = _widen_seeds(_widen_classes(found.table) if classes else found.table, found.fold)
    table = table + _widen_patients(found)[:, None, None]
    lines, seeds, labels = table.shape
    weight = _patients(found.patient, draws, rng)
    chosen = rng.multinomial(labels, np.full(labels, 1 / labels), size=draws).astype(np.float64) if classes else None
    mean = np.zeros((draws, lines))
    for fold in range(int(found.fold.max()) + 1):
        here = np.flatnonzero(found.fold == fold)
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(np.float64)
        if chosen is None:
            mean[:, here] = weighted(weighted(table[here], np.ones((1, labels)))[0], drawn)
        else:
            mean[:, here] = _row_means(weighted(table[here], chosen), drawn)
    there = np.isfinite(mean)  # a case none of whose trainings was drawn has no weight
    weight *= there
    mass = weight.sum(axis=1)
    total = (weight * np.where(there, mean, 0.0)).sum(axis=1)
    return np.asarray(total[mass > 0] / mass[mass > 0], np.float64)


def _patients(patient: NDArray[np.int64], draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the weights ``(draws, cases)`` of cases when patients are drawn, and of each its cases."""
    sizes = np.bincount(patient)
    picked = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    weight = picked[:, patient].astype(np.float64)
    for many in np.flatnonzero(sizes > 1):
        size, lines = int(sizes[many]), np.flatnonzero(patient == many)
        # a patient drawn k times gives k samples of its cases, each worth 1 / size
        weight[:, lines] = rng.multinomial(picked[:, many] * size, np.full(size, 1 / size)) / size
    return weight


def _row_means(table: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over seeds of ``(draws, cases, seeds)`` with the weights ``(draws, seeds)`` of each draw."""
    there = np.isfinite(table)
    total = np.einsum("dcs,ds->dc", np.where(there, table, 0.0), weights)
    mass = np.einsum("dcs,ds->dc", there.astype(np.float64), weights)
    return np.asarray(np.divide(total, mass, out=np.full_like(total, np.nan), where=mass > 0), np.float64)


def _widen_patients(found: Cells) -> NDArray[np.float64]:
    """Return ``(cases,)``: how much farther from the mean each patient must lie, so that few speak as Student's t."""
    per_patient = found.per_patient()
    number = len(per_patient)
    if number < 2:
        return np.zeros(len(found.patient))
    few = _small(number, number - 1)
    return np.asarray((few - 1) * (per_patient - per_patient.mean())[found.patient], np.float64)


def _widen_seeds(table: NDArray[np.float64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scale the trainings' effect in ``(cases, seeds, classes)`` for their number, by the share that is not noise."""
    seeds = table.shape[1]
    if seeds < 2:
        return table
    by_seed = weighted(table, np.ones((1, table.shape[2])))[0]
    effect = np.zeros(by_seed.shape)
    between, noise, free, left = 0.0, 0.0, 0, 0
    for one in range(int(fold.max()) + 1):
        here = fold == one
        if here.sum() < 2:
            continue
        told, rest = _effect(by_seed[here])
        effect[here] = told
        between, free = between + float(here.sum() * (told**2).sum()), free + seeds - 1
        noise, left = noise + rest, left + (int(here.sum()) - 1) * (seeds - 1)
    return table + (_stretch(between, noise, free, left, seeds) * effect)[:, :, None]


def _widen_classes(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale the classes' effect in ``(cases, seeds, classes)`` for their number, by the share that is not noise."""
    cases, _, labels = table.shape
    if cases < 2 or labels < 2:
        return table
    by_case = weighted(np.moveaxis(table, 1, 2), np.ones((1, table.shape[1])))[0]
    effect, rest = _effect(by_case)
    between = float(cases * (effect**2).sum())
    return table + _stretch(between, rest, labels - 1, (cases - 1) * (labels - 1), labels) * effect


def _effect(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the effect of each column of ``(cases, n)`` and the sum of squares that it leaves."""
    rows = np.isfinite(table).any(axis=1)
    within = table[rows] - np.nanmean(table[rows], axis=1, keepdims=True)
    # a column without a case in common with the others cannot be told from its cases: its effect reads 0
    effect = np.nan_to_num(weighted(within.T, np.ones((1, int(rows.sum()))))[0])
    return effect, float(np.nansum((within - effect) ** 2))


def _stretch(between: float, noise: float, free: int, left: int, number: int) -> float:
    """Return by how much an effect of ``number`` columns must grow, given sums of squares and degrees of freedom."""
    if between <= 0 or free < 1 or left < 1:
        return 0.0
    real = max(0.0, 1 - (noise / left) / (between / free))
    return real * (_small(number, free) - 1)


def _small(number: int, free: int) -> float:
    """Return by how much the spread of ``number`` values resampled is too small for a 95 % interval of their mean."""
    return math.sqrt(number / (number - 1)) * float(student.ppf(0.975, free) / normal.ppf(0.975))
