"""Whole runs through the command line, on scans so small that they take seconds."""

from __future__ import annotations

import csv
import html
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medkd.inference.model import SegmentationModel
from medkd.networks.weights import load_network, read_card
from medkd.pipeline.folder import read_manifest
from medkd.pipeline.steps.export import evidence_of_run
from medkd.report.summary import RunSummary
from medkd.report.verdict import verdict

pytestmark = pytest.mark.slow
Command = Callable[..., Any]
Write = Callable[..., Path]

TEACHERS = ["train.teachers.m0.f0.s0.main", "train.teachers.m1.f0.s0.main"]
MAIN = "train.student.m0.f0.s0.main"
CONTROL = "train.student.m0.f0.s0.control"
ORGANS = 7


@dataclass(frozen=True)
class Run:
    """A finished run: its YAML, its scans, the folder of all runs, and what the command said about it."""

    file: Path
    scans: Path
    runs: Path
    told: dict[str, Any]

    def node(self, name: str) -> Path:
        return Path(self.told["nodes"][name])

    def split(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self.node("prepare") / "splits.json").read_text())[0]
        return found


def weights(folder: Path | str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def done(told: Any) -> set[str]:
    assert told.code == 0, told.err
    return set(told.record["done"])


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory,
    scans: Path,
    command: Command,
    write: Write,
    teachers: dict[str, Any],
    student: dict[str, Any],
) -> Run:
    """Two teachers, a student with few labels and all control arms, exported and reported."""
    folder = tmp_path_factory.mktemp("base")
    stages = {"teachers": teachers, "student": {**student, "control": ["steps", "same_loss", "pseudo"]}}
    file = write(folder, "base", scans, stages, export=["onnx", "bundle"])
    told = command("run", file, "--runs", folder / "runs", "--json")
    assert done(told) == set(told.record["nodes"])
    return Run(file, scans, folder / "runs", told.record)


def test_artifacts_are_there_and_whole(base: Run) -> None:
    assert len(base.told["nodes"]) == 18
    for name, folder in base.told["nodes"].items():
        manifest = read_manifest(Path(folder))
        assert manifest is not None, name
        assert folder.endswith(manifest.key[:12])
        kind = name.partition(".")[0]
        if kind == "train":
            for model in (base.node(name), base.node(name) / "last"):
                network, card = load_network(model)  # checks the weights against their hash
                assert card.classes == ORGANS + 1
                assert all(bool(torch.isfinite(p).all()) for p in network.parameters())
            log = [json.loads(line) for line in (base.node(name) / "log.jsonl").read_text().splitlines()]
            assert [line["step"] for line in log if "scores" in line] == [10]
        if kind == "evaluate":
            rows = read_table(base.node(name) / "cases.csv")
            assert {row["case"] for row in rows} == set(base.split()["test"])
            assert len(rows) == ORGANS * len(base.split()["test"])
    left = [path.name for path in base.runs.rglob("*") if path.suffix in (".part", ".partial", ".ckpt")]
    assert left == []


def test_predictions_lie_on_the_grid_of_their_image(base: Run) -> None:
    for case in base.split()["test"]:
        image = nib.load(base.scans / "imagesTr" / f"{case}.nii.gz")
        answer = nib.load(base.node("evaluate.student.f0.s0.main") / "predictions" / f"{case}.nii.gz")
        assert answer.shape == image.shape
        np.testing.assert_allclose(answer.affine, image.affine)


def test_exports_are_models(base: Run) -> None:
    export = base.node("export.student")
    entries = {entry["format"]: entry for entry in json.loads((export / "export.json").read_text())}
    assert set(entries) == {"onnx", "bundle"}
    assert entries["onnx"]["from"] == base.node(MAIN).name
    assert entries["onnx"]["parity"]["cases"] == 2
    assert entries["onnx"]["parity"]["voxel_agreement"] > 0.999
    assert SegmentationModel.from_folder(export / "onnx").labels["liver"] > 0
    assert (export / "bundle" / "configs" / "metadata.json").is_file()


