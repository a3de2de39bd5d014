"""Channels, weighted by the teacher's means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.features.afd_attention_transfer import (
    AFDAttentionTransfer,
    afd_attention_transfer,
    channel_attention,
)
from medkd.types import IGNORE, Anatomy, Batch, Tap, View


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    s, t, logits = noise(2, 3, 4), noise(2, 3, 4, seed=1), noise(2, 3, seed=2)
    total = 0.0
    for b in range(2):
        rho = logits[b].sigmoid() / logits[b].sigmoid().sum()
        for c in range(3):
            gap = s[b, c] / s[b, c].norm() - t[b, c] / t[b, c].norm()
            total += float(rho[c] * gap.square().sum()) / 2
    assert afd_attention_transfer(s, t, logits).item() == pytest.approx(total, rel=1e-5)
    inputs = (s.requires_grad_(), logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: afd_attention_transfer(x, t, y), inputs)


def test_scale_of_a_channel_and_empty_channels() -> None:
    t, logits = noise(2, 3, 4), noise(2, 3, seed=2)
    assert afd_attention_transfer(5 * t, t, logits).item() == pytest.approx(0, abs=1e-8)
    assert afd_attention_transfer(-t, t, logits).item() == pytest.approx(4, rel=1e-4)
    empty = torch.zeros_like(t).requires_grad_()
    loss = afd_attention_transfer(empty, t, logits)
    loss.backward()
    assert loss.item() == pytest.approx(1, rel=1e-4)
    assert empty.grad is not None
    assert bool(torch.isfinite(empty.grad).all())


def test_attention_and_adapter_learn() -> None:
    method = AFDAttentionTransfer()
    places = [Anatomy({"bottleneck": Tap(c, (1, 1))}, 3, 2) for c in (4, 6)]
    method.setup(*places)
    s, t = (
        View(noise(2, 3, 4, 4), {"bottleneck": noise(2, 4, 2, 2).float()}),
        View(noise(2, 3, 4, 4), {"bottleneck": noise(2, 6, 4, 4).float()}),
    )
    batch = Batch(s.logits, torch.full((2, 4, 4), IGNORE))
    method(s, t, batch)["afd_attention_transfer"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert channel_attention(1, 0.5, 3)[0].out_channels == 1


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="squeeze"):
        AFDAttentionTransfer(squeeze=0.0)
