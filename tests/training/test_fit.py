"""The loop: whose gradients, which rate, what is kept and what is told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method, Weight
from medkd.methods.logits.kd import KD
from medkd.methods.supervised import Supervised
from medkd.networks.zoo import build
from medkd.types import IGNORE, Anatomy, Batch, Round, Terms, Turn, Turns, View


def weights(network: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in network.state_dict().values()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Plain(Method):
    """Cross-entropy of every voxel: a mean that does not care how voxels are dealt into batches."""

    reads_teacher = False

    def turns(self, r: Round) -> Turns:
        for name in r.learners:
            yield Turn(name, {"ce": F.cross_entropy(r.view(name).logits, r.batch.label)})


# ---- gradients


def test_learns(run: Any) -> None:
    trainer = run.trainer(run.tiny(), run.total(sup=Supervised()), steps=60, lr=0.03, validate_every=20)
    fit = run.fit(trainer)
    terms = [e["terms"] for e in run.events if "terms" in e]
    assert terms[-1]["sup/ce"] < 0.5 * terms[0]["sup/ce"]
    assert fit.best > 0.9


def test_the_teacher_is_only_read(run: Any) -> None:
    teacher = run.tiny(1, norm=True, dropout=0.5).train()
    before = weights(teacher)
    trainer = run.trainer(run.tiny(), run.total(sup=Supervised(), kd=KD()), teachers=[teacher])
    run.fit(trainer)
    assert equal(weights(teacher), before)  # running means of its norms too
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_a_live_and_a_stored_teacher_teach_the_same(run: Any) -> None:
    teacher = run.tiny(1).eval()

    def stored(start: int, stop: int) -> Iterator[Batch]:
        for batch in run.batches(start, stop):
            yield replace(batch, target=F.softmax(teacher(batch.image), 1).detach())

    one, two = run.tiny(), run.tiny()
    run.fit(run.trainer(one, run.total(kd=KD()), teachers=[teacher]))
    run.fit(run.trainer(two, run.total(kd=KD()), folder=run.folder / "two"), stored)
    for a, b in zip(weights(one), weights(two), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


class Adversarial(Method):
    """A critic that tells the student's logits from the teacher's, a student that fools it; nothing is detached."""

    def __init__(self, *, critic_turns: int = 1, student_first: bool = False) -> None:
        super().__init__()
        self.critic = nn.Conv3d(2, 1, 1)
        self.critic_turns, self.student_first = critic_turns, student_first
        self.steps: list[bool] = []

    def players(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def turns(self, r: Round) -> Turns:
        if self.student_first:
            yield self.student(r)
        for _ in range(self.critic_turns):
            gap = self.critic(r.view("student").logits).mean() - self.critic(r.view("teacher").logits).mean()
            yield Turn("critic", {"gap": gap})
            self.steps.append(r.did_step)
        if not self.student_first:
            yield self.student(r)

    def student(self, r: Round) -> Turn:
        return Turn("student", {"fool": -self.critic(r.view("student").logits).mean()})


@pytest.mark.parametrize("student_first", [False, True])
def test_a_second_player_has_its_own_gradient_and_optimiser(run: Any, student_first: bool) -> None:
    student, teacher = run.tiny(), run.tiny(1)
    method = Adversarial(student_first=student_first)
    before = weights(student), weights(method.critic)
    grads: dict[str, list[Tensor]] = {"student": [], "critic": []}
    for name, module in (("student", student), ("critic", method.critic)):
        module.weight_hook = next(iter(module.parameters())).register_hook(grads[name].append)
    trainer = run.trainer(student, run.total(sup=Plain(), adv=method), teachers=[teacher], steps=1, clip_norm=None)
    run.fit(trainer)
    assert len(grads["student"]) == len(grads["critic"]) == 1  # one backward each, though each loss holds both
    assert not equal(weights(student), before[0])
    assert not equal(weights(method.critic), before[1])
    # what each should have got, by hand
    hand, critic = run.tiny(), nn.Conv3d(2, 1, 1)
    critic.load_state_dict(dict(zip(critic.state_dict(), before[1], strict=True)))
    batch = run.batch(0)
    gap = critic(hand(batch.image)).mean() - critic(teacher(batch.image)).mean()
    gap_of_critic = torch.autograd.grad(gap, critic.weight)[0]
    if not student_first:
        critic.load_state_dict(method.critic.state_dict())
        torch.testing.assert_close(grads["critic"][0], gap_of_critic)
    loss = F.cross_entropy(hand(batch.image), batch.label) - critic(hand(batch.image)).mean()
    torch.testing.assert_close(grads["student"][0], torch.autograd.grad(loss, hand[0].weight)[0])
    assert run.events[0]["terms"].keys() == {"sup/ce", "adv/fool", "critic:adv/gap"}
    assert {p for g in trainer.players["critic"].optimiser.param_groups for p in g["params"]} == set(
        method.critic.parameters()
    )
    owned = {p for g in trainer.players["student"].optimiser.param_groups for p in g["params"]}
    assert owned == set(student.parameters())


def test_many_turns_of_a_player_do_not_hurry_its_schedule(run: Any) -> None:
    method = Adversarial(critic_turns=4)
    trainer = run.trainer(
        run.tiny(), run.total(adv=method), teachers=[run.tiny(1)], steps=5, schedule="cosine", warmup=0.0
    )
    critic = trainer.players["critic"].optimiser
    rates: list[float] = []

    def watched(start: int, stop: int) -> Iterator[Batch]:
        for batch in run.batches(start, stop):
            rates.append(critic.param_groups[0]["lr"])
            yield batch

    run.fit(trainer, watched)
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * i / 5)) for i in range(5)])
    assert method.steps == [True] * 20


def test_a_method_gives_its_player_a_rate_of_its_own(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"critic": 0.1}
    monkeypatch.setattr(Adversarial, "rates", lambda self: rates)
    seen: list[list[float]] = []

    def trainer() -> Any:
        return run.trainer(run.tiny(), run.total(sup=Supervised(), adv=Adversarial()), teachers=[run.tiny(1)])

    made = trainer()

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for i in range(start, stop):
            seen.append([made.players[name].optimiser.param_groups[0]["lr"] for name in ("student", "critic")])
            yield run.batch(i)

    run.fit(made, batches)
    assert len({student for student, _ in seen}) == 6  # the schedule moves both
    for student, critic in seen:
        assert critic == pytest.approx(0.1 * student)
    rates["nobody"] = 1.0
    with pytest.raises(UserError, match="a learning rate to 'nobody', who does not learn"):
        trainer()


def test_a_turn_without_gradient_moves_nothing(run: Any) -> None:
    class Idle(Method):
        reads_teacher = False

        def turns(self, r: Round) -> Turns:
            yield Turn("student", {"nothing": torch.zeros(())})

    student = run.tiny()
    before = weights(student)
    run.fit(run.trainer(student, run.total(idle=Idle())))
    assert equal(weights(student), before)


def test_accumulated_micro_batches_are_one_batch(run: Any) -> None:
    """Without a norm over the batch, and for a mean over voxels, two of one are one of two."""
    ones = [replace(run.batch(i, 1), case=(f"{i}",)) for i in range(6)]
    twos = [
        Batch(torch.cat([a.image, b.image]), torch.cat([a.label, b.label]))
        for a, b in zip(ones[::2], ones[1::2], strict=True)
    ]
    nets = run.tiny(), run.tiny()
    method = Adversarial()
    teacher = run.tiny(1)
    for net, dealt, accumulate in ((nets[0], ones, 2), (nets[1], twos, 1)):
        methods = {"sup": Plain(), "kd": KD(reduction="uniform")}
        trainer = run.trainer(
            net,
            run.total(**methods),
            teachers=[teacher],
            steps=3,
            optimiser="sgd",  # AdamW would forgive a gradient of twice the size
            accumulate=accumulate,
            folder=run.folder / str(accumulate),
        )
        run.fit(trainer, lambda start, stop, dealt=dealt: iter(dealt[start:stop]))
        if accumulate == 2:
            assert trainer.step == 3
    for a, b in zip(weights(nets[0]), weights(nets[1]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    run.fit(run.trainer(run.tiny(), run.total(adv=method), teachers=[teacher], steps=3, accumulate=2))
    assert method.steps == [False, True] * 3  # a method can ask whether weights have changed


class Learnable(Method):
    """Has a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        self.seen += 1
        return {"x": (student.logits * self.scale - teacher.logits).square().mean()}


