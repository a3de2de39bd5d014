"""The task loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.methods.ops import label_to, one_hot
from medkd.methods.supervised import Supervised, dice_ce, soft_dice
from medkd.types import IGNORE, Batch, Terms, View

SPACES = [(8, 6), (5, 6, 4)]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(classes: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def terms(logits: Tensor, label: Tensor, taps: dict[str, Tensor] | None = None, *, regions: bool = False) -> Terms:
    return Supervised()(View(logits, taps or {}), None, Batch(logits[:, :1], label, regions=regions))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("classes", [2, 3, 118])
def test_is_what_the_formula_says(classes: int, space: tuple[int, ...]) -> None:
    logits, label = rand(2, classes, *space), labels(classes, 2, *space)
    p, y = F.softmax(logits, 1), F.one_hot(label, classes).movedim(-1, 1)
    axes = (0, *range(2, p.ndim))
    dice = (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    found = terms(logits, label)
    torch.testing.assert_close(found["dice"], 1 - dice[1:].mean())
    torch.testing.assert_close(found["ce"], F.cross_entropy(logits, label))


@pytest.mark.parametrize("space", SPACES)
def test_ignored_voxels_do_not_matter(space: tuple[int, ...]) -> None:
    logits, label = rand(2, 3, *space), labels(3, 2, *space)
    unknown = rand(2, *space, seed=1) > 0.3
    label[unknown] = IGNORE
    other = torch.where(unknown.unsqueeze(1), 20 * rand(2, 3, *space, seed=2), logits).requires_grad_()
    one, two = terms(logits, label), terms(other, label)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one["ce"], F.cross_entropy(logits, label, ignore_index=IGNORE))
    (two["dice"] + two["ce"]).backward()
    assert other.grad is not None
    assert other.grad[unknown.unsqueeze(1).expand_as(other)].abs().sum() == 0


def test_an_unlabelled_case_changes_nothing() -> None:
    logits, label = rand(2, 3, 4, 4, 4), labels(3, 2, 4, 4, 4)
    label[1] = IGNORE
    torch.testing.assert_close(terms(logits, label), terms(logits[:1], label[:1]))


@pytest.mark.parametrize("regions", [False, True])
def test_without_any_label_zero_and_no_gradient(regions: bool) -> None:
    logits = rand(2, 3, 4, 4, 4).requires_grad_()
    label = torch.full((2, 3, 4, 4, 4) if regions else (2, 4, 4, 4), IGNORE)
    found = terms(logits, label, regions=regions)
    (found["dice"] + found["ce"]).backward()
    assert found["dice"].item() == found["ce"].item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_an_absent_class_does_no_harm() -> None:
    label = torch.zeros(1, 6, 6, 6, dtype=torch.long)
    label[0, :3] = 1
    logits = (one_hot(label, 3) * 20).requires_grad_()
    found = terms(logits, label)
    assert found["ce"].item() < 1e-4
    (found["dice"] + found["ce"]).backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert logits.grad.abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    logits = (rand(1, 118, 6, 6, 6) * 100).to(dtype).requires_grad_()
    found = terms(logits, torch.zeros(1, 6, 6, 6, dtype=torch.long))
    (found["dice"] + found["ce"]).backward()
    assert all(v.dtype == torch.float32 and bool(torch.isfinite(v)) for v in found.values())
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_perfect_is_zero() -> None:
    label = labels(3, 2, 6, 6)
    found = terms(one_hot(label, 3) * 60, label)
    assert found["dice"].item() == pytest.approx(0, abs=1e-5)
    assert found["ce"].item() == pytest.approx(0, abs=1e-5)


def test_more_of_the_same_changes_nothing() -> None:
    logits, label = rand(2, 3, 4, 4, 4), labels(3, 2, 4, 4, 4)
    for axis in (0, -1):
        more = terms(torch.cat([logits, logits], axis), torch.cat([label, label], axis))
        torch.testing.assert_close(more, terms(logits, label), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [8, 4])
def test_heads_weigh_half_and_a_quarter_each_on_its_own_grid(side: int) -> None:
    logits, label = rand(2, 3, 8, 8, 8), labels(3, 2, 8, 8, 8)
    heads = {f"logits_{i}": rand(2, 3, side, side, side, seed=i) for i in (1, 2)}
    found = terms(logits, label, heads)
    alone = [terms(z, label_to(label, z.shape[2:])) for z in (logits, *heads.values())]
    for name in ("dice", "ce"):
        expected = (alone[0][name] + alone[1][name] / 2 + alone[2][name] / 4) / 1.75
        torch.testing.assert_close(found[name], expected)


def test_coarse_heads_of_regions_are_brought_to_the_label() -> None:
    logits, label = rand(2, 3, 8, 8), labels(2, 2, 3, 8, 8)
    found = terms(logits, label, {"logits_1": rand(2, 3, 4, 4, seed=1)}, regions=True)
    fine = F.interpolate(rand(2, 3, 4, 4, seed=1), (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, terms(logits, label, {"logits_1": fine}, regions=True))


def test_taps_that_are_no_heads_are_not_read() -> None:
    logits, label = rand(2, 3, 4, 4), labels(3, 2, 4, 4)
    assert terms(logits, label, {"enc0": torch.full((1,), math.nan)}) == terms(logits, label)


@pytest.mark.parametrize("space", SPACES)
def test_regions(space: tuple[int, ...]) -> None:
    logits, label = rand(2, 3, *space), labels(2, 2, 3, *space)
    found = terms(logits, label, regions=True)
    torch.testing.assert_close(found["ce"], F.binary_cross_entropy_with_logits(logits, label.float()))
    torch.testing.assert_close(found["dice"], 1 - soft_dice(torch.sigmoid(logits), label.float()).mean())
    unknown = rand(2, 3, *space, seed=1) > 0.3
    label[unknown] = IGNORE
    other = torch.where(unknown, 20 * rand(2, 3, *space, seed=2), logits)
    torch.testing.assert_close(terms(other, label, regions=True), terms(logits, label, regions=True))


def test_weights_are_multipliers() -> None:
    logits, label = rand(2, 3, 4, 4), labels(3, 2, 4, 4)
    dice, ce = dice_ce(logits, label)
    found = Supervised(dice=2.0, ce=0.5)(View(logits), None, Batch(logits, label))
    torch.testing.assert_close(found, {"dice": 2 * dice, "ce": 0.5 * ce})