def test_a_run_knows_the_cases_for_its_exports(base: Run, tmp_path: Path) -> None:
    """As `medkd export RUN` finds them: test cases, and patches of training cases; without the data, no label maps."""
    found = evidence_of_run(base.node(MAIN), cases=2)
    assert found is not None
    assert [case.name for case in found.cases] == base.split()["test"][:2]
    assert all(case.label is not None for case in found.cases)
    assert found.patches
    assert evidence_of_run(tmp_path) is None
    copied = tmp_path / "nodes"
    for node in (base.node(MAIN), base.node("prepare")):
        shutil.copytree(node, copied / node.name)
    alone = evidence_of_run(copied / base.node(MAIN).name)  # its config is gone
    assert alone is not None
    assert [case.label for case in alone.cases] == [None] * len(alone.cases)
    assert "label maps not found" in alone.source


def test_each_network_tells_what_it_learned_from(base: Run) -> None:
    split = base.split()
    cards = {name: read_card(base.node(name)) for name in base.told["nodes"] if name.startswith("train.")}
    for name in TEACHERS:
        assert set(cards[name].trained_on) == set(split["train"])
    control, main = cards[CONTROL], cards[MAIN]
    assert len(control.trained_on) == 3
    assert set(control.trained_on) < set(split["train"])
    assert set(main.provenance["labelled"]) == set(control.trained_on)
    assert set(main.provenance["unlabelled"]) == {*split["train"], *split["unlabelled"]} - set(control.trained_on)
    assert main.provenance["teachers"] == [base.node(name).name for name in TEACHERS]
    assert main.provenance["licences"] == {"PhantomCT": "CC0"}
    assert not {*split["test"], *split["validation"]} & {case for card in cards.values() for case in card.trained_on}


def test_the_report_begins_with_the_verdict(base: Run, command: Command) -> None:
    folder = base.node("report")
    page = html.unescape((folder / "report.html").read_text())
    found = verdict(RunSummary.from_json(json.loads((folder / "summary.json").read_text())))
    assert found.outcome in ("helped", "hurt", "not shown")
    for sentence in (found.headline, found.evidence, found.lost):
        assert sentence
        assert sentence in page
    assert "student.same_loss" in page
    assert "student.pseudo" in page
    again = command("run", base.file, "--runs", base.runs)
    assert again.out.splitlines()[:3] == ["all 18 nodes were already done; nothing to do", found.evidence, found.lost]


def test_the_same_run_again_touches_nothing(base: Run, command: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in (base.runs / "base" / "nodes").rglob("*")}
    told = command("run", base.file, "--runs", base.runs, "--json")
    assert done(told) == set()
    assert set(told.record["reused"]) == set(base.told["nodes"])
    assert {path: path.stat().st_mtime_ns for path in (base.runs / "base" / "nodes").rglob("*")} == before


def test_a_new_title_redoes_the_report_only(base: Run, command: Command) -> None:
    told = command("run", base.file, "--runs", base.runs, "--json", "--set", "report.title=Seven organs")
    assert done(told) == {"report"}
    assert "<title>Seven organs" in Path(told.record["report"]).read_text()


def test_other_steps_redo_what_depends_on_them(base: Run, command: Command) -> None:
    less = ["--set", "stages.student.train.steps=4", "--set", "export=[]", "--set", "stages.student.control=steps"]
    told = command("run", base.file, "--runs", base.runs, "--json", *less)
    arms = {"evaluate.student.f0.s0.main", "evaluate.student.f0.s0.control"}
    assert done(told) == {MAIN, CONTROL, *arms, "cost.student", "report"}
    assert weights(told.record["nodes"][MAIN]) != weights(base.node(MAIN))
    assert weights(base.node(MAIN))  # the earlier nodes are kept


