"""ReviewKD against the authors' released code: fusion of three stages, and the loss of one pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import functional_call

from medkd.methods.features.reviewkd import ReviewKD, hcl, review
from medkd.types import Anatomy, Batch, Tap, View

THEIRS = {
    "inside": "conv1.0",
    "inside_norm.norm": "conv1.1",
    "gates": "att_conv.0",
    "outside": "conv2.0",
    "outside_norm.norm": "conv2.1",
}


def test_hcl(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("reviewkd"):
        if "student_feat" in case.inputs:
            case.check(hcl(case.inputs["student_feat"], case.inputs["teacher_feat"], case.hyper["pool_levels"]))


def test_review(parity: Callable[[str], list[Any]]) -> None:
    for case in parity("reviewkd"):
        if "student_stage0" not in case.inputs:
            continue
        names = [f"stage{i}" for i in range(len(case.hyper["student_sizes"]))]
        student = {n: case.inputs[f"student_{n}"] for n in names}
        teacher = {n: case.inputs[f"teacher_{n}"] for n in names}
        dims = student["stage0"].ndim - 2
        method = ReviewKD(
            tap=names, width=case.hyper["mid_channels"], levels=case.hyper["pool_levels"], norm="batch"
        ).double()
        anatomies = [
            Anatomy({n: Tap(x.shape[1], (1,) * dims) for n, x in taps.items()}, 2, dims) for taps in (student, teacher)
        ]
        method.setup(*anatomies)
        method.double()
        # their list of fusions begins with the deepest
        weights = case.weights(
            method,
            {
                f"fusions.{i}.{ours}": f"abfs.{len(names) - 1 - i}.{theirs}"
                for i in range(len(names))
                for ours, theirs in THEIRS.items()
            },
        )
        logits = student["stage0"][:, :2]
        terms = functional_call(method, weights, (View(logits, student), View(logits, teacher), Batch(logits, None)))
        case.check(terms["reviewkd"])

        def fusion(i: int, method: Any = method, weights: Any = weights) -> Callable[..., tuple[Tensor, Tensor]]:
            own = {k.removeprefix(f"fusions.{i}."): v for k, v in weights.items() if k.startswith(f"fusions.{i}.")}
            return lambda *args: functional_call(method.fusions[i], own, args)

        outs = review(
            list(student.values()),
            [fusion(i) for i in range(len(names))],
            [x.shape[2:] for x in teacher.values()],
        )
        for name, out in zip(names, outs, strict=True):
            case.near(out, f"abf_out_{name}")
            case.near(hcl(out, teacher[name], case.hyper["pool_levels"]), f"hcl_{name}")
