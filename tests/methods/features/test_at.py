"""Attention transfer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medkd.errors import UserError
from medkd.methods.features.at import AT, at, attention, gradient_at


@pytest.mark.parametrize("space", [(9,), (4, 3), (3, 2, 4)])
@pytest.mark.parametrize("channels", ["sum", "max"])
@pytest.mark.parametrize("form", ["sum", "mean", "norm"])
def test_is_the_formula(rand: Any, space: tuple[int, ...], channels: str, form: str) -> None:
    s, t = rand(2, 4, *space), rand(2, 6, *space, seed=1)
    total = []
    for a, b in zip(s.numpy(), t.numpy(), strict=True):
        maps = []
        for x in (a, b):
            e = np.abs(x.reshape(len(x), -1)) ** 3
            q = e.sum(0) if channels == "sum" else e.max(0)
            maps.append(q / np.sqrt((q**2).sum()))
        d = ((maps[0] - maps[1]) ** 2).sum()
        total.append({"sum": d, "mean": d / maps[0].size, "norm": np.sqrt(d) / 2}[form])
    assert at(s, t, 3.0, channels=channels, form=form).item() == pytest.approx(np.mean(total), rel=1e-10)


@pytest.mark.parametrize("form", ["sum", "mean", "norm"])
def test_gradient(rand: Any, form: str) -> None:
    t = rand(2, 3, 4, seed=1).requires_grad_()
    s = rand(2, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: at(x, t.detach(), form=form), s)
    at(s, t, form=form).backward()
    assert t.grad is None


def test_scale_order_and_sign_of_channels_do_not_matter(rand: Any) -> None:
    s, t = rand(2, 5, 4, 4), rand(2, 5, 4, 4, seed=1)
    signs = torch.tensor([1, -1, 1, -1, -1.0]).view(1, 5, 1, 1)
    torch.testing.assert_close(at(-7 * s, 0.1 * t), at(s, t))
    torch.testing.assert_close(at((signs * s)[:, torch.randperm(5)], t), at(s, t))


def test_is_two_less_twice_the_cosine(rand: Any) -> None:
    s, t = rand(3, 5, 4, 4), rand(3, 5, 4, 4, seed=1)
    cosine = (attention(s) * attention(t)).sum(1)
    torch.testing.assert_close(at(s, t), (2 - 2 * cosine).mean())
    assert 0 <= at(s, t).item() <= 2
    torch.testing.assert_close(at(s, t, form="mean"), at(s, t) / 16)


def test_equal_energy_in_other_channels_is_zero(rand: Any) -> None:
    s = rand(1, 2, 5)
    t = torch.cat([s, s, s], 1) / 3**0.5
    assert at(s, t).item() == pytest.approx(0, abs=1e-12)


def test_the_larger_grid_is_pooled_axis_by_axis(rand: Any) -> None:
    s, t = rand(1, 2, 4, 3), rand(1, 3, 2, 6, seed=1)
    pooled = s.view(1, 2, 2, 2, 3).mean(3), t.view(1, 3, 2, 3, 2).mean(4)
    torch.testing.assert_close(at(s, t), at(*pooled))


def test_voxels_without_trust_leave_both_maps(rand: Any) -> None:
    s, t = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    trust = torch.ones(2, 1, 8, 8)
    trust[..., 4:] = 0
    torch.testing.assert_close(at(s, t, trust=trust), at(s[..., :2], t[..., :2]))


def test_nothing_to_see_is_finite(shown: Any) -> None:
    method = AT(tap=["bottleneck", "bottleneck"])
    s = torch.zeros(1, 3, 2, 2, dtype=torch.float16, requires_grad=True)
    loss = method(*shown(s, torch.zeros(1, 4, 2, 2, dtype=torch.float16)))["at"]
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def test_distance_of_gradients() -> None:
    s, t = torch.zeros(2, 1, 2), torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert gradient_at(s, t).item() == pytest.approx((5 / 2 + 0) / 2)


def test_refuses_what_it_cannot_do() -> None:
    for wrong in ({"power": 0}, {"channels": "mean"}, {"form": "l1"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            AT(**wrong)
