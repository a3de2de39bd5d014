"""Augmentation moves image, label and target together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_obj import get_track_meta
from numpy.typing import NDArray
from torch import Tensor

from medkd.data.transforms import OUTSIDE, Augment, Patch
from medkd.errors import UserError
from medkd.types import IGNORE

Array = NDArray[Any]
PATCH = (16, 16, 16)


def ball(size: tuple[int, ...], centre: tuple[float, ...], radius: float) -> Array:
    grid = np.stack(np.meshgrid(*[np.arange(s) for s in size], indexing="ij"))
    inside: Array = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2
    return inside


def one_hot(label: Array, classes: int) -> Array:
    hot: Array = (label[None] == np.arange(classes).reshape(-1, *[1] * label.ndim)).astype(np.float16)
    return hot


def scene(size: tuple[int, ...] = PATCH) -> tuple[Array, Array, Array]:
    """Return image, label and target of a left ball (1) and a right ball (2)."""
    middle = [s / 2 for s in size[1:]]
    label = np.zeros(size, np.int64)
    label[ball(size, (size[0] * 0.3, *middle), 3)] = 1
    label[ball(size, (size[0] * 0.7, *middle), 3)] = 2
    return label[None].astype(np.float32), label, one_hot(label, 3)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def centre(mass: Tensor) -> Array:
    where = torch.stack(torch.meshgrid(*[torch.arange(s) for s in mass.shape], indexing="ij"))
    found: Array = (where * mass).flatten(1).sum(1).div(mass.sum()).numpy()
    return found


@pytest.mark.parametrize("size", [PATCH, (16, 12)], ids=["3d", "2d"])
def test_none_changes_nothing(size: tuple[int, ...]) -> None:
    image, label, target = scene(size)
    patch = Augment("none", size, mirror_axes=(0, 1))(image, label, target, rng(0), affine=False)
    assert torch.equal(patch.image, torch.from_numpy(image))
    assert torch.equal(patch.label, torch.from_numpy(label))
    assert patch.target is not None
    assert torch.equal(patch.target, torch.from_numpy(target).float())
    assert bool((patch.trust == 1).all())
    assert not Augment("none", size).wants_margin(rng(0))
    assert not Augment("light", size).wants_margin(rng(0))


def flipped(swap: tuple[tuple[int, int], ...], axes: tuple[int, ...]) -> Patch:
    """Return the first patch that a seed flips along all of ``axes``."""
    image, label, target = scene()
    augment = Augment("light", PATCH, mirror_axes=axes, mirror_swap=swap)
    for seed in range(100):
        patch = augment(image, label, target, rng(seed), affine=False)
        expected = np.flip(label > 0, axes)
        if np.array_equal((patch.label > 0).numpy(), expected) and not np.array_equal(expected, label > 0):
            return patch
    raise AssertionError("no seed flips")


def test_a_left_right_flip_swaps_the_sides_in_label_and_target() -> None:
    patch = flipped(((1, 2),), (0,))
    assert patch.target is not None
    assert torch.equal(patch.target.argmax(0), patch.label)
    left, right = centre((patch.label == 1).float()), centre((patch.label == 2).float())
    assert left[0] < right[0]  # what was left is still called left: the flip made it right, and the name followed


def test_without_pairs_the_names_move_along() -> None:
    patch = flipped((), (0,))
    assert patch.target is not None
    assert torch.equal(patch.target.argmax(0), patch.label)
    assert centre((patch.label == 1).float())[0] > centre((patch.label == 2).float())[0]


def test_a_flip_of_another_axis_swaps_nothing() -> None:
    image, label, _ = scene()
    label[:, :4] = 0
    label[2, 2, 2] = 1
    augment = Augment("light", PATCH, mirror_axes=(1,), mirror_swap=((1, 2),))
    for seed in range(8):
        patch = augment(image, label, None, rng(seed), affine=False)
        same, turned = torch.from_numpy(label), torch.from_numpy(label).flip(1)
        assert torch.equal(patch.label, same) or torch.equal(patch.label, turned)


def test_several_pairs_and_unlabelled_voxels_survive_the_swap() -> None:
    label = rng(0).integers(OUTSIDE, 7, PATCH)
    target = one_hot(label, 7)
    augment = Augment("light", PATCH, mirror_axes=(0,), mirror_swap=((1, 4), (2, 6)))
    order = np.array([0, 4, 6, 3, 1, 5, 2, IGNORE, IGNORE])  # the last two: values -2 and -1
    seen = set()
    for seed in range(8):
        patch = augment(label[None].astype(np.float32), label, target, rng(seed), affine=False)
        plain, turned = np.maximum(label, IGNORE), order[label[::-1]]
        is_turned = np.array_equal(patch.label.numpy(), turned)
        assert is_turned or np.array_equal(patch.label.numpy(), plain)
        seen.add(is_turned)
        assert patch.target is not None
        known = patch.label >= 0
        assert torch.equal(patch.target.argmax(0)[known], patch.label[known])
    assert seen == {True, False}


@pytest.mark.parametrize("size", [PATCH, (16, 12)], ids=["3d", "2d"])
@pytest.mark.parametrize("flat_axis", [None, 0])
def test_an_affine_moves_image_label_and_target_alike(size: tuple[int, ...], flat_axis: int | None) -> None:
    augment = Augment("default", size, flat_axis=flat_axis)
    augment._intensity.transforms = ()
    image, label, target = scene(augment.margin)
    moved = 0.0
    for seed in range(10):
        patch = augment(image == 1, label, target, rng(seed), affine=True)
        assert patch.image.shape == (1, *size)
        assert patch.label.shape == size
        assert patch.target is not None
        assert patch.target.shape == (3, *size)
        here = centre(patch.image[0])
        np.testing.assert_allclose(centre((patch.label == 1).float()), here, atol=0.4)
        np.testing.assert_allclose(centre(patch.target[1]), here, atol=0.05)
        plain = np.argwhere(label == 1).mean(0) - (np.array(augment.margin) - size) / 2
        moved = max(moved, float(np.abs(here - plain).max()))
    assert moved > 0.3
    assert set(patch.label.unique().tolist()) <= {IGNORE, 0, 1, 2}


def test_thick_slices_are_turned_in_plane_alone() -> None:
    middle = (9.5, 9.5, 9.5)
    for axis in range(3):
        augment = Augment("default", PATCH, flat_axis=axis)
        augment._intensity.transforms = ()
        augment._affine.rand_affine.rand_affine_grid.scale_range = ()
        plane = [a for a in range(3) if a != axis]
        at = np.array(middle)
        at[plane[0]] += 5  # in plane, off the middle: a turn about the thick axis moves it, within the plane
        image = ball(augment.margin, tuple(at), 2)[None].astype(np.float32)
        shifts = []
        for seed in range(20):
            patch = augment(image, np.zeros(augment.margin, np.int64), None, rng(seed), affine=True)
            shifts.append(centre(patch.image[0]) - (at - 2))
        spread = np.abs(shifts).max(0)
        assert spread[axis] < 0.4  # 5 voxels by 3 degrees
        assert spread[plane[1]] > 0.6  # 5 voxels by up to 15 degrees


def test_a_still_affine_cuts_the_middle_out() -> None:
    augment = Augment("default", (8, 8, 8))
    rotate = augment._affine.rand_affine.rand_affine_grid
    rotate.rotate_range, rotate.scale_range = (), ()
    augment._intensity.transforms = ()
    assert augment.margin == (10, 10, 10)
    label = rng(0).integers(0, 3, augment.margin)
    patch = augment(label[None].astype(np.float32), label, one_hot(label, 3), rng(0), affine=True)
    np.testing.assert_array_equal(patch.label.numpy(), label[1:9, 1:9, 1:9])
    np.testing.assert_allclose(patch.image[0].numpy(), label[1:9, 1:9, 1:9], atol=1e-4)
    assert patch.target is not None
    assert torch.equal(patch.target.argmax(0), patch.label)


def test_beyond_the_volume_no_trust_and_no_label() -> None:
    image, label, target = scene()
    label[:4], target[:, :4] = OUTSIDE, 0
    label[4:8] = IGNORE  # a volume that is labelled in part
    for given in (target, None):
        patch = Augment("none", PATCH)(image, label, given, rng(0), affine=False)
        assert bool((patch.trust[0, :4] == 0).all())
        assert bool((patch.trust[0, 4:] == 1).all())
        assert bool((patch.label[:8] == IGNORE).all())
        assert bool((patch.label[8:] >= 0).all())
    augment = Augment("default", PATCH)
    size = augment.margin
    label, target = np.full(size, OUTSIDE), np.zeros((3, *size), np.float16)
    label[10:], target[0, 10:] = 0, 1
    for given in (target, None):
        patch = augment(np.zeros((1, *size), np.float32), label, given, rng(3), affine=True)
        assert bool((patch.label[patch.trust[0] == 0] == IGNORE).float().mean() > 0.8)
        assert 0.2 < patch.trust.mean() < 0.8


@pytest.mark.parametrize("affine", [False, True])
def test_targets_are_probabilities_wherever_they_are_trusted(affine: bool) -> None:
    augment = Augment("default", PATCH, mirror_axes=(0, 1, 2))
    size = augment.margin if affine else PATCH
    soft = rng(0).dirichlet([1, 1, 1, 1], size).astype(np.float16).transpose(3, 0, 1, 2)
    for seed in range(4):
        patch = augment(np.zeros((1, *size), np.float32), np.zeros(size, np.int64), soft, rng(seed), affine=affine)
        assert patch.target is not None
        assert patch.target.dtype == torch.float32
        total = patch.target.sum(0)[patch.trust[0] > 0]
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
        assert bool((patch.target >= 0).all())
        assert set(patch.trust.unique().tolist()) <= {0.0, 1.0}


def test_intensity_changes_the_image_alone() -> None:
    image, label, target = scene()
    changed = 0
    for seed in range(10):
        patch = Augment("light", PATCH)(image, label, target, rng(seed), affine=False)
        assert torch.equal(patch.label, torch.from_numpy(label))
        assert patch.target is not None
        assert torch.equal(patch.target, torch.from_numpy(target).float())
        changed += not torch.equal(patch.image, torch.from_numpy(image))
    assert 0 < changed < 10


@pytest.mark.parametrize("affine", [False, True])
def test_the_seed_decides_everything_and_the_past_nothing(affine: bool) -> None:
    one, two = (Augment("default", PATCH, mirror_axes=(0, 1, 2)) for _ in range(2))
    image, label, target = scene(one.margin if affine else PATCH)
    for seed in (5, 6, 7):
        one(image, label, target, rng(seed), affine=affine)
    for seed in range(5):
        a = one(image, label, target, rng(seed), affine=affine)
        b = two(image, label, target, rng(seed), affine=affine)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
        assert a.target is not None
        assert b.target is not None
        assert torch.equal(a.target, b.target)


@pytest.mark.parametrize("level", ["none", "light", "default"])
def test_what_is_handed_in_stays_as_it_was(level: str) -> None:
    image, label, target = scene()
    copies = image.copy(), label.copy(), target.copy()
    augment = Augment(level, PATCH, mirror_axes=(0, 1, 2), mirror_swap=((1, 2),))
    before = get_track_meta()
    for seed in range(20):
        augment(image, label, target, rng(seed), affine=False)
    assert get_track_meta() == before
    for now, then in zip((image, label, target), copies, strict=True):
        np.testing.assert_array_equal(now, then)


def test_an_unknown_level_is_told() -> None:
    with pytest.raises(UserError, match="'heavy' is not one of default, light, none"):
        Augment("heavy", PATCH)


def pointwise(image: np.ndarray) -> np.ndarray:
    """Return what a teacher that looks at single voxels says of an image ``(1, *S)``: ``(3, *S)``."""
    logits = np.concatenate([2 * image, -image, 1 - image**2])
    return np.asarray(np.exp(logits) / np.exp(logits).sum(0), np.float32)


@pytest.mark.parametrize("level", ["default", "light"])
def test_a_moved_target_is_the_target_of_the_moved_volume(level: str) -> None:
    """Cached answer, moved, equals the teacher's answer on the moved image, where that shows the volume."""
    augment = Augment(level, PATCH, mirror_axes=(0, 1, 2))
    augment._intensity.transforms = ()
    size = augment.margin if level == "default" else PATCH
    waves = [np.sin(np.linspace(0, 4, n) + i) for i, n in enumerate(size)]
    image = np.float32(waves[0][:, None, None] + waves[1][None, :, None] + waves[2])[None]
    label = np.zeros(size, np.int64)
    changed = 0
    for seed in range(10):
        patch = augment(image, label, pointwise(image), rng(seed), affine=level == "default")
        assert patch.target is not None
        inside = patch.trust[0] == 1
        outside = torch.nn.functional.pad((~inside).float()[None], (1,) * 6, value=float(level == "default"))
        whole = torch.nn.functional.max_pool3d(outside, 3, 1)[0] == 0  # no zeros mixed in at the edge of the volume
        apart = (patch.target - torch.from_numpy(pointwise(patch.image.numpy()))).abs().amax(0)
        assert float(apart[whole].max()) < 0.02
        assert float(whole.float().mean()) > 0.5
        torch.testing.assert_close(patch.target.sum(0)[inside], torch.ones(int(inside.sum())))
        changed += not any(torch.equal(patch.image, torch.from_numpy(part)) for part in (image, image[..., :1]))
    assert changed > 5


