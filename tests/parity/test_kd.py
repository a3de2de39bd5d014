"""KD against the numbers of released code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.methods.logits.kd import KD, kd
from medkd.types import IGNORE, Batch, View

FOLDER = Path(os.environ.get("MEDKD_PARITY", Path(__file__).parents[2].parent / "shared" / "parity" / "open"))
CASES = ["voxel_2d_cirkd", "voxel_2d_ifvd_skd", "classification", "voxel_3d"]

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="MEDKD_PARITY: no folder of published numbers")


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name: str) -> None:
    case = {c["name"]: c for c in json.loads((FOLDER / "index.json").read_text())["kd"]["cases"]}[name]
    numbers = np.load(FOLDER / "kd.npz")
    s = torch.from_numpy(numbers[f"{name}/in/student_logits"]).requires_grad_()
    t = torch.from_numpy(numbers[f"{name}/in/teacher_logits"])
    temperature = case["hyper"]["T"]
    # IFVD divides by the number of classes too, and leaves the square of the temperature out
    ours = s.shape[1] * temperature**2 if name == "voxel_2d_ifvd_skd" else 1.0
    batch = Batch(s, torch.full((len(s), *s.shape[2:]), IGNORE))
    loss = KD(temperature=temperature, reduction="uniform")(View(s), View(t), batch)["kd"] / ours
    loss.backward()
    assert loss.item() == pytest.approx(float(numbers[f"{name}/out/loss"]), rel=1e-5)
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), numbers[f"{name}/grad/student_logits"], rtol=2e-4, atol=1e-7)
    assert kd(s, t, temperature).item() / ours == pytest.approx(loss.item(), rel=1e-6)
