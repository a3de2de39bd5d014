from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.teachers.fusion import Answer, fuse_answers

UNION = {"background": 0, "a": 1, "b": 2, "c": 3}
Array = NDArray[np.float32]


def soft(classes: int, seed: int, shape: tuple[int, ...] = (4, 5, 6)) -> Array:
    x = np.exp(3 * np.random.default_rng(seed).normal(size=(classes, *shape)))
    made: Array = (x / x.sum(0)).astype(np.float32)
    return made


def voxel(*p: float) -> Array:
    return np.array(p, np.float32).reshape(-1, 1, 1, 1)


def told(*answers: tuple[tuple[str, ...], tuple[float, ...]], **more: str) -> tuple[list[float], float]:
    """Return what teachers together say of one voxel, and its trust."""
    fused = fuse_answers([Answer(voxel(*p), names) for names, p in answers], UNION, **more)
    trust = 1.0 if fused.trust is None else float(fused.trust[0, 0, 0, 0])
    return [round(float(x), 5) for x in fused.probabilities[:, 0, 0, 0]], round(trust, 5)


def test_an_ensemble_whose_members_know_everything_is_their_mean_exactly() -> None:
    p = [soft(4, seed) for seed in range(3)]
    fused = fuse_answers([Answer(x, ("a", "b", "c")) for x in p], UNION)
    assert np.array_equal(fused.probabilities, (p[0] + p[1] + p[2]) / np.float32(3))
    assert fused.trust is None
    assert fused.known.all()
    assert fused.conflict_rate == 0


def test_one_teacher_is_taken_at_its_word() -> None:
    p = soft(3, 0)
    fused = fuse_answers([Answer(p, ("c", "a"))], UNION)
    assert np.array_equal(fused.probabilities[[0, 3, 1]], p)
    assert fused.known.tolist() == [True, True, False, True]
    assert not fused.probabilities[2].any()


def test_teachers_who_agree_by_hand() -> None:
    # a from the one, b and c from the other, background what is left: nobody is contradicted
    assert told((("a",), (0.3, 0.7)), (("b", "c"), (0.8, 0.15, 0.05))) == ([0.1, 0.7, 0.15, 0.05], 1.0)
    # b is known to both and averaged
    assert told((("a", "b"), (0.5, 0.1, 0.4)), (("b",), (0.8, 0.2))) == ([0.6, 0.1, 0.3, 0.0], 1.0)


def test_a_conflict_by_hand_confidence_wins_and_trust_falls_by_what_is_claimed_twice() -> None:
    assert told((("a",), (0.1, 0.9)), (("b", "c"), (0.4, 0.45, 0.15))) == ([0.0, 0.9, 0.075, 0.025], 0.5)
    # the other is surer now: a gets what b and c leave
    assert told((("a",), (0.4, 0.6)), (("b", "c"), (0.05, 0.9, 0.05))) == ([0.0, 0.05, 0.9, 0.05], 0.45)
    assert told((("a",), (0.0, 1.0)), (("b",), (0.0, 1.0))) == ([0.0, 1.0, 0.0, 0.0], 0.0)


def test_calibration_decides_who_is_surer() -> None:
    loud, calm = Answer(voxel(0.05, 0.95), ("a",), 4.0), Answer(voxel(0.1, 0.9), ("b",))
    odds = (0.95 / 0.05) ** (1 / 4)
    fused = fuse_answers([loud, calm], UNION)
    assert fused.probabilities.argmax(0).item() == 2
    assert float(fused.probabilities[1, 0, 0, 0]) == pytest.approx(0.1, abs=1e-5)
    assert fused.trust is not None
    assert float(fused.trust[0, 0, 0, 0]) == pytest.approx(2 - 0.9 - odds / (1 + odds), abs=1e-5)


def test_the_order_of_teachers_does_not_matter() -> None:
    answers = [
        Answer(soft(3, 0), ("a", "b")),
        Answer(soft(3, 1), ("c", "a")),
        Answer(soft(2, 2), ("b",)),
        Answer(soft(2, 3), ("b",), 2.0),
    ]
    first = fuse_answers(answers, UNION, trust="disagreement")
    assert first.trust is not None
    for order in itertools.permutations(answers):
        other = fuse_answers(order, UNION, trust="disagreement")
        assert other.trust is not None
        assert np.allclose(first.probabilities, other.probabilities, atol=1e-6)
        assert np.allclose(first.trust, other.trust, atol=1e-5)
        assert (first.conflicts, first.claimed) == (other.conflicts, other.claimed)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_distribution_everywhere(seed: int) -> None:
    names = [("a",), ("b", "c"), ("c", "a"), ("a", "b", "c"), ()]
    answers = [Answer(soft(1 + len(n), 10 * seed + i), n) for i, n in enumerate(names[: 2 + seed % 4])]
    fused = fuse_answers(answers, UNION)
    assert np.allclose(fused.probabilities.sum(0), 1, atol=1e-5)
    assert fused.probabilities.min() >= 0
    assert fused.trust is None or (fused.trust.min() >= 0 and fused.trust.max() <= 1)


