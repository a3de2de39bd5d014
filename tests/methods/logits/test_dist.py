"""Distillation by correlations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.logits.dist import DIST, dist, inter_class, intra_class, pearson
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def unknown(s: Tensor, *, regions: bool = False) -> Batch:
    return Batch(s, torch.full((len(s), *s.shape[2:]), IGNORE), regions=regions)


def slow(s: Tensor, t: Tensor, tau: float, beta: float, gamma: float) -> float:
    rows = []
    for z in (s, t):
        flat = np.moveaxis(z.numpy(), 1, -1).reshape(-1, z.shape[1]) / tau
        e = np.exp(flat)
        rows.append(e / e.sum(1, keepdims=True))
    p, q = rows
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return float(tau**2 * (beta * inter + gamma * intra))


@pytest.mark.parametrize("space", [(), (7,), (4, 5), (3, 2, 4)])
def test_is_the_formula(space: tuple[int, ...]) -> None:
    s, t = rand(4, 5, *space), rand(4, 5, *space, seed=1)
    assert dist(s, t, 2.0, 0.5, 3.0).item() == pytest.approx(slow(s, t, 2.0, 0.5, 3.0), rel=1e-6)


def test_gradient() -> None:
    s, t = rand(2, 4, 3).requires_grad_(), rand(2, 4, 3, seed=1)
    w = torch.rand(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dist(x, t, 1.5), s)
    assert torch.autograd.gradcheck(lambda x: dist(x, t, 1.5, weight=w), s)


def test_scale_and_shift_of_one_do_not_matter() -> None:
    u, v = rand(3, 8), rand(3, 8, seed=1)
    torch.testing.assert_close(pearson(3 * u + 2, v), pearson(u, v))


def test_between_zero_and_two_and_zero_for_equals() -> None:
    s, t = torch.softmax(rand(2, 4, 5, 5), 1), torch.softmax(rand(2, 4, 5, 5, seed=1), 1)
    for term in (inter_class(s, t), intra_class(s, t), intra_class(s, t, scope="sample")):
        assert 0 <= term.item() <= 2
    assert dist(rand(2, 4, 5), rand(2, 4, 5)).item() == pytest.approx(0, abs=1e-6)


def test_two_classes_have_zero_or_two_between_them_and_so_no_term() -> None:
    s, t = rand(1, 2, 9), rand(1, 2, 9, seed=1)
    p, q = torch.softmax(s, 1), torch.softmax(t, 1)
    each = 1 - pearson(p.movedim(1, -1), q.movedim(1, -1))
    assert set(each.round(decimals=3).flatten().tolist()) == {0.0, 2.0}
    assert list(DIST()(View(s), View(t), unknown(s))) == ["intra"]


def test_order_of_voxels_and_classes_does_not_matter() -> None:
    s, t = rand(2, 4, 9), rand(2, 4, 9, seed=1)
    voxels, classes = torch.randperm(9), torch.randperm(4)
    torch.testing.assert_close(dist(s[..., voxels][:, classes], t[..., voxels][:, classes]), dist(s, t))


def test_weights_are_repetitions() -> None:
    s, t = rand(1, 4, 3), rand(1, 4, 3, seed=1)
    again = torch.tensor([0, 1, 1, 2, 2, 2])
    weight = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(dist(s, t, weight=weight), dist(s[..., again], t[..., again]), rtol=1e-6, atol=1e-8)


def test_a_class_that_the_teacher_never_sees_is_left_out() -> None:
    s, t = torch.softmax(rand(1, 3, 8), 1), torch.softmax(rand(1, 3, 8, seed=1), 1)
    t[:, 2] = 0
    torch.testing.assert_close(intra_class(s, t, least=1e-4), intra_class(s[:, :2], t[:, :2]))
    assert intra_class(s, torch.full_like(t, 0.2), least=1e-4).item() == 0


@pytest.mark.parametrize("intra", ["batch", "sample"])
@pytest.mark.parametrize("reduction", ["balanced", "foreground", "uniform"])
def test_voxels_without_trust_do_not_matter(intra: str, reduction: str) -> None:
    s, t = rand(2, 3, 6), rand(2, 3, 6, seed=1)
    trust = torch.ones(2, 1, 6)
    trust[..., :2] = 0
    trust[1] = 0
    other = s.clone()
    other[..., :2] += 1
    other[1] *= -3
    method = DIST(intra=intra, reduction=reduction)
    one, two = (method(View(x), View(t, {}, trust), unknown(x)) for x in (s, other))
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_regions_have_no_order_of_classes() -> None:
    s, t = rand(2, 3, 6), rand(2, 3, 6, seed=1)
    terms = DIST(reduction="uniform")(View(s), View(t), unknown(s, regions=True))
    torch.testing.assert_close(terms["intra"], intra_class(torch.sigmoid(s), torch.sigmoid(t)))
    assert list(terms) == ["intra"]


def test_a_student_that_knows_nothing_gets_finite_gradients() -> None:
    s = torch.zeros(1, 3, 4, 4, requires_grad=True)
    t = rand(1, 3, 4, 4).float()
    sum(DIST()(View(s), View(t), unknown(s)).values()).backward()
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def test_refuses_what_it_cannot_do() -> None:
    for wrong in ({"temperature": 0}, {"beta": -1}, {"intra": "voxel"}, {"reduction": "sum"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            DIST(**wrong)
