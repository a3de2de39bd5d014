"""Efficient medical image segmentation by distilling prediction maps, importance maps and region affinity (EMKD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import pair_taps
from medkd.methods.ops import binary_kl_map, full, kl_map, one_hot, resize_to, weighted_mean
from medkd.methods.parts import class_embeddings, unit
from medkd.methods.regions import check_source, paired_regions
from medkd.methods.supervised import soft_dice
from medkd.types import IGNORE, Batch, Terms, View


@final
class EMKD(Method):
    r"""Match the predictions, where the features are strong, and how far apart the tissues' features are.

    .. math:: L_P = \tau^2\,\overline{\mathrm{KL}(\sigma(t_n/\tau) \| \sigma(s_n/\tau))}, \quad
        L_I = \sum_n (m^s_n - m^t_n)^2, \quad L_R = \frac{1}{|P|} \sum_{i<j} (v^s_{ij} - v^t_{ij})^2

    where :math:`m = \hat m / \|\hat m\|_2, \hat m_n = \sum_c |F_{cn}|^q`, and :math:`v_{ij}` is the cosine of the mean
    features of classes i and j; the mean is over the pairs of classes that are there. All are means over the batch.

    Args:
        tap: the student's feature points, whose terms add; the paper has a low and a high one.
        teacher_tap: the teacher's; the same names when None.
        temperature: :math:`\tau` (no unit); 4 as released.
        exponent: q; 4 as released, 1 in the text.
        prediction: weight of :math:`L_P`; 0.1 in the paper.
        importance: weight of :math:`L_I`; 0.9 in the paper.
        affinity: weight of :math:`L_R`; 0.9 in the paper.
        source: who says where a tissue is: ``label``, or the ``teacher``, which speaks about unlabelled cases too.
        least: classes with fewer voxels of the patch are dropped.

    Shapes: logits ``(B, K, *S)``; taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, any channels; returns ``prediction``,
        ``importance`` and ``affinity``, weighted.
    Reads: logits, taps, labels (or the teacher's). Learns: nothing. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: any number of classes, where the paper has organ and background; labels reach the feature
        grid by area, under which small lesions stay; float32 and a common scale, for the fourth power of 16 is more
        than half precision holds.

    Reference: Qin et al., *Efficient Medical Image Segmentation Based on Knowledge Distillation*, IEEE TMI 2021,
        arXiv:2108.09987, eqs. 1 to 7.
    Code read: EagleMIT/EMKD.
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = ("enc0", "bottleneck"),
        teacher_tap: str | Sequence[str] | None = None,
        temperature: float = 4.0,
        exponent: float = 4.0,
        prediction: float = 0.1,
        importance: float = 0.9,
        affinity: float = 0.9,
        source: str = "label",
        least: float = 10.0,
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("emkd", tap, teacher_tap)
        check_source("emkd", source)
        if temperature <= 0 or exponent <= 0:
            raise UserError(f"emkd: temperature {temperature} and exponent {exponent} must be above 0")
        if min(prediction, importance, affinity) < 0:
            raise UserError("emkd: the weights prediction, importance and affinity must not be negative")
        self.temperature, self.exponent, self.source, self.least = temperature, exponent, source, least
        self.prediction, self.importance, self.affinity = prediction, importance, affinity

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        kl = binary_kl_map if batch.regions else kl_map
        trust = None if teacher.trust is None else teacher.trust.squeeze(1)
        prediction = weighted_mean(kl(student.logits, teacher.logits, self.temperature), trust)
        importance = affinity = torch.zeros_like(prediction)
        for a, b in self.pairs:
            s, t = student.taps[a], teacher.taps[b]
            importance = importance + importance_maps(s, t, self.exponent, teacher.trust)
            found = paired_regions(s, t, teacher, batch, source=self.source, least=self.least)
            affinity = affinity + affinity_of(found.student, found.teacher, found.present)
        return {
            "prediction": self.prediction * prediction,
            "importance": self.importance * importance,
            "affinity": self.affinity * affinity,
        }


def prediction_maps(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Return the tempered KL of the class distributions, mean over voxels: ``(B, K, *S)`` twice -> a scalar."""
    return kl_map(student, teacher, temperature).mean()


def importance_maps(student: Tensor, teacher: Tensor, exponent: float = 4.0, trust: Tensor | None = None) -> Tensor:
    """Return the squared distance of the importance maps, mean over the batch; in [0, 2].

    Args:
        student: ``(B, C_s, *s)``, brought to the teacher's grid.
        teacher: ``(B, C_t, *t)``; gets no gradient.
        exponent: of the activations' absolute values.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one; what is not trusted leaves both maps.

    Shapes: a scalar.
    """
    weight = None if trust is None else resize_to(full(trust), teacher.shape[2:])
    s = importance(resize_to(full(student), teacher.shape[2:]), exponent, weight)
    t = importance(teacher.detach(), exponent, weight)
    any_trust = None if weight is None else (weight.flatten(1) > 0).any(1)
    return weighted_mean((s - t).square().sum(1), any_trust)


def importance(features: Tensor, exponent: float = 4.0, trust: Tensor | None = None) -> Tensor:
    """Return the importance map of each sample, of length one: ``(B, C, *s)`` -> ``(B, N)``."""
    x = full(features).abs()
    if trust is not None:
        x = torch.where(trust > 0, x, torch.zeros_like(x))
    # the map does not change with the scale of the features, and at this one no power overflows
    x = x / x.detach().flatten(1).amax(1).clamp_min(1e-12).view(-1, *[1] * (x.ndim - 1))
    energy = x.pow(exponent).mean(1)
    return F.normalize((energy if trust is None else energy * trust.squeeze(1)).flatten(1), dim=1, eps=1e-30)


def region_affinity(student: Tensor, teacher: Tensor, masks: Tensor, least: float = 1.0) -> Tensor:
    """Return the mean squared difference of the cosines between the classes' mean features.

    Args:
        student: ``(B, C_s, *s)``.
        teacher: ``(B, C_t, *t)``; gets no gradient.
        masks: ``(B, K, *S)`` class masks on any grid, brought to the features' by area.
        least: voxels of the feature grid below which a class is dropped.

    Shapes: a scalar.
    """
    s, kept = class_embeddings(student, masks, least)
    t, also = class_embeddings(teacher.detach(), masks, least)
    return affinity_of(s, t, kept & also)


def affinity_of(student: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """Return the affinity term of region embeddings: mean over pairs of present regions, then over samples with any.

    Shapes: ``(B, R, C_s)``, ``(B, R, C_t)``, present ``(B, R)`` bool; a scalar.
    """
    s, t = unit(student, 2), unit(teacher.detach(), 2)
    squared = (s @ s.transpose(1, 2) - t @ t.transpose(1, 2)).square()
    pairs = (present.unsqueeze(1) & present.unsqueeze(2)).triu(1).to(squared.dtype)
    count = pairs.sum((1, 2))
    return weighted_mean((squared * pairs).sum((1, 2)) / count.clamp_min(1), count > 0)


def segmentation(logits: Tensor, label: Tensor, gamma: float = 2.0, smooth: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the paper's task loss, focal and Dice, half of each; not wired, for ``supervised`` stands beside any method.

    Args:
        logits: ``(B, K, *S)``.
        label: ``(B, *S)``, ``IGNORE`` where unknown.
        gamma: of the focal factor, through which no gradient flows, as released.
        smooth: in voxels; the Dice of each foreground class is over the batch.

    Shapes: two scalars.
    """
    log_p = F.log_softmax(full(logits), dim=1)
    log_true = log_p.gather(1, label.clamp_min(0).unsqueeze(1)).squeeze(1)
    focal = weighted_mean(-(1 - log_true.detach().exp()).pow(gamma) * log_true, label != IGNORE)
    hot = one_hot(label, logits.shape[1]).to(log_p.dtype)
    p = log_p.exp() * (label != IGNORE).unsqueeze(1)
    return focal, 1 - soft_dice(p[:, 1:], hot[:, 1:], smooth).mean()
