"""Decoupled knowledge distillation (DKD)."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, foreground
from medkd.methods.ops import balance, dilate, full, weighted_mean
from medkd.types import IGNORE, Batch, Terms, View


@final
class DKD(Method):
    r"""Match apart how sure the teacher is of the true class, and how it ranks all the others.

    .. math:: L = \tau^2 \frac{\sum_n w_n (\alpha\,\mathrm{KL}(b^t_n \| b^s_n)
        + \beta\,\mathrm{KL}(\hat p^t_n \| \hat p^s_n))}{\sum_n w_n}, \quad b = (p_y, 1 - p_y),
        \quad \hat p = \text{softmax over } k \ne y

    Args:
        temperature: :math:`\tau` (no unit). 2 by default; the paper has 4 for CIFAR, 1 for ImageNet.
        alpha: :math:`\alpha`, weight of the target class term; 1 in the paper.
        beta: :math:`\beta`, weight of the term of the other classes; 8 in the paper for CIFAR, 0.5 and 2 for ImageNet.
        reduction: what :math:`w_n` is. ``balanced``: every labelled class in the batch counts the same;
            ``foreground``: voxels within ``margin_mm`` of labelled foreground; ``uniform``: the paper's plain mean.
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)``, labels ``(B, *S)``; returns ``tckd`` and ``nckd``, weighted by alpha and beta.
    Reads: logits, labels; voxels without label are skipped. Learns: nothing. Teacher: one or an ensemble, frozen,
        cacheable. Regions: no, there is no single target class.
    Departs from the paper: class-balanced mean by default; the warm-up is a ramp of the weight. With two classes
        there is one other class, so that ``nckd`` is exactly zero.

    Reference: Zhao et al., *Decoupled Knowledge Distillation*, CVPR 2022, arXiv:2203.08679, eq. 7.
    Code read: megvii-research/mdistiller (mean over samples; warm-up of 20 epochs; weight 1).
    """

    reads_labels: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"dkd: temperature {temperature} must be above 0")
        if alpha < 0 or beta < 0:
            raise UserError(f"dkd: alpha {alpha} and beta {beta} must not be negative")
        check_reduction("dkd", reduction)
        self.temperature, self.alpha, self.beta = temperature, alpha, beta
        self.reduction, self.margin_mm = reduction, margin_mm

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        if batch.regions:
            raise UserError("dkd needs one true class a voxel; for overlapping regions use kd")
        target, other = dkd_maps(student.logits, teacher.logits, batch.label, self.temperature)
        trust = None if teacher.trust is None else teacher.trust.squeeze(1)
        weight = self._weight(batch, student.logits.shape[1], trust)
        return {
            "tckd": self.alpha * weighted_mean(target, weight),
            "nckd": self.beta * weighted_mean(other, weight),
        }

    def _weight(self, batch: Batch, classes: int, trust: Tensor | None) -> Tensor:
        if self.reduction == "balanced":
            return balance(batch.label, classes, trust)
        weight = (batch.label != IGNORE).float()
        if self.reduction == "foreground":
            weight = weight * dilate(foreground(batch), self.margin_mm, batch.spacing_mm)
        return weight if trust is None else weight * trust


def dkd(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return ``alpha`` TCKD + ``beta`` NCKD, each times the squared temperature, mean over labelled voxels.

    Shapes: logits ``(B, K, *S)``, label ``(B, *S)`` with ``IGNORE`` skipped, weight ``(B, *S)`` or None for the
    paper's plain mean; a scalar. ``*S`` may be empty: samples of a classification.
    """
    target, other = dkd_maps(student, teacher, label, temperature)
    known = (label != IGNORE).to(target.dtype)
    return weighted_mean(alpha * target + beta * other, known if weight is None else known * weight)


def dkd_maps(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the target class term and the other classes' term of each voxel, times the squared temperature.

    Shapes: logits ``(B, K, *S)``, label ``(B, *S)`` -> two maps ``(B, *S)``. What stands where the label is
    ``IGNORE`` means nothing. The teacher gets no gradient.
    """
    is_target = torch.zeros_like(student, dtype=torch.bool).scatter_(1, label.clamp_min(0).unsqueeze(1), True)
    s_yes, s_no, s_rest = _parts(full(student) / temperature, is_target)
    t_yes, t_no, t_rest = _parts(full(teacher.detach()) / temperature, is_target)
    target = t_yes.exp() * (t_yes - s_yes) + t_no.exp() * (t_no - s_no)
    share = t_rest.exp().masked_fill(is_target, 0.0)
    other = (share * (t_rest - s_rest)).sum(1)
    return temperature**2 * target, temperature**2 * other


def _parts(z: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probability of the target, of all others together, and of each other among the others."""
    # in log space: summing probabilities would underflow where the network is sure
    others = z.masked_fill(is_target, -math.inf).logsumexp(1)
    every = z.logsumexp(1)
    own = z.masked_fill(~is_target, 0.0).sum(1)
    return own - every, others - every, z - others.unsqueeze(1)
