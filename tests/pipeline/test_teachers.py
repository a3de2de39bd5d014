"""Who may teach whom: folds inside a fold, leaks refused or owned up to, answers repaired and calibrated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.data.store import Store
from medkd.inference.model import SegmentationModel
from medkd.networks.weights import read_card
from medkd.teachers.cache import TargetStore

pytestmark = pytest.mark.slow
Command = Callable[..., Any]
Write = Callable[..., Path]

NET: dict[str, Any] = {"name": "UNet", "channels": [2, 4]}
TEACHERS: dict[str, Any] = {"model": NET, "methods": ["supervised"], "inner_folds": 2}
STUDENT: dict[str, Any] = {"model": NET, "teacher": "teachers", "methods": ["supervised", "kd"], "control": "none"}
TARGETS = "targets.teachers.f0.out_of_fold-calibrate-disagreement"
PARTS = ["train.teachers.m0.p0.f0.s0.main", "train.teachers.m0.p1.f0.s0.main"]
MAIN = "train.student.m0.f0.s0.main"


@dataclass(frozen=True)
class Run:
    """A finished run."""

    file: Path
    source: Path
    runs: Path
    nodes: dict[str, Path]

    def split(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self.nodes["prepare"] / "splits.json").read_text())[0]
        return found

    def image(self, case: str) -> np.ndarray:
        return np.asarray(Store(self.nodes["prepare"]).image(case)[...])


@pytest.fixture
def start(tmp_path: Path, tiny_dataset: Path, write: Write) -> Callable[..., Path]:
    """Write a run on the tiny dataset: 3 training cases, 1 validation, 2 test and 2 unlabelled in fold 0 of 3."""

    def of(name: str, stages: dict[str, Any], **more: Any) -> Path:
        train = {"steps": 2, "batch": 2, "threads": 1}
        settings = {"data": {"source": str(tiny_dataset), "folds": 3}, "train": train, **more}
        return write(tmp_path, name, tiny_dataset, stages, evaluate={"metrics": ["dice"]}, **settings)

    return of


@pytest.fixture
def base(start: Callable[..., Path], tiny_dataset: Path, tmp_path: Path, command: Command) -> Run:
    """Two parts of one network teach a student out of fold, calibrated, with their disagreement as trust."""
    targets = {"mode": "out_of_fold", "calibrate": True, "trust": "disagreement"}
    file = start("base", {"teachers": TEACHERS, "student": {**STUDENT, "targets": targets}})
    told = command("run", file, "--runs", tmp_path / "runs", "--json")
    assert told.code == 0, told.err
    nodes = {name: Path(folder) for name, folder in told.record["nodes"].items()}
    return Run(file, tiny_dataset, tmp_path / "runs", nodes)


def test_out_of_fold_answers_come_from_who_did_not_see_the_case(base: Run) -> None:
    split, store = base.split(), TargetStore(base.nodes[TARGETS] / "targets")
    cards = {name: read_card(base.nodes[name]) for name in PARTS}
    kept = [set(card.trained_on) for card in cards.values()]
    assert kept[0] | kept[1] == set(split["train"])
    assert not kept[0] & kept[1]  # with two parts, each learns from the other's
    told = json.loads((base.nodes[TARGETS] / "calibration.json").read_text())["teachers"]
    assert told["applied"]
    assert told["note"] == "3 training cases, each answered by members that did not see it"
    assert told["nll_after"] <= told["nll_before"] + 1e-6
    audit = json.loads((base.nodes[TARGETS] / "audit.json").read_text())
    assert audit["plain"]["all"]["voxels"] > 0
    assert 0 < audit["augmented"]["all"]["kl_nats"] < 1
    assert audit["sentence"].startswith("stored targets (full16) against the live teacher on ")
    models = {name: SegmentationModel.from_folder(base.nodes[name]) for name in PARTS}
    for case in (*split["train"], *split["unlabelled"]):
        asked = [name for name in PARTS if case not in cards[name].trained_on]
        assert len(asked) == (1 if case in split["train"] else 2)
        answer = np.mean([models[name].probabilities(base.image(case)).numpy() for name in asked], 0)
        cooled = answer ** (1 / told["value"])
        np.testing.assert_allclose(store.read(case)[...], cooled / cooled.sum(0), atol=2e-3)
        trust = store.trust(case)
        # One voice cannot disagree with itself.
        assert (trust is None) == (case in split["train"]) or float(trust[...].min()) > 0.99


def test_all_members_and_parts_are_the_teachers_arm(base: Run) -> None:
    summary = json.loads((base.nodes["report"] / "summary.json").read_text())
    arms = {arm["name"]: arm for arm in summary["arms"]}
    cost = json.loads((base.nodes["cost.student"] / "cost.json").read_text())
    assert arms["teachers"]["parameters"] == 2 * cost["parameters"]
    assert summary["provenance"]["leakage"].startswith("none")
    assert read_card(base.nodes[MAIN]).provenance["leakage"] == "none"
    assert read_card(base.nodes[MAIN]).provenance["teachers"] == [base.nodes[name].name for name in PARTS]


def test_what_was_found_of_the_answers_is_told(base: Run, command: Command) -> None:
    shutil.rmtree(base.nodes[TARGETS])
    shutil.rmtree(base.nodes[MAIN])
    told = command("run", base.file, "--runs", base.runs)
    assert told.code == 0, told.err
    (line,) = (line for line in told.err.splitlines() if line.startswith(f"done    {TARGETS}"))
    assert "teachers: temperature " in line
    assert "stored against live: KL " in line


def test_the_same_run_again_touches_nothing(base: Run, command: Command) -> None:
    told = command("run", base.file, "--runs", base.runs, "--json")
    assert told.record["done"] == []


def test_a_damaged_answer_is_made_again_by_the_training_that_finds_it(base: Run, command: Command) -> None:
    targets = base.nodes[TARGETS] / "targets"
    case = base.split()["train"][0]
    before = np.asarray(TargetStore(targets).read(case)[...])
    (file,) = targets.glob(f"{case}.target.b2nd")
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 0xFF
    file.write_bytes(bytes(body))
    untouched = {path: path.stat().st_mtime_ns for path in targets.glob("*.b2nd") if path != file}
    shutil.rmtree(base.nodes[MAIN])
    told = command("run", base.file, "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    assert told.record["done"] == [MAIN]
    np.testing.assert_allclose(TargetStore(targets).read(case)[...], before, atol=1e-3)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_a_damaged_answer_whose_teachers_are_gone_is_told(base: Run, command: Command) -> None:
    case = base.split()["train"][0]
    (base.nodes[TARGETS] / "targets" / f"{case}.target.json").unlink()
    for name in (MAIN, PARTS[0]):
        shutil.rmtree(base.nodes[name])
    # The teacher is trained again, since it is an arm of its own, so that nothing is told here; without it:
    told = command("run", base.file, "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    assert set(told.record["done"]) == {MAIN, PARTS[0]}


def test_check_tells_how_answers_are_stored(base: Run, command: Command) -> None:
    told = command("check", base.file)
    assert told.code == 0, told.err
    assert "targets of 5 cases are stored once" in told.out
    full = command("check", base.file, "--set", "stages.student.targets={encoding: uint8}")
    assert "as uint8" in full.out


def test_answers_that_do_not_fit_on_the_disk_are_refused(
    start: Callable[..., Path], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medkd.pipeline.steps import room

    monkeypatch.setattr(room, "free_bytes", lambda path: 1000)
    file = start("full", {"teachers": TEACHERS, "student": {**STUDENT, "targets": {"encoding": "uint8"}}})
    told = command("check", file)
    assert told.code == 2
    assert "the teacher's answers about 5 cases need about 0.1 MB as uint8 and 0.0 MB are free" in told.error
    ran = command("run", file, "--runs", tmp_path / "runs")
    assert ran.code == 2
    assert "as uint8 and 0.0 MB are free" in ran.err


def test_too_few_patients_for_the_parts_are_told_before_anything_is_done(
    start: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    file = start("parts", {"teachers": {**TEACHERS, "inner_folds": 4}, "student": STUDENT})
    told = command("run", file, "--runs", tmp_path / "runs")
    assert told.code == 2
    assert "stages.teachers.inner_folds is 4 and the training cases have 3 labelled patients" in told.error


# ---- a contaminated run


@pytest.fixture
def contaminated(base: Run, tmp_path: Path) -> Path:
    """A network of another run that says it saw one of this run's test cases."""
    folder = tmp_path / "elsewhere" / "unet"
    shutil.copytree(base.nodes[PARTS[0]], folder)
    body = json.loads((folder / "model.json").read_text())
    body["trained_on"].append(base.split()["test"][0])
    (folder / "model.json").write_text(json.dumps(body))
    return folder


