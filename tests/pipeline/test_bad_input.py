"""What is wrong with the input is told in one sentence, exit code 2; nothing half-written is taken for whole."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from safetensors import SafetensorError

from medkd.data.dataset import load_dataset
from medkd.data.splits import make_folds
from medkd.pipeline.folder import read_manifest, run_lock

Command = Callable[..., Any]
Write = Callable[..., Path]

NET: dict[str, Any] = {"model": {"name": "UNet", "channels": [2, 4]}, "methods": ["supervised"]}
TRAIN: dict[str, Any] = {"steps": 2, "batch": 2, "threads": 1}
TRAINED = "train.net.m0.f0.s0.main"


@pytest.fixture
def file(tmp_path: Path, tiny_dataset: Path, write: Write) -> Path:
    """One network on the tiny dataset, 3 training cases in fold 0 of 3."""
    return run_of(write, tmp_path, tiny_dataset, {"net": NET})


def run_of(write: Write, tmp_path: Path, source: object, stages: dict[str, Any], **more: Any) -> Path:
    return write(tmp_path, "bad", source, stages, data={"source": str(source), "folds": 3}, **{"train": TRAIN, **more})


def refused(told: Any, *said: str) -> None:
    """Assert that the command ended with one line that says all this."""
    assert told.code == 2, told
    for words in said:
        assert words in told.error
    assert told.out == ""


def whole(runs: Path) -> set[str]:
    """Return the names of the finished nodes; all else must be recognisable as unfinished."""
    finished = set()
    for folder in runs.glob("*/nodes/*"):
        if read_manifest(folder) is None:
            assert folder.name.endswith(".partial")
        else:
            assert not folder.name.endswith(".partial")
            finished.add(folder.name.rpartition("-")[0])
    return finished


def change(file: Path, edit: Callable[[np.ndarray], None] = lambda _: None, shift_mm: float = 0.0) -> None:
    """Write a NIfTI file anew with other voxels, or moved along x."""
    image = nib.load(file)
    array, affine = np.asanyarray(image.dataobj).copy(), image.affine.copy()
    edit(array)
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(array, affine), file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {stepz: 5}", "bad.yaml:2: train.stepz: unknown key (did you mean 'steps'?)"),
        ("train: {steps: many}", "bad.yaml:2: train.steps: should be a whole number, not 'many'"),
        ("plan: {spacing: [1, 1, 1]}", "bad.yaml:2: plan.spacing: unknown key (did you mean 'spacing_mm'?)"),
        ("plan: {patch: [16, 16]}", "bad.yaml:2: plan.patch: is [16, 16]: give three positive whole numbers"),
        ("evaluate: {metrics: [dise]}", "bad.yaml:2: evaluate.metrics.0: no metric is called 'dise'"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_wrong_key_is_told_with_its_line(
    tmp_path: Path, tiny_dataset: Path, command: Command, verb: str, text: str, said: str
) -> None:
    file = tmp_path / "bad.yaml"
    stages = "stages: {net: {model: {name: UNet, channels: [2, 4]}, methods: [supervised]}}"
    file.write_text(f"name: bad\n{text}\ndata: {{source: {tiny_dataset}}}\n{stages}\n")
    refused(command(verb, file), said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "UNett"}}, "stages.net.model.0: network 'UNett'"),
        ({"model": {"name": "UNet", "chanels": [2]}}, "stages.net.model.0.chanels: network UNet has no argument"),
        ({"methods": ["supervisd"]}, "stages.net.methods.0: method 'supervisd' is not in the catalogue"),
        ({"methods": [{"name": "supervised", "dise": 1}]}, "stages.net.methods.0.dise: method supervised has no"),
        ({"methods": ["kd"]}, "stages.net.methods: kd needs a teacher; add `teacher:` to the stage"),
        ({"teacher": "nett", "methods": ["kd"]}, "stages.net.teacher: 'nett' is neither a stage nor a model folder"),
        ({"unlabelled": True}, "stages.net.unlabelled: only a teacher can speak about unlabelled cases, or"),
        ({"labelled": 4}, "stages.net.labelled is 4 but fold 0 has 3 training cases"),
        ({"init": "nobody"}, "stages.net.init: no other stage is called 'nobody'"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_wrong_stage_is_told_before_anything_is_done(
    tmp_path: Path,
    tiny_dataset: Path,
    command: Command,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(command(verb, run_of(write, tmp_path, tiny_dataset, {"net": {**NET, **changes}})), said)
    assert not list(tmp_path.glob("runs/bad/nodes"))


def test_an_ensemble_is_not_exported(tmp_path: Path, tiny_dataset: Path, command: Command, write: Write) -> None:
    stages = {"net": {**NET, "model": [NET["model"], NET["model"]]}}
    file = run_of(write, tmp_path, tiny_dataset, stages, export=["onnx"])
    refused(command("run", file), "export: stage net has several models and cannot be exported as one")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "gpu9"], "device 'gpu9' cannot be used here"),
        (["--only", "nett"], "--only nett: no stage is called that (did you mean 'net'?)"),
        (["--set", "data.folds=7"], "has 6 labelled patients, and 7 folds need at least"),
        (["--set", "data.source=nowhere"], "dataset 'nowhere' was not found"),
        (["--set", "plan.patch=[18, 17, 16]"], "plan.patch [18, 17, 16] is not divisible by the total stride"),
    ],
)
def test_a_wrong_option_is_told(file: Path, tmp_path: Path, command: Command, arguments: list[str], said: str) -> None:
    refused(command("run", file, "--runs", tmp_path / "runs", *arguments), said)
    assert whole(tmp_path / "runs") == set()


def missing_image(root: Path) -> None:
    (root / "imagesTr" / "tiny_02.nii.gz").unlink()


def missing_unlabelled(root: Path) -> None:
    (root / "imagesUn" / "tiny_06.nii.gz").unlink()


def undeclared_value(root: Path) -> None:
    change(root / "labelsTr" / "tiny_01.nii.gz", lambda array: array.__setitem__((0, 0, slice(0, 3)), 9))


def moved_label(root: Path) -> None:
    change(root / "labelsTr" / "tiny_01.nii.gz", shift_mm=12)


def cropped_label(root: Path) -> None:
    label = nib.load(root / "labelsTr" / "tiny_01.nii.gz")
    nib.save(nib.Nifti1Image(np.asanyarray(label.dataobj)[:-1], label.affine), root / "labelsTr" / "tiny_01.nii.gz")


def not_a_number(root: Path) -> None:
    file = root / "imagesTr" / "tiny_01.nii.gz"
    image = nib.load(file)
    array = np.asarray(image.dataobj, np.float32)
    array[3, 4, 5:8] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), file)


def cut_short(root: Path) -> None:
    file = root / "imagesTr" / "tiny_03.nii.gz"
    file.write_bytes(file.read_bytes()[:-200])


def zero_bytes(root: Path) -> None:
    (root / "labelsTr" / "tiny_03.nii.gz").write_bytes(b"")


def class_of_nobody(root: Path) -> None:
    description = json.loads((root / "dataset.json").read_text())
    description["labels"]["3"] = "pancreas"
    (root / "dataset.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (missing_image, ["image of case tiny_02 is missing", "tiny_02.nii.gz"]),
        (missing_unlabelled, ["image of case tiny_06 is missing"]),
        (undeclared_value, ["tiny_01.nii.gz holds values that the dataset does not declare: 9 (3 voxels)"]),
        (moved_label, ["tiny_01.nii.gz", "the affine differs by up to 12 mm"]),
        (cropped_label, ["tiny_01.nii.gz", "shapes (24, 28, 20) and (23, 28, 20) differ"]),
        (not_a_number, ["tiny_01.nii.gz: 3 voxels are NaN or infinite"]),
        (cut_short, ["tiny_03.nii.gz cannot be read: it is damaged, cut short"]),
        (zero_bytes, ["tiny_03.nii.gz cannot be read: it is empty"]),
        (class_of_nobody, ["class 'pancreas' is in none of the 6 labelled cases"]),
    ],
)
def test_broken_data_are_told(
    file: Path, tiny_dataset: Path, tmp_path: Path, command: Command, harm: Callable[[Path], None], said: list[str]
) -> None:
    harm(tiny_dataset)
    refused(command("run", file, "--runs", tmp_path / "runs"), *said)
    assert whole(tmp_path / "runs") == set()
    if harm is not class_of_nobody:  # `check` reads a part of the cases, in which a class may lack
        refused(command("check", file), *said)


def test_a_class_that_only_test_cases_have_is_told(
    file: Path, tiny_dataset: Path, tmp_path: Path, command: Command
) -> None:
    split = make_folds(load_dataset(tiny_dataset), folds=3, seed=0)[0]
    for case in split.train:
        change(tiny_dataset / "labelsTr" / f"{case}.nii.gz", lambda array: np.putmask(array, array == 2, 0))
    told = command("run", file, "--runs", tmp_path / "runs")
    refused(told, "class 'spleen' is in none of the 3 training cases of fold 0")
    assert whole(tmp_path / "runs") == set()


def test_a_patch_larger_than_the_volume_is_padded_and_told(file: Path, tmp_path: Path, command: Command) -> None:
    told = command("run", file, "--runs", tmp_path, "--json", "--set", "plan.patch=[48, 48, 32]")
    assert told.code == 0, told.err
    plan = json.loads((Path(told.record["nodes"]["prepare"]) / "plan.json").read_text())
    assert any("larger than the median volume" in note for note in plan["notes"])


@pytest.mark.parametrize("kind", ["absent/model", "empty", "file"])
def test_a_teacher_that_is_no_model_is_told(
    tmp_path: Path, tiny_dataset: Path, command: Command, write: Write, kind: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    teacher = tmp_path / kind
    stages = {"net": {**NET, "methods": ["supervised", "kd"], "teacher": str(teacher), "control": "none"}}
    file = run_of(write, tmp_path, tiny_dataset, stages)
    told = {
        "absent/model": "does not exist",
        "empty": "holds no model that medkd knows",
        "file": "is no model file that",
    }
    said = told[kind]
    for verb in (["run", file, "--runs", tmp_path / "runs"], ["check", file]):
        refused(command(*verb), f"{teacher} {said}")
    assert whole(tmp_path / "runs") <= {"prepare"}


def test_a_folder_that_cannot_be_written_is_told(
    file: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in_the_way").touch()
    refused(command("run", file, "--runs", tmp_path / "in_the_way"), "in_the_way", "a file stands in its way")

    def closed(path: Path, *_args: Any, **_options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # root may write everywhere, so the system is played
        patch.setattr(Path, "mkdir", closed)
        told = command("run", file, "--runs", tmp_path / "closed")
    refused(told, str(tmp_path / "closed"), "permission denied; check the folder's owner and mode")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_someone_else_is_told(file: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(command("run", file, "--runs", tmp_path / "closed"), "permission denied")


def test_a_folder_in_use_is_told(file: Path, tmp_path: Path, command: Command) -> None:
    with run_lock(tmp_path / "runs" / "bad"):
        told = command("run", file, "--runs", tmp_path / "runs")
    refused(told, f"is in use by another medkd run (process {os.getpid()})")


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "error", "kept"),
    [
        ("blosc2.asarray", RuntimeError("Error while creating the NDArray: No space left on device"), set()),
        ("torch.save", FULL, {"prepare"}),
        ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device"), {"prepare"}),
        ("medkd.data.volume.write_stored", FULL, {"prepare", TRAINED}),
        ("medkd.pipeline.folder.json.dump", FULL, set()),
    ],
)
def test_a_full_disk_is_told_once_and_stops_the_run(
    file: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
    kept: set[str],
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        told = command("run", file, "--runs", tmp_path)
    refused(told, "cannot", f"{len(kept)} node", "not begun")
    assert told.err.count("FAILED") == 1
    assert whole(tmp_path) == kept
    told = command("run", file, "--runs", tmp_path, "--json")
    assert told.code == 0, told.err
    assert set(told.record["reused"]) == kept


@pytest.mark.parametrize(("most_bytes", "kept"), [(4_000, 0), (40_000, 4)], ids=["volume", "report"])
def test_a_disk_that_takes_no_large_file_is_told(
    file: Path, tmp_path: Path, command: Command, most_bytes: int, kept: int
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        told = command("run", file, "--runs", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(told, "cannot be written")
    assert len(whole(tmp_path)) == kept


INTERRUPT = """\
import signal
from medkd.methods.base import Method

class Interrupt(Method):
    reads_teacher = False

    def turns(self, r):
        signal.raise_signal(signal.SIGINT)
        return iter(())
"""


def test_ctrl_c_keeps_what_is_whole(
    tmp_path: Path, tiny_dataset: Path, command: Command, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interrupt_for_a_test.py").write_text(INTERRUPT)
    monkeypatch.syspath_prepend(tmp_path)
    late = {**NET, "methods": ["supervised", "interrupt_for_a_test:Interrupt"]}
    file = run_of(write, tmp_path, tiny_dataset, {"net": NET, "late": late})
    before = signal.getsignal(signal.SIGTERM)
    told = command("run", file, "--runs", tmp_path / "runs")
    assert told.code == 130
    assert told.error == "interrupted; finished nodes are kept, run the same command to resume"
    assert whole(tmp_path / "runs") == {"prepare", TRAINED}
    assert signal.getsignal(signal.SIGTERM) is before
    # The lock is gone and the finished nodes are reused.
    told = command("run", file, "--runs", tmp_path / "runs", "--only", "net", "--json")
    assert told.code == 0, told.err
    assert {"prepare", TRAINED} <= set(told.record["reused"])
