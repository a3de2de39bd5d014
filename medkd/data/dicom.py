"""DICOM series as volumes: files found, series told apart, pixels read.

A series is named by its folder. Where a folder holds several, ``folder#UID`` names one by its SeriesInstanceUID, or by
any ending of it that no other series shares. pydicom (extra ``dicom``) is imported only when a series is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.stacking import Frame, frames_of, stack
from medkd.errors import UserError

NO_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "PR", "KO", "SR", "REG", "FID"}
"""Modalities of objects that lie beside images and are none."""
_ENDINGS = (".dcm", ".ima", ".dicom")
_LISTED = 6
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """Slices that stack to one volume.

    Args:
        name: the path as it was given, for sentences.
        uid: SeriesInstanceUID.
        frames: in ascending order along the normal of the slices.
        affine: ``(4, 4)``, (column, row, slice) -> RAS mm.
    """

    name: Path
    uid: str
    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]

    @property
    def headers(self) -> list[Any]:
        """The pydicom datasets without pixels: one a slice, or the one that holds all slices."""
        first = self.frames[0].header
        return [first] if first.get("NumberOfFrames") else [frame.header for frame in self.frames]


def split_uid(path: Path) -> tuple[Path, str]:
    """Return the folder and the UID of ``folder#UID``; an empty UID where none is named."""
    if "#" in path.name and not path.exists():
        name, _, uid = path.name.rpartition("#")
        return path.with_name(name), uid
    return path, ""


def is_dicom(path: Path) -> bool:
    """Tell whether ``path`` is a DICOM file, or a folder (or ``folder#UID``) with at least one in it."""
    place, uid = split_uid(path)
    if place.is_file():
        return not uid and _looks_dicom(place)
    if not place.is_dir():
        return False
    files = list(_files(place))
    if any(file.suffix.lower() in _ENDINGS for file in files):
        return True
    # Slices often have no ending. A few strangers decide: a folder of volumes is not opened to its end.
    return any(_looks_dicom(file) for file in files[:_LISTED])


def series_files(path: Path) -> list[Path]:
    """Return all files of the folder of a series, sorted: what its content hash is made of."""
    place, _ = split_uid(path)
    return sorted(_files(place)) if place.is_dir() else [place]


