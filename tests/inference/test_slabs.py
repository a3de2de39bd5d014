"""Streamed prediction: the label of MONAI's windows with all classes resampled, and no more memory for more classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from medkd.data.preprocess import Restore, restore_probabilities
from medkd.data.volume import Geometry, read_volume
from medkd.inference import window
from medkd.inference.heads import defer_head
from medkd.inference.slabs import predict_back
from medkd.inference.window import sliding_window

Label = NDArray[np.int16]
PATCH = (8, 8, 8)
TIE = 2e-5
"""Where two classes are nearer than this, either answer is right: sums of floats depend on their order."""


def way(shape: Sequence[int], out: Sequence[int], thick: float = 1.0) -> Restore:
    """From a prepared grid of ``shape`` to ``out`` over the same extent; the last axis may be thick before."""
    spacing = np.array([n / m for n, m in zip(shape, out, strict=True)]) * (1, 1, thick)
    whole = (int(out[0]), int(out[1]), int(out[2]))
    affine = np.diag([*spacing, 1.0])
    return Restore(Geometry(whole, affine), affine, whole, (shape[0], shape[1], shape[2]), (1.0, 1.0, thick))


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Return noise with structures of several voxels, as images have."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 2)).astype(np.float32) * 8)


def net(classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv3d(4, classes, 3, padding=1)).eval()


def monai(networks: Sequence[nn.Module], image: Tensor, restore: Restore) -> tuple[Label, NDArray[np.bool_]]:
    """Return the label by MONAI's windows and all classes resampled at full size, and where it is a tie."""
    with torch.inference_mode():
        parts = []
        for one in networks:
            logits = sliding_window_inference(image[None], PATCH, 1, one, overlap=0.5, mode="gaussian")
            assert isinstance(logits, Tensor)
            parts.append(logits.softmax(1))
        mean = torch.stack(parts).mean(0)
        full = nn.functional.interpolate(mean, size=restore.canonical_shape, mode="trilinear")[0]
    top = full.topk(2, 0).values
    return full.argmax(0).numpy().astype(np.int16), (top[0] - top[1] < TIE).numpy()


SIZES = {
    "finer": ((16, 24, 12), (31, 37, 26)),
    "coarser": ((24, 16, 20), (13, 11, 10)),
    "mixed": ((12, 16, 24), (20, 9, 24)),
    "same": ((16, 24, 12), (16, 24, 12)),
    "one window": ((7, 8, 5), (14, 12, 9)),
    "flat": ((24, 16, 1), (48, 16, 1)),
    "last axis": ((8, 12, 32), (16, 12, 40)),
}


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("members", [1, 2])
def test_label_is_that_of_monai(size: str, members: int) -> None:
    shape, out = SIZES[size]
    image, restore = smooth(1, *shape), way(*SIZES[size])
    networks = [net(seed=seed) for seed in range(members)]
    ours = predict_back(networks, image, restore, classes=5, patch=PATCH)
    theirs, tie = monai(networks, image, restore)
    assert ours.dtype == np.int16
    assert ours.shape == out
    assert tie.mean() < 0.01
    # Where an axis takes a window fewer than MONAI's the blends differ; SIZES are chosen so that none does.
    assert np.array_equal(ours[~tie], theirs[~tie])
    assert len(np.unique(ours)) > 1


def test_real_volumes(real_data: Callable[[str], Path]) -> None:
    """The label is that of the same windows, all classes brought back at full size, but for one voxel in a thousand.

    MONAI is not asked here: with a window fewer along an axis, an untrained network's edges fall elsewhere.
    """
    for path in sorted((real_data("Task04_Hippocampus") / "imagesTr").glob("*.nii.gz"))[:3]:
        array = read_volume(path).array
        image = torch.from_numpy((array - array.mean()) / array.std())
        shape = image.shape[1:]
        restore = way(shape, [round(1.4 * side) for side in shape])
        ours = predict_back([net()], image, restore, classes=5, patch=PATCH)
        whole = restore_probabilities(sliding_window(net(), image, classes=5, patch=PATCH).numpy(), restore)
        assert (ours == whole).mean() > 0.999
        assert len(np.unique(ours)) > 1


@pytest.mark.parametrize("thick", [1.0, 4.0])
@pytest.mark.parametrize("size", list(SIZES))
def test_label_is_that_of_whole_probabilities(size: str, thick: float) -> None:
    """Also where a class is ruled out: background is sure over most of the image."""
    shape, out = SIZES[size]
    image, restore = smooth(1, *shape, seed=3), way(shape, out, thick)
    network = net()

    def sure(windows: Tensor) -> Tensor:
        logits: Tensor = 6 * network(windows)
        logits[:, 0] += 3
        return logits

    whole = sliding_window(sure, image, classes=5, patch=PATCH)
    ours = predict_back([sure], image, restore, classes=5, patch=PATCH)
    expected = restore_probabilities(whole.numpy(), restore)
    assert (ours == expected).mean() > 0.9999
    assert (ours == 0).mean() > 0.02


@pytest.mark.parametrize("memory_mb", [0.05, 0.2])
@pytest.mark.parametrize("size", list(SIZES))
def test_in_parts_the_label_is_the_same(size: str, memory_mb: float) -> None:
    image, restore = smooth(1, *SIZES[size][0]), way(*SIZES[size])
    given: dict[str, Any] = {"classes": 5, "patch": PATCH}
    whole = predict_back([net()], image, restore, **given)
    parts = predict_back([net()], image, restore, memory_mb=memory_mb, **given)
    assert (whole == parts).mean() > 0.9999


