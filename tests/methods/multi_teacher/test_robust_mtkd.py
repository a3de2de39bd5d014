"""Teachers by their scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.multi_teacher.robust_mtkd import RobustMTKD, dice_so_far, fuse, score_table, soft_kl, teacher_weights
from medkd.methods.ops import kl_map
from medkd.training.round import Table

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_scores_are_the_mean_of_probabilities() -> None:
    a, b = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    q = fuse([a, b], torch.full((2, 3), 0.7), 2.0)
    torch.testing.assert_close(q, ((a / 2).softmax(1) + (b / 2).softmax(1)) / 2, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fuse([a, b], torch.rand(2, 3), 2.0, 3.0).sum(1), torch.ones(2, 4, dtype=torch.float64))


def test_one_that_counts_alone_is_that_teacher() -> None:
    s, a, b = rand(2, 3, 4), rand(2, 3, 4, seed=1), rand(2, 3, 4, seed=2)
    q = fuse([a, b], torch.tensor([[0.0] * 3, [1.0] * 3]), 2.0)
    torch.testing.assert_close(soft_kl(s, q, 2.0), kl_map(s, b, 2.0))
    assert torch.autograd.gradcheck(lambda x: soft_kl(x, q, 2.0).mean(), s.requires_grad_())


def test_by_hand_with_a_class_that_one_does_not_know() -> None:
    a, b = rand(1, 3, 1), rand(1, 3, 1, seed=1)
    scores = [[0.9, 0.4, 0.0], [0.3, 0.8, 0.5]]
    p = [x.softmax(1)[0, :, 0].tolist() for x in (a, b)]
    raw = [sum(scores[m][k] ** 2 / sum(row[k] ** 2 for row in scores) * p[m][k] for m in range(2)) for k in range(3)]
    q = fuse([a, b], torch.tensor(scores), 1.0, 2.0)[0, :, 0]
    assert q.tolist() == pytest.approx([x / sum(raw) for x in raw], rel=1e-6)
    assert teacher_weights(torch.tensor(scores), 0.0)[0, 2] == 0  # no power makes it speak


def test_the_order_of_teachers_does_not_matter() -> None:
    a, b, scores = rand(1, 3, 4), rand(1, 3, 4, seed=1), torch.rand(2, 3)
    torch.testing.assert_close(fuse([a, b], scores), fuse([b, a], scores.flip(0)))


def test_scores_are_the_dice_of_the_training_so_far(seat: Seat) -> None:
    method = RobustMTKD()
    table = seat(method, teachers=2)
    label = table.batch.label
    list(method.turns(table))
    for m in range(2):
        found = table.view(f"teacher{m}").logits.argmax(1)
        for k in range(3):
            a, b = found == k, label == k
            expected = 2 * int((a & b).sum()) / max(1, int(a.sum() + b.sum()))
            assert dice_so_far(method.hits, method.sizes)[m, k].item() == pytest.approx(max(0.01, expected))
    assert dice_so_far(method.hits, method.sizes)[5].tolist() == [1, 1, 1]
    assert "hits" in method.state_dict()


def test_given_scores_and_hard_votes(seat: Seat) -> None:
    method = RobustMTKD(scores=[0.9, [0.5, 0.2, 0.7]], hard=1.0)
    (turn,) = list(method.turns(seat(method, teachers=2)))
    assert set(turn.terms) == {"soft", "hard"}
    torch.stack(list(turn.terms.values())).sum().backward()
    method = RobustMTKD(scores=[1, 1, 1])
    with pytest.raises(UserError, match="3 scores for 2 teachers"):
        list(method.turns(seat(method, teachers=2)))


@pytest.mark.parametrize("scores", [[[1.0, 1.0]], [[0.0, 1.0, 1.0]], [[-1.0, 1.0, 1.0]], []])
def test_scores_that_make_no_sense(scores: list[list[float]]) -> None:
    with pytest.raises(UserError, match="robust_mtkd"):
        score_table(scores, 3)


@pytest.mark.parametrize("wrong", [{"power": -1.0}, {"temperature": 0.0}, {"hard": -1.0}, {"reduction": "sum"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="robust_mtkd: "):
        RobustMTKD(**wrong)  # type: ignore[arg-type]