def test_what_a_method_learns_is_the_students_to_step(run: Any) -> None:
    method = Learnable()
    trainer = run.trainer(run.tiny(), run.total(own=method), teachers=[run.tiny(1)])
    run.fit(trainer)
    assert method.scale.item() != 1
    assert method.seen == 6
    assert any(p is method.scale for p in trainer.players["student"].parameters)


def test_weights_ramp_with_the_training(run: Any) -> None:
    student = run.tiny()
    pulls: list[float] = []

    class Pull(Method):
        """A term whose gradient is one."""

        reads_teacher = False

        def turns(self, r: Round) -> Turns:
            bias = dict(r.nets["student"].named_parameters())["2.bias"]
            yield Turn("student", {"pull": bias.sum()})

    dict(student.named_parameters())["2.bias"].register_hook(lambda g: pulls.append(g[0].item()))
    method = run.total(pull=(Pull(), Weight(0.0, 3.0, over=0.5)))
    run.fit(run.trainer(student, method, steps=4, clip_norm=None))
    assert pulls == [0, 1.5, 3, 3]
    assert run.events[0]["terms"].keys() == {"pull/pull"}


def test_gradients_are_clipped(run: Any) -> None:
    student = run.tiny()
    trainer = run.trainer(student, run.total(sup=Plain()), steps=1, clip_norm=1e-3)
    seen = []
    step = trainer.players["student"].optimiser.optimizer.step

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in student.parameters())))
        return step(*arguments, **options)

    trainer.players["student"].optimiser.optimizer.step = watched
    run.fit(trainer)
    assert seen == pytest.approx([1e-3], rel=1e-3)


