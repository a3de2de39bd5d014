"""What can be known in seconds before a run: whether everything fits, how long a step is, how big targets are."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medkd.data.dataset import Dataset, load_dataset
from medkd.data.fingerprint import fingerprint
from medkd.data.plan import Plan, make_plan
from medkd.data.splits import Split, make_folds
from medkd.errors import UserError
from medkd.methods import catalogue
from medkd.methods.base import Sum, Weight
from medkd.networks.taps import Tapped
from medkd.networks.zoo import build
from medkd.pipeline.config import RunConfig
from medkd.pipeline.rules import check_splits, why_live
from medkd.pipeline.specs import Stage
from medkd.pipeline.steps import room
from medkd.pipeline.steps.panel import outside_of
from medkd.pipeline.steps.share import Share, share_of
from medkd.pipeline.steps.teachers import channels_of, live_networks
from medkd.teachers.labels import Ontology
from medkd.training.fit import Trainer
from medkd.training.settings import Settings
from medkd.types import IGNORE, Batch

SAMPLE = 12
"""Cases that are read for a provisional plan; a run reads all of them."""


def dry_run(config: RunConfig) -> list[str]:
    """Return one sentence for each thing found out: plan, split, and per stage the taps and the time of a step.

    Raises:
        UserError: the first stage that cannot be trained, and why.
    """
    root = None if config.data.root is None else Path(config.data.root)
    dataset = load_dataset(config.data.source, root)
    check_splits(config, dataset)
    split = make_folds(dataset, folds=config.data.folds, seed=config.data.seed, validation=config.data.validation)[
        config.data.run_folds[0]
    ]
    plan, voxels = provisional_plan(config, dataset)
    told = [
        f"plan: spacing {plan.spacing_mm} mm, patch {plan.patch}, batch {plan.batch} (from {SAMPLE} cases at most)",
        (
            f"fold {config.data.run_folds[0]}: {len(split.train)} training, {len(split.validation)} validation, "
            f"{len(split.test)} test and {len(split.unlabelled)} unlabelled cases"
        ),
    ]
    for name, stage in config.stages.items():
        told += [f"{name}: {line}" for line in _stage(config, name, stage, dataset, split, plan, voxels)]
    return told


def provisional_plan(config: RunConfig, dataset: Dataset) -> tuple[Plan, float]:
    """Return the plan that a few of the cases suggest, and the voxels of a median case once it is prepared.

    Raises:
        UserError: one of these cases is broken.
    """
    labelled = dataset.labelled[:: max(1, len(dataset.labelled) // SAMPLE)][:SAMPLE]
    few = replace(dataset, cases=labelled)
    facts = fingerprint(few)
    for problem in facts.problems:
        if problem.severity == "broken" and problem.case is not None:  # a class may be in the cases that are not read
            raise UserError(problem.text)
    plan = make_plan(facts, few, config.plan or None)
    millimetres = [n * s for n, s in zip(facts.median_shape, facts.median_spacing_mm, strict=True)]
    return plan, math.prod(mm / s for mm, s in zip(millimetres, plan.spacing_mm, strict=True))


def _stage(
    config: RunConfig, name: str, stage: Stage, dataset: Dataset, split: Split, plan: Plan, voxels: float
) -> Iterator[str]:
    train = config.train_of(name)
    members, notes = outside_of(config, name, dataset, {config.data.run_folds[0]: split})
    yield from (f"leakage {note}" for note in notes)
    ontology = Ontology.of(dataset.labels, config.data.ontology)
    share = share_of(config, name, dataset, ontology)
    if not share.whole or share.known is not None:
        yield share.sentence
    whole, dataset = dataset, replace(dataset, labels=dict(share.labels))
    size: dict[str, Any] = {
        "in_channels": len(dataset.channels),
        "classes": len(share.labels),
        "patch": plan.patch,
        "strides": plan.strides[1:],
        "kernels": plan.kernels,
    }
    batch = plan.batch if train.batch == "auto" else train.batch
    for spec in stage.model:
        learners = {"student": build(spec.spec, **size)}
        learners |= {f"peer{i + 1}": build(spec.spec, **size) for i in range(stage.peers)}
        student = learners["student"]
        method = catalogue.combine((m.label, m.name, m.arguments, Weight(*m.span)) for m in stage.methods)
        check_method(method, batch)
        cached = all(catalogue.cacheable(m.name, m.arguments) for m in stage.methods)
        live = [] if cached else list(_teachers(config, stage, size, share, whole, ontology))
        here = channels_of(members, ontology, share.here) or [tuple(range(1, len(share.labels)))] * len(members)
        live += [] if cached else zip(live_networks(members, None), here, strict=True)
        stored = bool(stage.teacher) and cached
        seconds = dry_step(learners, method, live, dataset, plan, batch, train.accumulate, stored)
        taps = Tapped(student, torch.zeros(1, len(dataset.channels), *plan.patch)).names
        parameters = sum(p.numel() for p in student.parameters())
        yield (
            f"{spec.name}, {parameters:,} parameters, taps {', '.join(taps)}; a step of {batch} patches takes "
            f"{seconds:.2f} s here, {train.steps} steps about {seconds * train.steps / 60:.1f} min"
        )
    if stage.teacher and cached:
        cases = (*split.train, *split.unlabelled)
        shapes, classes = [(round(voxels ** (1 / 3)),) * 3] * len(cases), len(ontology.labels)
        encoding, size_bytes = room.choose(stage.targets, shapes, classes, room.free_bytes(Path("runs")))
        kept = f" of {encoding.k} classes" if encoding.name == "topk" else ""
        yield (
            f"targets of {len(cases)} cases are stored once, for all seeds: about {room.told(size_bytes)} as "
            f"{encoding.name}{kept}"
        )
    elif stage.teacher:
        yield str(why_live(stage))


def check_method(method: Sum, batch: int) -> None:
    """Refuse a method on batches too small for it to mean anything."""
    for name, one in method.methods.items():
        least = int(getattr(one, "min_batch", 1))
        if batch < least:
            raise UserError(f"method {name} compares samples of a batch and needs {least} of them; set train.batch")


def _teachers(
    config: RunConfig, stage: Stage, size: dict[str, Any], share: Share, dataset: Dataset, ontology: Ontology
) -> Iterator[tuple[torch.nn.Module, tuple[int, ...]]]:
    """Yield the networks of teachers that are stages, and the student's class of each channel from 1 on."""
    for name in stage.teacher:
        if name in config.stages:
            labels = share_of(config, name, dataset, ontology).labels
            channels = tuple(share.labels[label] for label in labels)[1:]
            for member, _ in config.stages[name].networks:
                yield build(config.stages[name].model[member].spec, **{**size, "classes": len(labels)}), channels


