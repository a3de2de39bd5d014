"""The metrics by name: which there are, which way is better, and what a class that is not there scores."""

from __future__ import annotations

import re

from medkd.errors import UserError, nearest

DEFAULT_METRICS = ("dice", "hd95_mm", "nsd_1mm", "volume_error_ml")

EMPTY_POLICY = (
    "A class in neither map is absent: NaN, in no mean. A class in only one of them scores Dice, IoU and NSD 0, "
    "and the diagonal of the volume in mm as surface distance. Lesion recall is NaN where the reference has no "
    "lesion: there was none to find."
)

_UP = ("dice", "iou", "nsd_1mm", "lesion_f1", "lesion_recall", "lesion_precision")
_DOWN = ("hd95_mm", "assd_mm", "volume_error_ml", "lesion_missed", "lesion_false")
_HIGHER = {**dict.fromkeys(_UP, True), **dict.fromkeys(_DOWN, False)}
_NSD = re.compile(r"nsd_(?P<mm>\d+(?:\.\d+)?)mm")
_LESION = re.compile(r"(?P<what>lesion_(?:f1|recall|precision|missed|false))(?:_iou(?P<iou>0?\.\d+|1(?:\.0+)?))?")
_NAMES_A_LESION = re.compile(r"lesion|tumou?r|metasta|cancer|carcinoma|nodule|neoplasm", re.IGNORECASE)

MATCH_IOU = 0.1
"""Least IoU of two lesions that are the same one, where the metric's name gives none."""


def higher_is_better(metric: str) -> bool:
    """Return the direction of ``metric``.

    Raises:
        UserError: no such metric.
    """
    if _NSD.fullmatch(metric):
        return True
    if found := _LESION.fullmatch(metric):
        return _HIGHER[found["what"]]
    if metric not in _HIGHER:
        raise UserError(
            f"no metric is called {metric!r}{nearest(metric, _HIGHER)}; known: {', '.join(_HIGHER)} "
            "(nsd with any number of mm, lesions with any IoU, such as lesion_f1_iou0.5)"
        )
    return _HIGHER[metric]


def of_surfaces(metric: str) -> bool:
    """Return whether ``metric`` is read from distances between surfaces."""
    return metric in ("hd95_mm", "assd_mm") or _NSD.fullmatch(metric) is not None


def tolerance_mm(metric: str) -> float:
    """Return the tolerance of an NSD: ``nsd_2.5mm`` -> 2.5."""
    found = _NSD.fullmatch(metric)
    assert found is not None
    return float(found["mm"])


def lesion_metric(metric: str) -> tuple[str, float] | None:
    """Return what a metric of lesions counts and the least IoU of a match, or None for any other metric."""
    found = _LESION.fullmatch(metric)
    return (found["what"], float(found["iou"] or MATCH_IOU)) if found else None


def names_lesion(label: str) -> bool:
    """Return whether a class says by its name that it consists of lesions: ``liver tumour``, ``MS_lesions``."""
    return _NAMES_A_LESION.search(label) is not None