def test_peers_learn_beside_the_student(run: Any) -> None:
    student, peer = run.tiny(), run.tiny(1)
    before = weights(student), weights(peer)
    run.fit(run.trainer({"student": student, "peer1": peer}, run.total(sup=Supervised())))
    assert not equal(weights(student), before[0])
    assert not equal(weights(peer), before[1])
    assert run.events[0]["terms"].keys() == {"sup/dice", "sup/ce", "peer1:sup/dice", "peer1:sup/ce"}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_deep_supervision(run: Any, ema: float | None) -> None:
    spec = {"name": "DynUNet", "filters": [4, 4, 8, 8], "deep_supervision": True}
    student = build(spec, in_channels=1, classes=2, patch=run.size, strides=[(2, 2, 2), (2, 2, 2), (1, 1, 1)])
    before = weights(student)
    fit = run.fit(run.trainer(student, run.total(sup=Supervised(), kd=KD()), teachers=[run.tiny(1)], ema=ema))
    assert not equal(weights(student), before)
    student.load_state_dict(fit.state)
    heads = [p for name, p in student.named_parameters() if "superhead" in name or "deep_supervision_heads" in name]
    assert heads


def test_bf16_learns_and_its_terms_are_single_precision(run: Any) -> None:
    seen = []

    class Look(Method):
        def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
            seen.append((student.logits.dtype, student.taps["0"].dtype))
            return {"x": student.logits.mean() * 0}

        def taps(self) -> tuple[str, ...]:
            return ("0",)

    trainer = run.trainer(
        run.tiny(), run.total(sup=Supervised(), kd=KD(), look=Look()), teachers=[run.tiny(1)], precision="bf16"
    )
    run.fit(trainer)
    terms = [e["terms"] for e in run.events if "terms" in e]
    assert terms[-1]["sup/ce"] < terms[0]["sup/ce"]
    assert seen[0] == (torch.float32, torch.bfloat16)


def test_an_unlabelled_batch_teaches_by_the_teacher_alone(run: Any) -> None:
    def unlabelled(start: int, stop: int) -> Iterator[Batch]:
        return (replace(b, label=torch.full_like(b.label, IGNORE)) for b in run.batches(start, stop))

    student = run.tiny()
    before = weights(student)
    run.fit(run.trainer(student, run.total(sup=Supervised(), kd=KD()), teachers=[run.tiny(1)]), unlabelled)
    assert all(e["terms"]["sup/ce"] == 0 for e in run.events if "terms" in e)
    assert not equal(weights(student), before)


# ---- taps


class Tap(Method):
    def __init__(self, mine: str, theirs: str | None = None) -> None:
        super().__init__()
        self.mine, self.theirs = mine, theirs
        self.met: tuple[Anatomy, Anatomy] | None = None

    def taps(self) -> tuple[str, ...]:
        return (self.mine,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.theirs or self.mine,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        self.met = student, teacher
        inside, outside = student.taps[self.mine], teacher.taps[self.theirs or self.mine]
        self.adapter = nn.Conv3d(inside.channels, outside.channels, 1)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        x, y = student.taps[self.mine], teacher.taps[self.theirs or self.mine]
        return {"x": (self.adapter(x) - y).square().mean()}


def test_taps_reach_the_method_and_its_adapter_learns(run: Any) -> None:
    method = Tap("0")
    student, teacher = run.tiny(), run.tiny(1, width=6)
    trainer = run.trainer(student, run.total(tap=method), teachers=[teacher])
    before = weights(method.adapter)
    run.fit(trainer)
    assert method.adapter.out_channels == 6
    assert not equal(weights(method.adapter), before)
    assert method.met is not None
    assert method.met[0].classes == 2


@pytest.mark.parametrize(("mine", "theirs"), [("encc0", None), ("0", "9.conv")])
def test_a_tap_that_is_not_there_is_told_before_a_method_trips_over_it(run: Any, mine: str, theirs: str | None) -> None:
    with pytest.raises(UserError, match=f"no tap '{theirs or mine}'"):
        run.trainer(run.tiny(), run.total(tap=Tap(mine, theirs)), teachers=[run.tiny(1)])


def test_without_a_teacher_the_anatomy_still_knows_classes_and_axes(run: Any) -> None:
    class Look(Method):
        reads_teacher = False

        def setup(self, student: Anatomy, teacher: Anatomy) -> None:
            self.met = student, teacher

    look = Look()
    run.trainer(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)), run.total(look=look), image_shape=(1, 8, 8)
    )
    assert (look.met[1].classes, look.met[1].dims) == (look.met[0].classes, look.met[0].dims) == (3, 2)
    assert look.met[1].taps == {}


