"""Review of the stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkd.errors import UserError
from medkd.methods.features.reviewkd import Fusion, ReviewKD, hcl, review
from medkd.types import Anatomy, Batch, Tap, View


def slow(s: np.ndarray, t: np.ndarray, levels: tuple[int, ...]) -> float:
    """Return the loss by loops over cells, for sizes that the levels divide."""
    loss, total, weight = float(np.mean((s - t) ** 2)), 1.0, 1.0
    for level in levels:
        if level >= s.shape[2]:
            continue
        weight /= 2
        step = [n // level for n in s.shape[2:]]
        cells = [
            (s - t)[(slice(None), slice(None), *(slice(i * n, i * n + n) for i, n in zip(at, step, strict=True)))]
            for at in np.ndindex(*[level] * len(step))
        ]
        loss += weight * float(np.mean([cell.mean(axis=tuple(range(2, s.ndim))) ** 2 for cell in cells]))
        total += weight
    return loss / total


@pytest.mark.parametrize("space", [(8,), (4, 4), (8, 8, 8)])
def test_hcl_is_the_formula(rand: Any, space: tuple[int, ...]) -> None:
    s, t = rand(2, 3, *space), rand(2, 3, *space, seed=1)
    assert hcl(s, t).item() == pytest.approx(slow(s.numpy(), t.numpy(), (4, 2, 1)), rel=1e-10)


@pytest.mark.parametrize("space", [(1,), (9, 7), (5, 6, 2)])
def test_a_constant_offset_counts_its_square_whatever_the_size(rand: Any, space: tuple[int, ...]) -> None:
    t = rand(2, 3, *space)
    assert hcl(t + 3, t).item() == pytest.approx(9)
    assert hcl(t, t).item() == 0
    s = rand(2, 3, *space, seed=1)
    assert hcl(s, t) <= (s - t).square().mean() + 1e-12


def test_what_vanishes_in_every_cell_is_seen_at_full_resolution_only() -> None:
    checks = torch.tensor([1.0, -1.0]).repeat(4).double()
    d = (checks[:, None] * checks).expand(1, 2, 8, 8)
    assert hcl(d, torch.zeros_like(d)).item() == pytest.approx(1 / 1.875)


def test_gradient(rand: Any) -> None:
    s, t = rand(2, 2, 6, 3).requires_grad_(), rand(2, 2, 6, 3, seed=1).requires_grad_()
    trust = torch.rand(2, 1, 6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: hcl(x, t.detach(), trust=trust), s)
    hcl(s, t).backward()
    assert t.grad is None


def test_places_without_trust_do_not_matter_at_any_level(rand: Any) -> None:
    s, t = rand(1, 2, 8, 8), rand(1, 2, 8, 8, seed=1)
    trust = torch.ones(1, 1, 8, 8)
    trust[..., 3:] = 0
    one = hcl(s, t, trust=trust)
    s[..., 3:] = torch.nan
    torch.testing.assert_close(hcl(s, t, trust=trust), one)
    torch.testing.assert_close(hcl(t + 2, t, trust=trust), torch.tensor(4.0, dtype=torch.float64))


def test_gates_of_one_and_zero_ignore_what_is_deeper(rand: Any) -> None:
    fusion = Fusion(3, 5, 8, 2, gated=True)
    assert isinstance(fusion.gates, nn.Conv2d)
    x, deeper = rand(1, 3, 4, 4).float(), rand(1, 8, 2, 2).float()
    nn.init.zeros_(fusion.gates.weight)
    fusion.gates.bias.data = torch.tensor([100.0, -100.0])
    out, passed = fusion(x, deeper, (4, 4))
    torch.testing.assert_close(passed, fusion.inside_norm(fusion.inside(x)))
    assert out.shape == (1, 5, 4, 4)
    fusion.gates.bias.data = torch.tensor([-100.0, 100.0])
    torch.testing.assert_close(fusion(x, deeper, (4, 4))[1], deeper.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_the_deepest_stage_learns_from_every_stage_of_the_teacher() -> None:
    fusions = nn.ModuleList([Fusion(2, 3, 4, 2, gated=i < 2) for i in range(3)])
    student = [torch.randn(1, 2, 2**i, 2**i, requires_grad=True) for i in (4, 3, 2)]
    outs = review(student, fusions, [x.shape[2:] for x in student])
    for out in outs:
        (grad,) = torch.autograd.grad(out.square().mul(torch.rand_like(out)).sum(), student[2], retain_graph=True)
        assert grad.abs().max() > 0


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_down_to_one_voxel_and_batch_one(norm: str) -> None:
    method = ReviewKD(tap=["enc0", "bottleneck"], width=6, norm=norm)
    student, teacher = ({"enc0": Tap(c, (8,) * 3), "bottleneck": Tap(2 * c, (16,) * 3)} for c in (3, 4))
    method.setup(Anatomy(student, 2, 3), Anatomy(teacher, 2, 3))
    taps = {"enc0": torch.randn(1, 3, 2, 2, 1).half(), "bottleneck": torch.randn(1, 6, 1, 1, 1).half()}
    for x in taps.values():
        x.requires_grad_()
    hints = {"enc0": torch.randn(1, 4, 2, 2, 2).half(), "bottleneck": torch.randn(1, 8, 1, 1, 1).half()}
    logits = torch.zeros(1, 2, 16, 16, 16)
    batch = Batch(logits[:, :1], logits[:, 0].long())
    loss = method(View(logits, taps), View(logits, hints, torch.ones(1, 1, 16, 16, 16)), batch)["reviewkd"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in (*taps.values(), *method.parameters()))


def test_refuses_what_it_cannot_do() -> None:
    for wrong in ({"width": 0}, {"levels": [0]}, {"norm": "layer"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ReviewKD(**wrong)
