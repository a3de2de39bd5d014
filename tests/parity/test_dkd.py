"""DKD against mdistiller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medkd.methods.logits.dkd import DKD, dkd, dkd_maps
from medkd.types import Batch, View


def test_dkd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("dkd"):
        s, t, label = (case.inputs[name] for name in ("student_logits", "teacher_logits", "label"))
        tau, alpha, beta = case.hyper["T"], case.hyper["alpha"], case.hyper["beta"]
        case.check(dkd(s, t, label, tau, alpha, beta))
        target, other = dkd_maps(s, t, label, tau)
        case.near(target.mean(), "tckd")
        case.near(other.mean(), "nckd")
        method = DKD(temperature=tau, alpha=alpha, beta=beta, reduction="uniform")
        case.check(sum(method(View(s), View(t), Batch(s, label)).values()))
