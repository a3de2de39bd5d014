"""Train one network: a teacher, a student, or a student's control arm."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medkd.data.patches import HardTargets, LabelTargets, Patches, Sampling, Targets, stream
from medkd.data.splits import Split, inner_parts, labelled_subset
from medkd.data.strides import thick_axis
from medkd.data.transforms import Augment
from medkd.errors import UserError
from medkd.methods import catalogue
from medkd.methods.base import Weight
from medkd.networks.weights import ModelCard, load_network, save_network
from medkd.networks.zoo import build, complete
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node, TrainJob, train_job
from medkd.pipeline.steps.compute import same_compute
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.share import PartTargets, StageGround
from medkd.pipeline.steps.targets import repair
from medkd.pipeline.steps.teachers import (
    NO_LEAK,
    Member,
    admit,
    channels_of,
    known_to,
    live_networks,
    open_members,
    start_of,
    stored_members,
    targets_folder,
)
from medkd.pipeline.steps.validation import Agreement, Validation
from medkd.pipeline.track import trackers_of
from medkd.training.fit import Fit, Trainer
from medkd.training.settings import Settings
from medkd.types import Batch


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write the model folder (best by validation Dice), ``last/``, ``log.jsonl`` and ``result.json``."""
    whole, job = Ground.of(inputs, context), train_job(context.config, node)
    ground = StageGround.at(inputs, whole, node.stage)
    job = same_compute(job, node, ground, inputs, out)
    split = ground.split(node.fold)
    ground.check_classes(node.fold or 0)
    labelled, unlabelled = training_cases(job, split, ground)
    if job.cached:
        teachers = stored_members(targets_folder(inputs))
    else:
        trusted = context.config.stages[node.stage].trust_pickle
        teachers = open_members(job.teacher, inputs, device="cpu", trust_pickle=trusted)
    before = [*teachers, *([start_of(job.init, inputs)[0]] if job.init else [])]  # what these saw is in the weights too
    leaks = admit(before, split, ground.dataset, ground.ontology, job.allow_leakage)
    seed_everything(job.train.seed)
    spec, learners = networks(job, inputs, ground)
    method = catalogue.combine((m.label, m.name, m.arguments, Weight(*m.span)) for m in job.methods)
    live = [] if job.cached else live_networks(teachers, ground.plan)
    batch = ground.plan.batch if job.train.batch == "auto" else job.train.batch
    settings = settings_of(job, context)
    trainer = Trainer(
        learners,
        method,
        teachers=live,
        settings=settings,
        image_shape=(len(ground.dataset.channels), *ground.plan.patch),
        folder=out,
        channels=channels_of(teachers, ground.ontology, ground.here) if live else None,
    )
    told = targets(node, job, inputs, whole, ground, (*labelled, *unlabelled))
    drawn = sampling(job, ground, labelled, unlabelled, batch)
    patches = Patches(
        ground.store,
        replace(drawn, live_known=known_to(teachers, ground.ontology, ground.here) if live else None),
        augment(job, ground),
        told,
    )

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return stream(patches, start, stop, workers=job.train.workers, pin=trainer.fabric.device.type == "cuda")

    fit = trainer.fit(
        batches,
        Validation(ground, split.validation, job.train.validation_cases)
        if ground.taught
        else Agreement(ground, unlabelled, job.train.validation_cases, told),
        lambda event: context.progress({"node": node.name, **event, **_dice(event)}),
        trackers_of(node, out, context, {**job.to_json(), "data_hash": ground.facts["data_hash"]}),
    )
    card = ModelCard(
        network=spec,
        in_channels=len(ground.dataset.channels),
        classes=ground.classes,
        labels=dict(ground.dataset.labels),
        plan=ground.plan.to_json(),
        channels=ground.dataset.channels,
        trained_on=tuple(sorted({*labelled, *unlabelled}.union(*(one.card.trained_on or () for one in before)))),
        patients=tuple(
            sorted({*ground.patients((*labelled, *unlabelled))}.union(*(one.card.patients for one in before)))
        ),
        provenance=provenance(node, ground, labelled, unlabelled, teachers, before, leaks),
    )
    keep(trainer, fit, card, out)


def training_cases(job: TrainJob, split: Split, ground: Ground) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labelled and the unlabelled cases that a training reads.

    Raises:
        UserError: too few patients for the parts, or a class that the cases kept by a part lack.
    """
    labelled, unlabelled = split.train, split.unlabelled
    if not ground.taught:
        labelled, unlabelled = (), (*labelled, *unlabelled)
    if job.labelled is not None:
        labelled, rest = labelled_subset(split, ground.dataset, job.labelled, job.labelled_draw_seed)
        unlabelled = (*rest, *unlabelled)
    if job.part is not None:
        part, parts = job.part
        seed = ground.context.config.data.seed
        out = set(inner_parts(labelled, unlabelled, ground.dataset, parts=parts, seed=seed)[part])
        labelled, unlabelled = (tuple(case for case in kind if case not in out) for kind in (labelled, unlabelled))
        if ground.taught:
            ground.check_kept(labelled, part)
    return labelled, unlabelled if job.unlabelled else ()


def _dice(event: Mapping[str, Any]) -> dict[str, float]:
    return {"dice": event["scores"]["dice"]} if "scores" in event else {}


def keep(trainer: Trainer, fit: Fit, card: ModelCard, out: Path) -> None:
    """Write best and last weights and the result; the optimiser's state has done its work."""
    network = trainer.kept
    card = replace(card, network=getattr(network, "spec", card.network))  # a method may ship more than the student
    save_network(out / "last", network, card)
    network.load_state_dict(fit.state)
    save_network(out, network, card)
    result = {"dice": fit.best, "step": fit.best_step, "last": fit.last, "seconds": fit.seconds, "steps": trainer.step}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    (out / "last.ckpt").unlink(missing_ok=True)


