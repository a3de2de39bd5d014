"""How long plain training may last that computes as much as distillation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medkd.data.plan import IntensityRule, Plan
from medkd.data.splits import Split
from medkd.data.store import Store
from medkd.errors import UserError
from medkd.pipeline import yamlfile
from medkd.pipeline.config import parse
from medkd.pipeline.nodes import Node, train_job
from medkd.pipeline.steps import compute
from medkd.pipeline.steps.compute import Compute, same_compute

RUN = """\
name: toy
data: {source: somewhere, folds: 3}
train: {steps: 50, batch: 2}
stages:
  teachers:
    model: [{name: UNet, channels: [4, 8]}, {name: UNet, channels: [8, 16]}]
    methods: [supervised]
  student:
    model: {name: UNet, channels: [2, 4]}
    teacher: teachers
    methods: [supervised, kd]
    control: [compute]
"""


def test_the_count_by_hand() -> None:
    same = {"steps": 100, "patches": 2, "student_macs": 10.0}
    assert Compute(**same, live_macs=0, stored_macs=0).same == 100
    # Each step adds 30 multiply-adds a patch, as much as a step of plain training.
    assert Compute(**same, live_macs=30, stored_macs=0).same == 200
    assert Compute(**same, live_macs=0, stored_macs=600).same == 110
    assert Compute(**same, live_macs=0, stored_macs=601).same == 111, "rounded up, in favour of the control"


def ground_of(tmp_path: Path, config: Any) -> Any:
    plan = Plan((1.0, 1.0, 1.0), (16, 16, 16), 2, (IntensityRule("zscore"),), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2)
    store = Store(tmp_path / "store")
    for case, size in {"a": 16, "b": 16, "u": 24}.items():
        store.add(case, np.zeros((1, size, 16, 16), np.float32), np.zeros((size, 16, 16), np.int16))
    split = Split(("a", "b"), (), (), ("u",))
    dataset = SimpleNamespace(labels={"background": 0, "x": 1}, channels=("CT",))
    context = SimpleNamespace(config=config)
    return SimpleNamespace(
        plan=replace(plan, mirror_axes=(0, 1)),
        store=store,
        dataset=dataset,
        classes=2,
        context=context,
        split=lambda fold: split,
    )


def counted(tmp_path: Path, *overrides: str) -> dict[str, float]:
    config = parse(yamlfile.parse(RUN, "run.yaml").override(overrides))
    node = Node("train", "student", 0, 0, 0, "compute")
    job = same_compute(train_job(config, node), node, ground_of(tmp_path, config), {}, tmp_path)
    told: dict[str, float] = json.loads((tmp_path / compute.FILE).read_text())
    assert job.train.steps == told["same_compute_steps"]
    return told


def test_stored_answers_are_charged_once_by_window(tmp_path: Path) -> None:
    told = counted(tmp_path)
    assert (told["steps"], told["patches"], told["live_macs"]) == (50, 2, 0)
    live = counted(tmp_path, "stages.student.methods=[supervised, at]")
    assert live["stored_macs"] == 0
    # Two cases of one window, and one of two windows, by both networks of the stage.
    assert told["stored_macs"] == pytest.approx(4 * live["live_macs"])
    assert told["same_compute_steps"] > 50
    assert live["same_compute_steps"] > told["same_compute_steps"]
    assert counted(tmp_path, "stages.student.targets={mirror: true}")["stored_macs"] == 4 * told["stored_macs"]


def test_the_count_is_the_same_every_time(tmp_path: Path) -> None:
    assert counted(tmp_path) == counted(tmp_path)


def test_out_of_fold_one_network_of_each_model_answers_about_a_labelled_case(tmp_path: Path) -> None:
    told = counted(tmp_path)
    inner = counted(tmp_path, "stages.teachers.inner_folds=3")
    assert inner["stored_macs"] == pytest.approx(told["stored_macs"] * (2 * 1 + 2 * 3) / 4)


def test_other_arms_keep_their_steps(tmp_path: Path) -> None:
    config = parse(yamlfile.parse(RUN, "run.yaml").override(["stages.student.control=[steps, compute]"]))
    for arm in ("main", "control"):
        node = Node("train", "student", 0, 0, 0, arm)
        job = train_job(config, node)
        assert same_compute(job, node, ground_of(tmp_path, config), {}, tmp_path) is job


def test_a_teacher_that_cannot_be_counted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "count_macs", lambda call: None)
    with pytest.raises(UserError, match=r"control: compute counts multiply-adds, and those of .* cannot be counted"):
        counted(tmp_path)
