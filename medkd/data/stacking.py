"""Slices of a DICOM series as a stack: their order, their affine, and what keeps them from being one volume."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError

SAME_MM = 0.01
"""Slices nearer than this lie in the same place."""
UNEVEN = 0.05
"""Share of the usual distance by which the distance of two slices may differ from it, and at least 0.05 mm."""
TILT_DEGREES = 0.5
"""Between the stack's direction and the normal of its slices; rounded positions stay far below."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice.

    Args:
        file: where it lies.
        number: its place in a multi-frame file, else 0.
        header: pydicom dataset without pixels.
        rows, columns: size in pixels.
        position: ``(3,)`` LPS mm of the centre of the first pixel; None where the file does not tell.
        orientation: ``(6,)`` direction along a row, then along a column; None likewise.
        spacing: mm between rows, between columns; None likewise.
        thickness: mm, for a stack of one slice.
        slope, intercept: stored value -> value.
    """

    file: Path
    number: int
    header: Any
    rows: int
    columns: int
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    thickness: float
    slope: float
    intercept: float


def frames_of(file: Path, header: Any) -> list[Frame]:
    """Return the slices of one file, several where it is multi-frame.

    Raises:
        UserError: numbers that are none.
    """
    try:
        if not header.get("NumberOfFrames"):
            return [_frame(file, 0, header, (header,))]
        shared = list(header.get("SharedFunctionalGroupsSequence") or [])
        own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
        count = int(header.NumberOfFrames)
        if own and len(own) != count:
            raise UserError(f"file {file} has {count} frames but describes {len(own)}; copy or export the series again")
        return [
            _frame(file, number, header, (*_groups([*own[number : number + 1], *shared]), header))
            for number in range(count)
        ]
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"file {file} has a damaged header ({error}); copy the series again") from error


def _groups(items: list[Any]) -> tuple[Any, ...]:
    """Return what functional groups hold, each a sequence of one item."""
    names = (
        *("PlanePositionSequence", "PlaneOrientationSequence"),
        *("PixelMeasuresSequence", "PixelValueTransformationSequence"),
    )
    return tuple(item[name][0] for item in items for name in names if item.get(name))


def _frame(file: Path, number: int, header: Any, places: tuple[Any, ...]) -> Frame:
    def told(name: str) -> Any:
        return next((place.get(name) for place in places if place.get(name) not in (None, "")), None)

    position, orientation, spacing = told("ImagePositionPatient"), told("ImageOrientationPatient"), told("PixelSpacing")
    slope, intercept = told("RescaleSlope"), told("RescaleIntercept")
    return Frame(
        file=file,
        number=number,
        header=header,
        rows=int(header.Rows),
        columns=int(header.Columns),
        position=None if position is None else np.array([float(value) for value in position]),
        orientation=None if orientation is None else np.array([float(value) for value in orientation]),
        spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        thickness=float(told("SpacingBetweenSlices") or told("SliceThickness") or 1.0),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def stack(name: Path, frames: list[Frame]) -> tuple[list[Frame], NDArray[np.float64]]:
    """Sort slices along their normal.

    Args:
        name: of the series, for sentences.
        frames: at least one.

    Returns:
        The slices in ascending order, and the ``(4, 4)`` affine (column, row, slice) -> LPS mm.

    Raises:
        UserError: slices without a place, of several sizes or orientations, doubled, missing, uneven or tilted.
    """
    first = frames[0]
    if lost := next((f for f in frames if f.position is None or f.orientation is None or f.spacing is None), None):
        raise UserError(f"file {lost.file} does not tell where in the patient it lies; give a CT or MR series")
    if first.header.get("SamplesPerPixel", 1) != 1:
        raise UserError(f"file {first.file} is a colour picture, and medkd reads one number a pixel")
    _check_alike(name, frames)
    assert first.orientation is not None
    assert first.spacing is not None
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    if abs(float(np.linalg.norm(normal)) - 1) > 1e-2:
        raise UserError(f"series {name} has an unknown orientation: its rows and columns are not at right angles")
    positions = np.array([frame.position for frame in frames])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    frames, positions, heights = [frames[i] for i in order], positions[order], heights[order]
    step = normal * first.thickness
    if len(frames) > 1:
        _check_steps(name, frames, heights)
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        _check_tilt(name, step, normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * first.spacing[1], column * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return frames, affine


def _check_alike(name: Path, frames: list[Frame]) -> None:
    sizes = Counter((frame.rows, frame.columns) for frame in frames)
    if len(sizes) > 1:
        told = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.most_common())
        raise UserError(f"series {name} has slices of several sizes: {told}; take out what does not belong to it")
    ways = Counter(tuple(np.round(frame.orientation, 2) + 0.0) for frame in frames if frame.orientation is not None)
    most = np.array(ways.most_common(1)[0][0])
    odd = [f for f in frames if f.orientation is not None and np.abs(f.orientation - most).max() > 0.02]
    if odd:
        text = (
            f"{len(odd)} of the {len(frames)} slices of series {name} lie in another orientation (first {odd[0].file})"
        )
        raise UserError(f"{text}; take them out, they may be a scout")
    if len({np.round(frame.spacing or (0, 0), 3).tobytes() for frame in frames}) > 1:
        raise UserError(f"series {name} has slices of several pixel sizes; take out what does not belong to it")


def _check_steps(name: Path, frames: list[Frame], heights: NDArray[np.float64]) -> None:
    steps = np.diff(heights)
    twice = np.flatnonzero(steps < SAME_MM)
    if twice.size:
        places = len(frames) - twice.size
        if len(frames) % places == 0 and len(frames) // places > 1 and twice.size >= places:
            times = len(frames) // places
            raise UserError(f"series {name} shows each of {places} places {times} times (phases or echoes); split it")
        one, other = frames[twice[0]].file.name, frames[twice[0] + 1].file.name
        many = f"{twice.size} slices" if twice.size > 1 else "one slice"
        raise UserError(f"series {name} holds {many} twice (such as {one} and {other}); take the copies out")
    usual = float(np.median(steps))
    wrong = np.abs(steps - usual) > max(UNEVEN * usual, 0.05)
    if not wrong.any():
        return
    at = int(np.argmax(steps))
    gaps = np.rint(steps / usual)
    if gaps.max() >= 2 and (np.abs(steps - gaps * usual) <= np.maximum(gaps * UNEVEN * usual, 0.05)).all():
        missing = int((gaps - 1).sum())
        many = f"{missing} slices" if missing > 1 else "one slice"
        where = f"between {frames[at].file.name} and {frames[at + 1].file.name}"
        raise UserError(
            f"series {name} lacks {many}, {where}: {steps[at]:.4g} mm instead of {usual:.4g}; fetch it again"
        )
    raise UserError(
        f"series {name} has uneven slices, {steps.min():.4g} to {steps.max():.4g} mm apart; "
        "resample it to even ones first"
    )


def _check_tilt(name: Path, step: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    cosine = float(step @ normal / np.linalg.norm(step))
    tilt = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if tilt > TILT_DEGREES:
        raise UserError(
            f"series {name} was taken with a tilted gantry ({tilt:.1f} degrees), so its voxels are no boxes; "
            "straighten it first, e.g. with dcm2niix"
        )
