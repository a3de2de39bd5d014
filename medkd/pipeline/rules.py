"""What a schema cannot say: stages that exist, arms that make sense, methods that fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.errors import UserError, nearest
from medkd.evaluation.metrics import higher_is_better
from medkd.pipeline.config import RunConfig
from medkd.pipeline.specs import Stage, TargetsConfig
from medkd.pipeline.yamlfile import KeyPath

if TYPE_CHECKING:
    from medkd.data.dataset import Dataset

Mistake = tuple[KeyPath, str]
"""Where, and one sentence without the place."""

ARMS = {"steps": "control", "compute": "compute", "same_loss": "same_loss", "pseudo": "pseudo"}
"""``control`` entry of a stage -> arm of its nodes."""


def arm_name(stage: str, arm: str) -> str:
    """Return what tables call an arm: ``student``, ``student.control``."""
    return stage if arm == "main" else f"{stage}.{arm}"


def arms_of(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Return every arm of a run, by its name: ``{"student.control": ("student", "control")}``."""
    return {
        arm_name(name, arm): (name, arm)
        for name, stage in config.stages.items()
        for arm in ("main", *(ARMS[entry] for entry in stage.control))
    }


def mistakes(config: RunConfig) -> list[Mistake]:
    """Return what is wrong between keys that are right by themselves; needs no torch."""
    found: list[Mistake] = []
    for i, fold in enumerate(config.data.run_folds):
        if fold >= config.data.folds:
            found.append((("data", "run_folds", i), f"fold {fold} of {config.data.folds}; folds count from 0"))
    for name, stage in config.stages.items():
        found += [(("stages", name, *path), message) for path, message in _stage(config, name, stage)]
    found += _cycle(config)
    found += _export(config)
    found += _allowed(config)
    for i, metric in enumerate(config.evaluate.metrics):
        try:
            higher_is_better(metric)
        except UserError as error:
            found.append((("evaluate", "metrics", i), str(error)))
    arms = arms_of(config)
    for i, arm in enumerate(config.evaluate.compare or ()):
        if arm not in arms:
            message = f"no arm is called {arm!r}{nearest(arm, arms)}; this run has {', '.join(arms)}"
            found.append((("evaluate", "compare", i), message))
    if config.evaluate.margin is not None and "dice" not in config.evaluate.metrics:
        found.append((("evaluate", "margin"), "is a loss of Dice, which is not measured; add dice to the metrics"))
    baseline = config.evaluate.baseline
    if baseline is not None and baseline not in arms:
        message = f"no arm is called {baseline!r}{nearest(baseline, arms)}; this run has {', '.join(arms)}"
        found.append((("evaluate", "baseline"), message))
    elif baseline is not None and not any(stage.teacher for name, stage in config.stages.items() if name != baseline):
        found.append((("evaluate", "baseline"), "no stage has a teacher, so there is no method to compare with it"))
    return found


def _stage(config: RunConfig, name: str, stage: Stage) -> Iterator[Mistake]:
    others = [other for other in config.stages if other != name]
    for teacher in stage.teacher:
        if teacher == name:
            yield ("teacher",), "a stage cannot be its own teacher; for born-again training write a second stage"
        elif teacher not in others and re.fullmatch(r"[\w-]+", teacher) and not Path(teacher).exists():
            # What can only be a path is looked for when the run begins: its model may not be there yet.
            yield ("teacher",), f"{teacher!r} is neither a stage nor a model folder{nearest(teacher, others)}"
    if stage.init is not None and stage.init not in others:
        yield ("init",), f"no other stage is called {stage.init!r}{nearest(stage.init, others)}"
    yield from _folds(config, stage)
    if stage.control and not stage.teacher:
        yield ("control",), "a control arm compares with a teacher, and this stage has none; drop `control`"
    if len(set(stage.control)) < len(stage.control):
        yield ("control",), "an arm is named twice; keep one"
    seeds = config.seeds_of(name)
    if len(set(seeds)) < len(seeds):
        yield ("seeds",), "a seed is named twice; keep one"
    if stage.labels == ():
        if not stage.teacher:
            yield ("labels",), "a stage that knows no label needs a teacher; add `teacher`, or name the classes"
        elif not stage.unlabelled:
            yield ("unlabelled",), "a stage that knows no label has unlabelled cases only; drop `unlabelled: false`"
        if arms := [arm for arm in stage.control if arm != "pseudo"]:
            yield ("control",), f"the arm {arms[0]} learns from labels, and this stage knows none; drop it"
    if stage.labels is not None and stage.labelled is not None and not stage.labels:
        yield ("labelled",), "this stage knows no label, so there is no case to keep the labels of; drop `labelled`"
    labels = [method.label for method in stage.methods]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            yield ("methods", i), f"{label!r} is there twice; give one of them another name with `as:`"


