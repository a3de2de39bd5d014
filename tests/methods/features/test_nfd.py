"""Normalised features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medkd.methods.features.nfd import NFD, nfd


@pytest.mark.parametrize("space", [(9,), (4, 3), (3, 2, 4)])
def test_is_two_less_twice_the_correlation(rand: Any, space: tuple[int, ...]) -> None:
    s, t = rand(2, 4, *space), rand(2, 4, *space, seed=1)
    r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for x, y in zip(s, t, strict=True) for a, b in zip(x, y, strict=True)]
    assert nfd(s, t, 0.0).item() == pytest.approx(2 * (1 - np.mean(r)), rel=1e-10)


def test_scale_and_shift_do_not_matter_and_the_opposite_is_four(rand: Any) -> None:
    s, t = rand(2, 3, 5, 5), rand(2, 3, 5, 5, seed=1)
    scale, shift = rand(2, 3, 1, 1, seed=2).exp(), rand(2, 3, 1, 1, seed=3)
    torch.testing.assert_close(nfd(scale * s + shift, t, 0.0), nfd(s, t, 0.0))
    torch.testing.assert_close(nfd(s, scale * t + shift, 0.0), nfd(s, t, 0.0))
    assert nfd(-t, t, 0.0).item() == pytest.approx(4)
    assert nfd(t, t).item() == 0


def test_independent_noise_is_about_two(rand: Any) -> None:
    assert nfd(rand(4, 8, 12, 12), rand(4, 8, 12, 12, seed=1)).item() == pytest.approx(2, abs=0.1)


def test_gradient_has_no_mean_and_no_part_along_the_features(rand: Any) -> None:
    s, t = rand(2, 3, 4, 4).requires_grad_(), rand(2, 3, 4, 4, seed=1).requires_grad_()
    nfd(s, t, 0.0).backward()
    assert s.grad is not None
    assert t.grad is None
    grad, flat = s.grad.flatten(2), s.detach().flatten(2)
    assert grad.sum(2).abs().max() < 1e-12
    assert (grad * (flat - flat.mean(2, keepdim=True))).sum(2).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda x: nfd(x, t.detach()), s)


def test_channels_on_which_the_teacher_is_silent_are_left_out(rand: Any) -> None:
    s, t = rand(1, 3, 4, 4), rand(1, 3, 4, 4, seed=1)
    t[:, 1] = 5.0
    keep = [0, 2]
    torch.testing.assert_close(nfd(s, t, least=1e-4), nfd(s[:, keep], t[:, keep]))
    assert nfd(s, torch.ones_like(t), least=1e-4).item() == 0


def test_voxels_without_trust_leave_the_statistics(rand: Any) -> None:
    s, t = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    trust = torch.ones(2, 1, 8, 8)
    trust[..., 4:] = 0
    expected = nfd(s[..., :2], t[..., :2])
    s[..., 2:] = torch.nan
    torch.testing.assert_close(nfd(s, t, trust=trust), expected)


def test_a_silent_student_in_half_precision_is_finite(anatomy: Any, shown: Any) -> None:
    method = NFD()
    method.setup(anatomy({"bottleneck": 3}), anatomy({"bottleneck": 5}))
    s = torch.zeros(1, 3, 2, 3, dtype=torch.float16, requires_grad=True)
    loss = method(*shown(s, torch.randn(1, 5, 4, 3).half()))["nfd"]
    loss.backward()
    assert torch.isfinite(loss)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    assert len(list(method.parameters())) == 2


def test_equal_channels_need_no_adapter(anatomy: Any) -> None:
    method = NFD()
    method.setup(anatomy({"bottleneck": 5}), anatomy({"bottleneck": 5}))
    assert list(method.parameters()) == []
