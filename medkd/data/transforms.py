"""Augmentation of one patch: MONAI transforms, composed so that label and teacher target move with the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkd.errors import UserError
from medkd.types import IGNORE

Array = NDArray[Any]
LEVELS = ("default", "light", "none")
OUTSIDE = IGNORE - 1
"""Label of a voxel beyond the volume, which only a patch in the making tells from an unlabelled one."""


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI keeps an affine with every tensor unless told not to; a patch has no use for it and pays for it."""
    from monai.data.meta_obj import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


@dataclass(frozen=True)
class Patch:
    """One patch.

    ``image`` ``(C, *S)`` float32, ``label`` ``(*S)`` int64, ``target`` ``(K, *S)`` float32 or None, and ``trust``
    ``(1, *S)`` float32: 1 where the teacher can speak, less where it doubts, 0 beyond the volume.
    ``swapped`` tells that left and right were exchanged.
    """

    image: Tensor
    label: Tensor
    target: Tensor | None
    trust: Tensor
    swapped: bool = False


class Augment:
    """Random flips, affine and intensity changes of a patch, replayable from a seed.

    Args:
        level: ``default``; ``light`` leaves the affine out; ``none`` changes nothing.
        patch: size of the result in voxels.
        mirror_axes: spatial axes along which a flip keeps the anatomy's meaning.
        mirror_swap: pairs of classes that a flip along axis 0 (left-right) exchanges.
        flat_axis: an axis with much larger spacing, about which alone rotation makes sense.
    """

    def __init__(
        self,
        level: str,
        patch: Sequence[int],
        *,
        mirror_axes: Sequence[int] = (),
        mirror_swap: Sequence[Sequence[int]] = (),
        flat_axis: int | None = None,
    ) -> None:
        from monai.transforms.compose import Compose
        from monai.transforms.intensity import dictionary as intensity
        from monai.transforms.spatial.dictionary import RandAffined

        if level not in LEVELS:
            raise UserError(f"augment {level!r} is not one of {', '.join(LEVELS)}")
        self.level, self.patch = level, tuple(patch)
        self.mirror_axes, self.mirror_swap = tuple(mirror_axes), [tuple(pair) for pair in mirror_swap]
        dims = len(patch)
        small, full = 0.05, 0.26  # radians: 3 and 15 degrees
        if dims == 2:
            rotate: Any = (full,)
        else:
            rotate = tuple(full if flat_axis in (None, axis) else small for axis in range(3))
        affine: dict[str, Any] = {
            "prob": 1.0,
            "rotate_range": rotate,
            "scale_range": [(-0.15, 0.2)] * dims,
            "spatial_size": self.patch,
            "padding_mode": "zeros",
            "cache_grid": True,
        }
        self._affine = RandAffined(keys=("linear", "nearest"), mode=("bilinear", "nearest"), **affine)
        width = (0.4, 1.0)  # voxels; MONAI ignores the third in two dimensions
        self._intensity = Compose(
            [
                intensity.RandGaussianNoised(keys="image", prob=0.15, std=0.1),
                intensity.RandGaussianSmoothd(keys="image", prob=0.1, sigma_x=width, sigma_y=width, sigma_z=width),
                intensity.RandScaleIntensityd(keys="image", prob=0.2, factors=(-0.25, 0.25)),
                intensity.RandShiftIntensityd(keys="image", prob=0.15, offsets=0.2),
                intensity.RandAdjustContrastd(keys="image", prob=0.2, gamma=(0.7, 1.5)),
            ]
        )

    def wants_margin(self, rng: np.random.Generator) -> bool:
        """Draw whether this patch is rotated and scaled, and so should be read with a margin."""
        return self.level == "default" and bool(rng.random() < 0.3)

    @property
    def margin(self) -> tuple[int, ...]:
        """Size to read for an affine change, so that its corners still show anatomy."""
        return tuple(int(np.ceil(1.25 * n)) for n in self.patch)

    def __call__(
        self,
        image: Array,
        label: Array,
        target: Array | None,
        rng: np.random.Generator,
        *,
        affine: bool,
        trust: Array | None = None,
    ) -> Patch:
        """Return the changed patch.

        Args:
            image: ``(C, *S)`` of the patch's size, or of :attr:`margin` when ``affine``.
            label: ``(*S)``, IGNORE where unlabelled, :data:`OUTSIDE` beyond the volume.
            target: ``(K, *S)`` teacher probabilities, all zero outside the volume, or None.
            rng: source of all randomness.
            affine: rotate and scale.
            trust: ``(1, *S)`` in the target, zero outside the volume, or None for one everywhere; moves as the target.
        """
        channels, dims = image.shape[0], image.ndim - 1
        moving = [image, *(part.astype(np.float32, copy=False) for part in (target, trust) if part is not None)]
        linear = np.concatenate(moving) if len(moving) > 1 else image
        # shifted, so that the zero padding of a resampled patch means OUTSIDE
        nearest = (label[None] - OUTSIDE).astype(np.float32)
        x, y = torch.from_numpy(np.ascontiguousarray(linear)), torch.from_numpy(nearest)
        with _plain_tensors():
            if affine:
                self._affine.set_random_state(seed=int(rng.integers(2**31)))
                moved = self._affine({"linear": x, "nearest": y})
                x, y = torch.as_tensor(moved["linear"]), torch.as_tensor(moved["nearest"])
            swapped = False
            if self.level != "none":
                axes = [axis for axis in self.mirror_axes if axis < dims and rng.random() < 0.5]
                if axes:
                    x, y = x.flip([a + 1 for a in axes]), y.flip([a + 1 for a in axes])
                    if 0 in axes:
                        swapped = True
                        x, y = self._swap(x, y, channels, 0 if target is None else target.shape[0])
            changed = x[:channels]
            if self.level != "none":
                self._intensity.set_random_state(seed=int(rng.integers(2**31)))
                changed = torch.as_tensor(self._intensity({"image": changed})["image"])
        exact = y[0].round().long() + OUTSIDE
        out_label = exact.clamp_min(IGNORE)
        if target is None:  # a live teacher speaks about every voxel of the volume, labelled or not
            return Patch(changed.float(), out_label, None, (exact != OUTSIDE).unsqueeze(0).float(), swapped)
        probabilities = x[channels : channels + target.shape[0]]
        mass = probabilities.sum(0, keepdim=True)
        inside = (mass > 0.5).float()
        mass.clamp_min_(1e-6)
        if trust is not None:  # a mean over the part of the volume that a resampled voxel shows, as the target is
            inside = inside * (x[channels + target.shape[0] :] / mass).clamp(0, 1)
        # in place: `x` is our own copy, and of many classes it is the largest thing here
        return Patch(changed.float(), out_label, probabilities.div_(mass), inside, swapped)

    def _swap(self, x: Tensor, y: Tensor, channels: int, classes: int) -> tuple[Tensor, Tensor]:
        """Exchange left and right classes in label and target."""
        if not self.mirror_swap:
            return x, y
        order = list(range(classes))
        swapped = y.clone()
        for a, b in self.mirror_swap:
            swapped[y == a - OUTSIDE], swapped[y == b - OUTSIDE] = b - OUTSIDE, a - OUTSIDE
            if order:
                order[a], order[b] = order[b], order[a]
        if order:
            x = torch.cat([x[:channels], x[channels : channels + classes][order], x[channels + classes :]])
        return x, swapped
