"""Sliding windows in numpy: the arithmetic of :mod:`medkd.inference.window` where there is no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from medkd.data.preprocess import Restore, way_back
from medkd.inference.grid import Grid, lay_grid

Array = NDArray[np.float32]
Session = Callable[[Array], Array]
"""Maps ``(B, C, *S)`` float32 to logits ``(B, K, *S)`` float32."""


def gaussian(window: Sequence[int], sigma: float = 0.125, least: float = 1e-3) -> Array:
    """Return blending weights ``window``: a separable Gaussian with its peak of 1 at the centre.

    Args:
        window: size in voxels.
        sigma: standard deviation as a share of the window.
        least: the weight of the far corners, which would else underflow.
    """
    weight = np.ones((), np.float32)
    for side in window:
        offset = np.arange(side, dtype=np.float32) - (side - 1) / 2
        weight = weight[..., None] * np.exp(-0.5 * (offset / (sigma * side)) ** 2).astype(np.float32)
    return np.maximum(weight, np.float32(least))


def blended_slabs(
    session: Session, image: Array, grid: Grid, *, classes: int, batch: int = 1
) -> Iterator[tuple[slice, Array]]:
    """Yield finished rows of blended logits along ``grid.axis``, in order and without gaps.

    Args:
        session: the network.
        image: ``(C, *S)``, prepared, not padded.
        grid: the windows, for this shape.
        classes: ``K``.
        batch: windows at a time.

    Yields:
        The rows of the image along ``grid.axis``, and their logits ``(K, *s)``.

    Raises:
        ValueError: the network's answer has another shape than ``(B, K, *window)``.
    """
    shape, axis, side = image.shape[1:], grid.axis, grid.window[grid.axis]
    image = np.pad(image, ((0, 0), *grid.padding))
    lead = grid.padding[axis][0]
    others = [starts if number != axis else (0,) for number, starts in enumerate(grid.starts)]
    places = [
        tuple(slice(start, start + length) for start, length in zip(corner, grid.window, strict=True))
        for corner in itertools.product(*others)
    ]
    weight = gaussian(grid.window) if len(grid) > 1 else np.ones((), np.float32)
    room = [side if number == axis else size for number, size in enumerate(image.shape[1:])]
    total, mass = np.zeros((classes, *room), np.float32), np.zeros(room, np.float32)
    ends = (*grid.starts[axis][1:], image.shape[axis + 1])
    for start, end in zip(grid.starts[axis], ends, strict=True):
        rows = image[_along(axis + 1, start, start + side)]
        for first in range(0, len(places), batch):
            some = places[first : first + batch]
            answers = session(np.stack([rows[(slice(None), *place)] for place in some]))
            if answers.shape != (len(some), classes, *grid.window):
                expected = (len(some), classes, *grid.window)
                raise ValueError(f"the network answers {answers.shape} to windows of {grid.window}, not {expected}")
            for place, answer in zip(some, answers, strict=True):
                total[(slice(None), *place)] += answer * weight
                mass[place] += weight
        low, high = max(start, lead), min(end, lead + shape[axis])
        if high > low:
            crop = tuple(
                slice(low - start, high - start) if number == axis else slice(before, before + size)
                for number, ((before, _), size) in enumerate(zip(grid.padding, shape, strict=True))
            )
            scores: Array = np.divide(total[(slice(None), *crop)], mass[crop], dtype=np.float32)
            yield slice(low - lead, high - lead), scores
        for buffer, where in ((total, axis + 1), (mass, axis)):
            # What later windows still reach moves to the front; the rest starts empty.
            done = min(end - start, side)
            kept = buffer[_along(where, done, side)].copy()
            buffer[...] = 0
            buffer[_along(where, 0, side - done)] = kept


def predict_back(
    session: Session,
    image: Array,
    restore: Restore,
    *,
    classes: int,
    patch: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
) -> NDArray[np.int16]:
    """Predict a prepared image and answer on the canonical grid, never holding all classes at full size.

    Args:
        session: the network.
        image: ``(C, *S)`` from :func:`medkd.data.preprocess.prepare_image`.
        restore: the way back that came with it.
        classes: ``K``.
        patch: window size in voxels.
        overlap: share of a window that its neighbour covers.
        batch: windows at a time.

    Returns:
        ``(X, Y, Z)`` int16: the class whose linearly interpolated probability is greatest; ties go to the lower class.
    """
    grid = lay_grid(image.shape[1:], patch, overlap)
    operators = list(way_back(restore))
    slabs = blended_slabs(session, image, grid, classes=classes, batch=batch)
    out = np.empty(restore.canonical_shape, np.int16)
    if all(operator is None for operator in operators):  # on the same grid logits and probabilities agree
        for rows, logits in slabs:
            out[_along(grid.axis, rows.start, rows.stop)] = logits.argmax(0)
        return out
    streamed = operators[grid.axis]
    if streamed is None:
        streamed = sparse.identity(restore.shape[grid.axis], dtype=np.float32, format="csr")
    streamed = streamed.sorted_indices()
    low = streamed.indices[streamed.indptr[:-1]]  # the input rows that each output row lies between
    high = streamed.indices[streamed.indptr[1:] - 1]
    held, first, done = np.empty((classes, 0, 0, 0), np.float32), 0, 0
    for rows, logits in slabs:
        scores = _softmax(logits)
        held = np.concatenate([held, scores], grid.axis + 1) if held.shape[grid.axis + 1] else scores
        ready = int(np.searchsorted(high, rows.stop))
        if ready > done:
            some = [*operators]
            some[grid.axis] = streamed[done:ready, first : rows.stop]
            out[_along(grid.axis, done, ready)] = _winners(held, some)
            done = ready
        later = min(int(low[done]), rows.stop) if done < len(low) else rows.stop
        held, first = held[_along(grid.axis + 1, later - first, rows.stop - first)].copy(), later
    return out


def _softmax(logits: Array) -> Array:
    scores: Array = np.exp(logits - logits.max(0))
    scores /= scores.sum(0)
    return scores


def _winners(scores: Array, operators: Sequence[Any]) -> NDArray[np.int16]:
    """Interpolate ``(K, *s)`` class by class and return the greatest with a running maximum."""
    label: NDArray[np.int16] | None = None
    best = np.empty(0, np.float32)
    for k, plane in enumerate(scores):
        score = plane
        for axis, operator in enumerate(operators):
            if operator is not None:
                moved = np.moveaxis(score, axis, 0)
                flat = operator @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
                score = np.moveaxis(flat.reshape(-1, *moved.shape[1:]), 0, axis)
        if label is None:
            label, best = np.zeros(score.shape, np.int16), score.copy()
            continue
        wins = score > best
        label[wins] = k
        best[wins] = score[wins]
    assert label is not None
    return label


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))