def _folds(config: RunConfig, stage: Stage) -> Iterator[Mistake]:
    """What inner folds and stored answers ask of each other."""
    if stage.targets != TargetsConfig() and not stage.teacher:
        yield ("targets",), "a teacher's answers are stored, and this stage has none; add `teacher`, or drop `targets`"
    if stage.targets.k is not None and stage.targets.encoding != "topk":
        yield ("targets", "k"), "is the number of classes that `encoding: topk` keeps; drop it, or set that encoding"
    inside = [name for name in stage.teacher if name in config.stages]
    if (
        stage.targets.mode == "out_of_fold"
        and inside == list(stage.teacher)
        and not any(config.stages[name].inner_folds for name in inside)
    ):
        message = f"out_of_fold needs teachers that left cases out; give stage {', '.join(inside)} `inner_folds: 5`"
        yield ("targets",), message
    if stage.inner_folds and inside:
        # What a part's teacher has seen, the part has seen: no case would be left out.
        yield (
            ("inner_folds",),
            f"its teacher {inside[0]} learns from the cases that a part leaves out; drop one of them",
        )
    start = config.stages.get(stage.init or "")
    if start is not None and start.inner_folds not in (None, stage.inner_folds):
        yield ("init",), f"stage {stage.init} has inner folds, so it has no one network to start from; drop `init`"
    if start is not None and stage.inner_folds and start.inner_folds != stage.inner_folds:
        yield ("init",), f"stage {stage.init} learns from the cases that a part leaves out; give it these inner_folds"


def _allowed(config: RunConfig) -> Iterator[Mistake]:
    known = sorted({name for stage in config.stages.values() for name in (*stage.teacher, stage.init) if name})
    for i, name in enumerate(config.allow_leakage):
        if name not in known:
            message = (
                f"no stage has a teacher {name!r}{nearest(name, known)}; the run's are {', '.join(known) or 'none'}"
            )
            yield ("allow_leakage", i), message


def _export(config: RunConfig) -> Iterator[Mistake]:
    from medkd.pipeline.graph import exported_stage

    stage = exported_stage(config)
    if config.export and len(config.stages[stage].networks) > 1:
        message = f"stage {stage} has several models and cannot be exported as one; distil it, or drop `export`"
        yield ("export",), message


def _cycle(config: RunConfig) -> list[Mistake]:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> list[Mistake]:
        if name in above:
            circle = " <- ".join((*above[above.index(name) :], name))
            return [(("stages", name), f"stages wait for each other in a circle: {circle}; remove one of the teachers")]
        if name in done or name not in config.stages:
            return []
        stage = config.stages[name]
        before = (*stage.teacher, *((stage.init,) if stage.init else ()))
        found = [mistake for other in before if other != name for mistake in visit(other, (*above, name))]
        done.add(name)
        return found

    return [mistake for name in config.stages for mistake in visit(name, ())][:1]


def method_mistakes(config: RunConfig) -> list[Mistake]:
    """Construct every method and return what is wrong with methods and arms; imports torch."""
    from medkd.methods import catalogue

    found: list[Mistake] = []
    for name, stage in config.stages.items():
        here: KeyPath = ("stages", name)
        built = True
        for i, method in enumerate(stage.methods):
            try:
                catalogue.make(method.name, method.arguments)
            except UserError as error:
                built = False
                key = next((key for key in method.arguments if f"argument {key!r}" in str(error)), None)
                found.append(((*here, "methods", i, *((key,) if key else ())), str(error)))
        if not built:
            continue
        readers = [method.name for method in stage.methods if catalogue.reads_teacher(method.name)]
        if readers and not stage.teacher:
            message = f"{', '.join(readers)} needs a teacher; add `teacher:` to the stage"
            found.append(((*here, "methods"), message))
        if stage.teacher and not readers:
            message = "no method of this stage reads the teacher; add one, kd say, or drop `teacher`"
            found.append(((*here, "teacher"), message))
        if stage.unlabelled and not (stage.teacher or any(catalogue.reads_nothing(m.name) for m in stage.methods)):
            speakers = "only a teacher can speak about unlabelled cases, or a method that needs no labels"
            message = f"{speakers}; add `teacher` or mean_teacher, say, or drop `unlabelled`"
            found.append(((*here, "unlabelled"), message))
        if "same_loss" in stage.control and not _all_cacheable(stage):
            message = "same_loss feeds labels in place of a teacher's logits, and a method here reads more; drop it"
            found.append(((*here, "control"), message))
        if stage.teacher and stage.targets != TargetsConfig() and "pseudo" not in stage.control:
            found += [((*here, "targets"), live) for live in [why_live(stage)] if live]
    return found


