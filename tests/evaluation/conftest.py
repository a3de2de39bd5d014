"""Made-up rows of two arms with a known effect."""

from collections.abc import Callable

import numpy as np
import pytest

from medkd.evaluation.cases import Row

Arms = tuple[list[Row], list[Row]]


@pytest.fixture
def arms() -> Callable[..., Arms]:
    return make_arms


def make_arms(
    rng: np.random.Generator,
    shift: float = 0.0,
    *,
    patients: int = 40,
    seeds: int = 3,
    classes: int = 2,
    noise: float = 0.02,
    metric: str = "dice",
    level: float = 0.8,
) -> Arms:
    """Two arms, the first better by ``shift`` in truth; hard patients are hard for both."""
    base = level + 0.1 * level * rng.standard_normal((patients, 1, classes))
    shape = (patients, seeds, classes)
    both = base + shift + noise * rng.standard_normal(shape), base + noise * rng.standard_normal(shape)
    return _rows("student", both[0], metric), _rows("student.control", both[1], metric)


def _rows(arm: str, values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", metric: str) -> list[Row]:
    return [
        Row(arm, "student", p % 5, s, f"case{p}", f"patient{p}", f"organ{k}", {metric: float(values[p, s, k])}, 10, 10)
        for p, s, k in np.ndindex(values.shape)
    ]
