"""The table of differences, and the bootstrap against formulas and simulations."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from medkd.evaluation.pairs import Pair
from medkd.evaluation.resample import Cells, bootstrap, cells

NAN = float("nan")


def grid(table: Any, patient: Any = None, fold: Any = None) -> Cells:
    """Cells of ``(cases, seeds)`` with one class, or ``(cases, seeds, classes)``; a patient a case, one fold."""
    table = np.asarray(table, np.float64)
    table = table[:, :, None] if table.ndim == 2 else table
    patient = np.arange(len(table)) if patient is None else patient
    return Cells(table, patient, np.zeros(len(table), np.int64) if fold is None else fold)


def test_the_table_averages_classes_then_seeds_then_cases() -> None:
    pairs = [
        Pair(0, 0, "1", "p", "x", 0.4, 0.0),
        Pair(0, 0, "1", "p", "y", 0.2, 0.0),
        Pair(0, 1, "1", "p", "x", 0.5, 0.0),
        Pair(1, 0, "2", "p", "x", 0.8, 0.0),
        Pair(1, 1, "3", "q", "x", 0.1, 0.0),
    ]
    found = cells(pairs)
    assert found.table.shape == (3, 2, 2)
    assert found.by_seed() == pytest.approx(np.array([[0.3, 0.5], [0.8, NAN], [NAN, 0.1]]), nan_ok=True)
    assert found.fold.tolist() == [0, 1, 1]
    assert found.per_patient() == pytest.approx([0.6, 0.1])


def test_the_bootstrap_of_patients_has_the_spread_of_theory() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    drawn = bootstrap(grid(values[:, None]), 4000, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(values.std() / 200**0.5, rel=0.05)


def test_cases_of_one_patient_are_no_new_patients() -> None:
    """Ten patients measured ten times each know no more than ten patients."""
    values = np.random.default_rng(0).standard_normal(10)
    many = grid(np.repeat(values, 10)[:, None], np.repeat(np.arange(10), 10))
    few = grid(values[:, None])
    spread = [bootstrap(found, 4000, np.random.default_rng(1)).std() for found in (many, few)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_cases_vary_within_their_patient() -> None:
    drawn = bootstrap(grid(np.array([[0.0], [1.0]]), np.array([0, 0])), 4000, np.random.default_rng(0))
    assert sorted(set(drawn.tolist())) == [0, 0.5, 1]
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.03)


def test_seeds_that_differ_widen_the_interval_and_more_patients_do_not_help() -> None:
    table = np.tile([0.0, 0.1, 0.2], (500, 1)) + 1e-3 * np.random.default_rng(0).standard_normal((500, 3))
    drawn = bootstrap(grid(table), 2000, np.random.default_rng(0))
    assert drawn.std() > 0.1 / 3**0.5  # at least the standard error of three seeds with sd 0.1
    calm = bootstrap(grid(table - [0.0, 0.1, 0.2]), 2000, np.random.default_rng(0))
    assert calm.std() < 2e-4


def test_holes_in_the_table_are_no_numbers() -> None:
    table = np.array([[0.1, NAN], [NAN, 0.1], [0.1, 0.1]])
    drawn = bootstrap(grid(table), 500, np.random.default_rng(0))
    assert drawn == pytest.approx(0.1)


def test_every_fold_draws_its_own_trainings() -> None:
    """Two folds with three trainings each are six trainings: their luck averages out over folds."""
    rng = np.random.default_rng(0)
    luck = [0.0, 0.1, 0.2]
    noise = 1e-3 * rng.standard_normal((500, 3))
    folds = np.arange(500) % 2
    one = bootstrap(grid(luck + noise), 2000, np.random.default_rng(0)).std()
    two = bootstrap(grid(luck + noise, fold=folds), 2000, np.random.default_rng(0)).std()
    assert two < one / 2**0.5  # and more degrees of freedom besides


def test_classes_that_differ_widen_the_interval_only_where_they_are_drawn() -> None:
    effect = np.linspace(-0.1, 0.1, 8)
    table = effect + 1e-3 * np.random.default_rng(0).standard_normal((60, 2, 8))
    fixed = bootstrap(grid(table), 1000, np.random.default_rng(0))
    drawn = bootstrap(grid(table), 1000, np.random.default_rng(0), classes=True)
    assert fixed.std() < 2e-4
    assert drawn.std() > effect.std(ddof=1) / 8**0.5
    holes = table.copy()
    holes[:30, :, 3:] = NAN
    assert np.isfinite(bootstrap(grid(holes), 200, np.random.default_rng(0), classes=True)).all()


@pytest.mark.parametrize("patients", [6, 12])
def test_few_patients_have_the_interval_of_students_t(patients: int) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal(patients)
    drawn = bootstrap(grid(values[:, None]), 4000, rng)
    t = float(student.ppf(0.975, patients - 1))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert high - low == pytest.approx(2 * t * values.std(ddof=1) / patients**0.5, rel=0.06)


def simulate(rng: np.random.Generator, patient: float, training: float, folds: int, seeds: int) -> Cells:
    """Draw differences with mean 0: patients of sd ``patient``, trainings (seed in a fold) of sd ``training``."""
    fold = np.arange(30) % folds
    luck = training * rng.standard_normal((folds, seeds))
    table = patient * rng.standard_normal((30, 1)) + luck[fold] + 0.02 * rng.standard_normal((30, seeds))
    return grid(table, fold=fold)


@pytest.mark.parametrize(
    ("patient", "training", "folds", "seeds"),
    [(0.03, 0.0, 1, 1), (0.03, 0.0, 1, 3), (0.01, 0.02, 1, 3), (0.01, 0.02, 5, 3), (0.01, 0.01, 5, 2)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    patient: float, training: float, folds: int, seeds: int
) -> None:
    rng, held = np.random.default_rng(7), []
    for _ in range(300):
        drawn = bootstrap(simulate(rng, patient, training, folds, seeds), 400, rng)
        low, high = np.quantile(drawn, (0.025, 0.975))
        held.append(low <= 0 <= high)
    assert 0.89 <= np.mean(held) <= 0.995  # with many trainings the luck of a fold counts as its patients' too