def read_series(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read the voxels of a series, rescaled (CT: Hounsfield units).

    Returns:
        ``(1, columns, rows, slices)``, and the ``(4, 4)`` affine to RAS mm.

    Raises:
        UserError: as :func:`open_series`; a file is damaged, or its compression cannot be undone here.
    """
    series = open_series(path)
    first = series.frames[0]
    voxels = np.empty((1, first.columns, first.rows, len(series.frames)), np.float32)
    last: Path | None = None
    pixels: NDArray[Any] = np.empty(0)
    for index, frame in enumerate(series.frames):
        if frame.file != last:
            pixels, last = _pixels(frame), frame.file
        plane = pixels[frame.number] if pixels.ndim == 3 else pixels
        if plane.shape != (frame.rows, frame.columns):
            raise UserError(
                f"file {frame.file} holds pixels of shape {plane.shape}, and medkd needs one number a pixel"
            )
        voxels[0, :, :, index] = plane.T * np.float32(frame.slope) + np.float32(frame.intercept)
    return voxels, series.affine


def open_series(path: Path) -> Series:
    """Read the headers of a series and stack its slices.

    Args:
        path: a folder, ``folder#UID``, or one multi-frame file.

    Raises:
        UserError: pydicom is missing; no image there, several series, slices that are missing, doubled, unevenly
            spaced, tilted or of several sizes or orientations.
    """
    place, uid = split_uid(path)
    found: dict[str, list[Frame]] = {}
    for file, header in _headers([place] if place.is_file() else sorted(_files(place))):
        if "Rows" in header and header.get("Modality") not in NO_IMAGES:
            found.setdefault(str(header.get("SeriesInstanceUID", "")), []).extend(frames_of(file, header))
    if not found:
        raise UserError(f"{place} holds no DICOM image; give the folder of a CT or MR series")
    chosen = _choose(place, uid, found)
    frames = found[chosen]
    if place.is_file() and len(frames) == 1:
        raise UserError(f"file {place} is one slice of a series; give the folder that holds them all")
    frames, lps = stack(path, frames)
    return Series(path, chosen, tuple(frames), _LPS_TO_RAS @ lps)


def _choose(place: Path, uid: str, found: dict[str, list[Frame]]) -> str:
    placed = [one for one, frames in found.items() if any(frame.position is not None for frame in frames)]
    if uid:
        ends = [one for one in found if one == uid] or [one for one in found if one.endswith(uid)]
        if len(ends) == 1:
            return ends[0]
        why = "no" if not ends else "more than one"
        raise UserError(f"folder {place} has {why} series whose UID ends in {uid}; it has {_listed(found)}")
    candidates = placed or list(found)
    if len(candidates) > 1:
        told = _listed({one: found[one] for one in candidates})
        raise UserError(
            f"folder {place} mixes {len(candidates)} series: {told}; name one of them, as {place}#{candidates[0]}"
        )
    return candidates[0]


def _listed(found: dict[str, list[Frame]]) -> str:
    told = []
    for uid, frames in list(found.items())[:_LISTED]:
        header = frames[0].header
        words = [str(header.get("Modality", "")), f"{len(frames)} slices", str(header.get("SeriesDescription", ""))]
        told.append(f"{uid} ({', '.join(word for word in words if word)})")
    return ", ".join(told) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")


def _looks_dicom(file: Path) -> bool:
    if file.suffix.lower() in _ENDINGS:
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _headers(files: Sequence[Path]) -> Iterator[tuple[Path, Any]]:
    """Yield every DICOM file with its header; other files are passed over."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise UserError("reading DICOM needs pydicom; install it with `pip install 'medkd[dicom]'`") from error
    for file in files:
        try:
            yield file, pydicom.dcmread(file, stop_before_pixels=True)
        except InvalidDicomError as error:
            if file.suffix.lower() in _ENDINGS:  # no bystander: its name says that it is a slice
                raise UserError(f"file {file} is damaged or no DICOM file; copy the series again") from error
        except PermissionError as error:
            raise UserError(f"file {file} may not be read: permission denied") from error
        except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"file {file} is damaged or cut short; copy the series again") from error


def _pixels(frame: Frame) -> NDArray[Any]:
    """Return ``(rows, columns)``, or ``(frames, rows, columns)`` of a multi-frame file, as stored."""
    import pydicom

    try:
        dataset = pydicom.dcmread(frame.file)
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            return np.asarray(dataset.pixel_array)
        try:
            return np.asarray(dataset.pixel_array)
        except (RuntimeError, ImportError, NotImplementedError, ValueError):  # no decoder, or one that gives up
            return _decoded_elsewhere(frame, dataset)
    except UserError:
        raise
    except Exception as error:  # decoders raise what they please; every one means an unreadable file
        raise UserError(f"file {frame.file} is damaged or cut short; copy the series again") from error


def _decoded_elsewhere(frame: Frame, dataset: Any) -> NDArray[Any]:
    """Decode with GDCM, which comes with SimpleITK and knows the JPEG family; it rescales, which is taken back."""
    import SimpleITK

    try:
        array: NDArray[Any] = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(frame.file)))
    except RuntimeError as error:
        name = dataset.file_meta.TransferSyntaxUID.name
        raise UserError(
            f"file {frame.file} is damaged, or its compression ({name}) cannot be undone here; "
            "store the series uncompressed, e.g. with gdcmconv --raw"
        ) from error
    if "NumberOfFrames" not in dataset:
        array = array[0] if array.ndim == 3 else array
    # Only slope and intercept of the dataset itself are known to GDCM, not those of single frames.
    own = "RescaleSlope" in dataset
    return (array - frame.intercept) / frame.slope if own and frame.slope else array
