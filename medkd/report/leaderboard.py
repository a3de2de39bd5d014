"""Many runs in one table: methods, students and seeds, best first, and only what may be compared side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from medkd.evaluation.contrast import ALPHA
from medkd.evaluation.metrics import higher_is_better
from medkd.evaluation.significance import holm
from medkd.report.scores import Scores
from medkd.report.summary import Arm, Comparison, RunSummary

CONTROLS = ("control", "compute", "same_loss", "pseudo")
"""Arms that a student may be compared with, the one that answers "did distillation help?" first."""


@dataclass(frozen=True)
class Entry:
    """One arm of one run.

    Args:
        runs: names of the runs that hold it; several where they share the very same trainings.
        arm: its name in the run.
        role: teacher, student, control, other...
        network: what it is: "UNet", "mean of 3 networks: ...".
        methods: the methods that trained it, where the run tells.
        seeds: training seeds.
        mean: mean over patients of the metric.
        by_seed: seed -> the same of this seed alone.
        per_class: class -> mean over patients.
        teacher: name of its teacher's arm, or empty.
        gap: its mean less the teacher's; None without a teacher in the run.
        against: name of the arm that it is compared with, or empty.
        difference: its mean less that arm's.
        ci_low: lower end of the 95 % interval.
        ci_high: upper end.
        wilcoxon_p: of this comparison alone.
        holm_p: corrected by Holm for the comparisons of the table.
        verdict: ``helped``, ``hurt`` or ``not shown`` after the correction; empty where nothing was compared.
        parameters: number of weights.
        macs: multiply-adds of a case.
        latency_s: measured seconds a case.
        memory_mb: peak memory.
        weights_bytes: size of the weight files.
    """

    runs: tuple[str, ...]
    arm: str
    role: str
    network: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    mean: float | None
    by_seed: Mapping[int, float] = field(default_factory=dict)
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    teacher: str = ""
    gap: float | None = None
    against: str = ""
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    wilcoxon_p: float | None = None
    holm_p: float | None = None
    verdict: str = ""
    parameters: int | None = None
    macs: float | None = None
    latency_s: float | None = None
    memory_mb: float | None = None
    weights_bytes: int | None = None


@dataclass(frozen=True)
class Group:
    """Runs that were tested on the same cases of the same data.

    Args:
        title: the data and how many cases and patients.
        cases: test cases.
        patients: their number of patients.
        labels: class names.
        entries: best first.
    """

    title: str
    cases: tuple[str, ...]
    patients: int
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def compared(self) -> int:
        """How many comparisons the p-values are corrected for."""
        return sum(entry.holm_p is not None for entry in self.entries)


@dataclass(frozen=True)
class Leaderboard:
    """Groups of comparable entries.

    Args:
        metric: what they are ranked by.
        groups: the largest first.
    """

    metric: str
    groups: tuple[Group, ...]

    @property
    def headline(self) -> str:
        """The best student, or how many groups there are."""
        if len(self.groups) > 1:
            return (
                f"{len(self.groups)} tables: these runs were not tested on the same cases of the same data, so numbers "
                "compare within a table only."
            )
        entries = [entry for group in self.groups for entry in group.entries if entry.verdict]
        if not entries:
            return "No distilled student was compared with a control."
        helped = sum(entry.verdict == "helped" for entry in entries)
        hurt = sum(entry.verdict == "hurt" for entry in entries)
        many = "One distilled student" if len(entries) == 1 else f"{helped} of {len(entries)} distilled students"
        if len(entries) == 1:
            told = {"helped": "is shown to be better", "hurt": "is shown to be worse"}
            return f"{many} {told.get(entries[0].verdict, 'is not shown to be better')} than its control."
        return f"{many} shown to be better than their control{f', {hurt} worse' if hurt else ''}."


def leaderboard(runs: Mapping[str, RunSummary], metric: str = "dice") -> Leaderboard:
    """Return the runs' arms as tables of comparable ones, best first.

    Args:
        runs: name -> summary; the names tell the runs apart.
        metric: what decides; runs without it rank last.
    """
    groups: dict[tuple[object, ...], list[tuple[str, RunSummary]]] = {}
    for name, run in runs.items():
        cases = frozenset(str(row["case"]) for row in run.rows)
        labels = frozenset(str(row["label"]) for row in run.rows)
        groups.setdefault((cases, labels, run.data.name, run.provenance.data_hash), []).append((name, run))
    found = [_group(members, metric) for members in groups.values()]
    return Leaderboard(metric, tuple(sorted(found, key=lambda group: -len(group.entries))))


def _group(members: list[tuple[str, RunSummary]], metric: str) -> Group:
    once: dict[object, Entry] = {}
    for name, run in members:
        for entry, identity in _entries(name, run, metric):
            known = once.get(identity)
            if known is None:
                once[identity] = entry
                continue
            # The same trainings in two runs: what one of them compared, both know.
            fuller = known if known.verdict or not entry.verdict else entry
            once[identity] = replace(fuller, runs=(*known.runs, *entry.runs))
    first = members[0][1]
    patients = {str(row.get("patient") or row["case"]) for row in first.rows}
    cases = tuple(sorted({str(row["case"]) for row in first.rows}))
    sign = -1.0 if higher_is_better(metric) else 1.0
    ranked = sorted(_corrected(once.values()), key=lambda e: math.inf if e.mean is None else sign * e.mean)
    title = f"{first.data.name or 'unnamed data'}: {len(cases)} cases of {len(patients)} patients"
    return Group(title, cases, len(patients), Scores(first.rows).labels, tuple(ranked))


def _entries(name: str, run: RunSummary, metric: str) -> Iterable[tuple[Entry, object]]:
    """Yield each arm of a run, and what it shares with the same arm of another run."""
    scores = Scores(run.rows)
    known = {arm.name for arm in run.arms}
    for arm in run.arms:
        rows = [row for row in run.rows if row["arm"] == arm.name]
        if not rows:
            continue
        seeds = tuple(sorted({int(str(row.get("seed", 0))) for row in rows}))
        of_seed = {s: Scores(r for r in rows if r.get("seed", 0) == s).mean(arm.name, metric) for s in seeds}
        mine, theirs = scores.mean(arm.name, metric), scores.mean(arm.teacher, metric) if arm.teacher in known else None
        entry = Entry(
            runs=(name,),
            arm=arm.name,
            role=arm.role,
            network=arm.detail,
            methods=arm.methods,
            seeds=seeds,
            mean=mine,
            by_seed={seed: value for seed, value in of_seed.items() if value is not None},
            per_class={label: scores.mean(arm.name, metric, label) for label in scores.labels},
            teacher=arm.teacher,
            gap=mine - theirs if mine is not None and theirs is not None else None,
            parameters=arm.parameters,
            macs=arm.macs,
            latency_s=arm.latency_s,
            memory_mb=arm.memory_mb,
            weights_bytes=arm.weights_bytes,
        )
        yield _compared(entry, run, arm, metric), _identity(name, run, arm)


def _compared(entry: Entry, run: RunSummary, arm: Arm, metric: str) -> Entry:
    """Add the comparison with the arm's own control, or with the study's baseline."""
    for control in CONTROLS:
        found = run.comparison(arm.name, f"{arm.name}.{control}", metric)
        if found is None and arm.role == "student" and (other := run.arm(control)) is not None:
            found = run.comparison(arm.name, other.name, metric)
        if found is not None:
            return _with(entry, found)
    study = run.study
    for line in study.of(metric) if study is not None else ():
        if line.method == arm.name and study is not None:
            # Its verdict is corrected within the study; the table's correction can only take it back.
            return replace(
                entry,
                against=study.baseline,
                difference=line.difference,
                ci_low=line.ci_low,
                ci_high=line.ci_high,
                wilcoxon_p=line.wilcoxon_p,
                verdict=line.verdict,
            )
    return entry


def _with(entry: Entry, found: Comparison) -> Entry:
    return replace(
        entry,
        against=found.arm_b,
        difference=found.difference,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        wilcoxon_p=found.wilcoxon_p,
        verdict=found.verdict,
    )


def _corrected(entries: Iterable[Entry]) -> list[Entry]:
    listed = list(entries)
    p = holm([math.nan if entry.wilcoxon_p is None else entry.wilcoxon_p for entry in listed])
    return [
        entry
        if not math.isfinite(value)
        else replace(entry, holm_p=value, verdict=entry.verdict if value < ALPHA else "not shown")
        for entry, value in zip(listed, p, strict=True)
    ]


def _identity(name: str, run: RunSummary, arm: Arm) -> object:
    """Return the keys of an arm's evaluations, or what tells it apart where they are not known."""
    stage, _, kind = arm.name.partition(".")
    keys = frozenset(
        key
        for node, key in run.provenance.keys.items()
        if node.startswith(f"evaluate.{stage}.f") and node.endswith(f".{kind or 'main'}")
    )
    return (arm.name, keys) if keys else (name, arm.name)
