"""SP against RepDistiller: a mean over all pairs, factor 1; the method multiplies by the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medkd.methods.relations.sp import sp


def test_sp(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("sp"):
        case.check(sp(case.inputs["student_feat"], case.inputs["teacher_feat"]))
