"""``medkd-run``: an exported folder without torch gives the masks of ``medkd predict``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medkd.data.volume import read_volume
from medkd.errors import UserError
from medkd.export.onnx import export_onnx
from medkd.export.portable import export_portable
from medkd.export.runner import Portable, find_cases, main, run_files
from medkd.inference.model import SegmentationModel
from medkd.inference.predict import predict_files

pytest.importorskip("onnxruntime")
Make = Callable[..., Path]
ROOT = Path(__file__).parents[2]
SAME = 0.9999
"""Least share of voxels with the class of ``medkd predict``; what differs is a tie that rounding broke."""

# Whatever is none of the runner's four packages fails on import, as where it is not installed.
PROGRAM = """
import sys
for name in ("torch", "monai", "pydantic", "typer", "rich", "yaml", "SimpleITK", "blosc2", "safetensors", "einops",
             "psutil", "lightning_fabric", "onnx"):
    sys.modules[name] = None
import medkd
from medkd.export.runner import main
code = main(sys.argv[1:])
roots = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
assert not roots & {"torch", "monai"}, roots
sys.exit(code)
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.fixture
def exported(make_model: Make, tmp_path: Path) -> Path:
    return export_portable(make_model(), tmp_path / "portable").folder


def test_same_masks_without_torch(make_model: Make, write_image: Make, exported: Path, tmp_path: Path) -> None:
    for index, shape in enumerate([(23, 9, 6), (11, 19, 12)]):
        write_image(tmp_path / "in" / f"case{index}.nii.gz", shape, seed=index)
    done = without_torch(exported, tmp_path / "in", tmp_path / "out", "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in json.loads(done.stdout)] == ["done", "done"]
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["labels"]["right"] == 2
    trained = SegmentationModel.from_folder(tmp_path / "model")
    predict_files(trained, tmp_path / "in", tmp_path / "torch")
    ours, theirs = masks(tmp_path / "out"), masks(tmp_path / "torch")
    assert list(ours) == list(theirs) == ["case0.nii.gz", "case1.nii.gz"]
    for name, mask in ours.items():
        assert len(np.unique(mask)) > 1
        assert (mask == theirs[name]).mean() >= SAME
        image = nibabel.load(tmp_path / "in" / name)
        answer = nibabel.load(tmp_path / "out" / name)
        assert answer.shape == image.shape
        np.testing.assert_allclose(answer.affine, image.affine)


@pytest.mark.slow
def test_in_an_environment_without_torch(exported: Path, write_image: Make, tmp_path: Path) -> None:
    """Install medkd without its dependencies beside the four packages, and run the command that this installs."""
    venv.create(tmp_path / "env", with_pip=True)
    binary = tmp_path / "env" / "bin"
    pip = [str(binary / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--timeout", "5"]
    versions = [f"{name}=={__import__(name).__version__}" for name in ("numpy", "scipy", "nibabel", "onnxruntime")]
    for arguments in (versions, ["--no-deps", str(ROOT)]):
        try:
            installed = subprocess.run([*pip, *arguments], capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip takes too long to install {' '.join(arguments)}")
        if installed.returncode:
            pytest.skip(f"pip cannot install {' '.join(arguments)} here")
    image = write_image(tmp_path / "in" / "a.nii.gz", (23, 9, 6))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(binary / "medkd-run"), str(exported), str(image), str(tmp_path / "out" / "a.nii.gz")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    absent = [str(binary / "python"), "-c", "import medkd, importlib.util as u; assert u.find_spec('torch') is None"]
    assert subprocess.run(absent, env=environment, cwd=tmp_path).returncode == 0
    ours = masks(tmp_path / "out")["a.nii.gz"]
    here = run_files(Portable(exported), image, tmp_path / "here")
    assert here[0].status == "done"
    assert (ours == masks(tmp_path / "here")["a.nii.gz"]).all()


def test_channels_are_files(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder = export_portable(make_model(channels=2), tmp_path / "portable").folder
    for channel in (0, 1):
        write_image(tmp_path / "in" / f"a_000{channel}.nii.gz", seed=channel)
    write_image(tmp_path / "in" / "b_0000.nii.gz")
    done = {one.case: one for one in run_files(Portable(folder), tmp_path / "in", tmp_path / "out")}
    assert done["a"].status == "done"
    assert done["b"].status == "failed"
    assert "channel" in str(done["b"].error)
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["a.nii.gz"]
    model = SegmentationModel.from_folder(tmp_path / "model")
    expected = model.predict(read_volume([tmp_path / "in" / f"a_000{i}.nii.gz" for i in (0, 1)]))
    assert (Portable(folder).predict(read_volume(sorted((tmp_path / "in").glob("a_*")))) == expected).mean() >= SAME
    assert find_cases(tmp_path / "in" / "a_0000.nii.gz", 2) == {"a": tuple(sorted((tmp_path / "in").glob("a_*")))}


def test_a_bad_file_does_not_stop_the_rest(
    exported: Path, write_image: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no gzip")
    arguments = [str(exported), str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert "bad" in told.err
    assert told.out.split() == [str(tmp_path / "out" / "good.nii.gz")]
    (tmp_path / "in" / "bad.nii.gz").unlink()
    assert main(arguments) == 0
    assert "was there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["absent", "in", "out"], "holds no student.json"),
        (["portable", "absent", "out"], "input absent does not exist"),
        (["portable", "portable", "out"], "has no NIfTI volume"),
        (["portable", "in", "in"], "would replace the images"),
        (["portable", "in/a.nii.gz", "in/a.nii.gz"], "would replace the images"),
        (["portable", "in/a.nii.gz", "out.mha"], "no NIfTI name"),
        (["portable", "in", "out.nii.gz"], "a file name for a folder"),
        (["portable", "in", "out", "--variant", "int8"], "no variant int8"),
        (["portable", "in", "out", "--provider", "tensorrt"], "no TensorrtExecutionProvider"),
    ],
)
def test_mistakes_are_told(
    exported: Path,
    write_image: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    word: str,
) -> None:
    import onnxruntime

    if "tensorrt" in arguments and "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    write_image(tmp_path / "in" / "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_or_newer_folders_are_refused(make_model: Make, exported: Path, tmp_path: Path) -> None:
    card = exported / "student.json"
    body = json.loads(card.read_text())
    card.write_text(json.dumps(body | {"format": 99}))
    with pytest.raises(UserError, match="upgrade medkd"):
        Portable(exported)
    card.write_text(json.dumps(body))
    graph = exported / "student.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match="differs from the hash"):
        Portable(exported)
    graph.unlink()
    with pytest.raises(UserError, match=r"has no student\.onnx"):
        Portable(exported)
    card.write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        Portable(exported)
    export_onnx(tmp_path / "model", tmp_path / "old")
    with pytest.raises(UserError, match="an older medkd wrote it"):
        Portable(tmp_path / "old")


@pytest.mark.gpu
def test_tensorrt_gives_the_same_masks(exported: Path, write_image: Make, tmp_path: Path) -> None:
    import onnxruntime

    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no TensorRT")
    volume = read_volume(write_image(tmp_path / "a.nii.gz", (23, 9, 6)))
    expected = Portable(exported).predict(volume)
    assert (Portable(exported, provider="tensorrt").predict(volume) == expected).mean() > 0.995
