"""KD against the released code of four projects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medkd.methods.logits.kd import KD, kd
from medkd.types import IGNORE, Batch, View


def test_kd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("kd"):
        s, t, temperature = case.inputs["student_logits"], case.inputs["teacher_logits"], case.hyper["T"]
        # IFVD takes the mean over classes too, and leaves the square of the temperature out
        factor = s.shape[1] * temperature**2 if case.name == "voxel_2d_ifvd_skd" else 1.0
        case.check(kd(s, t, temperature) / factor)
        batch = Batch(s, torch.full((len(s), *s.shape[2:]), IGNORE))
        case.check(KD(temperature=temperature, reduction="uniform")(View(s), View(t), batch)["kd"] / factor)
