"""What a training needs to know, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medkd.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Length, optimiser and precision of one training.

    Args:
        steps: optimiser steps of the student.
        lr: peak learning rate.
        optimiser: ``adamw`` or ``sgd`` (Nesterov, momentum 0.99 as in nnU-Net).
        weight_decay: decoupled for ``adamw``.
        schedule: ``poly`` (power 0.9), ``cosine`` or ``constant``, after the warm-up.
        warmup: share of the steps over which the rate grows from zero.
        clip_norm: largest gradient norm of a player; None for no clipping.
        precision: ``auto`` (bf16 or fp16 on a GPU, fp32 on a CPU), ``fp32``, ``bf16`` or ``fp16``.
        ema: decay of an exponential moving average of the student, which is then what is kept; None for none.
        validate_every: steps between two validations and checkpoints.
        accumulate: micro-batches a step.
        seed: of weights and dropout (the patches have their own).
        log_every: steps between two lines of the log.
        device: ``auto``, ``cpu``, ``cuda``...
    """

    steps: int = 1000
    lr: float = 3e-3
    optimiser: str = "adamw"
    weight_decay: float = 1e-5
    schedule: str = "poly"
    warmup: float = 0.02
    clip_norm: float | None = 12.0
    precision: str = "auto"
    ema: float | None = None
    validate_every: int = 100
    accumulate: int = 1
    seed: int = 0
    log_every: int = 20
    device: str = "auto"

    def fabric_precision(self) -> str:
        """Return the precision in Lightning Fabric's words; bf16 autocast is 4-10 x slower on a CPU without AMX.

        Raises:
            UserError: unknown name.
        """
        gpu = self.device not in ("cpu",) and torch.cuda.is_available()
        if self.precision == "auto":
            if not gpu:
                return "32-true"
            return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        words = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
        if self.precision not in words:
            raise UserError(f"precision {self.precision!r} is not one of auto, {', '.join(words)}")
        return words[self.precision]
