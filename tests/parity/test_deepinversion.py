"""DeepInversion against released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medkd.methods.data_free.deepinversion import competition, statistics_gap, total_variation


def test_statistics(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("deepinversion"):
        if "first_bn_multiplier" in case.hyper:
            x = case.inputs
            gaps = [statistics_gap(x[f"bn_input{i}"], x[f"running_mean{i}"], x[f"running_var{i}"]) for i in range(2)]
            for i, gap in enumerate(gaps):
                case.near(gap, f"layer{i}")
            case.check(case.hyper["first_bn_multiplier"] * gaps[0] + gaps[1])


def test_prior(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("deepinversion"):
        if "tv_l1" in case.outputs:
            l1, l2 = total_variation(case.inputs["image"])
            case.near(l1, "tv_l1")
            case.near(l2, "tv_l2")
            case.check(l1 + l2)


def test_competition(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("deepinversion"):
        if "teacher_logits" in case.inputs:
            case.check(competition(case.inputs["student_logits"], case.inputs["teacher_logits"], case.hyper["T"]))
