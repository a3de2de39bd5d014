"""Whole folders: several formats and grids, and files with something wrong."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.evaluation.folders import evaluate_folders

LABELS = {"background": 0, "liver": 1, "spleen": 2}
AFFINE = np.diag([1.5, 2.0, 3.0, 1.0])


def organs(shift: int = 0) -> NDArray[np.uint8]:
    label = np.zeros((12, 10, 8), np.uint8)
    label[2 + shift : 6 + shift, 2:7, 1:6] = 1
    label[9:11, 3:5, 2:4] = 2
    return label


def write(path: Path, label: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(label, affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        write(tmp_path / "ref" / f"{name}.nii.gz", organs())
        write(tmp_path / "student" / f"{name}.nii.gz", organs(shift=1))
    return tmp_path / "student", tmp_path / "ref"


def test_rows_of_every_case_and_class(folders: tuple[Path, Path]) -> None:
    calls: list[tuple[int, int]] = []
    rows, problems = evaluate_folders(
        *folders, LABELS, ("dice", "hd95_mm"), patients={"b": "p7"}, progress=lambda *at: calls.append(at)
    )
    assert not problems
    assert calls == [(1, 2), (2, 2)]
    assert [(row.arm, row.case, row.patient, row.label) for row in rows] == [
        ("student", case, patient, label)
        for case, patient in (("a", "a"), ("b", "p7"))
        for label in ("liver", "spleen")
    ]
    assert [row.values["dice"] for row in rows] == [0.75, 1, 0.75, 1]
    assert rows[0].values["hd95_mm"] == 1.5  # one voxel along x
    assert rows[0].volume_ref_ml == pytest.approx(100 * 9 / 1000)


def test_processes_give_the_same(folders: tuple[Path, Path]) -> None:
    assert evaluate_folders(*folders, LABELS, jobs=2) == evaluate_folders(*folders, LABELS)


def test_a_process_that_scores_needs_no_torch() -> None:
    code = "import sys, medkd.evaluation.folders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_axis_order_and_format_of_the_file_do_not_matter(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    flipped = np.flip(organs().transpose(2, 0, 1), axis=1)
    affine = np.array([[0, -1.5, 0, 11 * 1.5], [0, 0, 2.0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    write(pred / "a.nii.gz", flipped, affine)
    image = SimpleITK.GetImageFromArray(organs().transpose(2, 1, 0))
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    (pred / "b.nii.gz").unlink()
    SimpleITK.WriteImage(image, str(pred / "b_seg.nrrd"))
    rows, problems = evaluate_folders(pred, ref, LABELS, ("dice",))
    assert not problems
    assert [row.values["dice"] for row in rows] == [1] * 4


def test_one_bad_file_does_not_stop_the_rest(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    whole = (pred / "a.nii.gz").read_bytes()
    (pred / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    write(ref / "c.nii.gz", organs())
    rows, problems = evaluate_folders(pred, ref, LABELS)
    assert {row.case for row in rows} == {"b"}
    assert [(problem.case, problem.scored) for problem in problems] == [("a", False), ("c", False)]
    assert str(pred / "a.nii.gz") in problems[0].sentence
    assert "no prediction" in problems[1].sentence


def test_probabilities_are_no_labels(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    write(pred / "a.nii.gz", organs().astype(np.float32) * 0.3)
    _, (problem,) = evaluate_folders(pred, ref, LABELS)
    assert "not whole numbers" in problem.sentence


def test_another_grid_is_refused_with_both_grids(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    write(pred / "a.nii.gz", organs()[::2], np.diag([3.0, 2.0, 3.0, 1.0]))
    rows, (problem,) = evaluate_folders(pred, ref, LABELS)
    assert {row.case for row in rows} == {"b"}
    assert "shape (6, 10, 8), spacing 3 x 2 x 3 mm" in problem.sentence
    assert "against shape (12, 10, 8), spacing 1.5 x 2 x 3 mm" in problem.sentence


def test_another_grid_is_resampled_on_request(folders: tuple[Path, Path]) -> None:
    """A grid of twice the resolution, its voxels inside the reference's: nearest neighbour gives the label back."""
    pred, ref = folders
    fine = organs().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = np.diag([0.75, 1.0, 1.5, 1.0])
    affine[:3, 3] = -np.array([0.75, 1.0, 1.5]) / 2
    write(pred / "a.nii.gz", fine, affine)
    rows, (problem,) = evaluate_folders(pred, ref, LABELS, ("dice",), resample=True)
    assert "resampled" in problem.sentence
    assert problem.scored
    assert [row.values["dice"] for row in rows if row.case == "a"] == [1, 1]


