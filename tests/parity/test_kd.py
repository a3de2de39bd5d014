"""KD against the released code of four projects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medkd.methods.logits.kd import kd


def test_kd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("kd"):
        student, teacher, temperature = case.inputs["student_logits"], case.inputs["teacher_logits"], case.hyper["T"]
        loss = kd(student, teacher, temperature)
        if case.name == "voxel_2d_ifvd_skd":  # a mean over classes too, and no T^2: clean = theirs * K * T^2
            loss = loss / (student.shape[1] * temperature**2)
        case.check(loss)
