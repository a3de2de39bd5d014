"""Does the exported student answer as the trained network does, on whole cases?"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.inference.model import SegmentationModel

AGREEMENT = 0.999
"""Least share of voxels on which both must choose the same class, in every case."""


@dataclass(frozen=True)
class WorstVoxel:
    """Where the two networks are furthest apart.

    Args:
        index: voxel of the prepared image.
        label: name of the class whose probability differs most.
        trained: its probability by the trained network.
        exported: by the exported one.
    """

    index: tuple[int, ...]
    label: str
    trained: float
    exported: float


@dataclass(frozen=True)
class CaseParity:
    """Trained against exported network on one case.

    Args:
        case: name of the case.
        difference: largest absolute difference of a class probability.
        agreement: share of voxels with the same class.
        dice: class name -> Dice between both labels; None where both leave the class out.
        worst: the voxel of ``difference``; None where a network answered NaN.
    """

    case: str
    difference: float
    agreement: float
    dice: dict[str, float | None]
    worst: WorstVoxel | None = None


@dataclass(frozen=True)
class Parity:
    """The comparison over all cases.

    Args:
        cases: one entry per case.
        tolerance: least agreement asked for.
    """

    cases: tuple[CaseParity, ...]
    tolerance: float = AGREEMENT

    @property
    def agreement(self) -> float:
        """The worst case's share of voxels with the same class."""
        return min(case.agreement for case in self.cases)

    @property
    def difference(self) -> float:
        """Largest absolute difference of a class probability anywhere; NaN where a network answered NaN."""
        return float(np.max([case.difference for case in self.cases]))  # unlike max(), this never skips a NaN

    @property
    def dice(self) -> dict[str, float | None]:
        """Class name -> lowest Dice over the cases; None where no case has the class."""
        lowest: dict[str, float | None] = {}
        for name in self.cases[0].dice:
            found = [value for case in self.cases if (value := case.dice[name]) is not None]
            lowest[name] = min(found) if found else None
        return lowest

    @property
    def told(self) -> str:
        """The agreement in words."""
        if self.agreement == 1:
            return "the same class in every voxel"
        return f"the same class in at least {min(100 * self.agreement, 99.9999):.4f} % of the voxels of each"

    @property
    def passed(self) -> bool:
        """Whether every case agrees as asked for; a network that answers NaN never passes."""
        return bool(self.agreement >= self.tolerance and np.isfinite(self.difference))

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and strings; a difference that is NaN becomes null, which JSON has."""
        cases = [asdict(case) | {"difference": _finite(case.difference)} for case in self.cases]
        return {
            "passed": self.passed,
            "agreement": self.agreement,
            "difference": _finite(self.difference),
            "dice": self.dice,
            "tolerance": self.tolerance,
            "cases": cases,
        }


def compare(
    trained: SegmentationModel,
    exported: SegmentationModel,
    cases: Iterable[tuple[str, NDArray[np.float32]]],
    *,
    tolerance: float = AGREEMENT,
    out: Path | None = None,
) -> Parity:
    """Run both models over whole cases and compare voxel by voxel.

    Both get the same windows, so that only the arithmetic can differ.

    Args:
        trained: the model folder, loaded.
        exported: the exported folder, loaded.
        cases: name and prepared image ``(C, *S)`` of each case.
        tolerance: least share of voxels with the same class.
        out: where to write ``parity.json``; None writes nothing.

    Raises:
        UserError: no case was given, or the two have different classes.
    """
    if trained.labels != exported.labels:
        raise UserError(f"classes {list(trained.labels)} and {list(exported.labels)} differ; compare the same student")
    results = tuple(_compare_case(trained, exported, name, image) for name, image in cases)
    if not results:
        raise UserError("the export cannot be checked without cases; name at least one")
    parity = Parity(results, tolerance)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        part.write_text(json.dumps(parity.to_json(), indent=1) + "\n")
        part.replace(out)
    return parity


def require(parity: Parity) -> None:
    """Raise UserError, naming the worst case, where the export does not answer as the trained network does."""
    if parity.passed:
        return
    worst = min(parity.cases, key=lambda case: case.agreement if np.isfinite(case.difference) else -1.0)
    if not np.isfinite(worst.difference):
        raise UserError(f"case {worst.case} gives NaN or infinite probabilities; train or export the student again")
    raise UserError(
        f"the exported student gives another class than the trained one in {1 - worst.agreement:.3%} of the voxels of "
        f"case {worst.case} ({1 - parity.tolerance:.1%} are allowed); do not use it, and report the network"
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _compare_case(
    trained: SegmentationModel, exported: SegmentationModel, name: str, image: NDArray[np.float32]
) -> CaseParity:
    a, b = trained.probabilities(image), exported.probabilities(image)
    apart = (a - b).abs()
    difference = float(apart.max())
    worst = None
    if np.isfinite(difference):
        k, *index = (int(i) for i in np.unravel_index(int(apart.argmax()), tuple(apart.shape)))
        place = (k, *index)
        worst = WorstVoxel(tuple(index), list(trained.labels)[k], float(a[place]), float(b[place]))
    first, second = a.argmax(0), b.argmax(0)
    dice: dict[str, float | None] = {}
    for label, value in trained.labels.items():
        here, there = first == value, second == value
        total = int(here.sum()) + int(there.sum())
        dice[label] = 2 * int((here & there).sum()) / total if total else None
    return CaseParity(name, difference, float((first == second).double().mean()), dice, worst)
