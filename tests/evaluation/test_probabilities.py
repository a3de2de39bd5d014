"""Calibration against hand-counted voxels and slow loops."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medkd.evaluation.probabilities import brier, ece, expected_gap, reliability


def answers(seed: int, classes: int = 4, shape: tuple[int, ...] = (5, 6, 7)) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    p = rng.gamma(0.7, size=(classes, *shape))
    label = rng.integers(0, classes, shape).astype(np.int16)
    return (p / p.sum(0)).astype(np.float32), label


def slow_ece(p: NDArray, y: NDArray, bins: int) -> float:
    p, y = p.reshape(p.shape[0], -1), y.ravel()
    found: dict[int, list[tuple[float, bool]]] = {}
    for i, truth in enumerate(y):
        best = max(range(len(p)), key=lambda k: p[k, i])
        place = next(b for b in range(bins) if b == bins - 1 or p[best, i] <= (b + 1) / bins)
        found.setdefault(place, []).append((float(p[best, i]), best == truth))
    gaps = [len(v) * abs(sum(c for c, _ in v) / len(v) - sum(r for _, r in v) / len(v)) for v in found.values()]
    return sum(gaps) / len(y)


def test_four_hand_counted_voxels() -> None:
    """0.95 right, 0.95 wrong, 0.65 right, 0.65 right: gaps 0.45 and 0.35."""
    p = np.array([[0.95, 0.95, 0.65, 0.65]])
    p = np.concatenate([p, 1 - p])
    label = np.array([0, 1, 0, 0])
    found = reliability(p, label, bins=10)
    assert found.share.tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.5]
    assert found.accuracy[[6, 9]].tolist() == [1, 0.5]
    assert found.confidence[[6, 9]] == pytest.approx([0.65, 0.95])
    assert math.isnan(found.accuracy[0])
    assert ece(p, label, bins=10) == pytest.approx(0.4)
    assert expected_gap(found) == pytest.approx(0.4)
    assert brier(p, label) == pytest.approx(2 * (0.05**2 + 0.95**2 + 2 * 0.35**2) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_slow_loops_agree(seed: int) -> None:
    p, label = answers(seed)
    assert ece(p, label) == pytest.approx(slow_ece(p, label, 15), abs=1e-6)
    one_hot = np.eye(4)[label.astype(int)].transpose(3, 0, 1, 2)
    assert brier(p, label) == pytest.approx(((p - one_hot) ** 2).sum(0).mean(), abs=1e-6)


def test_perfect_and_perfectly_wrong() -> None:
    label = np.array([[0, 1], [2, 1]])
    sure = np.eye(3)[label].transpose(2, 0, 1)
    assert (ece(sure, label), brier(sure, label)) == (0, 0)
    assert (ece(sure, (label + 1) % 3), brier(sure, (label + 1) % 3)) == (1, 2)


def test_ignored_and_masked_voxels_count_for_nothing() -> None:
    p, label = answers(7)
    where = np.random.default_rng(1).random(label.shape) > 0.5
    ignored = np.where(where, label, np.int16(-1))
    picked = p[:, where][:, None], label[where][None]
    for one, two in ((ece(p, ignored), ece(*picked)), (brier(p, label, where=where), brier(*picked))):
        assert one == pytest.approx(two, abs=1e-9)


def test_half_precision_and_sliced_stores_work() -> None:
    class Store:
        def __init__(self, array: NDArray) -> None:
            self.array, self.shape = array, array.shape

        def __getitem__(self, key: object) -> NDArray:
            return self.array[key].astype(np.float16)

    p, label = answers(3)
    assert ece(Store(p), label) == pytest.approx(ece(p, label), abs=5e-3)
    assert brier(Store(p), label) == pytest.approx(brier(p, label), abs=2e-3)


@pytest.mark.parametrize(
    ("label", "where", "words"),
    [
        (np.zeros((5, 6), int), None, "one grid"),
        (np.zeros((5, 6, 7), int), np.ones((5, 6, 6), bool), "one grid"),
        (np.full((5, 6, 7), 4), None, "4 classes"),
        (np.full((5, 6, 7), -1), None, "no voxel counts"),
    ],
)
def test_mistakes_are_told(label: NDArray, where: NDArray | None, words: str) -> None:
    p, _ = answers(0)
    with pytest.raises(ValueError, match=words):
        brier(p, label, where=where)
    with pytest.raises(ValueError, match=words):
        ece(p, label, where=where)