@pytest.mark.parametrize("methods", [["supervised", "kd"], ["supervised", "at"]], ids=["stored", "live"])
def test_a_leak_is_refused_or_owned_up_to(
    base: Run, start: Callable[..., Path], command: Command, contaminated: Path, methods: list[str]
) -> None:
    stages = {"student": {**STUDENT, "teacher": str(contaminated), "methods": methods}}
    file = start("leak", stages)
    for verb in (["check", file], ["run", file, "--runs", base.runs]):
        told = command(*verb)
        assert told.code == 2
        assert "teacher 'unet' was trained on patients of the student's test cases: " in told.error
        assert "accept it with `allow_leakage`" in told.error
    override = f"allow_leakage=[{contaminated}]"
    told = command("check", file, "--set", override)
    assert told.code == 0, told.err
    assert "leakage overridden by hand: unet was trained on patients of 1 test case of its student" in told.out
    told = command("run", file, "--runs", base.runs, "--set", override, "--json")
    assert told.code == 0, told.err
    line = "overridden by hand: unet was trained on patients of 1 test case of its student"
    assert read_card(Path(told.record["nodes"][MAIN])).provenance["leakage"] == line
    summary = json.loads((Path(told.record["nodes"]["report"]) / "summary.json").read_text())
    assert summary["provenance"]["leakage"] == line
    assert line in Path(told.record["report"]).read_text()
    # Without the override nothing of it counts as done.
    assert command("run", file, "--runs", base.runs).code == 2


