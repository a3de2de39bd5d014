"""Prepared volumes in chunked blosc2 files: a patch is read, not a volume."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError

Array = NDArray[Any]
_FOREGROUND = 2000  # positions kept per class and case: enough that a class is sampled evenly


class DamagedFileError(UserError):
    """A stored file that cannot be read any more."""


class Volumes:
    """A folder of arrays ``(C, *S)`` by case, read by slices.

    Args:
        folder: where the ``<case>.<kind>.b2nd`` files are.
        ram_mb: arrays that fit in this many MB stay decoded in memory, least recently used out first.
    """

    def __init__(self, folder: Path, *, ram_mb: float = 1024.0) -> None:
        self.folder = folder
        self._budget = ram_mb * 1e6
        self._held: OrderedDict[str, Array] = OrderedDict()
        self._open: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # what a worker process is sent: it opens its own files
        return {**self.__dict__, "_held": OrderedDict(), "_open": {}}

    def write(self, case: str, kind: str, array: Array, *, effort: int = 3) -> None:
        """Store ``array`` ``(C, *S)``, chunked so that a patch touches few chunks; the file is whole or absent.

        ``effort`` is that of the compressor, 1 to 9: it changes bytes and the time of writing, not that of reading.
        """
        path = self.folder / f"{case}.{kind}.b2nd"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        spatial = array.shape[1:]
        chunks = (min(array.shape[0], 8), *(min(s, 64) for s in spatial))
        blocks = (1, *(min(s, 32) for s in spatial))
        params = {"codec": blosc2.Codec.ZSTD, "clevel": effort}
        try:
            blosc2.asarray(
                np.ascontiguousarray(array), urlpath=str(part), mode="w", chunks=chunks, blocks=blocks, cparams=params
            )
            part.replace(path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise UserError(f"{path} cannot be written ({error}); free disk space or choose another folder") from error

    def read(self, case: str, kind: str) -> Any:
        """Return the array of a case: something with ``shape`` that gives numpy arrays when sliced.

        Raises:
            UserError: missing file; :class:`DamagedFileError` where it cannot be read.
        """
        name = f"{case}.{kind}"
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        if name in self._open:
            return self._open[name]
        path = self.folder / f"{name}.b2nd"
        if not path.is_file():
            raise UserError(f"{path} is missing; prepare the data again (delete the folder {self.folder.parent})")
        try:
            opened = blosc2.open(str(path), mode="r")
            size = float(np.prod(opened.shape)) * opened.dtype.itemsize
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(path, error) from error
        lazy = _Lazy(opened, path)
        if size > self._budget / 4:
            self._open[name] = lazy
            return lazy
        array = lazy[...]
        self._held[name] = array
        while sum(a.nbytes for a in self._held.values()) > self._budget:
            self._held.popitem(last=False)
        return array

    def forget(self, case: str, kind: str) -> None:
        """Let go of an array that is about to change."""
        self._held.pop(f"{case}.{kind}", None)
        self._open.pop(f"{case}.{kind}", None)

    def has(self, case: str, kind: str) -> bool:
        """Return whether the case has an array of this kind."""
        return (self.folder / f"{case}.{kind}.b2nd").is_file()


class _Lazy:
    """An array on disk, decoded where it is sliced."""

    def __init__(self, opened: Any, path: Path) -> None:
        self._opened, self._path = opened, path
        self.shape, self.dtype = tuple(opened.shape), opened.dtype

    def __getitem__(self, index: Any) -> Array:
        try:
            return np.asarray(self._opened[index])
        except (RuntimeError, ValueError, OSError) as error:
            raise _damaged(self._path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({error}); delete it and run again")


class Store:
    """The prepared cases of a dataset.

    A case has an ``image`` ``(C, *S)`` float32 and, where it is labelled, a ``label`` ``(1, *S)`` int16
    and the positions of its foreground classes.
    """

    def __init__(self, folder: Path, *, ram_mb: float = 1024.0) -> None:
        self.folder = folder
        self.volumes = Volumes(folder / "volumes", ram_mb=ram_mb)
        index = folder / "index.json"
        self.index: dict[str, dict[str, Any]] = json.loads(index.read_text()) if index.is_file() else {}
        self._positions: dict[str, dict[int, Array]] = {}

    def add(self, case: str, image: Array, label: Array | None) -> None:
        """Store one prepared case; :meth:`close` writes the index."""
        self.volumes.write(case, "image", image.astype(np.float32, copy=False))
        entry: dict[str, Any] = {"shape": list(image.shape), "labelled": label is not None}
        if label is not None:
            self.volumes.write(case, "label", label[None].astype(np.int16, copy=False))
            positions = class_positions(label)
            write_positions(self.volumes.folder / f"{case}.positions.npz", positions)
            entry["voxels"] = {str(k): int((label == k).sum()) for k in positions}
        self.index[case] = entry

    def close(self) -> None:
        """Write the index."""
        part = self.folder / "index.json.part"
        part.write_text(json.dumps(self.index, indent=1))
        part.replace(self.folder / "index.json")

    def image(self, case: str) -> Any:
        """Return the image of a case, ``(C, *S)`` float32, sliceable."""
        return self.volumes.read(case, "image")

    def label(self, case: str) -> Any:
        """Return the label of a case, ``(1, *S)`` int16, sliceable, or None where it has none."""
        return self.volumes.read(case, "label") if self.index[case]["labelled"] else None

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions ``(n, dims)`` by foreground class of a labelled case."""
        if case not in self._positions:
            self._positions[case] = read_positions(self.volumes.folder / f"{case}.positions.npz")
        return self._positions[case]


