"""Networks by name: sized from the plan, refused with the nearest name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.errors import UserError
from medkd.networks.zoo import build, complete, names, network_arguments

SMALL = [
    {"name": "UNet", "channels": [4, 8, 16]},
    {"name": "DynUNet", "filters": [4, 8, 16]},
    {"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    {"name": "AttentionUnet", "channels": [4, 8, 16]},
]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec["name"])
def test_maps_an_image_to_logits_of_its_size(spec: dict[str, object], dims: int) -> None:
    patch = (16,) * dims
    network = build(spec, in_channels=2, classes=3, patch=patch).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 2, *patch)).shape == (1, 3, *patch)


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: spec["name"])
def test_a_complete_spec_builds_the_same_network_again(spec: dict[str, object]) -> None:
    size = {"in_channels": 1, "classes": 3, "patch": (16, 16, 8)}
    full = complete(spec, **size, strides=[(2, 2, 1), (2, 2, 2)], kernels=[(3, 3, 1), (3, 3, 3), (3, 3, 3)])
    assert complete(full, **size) == full
    one, two = build(full, **size), build(full, **size)
    two.load_state_dict(one.state_dict())
    assert [m.__class__ for m in one.modules()] == [m.__class__ for m in two.modules()]


def test_strides_and_kernels_of_the_plan_reach_the_network() -> None:
    strides, kernels = [(2, 2, 1), (2, 2, 2)], [(3, 3, 1), (3, 3, 3), (3, 3, 3)]
    size = {"in_channels": 1, "classes": 2, "patch": (16, 16, 16), "strides": strides, "kernels": kernels}
    full = complete({"name": "DynUNet", "filters": [4, 8, 16]}, **size)
    assert full["strides"] == [(1, 1, 1), (2, 2, 1), (2, 2, 2)]
    assert full["upsample_kernel_size"] == [(2, 2, 1), (2, 2, 2)]
    assert full["kernel_size"] == kernels
    assert complete({"name": "UNet", "channels": [4, 8]}, **size)["strides"] == [(2, 2, 1)]


def test_what_is_written_wins() -> None:
    spec = {"name": "UNet", "channels": [4, 8, 16], "strides": [1, 2], "spatial_dims": 3}
    full = complete(spec, in_channels=1, classes=2, patch=(16, 16, 16), strides=[(2, 2, 2)] * 4)
    assert full["strides"] == [1, 2]


def test_a_dotted_path_names_ones_own() -> None:
    network = build(
        {"name": "torch.nn.Conv3d", "kernel_size": 1, "out_channels": 5}, in_channels=2, classes=3, patch=(8, 8, 8)
    )
    assert isinstance(network, nn.Conv3d)
    assert network.in_channels == 2
    assert network.out_channels == 5


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "UNett", "channels": [4, 8]}, ["'UNett'", "did you mean 'UNet'"]),
        ({"name": "SegResnet"}, ["did you mean 'SegResNet'"]),
        ({"name": "UNet", "chanels": [4, 8]}, ["'chanels'", "did you mean 'channels'"]),
        ({"name": "UNet"}, ["channels", "needs"]),
        ({"name": "UNet", "channels": [4, 8, 16, 32]}, ["3 downsamplings", "allows 2"]),
        ({"name": "UNet", "channels": [4, 8, 16], "strides": [2]}, ["cannot be built"]),
        ({"name": "torch.nn.functional.relu"}, ["not a torch module class"]),
        ({"name": "torch.nn.Nothing"}, ["cannot be imported"]),
        ({"name": "no_such_package.Net"}, ["cannot be imported"]),
        ({"name": "resnet50"}, ["not a torch module class"]),
    ],
)
def test_a_mistake_is_told_with_the_way_out(spec: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        build(spec, in_channels=1, classes=2, patch=(16, 16, 16), strides=[(2, 2, 2), (2, 2, 2)])
    assert all(word in str(told.value) for word in words), told.value


def test_another_spelling_of_monai_is_sized_as_well() -> None:
    size = {"in_channels": 1, "classes": 2, "patch": (16, 16, 16), "strides": [(2, 2, 2)] * 2}
    one, two = complete({"name": "DynUnet"}, **size), complete({"name": "DynUNet"}, **size)
    assert one == two


def test_names_are_classes_that_can_be_sized() -> None:
    found = names()
    assert found == sorted(found)
    assert {"UNet", "DynUNet", "SegResNet", "BasicUNet", "AttentionUnet", "SwinUNETR", "VNet"} <= set(found)
    assert "Unet" not in found


def test_a_network_carries_its_spec_and_may_have_networks_for_arguments() -> None:
    inner = {"name": "UNet", "channels": [4, 8, 8], "strides": [2, 2]}
    spec = {
        "name": "medkd.methods.features.simkd.Reused",
        "student": inner,
        "teacher": inner,
        "student_head": "model.2",
        "teacher_head": "model.2",
        "features": [8, 8],
        "ratio": [1, 1],
    }
    network = build(spec, in_channels=1, classes=3, patch=(8, 8))
    assert network.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 3, 8, 8)
    assert network.spec == {**spec, "spatial_dims": 2}
    assert network_arguments("medkd.methods.features.simkd.Reused") == ("student", "teacher")
    assert build(inner, in_channels=1, classes=3, patch=(8, 8)).spec == {
        **inner,
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 3,
    }