def why_live(stage: Stage) -> str | None:
    """Return why a stage's teacher has to run in every step, or None where stored answers do."""
    from medkd.methods import catalogue

    for method in stage.methods:
        if not catalogue.cacheable(method.name, method.arguments):
            made = catalogue.make(method.name, method.arguments)
            reads = f"reads the teacher's features {', '.join(made.teacher_taps())}"
            if made.needs_live_teacher:
                reads = "asks the teacher about other images"
            return f"{method.name} {reads}, so the teacher runs live in every step and nothing is stored"
    return None


def _all_cacheable(stage: Stage) -> bool:
    from medkd.methods import catalogue

    return all(catalogue.cacheable(method.name, method.arguments) for method in stage.methods)


def plan_mistakes(config: RunConfig) -> list[Mistake]:
    """Read the values of the plan that are set by hand; imports numpy."""
    from medkd.data.plan import Plan
    from medkd.data.plan_values import parse

    known = sorted(name for name in Plan.__dataclass_fields__ if name != "notes")
    found: list[Mistake] = []
    for key, value in config.plan.items():
        if key not in known:
            found.append((("plan", key), f"unknown key{nearest(key, known)}; valid: {', '.join(known)}"))
        elif value is not None and value != "auto":
            try:
                parse(key, value, None)
            except UserError as error:
                found.append((("plan", key), str(error).removeprefix(f"plan.{key} ")))
    return found


def network_mistakes(config: RunConfig) -> list[Mistake]:
    """Look up every network and its arguments; imports MONAI, builds nothing."""
    from medkd.networks import zoo

    found: list[Mistake] = []
    for name, stage in config.stages.items():
        for i, model in enumerate(stage.model):
            try:
                zoo.complete(model.spec, in_channels=1, classes=2, patch=(64, 64, 64))
            except UserError as error:
                key = next((key for key in model.arguments if f"argument {key!r}" in str(error)), None)
                found.append((("stages", name, "model", i, *((key,) if key else ())), str(error)))
    return found


def check_splits(config: RunConfig, dataset: Dataset) -> None:
    """Split the cases as the run will, to find out before it begins that there are too few.

    Raises:
        UserError: the folds need more patients, or a stage wants more labels than a fold's training cases have.
    """
    from medkd.data.splits import inner_parts, labelled_subset, make_folds
    from medkd.teachers.labels import Ontology

    data = config.data
    ontology = Ontology.of(dataset.labels, data.ontology)
    for name, stage in config.stages.items():
        if stage.labels is not None:
            own = ontology.part(stage.labels, f"stages.{name}.labels")
            if strange := next((word for word in own if word not in dataset.labels), None):
                raise UserError(
                    f"stages.{name}.labels names {strange}, which only the ontology has: no label map of the dataset "
                    f"knows it; leave it to a teacher"
                )
    folds = make_folds(dataset, folds=data.folds, seed=data.seed, validation=data.validation)
    for name, stage in config.stages.items():
        for fold in data.run_folds:
            have = len(folds[fold].train)
            if stage.labelled is not None and stage.labelled > have:
                wants = f"stages.{name}.labelled is {stage.labelled}"
                raise UserError(f"{wants} but fold {fold} has {have} training cases; lower it")
            if stage.inner_folds is not None:
                labelled = labelled_subset(folds[fold], dataset, stage.labelled or have, data.seed)[0]
                try:
                    inner_parts(labelled, (), dataset, parts=stage.inner_folds, seed=data.seed)
                except UserError as error:
                    raise UserError(f"stages.{name}.{error}") from None
