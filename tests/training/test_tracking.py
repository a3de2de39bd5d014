"""What TensorBoard and MLflow are told is what the log says."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import cross_entropy

from medkd.errors import UserError
from medkd.methods.base import Method, Round, Turns
from medkd.training import tracking
from medkd.training.tracking import MLflowRun, MLflowStore, TensorBoard, Trackers, flat, numbers_of, require
from medkd.types import Batch, Turn

TOLD = {"model": {"name": "UNet", "channels": [4, 8]}, "methods": [{"name": "kd", "as": "soft", "weight": [1, 0, 0.6]}]}


class Plain(Method):
    """Cross-entropy with the labels."""

    reads_teacher = False

    def turns(self, r: Round) -> Turns:
        yield Turn("student", {"ce": cross_entropy(r.view("student").logits, r.batch.label)})


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a training: making its tables takes longer than all that is done with them."""
    pytest.importorskip("mlflow", reason="MLflow is not installed; the extra `tracking` brings it")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("empty")
        MLflowStore(folder, "nothing")
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, empty: Path) -> MLflowStore:
    shutil.copy(empty, tmp_path)
    return MLflowStore(tmp_path, "tiny")


def logged(folder: Path) -> dict[tuple[str, int], float]:
    """Every number of the log by name and step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {(name, line["step"]): value for line in lines for name, value in numbers_of(line).items()}


def in_mlflow(store: MLflowStore, run: str) -> dict[tuple[str, int], float]:
    names = store.client.get_run(run).data.metrics
    return {(name, one.step): one.value for name in names for one in store.client.get_metric_history(run, name)}


def test_numbers_are_terms_scores_and_the_rate() -> None:
    assert numbers_of({"step": 3, "terms": {"kd": 0.5}, "lr": 0.1}) == {"kd": 0.5, "lr": 0.1}
    assert numbers_of({"step": 3, "scores": {"dice": 0.9}, "best": 0.9, "seconds": 4.0}) == {"dice": 0.9}


def test_parameters_become_dotted_names() -> None:
    assert flat({**TOLD, "seeds": [0, 1], "left kidney (cyst)": 1}) == {
        "model.name": "UNet",
        "model.channels": [4, 8],
        "methods.soft.name": "kd",
        "methods.soft.as": "soft",
        "methods.soft.weight": [1, 0, 0.6],
        "seeds": [0, 1],
        "left kidney _cyst_": 1,
    }


def test_tensorboard_gets_the_numbers_of_the_log(run: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = run.trainer(run.tiny(), run.total(sup=Plain()))
    trainer.fit(run.batches, run.score, trackers=Trackers(TensorBoard(run.folder, TOLD)))
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    found = {(name, one.step): one.value for name in names for one in events.Scalars(name)}
    assert {"sup/ce", "dice", "lr"} == set(names)
    assert found == pytest.approx(logged(run.folder), rel=1e-6)
    text = events.Tensors("parameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"name": "UNet"' in text


def test_mlflow_gets_the_numbers_of_the_log(run: Any, store: MLflowStore) -> None:
    trainer = run.trainer(run.tiny(), run.total(sup=Plain()))
    mlflow_run = MLflowRun(store, "student", "train.student-0123", tags={"arm": "student"}, parameters=TOLD)
    trainer.fit(run.batches, run.score, trackers=Trackers(mlflow_run))
    found = store.client.get_run(mlflow_run.run)
    assert in_mlflow(store, mlflow_run.run) == pytest.approx(logged(run.folder))
    assert len(logged(run.folder)) == 2 * 6 + 2  # a term and the rate each step, and two validations
    assert found.info.status == "FINISHED"
    assert found.data.tags["arm"] == "student"
    assert found.data.params["model.channels"] == "[4, 8]"
    assert found.data.params["methods.soft.weight"] == "[1, 0, 0.6]"


def test_a_stopped_training_goes_on_in_the_same_mlflow_run(run: Any, store: MLflowStore) -> None:
    def stopped(start: int, stop: int) -> Iterator[Batch]:
        for i in range(start, stop):
            if i == 4:
                raise KeyboardInterrupt
            yield run.batch(i)

    def trackers() -> Trackers:
        return Trackers(MLflowRun(store, "student", "train.student-0123", tags={}, parameters=TOLD))

    with pytest.raises(KeyboardInterrupt):
        run.trainer(run.tiny(), run.total(sup=Plain())).fit(stopped, run.score, trackers=trackers())
    (first,) = store.client.search_runs([store.experiment])
    assert first.info.status == "KILLED"
    run.trainer(run.tiny(), run.total(sup=Plain())).fit(run.batches, run.score, trackers=trackers())
    (only,) = store.client.search_runs([store.experiment])
    assert (only.info.run_id, only.info.status) == (first.info.run_id, "FINISHED")
    assert in_mlflow(store, only.info.run_id) == pytest.approx(logged(run.folder))


def test_mlflow_takes_what_a_training_may_say(store: MLflowStore, tmp_path: Path) -> None:
    run = store.begin("x", "x-1", {}, {f"p{i}": "long " * 500 for i in range(230)})
    store.write(run, {"critic:skd/x": 1.0, "dice/left kidney (cyst)": 0.5, "kd/kd": math.nan}, 7)
    (tmp_path / "table.md").write_text("a table")
    store.attach(run, tmp_path / "table.md")
    found = store.client.get_run(run).data
    assert set(found.metrics) == {"critic:skd/x", "dice/left kidney _cyst_", "kd/kd"}
    assert len(found.params) == 230
    assert max(len(value) for value in found.params.values()) == 500
    (kept,) = (tmp_path / "mlruns").rglob("table.md")
    assert kept.read_text() == "a table"


def test_the_store_is_one_file_that_is_found_again(store: MLflowStore, tmp_path: Path) -> None:
    run = store.begin("x", "x-1", {}, {})
    again = MLflowStore(tmp_path, "tiny")
    assert (tmp_path / "mlflow.db").is_file()
    assert again.experiment == store.experiment
    assert again.find("x-1") == run
    assert again.find("x-2") is None


def test_another_store_by_the_variable_that_mlflow_knows(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty, tmp_path / "all.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'all.db'}")
    store = MLflowStore(tmp_path / "other", "tiny")
    assert store.uri.endswith("all.db")
    assert {one.name for one in store.client.search_experiments()} >= {"nothing", "tiny"}
    assert not (tmp_path / "other" / "mlflow.db").exists()


def test_a_damaged_store_is_told_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"the MLflow store sqlite:///\S+mlflow\.db cannot be used .*; mend or delete"):
        MLflowStore(tmp_path, "tiny")


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "sqlalchemy")])
def test_a_package_that_is_not_there_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(UserError, match=rf"tracking with {name} needs the package {package}.*medkd\[tracking\]"):
        require([name])
