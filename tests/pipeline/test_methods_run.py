"""Every file of pipelines/methods and pipelines/chains, run as it is shipped but for its size.

Slices in 2-D are covered by tests/contract, which plays every method in two and in three dimensions.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medkd.data.volume import read_volume
from medkd.inference.model import SegmentationModel
from medkd.methods.catalogue import CATALOGUE
from medkd.networks.weights import read_card
from medkd.pipeline import yamlfile
from medkd.pipeline.config import RunConfig, load_config
from medkd.pipeline.steps import cost

Command = Callable[..., Any]

ROOT = Path(__file__).parents[2] / "pipelines"
FILES = {file.stem: file for folder in ("methods", "chains") for file in sorted((ROOT / folder).glob("*.yaml"))}
SMALL = (
    "data.folds=4",
    "plan.patch=[16, 16, 16]",
    "train.batch=2",
    "train.threads=1",
    "evaluate.metrics=[dice]",
    "report.cases=1",
)
OWN = {
    "deepinversion": ("stages.student.methods.0.patch=[16, 16, 16]", "stages.student.methods.0.dream_steps=2"),
    "okdph": ("stages.student.methods.1.interval=1",),
}
"""What else is made smaller in one file."""
WHOLE = (
    "adaptive_distillation",
    "boundary",
    "cirkd",
    "deepinversion",
    "dml",
    "kd",
    "meal",
    "mean_teacher",
    "simkd",
    "skd",
    "snapshot_distillation",
)
"""One method of each kind, and a chain, which go on to evaluation, cost, export and report."""


def overrides(name: str, scans: Path) -> list[str]:
    stages: Any = yamlfile.read(FILES[name]).data["stages"]
    steps = [f"stages.{stage}.train.steps=2" for stage in stages]
    return [f"data.source={scans}", *SMALL, *steps, *OWN.get(name, ())]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder of all runs, so that equal teachers and controls are trained once; costs are timed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "BUDGET_S", 0.0)
        yield tmp_path_factory.mktemp("methods") / "runs"


def do(command: Command, runs: Path, name: str, scans: Path, *options: object) -> tuple[RunConfig, dict[str, Path]]:
    """Run a file and return its configuration and the folders of its nodes."""
    changes = overrides(name, scans)
    sets = [word for change in changes for word in ("--set", change)]
    told = command("run", FILES[name], "--runs", runs, "--json", *sets, *options)
    assert told.code == 0, told.err
    return load_config(FILES[name], changes), {node: Path(path) for node, path in told.record["nodes"].items()}


def check_training(config: RunConfig, stage: str, folder: Path, scan: Path) -> None:
    """Every method left finite terms, and the network that is kept answers about a scan."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    terms = [pair for line in lines for pair in line.get("terms", {}).items()]
    seen = {name.rpartition(":")[2].split("/")[0] for name, _ in terms}
    assert seen == {method.label for method in config.stages[stage].methods}
    assert all(math.isfinite(value) for _, value in terms), terms
    volume = read_volume(scan)
    assert SegmentationModel.from_folder(folder).predict(volume).shape == volume.shape


@pytest.mark.parametrize("name", FILES)
def test_it_runs(command: Command, runs: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = name in WHOLE
    last = list(load_config(FILES[name]).stages)[-1]
    options = ("--set", "export=[onnx]") if whole else ("--only", last)
    if not whole:
        monkeypatch.setattr(cost, "execute", lambda *_: None)  # the networks cost what those of the others do
    config, nodes = do(command, runs, name, scans, *options)
    scan = scans / "imagesTr" / "phantom_000.nii.gz"
    for stage in config.stages if whole else (last,):
        check_training(config, stage, nodes[f"train.{stage}.m0.f0.s{config.seeds_of(stage)[0]}.main"], scan)
    if whole:
        check_whole(config, nodes)


def check_whole(config: RunConfig, nodes: dict[str, Path]) -> None:
    """What follows the training is there: measurements, costs, the exported network and the page."""
    for stage in config.stages:
        with (nodes[f"evaluate.{stage}.f0.s{config.seeds_of(stage)[0]}.main"] / "cases.csv").open(newline="") as table:
            assert {row["case"] for row in csv.DictReader(table)}
        assert json.loads((nodes[f"cost.{stage}"] / "cost.json").read_text())["macs"] > 0
    (export,) = (folder for node, folder in nodes.items() if node.startswith("export."))
    (entry,) = json.loads((export / "export.json").read_text())
    assert entry["parity"]["voxel_agreement"] > 0.999
    assert (nodes["report"] / "report.html").is_file()


def test_one_method_of_every_kind_goes_to_the_end() -> None:
    kinds = {place.split(".")[0] for place in CATALOGUE.values()} - {"supervised:Supervised"}
    assert {CATALOGUE[name].split(".")[0] for name in WHOLE if name in CATALOGUE} == kinds
    assert set(WHOLE) | set(OWN) <= set(FILES)


def test_mean_teacher_learns_from_cases_without_their_labels(command: Command, runs: Path, scans: Path) -> None:
    _, nodes = do(command, runs, "mean_teacher", scans, "--only", "student")
    seen = read_card(nodes["train.student.m0.f0.s0.main"]).provenance
    split = json.loads((nodes["prepare"] / "splits.json").read_text())[0]
    assert len(seen["labelled"]) == 4
    assert set(seen["unlabelled"]) == {*split["train"], *split["unlabelled"]} - set(seen["labelled"])
    assert set(split["unlabelled"]) < set(seen["unlabelled"])
