"""Voxel-wise distillation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.logits.kd import KD, REDUCTIONS, kd, teacher_owner
from medkd.types import IGNORE, Batch, View

SPACES = [(8, 6), (5, 6, 4)]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def batch_of(logits: Tensor, label: Tensor | None = None, *, regions: bool = False) -> Batch:
    space = logits.shape[2:]
    if label is None:
        label = torch.full((len(logits), *space), IGNORE)
    return Batch(logits[:, :1], label, ("a",) * len(logits), (1.0,) * len(space), regions=regions)


def term(method: KD, s: Tensor, t: Tensor, batch: Batch | None = None, trust: Tensor | None = None) -> Tensor:
    return method(View(s), View(t, {}, trust), batch_of(s) if batch is None else batch)["kd"]


# ---- what the paper says


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_least_where_the_student_says_the_same_up_to_a_constant(reduction: str, space: tuple[int, ...]) -> None:
    t = rand(2, 3, *space)
    s = (t + rand(2, 1, *space, seed=1)).requires_grad_()
    loss = term(KD(reduction=reduction), s, t)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert s.grad is not None
    assert s.grad.abs().max() < 1e-6
    assert term(KD(reduction=reduction), rand(2, 3, *space, seed=2), t) > 0.01


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_gradient_is_tau_times_the_difference(tau: float, space: tuple[int, ...]) -> None:
    s, t = rand(2, 4, *space).requires_grad_(), rand(2, 4, *space, seed=1)
    term(KD(temperature=tau, reduction="uniform"), s, t).backward()
    voxels = 2 * math.prod(space)
    expected = tau * (F.softmax(s / tau, 1) - F.softmax(t / tau, 1)) / voxels
    assert s.grad is not None
    torch.testing.assert_close(s.grad, expected.detach(), atol=1e-7, rtol=1e-4)


def test_high_temperature_is_logit_regression() -> None:
    s, t = rand(1, 5, 4, 4, 4), rand(1, 5, 4, 4, 4, seed=1)
    s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    limit = (s - t).square().sum(1).mean() / (2 * 5)
    # float32 has no digits for much hotter: the divergence falls with the square of the temperature
    assert term(KD(temperature=50.0, reduction="uniform"), s, t).item() == pytest.approx(limit.item(), rel=0.05)


# ---- volumes


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 2, -1])
def test_more_of_the_same_changes_nothing(reduction: str, space: tuple[int, ...], axis: int) -> None:
    method = KD(reduction=reduction, margin_mm=0.5)
    s, t = rand(2, 3, *space), rand(2, 3, *space, seed=1)
    label = torch.randint(0, 3, (2, *space), generator=torch.Generator().manual_seed(2))
    one = term(method, s, t, batch_of(s, label))
    s2, t2 = torch.cat([s, s], axis), torch.cat([t, t], axis)
    label_axis = axis if axis <= 0 else axis - 1
    two = term(method, s2, t2, batch_of(s2, torch.cat([label, label], label_axis)))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("regions", [False, True])
def test_voxels_without_trust_do_not_matter(reduction: str, regions: bool) -> None:
    method = KD(reduction=reduction, margin_mm=2.0)
    s, t = rand(2, 3, 6, 6, 6), rand(2, 3, 6, 6, 6, seed=1)
    t[:, 0] += 0 if regions else 4  # foreground is rare, so that a stray voxel of it would move the margin
    trust = (rand(2, 1, 6, 6, 6, seed=2) > -0.5).float()
    label = torch.full((2, 3, 6, 6, 6) if regions else (2, 6, 6, 6), IGNORE)
    batch = batch_of(s, label, regions=regions)
    other_s = torch.where(trust > 0, s, rand(2, 3, 6, 6, 6, seed=3)).requires_grad_()
    other_t = torch.where(trust > 0, t, 100 * rand(2, 3, 6, 6, 6, seed=4))
    one, two = term(method, s, t, batch, trust), term(method, other_s, other_t, batch, trust)
    torch.testing.assert_close(one, two)
    two.backward()
    assert other_s.grad is not None
    assert other_s.grad[(trust == 0).expand_as(s)].abs().sum() == 0
    assert other_s.grad.abs().sum() > 0


def test_trust_is_a_weight() -> None:
    s, t = rand(1, 3, 4, 4), rand(1, 3, 4, 4, seed=1)
    trust = rand(1, 1, 4, 4, seed=2).abs().clamp_max(1)
    expected = kd(s, t, 2.0, trust[:, 0])
    torch.testing.assert_close(term(KD(reduction="uniform"), s, t, trust=trust), expected)
    torch.testing.assert_close(kd(s, t, 2.0), kd(s, t, 2.0, torch.full((1, 4, 4), 0.1)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_trust_at_all_is_zero(reduction: str) -> None:
    s, t = rand(1, 3, 4, 4, 4).requires_grad_(), rand(1, 3, 4, 4, 4, seed=1)
    loss = term(KD(reduction=reduction), s, t, trust=torch.zeros(1, 1, 4, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert s.grad.abs().sum() == 0


def test_balanced_counts_the_teachers_classes_alike() -> None:
    t = torch.full((1, 3, 10, 10), -3.0)
    t[:, 0] = 3
    t[0, :, 0, 0] = torch.tensor([-3.0, 3.0, -3.0])  # one voxel of class 1, 99 of background
    s = torch.zeros(1, 3, 10, 10)
    s[0, :, 0, 0] = t[0, :, 0, 0]  # the student is right about the organ only
    wrong = kd(torch.zeros(1, 3, 1), torch.tensor([3.0, -3.0, -3.0]).view(1, 3, 1), 2.0)
    torch.testing.assert_close(term(KD(reduction="balanced"), s, t), wrong / 2)
    torch.testing.assert_close(term(KD(reduction="uniform"), s, t), wrong * 0.99)


@pytest.mark.parametrize("whose", ["teacher", "label", "student"])
def test_foreground_is_a_margin_in_mm(whose: str) -> None:
    t = torch.zeros(1, 2, 9, 9)
    t[:, 0] = 1
    label = torch.zeros(1, 9, 9, dtype=torch.long)
    if whose == "teacher":
        t[0, 1, 4, 4] = 2
    elif whose == "label":
        label[0, 4, 4] = 1
    s = rand(1, 2, 9, 9)
    s[:, 0] += 9  # the student sees nothing
    if whose == "student":
        s[0, 1, 4, 4] = 99
    s.requires_grad_()
    batch = replace(batch_of(s, label), spacing_mm=(1.0, 2.0))
    term(KD(reduction="foreground", margin_mm=2.0), s, t, batch).backward()
    assert s.grad is not None
    touched = s.grad.abs().sum(1)[0] > 0
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[2:7, 4] = True
    expected[4, 3:6] = True
    assert torch.equal(touched, expected)


# ---- numbers that bite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("classes", [2, 3, 118])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_finite_whatever_comes(dtype: torch.dtype, classes: int, reduction: str) -> None:
    s = (rand(1, classes, 4, 4, 4) * 30).to(dtype).requires_grad_()
    for t in (rand(1, classes, 4, 4, 4, seed=1) * 30, torch.eye(classes)[0].view(1, -1, 1, 1, 1).expand(s.shape) * 50):
        s.grad = None
        loss = term(KD(reduction=reduction), s, t.to(dtype))
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        assert bool(torch.isfinite(loss))
        assert s.grad is not None
        assert bool(torch.isfinite(s.grad).all())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_teacher_gets_no_gradient(reduction: str) -> None:
    s, t = rand(1, 3, 4, 4).requires_grad_(), rand(1, 3, 4, 4, seed=1).requires_grad_()
    term(KD(reduction=reduction), s, t).backward()
    assert t.grad is None


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_regions_are_independent(reduction: str) -> None:
    s, t = rand(2, 3, 5, 5).requires_grad_(), rand(2, 3, 5, 5, seed=1)
    label = torch.randint(IGNORE, 2, (2, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    loss = term(KD(reduction=reduction), s, t, batch_of(s, label, regions=True))
    loss.backward()
    assert s.grad is not None
    assert loss > 0
    same = term(KD(reduction=reduction), t, t, batch_of(t, label, regions=True))
    assert abs(same.item()) < 1e-6


def test_owner_of_regions_and_of_nothing() -> None:
    logits = torch.tensor([[-1.0, 2.0, -1.0], [-2.0, 3.0, 1.0]]).view(1, 2, 3)
    assert teacher_owner(View(logits), True).tolist() == [[0, 2, 2]]
    assert teacher_owner(View(logits), False).tolist() == [[0, 1, 1]]
    trust = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3)
    assert teacher_owner(View(logits, {}, trust), False).tolist() == [[IGNORE, 1, 1]]


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"temperature": -1.0}, {"reduction": "mean"}])
def test_nonsense_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(UserError, match=str(next(iter(arguments.values())))):
        KD(**arguments)  # type: ignore[arg-type]