def test_deleted_nodes_are_made_again_and_come_out_the_same(base: Run, command: Command) -> None:
    before = weights(base.node(CONTROL))
    for name in (CONTROL, "evaluate.student.f0.s0.main"):
        shutil.rmtree(base.node(name))
    told = command("run", base.file, "--runs", base.runs, "--json")
    assert done(told) == {CONTROL, "evaluate.student.f0.s0.main"}
    assert weights(base.node(CONTROL)) == before


def test_a_chain_of_stages(
    base: Run, command: Command, write: Write, teachers: dict[str, Any], student: dict[str, Any], tmp_path: Path
) -> None:
    stages = {
        "teachers": teachers,
        "assistant": {**student, "model": {"name": "UNet", "channels": [4, 8]}, "control": "none"},
        # Nothing is learned: what comes out is what the assistant left.
        "copy": {
            "model": {"name": "UNet", "channels": [4, 8]},
            "methods": ["supervised"],
            "init": "assistant",
            "labelled": 2,
            "train": {"steps": 1, "lr": 1e-12},
        },
        "student": {**student, "teacher": "assistant"},
    }
    told = command("run", write(tmp_path, "chain", base.scans, stages), "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    # What an earlier run beside this one has trained is taken over.
    assert {"prepare", *TEACHERS, "targets.teachers.f0", CONTROL} <= set(told.record["reused"])
    nodes = {name: Path(folder) for name, folder in told.record["nodes"].items()}
    assistant = nodes["train.assistant.m0.f0.s0.main"]
    assert read_card(nodes[MAIN]).provenance["teachers"] == [assistant.name]
    assert weights(nodes[MAIN]) != weights(base.node(MAIN))
    left = load_file(nodes["train.copy.m0.f0.s0.main"] / "model.safetensors")
    start = load_file(assistant / "model.safetensors")
    assert all(torch.allclose(left[name], start[name], atol=1e-5) for name in start)
    # The copy was shown two cases, and carries what the assistant and its teachers were shown.
    assert set(read_card(nodes["train.copy.m0.f0.s0.main"]).trained_on) == set(read_card(assistant).trained_on)
    roles = {arm["name"]: arm["role"] for arm in json.loads((nodes["report"] / "summary.json").read_text())["arms"]}
    assert (roles["student"], roles["assistant"], roles["student.control"]) == ("student", "teacher", "control")


def only_student(student: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"student": {**student, "control": "none", **changes}}


def test_a_teacher_from_elsewhere(
    base: Run, command: Command, write: Write, student: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(base.node(TEACHERS[0]), tmp_path / "a" / "unet")
    file = write(tmp_path, "elsewhere", base.scans, only_student(student, teacher=str(tmp_path / "a" / "unet")))
    told = command("run", file, "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    assert "prepare" in told.record["reused"]
    card = read_card(Path(told.record["nodes"][MAIN]))
    assert card.provenance["teachers"] == ["unet"]
    assert set(card.trained_on) == {*base.split()["train"], *base.split()["unlabelled"]}


@pytest.mark.parametrize("methods", [["supervised", "kd"], ["supervised", "at"]], ids=["stored", "live"])
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_teacher_that_saw_a_test_case_is_refused(
    base: Run, command: Command, write: Write, student: dict[str, Any], tmp_path: Path, methods: list[str], verb: str
) -> None:
    good, bad = tmp_path / "good" / "unet", tmp_path / "bad" / "unet"
    for folder in (good, bad):  # one name, two folders
        shutil.copytree(base.node(TEACHERS[0]), folder)
    seen = base.split()["test"][0]
    body = json.loads((bad / "model.json").read_text())
    (bad / "model.json").write_text(json.dumps({**body, "trained_on": [*body["trained_on"], seen]}))
    stages = only_student(student, teacher=[str(bad), str(good)], methods=methods)
    file = write(tmp_path, "leak", base.scans, stages)
    told = command(verb, file, *(["--runs", base.runs] if verb == "run" else []))
    assert told.code == 2
    assert f"{str(bad)!r} was trained on patients of the student's test cases: {seen}" in told.error
    assert all(folder.name.endswith(".partial") for folder in base.runs.glob("leak/nodes/t*"))


def test_a_live_teacher_speaks_about_unlabelled_cases(
    base: Run, command: Command, write: Write, student: dict[str, Any], tmp_path: Path
) -> None:
    stages = only_student(student, teacher=str(base.node(TEACHERS[0])), methods=["supervised", "at"])
    told = command("run", write(tmp_path, "live", base.scans, stages), "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    assert not any(name.startswith("targets.") for name in told.record["nodes"])
    card = read_card(Path(told.record["nodes"][MAIN]))
    assert set(base.split()["unlabelled"]) <= set(card.provenance["unlabelled"])
    assert card.provenance["teachers"] == [base.node(TEACHERS[0]).name]


def test_folds_and_seeds_meet_in_the_report(
    base: Run, command: Command, write: Write, student: dict[str, Any], tmp_path: Path
) -> None:
    teacher = {"model": {"name": "UNet", "channels": [4, 8]}, "methods": ["supervised"]}
    stages = {"teachers": teacher, "student": {**student, "seeds": [3, 1], "labelled_draw": "per_seed"}}
    more = {
        "data": {"source": str(base.scans), "folds": 4, "run_folds": [0, 1]},
        "train": {"steps": 2, "batch": 2, "threads": 1},
        "evaluate": {"metrics": ["dice"], "compare": ["student", "student.control"]},
    }
    told = command("run", write(tmp_path, "folds", base.scans, stages, **more), "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    nodes = {name: Path(folder) for name, folder in told.record["nodes"].items()}
    drawn = {seed: read_card(nodes[f"train.student.m0.f0.s{seed}.control"]).trained_on for seed in (1, 3)}
    assert drawn[1] != drawn[3]
    # One teacher a fold, whatever the student's seed.
    assert [name for name in nodes if name.startswith("train.teachers")] == [
        "train.teachers.m0.f0.s0.main",
        "train.teachers.m0.f1.s0.main",
    ]
    summary = json.loads((nodes["report"] / "summary.json").read_text())
    assert {(row["arm"], row["fold"], row["seed"]) for row in summary["rows"]} == {
        (arm, fold, seed) for arm in ("student", "student.control") for fold in (0, 1) for seed in (1, 3)
    }
    assert [arm["name"] for arm in summary["arms"]] == ["student", "student.control"]
    (comparison,) = summary["comparisons"]
    assert (comparison["arm_a"], comparison["arm_b"]) == ("student", "student.control")
    assert (comparison["n_cases"], comparison["n_seeds"]) == (4, 2)


MUTUAL = """\
from medkd.methods.base import Method
from medkd.types import Turn

class Mutual(Method):
    reads_teacher = False

    def turns(self, r):
        for name in r.learners:
            (other,) = (one for one in r.learners if one != name)
            apart = r.view(name).logits - r.view(other).logits.detach()
            yield Turn(name, {"mutual": apart.square().mean()})
"""


def test_peers_learn_beside_the_student(
    base: Run, command: Command, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peers_for_a_test.py").write_text(MUTUAL)
    monkeypatch.syspath_prepend(tmp_path)
    methods = ["supervised", {"name": "peers_for_a_test:Mutual", "as": "mutual"}]
    stages = {"pair": {"model": {"name": "UNet", "channels": [3, 6]}, "methods": methods, "peers": 1}}
    file = write(tmp_path, "peers", base.scans, stages)
    assert command("check", file).code == 0
    told = command("run", file, "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    folder = Path(told.record["nodes"]["train.pair.m0.f0.s0.main"])
    terms = json.loads((folder / "log.jsonl").read_text().splitlines()[0])["terms"]
    assert {"mutual/mutual", "peer1:mutual/mutual", "supervised/ce", "peer1:supervised/ce"} <= set(terms)
    assert load_network(folder)[0] is not None  # the student alone is kept


def test_a_file_a_folder_and_the_exported_graph_give_the_same_labels(
    base: Run, command: Command, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for case in base.split()["test"]:
        shutil.copy(base.scans / "imagesTr" / f"{case}.nii.gz", scans)
    one = base.split()["test"][0]
    for model, source, out in (
        (base.runs / "base", scans, "folder"),
        (base.node(MAIN), scans / f"{one}.nii.gz", "file"),
        (base.node("export.student") / "onnx", scans, "onnx"),
    ):
        assert command("predict", model, source, tmp_path / out).code == 0

    def read(folder: Path, case: str) -> np.ndarray:
        return np.asarray(nib.load(folder / f"{case}.nii.gz").dataobj)

    np.testing.assert_array_equal(read(tmp_path / "folder", one), read(tmp_path / "file", one))
    for case in base.split()["test"]:
        labels = read(tmp_path / "folder", case)
        assert len(np.unique(labels)) > 1
        assert np.mean(labels == read(tmp_path / "onnx", case)) > 0.9999
        np.testing.assert_array_equal(labels, read(base.node("evaluate.student.f0.s0.main") / "predictions", case))


def test_evaluate_finds_what_the_run_found(base: Run, command: Command, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for case in base.split()["test"]:
        shutil.copy(base.scans / "labelsTr" / f"{case}.nii.gz", tmp_path / "labels")
    folder = base.node("evaluate.student.f0.s0.main")
    options = ["--classes", base.scans / "dataset.json", "--metrics", "dice,nsd_10mm", "--json"]
    told = command("evaluate", folder / "predictions", tmp_path / "labels", *options)
    assert told.code == 0, told.err
    rows = {(row["case"], row["label"]): row for row in told.record["rows"]}
    found = read_table(folder / "cases.csv")
    assert len(found) == len(rows)
    for row in found:
        for metric in ("dice", "nsd_10mm"):
            mine = rows[row["case"], row["label"]][metric]
            assert mine == (pytest.approx(float(row[metric])) if row[metric] else None)


FATAL = """\
import os, signal
from pathlib import Path
from medkd.methods.base import Method

class Fatal(Method):
    reads_teacher = False
    calls = 0

    def turns(self, r):
        Fatal.calls += 1
        flag = Path(os.environ.get("FATAL_FLAG", "absent"))
        if Fatal.calls == 8 and flag.exists():
            flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return iter(())
"""


def test_a_killed_training_resumes_to_the_same_weights(
    base: Run, command: Command, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fatal_for_a_test.py").write_text(FATAL)
    monkeypatch.syspath_prepend(tmp_path)
    model = {"name": "UNet", "channels": [3, 6], "dropout": 0.1}
    train = {"steps": 11, "batch": 2, "threads": 1, "validate_every": 3, "ema": 0.9}
    stages = {"net": {"model": model, "methods": ["supervised", "fatal_for_a_test:Fatal"]}}
    file = write(tmp_path, "killed", base.scans, stages, train=train)
    flag = tmp_path / "flag"
    flag.touch()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "FATAL_FLAG": str(flag), "OMP_NUM_THREADS": "1"}
    killed = [sys.executable, "-m", "medkd", "run", str(file), "--runs", str(tmp_path / "killed"), "--only", "net"]
    assert subprocess.run(killed, env=environment, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    (left,) = (tmp_path / "killed" / "killed" / "nodes").glob("train*")
    assert left.name.endswith(".partial")
    assert (left / "last.ckpt").is_file()
    results = []
    for runs in ("killed", "whole"):
        told = command("run", file, "--runs", tmp_path / runs, "--only", "net", "--json")
        assert told.code == 0, told.err
        results.append(Path(told.record["nodes"]["train.net.m0.f0.s0.main"]))
    resumed, whole = results
    assert weights(resumed) == weights(whole)
    assert weights(resumed / "last") == weights(whole / "last")
    steps = [[json.loads(line)["step"] for line in (one / "log.jsonl").read_text().splitlines()] for one in results]
    assert steps[0] == steps[1]


def test_two_jobs_train_what_one_trains(base: Run, command: Command, tmp_path: Path) -> None:
    told = command("run", base.file, "--runs", tmp_path, "--only", "teachers", "--jobs", "2", "--json")
    assert told.code == 0, told.err
    for name in TEACHERS:
        assert weights(told.record["nodes"][name]) == weights(base.node(name))


def tiny_stages(student: dict[str, Any]) -> dict[str, Any]:
    teacher = {"model": {"name": "UNet", "channels": [4, 8]}, "methods": ["supervised"]}
    return {"teachers": teacher, "student": {**student, "labelled": None}}


def test_two_channels_in_the_layout_of_nnunet(
    command: Command,
    write: Write,
    student: dict[str, Any],
    save: Callable[..., None],
    two_boxes: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    root, shape = tmp_path / "Dataset001_Boxes", (20, 22, 18)
    for seed in range(6):
        label, rng = two_boxes(seed, shape), np.random.default_rng(seed)
        for channel, levels in enumerate(((0, 80, 160), (200, 50, 120))):
            image = (np.array(levels)[label] + rng.normal(0, 10, shape)).astype(np.float32)
            save(root / "imagesTr" / f"box_{seed}_{channel:04d}.nii.gz", image, (1.0, 1.0, 1.0))
        if seed < 5:
            save(root / "labelsTr" / f"box_{seed}.nii.gz", label, (1.0, 1.0, 1.0))
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "left_box": 1, "right_box": 2},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    file = write(tmp_path, "boxes", root, tiny_stages(student), export=["onnx"])
    told = command("run", file, "--runs", tmp_path / "runs", "--json")
    assert told.code == 0, told.err
    card = read_card(Path(told.record["nodes"][MAIN]))
    assert (card.in_channels, card.channels) == (2, ("T1", "T2"))
    assert card.plan["mirror_swap"] == [[1, 2]]
    assert card.provenance["unlabelled"] == ["box_5"]
    assert command("predict", tmp_path / "runs" / "boxes", root / "imagesTr", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("box_*.nii.gz"))) == 6


def test_a_csv_manifest_of_scans_with_thick_slices(
    command: Command,
    write: Write,
    student: dict[str, Any],
    save: Callable[..., None],
    two_boxes: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    lines = ["image,label,case,patient"]
    grids = [((24, 26, 8), (1.0, 1.0, 4.0)), ((30, 28, 10), (0.8, 0.9, 3.0))]
    for seed in range(8):
        shape, spacing = grids[seed % 2]
        label = two_boxes(seed, shape)
        image = np.array([-100, 40, 120])[label] + np.random.default_rng(seed).normal(0, 10, shape)
        save(tmp_path / "scans" / f"s{seed}.nii.gz", image.astype(np.int16), spacing)
        save(tmp_path / "scans" / f"s{seed}_label.nii.gz", label, spacing)
        lines.append(f"scans/s{seed}.nii.gz,scans/s{seed}_label.nii.gz,s{seed},p{seed // 2}")
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    file = write(tmp_path, "thick", tmp_path / "scans.csv", tiny_stages(student), plan={"patch": [16, 16, 8]})
    told = command("run", file, "--runs", tmp_path / "runs", "--json")
    assert told.code == 0, told.err
    nodes = {name: Path(folder) for name, folder in told.record["nodes"].items()}
    plan = json.loads((nodes["prepare"] / "plan.json").read_text())
    assert plan["spacing_mm"][2] > 2 * plan["spacing_mm"][0]
    assert plan["spacing_mm"] not in ([1.0, 1.0, 4.0], [0.8, 0.9, 3.0])  # so both kinds are resampled
    split = json.loads((nodes["prepare"] / "splits.json").read_text())[0]
    assert len({int(case[1:]) // 2 for case in split["test"]}) * 2 == len(split["test"])  # patients stay together
    for case in split["test"]:
        image = nib.load(tmp_path / "scans" / f"{case}.nii.gz")
        answer = nib.load(nodes["evaluate.student.f0.s0.main"] / "predictions" / f"{case}.nii.gz")
        assert answer.shape == image.shape
        np.testing.assert_allclose(answer.affine, image.affine)
