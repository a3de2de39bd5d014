from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medkd.conformance.play import play
from medkd.conformance.subjects import find
from medkd.conformance.toys import scene
from medkd.methods.base import Method, Sum, Weight
from medkd.methods.logits.kd import KD, kd
from medkd.methods.ops import OFF, kl_map, marginal, merge_label
from medkd.methods.partial import labels_beside_teacher, seen_by
from medkd.methods.supervised import Supervised, dice_ce
from medkd.types import IGNORE, Batch, Terms, Turn, View


def knows(*rows: list[int], classes: int) -> Tensor:
    return torch.tensor([[k == 0 or k in row for k in range(classes)] for row in rows])


def test_unknown_classes_join_the_background_by_hand() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]]).unsqueeze(2)
    merged = marginal(p.log(), knows([1, 3], [2], classes=4)).softmax(1).squeeze(2)
    assert torch.allclose(merged, torch.tensor([[0.4, 0.2, 0.0, 0.4], [0.7, 0.0, 0.3, 0.0]]), atol=1e-6)


def test_a_sample_that_knows_everything_stays_bit_by_bit() -> None:
    z = torch.randn(2, 5, 4, 4, 4)
    assert marginal(z, None) is z
    assert marginal(z, torch.ones(2, 5, dtype=torch.bool)) is z
    mixed = marginal(z, knows([1, 2, 3, 4], [1], classes=5))
    assert torch.equal(mixed[0], z[0])
    assert not torch.equal(mixed[1], z[1])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_118_classes_in_half_precision_are_finite_with_gradients(kind: torch.dtype) -> None:
    known = knows(list(range(1, 100, 7)), [], classes=118)
    z = (20 * torch.randn(2, 118, 3, 3, 3)).to(kind).requires_grad_()
    t = (20 * torch.randn(2, 118, 3, 3, 3)).to(kind)
    loss = kd(marginal(z, known), marginal(t, known), 4.0)
    label = torch.randint(0, 118, (2, 3, 3, 3))
    dice, ce = dice_ce(z, merge_label(label, known), classes=known)
    (loss + dice + ce).backward()  # type: ignore[no-untyped-call]
    assert all(math.isfinite(float(x.detach())) for x in (loss, dice, ce))
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())
    # a switched-off class survives being stored in half precision
    assert bool(torch.isfinite(marginal(z, known).to(kind)).all())


def test_gradients_reach_unknown_classes_through_the_background_alone() -> None:
    known = knows([1], classes=4)
    z, t = torch.randn(1, 4, 6, requires_grad=True), torch.randn(1, 4, 6)
    kl_map(marginal(z, known), marginal(t, known)).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    within = z.detach()[:, [0, 2, 3]].softmax(1)
    pull = z.grad[:, [0, 2, 3]].sum(1, keepdim=True)
    assert float(pull.abs().max()) > 1e-3
    assert torch.allclose(z.grad[:, [0, 2, 3]], within * pull, atol=1e-6)


def test_regions_switch_off_and_merge_nothing() -> None:
    z = torch.randn(1, 3, 4)
    out = marginal(z, knows([1], classes=3), regions=True)
    assert torch.equal(out[:, :2], z[:, :2])
    assert bool((out[:, 2] == OFF).all())


def test_supervised_on_a_partial_label_by_hand() -> None:
    """Cross-entropy of background or unknown; Dice of the known class alone."""
    z = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 1.0, 3.0], [1.0, 1.0, 0.0]]])  # (1, 3 classes, 3 voxels)
    label = torch.tensor([[0, 1, 0]])
    p = z.softmax(1)[0]
    both = p[0] + p[2]
    dice, ce = dice_ce(z, label, 0.0, knows([1], classes=3))
    assert float(ce) == pytest.approx(float(-(both[0].log() + p[1, 1].log() + both[2].log()) / 3), rel=1e-5)
    assert float(dice) == pytest.approx(float(1 - 2 * p[1, 1] / (p[1].sum() + 1)), rel=1e-5)


def test_a_label_that_knows_nothing_costs_nothing_and_one_that_knows_all_what_it_did() -> None:
    z, label = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randint(0, 4, (2, 5, 5))
    dice, ce = dice_ce(z, torch.zeros_like(label), classes=knows([], [], classes=4))
    assert (float(dice.detach()), float(ce.detach())) == (0.0, 0.0)
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(torch.stack(dice_ce(z, label, classes=everything)), torch.stack(dice_ce(z, label)))


