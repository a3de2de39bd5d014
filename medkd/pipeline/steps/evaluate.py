"""Predict the test cases of a fold on their original grid and measure them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medkd.data.volume import read_label, read_volume, write_label
from medkd.evaluation.cases import Row, measure_rows, write_rows
from medkd.inference.model import SegmentationModel
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import live_teachers


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``cases.csv`` and ``predictions/<case>.nii.gz``; several models are measured as their ensemble."""
    ground = Ground.of(inputs, context)
    model = SegmentationModel.from_folder(live_teachers((node.stage,), inputs), device=context.device)
    cases = ground.split(node.fold).test
    predictions = out / "predictions"
    predictions.mkdir(exist_ok=True)
    rows: list[Row] = []
    for done, name in enumerate(cases, 1):
        case = ground.dataset.case(name)
        assert case.label is not None  # the test part has labelled cases only
        volume = read_volume(case.images)
        label = read_label(case.label, like=volume)
        answer = model.predict(volume)
        write_label(predictions / f"{name}.nii.gz", answer, volume.geometry)
        rows += measure_rows(
            answer,
            label,
            volume.spacing_mm,
            ground.dataset.labels,
            context.config.evaluate.metrics,
            convention=context.config.evaluate.surfaces,
            lesions=context.config.evaluate.lesions,
            case=name,
            patient=case.patient,
            arm=node.arm_name,
            stage=node.stage,
            fold=node.fold or 0,
            seed=node.seed or 0,
        )
        context.progress({"node": node.name, "step": done, "of": len(cases)})
    write_rows(out / "cases.csv", rows)
