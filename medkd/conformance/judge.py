"""Judge a loss by every rule."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from medkd.conformance.play import BrokenRuleError, MootRuleError, Subject
from medkd.conformance.rules import RULES

Outcome = Literal["pass", "fail", "moot", "exempt"]


@dataclass(frozen=True)
class Finding:
    """What one rule said.

    Args:
        rule: its name.
        asks: the rule in one sentence.
        outcome: ``pass``, ``fail``, ``moot`` (asks nothing of this loss) or ``exempt`` (declared by the method).
        why: one line; empty for a pass.
    """

    rule: str
    asks: str
    outcome: Outcome
    why: str = ""

    @property
    def line(self) -> str:
        """The rule, and why it is not kept or not asked."""
        return f"{self.asks} {self.why}" if self.why else self.asks

    def to_json(self) -> dict[str, str]:
        """Return plain text by name."""
        return asdict(self)


def judge(subject: Subject, rules: Iterable[str] = tuple(RULES)) -> list[Finding]:
    """Return what each of the named rules says; whatever the loss raises is a failure with its message."""
    exempt = subject.fresh().exempt
    return [_judge(subject, rule, exempt.get(rule)) for rule in rules]


def _judge(subject: Subject, rule: str, excuse: str | None) -> Finding:
    check = RULES[rule]
    asks = " ".join((check.__doc__ or "").split())
    if excuse is not None:
        return Finding(rule, asks, "exempt", excuse)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what the rules find out anyway
            check(subject)
    except BrokenRuleError as error:
        return Finding(rule, asks, "fail", str(error))
    except MootRuleError as error:
        return Finding(rule, asks, "moot", str(error))
    except Exception as error:  # noqa: BLE001 - a loss under test may raise anything
        return Finding(rule, asks, "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    return Finding(rule, asks, "pass")
