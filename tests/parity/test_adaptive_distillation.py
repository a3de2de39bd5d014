"""Adaptive distillation against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medkd.methods.logits.kd import kd
from medkd.methods.weighting.adaptive_distillation import adaptive_distillation, attention, feature_map, nst


def test_paths(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("adaptive_distillation"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        losses = {
            "soft_target": kd(case.inputs["student_logits"], case.inputs["teacher_logits"], case.hyper["T"]),
            "attention": attention(s, t),
            "nst": nst(s, t),
            "feature_map": feature_map(s, t),
        }
        for name, loss in losses.items():
            case.near(loss, name)
        factors = torch.tensor(case.hyper["loss_weights"], dtype=torch.float64)
        case.check(adaptive_distillation(factors * torch.stack(list(losses.values())), case.inputs["alphas"]))