def seed_everything(seed: int) -> None:
    """Seed every generator that networks and transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # libraries below us still draw from the global generator
    torch.manual_seed(seed)


def networks(job: TrainJob, inputs: Mapping[str, Path], ground: Ground) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Return the complete spec and the learners: the student, with its starting weights, and its peers."""
    plan = ground.plan
    size: dict[str, Any] = {"in_channels": len(ground.dataset.channels), "classes": ground.classes, "patch": plan.patch}
    wanted = dict(job.model.spec)
    if not job.train.deep_supervision and wanted["name"] == "DynUNet":
        wanted.setdefault("deep_supervision", False)
    spec = complete(wanted, **size, strides=plan.strides[1:], kernels=plan.kernels)
    learners = {name: build(spec, **size) for name in ("student", *(f"peer{i + 1}" for i in range(job.peers)))}
    if job.init is not None:
        start, _ = load_network(start_of(job.init, inputs)[1])
        try:
            learners["student"].load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise UserError(f"the weights of stage {job.init} do not fit this model; use the same `model`") from error
    return spec, learners


def settings_of(job: TrainJob, context: Context) -> Settings:
    """Return the trainer's settings."""
    train = job.train
    every = max(25, train.steps // 10) if train.validate_every == "auto" else train.validate_every
    return Settings(
        steps=train.steps,
        lr=train.lr,
        optimiser=train.optimiser,
        weight_decay=train.weight_decay,
        schedule=train.schedule,
        warmup=train.warmup,
        clip_norm=train.clip_norm,
        precision=train.precision,
        ema=train.ema,
        validate_every=min(every, train.steps),
        accumulate=train.accumulate,
        seed=train.seed,
        log_every=max(1, min(20, train.steps // 20)),
        device=context.device,
    )


def sampling(
    job: TrainJob, ground: Ground, labelled: tuple[str, ...], unlabelled: tuple[str, ...], batch: int
) -> Sampling:
    """Return what is drawn."""
    return Sampling(
        labelled=labelled,
        unlabelled=unlabelled,
        patch=ground.plan.patch,
        batch=batch,
        spacing_mm=ground.plan.spacing_mm,
        foreground=job.train.foreground,
        pseudo=job.hard_teacher,
        # A method that reads no teacher finds its own answers about them, as a live teacher does.
        live_teacher=not job.cached and bool(job.teacher or job.unlabelled),
        seed=job.train.seed,
        known=ground.known,
    )


def augment(job: TrainJob, ground: Ground) -> Augment:
    """Return the augmentation that suits the plan."""
    plan = ground.plan
    return Augment(
        job.train.augment,
        plan.patch,
        mirror_axes=plan.mirror_axes,
        mirror_swap=plan.mirror_swap,
        flat_axis=thick_axis(plan.spacing_mm),
    )


def targets(
    node: Node, job: TrainJob, inputs: Mapping[str, Path], whole: Ground, ground: Ground, cases: tuple[str, ...]
) -> Targets | None:
    """Return the stored answers of the teachers, or what stands in their place in a control arm.

    Stored answers about ``cases`` that were damaged since are made again. They speak of the classes of the ``whole``
    run, and are read as the stage numbers its own.
    """
    if job.labels_as_teacher:
        return LabelTargets(ground.store, ground.classes, ground.known)
    if not job.cached:
        return None
    store: Targets = repair(node.name, inputs, cases, whole)
    if isinstance(ground, StageGround) and not ground.share.whole:
        store = PartTargets(store, ground.share)
    return HardTargets(store) if job.hard_teacher else store


def provenance(
    node: Node,
    ground: Ground,
    labelled: tuple[str, ...],
    unlabelled: tuple[str, ...],
    teachers: Iterable[Member],
    before: Iterable[Member],
    leaks: Iterable[str] = (),
) -> dict[str, Any]:
    """Return where the weights come from: data, licences, teachers, what was let leak, versions."""
    licences = {ground.dataset.name: ground.dataset.licence or "not stated"}
    for member in before:
        licences |= member.licences
    return {
        "node": node.name,
        "dataset": ground.dataset.name,
        "data_hash": ground.facts["data_hash"],
        "labelled": list(labelled),
        "unlabelled": list(unlabelled),
        "teachers": [member.name for member in teachers],
        "licences": licences,
        "leakage": "; ".join(leaks) or NO_LEAK,
        "versions": {name: version(name) for name in ("torch", "monai")},
    }
