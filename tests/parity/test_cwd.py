"""CWD against the numbers of released code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medkd.methods.logits.cwd import CWD, cwd
from medkd.types import IGNORE, Batch, View

FOLDER = Path(os.environ.get("MEDKD_PARITY", Path(__file__).parents[2].parent / "shared" / "parity" / "open"))

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="MEDKD_PARITY: no folder of published numbers")


@pytest.mark.parametrize("name", ["logits_2d", "logits_3d"])
def test_logits(name: str) -> None:
    case = {c["name"]: c for c in json.loads((FOLDER / "index.json").read_text())["cwd"]["cases"]}[name]
    numbers = np.load(FOLDER / "cwd.npz")
    s = torch.from_numpy(numbers[f"{name}/in/student_logits"]).requires_grad_()
    t = torch.from_numpy(numbers[f"{name}/in/teacher_logits"])
    batch = Batch(s, torch.full((len(s), *s.shape[2:]), IGNORE))
    loss = CWD(temperature=case["hyper"]["tau"])(View(s), View(t), batch)["cwd"]
    loss.backward()
    assert loss.item() == pytest.approx(float(numbers[f"{name}/out/loss"]), rel=1e-5)
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), numbers[f"{name}/grad/student_logits"], rtol=2e-4, atol=1e-7)


def test_features_behind_an_adapter() -> None:
    name = "feature_2d_adapter"
    numbers = np.load(FOLDER / "cwd.npz")
    s = torch.from_numpy(numbers[f"{name}/in/student_feat"]).requires_grad_()
    t = torch.from_numpy(numbers[f"{name}/in/teacher_feat"])
    weight = torch.from_numpy(numbers[f"{name}/in/adapter.conv.weight"]).requires_grad_()
    # CIRKD divides by the student's channels from before the adapter
    loss = cwd(F.conv2d(s, weight), t, 3.0) * t.shape[1] / s.shape[1]
    loss.backward()
    assert loss.item() == pytest.approx(float(numbers[f"{name}/out/loss"]), rel=1e-5)
    for ours, theirs in ((s, "student_feat"), (weight, "adapter.conv.weight")):
        assert ours.grad is not None
        np.testing.assert_allclose(ours.grad.numpy(), numbers[f"{name}/grad/{theirs}"], rtol=2e-4, atol=1e-6)
