"""Who is trained on and who is tested on: folds by patient, and the guard against leakage between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count as count_from

from medkd.data.dataset import Dataset
from medkd.errors import UserError

__all__ = ["Split", "check_leakage", "inner_parts", "labelled_subset", "leaked_cases", "make_folds"]


@dataclass(frozen=True)
class Split:
    """Case ids of one fold, each part sorted; no patient is in two of train, validation and test.

    Args:
        train: labelled cases to learn from.
        validation: labelled cases that choose the checkpoint.
        test: labelled cases that are measured once, at the end.
        unlabelled: cases without label, of patients that are neither in validation nor in test.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    unlabelled: tuple[str, ...]


def make_folds(dataset: Dataset, *, folds: int, seed: int, validation: float = 0.15) -> tuple[Split, ...]:
    """Split a dataset by patient, so that each labelled patient is in the test part of exactly one fold.

    Args:
        dataset: the cases.
        folds: how many, at least 2.
        seed: of the shuffle; the same seed gives the same folds, whatever the order of the cases.
        validation: share of the patients outside the test part, in [0, 1); above 0 it means at least one patient.

    Raises:
        UserError: fewer labelled patients than the folds need, or a number out of range.
    """
    if folds < 2:
        raise UserError(f"folds must be at least 2, so that something is left to test on, not {folds}")
    if not 0 <= validation < 1:
        raise UserError(f"validation must be a share in [0, 1), not {validation}")
    patients = {case.patient for case in dataset.labelled}
    outside = 2 if validation else 1  # one to train on, and one to validate
    least = next(number for number in count_from(folds) if number - -(-number // folds) >= outside)
    if len(patients) < least:
        raise UserError(
            f"dataset {dataset.name} has {len(patients)} labelled patients, and {folds} folds need at least {least}"
        )
    shuffled = _shuffled(patients, seed)
    splits = []
    for fold in range(folds):
        test = set(shuffled[fold::folds])
        rest = _shuffled(patients - test, seed, fold)
        # At least one patient validates, and at least one is left to train on.
        held = min(max(1, round(validation * len(rest))), len(rest) - 1) if validation else 0
        splits.append(_split(dataset, test, set(rest[:held])))
    return tuple(splits)


def labelled_subset(split: Split, dataset: Dataset, count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keep the labels of a few training cases and forget the others'.

    Patients are taken whole, one after the other, until ``count`` cases are reached; the subsets of one seed are
    nested, so that a curve over ``count`` only ever adds labels.

    Returns:
        Case ids that keep their label, and those of ``split.train`` that count as unlabelled now.

    Raises:
        UserError: ``count`` is not between 1 and the number of training cases.
    """
    if not 1 <= count <= len(split.train):
        raise UserError(
            f"labelled must be between 1 and the {len(split.train)} training cases of the fold, not {count}"
        )
    by_patient: dict[str, list[str]] = {}
    for case in split.train:
        by_patient.setdefault(dataset.case(case).patient, []).append(case)
    order = [case for patient in _shuffled(by_patient, seed) for case in sorted(by_patient[patient])]
    return tuple(sorted(order[:count])), tuple(sorted(order[count:]))


def inner_parts(
    labelled: Iterable[str], unlabelled: Iterable[str], dataset: Dataset, *, parts: int, seed: int
) -> tuple[tuple[str, ...], ...]:
    """Divide the training cases of one fold, patients whole, so that each part can be answered by who did not see it.

    Args:
        labelled: training cases with a label.
        unlabelled: training cases without.
        dataset: the cases.
        parts: how many; every part gets its share of the labelled patients.
        seed: of the shuffle.

    Returns:
        Sorted case ids of each part; every case is in exactly one.

    Raises:
        UserError: fewer labelled patients than parts.
    """
    first = {dataset.case(case).patient for case in labelled}
    if len(first) < parts:
        raise UserError(
            f"inner_folds is {parts} and the training cases have {len(first)} labelled patients; lower it, "
            "or keep more labels"
        )
    cases = (*labelled, *unlabelled)
    others = {dataset.case(case).patient for case in cases} - first
    order = [*_shuffled(first, seed, "inner"), *_shuffled(others, seed, "inner")]
    part_of = {patient: place % parts for place, patient in enumerate(order)}
    return tuple(
        tuple(sorted(case for case in cases if part_of[dataset.case(case).patient] == part)) for part in range(parts)
    )


def leaked_cases(trained_on: Iterable[str], split: Split, dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Return the held-out cases of patients that a teacher has seen: ``{"test": ..., "validation": ...}``, or nothing.

    Args:
        trained_on: case ids (or patients) that the teacher's checkpoint records; those unknown to the dataset are
            another dataset's and do no harm.
        split: the student's fold.
        dataset: the student's dataset.
    """
    patient_of = {case.id: case.patient for case in dataset.cases}
    seen = {patient_of.get(entry, entry) for entry in trained_on}
    parts = (("test", split.test), ("validation", split.validation))
    found = {part: tuple(case for case in cases if patient_of[case] in seen) for part, cases in parts}
    return {part: cases for part, cases in found.items() if cases}


def check_leakage(trained_on: Iterable[str], split: Split, dataset: Dataset, teacher: str) -> None:
    """Refuse a teacher that has seen the student's validation or test patients.

    Args:
        trained_on: case ids (or patients) that the teacher's checkpoint records; those unknown to the dataset are
            another dataset's and do no harm.
        split: the student's fold.
        dataset: the student's dataset.
        teacher: its name, for the message.

    Raises:
        UserError: naming the teacher and the cases.
    """
    for part, cases in leaked_cases(trained_on, split, dataset).items():
        shown = ", ".join(_told(case, dataset.case(case).patient) for case in cases[:5])
        more = f" and {len(cases) - 5} more" if len(cases) > 5 else ""
        raise UserError(
            f"teacher {teacher!r} was trained on patients of the student's {part} cases: {shown}{more}; "
            "use a teacher of the same fold, or accept it with `allow_leakage`"
        )


def _told(case: str, patient: str) -> str:
    return case if case == patient else f"{case} (patient {patient})"


def _shuffled(names: Iterable[str], *seed: int | str) -> list[str]:
    """Order names by a hash of seed and name: the same on every machine and with every numpy, for good."""
    return sorted(names, key=lambda name: hashlib.blake2b(repr((seed, name)).encode()).digest())


def _split(dataset: Dataset, test: set[str], validation: set[str]) -> Split:
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": [], "unlabelled": []}
    for case in sorted(dataset.cases, key=lambda case: case.id):
        held = "test" if case.patient in test else "validation" if case.patient in validation else None
        if case.label is not None:
            parts[held or "train"].append(case.id)
        elif held is None:
            parts["unlabelled"].append(case.id)
    return Split(*(tuple(parts[name]) for name in ("train", "validation", "test", "unlabelled")))
