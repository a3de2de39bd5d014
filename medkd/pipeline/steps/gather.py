"""The finished nodes of a run, read: arms, comparisons, curves, costs, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from medkd.evaluation.cases import Row, read_rows
from medkd.evaluation.pairs import spread
from medkd.evaluation.stats import Paired, paired
from medkd.networks.weights import read_card
from medkd.pipeline.config import teacher_label
from medkd.pipeline.context import Context
from medkd.pipeline.folder import read_manifest
from medkd.pipeline.graph import exported_stage
from medkd.pipeline.nodes import Node
from medkd.pipeline.rules import ARMS, arm_name, arms_of
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.targets import fusion_line
from medkd.pipeline.steps.teachers import CARDS, leakage_line, stored_members
from medkd.report.study import Study, study_of
from medkd.report.summary import Arm, CaseCost, Comparison, Curve, Parity, Provenance

AGAINST = {
    "control": "Distillation",
    "compute": "Distillation (against plain training that computes as much)",
    "same_loss": "The teacher (against the same loss fed with labels)",
    "pseudo": "Soft targets (against the teacher's hard labels)",
}
"""Arm -> what the student has and the arm has not: the subject of the sentence."""
TOLD = {
    "control": "same network, labels only",
    "compute": "labels only, as much compute as distillation took",
    "same_loss": "same loss, labels instead of a teacher",
    "pseudo": "the teacher's hard labels",
}
SHORT = {"control": "labels only", "compute": "labels only", "pseudo": "hard labels"}
COSTS = ("parameters", "macs", "latency_s", "memory_mb", "weights_bytes")


@dataclass(frozen=True)
class Gathered:
    """The finished nodes of a run, read.

    Args:
        inputs: node name -> folder.
        context: the run.
    """

    inputs: Mapping[str, Path]
    context: Context

    @cached_property
    def ground(self) -> Ground:
        """The data."""
        return Ground.of(self.inputs, self.context)

    @property
    def student(self) -> str:
        """The stage that the report is about."""
        return exported_stage(self.context.config)

    @property
    def shown(self) -> frozenset[str]:
        """Names of the arms that the report is about."""
        config = self.context.config
        together = (self.teacher_of(name) for name, stage in config.stages.items() if stage.teacher)
        mine = frozenset(config.evaluate.compare or arms_of(config))
        return mine | {name for name in together if name is not None and name not in config.stages}

    def teacher_of(self, stage: str) -> str | None:
        """Return the arm that a stage learns from: a stage, or its teachers together; None where it is not measured."""
        teacher = self.context.config.stages[stage].teacher
        if len(teacher) == 1 and teacher[0] in self.context.config.stages:
            return teacher[0]
        label = teacher_label(teacher) if teacher else ""
        return label if any(row.arm == label for row in self.rows) else None

    def taught_by(self, stage: str) -> list[Row]:
        """Return the rows of a stage's teacher, of the networks that taught, for every seed of the stage."""
        teacher = self.teacher_of(stage)
        if teacher is None:
            return []
        return self.teaching(teacher, self.context.config.seeds_of(stage))

    def teaching(self, teacher: str, seeds: tuple[int, ...]) -> list[Row]:
        """Return the rows of a teacher's first seed, which all students learn from, once for each of ``seeds``."""
        config = self.context.config
        own = config.seeds_of(teacher)[0] if teacher in config.stages else None
        return spread(self.rows_of(teacher, "main"), seeds, own)

    def nodes(self, kind: str) -> Iterator[tuple[str, Path]]:
        """Yield the finished nodes of one kind."""
        yield from ((name, folder) for name, folder in self.inputs.items() if name.startswith(f"{kind}."))

    @cached_property
    def rows(self) -> list[Row]:
        """Every measurement."""
        files = [folder / "cases.csv" for kind in ("answers", "evaluate") for _, folder in self.nodes(kind)]
        return [row for file in files if file.is_file() for row in read_rows(file)]

    def rows_of(self, stage: str, arm: str) -> list[Row]:
        """Return the measurements of one arm."""
        wanted = arm_name(stage, arm)
        return [row for row in self.rows if row.arm == wanted]

    def arms(self) -> Iterator[Arm]:
        """Yield the arms: teachers, students, controls."""
        config = self.context.config
        student = self.student
        teachers = set(config.stages[student].teacher)
        for name, stage in config.stages.items():
            together = self.teacher_of(name) if stage.teacher else None
            if together is not None and together not in config.stages:
                role = "teacher" if name == student else "other"
                words = ", ".join(word if word in config.stages else Path(word).name for word in stage.teacher)
                yield Arm(together, role, detail=f"what {name} learns from: {words}", teaching_seed=0)
        for name, stage in config.stages.items():
            cost: dict[str, Any] = json.loads((self.inputs[Node("cost", name).name] / "cost.json").read_text())
            cost = {key: cost[key] for key in COSTS}
            names = [model.name for model in stage.model]
            detail = f"mean of {len(names)} networks: {', '.join(names)}" if len(names) > 1 else names[0]
            role = "student" if name == student else "teacher" if name in teachers else "other"
            role = "control" if name == config.evaluate.baseline else role
            teacher = (self.teacher_of(name) or "") if stage.teacher else ""
            methods = tuple(method.label for method in stage.methods)
            taught: dict[str, Any] = {"teacher": teacher, "teaching_seed": config.seeds_of(name)[0]}
            yield Arm(name, role, name, detail, **cost, methods=methods, **taught)
            for entry in stage.control:
                arm = ARMS[entry]
                role = arm if name == student else "other"
                short = (SHORT[arm],) if arm in SHORT else methods
                yield Arm(
                    arm_name(name, arm), role, arm_name(name, arm), TOLD[arm], **cost, methods=short, teacher=teacher
                )

    def comparisons(self) -> Iterator[Comparison]:
        """Yield each distilled stage against each of its other arms, by every metric that was measured."""
        config = self.context.config
        for name, stage in config.stages.items():
            if name not in self.shown:
                continue
            mine = self.rows_of(name, "main")
            for arm in (ARMS[entry] for entry in stage.control):
                if arm_name(name, arm) not in self.shown:
                    continue
                for metric in config.evaluate.metrics:
                    found = paired(mine, self.rows_of(name, arm), metric, subject=AGAINST[arm])
                    yield Comparison.of(found.to_json())
            teachers = [self.teacher_of(name), *stage.teacher]
            for teacher in dict.fromkeys(one for one in teachers if one in self.shown):
                assert teacher is not None
                theirs = self.teaching(teacher, config.seeds_of(name))
                yield Comparison.of(self._against_teacher(mine, theirs).to_json())

    def _against_teacher(self, mine: list[Row], theirs: list[Row]) -> Paired:
        metrics = self.context.config.evaluate.metrics
        metric = "dice" if "dice" in metrics else metrics[0]
        margin = self.context.config.evaluate.margin if metric == "dice" else None
        return paired(mine, theirs, metric, subject="Being small", margin=margin)

    def study(self) -> Study | None:
        """Return every distilled stage against the run's baseline, by every metric; None without a baseline."""
        config = self.context.config
        baseline = config.evaluate.baseline
        if baseline is None:
            return None
        theirs = self.rows_of(*arms_of(config)[baseline])
        found = []
        for name, stage in config.stages.items():
            if not stage.teacher or name == baseline:
                continue
            mine = self.rows_of(name, "main")
            shared = theirs if len({row.seed for row in theirs}) > 1 else spread(theirs, {row.seed for row in mine})
            found += [paired(mine, shared, metric, subject=name) for metric in config.evaluate.metrics]
        return study_of(baseline, found)

    def curves(self) -> Iterator[Curve]:
        """Yield the log of every training."""
        stages = self.context.config.stages
        for name, folder in self.nodes("train"):
            manifest = read_manifest(folder)
            log = folder / "log.jsonl"
            if manifest is None or not log.is_file():
                continue
            trained = Node(**manifest.node)
            models = stages[trained.stage].model
            parts = [models[trained.member or 0].name] if len(models) > 1 else []
            parts += [f"without part {trained.part}"] if trained.part is not None else []
            parts += [f"seed {trained.seed}", f"fold {trained.fold}"]
            lines = tuple(json.loads(line) for line in log.read_text().splitlines())
            yield Curve(trained.arm_name, lines, ", ".join(parts) if name else "")

    def case_costs(self) -> Iterator[CaseCost]:
        """Yield what a whole case costs each stage, by device; nothing of runs that did not measure it."""
        for name in self.context.config.stages:
            body: dict[str, Any] = json.loads((self.inputs[Node("cost", name).name] / "cost.json").read_text())
            if name in self.shown:
                yield from (CaseCost(name, **one) for one in body.get("devices", {}).values())

    def parity(self) -> Iterator[Parity]:
        """Yield how the exported student agrees with the trained one."""
        for _, folder in self.nodes("export"):
            for found in json.loads((folder / "export.json").read_text()):
                if "parity" in found:
                    yield Parity(**found["parity"])

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What was measured of the student."""
        body: dict[str, Any] = json.loads((self.inputs[Node("cost", self.student).name] / "cost.json").read_text())
        return body

    def provenance(self) -> Provenance:
        """Return versions, keys, times and licences."""
        config = self.context.config
        manifests = {name: found for name, folder in self.inputs.items() if (found := read_manifest(folder))}
        told = [read_card(folder).provenance for _, folder in self.nodes("train")]
        licences: dict[str, str] = {}
        for one in told:
            licences |= one.get("licences", {})
        versions = dict(next(iter(manifests.values())).versions) if manifests else {}
        return Provenance(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=f"medkd run {config.name}.yaml",
            device=str(self.cost["machine"]),
            versions=versions,
            keys={name: found.key for name, found in manifests.items()},
            seconds={name: float(found.timings.get("seconds", 0.0)) for name, found in manifests.items()},
            data_hash=str(self.ground.facts["data_hash"]),
            licences=licences,
            leakage=leakage_line(told),
            seeds=config.seeds_of(self.student),
            folds=config.data.run_folds,
            teachers=dict(self.teachers()),
        )

    def teachers(self) -> Iterator[tuple[str, str]]:
        """Yield each teacher from outside the run, and one sentence about it."""
        stages = self.context.config.stages
        for kind in ("answers", "targets"):
            for _, folder in self.nodes(kind):
                for member in stored_members(folder) if (folder / CARDS).is_file() else ():
                    if member.source in stages:
                        continue
                    saw = member.card.trained_on
                    seen = "nobody knows what it was trained on" if saw is None else f"trained on {len(saw)} cases"
                    yield member.name, f"{member.card.kind} from {member.source}, {seen}"

    def warnings(self) -> Iterator[str]:
        """Yield what a reader must know before trusting the numbers."""
        yield from self.ground.facts["suspicious"][:5]
        for name, folder in self.nodes("train"):
            result = json.loads((folder / "result.json").read_text())
            if result["dice"] <= 0:
                yield f"{name} never found a foreground voxel in validation; train longer or lower the learning rate"
        for _, folder in self.nodes("targets"):
            if told := fusion_line(folder):
                yield told
        stage = self.context.config.stages[self.student]
        if stage.teacher and len(self.context.config.seeds_of(self.student)) == 1:
            yield "One seed only: the interval does not know how much another seed would differ; set `seeds: [0, 1, 2]`"
