"""Where a network may halve its features, given voxels that are not cubes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medkd.data.plan_values import Floats, Ints, ints

THICK = 3.0
"""An axis is thick when its voxels are longer than this many times those of both other axes."""
LEAST_SIZE = 4
"""Voxels that the deepest features keep along a halved axis."""


def thick_axis(spacing_mm: Sequence[float]) -> int | None:
    """Return the axis whose voxels are more than three times longer than along both others, or None."""
    axis = int(np.argmax(spacing_mm))
    rest = [value for index, value in enumerate(spacing_mm) if index != axis]
    return axis if spacing_mm[axis] > THICK * max(rest) else None


def network_shape(patch: Ints, spacing_mm: Floats) -> tuple[tuple[Ints, ...], tuple[Ints, ...]]:
    """Return ``(strides, kernels)``, one of each per resolution, for patches of ``patch`` voxels.

    An axis is halved while it keeps at least ``2 * 4`` voxels and its voxels are within a factor two of the
    finest; kernels are 1 along an axis until its voxels are.
    """
    sizes, spacing = [float(size) for size in patch], list(spacing_mm)
    kernel = [1, 1, 1]
    strides: list[Ints] = [(1, 1, 1)]
    kernels: list[Ints] = []
    while True:
        finest = min(spacing)
        kernel = [3 if kernel[axis] == 3 or spacing[axis] / finest < 2 else 1 for axis in range(3)]
        kernels.append(ints(kernel))
        large = [axis for axis in range(3) if sizes[axis] >= 2 * LEAST_SIZE]
        fine = min((spacing[axis] for axis in large), default=0.0)
        halved = [axis for axis in large if spacing[axis] / fine < 2]
        if not halved or (len(halved) == 1 and sizes[halved[0]] < 3 * LEAST_SIZE):
            return tuple(strides), tuple(kernels)
        strides.append(ints([2 if axis in halved else 1 for axis in range(3)]))
        for axis in halved:
            sizes[axis] = np.ceil(sizes[axis] / 2)
            spacing[axis] *= 2


def total_stride(strides: Sequence[Ints]) -> Ints:
    """Return the product of ``strides`` along each axis."""
    return ints(np.prod(strides, axis=0))


def round_up(sizes: Ints, divisor: Ints) -> Ints:
    """Return the least multiples of ``divisor`` that hold ``sizes``."""
    return ints([-(-size // step) * step for size, step in zip(sizes, divisor, strict=True)])
