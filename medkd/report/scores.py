"""Means over seeds, classes and cases, read from the rows once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from medkd.report.summary import Row

_FACTS = {"arm", "stage", "fold", "seed", "case", "patient", "label"}
_COUNTS = ("voxels", "volume_ref", "volume_pred", "spacing")


class Scores:
    """The measured values of a run.

    A value is the mean over seeds for one (arm, class, case); a case's mean is over the classes measured in
    it; an arm's mean is over patients and within a patient over cases, as in the paired tests, so that every
    patient weighs the same. A missing value (class in neither mask) takes no part.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        seeds: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._patient: dict[str, str] = {}
        metrics: dict[str, None] = {}
        labels: dict[str, None] = {}
        for row in rows:
            label = str(row["label"])
            labels[label] = None
            self._patient[str(row["case"])] = str(row.get("patient") or row["case"])
            values = seeds[label, str(row["arm"]), str(row["case"])]
            for name, value in row.items():
                if name in _FACTS or name.startswith(_COUNTS):
                    continue
                if isinstance(value, int | float) and not isinstance(value, bool):
                    metrics[name] = None
                    if math.isfinite(value):
                        values[name].append(float(value))
        self.metrics: tuple[str, ...] = tuple(metrics)
        self.labels: tuple[str, ...] = tuple(labels)
        self._values: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
        for (label, arm, case), found in seeds.items():
            for name, numbers in found.items():
                self._values[arm, name, label][case] = fmean(numbers)

    def by_case(self, arm: str, metric: str, label: str) -> dict[str, float]:
        """Return case -> value of one class, mean over seeds."""
        return dict(self._values.get((arm, metric, label), {}))

    def case_means(self, arm: str, metric: str) -> dict[str, float]:
        """Return case -> mean over the classes measured in it."""
        found: dict[str, list[float]] = defaultdict(list)
        for label in self.labels:
            for case, value in self._values.get((arm, metric, label), {}).items():
                found[case].append(value)
        return {case: fmean(values) for case, values in found.items()}

    def mean(self, arm: str, metric: str, label: str | None = None) -> float | None:
        """Return the mean over patients, of one class or of all; None where nothing was measured."""
        values = self.case_means(arm, metric) if label is None else self.by_case(arm, metric, label)
        patients: dict[str, list[float]] = defaultdict(list)
        for case, value in values.items():
            patients[self._patient[case]].append(value)
        return fmean(fmean(of) for of in patients.values()) if patients else None

    def cases(self, arm: str) -> int:
        """Return the number of cases with any value."""
        return len({case for (name, _, _), of in self._values.items() if name == arm for case in of})

    def patients(self) -> int:
        """Return the number of patients in all rows."""
        return len(set(self._patient.values()))
