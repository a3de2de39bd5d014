"""What a finished run has to say, as plain data: everything the page shows, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medkd.errors import UserError
from medkd.report.evidence import Fidelity, Lost, Outcome, Reliability, VolumeView
from medkd.report.packing import plain, unpack
from medkd.report.parts import ROLES, Arm, CaseCost, Comparison, Curve, DataFacts, Parity, Provenance, Row, Slice
from medkd.report.study import Study

FORMAT = 1
"""Version of the JSON layout; a field that is absent is empty, so a new field needs no new version."""


@dataclass(frozen=True)
class RunSummary:
    """A whole run, ready to be told.

    Args:
        name: name of the run.
        arms: in the order of the table: teachers, student, control, others.
        rows: every measurement, see :data:`Row`.
        comparisons: the paired tests; student against control is the verdict.
        curves: training logs.
        slices: worst cases, see :func:`medkd.report.slices.worst_slice`.
        data: the data set.
        plan_notes: one sentence a decision.
        config: the resolved YAML.
        cost_note: on what the costs were measured: input size, repeats, threads, device.
        provenance: versions, keys, hashes.
        case_costs: what a whole case costs, file to file, by arm and device.
        parity: the exports.
        warnings: what a reader must know before trusting the numbers.
        study: many methods against one baseline, where the run is such a comparison.
        fidelity: how the arms agree with the teacher, by region.
        outcomes: where an arm beats its teacher and where it loses, by class.
        reliability: how far probabilities can be trusted, by arm.
        lost: what the student lost against the teacher, by class and size.
        volumes: cases to scroll through, see :func:`medkd.report.volumes.volume_view`.
    """

    name: str
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    curves: tuple[Curve, ...] = ()
    slices: tuple[Slice, ...] = ()
    data: DataFacts = field(default_factory=DataFacts)
    plan_notes: tuple[str, ...] = ()
    config: str = ""
    cost_note: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    parity: tuple[Parity, ...] = ()
    case_costs: tuple[CaseCost, ...] = ()
    warnings: tuple[str, ...] = ()
    study: Study | None = None
    fidelity: tuple[Fidelity, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    reliability: tuple[Reliability, ...] = ()
    lost: tuple[Lost, ...] = ()
    volumes: tuple[VolumeView, ...] = ()

    def arm(self, role: str) -> Arm | None:
        """Return the first arm of ``role``, or None."""
        return next((arm for arm in self.arms if arm.role == role), None)

    def comparison(self, a: str, b: str, metric: str = "dice") -> Comparison | None:
        """Return the comparison of the arms named ``a`` and ``b``, or None."""
        return next((c for c in self.comparisons if (c.arm_a, c.arm_b, c.metric) == (a, b, metric)), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, numbers and strings; NaN becomes None, an array its deflated bytes."""
        return {"format": FORMAT, **plain(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunSummary:
        """Return the summary that :meth:`to_json` wrote; UserError when it is of another format."""
        if values.get("format") != FORMAT:
            raise UserError(
                f"this run summary has format {values.get('format')!r} and medkd reads {FORMAT}: write it again"
            )
        read = {key: value for key, value in values.items() if key != "format"}
        try:
            parts: dict[str, Any] = {name: _many(kind, read.get(name, ())) for name, kind in _PARTS.items()}
            parts |= {name: tuple(read.get(name, ())) for name in ("rows", "plan_notes", "warnings")}
            parts["slices"] = tuple(_slice(value) for value in read.get("slices", ()))
            parts["data"] = DataFacts(**read.get("data", {}))
            parts["study"] = None if read.get("study") is None else Study.from_json(read["study"])
            parts["reliability"] = tuple(Reliability.of(value) for value in read.get("reliability", ()))
            parts["volumes"] = tuple(VolumeView.of(value) for value in read.get("volumes", ()))
            (parts["provenance"],) = _many(Provenance, [read.get("provenance", {})])
            return cls(**{**read, **parts})
        except (KeyError, TypeError) as error:
            raise UserError(f"this run summary is incomplete ({error}): write it again") from error


_PARTS: dict[str, type] = {
    "arms": Arm,
    "comparisons": Comparison,
    "curves": Curve,
    "parity": Parity,
    "case_costs": CaseCost,
    "fidelity": Fidelity,
    "outcomes": Outcome,
    "lost": Lost,
}


def _many(kind: type, values: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}) for value in values)


def _slice(value: Mapping[str, Any]) -> Slice:
    arrays = {name: unpack(value[name]) for name in ("image", "label", "student")}
    teacher = value.get("teacher")
    pairs: dict[str, Any] = {"spacing_mm": tuple(value["spacing_mm"]), "sides": tuple(value["sides"])}
    return Slice(**{**value, **arrays, **pairs, "teacher": None if teacher is None else unpack(teacher)})


__all__ = [
    "FORMAT",
    "ROLES",
    "Arm",
    "CaseCost",
    "Comparison",
    "Curve",
    "DataFacts",
    "Fidelity",
    "Lost",
    "Outcome",
    "Parity",
    "Provenance",
    "Reliability",
    "Row",
    "RunSummary",
    "Slice",
    "VolumeView",
]
