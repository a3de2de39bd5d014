"""Affinity of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.relations.class_affinity import ClassAffinity, class_affinity
from medkd.types import Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(s: Tensor, t: Tensor) -> float:
    found = []
    for a, b in zip(s.numpy(), t.numpy(), strict=True):
        maps = []
        for z in (a, b):
            e = np.exp(z.reshape(len(z), -1))
            p = e / e.sum(0)
            maps.append(np.array([[(u * v).sum() for v in p] for u in p]))
        for k in range(len(a)):
            u, v = maps[0][:, k], maps[1][:, k]
            found.append(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    return float(np.mean(found))


@pytest.mark.parametrize("space", [(9,), (3, 4), (2, 3, 4)])
def test_is_the_formula(space: tuple[int, ...]) -> None:
    s, t = rand(3, 4, *space), rand(3, 4, *space, seed=1)
    assert class_affinity(s, t).item() == pytest.approx(slow(s, t), rel=1e-9)


def test_gradient() -> None:
    t = rand(2, 3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: class_affinity(x, t), rand(2, 3, 4).requires_grad_())
    w = torch.rand(2, 1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: class_affinity(x, t, trust=w, regions=True, least=0.1), rand(2, 3, 4).requires_grad_()
    )


def test_two_crisp_maps_by_hand() -> None:
    # the teacher tells two classes apart, the student finds them equal everywhere: columns (1, 0) and (1, 1)
    t = torch.tensor([[[50.0, -50.0], [-50.0, 50.0]]])
    assert class_affinity(torch.zeros(1, 2, 2), t).item() == pytest.approx(1 - 0.5**0.5, rel=1e-6)


def test_every_sample_teaches_at_any_batch() -> None:
    for b in (1, 2, 5):
        s = rand(b, 3, 4, 4).requires_grad_()
        class_affinity(s, rand(b, 3, 4, 4, seed=1)).backward()
        assert s.grad is not None
        assert (s.grad.flatten(1).abs().sum(1) > 0).all()


def test_absent_classes_do_not_count() -> None:
    s, t = rand(2, 3, 6), rand(2, 3, 6, seed=1)
    s4, t4 = (torch.cat([x, torch.full((2, 1, 6), -40.0)], 1) for x in (s, t))
    s4[:, 3] = -30
    torch.testing.assert_close(class_affinity(s4, t4, least=1e-6), class_affinity(s, t))


def test_what_is_not_trusted_does_not_matter() -> None:
    s, t = rand(2, 3, 8), rand(2, 3, 8, seed=1)
    trust = torch.ones(2, 1, 8)
    trust[..., 5:] = 0
    torch.testing.assert_close(class_affinity(s, t, trust=trust), class_affinity(s[..., :5], t[..., :5]))


def test_heads_are_scales() -> None:
    s = View(rand(2, 3, 8, 8), {"logits_1": rand(2, 3, 4, 4, seed=1)})
    t = View(rand(2, 3, 8, 8, seed=2), {"logits_1": rand(2, 3, 4, 4, seed=3)})
    batch = Batch(s.logits, torch.zeros(2, 8, 8))
    both = ClassAffinity(scales=[0.4, 0.2], least=0)(s, t, batch)["class_affinity"]
    one = 0.4 * class_affinity(s.logits, t.logits)
    torch.testing.assert_close(both, one + 0.2 * class_affinity(s.taps["logits_1"], t.taps["logits_1"]))
    assert ClassAffinity(scales=[0.4, 0.2]).needs_live_teacher  # stored targets have no heads
    assert not ClassAffinity().needs_live_teacher
    with pytest.raises(UserError, match="scale 2 needs a deep-supervision head"):
        ClassAffinity(scales=[0.4, 0.2, 0.2])(s, t, batch)


@pytest.mark.parametrize("scales", [[], [1.0, -0.5]])
def test_a_mistake_is_told(scales: list[float]) -> None:
    with pytest.raises(UserError, match="class_affinity: scales"):
        ClassAffinity(scales=scales)
