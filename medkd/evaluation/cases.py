"""One case: every metric for every class in one pass, and the row that holds it.

Empty classes (:data:`EMPTY_POLICY`). A class that is in neither map is *absent*: all its values are NaN and no mean
counts it, for calling an organ that is not there perfect would flatter everyone. A class in only one of the two is an
error of the full size: Dice, IoU and NSD are 0, and the distances are the diagonal of the volume in mm (edge to edge),
more than any distance that two surfaces in that volume could have, so that missing an organ never scores better than
finding it badly. The volume error is the whole volume of the one that is there.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medkd.errors import UserError, nearest
from medkd.evaluation import overlap, surface

DEFAULT_METRICS = ("dice", "hd95_mm", "nsd_1mm", "volume_error_ml")

EMPTY_POLICY = (
    "A class in neither map is absent: NaN, in no mean. A class in only one of them scores Dice, IoU and NSD 0, "
    "and the diagonal of the volume in mm as surface distance."
)

_NSD = re.compile(r"nsd_(\d+(?:\.\d+)?)mm")
_HIGHER = {"dice": True, "iou": True, "nsd_1mm": True, "hd95_mm": False, "assd_mm": False, "volume_error_ml": False}
_FIXED = ("arm", "stage", "fold", "seed", "case", "patient", "label")
_SIZES = ("voxels_ref", "voxels_pred", "volume_ref_ml", "volume_pred_ml")


@dataclass(frozen=True)
class Row:
    """The scores of one class of one case by one arm.

    Args:
        arm: who predicted: ``student``, ``student.control``, ``teachers``.
        stage: the stage of the run it belongs to.
        fold: the fold whose test part holds the case.
        seed: the training's seed.
        case: case id.
        patient: patient id; one patient may have several cases.
        label: class name.
        values: metric name -> value; NaN where the class is absent.
        voxels_ref: size of the class in the reference.
        voxels_pred: size of the class in the prediction.
        volume_ref_ml: its volume in the reference.
        volume_pred_ml: its volume in the prediction.
    """

    arm: str
    stage: str
    fold: int
    seed: int
    case: str
    patient: str
    label: str
    values: Mapping[str, float]
    voxels_ref: int = 0
    voxels_pred: int = 0
    volume_ref_ml: float = 0.0
    volume_pred_ml: float = 0.0

    @property
    def absent(self) -> bool:
        """True where neither map holds the class."""
        return self.voxels_ref == 0 and self.voxels_pred == 0

    def to_record(self) -> dict[str, object]:
        """Return a flat dictionary, metrics beside the rest: a line of a table."""
        head = {name: getattr(self, name) for name in _FIXED}
        return {**head, **self.values, **{name: getattr(self, name) for name in _SIZES}}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Row:
        """Read what :meth:`to_record` wrote, also from text (CSV); an empty value is NaN."""
        given = {name: str(value) for name, value in record.items()}
        values = {name: float(value or "nan") for name, value in given.items() if name not in _FIXED + _SIZES}
        return cls(
            arm=given.get("arm", ""),
            stage=given.get("stage", ""),
            fold=int(given.get("fold", "0")),
            seed=int(given.get("seed", "0")),
            case=given["case"],
            patient=given.get("patient") or given["case"],
            label=given["label"],
            values=values,
            voxels_ref=int(given.get("voxels_ref", "0")),
            voxels_pred=int(given.get("voxels_pred", "0")),
            volume_ref_ml=float(given.get("volume_ref_ml", "0")),
            volume_pred_ml=float(given.get("volume_pred_ml", "0")),
        )


def higher_is_better(metric: str) -> bool:
    """Return the direction of ``metric``.

    Raises:
        UserError: no such metric.
    """
    if _NSD.fullmatch(metric):
        return True
    if metric not in _HIGHER:
        raise UserError(
            f"unknown metric {metric!r}{nearest(metric, _HIGHER)}: choose from {', '.join(sorted(_HIGHER))} "
            "(nsd at any tolerance, such as nsd_2.5mm)"
        )
    return _HIGHER[metric]


def measure_case(
    pred: NDArray[np.integer],
    ref: NDArray[np.integer],
    spacing_mm: Sequence[float],
    labels: Mapping[str, int],
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> list[dict[str, object]]:
    """Measure every class of one case; see the module for empty classes.

    Values that ``labels`` does not name count as background. Voxels where the reference is
    :data:`medkd.types.IGNORE` count for nothing, for surfaces they are background in both maps.

    Args:
        pred: ``(*S)`` predicted label values, integers.
        ref: ``(*S)`` reference label values, integers, on the same grid.
        spacing_mm: voxel size along ``*S``.
        labels: class name -> label value; background (0) is never measured.
        metrics: ``dice``, ``iou``, ``hd95_mm``, ``assd_mm``, ``nsd_<tolerance>mm``, ``volume_error_ml`` (the absolute
            difference; its sign is in the two volume columns).

    Returns:
        One flat dictionary a class, in the order of ``labels``: ``label``, the metrics, ``voxels_ref``,
        ``voxels_pred``, ``volume_ref_ml``, ``volume_pred_ml``.

    Raises:
        UserError: shapes or spacing do not fit, maps are not integers, or a metric is unknown.
    """
    _refuse(pred, ref, spacing_mm, labels, metrics)
    wanted = {name: value for name, value in labels.items() if value > 0}
    pred, ref, counts = overlap.encode(pred, ref, list(wanted.values()))
    boxes = zip(find_objects(ref, len(wanted)), find_objects(pred, len(wanted)), strict=True)
    diagonal = math.hypot(*(size * step for size, step in zip(ref.shape, spacing_mm, strict=True)))
    voxel_ml = math.prod(spacing_mm) / 1000
    by_surface = any(name.startswith(("hd95", "assd", "nsd")) for name in metrics)
    measured = []
    for code, (name, (box_ref, box_pred)) in enumerate(zip(wanted, boxes, strict=True), start=1):
        both, in_ref, in_pred = int(counts[code, code]), int(counts[code].sum()), int(counts[:, code].sum())
        found = None
        if by_surface and in_ref and in_pred:
            pairs = zip(box_ref, box_pred, strict=True)
            box = tuple(slice(min(r.start, p.start), max(r.stop, p.stop)) for r, p in pairs)
            found = surface.gaps(pred[box] == code, ref[box] == code, spacing_mm)
        values: dict[str, object] = {
            metric: _value(metric, both, in_ref, in_pred, found, diagonal, voxel_ml) for metric in metrics
        }
        sizes = {"volume_ref_ml": in_ref * voxel_ml, "volume_pred_ml": in_pred * voxel_ml}
        measured.append({"label": name, **values, "voxels_ref": in_ref, "voxels_pred": in_pred, **sizes})
    return measured


def _value(
    metric: str, both: int, in_ref: int, in_pred: int, found: surface.Gaps | None, diagonal: float, voxel_ml: float
) -> float:
    if not in_ref and not in_pred:
        return float("nan")
    if metric == "dice":
        return overlap.dice(both, in_ref, in_pred)
    if metric == "iou":
        return overlap.iou(both, in_ref, in_pred)
    if metric == "volume_error_ml":
        return abs(in_pred - in_ref) * voxel_ml
    if found is None:
        return 0.0 if higher_is_better(metric) else diagonal
    if metric == "hd95_mm":
        return surface.hausdorff_mm(found, 95)
    if metric == "assd_mm":
        return surface.assd_mm(found)
    return surface.nsd(found, float(metric.removeprefix("nsd_").removesuffix("mm")))


def _refuse(
    pred: NDArray[np.integer],
    ref: NDArray[np.integer],
    spacing_mm: Sequence[float],
    labels: Mapping[str, int],
    metrics: Sequence[str],
) -> None:
    if pred.shape != ref.shape:
        raise UserError(f"prediction {pred.shape} and reference {ref.shape} differ in shape: bring them to one grid")
    if len(spacing_mm) != ref.ndim or not all(math.isfinite(step) and step > 0 for step in spacing_mm):
        raise UserError(f"spacing_mm {tuple(spacing_mm)} must be {ref.ndim} positive numbers, one an axis")
    for name, array in (("prediction", pred), ("reference", ref)):
        if not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"the {name} holds {array.dtype}, not integer labels: round or threshold it first")
    if len(set(labels.values())) != len(labels):
        raise UserError(f"labels {dict(labels)} give two names to one value: keep one of them")
    for metric in metrics:
        higher_is_better(metric)


def measure_rows(
    pred: NDArray[np.integer],
    ref: NDArray[np.integer],
    spacing_mm: Sequence[float],
    labels: Mapping[str, int],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    case: str,
    patient: str = "",
    arm: str = "",
    stage: str = "",
    fold: int = 0,
    seed: int = 0,
) -> list[Row]:
    """Measure a case as :func:`measure_case` does and return its rows; ``patient`` is the case where not given."""
    head = {"arm": arm, "stage": stage, "fold": fold, "seed": seed, "case": case, "patient": patient or case}
    return [Row.from_record({**head, **line}) for line in measure_case(pred, ref, spacing_mm, labels, metrics)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV, whole or not at all; absent values are ``nan``."""
    records = [row.to_record() for row in rows]
    columns = list(dict.fromkeys(name for record in records for name in record)) or [*_FIXED, *_SIZES]
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="nan")
        table.writeheader()
        table.writerows(records)
    part.replace(path)


def read_rows(path: Path) -> list[Row]:
    """Read the rows that :func:`write_rows` wrote.

    Raises:
        UserError: the file is no such table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [Row.from_record(record) for record in csv.DictReader(file)]
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is not a table of cases ({error}): give the cases.csv of an evaluation") from error
