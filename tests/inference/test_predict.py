"""Files in, files out: nothing lost, nothing half-written, nothing done twice."""

from __future__ import annotations

import errno
import json
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medkd.data import volume as volumes
from medkd.data.volume import Volume, read_label, read_volume
from medkd.errors import UserError
from medkd.inference import predict
from medkd.inference.model import Ready, SegmentationModel
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
    beside = ["labels.ctbl", "labels.json", "labels.txt", "predictions.jsonl"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*beside, "scan0.nii.gz", "scan2.nii.gz"]
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
    beside = ["x.labels.ctbl", "x.labels.json", "x.labels.txt", "x.mha", "x.predictions.jsonl"]
    assert sorted(p.name for p in (tmp_path / "seg").iterdir()) == beside
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

    monkeypatch.setattr(model, "label_ready", full)
    write_image(tmp_path / "in" / "a.nii.gz")
    (result,) = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert result.status == "failed"
    assert "memory" in str(result.error)


@pytest.mark.parametrize("part", ["prepare", "label_ready"])
def test_what_fits_alone_is_not_lost_to_the_case_read_ahead(
    model: SegmentationModel, write_image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.nii.gz")
    real, calls = getattr(model, part), []

    def tight(given: object) -> object:
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            raise MemoryError
        return real(given)

    monkeypatch.setattr(model, part, tight)
    results = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert [r.status for r in results] == ["done"] * 3
    assert len(calls) == 4


def test_reading_network_and_writing_go_on_at_once(
    model: SegmentationModel, write_image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(4):
        write_image(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    meet = threading.Barrier(3, timeout=20)  # broken unless all three are at work at the same time
    met = []

    def with_others(name: str, function: Callable[..., object], turn: int) -> Callable[..., object]:
        count = iter(range(100))

        def wrapped(*given: object, **named: object) -> object:
            if next(count) == turn:
                meet.wait()
                met.append(name)
            return function(*given, **named)

        return wrapped

    # The third case is read while the second is in the network and the first is written.
    monkeypatch.setattr(predict, "read_volume", with_others("read", predict.read_volume, 2))
    monkeypatch.setattr(model, "label_ready", with_others("network", model.label_ready, 1))
    monkeypatch.setattr(predict, "write_label", with_others("write", predict.write_label, 0))
    results = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert sorted(met) == ["network", "read", "write"]
    for index, result in enumerate(results):
        truth = model.predict(read_volume(tmp_path / "in" / f"{index}.nii.gz"))
        assert np.array_equal(read_label(result.output), truth)


def test_no_more_than_three_cases_are_in_memory(
    model: SegmentationModel, write_image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(6):
        write_image(tmp_path / "in" / f"{index}.nii.gz")
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = []
    real = model.prepare

    def counted(volume: Volume) -> object:
        ready = real(volume)
        alive.add(ready)
        most.append(len(alive))
        return ready

    monkeypatch.setattr(model, "prepare", counted)
    predict_files(model, tmp_path / "in", tmp_path / "out")
    assert max(most) <= 2  # prepared images; the third is a label


def test_several_inputs(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    one, other = write_image(tmp_path / "p" / "ct.nii.gz"), write_image(tmp_path / "q" / "ct.nii.gz", seed=1)
    write_image(tmp_path / "r" / "mr.nii.gz")
    results = predict_files(model, [one, other, tmp_path / "r", one], tmp_path / "out")
    assert [(r.case, r.status) for r in results] == [("p_ct", "done"), ("q_ct", "done"), ("mr", "done")]
    with pytest.raises(UserError, match="does not exist"):
        predict_files(model, [one, tmp_path / "s"], tmp_path / "out")
    with pytest.raises(UserError, match="nothing to label"):
        predict_files(model, [], tmp_path / "out")


@pytest.mark.parametrize("kind", ["nii.gz", "nii", "nrrd", "mha"])
def test_a_format_of_choice(model: SegmentationModel, write_image: Make, tmp_path: Path, kind: str) -> None:
    image = write_image(tmp_path / "a.nii.gz")
    (result,) = predict_files(model, image, tmp_path / "out", format=kind)
    assert result.output.name == f"a.{kind}"
    assert np.array_equal(read_label(result.output, like=read_volume(image)), model.predict(read_volume(image)))
    with pytest.raises(UserError, match="cannot be written as 'nift'"):
        predict_files(model, image, tmp_path / "out", format="nift")
    with pytest.raises(UserError, match="contradicts --format seg"):
        predict_files(model, image, tmp_path / "x.nii.gz", format="seg")


def test_a_half_done_cohort_goes_on(
    model: SegmentationModel, write_image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write_image(tmp_path / "in" / f"{name}.nii.gz", seed=ord(name))
    real, calls = model.label_ready, []

    def stopped(ready: Ready) -> object:
        calls.append(ready)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(ready)

    monkeypatch.setattr(model, "label_ready", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, tmp_path / "in", tmp_path / "out")
    monkeypatch.setattr(model, "label_ready", real)
    assert not list((tmp_path / "out").glob(".*"))
    results = predict_files(model, tmp_path / "in", tmp_path / "out")
    # The first was written when the second was stopped; only its own line may be missing, and then it is done again.
    assert [r.status for r in results][1:] == ["done", "done"]
    assert [r.status for r in predict_files(model, tmp_path / "in", tmp_path / "out")] == ["skipped"] * 3


def test_an_image_that_was_replaced_is_done_again(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    image = write_image(tmp_path / "in" / "a.nii.gz")
    predict_files(model, tmp_path / "in", tmp_path / "out")
    write_image(image, seed=7)
    (result,) = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert result.status == "done"
    assert np.array_equal(read_label(result.output), model.predict(read_volume(image)))


def test_labels_of_someone_else_are_kept(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.nii.gz")
    theirs = write_image(tmp_path / "out" / "a.nii.gz", seed=3)
    before = theirs.read_bytes()
    (result,) = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert result.status == "failed"
    assert "no record says that medkd wrote it" in str(result.error)
    assert theirs.read_bytes() == before


def test_other_options_are_not_mixed(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder = make_model()
    write_image(tmp_path / "in" / "a.nii.gz")
    predict_files(SegmentationModel.from_folder(folder), tmp_path / "in", tmp_path / "out")
    other = SegmentationModel.from_folder(folder, overlap=0.25)
    with pytest.raises(UserError, match=r"other options \(overlap 0.5, now 0.25\)"):
        predict_files(other, tmp_path / "in", tmp_path / "out")
    assert [r.status for r in predict_files(other, tmp_path / "in", tmp_path / "out", overwrite=True)] == ["done"]
    assert [r.status for r in predict_files(other, tmp_path / "in", tmp_path / "out")] == ["skipped"]


def test_a_record_cut_short(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / "in" / f"{name}.nii.gz")
    predict_files(model, tmp_path / "in", tmp_path / "out")
    record = tmp_path / "out" / "predictions.jsonl"
    record.write_text(record.read_text()[:-30])
    assert [r.status for r in predict_files(model, tmp_path / "in", tmp_path / "out")] == ["skipped", "done"]
    assert [r.status for r in predict_files(model, tmp_path / "in", tmp_path / "out")] == ["skipped", "skipped"]


def test_a_full_disk_leaves_no_half_label_and_wastes_no_network(
    model: SegmentationModel, write_image: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        write_image(tmp_path / "in" / f"{name}.nii.gz")
    real, calls = volumes.write_stored, []

    def full(path: Path, *rest: Any) -> None:
        calls.append(path)
        if len(calls) > 1:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(volumes, "write_stored", full)
    results = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert [r.status for r in results] == ["done", "failed", "failed", "failed"]
    assert "cannot write" in str(results[1].error)
    assert "No space left" in str(results[1].error)
    assert "the disk is full" in str(results[3].error)
    assert len(calls) == 2
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz"]
    assert not list((tmp_path / "out").glob(".*"))
    monkeypatch.setattr(volumes, "write_stored", real)
    again = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert [r.status for r in again] == ["skipped", "done", "done", "done"]


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "channels": (lambda p: _noise(p, (9, 8, 7, 2)), "image .*bad.nii.gz is 4-D: 2 volumes"),
    "vectors": (lambda p: _noise(p, (9, 8, 7, 1, 3)), "bad.nii.gz is 4-D: 3 volumes"),
    "series of vectors": (lambda p: _noise(p, (9, 8, 7, 2, 3)), "bad.nii.gz has shape"),
    "orientation": (lambda p: _noise(p, (9, 8, 7), known=False), "bad.nii.gz has an unknown orientation"),
    "flat": (lambda p: _noise(p, (9, 8)), "bad.nii.gz has shape"),
    "zero bytes": (lambda p: p.write_bytes(b"") and None, "bad.nii.gz cannot be read: it is empty"),
    "zero voxels": (lambda p: _noise(p, (9, 0, 7)), "bad.nii.gz (has shape|cannot be read)"),
    "cut": (lambda p: _noise(p, (30, 30, 30), cut=True), "bad.nii.gz cannot be read: it is damaged, cut short"),
    "NaN": (lambda p: _noise(p, (9, 8, 7), nan=True), "bad.nii.gz: 1 voxel is NaN"),
}


def _noise(path: Path, shape: tuple[int, ...], *, known: bool = True, cut: bool = False, nan: bool = False) -> None:
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if nan:
        voxels[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if known else None), path)
    if cut:
        path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize("what", BAD)
def test_a_bad_image_is_told_and_the_others_are_done(
    model: SegmentationModel, write_image: Make, tmp_path: Path, what: str
) -> None:
    for name in ("a", "z"):
        write_image(tmp_path / "in" / f"{name}.nii.gz")
    harm, said = BAD[what]
    harm(tmp_path / "in" / "bad.nii.gz")
    results = predict_files(model, tmp_path / "in", tmp_path / "out")
    assert [(r.case, r.status) for r in results] == [("a", "done"), ("bad", "failed"), ("z", "done")]
    assert re.search(said, str(results[1].error)), results[1].error
    assert "\n" not in str(results[1].error)
    assert not (tmp_path / "out" / "bad.nii.gz").exists()


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
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no volume .* and no DICOM series"):
        predict_files(model, tmp_path / "empty", tmp_path / "out")
