"""Distillation in a band, in millimetres, around organ boundaries (ours)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import teacher_owner
from medkd.methods.ops import balance, boundary, dilate, kl_map, weighted_mean
from medkd.types import Batch, Terms, View


@final
class Boundary(Method):
    r"""Match the teacher where organs meet: KL in a band around the boundaries that teacher, label or student see.

    .. math:: L = \tau^2 \frac{\sum_n w_n \mathrm{KL}\big(\sigma(t_n/\tau) \,\|\, \sigma(s_n/\tau)\big)}{\sum_n w_n},
        \quad w_n = \frac{[d_n \le r]}{n_{k(n)}}

    with :math:`d_n` the exact distance in mm to the nearest boundary voxel of any class and :math:`n_k` the band
    voxels of class :math:`k`, so that large organs do not drown small ones. The student's own boundaries are among
    them, for what it sees far from every organ would otherwise cost nothing on a case without label.

    Args:
        band_mm: :math:`r`, half width of the band in mm.
        temperature: :math:`\tau` (no unit).
        label: also use the boundaries of the label, where there is one.
        student: also use the boundaries that the student sees.

    Shapes: logits ``(B, K, *S)``, labels ``(B, *S)``; returns one scalar, ``boundary``; zero without any boundary.
    Reads: logits, labels (optional). Learns: nothing. Teacher: one or an ensemble, frozen, cacheable.
    Departs from the paper: our own; the idea of boundary-guided distillation is Wen et al.'s, whose voxel band
        means 0.7 mm in plane and 5 mm across the slices of an abdominal CT.

    Reference: after Wen et al., *Towards Efficient Medical Image Segmentation via Boundary-Guided Knowledge
        Distillation*, ICME 2021.
    """

    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self, *, band_mm: float = 2.0, temperature: float = 2.0, label: bool = True, student: bool = True
    ) -> None:
        super().__init__()
        if band_mm <= 0:
            raise UserError(f"boundary: band_mm {band_mm} must be above 0")
        if temperature <= 0:
            raise UserError(f"boundary: temperature {temperature} must be above 0")
        self.band_mm, self.temperature, self.label, self.student = band_mm, temperature, label, student

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        owner = teacher_owner(teacher, batch.regions)
        inside = band(owner, self.band_mm, batch.spacing_mm)
        if self.label and not batch.regions:
            inside |= band(batch.label, self.band_mm, batch.spacing_mm)
        if self.student:
            mine = teacher_owner(View(student.logits, trust=teacher.trust), batch.regions)
            inside |= band(mine, self.band_mm, batch.spacing_mm)
        trust = inside.float() if teacher.trust is None else inside * teacher.trust.squeeze(1)
        weight = balance(owner, teacher.logits.shape[1] + 1, trust)
        return {"boundary": weighted_mean(kl_map(student.logits, teacher.logits, self.temperature), weight)}


def band(owner: Tensor, band_mm: float, spacing_mm: tuple[float, ...]) -> Tensor:
    """Return the voxels within ``band_mm`` of a boundary of ``(B, *S)`` labels, every class at once, as bool.

    The boundary voxels of both sides belong to the band, however thin it is; ``IGNORE`` has no boundary.
    """
    edge = boundary(owner)
    if not bool(edge.any()):
        return torch.zeros_like(edge)
    return dilate(edge, band_mm, spacing_mm)
