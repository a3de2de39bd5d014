"""The configuration of a run: strict models, defaults, and errors that tell file, line and key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from medkd.errors import UserError
from medkd.pipeline import yamlfile
from medkd.pipeline.problems import describe
from medkd.pipeline.shorthand import one_or_many, overrides
from medkd.pipeline.specs import (
    FOLDER_NAME,
    DataConfig,
    EvaluateConfig,
    ExportFormat,
    ReportConfig,
    Stage,
    StageName,
    Strict,
    TrackerName,
    TrainConfig,
)
from medkd.pipeline.yamlfile import Document


class RunConfig(Strict):
    """A whole run, as written in one YAML file."""

    name: str = Field(pattern=FOLDER_NAME)
    data: DataConfig
    plan: Annotated[dict[str, Any], overrides(dict[str, Any])] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig()
    stages: Annotated[dict[StageName, Stage], Field(min_length=1)]
    evaluate: EvaluateConfig = EvaluateConfig()
    export: Annotated[tuple[ExportFormat, ...], one_or_many(ExportFormat)] = ()
    report: ReportConfig = ReportConfig()
    track: Annotated[tuple[TrackerName, ...], one_or_many(TrackerName)] = ()
    allow_leakage: Annotated[tuple[str, ...], one_or_many(str)] = ()

    def train_of(self, stage: str) -> TrainConfig:
        """Return the training settings of a stage: the run's, and the stage's own over them."""
        own = self.stages[stage].train
        return self.train.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})

    def seeds_of(self, stage: str) -> tuple[int, ...]:
        """Return the seeds that a stage is trained with."""
        return self.stages[stage].seeds or (self.train_of(stage).seed,)

    def out_of_fold(self, stage: str) -> bool:
        """Return whether no teacher answers about cases that it was trained on, in the targets of ``stage``."""
        wanted, teacher = self.stages[stage].targets.mode, self.stages[stage].teacher
        inner = any(self.stages[name].inner_folds for name in teacher if name in self.stages)
        return wanted == "out_of_fold" or (wanted == "auto" and inner)

    def allowed(self, teacher: Sequence[str]) -> tuple[str, ...]:
        """Return those of some teachers that may have seen held-out patients, by ``allow_leakage``."""
        return tuple(name for name in teacher if name in self.allow_leakage)

    def teachers_labelled(self, label: str) -> tuple[str, ...]:
        """Return the teachers (stage names and paths) that :func:`teacher_label` calls ``label``."""
        return next(s.teacher for s in self.stages.values() if s.teacher and teacher_label(s.teacher) == label)

    def resolved(self) -> dict[str, Any]:
        """Return plain data with every default filled in, which :func:`parse` reads back to the same run."""
        plain: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        plain["plan"] = plain["plan"] or "auto"
        for name, stage in plain["stages"].items():
            stage["train"] = self.train_of(name).model_dump(mode="json")
            stage["seeds"] = list(self.seeds_of(name))
            for method in stage["methods"]:
                if method["as"] is None:
                    del method["as"]
        return plain

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML."""
        return yamlfile.dump(self.resolved())


def teacher_label(teacher: Sequence[str]) -> str:
    """Return a name, fit for a folder, of a list of teachers: stage names as they are, paths with a digest."""
    digest = hashlib.blake2b("\n".join(teacher).encode(), digest_size=3).hexdigest()
    words = [name if _is_name(name) else f"{Path(name).name.replace('.', '_')}~{digest}" for name in teacher]
    return "+".join(words) if len(words) < 4 else f"{words[0]}+{len(words) - 1}~{digest}"


def _is_name(word: str) -> bool:
    return word.replace("_", "a").replace("-", "a").isalnum()


def load_config(file: Path, overrides: Sequence[str] = (), *, networks: bool = False) -> RunConfig:
    """Read a run's YAML file.

    Args:
        file: the YAML file.
        overrides: ``stages.student.train.steps=500`` assignments, applied in order.
        networks: also look up the networks and their arguments (imports MONAI).

    Raises:
        UserError: one line a mistake, each with file, line and key.
    """
    return parse(yamlfile.read(Path(file)).override(overrides), networks=networks)


def parse(document: Document, *, networks: bool = False) -> RunConfig:
    """Return the run that ``document`` describes; constructs its methods. Raises as :func:`load_config`."""
    from medkd.pipeline import rules

    try:
        config = RunConfig.model_validate(document.data)
    except ValidationError as error:
        raise UserError("\n".join(describe(error, document, RunConfig))) from None
    # In steps, since what comes later takes longer to import.
    mistakes = rules.mistakes(config) or rules.method_mistakes(config)
    if not mistakes and networks:
        mistakes = rules.plan_mistakes(config) + rules.network_mistakes(config)
    if mistakes:
        raise UserError("\n".join(document.error(path, message) for path, message in mistakes))
    return config


def schema() -> dict[str, Any]:
    """Return the JSON schema of a run's YAML file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "medkd run",
        **RunConfig.model_json_schema(mode="validation", by_alias=True),
    }
