"""What one set of pairs says, without words: difference, interval, tests, and the rule of the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medkd.evaluation.pairs import Pair
from medkd.evaluation.resample import bootstrap, cells
from medkd.evaluation.significance import above_p, signed_rank_p

Verdict = Literal["helped", "hurt", "not shown"]

MIN_PATIENTS = 6
"""The least for a verdict: with 5 patients no Wilcoxon test can reach p < 0.05 (its smallest p is 2 / 2**5)."""

MIN_CLASSES = 5
"""The least for an interval over classes: fewer are no sample of classes."""

LEVEL = 0.95
ALPHA = 0.05


@dataclass(frozen=True)
class Contrast:
    """What one set of pairs says, without words."""

    per_patient: NDArray[np.float64]
    drawn: NDArray[np.float64]
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    wilcoxon_p: float

    @property
    def enough(self) -> bool:
        """True where there are patients enough for a verdict."""
        return len(self.per_patient) >= MIN_PATIENTS

    def worst(self, better: float) -> float:
        """The end of the interval that speaks against arm a, as a gain (negative = loss)."""
        return self.ci_low if better > 0 else -self.ci_high


def compare(pairs: Iterable[Pair], draws: int, seed: int) -> Contrast:
    """Compare two arms by their pairs, with ``draws`` of the bootstrap."""
    listed = list(pairs)
    if not listed:
        return Contrast(np.empty(0), np.empty(0), *[float("nan")] * 6)
    table = cells(listed)
    per_patient = table.per_patient()
    drawn = bootstrap(table, draws, np.random.default_rng(seed))
    low, high = _ends(drawn)
    mean_a = cells(listed, lambda pair: pair.a).per_patient().mean()
    mean_b = cells(listed, lambda pair: pair.b).per_patient().mean()
    p = signed_rank_p(per_patient)
    return Contrast(per_patient, drawn, float(mean_a), float(mean_b), float(per_patient.mean()), low, high, p)


def _ends(drawn: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def over_classes(pairs: Iterable[Pair], draws: int, seed: int) -> tuple[float, float]:
    """Return the interval with classes resampled too; NaN where there are too few of them."""
    listed = list(pairs)
    if len({pair.label for pair in listed}) < MIN_CLASSES:
        return float("nan"), float("nan")
    return _ends(bootstrap(cells(listed), draws, np.random.default_rng(seed), classes=True))


def loss_p(found: Contrast, margin: float, better: float) -> float:
    """Return the one-sided p of a loss of ``margin`` or more; both tests must speak against it."""
    if not len(found.drawn):
        return 1.0
    # One is added above and below, so that no number of draws makes it 0.
    lost = (1 + int((better * found.drawn <= -margin).sum())) / (1 + len(found.drawn))
    return max(lost, above_p(better * found.per_patient, -margin))


def judge(found: Contrast, p: float, better: float) -> Verdict:
    """Return the verdict: both the interval and ``p`` must speak; ``better`` is 1, or -1 where less is better."""
    if not found.enough or not p < ALPHA:
        return "not shown"
    if found.worst(better) > 0:
        return "helped"
    return "hurt" if found.worst(-better) > 0 else "not shown"


def reason(found: Contrast, better: float) -> str:
    """Return why a comparison shows nothing."""
    if not found.enough:
        return f"fewer than {MIN_PATIENTS} patients"
    if max(found.worst(better), found.worst(-better)) <= 0:
        return "the interval includes 0"
    return f"Wilcoxon's p is not below {ALPHA}"