def test_a_coarse_prediction_reaches_to_the_rim_of_its_voxels(tmp_path: Path) -> None:
    write(tmp_path / "r.nii.gz", np.ones((8, 8, 8), np.uint8), np.eye(4))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 0.5
    write(tmp_path / "p.nii.gz", np.ones((4, 4, 4), np.uint8), affine)
    rows, _ = evaluate_folders(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", {"all": 1}, ("dice",), resample=True)
    assert rows[0].values["dice"] == 1
    write(tmp_path / "p.nii.gz", np.ones((3, 4, 4), np.uint8), affine)
    rows, _ = evaluate_folders(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", {"all": 1}, ("dice",), resample=True)
    assert rows[0].voxels_pred == 6 * 8 * 8  # beyond the last voxel is background


def test_labels_without_a_name_are_told(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    label = organs(shift=1)
    label[0, 0, 0], label[0, 0, 1] = 9, 7
    write(pred / "a.nii.gz", label)
    rows, (problem,) = evaluate_folders(pred, ref, LABELS, ("dice",))
    assert problem.sentence == (
        "case a: the prediction has label values 7, 9 that the labels do not name, counted as background"
    )
    assert problem.scored
    assert len(rows) == 4


def test_without_labels_every_value_is_a_class(folders: tuple[Path, Path]) -> None:
    rows, problems = evaluate_folders(*folders, metrics=("dice",))
    assert not problems
    assert [row.label for row in rows] == ["1", "2", "1", "2"]


def test_ignored_voxels_of_the_reference_are_no_unnamed_label(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    label = organs().astype(np.int16)
    label[6:8] = -1
    write(ref / "a.nii.gz", label)
    rows, problems = evaluate_folders(pred, ref, LABELS, ("dice",))
    assert not problems
    assert rows[0].values["dice"] == pytest.approx(2 * 75 / 175)


@pytest.mark.parametrize("table", [{"0": "background", "1": "liver"}, {"background": 0, "liver": 1}])
def test_labels_from_json(folders: tuple[Path, Path], tmp_path: Path, table: dict[str, object]) -> None:
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": table}))
    rows, problems = evaluate_folders(*folders, file, ("dice",))
    assert {row.label for row in rows} == {"liver"}
    assert len(problems) == 4  # the spleen, in each map


def test_a_wrong_metric_is_told_before_any_file_is_read(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="did you mean 'dice'"):
        evaluate_folders(*folders, LABELS, ("dise",))


def test_real_labels_against_themselves_shifted(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = real_data("Task04_Hippocampus")
    file = min((root / "labelsTr").glob("hippo*.nii.gz"))
    image = nib.load(file)
    write(tmp_path / "pred" / file.name, np.roll(np.asarray(image.dataobj), 1, axis=1).astype(np.uint8), image.affine)
    (tmp_path / "ref").mkdir()
    (tmp_path / "ref" / file.name).symlink_to(file)
    rows, problems = evaluate_folders(tmp_path / "pred", tmp_path / "ref", root / "dataset.json")
    assert not problems
    assert len(rows) == 2
    for row in rows:
        assert 0.7 < row.values["dice"] < 1
        assert math.isclose(row.values["hd95_mm"], 1.0)
        assert row.values["nsd_1mm"] == 1


def write_classes(folder: Path, label: NDArray[np.uint8], **values: int) -> None:
    folder.mkdir(parents=True)
    for name, value in values.items():
        write(folder / f"{name}.nii.gz", (label == value).astype(np.uint8))


def test_a_folder_for_each_case_with_a_file_for_each_class(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """TotalSegmentator's layout, against label maps and against the same layout."""
    _, ref = folders
    for case in ("a", "b"):
        write_classes(tmp_path / "total" / case, organs(shift=1), liver=1, spleen=2)
        write_classes(tmp_path / "truth" / case / "segmentations", organs(), liver=1, spleen=2, kidney_left=5)
    rows, problems = evaluate_folders(tmp_path / "total", ref, LABELS, ("dice",))
    assert not problems
    assert [(row.case, row.label, row.values["dice"]) for row in rows if row.case == "a"] == [
        ("a", "liver", 0.75),
        ("a", "spleen", 1),
    ]
    rows, problems = evaluate_folders(tmp_path / "total", tmp_path / "truth", metrics=("dice",))
    assert [row.label for row in rows if row.case == "b"] == ["kidney_left", "liver", "spleen"]
    assert [problem.sentence for problem in problems] == [
        f"case {case}: the prediction has no file for kidney_left, counted as empty" for case in ("a", "b")
    ]
    more = {"Kidney left": 1, "liver": 2, "spleen": 3}
    rows, _ = evaluate_folders(tmp_path / "truth", tmp_path / "truth", more, ("dice",))
    assert [row.values["dice"] for row in rows if row.label != "Kidney left"] == [1] * 4


def test_what_class_files_cannot_say_is_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, ref = folders
    write_classes(tmp_path / "total" / "a", organs(), liver=1, spleen=1)
    rows, problems = evaluate_folders(tmp_path / "total", ref, LABELS, ("dice",))
    assert [problem.sentence for problem in problems] == [
        "case a: the prediction has 100 voxels in two classes, the later one counts",
        f"case b: no prediction in {tmp_path / 'total'}",
    ]
    for labels, words in ((None, "give the names of the values"), ({"bone": 1}, "none of them is a class")):
        rows, problems = evaluate_folders(tmp_path / "total", ref, labels, ("dice",))
        assert not rows
        assert words in problems[0].sentence
    _, problems = evaluate_folders(tmp_path / "total", ref, {"both": (1, 2)}, ("dice",))
    assert "cannot hold the region 'both'" in problems[0].sentence


def test_regions_and_ignored_voxels_of_nnunet(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pred, ref = folders
    label = organs()
    label[6:8] = 3
    write(ref / "a.nii.gz", label)
    names = tmp_path / "dataset.json"
    names.write_text(json.dumps({"labels": {"background": 0, "organs": [1, 2], "spleen": 2, "ignore": 3}}))
    rows, problems = evaluate_folders(pred, ref, names, ("dice",))
    assert not problems
    assert [row.label for row in rows if row.case == "a"] == ["organs", "spleen"]
    liver, spleen = (100, 75, 75), (8, 8, 8)  # in reference, in prediction without the ignored part, in both
    in_ref, in_pred, both = (a + b for a, b in zip(liver, spleen, strict=True))
    assert rows[0].values["dice"] == pytest.approx(2 * both / (in_ref + in_pred))


def test_lesions_are_counted_where_named(folders: tuple[Path, Path]) -> None:
    rows, problems = evaluate_folders(*folders, LABELS, ("lesion_f1",), lesions=["liver"])
    assert not problems
    assert [row.values["lesion_f1"] for row in rows if row.label == "liver"] == [1, 1]
    assert all(math.isnan(row.values["lesion_f1"]) for row in rows if row.label == "spleen")
    rows, _ = evaluate_folders(*folders, metrics=("lesion_f1",), lesions=["2"])
    assert [row.values["lesion_f1"] for row in rows] == pytest.approx([math.nan, 1, math.nan, 1], nan_ok=True)
    with pytest.raises(UserError, match="did you mean 'liver'"):
        evaluate_folders(*folders, LABELS, ("lesion_f1",), lesions=["livr"])


def test_conventions(folders: tuple[Path, Path]) -> None:
    one, other = (evaluate_folders(*folders, LABELS, ("assd_mm",), convention=c).rows for c in ("surfel", "voxel"))
    assert one[0].values["assd_mm"] != other[0].values["assd_mm"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_damaged_file_among_many(tmp_path: Path, jobs: int) -> None:
    for index in range(12):
        write(tmp_path / "ref" / f"c{index:02d}.nii.gz", organs())
        write(tmp_path / "pred" / f"c{index:02d}.nii.gz", organs())
    damaged = tmp_path / "pred" / "c05.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9] + bytes(9))
    rows, problems = evaluate_folders(tmp_path / "pred", tmp_path / "ref", LABELS, ("dice",), jobs=jobs)
    assert len({row.case for row in rows}) == 11
    assert [(problem.case, problem.scored) for problem in problems] == [("c05", False)]
    assert str(damaged) in problems[0].sentence


def test_values_that_are_not_finite_are_told(folders: tuple[Path, Path]) -> None:
    pred, ref = folders
    label = organs().astype(np.float32)
    label[0, 0, 0] = np.nan
    write(pred / "a.nii.gz", label)
    label[0, 0, 0] = np.inf
    write(ref / "b.nii.gz", label)
    rows, problems = evaluate_folders(pred, ref, LABELS)
    assert not rows
    assert all("not whole numbers" in problem.sentence for problem in problems)