def test_intensity_changes_leave_the_target_alone() -> None:
    image, label, target = scene()
    augment = Augment("light", PATCH)
    patches = [augment(image, label, target, rng(seed), affine=False) for seed in range(12)]
    assert any(not torch.equal(patch.image, torch.from_numpy(image)) for patch in patches)
    assert all(torch.equal(p.target, torch.from_numpy(target)) for p in patches if p.target is not None)


def test_trust_moves_with_the_target() -> None:
    """Trust that equals a class's probability stays equal to it, whatever is done to both."""
    augment = Augment("default", PATCH, mirror_axes=(0, 1, 2), mirror_swap=((1, 2),))
    size = augment.margin
    soft = rng(1).dirichlet([1, 1, 1], size).astype(np.float32)
    target = np.moveaxis(soft, -1, 0)
    label = np.zeros(size, np.int64)
    for seed in range(6):
        patch = augment(target[:1], label, target, rng(seed), affine=True, trust=target[:1])
        assert patch.target is not None
        inside = patch.trust[0] > 0
        torch.testing.assert_close(patch.trust[0][inside], patch.target[0][inside], atol=1e-5, rtol=0)
        outside = augment(target[:1], label, target, rng(seed), affine=True).trust[0] == 0
        assert bool((patch.trust[0][outside] == 0).all())
