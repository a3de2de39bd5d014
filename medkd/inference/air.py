"""Where a scan shows a body: windows of air alone need no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.plan import Plan
from medkd.data.volume import Volume

AIR_HU = -500.0
"""Below this a CT voxel counts as air; lung does too, but never fills a window without its walls and vessels."""


def body_mask(volume: Volume, plan: Plan, shape: Sequence[int], threshold: float | None = None) -> NDArray[np.bool_]:
    """Return the voxels of the prepared grid that are not air.

    Args:
        volume: canonical volume, ``(C, X, Y, Z)``, in its own units.
        plan: tells which channels are CT.
        shape: spatial shape of the prepared image.
        threshold: in the volume's units, for all channels; None for :data:`AIR_HU` in CT and Otsu's threshold in MR.

    Returns:
        ``(*S)`` bool: some channel lies above its threshold in the nearest voxel of the volume.
    """
    source = volume.array.shape[1:]
    near = [np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1) for n, m in zip(source, shape, strict=True)]
    mask = np.zeros(tuple(shape), bool)
    for channel, rule in zip(volume.array, plan.intensity, strict=True):
        values = channel[np.ix_(*near)]
        limit = threshold
        if limit is None:
            limit = AIR_HU if rule.kind == "ct" else otsu(values)
        mask |= values > limit
    return mask


def otsu(values: NDArray[Any]) -> float:
    """Return the threshold that parts ``values`` into two classes of least variance (Otsu 1979), in 256 bins.

    Reference:
        N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9, 1979.
    """
    low, high = (float(edge) for edge in np.percentile(values, (0, 99.5)))  # one bright voxel must not widen the bins
    if high <= low:
        return low
    counts, edges = np.histogram(np.clip(values, low, high), bins=256, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    apart = np.where((below > 0) & (above > 0), sums[:-1] / np.maximum(below, 1), 0.0)
    apart = apart - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = np.where((below > 0) & (above > 0), below.astype(float) * above * apart**2, -1.0)
    return float(edges[int(np.argmax(between)) + 1])
