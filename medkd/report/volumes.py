"""A case for the viewer: image and masks on one grid, small enough for a page, and as compressed NIfTI."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.report.evidence import VolumeView
from medkd.report.slices import percentiles

MARGIN_MM = 30.0
"""Kept around the structures where the whole volume is too large: an organ is recognised by its surroundings."""
MOST_VOXELS = 4_000_000
"""A grey volume of this size takes about 4 MB of the page."""

Grid = tuple[int, int, int]


def volume_view(
    case: str,
    image: NDArray[np.floating[Any]],
    label: NDArray[np.integer[Any]],
    masks: Mapping[str, NDArray[np.integer[Any]]],
    affine: NDArray[np.float64],
    *,
    window: tuple[float, float] | None = None,
    most_voxels: int = MOST_VOXELS,
) -> VolumeView:
    """Return one case on a grid of at most ``most_voxels``.

    A small volume stays whole. A larger one is cropped to the structures and :data:`MARGIN_MM` around, and if that is
    not enough, blocks of voxels become one: the mean of the image, the commonest class of a mask.

    Args:
        case: its id.
        image: ``(X, Y, Z)`` canonical RAS+, any intensity.
        label: ``(X, Y, Z)`` class values, -1 where unknown.
        masks: arm name -> ``(X, Y, Z)`` class values.
        affine: ``(4, 4)`` voxel to world, mm.
        window: intensities shown as black and white; None for the 0.5th and 99.5th percentile of the volume.
        most_voxels: size of the grid at most.

    Raises:
        UserError: the arrays do not have the same three axes.
    """
    shapes = {"image": image.shape, "label": label.shape, **{name: mask.shape for name, mask in masks.items()}}
    if len(set(shapes.values())) != 1 or image.ndim != 3:
        raise UserError(f"case {case}: the viewer needs volumes (X, Y, Z) of one shape, these have {shapes}")
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    notes = []
    kept = tuple(slice(0, size) for size in image.shape)
    if image.size > most_voxels:
        kept = _around([label, *masks.values()], spacing)
        notes.append("cropped to the structures")
    factor = _factor(tuple(part.stop - part.start for part in kept), spacing, most_voxels)
    if max(factor) > 1:
        notes.append(f"blocks of {' × '.join(str(f) for f in factor)} voxels shown as one")
    low, high = window or percentiles(image)
    grey = np.nan_to_num(_blocks(image[kept].astype(np.float32, copy=False), factor))
    grey = np.rint(np.clip((grey - low) / max(high - low, 1e-12), 0.0, 1.0) * 255.0).astype(np.uint8)
    # The centre of the first block, in voxels of the full grid.
    shift = np.eye(4)
    shift[:3, :3] = np.diag(factor)
    shift[:3, 3] = [part.start + (f - 1) / 2 for part, f in zip(kept, factor, strict=True)]
    return VolumeView(
        case=case,
        image=grey,
        affine=np.asarray(affine, np.float64) @ shift,
        label=_commonest(label[kept], factor),
        masks={name: _commonest(mask[kept], factor) for name, mask in masks.items()},
        note=", ".join(notes),
    )


def nifti(array: NDArray[np.integer[Any]], affine: NDArray[np.float64]) -> bytes:
    """Return ``(X, Y, Z)`` uint8 or int16 as a gzipped NIfTI-1 file; the same bytes every time.

    Raises:
        UserError: ``array`` is of another type.
    """
    codes = {"uint8": (2, 8), "int16": (4, 16)}
    if array.dtype.name not in codes:
        raise UserError(f"the viewer shows uint8 or int16 volumes, this one is {array.dtype.name}: convert it")
    code, bits = codes[array.dtype.name]
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    # The fields of nifti1.h in order: sizes, intents, type, voxel size, scaling, texts, then the affine's rows.
    head = struct.pack("<i36x8h", 348, 3, *array.shape, 1, 1, 1, 1)
    head += struct.pack("<14x3h", code, bits, 0) + struct.pack("<8f", 1.0, *spacing, 1.0, 1.0, 1.0, 1.0)
    head += struct.pack("<f2fhBB4f2i", 352.0, 1.0, 0.0, 0, 0, 2, 0.0, 0.0, 0.0, 0.0, 0, 0)
    head += bytes(80 + 24) + struct.pack("<2h6f", 0, 2, *[0.0] * 6)
    head += struct.pack("<12f", *np.asarray(affine, np.float64)[:3].ravel()) + bytes(16) + b"n+1\0" + bytes(4)
    body = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    return gzip.compress(head + body, compresslevel=6, mtime=0)


def _around(masks: Iterable[NDArray[np.integer[Any]]], spacing: NDArray[np.float64]) -> tuple[slice, slice, slice]:
    """Return the box of everything above zero with a margin; the whole volume where there is nothing."""
    hits: list[list[Any]] = [[], [], []]
    for mask in masks:
        found = mask > 0
        # Two passes over the volume, not three: the plane that remains tells two of the axes.
        flat = np.any(found, axis=2)
        hits[0].append(np.any(flat, axis=1))
        hits[1].append(np.any(flat, axis=0))
        hits[2].append(np.any(found, axis=(0, 1)))
    parts = []
    for axis, of in enumerate(hits):
        here = np.flatnonzero(np.any(of, axis=0))
        margin = round(MARGIN_MM / float(spacing[axis]))
        size = of[0].size
        first, last = (int(here[0]), int(here[-1])) if here.size else (0, size - 1)
        parts.append(slice(max(0, first - margin), min(size, last + 1 + margin)))
    return parts[0], parts[1], parts[2]


def _factor(shape: Iterable[int], spacing: NDArray[np.float64], most: int) -> Grid:
    """Return how many voxels to join along each axis: always along the finest, until the rest fits."""
    size, factor = list(shape), [1, 1, 1]
    while np.prod([n // f for n, f in zip(size, factor, strict=True)]) > most:
        axis = min(range(3), key=lambda i: (factor[i] * spacing[i], -size[i]))
        factor[axis] += 1
    return factor[0], factor[1], factor[2]


def _blocks(array: NDArray[Any], factor: Grid) -> NDArray[np.float32]:
    """Return the means of blocks; what does not fill a block at the far end is left out."""
    shape = tuple(n // f for n, f in zip(array.shape, factor, strict=True))
    total = np.zeros(shape, np.float32)
    # A sum of shifted grids, which is several times faster than a mean over three short axes of six.
    for start in product(*(range(f) for f in factor)):
        picked = (slice(i, i + f * n, f) for i, f, n in zip(start, factor, shape, strict=True))
        total += array[tuple(picked)]
    total /= np.prod(factor)
    return total


def _commonest(mask: NDArray[np.integer[Any]], factor: Grid) -> NDArray[np.integer[Any]]:
    """Return the commonest value of each block, the lowest where two are equally common."""
    low, high = int(mask.min()), int(mask.max())
    kind = np.uint8 if low >= 0 and high < 256 else np.int16
    if max(factor) == 1:
        return np.ascontiguousarray(mask, dtype=kind)
    found: NDArray[np.integer[Any]] | None = None
    for value in range(low, high + 1):
        here = mask == value
        if not here.any():
            continue
        share = _blocks(here, factor)
        if found is None:
            best, found = share, np.full(share.shape, value, kind)
        else:
            found[share > best] = value
            np.maximum(best, share, out=best)
    assert found is not None  # a volume has voxels
    return found
