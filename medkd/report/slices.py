"""Worst cases as slices: which cases, which plane, and its drawing as one SVG."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.report.palette import LABEL
from medkd.report.scores import Scores
from medkd.report.summary import Row, Slice
from medkd.types import IGNORE

MARGIN_MM = 15.0
"""Shown around the structures."""
FIELD_MM = 60.0
"""Least width and height shown: a small organ needs its surroundings to be recognised."""

SOFT_TISSUE_HU = (-160.0, 240.0)
"""The window that CT of neck, abdomen and pelvis is read in."""
LUNG_HU = (-1000.0, 400.0)
"""A wide window in which lung and its vessels are told apart."""

# Array axes are RAS+ (x to the patient's right, y to the front, z to the head). Radiological convention: one looks at
# the patient from the feet (axial) or from the front (coronal), so the patient's right is on the left of the screen;
# a sagittal slice shows the front on the left. Every screen axis then runs against its array axis.
_PLANES: dict[str, tuple[int, int, int, tuple[str, str, str, str]]] = {
    # plane: axis cut, axis down the screen, axis across the screen, letters (left, right, top, bottom)
    "axial": (2, 1, 0, ("R", "L", "A", "P")),
    "coronal": (1, 2, 0, ("R", "L", "S", "I")),
    "sagittal": (0, 2, 1, ("A", "P", "S", "I")),
}


def worst_cases(rows: Iterable[Row], arm: str, count: int = 6, metric: str = "dice") -> tuple[str, ...]:
    """Return the ids of the ``count`` cases with the lowest mean of ``metric`` over classes, the worst first."""
    means = Scores(rows).case_means(arm, metric)
    return tuple(sorted(means, key=lambda case: (means[case], case))[:count])


def ct_window(low_hu: float) -> tuple[float, float]:
    """Return black and white of a CT picture, in HU: the window that readers know, whatever the training clips to.

    Args:
        low_hu: the lower end of the structures' intensities (0.5th percentile); below -400 it is the lung.
    """
    return LUNG_HU if low_hu < -400 else SOFT_TISSUE_HU


def worst_slice(
    case: str,
    image: NDArray[np.floating[Any]],
    label: NDArray[np.integer[Any]],
    student: NDArray[np.integer[Any]],
    teacher: NDArray[np.integer[Any]] | None,
    spacing_mm: tuple[float, float, float],
    *,
    window: tuple[float, float] | None = None,
    planes: Iterable[str] = tuple(_PLANES),
) -> Slice:
    """Return the plane on which student and label disagree most, by area in mm².

    Args:
        case: its id.
        image: ``(X, Y, Z)`` canonical RAS, any intensity.
        label: ``(X, Y, Z)`` class values, -1 where unknown (such voxels agree with everything).
        student: ``(X, Y, Z)`` class values.
        teacher: ``(X, Y, Z)`` class values, or None.
        spacing_mm: voxel size along (x, y, z).
        window: intensities shown as black and white; None for the 0.5th and 99.5th percentile of the volume.
        planes: which of ``axial``, ``coronal``, ``sagittal`` may be chosen.

    Returns:
        The plane cropped to the structures and :data:`MARGIN_MM` around, at least :data:`FIELD_MM` across.

    Raises:
        UserError: the arrays do not have the same three axes.
    """
    shapes = {"image": image.shape, "label": label.shape, "student": student.shape}
    if teacher is not None:
        shapes["teacher"] = teacher.shape
    if len(set(shapes.values())) != 1 or image.ndim != 3:
        raise UserError(f"case {case}: a slice needs volumes (X, Y, Z) of one shape, these have {shapes}")
    wrong = (student != label) & (label != IGNORE)
    voxel_mm3 = float(np.prod(spacing_mm))
    best: tuple[float, str, int] = (-1.0, "axial", 0)
    for plane in planes:
        axis = _PLANES[plane][0]
        others = tuple(i for i in range(3) if i != axis)
        # Where nothing differs, the slice with most of the label is the one worth seeing.
        counts = wrong.sum(axis=others) if wrong.any() else (label > 0).sum(axis=others)
        index = int(np.argmax(counts))
        area = float(counts[index]) * voxel_mm3 / spacing_mm[axis]
        if area > best[0]:
            best = (area, plane, index)
    area, plane, index = best
    axis, down, across, sides = _PLANES[plane]
    size = (spacing_mm[down], spacing_mm[across])

    def screen(volume: NDArray[Any]) -> NDArray[Any]:
        # take() leaves (across, down): the two axes in the array's order.
        flat: NDArray[Any] = np.take(volume, index, axis=axis).T
        return flat[::-1, ::-1]

    masks = [screen(volume) for volume in (label, student, teacher) if volume is not None]
    rows, columns = _crop(np.any([mask > 0 for mask in masks], axis=0), size)
    low, high = window or percentiles(image)
    grey = np.clip((screen(image).astype(np.float64) - low) / max(high - low, 1e-12), 0.0, 1.0)
    cut = [np.ascontiguousarray(screen(v)[rows, columns], dtype=np.int16) for v in (label, student)]
    return Slice(
        case=case,
        plane=plane,
        index=index,
        image=np.ascontiguousarray(np.rint(np.nan_to_num(grey[rows, columns]) * 255.0), dtype=np.uint8),
        label=cut[0],
        student=cut[1],
        teacher=None if teacher is None else np.ascontiguousarray(screen(teacher)[rows, columns], dtype=np.int16),
        spacing_mm=size,
        sides=sides,
        note=f"{area:.0f} mm² differ from the label" if wrong.any() else "no voxel differs from the label",
    )


def slice_svg(view: Slice, colours: Mapping[str, str], names: Mapping[str, int], *, contours: bool = True) -> str:
    """Return a slice as one SVG in millimetres, so that its aspect is the patient's.

    Args:
        view: the slice.
        colours: ``student`` and ``teacher`` -> hex colour; the label has its own.
        names: class name -> value, for the tooltips.
        contours: False for the picture alone.
    """
    height, width = view.image.shape[0] * view.spacing_mm[0], view.image.shape[1] * view.spacing_mm[1]
    drawn = []
    if contours:
        masks = {"label": view.label, "teacher": view.teacher, "student": view.student}
        paint = {**colours, "label": LABEL}  # a run without a teacher has no colour for one either
        drawn = [_layer(who, mask, paint[who], view, names) for who, mask in masks.items() if mask is not None]
    ruler = next(mm for mm in (100, 50, 20, 10, 5, 2, 1) if mm <= max(width / 3, 1))
    left, right, top, bottom = view.sides
    # Text cannot be sized in screen pixels inside a scaled drawing: take a share of the side that is shown.
    em = max(width, height) / 20
    letters = "".join(
        f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{letter}</text>'
        for letter, x, y, anchor in (
            (left, em * 0.4, height / 2 + em * 0.35, "start"),
            (right, width - em * 0.4, height / 2 + em * 0.35, "end"),
            (top, width / 2, em * 1.1, "middle"),
            (bottom, width / 2, height - em * 0.4, "middle"),
        )
    )
    x0, y0 = width - em * 0.6 - ruler, height - em * 0.7
    scale = (
        f'<path class="ruler" d="M{x0:.2f} {y0:.2f}h{ruler}"/>'
        f'<text x="{x0 + ruler / 2:.2f}" y="{y0 - em * 0.35:.2f}" text-anchor="middle">{ruler} mm</text>'
    )
    title = f"{view.case}, {view.plane} slice {view.index}" + (" with contours" if contours else "")
    return (
        f'<svg class="slice" viewBox="0 0 {width:.2f} {height:.2f}" role="img" aria-label="{escape(title)}" '
        f'font-size="{em:.2f}"><image href="{png_uri(view.image)}" width="{width:.2f}" height="{height:.2f}" '
        f'preserveAspectRatio="none"/>{"".join(drawn)}{letters}{scale}</svg>'
    )


def png_uri(image: NDArray[np.uint8]) -> str:
    """Return a grey image ``(H, W)`` uint8 as a ``data:`` address of a PNG (RFC 2083: one IDAT, filter 0)."""
    height, width = image.shape
    lines = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(image))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def outline(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> str:
    """Return the closed outlines of ``mask`` as an SVG path in mm; empty for an empty mask.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage.measure import find_contours
    except ImportError as error:
        raise UserError("the report draws contours with scikit-image: pip install 'medkd[report]'") from error
    # One voxel of nothing around it, so that an outline at the edge of the picture closes.
    padded = np.pad(mask.astype(np.float64), 1)
    parts = []
    found: list[NDArray[np.float64]] = find_contours(padded, 0.5)  # type: ignore[no-untyped-call]
    for points in found:
        # Voxel i covers [i, i + 1] voxel widths: its centre, where find_contours counts, is at i + 0.5.
        xy = (points[:-1, ::-1] - 0.5) * (spacing_mm[1], spacing_mm[0])
        parts.append("M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in xy) + "Z")
    return "".join(parts)


def _layer(who: str, mask: NDArray[np.int16], colour: str, view: Slice, names: Mapping[str, int]) -> str:
    by_value = {value: name for name, value in names.items()}
    paths = []
    for value in sorted(int(v) for v in np.unique(mask) if v > 0):
        path = outline(mask == value, view.spacing_mm)
        title = escape(f"{who}: {by_value.get(value, value)}")
        paths.append(f'<path class="halo" d="{path}"/><path stroke="{colour}" d="{path}"><title>{title}</title></path>')
    return f'<g class="contour {who}">{"".join(paths)}</g>'


def _crop(mask: NDArray[np.bool_], size: tuple[float, float]) -> tuple[slice, slice]:
    """Return a window around ``mask``: as near to a square as the picture allows, of at least :data:`FIELD_MM`."""
    hits = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    spans = [(int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, mask.shape[i]) for i, hit in enumerate(hits)]
    needed = [(last - first) * step + 2 * MARGIN_MM for (first, last), step in zip(spans, size, strict=True)]
    field = max(FIELD_MM, *needed)
    windows = []
    for (first, last), step, length in zip(spans, size, mask.shape, strict=True):
        wide = min(length, round(field / step))
        start = min(max(0, round((first + last - wide) / 2)), length - wide)
        windows.append(slice(start, start + wide))
    return windows[0], windows[1]


def percentiles(image: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return the 0.5th and the 99.5th percentile of the finite values; 0 and 1 where there is none."""
    values = image[np.isfinite(image)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), float(high)
