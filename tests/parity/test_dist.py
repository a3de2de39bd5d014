"""DIST against the authors' released code: classification and segmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medkd.methods.logits.dist import DIST, dist, inter_class, intra_class
from medkd.types import IGNORE, Batch, View


def test_dist(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("dist"):
        s, t, tau = case.inputs["student_logits"], case.inputs["teacher_logits"], case.hyper["tau"]
        beta, gamma = case.hyper["beta"], case.hyper["gamma"]
        case.check(dist(s, t, tau, beta, gamma))
        p, q = torch.softmax(s / tau, 1), torch.softmax(t / tau, 1)
        case.near(tau**2 * inter_class(p, q), "inter")
        case.near(tau**2 * intra_class(p, q), "intra")
        batch = Batch(s, torch.full((len(s), *s.shape[2:]), IGNORE))
        method = DIST(temperature=tau, beta=beta, gamma=gamma, reduction="uniform")
        case.check(sum(method(View(s), View(t), batch).values()))
