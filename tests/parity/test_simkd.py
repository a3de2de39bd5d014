"""SimKD against the authors' released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.func import functional_call

from medkd.methods.features.fitnets import coarser
from medkd.methods.features.simkd import Projector, simkd
from medkd.methods.ops import resize_to


def test_simkd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("simkd"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        projector = Projector(s.shape[1], t.shape[1], s.ndim - 2, squeeze=case.hyper["factor"]).double()
        theirs = {f"layers.{i}": f"simkd.transfer.{i}" for i in (0, 3, 6)}
        theirs |= {f"layers.{i}.norm": f"simkd.transfer.{i}" for i in (1, 4, 7)}
        size = coarser(s, t)
        projected = functional_call(projector, case.weights(projector, theirs), (resize_to(s, size),))
        case.near(projected, "projected")
        case.check(simkd(projected, resize_to(t, size)))
        # their head is linear, on the mean over space
        head = case.inputs["teacher_head.weight"], case.inputs["teacher_head.bias"]
        case.near(projected.flatten(2).mean(2) @ head[0].T + head[1], "student_logits")
