"""The mean of probabilities, and probabilities as logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.teachers.ensemble import FLOOR, fuse, to_logits


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("space", [(4, 5), (3, 4, 5)])
def test_several_give_the_mean_probability(space: tuple[int, ...]) -> None:
    z = [rand(2, 3, *space, seed=i) for i in range(3)]
    mean = torch.stack([F.softmax(x, 1) for x in z]).mean(0)
    torch.testing.assert_close(F.softmax(fuse(z), 1), mean, atol=1e-5, rtol=1e-4)
    odds = torch.stack([torch.sigmoid(x) for x in z]).mean(0)
    torch.testing.assert_close(torch.sigmoid(fuse(z, regions=True)), odds, atol=1e-5, rtol=1e-4)


def test_one_is_left_as_it_is() -> None:
    z = rand(1, 3, 4)
    assert fuse([z]) is z
    assert fuse([z], regions=True) is z


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sure_networks_give_finite_logits(regions: bool, dtype: torch.dtype) -> None:
    z = torch.tensor([6e4, -6e4, 0.0]).view(1, 3, 1).to(dtype)
    fused = fuse([z, z, -z], regions=regions)
    assert fused.dtype == torch.float32
    assert bool(torch.isfinite(fused).all())


def test_order_does_not_matter() -> None:
    z = [rand(1, 3, 4, seed=i) for i in range(3)]
    torch.testing.assert_close(fuse(z), fuse(z[::-1]))


@pytest.mark.parametrize("regions", [False, True])
def test_stored_probabilities_come_back(regions: bool) -> None:
    z = rand(2, 3, 4, 4)
    p = (torch.sigmoid(z) if regions else F.softmax(z, 1)).half()
    logits = to_logits(p, regions=regions)
    back = torch.sigmoid(logits) if regions else F.softmax(logits, 1)
    torch.testing.assert_close(back, p.float(), atol=1e-3, rtol=1e-3)
    assert logits.dtype == torch.float32
    zero = to_logits(torch.tensor([0.0, 1.0]).half().view(1, 2, 1), regions=regions)
    assert bool(torch.isfinite(zero).all())
    assert zero[0, 0].item() == pytest.approx(torch.tensor(FLOOR).log().item(), rel=1e-4)
