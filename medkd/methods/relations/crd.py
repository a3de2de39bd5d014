"""Contrastive representation distillation (CRD)."""

from __future__ import annotations

from hashlib import blake2b
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full
from medkd.methods.parts import unit
from medkd.methods.regions import check_source, paired_regions
from medkd.types import Anatomy, Batch, Terms, View


@final
class CRD(Method):
    r"""Tell a region's teacher embedding from those of other organs, by the student's; and the reverse.

    .. math:: L = -\frac{1}{N} \sum_i \Big[ \log D(h_i) + \sum_{j=1}^m \log\big(1 - D(h_{ij})\big) \Big], \quad
        D(h) = \frac{h}{h + m/n}, \quad h_{ij} = \frac{e^{s_i \cdot T_j / \tau}}{Z}

    plus the same with student and teacher exchanged. :math:`s, t` are projected to length one; a memory holds one
    embedding of both networks a case and class, T and S; positives are of the same case and class, negatives of other
    classes of any case. With Z the mean of the exponential times n, n cancels.

    Args:
        tap: the student's feature point.
        teacher_tap: the teacher's, where its name differs.
        embedding: length of the projected embeddings; 128 in the paper.
        temperature: :math:`\tau` (no unit); 0.07 in the paper.
        negatives: m at most; fewer where fewer are remembered. 16384 in the paper, of 50000 images.
        momentum: of the memory; 0.5 as released. Embeddings of a class change with the crop, hence 0.9.
        cases: that are remembered; of more, the last.
        source: who says where a region is: ``label``, or the ``teacher``, which speaks about unlabelled cases too.
        least: regions with fewer voxels of the patch are dropped.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, any channels; returns one scalar, ``crd``; zero where no other
        class is known yet. The memory takes 2 x cases x K x embedding numbers.
    Reads: taps, labels (or the teacher's), names of cases. Learns: both projections. Teacher: one, frozen, live.
        Regions: yes.
    Departs from the paper: a row of the memory is a class of a case, not an image; a new row begins with its first
        embedding, not with noise; Z is a moving average over batches, not measured on the first alone.

    Reference: Tian, Krishnan, Isola, *Contrastive Representation Distillation*, ICLR 2020, arXiv:1910.10699, eqs. 17
        to 19.
    Code read: HobbitLong/RepDistiller (weight 0.8).
    """

    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str = "bottleneck",
        teacher_tap: str | None = None,
        embedding: int = 128,
        temperature: float = 0.07,
        negatives: int = 512,
        momentum: float = 0.9,
        cases: int = 1024,
        source: str = "label",
        least: float = 8.0,
    ) -> None:
        super().__init__()
        check_source("crd", source)
        if temperature < 0.02:
            raise UserError(f"crd: temperature {temperature} must be 0.02 or more; its exponential would overflow")
        if not 0 <= momentum < 1:
            raise UserError(f"crd: momentum {momentum} must lie in [0, 1)")
        if min(embedding, negatives, cases) < 1:
            raise UserError("crd: embedding, negatives and cases must be 1 or more")
        self.tap, self.teacher_tap, self.size, self.temperature = tap, teacher_tap or tap, embedding, temperature
        self.negatives, self.momentum, self.cases = negatives, momentum, cases
        self.source, self.least = source, least
        self.embed_s: nn.Module = nn.Identity()
        self.embed_t: nn.Module = nn.Identity()

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        self.embed_s = nn.Linear(student.taps[self.tap].channels, self.size)
        self.embed_t = nn.Linear(teacher.taps[self.teacher_tap].channels, self.size)
        self.memory = RegionMemory(self.cases, student.classes, self.size)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        found = paired_regions(
            student.taps[self.tap],
            teacher.taps[self.teacher_tap],
            teacher,
            batch,
            source=self.source,
            least=self.least,
        )
        ours, theirs = found.rows()
        s, t = unit(self.embed_s(ours)), unit(self.embed_t(theirs))
        sample, owner = found.present.nonzero().unbind(1)
        # samples without a name are no case that could come again
        names = batch.case or tuple(f"sample {i}" for i in range(len(found.present)))
        memory = self.memory
        row = memory.places(names)[sample] * memory.classes + owner
        if self.training:
            memory.begin(row, s, t)
        drawn = self._negatives(owner)
        if not len(row) or not drawn.shape[1]:
            return {"crd": (s.sum() + t.sum()) * 0.0}
        contrast = torch.cat([row.unsqueeze(1), drawn], 1)
        loss = s.sum() * 0.0
        for side, (anchor, bank) in enumerate(((s, memory.teacher), (t, memory.student))):
            score = scores(anchor, bank[contrast], self.temperature)
            mean = memory.mean_score(side, score) if self.training else memory.means[side].clamp_min(1e-12)
            loss = loss + contrastive(score / (mean * len(bank)), len(bank))
        if self.training:
            memory.update(row, s, t, self.momentum)
        return {"crd": loss}

    def _negatives(self, owner: Tensor) -> Tensor:
        """Return rows of the memory of other classes than each anchor's, drawn at random: ``(N, m)``."""
        known = self.memory.there.flatten().nonzero().squeeze(1)
        other = (known % self.memory.classes).unsqueeze(0) != owner.unsqueeze(1)
        most = min(self.negatives, int(other.sum(1).min())) if len(owner) else 0
        score = torch.rand(other.shape, device=owner.device).masked_fill(~other, -1.0)
        return known[score.topk(most, dim=1).indices]


