"""From windows to the original grid in one stream: no class ever stands at full size.

Finished rows of the prepared grid are turned into probabilities, and the rows of the output that lie between them are
filled at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkd.data.preprocess import Restore
from medkd.inference.grid import Grid, lay_grid
from medkd.inference.heads import Deferred, Network
from medkd.inference.interpolate import Taps, kept, taps_back, winners
from medkd.inference.window import vote

Seconds = dict[str, float]
FREE_SHARE = 0.5
"""Share of the free memory that blending may take before an image is done in parts."""


@torch.inference_mode()
def predict_back(
    networks: Sequence[Network],
    image: Tensor,
    restore: Restore,
    *,
    classes: int,
    patch: Sequence[int],
    overlap: float = 0.5,
    batch: int | None = None,
    device: torch.device | str | None = None,
    accumulate: torch.device | str | None = None,
    body: Tensor | None = None,
    memory_mb: float | None = None,
    keep: Sequence[int] | None = None,
    dtype: str = "uint8",
    seconds: Seconds | None = None,
) -> NDArray[Any]:
    """Predict a prepared image and answer on the canonical grid.

    Args:
        networks: one, or several that vote with the mean of their probabilities.
        image: ``(C, *S)`` from :func:`medkd.data.preprocess.prepare_image`.
        restore: the way back that came with it.
        classes: ``K``.
        patch: window size along ``*S``, voxels.
        overlap: share of a window that its neighbour covers.
        batch: windows per forward; None for one on a CPU and a few on a GPU.
        device: where the networks run; None for where ``image`` lies.
        accumulate: where windows are blended and interpolated; None for ``device``.
        body: ``(*S)`` bool from :func:`medkd.inference.air.body_mask`; windows outside are background.
        memory_mb: what blending may take, in MB; None for half of what is free. An image that needs more is done in
            parts, and the windows on their borders are computed twice.
        keep: classes whose probabilities are asked for, instead of the label.
        dtype: of the probabilities: ``"uint8"`` (0 to 255), ``"float16"`` or ``"float32"``.
        seconds: is given the times of ``network`` and ``restore``.

    Returns:
        The label ``(X, Y, Z)`` int16, ties to the lower class; with ``keep`` probabilities ``(len(keep), X, Y, Z)``.

    Raises:
        ValueError: unknown ``dtype``, or shapes that do not fit.
    """
    if dtype not in ("uint8", "float16", "float32"):
        raise ValueError(f"dtype must be uint8, float16 or float32, not {dtype!r}")
    if tuple(image.shape[1:]) != restore.shape:
        raise ValueError(f"the image has shape {tuple(image.shape[1:])} but its way back begins with {restore.shape}")
    seconds = {} if seconds is None else seconds
    device = torch.device(device) if device is not None else image.device
    at = torch.device(accumulate) if accumulate is not None else device
    grid = lay_grid(image.shape[1:], patch, overlap)
    axis = grid.axis
    taps = taps_back(restore)
    plain = restore.shape == restore.canonical_shape and len(networks) == 1 and keep is None
    mode = "logits" if plain else "softmax"  # on one grid, the logits of one network give the same label
    out: Tensor = torch.zeros(
        restore.canonical_shape if keep is None else (len(keep), *restore.canonical_shape),
        dtype=torch.int16 if keep is None else getattr(torch, dtype),
    )
    rows_first = out.movedim(axis - 3, -3)
    plane = [a for a in range(3) if a != axis]
    for part in _parts(grid, taps, _needed(networks, classes, grid, image.shape[1:]), memory_mb, at):
        some = part.cut(image, 1)
        inside = None if body is None else part.cut(body, 0)
        slabs = vote(
            networks,
            some,
            part.grid,
            mode,
            classes=classes,
            batch=batch,
            device=device,
            accumulate=accumulate,
            body=inside,
        )
        across = (part.taps[plane[0]], part.taps[plane[1]])
        target = rows_first if part.axis is None else rows_first.narrow(_place(part.axis, axis), *part.output)
        began = perf_counter()
        for rows, planes, along in _blocks(slabs, part, axis):
            waited = perf_counter()
            seconds["network"] = seconds.get("network", 0.0) + waited - began
            if keep is None:
                found = winners(planes, along, across, certain=mode == "softmax")
            else:
                found = kept(planes, along, across, keep, out.dtype)
            target.narrow(-3, rows.start, rows.stop - rows.start).copy_(found)
            began = perf_counter()
            seconds["restore"] = seconds.get("restore", 0.0) + began - waited
    return np.asarray(out.numpy())


@dataclass(frozen=True)
class _Part:
    """What lies between two cuts across one axis: the windows that reach it, and the output that it gives.

    Args:
        grid: the part's windows, counted from its first.
        taps: in the part's own rows, for its own outputs.
        axis: the axis that is cut; None of an image in one piece.
        input: first row and number of rows of the image that the windows cover.
        wanted: first row of these, and number of rows, that outputs lie between.
        output: first row and number of rows of the output.
    """

    grid: Grid
    taps: tuple[Taps, ...]
    axis: int | None = None
    input: tuple[int, int] = (0, 0)
    wanted: tuple[int, int] = (0, 0)
    output: tuple[int, int] = (0, 0)

    def cut(self, array: Tensor, lead: int) -> Tensor:
        return array if self.axis is None else array.narrow(self.axis + lead, *self.input)


def _needed(networks: Sequence[Network], classes: int, grid: Grid, shape: Sequence[int]) -> float:
    """Return the bytes that blending holds."""
    channels = sum(n.features if isinstance(n, Deferred) else classes for n in networks)
    plane = math.prod(max(n, w) for a, (n, w) in enumerate(zip(shape, grid.window, strict=True)) if a != grid.axis)
    return 4.0 * (channels + len(networks)) * grid.window[grid.axis] * plane


def _parts(
    grid: Grid, taps: tuple[Taps, ...], needed: float, memory_mb: float | None, at: torch.device
) -> Iterator[_Part]:
    free = torch.cuda.mem_get_info(at)[0] if at.type == "cuda" else psutil.virtual_memory().available
    limit = FREE_SHARE * free if memory_mb is None else memory_mb * 1e6
    axis = max((a for a in range(3) if a != grid.axis), key=lambda a: len(grid.starts[a]))
    starts, side = grid.starts[axis], grid.window[axis]
    length = max(starts[-1] + side, 1)
    count = 1
    # A part is as wide as its share and the windows that reach beyond it.
    while count < len(starts) and needed * min(1.0, (length / count + 2 * side) / length) > limit:
        count += 1
    if count == 1:
        yield _Part(grid, taps)
        return
    edges = [round(i * len(taps[axis].low) / count) for i in range(count + 1)]
    for low, high in pairwise(edges):
        if low == high:
            continue
        first, last = int(taps[axis].low[low]), int(taps[axis].high[high - 1])
        mine = [start for start in starts if start <= last and start + side > first]
        begin = mine[0]
        sub = replace(
            grid, starts=tuple(tuple(s - begin for s in mine) if a == axis else x for a, x in enumerate(grid.starts))
        )
        own = tuple(t.cut(slice(low, high), first) if a == axis else t for a, t in enumerate(taps))
        yield _Part(
            sub, own, axis, (begin, mine[-1] + side - begin), (first - begin, last + 1 - first), (low, high - low)
        )


def _place(axis: int, first: int) -> int:
    """Return where ``axis`` stands, from the end, once axis ``first`` is the first of three."""
    return [first, *(a for a in range(3) if a != first)].index(axis) - 3


def _blocks(slabs: Iterator[tuple[slice, Tensor]], part: _Part, axis: int) -> Iterator[tuple[slice, Tensor, Taps]]:
    """Yield output rows as soon as they can be filled: the rows, the planes ``(K, r, h, w)`` around them, the taps."""
    taps = part.taps[axis]
    held: Tensor | None = None
    done = first = 0
    for rows, scores in slabs:
        planes = scores if part.axis is None else scores.narrow(part.axis + 1, *part.wanted)
        planes = planes.movedim(axis + 1, 1)
        held = planes if held is None else torch.cat([held, planes], 1)
        ready = int(torch.searchsorted(taps.high, rows.stop))
        if ready > done:
            yield slice(done, ready), held, taps.cut(slice(done, ready), first)
            done = ready
        later = min(int(taps.low[done]), rows.stop) if done < len(taps.low) else rows.stop
        held, first = held[:, later - first :].clone(), later
