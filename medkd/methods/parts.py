"""The modules that methods share: adapter, memory bank, critic, generator, and region embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.ops import full, resize_to
from medkd.types import Tap

NODES = 4096
"""Largest number of nodes of a pairwise map: 16^3 nodes make a map of 67 MB, 96^3 at stride 1 one of 3.1 TB."""
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def conv(
    dims: int,
    inside: int,
    outside: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
) -> nn.Module:
    """Return a convolution over ``dims`` spatial axes; padded to keep the size at stride 1 unless told otherwise."""
    pad = kernel // 2 if padding is None else padding
    return _CONV[dims - 1](inside, outside, kernel, stride=stride, padding=pad, bias=bias)


def norm(dims: int, channels: int) -> nn.Module:
    """Return an instance normalisation with learned scale: it means the same at batch 1."""
    return _NORM[dims - 1](channels, affine=True)


class Norm(nn.Module):
    """Normalisation that only scales and shifts where there is one number a channel to normalise over.

    Args:
        dims: spatial axes.
        channels: of the input.
        kind: ``instance``, which means the same at every batch size, or ``batch``.

    Shapes: ``(B, C, *S)`` -> the same.
    """

    def __init__(self, dims: int, channels: int, kind: str = "instance") -> None:
        super().__init__()
        self.one_sample = kind == "instance"
        self.norm = norm(dims, channels) if self.one_sample else _BATCH_NORM[dims - 1](channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised features."""
        y: Tensor
        if x.shape[2:].numel() * (1 if self.one_sample else len(x)) > 1:
            y = self.norm(x)
            return y
        scale, shift = (p.view(1, -1, *[1] * (x.ndim - 2)) for p in self.norm.parameters())
        y = x * scale + shift
        return y


