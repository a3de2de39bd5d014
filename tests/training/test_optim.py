"""Optimisers and rates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medkd.errors import UserError
from medkd.training.optim import factor, optimiser, schedule
from medkd.training.settings import Settings


def rates(settings: Settings) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optim = optimiser([parameter], settings)
    plan = schedule(optim, settings)
    found = []
    for _ in range(settings.steps):
        found.append(optim.param_groups[0]["lr"])
        parameter.grad = torch.ones(1)
        optim.step()
        plan.step()
    return found


def test_warm_up_then_poly() -> None:
    found = rates(Settings(steps=100, lr=2.0, warmup=0.1))
    assert found[:10] == pytest.approx([2 * (i + 1) / 11 for i in range(10)])
    assert found[10] == 2
    assert found[10:] == pytest.approx([2 * (1 - i / 90) ** 0.9 for i in range(90)])


def test_cosine_and_constant() -> None:
    cosine = rates(Settings(steps=10, lr=1.0, warmup=0.0, schedule="cosine"))
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])
    assert rates(Settings(steps=10, lr=0.3, warmup=0.0, schedule="constant")) == pytest.approx([0.3] * 10)


@pytest.mark.parametrize("name", ["poly", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5, 1.0])
def test_every_step_has_a_rate_above_zero_and_at_most_the_peak(name: str, steps: int, warmup: float) -> None:
    settings = Settings(steps=steps, lr=1.0, warmup=warmup, schedule=name)
    assert all(0 < factor(i, settings) <= 1 for i in range(steps))
    assert 0 <= factor(steps + 5, settings) <= 1


def test_optimisers_are_what_they_are_called() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    adamw = optimiser(parameters, Settings(lr=0.1, weight_decay=0.2))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.1, 0.2)
    sgd = optimiser(parameters, Settings(optimiser="sgd"))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.99


def test_unknown_names_are_told_before_the_training() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match="'adam' is not one of adamw, sgd"):
        optimiser(parameters, Settings(optimiser="adam"))
    with pytest.raises(UserError, match="'linear' is not one of poly, cosine, constant"):
        schedule(optimiser(parameters, Settings()), Settings(schedule="linear", warmup=0.5))
