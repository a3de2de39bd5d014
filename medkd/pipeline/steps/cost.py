"""Measure what one case costs a stage's network or ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from medkd.data.volume import read_volume, write_label
from medkd.evaluation.cost import measure_cost
from medkd.evaluation.endtoend import CaseCost, measure_case_cost
from medkd.inference.model import SegmentationModel
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import live_teachers

BUDGET_S = 8.0
"""Seconds for the timed runs, and again for the timed cases of each device."""


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``cost.json``: one test case of median size.

    ``latency_s`` and ``memory_mb`` are from the volume in memory to the label on its grid. ``seconds_per_case``,
    ``case_seconds`` and ``case_memory_mb`` are end to end, from file to file; ``devices`` has them for the run's device
    and, where that is a GPU, for the CPU beside it.
    """
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
    images = ground.dataset.case(case).images
    volume = read_volume(images)
    together = nn.ModuleList([network for network in model.networks if isinstance(network, nn.Module)])
    example = torch.from_numpy(volume.array)[None].to(model.device)
    cost = measure_cost(together, example, lambda: model.predict(volume), budget_s=BUDGET_S)
    body: dict[str, Any] = cost.to_json()
    body["memory_mb"] = body["peak_memory_mb"]
    body["weights_bytes"] = sum((folder / "model.safetensors").stat().st_size for folder in folders)
    shape = " x ".join(str(side) for side in volume.shape)
    devices = [end_to_end(model, images, out)]
    if model.device.type != "cpu":
        beside = SegmentationModel.from_folder(folders, device="cpu")
        devices.append(end_to_end(beside, images, out))
    own = devices[0].to_json()
    body |= {key: own[key] for key in ("seconds_per_case", "case_seconds", "case_memory_mb", "window_seconds")}
    body["devices"] = {one.device: one.to_json() for one in devices}
    body["note"] = (
        f"One test case of median size ({case}, {shape} voxels) from the volume in memory to the label on its grid: "
        f"median of {cost.repeats} runs on {cost.machine} ({cost.device}, threads: {cost.threads})."
    )
    (out / "cost.json").write_text(json.dumps(body, indent=1))


def end_to_end(model: SegmentationModel, images: Sequence[Path], scratch: Path) -> CaseCost:
    """Measure a case from its files to a label file in ``scratch``, and the networks alone on one window."""
    target = scratch / ".case.nii.gz"

    def once() -> dict[str, float]:
        began = perf_counter()
        volume = read_volume(images)
        seconds = {"load": perf_counter() - began}
        label, between = model.predict_timed(volume)
        began = perf_counter()
        write_label(target, label, volume.geometry)
        return {**seconds, **between, "write": perf_counter() - began}

    patch = torch.zeros(1, model.card.in_channels, *model.plan.patch, device=model.device)

    def window() -> None:
        with torch.inference_mode():
            for network in model.networks:
                network(patch)

    try:
        return measure_case_cost(once, model.device, window, budget_s=BUDGET_S)
    finally:
        target.unlink(missing_ok=True)
