"""torch.export programs and TorchScript answer as the network does, in a process without medkd."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.export import torchfiles
from medkd.export.evidence import Evidence, RealCase
from medkd.export.torchfiles import export_torch, open_torch
from medkd.inference.model import SegmentationModel
from medkd.networks.weights import load_network
from medkd.teachers.sources import open_teacher

Make = Callable[..., Path]
FILES = {"pt2": "student.pt2", "torchscript": "student.pt"}
PROGRAM = """
import sys, warnings
sys.modules["medkd"] = None
warnings.simplefilter("ignore")
import torch
path, image, out = sys.argv[1:]
module = torch.export.load(path).module() if path.endswith("pt2") else torch.jit.load(path)
with torch.no_grad():
    torch.save(module(torch.load(image)), out)
"""


@pytest.mark.parametrize("form", sorted(FILES))
def test_it_runs_without_medkd(make_model: Make, tmp_path: Path, form: str) -> None:
    image = np.random.default_rng(0).normal(size=(1, 12, 9, 8)).astype(np.float32)
    evidence = Evidence((), (RealCase("a", lambda: image),), ("background", "left", "right"), "noise")
    folder = make_model()
    done = export_torch(folder, tmp_path / "out", form, evidence=evidence)
    assert done.parity is not None
    assert done.parity.agreement == 1
    body = json.loads((done.folder / "student.json").read_text())
    assert body["form"] == form
    assert body["files"]["fp32"]["flexible"] is True
    with pytest.raises(UserError, match=f"is an export to {form}"):
        SegmentationModel.from_folder(done.folder)
    windows = torch.randn(3, 1, 16, 8, 12)
    torch.save(windows, tmp_path / "image.pt")
    arguments = [str(done.folder / FILES[form]), str(tmp_path / "image.pt"), str(tmp_path / "logits.pt")]
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    network, _ = load_network(folder)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), network(windows), atol=1e-5, rtol=1e-4)


def test_torchscript_is_a_teacher(make_model: Make, tmp_path: Path) -> None:
    """The description beside it is the one that a foreign teacher needs."""
    folder = make_model()
    done = export_torch(folder, tmp_path / "out", "torchscript")
    (teacher,) = open_teacher(done.folder / "student.pt")
    assert teacher.card.labels == {"background": 0, "left": 1, "right": 2}
    network, _ = load_network(folder)
    live = teacher.network()
    assert live is not None
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(live(image), network(image))


class Fixed(nn.Module):
    """Adds a map of the size it was made for, as fixed position embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1)
        self.place = nn.Parameter(torch.ones(1, 3, 8, 8, 8))

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.conv(image) + self.place
        return answer


@pytest.mark.parametrize("form", sorted(FILES))
def test_a_network_of_one_size_keeps_its_patch(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    folder = make_model()
    _, card = load_network(folder)
    monkeypatch.setattr(torchfiles, "load_network", lambda _: (Fixed().eval(), card))
    done = export_torch(folder, tmp_path / "out", form)
    assert json.loads((done.folder / "student.json").read_text())["files"]["fp32"]["flexible"] is False
    assert open_torch(done.folder / FILES[form])(torch.randn(4, 1, 8, 8, 8)).shape == (4, 3, 8, 8, 8)


class Random(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.rand_like(image).expand(-1, 3, -1, -1, -1)


def test_an_unfaithful_file_is_not_kept(make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    _, card = load_network(folder)
    monkeypatch.setattr(torchfiles, "load_network", lambda _: (Random().eval(), card))
    with pytest.raises(UserError, match="cannot be exported as pt2"):
        export_torch(folder, tmp_path / "out", "pt2")
    assert not (tmp_path / "out").exists()
