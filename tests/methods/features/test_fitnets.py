"""Hints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medkd.errors import UserError
from medkd.methods.features.fitnets import FitNets, fitnets


@pytest.mark.parametrize("space", [(5,), (4, 3), (3, 2, 4)])
def test_is_the_mean_of_squares_and_its_gradient_is_the_difference(rand: Any, space: tuple[int, ...]) -> None:
    s, t = rand(2, 3, *space).requires_grad_(), rand(2, 3, *space, seed=1).requires_grad_()
    loss = fitnets(s, t)
    loss.backward()
    assert loss.item() == pytest.approx(((s - t) ** 2).sum().item() / s.numel())
    torch.testing.assert_close(s.grad, 2 * (s - t).detach() / s.numel())
    assert t.grad is None
    assert fitnets(t, t).item() == 0
    assert torch.autograd.gradcheck(lambda x: fitnets(x, t.detach()), s)


def test_places_without_trust_do_not_matter(rand: Any) -> None:
    s, t = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    trust = torch.ones(2, 1, 8, 8)
    trust[..., :4, :] = 0
    assert fitnets(s, t, trust).item() == pytest.approx(fitnets(s[:, :, 2:], t[:, :, 2:]).item())


def test_is_convex_in_the_regressor(rand: Any, anatomy: Any, shown: Any) -> None:
    method = FitNets()
    method.setup(anatomy({"bottleneck": 4}), anatomy({"bottleneck": 6}))
    views = shown(rand(2, 4, 3, 3).float(), rand(2, 6, 3, 3, seed=1).float())
    weights = [p.detach().clone() for p in method.parameters()]
    step = [torch.randn_like(p) for p in weights]
    losses = []
    for at in (-1, 0, 1):
        for p, w, d in zip(method.parameters(), weights, step, strict=True):
            p.data = w + at * d
        losses.append(method(*views)["fitnets"].item())
    assert losses[0] - 2 * losses[1] + losses[2] > 0


@pytest.mark.parametrize("sizes", [((4, 6), (8, 3)), ((8, 6), (4, 3)), ((4, 3), (8, 6))])
def test_grids_meet_at_the_coarser(rand: Any, anatomy: Any, shown: Any, sizes: Any) -> None:
    method = FitNets(kernel=3, activation=True)
    method.setup(anatomy({"bottleneck": 4}), anatomy({"bottleneck": 6}))
    s = rand(2, 4, *sizes[0]).half().requires_grad_()
    loss = method(*shown(s, rand(2, 6, *sizes[1]).half(), torch.ones(2, 1, 16, 12)))["fitnets"]
    loss.backward()
    assert torch.isfinite(loss)
    assert s.grad is not None
    assert all(p.grad is not None for p in method.parameters())


def test_only_what_comes_before_the_guided_layer_learns(anatomy: Any, shown: Any) -> None:
    before, after = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)
    method = FitNets()
    method.setup(anatomy({"bottleneck": 4}), anatomy({"bottleneck": 6}))
    guided = before(torch.randn(1, 1, 8, 8))
    after(guided)
    method(*shown(guided, torch.randn(1, 6, 6, 6)))["fitnets"].backward()
    assert before.weight.grad is not None
    assert after.weight.grad is None


def test_taps_come_in_pairs() -> None:
    method = FitNets(tap=["enc0", "bottleneck"], teacher_tap=["enc1", "bottleneck"])
    assert method.taps() == ("enc0", "bottleneck")
    assert method.teacher_taps() == ("enc1", "bottleneck")
    with pytest.raises(UserError, match="2 taps of the student and 1 of the teacher"):
        FitNets(tap=["enc0", "enc1"], teacher_tap="enc0")
    with pytest.raises(UserError, match="tap is empty"):
        FitNets(tap=[])
    with pytest.raises(UserError, match="odd"):
        FitNets(kernel=2)
