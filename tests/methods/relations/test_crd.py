"""Contrast of regions with a memory of cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.parts import unit
from medkd.methods.relations.crd import CRD, RegionMemory, contrastive, moved, scores
from medkd.types import IGNORE, Anatomy, Batch, Tap, View


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(anchor: Tensor, keys: Tensor, tau: float, z: float, n: int) -> float:
    total = 0.0
    for a, row in zip(anchor.tolist(), keys.tolist(), strict=True):
        m = len(row) - 1
        for j, key in enumerate(row):
            h = math.exp(sum(x * y for x, y in zip(a, key, strict=True)) / tau) / z
            d = h / (h + m / n)
            total += math.log(d if j == 0 else 1 - d)
    return -total / len(anchor)


def test_is_the_formula() -> None:
    anchor, keys = unit(rand(3, 5)), unit(rand(3, 8, 5, seed=1), 2)
    ours = contrastive(scores(anchor, keys, 0.5) / 20.0, 30, eps=0)
    assert ours.item() == pytest.approx(slow(anchor, keys, 0.5, 20.0, 30), rel=1e-9)


def test_gradient() -> None:
    keys = unit(rand(3, 8, 5, seed=1), 2)
    assert torch.autograd.gradcheck(
        lambda x: contrastive(scores(unit(x), keys, 0.5) / 20.0, 30), rand(3, 5).requires_grad_()
    )


def test_falls_when_the_positive_comes_closer_or_a_negative_goes() -> None:
    h = torch.rand(2, 5, dtype=torch.float64) + 0.1
    for column, factor in ((0, 2.0), (3, 0.5)):
        better = h.clone()
        better[:, column] *= factor
        assert contrastive(better, 40) < contrastive(h, 40)


def test_a_rotation_of_both_spaces_does_not_matter() -> None:
    anchor, keys = unit(rand(3, 5)), unit(rand(3, 8, 5, seed=1), 2)
    turn, _ = torch.linalg.qr(rand(5, 5, seed=2))
    torch.testing.assert_close(scores(anchor @ turn, keys @ turn), scores(anchor, keys))


def test_the_memory_knows_cases_by_name_and_forgets_the_oldest() -> None:
    memory = RegionMemory(2, 3, 4)
    assert memory.places(("a", "b", "a")).tolist() == [0, 1, 0]
    memory.there[:] = True
    assert memory.places(("c",)).tolist() == [0]
    assert memory.there.tolist() == [[False] * 3, [True] * 3]
    assert memory.places(("b", "a")).tolist() == [1, 1]  # a is new again, and b the oldest


def test_patches_of_one_case_move_its_row_to_their_mean() -> None:
    memory = RegionMemory(1, 2, 3)
    rows, e = torch.tensor([1, 1]), unit(rand(2, 3)).float()
    memory.begin(rows, e, e)
    start = memory.student[1].clone()
    memory.update(rows, e, e, 0.9)
    torch.testing.assert_close(memory.student[1], moved(start[None], e.mean(0)[None], 0.9)[0])
    assert float(memory.teacher[1].norm()) == pytest.approx(1, rel=1e-6)
    assert float(memory.teacher[0].norm()) == 0


def scene(cases: tuple[str, ...] = ("a", "b")) -> tuple[View, View, Batch]:
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    label[:, :4], label[0, 6:] = 1, 2
    s, t = rand(2, 4, 8, 8).float().requires_grad_(), rand(2, 6, 4, 4, seed=1).float()
    logits = torch.zeros(2, 3, 8, 8)
    return (
        View(logits, {"bottleneck": s}),
        View(logits, {"bottleneck": t}),
        Batch(torch.zeros(2, 1, 8, 8), label, cases),
    )


def ready(**arguments: object) -> CRD:
    torch.manual_seed(0)
    method = CRD(embedding=8, **arguments)  # type: ignore[arg-type]
    method.setup(Anatomy({"bottleneck": Tap(4, (1, 1))}, 3, 2), Anatomy({"bottleneck": Tap(6, (2, 2))}, 3, 2))
    return method


def test_negatives_are_other_classes() -> None:
    method = ready()
    method(*scene())
    owner = torch.tensor([0, 1, 2])
    drawn = method._negatives(owner) % 3
    assert (drawn != owner.unsqueeze(1)).all()
    assert method.memory.there.sum() == 5


def test_the_first_batch_already_teaches_both_projections() -> None:
    s, t, batch = scene()
    method = ready()
    method(s, t, batch)["crd"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters() if p.ndim == 2)
    assert s.taps["bottleneck"].grad is not None
    assert not any(x.requires_grad for x in method.buffers())
    filled = method.memory.there.flatten()
    assert method.memory.student[filled].norm(dim=1).tolist() == pytest.approx([1] * 5, rel=1e-5)


def test_evaluation_changes_no_row() -> None:
    method = ready()
    method(*scene())
    before = method.memory.student.clone()
    method.eval()(*scene())
    assert (method.memory.student == before).all()


def test_training_pulls_the_networks_together() -> None:
    s, t, batch = scene()
    method = ready()
    optimiser = torch.optim.Adam([*method.parameters(), s.taps["bottleneck"]], 1e-2)
    first = float(method(s, t, batch)["crd"].detach())
    for _ in range(60):
        optimiser.zero_grad()
        loss = method(s, t, batch)["crd"]
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.5 * first


def test_one_class_or_none_has_no_contrast() -> None:
    s, t, batch = scene()
    for value in (0, IGNORE):
        loss = ready()(s, t, Batch(batch.image, torch.full_like(batch.label, value), batch.case))["crd"]
        loss.backward()
        assert loss == 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.001}, {"momentum": 1.0}, {"negatives": 0}, {"source": "x"}, {"cases": 0}]
)
def test_a_mistake_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="crd: "):
        CRD(**wrong)  # type: ignore[arg-type]
