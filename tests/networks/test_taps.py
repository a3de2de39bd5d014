"""Feature points: their names, shapes and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.networks.taps import Tapped, split_output
from medkd.networks.zoo import build

DOWN_AND_UP = {
    "UNet": (
        {"name": "UNet", "channels": [4, 8, 16, 32]},
        {"enc0": (4, 2), "enc1": (8, 4), "bottleneck": (48, 8), "dec1": (16, 4), "dec0": (8, 2)},
    ),
    "DynUNet": (
        {"name": "DynUNet", "filters": [4, 8, 16, 32], "deep_supervision": True},
        {
            "enc0": (4, 1),
            "enc1": (8, 2),
            "enc2": (16, 4),
            "bottleneck": (32, 8),
            "dec2": (16, 4),
            "dec1": (8, 2),
            "dec0": (4, 1),
        },
    ),
    "SegResNet": (
        {"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
        {"enc0": (8, 1), "enc1": (16, 2), "bottleneck": (16, 4), "dec1": (8, 2), "dec0": (8, 1)},
    ),
    "BasicUNet": (
        {"name": "BasicUNet", "features": [4, 4, 8, 8, 16, 4]},
        {
            "enc0": (4, 1),
            "enc1": (4, 2),
            "enc2": (8, 4),
            "enc3": (8, 8),
            "bottleneck": (16, 16),
            "dec3": (8, 8),
            "dec2": (8, 4),
            "dec1": (4, 2),
            "dec0": (4, 1),
        },
    ),
    "AttentionUnet": (
        {"name": "AttentionUnet", "channels": [4, 8, 16]},
        {"enc0": (4, 1), "enc1": (8, 2), "bottleneck": (16, 4), "dec1": (8, 2), "dec0": (4, 1)},
    ),
}


def tapped(spec: dict[str, Any], patch: tuple[int, ...]) -> Tapped:
    torch.manual_seed(0)
    return Tapped(build(spec, in_channels=1, classes=3, patch=patch), torch.zeros(1, 1, *patch))


@pytest.mark.parametrize("name", DOWN_AND_UP)
def test_names_go_down_and_up(name: str) -> None:
    spec, expected = DOWN_AND_UP[name]
    patch = (32, 32, 32) if name == "BasicUNet" else (16, 16, 16)
    network = tapped(spec, patch)
    assert network.names == tuple(expected)
    shapes = network.anatomy.taps
    assert {n: (shapes[n].channels, shapes[n].stride) for n in network.names} == {
        n: (channels, (stride,) * 3) for n, (channels, stride) in expected.items()
    }
    assert network.anatomy.classes == 3
    assert network.anatomy.dims == 3


def test_two_dimensions() -> None:
    network = tapped({"name": "UNet", "channels": [4, 8, 16]}, (16, 24))
    assert network.names == ("enc0", "bottleneck", "dec0")
    assert network.anatomy.taps["enc0"].stride == (2, 2)
    assert network.anatomy.dims == 2


def test_anisotropic_strides() -> None:
    spec = {"name": "DynUNet", "filters": [4, 8, 16], "strides": [(1, 1, 1), (2, 2, 1), (2, 2, 2)]}
    network = tapped(spec, (16, 16, 8))
    assert network.anatomy.taps["enc1"].stride == (2, 2, 1)
    assert network.anatomy.taps["bottleneck"].stride == (4, 4, 2)


@pytest.mark.parametrize("name", DOWN_AND_UP)
def test_a_tap_has_the_shape_that_the_anatomy_tells_and_a_gradient(name: str) -> None:
    spec, expected = DOWN_AND_UP[name]
    side = 32 if name == "BasicUNet" else 16
    network = tapped(spec, (side,) * 3)
    network.network.train()
    view = network(torch.randn(2, 1, side, side, side), tuple(expected))
    assert view.logits.shape == (2, 3, side, side, side)
    for tap, (channels, stride) in expected.items():
        assert view.taps[tap].shape == (2, channels, *(side // stride,) * 3)
    first = next(p for p in network.network.parameters() if p.requires_grad)
    (grad,) = torch.autograd.grad(view.taps["bottleneck"].square().sum(), first)
    assert grad.abs().sum() > 0


def test_deep_supervision_appears_in_training_only() -> None:
    network = tapped(DOWN_AND_UP["DynUNet"][0], (16, 16, 16))
    image = torch.randn(2, 1, 16, 16, 16)
    network.network.train()
    assert {n: tuple(t.shape) for n, t in network(image).taps.items()} == {"logits_1": (2, 3, 16, 16, 16)}
    network.network.eval()
    assert network(image).taps == {}


def test_the_dry_run_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout3d(0.5), nn.Conv3d(4, 2, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    Tapped(network, torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_hooks_are_gone_after_a_run_that_fails() -> None:
    network = tapped({"name": "UNet", "channels": [4, 8, 16]}, (16, 16, 16))
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, 16, 16, 16), ("enc0",))
    assert not any(module._forward_hooks for module in network.network.modules())


def test_a_module_path_is_a_tap_too() -> None:
    network = tapped({"name": "UNet", "channels": [4, 8, 16]}, (16, 16, 16))
    assert network.path("enc0") == "model.0"
    view = network(torch.zeros(1, 1, 16, 16, 16), ("model.0", "enc0"))
    assert view.taps["model.0"] is view.taps["enc0"]


def test_an_unknown_tap_names_the_nearest() -> None:
    network = tapped({"name": "UNet", "channels": [4, 8, 16]}, (16, 16, 16))
    with pytest.raises(UserError, match=r"no tap 'bottelneck' \(did you mean 'bottleneck'\?\).*enc0, bottleneck, dec0"):
        network.path("bottelneck")


def test_a_patch_that_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match=r"cannot run on a patch of \(10, 10, 10\)"):
        tapped({"name": "DynUNet", "filters": [4, 8, 16]}, (10, 10, 10))


def test_a_module_called_twice_counts_where_it_was_called_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Conv2d(1, 1, 1)
            self.last = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.shared(self.shared(x) + 1))
            return out

    network = Twice()
    view = Tapped(network, torch.zeros(1, 1, 4, 4))(torch.ones(1, 1, 4, 4), ("shared",))
    expected = network.shared(network.shared(torch.ones(1, 1, 4, 4)) + 1)
    torch.testing.assert_close(view.taps["shared"], expected)


def test_a_global_pool_is_no_place_of_the_network() -> None:
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv3d(1, 4, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Conv3d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            out: Tensor = self.head(x * self.pool(x).sigmoid())
            return out

    network = Tapped(Squeeze(), torch.zeros(1, 1, 8, 8, 8))
    assert network.names == ("bottleneck",)
    assert network.path("bottleneck") == "conv"
    assert network.path("pool") == "pool"


@pytest.mark.parametrize("dims", [2, 3])
def test_outputs_of_every_kind(dims: int) -> None:
    space = (4,) * dims
    stack = torch.randn(2, 3, 5, *space)
    logits, heads = split_output(stack, dims)
    assert torch.equal(logits, stack[:, 0])
    assert [torch.equal(h, stack[:, i]) for i, h in enumerate(heads, 1)] == [True, True]
    one, two = torch.randn(2, 5, *space), torch.randn(2, 5, *space)
    assert split_output([one, two], dims)[1][0] is two
    assert split_output(one, dims) == (one, [])


@pytest.mark.parametrize("output", [torch.zeros(2, 3), {"out": torch.zeros(1)}, [], [1.0], None], ids=str)
def test_other_outputs_are_refused(output: object) -> None:
    with pytest.raises(UserError, match="must return logits"):
        split_output(output, 3)


@pytest.mark.parametrize("name", DOWN_AND_UP)
def test_the_head_makes_the_logits_from_its_tap(name: str) -> None:
    network = tapped(DOWN_AND_UP[name][0], (32, 32, 32))
    anatomy, image = network.anatomy, torch.randn(2, 1, 32, 32, 32)
    assert anatomy.network is network.network
    network.network.eval()
    with torch.no_grad():
        view = network(image, ("dec0",))
        head = network.network.get_submodule(anatomy.heads["dec0"])
        torch.testing.assert_close(head(view.taps["dec0"]), view.logits)
    assert "bottleneck" not in anatomy.heads
