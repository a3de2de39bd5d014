"""A table of cases: the row that holds one class of one case, on disk as ``cases.csv``."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.evaluation.measure import Labels, measure_case
from medkd.evaluation.metrics import DEFAULT_METRICS
from medkd.evaluation.metrics import higher_is_better as higher_is_better
from medkd.evaluation.surface import Convention

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


def measure_rows(
    pred: NDArray[np.integer],
    ref: NDArray[np.integer],
    spacing_mm: Sequence[float],
    labels: Labels,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    convention: Convention = "surfel",
    lesions: Collection[str] | None = None,
    case: str,
    patient: str = "",
    arm: str = "",
    stage: str = "",
    fold: int = 0,
    seed: int = 0,
) -> list[Row]:
    """Measure a case as :func:`medkd.evaluation.measure.measure_case` does, and return its rows.

    ``patient`` is the case where not given.
    """
    head = {"arm": arm, "stage": stage, "fold": fold, "seed": seed, "case": case, "patient": patient or case}
    lines = measure_case(pred, ref, spacing_mm, labels, metrics, convention=convention, lesions=lesions)
    return [Row.from_record({**head, **line}) for line in lines]


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
