"""Model folders: what is written comes back, and damage is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medkd.errors import UserError
from medkd.networks.weights import ModelCard, file_hash, load_network, read_card, save_network
from medkd.networks.zoo import complete

PATCH = (16, 16, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    size = {"in_channels": 1, "classes": 2, "patch": PATCH}
    spec = complete({"name": "DynUNet", "filters": [4, 8, 8]}, **size, strides=[(2, 2, 1), (2, 2, 2)])
    card = ModelCard(
        network=spec,
        in_channels=1,
        classes=2,
        labels={"background": 0, "organ": 1},
        plan={"patch": list(PATCH), "spacing_mm": [1.0, 1.0, 2.0]},
        channels=("CT",),
        trained_on=("a", "b"),
        patients=("p",),
        provenance={"licences": {"phantom": "CC0"}},
    )
    save_network(tmp_path / "model", card.build(), card)
    return tmp_path / "model"


def test_comes_back_as_it_was(folder: Path) -> None:
    network, card = load_network(folder)
    again, _ = load_network(folder)
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(network(image), again(image))
    assert not network.training
    assert card.trained_on == ("a", "b")
    assert card.patients == ("p",)
    assert card.channels == ("CT",)
    assert card.provenance == {"licences": {"phantom": "CC0"}}
    save_network(folder, network, card)
    assert read_card(folder) == card


def test_leaves_no_part_behind(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_changed_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"model\.safetensors differs from the hash"):
        load_network(folder)


def test_cut_off_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="differs from the hash"):
        load_network(folder)


def edit(folder: Path, **changes: object) -> None:
    body = json.loads((folder / "model.json").read_text())
    body = {key: value for key, value in (body | changes).items() if value is not None}
    (folder / "model.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "format 99.*upgrade medkd"),
        ({"classes": None}, "not a whole model card.*classes"),
        ({"network": {"name": "UNet", "channels": [4, 8], "strides": [2]}}, "does not fit UNet"),
        ({"network": {"name": "UNett", "channels": [4, 8]}}, "did you mean 'UNet'"),
    ],
)
def test_a_card_that_does_not_fit_is_told(folder: Path, changes: dict[str, object], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UserError, match=words):
        load_network(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null"])
def test_a_card_that_is_none_is_told(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json is not"):
        read_card(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_told(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_network(folder)


def test_unknown_keys_of_a_card_are_skipped(folder: Path) -> None:
    edit(folder, onnx={"opset": 20})
    assert read_card(folder).classes == 2


def test_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
