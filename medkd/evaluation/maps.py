"""Label maps as tools leave them: one file with all classes, or a folder with a file for each class."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, find_objects

from medkd.data.formats import voxel_size
from medkd.data.volume import Geometry, read_label_grid
from medkd.errors import UserError
from medkd.evaluation.matching import class_files
from medkd.evaluation.measure import Labels


@dataclass
class LabelMap:
    """A label map on its grid.

    Args:
        array: ``(X, Y, Z)`` int16, canonical.
        grid: the grid of its file.
        told: what a reader of its scores must know, each "has ..." or "was ...".
    """

    array: NDArray[np.int16]
    grid: Geometry
    told: list[str] = field(default_factory=list)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along X, Y, Z."""
        return voxel_size(self.grid.canonical_affine)


def read_map(path: Path, labels: Labels | None, *, like: Geometry | None = None) -> LabelMap:
    """Read a label map from a file, or from the folder of a case.

    Args:
        path: the file or folder.
        labels: class name -> value; a folder's files are found by these names, in lower case with ``_`` for all else.
        like: the grid that it must lie on.

    Raises:
        UserError: what :func:`medkd.data.volume.read_label` raises; a folder without the names of its classes, or none
            of whose files has such a name.
    """
    if path.is_file():
        return LabelMap(*read_label_grid(path, like=like))
    files = {_plain(name): file for name, file in class_files(path).items()}
    wanted = {name: value for name, value in (labels or {}).items() if value != 0}
    if regions := [name for name, value in wanted.items() if not isinstance(value, int)]:
        raise UserError(
            f"{path} has a file for each class, which cannot hold the region {regions[0]!r}: give one value"
        )
    there = {name: files[_plain(name)] for name in wanted if _plain(name) in files}
    if not there:
        raise UserError(f"{path} holds {', '.join(sorted(files))}, and none of them is a class: give their names")
    whole: LabelMap | None = None
    shared = 0
    for name, file in there.items():
        mask, grid = read_label_grid(file, like=like)
        if whole is None:
            whole = LabelMap(np.zeros_like(mask), grid)
            like = grid
        shared += int(np.count_nonzero(mask.astype(bool) & (whole.array != 0)))
        whole.array[mask != 0] = wanted[name]
    assert whole is not None
    if absent := [name for name in wanted if name not in there]:
        whole.told.append(f"has no file for {', '.join(absent)}, counted as empty")
    if shared:
        whole.told.append(f"has {shared} voxels in two classes, the later one counts")
    return whole


def read_on_grid(path: Path, labels: Labels | None, reference: LabelMap, *, resample: bool) -> LabelMap:
    """Read a label map on the grid of ``reference``; one that lies elsewhere is refused, or resampled and told.

    Raises:
        UserError: it cannot be read, or lies on another grid and ``resample`` is False.
    """
    try:
        return read_map(path, labels, like=reference.grid)
    except UserError as refused:
        moving = read_map(path, labels)  # raises by itself where the file, not its grid, is the trouble
        if not resample:
            raise UserError(
                f"prediction {path} lies on another grid than the reference: {_grid(moving)} against "
                f"{_grid(reference)}; write it on the reference's grid or ask for resampling"
            ) from refused
    step: Any = np.linalg.inv(moving.grid.canonical_affine) @ reference.grid.canonical_affine
    # grid-constant: the outer half of a border voxel still belongs to it, only what lies beyond is background
    moved = affine_transform(
        moving.array, step[:3, :3], step[:3, 3], reference.array.shape, order=0, mode="grid-constant", cval=0
    )
    words = "was resampled to the reference's grid by nearest neighbour"
    return LabelMap(np.asarray(moved, np.int16), reference.grid, [words, *moving.told])


def by_files(*paths: Path) -> Labels | None:
    """Return a class per file of the cases' folders, or None where both are files and their values must tell.

    Raises:
        UserError: one is a folder and the other a file, so that nothing tells which value a file of a class stands for.
    """
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return None
    if len(folders) < len(paths):
        raise UserError(f"{folders[0]} has a file for each class and its partner has not: give the names of the values")
    stems = sorted({_plain(name) for folder in folders for name in class_files(folder)})
    return {name: value for value, name in enumerate(stems, start=1)}


def values_of(array: NDArray[np.int16]) -> set[int]:
    """Return the values that occur in a label map, faster than sorting its voxels."""
    low = int(array.min())
    boxes: list[Any] = find_objects(array)  # None for a value that does not occur
    found = {value for value, box in enumerate(boxes, start=1) if box is not None}
    return found | ({int(value) for value in np.unique(array[array < 0])} if low < 0 else set()) | {0}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _grid(found: LabelMap) -> str:
    spacing = " x ".join(f"{step:.3g}" for step in found.spacing_mm)
    origin = ", ".join(f"{place:.4g}" for place in found.grid.canonical_affine[:3, 3])
    return f"shape {found.array.shape}, spacing {spacing} mm, first voxel at ({origin}) mm"
