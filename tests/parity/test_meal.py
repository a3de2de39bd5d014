"""MEAL against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from medkd.methods.multi_teacher.meal import discriminator_loss, meal

KINDS = {"similarity_cross_entropy": "ce", "similarity_l1_soft": "l1", "similarity_l2_soft": "l2"}


def test_similarity(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("meal"):
        if "gamma" in case.hyper:
            blocks = range(len(case.hyper["gamma"]))
            s, t = ([case.inputs[f"{who}_out{i}"] for i in blocks] for who in ("student", "teacher"))
            case.check(meal(s, t, case.hyper["gamma"], KINDS[case.name]))


def test_discriminator(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("meal"):
        if "eta" in case.hyper:
            x, terms = case.inputs, []
            for i, eta in enumerate(case.hyper["eta"]):
                s, t = (
                    F.linear(x[f"{who}_out{i}"], x[f"disc{i}.weight"], x[f"disc{i}.bias"])
                    for who in ("student", "teacher")
                )
                terms.append(eta * discriminator_loss(s, t))
            case.check(torch.stack(terms).sum())
