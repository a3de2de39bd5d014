"""Answers of one grid on another: by hand where a hand can, against scipy where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medkd.data.plan import IntensityRule, Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import Geometry, Volume
from medkd.errors import UserError
from medkd.teachers.grids import onto_grid, prepared_affine

EYE = np.eye(4)


def random_probabilities(shape: tuple[int, ...], classes: int = 3, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(0, 2, (classes, *shape))
    odds = np.exp(scores)
    return (odds / odds.sum(0)).astype(np.float32)


def affine(spacing: tuple[float, ...], origin: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    out = np.diag([*spacing, 1.0])
    out[:3, 3] = origin
    return out


def test_the_same_grid_is_not_touched() -> None:
    given = random_probabilities((4, 5, 6))
    assert np.shares_memory(onto_grid(given, EYE, EYE.copy(), (4, 5, 6)), given)


def test_a_shift_by_one_voxel_moves_by_one_voxel() -> None:
    given = random_probabilities((5, 4, 3))
    moved = onto_grid(given, EYE, affine((1, 1, 1), (1, 0, 0)), (4, 4, 3))
    np.testing.assert_allclose(moved, given[:, 1:], atol=1e-6)


def test_half_a_voxel_is_the_mean_of_two() -> None:
    given = random_probabilities((4, 1, 1))
    moved = onto_grid(given, EYE, affine((1, 1, 1), (0.5, 0, 0)), (3, 1, 1))
    np.testing.assert_allclose(moved, (given[:, :-1] + given[:, 1:]) / 2, atol=1e-6)


def test_thick_slices_are_interpolated_between() -> None:
    """Slices 3 mm apart at z = 0 and 3: one at z = 1 is two thirds of the first."""
    given = random_probabilities((2, 2, 2))
    fine = onto_grid(given, affine((1, 1, 3)), EYE, (2, 2, 4))
    np.testing.assert_allclose(fine[..., 0], given[..., 0], atol=1e-6)
    np.testing.assert_allclose(fine[..., 1], given[..., 0] * 2 / 3 + given[..., 1] / 3, atol=1e-6)
    np.testing.assert_allclose(fine[..., 3], given[..., 1], atol=1e-6)


@pytest.mark.parametrize("flips", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_flipped_axes_come_back(flips: tuple[int, ...]) -> None:
    given = random_probabilities((4, 5, 6))
    turned = EYE.copy()
    for axis in flips:
        turned[axis, axis] = -1
        turned[axis, 3] = given.shape[axis + 1] - 1
    out = onto_grid(np.flip(given, [axis + 1 for axis in flips]), turned, EYE, (4, 5, 6))
    np.testing.assert_allclose(out, given, atol=1e-6)


def test_swapped_axes_come_back() -> None:
    given = random_probabilities((4, 5, 6))
    swapped = EYE[:, [2, 0, 1, 3]]  # stored z, x, y
    out = onto_grid(given.transpose(0, 3, 1, 2), swapped, EYE, (4, 5, 6))
    np.testing.assert_allclose(out, given, atol=1e-6)


@pytest.mark.parametrize("oblique", [False, True])
def test_agrees_with_scipy(oblique: bool) -> None:
    given = random_probabilities((9, 8, 7), seed=3)
    source = affine((1.5, 2.0, 3.0), (-10, 4, 30))
    source[0, 0] *= -1
    source[0, 3] += 12
    target = affine((1.1, 1.7, 2.2), (-8, 5, 31))
    if oblique:
        target[:3, :3] = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() @ target[:3, :3]
    shape = (7, 6, 5)
    ours = onto_grid(given, source, target, shape)
    across = np.linalg.inv(source) @ target
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")).reshape(3, -1)
    at = across[:3, :3] @ index + across[:3, 3:]
    theirs = np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest").reshape(shape) for c in given])
    inside = ((at >= -1) & (at <= np.array(given.shape[1:])[:, None])).all(0).reshape(shape)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ours[:, inside], theirs[:, inside], atol=2e-6)
    assert (ours[0, ~inside] == 1).all()
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-6)


def test_far_outside_is_background() -> None:
    given = random_probabilities((4, 4, 4))
    out = onto_grid(given, EYE, affine((1, 1, 1), (0, 0, -3)), (4, 4, 8))
    assert (out[0, ..., :2] == 1).all()
    np.testing.assert_allclose(out[..., 2], given[..., 0], atol=1e-6)  # within a voxel of the edge it goes on
    np.testing.assert_allclose(out[..., 3:7], given, atol=1e-6)


def test_what_does_not_sum_to_one_does_afterwards() -> None:
    given = random_probabilities((4, 4, 4)) * 0.98
    out = onto_grid(given, EYE, affine((1, 1, 1), (0.5, 0, 0)), (3, 4, 4))
    np.testing.assert_allclose(out.sum(0), 1, atol=1e-6)


def test_another_scan_is_refused() -> None:
    with pytest.raises(UserError, match="do not overlap in space"):
        onto_grid(random_probabilities((4, 4, 4)), EYE, affine((1, 1, 1), (100, 0, 0)), (4, 4, 4))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.5, 2.5), (0.7, 1.0, 6.0)])
def test_a_prepared_image_lies_where_its_affine_says(spacing: tuple[float, float, float]) -> None:
    """A ramp in mm, prepared, still says its own position: the affine is the one that preparation used."""
    source = affine((1.0, 1.0, 2.0), (5, -7, 11))
    shape = (20, 21, 12)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    ramp = 5.0 + index[0] * 1.0
    plan = Plan(spacing, (8, 8, 8), 1, (IntensityRule("ct", -1000, 1000, 0, 1),), ((1, 1, 1),), ((3, 3, 3),))
    volume = Volume(ramp[None].astype(np.float32), source, Geometry(shape, source))
    prepared, _ = prepare_image(volume, plan)
    found = prepared_affine(source, shape, prepared.shape[1:])
    middle = [n // 2 for n in prepared.shape[1:]]
    world = found @ np.array([*middle, 1.0])
    assert prepared[0][tuple(middle)] == pytest.approx(world[0], abs=0.02)
    np.testing.assert_allclose(np.diag(found)[:3] * prepared.shape[1:], np.diag(source)[:3] * shape)
