"""What a finished run has to say, as plain data: everything the page shows, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.report.packing import plain, unpack
from medkd.report.study import Study

FORMAT = 1
"""Version of the JSON layout."""

ROLES = ("teacher", "student", "control", "same_loss", "pseudo", "other")
"""What an arm is for; role -> colour and wording on the page."""

Row = Mapping[str, object]
"""One measured (arm, fold, seed, case, class): keys ``arm, stage, fold, seed, case, patient, label`` and metrics.

Metrics are numbers (``dice, iou, hd95_mm, assd_mm, nsd_1mm, volume_error_ml, ...``); None or NaN means
that the class is in neither mask. ``arm`` is the name of an :class:`Arm`.
"""


@dataclass(frozen=True)
class Arm:
    """One line of the main table: a network or an ensemble, and what it costs.

    Args:
        name: as in the rows' ``arm``.
        role: one of :data:`ROLES`.
        title: shown instead of the name, "Teacher ensemble" say.
        detail: one short phrase under the title, "mean of 3 networks" say.
        parameters: number of weights, all networks of an ensemble together.
        macs: multiply-adds of one forward pass on the input that ``RunSummary.cost_note`` tells.
        latency_s: measured seconds, median, on the same input for every arm.
        memory_mb: peak memory of the same run, MB (10^6 bytes).
        weights_bytes: size of the weight files.
    """

    name: str
    role: str
    title: str = ""
    detail: str = ""
    parameters: int | None = None
    macs: float | None = None
    latency_s: float | None = None
    memory_mb: float | None = None
    weights_bytes: int | None = None

    @property
    def shown(self) -> str:
        """Return the title, or the name where there is none."""
        return self.title or self.name


@dataclass(frozen=True)
class Comparison:
    """Arm ``arm_a`` minus arm ``arm_b`` over the same cases: what the page shows of a paired test.

    Args:
        arm_a: name of the first arm.
        arm_b: name of the second.
        metric: ``dice``, ``hd95_mm``...
        sentence: the outcome in plain English; the page opens with the student's against the control.
        verdict: ``helped``, ``hurt`` or ``not shown``.
        difference: mean over patients, in the metric's unit.
        ci_low: lower end of the 95 % interval.
        ci_high: upper end.
        wilcoxon_p: p-value of the signed-rank test, or None.
        n_patients: patients in both arms.
        n_cases: cases in both arms.
        n_seeds: training seeds in both arms.
        per_class: one mapping a class with ``label``, ``difference`` and, where known, ``ci_low`` and ``ci_high``.
        notes: what a reader must know about this comparison.
    """

    arm_a: str
    arm_b: str
    metric: str
    sentence: str
    verdict: str
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    wilcoxon_p: float | None = None
    n_patients: int = 0
    n_cases: int = 0
    n_seeds: int = 1
    per_class: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Comparison:
        """Return a comparison from ``Paired.to_json()``; keys that the page does not show are left out."""
        names = {f.name for f in fields(cls)}
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in names
        }
        return cls(**known)


@dataclass(frozen=True)
class Curve:
    """The log of one training.

    Args:
        arm: name of the arm the trained network belongs to.
        lines: the log's lines: ``step`` with ``terms`` (name -> mean since the last line) or with ``scores``
            (of the validation; ``dice`` is drawn).
        title: tells curves of one arm apart: "DynUNet", "fold 1".
    """

    arm: str
    lines: tuple[Mapping[str, Any], ...]
    title: str = ""


@dataclass(frozen=True)
class Slice:
    """One plane through one case, oriented for the screen (radiological convention).

    Args:
        case: case id.
        plane: ``axial``, ``coronal`` or ``sagittal``.
        index: number of the plane along its axis in the RAS volume, from 0.
        image: ``(H, W)`` uint8, windowed.
        label: ``(H, W)`` class values; -1 where unknown.
        student: ``(H, W)`` class values.
        teacher: ``(H, W)`` class values, or None.
        spacing_mm: size of a pixel as (row, column).
        sides: letters at (left, right, top, bottom): patient's R, L, A, P, S, I.
        note: one short phrase under the picture.
    """

    case: str
    plane: str
    index: int
    image: NDArray[np.uint8]
    label: NDArray[np.int16]
    student: NDArray[np.int16]
    teacher: NDArray[np.int16] | None
    spacing_mm: tuple[float, float]
    sides: tuple[str, str, str, str]
    note: str = ""


@dataclass(frozen=True)
class Parity:
    """How an exported network agrees with the one it was made from, on real cases.

    Args:
        name: ``onnx``, ``bundle``...
        cases: how many cases were compared.
        max_abs_difference: largest difference of a probability.
        voxel_agreement: share of voxels with the same class, in [0, 1].
        dice: class -> Dice between the two predictions.
        note: runtime and version, or why it was not compared.
    """

    name: str
    cases: int = 0
    max_abs_difference: float | None = None
    voxel_agreement: float | None = None
    dice: Mapping[str, float | None] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class DataFacts:
    """The data set: its name, licence, class name -> value, and split name -> number of cases."""

    name: str = ""
    licence: str = ""
    reference: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from.

    Args:
        created: when, ISO 8601.
        command: the command that makes the run again.
        device: machine of the cost measurement and the training.
        versions: package -> version.
        keys: node -> content key.
        seconds: node -> wall time.
        data_hash: hash of the data.
        licences: what -> licence, for data and teachers.
        leakage: one line: what the leakage guard found.
    """

    created: str = ""
    command: str = ""
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    data_hash: str = ""
    licences: Mapping[str, str] = field(default_factory=dict)
    leakage: str = ""


