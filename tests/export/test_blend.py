"""Windows in numpy give what windows in torch give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medkd.data.preprocess import Restore, restore_probabilities
from medkd.data.volume import Geometry
from medkd.export.blend import blended_slabs, gaussian, predict_back
from medkd.inference import window
from medkd.inference.grid import lay_grid

PATCH = (8, 6, 8)


def network(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Three classes that depend on the place in the window, so that blending matters."""
    ramp = np.linspace(-1, 1, image.shape[2], dtype=np.float32)[None, :, None, None]
    return np.stack([image[:, 0] * 0.5, image[:, 0] + ramp, ramp * 2 - image[:, 0]], 1).astype(np.float32)


def tensors(image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(network(image.numpy()))


def image_of(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)


def test_weights_are_those_of_torch() -> None:
    np.testing.assert_allclose(gaussian((9, 4, 16)), window.gaussian((9, 4, 16)).numpy(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(20, 9, 11), (5, 4, 3), (8, 6, 8), (8, 31, 8)])
@pytest.mark.parametrize("batch", [1, 3])
def test_blended_logits_are_those_of_torch(shape: tuple[int, int, int], batch: int) -> None:
    image, grid = image_of(shape), lay_grid(shape, PATCH)
    slabs = [(rows, part.copy()) for rows, part in blended_slabs(network, image, grid, classes=3, batch=batch)]
    ours = np.concatenate([part for _, part in slabs], grid.axis + 1)
    theirs = window.sliding_window(tensors, torch.from_numpy(image), classes=3, patch=PATCH, mode="logits")
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    assert [rows.start for rows, _ in slabs][1:] == [rows.stop for rows, _ in slabs][:-1]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.7), (0.6, 0.8, 5.0)])
def test_the_way_back_is_that_of_whole_probabilities(spacing: tuple[float, float, float]) -> None:
    """Streamed rows, at up to three sizes, give the label that whole probabilities give."""
    image = image_of((20, 9, 11))
    affine = np.diag([*spacing, 1.0])
    back = tuple(max(1, round(n / side)) for n, side in zip(image.shape[1:], spacing, strict=True))
    shape = (back[0], back[1], back[2])
    restore = Restore(Geometry(shape, affine), affine, shape, (20, 9, 11), (1.0, 1.0, 1.0))
    ours = predict_back(network, image, restore, classes=3, patch=PATCH)
    scores = window.sliding_window(tensors, torch.from_numpy(image), classes=3, patch=PATCH)
    theirs = restore_probabilities(scores.numpy(), restore)
    assert ours.shape == shape
    assert len(np.unique(theirs)) == 3
    assert (ours == theirs).mean() > 0.999


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="answers"):
        list(blended_slabs(network, image_of((8, 6, 8)), lay_grid((8, 6, 8), PATCH), classes=4))
