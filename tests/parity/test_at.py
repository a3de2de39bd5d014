"""Attention transfer against the authors' released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from medkd.methods.features.at import at


def test_at(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("at"):
        s, t = case.inputs["student_feat"], case.inputs["teacher_feat"]
        case.check(at(s, t, case.hyper["p"], form="mean"))
        # our own form is the sum over the voxels of a map, and still the mean over the batch
        voxels = min(s[0, 0].numel(), t[0, 0].numel())
        assert at(s, t, case.hyper["p"]).item() == pytest.approx(case.outputs["loss"].item() * voxels, rel=1e-5)
