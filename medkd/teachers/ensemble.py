"""Several networks that speak with one voice: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-6
"""Smallest probability of a target: below it, float16 keeps no digits and a logarithm no meaning."""


def to_logits(probabilities: Tensor, *, regions: bool = False) -> Tensor:
    """Return probabilities ``(B, K, *S)`` as logits in float32: their logarithm, floored.

    For overlapping regions the log-odds, since each region is a distribution of its own.
    """
    p = probabilities.float()
    return torch.logit(p.clamp(FLOOR, 1 - FLOOR)) if regions else p.clamp_min(FLOOR).log()


def fuse(logits: Sequence[Tensor], *, regions: bool = False) -> Tensor:
    """Return the logits ``(B, K, *S)`` of the mean probability of several networks.

    For overlapping regions the mean is taken of each region's own probability.
    """
    if len(logits) == 1:
        return logits[0]
    if regions:
        return to_logits(torch.stack([torch.sigmoid(z.float()) for z in logits]).mean(0), regions=True)
    return to_logits(torch.stack([F.softmax(z.float(), dim=1) for z in logits]).mean(0))
