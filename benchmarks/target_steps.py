"""Steps of a student: without a teacher, with stored targets, with live teachers. Called by ``targets.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from target_subjects import Run, encodings, name_of, phantom, table

from medkd.data.patches import Patches, Sampling
from medkd.data.store import Store
from medkd.data.transforms import Augment
from medkd.methods import catalogue
from medkd.methods.base import Weight
from medkd.networks.weights import load_network
from medkd.networks.zoo import build
from medkd.teachers.cache import TargetStore
from medkd.training.fit import Trainer
from medkd.training.settings import Settings

Step = Callable[[int], tuple[float, float]]
"""Number -> CPU seconds of its patches, and of its networks and losses."""


class Known:
    """Targets of teachers that know every class."""

    def __init__(self, store: TargetStore) -> None:
        self.read, self.trust, self.positions = store.read, store.trust, store.positions

    def known(self, case: str) -> None:
        return None


@dataclass(frozen=True)
class Bench:
    """What all arms have in common."""

    name: str
    store: Store
    answers: dict[str, Any]
    classes: int
    patch: tuple[int, ...]
    batch: int
    spacing_mm: tuple[float, ...]
    student: dict[str, Any]
    teachers: list[torch.nn.Module] = field(default_factory=list)
    mirror: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_run(cls, run: Run, cases: int) -> Bench:
        plan = run.plan
        return cls(
            run.name,
            run.store,
            {case: run.answer(case) for case in run.cases(cases)},
            run.classes,
            plan.patch,
            plan.batch,
            plan.spacing_mm,
            dict(run.card.network),
            [load_network(teacher)[0] for teacher in run.teachers],
            {"mirror_axes": plan.mirror_axes, "mirror_swap": plan.mirror_swap},
        )

    @classmethod
    def of_phantom(cls, folder: Path) -> Bench:
        answer, store = phantom(118, 96), Store(folder)
        label = answer.argmax(0)
        noise = np.random.default_rng(0).normal(size=(1, *label.shape))
        store.add("a", noise.astype(np.float32) + label[None] / 30, label)
        student = {"name": "UNet", "channels": [6, 12, 24, 32], "strides": [1, 2, 2]}
        return cls("phantom", store, {"a": answer}, 118, (48, 48, 48), 1, (1.5, 1.5, 1.5), student)

    def step(
        self, methods: Sequence[str], targets: Known | None, teachers: list[torch.nn.Module], augment: str, folder: Path
    ) -> Step:
        """Return what plays one step."""
        torch.manual_seed(0)
        trainer = Trainer(
            {"student": build(self.student, in_channels=1, classes=self.classes, patch=self.patch)},
            catalogue.combine([(name, name, {}, Weight(1, 1)) for name in methods]),
            teachers=teachers,
            settings=Settings(steps=10_000, device="cpu", lr=1e-3),
            image_shape=(1, *self.patch),
            folder=folder,
        )
        patches = Patches(
            self.store,
            Sampling(tuple(self.answers), (), self.patch, self.batch, self.spacing_mm),
            Augment(augment, self.patch, **self.mirror),
            targets,
        )

        def play(turn: int) -> tuple[float, float]:
            began = time.process_time()
            batch = patches[turn]
            middle = time.process_time()
            trainer._round(batch, last=True)  # a step without the bookkeeping around it
            trainer.step += 1
            return middle - began, time.process_time() - middle

        return play


def steps(run: Run | None, methods: Sequence[str], cases: int, rounds: int, augment: str, folder: Path) -> None:
    """Play one step of each arm in turn, ``rounds`` times, and compare each with the plain step beside it."""
    bench = Bench.of_phantom(folder / "prepared") if run is None else Bench.of_run(run, cases)
    given: dict[str, tuple[Known | None, list[torch.nn.Module]]] = {}
    for encoding in encodings(bench.classes):
        kept = TargetStore(folder / name_of(encoding), encoding=encoding)
        for case, answer in bench.answers.items():
            kept.write(case, answer)
        given[f"stored, {name_of(encoding)}"] = Known(TargetStore(folder / name_of(encoding))), []
    if bench.teachers:
        given["live, 1 teacher"] = None, bench.teachers[:1]
        given["live, 3 teachers"] = None, (bench.teachers * 3)[:3]
    arms = {("", "no distillation"): bench.step(["supervised"], None, [], augment, folder)}
    for method in methods:
        for arm, (targets, teachers) in given.items():
            arms[method, arm] = bench.step(["supervised", method], targets, teachers, augment, folder)
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm, play in arms.items():
            found = play(turn)
            if turn:  # the first opens files and warms caches
                spent[arm].append(found)
    plain = [sum(pair) for pair in spent["", "no distillation"]]
    rows: list[list[object]] = []
    for (method, arm), pairs in spent.items():
        times = median(sum(pair) / base for pair, base in zip(pairs, plain, strict=True))
        data, rest = (1000 * median(column) for column in zip(*pairs, strict=True))
        rows.append([bench.name, method, arm, 1000 / (data + rest), times, data, rest])
    table(("data", "method", "arm", "steps/s", "times the plain step", "patches, ms", "networks and losses, ms"), rows)
