"""Tokens of the teacher through a transfer module, and pooled predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.features.gid import GID, Transfer, pooled_kl, token_distance
from medkd.methods.logits.kd import kd
from medkd.types import Anatomy, Batch, Tap, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(s: Tensor, t: Tensor, tau: float, r: int) -> float:
    found = []
    for a, b in zip(s.numpy(), t.numpy(), strict=True):
        for i in range(0, a.shape[1], r):
            for j in range(0, a.shape[2], r):
                p, q = (np.exp(x[:, i : i + r, j : j + r].mean((1, 2)) / tau) for x in (b, a))
                p, q = p / p.sum(), q / q.sum()
                found.append((p * np.log(p / q)).sum())
    return float(tau**2 * np.mean(found))


def test_pooled_prediction_is_the_formula() -> None:
    s, t = rand(2, 3, 4, 6), rand(2, 3, 4, 6, seed=1)
    assert pooled_kl(s, t, 3.0, 2).item() == pytest.approx(slow(s, t, 3.0, 2), rel=1e-9)


@pytest.mark.parametrize("space", [(8,), (4, 6), (4, 3, 5)])
def test_a_pool_of_one_is_kd_and_of_all_compares_the_mean(space: tuple[int, ...]) -> None:
    s, t = rand(2, 3, *space), rand(2, 3, *space, seed=1)
    torch.testing.assert_close(pooled_kl(s, t, 2.0, 1), kd(s, t, 2.0))
    means = [x.flatten(2).mean(2, keepdim=True) for x in (s, t)]
    torch.testing.assert_close(pooled_kl(s, t, 2.0, 8), kd(*means, 2.0))


def test_what_is_constant_over_classes_after_pooling_does_not_matter() -> None:
    t = rand(2, 3, 4, 4)
    ripple = torch.tensor([1.0, -1.0]).repeat(2) * torch.ones(2, 3, 4, 1)  # averages out
    assert pooled_kl(t + 5 + ripple, t).item() == pytest.approx(0, abs=1e-12)


def test_gradients() -> None:
    t = rand(2, 3, 4, 4, seed=1)
    w = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pooled_kl(x, t, trust=w), rand(2, 3, 4, 4).requires_grad_())
    target = rand(2, 5, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: token_distance(x, target), rand(2, 5, 3).requires_grad_())
    torch.testing.assert_close(token_distance(target + 2, target), torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_tokens_of_any_dimensions_see_the_whole_volume(dims: int) -> None:
    torch.manual_seed(0)
    module = Transfer(3, 6, dims, heads=8, most=64)
    x = rand(1, 3, *[6] * dims).float().requires_grad_()
    tokens, _ = module(x)
    tokens[0, 0].square().sum().backward()
    assert tokens.shape[2] == 6
    assert x.grad is not None
    assert x.grad.flatten()[-1] != 0  # from one corner to the other


def test_what_is_not_trusted_is_not_seen() -> None:
    torch.manual_seed(0)
    module = Transfer(3, 4, 2, heads=2, most=64)
    trust = torch.ones(2, 1, 8, 8)
    trust[0, :, 4:], trust[1] = 0, 0
    x = rand(2, 3, 8, 8).float()
    other = x.clone()
    other[0, :, 4:] = float("nan")
    (a, w), (b, _) = module(x, trust), module(other, trust)
    torch.testing.assert_close(a[0, :32], b[0, :32])
    assert a.isfinite().all()
    assert w[0, 32:].sum() == w[1].sum() == 0


def views() -> tuple[View, View, Batch]:
    s = View(rand(2, 3, 8, 8).float(), {"bottleneck": rand(2, 4, 4, 4, seed=1).float().requires_grad_()})
    t = View(rand(2, 3, 8, 8, seed=2).float(), {"bottleneck": rand(2, 6, 4, 4, seed=3).float()})
    return s, t, Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))


def test_the_module_learns_and_is_not_shipped() -> None:
    s, t, batch = views()
    torch.manual_seed(0)
    method = GID(tokens=3.0)
    method.setup(Anatomy({"bottleneck": Tap(4, (2, 2))}, 3, 2), Anatomy({"bottleneck": Tap(6, (2, 2))}, 3, 2))
    terms = method(s, t, batch)
    terms["tokens"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert s.taps["bottleneck"].grad is not None
    student = nn.Conv2d(1, 3, 1)
    assert method.deploy(student) is student
    torch.testing.assert_close(terms["prediction"], pooled_kl(s.logits, t.logits))


@pytest.mark.parametrize("wrong", [{"tokens": -1}, {"temperature": 0}, {"pool": 0}, {"most": 5000}])
def test_a_mistake_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="gid: "):
        GID(**wrong)  # type: ignore[arg-type]
