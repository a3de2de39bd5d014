"""Who may answer about a case: the members of an ensemble that did not learn from its patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from medkd.data.dataset import Dataset
from medkd.errors import UserError


def seen_patients(trained_on: Iterable[str], patients: Iterable[str], dataset: Dataset) -> frozenset[str]:
    """Return the patients of ``dataset`` that a network has seen, by the case ids and patients that it records."""
    patient_of = {case.id: case.patient for case in dataset.cases}
    known = set(patient_of.values())
    entries = {patient_of.get(entry, entry) for entry in trained_on}
    # A name that is also the name of another patient's case says nothing: the cases are recorded beside it.
    named = {patient for patient in patients if patient_of.get(patient, patient) == patient}
    return frozenset((entries | named) & known)


def answering(
    cases: Iterable[str], seen: Mapping[str, frozenset[str] | None], dataset: Dataset
) -> dict[str, tuple[str, ...]]:
    """Return which members answer about each case: those that never saw its patient, so all where nobody did.

    Args:
        cases: case ids that need an answer.
        seen: member -> patients that it learned from, see :func:`seen_patients`; None where that is not known.
        dataset: the cases.

    Raises:
        UserError: it is not known what a member learned from, or every member saw a case.
    """
    for name, patients in seen.items():
        if patients is None:
            raise UserError(
                f"targets: out_of_fold needs to know what each teacher was trained on, and {name} does not tell; "
                "set `targets: ensemble`, or name another teacher"
            )
    found = {
        case: tuple(name for name, patients in seen.items() if dataset.case(case).patient not in (patients or ()))
        for case in cases
    }
    if lost := [case for case, members in found.items() if not members]:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise UserError(
            f"every member of the teacher ({_told(list(seen))}) was trained on {', '.join(lost[:5])}{more}, so none "
            "can answer out of fold; give the teacher's stage `inner_folds`, or set `targets: ensemble`"
        )
    return found


def _told(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"
