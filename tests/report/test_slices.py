from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medkd.errors import UserError
from medkd.report.palette import LABEL
from medkd.report.slices import outline, png_uri, slice_svg, worst_cases, worst_slice

COLOURS = {"teacher": "#2B8CDB", "student": "#D55E00"}
SPACING = (1.0, 2.0, 4.0)


def empty() -> np.ndarray:
    return np.zeros((20, 16, 12), np.int16)


def ramp() -> np.ndarray:
    """Brighter to the patient's right, front and head."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (20, 16, 12)), indexing="ij")
    return x + 20 * y + 400 * z


def test_the_cases_with_the_lowest_dice_come_first() -> None:
    rows = [{"arm": "student", "case": c, "label": "liver", "dice": d} for c, d in (("a", 0.9), ("b", 0.2), ("c", 0.5))]
    rows += [{"arm": "control", "case": "a", "label": "liver", "dice": 0.0}]
    assert worst_cases(rows, "student", 2) == ("b", "c")


@pytest.mark.parametrize(
    ("plane", "wrong", "index"),
    [("axial", np.s_[3:9, 3:9, 7], 7), ("coronal", np.s_[3:9, 5, 3:9], 5), ("sagittal", np.s_[11, 3:9, 3:9], 11)],
)
def test_the_plane_is_where_student_and_label_differ_most(plane: str, wrong: tuple[slice, ...], index: int) -> None:
    student = empty()
    student[wrong] = 1
    found = worst_slice("a", ramp(), empty(), student, None, (1.0, 1.0, 1.0))
    assert (found.plane, found.index) == (plane, index)
    assert found.note == "36 mm² differ from the label"
    assert found.student.sum() == 36


def test_area_is_counted_in_mm() -> None:
    student = empty()
    student[2:8, 2:8, 4] = 1  # 36 voxels of 1 x 1 mm
    student[15, 2:6, 2:7] = 1  # 20 voxels of 1 x 5 mm
    assert worst_slice("a", ramp(), empty(), student, None, (1.0, 1.0, 5.0)).plane == "sagittal"


def test_unknown_voxels_are_no_mistake() -> None:
    label, student = empty(), empty()
    label[:, :, 2] = -1
    student[:, :, 2] = 1
    student[4:8, 4:8, 9] = 1
    assert worst_slice("a", ramp(), label, student, None, SPACING, planes=["axial"]).index == 9


def test_a_perfect_case_shows_the_most_of_the_label() -> None:
    label = empty()
    label[4:8, 4:8, 3], label[2:9, 2:9, 6] = 1, 1
    found = worst_slice("a", ramp(), label, label, label, SPACING, planes=["axial"])
    assert found.index == 6
    assert found.note == "no voxel differs from the label"


@pytest.mark.parametrize(
    ("plane", "sides", "spacing", "shape"),
    [("axial", ("R", "L", "A", "P"), (2.0, 1.0), (16, 20)), ("coronal", ("R", "L", "S", "I"), (4.0, 1.0), (12, 20)),
     ("sagittal", ("A", "P", "S", "I"), (4.0, 2.0), (12, 16))],
)  # fmt: skip
def test_the_display_is_radiological(plane, sides, spacing, shape) -> None:
    found = worst_slice("a", ramp(), empty(), empty(), None, SPACING, planes=[plane], window=(0.0, 5000.0))
    assert (found.sides, found.spacing_mm, found.image.shape) == (sides, spacing, shape)
    picture = found.image.astype(int)
    assert picture[0, 0] > picture[-1, 0]  # brighter at the top: front or head
    window = worst_slice("a", ramp(), empty(), empty(), None, SPACING, planes=[plane], window=_row_window(plane))
    assert window.image[0, 0] > window.image[0, -1]  # brighter on the left: patient's right, or front


def _row_window(plane: str) -> tuple[float, float]:
    """Return intensities that resolve the top row of the slice that an empty case shows (the first)."""
    first = {"axial": 300.0, "coronal": 4400.0, "sagittal": 4400.0}[plane]
    return first, first + (20.0 if plane != "sagittal" else 320.0)


def test_label_student_and_teacher_are_turned_alike() -> None:
    label, student, teacher = empty(), empty(), empty()
    label[2, 13, 5], student[2, 13, 6], teacher[2, 13, 5] = 1, 1, 1
    found = worst_slice("a", ramp(), label, student, teacher, (1.0, 1.0, 1.0), planes=["axial"])
    assert found.index == 5
    assert np.argwhere(found.label).tolist() == np.argwhere(found.teacher).tolist() == [[2, 17]]
    assert found.label.dtype == np.int16


def test_a_large_picture_is_cropped_to_what_matters() -> None:
    label, image = np.zeros((200, 200, 3), np.int16), np.zeros((200, 200, 3), np.float32)
    label[100:110, 100:104, 1] = 1
    found = worst_slice("a", image, label, label * 0, None, (1.0, 1.0, 1.0), planes=["axial"])
    assert found.image.shape == (60, 60)
    assert found.label.sum() == 40
    middle = np.argwhere(found.label).mean(axis=0)
    np.testing.assert_allclose(middle, 29.5, atol=1)


def test_nan_and_flat_images_are_drawn() -> None:
    image = np.full(empty().shape, np.nan, np.float32)
    assert worst_slice("a", image, empty(), empty(), None, SPACING).image.max() == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(UserError, match=r"case a: .*teacher"):
        worst_slice("a", ramp(), empty(), empty(), empty()[1:], SPACING)


def test_png_is_what_pillow_reads() -> None:
    image = np.arange(35, dtype=np.uint8).reshape(5, 7)
    body = base64.b64decode(png_uri(image).removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), image)


def test_an_outline_is_closed_and_in_mm() -> None:
    mask = np.zeros((6, 6), bool)
    mask[2:4, 1:6] = True  # touches the right edge
    path = outline(mask, (3.0, 0.5))
    points = np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", path.strip("MZ"))])
    assert path.count("M") == path.count("Z") == 1
    np.testing.assert_allclose(points.min(axis=0), (0.5, 6.0))
    np.testing.assert_allclose(points.max(axis=0), (3.0, 12.0))
    assert outline(~mask & mask, (1.0, 1.0)) == ""


def test_the_drawing_has_three_colours_and_the_patients_shape(pictured) -> None:
    root = ET.fromstring(slice_svg(pictured[0], COLOURS, {"liver<b>": 1}).replace("<svg", "<svg xmlns=''", 1))
    _, _, width, height = map(float, root.get("viewBox").split())
    rows, columns = pictured[0].image.shape
    assert width / height == pytest.approx(
        columns * pictured[0].spacing_mm[1] / (rows * pictured[0].spacing_mm[0]), rel=1e-3
    )
    strokes = {path.get("stroke") for path in root.iter("path")} - {None}
    assert strokes == {LABEL, *COLOURS.values()}
    assert "label: liver<b>" in {title.text for title in root.iter("title")}
    assert {text.text for text in root.iter("text")} >= {"R", "L", "A", "P"}


def test_no_teacher_no_contour(pictured) -> None:
    svg = slice_svg(replace(pictured[0], teacher=None), {"student": COLOURS["student"]}, {})
    assert COLOURS["teacher"] not in svg
    assert "<path stroke" not in slice_svg(pictured[0], COLOURS, {}, contours=False)
