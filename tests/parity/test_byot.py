"""BYOT against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from medkd.methods.self_distillation.byot import byot, feature_term, soft_term


def test_byot(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("byot"):
        x, h = case.inputs, case.hyper
        exits = range(h["exits"])
        adapted = {
            i: F.linear(x[f"feature{i}"], x[f"adapt{i - 1}.weight"], x[f"adapt{i - 1}.bias"]) for i in exits if i
        }
        features = [(adapted[i], x["feature0"]) for i in exits if i > 1]  # the release skips the first of them
        logits = [x[f"logits{i}"] for i in exits]
        options = {"alpha": h["alpha"], "temperature": h["T"], "feature_weight": h["feature_weight"]}
        loss = byot(logits, x["label"], features=features, **options)
        case.check(loss)
        # the terms of the method: KL with the square of the temperature, mean squares in place of norms
        p = torch.softmax(logits[0].detach() / h["T"], 1)
        entropy = -(p * p.log()).sum(1).mean()
        ours = F.cross_entropy(logits[0], x["label"])
        for z in logits[1:]:
            soft = soft_term(z, logits[0], h["T"]) / h["T"] ** 2 + entropy
            ours = ours + (1 - h["alpha"]) * F.cross_entropy(z, x["label"]) + h["alpha"] * soft
        for own, last in features:
            ours = ours + h["feature_weight"] * (feature_term(own, last) * own.numel()).sqrt()
        case.check(ours)
