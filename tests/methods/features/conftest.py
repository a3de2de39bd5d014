"""What tests of feature methods share: numbers, and anatomies of given channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from medkd.types import IGNORE, Anatomy, Batch, Tap, View


@pytest.fixture
def rand() -> Callable[..., Tensor]:
    """Return a maker of float64 noise: ``rand(*shape, seed=...)``."""

    def make(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return make


@pytest.fixture
def anatomy() -> Callable[..., Anatomy]:
    """Return a maker of anatomies: ``anatomy({"bottleneck": 6}, dims=2, stride=1)``."""

    def make(channels: Mapping[str, int], dims: int = 2, stride: int = 1) -> Anatomy:
        return Anatomy({name: Tap(c, (stride,) * dims) for name, c in channels.items()}, 3, dims)

    return make


@pytest.fixture
def shown() -> Callable[..., tuple[View, View, Batch]]:
    """Return a maker of both views and the batch from two taps: ``shown(student, teacher, trust)``."""

    def make(s: Tensor, t: Tensor, trust: Tensor | None = None, tap: str = "bottleneck") -> tuple[View, View, Batch]:
        logits = torch.zeros(len(s), 3, *[2 * n for n in s.shape[2:]])
        batch = Batch(logits[:, :1], torch.full((len(s), *logits.shape[2:]), IGNORE))
        return View(logits, {tap: s}), View(logits, {tap: t}, trust), batch

    return make
