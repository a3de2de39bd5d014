"""CWD against the authors' released code, on logits and on a feature through its adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.func import functional_call

from medkd.methods.logits.cwd import CWD, cwd
from medkd.types import Anatomy, Batch, Tap, View

Cases = Callable[[str], list[Any]]


def test_cwd_of_logits(parity: Cases) -> None:
    for case in parity("cwd"):
        if case.name.startswith("logits"):
            case.check(cwd(case.inputs["student_logits"], case.inputs["teacher_logits"], case.hyper["tau"]))


def test_cwd_of_a_tap(parity: Cases) -> None:
    for case in parity("cwd"):
        if not case.name.startswith("feature"):
            continue
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        stride = (1,) * (s.ndim - 2)
        method = CWD(temperature=case.hyper["tau"], tap="x")
        method.setup(
            Anatomy({"x": Tap(s.shape[1], stride)}, 2, len(stride)),
            Anatomy({"x": Tap(t.shape[1], stride)}, 2, len(stride)),
        )
        views = View(s[:, :2], {"x": s}), View(t[:, :2], {"x": t})
        loss = functional_call(
            method, case.weights(method, {"adapter": "adapter"}), (*views, Batch(s, s[:, 0].long()))
        )["cwd"]
        # they divide by the student's channels, before the adapter; we take the mean over the teacher's
        case.check(loss * t.shape[1] / s.shape[1])
