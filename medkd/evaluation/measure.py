"""One case: every metric for every class in one pass.

Each map is scanned once, for the boxes of all its classes; what follows sees only the box around a class in both maps.
There, the distances between the two surfaces are measured once for all metrics that read them, and so are the lesions.

Empty classes (:data:`medkd.evaluation.metrics.EMPTY_POLICY`). A class that is in neither map is *absent*: all its
values are NaN and no mean counts it, for calling an organ that is not there perfect would flatter everyone. A class in
only one of the two is an error of the full size: Dice, IoU and NSD are 0, and the distances are the diagonal of the
volume in mm (edge to edge), more than any distance that two surfaces in that volume could have, so that missing an
organ never scores better than finding it badly. The volume error is the whole volume of the one that is there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medkd.errors import UserError, nearest
from medkd.evaluation import lesions as parts
from medkd.evaluation import metrics as names
from medkd.evaluation import overlap, surface

Labels = Mapping[str, int | Sequence[int]]
"""Class name -> label value, or the values of a region that is made of several (nnU-Net's whole tumour)."""
Box = tuple[slice, ...]


def measure_case(
    pred: NDArray[np.integer],
    ref: NDArray[np.integer],
    spacing_mm: Sequence[float],
    labels: Labels,
    metrics: Sequence[str] = names.DEFAULT_METRICS,
    *,
    convention: surface.Convention = "surfel",
    lesions: Collection[str] | None = None,
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
            difference; its sign is in the two volume columns), ``lesion_f1``, ``lesion_recall``,
            ``lesion_precision``, ``lesion_missed`` and ``lesion_false`` (each also with an IoU: ``lesion_f1_iou0.5``).
        convention: what a surface is, see :mod:`medkd.evaluation.surface`.
        lesions: classes whose lesions are counted; by default those whose name says that they are lesions. Metrics
            of lesions are NaN for all other classes.

    Returns:
        One flat dictionary a class, in the order of ``labels``: ``label``, the metrics, ``voxels_ref``,
        ``voxels_pred``, ``volume_ref_ml``, ``volume_pred_ml``.

    Raises:
        UserError: shapes or spacing do not fit, maps are not integers, a metric is unknown, or a class of lesions is.
    """
    _refuse(pred, ref, spacing_mm, labels, metrics)
    wanted = {name: values for name, values in ((n, _values(v)) for n, v in labels.items()) if values}
    if unknown := sorted(set(lesions or ()) - set(wanted)):
        raise UserError(
            f"lesions of {unknown[0]!r} should be counted, but no class is called so{nearest(unknown[0], wanted)}"
        )
    top = max((value for values in wanted.values() for value in values), default=1)
    boxes_pred, boxes_ref = find_objects(pred, top), find_objects(ref, top)
    ignored = ref == overlap.IGNORE if ref.size and ref.min() < 0 else None
    diagonal = math.hypot(*(size * step for size, step in zip(ref.shape, spacing_mm, strict=True)))
    voxel_ml = math.prod(spacing_mm) / 1000
    measured: list[dict[str, object]] = []
    for name, values in wanted.items():
        box = _around([found[value - 1] for found in (boxes_pred, boxes_ref) for value in values])
        one = _Class(_mask(pred, values, box), _mask(ref, values, box), spacing_mm, convention)
        if ignored is not None:
            one.pred &= ~ignored[box]
        one.counts_lesions = name in lesions if lesions is not None else names.names_lesion(name)
        scores = {metric: _value(metric, one, diagonal, voxel_ml) for metric in metrics}
        sizes = {"volume_ref_ml": one.in_ref * voxel_ml, "volume_pred_ml": one.in_pred * voxel_ml}
        measured.append({"label": name, **scores, "voxels_ref": one.in_ref, "voxels_pred": one.in_pred, **sizes})
    return measured


class _Class:
    """Both masks of one class in its box; what several metrics share is worked out once."""

    def __init__(
        self,
        pred: NDArray[np.bool_],
        ref: NDArray[np.bool_],
        spacing_mm: Sequence[float],
        convention: surface.Convention,
    ) -> None:
        self.pred, self.ref = pred, ref
        self.spacing_mm, self.convention = spacing_mm, convention
        self.counts_lesions = False

    @cached_property
    def in_pred(self) -> int:
        return int(np.count_nonzero(self.pred))

    @cached_property
    def in_ref(self) -> int:
        return int(np.count_nonzero(self.ref))

    @cached_property
    def both(self) -> int:
        return int(np.count_nonzero(self.pred & self.ref))

    @cached_property
    def gaps(self) -> surface.Gaps:
        return surface.gaps(self.pred, self.ref, self.spacing_mm, self.convention)

    @cached_property
    def lesions(self) -> tuple[list[float], int, int]:
        return parts.pair_ious(self.pred, self.ref)


def _value(metric: str, one: _Class, diagonal: float, voxel_ml: float) -> float:
    if not one.in_ref and not one.in_pred:
        return float("nan")
    if (lesion := names.lesion_metric(metric)) is not None:
        return _of_lesions(*lesion, one)
    if metric == "dice":
        return overlap.dice(one.both, one.in_ref, one.in_pred)
    if metric == "iou":
        return overlap.iou(one.both, one.in_ref, one.in_pred)
    if metric == "volume_error_ml":
        return abs(one.in_pred - one.in_ref) * voxel_ml
    if not one.in_ref or not one.in_pred:
        return 0.0 if names.higher_is_better(metric) else diagonal
    if metric == "hd95_mm":
        return surface.hausdorff_mm(one.gaps, 95)
    if metric == "assd_mm":
        return surface.assd_mm(one.gaps)
    return surface.nsd(one.gaps, names.tolerance_mm(metric))


def _of_lesions(what: str, iou: float, one: _Class) -> float:
    if not one.counts_lesions:
        return float("nan")
    found = parts.at_iou(*one.lesions, iou)
    return float(getattr(found, what.removeprefix("lesion_")))


def _values(given: int | Sequence[int]) -> tuple[int, ...]:
    values = (given,) if isinstance(given, int | np.integer) else tuple(given)
    return tuple(int(value) for value in values if value > 0)


def _around(boxes: Sequence[Box | None]) -> Box:
    """Return the box around all boxes; where there is none, one without a voxel."""
    there = [box for box in boxes if box is not None]
    if not there:
        return (slice(0, 0),)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*there, strict=True))


def _mask(array: NDArray[np.integer], values: tuple[int, ...], box: Box) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = array[box] == values[0]
    for value in values[1:]:
        mask |= array[box] == value
    return mask


def _refuse(
    pred: NDArray[np.integer],
    ref: NDArray[np.integer],
    spacing_mm: Sequence[float],
    labels: Labels,
    metrics: Sequence[str],
) -> None:
    if pred.shape != ref.shape:
        raise UserError(f"prediction {pred.shape} and reference {ref.shape} differ in shape: bring them to one grid")
    if len(spacing_mm) != ref.ndim or not all(math.isfinite(step) and step > 0 for step in spacing_mm):
        raise UserError(f"spacing_mm {tuple(spacing_mm)} must be {ref.ndim} positive numbers, one an axis")
    for name, array in (("prediction", pred), ("reference", ref)):
        if not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"the {name} holds {array.dtype}, not integer labels: round or threshold it first")
    wanted = [frozenset(_values(value)) for value in labels.values()]
    if len(set(wanted)) != len(wanted):
        raise UserError(f"labels {dict(labels)} give two names to one value: keep one of them")
    for metric in metrics:
        names.higher_is_better(metric)
