"""ONNX: the graph answers as the network does, at the sizes it claims, or there is no graph."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkd.data.preprocess import prepare_image
from medkd.data.volume import read_volume
from medkd.errors import UserError
from medkd.export import onnx as module
from medkd.export.onnx import export_onnx
from medkd.inference.model import SegmentationModel
from medkd.inference.onnx import OnnxNetwork, read_student
from medkd.networks.weights import load_network

pytest.importorskip("onnxruntime")
Make = Callable[..., Path]
CUBES = {
    "patch": (16, 16, 16),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "kernels": ((3, 3, 3),) * 4,
}
UNETR = {"name": "UNETR", "feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "UNet", "channels": [4, 8], "num_res_units": 1},
        {"name": "DynUNet", "filters": [4, 8, 8, 8]},
        {"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    ],
    ids=lambda spec: spec["name"],
)
def test_graph_takes_any_batch_and_size(make_model: Make, tmp_path: Path, spec: dict[str, Any]) -> None:
    folder = make_model(spec=spec, **CUBES)
    path = export_onnx(folder, tmp_path / "out")
    assert sorted(p.name for p in path.parent.iterdir()) == ["student.json", "student.onnx"]
    network, card = load_network(folder)
    exported, (read, info) = OnnxNetwork(path), read_student(path.parent)
    assert read == card
    assert info["flexible"] is True
    assert info["opset"] == 17
    for shape in ((1, 1, 16, 16, 16), (3, 1, 24, 16, 32)):
        image = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), network(image), atol=1e-4, rtol=1e-3)


def test_fixed_network_keeps_its_patch(make_model: Make, tmp_path: Path) -> None:
    path = export_onnx(make_model(spec=UNETR, **CUBES), tmp_path / "out")
    _, info = read_student(path.parent)
    assert info["flexible"] is False
    model = SegmentationModel.from_folder(path.parent)
    assert model.label(np.zeros((1, 9, 20, 16), np.float32)).shape == (9, 20, 16)


def test_exported_model_predicts_as_the_trained_one(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder = make_model()
    export_onnx(folder, tmp_path / "out")
    trained, exported = SegmentationModel.from_folder(folder), SegmentationModel.from_folder(tmp_path / "out")
    volume = read_volume(write_image(tmp_path / "a.nii.gz", (23, 9, 6)))
    prepared, _ = prepare_image(volume, trained.plan)
    torch.testing.assert_close(exported.probabilities(prepared), trained.probabilities(prepared), atol=1e-4, rtol=0)
    assert (exported.predict(volume) == trained.predict(volume)).mean() > 0.999
    both = SegmentationModel.from_folder([folder, tmp_path / "out"])
    torch.testing.assert_close(both.probabilities(prepared), trained.probabilities(prepared), atol=1e-4, rtol=0)


class Liar(nn.Module):
    """Answers otherwise when it is traced: what an exporter's bug looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.conv(image)
        return logits * 2 if torch.onnx.is_in_onnx_export() else logits


def test_unfaithful_graph_is_not_kept(make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    _, card = load_network(folder)
    monkeypatch.setattr(module, "load_network", lambda _: (Liar().eval(), card))
    with pytest.raises(UserError, match="cannot be exported"):
        export_onnx(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_second_exporter_where_tracing_is_gone(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    export = torch.onnx.export

    def without_tracing(*args: Any, dynamo: bool, **more: Any) -> Any:
        if not dynamo:
            raise TypeError("tracing was removed")
        return export(*args, dynamo=dynamo, **more)

    monkeypatch.setattr(torch.onnx, "export", without_tracing)
    path = export_onnx(make_model(), tmp_path / "out")
    _, info = read_student(path.parent)
    assert info["exporter"] == "export"
    assert info["flexible"] is True


def test_damaged_or_newer_export_is_refused(make_model: Make, tmp_path: Path) -> None:
    path = export_onnx(make_model(), tmp_path / "out")
    card = path.parent / "student.json"
    body = json.loads(card.read_text())
    card.write_text(json.dumps(body | {"format": 99}))
    with pytest.raises(UserError, match="upgrade"):
        SegmentationModel.from_folder(path.parent)
    card.write_text(json.dumps(body))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="hash"):
        SegmentationModel.from_folder(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=r"no student\.onnx"):
        SegmentationModel.from_folder(path.parent)
    card.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        SegmentationModel.from_folder(path.parent)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="onnxruntime"):
        OnnxNetwork(tmp_path / "bad.onnx")


def test_missing_extra_is_named(make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    path = export_onnx(folder, tmp_path / "out")
    original = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("gone", name=name)
        return original(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"medkd\[onnx\]"):
        SegmentationModel.from_folder(path.parent)
    with pytest.raises(UserError, match=r"medkd\[onnx\]"):
        export_onnx(folder, tmp_path / "other")
