"""Similarity-preserving knowledge distillation (SP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import pair_taps
from medkd.methods.ops import full
from medkd.methods.regions import check_source, paired_regions
from medkd.types import Batch, Terms, View


@final
class SP(Method):
    r"""Match which regions the networks find alike: organs of one case, and of the cases of a batch.

    .. math:: L = \frac{1}{N} \big\| \hat G^t - \hat G^s \big\|_F^2, \quad G = Q Q^\top, \quad
        \hat G_i = G_i / \|G_i\|_2

    where the N rows of :math:`Q` are the mean features of each class in each case; N does not depend on the channels,
    so nothing is adapted.

    Args:
        tap: the student's feature point, or a list of them, whose terms add (the paper: one a group of blocks).
        teacher_tap: the teacher's, or a list; the same names when None.
        source: who says where a region is: ``label``, or the ``teacher``, which speaks about unlabelled cases too.
        cells: also compare the cells of a grid of so many along each axis; 0 for none. With one case and two
            classes there are but two rows, so that 2 or more are of use.
        least: regions with fewer voxels of the patch are dropped.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``; returns one scalar, ``sp``; zero below two rows.
    Reads: taps, labels (or the teacher's). Learns: nothing. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: rows are regions, for one row a sample is exactly zero at batch 1; a mean over rows, so
        that more rows do not weaken it. The published weight 3000 at batch 128 is 3000 / 128 = 23 here.

    Reference: Tung, Mori, *Similarity-Preserving Knowledge Distillation*, ICCV 2019, arXiv:1907.09682, eq. 4.
    Code read: HobbitLong/RepDistiller.
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = "bottleneck",
        teacher_tap: str | Sequence[str] | None = None,
        source: str = "label",
        cells: int = 0,
        least: float = 8.0,
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("sp", tap, teacher_tap)
        check_source("sp", source)
        if cells < 0:
            raise UserError(f"sp: cells {cells} must not be negative")
        self.source, self.cells, self.least = source, cells, least

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        loss = student.logits.new_zeros((), dtype=full(student.logits).dtype)
        for s, t in self.pairs:
            found = paired_regions(
                student.taps[s],
                teacher.taps[t],
                teacher,
                batch,
                source=self.source,
                cells=self.cells,
                least=self.least,
            )
            ours, theirs = found.rows()
            loss = loss + sp(ours, theirs) * len(ours)
        return {"sp": loss}


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the paper's mean over all N x N pairs: the squared difference of the row-normalised similarities.

    Shapes: N rows of any further axes, ``(N, C_s, *s)`` and ``(N, C_t, *t)``; a scalar, at most 4 / N, and exactly zero
    below two rows. The teacher gets no gradient.
    """
    if len(student) < 2:
        return full(student).sum() * 0.0
    return (similarity(teacher.detach()) - similarity(student)).square().mean()


def similarity(rows: Tensor) -> Tensor:
    """Return the inner products of N rows with all rows, each row of them of length one: ``(N, ...)`` -> ``(N, N)``."""
    q = full(rows).flatten(1)
    return F.normalize(q @ q.T, dim=1)
