"""Gather what all nodes found and write the page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from medkd.data.volume import read_label, read_volume
from medkd.evaluation.cases import Row, read_rows, write_rows
from medkd.evaluation.stats import paired
from medkd.networks.weights import read_card
from medkd.pipeline.context import Context
from medkd.pipeline.folder import read_manifest
from medkd.pipeline.graph import exported_stage
from medkd.pipeline.nodes import Node
from medkd.pipeline.rules import ARMS, arm_name, arms_of
from medkd.pipeline.steps.ground import Ground
from medkd.report.page import write_report
from medkd.report.slices import worst_cases, worst_slice
from medkd.report.study import Study, study_of
from medkd.report.summary import Arm, Comparison, Curve, DataFacts, Parity, Provenance, RunSummary, Slice
from medkd.report.tables import arms_json, arms_markdown, study_files

AGAINST = {
    "control": "Distillation",
    "same_loss": "The teacher (against the same loss fed with labels)",
    "pseudo": "Soft targets (against the teacher's hard labels)",
}
"""Arm -> what the student has and the arm has not: the subject of the sentence."""


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``report.html``, ``summary.json``, ``arms.json``, ``table.md``, ``cases.csv``, and a study's tables."""
    gathered = Gathered(inputs, context)
    run = gathered.summary()
    (out / "summary.json").write_text(json.dumps(run.to_json()))
    (out / "arms.json").write_text(json.dumps(arms_json(run), indent=1))
    (out / "table.md").write_text(arms_markdown(run) + "\n")
    write_rows(out / "cases.csv", gathered.rows)
    for name, text in (study_files(run.study) if run.study else {}).items():
        (out / name).write_text(text, encoding="utf-8")
    write_report(run, out / "report.html")


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
        return frozenset(self.context.config.evaluate.compare or arms_of(self.context.config))

    def nodes(self, kind: str) -> Iterator[tuple[str, Path]]:
        """Yield the finished nodes of one kind."""
        yield from ((name, folder) for name, folder in self.inputs.items() if name.startswith(f"{kind}."))

    @cached_property
    def rows(self) -> list[Row]:
        """Every measurement."""
        return [row for _, folder in self.nodes("evaluate") for row in read_rows(folder / "cases.csv")]

    def rows_of(self, stage: str, arm: str) -> list[Row]:
        """Return the measurements of one arm."""
        wanted = arm_name(stage, arm)
        return [row for row in self.rows if row.arm == wanted]

    def summary(self) -> RunSummary:
        """Return the whole run as the report wants it."""
        config, dataset, plan = self.context.config, self.ground.dataset, self.ground.plan
        split = self.ground.split(config.data.run_folds[0])
        sizes = {name: len(cases) for name, cases in vars(split).items()}
        return RunSummary(
            name=config.report.title or config.name,
            arms=tuple(arm for arm in self.arms() if arm.name in self.shown),
            rows=tuple(row.to_record() for row in self.rows if row.arm in self.shown),
            comparisons=tuple(self.comparisons()),
            curves=tuple(self.curves()),
            slices=tuple(self.slices()),
            data=DataFacts(dataset.name, dataset.licence or "", dataset.reference or "", dict(dataset.labels), sizes),
            plan_notes=plan.notes,
            config=config.to_yaml(),
            cost_note=str(self.cost["note"]),
            provenance=self.provenance(),
            parity=tuple(self.parity()),
            warnings=tuple(self.warnings()),
            study=self.study(),
        )

    def arms(self) -> Iterator[Arm]:
        """Yield the arms: teachers, students, controls."""
        config = self.context.config
        student = self.student
        teachers = set(config.stages[student].teacher)
        for stage_name, stage in config.stages.items():
            cost_file = self.inputs[Node("cost", stage_name).name] / "cost.json"
            cost: dict[str, Any] = json.loads(cost_file.read_text())
            cost = {key: cost[key] for key in ("parameters", "macs", "latency_s", "memory_mb", "weights_bytes")}
            names = [model.name for model in stage.model]
            detail = f"mean of {len(names)} networks: {', '.join(names)}" if len(names) > 1 else names[0]
            role = "student" if stage_name == student else "teacher" if stage_name in teachers else "other"
            role = "control" if stage_name == config.evaluate.baseline else role
            yield Arm(stage_name, role, stage_name, detail, **cost)
            for entry in stage.control:
                arm = ARMS[entry]
                told = {
                    "control": "same network, labels only",
                    "same_loss": "same loss, labels instead of a teacher",
                    "pseudo": "the teacher's hard labels",
                }[arm]
                role = arm if stage_name == student else "other"
                yield Arm(arm_name(stage_name, arm), role, arm_name(stage_name, arm), told, **cost)

    def comparisons(self) -> Iterator[Comparison]:
        """Yield each distilled stage against each of its other arms, by every metric that was measured."""
        for name, stage in self.context.config.stages.items():
            if name not in self.shown:
                continue
            for arm in (ARMS[entry] for entry in stage.control):
                if arm_name(name, arm) not in self.shown:
                    continue
                for metric in self.context.config.evaluate.metrics:
                    found = paired(self.rows_of(name, "main"), self.rows_of(name, arm), metric, subject=AGAINST[arm])
                    yield Comparison.of(found.to_json())
            for teacher in stage.teacher:
                if teacher in self.context.config.stages and teacher in self.shown:
                    mine = self.rows_of(name, "main")
                    taught = self.context.config.seeds_of(teacher)[0]  # the seed that students learn from
                    first = [row for row in self.rows_of(teacher, "main") if row.seed == taught]
                    theirs = spread(first, {row.seed for row in mine})
                    yield Comparison.of(paired(mine, theirs, "dice", subject="Being small").to_json())

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
            parts += [f"seed {trained.seed}", f"fold {trained.fold}"]
            lines = tuple(json.loads(line) for line in log.read_text().splitlines())
            yield Curve(trained.arm_name, lines, ", ".join(parts) if name else "")

    def slices(self) -> Iterator[Slice]:
        """Yield the student's worst cases, with what label, teacher and student say."""
        config = self.context.config
        fold, seed = config.data.run_folds[0], config.seeds_of(self.student)[0]
        mine = [row for row in self.rows_of(self.student, "main") if (row.fold, row.seed) == (fold, seed)]
        records = [row.to_record() for row in mine]
        student = self.inputs[Node("evaluate", self.student, None, fold, seed, "main").name] / "predictions"
        teachers = [name for name in config.stages[self.student].teacher if name in config.stages]
        for name in worst_cases(records, self.student, config.report.cases):
            case = self.ground.dataset.case(name)
            volume = read_volume(case.images)
            assert case.label is not None  # test cases have a label
            teacher = None
            if teachers:
                node = Node("evaluate", teachers[0], None, fold, config.seeds_of(teachers[0])[0], "main")
                teacher = read_label(self.inputs[node.name] / "predictions" / f"{name}.nii.gz")
            rule = self.ground.plan.intensity[0]
            window = (rule.low, rule.high) if rule.kind == "ct" else None
            yield worst_slice(
                name,
                volume.array[0],
                read_label(case.label, like=volume),
                read_label(student / f"{name}.nii.gz"),
                teacher,
                volume.spacing_mm,
                window=window,
            )

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
        cards = [read_card(folder) for _, folder in self.nodes("train")]
        licences: dict[str, str] = {}
        for card in cards:
            licences |= card.provenance.get("licences", {})
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
            leakage="none: no teacher was trained on a validation or test patient of its student",
        )

    def warnings(self) -> Iterator[str]:
        """Yield what a reader must know before trusting the numbers."""
        yield from self.ground.facts["suspicious"][:5]
        for name, folder in self.nodes("train"):
            result = json.loads((folder / "result.json").read_text())
            if result["dice"] <= 0:
                yield f"{name} never found a foreground voxel in validation; train longer or lower the learning rate"
        stage = self.context.config.stages[self.student]
        if stage.teacher and len(self.context.config.seeds_of(self.student)) == 1:
            yield "One seed only: the interval does not know how much another seed would differ; set `seeds: [0, 1, 2]`"


def spread(rows: Iterable[Row], seeds: Iterable[int]) -> list[Row]:
    """Return the rows of an arm with one seed once for each of ``seeds``, to pair it with an arm of several."""
    listed = list(rows)
    own = min((row.seed for row in listed), default=0)
    return [replace(row, seed=seed) for seed in sorted(set(seeds)) for row in listed if row.seed == own]


__all__ = ["Gathered", "execute", "spread"]
