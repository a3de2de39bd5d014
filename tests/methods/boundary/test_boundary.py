"""Distillation in a band around boundaries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.boundary.boundary import Boundary, band
from medkd.methods.logits.kd import KD
from medkd.methods.ops import one_hot
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def cube(side: int = 5, size: int = 12, at: int = 3) -> Tensor:
    owner = torch.zeros(1, size, size, size, dtype=torch.long)
    owner[0, at : at + side, at : at + side, at : at + side] = 1
    return owner


def logits_of(owner: Tensor, classes: int = 2) -> Tensor:
    return one_hot(owner.clamp_min(0), classes) * 8 - 4


def batch_of(label: Tensor, spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Batch:
    return Batch(label.unsqueeze(1).float(), label, ("a",) * len(label), spacing_mm)


def term(method: Boundary, s: Tensor, t: Tensor, batch: Batch, trust: Tensor | None = None) -> Tensor:
    return method(View(s), View(t, {}, trust), batch)["boundary"]


def test_band_is_in_mm_along_each_axis() -> None:
    owner = torch.zeros(1, 20, 20, 4, dtype=torch.long)
    owner[0, 10:] = 1
    near = band(owner, 2.0, (0.7, 0.7, 5.0))
    assert near[0, :, 0, 0].nonzero().flatten().tolist() == [7, 8, 9, 10, 11, 12]  # 2 x 0.7 mm beyond each face
    owner = torch.zeros(1, 8, 8, 6, dtype=torch.long)
    owner[..., 3:] = 1
    near = band(owner, 2.0, (0.7, 0.7, 5.0))
    assert near[0, 0, 0].nonzero().flatten().tolist() == [2, 3]  # thick slices: the two that touch, and no more


def test_a_cube_of_5_has_98_inner_voxels_in_a_thin_band() -> None:
    owner = cube()
    near = band(owner, 0.5, (1.0, 1.0, 1.0))
    assert int((near & (owner == 1)).sum()) == 98


def test_a_constant_patch_has_no_band_and_no_loss() -> None:
    label = torch.ones(1, 6, 6, 6, dtype=torch.long)
    s = rand(1, 2, 6, 6, 6).requires_grad_()
    loss = term(Boundary(student=False), s, logits_of(label), batch_of(label))
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert s.grad.abs().sum() == 0


def test_nothing_outside_the_band_matters() -> None:
    label = cube()
    inside = band(label, 1.0, (1.0, 1.0, 1.0)).unsqueeze(1)
    s, t = rand(1, 2, 12, 12, 12), logits_of(label)
    other = torch.where(inside, s, rand(1, 2, 12, 12, 12, seed=1)).requires_grad_()
    method = Boundary(band_mm=1.0, student=False)
    one, two = term(method, s, t, batch_of(label)), term(method, other, t, batch_of(label))
    torch.testing.assert_close(one, two)
    two.backward()
    assert other.grad is not None
    assert other.grad[~inside.expand_as(other)].abs().sum() == 0
    assert bool((other.grad.abs().sum(1)[inside[:, 0]] > 0).all())


def test_a_band_as_wide_as_the_patch_is_balanced_kd() -> None:
    label = cube()
    s, t = rand(1, 2, 12, 12, 12), logits_of(label)
    wide = term(Boundary(band_mm=100.0), s, t, batch_of(label))
    torch.testing.assert_close(wide, KD(reduction="balanced")(View(s), View(t), batch_of(label))["kd"])


def test_names_of_classes_do_not_matter() -> None:
    owner = torch.randint(0, 4, (2, 3, 3, 3), generator=torch.Generator().manual_seed(0))
    owner = owner.repeat_interleave(3, 1).repeat_interleave(3, 2).repeat_interleave(3, 3)
    order = torch.tensor([2, 0, 3, 1])
    s, t = rand(2, 4, 9, 9, 9), rand(2, 4, 9, 9, 9, seed=1)
    one = term(Boundary(), s, t, batch_of(owner))
    permuted = torch.argsort(order)[owner]
    torch.testing.assert_close(term(Boundary(), s[:, order], t[:, order], batch_of(permuted)), one)


def test_the_label_adds_its_boundary_where_it_is_known() -> None:
    s, t = rand(1, 2, 12, 12, 12).requires_grad_(), logits_of(torch.zeros(1, 12, 12, 12, dtype=torch.long))
    label = cube()
    assert term(Boundary(label=False, student=False), s, t, batch_of(label)).item() == 0
    assert term(Boundary(), s, t, batch_of(label)).item() > 0
    unknown = torch.full_like(label, IGNORE)
    assert term(Boundary(student=False), s, t, batch_of(unknown)).item() == 0
    half = label.clone()
    half[:, 6:] = IGNORE
    term(Boundary(band_mm=0.5, student=False), s, t, batch_of(half)).backward()
    assert s.grad is not None
    assert s.grad[:, :, 6:].abs().sum() == 0
    assert s.grad[:, :, :6].abs().sum() > 0


def test_voxels_without_trust_do_not_matter() -> None:
    s, t = rand(2, 3, 8, 8, 8), torch.zeros(2, 3, 8, 8, 8)
    t[:, 0], t[:, 1, :, 4:] = 2, 4
    trust = torch.ones(2, 1, 8, 8, 8)
    trust[:, :, 5:] = 0
    batch = batch_of(torch.full((2, 8, 8, 8), IGNORE))
    other_s = torch.where(trust > 0, s, rand(2, 3, 8, 8, 8, seed=3)).requires_grad_()
    other_t = torch.where(trust > 0, t, rand(2, 3, 8, 8, 8, seed=4))  # boundaries of its own, near trusted voxels
    one, two = term(Boundary(), s, t, batch, trust), term(Boundary(), other_s, other_t, batch, trust)
    torch.testing.assert_close(one, two)
    two.backward()
    assert other_s.grad is not None
    assert other_s.grad[(trust == 0).expand_as(s)].abs().sum() == 0


def test_two_dimensions_and_more_of_the_same() -> None:
    owner = torch.zeros(2, 8, 8, dtype=torch.long)
    owner[:, 2:5, 2:5], owner[1, 5:, 5:] = 1, 2
    s, t = rand(2, 3, 8, 8), logits_of(owner, 3)
    batch = batch_of(owner, (1.0, 1.0))
    one = term(Boundary(), s, t, batch)
    double = replace(batch, label=torch.cat([owner, owner]))
    torch.testing.assert_close(term(Boundary(), torch.cat([s, s]), torch.cat([t, t]), double), one)
    assert abs(term(Boundary(), t, t, batch).item()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    label = cube()
    s = (rand(1, 118, 12, 12, 12) * 30).to(dtype).requires_grad_()
    t = (rand(1, 118, 12, 12, 12, seed=1) * 30).to(dtype).requires_grad_()
    loss = term(Boundary(), s, t, batch_of(label))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert loss.dtype == torch.float32
    assert s.grad is not None
    assert bool(torch.isfinite(s.grad).all())
    assert t.grad is None


@pytest.mark.parametrize("arguments", [{"band_mm": 0.0}, {"temperature": -1.0}])
def test_nonsense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        Boundary(**arguments)  # type: ignore[arg-type]


def test_a_false_alarm_far_from_every_organ_has_a_price() -> None:
    label = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    label[:, :4, :4, :4] = 1
    t = logits_of(label)
    seen = label.clone()
    seen[:, 12:14, 12:14, 12:14] = 1  # the student's own invention, 8 voxels from the organ
    s = logits_of(seen).requires_grad_()
    term(Boundary(band_mm=1.0), s, t, batch_of(torch.full_like(label, IGNORE))).backward()
    assert s.grad is not None
    assert (s.grad[0, 1, 12:14, 12:14, 12:14] > 0).all()
    s.grad = None
    term(Boundary(band_mm=1.0, student=False), s, t, batch_of(torch.full_like(label, IGNORE))).backward()
    assert s.grad[:, :, 8:, 8:, 8:].abs().sum() == 0
