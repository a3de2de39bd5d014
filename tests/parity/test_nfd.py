"""NFD against a public port, whose reduction is brought to ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medkd.methods.features.nfd import nfd


def test_nfd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("nfd"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        if "adapter.conv1x1.weight" in case.inputs:
            conv = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[s.ndim - 3]
            s = conv(s, case.inputs["adapter.conv1x1.weight"], case.inputs["adapter.conv1x1.bias"])
        loss, n = nfd(s, t, case.hyper["eps"]), t[0, 0].numel()
        case.near(loss, "clean_value")
        # theirs: unbiased deviations, norm of the difference over the whole batch in place of mean of squares, over N
        case.check(torch.sqrt(loss * t.numel() * (n - 1) / n) / n)
