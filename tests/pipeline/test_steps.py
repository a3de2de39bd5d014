"""Pieces of the steps: what scores a checkpoint, what is exported, who may teach, what a check finds out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkd.data.dataset import Dataset, load_dataset
from medkd.data.plan import IntensityRule, Plan
from medkd.data.splits import Split, make_folds
from medkd.data.store import Store
from medkd.errors import UserError
from medkd.evaluation.cases import Row
from medkd.methods.base import Method, Sum, Weight
from medkd.networks.weights import ModelCard, save_network
from medkd.networks.zoo import build, complete
from medkd.pipeline import yamlfile
from medkd.pipeline.config import RunConfig, parse
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.dry import check_method, dry_run
from medkd.pipeline.steps.export import best_seed
from medkd.pipeline.steps.gather import Gathered
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import (
    Member,
    admit,
    channels_of,
    known_to,
    leakage_line,
    live_networks,
    live_teachers,
    open_members,
    stored_members,
    write_members,
)
from medkd.pipeline.steps.train import Validation, provenance
from medkd.teachers.adapters.medkd import card_of
from medkd.teachers.labels import Ontology

LABELS = {"background": 0, "liver": 1, "spleen": 2}
PLAN = Plan(
    spacing_mm=(1.0, 1.0, 1.0),
    patch=(16, 16, 16),
    batch=2,
    intensity=(IntensityRule("zscore"),),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
)


class Threshold(nn.Module):
    """Answers class k where the image is near k."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-self.scale * (image - value).abs() for value in LABELS.values()], 1)


def ground_of(tmp_path: Path, **cases: tuple[np.ndarray, np.ndarray]) -> Any:
    """Stand in for a run's ground: the prepared image and label ``(X, Y, Z)`` of each case."""
    store = Store(tmp_path)
    for case, (image, label) in cases.items():
        store.add(case, image[None].astype(np.float32), label)
    dataset = SimpleNamespace(labels=LABELS)
    taught = tuple(name for name, value in LABELS.items() if value)
    return SimpleNamespace(store=store, dataset=dataset, classes=len(LABELS), plan=PLAN, taught=taught)


def test_validation_is_the_mean_over_classes_of_the_mean_over_cases(tmp_path: Path) -> None:
    label = np.zeros((16, 16, 16), np.int16)
    label[2:6, 2:6, 2:6], label[9:12, 9:12, 9:12] = 1, 2
    half = label.copy()
    half[2:4, 2:6, 2:6] = 0  # half of the liver is missed: Dice 2 * 32 / (32 + 64)
    no_spleen = np.where(label == 2, 0, label)
    ground = ground_of(tmp_path, a=(label, label), b=(half, label), c=(no_spleen, no_spleen))
    scores = Validation(ground, ("a", "b", "c"), None)(Threshold())
    assert scores["dice/liver"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert scores["dice/spleen"] == pytest.approx(1.0)  # of a and b: in c it is neither there nor found
    assert scores["dice"] == pytest.approx((scores["dice/liver"] + scores["dice/spleen"]) / 2)
    assert Validation(ground, ("c",), None)(Threshold()) == {"dice": 1.0, "dice/liver": 1.0}
    nothing = np.zeros_like(label)
    empty = ground_of(tmp_path, d=(nothing, nothing))
    assert Validation(empty, ("d",), None)(Threshold()) == {"dice": 0.0}


@pytest.mark.parametrize(
    ("most", "chosen"), [(None, "abcdefg"), (1, "a"), (2, "ad"), (3, "ace"), (7, "abcdefg"), (99, "abcdefg")]
)
def test_validation_cases_are_spread_evenly(tmp_path: Path, most: int | None, chosen: str) -> None:
    assert "".join(Validation(ground_of(tmp_path), tuple("abcdefg"), most).cases) == chosen


def results(tmp_path: Path, **dice: float) -> dict[str, Path]:
    for name, value in dice.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"dice": value}))
    return {f"train.student.m0.f0.s{name[1:]}.main": tmp_path / name for name in dice}


