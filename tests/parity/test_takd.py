"""One step of a chain of assistants is `supervised` plus `kd`: against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from medkd.methods.logits.kd import kd


def test_takd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("takd"):
        s, t, share = case.inputs["student_logits"], case.inputs["teacher_logits"], case.hyper["lambda_"]
        # the release takes the mean over classes too, which makes its KL smaller by their number
        soft = kd(s, t, case.hyper["T"]) / s.shape[1]
        case.check((1 - share) * F.cross_entropy(s, case.inputs["label"]) + share * soft)
