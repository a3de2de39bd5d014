"""Export the student that did best on the validation cases, and prove that it still answers the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from medkd.data.dataset import load_dataset
from medkd.data.store import Store
from medkd.errors import UserError
from medkd.export.evidence import CASES, Evidence, evidence_of_store
from medkd.export.formats import export_as
from medkd.export.portable import Exported
from medkd.networks.weights import read_card
from medkd.pipeline.config import load_config
from medkd.pipeline.context import Context
from medkd.pipeline.folder import read_manifest
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.ground import Ground
from medkd.report.summary import Parity

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Formats that do not run in torch, and the package that runs them."""


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write a folder for each format, and ``export.json``: what was exported from where, with its parity.

    Raises:
        UserError: the export does not answer as the trained network does.
    """
    ground = Ground.of(inputs, context)
    model_folder = best_seed(node.stage, inputs)
    split = ground.split(node.fold)
    evidence = evidence_of_store(
        ground.store,
        read_card(model_folder),
        split.train,
        split.test,
        labels=ground.dataset.labels,
        source=_source(ground.dataset.name, node.fold),
    )
    done: list[dict[str, Any]] = []
    for form in context.config.export:
        exported = export_as(form, model_folder, out / form, evidence=evidence)
        entry: dict[str, Any] = {"format": form, "from": model_folder.name, "folder": form}
        if exported.parity is not None:
            entry["parity"] = asdict(_parity(exported))
        done.append(entry)
    (out / "export.json").write_text(json.dumps(done, indent=1))


def _parity(exported: Exported) -> Parity:
    """Return the comparison as the report shows it."""
    assert exported.parity is not None
    package = RUNTIMES.get(exported.form, "torch")
    told = [f"{package} {metadata.version(package)}, {len(exported.parity.cases)} test cases", exported.note]
    return Parity(
        exported.form,
        cases=len(exported.parity.cases),
        max_abs_difference=exported.parity.difference,
        voxel_agreement=exported.parity.agreement,
        dice=exported.parity.dice,
        note="; ".join(part for part in told if part),
    )


def evidence_of_run(model_folder: Path, *, cases: int = CASES) -> Evidence | None:
    """Return test cases and training patches for a network that still lies in its run; None for any other folder.

    Label maps count where the run's dataset can still be read: their values mean nothing without its names.

    Args:
        model_folder: ``RUN/nodes/train...``.
        cases: how many to compare on.
    """
    manifest = read_manifest(model_folder) if model_folder.parent.name == "nodes" else None
    if manifest is None or "prepare" not in manifest.inputs:
        return None
    nodes = model_folder.parent
    folder = next((path for path in nodes.glob("prepare-*") if _is(path, manifest.inputs["prepare"])), None)
    if folder is None:
        return None
    fold = int(manifest.node.get("fold") or 0)
    split = json.loads((folder / "splits.json").read_text())[fold]
    labels, name = None, "the run's data, label maps not found"
    try:
        config = load_config(nodes.parent / "config.yaml")
        dataset = load_dataset(config.data.source, Path(config.data.root) if config.data.root else None)
        labels, name = dataset.labels, dataset.name
    except UserError:
        pass  # moved since; the masks of fp32 serve
    source = _source(name, fold)
    return evidence_of_store(
        Store(folder), read_card(model_folder), split["train"], split["test"], labels=labels, source=source, cases=cases
    )


def _source(name: str, fold: int | None) -> str:
    return f"{name}, test cases of fold {fold or 0}"


def _is(folder: Path, key: str) -> bool:
    manifest = read_manifest(folder)
    return manifest is not None and manifest.key == key


def best_seed(stage: str, inputs: Mapping[str, Path]) -> Path:
    """Return the first model of a stage of the seed with the best validation Dice; the test cases have no say.

    Raises:
        UserError: the stage is an ensemble, of which no single network can be shipped.
    """
    folders = [folder for name, folder in inputs.items() if name.startswith(f"train.{stage}.m")]
    if any(name.startswith(f"train.{stage}.m1.") for name in inputs):
        raise UserError(f"stage {stage} has several models and cannot be exported as one; distil it, or name one model")
    return max(folders, key=lambda folder: float(json.loads((folder / "result.json").read_text())["dice"]))
