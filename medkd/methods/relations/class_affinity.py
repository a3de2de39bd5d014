"""Class-affinity distillation (of LCOV-Net)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full, resize_to, weighted_mean
from medkd.types import Batch, Terms, View


@final
class ClassAffinity(Method):
    r"""Match which classes the predictions confuse: how much the probability maps of every two organs overlap.

    .. math:: L = 1 - \frac{1}{K} \sum_k \cos\big(A^s_{\cdot k}, A^t_{\cdot k}\big), \quad A = P P^\top, \quad
        P = \sigma(z) \in [0, 1]^{K \times N}

    At several scales, those of deep-supervision heads, the terms add with the weights of the scales.

    Args:
        scales: weights of the logits and of the heads ``logits_1``, ``logits_2``... after them; 0.4, 0.2, 0.2 and 0.2
            in the paper's own four-headed networks. One number reads the logits alone.
        least: classes of which the teacher sees fewer voxels in a sample, in sum of probabilities, do not count.

    Shapes: logits ``(B, K, *S)``, heads on any grids, the student's brought to the teacher's; returns one scalar,
        ``class_affinity``, in [0, 1].
    Reads: logits, or heads too. Learns: nothing. Teacher: one or an ensemble, frozen, cacheable for logits.
        Regions: yes (sigmoid).
    Departs from the paper: every sample of the batch counts and absent classes do not; one less the similarity. Its
        companion there, feature-normalised distillation at several scales, is not part of this method, and has no
        gradient in the released code.

    Reference: after Zhao et al., *Efficient Multi-Organ Segmentation From 3D Abdominal CT Images With Lightweight
        Network and Knowledge Distillation*, IEEE TMI 2023.
    Code read: HiLab-git/LCOVNet-and-KD (weight 0.1; reads the first two samples of a batch only).
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(self, *, scales: Sequence[float] = (1.0,), least: float = 1.0) -> None:
        super().__init__()
        if not scales or min(scales) < 0:
            raise UserError(f"class_affinity: scales {list(scales)} must be one or more weights, none negative")
        self.scales, self.least = tuple(scales), least
        # stored targets have no heads
        self.needs_live_teacher = len(self.scales) > 1  # type: ignore[misc]

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        loss = full(student.logits).new_zeros(())
        for i, weight in enumerate(self.scales):
            s, t = (view.logits if i == 0 else _head(view, i) for view in (student, teacher))
            s = resize_to(full(s), t.shape[2:])
            scale = class_affinity(s, t, trust=teacher.trust, least=self.least, regions=batch.regions)
            loss = loss + weight * scale
        return {"class_affinity": loss}


def _head(view: View, i: int) -> Tensor:
    if f"logits_{i}" not in view.taps:
        raise UserError(f"class_affinity: scale {i} needs a deep-supervision head of student and teacher; drop it")
    return view.taps[f"logits_{i}"]


def class_affinity(
    student: Tensor,
    teacher: Tensor,
    *,
    trust: Tensor | None = None,
    least: float = 0.0,
    regions: bool = False,
) -> Tensor:
    """Return one less the cosine of the columns of both affinity matrices, mean over classes and samples.

    Args:
        student: logits ``(B, K, *S)``.
        teacher: logits ``(B, K, *S)``; get no gradient.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one.
        least: voxels, in sum of the teacher's probabilities, below which a class of a sample does not count; 0 for all.
        regions: classes may overlap (sigmoid).

    Shapes: a scalar. The released code has the mean cosine with a minus: one less than this.
    """
    weight = None if trust is None else resize_to(full(trust), teacher.shape[2:])
    (s, _), (t, mass) = (affinity(x, weight, regions=regions) for x in (student, teacher.detach()))
    cosine = (F.normalize(s, dim=1) * F.normalize(t, dim=1)).sum(1)
    counts = mass >= least if weight is None else (mass >= least) & (mass > 0)
    return weighted_mean(1 - cosine, counts)


def affinity(logits: Tensor, weight: Tensor | None = None, *, regions: bool = False) -> tuple[Tensor, Tensor]:
    """Return the inner products of the probability maps of every two classes, over voxels, and each map's sum.

    Shapes: ``(B, K, *S)`` -> ``(B, K, K)`` in units of their mean over voxels, and ``(B, K)`` in voxels.
    """
    p = (torch.sigmoid(full(logits)) if regions else torch.softmax(full(logits), 1)).flatten(2)
    q = p if weight is None else p * weight.flatten(2)
    return q @ p.transpose(1, 2) / p.shape[2], q.sum(2)
