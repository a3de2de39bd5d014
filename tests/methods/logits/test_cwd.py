"""Channel-wise distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.logits.cwd import CWD, cwd
from medkd.types import Batch, View

SPACES = [(8, 6), (5, 6, 4)]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def term(method: CWD, s: Tensor, t: Tensor, trust: Tensor | None = None, *, regions: bool = False) -> Tensor:
    batch = Batch(s, torch.zeros(len(s), *s.shape[2:], dtype=torch.long), regions=regions)
    return method(View(s), View(t, {}, trust), batch)["cwd"]


def test_hand_value() -> None:
    t = torch.zeros(1, 1, 2, 2, 2)
    t[0, 0, 0, 0, 0] = math.log(7)
    assert cwd(torch.zeros_like(t), t, 1.0).item() == pytest.approx(0.5 * math.log(16 / 7), abs=1e-6)


@pytest.mark.parametrize("space", SPACES)
def test_a_constant_of_a_channel_does_not_matter_and_one_of_a_voxel_does(space: tuple[int, ...]) -> None:
    s, t = rand(2, 3, *space), rand(2, 3, *space, seed=1)
    ones = [1] * len(space)
    loss = cwd(s, t, 2.0)
    torch.testing.assert_close(cwd(s + rand(2, 3, *ones, seed=2), t + rand(2, 3, *ones, seed=3), 2.0), loss)
    assert abs(cwd(t + 5, t, 2.0).item()) < 1e-5
    assert abs(cwd(s + rand(2, 1, *space, seed=2), t, 2.0) - loss) > 0.01


def test_high_temperature_is_half_the_variance_of_the_difference() -> None:
    s, t = rand(2, 3, 4, 4, 4), rand(2, 3, 4, 4, 4, seed=1)
    limit = (t - s).flatten(2).var(-1, correction=0).mean() / 2
    assert cwd(s, t, 50.0).item() == pytest.approx(limit.item(), rel=0.05)


@pytest.mark.parametrize("space", SPACES)
def test_gradient_is_analytic_and_sums_to_zero_over_space(space: tuple[int, ...]) -> None:
    tau = 3.0
    s, t = rand(2, 4, *space).requires_grad_(), rand(2, 4, *space, seed=1).requires_grad_()
    cwd(s, t, tau).backward()
    assert s.grad is not None
    assert t.grad is None
    expected = tau / 8 * ((s / tau).flatten(2).softmax(-1) - (t / tau).flatten(2).softmax(-1)).view_as(s)
    torch.testing.assert_close(s.grad, expected.detach(), atol=1e-7, rtol=1e-4)
    assert s.grad.flatten(2).sum(-1).abs().max() < 1e-6


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_more_of_the_same_changes_nothing(axis: int) -> None:
    s, t = rand(2, 3, 4, 4, 4), rand(2, 3, 4, 4, 4, seed=1)
    torch.testing.assert_close(cwd(torch.cat([s, s], axis), torch.cat([t, t], axis), 1.0), cwd(s, t, 1.0))


@pytest.mark.parametrize("absent", [0.0, 0.5, 1.0])
def test_voxels_without_trust_do_not_matter(absent: float) -> None:
    s, t = rand(2, 3, 6, 6, 6), rand(2, 3, 6, 6, 6, seed=1)
    t[0, 2] -= 20  # the teacher sees class 2 nowhere in the first sample, unless voxels without trust say so
    trust = (rand(2, 1, 6, 6, 6, seed=2) > -0.5).float()
    other_s = torch.where(trust > 0, s, 50 * rand(2, 3, 6, 6, 6, seed=3)).requires_grad_()
    other_t = torch.where(trust > 0, t, torch.tensor(0.0))  # all classes tie, as where stored targets end
    method = CWD(absent=absent)
    one, two = term(method, s, t, trust), term(method, other_s, other_t, trust)
    torch.testing.assert_close(one, two)
    two.backward()
    assert other_s.grad is not None
    assert other_s.grad[(trust == 0).expand_as(s)].abs().sum() == 0


def test_trusted_voxels_alone_make_the_distribution() -> None:
    s, t = rand(1, 2, 4, 4), rand(1, 2, 4, 4, seed=1)
    trust = torch.ones(1, 1, 4, 4)
    trust[..., 2:] = 0
    torch.testing.assert_close(term(CWD(), s, t, trust), cwd(s[..., :2], t[..., :2], 1.0))


@pytest.mark.parametrize("absent", [0.0, 1.0])
def test_a_sample_without_trust_is_zero(absent: float) -> None:
    s, t = rand(1, 2, 4, 4).requires_grad_(), rand(1, 2, 4, 4, seed=1)
    loss = term(CWD(absent=absent), s, t, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert s.grad.abs().sum() == 0


def test_absent_classes_weigh_less() -> None:
    t = rand(1, 3, 6, 6, seed=1)
    t[:, 2] -= 20
    s = rand(1, 3, 6, 6)
    torch.testing.assert_close(term(CWD(absent=0.0), s, t), cwd(s[:, :2], t[:, :2], 1.0))
    torch.testing.assert_close(term(CWD(absent=1.0), s, t), cwd(s, t, 1.0))


def test_absent_regions_weigh_less() -> None:
    s, t = rand(1, 2, 6, 6), rand(1, 2, 6, 6, seed=1)
    t[:, 1] = -t[:, 1].abs() - 1  # a region that speaks nowhere, though likelier than the other in places
    torch.testing.assert_close(term(CWD(absent=0.0), s, t, regions=True), cwd(s[:, :1], t[:, :1], 1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 118])
def test_half_precision_is_computed_in_single(dtype: torch.dtype, classes: int) -> None:
    s, t = (
        (rand(1, classes, 6, 6, 6) * 40).to(dtype).requires_grad_(),
        (rand(1, classes, 6, 6, 6, seed=1) * 40).to(dtype),
    )
    loss = term(CWD(), s, t)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cwd(s.detach().float(), t.float(), 1.0))
    assert s.grad is not None
    assert bool(torch.isfinite(s.grad).all())


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"absent": -0.1}, {"absent": 1.5}])
def test_nonsense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match=str(next(iter(arguments.values())))):
        CWD(**arguments)
