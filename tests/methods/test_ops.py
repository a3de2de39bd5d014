"""Tensor functions against plain numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from medkd.methods.ops import (
    balance,
    binary_kl_map,
    boundary,
    dilate,
    distance_mm,
    kl_map,
    label_to,
    one_hot,
    present,
    resize_to,
    weighted_mean,
)
from medkd.types import IGNORE

SPACES = [(7, 6), (5, 6, 4)]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- means


def test_mean_without_weight_is_the_mean() -> None:
    x = rand(2, 3, 4)
    torch.testing.assert_close(weighted_mean(x), x.mean())
    torch.testing.assert_close(weighted_mean(x, torch.ones_like(x)), x.mean())


def test_nothing_weighs_gives_zero_and_a_zero_gradient() -> None:
    x = rand(2, 3).requires_grad_()
    mean = weighted_mean(x, torch.zeros(2, 3))
    mean.backward()
    assert mean.item() == 0
    assert x.grad is not None
    assert x.grad.abs().sum() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_weighs_nothing_may_be_anything(bad: float) -> None:
    x = torch.tensor([1.0, bad, 3.0], requires_grad=True)
    mean = weighted_mean(x, torch.tensor([1.0, 0.0, 3.0]))
    mean.backward()
    assert mean.item() == pytest.approx(2.5)
    assert x.grad is not None
    assert x.grad.tolist() == [0.25, 0.0, 0.75]


def test_weights_of_any_size_give_the_same_mean() -> None:
    x, w = rand(50), rand(50, seed=1).abs()
    for scale in (1e-8, 1.0, 1e8):
        torch.testing.assert_close(weighted_mean(x, w * scale), (x * w).sum() / w.sum())


# ---- divergences


@pytest.mark.parametrize("space", SPACES)
def test_kl_is_what_the_formula_says(space: tuple[int, ...]) -> None:
    s, t, tau = rand(2, 4, *space), rand(2, 4, *space, seed=1), 3.0
    p, q = F.softmax(t / tau, 1), F.softmax(s / tau, 1)
    torch.testing.assert_close(kl_map(s, t, tau), tau**2 * (p * (p / q).log()).sum(1), atol=1e-5, rtol=1e-4)


def test_binary_kl_is_what_the_formula_says() -> None:
    s, t, tau = rand(2, 3, 5, 5), rand(2, 3, 5, 5, seed=1), 2.0
    p, q = torch.sigmoid(t / tau), torch.sigmoid(s / tau)
    expected = tau**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    torch.testing.assert_close(binary_kl_map(s, t, tau), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("divergence", [kl_map, binary_kl_map])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_divergences_are_float32_and_finite(divergence: object, dtype: torch.dtype) -> None:
    assert callable(divergence)
    s = torch.tensor([6e4, -6e4, 0.0, 3.0]).view(1, 2, 2).to(dtype).requires_grad_()
    t = torch.tensor([-6e4, 6e4, 1.0, -3.0]).view(1, 2, 2).to(dtype).requires_grad_()
    kl = divergence(s, t, 1.0)
    assert kl.dtype == torch.float32
    kl.sum().backward()
    assert bool(torch.isfinite(kl).all())
    assert s.grad is not None
    assert bool(torch.isfinite(s.grad).all())
    assert t.grad is None


# ---- labels


@pytest.mark.parametrize("classes", [2, 3, 118])
def test_one_hot_of_known_voxels(classes: int) -> None:
    label = torch.tensor([[0, classes - 1, IGNORE], [1, 1, 0]])
    hot = one_hot(label, classes)
    assert hot.shape == (2, classes, 3)
    assert hot.dtype == torch.float32
    assert hot.sum(1).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert torch.equal(hot.argmax(1)[label >= 0], label[label >= 0])


def test_one_hot_refuses_a_label_that_is_no_class() -> None:
    with pytest.raises(RuntimeError):
        one_hot(torch.tensor([[3]]), 3)


def test_present_needs_half_a_voxel() -> None:
    masks = torch.zeros(1, 3, 4)
    masks[0, 1, 0], masks[0, 2] = 0.4, 0.2
    assert present(masks).tolist() == [[False, False, True]]


@pytest.mark.parametrize("space", SPACES)
def test_every_class_that_occurs_weighs_the_same(space: tuple[int, ...]) -> None:
    owner = torch.randint(IGNORE, 4, (2, *space), generator=torch.Generator().manual_seed(0))
    owner[owner == 2] = 3
    trust = rand(2, *space, seed=2).abs().clamp_max(1)
    for given_trust in (None, trust):
        weight = balance(owner, 5, given_trust)
        assert weight.shape == owner.shape
        sums = [weight[owner == k].sum().item() for k in range(5)]
        assert sums == pytest.approx([1, 1, 0, 1, 0], abs=1e-5)
        assert weight[owner == IGNORE].abs().sum() == 0
    seen = weight[owner == 0] / trust[owner == 0]
    torch.testing.assert_close(seen, seen[0].expand_as(seen))


def test_balance_counts_millions_of_voxels_of_partial_trust() -> None:
    owner = torch.zeros(1, 40, 400, 400, dtype=torch.long)  # one running float32 sum is 6 % off
    trust = torch.full(owner.shape, 0.3)
    assert balance(owner, 2, trust).double().sum().item() == pytest.approx(1, rel=5e-3)


def test_balance_without_a_trusted_voxel_is_zero() -> None:
    owner = torch.zeros(1, 4, 4, dtype=torch.long)
    assert balance(owner, 2, torch.zeros(1, 4, 4)).sum() == 0
    assert balance(torch.full_like(owner, IGNORE), 2).sum() == 0


# ---- distances


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    density=st.sampled_from([0.02, 0.2, 0.7]),
    spacing=st.lists(st.sampled_from([0.5, 0.7, 1.0, 1.3, 5.0]), min_size=3, max_size=3),
    limit=st.sampled_from([0.4, 1.0, 2.1, 3.3, 7.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_distance_is_scipys_up_to_the_limit(
    shape: list[int], density: float, spacing: list[float], limit: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random(shape) < density
    spacing = spacing[: len(shape)]
    ours = distance_mm(torch.from_numpy(mask)[None], spacing, limit)[0].numpy()
    exact = ndimage.distance_transform_edt(~mask, spacing) if mask.any() else np.full(shape, np.inf)
    inside, outside = exact < limit * (1 - 1e-5), exact > limit * (1 + 1e-5)
    np.testing.assert_allclose(ours[inside], exact[inside], rtol=1e-5)
    assert np.isinf(ours[outside]).all()


def test_each_sample_has_its_own_distance() -> None:
    mask = torch.zeros(2, 5, 5, dtype=torch.bool)
    mask[0, 0, 0] = True
    distance = distance_mm(mask, (1.0, 2.0), 100.0)
    assert distance[0, 4, 4].item() == pytest.approx(math.hypot(4, 8))
    assert bool(torch.isinf(distance[1]).all())


@pytest.mark.parametrize("spacing", [0.1, 0.3, 0.7, 1.1, 1.9])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_voxel_at_exactly_the_radius_is_within_it(spacing: float, steps: int) -> None:
    mask = torch.zeros(1, 21, 3, dtype=torch.bool)
    mask[0, 10, 1] = True
    near = dilate(mask, spacing * steps, (spacing, 100.0))
    assert near[0, :, 1].nonzero().flatten().tolist() == list(range(10 - steps, 11 + steps))


def test_dilate_by_less_than_a_voxel_is_the_mask() -> None:
    mask = rand(1, 6, 6, 6) > 1
    assert torch.equal(dilate(mask, 0.5, (1.0, 1.0, 1.0)), mask)


# ---- boundaries


def test_a_cube_has_its_shell_and_the_voxels_that_face_it() -> None:
    owner = torch.zeros(1, 11, 11, 11, dtype=torch.long)
    owner[0, 3:8, 3:8, 3:8] = 1
    edge = boundary(owner)
    assert int((edge & (owner == 1)).sum()) == 98  # 5^3 - 3^3
    assert int((edge & (owner == 0)).sum()) == 6 * 25


@pytest.mark.parametrize("space", SPACES)
def test_boundary_is_what_a_loop_finds(space: tuple[int, ...]) -> None:
    owner = torch.randint(IGNORE, 3, (2, *space), generator=torch.Generator().manual_seed(1))
    found = boundary(owner)
    for at in np.ndindex(*owner.shape):
        differs = False
        for axis in range(1, owner.ndim):
            for step in (-1, 1):
                other = list(at)
                other[axis] += step
                if 0 <= other[axis] < owner.shape[axis]:
                    a, b = int(owner[at]), int(owner[tuple(other)])
                    differs |= a != b and IGNORE not in (a, b)
        assert bool(found[at]) == differs, at


def test_ignore_has_no_boundary_and_samples_do_not_touch() -> None:
    owner = torch.zeros(2, 4, 4, dtype=torch.long)
    owner[0, :2], owner[1] = IGNORE, 1
    assert not bool(boundary(owner).any())


# ---- grids


@pytest.mark.parametrize("space", [(9,), *SPACES])
def test_resize_shrinks_by_area_and_keeps_the_mean(space: tuple[int, ...]) -> None:
    x = rand(2, 3, *(2 * s for s in space))
    small = resize_to(x, space)
    assert small.shape == (2, 3, *space)
    torch.testing.assert_close(small.mean(), x.mean())
    assert resize_to(x, x.shape[2:]) is x
    assert resize_to(small, x.shape[2:]).shape == x.shape


def test_labels_are_resized_without_new_values() -> None:
    label = torch.tensor([[[0, 0, 5, 5], [0, 0, 5, 5], [IGNORE, IGNORE, 7, 7], [IGNORE, IGNORE, 7, 7]]])
    assert label_to(label, (2, 2)).tolist() == [[[0, 5], [IGNORE, 7]]]
    assert label_to(label, (2, 2)).dtype == torch.int64
    assert label_to(label, (4, 4)) is label
