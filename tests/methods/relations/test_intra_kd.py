"""The graph of the organs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.relations.intra_kd import IntraKD, grow, intra_kd, moment_distance, moments
from medkd.types import Anatomy, Batch, Tap, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def areas(*shape: int, seed: int = 5) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def slow_moments(x: Tensor, m: Tensor) -> list[np.ndarray]:
    found = [np.zeros((m.shape[0], m.shape[1], x.shape[1])) for _ in range(3)]
    for b in range(len(x)):
        for k in range(m.shape[1]):
            v = x[b][:, m[b, k] > 0].numpy()
            if v.shape[1]:
                mean = v.mean(1)
                var = ((v - mean[:, None]) ** 2).mean(1)
                third = ((v - mean[:, None]) ** 3).mean(1)
                for r, value in enumerate((mean, var, third / var**1.5)):
                    found[r][b, k] = value
    return found


@pytest.mark.parametrize("space", [(40,), (6, 7), (4, 4, 4)])
def test_moments_are_moments(space: tuple[int, ...]) -> None:
    x, m = 3 + 2 * rand(2, 3, *space), areas(2, 4, *space)
    m[1, 3] = 0
    for ours, theirs in zip(moments(x, m), slow_moments(x, m), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-7, atol=1e-9)


def test_float32_far_from_zero() -> None:
    x, m = 1000 + rand(1, 2, 500), areas(1, 2, 500)
    exact, single = moments(x, m), moments(x.float(), m)
    for a, b in zip(exact, single, strict=True):
        torch.testing.assert_close(b.double(), a, rtol=1e-3, atol=1e-3)


def test_scale_and_shift_of_moments() -> None:
    x, m = rand(2, 3, 50), areas(2, 4, 50)
    one, two = moments(x, m), moments(7 * x - 2, m)
    torch.testing.assert_close(two.skewness, one.skewness)
    torch.testing.assert_close(two.variance, 49 * one.variance)


def slow(s: Tensor, t: Tensor, m: Tensor) -> float:
    per_sample = []
    for b in range(len(s)):
        here = [k for k in range(m.shape[1]) if m[b, k].any()]
        total = 0.0
        for p, q in zip(slow_moments(s, m), slow_moments(t, m), strict=True):
            for i in here:
                for j in here:
                    cosines = [x[b, i] @ x[b, j] / np.linalg.norm(x[b, i]) / np.linalg.norm(x[b, j]) for x in (p, q)]
                    total += (cosines[0] - cosines[1]) ** 2
        per_sample.append(total / 3 / len(here) ** 2)
    return float(np.mean(per_sample))


def test_is_the_formula() -> None:
    s, t, m = rand(2, 3, 30), rand(2, 5, 30, seed=1), areas(2, 4, 30)
    m[0, 2] = 0
    ours = intra_kd(moments(s, m), moments(t, m), m.sum(2) > 0)
    assert ours.item() == pytest.approx(slow(s, t, m), rel=1e-7)


def test_gradient() -> None:
    t, m = rand(2, 3, 12, seed=1), areas(2, 3, 12)
    there = m.sum(2) > 1
    target = moments(t, m)
    x = rand(2, 3, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: intra_kd(moments(s, m), target, there), x)
    assert torch.autograd.gradcheck(lambda s: moment_distance(moments(s, m), target, there), x)


def test_growth_is_a_box() -> None:
    mask = torch.zeros(1, 1, 9, 9)
    mask[0, 0, 4, 4] = 0.3
    assert grow(mask, (1, 1)).sum() == 1
    assert grow(mask, (5, 3))[0, 0].nonzero().aminmax(dim=0).max.tolist() == [6, 5]
    assert grow(mask, (5, 3)).sum() == 15
    assert grow(mask, (2.5, 1.2)).sum() == 1  # on a grid of twice the stride


def scene(channels: int = 5) -> tuple[View, View, Batch]:
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, 2:6, 2:6], label[:, 7:] = 1, 2
    logits = torch.zeros(2, 3, 8, 8)
    s, t = rand(2, 5, 8, 8), rand(2, channels, 8, 8, seed=1)
    return View(logits, {"dec0": s}), View(logits, {"dec0": t}), Batch(logits[:, :1], label)


def test_terms() -> None:
    s, t, batch = scene(7)
    assert set(IntraKD()(s, t, batch)) == {"affinity"}
    s, t, batch = scene()
    terms = IntraKD(moments=2.0)(s, t, batch)
    assert terms["moments"] > 0
    assert IntraKD(moments=1.0)(s, t, batch)["moments"] * 2 == terms["moments"]
    same = IntraKD(moments=1.0)(t, t, batch)
    assert same["affinity"] == same["moments"] == 0


def test_the_rim_counts() -> None:
    s, t, batch = scene()
    changed = s.taps["dec0"].clone()
    changed[:, :, 1, 2:6] = 9  # beside the organ, background itself
    other = View(s.logits, {"dec0": changed})
    label = batch.label.clone()
    label[label == 0] = -1  # the organs alone
    organs = Batch(batch.image, label)
    one, two = (IntraKD(kernel=1)(view, t, organs)["affinity"] for view in (s, other))
    torch.testing.assert_close(one, two)
    assert IntraKD(kernel=3)(other, t, organs)["affinity"] != IntraKD(kernel=3)(s, t, organs)["affinity"]


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="kernel 4 must be odd"):
        IntraKD(kernel=4)
    with pytest.raises(UserError, match="moments -1"):
        IntraKD(moments=-1)
    method = IntraKD(moments=1.0)
    with pytest.raises(UserError, match="equal channels, and dec0 has 5, the teacher's dec0 7"):
        method.setup(Anatomy({"dec0": Tap(5, (1, 1))}, 3, 2), Anatomy({"dec0": Tap(7, (1, 1))}, 3, 2))
