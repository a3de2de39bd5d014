"""Tiny networks and batches, for trainings of a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.methods.base import Method, Sum, Weight
from medkd.training.fit import Fit, Trainer
from medkd.training.settings import Settings
from medkd.types import Batch


class Run:
    """A training that can be started several times on one folder."""

    size = (8, 8, 8)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []

    @staticmethod
    def tiny(seed: int = 0, *, dropout: float = 0.0, norm: bool = False, width: int = 4) -> nn.Module:
        """Return a network of two convolutions for two classes."""
        torch.manual_seed(seed)
        middle: list[nn.Module] = [nn.BatchNorm3d(width)] if norm else []
        middle += [nn.Dropout3d(dropout)] if dropout else []
        return nn.Sequential(nn.Conv3d(1, width, 3, padding=1), *middle, nn.Tanh(), nn.Conv3d(width, 2, 1))

    @classmethod
    def batch(cls, index: int, count: int = 2) -> Batch:
        """Return the batch of one step: noise, labelled where it is bright."""
        image = torch.randn(count, 1, *cls.size, generator=torch.Generator().manual_seed(index))
        return Batch(image, (image[:, 0] > 0.5).long(), tuple(f"case{index}.{i}" for i in range(count)))

    @classmethod
    def batches(cls, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps ``start`` to ``stop``."""
        return (cls.batch(i) for i in range(start, stop))

    @classmethod
    def score(cls, network: nn.Module) -> dict[str, float]:
        """Return the share of voxels that are right on a batch of its own."""
        assert not network.training
        assert not torch.is_grad_enabled()
        batch = cls.batch(10_000)
        right: Tensor = network(batch.image).argmax(1) == batch.label
        return {"dice": float(right.float().mean())}

    @staticmethod
    def total(**methods: Method | tuple[Method, Weight]) -> Sum:
        """Return the sum of methods, at weight 1 where none is given."""
        pairs = {name: m if isinstance(m, tuple) else (m, Weight.constant(1.0)) for name, m in methods.items()}
        return Sum(pairs)

    def trainer(self, learners: nn.Module | dict[str, nn.Module], method: Sum, **options: Any) -> Trainer:
        """Return a trainer; ``options`` are those of Settings, and ``teachers``, ``image_shape`` and ``folder``."""
        learners = {"student": learners} if isinstance(learners, nn.Module) else learners
        own: dict[str, Any] = {"image_shape": (1, *self.size), "folder": self.folder}
        own |= {name: options.pop(name) for name in ("teachers", "image_shape", "folder") if name in options}
        defaults = {"steps": 6, "validate_every": 3, "log_every": 1, "device": "cpu", "lr": 0.01}
        return Trainer(learners, method, settings=Settings(**(defaults | options)), **own)

    def fit(
        self,
        trainer: Trainer,
        batches: Callable[[int, int], Iterator[Batch]] | None = None,
        score: Callable[[nn.Module], dict[str, Any]] | None = None,
    ) -> Fit:
        """Train; what it says on the way is added to ``events``."""
        return trainer.fit(batches or self.batches, score or self.score, self.events.append)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a training on a folder of its own."""
    return Run(tmp_path / "run")
