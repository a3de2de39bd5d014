"""AFD against a public port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.func import functional_call

from medkd.methods.features.afd_attention_transfer import afd_attention_transfer, channel_attention


def test_afd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("afd_attention_transfer"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        net = channel_attention(t.shape[1], case.hyper["att_f"], s.ndim - 2).double()
        weights = {name: case.inputs[f"afd.attention.{name}"] for name, _ in net.named_parameters()}
        logits = functional_call(net, weights, (t.mean(list(range(2, t.ndim)), keepdim=True),)).flatten(1)
        positions = s.shape[2:].numel()  # the port takes the mean over positions, we the sum
        case.check(afd_attention_transfer(s, t, logits, case.hyper["eps"]) / positions)
