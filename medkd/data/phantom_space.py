"""Shapes as distances to their surfaces, on the voxel grid of one simulated patient; lengths are mm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Point = Sequence[float] | NDArray[Any]


class Space:
    """The voxel centres of one patient in body coordinates, and the shapes that can be put there.

    Args:
        position: ``(3, X, Y, Z)`` mm after pose and deformation were undone.
        voxel_mm: typical voxel size, the width over which an edge is blurred by partial volume.
        rng: draws every random detail.
    """

    def __init__(self, position: Field, voxel_mm: float, rng: np.random.Generator) -> None:
        self.position, self.voxel_mm, self.rng = position, voxel_mm, rng
        self.x, self.y, self.z = position

    def jitter(self, centre: Point, mm: float) -> NDArray[np.float64]:
        """Return ``centre`` moved at random by about ``mm``."""
        moved: NDArray[np.float64] = np.asarray(centre, float) + self.rng.normal(0, mm, 3).clip(-2 * mm, 2 * mm)
        return moved

    def wobble(self, mm: float, cells: Sequence[int] = (6, 5, 5)) -> Field:
        """Return a smooth random field of about ``mm``, to be added to a distance: lobes and dents."""
        return _field(mm * smooth_noise(self.x.shape, cells, self.rng))

    def ellipsoid(self, centre: Point, semi: Point, degrees: Point = (0, 0, 0)) -> Field:
        """Return the approximate signed distance to an ellipsoid turned about x, y and z."""
        q: Any = np.tensordot(rotation(degrees).T.astype(np.float32), self.position, 1)
        q -= (rotation(degrees).T @ np.asarray(centre, float)).astype(np.float32).reshape(3, 1, 1, 1)
        q /= np.asarray(semi, np.float32).reshape(3, 1, 1, 1)
        k0 = np.sqrt((q**2).sum(0))
        k1 = np.sqrt(((q / np.asarray(semi, np.float32).reshape(3, 1, 1, 1)) ** 2).sum(0))
        return _field(k0 * (k0 - 1) / np.maximum(k1, 1e-6))

    def tube(self, points: Sequence[Point], radii: Sequence[float]) -> Field:
        """Return the signed distance to a chain of rounded cones through ``points``."""
        best = np.full(self.x.shape, np.inf, np.float32)
        for start, end, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            a, axis = np.asarray(start, np.float32), np.subtract(end, start).astype(np.float32)
            rel = self.position - a.reshape(3, 1, 1, 1)
            t = (np.tensordot(axis, rel, 1) / max(float(axis @ axis), 1e-6)).clip(0, 1)
            away = np.sqrt(((rel - axis.reshape(3, 1, 1, 1) * t) ** 2).sum(0))
            best = np.minimum(best, away - (r0 + (r1 - r0) * t))
        return best

    def fill(self, distance: Field, width: float = 1.0) -> Field:
        """Return the occupancy of what lies inside: a linear edge ``width`` voxels wide."""
        return _field(np.clip(0.5 - distance / (width * self.voxel_mm), 0, 1))


def rotation(degrees: Point) -> NDArray[np.float64]:
    """Return the ``(3, 3)`` rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        i, j = [other for other in range(3) if other != axis]
        sign = -1 if axis == 1 else 1
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -sign * np.sin(angle), sign * np.sin(angle)
        matrix = turn @ matrix
    return matrix


def smooth_noise(shape: Sequence[int], cells: Sequence[int], rng: np.random.Generator) -> Field:
    """Return a random field of unit deviation with ``cells`` control points along each axis, cubic between them."""
    field: Any = rng.normal(size=tuple(cells))
    for axis, (cell, size) in enumerate(zip(cells, shape, strict=True)):
        field = np.moveaxis(np.tensordot(_cubic(cell, size), field, (1, axis)), 0, axis)
    return _field(field / max(field.std(), 1e-6))


@lru_cache(maxsize=32)
def _cubic(cells: int, size: int) -> NDArray[np.float64]:
    at = np.linspace(1, cells - 2, size)[:, None] - np.arange(cells)
    far = np.abs(at)
    return np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.where(far < 2, (2 - far) ** 3 / 6, 0))


def blend(a: Field, b: Field, mm: float) -> Field:
    """Return the union of two shapes with a seam rounded over ``mm``."""
    h = np.clip(0.5 + (b - a) / (2 * mm), 0, 1)
    return _field(b + (a - b) * h - mm * h * (1 - h))


def _field(values: Any) -> Field:
    return np.asarray(values, np.float32)
