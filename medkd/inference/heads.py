"""Networks that end in a pointwise convolution: their features can be blended instead of their logits.

Blending is a weighted mean over windows, and a pointwise convolution acts on each voxel alone, so that the two can
change places: ``W (sum w f / sum w) + b = sum w (W f + b) / sum w``. The head is then applied once a voxel instead of
once a window, and what is held between windows has as many channels as the features, whatever the number of classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]
"""Anything that maps ``(B, C, *S)`` to logits ``(B, K, *S)``."""
_POINTWISE = (nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Deferred:
    """A network in two parts; called, it answers like the whole.

    Args:
        body: ``(B, C, *S)`` to features ``(B, F, *S)``.
        weight: ``(K, F)`` of the head.
        bias: ``(K,)``.
    """

    body: Network
    weight: Tensor
    bias: Tensor

    @property
    def features(self) -> int:
        """``F``."""
        return self.weight.shape[1]

    def logits(self, features: Tensor) -> Tensor:
        """Return logits ``(K, *s)`` float32 of features ``(F, *s)``, on the features' device."""
        weight, bias = (part.to(features.device, torch.float32) for part in (self.weight, self.bias))
        flat = torch.addmm(bias[:, None], weight, features.float().flatten(1))
        return flat.reshape(len(weight), *features.shape[1:])

    def __call__(self, image: Tensor) -> Tensor:
        return torch.stack([self.logits(features) for features in self.body(image)])


@torch.inference_mode()
def defer_head(network: Network, sample: Tensor, classes: int) -> Deferred | None:
    """Take the pointwise convolution off the end of ``network``, where it has one with fewer inputs than outputs.

    What is found is tried, with a head of two classes in its place, so that not even one window of all classes is held:
    the head of the body must be the whole. Weights are shared, not copied, and ``network`` stays as it is.

    Args:
        network: in eval mode.
        sample: ``(1, C, *S)`` on the network's device, of a size that it takes.
        classes: ``K``.

    Returns:
        The parts, or None where blending features would be wrong or would gain nothing.
    """
    if not isinstance(network, nn.Module):
        return None
    for name, head in reversed(list(network.named_modules())):
        if not name or not _pointwise(head, classes):
            continue
        assert isinstance(head, _POINTWISE)
        weight = head.weight.detach().flatten(1)
        bias = weight.new_zeros(classes) if head.bias is None else head.bias.detach()
        body = _exchanged(network, name.split("."), nn.Identity())
        two = Deferred(body, weight[[0, -1]], bias[[0, -1]])
        try:
            whole = _exchanged(network, name.split("."), _Head(two))(sample)
            parts = two(sample)
        except (RuntimeError, ValueError, IndexError):  # what follows counts on the number of channels
            continue
        if whole.shape == parts.shape and torch.allclose(whole.float(), parts, rtol=1e-3, atol=1e-3):
            return Deferred(body, weight, bias)
    return None


class _Head(nn.Module):
    """The head of some parts, as a module."""

    def __init__(self, parts: Deferred) -> None:
        super().__init__()
        self.parts = (parts,)

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([self.parts[0].logits(one) for one in features])


def _pointwise(module: nn.Module, classes: int) -> bool:
    return (
        isinstance(module, _POINTWISE)
        and module.in_channels < module.out_channels == classes
        and module.groups == 1
        and set(module.kernel_size) == set(module.stride) == {1}
        and set(module.padding) == {0}
    )


def _exchanged(module: nn.Module, path: list[str], other: nn.Module) -> nn.Module:
    """Return ``module`` with ``other`` at ``path``; modules along the path are new, all others are shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    child = module._modules[path[0]]
    assert child is not None
    twin._modules[path[0]] = other if len(path) == 1 else _exchanged(child, path[1:], other)
    return twin
