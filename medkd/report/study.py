"""Many methods against one baseline: the table of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from medkd.evaluation.significance import holm
from medkd.evaluation.stats import ALPHA, Paired
from medkd.report import numbers
from medkd.report.packing import plain


@dataclass(frozen=True)
class StudyLine:
    """One method against the baseline by one metric.

    Args:
        method: name of its arm.
        metric: name of the metric; differences are in its unit.
        mean: mean over patients of the method.
        baseline: mean of the baseline over the same cases.
        difference: the first less the second.
        ci_low: lower end of the 95 % interval of the difference.
        ci_high: upper end.
        wilcoxon_p: of this comparison alone.
        holm_p: corrected by Holm for the number of methods.
        n_patients: patients in both arms.
        n_cases: cases.
        n_seeds: seeds.
        verdict: ``helped`` or ``hurt`` when the interval excludes 0 and the corrected p is below 0.05, else
            ``not shown``.
    """

    method: str
    metric: str
    mean: float | None
    baseline: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    wilcoxon_p: float | None
    holm_p: float | None
    n_patients: int
    n_cases: int
    n_seeds: int
    verdict: str


@dataclass(frozen=True)
class Study:
    """The comparison of every distilled stage with one baseline.

    Args:
        baseline: name of the baseline's arm.
        metrics: their names, the one that decides first.
        lines: every method by every metric; within a metric the best first.
    """

    baseline: str
    metrics: tuple[str, ...]
    lines: tuple[StudyLine, ...]

    def of(self, metric: str) -> tuple[StudyLine, ...]:
        """Return the lines of one metric."""
        return tuple(line for line in self.lines if line.metric == metric)

    @property
    def main(self) -> tuple[StudyLine, ...]:
        """The lines of the metric that decides."""
        return self.of(self.metrics[0])

    @property
    def headline(self) -> str:
        """How many methods helped."""
        lines = self.main
        told = {v: [line.method for line in lines if line.verdict == v] for v in ("helped", "hurt")}
        parts = [f"{len(told['helped'])} of {len(lines)} methods helped"]
        parts += [f"{len(told['hurt'])} hurt"] if told["hurt"] else []
        return f"{' and '.join(parts)}, against {self.baseline}."

    @property
    def evidence(self) -> str:
        """The best method in numbers, and how to read them."""
        best = self.main[0]
        name = numbers.metric_title(best.metric)
        span = numbers.interval(best.metric, best.ci_low, best.ci_high)
        seeds = f"{best.n_seeds} seed{'' if best.n_seeds == 1 else 's'}"
        return (
            f"Best: {best.method}, mean {name} {numbers.difference(best.metric, best.difference)} "
            f"(95 % interval {span}, Wilcoxon p {numbers.p_value(best.holm_p)}) over {best.n_cases} cases and "
            f"{seeds}; p is corrected for {len(self.main)} methods by Holm."
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Study:
        """Return the study that ``plain`` wrote."""
        known = {field.name for field in fields(StudyLine)}
        lines = tuple(StudyLine(**{k: v for k, v in line.items() if k in known}) for line in values["lines"])
        return cls(values["baseline"], tuple(values["metrics"]), lines)


def study_of(baseline: str, found: Iterable[Paired]) -> Study:
    """Return the study of comparisons with one baseline, several metrics allowed; Dice decides where it is there.

    Raises:
        ValueError: nothing was compared.
    """
    listed = list(found)
    metrics = sorted(dict.fromkeys(one.metric for one in listed), key=lambda name: name != "dice")
    if not metrics:
        raise ValueError("a study without a comparison")
    lines: list[StudyLine] = []
    for metric in metrics:
        mine = [one for one in listed if one.metric == metric]
        corrected = holm([one.wilcoxon_p for one in mine])
        drawn = [_line(one, p) for one, p in zip(mine, corrected, strict=True)]
        sign = -1.0 if mine[0].higher_is_better else 1.0
        lines += sorted(drawn, key=lambda line: math.inf if line.difference is None else sign * line.difference)
    return Study(baseline, tuple(metrics), tuple(lines))


def _line(one: Paired, holm_p: float) -> StudyLine:
    values: dict[str, Any] = plain(
        {
            "mean": one.mean_a,
            "baseline": one.mean_b,
            "difference": one.difference,
            "ci_low": one.ci_low,
            "ci_high": one.ci_high,
            "wilcoxon_p": one.wilcoxon_p,
            "holm_p": holm_p,
        }
    )
    return StudyLine(
        method=one.arm_a,
        metric=one.metric,
        n_patients=one.n_patients,
        n_cases=one.n_cases,
        n_seeds=one.n_seeds,
        verdict=one.verdict if holm_p < ALPHA else "not shown",
        **values,
    )
