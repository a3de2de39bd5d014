"""OKDPH against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medkd.methods.online.okdph import fuse, hybrid, okdph


def test_two_students(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("okdph"):
        h = case.hyper
        weights = [{"W": case.inputs[f"student_W{i}"]} for i in range(2)]
        mixed = hybrid(weights, [0.5, 0.5])
        case.near(mixed["W"], "hwm_W")
        z = [case.inputs["views"][:, i] @ w["W"].T for i, w in enumerate(weights)]
        told = case.inputs["views"][:, 2] @ mixed["W"].detach().T  # the release copies: no gradient
        ensemble = torch.stack([*z, told]).mean(0)
        for i, w in enumerate(weights):
            loss = okdph(
                z[i], told, ensemble, case.inputs["label"], omega=h["omega"], beta=h["beta"], temperature=h["T"]
            )
            case.near(loss, f"loss_student{i}")
            (grad,) = torch.autograd.grad(loss, w["W"], retain_graph=True)
            case.near(grad, f"grad_student_W{i}", 1e-4)
            case.near(fuse(w, mixed, h["gamma"])["W"], f"student_W{i}_after_fusion")
