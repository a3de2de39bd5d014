"""Sliding windows with Gaussian blending, streamed slab by slab.

Logits are blended, then softmaxed: blending probabilities would let an unsure window pull a sure one. The blend is held
only for the rows that later windows can still reach, so memory does not grow with the length of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medkd.inference.grid import Grid, lay_grid
from medkd.inference.heads import Deferred, Network

__all__ = [
    "Grid",
    "Network",
    "blended_slabs",
    "gaussian",
    "lay_grid",
    "mirrored",
    "predict_label",
    "sliding_window",
    "top_class",
    "vote",
]

SIGMA = 0.125
"""Standard deviation of the blending weight as a share of the window (MONAI's and nnU-Net's choice)."""
CHUNK_BYTES = 32_000_000
"""Finished logits are handed on in pieces of about this size."""
GPU_BATCH = 4
BODY_SHARE = 0.001
"""A window with less than this share of body voxels counts as air."""
CERTAIN = 20.0
"""Logit of background (minus: of all others) where nothing was computed."""


def gaussian(window: Sequence[int]) -> Tensor:
    """Return blending weights ``window``: a separable Gaussian with its peak of 1 at the centre, never below 0.001."""
    weight = torch.ones(())
    for side in window:
        offset = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        profile = torch.exp(-0.5 * (offset / (SIGMA * side)) ** 2)
        weight = weight[..., None] * profile
    # Far corners would underflow, and a voxel seen by one window alone would be divided by almost nothing.
    return weight.clamp_min(1e-3)


def mirrored(network: Network, axes: Sequence[int], swap: Sequence[tuple[int, int]] = ()) -> Network:
    """Average the logits of ``network`` over every combination of flips.

    Args:
        network: maps ``(B, C, *S)`` to ``(B, K, *S)``.
        axes: spatial axes to flip (0 is left-right).
        swap: pairs of classes that trade places when axis 0 is flipped (left and right kidney).
    """
    if isinstance(network, Deferred) and not (swap and 0 in axes):  # a mean of features is one of logits
        return replace(network, body=mirrored(network.body, axes))
    flips = [flip for count in range(len(axes) + 1) for flip in combinations(sorted(axes), count)]

    def averaged(image: Tensor) -> Tensor:
        total: Tensor | None = None
        for flip in flips:
            dims = [axis + 2 for axis in flip]
            logits = network(image.flip(dims)).flip(dims) if dims else network(image)
            if 0 in flip and swap:
                order = list(range(logits.shape[1]))
                for left, right in swap:
                    order[left], order[right] = order[right], order[left]
                logits = logits[:, order]
            total = logits.float() if total is None else total + logits
        assert total is not None
        return total / len(flips)

    return averaged if axes else network


def blended_slabs(
    network: Network,
    image: Tensor,
    grid: Grid,
    *,
    classes: int,
    batch: int | None = 1,
    device: torch.device | str | None = None,
    accumulate: torch.device | str | None = None,
    body: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield finished rows of blended logits along ``grid.axis``, a few at a time, in order and without gaps.

    Args:
        network: maps ``(B, C, *S)`` to logits ``(B, K, *S)``; of a :class:`~medkd.inference.heads.Deferred` the
            features are blended, and the head is applied to what is finished.
        image: ``(C, *S)``, not padded.
        grid: the windows, from :func:`lay_grid` for this shape.
        classes: ``K``.
        batch: windows per forward; None for one on a CPU and up to four on a GPU, as many as fit.
        device: where ``network`` runs; None for where ``image`` lies.
        accumulate: where logits are blended; None for ``device``.
        body: ``(*S)`` bool; windows of which almost nothing lies in it are not computed, and count as background.

    Yields:
        The rows of the unpadded image along ``grid.axis`` and their logits ``(K, *s)`` float32, cropped to the image.

    Raises:
        ValueError: the network's answer has another shape than ``(B, K, *window)``.
    """
    device = torch.device(device) if device is not None else image.device
    accumulate = torch.device(accumulate) if accumulate is not None else device
    head = network if isinstance(network, Deferred) else None
    forward, channels = (network, classes) if head is None else (head.body, head.features)
    if batch is None:
        batch = 1 if device.type == "cpu" else GPU_BATCH
    shape, axis, side = image.shape[1:], grid.axis, grid.window[grid.axis]
    margins = [voxels for pair in reversed(grid.padding) for voxels in pair]
    if any(margins):
        image = F.pad(image, margins)
        body = None if body is None else F.pad(body, margins)
    inner = [slice(before, before + size) for (before, _), size in zip(grid.padding, shape, strict=True)]
    others = [starts if a != axis else (0,) for a, starts in enumerate(grid.starts)]
    corners = list(product(*others))
    weight = gaussian(grid.window).to(accumulate) if len(grid) > 1 else torch.ones((), device=accumulate)
    room = [side if a == axis else size for a, size in enumerate(image.shape[1:])]
    total = torch.zeros((channels, *room), device=accumulate)
    mass = torch.zeros(room, device=accumulate)
    few = max(1, CHUNK_BYTES * shape[axis] // (4 * classes * math.prod(shape)))
    ends = (*grid.starts[axis][1:], image.shape[axis + 1])
    for start, end in zip(grid.starts[axis], ends, strict=True):
        places = [tuple(slice(a, a + b) for a, b in zip(corner, grid.window, strict=True)) for corner in corners]
        if body is not None:
            inside = body.narrow(axis, start, side)
            places = [place for place in places if inside[place].float().mean() >= BODY_SHARE]
        rows = image.narrow(axis + 1, start, side)
        first = 0
        while first < len(places):
            some = places[first : first + batch]
            try:
                logits = forward(torch.stack([rows[(slice(None), *place)] for place in some]).to(device))
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                batch = len(some) // 2
                continue
            if logits.shape != (len(some), channels, *grid.window):
                raise ValueError(
                    f"the network answers {tuple(logits.shape)} to windows of {grid.window}; "
                    f"expected {(len(some), channels, *grid.window)}"
                )
            for place, answer in zip(some, logits.to(accumulate, torch.float32), strict=True):
                total[(slice(None), *place)].addcmul_(answer, weight)
                mass[place] += weight
            first += len(some)
            del logits  # else it would live on beside the next one
        done, lead = end - start, grid.padding[axis][0]
        low, high = max(start, inner[axis].start), min(end, inner[axis].stop)
        for at in range(low, high, few):
            stop = min(at + few, high)
            crop = tuple(slice(at - start, stop - start) if a == axis else part for a, part in enumerate(inner))
            scores = total[(slice(None), *crop)] / mass[crop].clamp_min(1e-6)
            scores = scores if head is None else head.logits(scores)
            if body is not None:  # where no window was computed
                empty = mass[crop] == 0
                scores.masked_fill_(empty, -CERTAIN)
                scores[0].masked_fill_(empty, CERTAIN)
            yield slice(at - lead, stop - lead), scores
        for buffer, where in ((total, axis + 1), (mass, axis)):
            # What later windows still reach moves to the front, in place; the rest starts empty.
            for at in range(0, side - done, done):
                count = min(done, side - done - at)
                buffer.narrow(where, at, count).copy_(buffer.narrow(where, at + done, count))
            buffer.narrow(where, max(side - done, 0), min(done, side)).zero_()


def vote(
    networks: Network | Sequence[Network],
    image: Tensor,
    grid: Grid,
    mode: str,
    **options: Any,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slabs of the mean over networks after ``mode``.

    The networks walk side by side, so that only their slabs are held. Arguments as of :func:`blended_slabs` and
    :func:`sliding_window`.
    """
    streams = [
        blended_slabs(network, image, grid, **options) for network in ([networks] if callable(networks) else networks)
    ]
    for slabs in zip(*streams, strict=True):
        total = _activate(slabs[0][1], mode)
        for _, logits in slabs[1:]:
            total = total + _activate(logits, mode)
        yield slabs[0][0], total / len(slabs)


def top_class(scores: Tensor) -> Tensor:
    """Return the class ``(*s)`` int16 with the greatest of ``scores`` ``(K, *s)``; ties go to the lower class."""
    if scores.device.type != "cpu":
        return scores.argmax(0).to(torch.int16)
    # torch's argmax over the first axis strides through memory on a CPU: a running maximum takes a quarter of its time.
    best, label = scores[0].clone(), torch.zeros(scores.shape[1:], dtype=torch.int16)
    for k, score in enumerate(scores[1:], start=1):
        label.masked_fill_(score > best, k)
        torch.maximum(best, score, out=best)
    return label


def _activate(logits: Tensor, mode: str) -> Tensor:
    if mode == "softmax":
        return logits.softmax(0)
    if mode == "sigmoid":
        return logits.sigmoid()
    if mode == "logits":
        return logits
    raise ValueError(f"mode must be softmax, sigmoid or logits, not {mode!r}")


@torch.inference_mode()
def sliding_window(
    network: Network | Sequence[Network],
    image: Tensor,
    *,
    classes: int,
    patch: Sequence[int],
    overlap: float = 0.5,
    batch: int | None = 1,
    mode: str = "softmax",
    device: torch.device | str | None = None,
    accumulate: torch.device | str | None = None,
) -> Tensor:
    """Predict a whole image of any size.

    Args:
        network: maps ``(B, C, *S)`` to logits ``(B, K, *S)``; an ``nn.Module`` must be in eval mode. Of several, the
            mean after ``mode``.
        image: ``(C, *S)``, prepared.
        classes: ``K``.
        patch: window size along ``*S``, voxels.
        overlap: share of a window that its neighbour covers.
        batch: windows per forward.
        mode: ``"softmax"`` (classes exclude each other), ``"sigmoid"`` (regions may overlap) or ``"logits"``.
        device: where ``network`` runs; None for where ``image`` lies.
        accumulate: where logits are blended; None for ``device``.

    Returns:
        ``(K, *S)`` float32 on the CPU.

    Raises:
        ValueError: unknown ``mode``, or shapes that do not fit.
    """
    grid = lay_grid(image.shape[1:], patch, overlap)
    out = torch.empty((classes, *image.shape[1:]))
    slabs = vote(network, image, grid, mode, classes=classes, batch=batch, device=device, accumulate=accumulate)
    for rows, scores in slabs:
        out.narrow(grid.axis + 1, rows.start, rows.stop - rows.start).copy_(scores)
    return out


@torch.inference_mode()
def predict_label(
    network: Network | Sequence[Network],
    image: Tensor,
    *,
    classes: int,
    patch: Sequence[int],
    overlap: float = 0.5,
    batch: int | None = 1,
    device: torch.device | str | None = None,
    accumulate: torch.device | str | None = None,
) -> NDArray[np.int16]:
    """Predict the label of a whole image without ever holding all classes at full size.

    Several networks vote with the mean of their probabilities. Arguments and errors as in :func:`sliding_window`.

    Returns:
        ``(*S)`` int16.
    """
    grid = lay_grid(image.shape[1:], patch, overlap)
    label = torch.empty(image.shape[1:], dtype=torch.int16)
    mode = "logits" if callable(network) or len(network) == 1 else "softmax"  # of one network both give the same class
    slabs = vote(network, image, grid, mode, classes=classes, batch=batch, device=device, accumulate=accumulate)
    for rows, scores in slabs:
        label.narrow(grid.axis, rows.start, rows.stop - rows.start).copy_(top_class(scores))
    return np.asarray(label.numpy())
