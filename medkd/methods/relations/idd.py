"""Inter-class distance distillation (IDD)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full, resize_to, weighted_mean
from medkd.methods.regions import check_source, paired_regions
from medkd.types import Batch, Terms, View

TINY = 1e-12
SCALES = ("spread", "mean", "none")


@final
class IDD(Method):
    r"""Match how far apart the classes lie in feature space: the distances of their centres.

    .. math:: L = \frac{1}{|P|(|P| - 1)} \sum_{i \ne j} (d^s_{ij} - d^t_{ij})^2, \quad d_{ij} = \|c_i - c_j\|_2

    over the classes P that are in the sample, with :math:`c_k` the mean feature of class k; mean over samples.

    Args:
        tap: the student's feature point; the paper reads the last features of the decoder.
        teacher_tap: the teacher's, where its name differs.
        scale: what distances are measured in, so that the scale of features does not matter: the ``spread`` of a
            network's features in the sample, their ``mean`` distance, or ``none``, as the paper writes it.
        source: who says where a class is: ``label``, or the ``teacher``, which speaks about unlabelled cases too.
        least: classes with fewer voxels of the patch are dropped.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, any channels; returns one scalar, ``idd``; zero below two
        classes, and below three with ``mean``, for one distance alone is its own mean.
    Reads: taps, labels (or the teacher's). Learns: nothing. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: without its position module, which needs coordinates in the whole scan, and patches do not
        carry them; the scale is ours, the weight unpublished as far as we could read.

    Reference: after Zhang et al., *Distilling Inter-Class Distance for Semantic Segmentation*, IJCAI 2022,
        arXiv:2205.03650.
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str = "dec0",
        teacher_tap: str | None = None,
        scale: str = "spread",
        source: str = "label",
        least: float = 8.0,
    ) -> None:
        super().__init__()
        check_source("idd", source)
        if scale not in SCALES:
            raise UserError(f"idd: scale {scale!r} is not one of {', '.join(SCALES)}")
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.scale, self.source, self.least = scale, source, least

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        s, t = full(student.taps[self.tap]), full(teacher.taps[self.teacher_tap]).detach()
        if self.scale == "spread":
            s, t = s / spread(s, teacher.trust), t / spread(t, teacher.trust)
        found = paired_regions(s, t, teacher, batch, source=self.source, least=self.least)
        return {"idd": idd(found.student, found.teacher, found.present, normalise=self.scale == "mean")}


def idd(student: Tensor, teacher: Tensor, present: Tensor, *, normalise: bool = False) -> Tensor:
    """Return the squared difference of the distances between class centres.

    Args:
        student: centres ``(B, K, C_s)``.
        teacher: centres ``(B, K, C_t)``; get no gradient.
        present: ``(B, K)`` bool, which classes are there.
        normalise: divide the distances of each network by their mean over the pairs of a sample.

    Shapes: a scalar: mean over ordered pairs of present classes, then over the samples that have any.
    """
    apart = present.unsqueeze(1) & present.unsqueeze(2)
    apart = apart & ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    pairs = apart.sum((1, 2))
    s, t = distances(student, apart), distances(teacher.detach(), apart)
    if normalise:
        s, t = (d / (d.sum((1, 2)) / pairs.clamp_min(1)).clamp_min(1e-6).view(-1, 1, 1) for d in (s, t))
    return weighted_mean((s - t).square().sum((1, 2)) / pairs.clamp_min(1), pairs > 0)


def distances(centres: Tensor, apart: Tensor) -> Tensor:
    """Return the Euclidean distances of the pairs that count, zero elsewhere: ``(B, K, C)`` -> ``(B, K, K)``."""
    x = full(centres)
    squared = (x.unsqueeze(1) - x.unsqueeze(2)).square().sum(3)
    # the root of what is apart only: its gradient at zero is infinite
    real = apart & (squared > TINY)
    return torch.where(real, squared, torch.ones_like(squared)).sqrt() * real


def spread(features: Tensor, trust: Tensor | None = None) -> Tensor:
    """Return the root mean square distance of the features of a sample from their mean, over trusted voxels.

    Shapes: ``(B, C, *s)`` and ``(B, 1, *S)`` -> ``(B, 1, *1)``.
    """
    x = full(features)
    weight = torch.ones_like(x[:, :1]) if trust is None else resize_to(full(trust), x.shape[2:]).to(x.dtype)
    x = torch.where(weight > 0, x, torch.zeros_like(x))
    axes = list(range(2, x.ndim))
    count = weight.sum(axes, keepdim=True).clamp_min(TINY)
    centred = x - (x * weight).sum(axes, keepdim=True) / count
    variance = (centred.square() * weight).sum([1, *axes], keepdim=True) / count
    return variance.clamp_min(TINY).sqrt()
