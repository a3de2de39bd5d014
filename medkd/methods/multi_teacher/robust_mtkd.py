"""Distillation from several teachers, each trusted class by class as well as it scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import full, one_hot, weighted_mean
from medkd.methods.supervised import dice_ce
from medkd.types import Anatomy, Batch, Round, Terms, Turn, Turns, View

MOST = 16
"""Teachers whose scores are remembered."""


@final
class RobustMTKD(Method):
    r"""Match a mean of the teachers in which each counts, class by class, by its score.

    .. math:: q_{nk} \propto \sum_m w_{mk}\, \sigma(t_{m n}/\tau)_k, \quad
        w_{mk} = \frac{s_{mk}^g}{\sum_{m'} s_{m'k}^g}, \quad
        L = \tau^2 \frac{\sum_n w_n \mathrm{KL}\big(q_n \,\|\, \sigma(s_n/\tau)\big)}{\sum_n w_n}

    Args:
        scores: :math:`s`, for each teacher a number, or a list with one for each class (0 for a class it does not
            know). None: the Dice that each has on the labelled voxels of the training so far.
        power: :math:`g` (no unit); 1 by default, larger trusts the best more.
        temperature: :math:`\tau` (no unit).
        hard: weight of Dice plus cross-entropy against :math:`\arg\max_k q`, the score-weighted vote, on voxels
            of all cases; 0 leaves it out.
        reduction: voxel weights of the KL: ``balanced``, ``foreground`` or ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` of student and every teacher; returns ``soft`` and, unless its weight is 0, ``hard``.
    Reads: logits of every single teacher, labels (for scores not given). Learns: nothing; remembers scores.
        Teacher: several, frozen, live. Regions: no.
    Departs from the paper: the weighting formula is our reading, since no text was found; scores may come from the
        training cases, which flatter all teachers alike.

    Reference: after Amirkhani et al., *Robust Semantic Segmentation With Multi-Teacher Knowledge Distillation*,
        IEEE Access 2021.
    """

    reads_labels: ClassVar[bool] = False
    needs_live_teacher: ClassVar[bool] = True
    hits: Tensor
    sizes: Tensor

    def __init__(
        self,
        *,
        scores: Sequence[float | Sequence[float]] | None = None,
        power: float = 1.0,
        temperature: float = 2.0,
        hard: float = 0.0,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if power < 0:
            raise UserError(f"robust_mtkd: power {power} must not be negative")
        if temperature <= 0:
            raise UserError(f"robust_mtkd: temperature {temperature} must be above 0")
        if hard < 0:
            raise UserError(f"robust_mtkd: hard {hard} must not be negative")
        check_reduction("robust_mtkd", reduction)
        self.scores = scores
        self.power, self.temperature, self.hard = power, temperature, hard
        self.reduction, self.margin_mm = reduction, margin_mm

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        self.classes = student.classes
        self.register_buffer("hits", torch.zeros(MOST, student.classes, dtype=torch.float64))
        self.register_buffer("sizes", torch.zeros(MOST, student.classes, dtype=torch.float64))
        if self.scores is not None:
            score_table(self.scores, student.classes)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        """Return the terms for a fused teacher, whose logits are tempered log-probabilities times the temperature."""
        q = F.softmax(full(teacher.logits.detach()) / self.temperature, dim=1)
        kl = soft_kl(student.logits, q, self.temperature)
        weight = voxel_weight(teacher, batch, self.reduction, self.margin_mm)
        terms = {"soft": weighted_mean(kl, weight)}
        if self.hard:
            vote = q.argmax(1)
            if teacher.trust is not None:
                vote = torch.where(teacher.trust.squeeze(1) > 0, vote, -1)
            dice, ce = dice_ce(student.logits, vote)
            terms["hard"] = self.hard * (dice + ce)
        return terms

    def turns(self, r: Round) -> Turns:
        names = r.teachers or ("teacher",)
        views = [r.view(name) for name in names]
        if self.scores is None:
            self._remember(views, r.batch.label)
            scores = dice_so_far(self.hits[: len(views)], self.sizes[: len(views)])
        else:
            scores = score_table(self.scores, self.classes).to(views[0].logits.device)
            if len(scores) != len(views):
                raise UserError(f"robust_mtkd: {len(scores)} scores for {len(views)} teachers; give each its own")
        q = fuse([v.logits for v in views], scores.float(), self.temperature, self.power)
        fused = View(self.temperature * q.clamp_min(1e-8).log(), {}, views[0].trust)
        yield Turn("student", self(r.view("student"), fused, r.batch))

    @torch.no_grad()
    def _remember(self, views: Sequence[View], label: Tensor) -> None:
        if len(views) > MOST:
            raise UserError(f"robust_mtkd: {len(views)} teachers, and the scores of {MOST} fit; give `scores`")
        for m, view in enumerate(views):
            known = (label >= 0).unsqueeze(1).float()
            if view.trust is not None:
                known = known * (view.trust > 0)
            truth = (one_hot(label, self.classes) * known).flatten(2)
            found = (one_hot(view.logits.argmax(1), self.classes) * known).flatten(2)
            self.hits[m] += (found * truth).sum(-1).double().sum(0)
            self.sizes[m] += (found.sum(-1) + truth.sum(-1)).double().sum(0)


def dice_so_far(hits: Tensor, sizes: Tensor) -> Tensor:
    """Return each teacher's Dice of each class, ``(M, K)``: 1 for what was never seen, at least 0.01.

    Args:
        hits: ``(M, K)`` voxels on which teacher and label agreed.
        sizes: ``(M, K)`` voxels of the teacher's class plus voxels of the label's.
    """
    return torch.where(sizes > 0, 2 * hits / sizes.clamp_min(1), torch.ones_like(hits)).clamp_min(0.01)


def score_table(scores: Sequence[float | Sequence[float]], classes: int) -> Tensor:
    """Return the scores as ``(M, K)`` float32.

    Raises:
        UserError: a row of another length, a negative score, or a class that no teacher knows.
    """
    rows = [[float(row)] * classes if isinstance(row, int | float) else [float(x) for x in row] for row in scores]
    for m, row in enumerate(rows):
        if len(row) != classes:
            raise UserError(f"robust_mtkd: teacher {m} has {len(row)} scores; give one, or {classes} (one a class)")
    table = torch.tensor(rows)
    if not len(rows) or bool((table < 0).any()) or bool((table.sum(0) <= 0).any()):
        raise UserError("robust_mtkd: scores must not be negative, and every class needs a teacher that scores above 0")
    return table


def teacher_weights(scores: Tensor, power: float = 1.0) -> Tensor:
    """Return each teacher's share of every class: ``(M, K)`` scores -> ``(M, K)``, columns sum to one."""
    # 0 ** 0 is 1 and would let a teacher speak about a class it does not know
    raised = torch.where(scores > 0, scores.clamp_min(1e-30) ** power, torch.zeros_like(scores))
    return raised / raised.sum(0, keepdim=True)


def fuse(teachers: Sequence[Tensor], scores: Tensor, temperature: float = 1.0, power: float = 1.0) -> Tensor:
    """Return the score-weighted mean of the teachers' tempered probabilities, ``(B, K, *S)``, sum one over classes.

    Args:
        teachers: logits ``(B, K, *S)`` of each.
        scores: ``(M, K)``.
        temperature: softens each.
        power: of the scores.
    """
    weights = teacher_weights(scores, power)
    q = torch.zeros_like(full(teachers[0]))
    for t, w in zip(teachers, weights, strict=True):
        p = F.softmax(full(t.detach()) / temperature, dim=1)
        q = q + p * w.to(p).view(1, -1, *[1] * (p.ndim - 2))
    return q / q.sum(1, keepdim=True).clamp_min(1e-12)


def soft_kl(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    r"""Return :math:`\tau^2\,\mathrm{KL}(q\,\|\,\sigma(s/\tau))` of every voxel: ``(B, K, *S)`` twice -> ``(B, *S)``."""
    log_s = F.log_softmax(full(student) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, target.detach(), reduction="none").sum(1)
