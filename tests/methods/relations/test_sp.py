"""Similarity-preserving distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.relations.sp import SP, similarity, sp
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(s: Tensor, t: Tensor) -> float:
    maps = []
    for x in (s, t):
        q = x.numpy().reshape(len(x), -1)
        g = np.array([[sum(u * v) for v in q] for u in q])
        maps.append(np.array([row / np.sqrt((row**2).sum()) for row in g]))
    return float(((maps[0] - maps[1]) ** 2).sum() / len(s) ** 2)


@pytest.mark.parametrize(("s", "t"), [((5, 4), (5, 7)), ((4, 3, 5), (4, 2, 6)), ((3, 2, 4, 3, 2), (3, 4, 2, 2, 2))])
def test_is_the_formula(s: tuple[int, ...], t: tuple[int, ...]) -> None:
    assert sp(rand(*s), rand(*t, seed=1)).item() == pytest.approx(slow(rand(*s), rand(*t, seed=1)), rel=1e-9)


def test_gradient() -> None:
    t = rand(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda x: sp(x, t), rand(4, 3).requires_grad_())


def test_rotation_scale_and_order_do_not_matter() -> None:
    s, t = rand(6, 4), rand(6, 5, seed=1)
    turn, _ = torch.linalg.qr(rand(4, 4, seed=2))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for other in (sp(7 * s @ turn, t), sp(s, 0.1 * t), sp(s[order], t[order])):
        torch.testing.assert_close(other, sp(s, t))


def test_bounds_and_one_row() -> None:
    s, t = rand(6, 4), rand(6, 5, seed=1)
    assert sp(s, t) <= 4 / 6
    assert sp(s.abs(), t.abs()) <= 2 / 6
    assert sp(s[:1], t[:1]) == 0
    assert sp(s[:0], t[:0]) == 0
    torch.testing.assert_close(similarity(s).norm(dim=1), torch.ones(6, dtype=torch.float64))


def scene(cases: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Batch]:
    label = torch.zeros(cases, 8, 8, dtype=torch.long)
    label[:, 2:6, 2:6], label[:, 6:] = 1, 2
    image = torch.zeros(cases, 1, 8, 8)
    return rand(cases, 4, 8, 8, seed=seed).requires_grad_(), rand(cases, 6, 4, 4, seed=seed + 1), Batch(image, label)


def views(s: Tensor, t: Tensor) -> tuple[View, View]:
    logits = torch.zeros(len(s), 3, 8, 8)
    return View(logits, {"bottleneck": s}), View(logits, {"bottleneck": t})


def test_rows_are_classes_of_cases_and_one_case_is_enough() -> None:
    s, t, batch = scene(1)
    loss = SP()(*views(s, t), batch)["sp"]
    assert loss > 0
    loss.backward()
    assert s.grad is not None
    assert s.grad.abs().sum() > 0


def test_a_batch_twice_is_the_batch() -> None:
    s, t, batch = scene()
    twice = Batch(batch.image.repeat(2, 1, 1, 1), batch.label.repeat(2, 1, 1))
    one = SP()(*views(s, t), batch)["sp"]
    torch.testing.assert_close(SP()(*views(s.repeat(2, 1, 1, 1), t.repeat(2, 1, 1, 1)), twice)["sp"], one)


def test_without_labels_the_teacher_says_where_regions_are() -> None:
    s, t, batch = scene()
    unknown = Batch(batch.image, torch.full_like(batch.label, IGNORE))
    ours, theirs = views(s, t)
    assert SP()(ours, theirs, unknown)["sp"] == 0
    assert SP(cells=2)(ours, theirs, unknown)["sp"] > 0
    speaking = View(torch.nn.functional.one_hot(batch.label, 3).movedim(-1, 1).double(), theirs.taps)
    torch.testing.assert_close(SP(source="teacher")(ours, speaking, unknown)["sp"], SP()(ours, theirs, batch)["sp"])


def test_a_mistake_is_told() -> None:
    with pytest.raises(UserError, match="source 'x'"):
        SP(source="x")
    with pytest.raises(UserError, match="cells -1"):
        SP(cells=-1)
