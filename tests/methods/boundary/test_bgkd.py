"""Predictions and features in the band that dilation and erosion leave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.boundary.bgkd import BGKD, bgkd, feature_distance, morphological_band, soft_band
from medkd.methods.ops import kl_map
from medkd.types import IGNORE, Anatomy, Batch, Tap, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def cube(side: int = 5, size: int = 12) -> Tensor:
    owner = torch.zeros(1, size, size, size, dtype=torch.long)
    owner[0, 3 : 3 + side, 3 : 3 + side, 3 : 3 + side] = 1
    return owner


def plain(**more: object) -> BGKD:
    return BGKD(feature=0.0, **more)  # type: ignore[arg-type]


def test_a_cube_of_5_has_98_inner_voxels() -> None:
    band = morphological_band(cube())
    assert int((band & (cube() == 1)).sum()) == 98
    assert int((band & (cube() == 0)).sum()) == 7**3 - 5**3


def test_is_dilation_minus_erosion_of_any_class() -> None:
    owner = torch.randint(0, 3, (1, 4, 5), generator=torch.Generator().manual_seed(0)).repeat_interleave(3, 1)
    band = morphological_band(owner, 2)[0]
    for i in range(owner.shape[1]):
        for j in range(owner.shape[2]):
            near = owner[0, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
            assert bool(band[i, j]) == (len(near.unique()) > 1)


def test_constant_and_unknown_labels_have_no_band() -> None:
    assert not morphological_band(torch.ones(1, 5, 5, dtype=torch.long)).any()
    half = torch.ones(1, 6, 6, dtype=torch.long)
    half[:, 3:] = IGNORE
    assert not morphological_band(half).any()
    s = rand(1, 2, 6, 6).requires_grad_()
    label = torch.ones(1, 6, 6, dtype=torch.long)
    t = torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6)], 1)
    loss = plain()(View(s), View(t), Batch(s, label))["prediction"]
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert not s.grad.any()


def test_weight_one_everywhere_is_plain_kd() -> None:
    s, t = rand(2, 3, 4, 5), rand(2, 3, 4, 5, seed=1)
    torch.testing.assert_close(bgkd(s, t, torch.ones(2, 4, 5)), kl_map(s, t, 2.0).mean())
    assert torch.autograd.gradcheck(lambda x: bgkd(x, t, torch.ones(2, 4, 5)), s.requires_grad_())


def test_nothing_outside_the_band_matters() -> None:
    label = cube()
    inside = morphological_band(label).unsqueeze(1)
    s, t = rand(1, 2, 12, 12, 12), rand(1, 2, 12, 12, 12, seed=1)
    other = torch.where(inside, s, rand(1, 2, 12, 12, 12, seed=2)).requires_grad_()
    one, two = (plain()(View(x), View(t), Batch(x, label))["prediction"] for x in (s, other))
    torch.testing.assert_close(one, two)
    two.backward()
    assert other.grad is not None
    assert not other.grad[~inside.expand_as(other)].any()


def test_names_of_classes_do_not_matter() -> None:
    label = torch.randint(0, 4, (1, 3, 3), generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 2)
    order = torch.tensor([2, 0, 3, 1])
    s, t = rand(1, 4, 3, 12), rand(1, 4, 3, 12, seed=1)
    one = plain()(View(s), View(t), Batch(s, label))["prediction"]
    two = plain()(View(s[:, order]), View(t[:, order]), Batch(s, torch.argsort(order)[label]))["prediction"]
    torch.testing.assert_close(one, two)


def test_the_soft_band_falls_off_in_mm() -> None:
    label = torch.zeros(1, 10, 1, dtype=torch.long)
    label[:, 5:] = 1
    weight = soft_band(label, 2.0, (2.0, 1.0))[0, :, 0]
    expected = torch.tensor([0.0, 6.0, 4.0, 2.0, 0.0])
    torch.testing.assert_close(weight[1:5], torch.exp(-0.5 * (expected[1:] / 2) ** 2))
    assert weight[0] == 0  # beyond three sigma
    assert not soft_band(torch.zeros_like(label), 2.0, (1.0, 1.0)).any()


def test_where_nothing_is_labelled_the_teacher_shows_boundaries() -> None:
    label = cube()
    t = torch.stack([(label == 0).double(), (label == 1).double()], 1) * 4
    s = rand(1, 2, 12, 12, 12)
    known = plain()(View(s), View(t), Batch(s, label))["prediction"]
    unknown = plain()(View(s), View(t), Batch(s, torch.full_like(label, IGNORE)))["prediction"]
    torch.testing.assert_close(known, unknown)


def test_features_are_compared_by_direction() -> None:
    s, t = rand(1, 3, 4), rand(1, 3, 4, seed=1)
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    d = (s / s.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)).square().sum(1)[0]
    torch.testing.assert_close(feature_distance(5 * s, t, weight), (d[0] + 2 * d[2]) / 3)
    places = Anatomy({"dec0": Tap(3, (1,))}, 2, 1), Anatomy({"dec0": Tap(5, (1,))}, 2, 1)
    method = BGKD(tap="dec0")
    method.setup(*places)
    label = torch.tensor([[0, 0, 1, 1]])
    z = rand(1, 2, 4)
    views = View(z, {"dec0": s.float()}), View(z, {"dec0": rand(1, 5, 4).float()})
    terms = method(*views, Batch(z, label))
    assert terms["prediction"].item() == pytest.approx(0, abs=1e-7)
    terms["feature"].backward()
    assert all(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize("wrong", [{"radius": 0}, {"sigma_mm": 0.0}, {"temperature": 0.0}, {"feature": -1.0}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="bgkd: "):
        BGKD(**wrong)  # type: ignore[arg-type]
