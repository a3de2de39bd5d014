"""What methods cannot do with a stage is told by ``medkd check`` in one sentence, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from medkd.data.dataset import load_dataset
from medkd.data.plan import Plan
from medkd.errors import UserError
from medkd.methods import catalogue
from medkd.methods.base import Weight
from medkd.networks.weights import ModelCard, save_network
from medkd.networks.zoo import build
from medkd.pipeline.config import load_config
from medkd.pipeline.steps.dry import dry_step, provisional_plan

Command = Callable[..., Any]
Write = Callable[..., Path]
Check = Callable[..., Any]

OWN = """\
from torch import nn
from medkd.methods.base import Method

class Demanding(Method):
    min_batch = 3

    def forward(self, student, teacher, batch):
        return {"x": (student.logits - teacher.logits).mean()}

class Judge(Method):
    reads_teacher = False

    def __init__(self):
        super().__init__()
        self.critic = nn.Linear(1, 1)

    def players(self):
        return {"critic": self.critic}
"""


@pytest.fixture
def check(tmp_path: Path, tiny_dataset: Path, write: Write, command: Command, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Check a student that learns by these methods from a teacher (or two)."""
    (tmp_path / "own_for_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def do(
        *methods: Any,
        teachers: int = 1,
        teacher: str = "teacher",
        batch: int = 2,
        source: Path = tiny_dataset,
        options: Sequence[str] = (),
    ) -> Any:
        net = {"name": "UNet", "channels": [2, 4, 8]}
        stages = {
            "teacher": {"model": [net] * teachers, "methods": ["supervised"]},
            "student": {"model": net, "teacher": teacher, "methods": ["supervised", *methods], "control": "none"},
        }
        train = {"steps": 2, "batch": batch, "threads": 1}
        data = {"source": str(source), "folds": 3}
        return command("check", write(tmp_path, "bad", source, stages, data=data, train=train), *options)

    return do


def refused(told: Any, *said: str) -> None:
    assert told.code == 2, told
    assert told.out == ""
    for words in said:
        assert words in told.error


def test_a_stage_that_is_right_is_told_its_taps(check: Check) -> None:
    told = check({"name": "at", "tap": "enc0"})
    assert told.code == 0, told.err
    assert "taps enc0, bottleneck" in told.out


@pytest.mark.parametrize("where", ["tap", "teacher_tap"])
def test_a_tap_that_does_not_exist(check: Check, where: str) -> None:
    taps = {"tap": "enc0", where: "botleneck"}
    refused(check({"name": "at", **taps}), "no tap 'botleneck' (did you mean 'bottleneck'?)", "offers enc0, bottleneck")


def test_taps_of_an_ensemble(check: Check) -> None:
    refused(check({"name": "at", "tap": "enc0"}, teachers=2), "several have no features together; give it one")


def test_two_methods_that_claim_one_player(check: Check) -> None:
    twice = [{"name": "own_for_a_test:Judge", "as": name} for name in ("one", "two")]
    refused(check(*twice, "kd"), "method 'two' claims the player 'critic', which another method has")


def test_a_batch_that_is_too_small(check: Check) -> None:
    demanding = "own_for_a_test:Demanding"
    refused(check(demanding), "method Demanding compares samples of a batch and needs 3 of them; set train.batch")
    assert check(demanding, batch=3).code == 0


@pytest.mark.parametrize("weight", [".inf", ".nan", "{ramp: [0, .inf]}"])
def test_a_weight_that_is_not_finite(check: Check, weight: str) -> None:
    told = check("kd", options=["--set", f"stages.student.methods.1={{name: kd, weight: {weight}}}"])
    refused(told, "stages.student.methods.1", "should be a finite number")


def test_labels_where_there_are_none(check: Check, tiny_dataset: Path) -> None:
    file = tiny_dataset / "dataset.json"
    told = json.loads(file.read_text())
    unlabelled = [case["image"] for case in told["training"]]
    file.write_text(json.dumps({**told, "training": [], "unlabelled": unlabelled}))
    refused(check("dkd"), "none of its 6 cases has a label")


def test_a_teacher_with_other_classes(check: Check, tiny_dataset: Path, tmp_path: Path) -> None:
    spec = {"name": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 4, "channels": [2, 4], "strides": [2]}
    network = build(spec, in_channels=1, classes=4, patch=(16, 16, 16))
    labels = {"background": 0, "liver": 1, "spleen": 2, "gall bladder": 3}
    card = ModelCard(spec, 1, 4, labels, plan_of(tiny_dataset).to_json(), ("CT",), (), (), {})
    save_network(tmp_path / "other", network, card)
    refused(check("kd", teacher=str(tmp_path / "other")), "teacher other names the class 'gall bladder'", "ontology")


def test_stored_targets_have_no_taps(tmp_path: Path, tiny_dataset: Path) -> None:
    dataset, plan = load_dataset(tiny_dataset), plan_of(tiny_dataset)
    spec = {"name": "UNet", "channels": [2, 4, 8]}
    student = build(spec, in_channels=1, classes=3, patch=plan.patch)
    for name, arguments in (("at", {"tap": "enc0"}), ("fitnets", {"tap": "enc0"})):
        method = catalogue.combine([(name, name, arguments, Weight.constant(1))])
        with pytest.raises(UserError, match="reads 'enc0' of its teacher, and stored targets have no features"):
            dry_step({"student": student}, method, [], dataset, plan, 2, 1, True)


def plan_of(source: Path) -> Plan:
    torch.manual_seed(0)
    file = source.parent / "plan.yaml"
    net = "{model: {name: UNet, channels: [2, 4, 8]}, methods: [supervised]}"
    file.write_text(f"name: plan\ndata: {{source: {source}, folds: 3}}\nstages: {{net: {net}}}\n")
    return provisional_plan(load_config(file), load_dataset(source))[0]