def dry_step(
    learners: dict[str, torch.nn.Module],
    method: Sum,
    teachers: Sequence[tuple[torch.nn.Module, tuple[int, ...]]],
    dataset: Dataset,
    plan: Plan,
    batch: int,
    accumulate: int,
    targets: bool,
) -> float:
    """Play two steps on noise and return the seconds of the second."""
    shape, classes = (batch, len(dataset.channels), *plan.patch), len(dataset.labels)
    channels = [mine for _, mine in teachers]
    label = torch.randint(0, classes, (batch, *plan.patch))
    label[0, :1] = IGNORE
    noise = Batch(
        image=torch.randn(shape),
        label=label,
        case=tuple(f"noise{i}" for i in range(batch)),
        spacing_mm=plan.spacing_mm,
        target=torch.softmax(torch.randn(batch, classes, *plan.patch), 1) if targets else None,
        trust=torch.ones(batch, 1, *plan.patch),
    )
    clock: list[float] = []

    def batches(start: int, stop: int) -> Iterator[Batch]:
        for _ in range(start, stop):
            clock.append(time.perf_counter())
            yield noise

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(steps=2, validate_every=2, accumulate=accumulate, device="cpu", lr=1e-6)
        trainer = Trainer(
            learners,
            method,
            teachers=[network for network, _ in teachers],
            channels=None if all(mine == tuple(range(1, classes)) for mine in channels) else channels,
            settings=settings,
            image_shape=shape[1:],
            folder=Path(folder),
        )
        trainer.fit(batches, lambda _: {"dice": 0.0})
    return time.perf_counter() - clock[-accumulate]
