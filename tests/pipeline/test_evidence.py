"""A whole run tells how faithful, how well calibrated and how much worse its student is; also against a stranger."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.data.store import Store
from medkd.evaluation.fidelity import REGIONS
from medkd.inference.model import SegmentationModel
from medkd.report.summary import RunSummary

NET: dict[str, Any] = {"name": "UNet", "channels": [2, 4]}
TAUGHT: dict[str, Any] = {"model": NET, "methods": ["supervised", "kd"]}
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path], command: Command
) -> dict[str, tuple[Path, RunSummary]]:
    """Two runs on one data set: with a teacher of its own, and with that teacher as a stranger."""
    from medkd.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("evidence")
    data = write_phantoms(folder / "scans", cases=9, unlabelled=1, shape=(32, 28, 16), spacing_mm=(10.2, 9.8, 15.0))
    more: dict[str, Any] = {
        "data": {"source": str(data), "folds": 3},
        "train": {"steps": 8, "batch": 2, "threads": 1},
        "evaluate": {"metrics": ["dice"], "margin": 0.02},
        "report": {"cases": 2},
    }
    teacher = {"model": NET, "methods": ["supervised"]}
    student = {**TAUGHT, "teacher": "teacher", "control": ["steps", "compute"], "seeds": [0, 1]}
    file = write(folder, "own", data, {"teacher": teacher, "student": student}, **more)
    found = {"own": _finished(command("run", file, "--runs", folder / "runs"), folder / "runs" / "own")}
    (network,) = (folder / "runs" / "own" / "nodes").glob("train.teacher.*")
    stages = {"student": {**TAUGHT, "teacher": str(network), "control": "none"}}
    file = write(folder, "stranger", data, stages, **more)
    found["stranger"] = _finished(command("run", file, "--runs", folder / "runs"), folder / "runs" / "stranger")
    return found


def _finished(told: Any, folder: Path) -> tuple[Path, RunSummary]:
    assert told.code == 0, told.err
    (report,) = (folder / "nodes").glob("report-*")
    return folder, RunSummary.from_json(json.loads((report / "summary.json").read_text()))


def test_fidelity_of_every_arm_by_region(done: dict[str, tuple[Path, RunSummary]]) -> None:
    _, run = done["own"]
    assert {one.arm for one in run.fidelity} == {"student", "student.control", "student.compute"}
    of = {one.region: one for one in run.fidelity if one.arm == "student"}
    assert tuple(of) == REGIONS
    assert {one.teacher for one in run.fidelity} == {"teacher"}
    assert all(one.kl_nats is not None and one.kl_nats > -1e-3 for one in run.fidelity)
    assert of["all"].n_voxels == sum(of[name].n_voxels for name in REGIONS[:3])
    assert of["all"].n_voxels > 2 * 3 * 10_000, "two seeds, three cases"
    for one in run.outcomes:
        shares = (one.both_right, one.arm_only, one.teacher_only, one.both_wrong)
        assert one.n_voxels == 0 or sum(share or 0 for share in shares) == pytest.approx(1)


def test_fidelity_is_what_the_networks_say(done: dict[str, tuple[Path, RunSummary]]) -> None:
    """The agreement counted anew from student and teacher, asked about the prepared test cases."""
    nodes = done["own"][0] / "nodes"
    store = Store(next(nodes.glob("prepare-*")))
    student, teacher = (
        SegmentationModel.from_folder(next(nodes.glob(f"train.{name}.m0.f0.s0.main-*")))
        for name in ("student", "teacher")
    )
    told = json.loads((next(nodes.glob("evaluate.student.f0.s0.main-*")) / "fidelity.json").read_text())
    assert len(told["cases"]) == 3
    for case in told["cases"]:
        image = np.asarray(store.image(case["case"])[...])
        mine, theirs = (model.probabilities(image).numpy() for model in (student, teacher))
        everywhere = case["regions"][-1]
        assert everywhere["n_voxels"] == mine[0].size
        assert everywhere["same"] == int((mine.argmax(0) == theirs.argmax(0)).sum())
        kl = float((theirs * np.log(theirs / mine)).sum(0).mean())
        assert everywhere["kl_sum"] / mine[0].size == pytest.approx(kl, abs=2e-3)  # stored in 8 bits


def test_calibration_of_every_arm(done: dict[str, tuple[Path, RunSummary]]) -> None:
    _, run = done["own"]
    assert [one.arm for one in run.reliability] == ["teacher", "student", "student.control", "student.compute"]
    for one in run.reliability:
        assert one.bins
        assert sum(share for _, _, share in one.bins) == pytest.approx(1)
        assert one.ece == pytest.approx(sum(share * abs(sure - right) for sure, right, share in one.bins))
        assert one.brier is not None
        assert 0 < one.brier < 2


def test_what_was_lost_is_listed_by_size(done: dict[str, tuple[Path, RunSummary]]) -> None:
    _, run = done["own"]
    liver = [one for one in run.lost if one.label == "liver"]
    assert [(one.size, one.n) for one in liver] == [("small", 1), ("medium", 1), ("large", 1)]
    assert all(one.note.endswith("ml") for one in liver)
    for one in liver:
        assert one.student is not None
        assert one.teacher is not None
        assert one.difference == pytest.approx(one.student - one.teacher)
        assert one.control is not None


def test_the_worst_cases_can_be_scrolled(done: dict[str, tuple[Path, RunSummary]]) -> None:
    _, run = done["own"]
    assert [view.case for view in run.volumes] == [view.case for view in run.slices]
    assert len(run.volumes) == 2
    assert set(run.volumes[0].masks) == {"teacher", "student", "student.control"}


def test_the_margin_is_answered_and_the_controls_told_apart(done: dict[str, tuple[Path, RunSummary]]) -> None:
    folder, run = done["own"]
    found = run.comparison("student", "teacher")
    assert found is not None
    assert (found.margin, found.non_inferior) == (0.02, False), "three patients show nothing"
    assert "student within 2 Dice points of teacher: not shown, one-sided p = " in found.sentence
    assert run.comparison("student", "student.compute") is not None
    assert {arm.role for arm in run.arms} == {"teacher", "student", "control", "compute"}
    (arm,) = (folder / "nodes").glob("train.student.m0.f0.s0.compute-*")
    told = json.loads((arm / "compute.json").read_text())
    assert json.loads((arm / "result.json").read_text())["steps"] == told["same_compute_steps"] > 8
    assert run.provenance.seeds == (0, 1)


def test_the_tables_lie_beside_the_page(done: dict[str, tuple[Path, RunSummary]]) -> None:
    folder, run = done["own"]
    there = {path.name for path in folder.iterdir()}
    assert there >= {"report.html", "report.json", "cases.csv", "arms.csv", "lost.csv", "fidelity.csv", "outcomes.csv"}
    told = json.loads((folder / "report.json").read_text())
    assert told["lost"][0]["label"] == run.lost[0].label
    with (folder / "comparisons.csv").open() as rows:
        assert {row["arm_b"] for row in csv.DictReader(rows)} == {"student.control", "student.compute", "teacher"}


def test_a_teacher_from_outside_is_measured_as_one_of_the_run(done: dict[str, tuple[Path, RunSummary]]) -> None:
    (_, own), (_, run) = done["own"], done["stranger"]
    teacher, student = run.arm("teacher"), run.arm("student")
    assert teacher is not None
    assert student is not None
    assert teacher.detail.startswith("what student learns from: train.teacher.m0")
    mine = {(r["case"], r["label"]): r["dice"] for r in run.rows if r["arm"] == teacher.name}
    theirs = {(r["case"], r["label"]): r["dice"] for r in own.rows if r["arm"] == "teacher"}
    assert mine == theirs
    found = run.comparison("student", teacher.name)
    assert found is not None
    assert found.margin == 0.02
    assert {one.teacher for one in run.fidelity} == {teacher.name}
    assert set(run.volumes[0].masks) == {teacher.name, "student"}
    (told,) = run.provenance.teachers.values()
    assert "medkd from " in told
    assert told.endswith("cases")


def test_answers_may_be_deleted_and_are_not_missed(
    done: dict[str, tuple[Path, RunSummary]], command: Command, tmp_path: Path
) -> None:
    import shutil

    folder, _ = done["own"]
    (answers,) = (folder / "nodes").glob("answers.*")
    shutil.rmtree(answers)
    told = command("run", folder.parents[1] / "own.yaml", "--runs", folder.parent, "--json")
    assert told.code == 0, told.err
    assert told.record["done"] == []


def test_runs_of_the_same_cases_share_a_leaderboard(
    done: dict[str, tuple[Path, RunSummary]], command: Command, tmp_path: Path
) -> None:
    folders = [folder for folder, _ in done.values()]
    told = command("report", *folders, "--out", tmp_path, "--json")
    (group,) = told.record["groups"]
    assert {(entry["arm"], tuple(entry["runs"])) for entry in group["entries"]} >= {
        ("student", ("own",)),
        ("student", ("stranger",)),
    }
    gate = command("gate", folders[0], "--min-dice", "mean=0", "--json")
    assert (gate.code, gate.record["passed"]) == (0, True)