def test_a_player_named_like_a_network_is_refused(run: Any) -> None:
    class Greedy(Method):
        def players(self) -> dict[str, nn.Module]:
            return {"student": nn.Linear(1, 1)}

    with pytest.raises(UserError, match="claims the player 'student'"):
        run.trainer(run.tiny(), run.total(greedy=Greedy()))


# ---- what is kept


def test_the_best_is_kept_and_the_last_is_told(run: Any) -> None:
    scores = iter([0.1, 0.7, 0.4])
    states: list[dict[str, Tensor]] = []

    def score(network: nn.Module) -> dict[str, Any]:
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return {"dice": np.float32(next(scores)), "dice/organ": np.float64(1)}

    fit = run.fit(run.trainer(run.tiny(), run.total(sup=Plain()), validate_every=2), score=score)
    assert (fit.best, fit.best_step, fit.last) == (pytest.approx(0.7), 4, pytest.approx(0.4))
    assert all(torch.equal(value, states[1][name]) for name, value in fit.state.items())
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [e["scores"]["dice"] for e in log if "scores" in e] == pytest.approx([0.1, 0.7, 0.4])
    assert run.events == [{**e, "of": 6} for e in log]


def test_a_score_of_nan_never_stays_the_best(run: Any) -> None:
    scores = iter([math.nan, 0.0, math.nan])
    trainer = run.trainer(run.tiny(), run.total(sup=Plain()), validate_every=2)
    fit = run.fit(trainer, score=lambda _: {"dice": next(scores)})
    assert (fit.best, fit.best_step) == (0, 4)


def test_the_average_is_kept(run: Any) -> None:
    student = run.tiny(norm=True)
    seen: list[list[Tensor]] = []

    def watched(start: int, stop: int) -> Iterator[Batch]:
        for batch in run.batches(start, stop):
            seen.append([p.detach().clone() for p in student.parameters()])
            yield batch

    trainer = run.trainer(student, run.total(sup=Plain()), ema=0.5, validate_every=6)
    fit = run.fit(trainer, watched)
    history = [*seen[1:], [p.detach() for p in student.parameters()]]
    mean = history[0]
    for now in history[1:]:
        mean = [a + 0.5 * (b - a) for a, b in zip(mean, now, strict=True)]
    for name, expected in zip(dict(student.named_parameters()), mean, strict=True):
        torch.testing.assert_close(fit.state[name], expected)
    assert not torch.equal(fit.state["1.running_mean"], student.state_dict()["1.running_mean"])
    assert trainer.kept is not student


def test_a_method_may_ship_more_than_the_student(run: Any) -> None:
    class Ship(Plain):
        def deploy(self, student: nn.Module) -> nn.Module:
            return nn.Sequential(student, nn.Identity())

    fit = run.fit(run.trainer(run.tiny(), run.total(ship=Ship())))
    assert set(fit.state) == {"0." + name for name in run.tiny().state_dict()}


# ---- what is told


class Broken(Method):
    """A term that breaks at one case."""

    reads_teacher = False

    def turns(self, r: Round) -> Turns:
        value = math.nan if "case2.0" in r.batch.case else 1.0
        yield Turn("student", {"x": r.view("student").logits.mean() * value, "y": r.view("student").logits.mean()})


def test_a_term_that_is_not_finite_is_named_with_its_cases(run: Any) -> None:
    trainer = run.trainer(run.tiny(), run.total(sup=Plain(), broken=Broken()))
    with pytest.raises(UserError, match=r"step 3: broken/x is not finite on cases case2\.0, case2\.1; lower"):
        run.fit(trainer)
    assert all(bool(torch.isfinite(p).all()) for p in trainer.student.parameters())


def test_a_student_that_needs_a_teacher_and_has_none_is_told(run: Any) -> None:
    with pytest.raises(UserError, match="asks for a teacher and the stage has none"):
        run.fit(run.trainer(run.tiny(), run.total(kd=KD())))
