"""The noisy teacher against KD_Lib's perturbation, with its draws given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from medkd.methods.logits.noisy_teacher import noisy_teacher, perturb


def test_noisy_teacher(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("noisy_teacher"):
        noise = math.sqrt(case.hyper["variance"]) * case.inputs["noise"]
        case.near(perturb(case.inputs["teacher_logits"], noise), "noisy_teacher_logits")
        # they take the mean of squares, we half of it
        case.check(2 * noisy_teacher(case.inputs["student_logits"], case.inputs["teacher_logits"], noise))