def test_samples_that_know_different_classes_each_teach_theirs() -> None:
    """The Dice of a class runs over the samples that know it."""
    z, label = torch.randn(2, 3, 7), torch.tensor([[0, 1, 1, 0, 0, 1, 0], [2, 0, 0, 2, 0, 0, 0]])
    dice, _ = dice_ce(z, label, 0.0, knows([1], [2], classes=3))
    p = z.softmax(1)
    one, two = p[0, 1], p[1, 2]
    by_hand = [
        2 * float((q * (y > 0)).sum() / (q.sum() + (y > 0).sum())) for q, y in ((one, label[0]), (two, label[1]))
    ]
    assert float(dice) == pytest.approx(1 - sum(by_hand) / 2, rel=1e-5)


def test_labels_beside_a_teacher_who_knows_more_or_less() -> None:
    label = torch.tensor([[0, 1, 2, IGNORE]])
    batch = Batch(torch.zeros(1, 1, 4), label)
    less = labels_beside_teacher(batch, knows([1], classes=3))
    assert less.label.tolist() == [[0, 1, 0, IGNORE]]
    labels_know_one = replace(batch, label=torch.tensor([[0, 1, 0, IGNORE]]), known=knows([1], classes=3))
    # the teacher knows class 2 too: background of the label may be that
    assert labels_beside_teacher(labels_know_one, None).label.tolist() == [[IGNORE, 1, IGNORE, IGNORE]]
    assert labels_beside_teacher(labels_know_one, knows([1], classes=3)).label.tolist() == [[0, 1, 0, IGNORE]]
    assert labels_beside_teacher(labels_know_one, knows([2], classes=3)).label.tolist() == [[IGNORE, 0, IGNORE, IGNORE]]


def test_the_sum_merges_for_the_teacher_and_not_for_the_labels() -> None:
    """Both in one stage: kd sees what the teacher knows, supervised the student's own classes."""
    batch = scene(classes=4)
    batch = replace(batch, target_known=knows([1], [1], classes=4))
    seen: dict[str, View] = {}

    class Spy(Method):
        reads_teacher = True

        def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
            seen["kd"], seen["teacher"] = student, teacher
            return {"spy": student.logits.mean()}

    class Own(Method):
        reads_teacher, reads_labels = False, True

        def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
            seen["supervised"] = student
            return {"own": student.logits.mean()}

    total = Sum({"spy": (Spy(), Weight.constant(1)), "own": (Own(), Weight.constant(1))})
    subject = replace(find("kd"), make=lambda _: total)
    play(subject, batch, classes=4)
    # the conformance player sees a method that reads a teacher; the sum decides again for each of its parts
    assert bool((seen["kd"].logits[:, 2:] == OFF).all())
    assert bool((seen["teacher"].logits[:, 2:] == OFF).all())
    assert seen["kd"].known is not None


def test_a_round_where_everybody_knows_everything_is_handed_on_as_it_is() -> None:
    class Dealt:
        batch = replace(scene(), known=torch.ones(2, 3, dtype=torch.bool), target_known=torch.ones(2, 3).bool())

    dealt = Dealt()
    assert seen_by(KD(), dealt) is dealt  # type: ignore[arg-type, comparison-overlap]


def test_a_method_asked_twice_gets_the_same_view_until_the_player_moved() -> None:
    batch = replace(scene(), target_known=knows([1], [1], classes=3))
    views: list[View] = []

    class Twice(Method):
        def turns(self, r):  # type: ignore[no-untyped-def]
            views.extend([r.view("student"), r.view("student")])
            yield Turn("student", {"x": views[0].logits.mean()})
            views.append(r.view("student"))

    play(replace(find("kd"), make=lambda _: Twice()), batch, rounds=1)
    assert views[0] is views[1]
    assert views[2] is not views[1]
    assert not views[2].logits.requires_grad


def test_a_partial_teacher_teaches_the_sum_of_background_and_unknown() -> None:
    """Where the student agrees up to the share of an unknown class, nothing is left to learn."""
    t = torch.randn(1, 3, 5)
    known = knows([1], classes=3)
    s = t.clone()
    both = torch.logaddexp(t[:, 0], t[:, 2])
    s[:, 0], s[:, 2] = both + math.log(0.9), both + math.log(0.1)
    assert float(kl_map(s, t).max()) > 1e-3
    assert float(kl_map(marginal(s, known), marginal(t, known)).abs().max()) < 1e-6


def test_supervised_heads_of_deep_supervision_are_merged_too() -> None:
    known = knows([1], classes=3)
    batch = Batch(torch.zeros(1, 1, 8), torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0]]), known=known)
    z, coarse = torch.randn(1, 3, 8), torch.randn(1, 3, 4)
    plain, merged = (Supervised()(View(z, {"logits_1": x}), None, batch) for x in (coarse, marginal(coarse, known)))
    assert {name: float(x) for name, x in plain.items()} == pytest.approx({n: float(x) for n, x in merged.items()})
