"""Masked generation of features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medkd.errors import UserError
from medkd.methods.features.mgd import MGD, draw_mask, mgd


def test_nothing_hidden_and_no_generator_is_regression(rand: Any) -> None:
    s, t = rand(2, 3, 4, 4).requires_grad_(), rand(2, 3, 4, 4, seed=1).requires_grad_()
    kept = draw_mask(s, 0.0)
    assert kept.min() == 1
    loss = mgd(s, t, nn.Identity(), kept)
    alpha = 2e-5  # the paper's sum over channels and voxels, mean over the batch
    assert alpha * t[0].numel() * loss.item() == pytest.approx(alpha * ((s - t) ** 2).sum().item() / 2)
    loss.backward()
    assert t.grad is None
    assert torch.autograd.gradcheck(lambda x: mgd(x, t.detach(), nn.Identity(), kept), s)


def test_all_hidden_leaves_only_the_generators_bias(anatomy: Any, shown: Any) -> None:
    method = MGD(ratio=1.0)
    method.setup(anatomy({"bottleneck": 3}), anatomy({"bottleneck": 5}))
    s = torch.randn(2, 3, 4, 4, requires_grad=True)
    method(*shown(s, torch.randn(2, 5, 4, 4)))["mgd"].backward()
    assert s.grad is not None
    assert s.grad.abs().max() == 0
    bias = method.generators[0][2].bias
    assert isinstance(bias, nn.Parameter)
    assert bias.grad is not None
    assert bias.grad.abs().max() > 0


def test_is_the_mean_whatever_the_size(rand: Any) -> None:
    s, t = rand(1, 2, 3, 3), rand(1, 2, 3, 3, seed=1)
    one = mgd(s, t, nn.Identity(), torch.ones(1))
    torch.testing.assert_close(mgd(s.repeat(1, 1, 2, 2), t.repeat(1, 1, 2, 2), nn.Identity(), torch.ones(1)), one)


@pytest.mark.parametrize("space", [(64,), (24, 25), (12, 13, 11)])
@pytest.mark.parametrize("block", [1, 2])
def test_places_are_hidden_in_blocks_for_all_channels(space: tuple[int, ...], block: int) -> None:
    x = torch.zeros(8, 3, *space)
    kept = draw_mask(x, 0.75, block=block, generator=torch.Generator().manual_seed(0))
    assert kept.shape == (8, 1, *space)
    assert kept.mean().item() == pytest.approx(0.25, abs=0.06)
    even = kept[:, :, : space[0] // 2 * 2]
    pairs = even.unflatten(2, (-1, 2))
    same = (pairs[:, :, :, 0] == pairs[:, :, :, 1]).float().mean()
    assert (same == 1) == (block == 2)


def test_channels_are_hidden_whole() -> None:
    kept = draw_mask(torch.zeros(50, 20, 3, 3), 0.15, mask="channel", generator=torch.Generator().manual_seed(0))
    assert kept.shape == (50, 20, 1, 1)
    assert kept.mean().item() == pytest.approx(0.85, abs=0.04)


def test_places_without_trust_do_not_matter(rand: Any) -> None:
    s, t = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    trust = torch.ones(2, 1, 8, 8)
    trust[..., 4:] = 0
    ours = mgd(s, t, nn.Identity(), torch.ones(1), trust)
    torch.testing.assert_close(ours, mgd(s[..., :2], t[..., :2], nn.Identity(), torch.ones(1)))


@pytest.mark.parametrize("mask", ["voxel", "channel"])
def test_student_adapter_and_generator_learn(anatomy: Any, shown: Any, mask: str) -> None:
    method = MGD(mask=mask, ratio=0.3)
    method.setup(anatomy({"bottleneck": 8}), anatomy({"bottleneck": 5}))
    s = torch.randn(2, 8, 3, 5, dtype=torch.float16, requires_grad=True)
    loss = method(*shown(s, torch.randn(2, 5, 6, 5).half()))["mgd"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in (s, *method.parameters()))


def test_refuses_what_it_cannot_do() -> None:
    for wrong in ({"ratio": 1.5}, {"mask": "case"}, {"block": 0}, {"kernel": 2}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            MGD(**wrong)
