"""Temperature scaling finds what was done to probabilities, and mends it."""

from __future__ import annotations

import numpy as np
import pytest

from medkd.teachers.calibrate import (
    PER_CASE,
    expected_error,
    fit_temperature,
    foreground_region,
    not_fitted,
    temper,
)

SHAPE = (24, 20, 16)


def honest(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities ``(3, *S)`` and a label that is drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([1.5, 1.0, 0.7], shape)
    drawn = (rng.random((*shape, 1)) > p.cumsum(-1)).sum(-1)
    return np.moveaxis(p, -1, 0).astype(np.float32), drawn.clip(0, 2).astype(np.int16)


@pytest.mark.parametrize("wrong", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_on_is_found(wrong: float) -> None:
    """A teacher sharpened by 0.4 needs a temperature of 1 / 0.4 to be honest again."""
    answers = [honest(seed) for seed in range(3)]
    found = fit_temperature([(temper(p, wrong), label) for p, label in answers])
    assert found.value == pytest.approx(1 / wrong, rel=0.05)
    assert found.nll_after <= found.nll_before + 1e-9
    assert found.ece_after < 0.02
    if wrong != 1.0:
        assert found.ece_before > 0.05
    assert found.cases == 3


def test_tempering_keeps_the_winner_and_the_sum() -> None:
    p, _ = honest(0)
    hot = temper(p, 3.0)
    np.testing.assert_allclose(hot.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(hot.argmax(0), p.argmax(0))
    assert hot.max(0).mean() < p.max(0).mean()
    np.testing.assert_allclose(temper(hot, 1 / 3.0), p, atol=1e-4)
    assert temper(p, 1.0) is p


def test_the_error_of_known_bins() -> None:
    """Ten voxels said with 0.95 of which eight are right, ten said with 0.55 of which five and a half would be."""
    p = np.array([[0.95] * 10 + [0.55] * 10, [0.05] * 10 + [0.45] * 10])
    label = np.array([0] * 8 + [1] * 2 + [0] * 6 + [1] * 4)
    assert expected_error(p, label) == pytest.approx((abs(9.5 - 8) + abs(5.5 - 6)) / 20)


def test_easy_background_has_no_say() -> None:
    """Far from every organ a teacher is right and sure; that must not hide how wrong it is near one."""
    p, label = honest(1, (12, 12, 12))
    wrong = temper(p, 0.4)
    wide = np.zeros((3, 60, 60, 12), np.float32)
    wide[0], wide_label = 1.0, np.zeros((60, 60, 12), np.int16)
    wide[:, :12, :12], wide_label[:12, :12] = wrong, label
    near = foreground_region(wide, wide_label)
    assert near[:14, :14].all()
    assert not near[15:].any()
    alone = fit_temperature([(wrong, label)])
    assert fit_temperature([(wide, wide_label)]).value == pytest.approx(alone.value, rel=0.2)


def test_unknown_voxels_are_skipped_and_large_cases_sampled() -> None:
    p, label = honest(2, (40, 40, 40))
    assert fit_temperature([(p, label)]).voxels == PER_CASE
    label[:20] = -1
    assert not foreground_region(p, label)[:20].any()
    assert fit_temperature([(p, label)], seed=1) == fit_temperature([(p, label)], seed=1)


def test_nothing_to_fit_on_is_told() -> None:
    background = np.zeros((2, 4, 4, 4), np.float32)
    background[0] = 1
    found = fit_temperature([(background, np.zeros((4, 4, 4), np.int16))])
    assert found.value == 1.0
    assert found.note == "no labelled foreground to fit on"
    assert found.to_json()["ece_before"] is None
    assert not_fitted("why").note == "why"
