"""Zipf's law over the wrong classes."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import rankdata
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.self_distillation.zipf_ls import ZipfLS, neighbour_votes, rank_zipf, ranks, unbiased_zipf, zipf_ls
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ranks_are_scipys() -> None:
    scores = torch.randint(0, 4, (20, 7), generator=torch.Generator().manual_seed(0)).double()
    first, last = ranks(scores)
    assert (first.numpy() == rankdata(-scores.numpy(), axis=1, method="min")).all()
    assert (last.numpy() == rankdata(-scores.numpy(), axis=1, method="max")).all()


def test_is_the_formula() -> None:
    z, label, scores = rand(3, 5), torch.tensor([0, 3, 4]), rand(3, 5, seed=1)
    total = 0.0
    for i in range(3):
        rank = rankdata(-scores[i].numpy(), method="min")
        wrong = [c for c in range(5) if c != label[i]]
        target = torch.tensor([rank[c] ** -1.5 for c in wrong], dtype=torch.float64)
        target = target / target.sum()
        total += float((target * (target.log() - z[i, wrong].log_softmax(0))).sum())
    ours = zipf_ls(z, label, scores, distribution="rank_zipf", power=1.5)
    assert ours.item() == pytest.approx(total / 3, rel=1e-10)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_unbiased_law_is_an_integral(power: float) -> None:
    first, last = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64), torch.tensor([1.0, 3.0, 3.0, 4.0])
    law = unbiased_zipf(first, last.double(), 4, power, 0.01, 1.0)
    cell = 0.99 / 4
    for i in range(4):
        a, b = 0.01 + (first[i].item() - 1) * cell, 0.01 + last[i].item() * cell
        area = quad(lambda x: x**-power, a, b)[0]
        assert law[i].item() == pytest.approx(area / (last[i] - first[i] + 1).item(), rel=1e-6)
    assert bool((law.diff() <= 1e-12).all())


def test_power_zero_smooths_evenly() -> None:
    assert rank_zipf(torch.tensor([1.0, 2.0, 5.0]), 0.0).tolist() == [1, 1, 1]


def test_the_label_itself_gets_no_gradient() -> None:
    z, label = rand(4, 6).requires_grad_(), torch.tensor([0, 1, 2, 5])
    zipf_ls(z, label, rand(4, 6, seed=1)).backward()
    assert z.grad is not None
    assert z.grad[torch.arange(4), label].abs().max() == 0
    assert z.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: zipf_ls(x, label, rand(4, 6, seed=1)), z)


def test_only_the_order_of_scores_matters() -> None:
    z, label, scores = rand(2, 5, 3, 2), torch.randint(0, 5, (2, 3, 2)), rand(2, 5, 3, 2, seed=1)
    torch.testing.assert_close(zipf_ls(z, label, scores), zipf_ls(z, label, scores.exp() * 3))


def test_two_classes_leave_nothing_to_shape() -> None:
    z = rand(3, 2).requires_grad_()
    loss = zipf_ls(z, torch.tensor([0, 1, 1]), z)
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_correct_only() -> None:
    z = rand(6, 4)
    label = torch.where(torch.arange(6) < 3, z.argmax(1), z.argmin(1))
    right = z.argmax(1) == label
    assert 0 < int(right.sum()) < 6
    torch.testing.assert_close(zipf_ls(z, label, z, correct_only=True), zipf_ls(z[right], label[right], z[right]))
    assert zipf_ls(z, (z.argmax(1) + 1) % 4, z, correct_only=True).item() == 0


def test_votes_are_counted_in_a_cube() -> None:
    z = rand(1, 3, 5, 6)
    winner = z.argmax(1)[0]
    votes = neighbour_votes(z, 3)
    for i, j in ((0, 0), (2, 3), (4, 5)):
        near = winner[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
        assert votes[0, :, i, j].tolist() == [int((near == k).sum()) for k in range(3)]
    known = torch.ones(1, 5, 6, dtype=torch.bool)
    known[:, :, 3:] = False
    assert not neighbour_votes(z, 3, known)[..., 5].any()


def test_only_labelled_voxels_near_a_boundary_take_part() -> None:
    label = torch.zeros(1, 20, 2, dtype=torch.long)
    label[:, 4:8], label[:, 15:] = 1, IGNORE
    z = rand(1, 4, 20, 2).requires_grad_()
    loss = ZipfLS(band_mm=1.0, votes=1)(View(z), None, Batch(z, label))["zipf_ls"]
    loss.backward()
    assert z.grad is not None
    moved = z.grad.abs().sum(1)[0].amax(1) > 0
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    flat = ZipfLS()(View(z), None, Batch(z, torch.zeros_like(label)))["zipf_ls"]
    assert flat.item() == 0
    assert flat.requires_grad


@pytest.mark.parametrize(
    "wrong",
    [{"distribution": "pareto"}, {"power": -1.0}, {"left_bound": 0.0}, {"votes": 4}, {"band_mm": 0.0}],
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="zipf_ls: "):
        ZipfLS(**wrong)  # type: ignore[arg-type]
