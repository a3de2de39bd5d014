"""What rules measure: finite terms, gradients that arrive, numbers that agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medkd.conformance.play import BrokenRuleError, Played, Subject, play
from medkd.conformance.toys import blocky, scene
from medkd.methods.base import Method
from medkd.types import Batch

EXACT = 1e-3
"""Relative difference that rounding explains."""
LOOSE = 0.45
"""Relative difference that chance or the edge of a convolution explains, and a sum in place of a mean does not."""


def finite(played: Played) -> Played:
    """Refuse terms or gradients that are not finite."""
    for name, value in played.terms.items():
        if not math.isfinite(value):
            raise BrokenRuleError(f"the term of {name} is {value}")
    for turn in played.turns:
        gradients = [*turn.network, *turn.shown, *(g for g in turn.own.values() if g is not None)]
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            raise BrokenRuleError(f"the terms of {turn.player} are finite and their gradient is not")
    return played


def learns(played: Played) -> Played:
    """Refuse a round in which the student's networks gets no gradient."""
    if not any(bool((g != 0).any()) for turn in played.of("student") for g in turn.network):
        raise BrokenRuleError("no gradient reaches the student")
    return played


def half(subject: Subject, kind: torch.dtype) -> None:
    """Compare inputs of eight times the usual size in half precision with their equals in float32."""
    low = finite(play(subject, scene(), through=lambda x: (8 * x).to(kind)))
    full = play(subject, scene(), through=lambda x: (8 * x).to(kind).float())
    near(full.terms, low.terms, 0.01, "in half precision")


def student_terms(played: Played) -> dict[str, float]:
    """Return the terms of those who learn the task."""
    return {name: value for name, value in played.terms.items() if name.startswith(("student", "peer"))}


def near(a: Mapping[str, float], b: Mapping[str, float], tolerance: float, when: str, floor: float = 1e-3) -> None:
    """Refuse terms that differ by more than a share of the larger of them (or of ``floor``)."""
    if a.keys() != b.keys():
        raise BrokenRuleError(f"other terms {when}: {', '.join(sorted(a.keys() ^ b.keys()))}")
    for name, value in a.items():
        apart = abs(value - b[name])
        if not apart <= tolerance * max(abs(value), abs(b[name]), floor):
            raise BrokenRuleError(f"{name} is {value:.5g}, and {b[name]:.5g} {when}")


def noise_like(x: Tensor) -> Tensor:
    """Return other voxels of the same shape, louder."""
    return 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))


def set_up(subject: Subject) -> Method:
    """Return the method as it is in training."""
    return play(subject, scene(), rounds=1).method


def same(subject: Subject, change: Callable[[Batch], Batch], when: str) -> None:
    """Compare the learners' terms before and after a change of the batch that must not change them.

    Exactly where that is meant; roughly, on the mean of several seeds, where numbers are drawn at random or a
    convolution sees the edge.
    """
    batch = blocky(scene((8, 8, 12)))
    wide = any(max(kernel(module)) > 1 for module in set_up(subject).modules())
    tried = [play(subject, batch, seed=seed).terms for seed in range(4)]
    drawn = any(terms != tried[0] for terms in tried)
    seeds = range(6) if drawn else range(1)
    before, after = (mean([student_terms(play(subject, b, seed=s)) for s in seeds]) for b in (batch, change(batch)))
    loose = wide or drawn
    near(before, after, LOOSE if loose else EXACT, f"with {when}", 0.1 if loose else 1e-3)


def kernel(module: object) -> tuple[int, ...]:
    """Return the size over space of a convolution's kernel; of anything else 1."""
    size = getattr(module, "kernel_size", 1)
    return size if isinstance(size, tuple) else (int(size),)


def mean(terms: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each term."""
    return {name: sum(one[name] for one in terms) / len(terms) for name in terms[0]}