class Adapter(nn.Module):
    """Learned map from a student's tap to the shape of a teacher's: 1x1x1 convolution, then resized to its grid.

    Args:
        student: channels and stride of the student's tap.
        teacher: channels and stride of the teacher's.
        dims: spatial axes.
        bias: of the convolution.

    Shapes: ``(B, C_s, *s)`` -> ``(B, C_t, *size)``.
    """

    def __init__(self, student: Tap, teacher: Tap, dims: int, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = conv(dims, student.channels, teacher.channels, bias=bias)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Return the adapted features on ``size``, or on their own grid when None."""
        y: Tensor = self.conv(x)
        return y if size is None else resize_to(y, size)


class Bank(nn.Module):
    """Memory of the last ``size`` rows, first in first out, as buffers, so that it is saved and resumed.

    Args:
        size: rows kept.
        channels: numbers a row.

    Shapes: :meth:`read` ``(n, C)`` float32 with ``n <= size``; :meth:`write` takes ``(m, C)``.
    """

    rows: Tensor
    at: Tensor
    filled: Tensor

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"a memory bank of {size} rows cannot remember anything; give a size above 0")
        self.register_buffer("rows", torch.zeros(size, channels))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def read(self) -> Tensor:
        """Return a copy of what is remembered: the graph of a loss keeps it while the bank moves on."""
        return self.rows[: int(self.filled)].clone().float()

    @torch.no_grad()
    def write(self, rows: Tensor) -> None:
        """Remember ``rows``; of more than fit, the last."""
        size = self.rows.shape[0]
        rows = rows.detach()[-size:].to(self.rows.dtype)
        where = (self.at + torch.arange(len(rows), device=self.rows.device)) % size
        self.rows[where] = rows
        self.at.copy_((self.at + len(rows)) % size)
        self.filled.copy_((self.filled + len(rows)).clamp_max(size))


class Critic(nn.Module):
    """Tells a teacher's maps from a student's: strided convolutions to one score map.

    Args:
        channels: of the input; the image's may be concatenated by the caller.
        dims: spatial axes.
        width: channels of the first layer, doubled at each of the next.
        depth: strided layers; fewer where the input is too small.

    Shapes: ``(B, C, *S)`` -> ``(B, 1)``, the mean over the score map.
    """

    def __init__(self, channels: int, dims: int, *, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = channels
        for i in range(depth):
            outside = width * 2**i
            layers += [conv(dims, inside, outside, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            inside = outside
        self.layers = nn.ModuleList(layers)
        self.head = conv(dims, inside, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return one score a sample; no normalisation, so that a gradient penalty means what it says."""
        for layer in self.layers:
            if min(x.shape[2:]) >= 2 or isinstance(layer, nn.LeakyReLU):
                x = layer(x)
            else:
                raise UserError(f"the critic is too deep for an input of {tuple(x.shape[2:])} voxels; lower its depth")
        scores: Tensor = self.head(x)
        return scores.flatten(1).mean(1, keepdim=True)


class Generator(nn.Module):
    """Invents volumes from noise: a linear seed on a coarse grid, doubled until the size is reached.

    Args:
        latent: length of the noise.
        channels: of the invented image.
        size: spatial size of the result.
        width: channels of the finest layer.
        doublings: how often the grid doubles.

    Shapes: ``(B, latent)`` -> ``(B, channels, *size)``, about zero mean and unit deviation.
    """

    def __init__(self, latent: int, channels: int, size: Sequence[int], *, width: int = 16, doublings: int = 3) -> None:
        super().__init__()
        dims = len(size)
        self.size = tuple(size)
        self.seed_size = tuple(max(1, -(-s // 2**doublings)) for s in size)
        first = width * 2**doublings
        self.seed = nn.Linear(latent, first * int(torch.tensor(self.seed_size).prod()))
        self.first = first
        blocks: list[nn.Module] = []
        inside = first
        for _ in range(doublings):
            inside //= 2
            blocks += [nn.Upsample(scale_factor=2), conv(dims, 2 * inside, inside, 3), norm(dims, inside)]
            blocks += [nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*blocks, conv(dims, inside, channels, 3))
        self.out = _NORM[dims - 1](channels)

    def forward(self, noise: Tensor) -> Tensor:
        """Return invented images."""
        x = self.seed(noise).view(len(noise), self.first, *self.seed_size)
        x = self.blocks(x)
        x = x[(slice(None), slice(None), *(slice(0, s) for s in self.size))]
        y: Tensor = self.out(x)
        return y


def pool_nodes(x: Tensor, most: int = NODES) -> Tensor:
    """Return ``(B, C, *S)`` average-pooled until at most ``most`` positions are left; the same where they are few.

    Every axis is divided by the same smallest whole number, and sizes are rounded up.
    """
    size, factor = x.shape[2:], 1
    while int(torch.tensor([-(-s // factor) for s in size]).prod()) > most:
        factor += 1
    return x if factor == 1 else resize_to(x, [-(-s // factor) for s in size])


def grid_embeddings(x: Tensor, cells: int) -> Tensor:
    """Return the means of ``(B, C, *S)`` over a grid of ``cells`` along each axis: ``(B, cells^d, C)``."""
    size = [min(cells, s) for s in x.shape[2:]]
    return resize_to(full(x), size).flatten(2).transpose(1, 2)


def class_embeddings(x: Tensor, masks: Tensor, least: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the mean feature of every class in every sample, and whether the class is large enough to have one.

    Args:
        x: features ``(B, C, *s)``.
        masks: ``(B, K, *S)`` class masks or probabilities; brought to the grid of ``x`` by area.
        least: voxels of the feature grid below which a class is dropped.

    Shapes: ``(B, K, C)`` float32, and ``(B, K)`` bool.
    """
    m = resize_to(full(masks), x.shape[2:]).flatten(2).to(full(x).dtype)
    mass = m.sum(-1)
    means = torch.einsum("bcn,bkn->bkc", full(x).flatten(2), m) / mass.clamp_min(1e-6).unsqueeze(-1)
    return means, mass >= least


def balanced_sample(label: Tensor, count: int, classes: int) -> Tensor:
    """Return the flat positions of up to ``count`` voxels of ``(B, *S)`` labels, as many of each class as it has.

    The same positions serve student and teacher. Voxels of label ``IGNORE`` are never drawn.

    Shapes: ``(n,)`` int64 positions into ``label.flatten()``.
    """
    flat = label.flatten()
    here = [k for k in range(classes) if bool((flat == k).any())]
    if not here:
        return torch.zeros(0, dtype=torch.long, device=label.device)
    share = max(1, count // len(here))
    drawn = []
    for k in here:
        where = torch.nonzero(flat == k).squeeze(1)
        drawn.append(where[torch.randperm(len(where), device=label.device)[:share]])
    return torch.cat(drawn)


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Return ``x`` in float32 with length one along ``dim``; zero stays zero."""
    return F.normalize(full(x), dim=dim, eps=1e-6)


__all__ = [
    "NODES",
    "Adapter",
    "Bank",
    "Critic",
    "Generator",
    "Norm",
    "balanced_sample",
    "class_embeddings",
    "conv",
    "grid_embeddings",
    "norm",
    "pool_nodes",
    "unit",
]
