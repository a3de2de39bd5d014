"""The net is tight: each of these losses is wrong in one known way, and the rule made for it says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.conformance.judge import Finding, judge
from medkd.conformance.play import Subject
from medkd.conformance.rules import RULES
from medkd.conformance.subjects import find, method, plain
from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import kl_map
from medkd.types import Batch, Terms, Turn, Turns, View

Loss = Callable[[Tensor, Tensor], Tensor]


def kl(s: Tensor, t: Tensor) -> Tensor:
    """Right, for all to be compared with."""
    return kl_map(s, t).mean()


def batchmean(s: Tensor, t: Tensor) -> Tensor:
    return F.kl_div(s.float().log_softmax(1), t.detach().float().softmax(1), reduction="batchmean")


def last_axis(s: Tensor, t: Tensor) -> Tensor:
    return F.kl_div(s.float().log_softmax(-1), t.detach().float().softmax(-1), reduction="none").sum(1).mean()


def unpacked(s: Tensor, t: Tensor) -> Tensor:
    b, k, h, w = s.shape
    return kl_map(s.reshape(b, k, h * w), t.reshape(b, k, h * w)).mean()


def detached(s: Tensor, t: Tensor) -> Tensor:
    return kl(s.detach(), t)


def first_sample(s: Tensor, t: Tensor) -> Tensor:
    return kl(s[:1], t[:1])


def second_sample(s: Tensor, t: Tensor) -> Tensor:
    return (kl(s[0:1], t[0:1]) + kl(s[1].unsqueeze(0), t[1].unsqueeze(0))) / 2


def teaches_the_teacher(s: Tensor, t: Tensor) -> Tensor:
    return (s.float() - t.float()).square().mean()


def fourth_power(s: Tensor, t: Tensor) -> Tensor:
    return (s**4 - t.detach() ** 4).abs().float().mean().sqrt()


def probabilities_for_logs(s: Tensor, t: Tensor) -> Tensor:
    return F.kl_div(s.float().softmax(1), t.detach().float().softmax(1), reduction="none").sum(1).mean()


def three_classes(s: Tensor, t: Tensor) -> Tensor:
    return kl(s.movedim(1, -1).reshape(-1, 3), t.movedim(1, -1).reshape(-1, 3))


def map_of_voxels(s: Tensor, t: Tensor) -> Tensor:
    return kl_map(s, t)


def by_teachers_classes(s: Tensor, t: Tensor) -> Tensor:
    """Mean over the voxels of the last class, of which there may be none."""
    last = t.detach().argmax(1) == t.shape[1] - 1
    return kl_map(s, t)[last].mean()


BROKEN: dict[Loss, tuple[str, ...]] = {
    batchmean: ("patch",),
    last_axis: ("axes",),
    unpacked: ("3d", "odd"),
    detached: ("student",),
    first_sample: ("samples",),
    second_sample: ("samples", "batch_one"),
    teaches_the_teacher: ("teacher",),
    fourth_power: ("fp16",),
    probabilities_for_logs: ("least",),
    three_classes: ("classes",),
    map_of_voxels: ("2d", "3d"),
    by_teachers_classes: ("one_class",),
}


def failed(findings: list[Finding]) -> set[str]:
    return {one.rule for one in findings if one.outcome == "fail"}


def of(loss: Loss) -> Subject:
    return plain(loss.__name__, lambda: loss)


def test_a_right_loss_passes() -> None:
    findings = judge(of(kl))
    assert failed(findings) == set()
    assert {one.rule for one in findings if one.outcome == "moot"} == {"adapters", "trust", "known", "regions"}


@pytest.mark.parametrize(("loss", "rules"), BROKEN.items(), ids=[loss.__name__ for loss in BROKEN])
def test_a_broken_loss_is_caught(loss: Loss, rules: tuple[str, ...]) -> None:
    caught = failed(judge(of(loss), rules))
    assert caught == set(rules)


def test_a_failure_says_why_in_one_line() -> None:
    (found,) = judge(of(unpacked), ["3d"])
    assert found.why.startswith("ValueError: too many values to unpack")
    assert found.asks.startswith("3-D")


class Deaf(Method):
    """Distils where the teacher is not trusted, too."""

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        return {"deaf": kl_map(student.logits, teacher.logits).mean()}


class Idle(Method):
    """Has an adapter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(2, 2)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        return {"idle": kl_map(student.logits, teacher.logits).mean()}


