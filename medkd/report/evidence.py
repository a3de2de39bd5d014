"""What was measured beyond Dice: agreement with the teacher, trust in probabilities, losses by size, whole volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.report.packing import unpack

REGIONS = ("foreground", "boundary", "background", "all")
"""Where agreement with the teacher is told: inside the structures, near their edges, far from them, everywhere."""

SIZES = ("small", "medium", "large")
"""Thirds of the reference volumes of a class."""


@dataclass(frozen=True)
class Fidelity:
    """How far an arm says what the teacher says, in one region of the test volumes.

    Args:
        arm: name of the arm.
        teacher: name of the teacher.
        region: one of :data:`REGIONS`.
        agreement: share of voxels with the teacher's class, in [0, 1].
        kl_nats: mean KL divergence from the teacher's probabilities to the arm's; None where only labels are known.
        n_voxels: how many voxels the region has over all cases.
    """

    arm: str
    teacher: str
    region: str
    agreement: float | None = None
    kl_nats: float | None = None
    n_voxels: int = 0


@dataclass(frozen=True)
class Outcome:
    """Who is right about one class: shares of the voxels that reference, teacher or arm give to it, over all cases.

    Args:
        arm: name of the arm.
        teacher: name of the teacher.
        label: class name.
        n_voxels: voxels counted.
        both_right: share where arm and teacher are right, in [0, 1]; the four shares sum to 1.
        arm_only: share where the arm is right and the teacher wrong: where it beats its teacher.
        teacher_only: share where the teacher is right and the arm wrong: where something was lost.
        both_wrong: share where neither is right.
    """

    arm: str
    teacher: str
    label: str
    n_voxels: int = 0
    both_right: float | None = None
    arm_only: float | None = None
    teacher_only: float | None = None
    both_wrong: float | None = None


@dataclass(frozen=True)
class Reliability:
    """How far an arm's confidence can be believed.

    Args:
        arm: name of the arm.
        ece: expected calibration error, in [0, 1].
        brier: mean over voxels of the squared error of the probabilities, summed over classes, in [0, 2].
        bins: (mean confidence, accuracy, share of voxels) of each bin, all in [0, 1], confidence rising.
    """

    arm: str
    ece: float | None = None
    brier: float | None = None
    bins: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Reliability:
        """Return what ``plain`` wrote."""
        bins = tuple((float(c), float(a), float(s)) for c, a, s in values.get("bins", ()))
        return cls(**{**values, "bins": bins})


@dataclass(frozen=True)
class Lost:
    """Mean Dice of one class in the cases where it is small, medium or large.

    Args:
        label: class name.
        size: one of :data:`SIZES`, thirds of the class's reference volumes.
        n: number of cases.
        teacher: mean Dice of the teacher.
        student: mean Dice of the student.
        control: mean Dice of the control.
        difference: student minus teacher: below zero is what was lost.
        note: range of the volumes, "0.4 to 1.1 ml" say.
    """

    label: str
    size: str
    n: int = 0
    teacher: float | None = None
    student: float | None = None
    control: float | None = None
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class VolumeView:
    """One case to scroll through: the image and every mask on one grid.

    Args:
        case: case id.
        image: ``(X, Y, Z)`` uint8 (windowed) or int16, canonical RAS+, cropped and reduced to fit into a page.
        affine: ``(4, 4)`` voxel to world in mm, of the reduced grid.
        label: ``(X, Y, Z)`` class values, -1 where unknown.
        masks: arm name -> ``(X, Y, Z)`` class values.
        note: what was done to the case: "cropped to the structures, every second voxel".
    """

    case: str
    image: NDArray[np.integer[Any]]
    affine: NDArray[np.float64]
    label: NDArray[np.integer[Any]]
    masks: Mapping[str, NDArray[np.integer[Any]]] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> VolumeView:
        """Return what ``plain`` wrote."""
        arrays: dict[str, Any] = {name: unpack(values[name]) for name in ("image", "affine", "label")}
        masks = {name: unpack(value) for name, value in values.get("masks", {}).items()}
        return cls(**{**values, **arrays, "masks": masks})
