"""One piece of a run: what it is called, and what a training reads of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medkd.pipeline.config import RunConfig, teacher_label
from medkd.pipeline.rules import arm_name
from medkd.pipeline.specs import MethodSpec, ModelSpec, TargetsConfig, TrainConfig

KINDS = ("prepare", "train", "targets", "answers", "evaluate", "cost", "export", "report")
FORMAT: Mapping[str, int] = {**dict.fromkeys(KINDS, 1), "evaluate": 2}
"""Raise a kind's number when its artifacts or their meaning change: old ones are then made again.

``evaluate`` 2: surfaces are made of surfels weighted by area; until then, of boundary voxels.
"""

_LATER = ("part", "allow_leakage", "taught", "labels", "spoken")
"""What came after the first finished runs, and is in a key only where it is used."""

_UNREAD = {"workers", "threads", "tensorboard"}
"""Training settings that leave the trained weights as they are."""


@dataclass(frozen=True)
class Node:
    """One piece of a run that is done, kept and reused as a whole.

    Args:
        kind: one of :data:`KINDS`.
        stage: stage name; for ``targets`` and ``answers`` the label of the teachers
            (:func:`medkd.pipeline.config.teacher_label`).
        member: position in the stage's list of models, for ``train``.
        fold: the fold whose test cases the node may not learn from.
        seed: training seed.
        arm: ``main``, ``control``, ``compute``, ``same_loss`` or ``pseudo``; for ``targets`` and ``answers`` how they
            are made, where not as usual.
        part: the part of the fold's training cases that a ``train`` node leaves out, or None for none.
    """

    kind: str
    stage: str = ""
    member: int | None = None
    fold: int | None = None
    seed: int | None = None
    arm: str = ""
    part: int | None = None

    @property
    def name(self) -> str:
        """``train.student.m0.f0.s0.main``, ``train.teachers.m0.p1.f0.s0.main``: unique in a run, fit for a folder."""
        numbered = (("m", self.member), ("p", self.part), ("f", self.fold), ("s", self.seed))
        numbers = [f"{letter}{number}" for letter, number in numbered if number is not None]
        return ".".join(part for part in (self.kind, self.stage, *numbers, self.arm) if part)

    @property
    def arm_name(self) -> str:
        """What tables call the node's arm: ``student``, ``student.control``."""
        return arm_name(self.stage, self.arm or "main")


@dataclass(frozen=True)
class Taught:
    """What a distilled training reads its teacher for, from which its extra cost is counted.

    Args:
        networks: of each teacher that is a stage: the specs of its networks.
        inner_folds: of each of these stages its inner folds, 1 for none.
        outside: teachers from outside the run.
        cached: their answers are stored once; else they run in every step.
        out_of_fold: a labelled case is answered by the networks that did not see it.
        mirror: answers are means over flips.
    """

    networks: tuple[tuple[Mapping[str, Any], ...], ...]
    inner_folds: tuple[int, ...]
    outside: tuple[str, ...]
    cached: bool
    out_of_fold: bool
    mirror: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the places of teachers from outside, whose contents are told elsewhere."""
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "outside": len(self.outside)}


@dataclass(frozen=True)
class TrainJob:
    """All that a ``train`` node reads of the configuration.

    Args:
        model: the network.
        methods: the methods of this arm: all of them, or for the arms without a teacher those that read none.
        teacher: stage names and model folders; empty for an arm that has no teacher.
        labels_as_teacher: the methods see one-hot labels where they expect a teacher (arm ``same_loss``).
        hard_teacher: unlabelled cases carry the teacher's hard labels (arm ``pseudo``).
        cached: the teacher is read from a ``targets`` node, not run live.
        unlabelled: train on unlabelled cases too.
        labelled: use only so many labelled cases, or None for all.
        labelled_draw_seed: seed of the draw of these.
        peers: networks that learn beside the student.
        init: stage whose network the weights start from, or None.
        train: the stage's settings, with the node's seed.
        part: the part of the training cases that is left out, and how many there are; None where all are used.
        allow_leakage: teachers, and the stage of ``init``, that may have seen held-out patients.
        labels: the classes that the stage's label maps tell from background, as written; None for all.
        spoken: of a stage that need not have all classes of the run: what its teachers know, as written.
        taught: what the distilled arm learns from, for the arm ``compute`` that may train as long; else None.
    """

    model: ModelSpec
    methods: tuple[MethodSpec, ...]
    teacher: tuple[str, ...]
    labels_as_teacher: bool
    hard_teacher: bool
    cached: bool
    unlabelled: bool
    labelled: int | None
    labelled_draw_seed: int
    peers: int
    init: str | None
    train: TrainConfig
    part: tuple[int, int] | None = None
    allow_leakage: tuple[str, ...] = ()
    taught: Taught | None = None
    labels: tuple[str, ...] | None = None
    spoken: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what decides the trained weights, as plain data."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        # What came later than the first finished runs is told only where it is used: their keys stay.
        plain = {name: value for name, value in plain.items() if value or name not in _LATER}
        if self.labels is not None:
            plain["labels"] = list(self.labels)
        if self.taught is not None:
            plain["taught"] = self.taught.to_json()
        plain["model"] = self.model.spec
        plain["methods"] = [_method_json(method) for method in self.methods]
        # Which teachers and which start is told by the dependencies' keys: a stage may be renamed freely.
        plain["teacher"], plain["init"] = len(self.teacher), self.init is not None
        plain["train"] = self.train.model_dump(mode="json", exclude=_UNREAD)
        return plain


def _method_json(method: MethodSpec) -> dict[str, Any]:
    from medkd.methods import catalogue

    told = {"name": method.name, "as": method.label, "weight": list(method.span), "arguments": method.arguments}
    version = catalogue.load(method.name).version
    return {**told, "version": version} if version > 1 else told


def targets_json(config: RunConfig, stage: str) -> dict[str, Any]:
    """Return how the stored answers of a stage's teachers are made, where that is not as usual."""
    wanted, usual = config.stages[stage].targets, TargetsConfig()
    found = {name: value for name, value in wanted if value != getattr(usual, name) and name != "mode"}
    if config.out_of_fold(stage):
        found = {"out_of_fold": True, **found}
    if allowed := config.allowed(config.stages[stage].teacher):
        found["allow_leakage"] = list(allowed)
    return found