def test_parts_hold_less_and_compute_more() -> None:
    image, restore = smooth(1, 40, 32, 16), way((40, 32, 16), (20, 40, 16))
    counts: list[int] = []

    def counted(windows: Tensor) -> Tensor:
        counts.append(len(windows))
        return torch.cat([windows, -windows], 1)

    predict_back([counted], image, restore, classes=2, patch=PATCH)
    whole = sum(counts)
    counts.clear()
    predict_back([counted], image, restore, classes=2, patch=PATCH, memory_mb=1e-6)
    assert whole < sum(counts) < 3 * whole  # as many parts as windows: their neighbours are computed too


def test_ties_go_to_the_lower_class() -> None:
    image, restore = smooth(1, 12, 12, 12), way((12, 12, 12), (20, 20, 20))
    label = predict_back([lambda x: torch.cat([x - 9, x, x], 1)], image, restore, classes=3, patch=PATCH)
    assert (label == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_asked_probabilities(dtype: str) -> None:
    image, restore = smooth(1, 16, 24, 12), way((16, 24, 12), (31, 30, 20))
    given: dict[str, Any] = {"classes": 5, "patch": PATCH}
    ours = predict_back([net()], image, restore, keep=(3, 0), dtype=dtype, **given)
    whole = sliding_window(net(), image, **given)
    full = nn.functional.interpolate(whole[None], size=restore.canonical_shape, mode="trilinear")[0, [3, 0]].numpy()
    assert ours.dtype == np.dtype(dtype)
    step = {"float32": 1e-6, "float16": 5e-4, "uint8": 0.5 / 255}[dtype]
    scale = 255 if dtype == "uint8" else 1
    assert np.abs(ours.astype(np.float32) / scale - full).max() <= step + 1e-5
    small = predict_back([net()], image, restore, keep=(3, 0), dtype=dtype, memory_mb=1e-6, **given)
    assert np.abs(small.astype(np.float32) - ours.astype(np.float32)).max() <= (1 if dtype == "uint8" else 1e-3)


def test_windows_outside_the_body_are_not_computed() -> None:
    image, restore = smooth(1, 32, 16, 16), way((32, 16, 16), (40, 20, 20))
    body = torch.zeros(32, 16, 16, dtype=torch.bool)
    body[:10] = True
    seen: list[int] = []

    def counted(windows: Tensor) -> Tensor:
        seen.append(len(windows))
        return torch.cat([windows * 0 - 1, windows * 0 + 1], 1)

    label = predict_back([counted], image, restore, classes=2, patch=PATCH, body=body)
    assert label[:18].all()
    assert not label[22:].any()
    assert sum(seen) == 3 * 3 * 3  # of 7 * 3 * 3
    seen.clear()
    assert not predict_back([counted], image, restore, classes=2, patch=PATCH, body=body & False).any()
    assert not seen


def test_a_batch_that_does_not_fit_is_halved() -> None:
    image, restore = smooth(1, 16, 16, 16), way((16, 16, 16), (16, 16, 20))
    sizes: list[int] = []

    def small(windows: Tensor) -> Tensor:
        if len(windows) > 2:
            raise torch.OutOfMemoryError("too many")
        sizes.append(len(windows))
        return torch.cat([windows, -windows], 1)

    given: dict[str, Any] = {"classes": 2, "patch": PATCH}
    label = predict_back([small], image, restore, batch=8, **given)
    assert max(sizes) == 2
    assert sum(sizes) == 27
    assert np.array_equal(label, predict_back([small], image, restore, batch=1, **given))


def test_deferred_heads_and_callables_agree() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 20, 1)).eval()
    parts = defer_head(network, torch.randn(1, 1, *PATCH), 20)
    assert parts is not None
    image, restore = smooth(1, 16, 24, 12), way((16, 24, 12), (31, 30, 20))
    a, b = (predict_back([n], image, restore, classes=20, patch=PATCH) for n in (network, parts))
    assert (a == b).mean() > 0.9999


def peak_mb(work: Callable[[], object]) -> float:
    """Return the most that torch held at a time, of what it took while working."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 1e6


def test_memory_does_not_grow_with_classes_times_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "CHUNK_BYTES", 1)  # a row at a time: so small an image would pass as one piece
    image, restore = smooth(1, 40, 16, 16), way((40, 16, 16), (48, 32, 32))
    peaks = []
    for classes in (4, 16):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, classes, 1)).eval()
        parts = defer_head(network, torch.randn(1, 1, *PATCH), classes)
        assert parts is not None
        peaks.append(peak_mb(partial(predict_back, [parts], image, restore, classes=classes, patch=PATCH)))
    logits = peak_mb(partial(predict_back, [network], image, restore, classes=16, patch=PATCH))
    assert logits < 0.2 * 16 * 4e-6 * 48 * 32 * 32
    assert peaks[1] < 1.6 * peaks[0]
    assert peaks[1] < 0.75 * logits


def test_mistakes_are_told() -> None:
    image, restore = smooth(1, 8, 8, 8), way((8, 8, 8), (9, 9, 9))
    with pytest.raises(ValueError, match="dtype"):
        predict_back([net()], image, restore, classes=5, patch=PATCH, dtype="int8")
    with pytest.raises(ValueError, match="way back"):
        predict_back([net()], image[:, :4], restore, classes=5, patch=PATCH)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    image, restore = smooth(1, 16, 24, 12), way((16, 24, 12), (31, 30, 20))
    given: dict[str, Any] = {"classes": 5, "patch": PATCH}
    cpu = predict_back([net()], image, restore, **given)
    gpu = predict_back([net().cuda()], image, restore, device="cuda", **given)
    assert (cpu == gpu).mean() > 0.999
