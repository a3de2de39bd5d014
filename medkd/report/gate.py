"""Conditions that a run must meet, for a program that decides whether a network may be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medkd.errors import UserError, nearest
from medkd.evaluation.cases import Row
from medkd.evaluation.pairs import spread
from medkd.evaluation.stats import paired
from medkd.report import numbers
from medkd.report.packing import plain
from medkd.report.scores import Scores
from medkd.report.summary import RunSummary

MEAN = "mean"
"""Stands in a condition for the mean over the classes."""


@dataclass(frozen=True)
class Check:
    """One condition and whether it holds.

    Args:
        condition: what was asked, "Dice of liver at least 0.9".
        found: what was measured, as text.
        passed: True where it holds.
        why: why not, or empty.
        value: the number measured; None where there is none.
    """

    condition: str
    found: str
    passed: bool
    why: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Gate:
    """All conditions on one arm of a run."""

    run: str
    arm: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True where every condition holds."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"run": self.run, "arm": self.arm, "passed": self.passed, "checks": plain(self.checks)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows of text."""
        body = [[c.condition, c.found, "pass" if c.passed else "FAIL", c.why] for c in self.checks]
        return ["condition", "found", "", "why"], body


def gate(
    run: RunSummary,
    *,
    least_dice: Mapping[str, float] | None = None,
    noninferior: float | None = None,
    arm: str | None = None,
    against: str | None = None,
) -> Gate:
    """Ask whether an arm of a run is good enough.

    Args:
        run: the finished run.
        least_dice: class name, or ``mean`` for the mean over classes -> least mean Dice over patients. A class that
            the data call "mean" cannot be asked for.
        noninferior: loss of Dice against ``against`` that would be accepted; must be excluded, see
            :func:`medkd.evaluation.stats.paired`.
        arm: the arm in question; the student when None.
        against: the arm to compare with; the teacher when None.

    Raises:
        UserError: nothing is asked, no such arm or class, no Dice was measured, or a bound makes no sense.
    """
    name = _arm(run, arm, "student", "--arm")
    scores = Scores(run.rows)
    if "dice" not in scores.metrics:
        raise UserError(f"run {run.name} was not measured by dice: add it to evaluate.metrics and run again")
    checks = [_least(scores, name, label, bound) for label, bound in (least_dice or {}).items()]
    if noninferior is not None:
        checks.append(_noninferior(run, name, _arm(run, against, "teacher", "--against"), noninferior))
    elif against is not None:
        raise UserError("--against names the arm of a comparison, and none is asked for: add --noninferior 0.01")
    if not checks:
        raise UserError("a gate without a condition lets everything pass: give --min-dice or --noninferior")
    return Gate(run.name, name, tuple(checks))


def _arm(run: RunSummary, name: str | None, role: str, option: str) -> str:
    known = [arm.name for arm in run.arms]
    if name is not None:
        if name not in known:
            raise UserError(
                f"{option} {name}: run {run.name} has no such arm{nearest(name, known)}; {', '.join(known)}"
            )
        return name
    found = run.arm(role)
    if found is None:
        raise UserError(f"run {run.name} has no {role}: name an arm by {option}; it has {', '.join(known)}")
    return found.name


def _least(scores: Scores, arm: str, label: str, bound: float) -> Check:
    if not 0 <= bound <= 1:
        raise UserError(f"--min-dice {label}={bound:g}: Dice lies between 0 and 1")
    if label != MEAN and label not in scores.labels:
        known = (*scores.labels, MEAN)
        raise UserError(f"--min-dice {label}: no such class{nearest(label, known)}; there are {', '.join(known)}")
    value = scores.mean(arm, "dice", None if label == MEAN else label)
    condition = f"{'mean Dice' if label == MEAN else f'Dice of {label}'} at least {bound:g}"
    if value is None:
        return Check(condition, numbers.NOTHING, False, "no test case has the class")
    # As shown a value just under its bound would look equal to it.
    shown = next((t for t in (f"{value:.{d}f}" for d in (3, 4, 5)) if (float(t) >= bound) == (value >= bound)), "")
    passed = value >= bound
    return Check(condition, shown or repr(value), passed, "" if passed else f"{bound - value:.2g} too low", value)


def _noninferior(run: RunSummary, arm: str, against: str, margin: float) -> Check:
    mine, theirs = (rows_of(run, name) for name in (arm, against))
    if {row.seed for row in mine} != {row.seed for row in theirs}:
        theirs = spread(theirs, {row.seed for row in mine}, first_seed(run, against))
    found = paired(mine, theirs, "dice", margin=margin)
    condition = f"Dice at most {margin:g} below {against}"
    span = numbers.interval("dice", found.ci_low, found.ci_high)
    told = f"{numbers.difference('dice', found.difference)} ({span}), p {numbers.p_value(found.noninferiority_p)}"
    passed = bool(found.non_inferior)
    why = "" if passed else found.reason if "fewer" in found.reason else "a larger loss is not excluded"
    return Check(condition, told, passed, why, found.difference)


def rows_of(run: RunSummary, arm: str) -> list[Row]:
    """Return the rows of one arm of a summary, in which a missing number is None."""
    return [
        Row.from_record({name: "" if value is None else value for name, value in row.items()})
        for row in run.rows
        if row["arm"] == arm
    ]


def first_seed(run: RunSummary, name: str) -> int | None:
    """Return the seed of an arm's networks that teach; None where the run does not tell."""
    return next((arm.teaching_seed for arm in run.arms if arm.name == name), None)


def parse_bounds(texts: Iterable[str]) -> dict[str, float]:
    """Read ``liver=0.9`` assignments.

    Raises:
        UserError: no assignment, or no number.
    """
    found: dict[str, float] = {}
    for text in texts:
        label, equals, value = text.rpartition("=")
        try:
            found[label.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not label.strip():
            raise UserError(f"--min-dice {text}: not a bound; write --min-dice liver=0.9, or mean=0.8")
    return found
