from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medkd.errors import UserError
from medkd.pipeline.folder import (
    Manifest,
    disk_errors,
    disk_trouble,
    find_model,
    finish,
    is_done,
    open_partial,
    partial,
    read_manifest,
    run_lock,
    write_text,
)

NODE = {"kind": "train", "stage": "student", "member": 0, "fold": 0, "seed": 0, "arm": "main"}


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "nodes" / "train-abc"
    out = open_partial(folder)
    (out / "weights").write_text("w")
    assert not folder.exists()
    assert not is_done(folder, "abc")
    finish(folder, Manifest("abc", NODE, {"steps": 3}, {"prepare": "p"}))
    assert is_done(folder, "abc")
    assert (folder / "weights").read_text() == "w"
    assert not partial(folder).exists()
    manifest = read_manifest(folder)
    assert manifest == Manifest("abc", NODE, {"steps": 3}, {"prepare": "p"})


def test_what_an_interrupted_attempt_left_is_still_there(tmp_path: Path) -> None:
    folder = tmp_path / "train-abc"
    (open_partial(folder) / "last.ckpt").write_text("half way")
    assert (open_partial(folder) / "last.ckpt").read_text() == "half way"


def test_a_partial_folder_that_was_about_to_be_renamed_is_not_whole(tmp_path: Path) -> None:
    folder = tmp_path / "train-abc"
    (open_partial(folder) / "manifest.json").write_text(json.dumps({"key": "abc", "node": NODE}))
    assert not is_done(folder, "abc")
    assert not (open_partial(folder) / "manifest.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"key": "abc"}', '{"key": "abc", "node": {}, "new": 1}'])
def test_a_damaged_manifest_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert not is_done(tmp_path, "abc")


def test_a_key_that_shares_its_first_digits_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "train-abc"
    open_partial(folder)
    finish(folder, Manifest("abc1", NODE))
    assert not is_done(folder, "abc2")
    open_partial(folder)
    finish(folder, Manifest("abc2", NODE))
    assert is_done(folder, "abc2")


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"):
        said = rf"in use by another medkd run \(process {os.getpid()}\)"
        with pytest.raises(UserError, match=said), run_lock(tmp_path / "run"):
            pass
    with run_lock(tmp_path / "run"):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from medkd.pipeline.folder import run_lock\n"
        "with run_lock(Path(sys.argv[1])): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run the same command to go on"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "it is read-only"),
    ],
)
def test_trouble_with_the_disk_is_one_sentence(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(UserError) as caught, disk_errors(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "weights"))
    assert said in str(caught.value)
    assert "weights" in str(caught.value)


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bad") as caught, disk_errors(tmp_path):
        raise OSError(errno.EIO, "bad")
    assert not isinstance(caught.value, UserError)
    assert disk_trouble(ValueError("x"), tmp_path) is None


def test_a_full_disk_is_seen_through_a_library(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        pass

    inside = SafetensorError("I/O error: No space left on device (os error 28)")
    assert "disk is full" in str(disk_trouble(inside, tmp_path))
    outside = RuntimeError("could not save")
    outside.__cause__ = OSError(errno.ENOSPC, "no room")
    assert "disk is full" in str(disk_trouble(outside, tmp_path))


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="a file stands in its way"), run_lock(tmp_path / "runs" / "liver"):
        pass


def test_text_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "x.yaml", "é")
    assert (tmp_path / "a" / "x.yaml").read_text(encoding="utf-8") == "é"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["x.yaml"]


def test_a_run_gives_the_model_to_use(tmp_path: Path) -> None:
    nodes = tmp_path / "run" / "nodes"
    nodes.mkdir(parents=True)
    ages = iter(range(1, 100))

    def done(name: str, **files: str) -> Path:
        folder = nodes / name
        out = open_partial(folder)
        for file, text in files.items():
            (out / f"{file}.json").write_text(text)
        finish(folder, Manifest("k", NODE))
        time = 1e9 + next(ages)
        os.utime(folder / "manifest.json", (time, time))
        return folder

    assert find_model(tmp_path / "model") == tmp_path / "model"
    with pytest.raises(UserError, match="no trained model yet"):
        find_model(tmp_path / "run")
    main = done("train.student.m0.f0.s0.main-1")
    done("train.student.m0.f0.s0.control-1")
    open_partial(nodes / "train.student.m0.f0.s1.main-1")
    assert find_model(tmp_path / "run") == main
    newer = done("train.student.m0.f0.s2.main-1")
    assert find_model(tmp_path / "run") == newer
    entry = {"format": "onnx", "from": main.name, "folder": "onnx"}
    export = done("export.student-1", export=json.dumps([entry]))
    assert find_model(tmp_path / "run") == main
    # The trained network may have been thrown away: the exported one does as well.
    shutil.rmtree(main)
    (export / "onnx").mkdir()
    (export / "onnx" / "student.json").write_text("{}")
    assert find_model(tmp_path / "run") == export / "onnx"
