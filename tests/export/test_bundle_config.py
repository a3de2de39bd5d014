"""The network of a bundle, in MONAI's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from medkd.data.plan import Plan
from medkd.export.bundle_config import inference_config
from medkd.methods.features.simkd import Reused
from medkd.networks.weights import load_network


def test_networks_among_the_arguments_are_defined_too(make_model: Callable[..., Path]) -> None:
    inner = {"name": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    inner |= {"channels": [4, 8, 8], "strides": [2, 2]}
    spec = {
        "name": "medkd.methods.features.simkd.Reused",
        "student": inner,
        "teacher": inner,
        "student_head": "model.2",
        "teacher_head": "model.2",
        "features": [8, 8],
        "ratio": [1, 1, 1],
    }
    network, card = load_network(make_model(spec=spec))
    config = inference_config(card, Plan.from_json(card.plan))
    built = ConfigParser({"network_def": config["network_def"]}).get_parsed_content("network_def")
    assert isinstance(built, Reused)
    built.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(built.eval()(image), network(image))
