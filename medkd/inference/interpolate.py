"""Probabilities of a few rows of the prepared grid, turned into rows of the output by linear interpolation.

Class by class with a running maximum. Where a class cannot win it is left out, without changing the answer: an
interpolated probability is a mean of its neighbours, and the winner has at least 1 / K.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medkd.data.preprocess import Restore, way_back


@dataclass(frozen=True)
class Taps:
    """Linear interpolation along one axis: output row ``i`` lies between two input rows.

    Args:
        low: ``(M,)`` int64, rising.
        high: ``(M,)`` int64.
        share: ``(M,)`` float32, what ``high`` adds.
    """

    low: Tensor
    high: Tensor
    share: Tensor

    def cut(self, rows: slice, first: int) -> Taps:
        """Return the taps of some output rows, in an input that begins with row ``first``."""
        return Taps(self.low[rows] - first, self.high[rows] - first, self.share[rows])

    def reach(self, box: slice) -> slice:
        """Return the output rows to which input rows of ``box`` contribute."""
        start = int(torch.searchsorted(self.high, box.start))
        return slice(start, max(int(torch.searchsorted(self.low, box.stop)), start))

    def between(self, array: Tensor, axis: int) -> Tensor:
        """Interpolate ``array`` along ``axis``."""
        same = len(self.low) == array.shape[axis] and not self.share.any()
        if same and torch.equal(self.low, torch.arange(len(self.low))):
            return array
        low, high, share = (part.to(array.device) for part in (self.low, self.high, self.share))
        shape = [-1 if a == axis else 1 for a in range(array.ndim)]
        return torch.lerp(array.index_select(axis, low), array.index_select(axis, high), share.view(shape))


def taps_back(restore: Restore) -> tuple[Taps, Taps, Taps]:
    """Return the taps from the prepared to the canonical grid, the numbers of ``restore_probabilities``."""

    def taps(operator: Any, size: int) -> Taps:
        low = high = np.arange(size)
        share = np.zeros(size)
        if operator is not None:
            rows = operator.sorted_indices()
            begin, end = rows.indptr[:-1], rows.indptr[1:] - 1
            low, high = (rows.indices[at].astype(np.int64) for at in (begin, end))
            share = np.where(low == high, 0, rows.data[end])
        return Taps(torch.from_numpy(low), torch.from_numpy(high), torch.from_numpy(share.astype(np.float32)))

    x, y, z = (taps(op, size) for op, size in zip(way_back(restore), restore.canonical_shape, strict=True))
    return x, y, z


def winners(planes: Tensor, along: Taps, across: tuple[Taps, Taps], *, certain: bool) -> Tensor:
    """Return the most probable class ``(m, Y, Z)`` int16.

    ``certain``: the scores of a voxel add up to one, so that classes can be ruled out.
    """
    boxes = _boxes(planes) if certain else {k: _whole(planes) for k in range(len(planes))}
    label = torch.zeros([len(t.low) for t in (along, *across)], dtype=torch.int16, device=planes.device)
    if 0 not in boxes or len(boxes) == 1:
        return label
    best = torch.full_like(label, torch.inf, dtype=torch.float32)  # where background is not compared, it has won
    reaches = {k: [t.reach(side) for t, side in zip((along, *across), box, strict=True)] for k, box in boxes.items()}
    for k, reach in reaches.items():
        both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(reach, reaches[0], strict=True)]
        for at, score in _interpolated(planes[k], along, across, both):
            top = best[at]
            if k == 0:
                top.copy_(score)
                continue
            label[at].masked_fill_(score > top, k)
            torch.maximum(top, score, out=top)
    return label


def kept(planes: Tensor, along: Taps, across: tuple[Taps, Taps], keep: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return probabilities ``(len(keep), m, Y, Z)``."""
    shape = [len(t.low) for t in (along, *across)]
    out = torch.empty([len(keep), *shape], dtype=dtype, device=planes.device)
    whole = tuple(slice(0, size) for size in shape)
    for place, k in enumerate(keep):
        for at, score in _interpolated(planes[k], along, across, whole):
            out[place][at] = (score * 255).round_() if dtype == torch.uint8 else score
    return out


def _interpolated(
    plane: Tensor, along: Taps, across: tuple[Taps, Taps], reach: Sequence[slice]
) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """Yield ``plane`` at the outputs of ``reach``: row by row on a CPU, where a row fits its cache, else at once."""
    if any(side.stop <= side.start for side in reach):
        return
    for axis, taps in reversed(tuple(enumerate(across, start=1))):
        low, high = int(taps.low[reach[axis]][0]), int(taps.high[reach[axis]][-1])
        plane = taps.cut(reach[axis], low).between(plane.narrow(axis, low, high + 1 - low), axis)
    mine = along.cut(reach[0], 0)
    if plane.device.type != "cpu":
        yield tuple(reach), mine.between(plane, 0)
        return
    for row, low, high, share in zip(
        range(reach[0].start, reach[0].stop), mine.low.tolist(), mine.high.tolist(), mine.share.tolist(), strict=True
    ):
        score = plane[low] if share == 0 else torch.lerp(plane[low], plane[high], share)
        yield (slice(row, row + 1), *reach[1:]), score[None]


def _boxes(planes: Tensor) -> dict[int, tuple[slice, ...]]:
    """Return the classes that are in question somewhere, with the box outside of which they are not.

    Another class than background can win only within reach of a probability of 1 / K, and not where background has half
    of it everywhere around.
    """
    hit = planes >= (1 - 1e-4) / len(planes)
    hit[0] = planes[0] < 0.5 + 1e-4
    lines = [line.cpu().numpy() for line in (hit.any(3).any(2), hit.any(3).any(1), hit.any(2).any(1))]
    found: dict[int, tuple[slice, ...]] = {}
    for k in range(len(planes)):
        spans = [np.flatnonzero(line[k]) for line in lines]
        if len(spans[0]):
            found[k] = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return found


def _whole(planes: Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in planes.shape[1:])
