"""Adaptive distillation: several paths at once, each weighted by a learned scale."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, kd, voxel_weight
from medkd.methods.ops import full, resize_to
from medkd.methods.parts import Adapter
from medkd.types import Anatomy, Batch, Terms, View

PATHS = ("soft_target", "attention", "nst", "feature_map")


@final
class AdaptiveDistillation(Method):
    r"""Distil logits and features along four paths, and learn how much each counts.

    .. math:: L = \sum_i \big( e^{-a_i} L_i + a_i \big)

    Paths: the tempered KL of the class distributions; attention maps; Gram matrices of channels; channel means. For a
    path whose loss stays :math:`L_i` the best :math:`a_i` is :math:`\ln L_i`: it then weighs :math:`1 / L_i`, so that
    no scale of a loss matters.

    Args:
        temperature: of the soft targets (no unit); 4 in the release.
        soft_target: factor of that path before its learned weight; 0.1 in the release.
        tap: feature point of the student for the other paths, through a 1x1x1 adapter.
        teacher_tap: the teacher's, where its name differs.
        limit: bound of :math:`|a_i|`, so that a loss near zero cannot get an endless weight.
        floor: losses below it count as it in their learned weight.
        reduction: voxel weights of the soft targets: ``balanced``, ``foreground`` or ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)``, taps ``(B, C, *s)`` on the teacher's grid; returns one scalar a path, which may be
        negative, since :math:`a_i` may be.
    Reads: logits, one tap. Learns: :math:`a_i`, the adapter. Teacher: one, frozen, live. Regions: no.
    Departs from the paper: one tap; the path through the teacher's classifier is left out, since that is a
        classification head; bounds on the learned weights; attention maps are
        summed over positions, where the release takes the mean, so that the patch size does not matter.

    Reference: Chennupati et al., *Adaptive Distillation: Aggregating Knowledge from Multiple Paths for Efficient
        Distillation*, BMVC 2021, arXiv:2110.09674, eq. 1 to 4.
    Code read: wyzelabs-inc/AdaptiveDistillation, ``models/distillation_losses`` and ``kd_image.py`` (weights 0.1, 1,
        1, 1; log-weights from 0).
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        soft_target: float = 0.1,
        tap: str = "bottleneck",
        teacher_tap: str | None = None,
        limit: float = 5.0,
        floor: float = 1e-4,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"adaptive_distillation: temperature {temperature} must be above 0")
        if soft_target < 0:
            raise UserError(f"adaptive_distillation: soft_target {soft_target} must not be negative")
        if limit <= 0 or floor < 0:
            raise UserError(f"adaptive_distillation: limit {limit} must be above 0, floor {floor} not below it")
        check_reduction("adaptive_distillation", reduction)
        self.temperature, self.soft_target, self.tap, self.teacher_tap = (
            temperature,
            soft_target,
            tap,
            teacher_tap or tap,
        )
        self.limit, self.floor, self.reduction, self.margin_mm = limit, floor, reduction, margin_mm
        self.log_weights = nn.Parameter(torch.zeros(len(PATHS)))

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        self.adapter = Adapter(student.taps[self.tap], teacher.taps[self.teacher_tap], student.dims)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        t = full(teacher.taps[self.teacher_tap].detach())
        s = self.adapter(full(student.taps[self.tap]), t.shape[2:])
        if teacher.trust is not None:
            seen = resize_to(full(teacher.trust), t.shape[2:])
            s, t = (torch.where(seen > 0, x, torch.zeros_like(x)) * seen for x in (s, t))
        weight = voxel_weight(teacher, batch, self.reduction, self.margin_mm)
        losses = [
            self.soft_target * kd(student.logits, teacher.logits, self.temperature, weight),
            t.shape[2:].numel() * attention(s, t),
            nst(s, t),
            feature_map(s, t),
        ]
        a = self.log_weights.clamp(-self.limit, self.limit)
        return {
            name: scaled(loss.clamp_min(self.floor), own)
            for name, loss, own in zip(PATHS, losses, a.unbind(), strict=True)
        }


def scaled(loss: Tensor, log_weight: Tensor) -> Tensor:
    """Return the loss of one path under its learned weight, ``exp(-a) * loss + a``."""
    return torch.exp(-log_weight) * loss + log_weight


def adaptive_distillation(losses: Tensor, log_weights: Tensor) -> Tensor:
    """Return the sum over paths of ``exp(-a) * loss + a``: ``(P,)`` twice -> a scalar."""
    return scaled(losses, log_weights).sum()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of attention maps, the unit-length sums of squares over channels.

    Shapes: ``(B, C, *s)`` twice, channels may differ; a scalar.
    """
    s, t = (F.normalize((full(x) ** 2).sum(1).flatten(1), dim=1) for x in (student, teacher.detach()))
    return ((s - t) ** 2).mean()


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the Gram matrices of unit-length channel maps: ``(B, C, *s)`` twice."""
    s, t = (F.normalize(full(x).flatten(2), dim=2) for x in (student, teacher.detach()))
    return ((s @ s.transpose(1, 2) - t @ t.transpose(1, 2)) ** 2).mean()


def feature_map(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of channel means: ``(B, C, *s)`` twice; a scalar."""
    s, t = (full(x).flatten(2).mean(2) for x in (student, teacher.detach()))
    return ((s - t) ** 2).mean()
