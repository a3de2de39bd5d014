"""What was lost: the Dice of each class where it is small, medium or large, by arm."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from medkd.evaluation.cases import Row

SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class SizeGroup:
    """One class in the cases where it has a certain size.

    Args:
        label: class name.
        size: one of :data:`SIZES`: the thirds of the class's reference volumes, as many cases in each.
        cases: case ids.
        low_ml: smallest reference volume.
        high_ml: largest reference volume.
        means: arm -> mean Dice over the cases, of each the mean over seeds; only arms that have all of the cases.
    """

    label: str
    size: str
    cases: tuple[str, ...]
    low_ml: float
    high_ml: float
    means: Mapping[str, float]


def by_size(arms: Mapping[str, Iterable[Row]], metric: str = "dice") -> list[SizeGroup]:
    """Sort the cases of each class into thirds by reference volume and average each arm over them.

    A case without the class in its reference has no size and is left out. A class with fewer than three cases has no
    thirds and is left out too.

    Args:
        arms: name -> rows. The first arm says which cases there are.
        metric: what is averaged.
    """
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    volumes: dict[str, dict[str, float]] = defaultdict(dict)
    for arm, rows in arms.items():
        of_arm: dict[str, dict[str, list[float]]] = values.setdefault(arm, defaultdict(lambda: defaultdict(list)))
        for row in rows:
            value = row.values.get(metric, math.nan)
            if row.voxels_ref > 0 and math.isfinite(value):
                of_arm[row.label][row.case].append(value)
                volumes[row.label][row.case] = row.volume_ref_ml
    first = next(iter(values.values()), {})
    found = []
    for label, of_case in first.items():
        cases = sorted(of_case, key=lambda case: (volumes[label][case], case))
        if len(cases) < len(SIZES):
            continue
        for size, third in zip(SIZES, np.array_split(np.array(cases, dtype=object), len(SIZES)), strict=True):
            inside = tuple(str(case) for case in third)
            means = {
                arm: fmean(fmean(by_label[label][case]) for case in inside)
                for arm, by_label in values.items()
                if all(case in by_label[label] for case in inside)
            }
            sizes = [volumes[label][case] for case in inside]
            found.append(SizeGroup(label, size, inside, min(sizes), max(sizes), means))
    return found
