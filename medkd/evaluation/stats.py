"""Did it help? Two arms compared on the same cases, with an honest interval and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from medkd.errors import UserError
from medkd.evaluation.cases import Row, higher_is_better
from medkd.evaluation.contrast import ALPHA, LEVEL, MIN_PATIENTS, Verdict, compare, judge, loss_p, over_classes, reason
from medkd.evaluation.pairs import Matched, match
from medkd.evaluation.significance import effect_size, holm, probability_better
from medkd.evaluation.words import sentence


@dataclass(frozen=True)
class ClassResult:
    """The comparison for one class; fields as in :class:`Paired`.

    ``verdict`` uses ``holm_p``, Wilcoxon's p corrected for the number of classes (Holm).
    """

    label: str
    n_patients: int
    n_pairs: int
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    wilcoxon_p: float
    holm_p: float
    verdict: Verdict


@dataclass(frozen=True)
class Paired:
    """Arm a against arm b by one metric.

    Args:
        metric: its name; differences are ``a - b`` in its unit.
        higher_is_better: its direction.
        arm_a: name of the arm in question.
        arm_b: name of the arm that it is compared with.
        mean_a: mean over patients of arm a.
        mean_b: mean over patients of arm b.
        difference: mean over patients of the mean over their cases, seeds and classes; every patient weighs the same.
        ci_low: lower end of its bootstrap interval (percentiles; patients, cases within patients, and in each fold
            the seeds resampled; the classes are those asked about).
        ci_high: upper end.
        level: coverage meant by the interval, 0.95.
        wilcoxon_p: two-sided signed-rank test on the differences per patient.
        effect_size: mean over standard deviation of the differences per patient (Cohen's d of pairs); above 0
            is better.
        probability_better: share of patients for whom a is better than b, ties by half.
        margin: the loss that would still be accepted, in the metric's unit, or None.
        non_inferior: True when ``noninferiority_p`` is below 0.025; None without margin.
        n_patients: patients with a pair.
        n_cases: cases with a pair.
        n_seeds: seeds with a pair.
        n_folds: folds with a pair.
        n_pairs: class-by-case pairs counted.
        n_dropped: pairs and lonely rows that were not counted; ``notes`` say why.
        per_class: the same by class.
        verdict: ``helped`` or ``hurt`` when the interval excludes 0 and p < 0.05, else ``not shown``.
        reason: why it is not shown, or empty.
        notes: what a reader must know: one seed only, pairs left out, false alarms.
        sentence: all that matters in plain English.
        classes_low: lower end of the interval when classes are resampled too: for the claim that it also holds of
            other classes like these; NaN for fewer than :data:`MIN_CLASSES`.
        classes_high: its upper end.
        noninferiority_p: one-sided p of "a loses ``margin`` or more": the larger of the share of bootstrap draws that
            lose it (so that trainings count) and Wilcoxon's on the shifted differences per patient; None without
            margin.
    """

    metric: str
    higher_is_better: bool
    arm_a: str
    arm_b: str
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    level: float
    wilcoxon_p: float
    effect_size: float
    probability_better: float
    margin: float | None
    non_inferior: bool | None
    n_patients: int
    n_cases: int
    n_seeds: int
    n_folds: int
    n_pairs: int
    n_dropped: int
    per_class: tuple[ClassResult, ...]
    verdict: Verdict
    reason: str
    notes: tuple[str, ...]
    sentence: str = ""
    classes_low: float = float("nan")
    classes_high: float = float("nan")
    noninferiority_p: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return plain numbers, lists and strings; numbers that are not finite become None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def paired(
    a: Iterable[Row],
    b: Iterable[Row],
    metric: str = "dice",
    *,
    subject: str = "Distillation",
    margin: float | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Paired:
    """Compare two arms on the cases that both predicted.

    Args:
        a: rows of the arm in question: the distilled student.
        b: rows of the arm to compare with: the same student without distillation.
        metric: what to compare by.
        subject: first words of the sentence: what ``a`` has and ``b`` has not.
        margin: a loss that would be accepted, in the metric's unit and positive, for the non-inferiority test.
        draws: bootstrap draws.
        seed: of the bootstrap; the same rows give the same interval, in any order.

    Raises:
        UserError: the arms share no case, an arm has double rows, or the metric is unknown or was not measured.
    """
    if margin is not None and not margin > 0:
        raise UserError(f"margin {margin} must be positive: it is the loss of {metric} that would be accepted")
    rows_a, rows_b = list(a), list(b)
    better = 1.0 if higher_is_better(metric) else -1.0
    found = match(rows_a, rows_b, metric)
    core = compare(found.pairs, draws, seed)
    verdict = judge(core, core.wilcoxon_p, better)
    whole = over_classes(found.pairs, draws, seed)
    shown = None if margin is None else loss_p(core, margin, better)
    result = Paired(
        metric=metric,
        higher_is_better=better > 0,
        arm_a=rows_a[0].arm,
        arm_b=rows_b[0].arm,
        mean_a=core.mean_a,
        mean_b=core.mean_b,
        difference=core.difference,
        ci_low=core.ci_low,
        ci_high=core.ci_high,
        classes_low=whole[0],
        classes_high=whole[1],
        level=LEVEL,
        wilcoxon_p=core.wilcoxon_p,
        effect_size=effect_size(better * core.per_patient),
        probability_better=probability_better(better * core.per_patient),
        margin=margin,
        non_inferior=None if shown is None else core.enough and shown < ALPHA / 2,
        noninferiority_p=shown,
        n_patients=len(core.per_patient),
        n_cases=len({pair.case for pair in found.pairs}),
        n_seeds=len({pair.seed for pair in found.pairs}),
        n_folds=len({pair.fold for pair in found.pairs}),
        n_pairs=len(found.pairs),
        n_dropped=found.dropped,
        per_class=_classes(found, better, draws, seed),
        verdict=verdict,
        reason=reason(core, better) if verdict == "not shown" else "",
        notes=_notes(found) + _choice(whole, verdict),
    )
    return replace(result, sentence=sentence(result, subject))


def _classes(found: Matched, better: float, draws: int, seed: int) -> tuple[ClassResult, ...]:
    labels = found.labels
    groups = {label: [pair for pair in found.pairs if pair.label == label] for label in labels}
    cores = {label: compare(pairs, draws, seed) for label, pairs in groups.items()}
    corrected = dict(zip(labels, holm([cores[label].wilcoxon_p for label in labels]), strict=True))
    return tuple(
        ClassResult(
            label=label,
            n_patients=len(core.per_patient),
            n_pairs=len(groups[label]),
            mean_a=core.mean_a,
            mean_b=core.mean_b,
            difference=core.difference,
            ci_low=core.ci_low,
            ci_high=core.ci_high,
            wilcoxon_p=core.wilcoxon_p,
            holm_p=corrected[label],
            verdict=judge(core, corrected[label], better),
        )
        for label, core in cores.items()
    )


def _choice(whole: tuple[float, float], verdict: Verdict) -> tuple[str, ...]:
    """Return the note on a verdict that holds for these classes only."""
    if verdict == "not shown" or not whole[0] <= 0 <= whole[1]:
        return ()
    return ("It speaks of these classes: with the classes drawn as well the interval includes 0.",)


def _notes(found: Matched) -> tuple[str, ...]:
    seeds = {pair.seed for pair in found.pairs}
    left_out = [
        f"{count} {why}"
        for count, why in (
            (found.absent, "of a class that neither the reference nor an arm has"),
            (found.alone, "that only one arm has"),
            (found.broken, "without a finite value"),
        )
        if count
    ]
    notes = []
    if len(seeds) == 1:
        notes.append("One seed only: the luck of training is not in the interval.")
    if left_out:
        notes.append(f"{found.dropped} left out: {', '.join(left_out)}.")
    if found.false_alarms:
        notes.append(f"{found.false_alarms} counted where one arm alone predicted a class that is not there.")
    return tuple(notes)


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


__all__ = ["ALPHA", "MIN_PATIENTS", "ClassResult", "Paired", "Verdict", "paired"]
