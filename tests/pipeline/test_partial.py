"""Teachers of different organs and one student for all: from the YAML to the report."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medkd.data.store import Store
from medkd.errors import UserError
from medkd.networks.weights import read_card
from medkd.pipeline import yamlfile
from medkd.pipeline.config import RunConfig, load_config, parse
from medkd.pipeline.graph import build_graph
from medkd.pipeline.steps.dry import dry_run
from medkd.pipeline.steps.share import Renumbered
from medkd.teachers.cache import TargetStore

UNET: dict[str, Any] = {"name": "UNet", "channels": [4, 8]}
SOLID = {"model": UNET, "methods": ["supervised"], "labels": ["liver", "Spleen"]}
PAIRED = {"model": UNET, "methods": ["supervised"], "labels": ["kidney right", "left nieren"]}
UNION = {"model": UNET, "teacher": ["solid", "paired"], "methods": ["supervised", "kd"], "labels": []}
STAGES: dict[str, Any] = {
    "solid": SOLID,
    "paired": PAIRED,
    "all": {"model": UNET, "methods": ["supervised"]},
    "mixed": {
        "model": UNET,
        "teacher": ["paired"],
        "methods": ["supervised", "kd"],
        "labels": ["liver", "aorta"],
        "control": ["steps", "same_loss"],
    },
    "live": {
        "model": UNET,
        "teacher": ["paired"],
        "methods": ["supervised", {"name": "fitnets", "tap": "bottleneck"}, "kd"],
        "labels": ["aorta"],
        "control": "none",
    },
    "union": {**UNION, "control": "pseudo"},
}
ONTOLOGY = {"kidney_left": ["left nieren"]}


def config_of(stages: dict[str, Any], **data: Any) -> RunConfig:
    body = {"name": "r", "data": {"source": "x", **data}, "stages": stages}
    return parse(yamlfile.parse(json.dumps(body), "run.yaml"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, command: Any, write: Any, scans: Path) -> Path:
    folder = tmp_path_factory.mktemp("partial")
    data = {"source": str(scans), "folds": 4, "ontology": ONTOLOGY}
    more = {"data": data, "evaluate": {"metrics": ["dice"]}, "export": "onnx", "train": {"steps": 6, "batch": 2}}
    file = write(folder, "partial", scans, STAGES, **more)
    told = command("run", file, "--runs", folder / "runs")
    assert told.code == 0, told.err
    return folder / "runs" / "partial"


def node(run: Path, start: str) -> Path:
    found = [path for path in (run / "nodes").iterdir() if path.name.startswith(start)]
    assert len(found) == 1, found
    return found[0]


def labels_of(folder: Path) -> list[str]:
    return list(read_card(folder).labels)


def test_a_teacher_has_its_own_classes_and_background(run: Path) -> None:
    card = read_card(node(run, "train.solid."))
    assert card.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert card.classes == 3
    assert labels_of(node(run, "train.paired.")) == ["background", "kidney_left", "kidney_right"]


def test_the_student_has_the_union_and_its_controls_the_same_network(run: Path) -> None:
    four = ["background", "liver", "spleen", "kidney_left", "kidney_right"]
    assert labels_of(node(run, "train.union.m0.f0.s0.main")) == four
    assert labels_of(node(run, "train.union.m0.f0.s0.pseudo")) == four
    mixed = ["background", "liver", "kidney_left", "kidney_right", "aorta"]
    for arm in ("main", "control", "same_loss"):
        assert labels_of(node(run, f"train.mixed.m0.f0.s0.{arm}")) == mixed


def test_a_student_without_labels_has_seen_none_and_is_chosen_by_the_teachers(run: Path) -> None:
    folder = node(run, "train.union.m0.f0.s0.main")
    card = read_card(folder)
    assert card.provenance["labelled"] == []
    assert len(card.provenance["unlabelled"]) > 3
    scores = [json.loads(line).get("scores") for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(set(one) <= {"dice", *(f"dice/{n}" for n in list(card.labels)[1:])} for one in scores if one)
    assert json.loads((folder / "result.json").read_text())["dice"] >= 0


def test_the_targets_are_fused_over_the_union_and_say_what_nobody_knows(run: Path) -> None:
    folder = node(run, "targets.solid+paired")
    known = json.loads((folder / "known.json").read_text())
    store = TargetStore(folder / "targets")
    labels = ["background", "liver", "spleen", "kidney_left", "kidney_right", "aorta", "vertebrae", "stomach"]
    for case, row in known.items():
        assert dict(zip(labels, row, strict=True)) == {name: name not in labels[5:] for name in labels}
        p = np.asarray(store.read(case)[...], np.float32)
        assert np.allclose(p.sum(0), 1, atol=0.02)
        assert p[5:].max() < 0.01
    lines = [json.loads(line) for line in (folder / "fusion.jsonl").read_text().splitlines()]
    assert {line["case"] for line in lines} == set(known)
    assert all(0 <= line["conflicts"] <= line["claimed"] and 0 <= line["foreground_trust"] <= 1 for line in lines)


def test_every_arm_is_measured_on_what_it_can_know(run: Path) -> None:
    measured: dict[str, set[str]] = {}
    with next(run.glob("nodes/report-*/cases.csv")).open() as file:
        for row in csv.DictReader(file):
            measured.setdefault(row["arm"], set()).add(row["label"])
    kidneys = {"kidney_left", "kidney_right"}
    assert measured["solid"] == {"liver", "spleen"}
    assert measured["paired"] == kidneys
    assert measured["union"] == measured["union.pseudo"] == kidneys | {"liver", "spleen"}
    assert measured["mixed"] == kidneys | {"liver", "aorta"}
    assert measured["mixed.control"] == measured["mixed.same_loss"] == {"liver", "aorta"}
    assert measured["all"] >= kidneys | {"liver", "spleen", "aorta", "vertebrae", "stomach"}


def test_predictions_have_the_values_of_the_dataset(run: Path) -> None:
    folder = node(run, "evaluate.paired.") / "predictions"
    values = {int(v) for path in folder.iterdir() for v in np.unique(np.asarray(nib.load(path).dataobj))}
    assert values <= {0, 3, 4}


def test_a_live_teacher_of_fewer_classes_teaches_its_own(run: Path) -> None:
    assert labels_of(node(run, "train.live.")) == ["background", "kidney_left", "kidney_right", "aorta"]
    line = json.loads((node(run, "train.live.") / "log.jsonl").read_text().splitlines()[0])
    assert {"fitnets/fitnets", "kd/kd", "supervised/ce"} <= set(line["terms"])


def test_nothing_of_this_changes_the_keys_of_other_runs() -> None:
    plain = {"t": {"model": UNET, "methods": ["supervised"]}, "s": {**UNION, "teacher": ["t"]}}
    del plain["s"]["labels"]
    before = build_graph(config_of(plain), "data").parts
    assert not any({"labels", "spoken", "ontology"} & set(part) for part in before.values())
    named = build_graph(config_of({**plain, "t": {**plain["t"], "labels": ["liver"]}}), "data").parts
    assert [node.stage for node, part in named.items() if part.get("labels")] == ["t"]


def test_the_ontology_is_in_the_key_of_what_reads_it() -> None:
    stages = {"t": {"model": UNET, "methods": ["supervised"]}}
    keys = [
        next(iter(build_graph(config_of(stages, **data), "data").keys.values()))
        for data in ({}, {"ontology": ONTOLOGY}, {"ontology": {"kidney_left": "ren sinister"}})
    ]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({"a": {"model": UNET, "methods": ["supervised"], "labels": []}}, "knows no label needs a teacher"),
        ({"solid": SOLID, "paired": PAIRED, "u": {**UNION, "control": "steps"}}, "arm steps learns from labels"),
        ({"solid": SOLID, "paired": PAIRED, "u": {**UNION, "unlabelled": False}}, "unlabelled cases only"),
        ({"solid": SOLID, "paired": PAIRED, "u": {**UNION, "labelled": 3}}, "drop `labelled`"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config_of(stages)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": ["liver", "splen"]}, "stages.solid.labels names the class 'splen'.*did you mean 'spleen'"),
        ({"labels": ["liver", "heart"]}, "stages.solid.labels names heart, which only the ontology has"),
    ],
)
def test_unknown_classes_are_told_before_anything_runs(
    tmp_path: Path, command: Any, write: Callable[..., Path], scans: Path, change: dict[str, Any], says: str
) -> None:
    data = {"source": str(scans), "folds": 4, "ontology": {"heart": ["cor"]}}
    file = write(tmp_path, "wrong", scans, {"solid": {**SOLID, **change}}, data=data)
    told = command("run", file, "--runs", tmp_path / "runs")
    assert told.code == 2
    assert re.search(says, told.error)


def test_check_tells_who_teaches_what(tmp_path: Path, write: Callable[..., Path], scans: Path) -> None:
    stages = {name: stage for name, stage in STAGES.items() if name != "union"}
    data = {"source": str(scans), "folds": 4, "ontology": ONTOLOGY}
    told = dry_run(load_config(write(tmp_path, "check", scans, stages, data=data)))
    assert "solid: its labels know liver, spleen" in told
    assert "live: its labels know aorta; its teachers alone kidney_left, kidney_right" in told
    assert not any(line.startswith("all: its labels") for line in told)


def test_a_store_as_a_stage_sees_it(run: Path) -> None:
    prepared = node(run, "prepare")
    plain = Store(prepared)
    case = next(name for name, entry in plain.index.items() if entry["labelled"])
    here = np.array([0, 1, 0, 2, 3, 0, 0, 0])
    part = Renumbered(prepared, here, {1, 4})
    whole, seen = np.asarray(plain.label(case)[...]), np.asarray(part.label(case)[...])
    assert np.array_equal(seen, np.select([whole == 1, whole == 4], [1, 3], 0))
    assert set(part.positions(case)) <= {1, 3}
    assert set(part.index[case]["voxels"]) <= {"1", "3"}


def test_a_teacher_from_outside_brings_organs_that_no_label_knows(
    run: Path, tmp_path: Path, command: Any, write: Callable[..., Path], scans: Path
) -> None:
    """Own labels of liver and spleen, a foreign network of kidneys: a student of four, measured on two."""
    own = tmp_path / "own"
    shutil.copytree(scans, own)
    for path in (own / "labelsTr").iterdir():
        image = nib.load(path)
        label = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(label <= 2, label, 0).astype(np.uint8), image.affine), path)
    told = json.loads((own / "dataset.json").read_text())
    told["labels"] = {"0": "background", "1": "liver", "2": "spleen"}
    (own / "dataset.json").write_text(json.dumps(told))
    teacher = tmp_path / "kidneys"
    shutil.copytree(node(run, "train.paired."), teacher)
    student = {"model": UNET, "teacher": str(teacher), "methods": ["supervised", "kd"], "control": "steps"}
    more: dict[str, Any] = {
        "data": {"source": str(own), "folds": 4, "ontology": {"Kidney Left": [], "kidney_right": ["ren dexter"]}},
        "evaluate": {"metrics": ["dice"]},
        "train": {"steps": 4, "batch": 2},
        "allow_leakage": str(teacher),
    }
    file = write(tmp_path, "foreign", own, {"student": student}, **more)
    done = command("run", file, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    made = tmp_path / "runs" / "foreign"
    four = ["background", "liver", "spleen", "Kidney Left", "kidney_right"]
    assert labels_of(node(made, "train.student.m0.f0.s0.main")) == four
    assert labels_of(node(made, "train.student.m0.f0.s0.control")) == four
    assert read_card(node(made, "train.student.m0.f0.s0.main")).plan["mirror_swap"] == [[3, 4]]
    with (node(made, "report") / "cases.csv").open() as rows:
        measured = {(row["arm"], row["label"]) for row in csv.DictReader(rows)}
    assert {label for arm, label in measured if arm.startswith("student")} == {"liver", "spleen"}
