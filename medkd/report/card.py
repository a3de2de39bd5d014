"""The model card: what the student is, where it comes from, how good it is and what it must not be used for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from medkd.report import numbers
from medkd.report.losses import losses
from medkd.report.scores import Scores
from medkd.report.summary import Arm, RunSummary
from medkd.report.tables import arms_table, classes_table, markdown
from medkd.report.trust import calibration_table
from medkd.report.verdict import verdict

UNKNOWN = "not known"


def model_card(run: RunSummary) -> str:
    """Return the card of a run's student as Markdown; what was not measured is said to be unknown, not left out."""
    scores = Scores(run.rows)
    student = run.arm("student")
    parts = [
        f"# Model card: {_text(run.name)}",
        "\n".join(_summary(run, student, scores)),
        "## Data\n\n" + _listed(_data(run)),
        "## How good it is\n\n" + _quality(run, scores),
        "## Where it falls short\n\n" + "\n".join(f"- {_text(line)}" for line in _limits(run)),
        "## Where it comes from\n\n" + _listed(_provenance(run)),
        "## Licences\n\n" + _listed(_licences(run)),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(run: RunSummary, student: Arm | None, scores: Scores) -> Iterator[str]:
    labels = [name for name, value in run.data.labels.items() if value > 0]
    what = f"A network that segments {_text(_series(labels))}" if labels else "A segmentation network"
    yield f"{what} in volumes like those of {_text(run.data.name or UNKNOWN)}."
    if student is not None:
        facts = [student.detail, student.parameters and f"{numbers.count(student.parameters)} parameters"]
        told = ", ".join(_text(str(fact)) for fact in facts if fact)
        yield f"It is the arm `{student.name}`{f' ({told})' if told else ''} of a distillation run."
    found = verdict(run, scores)
    yield ""
    yield _text(found.evidence or found.headline)
    if found.lost:
        yield _text(found.lost)
    yield ""
    yield "For research. It is not a medical device, and no clinical decision may rest on it alone."


def _data(run: RunSummary) -> Iterator[tuple[str, str]]:
    yield "Name", run.data.name
    yield "Cases", ", ".join(f"{size} {name}" for name, size in run.data.sizes.items())
    yield "Labels", ", ".join(f"{name} = {value}" for name, value in run.data.labels.items())
    yield "Reference", run.data.reference
    yield "Hash", run.provenance.data_hash


def _quality(run: RunSummary, scores: Scores) -> str:
    count = scores.patients()
    parts = [f"Means over {count} test patient{'' if count == 1 else 's'}.", _table(*arms_table(run))]
    if scores.labels and "dice" in scores.metrics:
        parts += ["Dice by class:", _table(*classes_table(run))]
    if run.cost_note:
        parts.append(f"Costs: {_text(run.cost_note)}")
    rows = [
        [row["arm"].shown if row["arm"] else row["name"], row["ece"], row["brier"]] for row in calibration_table(run)
    ]
    if rows:
        parts += ["Calibration of the probabilities:", _table(["Arm", "ECE", "Brier"], rows)]
    return "\n\n".join(parts)


def _limits(run: RunSummary) -> Iterator[str]:
    if sentence := losses(run)["sentence"]:
        yield sentence
    yield from run.warnings
    yield "Scanners, protocols, ages and diseases that the data do not hold were not tested."
    if not run.reliability:
        yield "How far its probabilities can be believed was not measured."
    for export in run.parity:
        if export.voxel_agreement is not None and export.voxel_agreement < 1:
            share = min(export.voxel_agreement * 100, 99.9999)
            same = f"the same class in {share:.4f} % of the voxels of {export.cases} cases"
            yield f"The {export.name} export gives {same}."


def _provenance(run: RunSummary) -> Iterator[tuple[str, str]]:
    p = run.provenance
    yield "Made", p.created
    yield "Command", p.command
    yield "Device", p.device
    yield "Seeds", ", ".join(map(str, p.seeds))
    yield "Folds", ", ".join(map(str, p.folds))
    yield "Leakage", p.leakage or "not checked"
    yield from ((f"Teacher {name}", text) for name, text in p.teachers.items())
    yield "Versions", ", ".join(f"{name} {version}" for name, version in p.versions.items())


def _licences(run: RunSummary) -> Iterator[tuple[str, str]]:
    known: Mapping[str, str] = run.provenance.licences
    if run.data.name not in known:
        yield "Data", run.data.licence or UNKNOWN
    yield from ((name, text or UNKNOWN) for name, text in known.items())


def _table(head: list[str], body: list[list[str]]) -> str:
    return markdown(head, body).rstrip().replace("<", "&lt;")


def _listed(facts: Iterator[tuple[str, str]]) -> str:
    return "\n".join(f"- {_text(name)}: {_text(text)}" for name, text in facts if text)


def _series(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _text(value: str) -> str:
    """Return a name as one line that Markdown shows as it is, markup included."""
    line = " ".join(value.split())
    return line.replace("\\", "\\\\").replace("<", "&lt;").replace("`", "\\`").replace("*", "\\*").replace("[", "\\[")
