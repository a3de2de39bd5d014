"""The configuration of a run: strict models, defaults, and errors that tell file, line and key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from medkd.errors import UserError
from medkd.pipeline import yamlfile
from medkd.pipeline.problems import describe
from medkd.pipeline.shorthand import as_tuple, control_arms, items, named, one_or_many, overrides, perhaps
from medkd.pipeline.yamlfile import Document

Share = Annotated[float, Field(ge=0, le=1)]
Auto = Literal["auto"]
ControlArm = Literal["steps", "same_loss", "pseudo"]
ExportFormat = Literal["onnx", "bundle"]
FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
StageName = Annotated[str, Field(pattern=FOLDER_NAME)]


class Strict(BaseModel):
    """Refuses unknown keys and values of another type, and never changes once made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)


class Ramp(Strict):
    """A weight that grows linearly from ``ramp[0]`` to ``ramp[1]`` over a share of the training."""

    ramp: Annotated[tuple[float, float], as_tuple]
    over: Annotated[float, Field(gt=0, le=1)] = 1.0


def _weight_kind(value: object) -> str:
    return "<ramp>" if isinstance(value, Mapping | Ramp) else "<number>"


class ModelSpec(Strict):
    """A network: its class name in MONAI, or a dotted path, and constructor arguments beside it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor arguments as written."""
        return dict(self.model_extra or {})

    @property
    def spec(self) -> dict[str, Any]:
        """``{"name": ..., **arguments}``, as :func:`medkd.networks.zoo.build` reads it."""
        return {"name": self.name, **self.arguments}


class MethodSpec(Strict):
    """A method: its name in the catalogue, its weight, and constructor arguments beside them."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)
    name: str
    weight: Annotated[
        Annotated[float, Tag("<number>")] | Annotated[Ramp, Tag("<ramp>")], Discriminator(_weight_kind)
    ] = 1.0
    alias: str | None = Field(default=None, alias="as", pattern=FOLDER_NAME)

    @property
    def label(self) -> str:
        """What logs call the method: the alias, or the name (the class, where it is a path)."""
        return self.alias or self.name.rpartition(":")[2]

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor arguments as written."""
        return dict(self.model_extra or {})

    @property
    def span(self) -> tuple[float, float, float]:
        """Weight at the start, at the end, and the share of the training over which it changes."""
        return (*self.weight.ramp, self.weight.over) if isinstance(self.weight, Ramp) else (self.weight, self.weight, 1)


class DataConfig(Strict):
    """Where the cases are and how they are split by patient."""

    source: str
    root: str | None = None
    folds: int = Field(default=5, ge=2)
    run_folds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], one_or_many(int), Field(min_length=1)] = (0,)
    seed: int = 0
    validation: float = Field(default=0.15, gt=0, lt=1)


class TrainConfig(Strict):
    """How a network is trained; a stage's own ``train`` overrides single keys."""

    steps: int = Field(default=1000, ge=1)
    batch: Annotated[int, Field(ge=1)] | Auto = "auto"
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=0.003, gt=0)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(default=1e-5, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup: Share = 0.02
    clip_norm: float | None = Field(default=12.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema: float | None = Field(default=None, gt=0, lt=1)
    validate_every: Annotated[int, Field(ge=1)] | Auto = "auto"
    validation_cases: int | None = Field(default=None, ge=1)
    foreground: Share = 0.5
    augment: Literal["default", "light", "none"] = "default"
    deep_supervision: bool = True
    seed: int = 0
    workers: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    tensorboard: bool = False


class Stage(Strict):
    """One training inside a run: teacher, assistant or student."""

    model: Annotated[tuple[ModelSpec, ...], one_or_many(ModelSpec), Field(min_length=1)]
    methods: Annotated[tuple[MethodSpec, ...], named(MethodSpec), Field(min_length=1)]
    teacher: Annotated[tuple[str, ...], one_or_many(str)] = ()
    init: str | None = None
    control: Annotated[tuple[ControlArm, ...], control_arms(ControlArm)] = ()
    labelled: int | None = Field(default=None, ge=1)
    labelled_draw: Literal["fixed", "per_seed"] = "fixed"
    unlabelled: bool = False
    seeds: Annotated[tuple[int, ...] | None, perhaps(int), Field(min_length=1)] = None
    peers: int = Field(default=0, ge=0)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _by_teacher(cls, values: Any) -> Any:
        """A stage with a teacher has a control arm and uses unlabelled cases, unless it says otherwise."""
        if isinstance(values, Mapping) and values.get("teacher"):
            return {"control": ("steps",), "unlabelled": True, **values}
        return values


class EvaluateConfig(Strict):
    """What is measured, which arms the report shows, and for a study the arm that all methods are compared with."""

    metrics: Annotated[tuple[str, ...], items(str), Field(min_length=1)] = ("dice", "hd95_mm", "nsd_1mm")
    compare: Annotated[tuple[str, ...] | None, as_tuple] = None
    baseline: str | None = None


class ReportConfig(Strict):
    """The HTML page: its title, and how many of the worst cases it shows."""

    title: str | None = None
    cases: int = Field(default=3, ge=0)


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

    def train_of(self, stage: str) -> TrainConfig:
        """Return the training settings of a stage: the run's, and the stage's own over them."""
        own = self.stages[stage].train
        return self.train.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})

    def seeds_of(self, stage: str) -> tuple[int, ...]:
        """Return the seeds that a stage is trained with."""
        return self.stages[stage].seeds or (self.train_of(stage).seed,)

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
