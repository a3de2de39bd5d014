"""DML against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.methods.online.dml import DML, dml
from medkd.types import Batch, View


def test_one_direction(parity: Callable[[str], list[Any]]) -> None:
    case = next(c for c in parity("dml") if c.name == "peer_kl")
    s, peer = case.inputs["student_logits"], case.inputs["peer_logits"]
    case.check(dml(s, peer, case.hyper["T"], detach=False))  # the released module leaves detaching to its caller
    case.near(dml(s, peer, case.hyper["T"]), "loss")


def students(case: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Bias-free linear students, each with a view of its own: weights and logits."""
    weights = [case.inputs[f"student_W{i}"] for i in range(2)]
    return weights, [case.inputs["views"][:, i] @ w.T for i, w in enumerate(weights)]


def test_two_students(parity: Callable[[str], list[Any]]) -> None:
    case = next(c for c in parity("dml") if c.name == "linear_students")
    weights, z = students(case)
    label = case.inputs["label"]
    method = DML(temperature=case.hyper["T"], reduction="uniform")
    for i in range(2):
        loss = F.cross_entropy(z[i], label) + dml(z[i], z[1 - i], case.hyper["T"])
        case.near(loss, f"loss_student{i}")
        term = method(View(z[i]), View(z[1 - i]), Batch(z[i], label))["dml"]
        torch.testing.assert_close(loss, F.cross_entropy(z[i], label) + term)
        (grad,) = torch.autograd.grad(loss, weights[i], retain_graph=True)
        case.near(grad, f"grad_student_W{i}", 1e-4)
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(dml(z[i], z[1 - i], case.hyper["T"]), weights[1 - i], retain_graph=True)
