"""Decoupled distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.logits.dkd import DKD, dkd, dkd_maps
from medkd.methods.ops import kl_map
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def labels(*shape: int, classes: int) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(9))


def slow(s: Tensor, t: Tensor, y: Tensor, tau: float, alpha: float, beta: float) -> float:
    total = []
    for b, *at in np.ndindex(*y.shape):
        where = (b, slice(None), *at)
        k = int(y[(b, *at)])
        p, q = (np.exp(x[where].numpy() / tau) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        binary = p[k] * np.log(p[k] / q[k]) + (1 - p[k]) * np.log((1 - p[k]) / (1 - q[k]))
        p, q = np.delete(p, k), np.delete(q, k)
        p, q = p / p.sum(), q / q.sum()
        total.append(alpha * binary + beta * (p * np.log(p / q)).sum())
    return float(tau**2 * np.mean(total))


@pytest.mark.parametrize("space", [(), (7,), (4, 5), (3, 2, 4)])
def test_is_the_formula(space: tuple[int, ...]) -> None:
    s, t, y = rand(2, 5, *space), rand(2, 5, *space, seed=1), labels(2, *space, classes=5)
    assert dkd(s, t, y, 3.0, 0.7, 2.0).item() == pytest.approx(slow(s, t, y, 3.0, 0.7, 2.0), rel=1e-10)


def test_gradient() -> None:
    s, t, y = rand(2, 4, 3).requires_grad_(), rand(2, 4, 3, seed=1), labels(2, 3, classes=4)
    assert torch.autograd.gradcheck(lambda x: dkd(x, t, y), s)


def test_kd_is_the_sum_of_the_parts() -> None:
    s, t, y = rand(2, 5, 4, 3), rand(2, 5, 4, 3, seed=1), labels(2, 4, 3, classes=5)
    target, other = dkd_maps(s, t, y, 2.0)
    doubt = 1 - torch.softmax(t / 2, 1).gather(1, y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(target + doubt * other, kl_map(s, t, 2.0))


def test_the_other_classes_do_not_see_the_target() -> None:
    s, t, y = rand(2, 5, 4), rand(2, 5, 4, seed=1), labels(2, 4, classes=5)
    moved = s.scatter_add(1, y.unsqueeze(1), torch.full((2, 1, 4), 3.0, dtype=torch.float64))
    torch.testing.assert_close(dkd_maps(s, t, y, 1.0)[1], dkd_maps(moved, t, y, 1.0)[1])
    assert (dkd_maps(s, t, y, 1.0)[0] - dkd_maps(moved, t, y, 1.0)[0]).abs().min() > 1e-4


def test_two_classes_have_no_others() -> None:
    s, t, y = rand(2, 2, 6).requires_grad_(), rand(2, 2, 6, seed=1), labels(2, 6, classes=2)
    other = dkd_maps(s, t, y, 4.0)[1]
    other.sum().backward()
    assert other.abs().max() == 0
    assert s.grad is not None
    assert s.grad.abs().max() < 1e-12


def test_zero_only_where_they_agree_up_to_a_constant() -> None:
    t, y = rand(2, 4, 5), labels(2, 5, classes=4)
    assert abs(dkd(t + 3, t, y).item()) < 1e-10
    assert dkd(t + 0.1 * rand(2, 4, 5, seed=2), t, y).item() > 1e-4


def test_sure_networks_stay_finite_in_half_precision() -> None:
    s = torch.tensor([[[60000.0], [-60000.0], [0.0]]], dtype=torch.float16, requires_grad=True)
    t = torch.tensor([[[-60000.0], [60000.0], [0.0]]], dtype=torch.float16)
    loss = dkd(s, t, torch.zeros(1, 1, dtype=torch.long))
    loss.backward()
    assert s.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_voxels_without_label_or_trust_do_not_matter() -> None:
    s, t, y = rand(1, 3, 6), rand(1, 3, 6, seed=1), labels(1, 6, classes=3)
    y[0, 0] = IGNORE
    trust = torch.ones(1, 1, 6)
    trust[..., 1] = 0
    other = s.clone()
    other[..., :2] += rand(1, 3, 2, seed=4)
    for reduction in ("balanced", "foreground", "uniform"):
        method = DKD(reduction=reduction)
        one, two = (method(View(x), View(t, {}, trust), Batch(x, y)) for x in (s, other))
        assert one == two
    nothing = DKD()(View(s), View(t), Batch(s, torch.full_like(y, IGNORE)))
    assert [float(term) for term in nothing.values()] == [0.0, 0.0]


def test_balanced_counts_classes_and_not_voxels() -> None:
    s, t = rand(1, 3, 4), rand(1, 3, 4, seed=1)
    y = torch.tensor([[0, 0, 0, 2]])
    target, _ = dkd_maps(s, t, y, 2.0)
    expected = (target[0, :3].mean() + target[0, 3]) / 2
    assert DKD()(View(s), View(t), Batch(s, y))["tckd"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="temperature"):
        DKD(temperature=0)
    with pytest.raises(UserError, match="must not be negative"):
        DKD(beta=-1)
    with pytest.raises(UserError, match="reduction"):
        DKD(reduction="sum")
    s = rand(1, 2, 3)
    with pytest.raises(UserError, match="overlapping"):
        DKD()(View(s), View(s), Batch(s, labels(1, 2, 3, classes=2), regions=True))
