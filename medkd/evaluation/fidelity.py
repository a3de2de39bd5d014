"""Does the student say what its teacher says, and where it does not, who is right?

Regions are told apart by the reference label: ``boundary`` is the band around every surface between two classes,
``foreground`` and ``background`` are what lies deeper inside and farther out, ``all`` is the three together. A volume
is mostly background that everyone agrees on, so the number over all voxels flatters and the other three are the ones
to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medkd.errors import UserError
from medkd.types import IGNORE

BAND_MM = 3.0
"""Half the width of the boundary band: about the slice thickness of a clinical scan."""
FLOOR = 1e-6
"""Least probability of a student in a logarithm, so that one voxel cannot decide the mean."""
REGIONS = ("foreground", "boundary", "background", "all")


@dataclass(frozen=True)
class Agreement:
    """How far a student agrees with its teacher in one region, as sums, so that cases can be added.

    Args:
        region: one of :data:`REGIONS`.
        n_voxels: voxels of the region.
        same: of these, voxels where both choose the same class.
        kl_sum: sum over the region of the KL divergence from the teacher's probabilities to the student's, nats; None
            where only classes are known.
    """

    region: str
    n_voxels: int
    same: int
    kl_sum: float | None

    @property
    def agreement(self) -> float | None:
        """Share of voxels with the teacher's class, in [0, 1]; None without voxels."""
        return self.same / self.n_voxels if self.n_voxels else None

    @property
    def kl_nats(self) -> float | None:
        """Mean KL divergence in nats; None where it is not known."""
        return None if self.kl_sum is None or not self.n_voxels else self.kl_sum / self.n_voxels


@dataclass(frozen=True)
class Outcome:
    """Who is right about one class, as numbers of voxels.

    Counted are the voxels that the reference, the teacher or the student gives to the class: the rest of the volume is
    right for everybody. Right about a class is who says that it is there where it is, and not where it is not.

    Args:
        label: class name.
        both_right: teacher and student are right.
        student_only: the student is right and the teacher wrong: here the student beats its teacher.
        teacher_only: the teacher is right and the student wrong: here something was lost.
        both_wrong: nobody is right.
    """

    label: str
    both_right: int
    student_only: int
    teacher_only: int
    both_wrong: int

    @property
    def n_voxels(self) -> int:
        """All voxels counted."""
        return self.both_right + self.student_only + self.teacher_only + self.both_wrong


@dataclass(frozen=True)
class CaseFidelity:
    """One case: agreement by region and outcomes by class."""

    case: str
    regions: tuple[Agreement, ...]
    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CaseFidelity:
        """Return what :meth:`to_json` wrote."""
        regions = tuple(Agreement(**region) for region in values["regions"])
        return cls(values["case"], regions, tuple(Outcome(**outcome) for outcome in values["outcomes"]))


def region_map(label: NDArray[np.integer], spacing_mm: Sequence[float], band_mm: float = BAND_MM) -> NDArray[np.uint8]:
    """Return ``(*S)``: 0 foreground, 1 boundary, 2 background, and 255 where the label is not known.

    The band holds the voxels on both sides of a surface (of different class than a neighbour along an axis) and those
    within ``band_mm`` of them, centre to centre. Voxels of unknown label make no surface.

    Args:
        label: ``(*S)`` reference classes.
        spacing_mm: voxel size along ``*S``.
        band_mm: half the width of the band.

    Raises:
        UserError: ``band_mm`` is negative.
    """
    if not band_mm >= 0:
        raise UserError(f"band_mm {band_mm} must be 0 or more: it is a distance from the surface in mm")
    edge = np.zeros(label.shape, np.bool_)
    for axis in range(label.ndim):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(label.ndim))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(label.ndim))
        differs = (label[low] != label[high]) & (label[low] != IGNORE) & (label[high] != IGNORE)
        edge[low] |= differs
        edge[high] |= differs
    found = np.where(label > 0, 0, 2).astype(np.uint8)
    if edge.any():
        reach = [int(np.ceil(band_mm / step)) + 1 for step in spacing_mm]
        (box,) = ndimage.find_objects(edge.astype(np.uint8))
        sides = zip(box, reach, label.shape, strict=True)
        around = tuple(slice(max(0, b.start - r), min(size, b.stop + r)) for b, r, size in sides)
        distance = ndimage.distance_transform_edt(~edge[around], sampling=tuple(spacing_mm))
        found[around][distance <= band_mm] = 1
    found[label == IGNORE] = 255
    return found


