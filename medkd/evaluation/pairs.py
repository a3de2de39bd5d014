"""Rows of two arms, matched: the same class of the same case under the same fold and seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from medkd.errors import UserError
from medkd.evaluation.cases import Row, higher_is_better

_Key = tuple[int, int, str, str]


@dataclass(frozen=True)
class Pair:
    """One class of one case, by both arms."""

    fold: int
    seed: int
    case: str
    patient: str
    label: str
    a: float
    b: float


@dataclass(frozen=True)
class Matched:
    """The pairs of two arms and what was left out.

    Args:
        pairs: pairs with two finite values.
        labels: class names in the order of arm a's rows, also those without a pair.
        absent: pairs left out because the class is in neither arm's map nor the reference.
        broken: pairs left out because a value is not finite although the class is there.
        alone: rows without a partner in the other arm.
        false_alarms: pairs kept where the reference lacks the class and one arm alone predicted it.
    """

    pairs: tuple[Pair, ...]
    labels: tuple[str, ...] = ()
    absent: int = 0
    broken: int = 0
    alone: int = 0
    false_alarms: int = 0

    @property
    def dropped(self) -> int:
        """How many pairs and lonely rows no number counts."""
        return self.absent + self.broken + self.alone


def match(a: Iterable[Row], b: Iterable[Row], metric: str) -> Matched:
    """Pair the rows of two arms by (fold, seed, case, label).

    A class that is absent for both arms (NaN, see :mod:`medkd.evaluation.cases`) is left out. Where the reference lacks
    it and one arm alone predicted it, the arm that left it out was right and gets the best value (1, or a distance
    of 0): dropping such pairs would hide every organ that the other arm invented.

    Raises:
        UserError: an arm has two rows for one key, no row of the metric, or nothing matches.
    """
    best = 1.0 if higher_is_better(metric) else 0.0
    one, two = _by_key(a, metric), _by_key(b, metric)
    pairs, absent, broken, false_alarms = [], 0, 0, 0
    shared = sorted(one.keys() & two.keys())
    for key in shared:
        rows = one[key], two[key]
        if all(row.absent for row in rows):
            absent += 1
            continue
        values = [best if row.absent else row.values[metric] for row in rows]
        if not all(math.isfinite(value) for value in values):
            broken += 1
            continue
        false_alarms += any(row.absent for row in rows)
        fold, seed, case, label = key
        pairs.append(Pair(fold, seed, case, rows[0].patient, label, *values))
    if not shared:
        raise UserError("the two arms share no case of the same fold and seed: compare arms of one run")
    labels = tuple(dict.fromkeys(row.label for row in one.values()))
    return Matched(tuple(pairs), labels, absent, broken, len(one) + len(two) - 2 * len(shared), false_alarms)


def _by_key(rows: Iterable[Row], metric: str) -> dict[_Key, Row]:
    found: dict[_Key, Row] = {}
    for row in rows:
        key = (row.fold, row.seed, row.case, row.label)
        if key in found:
            raise UserError(
                f"arm {row.arm!r} has two rows for {row.label!r} of case {row.case!r} (fold {row.fold}, "
                f"seed {row.seed}): give each arm by itself"
            )
        if metric not in row.values:
            raise UserError(f"arm {row.arm!r} was not measured by {metric}: add it to the metrics and evaluate again")
        found[key] = row
    if not found:
        raise UserError("an arm without rows cannot be compared: evaluate it first")
    return found


def spread(rows: Iterable[Row], seeds: Iterable[int], own: int | None = None) -> list[Row]:
    """Return the rows of one training once for each of ``seeds``, to pair it with an arm of several.

    Args:
        rows: rows of an arm.
        seeds: the seeds of the other arm.
        own: the seed whose rows are meant; the lowest when None.
    """
    listed = list(rows)
    own = min((row.seed for row in listed), default=0) if own is None else own
    return [replace(row, seed=seed) for seed in sorted(set(seeds)) for row in listed if row.seed == own]
