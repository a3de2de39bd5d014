"""Relational distillation: distances and angles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.relations.rkd import RKD, angles, distances, rkd_angle, rkd_distance
from medkd.types import Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return 0.5 * d * d if d <= 1 else d - 0.5


def slow(s: Tensor, t: Tensor) -> tuple[float, float]:
    n = len(s)
    spans, corners = [], []
    for x in (s.numpy(), t.numpy()):
        d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
        spans.append(d / d[d > 0].mean())
        a = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if i not in (j, k):
                        u, v = x[j] - x[i], x[k] - x[i]
                        a[i, j, k] = u @ v / np.sqrt((u @ u) * (v @ v))
        corners.append(a)
    distance = np.mean([huber(a, b) for a, b in zip(spans[0].flat, spans[1].flat, strict=True)])
    angle = np.mean([huber(a, b) for a, b in zip(corners[0].flat, corners[1].flat, strict=True)])
    return float(distance), float(angle)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_is_the_formula(n: int) -> None:
    s, t = rand(n, 4), 3 * rand(n, 6, seed=1)
    distance, angle = slow(s, t)
    assert rkd_distance(s, t).item() == pytest.approx(distance, rel=1e-9, abs=1e-12)
    assert rkd_angle(s, t).item() == pytest.approx(angle, rel=1e-9, abs=1e-12)


def test_gradient() -> None:
    t = rand(5, 6, seed=1)
    assert torch.autograd.gradcheck(lambda x: rkd_distance(x, t), rand(5, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: rkd_angle(x, t), rand(5, 3).requires_grad_())


def test_rotation_shift_and_scale_do_not_matter() -> None:
    s, t = rand(6, 4), rand(6, 5, seed=1)
    turn, _ = torch.linalg.qr(rand(4, 4, seed=2))
    moved = 5 * s @ turn + rand(4, seed=3)
    torch.testing.assert_close(rkd_distance(moved, t), rkd_distance(s, t))
    torch.testing.assert_close(rkd_angle(moved, t), rkd_angle(s, t))


def test_two_rows_have_one_distance() -> None:
    assert rkd_distance(rand(2, 4), rand(2, 5, seed=1)) == 0
    assert rkd_distance(rand(1, 4), rand(1, 5)) == 0


def test_cosines_are_cosines() -> None:
    a = angles(rand(6, 4))
    assert a.abs().max() <= 1 + 1e-12
    own = a.diagonal(dim1=1, dim2=2)  # between an edge and itself
    torch.testing.assert_close(own, 1 - torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_equal_points_do_no_harm(dtype: torch.dtype) -> None:
    s = rand(5, 4)
    s[1] = s[0]
    s = s.to(dtype).requires_grad_()
    loss = rkd_distance(s, rand(5, 6, seed=1)) + rkd_angle(s, rand(5, 6, seed=1))
    loss.backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()
    assert s.grad.abs().max() < 10
    assert distances(torch.ones(3, 2)).tolist() == torch.zeros(3, 3).tolist()


def scene(classes: int = 4) -> tuple[View, View, Batch]:
    label = torch.arange(classes).repeat_interleave(8).repeat(2, 1)
    logits = torch.zeros(2, classes, 8 * classes)
    s, t = rand(2, 3, 8 * classes).requires_grad_(), rand(2, 5, 4 * classes, seed=1)
    return View(logits, {"bottleneck": s}), View(logits, {"bottleneck": t}), Batch(logits[:, :1], label)


def test_regions_are_the_points() -> None:
    s, t, batch = scene()
    terms = RKD(distance=2, angle=3)(s, t, batch)
    rows = [x.taps["bottleneck"].unflatten(2, (4, -1)).mean(3).transpose(1, 2).flatten(0, 1) for x in (s, t)]
    torch.testing.assert_close(terms["distance"], 2 * rkd_distance(*rows))
    torch.testing.assert_close(terms["angle"], 3 * rkd_angle(*rows))


def test_of_too_many_points_some_are_drawn() -> None:
    s, t, batch = scene()
    torch.manual_seed(0)
    some = RKD(most=3)(s, t, batch)["angle"]
    assert some.isfinite()
    assert some != RKD()(s, t, batch)["angle"]


@pytest.mark.parametrize("wrong", [{"distance": -1.0}, {"most": 2}, {"cells": -1}, {"source": "x"}])
def test_a_mistake_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="rkd: "):
        RKD(**wrong)  # type: ignore[arg-type]
