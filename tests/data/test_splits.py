from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medkd.data.dataset import Case, Dataset, load_dataset
from medkd.data.splits import check_leakage, labelled_subset, make_folds
from medkd.errors import UserError


def dataset(patients, unlabelled=()):
    """Build cases c000... of the given patients; those at the places in ``unlabelled`` lose their label."""
    cases = tuple(
        Case(f"c{i:03d}", (Path(f"{i}.nii"),), None if i in unlabelled else Path(f"l{i}.nii"), f"p{patient:03d}")
        for i, patient in enumerate(patients)
    )
    return Dataset("d", Path(), cases, {"background": 0, "x": 1}, ("CT",))


@settings(max_examples=60, deadline=None)
@given(
    patients=st.lists(st.integers(0, 15), min_size=3, max_size=60),
    folds=st.integers(2, 6),
    seed=st.integers(0, 99),
    validation=st.sampled_from([0.0, 0.15, 0.5, 0.99]),
    data=st.data(),
)
def test_folds_part_patients_and_test_each_case_once(patients, folds, seed, validation, data):
    unlabelled = data.draw(st.sets(st.sampled_from(range(len(patients))), max_size=len(patients) // 2))
    d = dataset(patients, unlabelled)
    assume(len({case.patient for case in d.labelled}) >= max(folds, 3 if folds > 2 else 4))
    splits = make_folds(d, folds=folds, seed=seed, validation=validation)
    assert len(splits) == folds
    assert sorted(case for split in splits for case in split.test) == [case.id for case in d.labelled]
    for split in splits:
        parts = [split.train, split.validation, split.test]
        assert sorted(sum(parts, ())) == [case.id for case in d.labelled]
        owners = [{d.case(case).patient for case in part} for part in parts]
        assert all(a.isdisjoint(b) for a, b in combinations(owners, 2))
        assert split.train
        assert split.test
        assert bool(split.validation) == (validation > 0)
        free = [case.id for case in d.unlabelled if case.patient not in owners[1] | owners[2]]
        assert list(split.unlabelled) == free


def test_folds_are_balanced_and_validation_has_its_share():
    splits = make_folds(dataset(range(103)), folds=5, seed=0, validation=0.15)
    assert sorted(len(split.test) for split in splits) == [20, 20, 21, 21, 21]
    assert all(len(split.validation) == round(0.15 * (103 - len(split.test))) for split in splits)


def test_folds_depend_on_the_seed_and_not_on_the_order_of_cases():
    d = dataset(range(30))
    turned = replace(d, cases=d.cases[::-1])
    assert make_folds(d, folds=5, seed=1) == make_folds(turned, folds=5, seed=1)
    assert make_folds(d, folds=5, seed=1) != make_folds(d, folds=5, seed=2)


def test_known_folds_never_change():
    """A release that split differently would compare unlike with like: results of old runs hang on this."""
    first = make_folds(dataset(range(10)), folds=5, seed=0)[0]
    assert first.test == ("c008", "c009")
    assert first.validation == ("c004",)


@pytest.mark.parametrize(
    ("patients", "arguments", "message"),
    [
        (5, {"folds": 1}, "folds must be at least 2"),
        (4, {"folds": 5}, "has 4 labelled patients, and 5 folds need at least 5"),
        (3, {"folds": 2}, "2 folds need at least 4"),
        (1, {"folds": 2, "validation": 0}, "2 folds need at least 2"),
        (9, {"folds": 3, "validation": 1.0}, r"share in \[0, 1\)"),
    ],
)
def test_impossible_folds(patients, arguments, message):
    with pytest.raises(UserError, match=message):
        make_folds(dataset(range(patients)), seed=0, **arguments)


def test_labelled_subsets_are_nested_and_keep_patients_whole():
    d = dataset([i // 3 for i in range(60)])
    split = make_folds(d, folds=4, seed=0)[0]
    before: set[str] = set()
    for count in range(1, len(split.train) + 1):
        kept, dropped = labelled_subset(split, d, count, seed=3)
        assert len(kept) == count
        assert sorted(kept + dropped) == list(split.train)
        assert before < set(kept)
        before = set(kept)
        both = {d.case(case).patient for case in kept} & {d.case(case).patient for case in dropped}
        assert len(both) == (count % 3 != 0)
    assert labelled_subset(split, d, 5, seed=3) == labelled_subset(split, d, 5, seed=3)
    assert labelled_subset(split, d, 5, seed=3) != labelled_subset(split, d, 5, seed=4)


@pytest.mark.parametrize("count", [0, -1, 1000])
def test_impossible_subsets(count):
    d = dataset(range(10))
    with pytest.raises(
        UserError, match=rf"labelled must be between 1 and the \d training cases of the fold, not {count}"
    ):
        labelled_subset(make_folds(d, folds=5, seed=0)[0], d, count, seed=0)


def test_a_teacher_of_the_same_fold_leaks_nothing():
    d = dataset([i // 2 for i in range(20)], unlabelled={1})
    for split in make_folds(d, folds=5, seed=0):
        check_leakage([*split.train, *split.unlabelled, "case_of_another_dataset"], split, d, "teachers")


def test_a_teacher_that_saw_a_test_or_validation_case_is_refused():
    d = dataset(range(20))
    split = make_folds(d, folds=5, seed=0)[0]
    for part in ("test", "validation"):
        case = getattr(split, part)[0]
        with pytest.raises(
            UserError, match=rf"teacher 'big' was trained on .* student's {part} cases: {case} \(patient"
        ):
            check_leakage([*split.train, case], split, d, "big")
    with pytest.raises(UserError, match=r"c\d+ \(patient p\d+\), .*"):
        check_leakage([case.id for case in d.cases], split, d, "big")


def test_another_case_of_a_test_patient_leaks_too():
    d = dataset([i // 2 for i in range(20)])
    split = make_folds(d, folds=5, seed=0)[0]
    held, twin = split.test[:2]
    assert d.case(held).patient == d.case(twin).patient
    narrowed = replace(split, test=(held,))
    with pytest.raises(UserError, match=held):
        check_leakage([twin], narrowed, d, "big")
    with pytest.raises(UserError, match=held):
        check_leakage([d.case(twin).patient], narrowed, d, "big")


def test_real_hippocampi_of_one_person_stay_together(real_data):
    d = load_dataset(real_data("Task04_Hippocampus"))
    for split in make_folds(d, folds=5, seed=0):
        owner = {case: d.case(case).patient for part in (split.train, split.validation, split.test) for case in part}
        assert not {owner[c] for c in split.train} & {owner[c] for c in (*split.test, *split.validation)}
