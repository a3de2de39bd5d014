"""The nodes of a run, what each depends on, and the key by which finished work is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkd.errors import UserError
from medkd.pipeline.config import RunConfig
from medkd.pipeline.nodes import FORMAT, Node, answers_node, targets_json, targets_node, train_job
from medkd.pipeline.rules import ARMS
from medkd.pipeline.specs import EvaluateConfig


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which each comes after what it depends on.

    Args:
        nodes: the order.
        dependencies: node -> the nodes whose artifacts it reads.
        keys: node -> 32 hexadecimal digits; equal keys, equal artifacts.
        parts: node -> the part of the configuration that went into its key.
    """

    nodes: tuple[Node, ...]
    dependencies: Mapping[Node, tuple[Node, ...]]
    keys: Mapping[Node, str]
    parts: Mapping[Node, Mapping[str, Any]]

    def folder(self, node: Node, nodes_folder: Path) -> Path:
        """Return where the finished node lies: ``<nodes_folder>/<name>-<first 12 digits of the key>``."""
        return nodes_folder / f"{node.name}-{self.keys[node][:12]}"

    def needed_for(self, wanted: Collection[Node]) -> tuple[Node, ...]:
        """Return the nodes of ``wanted`` and everything they depend on, in order."""
        needed = set(wanted)
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(self.dependencies[node])
        return tuple(node for node in self.nodes if node in needed)

    def of_stage(self, stage: str) -> tuple[Node, ...]:
        """Return the nodes of one stage and everything they depend on, in order."""
        return self.needed_for(
            [node for node in self.nodes if node.stage == stage and node.kind not in ("targets", "answers")]
        )


def build_graph(config: RunConfig, data_key: str) -> Graph:
    """Return the graph of a run.

    Args:
        config: a run that :func:`medkd.pipeline.config.parse` accepted; imports torch to ask the methods.
        data_key: digest of the data set, see :func:`medkd.pipeline.datakey.data_key`.

    Raises:
        UserError: a teacher from outside the run is not there.
    """
    builder = _Builder(config, data_key)
    builder.add(Node("prepare"), (), {"data": data_key, "plan": config.plan, **_split(config)})
    for name in _order(config):
        builder.stage(name)
    for name in config.stages:
        builder.measure(name)
    builder.finish()
    return Graph(tuple(builder.nodes), builder.nodes, builder.keys, builder.parts)


def _split(config: RunConfig) -> dict[str, Any]:
    named = {"ontology": dict(config.data.ontology)} if config.data.ontology else {}
    return {**config.data.model_dump(mode="json", include={"folds", "seed", "validation"}), **named}


def _order(config: RunConfig) -> Iterator[str]:
    """Yield stages after the stages they learn from."""
    waiting = dict(config.stages)
    while waiting:
        ready = [name for name, stage in waiting.items() if not {*stage.teacher, stage.init} & waiting.keys()]
        if not ready:
            raise UserError(f"the stages {', '.join(waiting)} wait for each other; remove one of their teachers")
        yield ready[0]
        del waiting[ready[0]]


