"""The values of a plan: how each is written, read from YAML or JSON, and refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medkd.errors import UserError

Ints = tuple[int, int, int]
Floats = tuple[float, float, float]


@dataclass(frozen=True)
class IntensityRule:
    """How one channel is normalised.

    Args:
        kind: ``ct`` clips to ``[low, high]`` HU and scales by ``mean`` and ``std`` of the dataset's foreground;
            ``zscore`` scales each volume by its own mean and deviation and ignores the other numbers.
    """

    kind: Literal["ct", "zscore"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0


def parse(key: str, value: Any, channels: int | None) -> Any:
    """Return ``value`` as the type of ``Plan.key``; UserError in one sentence when it is not."""
    try:
        return _PARSERS[key](value) if key != "intensity" else _rules(value, channels)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"plan.{key} is {value!r}: give {_FORMS[key]}") from error


def _rules(value: Any, channels: int | None) -> tuple[IntensityRule, ...]:
    items = [value] * (channels or 1) if isinstance(value, str | Mapping | IntensityRule) else list(value)
    rules = tuple(_rule(item) for item in items)
    if channels is not None and len(rules) != channels:
        raise UserError(
            f"plan.intensity has {len(rules)} rules but the dataset has {channels} channels: give one of each"
        )
    return rules


def _rule(item: Any) -> IntensityRule:
    if isinstance(item, IntensityRule):
        return item
    data: dict[str, Any] = {"kind": item} if isinstance(item, str) else dict(item)
    if data.get("kind") not in ("ct", "zscore") or (data["kind"] == "ct" and len(data) < 5):
        raise ValueError
    rule = IntensityRule(data.pop("kind"), **{name: float(number) for name, number in data.items()})
    if rule.kind == "ct" and not (rule.low < rule.high and rule.std > 0):
        raise ValueError
    return rule


def _positive_ints(value: Any) -> Ints:
    result = ints(value)
    if min(result) < 1 or any(a != b for a, b in zip(result, value, strict=True)):
        raise ValueError
    return result


def _stages(value: Any) -> tuple[Ints, ...]:
    stages = tuple(_positive_ints(item) for item in value)
    if not stages:
        raise ValueError
    return stages


def _positive_floats(value: Any) -> Floats:
    result = floats(value)
    if not (min(result) > 0 and np.isfinite(result).all()):
        raise ValueError
    return result


def _batch_size(value: Any) -> int:
    if int(value) < 1 or int(value) != value:
        raise ValueError
    return int(value)


def _axes(value: Any) -> tuple[int, ...]:
    axes = tuple(sorted({int(axis) for axis in value}))
    if any(axis not in (0, 1, 2) for axis in axes):
        raise ValueError
    return axes


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "spacing_mm": _positive_floats,
    "patch": _positive_ints,
    "batch": _batch_size,
    "strides": _stages,
    "kernels": _stages,
    "mirror_axes": _axes,
    "mirror_swap": lambda value: tuple((int(left), int(right)) for left, right in value),
}
_FORMS = {
    "spacing_mm": "three positive numbers in mm, as [1, 1, 1]",
    "patch": "three positive whole numbers of voxels, as [40, 56, 40]",
    "batch": "a positive whole number",
    "intensity": "'zscore', or {kind: ct, low: .., high: .., mean: .., std: ..}, low < high, for all channels or each",
    "strides": "three whole numbers per resolution, as [[1, 1, 1], [2, 2, 2]]",
    "kernels": "three whole numbers per resolution, as [[3, 3, 3], [3, 3, 3]]",
    "mirror_axes": "a list of axes 0 (left-right), 1 (front-back) and 2 (up-down), or []",
    "mirror_swap": "pairs of label values, as [[3, 4]]",
}


def plain(value: Any) -> Any:
    """Return ``value`` with lists for tuples, as JSON would give it back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def ints(values: Any) -> Ints:
    """Return three whole numbers; ValueError when there are not three."""
    x, y, z = (int(value) for value in values)
    return x, y, z


def floats(values: Any) -> Floats:
    """Return three numbers; ValueError when there are not three."""
    x, y, z = (float(value) for value in values)
    return x, y, z


def text(values: Sequence[float]) -> str:
    """Return ``40 x 56 x 40`` for a note."""
    return " x ".join(f"{value:g}" for value in values)
