"""Intra-class feature variation distillation (IFVD)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import coarser
from medkd.methods.ops import balance, full, label_to, resize_to, weighted_mean
from medkd.methods.parts import unit
from medkd.types import IGNORE, Batch, Terms, View


@final
class IFVD(Method):
    r"""Match how much each voxel's features deviate from the mean of its class.

    .. math:: L = \frac{\sum_n w_n (v^s_n - v^t_n)^2}{\sum_n w_n}, \quad v_n = \cos\big(F_n, \bar F_{y_n}\big)

    with :math:`\bar F_k` the mean feature of class k in the sample; gradients flow through both arguments.

    Args:
        tap: the student's feature point; the paper reads what the classifier reads.
        teacher_tap: the teacher's, where its name differs.
        reduction: what :math:`w_n` is. ``balanced``: every class in the batch counts the same; ``uniform``: the
            paper's plain mean, which the background of a volume rules.
        least: classes with fewer voxels on the feature grid, in a sample, do not count: one voxel is its own mean.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, any channels; compared on the coarser of the two grids, with
        labels brought there by nearest; returns one scalar, ``ifvd``, in [0, 4].
    Reads: taps, labels; voxels without label are skipped. Learns: nothing. Teacher: one, frozen, live. Regions: no.
    Departs from the paper: class-balanced mean by default; unknown voxels do not count, where the released code counts
        them as zero. The adversarial and pixel terms of the paper's sum are methods of their own (skd, kd).

    Reference: Wang et al., *Intra-class Feature Variation Distillation for Semantic Segmentation*, ECCV 2020, eqs. 1
        to 3.
    Code read: YukangWang/IFVD (weight 200); winycg/CIRKD (weight 20).
    """

    reads_labels: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str = "dec0",
        teacher_tap: str | None = None,
        reduction: str = "balanced",
        least: int = 2,
    ) -> None:
        super().__init__()
        if reduction not in ("balanced", "uniform"):
            raise UserError(f"ifvd: reduction {reduction!r} is not one of balanced, uniform")
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.reduction, self.least = reduction, least

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        if batch.regions:
            raise UserError("ifvd needs one class a voxel; for overlapping regions use emkd or sp")
        s, t = student.taps[self.tap], teacher.taps[self.teacher_tap]
        size = coarser(s, t)
        s, t = resize_to(full(s), size), resize_to(full(t), size)
        classes, label = student.logits.shape[1], label_to(batch.label, size)
        trust = None if teacher.trust is None else resize_to(full(teacher.trust), size).squeeze(1)
        if trust is not None:
            label = torch.where(trust > 0, label, IGNORE)
        label = drop_small(label, classes, self.least)
        weight = (label != IGNORE).float() if trust is None else (label != IGNORE) * trust
        if self.reduction == "balanced":
            weight = balance(label, classes, trust)
        return {"ifvd": ifvd(s, t, label, classes, weight)}


def ifvd(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    classes: int,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Return the squared difference of both variation maps, mean over the voxels that have a label.

    Args:
        student: ``(B, C_s, *s)``.
        teacher: ``(B, C_t, *s)``; gets no gradient.
        label: ``(B, *s)`` on the same grid, ``IGNORE`` where unknown.
        classes: K.
        weight: ``(B, *s)``, or None for one at every labelled voxel, the paper's mean. The released code divides by
            all voxels: times the labelled share.
        eps: added to the voxels of a class before they divide.

    Shapes: a scalar.
    """
    difference = variation(student, label, classes, eps) - variation(teacher.detach(), label, classes, eps)
    return weighted_mean(difference.square(), (label != IGNORE).float() if weight is None else weight)


def variation(features: Tensor, label: Tensor, classes: int, eps: float = 1e-6) -> Tensor:
    """Return the cosine of each voxel's features and the mean of its class in its sample.

    Shapes: ``(B, C, *s)`` and labels ``(B, *s)`` -> ``(B, *s)`` in [-1, 1]; zero without a label.
    """
    x = full(features).flatten(2)
    owner = _slots(label, classes)
    wide = owner.unsqueeze(1).expand_as(x)
    # one slot more than classes takes in what has no label
    sums = x.new_zeros(*x.shape[:2], classes + 1).scatter_add(2, wide, x)
    count = _count(owner, classes).to(x.dtype).unsqueeze(1)
    mean = (sums / (count + eps)).gather(2, wide)
    cosine = (unit(x) * unit(mean)).sum(1)
    return torch.where(owner < classes, cosine, torch.zeros_like(cosine)).view(label.shape)


def drop_small(label: Tensor, classes: int, least: int) -> Tensor:
    """Return ``(B, *s)`` labels with ``IGNORE`` in place of classes of fewer than ``least`` voxels in a sample."""
    owner = _slots(label, classes)
    few = (_count(owner, classes) < least).gather(1, owner).view(label.shape)
    return torch.where(few, IGNORE, label)


def _slots(label: Tensor, classes: int) -> Tensor:
    return torch.where(label == IGNORE, classes, label).flatten(1)


def _count(owner: Tensor, classes: int) -> Tensor:
    return owner.new_zeros(len(owner), classes + 1).scatter_add(1, owner, torch.ones_like(owner))