def test_agreement_keeps_every_marginal_where_nothing_is_claimed_twice() -> None:
    a, b = soft(2, 0), soft(3, 1)
    fused = fuse_answers([Answer(a, ("a",)), Answer(b, ("b", "c"))], UNION)
    quiet = a[1] + b[1] + b[2] <= 1
    assert quiet.any()
    assert (~quiet).any()
    assert np.allclose(fused.probabilities[1][quiet], a[1][quiet])
    assert np.allclose(fused.probabilities[2:][:, quiet], b[1:][:, quiet])
    assert fused.trust is not None
    assert (fused.trust[0][quiet] == 1).all()
    assert (fused.trust[0][~quiet] < 1).all()


def test_a_silent_teacher_changes_nothing() -> None:
    answers = [Answer(soft(2, 0), ("a",)), Answer(soft(3, 1), ("b", "c"))]
    silent = Answer(np.ones((1, 4, 5, 6), np.float32), ())
    with_it, without = fuse_answers([*answers, silent], UNION), fuse_answers(answers, UNION)
    assert np.array_equal(with_it.probabilities, without.probabilities)
    assert with_it.conflict_rate == without.conflict_rate
    alone = fuse_answers([silent], UNION)
    assert (alone.probabilities[0] == 1).all()
    assert alone.known.tolist() == [True, False, False, False]


def test_classes_of_a_teacher_that_the_run_lacks_are_its_background_and_twins_are_added() -> None:
    fused = fuse_answers([Answer(voxel(0.1, 0.2, 0.3, 0.4), ("a", None, "a"))], UNION)
    assert fused.probabilities[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.6, 0, 0])
    assert fused.known.tolist() == [True, True, False, False]


def test_the_conflict_rate_counts_voxels_claimed_for_different_classes() -> None:
    a = np.array([[0, 0, 1, 1], [1, 1, 0, 0]], np.float32).reshape(2, 4, 1, 1)
    b = np.array([[0, 1, 0, 1], [1, 0, 1, 0]], np.float32).reshape(2, 4, 1, 1)
    fused = fuse_answers([Answer(a, ("a",)), Answer(b, ("b",))], UNION)
    assert (fused.conflicts, fused.claimed) == (1, 3)
    assert fused.conflict_rate == pytest.approx(1 / 3)
    nobody = fuse_answers([Answer(voxel(0.9, 0.1), ("a",)), Answer(voxel(0.9, 0.1), ("b",))], UNION)
    assert nobody.conflict_rate == 0


def test_those_who_know_both_classes_do_not_conflict_and_are_averaged() -> None:
    names = ("a", "b")
    answers = [Answer(voxel(0, 1, 0), names), Answer(voxel(0, 0, 1), names), Answer(voxel(1, 0), ("c",))]
    fused = fuse_answers(answers, UNION)
    assert fused.probabilities[:, 0, 0, 0].tolist() == pytest.approx([0, 0.5, 0.5, 0])
    assert (fused.conflicts, fused.claimed) == (0, 1)


def test_disagreement_lowers_trust_by_the_normalised_mutual_information() -> None:
    p, q = (0.8, 0.1, 0.1), (0.2, 0.7, 0.1)
    mean = [(x + y) / 2 for x, y in zip(p, q, strict=True)]

    def entropy(values: tuple[float, ...] | list[float]) -> float:
        return -sum(x * math.log(x) for x in values)

    by_hand = 1 - (entropy(mean) - (entropy(p) + entropy(q)) / 2) / math.log(2)
    assert told((("a", "b"), p), (("a", "b"), q), trust="disagreement")[1] == pytest.approx(by_hand, abs=1e-4)
    assert told((("a",), (0.0, 1.0)), (("a",), (1.0, 0.0)), trust="disagreement")[1] == pytest.approx(0, abs=1e-5)
    assert told((("a",), (0.3, 0.7)), (("a",), (0.3, 0.7)), trust="disagreement")[1] == 1.0
    # teachers of other classes are no second opinion
    assert told((("a",), (0.9, 0.1)), (("b",), (0.2, 0.8)), trust="disagreement")[1] == 1.0


def test_half_precision_answers_of_118_classes() -> None:
    union = {"background": 0, **{f"o{i}": i for i in range(1, 118)}}
    left, right = tuple(f"o{i}" for i in range(1, 70)), tuple(f"o{i}" for i in range(60, 118))
    answers = [Answer(soft(1 + len(n), s, (3, 3, 3)).astype(np.float16), n) for s, n in enumerate((left, right))]
    fused = fuse_answers(answers, union)
    assert fused.known.all()
    assert fused.probabilities.dtype == np.float32
    assert np.allclose(fused.probabilities.sum(0), 1, atol=2e-3)


@pytest.mark.parametrize(
    ("answers", "more", "says"),
    [
        ([], {}, "at least one"),
        ([Answer(soft(2, 0), ("a",)), Answer(soft(2, 0, (4, 5, 7)), ("b",))], {}, "different grids"),
        ([Answer(soft(3, 0), ("a",))], {}, "1 classes answers with 3 channels"),
        ([Answer(soft(2, 0), ("A",))], {}, r"'A', which is no class of this run"),
        ([Answer(soft(2, 0), ("a",), 0.0)], {}, "temperature is 0.0"),
        ([Answer(soft(2, 0), ("a",), math.nan)], {}, "temperature is nan"),
        ([Answer(soft(2, 0), ("a",))], {"rule": "vote"}, "conflict rule 'vote'"),
        ([Answer(soft(2, 0), ("a",))], {"trust": "all"}, "trust 'all'"),
    ],
)
def test_bad_answers_are_told(answers: list[Answer], more: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        fuse_answers(answers, UNION, **more)
