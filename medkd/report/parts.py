"""The parts of a run's summary: arms, comparisons, curves, slices, exports, data and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROLES = ("teacher", "student", "control", "compute", "same_loss", "pseudo", "other")
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
        methods: what trained it, as a reader knows it: method names, "labels only", "hard labels".
        teacher: name of the arm that it, or the student that it is a control of, learns from; empty for none.
        teaching_seed: seed of its networks that teach others; None where the run does not tell.
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
    methods: tuple[str, ...] = ()
    teacher: str = ""
    teaching_seed: int | None = None

    @property
    def shown(self) -> str:
        """Return the title, or the name where there is none."""
        return self.title or self.name


@dataclass(frozen=True)
class CaseCost:
    """What one whole case costs an arm on one device, from the file to the label file.

    Args:
        arm: name of the arm; its control arms have the same network, so the same cost.
        device: ``cpu``, ``cuda``...
        machine: name of the processor or GPU.
        threads: CPU threads.
        repeats: timed cases.
        seconds_per_case: measured seconds of the whole, median.
        case_seconds: median of each part: load, prepare, network, restore, write.
        case_memory_mb: peak of memory on top of the loaded model, MB (10^6 bytes).
        case_device_memory_mb: the same on the GPU, or None.
        window_seconds: the network alone on one window, or None.
    """

    arm: str
    device: str
    machine: str = ""
    threads: int = 0
    repeats: int = 0
    seconds_per_case: float | None = None
    case_seconds: Mapping[str, float] = field(default_factory=dict)
    case_memory_mb: float | None = None
    case_device_memory_mb: float | None = None
    window_seconds: float | None = None


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
        effect_size: mean over standard deviation of the differences per patient; above 0 is better.
        probability_better: share of patients for whom ``arm_a`` is better, ties by half.
        margin: the loss that would be accepted, in the metric's unit, or None where nobody said.
        non_inferior: whether a larger loss is excluded; None without margin.
        noninferiority_p: one-sided p of a loss of ``margin`` or more.
        classes_low: lower end of the interval when classes are drawn too, or None.
        classes_high: upper end.
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
    effect_size: float | None = None
    probability_better: float | None = None
    margin: float | None = None
    non_inferior: bool | None = None
    noninferiority_p: float | None = None
    classes_low: float | None = None
    classes_high: float | None = None

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
        seeds: training seeds of the student.
        folds: folds that were run, from 0.
        teachers: teacher -> one sentence: where it comes from, what it was trained on, or that nobody knows.
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
    seeds: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()
    teachers: Mapping[str, str] = field(default_factory=dict)
