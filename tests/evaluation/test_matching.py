"""File names of several tools."""

from pathlib import Path

import pytest

from medkd.errors import UserError
from medkd.evaluation.matching import match_files


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def matched(pred: Path, ref: Path) -> dict[str, str]:
    found, _ = match_files(pred, ref)
    return {case: prediction.name for case, (prediction, _) in found.items()}


@pytest.mark.parametrize(
    ("pred", "ref", "case"),
    [
        ("a_01.nii.gz", "a_01.nii.gz", "a_01"),
        ("a_01.nrrd", "a_01.nii.gz", "a_01"),
        ("a_01_0000.nii.gz", "a_01.nii.gz", "a_01"),
        ("a_01.nii.gz", "a_01_0000.nii.gz", "a_01_0000"),
        ("a_01_0000_seg.mha", "a_01-label.nii", "a_01-label"),
        ("P3.v2_pred.nii.gz", "P3.v2.nii.gz", "P3.v2"),
    ],
)
def test_names_of_one_case(tmp_path: Path, pred: str, ref: str, case: str) -> None:
    folders = touch(tmp_path / "p", pred), touch(tmp_path / "r", ref)
    assert matched(*folders) == {case: pred}


def test_an_equal_name_goes_before_a_similar_one(tmp_path: Path) -> None:
    ref = touch(tmp_path / "r", "case_0000.nii.gz", "case_0001.nii.gz", "case.nii.gz")
    pred = touch(tmp_path / "p", "case_0000.nii.gz", "case_0001.nii.gz", "case.nii.gz")
    assert matched(pred, ref) == {name: f"{name}.nii.gz" for name in ("case", "case_0000", "case_0001")}


def test_what_has_no_single_partner_is_told(tmp_path: Path) -> None:
    ref = touch(tmp_path / "r", "a.nii", "b.nii", "c.nii", "notes.txt")
    pred = touch(tmp_path / "p", "a.nii", "b_seg.nii", "b_pred.nii", "z.nii", "._a.nii", "plans.json")
    found, problems = match_files(pred, ref)
    assert list(found) == ["a"]
    assert [problem.sentence for problem in problems] == [
        "case b: b_pred.nii, b_seg.nii may each be its prediction; name it b",
        f"case c: no prediction in {pred}",
        f"prediction z.nii has no reference in {ref}",
    ]
    assert not any(problem.scored for problem in problems)


def test_two_files_match_whatever_their_names(tmp_path: Path) -> None:
    folder = touch(tmp_path / "x", "mine.nii.gz", "truth.nii.gz")
    assert matched(folder / "mine.nii.gz", folder / "truth.nii.gz") == {"truth": "mine.nii.gz"}


@pytest.mark.parametrize(
    ("pred", "ref", "words"),
    [
        (["a.nii"], ["b.nii"], r"\(1 file like a.nii\) matches a reference"),
        (["a.txt"], ["b.nii"], "holds no label map"),
        (["a.nii", "a.nrrd"], ["a.nii"], "'a' in two formats"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, pred: list[str], ref: list[str], words: str) -> None:
    folders = touch(tmp_path / "p", *pred), touch(tmp_path / "r", *ref)
    with pytest.raises(UserError, match=words):
        match_files(*folders)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        match_files(tmp_path / "nowhere", tmp_path)
