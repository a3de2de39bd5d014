"""Tests and effect sizes on one number per patient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon


def signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are left out, and 1 when nothing else is there."""
    # equal numbers differ by rounding once they are means; such a patient says nothing
    told = differences[np.abs(differences) > 1e-12]
    return float(wilcoxon(told).pvalue) if len(told) else 1.0


def above_p(gains: NDArray[np.float64], bound: float) -> float:
    """One-sided p of Wilcoxon's signed-rank test that gains lie above ``bound``; 1 when none differs from it."""
    told = (gains - bound)[np.abs(gains - bound) > 1e-12]
    return float(wilcoxon(told, alternative="greater").pvalue) if len(told) else 1.0


def effect_size(gains: NDArray[np.float64]) -> float:
    """Mean over standard deviation (Cohen's d of paired data); NaN without spread."""
    spread = float(gains.std(ddof=1)) if len(gains) > 1 else float("nan")
    return float(gains.mean()) / spread if spread > 0 else float("nan")


def probability_better(gains: NDArray[np.float64]) -> float:
    """Share of gains above 0, ties by half; NaN for none."""
    return float(np.mean((gains > 0) + 0.5 * (gains == 0))) if len(gains) else float("nan")


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method; NaN stays and does not count.

    Reference: Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scand. J. Statistics 6 (1979).
    """
    order = sorted((at for at, value in enumerate(p) if math.isfinite(value)), key=lambda at: p[at])
    corrected, so_far = list(p), 0.0
    for rank, at in enumerate(order):
        so_far = max(so_far, min(1.0, p[at] * (len(order) - rank)))
        corrected[at] = so_far
    return corrected
