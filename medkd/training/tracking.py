"""Curves where others look for them: TensorBoard's event files, and MLflow's store in a file."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from medkd.errors import UserError

TRACKERS: Mapping[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Tracker -> the packages that it writes with."""

STORE, ARTIFACTS = "mlflow.db", "mlruns"
FOLDER_TAG = "medkd.folder"
"""Tag of an MLflow run that says which folder of the medkd run it tells of."""
_PARAMETERS_AT_ONCE = 100
_LONGEST_PARAMETER = 500
_NO_NAME = re.compile(r"[^\w\-. /:]")
"""What MLflow allows in no metric's name."""


def require(names: Sequence[str]) -> None:
    """Raise :class:`UserError` where a tracker's package is not installed."""
    for name in names:
        for package in TRACKERS[name]:
            if find_spec(package) is None:
                what = f"tracking with {name} needs the package {package}, which is not installed"
                raise UserError(f"{what}; pip install 'medkd[tracking]', or take {name} out of `track`")


class Tracker(Protocol):
    """Takes the lines of one training's log."""

    def note(self, event: Mapping[str, Any]) -> None:
        """Take a line: ``step``, and ``terms`` and ``lr``, or ``scores``."""

    def close(self, whole: bool) -> None:
        """Write what is left; ``whole`` tells whether the training came to its end."""


class Trackers:
    """Any number of trackers as one, closed at the end of a ``with`` block.

    Args:
        trackers: those who are told; none for a training that is not tracked.
    """

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def note(self, event: Mapping[str, Any]) -> None:
        """Tell every tracker."""
        for tracker in self.trackers:
            tracker.note(event)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self.trackers:
            tracker.close(kind is None)


def numbers_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Return every number of a log's line by name: terms, scores, and ``lr``."""
    rate = {"lr": event["lr"]} if "lr" in event else {}
    return {**event.get("terms", {}), **event.get("scores", {}), **rate}


class TensorBoard:
    """Event files in ``<folder>/tensorboard``.

    Args:
        folder: the training's folder.
        parameters: shown as text.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, object]) -> None:
        require(["tensorboard"])
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call, unused-ignore]
        if parameters:
            # Four spaces make a block of code of each line in Markdown, which is what the page shows.
            text = "\n".join(f"    {line}" for line in json.dumps(dict(parameters), indent=1, default=str).splitlines())
            self.writer.add_text("parameters", text)

    def note(self, event: Mapping[str, Any]) -> None:
        """Write the numbers of a line."""
        for name, value in numbers_of(event).items():
            self.writer.add_scalar(name, value, event["step"])

    def close(self, whole: bool) -> None:
        """Flush and close the file."""
        self.writer.close()


class MLflowStore:
    """An experiment in an MLflow store: SQLite and a folder of artifacts beside it, no server and no network.

    MLflow's older store of plain files is refused by its newer versions, hence SQLite. Where ``MLFLOW_TRACKING_URI`` is
    set, that store is used instead.

    Args:
        folder: the medkd run's folder; gets ``mlflow.db`` and ``mlruns``.
        experiment: name of the experiment: the medkd run's.

    Raises:
        UserError: MLflow is not installed, or the store cannot be opened.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        require(["mlflow"])
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing of a training leaves this machine
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = elsewhere or f"sqlite:///{(folder / STORE).resolve()}"
        folder.mkdir(parents=True, exist_ok=True)
        with self.told():
            self.client: Any = MlflowClient(tracking_uri=self.uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is not None:
                self.experiment = found.experiment_id
            else:
                where = None if elsewhere else (folder / ARTIFACTS).resolve().as_uri()
                self.experiment = self.client.create_experiment(experiment, artifact_location=where)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turn what goes wrong in the store into one sentence."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            what = f"the MLflow store {self.uri} cannot be used ({reason})"
            raise UserError(f"{what}; mend or delete it, or take mlflow out of `track`, and run again") from error

    def find(self, folder: str) -> str | None:
        """Return the id of the MLflow run that tells of a folder, or None."""
        with self.told():
            query = f"tags.`{FOLDER_TAG}` = '{folder}'"
            runs = self.client.search_runs([self.experiment], filter_string=query, max_results=1)
        return runs[0].info.run_id if runs else None

    def begin(self, name: str, folder: str, tags: Mapping[str, str], parameters: Mapping[str, object]) -> str:
        """Return the id of the MLflow run that tells of a folder; begun, or taken up where it stopped."""
        known = self.find(folder)
        with self.told():
            if known is not None:
                self.client.update_run(known, status="RUNNING")
                return known
            begun = self.client.create_run(self.experiment, run_name=name, tags={**tags, FOLDER_TAG: folder})
            run: str = begun.info.run_id
            from mlflow.entities import Param

            all_of_them = [Param(key, _short(value)) for key, value in flat(parameters).items()]
            for i in range(0, len(all_of_them), _PARAMETERS_AT_ONCE):
                self.client.log_batch(run, params=all_of_them[i : i + _PARAMETERS_AT_ONCE])
        return run

    def write(self, run: str, numbers: Mapping[str, float], step: int = 0) -> None:
        """Write the numbers of one step into an MLflow run."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self.told():
            found = [Metric(_NO_NAME.sub("_", name), float(value), now, step) for name, value in numbers.items()]
            self.client.log_batch(run, metrics=found)

    def attach(self, run: str, file: Path) -> None:
        """Copy a file to the artifacts of an MLflow run."""
        with self.told():
            self.client.log_artifact(run, str(file))

    def end(self, run: str, whole: bool) -> None:
        """Close an MLflow run."""
        with self.told():
            self.client.set_terminated(run, status="FINISHED" if whole else "KILLED")


class MLflowRun:
    """One training as an MLflow run; a training that was stopped goes on in the same.

    Args:
        store: where.
        name: what MLflow's page calls it.
        folder: name of the training's folder, by which it is found again.
        tags: what MLflow's page can filter by.
        parameters: what the training was told; nested mappings become ``a.b``.
    """

    def __init__(
        self,
        store: MLflowStore,
        name: str,
        folder: str,
        *,
        tags: Mapping[str, str],
        parameters: Mapping[str, object],
    ) -> None:
        self.store = store
        self.run = store.begin(name, folder, tags, parameters)

    def note(self, event: Mapping[str, Any]) -> None:
        """Write the numbers of a line."""
        self.store.write(self.run, numbers_of(event), int(event["step"]))

    def close(self, whole: bool) -> None:
        """Tell how the training ended."""
        self.store.end(self.run, whole)


def flat(nested: Mapping[str, object], above: str = "") -> dict[str, object]:
    """Return a nested mapping as one of dotted names; a list of mappings goes by their ``as`` or number."""
    found: dict[str, object] = {}
    for key, value in nested.items():
        name = f"{above}{key}"
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(item.get("as", i)): item for i, item in enumerate(value)}
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return {_NO_NAME.sub("_", name): value for name, value in found.items()}


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_PARAMETER else f"{text[: _LONGEST_PARAMETER - 3]}..."
