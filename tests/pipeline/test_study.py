"""A whole study: several methods and seeds against one plain training, one teacher for all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

NET: dict[str, Any] = {"name": "UNet", "channels": [2, 4, 8]}
TAUGHT: dict[str, Any] = {"model": NET, "teacher": "teacher", "seeds": [0, 1], "unlabelled": False, "control": "none"}


def test_every_method_is_compared_with_the_baseline(
    tmp_path: Path, tiny_dataset: Path, write: Callable[..., Path], command: Callable[..., Any]
) -> None:
    stages = {
        "teacher": {"model": NET, "methods": ["supervised"]},
        "plain": {"model": NET, "methods": ["supervised"], "seeds": [0, 1]},
        "kd": {**TAUGHT, "methods": ["supervised", "kd"]},
        "at": {**TAUGHT, "methods": ["supervised", {"name": "at", "tap": "enc0"}]},
    }
    file = write(
        tmp_path,
        "study",
        tiny_dataset,
        stages,
        data={"source": str(tiny_dataset), "folds": 3},
        train={"steps": 2, "batch": 2, "threads": 1},
        evaluate={"metrics": ["dice", "hd95_mm"], "baseline": "plain"},
    )
    told = command("run", file, "--runs", tmp_path / "runs", "--json")
    assert told.code == 0, told.err
    folder = Path(told.record["nodes"]["report"])
    study = json.loads((folder / "study.json").read_text())
    assert study["baseline"] == "plain"
    assert {(line["method"], line["metric"]) for line in study["lines"]} == {
        (method, metric) for method in ("kd", "at") for metric in ("dice", "hd95_mm")
    }
    assert all(line["n_seeds"] == 2 and line["n_cases"] == 2 for line in study["lines"])
    assert {line["verdict"] for line in study["lines"]} == {"not shown"}, "two patients decide nothing"
    with (folder / "study.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == 4
    text = (folder / "study.md").read_text()
    assert text.startswith("0 of 2 methods helped, against plain.")
    assert "plain (baseline)" in text
    page = (folder / "report.html").read_text()
    assert "0 of 2 methods helped, against plain." in page
    assert "Every method against plain" in page
    again = command("report", tmp_path / "runs" / "study")
    assert again.code == 0, again.err
    assert "0 of 2 methods helped" in again.out
