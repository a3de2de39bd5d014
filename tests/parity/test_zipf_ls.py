"""Zipf label smoothing against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medkd.methods.self_distillation.zipf_ls import zipf_ls


def test_zipf_ls(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("zipf_ls"):
        z, h = case.inputs["student_logits"], case.hyper
        votes = case.inputs["dense_argmax"]
        scores = z.detach()
        if h["dense"]:
            scores = torch.zeros_like(z).scatter_add(1, votes, torch.ones_like(votes, dtype=z.dtype))
        loss = zipf_ls(
            z,
            case.inputs["label"],
            scores,
            distribution=h["distribution"],
            power=h["power"],
            left_bound=h["left_bound"],
            right_bound=h["right_bound"],
            share_ties=h["dense"],
            correct_only=h["loss_mask"],
        )
        case.check(loss)
