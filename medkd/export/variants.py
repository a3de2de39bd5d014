"""Is a smaller variant of an exported network still as good? Asked of real cases, answered with one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.export.evidence import Evidence
from medkd.inference.model import SegmentationModel
from medkd.types import IGNORE

GATE = 0.005
"""Largest mean loss of Dice with which a variant is kept, where nothing else is said."""
ONE_CLASS = 4.0
"""A single class may lose this many times the gate: a few cases scatter more than their mean."""


@dataclass(frozen=True)
class Verdict:
    """A variant against fp32.

    Args:
        variant: its name.
        kept: whether it passed.
        reason: why not, in one sentence with the number; empty where it passed.
        gate: largest mean loss that was allowed.
        loss: mean over classes of the Dice that is lost; NaN where nothing could be measured.
        worst_class: the class that lost most.
        worst_loss: its loss.
        against: what Dice was measured with.
        agreement: lowest share over the cases of voxels with the class that fp32 gives.
        difference: largest difference of a probability from fp32.
        cases: for every case the Dice by class of fp32 and of the variant; None where neither side has the class.
    """

    variant: str
    kept: bool
    reason: str
    gate: float
    loss: float
    worst_class: str
    worst_loss: float
    against: str
    agreement: float
    difference: float
    cases: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers; what is not finite becomes null."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def judge(
    reference: SegmentationModel, variants: Mapping[str, SegmentationModel], evidence: Evidence, *, gate: float = GATE
) -> dict[str, Verdict]:
    """Compare variants with fp32 on every case of the evidence.

    Dice is measured with the label maps where the cases have them, and the loss is what the variant has less than fp32.
    Without label maps the masks of fp32 stand in, which is stricter: every voxel that differs counts as lost.

    Args:
        reference: the network in fp32.
        variants: name -> the variant, loaded.
        evidence: the cases, at least one.
        gate: largest mean loss; one class may lose :data:`ONE_CLASS` times as much.
    """
    labelled = any(case.label is not None for case in evidence.cases)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    agreements: dict[str, list[float]] = {name: [] for name in variants}
    differences: dict[str, list[float]] = {name: [] for name in variants}
    names = [name for name in evidence.classes if reference.labels[name] > 0]
    for case in evidence.cases:
        if labelled and case.label is None:
            continue
        image = case.image()
        expected = reference.probabilities(image)
        mask = np.asarray(expected.argmax(0))
        truth = mask if case.label is None else case.label()
        for name, model in variants.items():
            answer = model.probabilities(image)
            found = np.asarray(answer.argmax(0))
            differences[name].append(float((answer - expected).abs().max()))
            agreements[name].append(float((found == mask).mean()))
            pairs = {k: [_dice(m, truth, reference.labels[k]) for m in (mask, found)] for k in names}
            rows[name].append({"case": case.name, "fp32": _side(pairs, 0), name: _side(pairs, 1)})
    against = "the label maps" if labelled else "the masks of fp32"
    return {
        name: _verdict(name, rows[name], agreements[name], differences[name], names, gate, against) for name in variants
    }


def tell(loss: float) -> str:
    """Return a loss of Dice with four decimals; what rounds to nothing has no sign."""
    return f"{round(loss, 4) + 0.0:.4f}"


def refusal(variant: str, reason: str, gate: float = GATE) -> Verdict:
    """Return the verdict on a variant that could not be made or measured."""
    nan = float("nan")
    return Verdict(variant, False, reason, gate, nan, "", nan, "", nan, nan, ())


def _verdict(
    name: str,
    rows: list[dict[str, Any]],
    agreements: list[float],
    differences: list[float],
    names: list[str],
    gate: float,
    against: str,
) -> Verdict:
    losses = {}
    for k in names:
        pairs = [(row["fp32"][k], row[name][k]) for row in rows]
        known = [first - second for first, second in pairs if first is not None and second is not None]
        if known:
            losses[k] = float(np.mean(known))
    if not losses:
        return refusal(name, "none of its classes is in the cases that it was to be compared on", gate)
    loss = float(np.mean([*losses.values()]))
    worst = max(losses, key=lambda k: losses[k])
    difference = float(np.max(differences))
    reason = ""
    if not np.isfinite(difference):
        reason = "it gives NaN or infinite probabilities"
    elif loss > gate:
        reason = f"it loses {loss:.5f} of Dice against {against}, and {gate:g} is allowed"
    elif losses[worst] > ONE_CLASS * gate:
        lost = f"{losses[worst]:.5f} of Dice in {worst} against {against}"
        reason = f"it loses {lost}, and {ONE_CLASS * gate:g} is allowed for one class"
    return Verdict(
        variant=name,
        kept=not reason,
        reason=reason,
        gate=gate,
        loss=loss,
        worst_class=worst,
        worst_loss=losses[worst],
        against=against,
        agreement=min(agreements),
        difference=difference,
        cases=tuple(rows),
    )


def _dice(mask: NDArray[Any], truth: NDArray[Any], value: int) -> float | None:
    known = truth != IGNORE
    here, there = (mask == value) & known, truth == value
    total = int(here.sum()) + int(there.sum())
    return 2 * int((here & there).sum()) / total if total else None


def _side(pairs: Mapping[str, list[float | None]], side: int) -> dict[str, float | None]:
    return {name: pair[side] for name, pair in pairs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return [dict(item) for item in value] if isinstance(value, tuple) else value
