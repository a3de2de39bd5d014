"""DICOM series: every slice at its place, and one sentence for what is wrong with a series."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medkd.data.dataset import load_dataset
from medkd.data.dicom import is_dicom, open_series
from medkd.data.fingerprint import data_hash, fingerprint
from medkd.data.volume import read_volume, write_label
from medkd.errors import UserError

pydicom = pytest.importorskip("pydicom")
WriteSeries = Callable[..., Path]


def test_voxels_lie_where_simpleitk_puts_them(tmp_path: Path, write_series: WriteSeries) -> None:
    import SimpleITK

    folder = write_series(tmp_path / "ct")
    volume = read_volume(folder)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    SimpleITK.WriteImage(reader.Execute(), str(tmp_path / "ct.nii.gz"))
    other = read_volume(tmp_path / "ct.nii.gz")
    assert np.array_equal(volume.array, other.array)
    assert np.allclose(volume.affine, other.affine, atol=1e-4)
    assert volume.geometry.orientation == "LPS"
    assert volume.array.min() < -900  # rescaled to HU


@pytest.mark.parametrize("turn", ["sagittal", "upside down", "oblique"])
def test_any_orientation(tmp_path: Path, write_series: WriteSeries, turn: str) -> None:
    ways: dict[str, list[float]] = {
        "sagittal": [0, 1, 0, 0, 0, -1],
        "upside down": [1, 0, 0, 0, -1, 0],
        "oblique": [0.8, 0.6, 0, -0.48, 0.64, 0.6],
    }
    folder = write_series(tmp_path / "ct", orientation=ways[turn])
    volume = read_volume(folder)
    # A voxel of the canonical array is the pixel that DICOM's own formula puts there.
    for file in sorted(folder.iterdir()):
        slice_ = pydicom.dcmread(file)
        row, column = np.array(ways[turn][:3]), np.array(ways[turn][3:])
        at = (
            np.array(slice_.ImagePositionPatient)
            + 3 * row * slice_.PixelSpacing[1]
            + 2 * column * slice_.PixelSpacing[0]
        )
        i, j, k = np.rint(np.linalg.inv(volume.affine) @ [-at[0], -at[1], at[2], 1]).astype(int)[:3]
        assert volume.array[0, i, j, k] == slice_.pixel_array[2, 3] * slice_.RescaleSlope + slice_.RescaleIntercept


def test_each_slice_has_its_own_rescaling(tmp_path: Path, write_series: WriteSeries) -> None:
    plain = read_volume(write_series(tmp_path / "a"))
    folder = write_series(tmp_path / "b")
    for number, file in enumerate(sorted(folder.iterdir())):
        _edit(file, RescaleSlope=2.0 + number)
    scaled = read_volume(folder)
    stored = plain.array + 1024
    factor = (scaled.array + 1024)[stored > 0] / stored[stored > 0]
    assert sorted({*np.rint(factor).astype(int).tolist()}) == [2, 3, 4, 5, 6]


def test_a_label_goes_back_to_the_grid_of_the_series(tmp_path: Path, write_series: WriteSeries) -> None:
    volume = read_volume(write_series(tmp_path / "ct"))
    write_label(tmp_path / "label.nii.gz", (volume.array[0] > 0).astype(np.uint8), volume.geometry)
    written = nibabel.load(tmp_path / "label.nii.gz")
    assert np.allclose(written.affine, volume.geometry.affine)
    assert written.shape == (9, 7, 5)


def test_bystanders_are_passed_over(tmp_path: Path, write_series: WriteSeries) -> None:
    folder = write_series(tmp_path / "ct")
    before = read_volume(folder).array
    (folder / "README.txt").write_text("hospital")
    (folder / "DICOMDIR").write_bytes(b"\0" * 200)
    report = sorted(folder.glob("*.dcm"))[0]
    shutil.copy(report, folder / "dose.dcm")
    _edit(folder / "dose.dcm", Modality="SR", SeriesInstanceUID="1.2.9")
    capture = folder / "capture.dcm"
    shutil.copy(report, capture)
    _edit(capture, SeriesInstanceUID="1.2.8", ImagePositionPatient=None, ImageOrientationPatient=None)
    assert np.array_equal(read_volume(folder).array, before)


def test_slices_without_an_ending(tmp_path: Path, write_series: WriteSeries) -> None:
    folder = write_series(tmp_path / "ct")
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(""))
    assert is_dicom(folder)
    assert read_volume(folder).shape == (9, 7, 5)
    assert not is_dicom(tmp_path)


def test_multi_frame(tmp_path: Path, write_series: WriteSeries) -> None:
    folder = write_series(tmp_path / "ct")
    file = _merge(folder, tmp_path / "multi.dcm")
    both = read_volume(folder), read_volume(file)
    assert np.array_equal(both[0].array, both[1].array)
    assert np.allclose(both[0].affine, both[1].affine)
    whole = pydicom.dcmread(file)
    del whole.PerFrameFunctionalGroupsSequence
    whole.save_as(file)
    with pytest.raises(UserError, match="does not tell where in the patient"):
        read_volume(file)


def _compress(folder: Path, syntax: str) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
        dataset.save_as(file)


def test_compressed(tmp_path: Path, write_series: WriteSeries) -> None:
    folder = write_series(tmp_path / "ct")
    plain = read_volume(folder).array
    _compress(folder, "RLELossless")
    assert np.array_equal(read_volume(folder).array, plain)


def test_compressed_without_a_decoder_of_pydicom(
    tmp_path: Path, write_series: WriteSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jpeg_ls")  # encodes for this test; GDCM decodes
    folder = write_series(tmp_path / "ct")
    plain = read_volume(folder).array
    _compress(folder, "JPEGLSLossless")

    def none(_: object) -> None:
        raise RuntimeError("no decoder")

    monkeypatch.setattr(pydicom.dataset.Dataset, "pixel_array", property(none))
    assert np.allclose(read_volume(folder).array, plain)
    file = min(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"0\.dcm is damaged"):
        read_volume(folder)


def test_several_series_in_a_folder(tmp_path: Path, write_series: WriteSeries) -> None:
    folder = write_series(tmp_path / "study", uid="1.2.3", name="Thorax")
    write_series(tmp_path / "study", uid="1.2.44", name="Abdomen", prefix="b")
    with pytest.raises(UserError) as told:
        read_volume(folder)
    assert "mixes 2 series: 1.2.3 (CT, 5 slices, Thorax), 1.2.44 (CT, 5 slices, Abdomen)" in str(told.value)
    assert f"as {folder}#1.2.3" in str(told.value)
    assert open_series(Path(f"{folder}#1.2.44")).uid == "1.2.44"
    assert open_series(Path(f"{folder}#.3")).uid == "1.2.3"
    with pytest.raises(UserError, match="no series whose UID ends in 9"):
        read_volume(Path(f"{folder}#9"))


BROKEN: dict[str, tuple[Callable[[list[Path]], Any], str]] = {
    "missing": (lambda files: files[2].unlink(), r"lacks one slice, between 1.dcm and 3.dcm: 6 mm instead of 3"),
    "twice": (lambda files: shutil.copy(files[1], files[1].with_name("9.dcm")), r"one slice twice .*1.dcm.*9.dcm"),
    "phases": (lambda files: [shutil.copy(f, f.with_name(f"p{f.name}")) for f in files], "each of 5 places 2 times"),
    "uneven": (lambda files: _shift(files[1], [0, 0, 0.8]), "uneven slices, 2.2 to 3.8 mm"),
    "tilt": (lambda files: [_shift(f, [0, i, 0]) for i, f in enumerate(files)], r"tilted gantry \(18.4 degrees\)"),
    "scout": (lambda files: _edit(files[0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "another orientation"),
    "size": (
        lambda files: _edit(files[0], Rows=6, PixelData=bytes(6 * 9 * 2)),
        "several sizes: 4 of 7 x 9, 1 of 6 x 9",
    ),
    "spacing": (lambda files: _edit(files[0], PixelSpacing=[2, 2]), "several pixel sizes"),
    "skew": (
        lambda files: [_edit(f, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]) for f in files],
        "unknown orientation",
    ),
    "no place": (lambda files: [_edit(f, ImagePositionPatient=None) for f in files], "does not tell where"),
    "colour": (lambda files: [_edit(f, SamplesPerPixel=3) for f in files], "colour picture"),
    "cut": (lambda files: files[3].write_bytes(files[3].read_bytes()[:-40]), "3.dcm is damaged or cut short"),
    "empty": (lambda files: files[3].write_bytes(b""), "3.dcm is damaged or"),
    "none": (lambda files: [_edit(f, Modality="SR") for f in files], "holds no DICOM image"),
    "one": (lambda files: [f.unlink() for f in files[1:]] and None, ""),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_told(tmp_path: Path, write_series: WriteSeries, what: str) -> None:
    folder = write_series(tmp_path / "ct")
    files = sorted(folder.iterdir())
    harm, said = BROKEN[what]
    harm(files)
    if not said:
        assert read_volume(folder).shape == (9, 7, 1)
        with pytest.raises(UserError, match="one slice of a series"):
            read_volume(files[0])
        return
    with pytest.raises(UserError, match=said):
        read_volume(folder)


def test_a_manifest_names_series(tmp_path: Path, write_series: WriteSeries) -> None:
    for case in ("a", "b"):
        volume = read_volume(write_series(tmp_path / case, seed=ord(case)))
        label = np.zeros(volume.shape, np.uint8)
        label[2:5, 2:5, 1:3] = 1
        write_label(tmp_path / f"{case}.nii.gz", label, volume.geometry)
    (tmp_path / "set.csv").write_text("image,label\na,a.nii.gz\nb,b.nii.gz\n")
    dataset = load_dataset(tmp_path / "set.csv")
    assert [case.id for case in dataset.cases] == ["a", "b"]
    found = fingerprint(dataset)
    assert not found.broken, found.problems
    assert found.cases["a"].shape == (9, 7, 5)
    _edit(sorted((tmp_path / "a").iterdir())[0], RescaleIntercept=-1000)
    assert data_hash(dataset) != found.data_hash


def _edit(file: Path, **values: Any) -> None:
    dataset = pydicom.dcmread(file)
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(file)


def _shift(file: Path, by: list[float]) -> None:
    position = pydicom.dcmread(file).ImagePositionPatient
    _edit(file, ImagePositionPatient=[float(a) + b for a, b in zip(position, by, strict=True)])


def _merge(folder: Path, out: Path) -> Path:
    """Write the slices of a folder as one enhanced file, frames in the order of the files' names reversed."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    slices = [pydicom.dcmread(file) for file in sorted(folder.iterdir())][::-1]
    whole = slices[0].copy()

    def group(name: str, **values: Any) -> tuple[str, Any]:
        item = Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        return name, Sequence([item])

    frames = []
    for one in slices:
        frame = Dataset()
        frame.__setattr__(*group("PlanePositionSequence", ImagePositionPatient=one.ImagePositionPatient))
        frames.append(frame)
    shared = Dataset()
    orientation = group("PlaneOrientationSequence", ImageOrientationPatient=slices[0].ImageOrientationPatient)
    measures = group("PixelMeasuresSequence", PixelSpacing=slices[0].PixelSpacing, SliceThickness=3)
    values = group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024)
    for name, item in (orientation, measures, values):
        setattr(shared, name, item)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(whole, name)
    whole.NumberOfFrames = len(slices)
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    whole.PixelData = b"".join(one.PixelData for one in slices)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    whole.save_as(out)
    return out
