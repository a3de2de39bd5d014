"""``medkd evaluate`` as a person sees it."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from medkd.cli import call


@pytest.fixture
def folders(tiny_dataset: Path, tmp_path: Path) -> tuple[str, str]:
    shutil.copytree(tiny_dataset / "labelsTr", tmp_path / "pred")
    return str(tmp_path / "pred"), str(tiny_dataset / "labelsTr")


def test_names_are_found_beside_the_labels(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["evaluate", *folders, "--metrics", "dice,lesion_f1", "--lesions", "spleen"]) == 0
    told = capsys.readouterr()
    assert f"class names from {Path(folders[1]).parent / 'dataset.json'}" in told.err
    lines = [line.split()[:4] for line in told.out.splitlines()]
    assert ["liver", "dice", "6", "0"] in lines
    assert ["spleen", "lesion_f1", "6", "0"] in lines
    assert not any(line[:2] == ["liver", "lesion_f1"] for line in lines)  # an organ has no lesions to count


def test_what_cannot_be_scored_is_told_and_the_rest_written(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = Path(folders[0])
    (pred / "tiny_02.nii.gz").unlink()
    (pred / "tiny_03.nii.gz").write_bytes(b"broken")
    out = tmp_path / "scores.csv"
    assert call(["evaluate", *folders, "--jobs", "2", "--metrics", "dice", "--out", str(out), "--json"]) == 2
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert {row["case"] for row in found["rows"]} == {"tiny_00", "tiny_01", "tiny_04", "tiny_05"}
    assert [problem["case"] for problem in found["problems"]] == ["tiny_02", "tiny_03"]
    assert found["surfaces"] == "surfel"
    assert "2 cases could not be scored" in told.err
    with out.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_mistakes(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (["--metrics", "dise"], "did you mean 'dice'"),
        (["--lesions", "livr"], "did you mean 'liver'"),
        (["--surfaces", "mesh"], "mesh"),
        (["--classes", "absent.json"], "absent.json with the labels does not exist"),
    ):
        assert call(["evaluate", *folders, *options]) == 2
        assert words in capsys.readouterr().err
