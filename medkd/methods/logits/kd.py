"""Knowledge distillation of every voxel's class distribution (KD)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import balance, binary_kl_map, dilate, kl_map, weighted_mean
from medkd.types import IGNORE, Batch, Terms, View

REDUCTIONS = ("balanced", "foreground", "uniform")


@final
class KD(Method):
    r"""Match the teacher's softened class distribution in every voxel.

    .. math:: L = \tau^2 \frac{\sum_n w_n \mathrm{KL}\big(\sigma(t_n/\tau) \,\|\, \sigma(s_n/\tau)\big)}{\sum_n w_n},
        \quad \sigma = \text{softmax over classes}

    Args:
        temperature: :math:`\tau`, softens both distributions (no unit). 2 by default: the range 2.5 to 4
            of the paper is for hundreds of classes.
        reduction: what :math:`w_n` is. ``balanced``: every class that the teacher sees in the batch counts the
            same; ``foreground``: likewise, among the voxels within ``margin_mm`` of what the teacher, the label or
            the student takes for foreground, so that the background's share is what lies around the organs; ``uniform``: the paper's
            plain mean, which the background of a volume rules.
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` of student and teacher; returns one scalar, ``kd``.
    Reads: logits. Learns: nothing. Teacher: one or an ensemble, frozen, cacheable. Regions: yes (binary KL).
    Departs from the paper: a class-balanced mean around the foreground by default, chosen on validation cases
        (docs/choosing-a-method.md); in a volume the plain mean is a mean over background.

    Reference: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, NIPS Deep Learning Workshop 2014,
        arXiv:1503.02531, section 2.
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 2.0, reduction: str = "foreground", margin_mm: float = 5.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"kd: temperature {temperature} must be above 0")
        check_reduction("kd", reduction)
        self.temperature, self.reduction, self.margin_mm = temperature, reduction, margin_mm

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        if batch.regions:
            loss = binary_kl_map(student.logits, teacher.logits, self.temperature)
        else:
            loss = kl_map(student.logits, teacher.logits, self.temperature)
        return {"kd": weighted_mean(loss, voxel_weight(teacher, batch, self.reduction, self.margin_mm, student))}


def kd(student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Return the tempered KL from teacher to student, mean over voxels under ``weight``.

    Shapes: logits ``(B, K, *S)``, weight ``(B, *S)`` or None for the plain mean; a scalar.
    """
    return weighted_mean(kl_map(student, teacher, temperature), weight)


def check_reduction(method: str, reduction: str) -> None:
    """Refuse a reduction that :func:`voxel_weight` does not know."""
    if reduction not in REDUCTIONS:
        raise UserError(f"{method}: reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")


def voxel_weight(
    teacher: View, batch: Batch, reduction: str, margin_mm: float, student: View | None = None
) -> Tensor | None:
    """Return what each voxel counts, ``(B, *S)``, or None for one everywhere.

    Args:
        teacher: its trust is a factor of every weight, and its likeliest class owns the voxel.
        batch: its label shows foreground, and its spacing is that of the voxels.
        reduction: ``balanced``, ``foreground`` or ``uniform``, as in :class:`KD`.
        margin_mm: margin of ``foreground``, in mm.
        student: its foreground counts too where it is given: a false alarm far from every organ has a price then.
    """
    trust = None if teacher.trust is None else teacher.trust.squeeze(1)
    if reduction == "uniform":
        return trust
    owner = teacher_owner(teacher, batch.regions)
    if reduction == "foreground":
        seen = (owner > 0) | foreground(batch)
        if student is not None:
            logits = student.logits.detach()
            claimed = logits.amax(1) > 0 if batch.regions else logits[:, 1:].amax(1) > logits[:, 0]
            seen |= claimed if trust is None else claimed & (trust > 0)
        near = dilate(seen, margin_mm, batch.spacing_mm).float()
        trust = near if trust is None else near * trust
    return balance(owner, teacher.logits.shape[1] + 1, trust)


def teacher_owner(teacher: View, regions: bool) -> Tensor:
    """Return the class that the teacher gives each voxel, ``(B, *S)``; ``IGNORE`` where it is not trusted at all.

    For overlapping regions: 0 where no region speaks, else one more than the likeliest region.
    """
    best, owner = teacher.logits.detach().max(dim=1)
    if regions:
        owner = torch.where(best > 0, owner + 1, 0)
    return owner if teacher.trust is None else torch.where(teacher.trust.squeeze(1) > 0, owner, IGNORE)


def foreground(batch: Batch) -> Tensor:
    """Return the labelled foreground, ``(B, *S)`` bool; false where nothing is known."""
    return (batch.label == 1).any(1) if batch.regions else (batch.label > 0) & (batch.label != IGNORE)
