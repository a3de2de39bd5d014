"""Tiny networks and batches on which rules can be exact.

The networks are pointwise but for pooling by two and its reverse, so that a tiled, mirrored or transposed image gives
tiled, mirrored or transposed features. Student and teacher read channels of their own: a rule can change what one of
them sees and leave the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.types import Batch

CHANNELS = 3
"""Image channels that one network reads; an image has the student's and then the teacher's."""
STUDENT, TEACHER = slice(0, CHANNELS), slice(CHANNELS, 2 * CHANNELS)
STRIDE = 4
"""Stride of the bottleneck along every axis."""
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layer(dims: int, inside: int, outside: int, *, norm: bool = False) -> nn.Sequential:
    """Return a pointwise convolution and its activation, normalised by remembered statistics between them if asked."""
    conv = _CONV[dims - 1](inside, outside, 1)
    nn.init.normal_(conv.weight, std=1.3 * inside**-0.5)
    made: list[nn.Module] = [conv, nn.LeakyReLU(0.2)]
    if norm:
        made.insert(1, _NORM[dims - 1](outside))
        made[1].get_buffer("running_mean").uniform_(-0.1, 0.1)
        made[1].get_buffer("running_var").uniform_(0.8, 1.2)
    return nn.Sequential(*made)


class Toy(nn.Module):
    """A U-Net of 1x1x1 convolutions; offers the taps ``enc0``, ``enc1``, ``bottleneck``, ``dec1`` and ``dec0``.

    Args:
        dims: spatial axes.
        classes: output channels.
        width: channels of the finest level, growing by two a level.
        part: image channels that it reads.
        norm: with batch normalisation, as data-free methods want of a teacher.
        seed: of its weights.

    Shapes: ``(B, 2 * CHANNELS, *S)`` -> ``(B, classes, *S)``, any size.
    """

    def __init__(self, dims: int, classes: int, *, width: int, part: slice, norm: bool, seed: int) -> None:
        super().__init__()
        self.part, self.dims = part, dims
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            w = (width, width + 2, width + 4)
            self.enc0 = layer(dims, CHANNELS, w[0], norm=norm)
            self.enc1 = layer(dims, w[0], w[1])
            self.bottleneck = layer(dims, w[1], w[2])
            self.dec1 = layer(dims, w[2] + w[1], w[1])
            self.dec0 = layer(dims, w[1] + w[0], w[0])
            self.head = _CONV[dims - 1](w[0], classes, 1)
            nn.init.normal_(self.head.weight, std=4.0 * w[0] ** -0.5)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.dims - 1]
        x0 = self.enc0(image[:, self.part])
        x1 = self.enc1(pool(x0, 2, ceil_mode=True))
        x2 = self.bottleneck(pool(x1, 2, ceil_mode=True))
        y1 = self.dec1(torch.cat([F.interpolate(x2, x1.shape[2:]), x1], 1))
        y0 = self.dec0(torch.cat([F.interpolate(y1, x0.shape[2:]), x0], 1))
        logits: Tensor = self.head(y0)
        return logits


def student(dims: int, classes: int, seed: int = 0) -> Toy:
    """Return a narrow network on the student's channels, learning."""
    return Toy(dims, classes, width=4, part=STUDENT, norm=False, seed=seed).train()


def teacher(dims: int, classes: int, seed: int = 0) -> Toy:
    """Return a wider network on the teacher's channels, frozen."""
    made = Toy(dims, classes, width=6, part=TEACHER, norm=True, seed=100 + seed)
    return made.eval().requires_grad_(False)


def scene(size: Sequence[int] = (8, 8, 8), classes: int = 3, batch: int = 2, seed: int = 0) -> Batch:
    """Return a batch of noise in which every sample has every class, in bands along the first axis."""
    g = torch.Generator().manual_seed(1000 + seed)
    image = torch.randn(batch, 2 * CHANNELS, *size, generator=g)
    first = torch.arange(size[0]).view(-1, *[1] * (len(size) - 1)) * max(classes, 1) // size[0]
    last = torch.arange(size[-1]) * 2 // size[-1]
    band = (first + last).expand(*size)
    label = torch.stack([(band + b) % classes for b in range(batch)])
    if classes > size[0]:  # too many for bands
        label = torch.randint(0, classes, label.shape, generator=g)
    return Batch(
        image=image,
        label=label,
        case=tuple(f"toy{b}" for b in range(batch)),
        spacing_mm=(1.0, 1.5, 2.0)[: len(size)],
        trust=torch.ones(batch, 1, *size),
    )


def blocky(batch: Batch) -> Batch:
    """Return the batch with labels that are constant in each cell of the bottleneck: nearest neighbours see no side."""
    label = batch.label
    for axis in range(1, label.ndim):
        at = torch.arange(label.shape[axis]) // STRIDE * STRIDE
        label = label.index_select(axis, at)
    return replace(batch, label=label)


def reshaped(batch: Batch, change: Callable[[Tensor], Tensor], **more: object) -> Batch:
    """Return the batch with ``change`` applied to image, label and trust alike; ``more`` replaces other fields."""
    assert batch.trust is not None
    parts = {"image": change(batch.image), "label": change(batch.label), "trust": change(batch.trust)}
    return replace(batch, **parts, **more)  # type: ignore[arg-type]


def mirrored(batch: Batch) -> Batch:
    """Return the batch with its patches continued by their mirror images along the first and the last axis.

    Four times the voxels in 3-D and 2-D alike; unlike a tiling it brings no new neighbours and no new boundary.
    """
    axes = {batch.label.ndim - 1, 1}

    def grow(x: Tensor) -> Tensor:
        for axis in axes:
            at = x.ndim - batch.label.ndim + axis
            x = torch.cat([x, x.flip(at)], at)
        return x

    return reshaped(batch, grow)


def doubled(batch: Batch) -> Batch:
    """Return the batch with every sample twice."""
    return reshaped(batch, lambda x: torch.cat([x, x]), case=(*batch.case, *batch.case))


def transposed(batch: Batch) -> Batch:
    """Return the batch with first and last spatial axis exchanged, spacing too."""
    dims = batch.label.ndim - 1
    spacing = batch.spacing_mm[::-1]
    return reshaped(batch, lambda x: x.transpose(x.ndim - dims, -1).contiguous(), spacing_mm=spacing)