def test_the_seed_with_the_best_validation_is_exported(tmp_path: Path) -> None:
    inputs = {"prepare": tmp_path, **results(tmp_path, s0=0.81, s1=0.84, s2=0.84)}
    assert best_seed("student", inputs).name == "s1"
    with pytest.raises(UserError, match="stage student has several models"):
        best_seed("student", {**inputs, "train.student.m1.f0.s0.main": tmp_path / "s0"})


def row(arm: str, seed: int, dice: float = 0.5) -> Row:
    return Row(arm, arm.partition(".")[0], 0, seed, "case_1", "case_1", "liver", {"dice": dice}, 10, 10)


RUN = """\
name: toy
data: {source: SOURCE, folds: 3}
plan: {patch: [16, 16, 16]}
train: {steps: 60, batch: 2}
stages:
  teachers:
    model: {name: UNet, channels: [4, 8]}
    methods: [supervised]
  student:
    model: {name: UNet, channels: [2, 4]}
    teacher: teachers
    methods: [supervised, kd]
evaluate: {metrics: [dice]}
"""


def config_of(source: Path | str = "somewhere", *overrides: str) -> RunConfig:
    return parse(yamlfile.parse(RUN.replace("SOURCE", str(source)), "run.yaml").override(overrides))


def test_a_student_is_compared_with_the_seed_that_taught_it() -> None:
    config = config_of("somewhere", "stages.teachers.seeds=[5, 2]")
    gathered = Gathered({}, Context(config, Path("runs/toy")))
    arms = [row("student", 0, 0.6), row("student.control", 0, 0.5), row("teachers", 2, 0.1), row("teachers", 5, 0.8)]
    gathered.__dict__["rows"] = arms
    found = {comparison.arm_b: comparison for comparison in gathered.comparisons()}
    assert set(found) == {"student.control", "teachers"}
    assert found["student.control"].difference == pytest.approx(0.1)
    assert found["teachers"].difference == pytest.approx(-0.2)


def card(**changes: Any) -> ModelCard:
    size: dict[str, Any] = {"in_channels": 1, "classes": 3, "patch": PLAN.patch}
    spec = complete({"name": "UNet", "channels": [2, 4]}, **size)
    values = {"network": spec, "in_channels": 1, "classes": 3, "labels": LABELS, "plan": PLAN.to_json(), **changes}
    return ModelCard(**values)


def save(folder: Path, **changes: Any) -> Path:
    made = card(**changes)
    save_network(folder, build(made.network, in_channels=1, classes=3, patch=PLAN.patch), made)
    return folder


def test_teachers_are_found_in_order_and_told_apart(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a" / "net", trained_on=("x",)), save(tmp_path / "b" / "net", trained_on=("y",))
    inputs = {"prepare": tmp_path, "train.few.m0.p1.f0.s0.main": a, "train.fewer.m0.f0.s0.main": b}
    assert live_teachers(("fewer", "few", "else/where"), inputs) == [b, a, Path("else/where")]
    found = open_members(("fewer", str(a), "few"), inputs)
    assert [(one.name, one.source, one.card.trained_on) for one in found] == [
        (str(b), "fewer", ("y",)),
        (f"{a}#1", str(a), ("x",)),
        (f"{a}#2", "few", ("x",)),
    ]
    assert [one.name for one in open_members(("few",), inputs)] == ["net"]
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'c'} does not exist")):
        open_members((str(a), str(tmp_path / "c")), inputs)


def test_cards_are_stored_beside_targets(tmp_path: Path) -> None:
    told = card(trained_on=("x", "y"), patients=("p",), provenance={"licences": {"Tiny": "CC0"}})
    write_members([member(told)], tmp_path)
    (found,) = stored_members(tmp_path)
    assert found == member(told)
    # As earlier versions wrote them: the cards of medkd's own models alone.
    (tmp_path / "teachers.json").write_text(json.dumps({"net": vars(told)}))
    (old,) = stored_members(tmp_path)
    assert old.card == replace(found.card, identity=old.card.identity)
    assert old.licences == {"Tiny": "CC0"}


def member(told: ModelCard, name: str = "net", source: str = "teachers") -> Member:
    return Member(name, source, card_of(told, name, "medkd", "weights"))


