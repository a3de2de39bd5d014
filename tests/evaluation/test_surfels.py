"""Surfels: hand-made areas, symmetry, and the table of the reference package."""

from itertools import permutations

import numpy as np
import pytest

from medkd.evaluation import surfels


def test_a_cube_face_by_face() -> None:
    """Eight corners (cut off), twelve edges (two triangles' worth each), six faces: by hand for a 2 x 2 x 2 cube."""
    mask = np.ones((2, 2, 2), bool)
    code = surfels.codes(mask)
    assert code.shape == (3, 3, 3)
    size = surfels.sizes((1.0, 1.0, 1.0))
    assert code[0, 0, 0] == 1 << 7  # the one voxel inside lies after the corner on every axis
    assert code[1, 1, 1] == 255
    corner, edge, face = np.sqrt(3) / 8, np.sqrt(2) / 2, 1.0
    assert size[code].sum() == pytest.approx(8 * corner + 12 * edge + 6 * face)


def test_nothing_inside_and_everything_inside_have_no_surface() -> None:
    for spacing in ((1.0, 2.0), (1.0, 2.0, 3.0)):
        size = surfels.sizes(spacing)
        assert size[0] == size[-1] == 0
        assert (size[1:-1] > 0).all()


def test_a_flat_surface_has_the_area_of_its_faces() -> None:
    mask = np.zeros((4, 5, 6), bool)
    mask[:, :, :3] = True
    code = surfels.codes(mask)
    assert surfels.sizes((0.5, 2.0, 7.0))[code[2, 2, 3]] == pytest.approx(0.5 * 2.0)


def test_inside_out_and_turned_axes_are_the_same_surface() -> None:
    spacing = (0.7, 1.1, 2.3)
    size = surfels.sizes(spacing)
    assert size == pytest.approx(size[::-1])
    mask = np.random.default_rng(0).random((6, 7, 8)) > 0.5
    area = size[surfels.codes(mask)].sum()
    for order in permutations(range(3)):
        turned = surfels.sizes(tuple(spacing[axis] for axis in order))
        assert turned[surfels.codes(np.flip(mask.transpose(order), 1))].sum() == pytest.approx(area)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.0), (5.0, 0.3, 1.7)])
def test_the_reference_package_has_the_same_areas(spacing: tuple[float, float, float]) -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables", reason="needs the package surface-distance")
    theirs, kernel = tables.create_table_neighbour_code_to_surface_area(spacing), tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    corners = [(c & 1, c >> 1 & 1, c >> 2 & 1) for c in range(8)]
    number = [sum(int(kernel[corners[c]]) for c in range(8) if code >> c & 1) for code in range(256)]
    assert surfels.sizes(spacing) == pytest.approx(theirs[number], abs=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.4, 3.0)])
def test_the_reference_package_has_the_same_lengths(spacing: tuple[float, float]) -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables", reason="needs the package surface-distance")
    theirs, kernel = (
        tables.create_table_neighbour_code_to_contour_length(spacing),
        tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL,
    )
    number = [sum(int(kernel[c & 1, c >> 1]) for c in range(4) if code >> c & 1) for code in range(16)]
    assert surfels.sizes(spacing) == pytest.approx(theirs[number], abs=1e-12)


def test_one_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="two or three axes"):
        surfels.sizes((1.0,))
