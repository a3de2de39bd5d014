"""Normalized feature distillation (NFD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medkd.methods.base import Method
from medkd.methods.features.fitnets import pair_taps
from medkd.methods.ops import full, resize_to, weighted_mean
from medkd.methods.parts import Adapter
from medkd.types import Anatomy, Batch, Terms, View


@final
class NFD(Method):
    r"""Match features after taking mean and deviation out of every channel of every sample.

    .. math:: L = \frac{1}{BCN} \sum_{b,c,n} \big(\nu(A F^s)_{bcn} - \nu(F^t)_{bcn}\big)^2,
        \quad \nu(F)_{bc} = \frac{F_{bc} - \mathrm{mean}_n F_{bc}}{\mathrm{std}_n F_{bc} + \epsilon}

    This is :math:`2(1 - r)` with r the mean correlation of the channel maps, in [0, 4].

    Args:
        tap: the student's feature point, or a list of them, whose terms add.
        teacher_tap: the teacher's, or a list; the same names when None.
        eps: :math:`\epsilon`, in units of the features.
        least: channels on which the teacher deviates less in a sample are left out: they carry only noise.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, the student's brought to the teacher's grid; returns one scalar,
        ``nfd``.
    Reads: taps. Learns: an adapter (1x1x1 convolution) where channels differ. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: voxels without trust leave the statistics; weight and layers of the paper are not known to
        us.

    Reference: Liu et al., *Normalized Feature Distillation for Semantic Segmentation*, 2022, arXiv:2207.05256.
    Code read: two ports by others, which agree on the statistics but take the norm in place of the mean of squares.
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = "bottleneck",
        teacher_tap: str | Sequence[str] | None = None,
        eps: float = 1e-5,
        least: float = 1e-4,
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("nfd", tap, teacher_tap)
        self.eps, self.least = eps, least
        self.adapters = nn.ModuleList()

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        for s, t in self.pairs:
            ours, theirs = student.taps[s], teacher.taps[t]
            same = ours.channels == theirs.channels
            self.adapters.append(nn.Identity() if same else Adapter(ours, theirs, student.dims))

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        loss = student.logits.new_zeros((), dtype=full(student.logits).dtype)
        for (s, t), adapter in zip(self.pairs, self.adapters, strict=True):
            target = teacher.taps[t]
            ours = resize_to(adapter(full(student.taps[s])), target.shape[2:])
            loss = loss + nfd(ours, target, self.eps, least=self.least, trust=teacher.trust)
        return {"nfd": loss}


def nfd(
    student: Tensor, teacher: Tensor, eps: float = 1e-5, *, least: float = 0.0, trust: Tensor | None = None
) -> Tensor:
    """Return the mean squared difference of features normalised a channel and sample.

    Args:
        student: ``(B, C, *s)``, adapted.
        teacher: ``(B, C, *s)``; gets no gradient.
        eps: added to the deviations.
        least: leave out channels on which the teacher deviates less in a sample.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one.

    Shapes: a scalar; zero where no channel is left.
    """
    s, t = full(student).flatten(2), full(teacher.detach()).flatten(2)
    share = torch.full_like(t[:, :1], 1 / t.shape[2])
    if trust is not None:
        share = resize_to(full(trust), teacher.shape[2:]).flatten(2).to(t.dtype)
        share = share / share.sum(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    (s, _), (t, deviation) = _normalised(s, share, eps), _normalised(t, share, eps)
    counted = (share.sum(2) > 0) & (deviation >= least)
    return weighted_mean((share * (s - t).square()).sum(2), counted)


def _normalised(x: Tensor, share: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return ``(B, C, N)`` less its mean and over its deviation, under shares of sum one; and the deviations."""
    x = torch.where(share > 0, x, torch.zeros_like(x))
    centred = x - (share * x).sum(2, keepdim=True)
    # vector_norm, since the gradient of a root is infinite at zero: a channel may be constant over a patch
    deviation: Tensor = torch.linalg.vector_norm(share.sqrt() * centred, dim=2, keepdim=True)
    return centred / (deviation + eps), deviation.squeeze(2)
