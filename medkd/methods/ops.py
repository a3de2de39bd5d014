"""Pure tensor functions that methods share; any number of spatial axes, float32 inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.types import IGNORE


def full(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or as it is in float64: no loss is computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean of ``values`` under non-negative ``weight`` of the same shape; zero where nothing weighs."""
    values = full(values)
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    total = weight.sum()
    # where(weight, values, 0): a voxel without weight must not matter even when its value is not finite
    kept = torch.where(weight > 0, values, torch.zeros_like(values))
    return (kept * weight).sum() / total.clamp_min(torch.finfo(torch.float32).tiny)


def trusted_mean(values: Tensor, trust: Tensor | None = None) -> Tensor:
    """Return the mean of a feature map ``(B, C, *s)`` over channels and trusted positions.

    ``trust`` is ``(B, 1, *S)`` on any grid, brought to that of ``values`` by area, or None for one everywhere.
    """
    if trust is None:
        return full(values).mean()
    return weighted_mean(values, resize_to(full(trust), values.shape[2:]).expand_as(values))


def kl_map(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return :math:`\tau^2\,\mathrm{KL}(\sigma(t/\tau)\,\|\,\sigma(s/\tau))` of every voxel.

    Shapes: logits ``(B, K, *S)`` -> ``(B, *S)`` float32. The teacher gets no gradient.
    """
    log_s = F.log_softmax(full(student) / temperature, dim=1)
    log_t = F.log_softmax(full(teacher.detach()) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)


def binary_kl_map(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the tempered KL of the two-way distribution of each overlapping region, mean over regions.

    Shapes: logits ``(B, K, *S)`` -> ``(B, *S)`` float32. The teacher gets no gradient.
    """
    s, t = full(student) / temperature, full(teacher.detach()) / temperature
    p = torch.sigmoid(t)
    kl = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * kl.mean(1)


OFF = -1e4
"""Logit of a class that is switched off: finite in half precision, and without weight at every temperature in use."""


def marginal(logits: Tensor, known: Tensor | None, *, regions: bool = False) -> Tensor:
    r"""Return the logits of those who cannot tell some classes from background.

    .. math:: z'_0 = \log \sum_{k \in \{0\} \cup U} e^{z_k}, \qquad z'_k = z_k \text{ for known } k, \qquad
        z'_k = -10^4 \text{ for } k \in U

    with :math:`U` the unknown classes: their probability is the background's, so nothing is asked of them but that they
    and the background together are right. A sample that knows all classes stays as it is, bit by bit.

    Args:
        logits: ``(B, K, *S)``.
        known: ``(B, K)`` bool, or None for all; the background is known to everybody.
        regions: classes overlap; an unknown region is switched off and nothing is merged.

    Shapes: returns ``(B, K, *S)``, as it is or in float32.
    """
    if known is None or bool(known.all()):
        return logits
    x = full(logits)
    keep = known.to(x.device).view(*known.shape, *[1] * (x.ndim - 2))
    out = torch.where(keep, x, torch.full_like(x, OFF))
    if regions:
        return out
    merged = torch.logsumexp(torch.where(keep, torch.full_like(x, OFF), x)[:, 1:], dim=1)
    some = ~keep[:, 1:].all(1)
    background = torch.where(some, torch.logaddexp(x[:, 0], merged), x[:, 0])
    return torch.cat([background.unsqueeze(1), out[:, 1:]], dim=1)


def merge_label(label: Tensor, known: Tensor) -> Tensor:
    """Return ``(B, *S)`` labels as those see them who know only ``(B, K)`` classes: the others are background."""
    table = torch.where(known, torch.arange(known.shape[1], device=known.device), 0).to(label)
    seen = table.gather(1, label.clamp_min(0).flatten(1)).view_as(label)
    return torch.where(label == IGNORE, label, seen)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Return ``(B, *S)`` labels as ``(B, K, *S)`` float32; a voxel of label ``IGNORE`` has no class."""
    known = (label != IGNORE).unsqueeze(1).float()
    hot = torch.zeros(label.shape[0], classes, *label.shape[1:], device=label.device)
    return hot.scatter_(1, label.clamp_min(0).unsqueeze(1), known)


def present(masks: Tensor) -> Tensor:
    """Return which classes of ``(B, K, *S)`` masks own at least half a voxel: ``(B, K)`` bool."""
    return masks.flatten(2).sum(-1) >= 0.5


def balance(owner: Tensor, classes: int, trust: Tensor | None = None) -> Tensor:
    r"""Return voxel weights under which every class that occurs in the batch counts the same.

    A voxel of class :math:`k` weighs :math:`1 / n_k`, with :math:`n_k` the trusted voxels of the class
    in the whole batch. Background rules a plain mean over a volume; here it is one class among K.

    Args:
        owner: ``(B, *S)`` class of each voxel, ``IGNORE`` for none.
        classes: K.
        trust: ``(B, *S)`` in [0, 1], or None for one.

    Shapes: returns ``(B, *S)`` float32; sums to the number of classes that occur.
    """
    known = (owner != IGNORE).float() if trust is None else (owner != IGNORE) * trust.float()
    index = owner.clamp_min(0)
    # counted row by row: float32 cannot add one voxel to a sum of millions
    rows = torch.arange(index.shape[:2].numel(), device=owner.device).view(*index.shape[:2], *[1] * (index.ndim - 2))
    count = torch.zeros(rows.numel() * classes, device=owner.device)
    count.index_add_(0, (rows * classes + index).flatten(), known.flatten())
    return known / count.view(-1, classes).sum(0).clamp_min(1e-6)[index]


def dilate(mask: Tensor, radius_mm: float, spacing_mm: Sequence[float]) -> Tensor:
    """Return the voxels within ``radius_mm`` of a true voxel of ``(B, *S)`` bool ``mask``."""
    return _squared_mm(mask, spacing_mm, radius_mm) <= _within(radius_mm) ** 2


def distance_mm(mask: Tensor, spacing_mm: Sequence[float], limit_mm: float) -> Tensor:
    """Return the exact Euclidean distance to the nearest true voxel, infinite beyond a limit.

    Args:
        mask: ``(B, *S)`` bool.
        spacing_mm: voxel size along ``*S``; what follows the last axis is not read.
        limit_mm: largest distance of interest.

    Shapes: returns ``(B, *S)`` float32 in mm.
    """
    distance = _squared_mm(mask, spacing_mm, limit_mm).sqrt()
    return torch.where(distance <= _within(limit_mm), distance, math.inf)


def _within(limit_mm: float) -> float:
    return limit_mm * (1 + 1e-6)  # a whole number of voxels away is still within


def _squared_mm(mask: Tensor, spacing_mm: Sequence[float], limit_mm: float) -> Tensor:
    r"""Return the square of the distance to the nearest true voxel, right wherever that is at most ``limit_mm``.

    Separable lower envelope, :math:`d^2(x) = \min_k d^2(x + k e_a) + (k\,s_a)^2` along each axis.
    """
    squared = torch.where(mask, 0.0, math.inf)
    for axis in range(1, mask.ndim):
        spacing = spacing_mm[axis - 1]
        reach = min(int(limit_mm / spacing + 1e-6), mask.shape[axis] - 1)
        best, size = squared.clone(), squared.shape[axis]
        for k in range(1, reach + 1):
            for here, there in ((0, k), (k, 0)):
                near = best.narrow(axis, here, size - k)
                torch.minimum(near, squared.narrow(axis, there, size - k) + (k * spacing) ** 2, out=near)
        squared = best
    return squared


def boundary(owner: Tensor) -> Tensor:
    """Return the voxels of ``(B, *S)`` that touch a voxel of another known class along an axis, every class at once."""
    edge = torch.zeros_like(owner, dtype=torch.bool)
    for axis in range(1, owner.ndim):
        size = owner.shape[axis]
        a, b = owner.narrow(axis, 0, size - 1), owner.narrow(axis, 1, size - 1)
        differ = (a != b) & (a != IGNORE) & (b != IGNORE)
        edge.narrow(axis, 0, size - 1).logical_or_(differ)
        edge.narrow(axis, 1, size - 1).logical_or_(differ)
    return edge


def resize_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``(B, C, *S)`` on the grid ``size``, linear; by area when every axis shrinks."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if all(new <= old for new, old in zip(size, x.shape[2:], strict=True)):
        pool: Callable[..., Tensor] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[
            len(size) - 1
        ]
        return pool(x, tuple(size))
    return F.interpolate(x, tuple(size), mode=("linear", "bilinear", "trilinear")[len(size) - 1], align_corners=False)


def label_to(label: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``(B, *S)`` labels on the grid ``size`` by nearest neighbour."""
    if tuple(label.shape[1:]) == tuple(size):
        return label
    return F.interpolate(label.unsqueeze(1).float(), tuple(size), mode="nearest-exact").squeeze(1).to(label.dtype)


def first_head(output: Tensor | Sequence[Tensor], dims: int) -> Tensor:
    """Return the logits ``(B, K, *S)`` of whatever a segmentation network returned, without deep-supervision heads.

    ``output`` is a tensor, a stack ``(B, heads, K, *S)`` over ``dims`` axes, or a sequence, full resolution first.
    """
    first = output if isinstance(output, Tensor) else output[0]
    return first[:, 0] if first.ndim == dims + 3 else first