class RegionMemory(nn.Module):
    """One embedding of both networks for every class of every case, as buffers; cases are known by a hash.

    Args:
        cases: remembered; a new one takes the place of the oldest.
        classes: K.
        size: of an embedding.
    """

    known: Tensor
    at: Tensor
    there: Tensor
    student: Tensor
    teacher: Tensor
    means: Tensor

    def __init__(self, cases: int, classes: int, size: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("known", torch.zeros(cases, dtype=torch.long))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))
        self.register_buffer("there", torch.zeros(cases, classes, dtype=torch.bool))
        self.register_buffer("student", torch.zeros(cases * classes, size))
        self.register_buffer("teacher", torch.zeros(cases * classes, size))
        self.register_buffer("means", torch.zeros(2))

    @torch.no_grad()
    def places(self, names: tuple[str, ...]) -> Tensor:
        """Return the place of each case, ``(B,)``; one that is new gets the oldest place."""
        found = []
        for name in names:
            key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 1 or 1
            where = (self.known == key).nonzero().flatten()
            if not len(where):
                where = self.at.view(1).clone()
                self.known[where], self.there[where] = key, False
                self.at.copy_((self.at + 1) % len(self.known))
            found.append(where[:1])
        return torch.cat(found)

    @torch.no_grad()
    def begin(self, row: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Let rows that are new begin with these embeddings."""
        there = self.there.view(-1)
        new = ~there[row]
        self.student[row[new]] = student[new].to(self.student.dtype)
        self.teacher[row[new]] = teacher[new].to(self.teacher.dtype)
        there[row] = True

    @torch.no_grad()
    def update(self, row: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Move the rows towards these embeddings; of several patches of one case, towards their mean."""
        once, which = torch.unique(row, return_inverse=True)
        count = torch.bincount(which).unsqueeze(1)
        for bank, e in ((self.student, student), (self.teacher, teacher)):
            mean = torch.zeros(len(once), e.shape[1], dtype=e.dtype, device=e.device).index_add_(0, which, e) / count
            bank[once] = moved(bank[once], mean, momentum).to(bank.dtype)

    @torch.no_grad()
    def mean_score(self, side: int, score: Tensor, momentum: float = 0.9) -> Tensor:
        """Return the moving mean of the scores of one side, this batch's included."""
        now = score.mean().to(self.means.dtype)
        before = self.means[side].clone()
        self.means[side] = torch.where(before > 0, momentum * before + (1 - momentum) * now, now)
        return self.means[side].clone()


def scores(anchor: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    """Return the exponential of the similarities: anchors ``(N, d)``, keys ``(N, 1 + m, d)`` -> ``(N, 1 + m)``."""
    anchor = full(anchor)
    return ((keys.detach().to(anchor.dtype) @ anchor.unsqueeze(2)).squeeze(2) / temperature).exp()


def normaliser(score: Tensor, rows: int) -> Tensor:
    """Return the constant Z as released: the mean score of a batch times the rows of the memory; no gradient."""
    return score.detach().mean() * rows


def contrastive(h: Tensor, rows: int, eps: float = 1e-7) -> Tensor:
    """Return one side of the loss: a sum over positive and negatives, mean over anchors.

    Args:
        h: scores over Z, ``(N, 1 + m)``; the first column is the positive.
        rows: n, of the memory.
        eps: added to the denominators, as released.

    Shapes: a scalar.
    """
    noise = (h.shape[1] - 1) / rows
    whole = h + noise + eps
    positive, negative = (h[:, 0] / whole[:, 0]).log(), (noise / whole[:, 1:]).log()
    return -(positive + negative.sum(1)).mean()


def moved(rows: Tensor, towards: Tensor, momentum: float = 0.5) -> Tensor:
    """Return rows of the memory after an update, of length one: ``(N, d)`` twice -> ``(N, d)``; no gradient."""
    return unit(momentum * rows.detach() + (1 - momentum) * towards.detach())
