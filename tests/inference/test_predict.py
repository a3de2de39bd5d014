"""Files in, files out: nothing lost, nothing half-written, nothing done twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medkd.data.volume import read_label, read_volume
from medkd.errors import UserError
from medkd.inference.model import SegmentationModel
from medkd.inference.predict import PredictedCase, find_cases, predict_files

Make = Callable[..., Path]


@pytest.fixture
def model(make_model: Make) -> SegmentationModel:
    return SegmentationModel.from_folder(make_model())


def test_folder(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / "in" / f"scan{index}.nii.gz", (11, 9, 6 + index), seed=index)
    whole = (tmp_path / "in" / "scan1.nii.gz").read_bytes()
    (tmp_path / "in" / "scan1.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "notes.txt").write_text("not a volume")
    told: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, case: PredictedCase) -> None:
        told.append((done, total, case.status))

    results = predict_files(model, tmp_path / "in", tmp_path / "out", progress=progress)
    assert [(r.case, r.status) for r in results] == [("scan0", "done"), ("scan1", "failed"), ("scan2", "done")]
    assert told == [(1, 3, "done"), (2, 3, "failed"), (3, 3, "done")]
    assert results[1].error is not None
    assert "scan1.nii.gz" in results[1].error
    assert set(results[0].seconds) == {"load", "prepare", "network", "restore", "write"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["labels.json", "scan0.nii.gz", "scan2.nii.gz"]
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["labels"] == {
        "background": 0,
        "left": 1,
        "right": 2,
    }


def test_label_lies_on_the_image(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    image = write_image(tmp_path / "in" / "a.nii.gz")
    predict_files(model, image, tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert written.shape == (11, 9, 6)
    assert np.allclose(written.affine, np.diag([-1.0, -1.0, 3.0, 1.0]))
    volume = read_volume(image)
    assert np.array_equal(read_label(tmp_path / "out" / "a.nii.gz", like=volume), model.predict(volume))


def test_finished_cases_are_skipped(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.nii.gz")
    predict_files(model, tmp_path / "in", tmp_path / "out")
    label = tmp_path / "out" / "a.nii.gz"
    label.write_bytes(b"mine")
    write_image(tmp_path / "in" / "b.nii.gz")
    assert [r.status for r in predict_files(model, tmp_path / "in", tmp_path / "out")] == ["skipped", "done"]
    assert label.read_bytes() == b"mine"
    again = predict_files(model, tmp_path / "in", tmp_path / "out", overwrite=True)
    assert [r.status for r in again] == ["done", "done"]
    assert label.read_bytes() != b"mine"


def test_labels_of_two_models_are_not_mixed(
    model: SegmentationModel, make_model: Make, write_image: Make, tmp_path: Path
) -> None:
    write_image(tmp_path / "in" / "a.nii.gz")
    predict_files(model, tmp_path / "in", tmp_path / "out")
    other = SegmentationModel.from_folder(make_model("other", seed=5))
    with pytest.raises(UserError, match="another model"):
        predict_files(other, tmp_path / "in", tmp_path / "out")
    predict_files(other, tmp_path / "in", tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["model"] == other.identity


def test_one_file_to_a_file_name(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.nii.gz")
    (result,) = predict_files(model, image, tmp_path / "seg" / "x.mha")
    assert result.status == "done"
    assert sorted(p.name for p in (tmp_path / "seg").iterdir()) == ["x.labels.json", "x.mha"]
    assert np.array_equal(read_label(tmp_path / "seg" / "x.mha"), model.predict(read_volume(image)))


@pytest.mark.parametrize(
    ("ending", "expected"), [(".nrrd", ".nrrd"), (".mha", ".mha"), (".mhd", ".mha"), (".nii", ".nii")]
)
def test_formats_are_kept(
    model: SegmentationModel, write_image: Make, tmp_path: Path, ending: str, expected: str
) -> None:
    import SimpleITK

    image = SimpleITK.ReadImage(str(write_image(tmp_path / "a.nii.gz")))
    (tmp_path / "in").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "in" / f"a{ending}"))
    (result,) = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert result.status == "done"
    assert result.output == tmp_path / "out" / f"a{expected}"
    truth = model.predict(read_volume(tmp_path / "a.nii.gz"))
    assert np.array_equal(read_label(result.output), truth)


def test_channels_by_number(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    model = SegmentationModel.from_folder(make_model("two", channels=2))
    for name in ("a_0000", "a_0001", "b_0000", "c_0000", "c_0002"):
        write_image(tmp_path / "in" / f"{name}.nii.gz", seed=len(name))
    write_image(tmp_path / "in" / "d.nii.gz", (11, 9, 6, 2))
    results = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert [(r.case, r.status) for r in results] == [("a", "done"), ("b", "failed"), ("c", "failed"), ("d", "done")]
    assert "lacks a channel" in str(results[2].error)
    assert results[0].output.name == "a.nii.gz"
    (one,) = predict_files(model, tmp_path / "in" / "a_0001.nii.gz", tmp_path / "single")
    assert one.status == "done"
    assert one.output.read_bytes() == results[0].output.read_bytes()


def test_numbers_that_are_no_channels(tmp_path: Path) -> None:
    for name in ("p_0001", "p_0002"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert list(find_cases(tmp_path, 1)) == ["p_0001", "p_0002"]
    (tmp_path / "other").mkdir()
    for name in ("p_0000", "q_0000"):
        (tmp_path / "other" / f"{name}.nii.gz").touch()
    assert list(find_cases(tmp_path / "other", 1)) == ["p", "q"]


def test_two_files_for_one_label(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    import SimpleITK

    image = SimpleITK.ReadImage(str(write_image(tmp_path / "a.nii.gz")))
    (tmp_path / "in").mkdir()
    for ending in (".mha", ".mhd"):
        SimpleITK.WriteImage(image, str(tmp_path / "in" / f"a{ending}"))
    results = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert [r.status for r in results] == ["done", "failed"]
    assert "same a.mha" in str(results[1].error)


def test_out_of_memory_is_one_failed_case(
    model: SegmentationModel, write_image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(model, "predict_timed", full)
    write_image(tmp_path / "in" / "a.nii.gz")
    (result,) = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert result.status == "failed"
    assert "memory" in str(result.error)


def test_mistakes_are_told(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    image = write_image(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(UserError, match="replace the images"):
        predict_files(model, tmp_path / "in", tmp_path / "in")
    with pytest.raises(UserError, match="image itself"):
        predict_files(model, image, image)
    with pytest.raises(UserError, match="is a folder"):
        predict_files(model, tmp_path / "in", tmp_path / "x.nii.gz")
    with pytest.raises(UserError, match="must end in"):
        predict_files(model, image, tmp_path / "x.mhd")
    with pytest.raises(UserError, match="does not exist"):
        predict_files(model, tmp_path / "gone", tmp_path / "out")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").touch()
    with pytest.raises(UserError, match="DICOM"):
        predict_files(model, tmp_path / "dicom", tmp_path / "out")