def agreement(
    teacher: Any, student: Any, regions: NDArray[np.uint8], classes: NDArray[np.integer] | None = None
) -> tuple[Agreement, ...]:
    """Compare the probabilities of a teacher and a student of one case, region by region.

    Args:
        teacher: ``(K, *S)`` probabilities; an array, or what gives one when sliced. Scaled to sum to 1.
        student: ``(K, *S)`` probabilities.
        regions: ``(*S)`` from :func:`region_map`.
        classes: ``(*S)`` that the teacher chose, where its probabilities are stored too coarsely to tell.

    Returns:
        One entry for each of :data:`REGIONS`.

    Raises:
        UserError: the shapes do not agree.
    """
    shapes = tuple(teacher.shape), tuple(student.shape)
    if shapes[0] != shapes[1] or shapes[0][1:] != regions.shape:
        raise UserError(
            f"teacher {shapes[0]}, student {shapes[1]} and regions {regions.shape} do not lie on one grid: compare "
            "answers about one prepared volume with the same classes"
        )
    count, same, kl = np.zeros(3, np.int64), np.zeros(3, np.int64), np.zeros(3)
    for here in range(regions.shape[0]):
        t, s = (np.asarray(p[:, here], np.float32) for p in (teacher, student))
        where = regions[here]
        alike = (t.argmax(0) if classes is None else classes[here]) == s.argmax(0)
        t = t / np.maximum(t.sum(0), FLOOR)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(t > 0, t * (np.log(t) - np.log(np.maximum(s, FLOOR))), 0.0)
        divergence = terms.sum(0, dtype=np.float64)
        for code in range(3):
            inside = where == code
            count[code] += inside.sum()
            same[code] += alike[inside].sum()
            kl[code] += divergence[inside].sum()
    return _with_all(
        [Agreement(REGIONS[code], int(count[code]), int(same[code]), float(kl[code])) for code in range(3)]
    )


def label_agreement(
    teacher: NDArray[np.integer], student: NDArray[np.integer], regions: NDArray[np.uint8]
) -> tuple[Agreement, ...]:
    """Compare classes ``(*S)`` where probabilities are not at hand; arguments and result as in :func:`agreement`."""
    if teacher.shape != student.shape or teacher.shape != regions.shape:
        raise UserError(f"teacher {teacher.shape} and student {student.shape} do not lie on one grid")
    alike = teacher == student
    codes = [regions == code for code in range(3)]
    parts = [Agreement(REGIONS[i], int(c.sum()), int(alike[c].sum()), None) for i, c in enumerate(codes)]
    return _with_all(parts)


def outcomes(
    teacher: NDArray[np.integer],
    student: NDArray[np.integer],
    reference: NDArray[np.integer],
    labels: Mapping[str, int],
) -> tuple[Outcome, ...]:
    """Count who is right about each class but the background, over one case.

    Args:
        teacher: ``(*S)`` classes.
        student: ``(*S)`` classes.
        reference: ``(*S)`` classes; unknown voxels count for nothing.
        labels: class name -> value.
    """
    known = reference != IGNORE
    t, s, r = teacher[known], student[known], reference[known]
    some = (t > 0) | (s > 0) | (r > 0)
    t, s, r = t[some], s[some], r[some]
    found = []
    for name, value in labels.items():
        if value <= 0:
            continue
        in_t, in_s, in_r = t == value, s == value, r == value
        union = in_t | in_s | in_r
        right_t, right_s = (in_t == in_r) & union, (in_s == in_r) & union
        both = int((right_t & right_s).sum())
        only_s, only_t = int(right_s.sum()) - both, int(right_t.sum()) - both
        found.append(Outcome(name, both, only_s, only_t, int(union.sum()) - both - only_s - only_t))
    return tuple(found)


def pool(cases: Iterable[CaseFidelity]) -> tuple[tuple[Agreement, ...], tuple[Outcome, ...]]:
    """Add up cases: agreement by region in the order of :data:`REGIONS`, outcomes by class in the order met.

    A KL divergence is only known where every case has one.
    """
    listed = list(cases)
    regions = []
    for name in REGIONS:
        parts = [part for case in listed for part in case.regions if part.region == name]
        if parts:
            sums = [part.kl_sum for part in parts]
            kl = None if any(value is None for value in sums) else sum(value for value in sums if value is not None)
            regions.append(Agreement(name, sum(p.n_voxels for p in parts), sum(p.same for p in parts), kl))
    by_label: dict[str, list[Outcome]] = {}
    for one in (outcome for case in listed for outcome in case.outcomes):
        by_label.setdefault(one.label, []).append(one)
    added = [
        Outcome(
            label,
            sum(part.both_right for part in parts),
            sum(part.student_only for part in parts),
            sum(part.teacher_only for part in parts),
            sum(part.both_wrong for part in parts),
        )
        for label, parts in by_label.items()
    ]
    return tuple(regions), tuple(added)


def _with_all(parts: Sequence[Agreement]) -> tuple[Agreement, ...]:
    sums = [part.kl_sum for part in parts]
    kl = None if any(value is None for value in sums) else sum(value for value in sums if value is not None)
    return (*parts, Agreement("all", sum(p.n_voxels for p in parts), sum(p.same for p in parts), kl))
