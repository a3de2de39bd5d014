"""Surface elements ("surfels"): where the surface of an object runs between voxels, and how large each piece is.

The points of a surface are corners where voxels meet. A corner whose ``2 ** D`` voxels lie partly in the object carries
one surfel; its size is that of the marching-cubes surface between these voxels' centres, in mm² (mm in two
dimensions). Beyond the edge of the volume is outside. DeepMind's ``surface-distance`` uses the same surfels.

Marching cubes leaves two choices open, which are made here as there: where two opposite corners of a square differ
from the other two, the rarer kind is kept apart; and a polygon that is not flat is cut into the triangles that are
largest in sum.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_Edge = frozenset[int]
"""The two corners of a cube between which the surface passes, half-way."""

_SQUARES = tuple(
    tuple(sum(1 << axis for axis in axes) + (side << across) for axes in ((), (u,), (u, v), (v,)))
    for across, u, v in ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    for side in (0, 1)
)
"""The six sides of a cube: four corners each, around the side; corner ``x + 2 y + 4 z``."""


def codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Number the neighbourhood of every corner.

    Args:
        mask: ``(*S)``, the object; at most three axes.

    Returns:
        ``(*S + 1)``; corner ``i`` lies between voxels ``i - 1`` and ``i``. Bit ``x + 2 y + 4 z`` tells whether the
        voxel before (0) or after (1) the corner along each axis is in the object.
    """
    code = np.pad(mask, 1).view(np.uint8)
    for axis in range(mask.ndim):
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        code = code[before] | (code[after] << 2**axis)
    return code


@lru_cache(maxsize=64)
def sizes(spacing_mm: tuple[float, ...]) -> _Floats:
    """Return the size of the surfel of every code, ``(2 ** 2 ** D,)``, in mm² (mm in two dimensions).

    Raises:
        ValueError: neither two nor three axes.
    """
    if len(spacing_mm) == 2:
        x, y = spacing_mm
        oblique = float(np.hypot(x, y)) / 2
        by_code = {0: 0.0, 1: oblique, 2: oblique, 3: x, 4: oblique, 5: y, 6: 2 * oblique, 7: oblique}
        return np.array([by_code[min(code, 15 - code)] for code in range(16)])
    if len(spacing_mm) != 3:
        raise ValueError(f"surfels need two or three axes, not {len(spacing_mm)}")
    x, y, z = spacing_mm
    scale = np.array([y * z, x * z, x * y])  # along each axis an area vector has the other two axes' mm
    return np.array([np.linalg.norm(vectors * scale, axis=1).sum() for vectors in _area_vectors()])


@lru_cache(maxsize=1)
def _area_vectors() -> tuple[_Floats, ...]:
    """Return for every code the area vectors ``(T, 3)`` of its triangles in a cube of side 1."""
    found = []
    for code in range(256):
        inside = {corner for corner in range(8) if code >> corner & 1}
        rarer = inside if len(inside) <= 4 else set(range(8)) - inside
        found.append(np.concatenate([np.empty((0, 3)), *[_triangles(loop) for loop in _loops(rarer)]]))
    return tuple(found)


def _loops(inside: set[int]) -> list[_Floats]:
    """Return the polygons ``(N, 3)`` that part the corners ``inside`` from the others."""
    links: dict[_Edge, list[_Edge]] = {}
    for square in _SQUARES:
        sides = [_Edge((square[i - 1], square[i])) for i in range(4)]
        crossed = [side for side in sides if len(side & inside) == 1]
        pairs = [crossed] if len(crossed) == 2 else []
        if len(crossed) == 4:  # opposite corners: each one inside is cut off by itself
            pairs = [[sides[i], sides[(i + 1) % 4]] for i in range(4) if square[i] in inside]
        for one, other in pairs:
            links.setdefault(one, []).append(other)
            links.setdefault(other, []).append(one)
    loops = []
    while links:
        loop = [next(iter(links))]
        while (ahead := next((edge for edge in links.pop(loop[-1]) if edge in links), None)) is not None:
            loop.append(ahead)
        loops.append(np.array([np.mean([_place(corner) for corner in edge], axis=0) for edge in loop]))
    return loops


def _place(corner: int) -> tuple[int, int, int]:
    return corner & 1, corner >> 1 & 1, corner >> 2 & 1


def _triangles(polygon: _Floats) -> _Floats:
    """Return the area vectors ``(N - 2, 3)`` of the largest triangles that a polygon ``(N, 3)`` can be cut into."""
    return max(_cuts(polygon), key=lambda vectors: round(float(np.linalg.norm(vectors, axis=1).sum()), 9))


def _cuts(polygon: _Floats) -> list[_Floats]:
    """Return the area vectors of every way to cut a polygon into triangles on its corners."""
    if len(polygon) < 3:
        return [np.empty((0, 3))]
    first, last = polygon[0], polygon[-1]
    return [
        np.concatenate([before, after, np.cross(polygon[tip] - first, last - first)[None] / 2])
        for tip in range(1, len(polygon) - 1)
        for before in _cuts(polygon[: tip + 1])
        for after in _cuts(polygon[tip:])
    ]
