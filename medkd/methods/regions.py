"""Region embeddings: the rows that relations between organs are made of, and pooled nodes under trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.ops import full, one_hot, resize_to
from medkd.methods.parts import NODES, class_embeddings, pool_nodes
from medkd.types import IGNORE, Batch, View

SOURCES = ("label", "teacher")
"""Who says which voxel belongs to which region."""


class Regions(NamedTuple):
    """Embeddings of the same regions in both networks.

    ``student`` ``(B, R, C_s)``, ``teacher`` ``(B, R, C_t)`` without gradient, and ``present`` ``(B, R)`` bool. The
    first K regions are the classes, the others the cells of a grid.
    """

    student: Tensor
    teacher: Tensor
    present: Tensor

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the regions that are there, of all samples, as rows ``(N, C_s)`` and ``(N, C_t)``."""
        return self.student[self.present], self.teacher[self.present]


def check_source(method: str, source: str) -> None:
    """Refuse a source of regions that :func:`region_masks` does not know."""
    if source not in SOURCES:
        raise UserError(f"{method}: source {source!r} is not one of {', '.join(SOURCES)}")


def region_masks(teacher: View, batch: Batch, size: Sequence[int], source: str = "label") -> Tensor:
    """Return which share of each cell of a feature grid every class owns, under trust.

    Args:
        teacher: its trust is a factor; its likeliest class owns the voxel when it is the source.
        batch: its labels; IGNORE belongs to no class.
        size: of the feature grid.
        source: ``label`` or ``teacher``.

    Shapes: ``(B, K, *size)`` float32.
    """
    logits = teacher.logits.detach()
    if batch.regions:
        inside = (logits > 0 if source == "teacher" else batch.label == 1).float()
        return resize_to(inside if teacher.trust is None else inside * teacher.trust.float(), size)
    owner = logits.argmax(1) if source == "teacher" else batch.label
    return class_shares(owner, logits.shape[1], size, teacher.trust)


def class_shares(owner: Tensor, classes: int, size: Sequence[int], trust: Tensor | None = None) -> Tensor:
    """Return ``(B, *S)`` labels as one-hot masks pooled by area to the grid ``size``: ``(B, K, *size)`` float32.

    Where the grid divides the volume evenly, voxels are counted: K masks at full size would not fit for many classes.
    """
    space, size = owner.shape[1:], tuple(size)
    if tuple(space) == size or any(s % n for s, n in zip(space, size, strict=True)):
        hot = one_hot(owner, classes)
        return resize_to(hot if trust is None else hot * trust.float(), size)
    cell = torch.zeros(space, dtype=torch.long, device=owner.device)
    for axis, (s, n) in enumerate(zip(space, size, strict=True)):
        step = torch.arange(s, device=owner.device) // (s // n)
        cell = cell * n + step.view(-1, *[1] * (len(space) - 1 - axis))
    cells = int(torch.tensor(size).prod())
    sample = torch.arange(len(owner), device=owner.device).view(-1, *[1] * len(space))
    index = (sample * classes + owner.clamp_min(0)) * cells + cell
    known = (owner != IGNORE).float() if trust is None else (owner != IGNORE) * trust.squeeze(1).float()
    count = torch.zeros(len(owner) * classes * cells, device=owner.device)
    count.index_add_(0, index.flatten(), known.flatten())
    return count.view(len(owner), classes, *size) * (cells / space.numel())


def paired_regions(
    student: Tensor,
    teacher: Tensor,
    view: View,
    batch: Batch,
    *,
    source: str = "label",
    cells: int = 0,
    least: float = 8.0,
) -> Regions:
    """Return the mean features of the same regions in both networks.

    Args:
        student: a tap ``(B, C_s, *s)``.
        teacher: a tap ``(B, C_t, *t)``.
        view: the teacher's view, for its trust and its opinion.
        batch: labels and image size.
        source: of the class regions, ``label`` or ``teacher``.
        cells: also the cells of a grid of so many along each axis; 0 for none.
        least: voxels of the patch below which a region is dropped.
    """
    found: list[Tensor] = []
    there: list[Tensor] = []
    space = batch.image.shape[2:]
    grid = [min(cells, a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    for x in (student, teacher.detach()):
        per_cell = space.numel() / x.shape[2:].numel()
        if view.trust is not None:  # nothing that nobody trusts, not even when it is not finite
            x = torch.where(resize_to(full(view.trust), x.shape[2:]) > 0, x, torch.zeros_like(x))
        masks = region_masks(view, batch, x.shape[2:], source)
        # a thousandth of slack: shares are sums of floats, and a region of exactly `least` voxels counts
        rows, large = class_embeddings(x, masks, (least - 1e-3) / per_cell)
        if cells:
            more, trusted = cell_embeddings(x, grid, view.trust)
            rows, large = torch.cat([rows, more], 1), torch.cat([large, trusted], 1)
        found.append(rows)
        there.append(large)
    return Regions(found[0], found[1], there[0] & there[1])


def cell_embeddings(x: Tensor, grid: Sequence[int], trust: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the trusted mean of ``(B, C, *s)`` in each cell of a grid, ``(B, G, C)``, and which have any trust."""
    kept, weight = _trusted(x, trust)
    share = resize_to(weight, grid)
    means = resize_to(kept, grid) / share.clamp_min(1e-6)
    return means.flatten(2).transpose(1, 2), share.flatten(1) > 1e-3


def trusted_nodes(x: Tensor, trust: Tensor | None = None, most: int = NODES) -> tuple[Tensor, Tensor]:
    """Return ``(B, C, *s)`` pooled under trust to at most ``most`` nodes: ``(B, M, C)``, and trust ``(B, M)``."""
    kept, weight = _trusted(x, trust)
    share = pool_nodes(weight, most)
    nodes = pool_nodes(kept, most) / share.clamp_min(1e-6)
    return nodes.flatten(2).transpose(1, 2), share.flatten(1)


def _trusted(x: Tensor, trust: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return features times trust, and the trust on their grid ``(B, 1, *s)``."""
    x = full(x)
    if trust is None:
        return x, torch.ones_like(x[:, :1])
    weight = resize_to(full(trust), x.shape[2:]).to(x.dtype)
    # where, not only the product: what nobody trusts must not matter even when it is not finite
    return torch.where(weight > 0, x, torch.zeros_like(x)) * weight, weight