def dataset_and_split(root: Path) -> tuple[Dataset, Split]:
    dataset = load_dataset(root)
    return dataset, make_folds(dataset, folds=3, seed=0)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {"background": 0, "liver": 1, "splen": 2}}, r"teacher net names the class 'splen', .*'spleen'"),
        ({"in_channels": 2}, "teacher net takes 2 channels and the data have 1"),
    ],
)
def test_a_teacher_for_other_data_is_refused(tiny_dataset: Path, changes: dict[str, Any], said: str) -> None:
    dataset, split = dataset_and_split(tiny_dataset)
    known = {"trained_on": split.train}
    assert admitted(dataset, split, member(card(**known))) == ()
    with pytest.raises(UserError, match=said):
        admitted(dataset, split, member(card(**known, **changes)))


def admitted(dataset: Dataset, split: Split, *members: Member, allowed: tuple[str, ...] = ()) -> tuple[str, ...]:
    return admit(members, split, dataset, Ontology.of(dataset.labels), allowed)


def test_a_live_teacher_must_read_the_students_patches(tiny_dataset: Path, tmp_path: Path) -> None:
    (good,) = open_members((str(save(tmp_path / "good")),), {})
    assert len(live_networks([good], PLAN)) == 1
    changed = {**PLAN.to_json(), "spacing_mm": [2.0, 2.0, 2.0]}
    (bad,) = open_members((str(save(tmp_path / "net", plan=changed)),), {})
    with pytest.raises(UserError, match=r"a method here needs the teacher in every step, and .*net was made for spac"):
        live_networks([good, bad], PLAN)
    assert len(live_networks([good, bad], None)) == 2  # before the plan is known


def test_teachers_of_other_classes_say_which_of_the_runs_they_are() -> None:
    ontology = Ontology.of(LABELS)
    same, other = member(card()), member(card(labels={"background": 0, "spleen": 1}))
    turned = member(card(labels={"background": 0, "spleen": 1, "liver": 2}))
    assert channels_of([same, same], ontology) is None
    assert channels_of([same, turned], ontology) == [(1, 2), (2, 1)]
    assert channels_of([other], ontology) == [(2,)]
    assert known_to([same, other], ontology) is None
    assert known_to([other], ontology) == (True, False, True)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_teacher_of_a_held_out_patient_is_refused(tiny_dataset: Path, part: str) -> None:
    dataset, split = dataset_and_split(tiny_dataset)
    held, said = getattr(split, part)[0], f"teacher 'net' was trained on patients of the student's {part} cases: "
    assert admitted(dataset, split, member(card(trained_on=(*split.train, *split.unlabelled)))) == ()
    bad = member(card(trained_on=(*split.train, held)))
    with pytest.raises(UserError, match=said + held):
        admitted(dataset, split, bad)
    with pytest.raises(UserError, match=said + held):
        admitted(dataset, split, bad, allowed=("another",))
    told = (f"overridden by hand: net was trained on patients of 1 {part} case of its student",)
    assert admitted(dataset, split, bad, allowed=("teachers",)) == told
    description = json.loads((tiny_dataset / "dataset.json").read_text())
    (tiny_dataset / "dataset.json").write_text(json.dumps({**description, "groups": {held: "p"}}))
    # Another scan of the same patient, which this dataset does not list.
    with pytest.raises(UserError, match=said + held):
        admitted(load_dataset(tiny_dataset), split, member(card(trained_on=("scan",), patients=("p",))))


def test_what_is_not_known_of_a_teacher_is_told_and_carried_on(tiny_dataset: Path) -> None:
    dataset, split = dataset_and_split(tiny_dataset)
    unknown = member(card(), "stranger")
    (told,) = admitted(dataset, split, unknown)
    assert told == "not known for stranger, which does not tell what it was trained on"
    # An assistant that learned from it is no better known.
    assistant = member(card(trained_on=split.train, provenance={"leakage": told}), "assistant")
    assert admitted(dataset, split, assistant, unknown) == (told,)
    assert leakage_line([{"leakage": told}, {"leakage": "none"}, {}, {"leakage": f"{told}; overridden"}]) == (
        f"{told}; overridden"
    )
    assert leakage_line([{"leakage": "none"}]).startswith("none: no teacher was trained on")