def class_positions(label: Array, most: int = _FOREGROUND) -> dict[int, Array]:
    """Return up to ``most`` evenly drawn positions ``(n, dims)`` of each foreground class in ``label`` ``(*S)``."""
    rng = np.random.default_rng(0)
    found: dict[int, Array] = {}
    for value in np.unique(label[label > 0]):
        where = np.flatnonzero(label == value)
        if len(where) > most:
            where = rng.choice(where, most, replace=False)
        found[int(value)] = np.stack(np.unravel_index(where, label.shape), 1).astype(np.int32)
    return found


def write_positions(path: Path, positions: Mapping[int, Array]) -> None:
    """Write positions by class; the file is whole or absent."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            np.savez_compressed(stream, **{str(k): v for k, v in positions.items()})  # type: ignore[arg-type]
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}); free disk space or choose another folder") from error


def read_positions(path: Path) -> dict[int, Array]:
    """Read positions by class as written beside a label or a teacher target.

    Raises:
        UserError: missing file; :class:`DamagedFileError` where it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; delete the folder {path.parent} and run again")
    try:
        with path.open("rb") as stream, np.load(stream) as stored:
            return {int(k): stored[k] for k in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def read_patch(array: Any, start: Sequence[int], size: Sequence[int], fill: float) -> Array:
    """Return ``array[:, start:start+size]``, with ``fill`` where the patch leaves the volume.

    Shapes: array ``(C, *S)`` -> ``(C, *size)``.
    """
    spatial = array.shape[1:]
    low = [max(0, a) for a in start]
    high = [min(s, a + n) for s, a, n in zip(spatial, start, size, strict=True)]
    inside = array[(slice(None), *(slice(a, max(a, b)) for a, b in zip(low, high, strict=True)))]
    if tuple(inside.shape[1:]) == tuple(size):
        return np.asarray(inside)
    out = np.full((array.shape[0], *size), fill, dtype=array.dtype)
    at = tuple(slice(a - s, a - s + n) for a, s, n in zip(low, start, inside.shape[1:], strict=True))
    out[(slice(None), *at)] = inside
    return out
