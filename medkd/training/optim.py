"""Optimisers and schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from medkd.errors import UserError
from medkd.training.settings import Settings


def optimiser(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Return the optimiser that ``settings`` names.

    Raises:
        UserError: unknown name.
    """
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, weight_decay=settings.weight_decay, momentum=0.99, nesterov=True
        )
    raise UserError(f"optimiser {settings.optimiser!r} is not one of adamw, sgd")


def factor(step: int, settings: Settings) -> float:
    """Return the share of the peak rate at ``step``: linear warm-up, then the schedule down to zero."""
    warm = max(1, round(settings.warmup * settings.steps)) if settings.warmup > 0 else 0
    if step < warm:
        return (step + 1) / (warm + 1)
    done = min(1.0, (step - warm) / max(1, settings.steps - warm))
    if settings.schedule == "poly":
        return float((1 - done) ** 0.9)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def schedule(optimiser: torch.optim.Optimizer, settings: Settings) -> LambdaLR:
    """Return the schedule of one optimiser; the trainer moves it once a step, however many turns the player has.

    Raises:
        UserError: unknown name.
    """
    if settings.schedule not in ("poly", "cosine", "constant"):
        raise UserError(f"schedule {settings.schedule!r} is not one of poly, cosine, constant")
    return LambdaLR(optimiser, lambda step: factor(step, settings))
