"""Runs on real volumes, where MEDKD_DATA names the folder that holds them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medkd.networks.weights import read_card

pytestmark = [pytest.mark.real, pytest.mark.slow]

PIPELINES = Path(__file__).parents[2] / "pipelines"
Find = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "dataset", "said"),
    [
        ("hippocampus", "Task04_Hippocampus", ["3 classes", "SegResNet, "]),
        ("headneck", "OpenKBP_HeadNeckCT", ["channels CT", "12 unlabelled cases"]),
    ],
)
def test_the_pipelines_pass_their_check(
    name: str, dataset: str, said: list[str], real_data: Find, command: Callable[..., Any]
) -> None:
    real_data(dataset)
    told = command("check", PIPELINES / f"{name}.yaml")
    assert told.code == 0, told.err
    assert told.out.endswith(f"{name}: nothing wrong found\n")
    for words in said:
        assert words in told.out


def test_a_few_real_scans_run_end_to_end(
    real_data: Find, tmp_path: Path, command: Callable[..., Any], write: Callable[..., Path], student: dict[str, Any]
) -> None:
    root = real_data("Task04_Hippocampus")
    description = json.loads((root / "dataset.json").read_text())
    groups = description.get("groups", {})
    by_patient: dict[str, list[tuple[str, Path, Path]]] = defaultdict(list)
    for entry in description["training"]:
        image, label = root / entry["image"], root / entry["label"]
        case = image.name.removesuffix(".nii.gz")
        by_patient[groups.get(case, case)].append((case, image, label))
    # The patients with most scans, so that a split which parts them would show.
    patients = sorted(by_patient, key=lambda patient: (-len(by_patient[patient]), patient))[:3]
    lines = [
        f"{image},{label},{case},{patient}" for patient in patients for case, image, label in by_patient[patient][:2]
    ]
    (tmp_path / "few.csv").write_text("\n".join(["image,label,case,patient", *lines]) + "\n")
    names = {key: description[key] for key in ("labels", "modality", "licence")}
    (tmp_path / "few.json").write_text(json.dumps(names))
    stages = {
        "teachers": {"model": {"name": "UNet", "channels": [8, 16, 32]}, "methods": ["supervised"]},
        "student": {**student, "model": {"name": "UNet", "channels": [4, 8, 16]}, "labelled": None},
    }
    data = {"source": str(tmp_path / "few.csv"), "folds": 3}
    train = {"steps": 30, "batch": 2, "lr": 0.01, "threads": 1}
    more = {"data": data, "plan": "auto", "train": train, "export": ["onnx"]}
    told = command("run", write(tmp_path, "few", data["source"], stages, **more), "--runs", tmp_path, "--json")
    assert told.code == 0, told.err
    nodes = {node: Path(folder) for node, folder in told.record["nodes"].items()}
    split = json.loads((nodes["prepare"] / "splits.json").read_text())[0]
    parts = {part: {line.split(",")[3] for line in lines if line.split(",")[2] in split[part]} for part in split}
    assert not parts["train"] & (parts["validation"] | parts["test"])
    assert not parts["validation"] & parts["test"]
    card = read_card(nodes["train.student.m0.f0.s0.main"])
    assert set(card.patients) == parts["train"]
    assert card.provenance["licences"] == {"few": description["licence"]}
    # Thirty steps are enough to find something where a hippocampus is.
    assert json.loads((nodes["train.teachers.m0.f0.s0.main"] / "result.json").read_text())["dice"] > 0.2
    assert (tmp_path / "few" / "report.html").stat().st_size > 100_000