class Forgetful(Method):
    """Remembers the teacher outside of its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.past = 0.0

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        self.past = 0.5 * self.past + float(teacher.logits.mean())
        return {"forgetful": (student.logits.mean() - self.past).square()}


class Unlucky(Method):
    """Draws from a generator of its own, which no seed reaches."""

    generator = torch.Generator()

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        noise = torch.rand((), generator=self.generator)
        return {"unlucky": noise * kl_map(student.logits, teacher.logits).mean()}


class Strict(Method):
    """Takes IGNORE for a class."""

    reads_labels: ClassVar[bool] = True
    reads_teacher: ClassVar[bool] = False

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        hot = F.one_hot(batch.label, student.logits.shape[1]).movedim(-1, 1)
        return {"strict": (student.logits.float().softmax(1) - hot).square().mean()}


class Raw(Method):
    """Compares raw logits on two scales, those of classes that are switched off too."""

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        return {"raw": (1.1 * student.logits.float() - teacher.logits.detach().float()).square().mean()}


class NeverZero(Method):
    """Declares a zero that it has not."""

    zero_at_teacher: ClassVar[bool] = True

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        return {"ce": F.cross_entropy(student.logits.float(), teacher.logits.detach().float().softmax(1))}


class Stranger(Method):
    """Gives a turn to nobody."""

    def turns(self, r: object) -> Turns:
        yield Turn("critic", {"x": torch.zeros(())})


CAUGHT: dict[type[Method], str] = {
    Deaf: "trust",
    Idle: "adapters",
    Forgetful: "state",
    Unlucky: "seed",
    Strict: "ignore",
    Raw: "known",
    NeverZero: "least",
    Stranger: "3d",
}


@pytest.mark.parametrize(("broken", "rule"), CAUGHT.items(), ids=[one.__name__ for one in CAUGHT])
def test_a_broken_method_is_caught(broken: type[Method], rule: str) -> None:
    assert failed(judge(method(broken.__name__, broken))) >= {rule}


def test_an_exemption_is_told_not_judged() -> None:
    class Declared(Deaf):
        exempt: ClassVar[Mapping[str, str]] = {"trust": "is about the teacher's mistakes"}

    found = {one.rule: one for one in judge(method("declared", Declared))}
    assert (found["trust"].outcome, found["trust"].why) == ("exempt", "is about the teacher's mistakes")


def test_every_rule_has_a_sentence_and_something_that_breaks_it() -> None:
    assert all(rule.__doc__ for rule in RULES.values())
    broken = {rule for rules in BROKEN.values() for rule in rules} | set(CAUGHT.values())
    held_by_construction = {"bf16", "absent", "batch", "regions"}  # siblings of fp16, one_class, patch and 3d
    assert set(RULES) - broken == held_by_construction


OWN = """\
import torch
import torch.nn.functional as F

def soft(student, teacher, scale=1.0):
    return scale * F.kl_div(student.float().log_softmax(1), teacher.float().softmax(1), reduction="none").sum(1).mean()

def supervised(student, teacher, label):
    return F.cross_entropy(student.float(), label, ignore_index=-1) if (label >= 0).any() else student.sum() * 0.0

class Hinton(torch.nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature
    def forward(self, student, teacher):
        return soft(student / self.temperature, teacher / self.temperature)

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return str(file)


def test_functions_and_classes_of_a_file_are_found(own: str) -> None:
    assert failed(judge(find(f"{own}:soft"), ["3d", "patch"])) == set()
    assert failed(judge(find(f"{own}:soft", {"scale": 2.0}), ["3d"])) == set()
    assert failed(judge(find(f"{own}:Hinton", {"temperature": 2}), ["3d", "least", "state"])) == set()
    assert failed(judge(find(f"{own}:supervised"), ["3d", "ignore"])) == set()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FILE:sofd", "did you mean 'soft'"),
        ("FILE:number", "is a int"),
        ("FILE:Hinton", "temperature"),
        ("nowhere.py:soft", "no such file"),
        ("no_such_module:soft", "cannot be imported"),
        ("kdd", "did you mean"),
    ],
)
def test_what_cannot_be_judged_is_told(name: str, words: str, own: str) -> None:
    with pytest.raises(UserError, match=words):
        find(name.replace("FILE", own))
