"""What a run tells TensorBoard and MLflow. Nothing here changes a result, so nothing here is in a node's key."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from medkd.pipeline.config import RunConfig
from medkd.pipeline.context import Context
from medkd.pipeline.folder import read_manifest
from medkd.pipeline.graph import Graph
from medkd.pipeline.nodes import Node
from medkd.training.tracking import MLflowRun, MLflowStore, TensorBoard, Tracker, Trackers, require

COST = ("parameters", "macs", "latency_s", "memory_mb", "weights_bytes")
ATTACHED = ("report.html", "arms.json", "table.md", "cases.csv", "study.md", "study.csv", "study.json")


def wanted(config: RunConfig, stage: str) -> tuple[str, ...]:
    """Return the trackers of a stage's trainings: the run's ``track``, and TensorBoard where ``train`` asks for it."""
    own = ("tensorboard",) if config.train_of(stage).tensorboard else ()
    return tuple(dict.fromkeys((*config.track, *own)))


def check_trackers(config: RunConfig) -> None:
    """Raise :class:`UserError` where the package of a tracker is not installed."""
    for stage in config.stages:
        require(wanted(config, stage))


def trackers_of(node: Node, out: Path, context: Context, told: Mapping[str, object]) -> Trackers:
    """Return the trackers of a training.

    Args:
        node: the training.
        out: the folder that it is written to.
        context: the run.
        told: what the training reads, for those who compare trainings.
    """
    names = wanted(context.config, node.stage)
    found: list[Tracker] = []
    if "tensorboard" in names:
        found.append(TensorBoard(out, told))
    if "mlflow" in names:
        store = MLflowStore(context.run_folder, context.config.name)
        found.append(_mlflow_run(store, node, out.name.removesuffix(".partial"), told))
    return Trackers(*found)


def open_store(config: RunConfig, folder: Path) -> MLflowStore | None:
    """Return the run's MLflow store, made if need be: before its trainings begin, who may be several at once."""
    return MLflowStore(folder, config.name) if "mlflow" in config.track else None


def enter(store: MLflowStore, config: RunConfig, graph: Graph, ended: Collection[Node], folder: Path) -> None:
    """Tell MLflow what it has not seen: trainings of before, or of other runs, and the results of all.

    Args:
        store: the run's store.
        config: the run.
        graph: its nodes.
        ended: those that are whole.
        folder: ``runs/<name>``.
    """
    for node in ended:
        there = graph.folder(node, folder / "nodes")
        if node.kind == "train" and store.find(there.name) is None:
            _enter_training(store, node, there)
        elif node.kind == "report" and store.find(there.name) is None:
            _enter_results(store, config, there, folder)


def _enter_training(store: MLflowStore, node: Node, folder: Path) -> None:
    from medkd.networks.weights import read_card  # brings torch

    manifest, log = read_manifest(folder), folder / "log.jsonl"
    told = {**(manifest.config if manifest else {}), "data_hash": read_card(folder).provenance.get("data_hash")}
    with Trackers(_mlflow_run(store, node, folder.name, told)) as tracker:
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            tracker.note(json.loads(line))


def _mlflow_run(store: MLflowStore, node: Node, folder: str, told: Mapping[str, object]) -> MLflowRun:
    told_by = {**vars(node), "arm": node.arm_name}
    tags = {key: str(value) for key, value in told_by.items() if value not in (None, "")}
    return MLflowRun(store, node.name.removeprefix("train."), folder, tags=tags, parameters=told)


def _enter_results(store: MLflowStore, config: RunConfig, report: Path, folder: Path) -> None:
    """Write means of every arm, the configuration, keys and data hash, and attach the report."""
    arms: list[dict[str, Any]] = json.loads((report / "arms.json").read_text(encoding="utf-8"))
    known = json.loads((report / "summary.json").read_text(encoding="utf-8"))["provenance"]
    told = {**config.resolved(), "data_hash": known["data_hash"], "key": known["keys"]}
    run = store.begin("results", report.name, {"kind": "report"}, told)
    store.write(run, results(arms, config.evaluate.metrics))
    for file in (*(report / name for name in ATTACHED), folder / "config.yaml"):
        if file.is_file():
            store.attach(run, file)
    store.end(run, whole=True)


def results(arms: Collection[Mapping[str, Any]], metrics: Collection[str]) -> dict[str, float]:
    """Return ``dice/student``, ``dice/student/liver``, ``latency_s/student``... of what ``arms.json`` holds."""
    found: dict[str, float] = {}
    for arm in arms:
        name = arm["arm"]
        found |= {f"{key}/{name}": arm[key] for key in (*metrics, *COST) if arm.get(key) is not None}
        for label, values in arm.get("per_class", {}).items():
            found |= {f"{key}/{name}/{label}": values[key] for key in metrics if values.get(key) is not None}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
