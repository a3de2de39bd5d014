"""The portable folder is whole, certified, and holds no variant that failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.export import portable
from medkd.export.evidence import Evidence, RealCase
from medkd.export.formats import FORMATS, export_as
from medkd.export.portable import export_portable
from medkd.export.runner import Portable
from medkd.inference.model import SegmentationModel
from medkd.networks.weights import load_network
from medkd.pipeline.specs import ExportFormat

pytest.importorskip("onnxruntime")
Make = Callable[..., Path]


@pytest.fixture
def evidence() -> Evidence:
    rng = np.random.default_rng(0)
    patches = tuple(rng.normal(size=(1, 8, 8, 8)).astype(np.float32) for _ in range(4))
    images = {f"case{i}": rng.normal(size=(1, 12, 9 + i, 8)).astype(np.float32) for i in range(2)}
    cases = tuple(RealCase(name, lambda image=image: image) for name, image in images.items())
    return Evidence(patches, cases, ("background", "left", "right"), "noise of a test")


def test_folder_is_whole(make_model: Make, tmp_path: Path, evidence: Evidence) -> None:
    done = export_portable(make_model(), tmp_path / "out", evidence=evidence, gate=0.3)
    names = {"student.onnx", "student.int8.onnx", "student.fp16.onnx", "student.json", "parity.json", "model_card.md"}
    assert {path.name for path in done.folder.iterdir()} == names
    body = json.loads((done.folder / "student.json").read_text())
    assert set(body["files"]) == {"fp32", "int8", "fp16"}
    assert body["inference"]["overlap"] == 0.5
    assert body["inference"]["spacing_mm"] == [1.0, 1.0, 2.0]
    assert body["inference"]["intensity"][0]["kind"] == "ct"
    assert "static" in body["files"]["int8"]["how"]
    certificate = json.loads((done.folder / "parity.json").read_text())
    assert certificate["passed"] is True
    assert certificate["cases_from"] == "noise of a test"
    worst = certificate["cases"][0]["worst"]
    assert abs(worst["trained"] - worst["exported"]) == pytest.approx(certificate["cases"][0]["difference"], rel=1e-3)
    assert certificate["variants"]["fp16"]["agreement"] > 0.99
    page = (done.folder / "model_card.md").read_text()
    assert "`student.int8.onnx`" in page
    assert "0 = background, 1 = left, 2 = right" in page
    assert "not a medical device" in page
    sizes = {name: (done.folder / facts["file"]).stat().st_size for name, facts in body["files"].items()}
    assert sizes == {name: facts["bytes"] for name, facts in body["files"].items()}
    assert SegmentationModel.from_folder(done.folder).labels == {"background": 0, "left": 1, "right": 2}
    image = np.random.default_rng(1).normal(size=(2, 1, 8, 8, 8)).astype(np.float32)
    logits = {name: Portable(done.folder, variant=name).session(image) for name in body["files"]}
    assert 0 < np.abs(logits["fp16"] - logits["fp32"]).max() < 0.05
    assert np.abs(logits["int8"] - logits["fp32"]).max() > 0


def test_a_variant_that_loses_is_refused_with_the_number(make_model: Make, tmp_path: Path, evidence: Evidence) -> None:
    done = export_portable(make_model(), tmp_path / "out", evidence=evidence, gate=0.0)
    body = json.loads((done.folder / "student.json").read_text())
    assert "int8" not in body["files"]
    assert not (done.folder / "student.int8.onnx").exists()
    assert "of Dice against the masks of fp32, and 0 is allowed" in body["refused"]["int8"]
    assert "Refused, int8" in (done.folder / "model_card.md").read_text()
    assert "int8 refused" in done.note
    with pytest.raises(UserError, match="no variant int8: it loses"):
        Portable(done.folder, variant="int8")


def test_without_cases_there_are_no_variants(make_model: Make, tmp_path: Path) -> None:
    done = export_portable(make_model(), tmp_path / "out")
    assert done.parity is None
    assert json.loads((done.folder / "parity.json").read_text())["passed"] is None
    assert list(json.loads((done.folder / "student.json").read_text())["files"]) == ["fp32"]
    assert "noise alone" in (done.folder / "model_card.md").read_text()


def test_an_unfaithful_export_leaves_the_old_one(
    make_model: Make, tmp_path: Path, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model()
    out = export_portable(folder, tmp_path / "out", evidence=evidence).folder
    before = (out / "student.json").read_bytes()
    monkeypatch.setattr(portable, "run_outside", lambda _: load_network(make_model("other", seed=3))[0])
    with pytest.raises(UserError, match="another class"):
        export_portable(folder, out, evidence=evidence)
    assert (out / "student.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_old_export_is_replaced_and_nothing_else(make_model: Make, tmp_path: Path, evidence: Evidence) -> None:
    out = export_portable(make_model(), tmp_path / "out", evidence=evidence, gate=0.3).folder
    export_portable(make_model("other", seed=3), out)
    assert not (out / "student.int8.onnx").exists()
    assert Portable(out).labels == {"background": 0, "left": 1, "right": 2}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(UserError, match="something else"):
        export_portable(make_model(), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_every_format_of_the_yaml_is_there(make_model: Make, tmp_path: Path) -> None:
    assert set(FORMATS) == set(ExportFormat.__args__)
    with pytest.raises(UserError, match=r"no format 'onx' \(did you mean 'onnx'\?\)"):
        export_as("onx", make_model(), tmp_path / "out")
