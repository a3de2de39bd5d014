"""A head that is put off: the same logits, in fewer channels."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import Tensor, nn

from medkd.inference.heads import Deferred, defer_head
from medkd.inference.window import mirrored, sliding_window

KERNELS: dict[str, list[int]] = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}


class Shown(nn.Module):
    """Its head is not the end: a blend of features would be another network."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(image))
        return out.tanh()


def tried(network: nn.Module, classes: int) -> Deferred | None:
    torch.manual_seed(0)
    return defer_head(network.eval(), torch.randn(1, 1, 8, 8, 8), classes)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 40, 1)),
        nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Conv3d(3, 40, 1, bias=False))),
        DynUNet(3, 1, 40, filters=[4, 8, 8], **KERNELS),
        SegResNet(3, 4, 1, 40, blocks_down=(1, 1), blocks_up=(1,), norm=("GROUP", {"num_groups": 2})),
    ],
    ids=["sequential", "nested", "DynUNet", "SegResNet"],
)
def test_parts_answer_like_the_whole(network: nn.Module) -> None:
    parts = tried(network, 40)
    assert parts is not None
    assert parts.features < len(parts.weight)
    image = torch.randn(1, 17, 9, 12)
    patch, classes = (8, 8, 8), len(parts.weight)
    with torch.inference_mode():
        whole = sliding_window(network, image, classes=classes, patch=patch, mode="logits")
        ours = sliding_window(parts, image, classes=classes, patch=patch, mode="logits")
        torch.testing.assert_close(parts(image[None, :, :8, :8, :8]), network(image[None, :, :8, :8, :8]))
    torch.testing.assert_close(ours, whole, atol=1e-4, rtol=1e-4)


def test_the_network_stays_as_it_was() -> None:
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, 9, 1)).eval()
    before = list(network.state_dict())
    parts = tried(network, 9)
    assert parts is not None
    assert list(network.state_dict()) == before
    assert network(torch.zeros(1, 1, 4, 4, 4)).shape[1] == 9
    assert not any(module._forward_hooks for module in network.modules())
    assert parts.weight.data_ptr() == network.get_parameter("1.weight").data_ptr()  # shared, not copied


@pytest.mark.parametrize(
    "network",
    [
        Shown(),
        nn.Sequential(nn.Conv3d(1, 3, 1), nn.Conv3d(3, 9, 3, padding=1)),
        nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 3, 1)),
        UNet(3, 1, 5, channels=(4, 8), strides=(2,)),
    ],
    ids=["not the end", "not pointwise", "few classes", "UNet"],
)
def test_other_networks_are_left_alone(network: nn.Module) -> None:
    assert all(tried(network, classes) is None for classes in (2, 3, 5, 9))


def test_a_callable_is_left_alone() -> None:
    assert defer_head(lambda image: image, torch.zeros(1, 1, 4, 4, 4), 1) is None


def test_mirrored_features() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 4, 1)).eval()
    parts = tried(network, 4)
    assert parts is not None
    image = torch.randn(1, 1, 6, 6, 6)
    with torch.inference_mode():
        both = mirrored(parts, (0, 2))
        assert isinstance(both, Deferred)
        torch.testing.assert_close(both(image), mirrored(network, (0, 2))(image))
        swapped = mirrored(parts, (0, 2), ((1, 2),))  # classes trade places: features do not know them
        assert not isinstance(swapped, Deferred)
        torch.testing.assert_close(swapped(image), mirrored(network, (0, 2), ((1, 2),))(image))
