"""OpenVINO: the IR answers as the network does, and ``medkd-run`` runs it."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.data.volume import read_volume
from medkd.errors import UserError
from medkd.export.evidence import Evidence, RealCase
from medkd.export.openvino import export_openvino
from medkd.export.runner import Portable
from medkd.inference.model import SegmentationModel

Make = Callable[..., Path]


def evidence_of(count: int) -> Evidence:
    rng = np.random.default_rng(0)
    patches = tuple(rng.normal(size=(1, 8, 8, 8)).astype(np.float32) for _ in range(count))
    image = rng.normal(size=(1, 12, 9, 8)).astype(np.float32)
    return Evidence(patches, (RealCase("a", lambda: image),), ("background", "left", "right"), "noise")


def test_ir_gives_the_masks_of_torch(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = make_model()
    done = export_openvino(folder, tmp_path / "out")
    assert {path.name for path in done.folder.iterdir()} >= {"student.xml", "student.bin", "student.json"}
    volume = read_volume(write_image(tmp_path / "a.nii.gz", (23, 9, 6)))
    expected = SegmentationModel.from_folder(folder).predict(volume)
    assert (Portable(done.folder).predict(volume) == expected).mean() > 0.9999
    (done.folder / "student.bin").write_bytes(b"other weights")
    with pytest.raises(UserError, match="differs from the hash"):
        Portable(done.folder)


@pytest.mark.slow
def test_int8_by_nncf(make_model: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    done = export_openvino(make_model(), tmp_path / "out", evidence=evidence_of(4), gate=0.3)
    assert done.parity is not None
    assert done.parity.agreement > 0.999
    body = json.loads((done.folder / "student.json").read_text())
    assert set(body["files"]) == {"fp32", "int8"}
    assert set(body["files"]["int8"]["sha256"]) == {"student.int8.xml", "student.int8.bin"}
    assert body["files"]["int8"]["bytes"] > 0
    image = np.random.default_rng(1).normal(size=(1, 1, 8, 8, 8)).astype(np.float32)
    first, second = (Portable(done.folder, variant=name).session(image) for name in ("fp32", "int8"))
    assert 0 < np.abs(first - second).max() < np.abs(first).max()
    assert "Statistics" not in capfd.readouterr().out


def test_missing_extra_is_named(make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "openvino":
            raise ImportError("gone", name=name)
        return original(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"medkd\[openvino\]"):
        export_openvino(make_model(), tmp_path / "out")
