"""The first lines of the page: did distillation help, and what was lost against the teacher."""

from __future__ import annotations

from dataclasses import dataclass

from medkd.report import numbers
from medkd.report.scores import Scores
from medkd.report.summary import Arm, Comparison, RunSummary


@dataclass(frozen=True)
class Verdict:
    """What a reader must know first.

    Args:
        outcome: ``helped``, ``hurt``, ``not shown`` or ``not measured``.
        headline: the outcome in a few words.
        evidence: the comparison's own sentence, with interval, test and number of cases; empty without a comparison.
        lost: one or two sentences: the student against its teacher, in accuracy and in cost; or a study's best method.
    """

    outcome: str
    headline: str
    evidence: str
    lost: str


def verdict(run: RunSummary, scores: Scores | None = None) -> Verdict:
    """Return the verdict of a run: the student's comparison with its control, by Dice where there is one.

    For a study: how many methods helped.
    """
    scores = scores or Scores(run.rows)
    if run.study is not None:
        outcome = "helped" if any(line.verdict == "helped" for line in run.study.main) else "not shown"
        return Verdict(outcome, run.study.headline, "", run.study.evidence)
    lost = _lost(run, scores)
    student, control = run.arm("student"), run.arm("control") or run.arm("compute")
    if student is None or control is None:
        missing = "student" if student is None else "control (the same network trained without a teacher)"
        return Verdict("not measured", f"Whether distillation helped was not measured: no {missing}.", "", lost)
    found = [c for c in run.comparisons if (c.arm_a, c.arm_b) == (student.name, control.name)]
    if not found:
        return Verdict("not measured", "Whether distillation helped was not measured: no paired test.", "", lost)
    main = next((c for c in found if c.metric == "dice"), found[0])
    return Verdict(main.verdict, _headline(main), main.sentence, lost)


def _headline(c: Comparison) -> str:
    told = {"helped": "Distillation helped", "hurt": "Distillation hurt"}
    start = told.get(c.verdict, "Distillation was not shown to help or hurt")
    if c.difference is None:
        return f"{start}."
    name = numbers.metric_title(c.metric)
    if c.verdict not in told:
        return f"{start}: mean {name} {numbers.difference(c.metric, c.difference)}."
    size = numbers.metric_value(c.metric, abs(c.difference))
    if float(size) == 0:  # small but shown: must not read as nothing
        size = numbers.significant(abs(c.difference), 1)
    return f"{start}: mean {name} {'rose' if c.difference > 0 else 'fell'} by {size}."


def _lost(run: RunSummary, scores: Scores) -> str:
    student, teacher = run.arm("student"), run.arm("teacher")
    if student is None or teacher is None:
        return ""
    a, b = scores.mean(student.name, "dice"), scores.mean(teacher.name, "dice")
    if a is None or b is None:
        return _cheaper(student, teacher)
    told = f"{numbers.metric_value('dice', b)} to {numbers.metric_value('dice', a)}"
    gap = a - b
    if abs(gap) < 0.0005:
        first = f"Against {_the(teacher)} the student loses nothing in mean Dice ({told})."
    elif gap < 0:
        first = f"Against {_the(teacher)} the student loses {-gap:.3f} in mean Dice ({told})"
        first += f"{_worst_class(scores, student, teacher)}."
    else:
        first = f"The student is {gap:.3f} above {_the(teacher)} in mean Dice ({told})"
        first += f"{_worst_class(scores, student, teacher)}."
    return " ".join(part for part in (first, _within(run, student, teacher), _cheaper(student, teacher)) if part)


def _within(run: RunSummary, student: Arm, teacher: Arm) -> str:
    """Return whether the loss that the user accepts is excluded; empty where nobody said what is accepted."""
    found = run.comparison(student.name, teacher.name)
    if found is None or found.margin is None:
        return ""
    points = f"{100 * found.margin:g} Dice point{'' if found.margin == 0.01 else 's'}"
    p = numbers.p_value(found.noninferiority_p)
    told = "yes" if found.non_inferior else "not shown"
    return f"Within {points} of {_the(teacher)}: {told}, p {p if p.startswith('<') else f'= {p}'}."


def _worst_class(scores: Scores, student: Arm, teacher: Arm) -> str:
    gaps = {}
    for label in scores.labels:
        a, b = scores.mean(student.name, "dice", label), scores.mean(teacher.name, "dice", label)
        if a is not None and b is not None:
            gaps[label] = a - b
    if len(gaps) < 2 or min(gaps.values()) > -0.0005:
        return ""
    label = min(gaps, key=lambda name: gaps[name])
    return f", most in {label} ({numbers.difference('dice', gaps[label])})"


def _cheaper(student: Arm, teacher: Arm) -> str:
    parts = []
    for name, smaller, larger in (
        ("parameters", "{}× fewer parameters", "{}× more parameters"),
        ("latency_s", "takes {}× less time", "takes {}× more time"),
        ("memory_mb", "needs {}× less memory", "needs {}× more memory"),
    ):
        a, b = getattr(student, name), getattr(teacher, name)
        if not a or not b:
            continue
        times = numbers.significant(max(a, b) / min(a, b), 2)
        if times != "1.0":
            parts.append((smaller if a < b else larger).format(times))
    if not parts:
        return ""
    if "parameters" in parts[0]:
        parts[0] = f"has {parts[0]}"
    told = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"It {told}."


def _the(arm: Arm) -> str:
    """Return ``the teachers``, or ``nnunet_5fold (the teacher)`` where the title does not tell."""
    if "teacher" not in arm.shown.lower():
        return f"{arm.shown} (the teacher)"
    return f"the {arm.shown[:1].lower()}{arm.shown[1:]}"
