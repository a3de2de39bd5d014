"""A case from file to file by a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medkd.data.dataset import load_dataset
from medkd.data.fingerprint import fingerprint
from medkd.data.plan import make_plan
from medkd.evaluation.endtoend import STEPS
from medkd.inference.model import SegmentationModel
from medkd.networks.weights import ModelCard, save_network
from medkd.networks.zoo import build, complete
from medkd.pipeline.steps import cost


def test_end_to_end(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "BUDGET_S", 1.0)
    loaded = load_dataset(tiny_dataset)
    plan = make_plan(fingerprint(loaded), loaded, {"patch": [16, 16, 16]})
    size: dict[str, Any] = {"in_channels": 1, "classes": 3, "patch": plan.patch}
    spec = complete({"name": "UNet", "channels": [2, 4]}, **size)
    card = ModelCard(
        network=spec, in_channels=1, classes=3, labels=loaded.labels, plan=plan.to_json(), channels=loaded.channels
    )
    save_network(tmp_path / "model", build(spec, **size), card)
    scratch = tmp_path / "out"
    scratch.mkdir()
    found = cost.end_to_end(SegmentationModel.from_folder(tmp_path / "model"), loaded.cases[0].images, scratch)
    assert list(found.case_seconds) == list(STEPS)
    assert all(seconds > 0 for seconds in found.case_seconds.values())
    assert max(found.case_seconds.values()) < found.seconds_per_case < 60
    assert found.window_seconds is not None
    assert found.window_seconds < found.seconds_per_case
    assert not list(scratch.iterdir())  # no label stays behind
