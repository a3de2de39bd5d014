"""IFVD against the released code, which counts voxels without a label as zero: ours times the labelled share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from medkd.methods.relations.ifvd import IFVD, ifvd
from medkd.types import IGNORE, Batch, View


def test_ifvd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("ifvd"):
        s, t, label = (case.inputs[name] for name in ("student_feat", "teacher_feat", "label"))
        # the release takes the first voxel of each cell, where our label_to takes the middle one
        label = F.interpolate(label.unsqueeze(1).double(), s.shape[2:], mode="nearest").squeeze(1).long()
        label = torch.where(label == case.hyper["ignore"], IGNORE, label)
        share, classes = (label != IGNORE).double().mean(), case.hyper["classes"]
        case.check(ifvd(s, t, label, classes, eps=case.hyper["eps"]) * share)
        logits = torch.zeros(len(s), classes, *s.shape[2:])
        views = View(logits, {"dec0": s}), View(logits, {"dec0": t})
        case.check(IFVD(reduction="uniform", least=1)(*views, Batch(logits, label))["ifvd"] * share)