def test_a_teacher_of_unknown_origin_is_told_not_refused(
    base: Run, start: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "stranger"
    shutil.copytree(base.nodes[PARTS[0]], folder)
    body = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**body, "trained_on": [], "patients": []}))
    file = start("unknown", {"student": {**STUDENT, "teacher": str(folder)}})
    told = command("run", file, "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    summary = json.loads((Path(told.record["nodes"]["report"]) / "summary.json").read_text())
    assert summary["provenance"]["leakage"] == "not known for stranger, which does not tell what it was trained on"
    # Out of fold needs to know.
    told = command("run", file, "--runs", base.runs, "--set", "stages.student.targets=out_of_fold")
    assert told.code == 2
    assert "targets: out_of_fold needs to know what each teacher was trained on, and stranger does not" in told.err


def test_models_of_several_folders_answer_out_of_fold(
    base: Run, start: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    """Folds that were trained elsewhere: those that saw a case are not asked; one alone saw what it saw."""
    folders = [tmp_path / f"fold_{i}" for i in range(2)]
    for folder, name in zip(folders, PARTS, strict=True):
        shutil.copytree(base.nodes[name], folder)
    stage = {**STUDENT, "teacher": [str(folder) for folder in folders], "targets": "out_of_fold"}
    file = start("folders", {"student": stage})
    told = command("run", file, "--runs", base.runs, "--json")
    assert told.code == 0, told.err
    (targets,) = (Path(folder) for name, folder in told.record["nodes"].items() if name.startswith("targets."))
    mine, theirs = TargetStore(targets / "targets"), SegmentationModel.from_folder(folders[1])
    seen = json.loads((folders[0] / "model.json").read_text())["trained_on"][0]
    np.testing.assert_allclose(mine.read(seen)[...], theirs.probabilities(base.image(seen)).numpy(), atol=2e-3)
    listed = ", ".join(json.loads((folders[0] / "model.json").read_text())["trained_on"])
    for verb in (["check", file], ["run", file, "--runs", base.runs]):
        alone = command(*verb, "--set", f"stages.student.teacher={folders[0]}")
        assert alone.code == 2
        assert f"every member of the teacher (fold_0) was trained on {listed}, so none" in alone.err
