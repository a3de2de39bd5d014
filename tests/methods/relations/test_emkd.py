"""Prediction maps, importance maps and region affinity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.logits.kd import kd
from medkd.methods.ops import one_hot
from medkd.methods.relations.emkd import EMKD, importance_maps, prediction_maps, region_affinity, segmentation
from medkd.types import IGNORE, Batch, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_affinity(s: Tensor, t: Tensor, label: Tensor, classes: int) -> float:
    per_sample = []
    for b in range(len(s)):
        here = [k for k in range(classes) if (label[b] == k).any()]
        cosines = []
        for x in (s[b], t[b]):
            means = [x[:, label[b] == k].mean(1).numpy() for k in here]
            cosines.append(
                [
                    u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                    for i, u in enumerate(means)
                    for j, v in enumerate(means)
                    if i < j
                ]
            )
        per_sample.append(np.mean((np.array(cosines[0]) - np.array(cosines[1])) ** 2))
    return float(np.mean(per_sample))


@pytest.mark.parametrize(("space", "classes"), [((12,), 3), ((4, 5), 5), ((3, 4, 3), 2)])
def test_affinity_is_the_formula_for_any_number_of_classes(space: tuple[int, ...], classes: int) -> None:
    s, t = rand(2, 3, *space), rand(2, 6, *space, seed=1)
    label = torch.randint(0, classes, (2, *space), generator=torch.Generator().manual_seed(1))
    ours = region_affinity(s, t, one_hot(label, classes + 1))  # the last class is nowhere
    assert ours.item() == pytest.approx(slow_affinity(s, t, label, classes), rel=1e-6)


def test_affinity_by_hand() -> None:
    t, s = torch.eye(2).unsqueeze(0), torch.ones(1, 2, 2)
    assert region_affinity(s, t, torch.eye(2).unsqueeze(0)).item() == pytest.approx(1)


def test_one_class_has_no_affinity() -> None:
    s = rand(1, 3, 4, 4).requires_grad_()
    loss = region_affinity(s, rand(1, 3, 4, 4, seed=1), one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 3))
    loss.backward()
    assert loss == 0
    assert s.grad is not None
    assert s.grad.abs().max() == 0


def test_importance_is_twice_one_less_the_cosine() -> None:
    s, t = rand(2, 3, 4, 4), rand(2, 5, 4, 4, seed=1)
    a, b = (x.pow(4).mean(1).flatten(1) for x in (s, t))
    expected = (2 - 2 * torch.cosine_similarity(a, b)).mean()
    torch.testing.assert_close(importance_maps(s, t), expected)
    torch.testing.assert_close(importance_maps(-7 * s, t), expected)
    assert expected <= 2


def test_zero_for_equals() -> None:
    z, x = rand(2, 3, 4, 4), rand(2, 5, 4, 4)
    mask = one_hot(z.argmax(1), 3)
    for loss in (prediction_maps(z, z), importance_maps(x, x), region_affinity(x, x, mask)):
        assert abs(loss.item()) < 1e-12


def test_gradients() -> None:
    t, masks = rand(2, 4, 3, 3, seed=1), torch.rand(2, 3, 3, 3, dtype=torch.float64)
    x = rand(2, 3, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: importance_maps(s, t, 2.0), x)
    assert torch.autograd.gradcheck(lambda s: region_affinity(s, t, masks), x)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 6e4])
def test_no_power_overflows_in_half_precision(scale: float) -> None:
    s = (rand(1, 3, 4, 4).clamp(-1, 1) * scale).half().requires_grad_()
    loss = importance_maps(s, (rand(1, 3, 4, 4, seed=1).clamp(-1, 1) * scale).half())
    loss.backward()
    assert loss.isfinite()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def scene() -> tuple[View, View, Batch]:
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, 4:, :4], label[0, :4, 4:] = 1, 2
    s = View(rand(2, 3, 8, 8), {"enc0": rand(2, 4, 8, 8, seed=1), "bottleneck": rand(2, 6, 4, 4, seed=2)})
    t = View(rand(2, 3, 8, 8, seed=3), {"enc0": rand(2, 5, 8, 8, seed=4), "bottleneck": rand(2, 7, 2, 2, seed=5)})
    return s, t, Batch(torch.zeros(2, 1, 8, 8), label)


def test_terms_and_their_weights() -> None:
    s, t, batch = scene()
    terms = EMKD(prediction=2, importance=3, affinity=5)(s, t, batch)
    masks = one_hot(batch.label, 3)
    torch.testing.assert_close(terms["prediction"], 2 * kd(s.logits, t.logits, 4.0))
    pairs = [(s.taps[name], t.taps[name]) for name in ("enc0", "bottleneck")]
    torch.testing.assert_close(terms["importance"], 3 * sum(importance_maps(*pair) for pair in pairs))
    torch.testing.assert_close(terms["affinity"], 5 * sum(region_affinity(*pair, masks) for pair in pairs))


def test_what_is_not_trusted_does_not_matter() -> None:
    s, t, batch = scene()
    trust = torch.ones(2, 1, 8, 8)
    trust[:, :, 4:] = 0
    changed = {name: x.clone() for name, x in s.taps.items()}
    changed["enc0"][:, :, 4:], changed["bottleneck"][:, :, 2:] = 1e6, float("nan")
    other = View(s.logits.clone(), changed)
    other.logits[:, :, 4:] = 50
    believed = View(t.logits, t.taps, trust)
    one, two = (EMKD()(view, believed, batch) for view in (s, other))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_overlapping_regions() -> None:
    s, t, batch = scene()
    label = torch.stack([batch.label == 1, batch.label == 2, batch.label > 0], 1).long()
    terms = EMKD()(s, t, Batch(batch.image, label, regions=True))
    assert all(value.isfinite() and value > 0 for value in terms.values())


def test_the_task_loss_skips_what_is_unknown() -> None:
    z, label = rand(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    label[:, 2:] = IGNORE
    for one, two in zip(segmentation(z, label), segmentation(z[:, :, :2], label[:, :2]), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"exponent": -1}, {"affinity": -1}, {"source": "x"}, {"tap": []}]
)
def test_a_mistake_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="emkd: "):
        EMKD(**wrong)  # type: ignore[arg-type]
