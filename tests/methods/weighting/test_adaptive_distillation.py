"""Paths that learn their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.weighting.adaptive_distillation import (
    PATHS,
    AdaptiveDistillation,
    adaptive_distillation,
    attention,
    feature_map,
    nst,
)
from medkd.training.round import Table

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learnt(losses: Tensor) -> Tensor:
    a = torch.zeros_like(losses, requires_grad=True)
    optimiser = torch.optim.Adam([a], lr=0.05)
    for _ in range(800):
        optimiser.zero_grad()
        adaptive_distillation(losses, a).backward()
        optimiser.step()
    return a.detach()


def test_log_weights_become_the_log_of_the_losses() -> None:
    losses = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(learnt(losses), losses.log(), rtol=1e-3, atol=1e-3)


def test_once_learnt_a_scale_does_not_matter() -> None:
    x = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    slopes = []
    for scale in (1.0, 20.0):
        losses = torch.stack([scale * x[0] ** 2, x[1] ** 2])
        slopes.append(torch.autograd.grad(adaptive_distillation(losses, learnt(losses.detach())), x)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-2, atol=1e-3)


def test_at_zero_it_is_the_sum() -> None:
    losses = torch.rand(4)
    torch.testing.assert_close(adaptive_distillation(losses, torch.zeros(4)), losses.sum())


def test_paths_by_hand() -> None:
    s, t = rand(1, 2, 3), rand(1, 2, 3, seed=1)
    unit = [(x[0] ** 2).sum(0) / (x[0] ** 2).sum(0).norm() for x in (s, t)]
    assert attention(s, t).item() == pytest.approx(float(((unit[0] - unit[1]) ** 2).sum()) / 3)
    rows = [x[0] / x[0].norm(dim=1, keepdim=True) for x in (s, t)]
    total = sum(float(rows[0][i] @ rows[0][j] - rows[1][i] @ rows[1][j]) ** 2 for i in range(2) for j in range(2))
    assert nst(s, t).item() == pytest.approx(total / 4)
    means = [x[0].mean(1) for x in (s, t)]
    assert feature_map(s, t).item() == pytest.approx(float(((means[0] - means[1]) ** 2).sum()) / 2)
    for path in (attention, nst, feature_map):
        assert torch.autograd.gradcheck(lambda x, path=path: path(x, t), s.clone().requires_grad_())


def test_weights_learn_and_stay_in_bounds(seat: Seat) -> None:
    method = AdaptiveDistillation(limit=2.0)
    (turn,) = list(method.turns(seat(method)))
    assert tuple(turn.terms) == PATHS
    torch.stack(list(turn.terms.values())).sum().backward()
    assert method.log_weights.grad is not None
    assert bool((method.log_weights.grad != 0).all())
    with torch.no_grad():
        method.log_weights.fill_(-100.0)
    table = seat(method)
    assert all(abs(v.item()) < 1e3 for turn in method.turns(table) for v in turn.terms.values())


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"soft_target": -1.0}, {"limit": 0.0}, {"reduction": "sum"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="adaptive_distillation: "):
        AdaptiveDistillation(**wrong)  # type: ignore[arg-type]