@dataclass(frozen=True)
class RunSummary:
    """A whole run, ready to be told.

    Args:
        name: name of the run.
        arms: in the order of the table: teachers, student, control, others.
        rows: every measurement, see :data:`Row`.
        comparisons: the paired tests; student against control is the verdict.
        curves: training logs.
        slices: worst cases, see :func:`medkd.report.slices.worst_slice`.
        data: the data set.
        plan_notes: one sentence a decision.
        config: the resolved YAML.
        cost_note: on what the costs were measured: input size, repeats, threads, device.
        provenance: versions, keys, hashes.
        parity: the exports.
        warnings: what a reader must know before trusting the numbers.
        study: many methods against one baseline, where the run is such a comparison.
    """

    name: str
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    curves: tuple[Curve, ...] = ()
    slices: tuple[Slice, ...] = ()
    data: DataFacts = field(default_factory=DataFacts)
    plan_notes: tuple[str, ...] = ()
    config: str = ""
    cost_note: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    parity: tuple[Parity, ...] = ()
    warnings: tuple[str, ...] = ()
    study: Study | None = None

    def arm(self, role: str) -> Arm | None:
        """Return the first arm of ``role``, or None."""
        return next((arm for arm in self.arms if arm.role == role), None)

    def comparison(self, a: str, b: str, metric: str = "dice") -> Comparison | None:
        """Return the comparison of the arms named ``a`` and ``b``, or None."""
        return next((c for c in self.comparisons if (c.arm_a, c.arm_b, c.metric) == (a, b, metric)), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, numbers and strings; NaN becomes None, an array its deflated bytes."""
        return {"format": FORMAT, **plain(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunSummary:
        """Return the summary that :meth:`to_json` wrote; UserError when it is of another format."""
        if values.get("format") != FORMAT:
            raise UserError(
                f"this run summary has format {values.get('format')!r} and medkd reads {FORMAT}: write it again"
            )
        read = {key: value for key, value in values.items() if key != "format"}
        try:
            parts: dict[str, Any] = {name: _many(kind, read.get(name, ())) for name, kind in _PARTS.items()}
            parts |= {name: tuple(read.get(name, ())) for name in ("rows", "plan_notes", "warnings")}
            parts["slices"] = tuple(_slice(value) for value in read.get("slices", ()))
            parts["data"] = DataFacts(**read.get("data", {}))
            parts["study"] = None if read.get("study") is None else Study.from_json(read["study"])
            parts["provenance"] = Provenance(**read.get("provenance", {}))
            return cls(**{**read, **parts})
        except (KeyError, TypeError) as error:
            raise UserError(f"this run summary is incomplete ({error}): write it again") from error


_PARTS: dict[str, type] = {"arms": Arm, "comparisons": Comparison, "curves": Curve, "parity": Parity}


def _many(kind: type, values: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}) for value in values)


def _slice(value: Mapping[str, Any]) -> Slice:
    arrays = {name: unpack(value[name]) for name in ("image", "label", "student")}
    teacher = value.get("teacher")
    pairs: dict[str, Any] = {"spacing_mm": tuple(value["spacing_mm"]), "sides": tuple(value["sides"])}
    return Slice(**{**value, **arrays, **pairs, "teacher": None if teacher is None else unpack(teacher)})
