"""What was lost: where the student falls behind its teacher, by class and by size."""

from __future__ import annotations

from typing import Any

from medkd.report import numbers
from medkd.report.evidence import SIZES, Lost
from medkd.report.summary import RunSummary

MOST_ROWS = 18
"""Further rows are folded away."""
FEW_CASES = 3
"""With fewer cases a mean is an anecdote: the row is shown but never named in the sentence."""


def losses(run: RunSummary) -> dict[str, Any]:
    """Return the rows of the list, the greatest loss first, as text, and one sentence that names it."""
    measured = [one for one in run.lost if one.difference is not None and one.n]
    ranked = sorted(measured, key=lambda one: (_gap(one), one.label, _order(one)))
    widest = max((abs(_gap(one)) for one in ranked), default=0.0)
    rows = [
        {
            "label": one.label,
            "size": one.size,
            "note": one.note,
            "n": one.n,
            "values": [numbers.metric_value("dice", value) for value in (one.teacher, one.student, one.control)],
            "difference": numbers.difference("dice", one.difference),
            "few": one.n < FEW_CASES,
            "side": "less" if _gap(one) < 0 else "more",
            "width": round(100 * abs(_gap(one)) / widest, 1) if widest else 0.0,
        }
        for one in ranked
    ]
    return {
        "rows": rows[:MOST_ROWS],
        "more": rows[MOST_ROWS:],
        "control": any(one.control is not None for one in ranked),
        "sentence": _sentence(ranked),
    }


def _sentence(ranked: list[Lost]) -> str:
    known = [one for one in ranked if one.n >= FEW_CASES]
    if not known:
        return ""
    worst = known[0]
    if _gap(worst) >= -0.0005:
        return "In no class and size does the student fall behind its teacher."
    text = (
        f"Most was lost where {worst.label} is {worst.size}{f' ({worst.note})' if worst.note else ''}: "
        f"mean Dice {numbers.difference('dice', worst.difference)} against the teacher over {worst.n} cases"
    )
    if worst.control is None or worst.student is None:
        return f"{text}."
    against = worst.student - worst.control
    if abs(against) < 0.0005:
        return f"{text}; the control does as well as the student there."
    better = "the student is better than" if against > 0 else "and there the student is worse than"
    return f"{text}; {better} the control {'there ' if against > 0 else ''}by {abs(against):.3f}."


def _gap(one: Lost) -> float:
    return one.difference or 0.0


def _order(one: Lost) -> int:
    return SIZES.index(one.size) if one.size in SIZES else len(SIZES)
