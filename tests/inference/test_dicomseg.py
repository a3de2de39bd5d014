"""Labels as DICOM SEG: what is read back is what was written, tied to the series, named in SNOMED CT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medkd.data.dicom import open_series
from medkd.data.volume import read_label, read_volume, to_stored
from medkd.errors import UserError
from medkd.inference.dicomseg import write_segmentation
from medkd.inference.model import SegmentationModel
from medkd.inference.predict import find_cases, predict_files
from medkd.inference.segcodes import LESIONS, ORGANS, meaning

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
Make = Callable[..., Path]
LABELS = {"background": 0, "left kidney": 1, "liver tumour": 2, "blob": 3}


def masks(path: Path, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Read a SEG with highdicom alone: ``(slices, rows, columns, K)`` in the order of the sorted series."""
    whole = highdicom.seg.segread(path)
    uids = [header.SOPInstanceUID for header in open_series(folder).headers]
    pixels = whole.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    return pixels, [whole.get_segment_description(number).segment_label for number in whole.segment_numbers]


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)])
def test_round_trip(tmp_path: Path, write_series: Make, orientation: tuple[float, ...]) -> None:
    folder = write_series(tmp_path / "ct", orientation=orientation)
    volume = read_volume(folder)
    label = np.random.default_rng(0).integers(0, 4, volume.shape).astype(np.int16)
    label[label == 3] = 0  # a class that this case lacks
    write_segmentation(tmp_path / "a.dcm", label, volume.geometry, series=folder, labels=LABELS, model="abc")
    pixels, names = masks(tmp_path / "a.dcm", folder)
    stored = to_stored(label, volume.geometry).T
    assert names == ["left kidney", "liver tumour", "blob"]
    for value in (1, 2, 3):
        assert np.array_equal(pixels[..., value - 1], stored == value)
    # And as any other reader does: by the position that each frame tells, in the patient's space.
    whole = pydicom.dcmread(tmp_path / "a.dcm")
    seen = np.zeros_like(label)
    series = open_series(folder)
    frames = whole.pixel_array
    for frame, group in zip(frames, whole.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        k = int(np.argmin([np.linalg.norm(one.position - position) for one in series.frames]))
        value = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        j, i = np.nonzero(frame)
        world = series.affine @ np.array([i, j, np.full_like(i, k), np.ones_like(i)])
        x, y, z = np.rint(np.linalg.inv(volume.affine) @ world).astype(int)[:3]
        seen[x, y, z] = value
    assert np.array_equal(seen, label)
    source = series.frames[0].header
    assert whole.StudyInstanceUID == source.StudyInstanceUID
    assert whole.PatientID == source.PatientID
    assert whole.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert whole.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert whole.SeriesInstanceUID != source.SeriesInstanceUID


def test_a_label_without_any_class(tmp_path: Path, write_series: Make) -> None:
    folder = write_series(tmp_path / "ct")
    volume = read_volume(folder)
    empty = np.zeros(volume.shape, np.int16)
    write_segmentation(tmp_path / "a.dcm", empty, volume.geometry, series=folder, labels=LABELS, model="abc")
    pixels, _ = masks(tmp_path / "a.dcm", folder)
    assert not pixels.any()


def test_codes(tmp_path: Path, write_series: Make) -> None:
    folder = write_series(tmp_path / "ct")
    volume = read_volume(folder)
    label = np.ones(volume.shape, np.int16)
    write_segmentation(tmp_path / "a.dcm", label, volume.geometry, series=folder, labels=LABELS, model="abc")
    kidney, tumour, blob = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodingSchemeDesignator) == ("7771000", "SCT")
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert tumour.AnatomicRegionSequence[0].CodeValue == "10200004"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert blob.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85756007"
    assert {one.SegmentAlgorithmType for one in (kidney, tumour, blob)} == {"AUTOMATIC"}
    assert "RecommendedDisplayCIELabValue" in kidney


def test_every_code_is_in_the_dictionary() -> None:
    for name in (*ORGANS, *LESIONS):
        assert meaning(name).type.scheme_designator == "SCT", name
        assert meaning(name).type.value != "85756007", name


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("Spleen", "78961009", None),
        ("kidney_right", "64033007", "24028007"),
        ("LeftParotid", "45289007", "7771000"),
        ("left_atrium", "82471001", None),
        ("lungs", "39607008", None),
        ("Anterior", "85756007", None),
        ("l", "85756007", "7771000"),
        ("", "85756007", None),
    ],
)
def test_meaning_of_names(name: str, code: str, side: str | None) -> None:
    means = meaning(name)
    assert means.type.value == code
    assert (means.side.value if means.side else None) == side


