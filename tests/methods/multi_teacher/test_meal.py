"""One teacher a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.multi_teacher.meal import MEAL, discriminator_loss, meal, reverse_gradient, similarity_map
from medkd.training.round import Table

Seat = Callable[..., Table]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    s, t = rand(1, 3, 1), rand(1, 3, 1, seed=1)
    p, q = t.softmax(1)[0, :, 0], s.softmax(1)[0, :, 0]
    hand = {
        "ce": -sum(float(p[k]) * math.log(float(q[k])) for k in range(3)),
        "l1": sum(abs(float(p[k] - q[k])) for k in range(3)) / 3,
        "l2": sum(float(p[k] - q[k]) ** 2 for k in range(3)) / 3,
    }
    for kind, value in hand.items():
        assert similarity_map(s, t, kind).item() == pytest.approx(value, rel=1e-10)
        torch.testing.assert_close(meal([s, s], [t, t], [1.0, 0.5], kind), 1.5 * similarity_map(s, t, kind).mean())
    assert torch.autograd.gradcheck(lambda x: meal([x], [t]), s.requires_grad_())


def test_over_the_teachers_it_is_their_mean() -> None:
    s, teachers = rand(2, 3, 4), [rand(2, 3, 4, seed=i) for i in (1, 2, 3)]
    mean = torch.stack([t.softmax(1) for t in teachers]).mean(0).log()
    losses = torch.stack([similarity_map(s, t) for t in teachers]).mean(0)
    torch.testing.assert_close(losses, similarity_map(s, mean))


def test_draws_are_even_and_repeat(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    method = MEAL(adversarial=0.0)
    table = seat(method, teachers=3)
    asked: list[str] = []
    view = table.view
    monkeypatch.setattr(table, "view", lambda name, *more: (asked.append(name), view(name, *more))[1])
    found = []
    for _ in range(2):
        asked.clear()
        torch.manual_seed(0)
        for _ in range(300):
            list(method.turns(table))
        found.append([name for name in asked if name != "student"])
    assert found[0] == found[1]
    assert all(count > 70 for count in Counter(found[0]).values())
    assert len(Counter(found[0])) == 3


def test_reversed_gradient() -> None:
    x = rand(3, 2).requires_grad_()
    (reverse_gradient(x) * 3).sum().backward()
    assert x.grad is not None
    assert (x.grad == -3).all()


def test_the_student_fights_and_the_discriminator_does_not(seat: Seat) -> None:
    grads: dict[bool, list[Tensor]] = {}
    for reverse in (False, True):
        torch.manual_seed(0)
        method = MEAL(reverse=reverse)
        table = seat(method)
        view = table.view("student")
        loss = method(view, table.view("teacher"), table.batch)["discriminator"]
        grads[reverse] = [*torch.autograd.grad(loss, [view.logits, *method.discriminator.parameters()])]
    torch.testing.assert_close(grads[True][0], -grads[False][0])
    torch.testing.assert_close(grads[True][1:], grads[False][1:])


def test_equal_vectors_cannot_be_told_apart() -> None:
    best = min(discriminator_loss(z, z).item() for z in torch.randn(50, 1, 2))
    assert best >= math.log(2) - 1e-6
    assert discriminator_loss(torch.zeros(3, 2), torch.zeros(3, 2)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("wrong", [{"similarity": "cosine"}, {"adversarial": -1.0}, {"cells": 0}, {"reduction": "sum"}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="meal: "):
        MEAL(**wrong)  # type: ignore[arg-type]