def targets_node(config: RunConfig, stage: str, fold: int | None) -> Node:
    """Return the node that stores the answers of a stage's teachers; stages that want the same share it."""
    told = targets_json(config, stage)
    told.pop("allow_leakage", None)  # the same for all stages of a run
    words = [name if value is True else f"k{value}" if name == "k" else str(value) for name, value in told.items()]
    return Node("targets", teacher_label(config.stages[stage].teacher), fold=fold, arm="-".join(words))


def answers_node(config: RunConfig, stage: str, fold: int | None) -> Node:
    """Return the node that keeps what a stage's teachers say about the fold's test cases."""
    wanted = config.stages[stage]
    return Node("answers", teacher_label(wanted.teacher), fold=fold, arm="mirror" if wanted.targets.mirror else "")


def _taught(config: RunConfig, name: str) -> Taught:
    from medkd.methods import catalogue

    stage = config.stages[name]
    inside = [config.stages[teacher] for teacher in stage.teacher if teacher in config.stages]
    return Taught(
        networks=tuple(tuple(model.spec for model in other.model) for other in inside),
        inner_folds=tuple(other.inner_folds or 1 for other in inside),
        outside=tuple(teacher for teacher in stage.teacher if teacher not in config.stages),
        cached=all(catalogue.cacheable(method.name, method.arguments) for method in stage.methods),
        out_of_fold=config.out_of_fold(name),
        mirror=stage.targets.mirror,
    )


def _spoken(config: RunConfig, name: str) -> tuple[str, ...]:
    """Return what decides the classes of a stage's network besides its labels: who its teachers are."""
    stage = config.stages[name]
    if stage.labels is None and not config.data.ontology:
        return ()
    inside = [config.stages.get(teacher) for teacher in stage.teacher]
    told = ["outside" if one is None else "all" if one.labels is None else "+".join(one.labels) for one in inside]
    return (*told, *(word for name in stage.teacher if name in config.stages for word in _spoken(config, name)))


def train_job(config: RunConfig, node: Node) -> TrainJob:
    """Return what the ``train`` node reads of the configuration."""
    from medkd.methods import catalogue

    stage = config.stages[node.stage]
    without = tuple(m for m in stage.methods if not catalogue.reads_teacher(m.name)) or (MethodSpec(name="supervised"),)
    distils = node.arm in ("main", "same_loss")
    methods = stage.methods if distils else without
    has_teacher = bool(stage.teacher) and node.arm in ("main", "pseudo")
    assert node.seed is not None
    assert node.member is not None
    return TrainJob(
        model=stage.model[node.member],
        methods=methods,
        teacher=stage.teacher if has_teacher else (),
        labels_as_teacher=node.arm == "same_loss",
        hard_teacher=node.arm == "pseudo",
        cached=has_teacher and (node.arm == "pseudo" or all(catalogue.cacheable(m.name, m.arguments) for m in methods)),
        unlabelled=stage.unlabelled and (has_teacher or not stage.teacher),  # an arm loses them with its teacher
        labelled=stage.labelled,
        labelled_draw_seed=node.seed if stage.labelled_draw == "per_seed" else config.data.seed,
        peers=stage.peers,
        init=stage.init,
        train=config.train_of(node.stage).model_copy(update={"seed": node.seed}),
        part=None if node.part is None or stage.inner_folds is None else (node.part, stage.inner_folds),
        allow_leakage=config.allowed((*(stage.teacher if has_teacher else ()), *((stage.init,) if stage.init else ()))),
        taught=_taught(config, node.stage) if node.arm == "compute" else None,
        labels=stage.labels,
        spoken=_spoken(config, node.stage),
    )