def test_provenance_inherits_licences(tiny_dataset: Path) -> None:
    dataset, split = dataset_and_split(tiny_dataset)
    ground: Any = SimpleNamespace(dataset=dataset, facts={"data_hash": "abc"})
    before = [
        member(card(provenance={"licences": {"Other": "CC-BY-NC-4.0"}})),
        member(card(provenance={"licences": {"Third": "MIT"}}), "start"),
    ]
    node = Node("train", "student", 0, 0, 0, "main")
    told = provenance(node, ground, split.train, split.unlabelled, before[:1], before)
    assert told["licences"] == {"Tiny": "CC0", "Other": "CC-BY-NC-4.0", "Third": "MIT"}
    assert told["teachers"] == ["net"]
    assert (told["labelled"], told["unlabelled"]) == (list(split.train), list(split.unlabelled))
    assert told["data_hash"] == "abc"
    assert set(told["versions"]) == {"torch", "monai"}


def test_a_class_that_no_training_case_has_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    store, (dataset, split) = Store(tmp_path), dataset_and_split(tiny_dataset)
    for case in dataset.labelled:
        label = np.zeros((16, 16, 16), np.int16)
        label[2:6], label[9:12] = 1, 0 if case.id in split.train else 2
        store.add(case.id, label[None].astype(np.float32), label)
    store.close()
    ground = Ground(tmp_path, Context(config_of(tiny_dataset), tmp_path))
    with pytest.raises(UserError, match="class 'spleen' is in none of the 3 training cases of fold 0"):
        ground.check_classes(0)
    ground.check_classes(1)  # some of its training cases are test cases of fold 0


def test_a_dry_run_tells_plan_split_and_stages(tiny_dataset: Path) -> None:
    told = dry_run(config_of(tiny_dataset))
    assert told[0].startswith("plan: spacing (1.5, 1.5, 2.0) mm, patch (16, 16, 16), batch 2")
    assert told[1] == "fold 0: 3 training, 1 validation, 2 test and 2 unlabelled cases"
    assert re.fullmatch(
        r"teachers: UNet, [\d,]+ parameters, taps .*bottleneck.*; a step of 2 patches takes [\d.]+ s here, "
        r"60 steps about [\d.]+ min",
        told[2],
    )
    assert told[3].startswith("student: UNet, ")
    # 3 + 2 cases, 3 classes, 24 x 28 x 20 voxels that are not resampled.
    assert re.fullmatch(
        r"student: targets of 5 cases are stored once, for all seeds: about 0\.\d MB as full16", told[4]
    )
    coarse = dry_run(config_of(tiny_dataset, "plan.spacing_mm=[0.15, 0.15, 0.2]"))
    assert re.search(r"about \d{3}\.\d MB as full16$", coarse[4])
    topk = dry_run(config_of(tiny_dataset, "stages.student.targets={encoding: topk, k: 2}"))
    assert topk[4].endswith(" MB as topk of 2 classes")
    live = dry_run(config_of(tiny_dataset, "stages.student.methods=[supervised, at]"))
    assert live[4].startswith("student: at reads the teacher's features bottleneck, so the teacher runs live in every")


def test_a_method_may_need_more_patches_than_a_batch_has() -> None:
    class Pairs(Method):
        min_batch = 2

    both = Sum({"pairs": (Pairs(), Weight.constant(1))})
    check_method(both, 2)
    with pytest.raises(UserError, match="pairs compares samples of a batch and needs 2 of them"):
        check_method(both, 1)


def test_warnings_name_what_did_not_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = results(tmp_path, s0=0.0, s1=0.4)
    gathered: Callable[..., Gathered] = lambda *o: Gathered(inputs, Context(config_of("x", *o), tmp_path))  # noqa: E731
    monkeypatch.setattr(Gathered, "ground", SimpleNamespace(facts={"suspicious": [f"s{i}" for i in range(9)]}))
    told = list(gathered().warnings())
    assert told[:5] == ["s0", "s1", "s2", "s3", "s4"]
    assert told[5].startswith("train.student.m0.f0.s0.main never found a foreground voxel")
    assert told[6].startswith("One seed only")
    assert len(list(gathered("stages.student.seeds=[0, 1]").warnings())) == 6
