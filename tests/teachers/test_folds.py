"""Who may answer about a case."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.data.dataset import Case, Dataset
from medkd.errors import UserError
from medkd.teachers.folds import answering, seen_patients

PATIENTS = {"a1": "a", "a2": "a", "b": "b", "c": "c", "u": "u"}


@pytest.fixture
def dataset() -> Dataset:
    cases = tuple(Case(case, (Path(f"{case}.nii"),), None, patient) for case, patient in PATIENTS.items())
    return Dataset("d", Path(), cases, {"background": 0, "liver": 1}, ("CT",), None, None)


def test_a_case_stands_for_its_patient(dataset: Dataset) -> None:
    assert seen_patients(["a1", "elsewhere"], ["c", "of another dataset"], dataset) == {"a", "c"}
    assert seen_patients([], [], dataset) == frozenset()


def test_members_that_saw_the_patient_are_not_asked(dataset: Dataset) -> None:
    seen: dict[str, frozenset[str] | None] = {"m0": frozenset("a"), "m1": frozenset("bc")}
    assert answering(PATIENTS, seen, dataset) == {
        "a1": ("m1",),
        "a2": ("m1",),  # the other scan of a patient that m0 learned from
        "b": ("m0",),
        "c": ("m0",),
        "u": ("m0", "m1"),  # whom nobody saw, all answer about
    }


def test_a_case_that_all_saw_is_refused_by_name(dataset: Dataset) -> None:
    seen: dict[str, frozenset[str] | None] = {"m0": frozenset("ab"), "m1": frozenset("bc")}
    with pytest.raises(UserError, match=r"every member of the teacher \(m0, m1\) was trained on b, so none"):
        answering(PATIENTS, seen, dataset)
    with pytest.raises(UserError, match=r"m0 and 3 more\) was trained on a1, a2, b, c, u,"):
        answering(PATIENTS, dict.fromkeys(("m0", "m1", "m2", "m3"), frozenset("abcu")), dataset)


def test_a_member_of_unknown_origin_is_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"out_of_fold needs to know .* and m1 does not tell"):
        answering(["u"], {"m0": frozenset("a"), "m1": None}, dataset)
