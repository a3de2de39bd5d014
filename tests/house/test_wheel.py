"""What is installed from the wheel is whole: templates, types, and the runs that `medkd methods NAME` shows."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, in a folder away from the checkout."""
    pytest.importorskip("hatchling", reason="hatchling is not installed; the extra `dev` brings it")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("medkd-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_a_method_is_shown_with_its_run(installed: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "medkd", "methods", "kd"],
        cwd=installed.parent,  # not the checkout, whose own package would be found first
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    assert (ROOT / "pipelines" / "methods" / "kd.yaml").read_text(encoding="utf-8").strip() in told.stdout


def test_every_run_and_every_file_of_the_package_is_there(installed: Path) -> None:
    runs = {file.relative_to(ROOT / "pipelines") for file in (ROOT / "pipelines").rglob("*.yaml")}
    assert {file.relative_to(installed / "medkd" / "examples") for file in installed.rglob("*.yaml")} >= runs
    listed = subprocess.run(["git", "ls-files", "-z", "medkd"], cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so nothing says which files are the project's")
    files = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    assert [name for name in files if not (installed / name).is_file()] == []
    assert not (installed / "tests").exists()
