"""Distances between classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.relations.idd import IDD, idd, spread
from medkd.types import Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(s: Tensor, t: Tensor, present: Tensor) -> float:
    samples = []
    for a, b, here in zip(s, t, present, strict=True):
        k = [i for i in range(len(here)) if here[i]]
        pairs = [(i, j) for i in k for j in k if i != j]
        if pairs:
            gaps = [(float((a[i] - a[j]).norm()) - float((b[i] - b[j]).norm())) ** 2 for i, j in pairs]
            samples.append(sum(gaps) / len(gaps))
    return sum(samples) / len(samples)


def test_is_the_formula() -> None:
    s, t = rand(3, 5, 4), rand(3, 5, 6, seed=1)
    present = torch.tensor([[True] * 5, [True, False, True, True, False], [False, False, True, False, False]])
    assert idd(s, t, present).item() == pytest.approx(slow(s, t, present), rel=1e-9)


def test_gradient() -> None:
    t, present = rand(2, 4, 5, seed=1), torch.ones(2, 4, dtype=torch.bool)
    for normalise in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, n=normalise: idd(x, t, present, normalise=n), rand(2, 4, 3).requires_grad_()
        )


def test_by_hand_and_finite_for_equal_centres() -> None:
    t = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    s = torch.ones(1, 2, 2).requires_grad_()
    loss = idd(s, t, torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 25
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_rotation_and_shift_do_not_matter_and_one_class_is_none() -> None:
    s, t = rand(2, 4, 3), rand(2, 4, 5, seed=1)
    all_there = torch.ones(2, 4, dtype=torch.bool)
    turn, _ = torch.linalg.qr(rand(3, 3, seed=2))
    torch.testing.assert_close(idd(s @ turn + rand(3, seed=3), t, all_there), idd(s, t, all_there))
    one = torch.tensor([[True, False, False, False]] * 2)
    assert idd(s, t, one) == 0


def test_spread_is_the_deviation_from_the_mean() -> None:
    x = rand(2, 3, 4, 4)
    expected = x.flatten(2).var(2, unbiased=False).sum(1).sqrt()
    torch.testing.assert_close(spread(x).flatten(), expected)


def scene(scale: float = 1.0) -> tuple[View, View, Batch]:
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, 2:6, 2:6], label[:, 6:] = 1, 2
    logits = torch.zeros(2, 3, 8, 8)
    s, t = scale * rand(2, 3, 8, 8), rand(2, 5, 4, 4, seed=1)
    return View(logits, {"dec0": s}), View(logits, {"dec0": t}), Batch(logits[:, :1], label)


@pytest.mark.parametrize("scale", ["spread", "mean"])
def test_the_scale_of_features_does_not_matter(scale: str) -> None:
    one, two = (IDD(scale=scale)(*scene(factor))["idd"] for factor in (1, 40))
    torch.testing.assert_close(one, two)
    assert IDD(scale="none")(*scene(40))["idd"] > 100 * one


def test_shuffling_voxels_within_a_class_does_not_matter() -> None:
    s, t, batch = scene()
    shuffled = s.taps["dec0"].clone()
    shuffled[:, :, 2:6, 2:6] = shuffled[:, :, 2:6, 2:6].flip(2, 3)
    torch.testing.assert_close(IDD()(View(s.logits, {"dec0": shuffled}), t, batch)["idd"], IDD()(s, t, batch)["idd"])


def test_a_mistake_is_told() -> None:
    with pytest.raises(UserError, match="scale 'x' is not one of spread, mean, none"):
        IDD(scale="x")
