"""From a trained model folder to a MONAI bundle, which runs where MONAI is and medkd is not."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from medkd.data.plan import Plan
from medkd.errors import UserError
from medkd.export.bundle_config import inference_config
from medkd.networks.weights import ModelCard, load_network

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def export_bundle(model_folder: Path, out_folder: Path, *, version: str = "0.1.0") -> Path:
    """Write a bundle: ``configs/``, ``models/model.pt``, ``docs/README.md`` and ``LICENSE``, whole or not at all.

    The network is written by its class name and arguments, the weights as a plain state dict that
    ``torch.load(weights_only=True)`` reads, preparation and restoring as MONAI transforms after the plan. Those differ
    from medkd's by a fraction of a voxel where a volume is no whole number of voxels long after resampling, and
    interpolate across thick slices where medkd takes the nearest.

    Args:
        model_folder: ``model.safetensors`` and ``model.json``.
        out_folder: the bundle; an older bundle there is replaced.
        version: of the bundle, in its metadata.

    Returns:
        ``out_folder``.

    Raises:
        UserError: no model there, or ``out_folder`` holds something that is no bundle.
    """
    network, card = load_network(model_folder)
    plan = Plan.from_json(card.plan)
    if out_folder.exists() and not (out_folder / "configs" / "metadata.json").is_file() and any(out_folder.iterdir()):
        raise UserError(f"{out_folder} holds something else than a bundle; give another folder for the bundle")
    part = out_folder.with_name(f".{out_folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("configs", "models", "docs"):
        (part / name).mkdir(parents=True)
    torch.save(network.state_dict(), part / "models" / "model.pt")
    _write_json(part / "configs" / "inference.json", inference_config(card, plan))
    _write_json(part / "configs" / "metadata.json", metadata(card, plan, version))
    (part / "docs" / "README.md").write_text(_readme(card, plan), encoding="utf-8")
    (part / "LICENSE").write_text(_licence(card), encoding="utf-8")
    if out_folder.exists():
        shutil.rmtree(out_folder)
    part.replace(out_folder)
    return out_folder


def metadata(card: ModelCard, plan: Plan, version: str) -> dict[str, Any]:
    """Return the content of ``configs/metadata.json`` in MONAI's schema; what medkd alone knows is under ``medkd``."""
    names = {str(value): name for name, value in card.labels.items()}
    channels = card.channels or tuple(str(index) for index in range(card.in_channels))
    is_ct = all(rule.kind == "ct" for rule in plan.intensity)
    shape = list(plan.patch)
    return {
        "schema": SCHEMA,
        "version": version,
        "changelog": {version: "exported by medkd"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.2.0", "scipy": "1.13.0"},
        "name": f"Segmentation of {_listed(card.labels)}",
        "task": f"Segmentation of {_listed(card.labels)} in {', '.join(channels)} volumes",
        "description": f"A {card.network['name']} distilled with medkd",
        "authors": "see provenance",
        "copyright": "see LICENSE",
        "data_type": "nibabel",
        "image_classes": f"{card.in_channels} channel(s), {list(plan.spacing_mm)} mm: {', '.join(channels)}",
        "label_classes": "one value per class",
        "pred_classes": f"{card.classes} channels, one per class",
        "intended_use": "Research; not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if is_ct else "magnitude",
                    "modality": "CT" if is_ct else "MR",
                    "num_channels": card.in_channels,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(index): name for index, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": card.classes,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": names,
                }
            },
        },
        "medkd": {
            "labels": card.labels,
            "plan": card.plan,
            "trained_on": list(card.trained_on),
            "patients": list(card.patients),
            "provenance": card.provenance,
        },
    }


def _readme(card: ModelCard, plan: Plan) -> str:
    rows = "\n".join(f"| {value} | {name} |" for name, value in card.labels.items())
    return f"""# Segmentation of {_listed(card.labels)}

A {card.network["name"]} with {card.in_channels} input channel(s) ({", ".join(card.channels) or "unnamed"}).
Distilled with medkd. Voxel size {list(plan.spacing_mm)} mm, window {list(plan.patch)} voxels.

| value | class |
|---|---|
{rows}

    pip install "monai[fire,nibabel]" scipy
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir OUT

`IMAGES` holds NIfTI volumes, with several channels as `case_0000.nii.gz`, `case_0001.nii.gz`. With pytorch-ignite
installed, `--run_id evaluate` does the same through MONAI's evaluator.

For research; not a medical device. See LICENSE for the data behind the weights.
"""


def _licence(card: ModelCard) -> str:
    found = {key: value for key, value in card.provenance.items() if "licen" in key.lower() and value}
    known = json.dumps(found, indent=1, ensure_ascii=False) if found else "not recorded"
    return (
        "Trained weights carry the terms of the data, and of any teacher networks, that they were learned from.\n"
        f"Recorded at training ({datetime.now(timezone.utc).date()} exported): {known}\n"
        "Where nothing is recorded, ask the owners of the data before you pass the weights on.\n"
    )


def _listed(labels: dict[str, int]) -> str:
    return ", ".join(name for name, value in labels.items() if value != 0)


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
