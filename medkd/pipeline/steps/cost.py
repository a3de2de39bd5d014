"""Measure what one case costs a stage's network or ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medkd.data.volume import read_volume
from medkd.evaluation.cost import measure_cost
from medkd.inference.model import SegmentationModel
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import live_teachers

BUDGET_S = 8.0
"""Seconds for the timed runs."""


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``cost.json``: one test case of median size, from the volume in memory to the label on its grid."""
    ground = Ground.of(inputs, context)
    folders = live_teachers((node.stage,), inputs)
    model = SegmentationModel.from_folder(folders, device=context.device)
    test = ground.split(context.config.data.run_folds[0]).test

    def voxels(case: str) -> int:
        size = 1
        for side in ground.store.index[case]["shape"]:
            size *= side
        return size

    case = sorted(test, key=lambda name: (voxels(name), name))[len(test) // 2]
    volume = read_volume(ground.dataset.case(case).images)
    together = nn.ModuleList([network for network in model.networks if isinstance(network, nn.Module)])
    example = torch.from_numpy(volume.array)[None].to(model.device)
    cost = measure_cost(together, example, lambda: model.predict(volume), budget_s=BUDGET_S)
    body: dict[str, Any] = cost.to_json()
    body["memory_mb"] = body["peak_memory_mb"]
    body["weights_bytes"] = sum((folder / "model.safetensors").stat().st_size for folder in folders)
    shape = " x ".join(str(side) for side in volume.shape)
    body["note"] = (
        f"One test case of median size ({case}, {shape} voxels) from the volume in memory to the label on its grid: "
        f"median of {cost.repeats} runs on {cost.machine} ({cost.device}, threads: {cost.threads})."
    )
    (out / "cost.json").write_text(json.dumps(body, indent=1))
