"""The parts of a run's configuration: data, networks, methods, training, stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from medkd.pipeline.shorthand import as_tuple, control_arms, items, mode_alone, named, one_or_many, perhaps

Share = Annotated[float, Field(ge=0, le=1)]
Auto = Literal["auto"]
ControlArm = Literal["steps", "compute", "same_loss", "pseudo"]
ExportFormat = Literal["onnx", "bundle", "torchscript", "pt2", "openvino"]
TrackerName = Literal["tensorboard", "mlflow"]
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
    ontology: Annotated[dict[str, Annotated[tuple[str, ...], one_or_many(str)]], Field(default_factory=dict)]


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


class TargetsConfig(Strict):
    """How the answers of a stage's teachers are made and stored; only stored answers read these keys."""

    mode: Literal["auto", "ensemble", "out_of_fold"] = "auto"
    encoding: Literal["auto", "full16", "uint8", "topk"] = "auto"
    k: int | None = Field(default=None, ge=1)
    mirror: bool = False
    calibrate: bool = False
    trust: Literal["none", "disagreement"] = "none"


class Stage(Strict):
    """One training inside a run: teacher, assistant or student."""

    model: Annotated[tuple[ModelSpec, ...], one_or_many(ModelSpec), Field(min_length=1)]
    methods: Annotated[tuple[MethodSpec, ...], named(MethodSpec), Field(min_length=1)]
    teacher: Annotated[tuple[str, ...], one_or_many(str)] = ()
    targets: Annotated[TargetsConfig, mode_alone(TargetsConfig)] = TargetsConfig()
    inner_folds: int | None = Field(default=None, ge=2)
    trust_pickle: bool = False
    init: str | None = None
    control: Annotated[tuple[ControlArm, ...], control_arms(ControlArm)] = ()
    labels: Annotated[tuple[str, ...] | None, perhaps(str)] = None
    labelled: int | None = Field(default=None, ge=1)
    labelled_draw: Literal["fixed", "per_seed"] = "fixed"
    unlabelled: bool = False
    seeds: Annotated[tuple[int, ...] | None, perhaps(int), Field(min_length=1)] = None
    peers: int = Field(default=0, ge=0)
    train: TrainConfig = TrainConfig()

    @property
    def networks(self) -> tuple[tuple[int, int | None], ...]:
        """Model and left-out part of every network that is trained for one arm, fold and seed."""
        parts = (None,) if self.inner_folds is None else tuple(range(self.inner_folds))
        return tuple((member, part) for member in range(len(self.model)) for part in parts)

    @model_validator(mode="before")
    @classmethod
    def _by_teacher(cls, values: Any) -> Any:
        """A stage with a teacher has a control arm and uses unlabelled cases, unless it says otherwise."""
        if isinstance(values, Mapping) and values.get("teacher"):
            if values.get("labels") == []:  # without labels there is no such arm
                return {"unlabelled": True, **values}
            return {"control": ("steps",), "unlabelled": True, **values}
        return values


class EvaluateConfig(Strict):
    """What is measured, which arms the report shows, and for a study the arm that all methods are compared with."""

    metrics: Annotated[tuple[str, ...], items(str), Field(min_length=1)] = ("dice", "hd95_mm", "nsd_1mm")
    surfaces: Literal["surfel", "voxel"] = "surfel"
    lesions: Annotated[tuple[str, ...] | None, as_tuple] = None
    compare: Annotated[tuple[str, ...] | None, as_tuple] = None
    baseline: str | None = None
    margin: float | None = Field(default=None, gt=0, lt=1)
    fidelity: bool = True


class ReportConfig(Strict):
    """The HTML page: its title, and how many of the worst cases it shows."""

    title: str | None = None
    cases: int = Field(default=3, ge=0)
