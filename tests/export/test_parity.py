"""The parity check passes for a faithful export and fails for any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkd.errors import UserError
from medkd.export.onnx import export_onnx
from medkd.export.parity import compare, require
from medkd.inference.model import SegmentationModel

Make = Callable[..., Path]


@pytest.fixture
def cases() -> list[tuple[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(0)
    return [(f"case{i}", rng.normal(size=(1, 12, 9 + i, 8)).astype(np.float32)) for i in range(2)]


def test_faithful_export_passes(make_model: Make, tmp_path: Path, cases: list[tuple[str, NDArray[np.float32]]]) -> None:
    pytest.importorskip("onnxruntime")
    folder = make_model()
    export_onnx(folder, tmp_path / "out")
    models = SegmentationModel.from_folder(folder), SegmentationModel.from_folder(tmp_path / "out")
    parity = compare(*models, cases, out=tmp_path / "parity.json")
    assert parity.passed
    assert parity.agreement > 0.999
    assert parity.difference < 1e-4
    require(parity)
    written = json.loads((tmp_path / "parity.json").read_text())
    assert written["passed"] is True
    assert [case["case"] for case in written["cases"]] == ["case0", "case1"]
    assert set(written["dice"]) == {"background", "left", "right"}


def test_other_weights_fail(make_model: Make, tmp_path: Path, cases: list[tuple[str, NDArray[np.float32]]]) -> None:
    models = [SegmentationModel.from_folder(make_model(str(seed), seed=seed)) for seed in (0, 1)]
    parity = compare(*models, cases)
    assert not parity.passed
    assert parity.difference > 0.01
    with pytest.raises(UserError, match="another class"):
        require(parity)


def test_numbers_by_hand(make_model: Make) -> None:
    """Two networks of known answers: half of the voxels differ."""
    card = SegmentationModel.from_folder(make_model()).card

    def first(image: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(image[:, 0]), image[:, 0], torch.full_like(image[:, 0], -9.0)], 1)

    def second(image: Tensor) -> Tensor:
        return first(torch.ones_like(image))

    image = np.ones((1, 8, 8, 8), np.float32)
    image[:, :4] = -1
    models = [SegmentationModel([network], card) for network in (first, second)]
    parity = compare(*models, [("a", image)])
    assert parity.agreement == 0.5
    assert parity.dice == {"background": 0.0, "left": pytest.approx(2 / 3), "right": None}
    expected = first(torch.tensor([[[[[1.0]]], [[[1.0]]]]])[:, :1]).softmax(1) - first(
        -torch.ones(1, 1, 1, 1, 1)
    ).softmax(1)
    assert parity.difference == pytest.approx(float(expected.abs().max()))


def test_nan_never_passes(make_model: Make, cases: list[tuple[str, NDArray[np.float32]]], tmp_path: Path) -> None:
    model = SegmentationModel.from_folder(make_model())
    cases[1][1][0, 0, 0, 0] = 100

    def broken(image: Tensor) -> Tensor:
        logits = model.networks[0](image)
        return logits * float("nan") if image.max() > 50 else logits

    parity = compare(model, SegmentationModel([broken], model.card), cases, tolerance=0.0, out=tmp_path / "p.json")
    assert not parity.passed
    assert json.loads((tmp_path / "p.json").read_text())["difference"] is None
    with pytest.raises(UserError, match="case1 gives NaN"):
        require(parity)


def test_mistakes_are_told(make_model: Make) -> None:
    model = SegmentationModel.from_folder(make_model())
    with pytest.raises(UserError, match="without cases"):
        compare(model, model, [])
