"""A tiny trained model and volumes to try it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medkd.data.plan import IntensityRule, Plan
from medkd.networks.weights import ModelCard, save_network
from medkd.networks.zoo import complete


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model folder with random weights."""

    def make(
        name: str = "model", *, seed: int = 0, channels: int = 1, spec: dict[str, Any] | None = None, **plan: Any
    ) -> Path:
        torch.manual_seed(seed)
        values: dict[str, Any] = {
            "spacing_mm": (1.0, 1.0, 2.0),
            "patch": (8, 8, 8),
            "batch": 2,
            "intensity": (IntensityRule("ct", -100.0, 200.0, 50.0, 80.0),) * channels,
            "strides": ((1, 1, 1), (2, 2, 2)),
            "kernels": ((3, 3, 3), (3, 3, 3)),
        }
        whole = Plan(**(values | plan))
        network = complete(
            spec or {"name": "UNet", "channels": [4, 8]},
            in_channels=channels,
            classes=3,
            patch=whole.patch,
            strides=whole.strides[1:],
        )
        card = ModelCard(
            network=network,
            in_channels=channels,
            classes=3,
            labels={"background": 0, "left": 1, "right": 2},
            plan=whole.to_json(),
            channels=("CT",) * channels,
        )
        save_network(tmp_path / name, card.build(), card)
        return tmp_path / name

    return make


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Return a function that writes a NIfTI of noise in HU, stored LPS with voxels of 1 x 1 x 3 mm."""

    def write(path: Path, shape: tuple[int, ...] = (11, 9, 6), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(seed).normal(50, 80, shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 3.0, 1.0])), path)
        return path

    return write
