"""FitNets against the common one-stage hint loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.func import functional_call

from medkd.methods.features.fitnets import FitNets, fitnets
from medkd.types import Anatomy, Batch, Tap, View


def test_fitnets(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("fitnets"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        if "adapter.conv.weight" not in case.inputs:
            case.check(fitnets(s, t))
            continue
        stride = (1,) * (s.ndim - 2)
        method = FitNets(tap="x").double()
        method.setup(
            Anatomy({"x": Tap(s.shape[1], stride)}, 2, len(stride)),
            Anatomy({"x": Tap(t.shape[1], stride)}, 2, len(stride)),
        )
        method.double().regressors[0][0].bias.data.zero_()  # their regressor has none
        weights = {"regressors.0.0.weight": case.inputs["adapter.conv.weight"]}
        views = View(s[:, :2], {"x": s}), View(t[:, :2], {"x": t})
        case.check(functional_call(method, weights, (*views, Batch(s, s[:, 0].long())))["fitnets"])