class _Builder:
    def __init__(self, config: RunConfig, data_key: str) -> None:
        self.config = config
        self.nodes: dict[Node, tuple[Node, ...]] = {}
        self.keys: dict[Node, str] = {}
        self.parts: dict[Node, Mapping[str, Any]] = {}

    def add(self, node: Node, dependencies: tuple[Node, ...], part: Mapping[str, Any]) -> Node:
        if node not in self.nodes:
            dependencies = tuple(dict.fromkeys(dependencies))
            read = [node.kind, FORMAT[node.kind], part, [self.keys[d] for d in dependencies]]
            text = json.dumps(read, sort_keys=True, default=str)
            self.nodes[node] = dependencies
            self.parts[node] = part
            self.keys[node] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return node

    def stage(self, name: str) -> None:
        stage = self.config.stages[name]
        arms = ("main", *(ARMS[entry] for entry in stage.control))
        for fold in self.config.data.run_folds:
            for arm in arms:
                for seed in self.config.seeds_of(name):
                    for node in self.members(name, fold, seed, arm):
                        self.train(node)

    def train(self, node: Node) -> None:
        job = train_job(self.config, node)
        needs = [Node("prepare")]
        if job.init is not None:
            # The network of the same place; of a stage with inner folds the one that left out the same part.
            start = self.members(job.init, node.fold, self.config.seeds_of(job.init)[0], "main")
            same = [one for one in start if (one.member, one.part) == (node.member, node.part)]
            needs += (same or list(start))[:1]
        if job.teacher:
            needs += [self.targets(node.stage, node.fold)] if job.cached else self.teachers(job.teacher, node.fold)
        counted = job.teacher if job.taught is None else job.taught.outside
        if "outside" in job.spoken:  # their classes are the network's too, in every arm
            counted = self.config.stages[node.stage].teacher
        live = [] if job.cached else _outside(self.config, counted)
        part = {**job.to_json(), "member": node.member, "fold": node.fold, "outside": live}
        self.add(node, tuple(needs), part)

    def targets(self, stage: str, fold: int | None) -> Node:
        teacher = self.config.stages[stage].teacher
        part = {"fold": fold, "outside": _outside(self.config, teacher), **targets_json(self.config, stage)}
        needs = (Node("prepare"), *self.teachers(teacher, fold))
        return self.add(targets_node(self.config, stage, fold), needs, part)

    def answers(self, stage: str, fold: int | None) -> Node:
        teacher = self.config.stages[stage].teacher
        part: dict[str, Any] = {"fold": fold, "outside": _outside(self.config, teacher)}
        if self.config.stages[stage].targets.mirror:
            part["mirror"] = True
        if any(name not in self.config.stages for name in teacher) or len(teacher) > 1:
            part |= _measured(self.config.evaluate)  # of teachers that no node evaluates as they teach
        needs = (Node("prepare"), *self.teachers(teacher, fold))
        return self.add(answers_node(self.config, stage, fold), needs, part)

    def teachers(self, teacher: tuple[str, ...], fold: int | None) -> list[Node]:
        """The trainings behind a list of teachers: a stage's first seed only, so that all students share it."""
        return [
            node
            for name in teacher
            if name in self.config.stages
            for node in self.members(name, fold, self.config.seeds_of(name)[0], "main")
        ]

    def members(self, name: str, fold: int | None, seed: int, arm: str) -> tuple[Node, ...]:
        networks = self.config.stages[name].networks
        return tuple(Node("train", name, member, fold, seed, arm, part) for member, part in networks)

    def measure(self, name: str) -> None:
        stage, folds, seeds = self.config.stages[name], self.config.data.run_folds, self.config.seeds_of(name)
        for fold in folds:
            for seed in seeds:
                for arm in ("main", *(ARMS[entry] for entry in stage.control)):
                    needs = (Node("prepare"), *self.members(name, fold, seed, arm))
                    if stage.teacher and self.config.evaluate.fidelity:
                        needs = (*needs, self.answers(name, fold))
                    part = {**_measured(self.config.evaluate), "fold": fold, "arm": arm}
                    self.add(Node("evaluate", name, None, fold, seed, arm), needs, part)
        # Control arms have the same network: its cost is measured once.
        self.add(Node("cost", name), (Node("prepare"), *self.members(name, folds[0], seeds[0], "main")), {})

    def finish(self) -> None:
        config = self.config
        if config.export:
            name, fold = exported_stage(config), config.data.run_folds[0]
            trained = [node for seed in config.seeds_of(name) for node in self.members(name, fold, seed, "main")]
            part = {"formats": list(config.export), "fold": fold}
            self.add(Node("export", name), (Node("prepare"), *trained), part)
        part = {
            "name": config.name,
            "report": config.report.model_dump(mode="json"),
            "compare": config.evaluate.compare,
            "stages": {n: [*s.teacher, *s.control] for n, s in config.stages.items()},
        }
        if config.evaluate.baseline is not None:
            part["baseline"] = config.evaluate.baseline
        if config.evaluate.margin is not None:
            part["margin"] = config.evaluate.margin
        self.add(Node("report"), tuple(self.nodes), part)


def exported_stage(config: RunConfig) -> str:
    """Return the stage whose network is shipped: the last one with a teacher, or the last."""
    taught = [name for name, stage in config.stages.items() if stage.teacher]
    return (taught or list(config.stages))[-1]


def _measured(given: EvaluateConfig) -> dict[str, Any]:
    """Return what decides the scores of a case, without what has its default: so older rows keep their keys."""
    part: dict[str, Any] = {"metrics": list(given.metrics)}
    if given.surfaces != "surfel":
        part["surfaces"] = given.surfaces
    if given.lesions is not None:
        part["lesions"] = sorted(given.lesions)
    return part


def _outside(config: RunConfig, teacher: tuple[str, ...]) -> list[str]:
    """Return digests of the teachers that are no stages of this run."""
    from medkd.pipeline.datakey import folder_key

    outside = [Path(name) for name in teacher if name not in config.stages]
    for path in outside:
        if not path.exists():
            raise UserError(f"teacher {path} does not exist; name a stage, or the folder of a trained model")
    return [folder_key(path) for path in outside]
