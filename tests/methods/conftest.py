"""What tests of methods with several players share: a table at which tiny networks sit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from medkd.conformance import toys
from medkd.methods.base import Method
from medkd.networks.taps import Tapped
from medkd.training.round import Table


@pytest.fixture
def seat() -> Callable[..., Table]:
    """Return ``seat(method, peers=1, teachers=1)``: sets the method up and deals a batch of noise."""

    def make(
        method: Method, *, peers: int = 0, teachers: int = 1, size: Sequence[int] = (8, 8), classes: int = 3
    ) -> Table:
        batch = toys.scene(size, classes)
        blank = torch.zeros(1, *batch.image.shape[1:])
        learners = {"student": Tapped(toys.student(len(size), classes), blank)}
        learners |= {f"peer{i}": Tapped(toys.student(len(size), classes, seed=i), blank) for i in range(1, peers + 1)}
        frozen = [Tapped(toys.teacher(len(size), classes, seed=i), blank) for i in range(teachers)]
        method.setup(learners["student"].anatomy, Tapped(toys.teacher(len(size), classes), blank).anatomy)
        table = Table(learners, frozen, method.taps(), method.teacher_taps())
        table.deal(batch, 0.0)
        return table

    return make
