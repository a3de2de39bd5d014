"""Sliding windows: equal to the network itself and to MONAI, at any size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medkd.inference.window import blended_slabs, gaussian, lay_grid, mirrored, predict_label, sliding_window


@pytest.fixture
def network() -> nn.Module:
    """A network whose answer depends on where a voxel lies in its window, through its padding."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 6, 5, padding=2), nn.Tanh(), nn.Conv3d(6, 3, 3, padding=1)).eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((24, 16, 32), (8, 8, 16)), ((5, 16, 9), (8, 8, 16)), ((8, 8, 16), (8, 8, 16)), ((12, 9, 7), (8, 12, 8))],
    ids=["several", "smaller", "one", "mixed"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_monai(network: nn.Module, shape: tuple[int, ...], patch: tuple[int, ...], batch: int) -> None:
    image = noise(2, *shape)
    ours = sliding_window(network, image, classes=3, patch=patch, batch=batch)
    with torch.inference_mode():
        theirs = sliding_window_inference(image[None], patch, 1, network, overlap=0.5, mode="gaussian")
    assert isinstance(theirs, Tensor)
    assert ours.shape == (3, *shape)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs[0].softmax(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 9), (23, 8, 30), (9, 9, 9), (8, 41, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_pointwise_network_is_reproduced_at_any_size(shape: tuple[int, ...], overlap: float) -> None:
    network = nn.Conv3d(1, 2, 1).eval()
    image = noise(1, *shape)
    with torch.no_grad():
        truth = network(image[None])[0]
    ours = sliding_window(network, image, classes=2, patch=(8, 8, 8), overlap=overlap, mode="logits")
    torch.testing.assert_close(ours, truth, atol=1e-5, rtol=0)


def test_two_dimensions() -> None:
    network = nn.Conv2d(1, 2, 1).eval()
    image = noise(1, 13, 21)
    ours = sliding_window(network, image, classes=2, patch=(8, 8), mode="sigmoid")
    torch.testing.assert_close(ours, network(image[None])[0].sigmoid(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.75])
def test_every_voxel_is_covered(overlap: float) -> None:
    for size in range(1, 60):
        grid = lay_grid((size,), (8,), overlap)
        seen = np.zeros(size + sum(grid.padding[0]), int)
        for start in grid.starts[0]:
            assert start >= 0
            assert start + 8 <= len(seen)
            seen[start : start + 8] += 1
        assert seen.min() >= 1, size


def test_few_windows_when_the_image_barely_exceeds_them() -> None:
    assert lay_grid((16,), (16,)).starts == ((0,),)
    assert lay_grid((17,), (16,)).starts == ((0, 1),)
    assert lay_grid((26,), (16,)).starts == ((0, 10),)  # MONAI: three windows
    assert lay_grid((27,), (16,)).starts == ((0, 6, 11),)


def test_small_volume_is_one_forward() -> None:
    calls: list[tuple[int, ...]] = []

    def network(image: Tensor) -> Tensor:
        calls.append(tuple(image.shape))
        return torch.cat([image, -image], 1)

    image = noise(1, 15, 13, 16)
    ours = sliding_window(network, image, classes=2, patch=(16, 16, 16), mode="logits")
    assert calls == [(1, 1, 16, 16, 16)]
    assert torch.equal(ours, torch.cat([image, -image]))


def test_windows_are_batched() -> None:
    sizes: list[int] = []

    def network(image: Tensor) -> Tensor:
        sizes.append(len(image))
        return torch.cat([image, -image], 1)

    sliding_window(network, noise(1, 8, 24, 16), classes=2, patch=(8, 8, 8), batch=2)
    assert sum(sizes) == 5 * 3
    assert max(sizes) == 2


def test_slabs_come_in_order_without_gaps(network: nn.Module) -> None:
    image = noise(2, 5, 30, 9)
    grid = lay_grid(image.shape[1:], (8, 8, 8))
    rows = [rows for rows, _ in blended_slabs(network, image, grid, classes=3)]
    assert grid.axis == 1
    assert rows[0].start == 0
    assert rows[-1].stop == 30
    assert all(a.stop == b.start for a, b in pairwise(rows))


def test_label_equals_argmax_of_mean_probabilities(network: nn.Module) -> None:
    torch.manual_seed(3)
    other = nn.Conv3d(2, 3, 3, padding=1).eval()
    image = noise(2, 19, 11, 14)
    label = predict_label([network, other], image, classes=3, patch=(8, 8, 8))
    mean = sliding_window([network, other], image, classes=3, patch=(8, 8, 8))
    parts = [sliding_window(n, image, classes=3, patch=(8, 8, 8)) for n in (network, other)]
    torch.testing.assert_close(mean, (parts[0] + parts[1]) / 2)
    assert label.dtype == np.int16
    assert np.array_equal(label, mean.argmax(0).numpy())


def test_mirrored_left_and_right_trade_places() -> None:
    """A network that tells left from right by position only: mirroring must not blur it once classes are swapped."""

    def network(image: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, image.shape[2])[None, None, :, None, None].expand(len(image), 1, *image.shape[2:])
        return torch.cat([0 * ramp, -ramp, ramp], 1)  # class 1 on the low side, class 2 on the high side

    image = noise(1, 6, 4, 4)[None]
    swapped = mirrored(network, (0, 2), swap=((1, 2),))(image)
    torch.testing.assert_close(swapped, network(image))
    blurred = mirrored(network, (0,))(image)
    assert blurred[:, 1].abs().max() < 1e-6
    assert mirrored(network, ()) is network


def test_mirrored_averages_all_flips(network: nn.Module) -> None:
    image = noise(1, 2, 6, 7, 8)
    with torch.no_grad():
        out = mirrored(network, (1,))(image)
        expected = (network(image) + network(image.flip(3)).flip(3)) / 2
    torch.testing.assert_close(out, expected)


def test_gaussian_peaks_in_the_middle() -> None:
    weight = gaussian((9, 4))
    assert weight.shape == (9, 4)
    assert weight[4, 1] == weight.max()
    torch.testing.assert_close(weight, weight.flip(0, 1))
    assert weight.min() >= 1e-3


def test_mistakes_are_told(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        lay_grid((8, 8), (8, 8, 8))
    with pytest.raises(ValueError, match="overlap"):
        lay_grid((8,), (8,), overlap=1.0)
    with pytest.raises(ValueError, match="mode"):
        sliding_window(network, noise(2, 8, 8, 8), classes=3, patch=(8, 8, 8), mode="max")
    with pytest.raises(ValueError, match=r"answers .*; expected \(1, 4, 8, 8, 8\)"):
        sliding_window(network, noise(2, 8, 8, 8), classes=4, patch=(8, 8, 8))
