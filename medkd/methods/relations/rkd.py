"""Relational knowledge distillation (RKD)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full
from medkd.methods.regions import check_source, paired_regions
from medkd.types import Batch, Terms, View

TINY = 1e-12


@final
class RKD(Method):
    r"""Match the geometry of the regions: their distances, and the angles of every three.

    .. math:: L_D = \frac{1}{N^2} \sum_{ij} h\Big(\frac{\|t_i - t_j\|}{\mu_t}, \frac{\|s_i - s_j\|}{\mu_s}\Big), \quad
        L_A = \frac{1}{N^3} \sum_{ijk} h\big(\cos\angle t_i t_j t_k, \cos\angle s_i s_j s_k\big)

    with :math:`\mu` the mean distance that is not zero, and h the Huber loss of knee 1. The N embeddings are the mean
    features of each class in each case.

    Args:
        tap: the student's feature point.
        teacher_tap: the teacher's, where its name differs.
        distance: weight of :math:`L_D`; 1 in the paper for metric learning, 25 for classification.
        angle: weight of :math:`L_A`; 2 in the paper, 50 for classification.
        source: who says where a region is: ``label``, or the ``teacher``, which speaks about unlabelled cases too.
        cells: also use the cells of a grid of so many along each axis; 0 for none. With one case and two classes
            both terms are zero without them.
        least: regions with fewer voxels of the patch are dropped.
        most: of more embeddings than this, so many are drawn; the angles take N cubed numbers.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, any channels; returns ``distance`` and ``angle``, weighted.
    Reads: taps, labels (or the teacher's). Learns: nothing. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: embeddings are regions; with one a sample and batch 2 the distance term is exactly zero.

    Reference: Park et al., *Relational Knowledge Distillation*, CVPR 2019, arXiv:1904.05068, eqs. 4 to 8.
    Code read: lenscloth/RKD; HobbitLong/RepDistiller (weights 25 and 50).
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str = "bottleneck",
        teacher_tap: str | None = None,
        distance: float = 1.0,
        angle: float = 2.0,
        source: str = "label",
        cells: int = 0,
        least: float = 8.0,
        most: int = 128,
    ) -> None:
        super().__init__()
        check_source("rkd", source)
        if distance < 0 or angle < 0:
            raise UserError(f"rkd: distance {distance} and angle {angle} are weights and must not be negative")
        if cells < 0:
            raise UserError(f"rkd: cells {cells} must not be negative")
        if most < 3:
            raise UserError(f"rkd: most {most} must be 3 or more, for an angle")
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.distance, self.angle = distance, angle
        self.source, self.cells, self.least, self.most = source, cells, least, most

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        found = paired_regions(
            student.taps[self.tap],
            teacher.taps[self.teacher_tap],
            teacher,
            batch,
            source=self.source,
            cells=self.cells,
            least=self.least,
        )
        s, t = found.rows()
        if len(s) > self.most:
            drawn = torch.randperm(len(s), device=s.device)[: self.most]
            s, t = s[drawn], t[drawn]
        return {"distance": self.distance * rkd_distance(s, t), "angle": self.angle * rkd_angle(s, t)}


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss of the distances in units of their mean, over all N x N pairs, the diagonal included.

    Shapes: embeddings ``(N, C_s)`` and ``(N, C_t)``; a scalar, zero below two rows. The teacher gets no gradient.
    """
    if len(student) < 2:
        return full(student).sum() * 0.0
    return F.smooth_l1_loss(distances(student), distances(teacher.detach()))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss of the cosines at every vertex, over all N x N x N triplets, degenerate ones included.

    Shapes: embeddings ``(N, C_s)`` and ``(N, C_t)``; a scalar, zero below two rows. The teacher gets no gradient.
    """
    if len(student) < 2:
        return full(student).sum() * 0.0
    return F.smooth_l1_loss(angles(student), angles(teacher.detach()))


def distances(rows: Tensor) -> Tensor:
    """Return the distances of ``(N, C)`` rows over the mean of those that are not zero: ``(N, N)``."""
    d, apart = _lengths(_edges(rows))
    d = d * apart
    return d / (d.sum() / apart.sum().clamp_min(1)).clamp_min(TINY)


def angles(rows: Tensor) -> Tensor:
    """Return the cosine at vertex i between rows j and k of ``(N, C)``: ``(N, N, N)``, zero where two are one."""
    edges = _edges(rows)
    length, apart = _lengths(edges)
    unit = edges * (apart / length).unsqueeze(2)
    return unit @ unit.transpose(1, 2)


def _edges(rows: Tensor) -> Tensor:
    x = full(rows)
    return x.unsqueeze(0) - x.unsqueeze(1)


def _lengths(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the length of every edge, one where it has none, and which have any."""
    squared = edges.square().sum(2)
    apart = squared > TINY
    # the root of what is apart only: its gradient at zero is infinite
    return torch.where(apart, squared, torch.ones_like(squared)).sqrt(), apart
