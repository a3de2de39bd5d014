"""Tests on one number per patient, against hand-made values."""

import math

import numpy as np
import pytest

from medkd.evaluation.significance import above_p, effect_size, holm, probability_better, signed_rank_p


def test_signed_rank_p_of_one_sign_is_two_over_two_to_the_n() -> None:
    assert signed_rank_p(np.arange(1.0, 7)) == pytest.approx(2 / 2**6)
    assert signed_rank_p(np.array([1.0, 2, 3, 4, 5, 6, 0, 1e-17])) == pytest.approx(2 / 2**6)
    assert signed_rank_p(np.zeros(9)) == 1


def test_a_bound_is_tested_on_one_side() -> None:
    assert above_p(np.arange(1.0, 7), 0.0) == pytest.approx(1 / 2**6)
    assert above_p(-np.arange(1.0, 7), -6.5) == pytest.approx(1 / 2**6)
    assert above_p(np.arange(1.0, 7), 6.5) == 1
    assert above_p(np.full(9, 0.2), 0.2) == 1


def test_holm_steps_down_never_falls_and_skips_what_is_not_there() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.04, float("nan"), 0.03]) == pytest.approx([0.06, float("nan"), 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1, 1]


def test_effect_size_and_probability() -> None:
    gains = np.array([1.0, 2, 3])
    assert effect_size(gains) == pytest.approx(2)
    assert math.isnan(effect_size(gains[:1]))
    assert math.isnan(effect_size(np.ones(4)))
    assert probability_better(np.array([1.0, 0, -1, 2])) == pytest.approx(0.625)