def test_predict_from_series_to_segmentation(make_model: Make, write_series: Make, tmp_path: Path) -> None:
    model = SegmentationModel.from_folder(make_model())
    for case in ("a", "b/late"):
        write_series(tmp_path / "in" / case, shape=(16, 12, 10), seed=len(case))
    (tmp_path / "in" / "a" / "7.dcm").unlink()
    write_series(tmp_path / "in" / "c", shape=(16, 12, 10))
    results = predict_files(model, tmp_path / "in", tmp_path / "out", format="seg")
    assert [(r.case, r.status) for r in results] == [("a", "failed"), ("b_late", "done"), ("c", "done")]
    assert "lacks one slice" in str(results[0].error)
    folder = tmp_path / "in" / "b" / "late"
    volume = read_volume(folder)
    truth = model.predict(volume)
    assert len(np.unique(truth)) > 1
    pixels, names = masks(tmp_path / "out" / "b_late.dcm", folder)
    assert names == ["left", "right"]
    assert np.array_equal(pixels @ np.array([1, 2]), to_stored(truth, volume.geometry).T)
    # The same as NIfTI, on the series' grid.
    (one,) = predict_files(model, folder, tmp_path / "nifti")
    assert one.output == tmp_path / "nifti" / "late.nii.gz"
    assert np.array_equal(read_label(one.output, like=volume), truth)
    (one,) = predict_files(model, folder, tmp_path / "one.dcm")
    assert one.status == "done"
    assert (tmp_path / "one.labels.json").is_file()
    again = predict_files(model, tmp_path / "in", tmp_path / "out", format="seg")
    assert [r.status for r in again] == ["failed", "skipped", "skipped"]


def test_mixed_series_and_how_to_pick_one(make_model: Make, write_series: Make, tmp_path: Path) -> None:
    model = SegmentationModel.from_folder(make_model())
    folder = write_series(tmp_path / "in" / "study", uid="1.2.3")
    write_series(folder, uid="1.2.4", prefix="b", seed=1)
    (result,) = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert "mixes 2 series" in str(result.error)
    (result,) = predict_files(model, Path(f"{folder}#1.2.4"), tmp_path / "out", format="seg")
    assert result.status == "done", result.error
    assert result.output.name == "study_1.2.4.dcm"
    whole = pydicom.dcmread(result.output)
    assert whole.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.4"
    with pytest.raises(UserError, match="among the slices"):
        predict_files(model, Path(f"{folder}#1.2.4"), folder)


def test_series_and_volumes_are_found_together(write_series: Make, write_image: Make, tmp_path: Path) -> None:
    top = write_series(tmp_path / "top", shape=(9, 7, 3))
    write_series(top / "deep" / "er", shape=(9, 7, 3))
    assert list(find_cases(top, 1)) == ["deep_er", "top"]
    assert list(find_cases(top, 1, leave_out=top / "deep")) == ["top"]
    write_image(tmp_path / "mixed" / "a.nii.gz")
    (tmp_path / "mixed" / "old.dcm").write_bytes((top / "0.dcm").read_bytes())
    write_series(tmp_path / "mixed" / "b")
    assert list(find_cases(tmp_path / "mixed", 1)) == ["a", "b"]
    assert list(find_cases(top / "0.dcm", 2)) == ["0"]


def test_what_cannot_be_a_segmentation(
    make_model: Make, write_image: Make, write_series: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SegmentationModel.from_folder(make_model())
    image = write_image(tmp_path / "a.nii.gz")
    (result,) = predict_files(model, image, tmp_path / "out", format="seg")
    assert "is no DICOM series" in str(result.error)
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        del slice_.FrameOfReferenceUID
        slice_.save_as(file)
    (result,) = predict_files(model, folder, tmp_path / "out", format="seg")
    assert "no DICOM SEG can be made from series" in str(result.error)
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".ctbl", ".json", ".jsonl", ".txt"]
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(UserError, match=r"pip install 'medkd\[dicom\]'"):
        predict_files(model, folder, tmp_path / "out", format="seg")
