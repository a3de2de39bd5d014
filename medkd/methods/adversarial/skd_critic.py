"""The critic of structured distillation: spectrally normalised convolutions with self-attention between the last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.methods.ops import resize_to
from medkd.methods.parts import NODES, conv, pool_nodes

_CONV = (F.conv1d, F.conv2d, F.conv3d)


class SpectralConv(nn.Module):
    """Convolution whose weight is divided by its largest singular value, followed by one power iteration a call.

    Args:
        dims: spatial axes.
        inside: channels in.
        outside: channels out.
        kernel: edge in voxels.
        stride: of the convolution.
        padding: of the convolution.

    Shapes: ``(B, inside, *S)`` -> ``(B, outside, *s)``.
    """

    weight: Tensor
    u: Tensor

    def __init__(
        self, dims: int, inside: int, outside: int, kernel: int = 3, *, stride: int = 2, padding: int = 1
    ) -> None:
        super().__init__()
        plain = conv(dims, inside, outside, kernel)
        self.weight = nn.Parameter(plain.get_parameter("weight").detach())
        self.bias = nn.Parameter(plain.get_parameter("bias").detach())
        self.register_buffer("u", F.normalize(torch.randn(outside), dim=0))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; while training, ``u`` moves on."""
        weight, u = spectral_weight(self.weight, self.u)
        if self.training:
            self.u = u
        y: Tensor = _CONV[x.ndim - 3](x, weight, self.bias, stride=self.stride, padding=self.padding)
        return y


class SelfAttention(nn.Module):
    """Every position looks at every other: ``x + gamma * softmax(Q^T K) V``; at first the identity.

    Args:
        dims: spatial axes.
        channels: in and out.
        squeeze: queries and keys have so many times fewer channels.
        most: positions; larger maps attend on a pooled grid, and the answer is brought back.

    Shapes: ``(B, C, *S)`` -> the same.
    """

    def __init__(self, dims: int, channels: int, *, squeeze: int = 8, most: int = NODES // 4) -> None:
        super().__init__()
        narrow = max(1, channels // squeeze)
        self.query, self.key = conv(dims, channels, narrow), conv(dims, channels, narrow)
        self.value = conv(dims, channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        few = pool_nodes(x, self.most)
        answer, _ = attend(self.query(few), self.key(few), self.value(few))
        return self.gamma * resize_to(answer, x.shape[2:]) + x


class StructureCritic(nn.Module):
    """Tells a teacher's maps from a student's: strided convolutions, self-attention before and after the last.

    Args:
        channels: of the input, the image's included.
        dims: spatial axes.
        width: channels of the first layer, doubled at each of the next.
        depth: strided layers.

    Shapes: ``(B, C, *S)`` of any size -> ``(B, 1, *s)`` scores.
    """

    def __init__(self, channels: int, dims: int, *, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = channels
        for i in range(depth):
            if i == depth - 1:
                layers.append(SelfAttention(dims, inside))
            outside = width * 2**i
            layers += [SpectralConv(dims, inside, outside), nn.LeakyReLU(0.1)]
            inside = outside
        self.layers = nn.Sequential(*layers, SelfAttention(dims, inside))
        self.head = conv(dims, inside, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the score map."""
        scores: Tensor = self.head(self.layers(x))
        return scores


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each position gathers, and the attention ``(B, N, N)``, rows of one over the positions looked at.

    Shapes: ``(B, c, *S)``, ``(B, c, *S)`` and ``(B, C, *S)``, N positions -> ``(B, C, *S)``. Not scaled by the width.
    """
    q, k, v = (x.flatten(2) for x in (query, key, value))
    attention = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
    return (v @ attention.transpose(1, 2)).view_as(value), attention


def spectral_weight(weight: Tensor, u: Tensor, iterations: int = 1) -> tuple[Tensor, Tensor]:
    """Return ``weight`` over its largest singular value, and the new ``u``, after power iterations from ``u``.

    Shapes: weight ``(out, in, *k)``, u ``(out,)``. The singular vectors are constants for the gradient.
    """
    rows = weight.flatten(1)
    with torch.no_grad():
        v = F.normalize(rows.T @ u, dim=0, eps=1e-12)
        for i in range(iterations):
            v = v if i == 0 else F.normalize(rows.T @ u, dim=0, eps=1e-12)
            u = F.normalize(rows @ v, dim=0, eps=1e-12)
    return weight / torch.dot(u, rows @ v), u
