"""RKD against the authors' code: factor 1, degenerate pairs and triplets counted as there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medkd.methods.relations.rkd import rkd_angle, rkd_distance


def test_rkd(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("rkd"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        distance, angle = rkd_distance(s, t), rkd_angle(s, t)
        case.near(distance, "distance")
        case.near(angle, "angle")
        case.check(case.hyper["w_distance"] * distance + case.hyper["w_angle"] * angle)
