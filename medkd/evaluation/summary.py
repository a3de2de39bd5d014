"""One arm by itself: a line of statistics per class."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from medkd.evaluation.cases import Row


@dataclass(frozen=True)
class Summary:
    """One arm, one class, one metric over all cases, folds and seeds.

    Args:
        arm: name of the arm.
        label: class name.
        metric: metric name; the numbers are in its unit.
        n: rows counted.
        absent: rows of a class that neither map has, not counted.
        mean: over rows.
        sd: standard deviation over rows (n - 1); NaN for a single row.
        median: over rows.
        q1: first quartile.
        q3: third quartile.
    """

    arm: str
    label: str
    metric: str
    n: int
    absent: int
    mean: float
    sd: float
    median: float
    q1: float
    q3: float

    def to_json(self) -> dict[str, object]:
        """Return plain values; None for numbers that do not exist."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def summarise(rows: Iterable[Row], metric: str) -> list[Summary]:
    """Return one line per arm and class, in the order of the rows.

    Raises:
        KeyError: a row was not measured by ``metric``.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.label), []).append(row.values[metric])
    return [_line(arm, label, metric, np.asarray(values, np.float64)) for (arm, label), values in groups.items()]


def _line(arm: str, label: str, metric: str, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Summary:
    there = values[np.isfinite(values)]
    absent = len(values) - len(there)
    if not len(there):
        return Summary(arm, label, metric, 0, absent, *[float("nan")] * 5)
    q1, median, q3 = (float(value) for value in np.quantile(there, (0.25, 0.5, 0.75)))
    sd = float(there.std(ddof=1)) if len(there) > 1 else float("nan")
    return Summary(arm, label, metric, len(there), absent, float(there.mean()), sd, median, q1, q3)
