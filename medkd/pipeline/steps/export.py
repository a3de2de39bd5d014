"""Export the student that did best on the validation cases, and prove that it still answers the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from medkd.errors import UserError
from medkd.export.bundle import export_bundle
from medkd.export.onnx import export_onnx
from medkd.export.parity import compare, require
from medkd.inference.model import SegmentationModel
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.ground import Ground
from medkd.report.summary import Parity

CASES = 5
"""Test cases on which an export is compared."""


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``onnx/``, ``bundle/`` as asked, and ``export.json``: what was exported from where, with its parity.

    Raises:
        UserError: the export does not answer as the trained network does.
    """
    ground = Ground.of(inputs, context)
    model_folder = best_seed(node.stage, inputs)
    trained = SegmentationModel.from_folder(model_folder, device="cpu")
    done: list[dict[str, Any]] = []
    for form in context.config.export:
        folder = out / form
        entry: dict[str, Any] = {"format": form, "from": model_folder.name, "folder": form}
        if form == "onnx":
            export_onnx(model_folder, folder)
            exported = SegmentationModel.from_folder(folder)
            names = ground.split(node.fold).test[:CASES]
            images = ((name, np.asarray(ground.store.image(name)[...])) for name in names)
            parity = compare(trained, exported, images, out=folder / "parity.json")
            require(parity)
            entry["parity"] = asdict(
                Parity(
                    form,
                    cases=len(parity.cases),
                    max_abs_difference=parity.difference,
                    voxel_agreement=parity.agreement,
                    dice=parity.dice,
                    note=f"ONNX Runtime {metadata.version('onnxruntime')}, {len(parity.cases)} test cases",
                )
            )
        else:
            export_bundle(model_folder, folder)
        done.append(entry)
    (out / "export.json").write_text(json.dumps(done, indent=1))


def best_seed(stage: str, inputs: Mapping[str, Path]) -> Path:
    """Return the first model of a stage of the seed with the best validation Dice; the test cases have no say.

    Raises:
        UserError: the stage is an ensemble, of which no single network can be shipped.
    """
    folders = [folder for name, folder in inputs.items() if name.startswith(f"train.{stage}.m")]
    if any(name.startswith(f"train.{stage}.m1.") for name in inputs):
        raise UserError(f"stage {stage} has several models and cannot be exported as one; distil it, or name one model")
    return max(folders, key=lambda folder: float(json.loads((folder / "result.json").read_text())["dice"]))
