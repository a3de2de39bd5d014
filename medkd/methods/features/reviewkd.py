"""Knowledge review: shallow teacher features taught by all deeper ones of the student (ReviewKD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import pair_taps
from medkd.methods.ops import full, resize_to, trusted_mean
from medkd.methods.parts import Norm, conv
from medkd.types import Anatomy, Batch, Terms, View

NORMS = ("instance", "batch")


@final
class ReviewKD(Method):
    r"""Fuse the student's stages from deep to shallow, and match every fusion to the teacher's stage at several scales.

    .. math:: L = \sum_l \frac{\sum_{p} w_p\, \mathrm{mse}\big(\pi_p(o_l), \pi_p(F^t_l)\big)}{\sum_p w_p},
        \quad y_l = a_l \odot A_l F^s_l + b_l \odot y_{l+1}, \quad o_l = C_l\, y_l

    with :math:`\pi_p` the full grid and pools to 4, 2 and 1 cells an axis, weights 1, 1/2, 1/4, 1/8, and gates
    :math:`a, b` in (0, 1) that a convolution reads off both parts.

    Args:
        tap: the student's feature points, shallow to deep.
        teacher_tap: the teacher's; the same names when None.
        width: channels of the fused maps; 256, or the deepest width up to 512, in the paper.
        levels: cells an axis of the pools, falling; levels that are not coarser than the map are left out.
        norm: ``instance``, the same for every batch size, or the paper's ``batch``.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``; returns one scalar, ``reviewkd``, the sum over stages.
    Reads: taps. Learns: the fusions. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: instance normalisation, which a map of one voxel goes without; a narrower fusion; pools
        have no more cells than the map has voxels, axis by axis; the warm-up is a ramp of the weight. Full resolution
        is better left out of the taps: it costs more than all others together.

    Reference: Chen et al., *Distilling Knowledge via Knowledge Review*, CVPR 2021, arXiv:2104.09044, section 3.
    Code read: dvlab-research/ReviewKD; megvii-research/mdistiller (weights 0.6 to 8, 20 epochs of warm-up).
    """

    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = ("enc0", "bottleneck"),
        teacher_tap: str | Sequence[str] | None = None,
        width: int = 64,
        levels: Sequence[int] = (4, 2, 1),
        norm: str = "instance",
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("reviewkd", tap, teacher_tap)
        if width < 1:
            raise UserError(f"reviewkd: width {width} must be 1 or more channels")
        if any(level < 1 for level in levels):
            raise UserError(f"reviewkd: levels {list(levels)} must be 1 or more cells")
        if norm not in NORMS:
            raise UserError(f"reviewkd: norm {norm!r} is not one of {', '.join(NORMS)}")
        self.width, self.levels, self.norm = width, tuple(levels), norm
        self.fusions = nn.ModuleList()

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        for i, (s, t) in enumerate(self.pairs):
            deepest = i == len(self.pairs) - 1
            channels = student.taps[s].channels, teacher.taps[t].channels
            self.fusions.append(Fusion(*channels, self.width, student.dims, gated=not deepest, norm=self.norm))

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        hints = [teacher.taps[t] for _, t in self.pairs]
        outs = review([student.taps[s] for s, _ in self.pairs], self.fusions, [h.shape[2:] for h in hints])
        terms = [hcl(o, h, self.levels, teacher.trust) for o, h in zip(outs, hints, strict=True)]
        return {"reviewkd": torch.stack(terms).sum()}


class Fusion(nn.Module):
    """One stage of the review: the student's map and the fused one from below, weighed voxel by voxel.

    Args:
        student: channels of the student's tap.
        teacher: channels of the teacher's.
        width: channels of the fused map.
        dims: spatial axes.
        gated: there is a deeper stage to fuse with.
        norm: ``instance`` or ``batch``.

    Shapes: ``(B, C_s, *s)`` and ``(B, width, *any)`` -> ``(B, C_t, *size)`` and ``(B, width, *size)``.
    """

    def __init__(
        self, student: int, teacher: int, width: int, dims: int, *, gated: bool, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.inside = conv(dims, student, width, bias=False)
        self.inside_norm = Norm(dims, width, norm)
        self.gates = conv(dims, 2 * width, 2) if gated else None
        self.outside = conv(dims, width, teacher, 3, bias=False)
        self.outside_norm = Norm(dims, teacher, norm)
        for layer in (self.inside, self.outside):
            assert isinstance(layer.weight, Tensor)
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what is matched to the teacher, and what the next shallower stage fuses, both on ``size``."""
        x = self.inside_norm(self.inside(x))
        if self.gates is not None and deeper is not None:
            deeper = _nearest(deeper, x.shape[2:])
            gates = torch.sigmoid(self.gates(torch.cat([x, deeper], 1)))
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        x = _nearest(x, size)
        return self.outside_norm(self.outside(x)), x


def review(
    student: Sequence[Tensor], fusions: Sequence[nn.Module] | nn.ModuleList, sizes: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return the fused maps, shallow to deep, for the teacher's grids ``sizes``.

    Shapes: ``(B, C_s, *s)`` each -> ``(B, C_t, *size)`` each.
    """
    outs: list[Tensor] = []
    deeper: Tensor | None = None
    for x, fusion, size in reversed(list(zip(student, fusions, sizes, strict=True))):
        out, deeper = fusion(full(x), deeper, size)
        outs.insert(0, out)
    return outs


def hcl(student: Tensor, teacher: Tensor, levels: Sequence[int] = (4, 2, 1), trust: Tensor | None = None) -> Tensor:
    """Return the hierarchical context loss: mean squared errors of full and pooled maps, weights halving by level.

    Args:
        student: ``(B, C, *s)``.
        teacher: ``(B, C, *s)``; gets no gradient.
        levels: cells an axis of the pools; only those below the longest axis count, and lower the weight.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one.

    Shapes: a scalar.
    """
    difference = full(student) - full(teacher.detach())
    size = difference.shape[2:]
    mask = None if trust is None else resize_to(full(trust), size).to(difference.dtype)
    if mask is not None:
        difference = torch.where(mask > 0, difference, torch.zeros_like(difference))
    loss, total, weight = trusted_mean(difference.square(), mask), 1.0, 1.0
    for level in levels:
        if level >= max(size):
            continue
        weight /= 2
        cells = [min(level, s) for s in size]
        if mask is None:
            pooled, share = resize_to(difference, cells), None
        else:
            share = resize_to(mask, cells)
            pooled = resize_to(mask * difference, cells) / share.clamp_min(torch.finfo(torch.float32).tiny)
        loss = loss + weight * trusted_mean(pooled.square(), share)
        total += weight
    return loss / total


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, tuple(size), mode="nearest")
