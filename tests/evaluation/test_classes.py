"""Files that name classes."""

import json
from pathlib import Path

import pytest

from medkd.errors import UserError
from medkd.evaluation.classes import Classes, labels_beside, read_labels

LIVER = Classes({"background": 0, "liver": 1, "gall bladder": 2})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset.json", json.dumps({"labels": {"0": "background", "1": "liver", "2": "gall bladder"}})),
        ("dataset.json", json.dumps({"name": "x", "labels": {"background": 0, "liver": 1, "gall bladder": "2"}})),
        ("names.json", json.dumps({"background": 0, "liver": 1, "gall bladder": 2})),
        ("names.txt", "0 background\n1 liver\n\n2 gall bladder\n"),
        ("names.csv", "name,value\nbackground,0\nliver,1\ngall bladder,2\n"),
        ("names.csv", "value;name\n0;background\n1;liver\n2;gall bladder\n"),
        ("snap.txt", '# ITK-SNAP\n0 0 0 0 0 0 0 "background"\n1 255 0 0 1 1 1 "liver"\n2 0 9 0 1 1 1 "gall bladder"\n'),
        ("slicer.ctbl", "# Color\n0 background 0 0 0 0\n1 liver 221 130 101 255\n2 gall bladder 139 150 98 255\n"),
    ],
)
def test_formats(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name) == LIVER


def test_a_number_that_belongs_to_the_name(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("12 vertebra 3\nvertebra 4,13\n")
    assert read_labels(tmp_path / "n.txt").labels == {"vertebra 3": 12, "vertebra 4": 13}


def test_regions_and_ignored_voxels_of_nnunet(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}}))
    assert read_labels(tmp_path / "d.json") == Classes({"background": 0, "whole": (1, 2), "core": 2}, ignore=3)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("d.json", "[1]", "no key labels"),
        ("d.json", "{}", "no key labels"),
        ("d.json", '{"labels": {"liver": 1.5}}', "'liver' has the value 1.5"),
        ("d.json", '{"labels": {"liver": []}}', "'liver' has the value"),
        ("d.json", '{"labels": {"liver": 1', "not valid JSON"),
        ("d.json", '{"labels": {"liver": 1, "ignore": [2, 3]}}', "must be one value"),
        ("d.txt", "1 liver\n3.5\n", "'3.5' pairs no class"),
        ("d.txt", "name\n", "names no class"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        read_labels(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / "none.json")


def test_a_picture_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="not a text file"):
        read_labels(tmp_path / "x.txt")


def test_the_dataset_of_a_folder(tmp_path: Path) -> None:
    labels = tmp_path / "labelsTr"
    labels.mkdir()
    assert labels_beside(labels) is None
    (tmp_path / "dataset.json").write_text('{"name": "no labels"}')
    assert labels_beside(labels) is None
    (tmp_path / "dataset.json").write_text('{"labels": {"liver": 1}}')
    assert labels_beside(labels) == tmp_path / "dataset.json"
    (labels / "dataset.json").write_text('{"labels": {"liver": 2}}')
    assert labels_beside(labels) == labels / "dataset.json"
