"""Intra-class feature variation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.relations.ifvd import IFVD, drop_small, ifvd, variation
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(-1, classes, shape, generator=torch.Generator().manual_seed(seed))


def slow(s: Tensor, t: Tensor, label: Tensor) -> float:
    differences = []
    for b in range(len(s)):
        maps = []
        for x in (s[b], t[b]):
            f, y = x.numpy().reshape(len(x), -1), label[b].numpy().reshape(-1)
            means = {k: f[:, y == k].mean(1) for k in set(y.tolist())}
            maps.append(
                [
                    f[:, n] @ means[k] / np.linalg.norm(f[:, n]) / np.linalg.norm(means[k])
                    for n, k in enumerate(y.tolist())
                    if k != IGNORE
                ]
            )
        differences += [(a - c) ** 2 for a, c in zip(*maps, strict=True)]
    return float(np.mean(differences))


@pytest.mark.parametrize("space", [(12,), (5, 6), (3, 4, 5)])
def test_is_the_formula(space: tuple[int, ...]) -> None:
    s, t, label = rand(2, 3, *space), rand(2, 5, *space, seed=1), labels(2, *space)
    assert ifvd(s, t, label, 3, eps=0).item() == pytest.approx(slow(s, t, label), rel=1e-9)


def test_gradient() -> None:
    t, label = rand(2, 4, 3, 3, seed=1), labels(2, 3, 3)
    assert torch.autograd.gradcheck(lambda x: ifvd(x, t, label, 3), rand(2, 3, 3, 3).requires_grad_())


def test_by_hand() -> None:
    t = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # (1, 0) and (0, 1), one class
    s = torch.ones(1, 2, 2)
    assert ifvd(s, t, torch.zeros(1, 2, dtype=torch.long), 1).item() == pytest.approx(0.0857864, abs=1e-6)


def test_constant_classes_have_no_variation_whatever_they_are() -> None:
    label = labels(2, 6, 6).clamp_min(0)
    s, t = rand(3, 4)[label].movedim(-1, 1), rand(3, 7, seed=1)[label].movedim(-1, 1)
    assert ifvd(s, t, label, 3) < 1e-12


def test_scale_and_rotation_do_not_matter_and_bounds_hold() -> None:
    s, t, label = rand(2, 3, 5, 5), rand(2, 5, 5, 5, seed=1), labels(2, 5, 5)
    turn, _ = torch.linalg.qr(rand(3, 3, seed=2))
    torch.testing.assert_close(ifvd(4 * torch.einsum("ij,bj...->bi...", turn, s), t, label, 3), ifvd(s, t, label, 3))
    assert variation(s, label, 3).abs().max() <= 1
    assert 0 <= ifvd(s, -s, label, 3) <= 4


def test_a_class_of_one_voxel_is_dropped() -> None:
    label = torch.tensor([[0, 0, 1, 2, 2, IGNORE], [1, 1, 0, 0, 0, 0]])
    assert drop_small(label, 3, 2).tolist() == [[0, 0, IGNORE, 2, 2, IGNORE], [1, 1, 0, 0, 0, 0]]


def views(s: Tensor, t: Tensor, trust: Tensor | None = None) -> tuple[View, View]:
    logits = torch.zeros(len(s), 3, 8, 8)
    return View(logits, {"dec0": s}), View(logits, {"dec0": t}, trust)


def test_balanced_and_uniform() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[0, :2, :2] = 1
    s, t = rand(1, 3, 8, 8), rand(1, 5, 8, 8, seed=1)
    squared = (variation(s, label, 3) - variation(t, label, 3)).square()
    batch, (a, b) = Batch(torch.zeros(1, 1, 8, 8), label), views(s, t)
    torch.testing.assert_close(IFVD(reduction="uniform")(a, b, batch)["ifvd"], squared.mean())
    halves = (squared[label == 0].mean() + squared[label == 1].mean()) / 2
    torch.testing.assert_close(IFVD()(a, b, batch)["ifvd"], halves)


@pytest.mark.parametrize("reduction", ["balanced", "uniform"])
def test_what_is_unknown_or_not_trusted_does_not_matter(reduction: str) -> None:
    label = labels(2, 8, 8).clamp_min(0)
    label[:, :, 6:] = IGNORE
    trust = torch.ones(2, 1, 8, 8)
    trust[:, :, 6:] = 0
    s, t = rand(2, 3, 8, 8), rand(2, 5, 4, 4, seed=1)
    batch = Batch(torch.zeros(2, 1, 8, 8), label)
    other = s.clone()
    other[:, :, 6:], other[:, :, :, 6:] = 9, 5
    one, two = (IFVD(reduction=reduction)(*views(x, t, trust), batch)["ifvd"] for x in (s, other))
    torch.testing.assert_close(one, two)


def test_no_label_no_loss() -> None:
    s = rand(1, 3, 8, 8).requires_grad_()
    batch = Batch(torch.zeros(1, 1, 8, 8), torch.full((1, 8, 8), IGNORE))
    loss = IFVD()(*views(s, rand(1, 3, 8, 8)), batch)["ifvd"]
    loss.backward()
    assert loss == 0
    assert s.grad is not None
    assert s.grad.abs().max() == 0


def test_a_mistake_is_told() -> None:
    with pytest.raises(UserError, match="reduction 'mean' is not one of balanced, uniform"):
        IFVD(reduction="mean")
    with pytest.raises(UserError, match="one class a voxel"):
        IFVD()(*views(rand(1, 3, 8, 8), rand(1, 3, 8, 8)), Batch(rand(1, 1, 8, 8), labels(1, 3, 8, 8), regions=True))
