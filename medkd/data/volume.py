"""Volumes and labels between files and canonical arrays.

Inside medkd every volume is RAS+: array axes run left to right, posterior to anterior, inferior to superior, as in
nibabel's closest canonical orientation. Only this file knows how a scanner or a converter had laid the voxels out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

from medkd.data.formats import WRITABLE, check_stored, read_stored, stem, suffix, voxel_size, write_stored
from medkd.errors import UserError

_orient: Any = nibabel.orientations  # untyped

TOLERANCE = 0.1
"""Two grids are the same when no corner differs by more than this share of the smallest voxel side."""

_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid on which a file stores its voxels.

    Args:
        shape: voxels along the three stored axes.
        affine: ``(4, 4)`` float64, voxel index -> RAS position in mm.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the stored axes."""
        return voxel_size(self.affine)

    @property
    def orientation(self) -> str:
        """Where the stored axes point to, such as ``"LPS"``."""
        return "".join(str(code) for code in _orient.ornt2axcodes(self.to_canonical()))

    def to_canonical(self) -> NDArray[np.float64]:
        """Return the nibabel orientation ``(3, 2)`` that turns the stored axes into RAS+."""
        return cast("NDArray[np.float64]", _orient.io_orientation(self.affine))

    def from_canonical(self) -> NDArray[np.float64]:
        """Return the nibabel orientation ``(3, 2)`` that turns RAS+ axes into the stored ones."""
        return cast("NDArray[np.float64]", _orient.ornt_transform(_CANONICAL, self.to_canonical()))

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """``(4, 4)``, canonical voxel index -> RAS position in mm."""
        return cast("NDArray[np.float64]", self.affine @ _orient.inv_ornt_aff(self.to_canonical(), self.shape))

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Voxels along the canonical axes."""
        x, y, z = (self.shape[int(axis)] for axis in np.argsort(self.to_canonical()[:, 0]))
        return x, y, z


@dataclass(frozen=True, eq=False)
class Volume:
    """One image in canonical orientation.

    Args:
        array: ``(C, X, Y, Z)`` float32, axes RAS+.
        affine: ``(4, 4)`` float64, canonical voxel index -> RAS position in mm.
        geometry: the original grid of the file, to which predictions go back.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    geometry: Geometry

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        _, x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        return voxel_size(self.affine)


