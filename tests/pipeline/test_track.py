"""A whole run as TensorBoard and MLflow see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medkd.pipeline.track import results

Command = Callable[..., Any]
Write = Callable[..., Path]
STUDENT = "student.m0.f0.s0.main"
CONTROL = "student.m0.f0.s0.control"
TEACHER = "teacher.m0.f0.s0.main"


def stages(teachers: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    return {
        "teacher": {**teachers, "model": teachers["model"][0]},
        "student": {**student, "teacher": "teacher", "labelled": None},
    }


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def seen(folder: Path) -> dict[str, Any]:
    """The MLflow runs in a medkd run's store by name."""
    from medkd.training.tracking import MLflowStore

    store = MLflowStore(folder, folder.name)
    found = store.client.search_runs([store.experiment])
    assert len({run.info.run_name for run in found}) == len(found), "something is there twice"
    return {run.info.run_name: run for run in found}


@pytest.mark.slow
def test_a_run_is_tracked_live_and_afterwards(
    tmp_path: Path, scans: Path, write: Write, command: Command, teachers: Any, student: Any
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed; the extra `tracking` brings it")
    pytest.importorskip("tensorboard")
    runs, parts = tmp_path / "runs", stages(teachers, student)
    file = write(tmp_path, "seen", scans, parts, track=["tensorboard", "mlflow"])
    # The teacher is trained before MLflow listens, the students while it does, two at a time.
    told = command("run", file, "--runs", runs, "--only", "teacher", "--set", "track=[]", "--json")
    assert told.code == 0, told.err
    assert not (runs / "seen" / "mlflow.db").exists()
    told = command("run", file, "--runs", runs, "--jobs", 2, "--json")
    assert told.code == 0, told.err
    nodes = told.record["nodes"]
    found = seen(runs / "seen")
    assert set(found) == {TEACHER, STUDENT, CONTROL, "results"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for name in (TEACHER, STUDENT, CONTROL):
        lines = [json.loads(line) for line in (Path(nodes[f"train.{name}"]) / "log.jsonl").read_text().splitlines()]
        scored = [line["scores"]["dice"] for line in lines if "scores" in line]
        assert found[name].data.metrics["dice"] == pytest.approx(scored[-1])
        assert found[name].data.params["data_hash"]
        assert found[name].data.tags["stage"] == name.split(".")[0]
    assert found[STUDENT].data.params["methods.kd.name"] == "kd"
    assert found[CONTROL].data.tags["arm"] == "student.control"
    assert not (Path(nodes[f"train.{TEACHER}"]) / "tensorboard").exists()
    assert list((Path(nodes[f"train.{STUDENT}"]) / "tensorboard").glob("events.*"))

    arms = {arm["arm"]: arm for arm in json.loads((Path(nodes["report"]) / "arms.json").read_text())}
    last = found["results"].data
    for arm in ("student", "student.control", "teacher"):
        assert last.metrics[f"dice/{arm}"] == pytest.approx(arms[arm]["dice"])
        assert last.metrics[f"parameters/{arm}"] == arms[arm]["parameters"]
    assert last.params["stages.student.methods.1.name"] == "kd"
    assert last.params["data_hash"] == found[STUDENT].data.params["data_hash"]
    assert last.params[f"key.train.{STUDENT}"]
    attached = {file.name for file in (runs / "seen" / "mlruns").rglob("*") if file.is_file()}
    assert {"report.html", "cases.csv", "table.md", "arms.json", "config.yaml"} <= attached

    # Nothing new is done and nothing is told twice.
    again = command("run", file, "--runs", runs, "--json")
    assert again.record["done"] == []
    assert set(seen(runs / "seen")) == set(found)


def test_results_are_every_arm_and_class_by_metric() -> None:
    arm = {
        "arm": "student",
        "role": "student",
        "cases": 3,
        "dice": 0.8,
        "hd95_mm": None,
        "latency_s": 0.1,
        "per_class": {"liver": {"dice": 0.9, "hd95_mm": float("nan")}},
    }
    assert results([arm], ["dice", "hd95_mm"]) == {
        "dice/student": 0.8,
        "latency_s/student": 0.1,
        "dice/student/liver": 0.9,
    }


@pytest.mark.parametrize(
    ("key", "package"), [("track=mlflow", "alembic"), ("stages.student.train.tensorboard=true", "tensorboard")]
)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_tracker_that_is_not_installed_stops_a_run_before_it_begins(
    tmp_path: Path,
    scans: Path,
    write: Write,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    key: str,
    package: str,
) -> None:
    from medkd.training import tracking

    monkeypatch.setattr(tracking, "find_spec", lambda wanted: None if wanted == package else object())
    runs = ["--runs", tmp_path / "runs"] if verb == "run" else []
    told = command(verb, write(tmp_path, "absent", scans), "--set", key, *runs)
    assert told.code == 2
    assert f"needs the package {package}, which is not installed" in told.error
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_nobody_knows_is_refused(tmp_path: Path, scans: Path, write: Write, command: Command) -> None:
    told = command("check", write(tmp_path, "strange", scans, track=["wandb"]))
    assert told.code == 2
    assert "track" in told.error
    assert "mlflow" in told.error
