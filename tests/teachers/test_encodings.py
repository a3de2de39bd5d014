"""Encodings: a distribution in, nearly the same distribution out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medkd.errors import UserError
from medkd.teachers.encodings import NAMES, Code, Encoding, choose_encoding, decode, encode, estimate_bytes

ALL = [Encoding("full16"), Encoding("uint8"), *(Encoding("topk", k) for k in (1, 2, 4, 9))]


def soft(classes: int, *shape: int, seed: int = 0, sharp: float = 4.0) -> np.ndarray:
    """Return a teacher's answer ``(K, *S)``: mostly sure, its tails unequal by class."""
    rng = np.random.default_rng(seed)
    logits = sharp * rng.normal(size=(classes, *shape)) - rng.uniform(0, 4, classes).reshape(-1, *[1] * len(shape))
    power = np.exp(logits - logits.max(0))
    return (power / power.sum(0)).astype(np.float32)


def kl(p: np.ndarray, q: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return KL(p || q) ``(*S)`` of ``(K, *S)``, in nats."""
    p, q = (np.maximum(one.astype(np.float64), 1e-12) ** (1 / temperature) for one in (p, q))
    p, q = p / p.sum(0), q / q.sum(0)
    return (p * np.log(p / q)).sum(0)


def there_and_back(p: np.ndarray, encoding: Encoding) -> np.ndarray:
    return decode(encode(p, encoding), encoding, len(p)).astype(np.float32)


@pytest.mark.parametrize("encoding", ALL, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 6, 118])
def test_decoded_is_a_distribution_with_no_class_impossible(classes: int, encoding: Encoding) -> None:
    p = soft(classes, 7, 6, 5)
    q = there_and_back(p, encoding)
    assert q.shape == p.shape
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-3 if encoding.name == "full16" else 1e-5)
    assert (q > 0).all() or encoding.name == "full16"
    assert (q >= 0).all()


def test_what_is_lost_by_encoding() -> None:
    p = soft(6, 20, 20, 20)
    bounds = {"full16": (1e-5, 3e-5), "uint8": (2e-5, 5e-5)}
    for name, (plain, softened) in bounds.items():
        q = there_and_back(p, Encoding(name))
        assert kl(p, q).mean() < plain
        assert kl(p, q, 2).mean() < softened
        assert (p.argmax(0) != q.argmax(0)).mean() < 2e-3


def test_a_small_probability_keeps_its_size_in_a_byte() -> None:
    for small in (1e-2, 1e-4, 1e-6):
        p = np.array([1 - small, small]).reshape(2, 1)
        q = there_and_back(p, Encoding("uint8"))
        assert 0.5 < q[1, 0] / small < 2


def test_topk_keeps_the_likeliest_and_the_size_of_the_rest() -> None:
    p = soft(118, 16, 16, 16, sharp=3)
    losses = []
    for k in (1, 2, 4, 8):
        q = there_and_back(p, Encoding("topk", k))
        losses.append(kl(p, q).mean())
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < losses[0] / 2
    sure = soft(118, 16, 16, 16, sharp=0.2)
    sure[7] += 60  # one class rules and the tails are the case's own
    sure /= sure.sum(0)
    assert kl(sure, there_and_back(sure, Encoding("topk"))).mean() < 5e-3


def test_topk_spreads_the_rest_as_the_case_does() -> None:
    p = np.full((10, 30), 1e-3, np.float32)
    p[8], p[9] = 0.03, 1e-5  # seldom the likeliest, but ten thousand times apart
    p[0] = 1 - p[1:].sum(0)
    q = there_and_back(p, Encoding("topk", 1))
    assert 1000 < q[8].mean() / q[9].mean() < 9000
    assert q[1].mean() == pytest.approx(1e-3, rel=0.5)


def test_topk_is_linear_in_what_it_keeps() -> None:
    """Resampling what is decoded is then the same as decoding what is resampled."""
    p, encoding = soft(12, 40), Encoding("topk", 3)
    code = encode(p, encoding)
    assert code.prior is not None
    q = decode(code, encoding, 12)
    beside = q - code.prior[:, None] * (q.min(0) / code.prior[q.argmin(0)])
    assert ((beside > 1e-6).sum(0) <= 3).all()


def test_more_classes_than_a_byte_names() -> None:
    p = soft(300, 11, 5, sharp=3)
    p[:, 0, 0], p[299, 0, 0] = 1e-6, 1
    q = there_and_back(p, Encoding("topk", 2))
    assert q[299, 0, 0] > 0.99
    np.testing.assert_array_equal(q.argmax(0)[p.max(0) > 0.6], p.argmax(0)[p.max(0) > 0.6])


@pytest.mark.parametrize("encoding", ALL, ids=str)
def test_a_patch_decodes_as_it_does_in_the_volume(encoding: Encoding) -> None:
    code = encode(soft(5, 8, 7, 6), encoding)
    whole = decode(code, encoding, 5)
    part = decode(Code(code.planes[:, 2:5, :, 3], code.prior), encoding, 5)
    np.testing.assert_allclose(part, whole[:, 2:5, :, 3], atol=1e-6)


@pytest.mark.parametrize("encoding", ALL, ids=str)
def test_where_no_teacher_speaks_it_stays_a_distribution(encoding: Encoding) -> None:
    p = soft(4, 6)
    p[:, 2] = 0
    q = there_and_back(p, encoding)
    assert np.isfinite(q).all()
    if encoding.name != "full16":
        np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 10_000), st.floats(0.1, 20))
def test_any_answer_survives(classes: int, k: int, seed: int, sharp: float) -> None:
    p = soft(classes, 13, seed=seed, sharp=sharp)
    for encoding in (Encoding("uint8"), Encoding("topk", k)):
        q = there_and_back(p, encoding)
        np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)
        assert (q > 0).all()
        sure = p.max(0) > 0.75
        np.testing.assert_array_equal(q.argmax(0)[sure], p.argmax(0)[sure])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_refused(bad: float) -> None:
    p = soft(3, 4, 4)
    p[1, 2, 2] = bad
    with pytest.raises(UserError, match="not finite"):
        encode(p, Encoding("uint8"))


def test_a_name_or_number_that_makes_no_sense_is_told() -> None:
    with pytest.raises(UserError, match=r"'unit8' is not one of full16, uint8, topk \(did you mean 'uint8'"):
        Encoding("unit8")
    with pytest.raises(UserError, match="give 1 or more"):
        Encoding("topk", 0)
    assert Encoding("uint8", 7) == Encoding("uint8")
    assert Encoding("topk", 7) != Encoding("topk", 3)


def test_the_estimate_orders_the_encodings_and_the_choice_follows_it() -> None:
    shapes = [(200, 200, 200)] * 50
    for classes in (6, 118):
        sizes = [estimate_bytes(shapes, classes, Encoding(name)) for name in NAMES]
        assert sizes == sorted(sizes, reverse=True)
    assert choose_encoding([(40, 50, 40)] * 100, 3, 1e12).name == "full16"
    assert choose_encoding(shapes, 6, 1e12).name == "uint8"
    assert choose_encoding(shapes, 118, 1e12).name == "topk"
    assert choose_encoding([(40, 50, 40)] * 100, 3, 4e7).name == "uint8"  # cheap, and still more than the disk has
    with pytest.raises(UserError, match=r"need about .* GB as topk and 0\.1 GB are free"):
        choose_encoding(shapes, 118, 1e8)
