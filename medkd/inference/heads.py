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
def defer_head(network: Network, sample: Tensor) -> Deferred | None:
    """Take the pointwise convolution off the end of ``network``, where it has one with fewer inputs than outputs.

    What is found is tried: the parts must answer like the whole to ``sample``. Weights are shared, not copied, and
    ``network`` stays as it is.

    Args:
        network: in eval mode.
        sample: ``(1, C, *S)`` on the network's device, of a size that it takes.

    Returns:
        The parts, or None where blending features would be wrong or would gain nothing.
    """
    if not isinstance(network, nn.Module):
        return None
    seen: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: seen.append((name, module, inputs[0], output))

    hooks = [module.register_forward_hook(note(name)) for name, module in network.named_modules() if _pointwise(module)]
    try:
        answer = network(sample) if hooks else None
    finally:
        for hook in hooks:
            hook.remove()
    for name, module, features, output in seen:
        if output is not answer or not name:
            continue
        assert isinstance(module, _POINTWISE)
        weight = module.weight.detach().flatten(1)
        bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
        parts = Deferred(_without(network, name.split(".")), weight, bias)
        again = parts.body(sample)
        if again.shape == features.shape and torch.allclose(parts(sample), output.float(), rtol=1e-3, atol=1e-3):
            return parts
    return None


def _pointwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _POINTWISE)
        and module.in_channels < module.out_channels
        and module.groups == 1
        and set(module.kernel_size) == set(module.stride) == {1}
        and set(module.padding) == {0}
    )


def _without(module: nn.Module, path: list[str]) -> nn.Module:
    """Return ``module`` with an identity at ``path``; modules along the path are new, all others are shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    child = module._modules[path[0]]
    assert child is not None
    twin._modules[path[0]] = nn.Identity() if len(path) == 1 else _without(child, path[1:])
    return twin
