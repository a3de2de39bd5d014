"""Distillation from a stronger teacher: correlations in place of equality (DIST)."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import full, weighted_mean
from medkd.types import Batch, Terms, View

SCOPES = ("batch", "sample")


@final
class DIST(Method):
    r"""Match how the teacher orders the classes of a voxel and the voxels of a class, not its exact probabilities.

    .. math:: L = \tau^2\Big(\beta\,\frac{\sum_n w_n d(p^s_{n\cdot}, p^t_{n\cdot})}{\sum_n w_n}
        + \frac{\gamma}{K}\sum_k d(p^s_{\cdot k}, p^t_{\cdot k})\Big), \quad d = 1 - \text{Pearson correlation}

    Args:
        temperature: :math:`\tau` (no unit); 1 in the released code for segmentation.
        beta: :math:`\beta`, weight of the term between classes; 1 in the released code.
        gamma: :math:`\gamma`, weight of the term within classes; 1 in the released code.
        intra: whose voxels are correlated: those of the whole ``batch``, as released, or of each ``sample``.
        reduction: what a voxel counts, in the mean and in the correlations: ``balanced`` (every class that the
            teacher sees the same), ``foreground`` (within ``margin_mm`` of it), ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` of student and teacher; returns ``inter`` and ``intra``, weighted by beta and gamma.
    Reads: logits. Learns: nothing. Teacher: one or an ensemble, frozen, cacheable. Regions: yes (sigmoid, ``intra``
        only).
    Departs from the paper: class-balanced by default; classes on which the teacher does not vary are left out of
        ``intra``; no ``inter`` for two classes, where a correlation is 1 or -1 and has no gradient.

    Reference: Huang et al., *Knowledge Distillation from A Stronger Teacher*, NeurIPS 2022, arXiv:2205.10536, section 3.
    Code read: hunto/DIST_KD, classification and segmentation (all pixels of the batch are rows).
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        intra: str = "batch",
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"dist: temperature {temperature} must be above 0")
        if beta < 0 or gamma < 0:
            raise UserError(f"dist: beta {beta} and gamma {gamma} must not be negative")
        if intra not in SCOPES:
            raise UserError(f"dist: intra {intra!r} is not one of {', '.join(SCOPES)}")
        check_reduction("dist", reduction)
        self.temperature, self.beta, self.gamma, self.intra = temperature, beta, gamma, intra
        self.reduction, self.margin_mm = reduction, margin_mm

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        weight = voxel_weight(teacher, batch, self.reduction, self.margin_mm)
        s = _probabilities(student.logits, self.temperature, regions=batch.regions)
        t = _probabilities(teacher.logits.detach(), self.temperature, regions=batch.regions)
        scale = self.temperature**2
        terms = {"intra": scale * self.gamma * intra_class(s, t, weight, scope=self.intra, least=1e-4)}
        if s.shape[1] > 2 and not batch.regions:
            terms["inter"] = scale * self.beta * inter_class(s, t, weight)
        return terms


def dist(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return ``beta`` times the inter-class and ``gamma`` times the intra-class term, times the squared temperature.

    Shapes: logits ``(B, K, *S)``, weight ``(B, *S)`` or None for the paper's; a scalar. ``*S`` may be empty. The
    teacher gets no gradient.
    """
    s = _probabilities(student, temperature, regions=False)
    t = _probabilities(teacher.detach(), temperature, regions=False)
    return temperature**2 * (beta * inter_class(s, t, weight) + gamma * intra_class(s, t, weight))


def inter_class(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return one less the correlation over the classes of each voxel, mean over voxels.

    Shapes: probabilities ``(B, K, *S)``, weight ``(B, *S)`` or None; a scalar in [0, 2].
    """
    s, t = student.movedim(1, -1), teacher.movedim(1, -1)
    return weighted_mean(1 - pearson(s, t), weight)


def intra_class(
    student: Tensor, teacher: Tensor, weight: Tensor | None = None, *, scope: str = "batch", least: float = 0.0
) -> Tensor:
    """Return one less the correlation over the voxels of each class, mean over classes.

    Args:
        student: probabilities ``(B, K, *S)``.
        teacher: as ``student``.
        weight: ``(B, *S)``, or None for one.
        scope: correlate over the voxels of the ``batch``, or of each ``sample``.
        least: classes on which the teacher deviates less are left out.

    Shapes: a scalar in [0, 2]; zero where no class is left.
    """
    if scope == "batch":
        s, t = student.transpose(0, 1).flatten(1), teacher.transpose(0, 1).flatten(1)
        w = None if weight is None else weight.flatten()
    else:
        s, t = student.flatten(2), teacher.flatten(2)
        w = None if weight is None else weight.flatten(1).unsqueeze(1)
    varies = None if least == 0 else _deviation(t, w) >= least
    return weighted_mean(1 - pearson(s, t, w), varies)


def pearson(a: Tensor, b: Tensor, weight: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """Return the correlation over the last axis under ``weight``, which broadcasts; 0 where one does not vary."""
    a, b = _centred(a, weight), _centred(b, weight)
    norms: Tensor = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(-1) / (norms + eps)


def _centred(x: Tensor, weight: Tensor | None) -> Tensor:
    """Return ``x`` less its weighted mean, times the root of the weight (of mean one)."""
    if weight is None:
        return x - x.mean(-1, keepdim=True)
    w = weight.to(x.dtype)
    share = w / w.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    x = torch.where(w > 0, x, torch.zeros_like(x))
    return (x - (share * x).sum(-1, keepdim=True)) * (share * x.shape[-1]).sqrt()


def _deviation(x: Tensor, weight: Tensor | None) -> Tensor:
    deviation: Tensor = torch.linalg.vector_norm(_centred(x, weight), dim=-1) / math.sqrt(x.shape[-1])
    return deviation


def _probabilities(logits: Tensor, temperature: float, *, regions: bool) -> Tensor:
    z = full(logits) / temperature
    return torch.sigmoid(z) if regions else torch.softmax(z, dim=1)