def read_volume(paths: Path | Sequence[Path]) -> Volume:
    """Read an image: one file, or one file per channel on the same grid.

    A 4-D NIfTI or a vector NRRD/MHA holds its channels itself.

    Returns:
        The canonical volume, array ``(C, X, Y, Z)``.

    Raises:
        UserError: a file is missing, damaged, not a volume, or has NaN or infinite voxels; channels on different grids.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files:
        raise UserError("an image needs at least one file, and none was given")
    arrays: list[NDArray[np.float32]] = []
    first: Geometry | None = None
    for path in files:
        stored, geometry = _read(path)
        array = _finite(stored, f"image {path}")
        first = first or geometry
        if first is not geometry and (difference := _difference(first, geometry)):
            raise UserError(f"image {path} is not on the grid of {files[0]}: {difference}")
        arrays.append(_to_ras(array, first if _same(first, geometry) else geometry))
    assert first is not None
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return Volume(np.ascontiguousarray(joined), first.canonical_affine, first)


def to_volume(stored: NDArray[Any], affine: NDArray[np.float64], name: str = "image") -> Volume:
    """Return voxels in memory as a canonical volume.

    Args:
        stored: ``(C, *axes)``, real numbers.
        affine: ``(4, 4)``, index -> RAS mm.
        name: for sentences.

    Raises:
        UserError: not three spatial axes, none of them empty; no usable geometry; NaN or infinite voxels.
    """
    check_stored(stored, affine, name)
    geometry = Geometry((stored.shape[1], stored.shape[2], stored.shape[3]), affine)
    array = _to_ras(_finite(stored, name), geometry)
    return Volume(np.ascontiguousarray(array), geometry.canonical_affine, geometry)


def to_stored(label: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """Turn a canonical label ``(X, Y, Z)`` into the stored axes of ``geometry``.

    Raises:
        ValueError: ``label`` has another shape than the canonical grid.
    """
    if label.shape != geometry.canonical_shape:
        raise ValueError(f"label of shape {label.shape} for a grid of shape {geometry.canonical_shape}")
    return np.ascontiguousarray(_orient.apply_orientation(label, geometry.from_canonical()))


def read_label(path: Path, *, like: Volume | Geometry | None = None) -> NDArray[np.int16]:
    """Read a label map.

    Args:
        path: the file.
        like: the image that it labels, or its grid; the label must lie on the same one (any axis order or flip of it).

    Returns:
        ``(X, Y, Z)`` int16, canonical.

    Raises:
        UserError: the file is missing or damaged, has values that are not whole numbers, or lies on another grid.
    """
    return read_label_grid(path, like=like)[0]


def read_label_grid(path: Path, *, like: Volume | Geometry | None = None) -> tuple[NDArray[np.int16], Geometry]:
    """As :func:`read_label`; also the grid of the file, for a label without an image."""
    stored, geometry = _read(path)
    if stored.shape[0] != 1:
        raise UserError(f"label {path} has {stored.shape[0]} channels, but medkd reads one label value per voxel")
    if like is not None:
        grid = like if isinstance(like, Geometry) else like.geometry
        if difference := _difference(grid, geometry):
            raise UserError(f"label {path} does not fit its image: {difference}")
        # The image decides which way is canonical: near 45 degrees, rounding could turn the label another way.
        geometry = grid if _same(grid, geometry) else geometry
    if stored.dtype.kind == "f":
        whole = np.rint(stored)
        # A scale factor in the header leaves rounding errors; half a label is none.
        if not (np.isfinite(whole).all() and np.abs(stored - whole).max() < 1e-3):
            raise UserError(f"label {path} has values that are not whole numbers; is it a probability map?")
        stored = whole
    low, high = int(stored.min()), int(stored.max())
    if low < np.iinfo(np.int16).min or high > np.iinfo(np.int16).max:
        raise UserError(f"label {path} has values from {low} to {high}; is it an image?")
    return np.ascontiguousarray(_to_ras(stored, geometry)[0].astype(np.int16)), geometry


def write_label(path: Path, label: NDArray[Any], geometry: Geometry) -> None:
    """Write a canonical label map back on the original grid; the file appears whole or not at all.

    Args:
        path: target; its suffix decides the format.
        label: ``(X, Y, Z)`` whole numbers, canonical.
        geometry: the original grid.

    Raises:
        UserError: a suffix that cannot be written, or the disk refuses (full, read-only).
        ValueError: ``label`` has another shape than the canonical grid.
    """
    ending = suffix(path)
    if ending not in WRITABLE:
        raise UserError(f"cannot write {path}: the name must end in one of {', '.join(WRITABLE)}")
    stored = to_stored(label, geometry)
    small = label.size == 0 or (int(label.min()) >= 0 and int(label.max()) <= 255)
    stored = stored.astype(np.uint8 if small else np.int16)
    temporary = path.with_name(f".{stem(path)}.{os.getpid()}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_stored(temporary, stored, geometry.affine)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the disk refused (is it full?)"
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _finite(stored: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return float32 voxels, all of them numbers."""
    array = stored.astype(np.float32, copy=False)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        verb = "voxel is" if bad == 1 else "voxels are"
        raise UserError(f"{name}: {bad} {verb} NaN or infinite; repair the file or leave the case out")
    return array


def _read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read stored voxels as ``(C, *stored axes)`` with their grid."""
    array, affine = read_stored(path)
    return array, Geometry((array.shape[1], array.shape[2], array.shape[3]), affine)


def _to_ras(array: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """Turn ``(C, *stored axes)`` into ``(C, X, Y, Z)``."""
    return np.stack([_orient.apply_orientation(channel, geometry.to_canonical()) for channel in array])


def _corners(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    index = np.array(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij")).reshape(3, -1)
    return cast("NDArray[np.float64]", affine[:3, :3] @ index + affine[:3, 3:])


def _apart(shape: tuple[int, int, int], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Largest distance in mm between the same corner of two grids."""
    return float(np.linalg.norm(_corners(shape, a) - _corners(shape, b), axis=0).max())


def _same(a: Geometry, b: Geometry) -> bool:
    return a.shape == b.shape and _apart(a.shape, a.affine, b.affine) <= TOLERANCE * min(a.spacing_mm)


def _difference(a: Geometry, b: Geometry) -> str:
    """Say how grid ``b`` differs from ``a``, or nothing when both are the same voxels in any axis order."""
    if _same(a, b):
        return ""
    if a.canonical_shape != b.canonical_shape:
        if a.orientation == b.orientation:
            return f"shapes {a.shape} and {b.shape} differ"
        return f"shapes {a.canonical_shape} and {b.canonical_shape} differ (both in RAS order)"
    apart = _apart(a.canonical_shape, a.canonical_affine, b.canonical_affine)
    if apart <= TOLERANCE * min(a.spacing_mm):
        return ""
    return f"same shape {b.shape}, but the affine differs by up to {apart:.3g} mm"
