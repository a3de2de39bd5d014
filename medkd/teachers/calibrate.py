"""Temperature scaling: one number a teacher, so that its probabilities mean what they say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.optimize import minimize_scalar

Array = NDArray[Any]

MARGIN = 2
"""Voxels around the foreground that count too."""
PER_CASE = 20_000
"""Voxels drawn from one case, so that a large scan does not speak for all."""
BINS = 15
LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are looked at."""
FLOOR = 1e-6
"""As of a stored target: below it a logarithm has no meaning."""


@dataclass(frozen=True)
class Temperature:
    """What was found about a teacher's probabilities, on voxels in and around the foreground.

    Args:
        value: the temperature; above 1 the teacher was too sure of itself. 1 where nothing could be fitted.
        ece_before: expected calibration error of the most likely class, in [0, 1], 15 bins of equal width.
        ece_after: the same with the temperature.
        nll_before: mean negative log-likelihood of the label, in nats.
        nll_after: the same with the temperature.
        voxels: how many were used.
        cases: from how many cases.
        note: where they are from, or why nothing was fitted.
    """

    value: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    voxels: int
    cases: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data; what was not measured is null."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def not_fitted(why: str) -> Temperature:
    """Return a temperature of 1 that nothing supports."""
    return Temperature(1.0, math.nan, math.nan, math.nan, math.nan, 0, 0, why)


def fit_temperature(answers: Iterable[tuple[Array, Array]], *, seed: int = 0, note: str = "") -> Temperature:
    r"""Fit the temperature :math:`T` that makes :math:`p^{1/T}`, normalised, most likely.

    The likelihood is that of the labels of voxels within :data:`MARGIN` voxels of the foreground, the label's or the
    answer's. All other background is left out: there is so much of it, and it is so easy, that it would decide alone.
    Within the region every voxel counts once, whatever its class, since a weight by class would change the shares
    of the classes and with them what calibrated means. The margin matters: without it, background would count only
    where the teacher takes it for foreground, and every teacher would look too sure of itself.

    Args:
        answers: probabilities ``(K, *S)`` and label ``(*S)`` of each case, which the teacher must not have learned
            from; negative labels are unknown and skipped.
        seed: of the draw of :data:`PER_CASE` voxels a case.
        note: where the cases are from.

    Reference: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, arXiv:1706.04599.
    """
    logs, labels, cases = [], [], 0
    for number, (probabilities, label) in enumerate(answers):
        inside = np.flatnonzero(foreground_region(probabilities, label))
        if len(inside) > PER_CASE:
            inside = np.random.default_rng([seed, number]).choice(inside, PER_CASE, replace=False)
        if not len(inside):
            continue
        flat = np.asarray(probabilities.reshape(len(probabilities), -1)[:, inside], np.float64)
        logs.append(np.log(np.maximum(flat, FLOOR)))
        labels.append(label.reshape(-1)[inside])
        cases += 1
    if not logs:
        return not_fitted("no labelled foreground to fit on")
    log_p, truth = np.concatenate(logs, 1), np.concatenate(labels)

    def loss(log_temperature: float) -> float:
        return _nll(log_p / math.exp(log_temperature), truth)

    bounds = (math.log(LOWEST), math.log(HIGHEST))  # convex in 1/T, so there is one lowest point between them
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    value = round(math.exp(float(found.x)), 4)
    before, after = _softmax(log_p), _softmax(log_p / value)
    return Temperature(
        value,
        expected_error(before, truth),
        expected_error(after, truth),
        loss(0.0),
        loss(math.log(value)),
        len(truth),
        cases,
        note,
    )


def foreground_region(probabilities: Array, label: Array) -> NDArray[np.bool_]:
    """Return the labelled voxels ``(*S)`` within :data:`MARGIN` voxels of foreground, the label's or the answer's."""
    foreground = (label > 0) | (np.asarray(probabilities).argmax(0) > 0)
    near: NDArray[np.bool_] = maximum_filter(foreground, size=2 * MARGIN + 1, mode="constant", cval=False)
    return near & (label >= 0)


def temper(probabilities: Array, temperature: float) -> Array:
    """Return ``probabilities`` ``(K, *S)`` at a temperature: each to the power ``1 / temperature``, normalised."""
    if temperature == 1.0:
        return probabilities
    return _softmax(np.log(np.maximum(probabilities, FLOOR, dtype=np.float32)) / np.float32(temperature))


def expected_error(probabilities: Array, label: Array) -> float:
    """Return the expected calibration error of the most likely class: ``(K, N)`` and ``(N,)`` -> [0, 1]."""
    confidence, right = probabilities.max(0), probabilities.argmax(0) == label
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float(confidence[place == b].sum() - right[place == b].sum())) for b in range(BINS)]
    return sum(gaps) / len(label)


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(0, keepdims=True))
    return np.asarray(shifted / shifted.sum(0, keepdims=True))


def _nll(logits: Array, label: Array) -> float:
    top = logits.max(0)
    norm = top + np.log(np.exp(logits - top).sum(0))
    return float((norm - logits[label, np.arange(len(label))]).mean())
