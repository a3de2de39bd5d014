"""Whole runs, small enough for a test: scans, the YAML, and the command line with what it says."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medkd.cli import call
from medkd.data.phantom import write_phantoms

UNET: dict[str, Any] = {"name": "UNet", "channels": [4, 8]}
SEGRESNET: dict[str, Any] = {"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
TEACHERS: dict[str, Any] = {"model": [UNET, SEGRESNET], "methods": ["supervised"]}
STUDENT: dict[str, Any] = {
    "model": {"name": "UNet", "channels": [3, 6]},
    "teacher": "teachers",
    "methods": ["supervised", "kd"],
    "labelled": 3,
    "control": "steps",
}


@dataclass(frozen=True)
class Told:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """What ``--json`` printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> str:
        """The only error line, without a traceback about it."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("medkd: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("medkd: ").removeprefix("error: ")


Command = Callable[..., Told]
Write = Callable[..., Path]


def medkd(*arguments: object) -> Told:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = call([str(argument) for argument in arguments])
    return Told(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command() -> Iterator[Command]:
    """The command line as a function, on one thread, so that numbers repeat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield medkd


def write_run(folder: Path, name: str, source: object, stages: dict[str, Any] | None = None, **more: Any) -> Path:
    """Write the YAML of a small run (JSON is YAML) and return the file; ``more`` replaces top-level keys."""
    config: dict[str, Any] = {
        "name": name,
        "data": {"source": str(source), "folds": 4},
        "plan": {"patch": [16, 16, 16]},
        "train": {"steps": 10, "batch": 2, "threads": 1},
        "stages": stages or {"teachers": TEACHERS, "student": STUDENT},
        "evaluate": {"metrics": ["dice", "nsd_10mm"]},
        "report": {"cases": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(copy.deepcopy({**config, **more}), indent=1))
    return file


@pytest.fixture(scope="session")
def write() -> Write:
    return write_run


@pytest.fixture(scope="session")
def teachers() -> dict[str, Any]:
    """A stage of two small networks of different architecture."""
    return copy.deepcopy(TEACHERS)


@pytest.fixture(scope="session")
def student() -> dict[str, Any]:
    """A stage that learns from it, with three labels."""
    return copy.deepcopy(STUDENT)


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight labelled and two unlabelled abdomens on a very coarse grid."""
    folder = tmp_path_factory.mktemp("data") / "scans"
    return write_phantoms(folder, cases=8, unlabelled=2, shape=(32, 28, 16), spacing_mm=(10.2, 9.8, 15.0))


@pytest.fixture(scope="session")
def save() -> Callable[[Path, np.ndarray, tuple[float, ...]], None]:
    """Write an array ``(X, Y, Z)`` with a voxel size in mm as NIfTI."""
    return save_volume


@pytest.fixture(scope="session")
def two_boxes() -> Callable[[int, tuple[int, int, int]], np.ndarray]:
    """Draw the label of a case."""
    return boxes


def save_volume(path: Path, array: np.ndarray, spacing_mm: tuple[float, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing_mm, 1.0])), path)


def boxes(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a label ``(X, Y, Z)`` of two boxes that lie a little elsewhere for each seed."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value, (low, high) in enumerate(((0.15, 0.45), (0.55, 0.85)), start=1):
        corners = [(int(n * low) + int(rng.integers(2)), int(n * high)) for n in shape]
        label[tuple(slice(a, b) for a, b in corners)] = value
    return label
