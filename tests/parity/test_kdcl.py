"""KDCL, which is `kd` towards the mean of all learners' logits, against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from medkd.methods.logits.kd import kd


def test_kdcl(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("kdcl"):
        weights = [case.inputs[f"student_W{i}"] for i in range(2)]
        z = [case.inputs["views"][:, i] @ w.T for i, w in enumerate(weights)]
        alpha, mean = case.hyper["alpha"], torch.stack(z).mean(0)
        for i, (own, weight) in enumerate(zip(z, weights, strict=True)):
            ce = F.cross_entropy(own, case.inputs["label"])
            loss = (1 - alpha) * ce + alpha * kd(own, mean, case.hyper["T"])
            case.near(loss, f"loss_student{i}")
            (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
            case.near(grad, f"grad_student_W{i}", 1e-4)
