"""Multi-model ensemble via adversarial learning (MEAL): one teacher a step, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import full, resize_to, weighted_mean
from medkd.types import Anatomy, Batch, Round, Terms, Turn, Turns, View

SIMILARITIES = ("ce", "l1", "l2")


@final
class MEAL(Method):
    r"""In every step match one teacher, drawn at random, and look to a discriminator like it.

    .. math:: L = \frac{\sum_n w_n H\big(\sigma(t_n), \sigma(s_n)\big)}{\sum_n w_n} + \eta\,
        \mathrm{BCE}\big(D(\bar p_S), (1, 0)\big) + \eta\,\mathrm{BCE}\big(D(\bar p_T), (0, 1)\big), \quad t \sim \{t_0 \dots t_m\}

    with :math:`\bar p` the class probabilities pooled to a few cells. Over the steps the student learns the mean of
    the teachers' distributions, for the cost of one.

    Args:
        similarity: ``ce`` (cross-entropy of the distributions, the paper's choice), ``l1`` or ``l2``.
        adversarial: :math:`\eta` (no unit); 1 in the release.
        reverse: the student fights the discriminator, whose gradient reaches it with the other sign, as the paper
            says; False as in the release, where both minimise the same loss.
        cells: along each axis, to which probabilities are pooled for the discriminator.
        width: of its two hidden layers.
        reduction: voxel weights of the similarity: ``balanced``, ``foreground`` or ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` of student and teachers; returns ``similarity`` and, unless its weight is 0,
        ``discriminator``.
    Reads: logits of one single teacher a step. Learns: the discriminator. Teacher: one or several, frozen, live.
        Regions: no.
    Departs from the paper: the last block only (the release's setting for several teachers); per voxel; the labels
        are the method ``supervised`` beside it, which the paper leaves out.

    Reference: Shen, He, Xue, *MEAL: Multi-Model Ensemble via Adversarial Learning*, AAAI 2019, arXiv:1812.02425,
        eq. 2 to 7.
    Code read: AaronHeee/MEAL, ``loss.py`` (mean over samples; weights by block 0.001 to 1; no gradient reversal).
    """

    needs_live_teacher: ClassVar[bool] = True
    exempt: ClassVar[Mapping[str, str]] = {"patch": "the discriminator sees where in the patch a class lies"}

    def __init__(
        self,
        *,
        similarity: str = "ce",
        adversarial: float = 1.0,
        reverse: bool = True,
        cells: int = 4,
        width: int = 64,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise UserError(f"meal: similarity {similarity!r} is not one of {', '.join(SIMILARITIES)}")
        if adversarial < 0:
            raise UserError(f"meal: adversarial {adversarial} must not be negative")
        if cells < 1 or width < 1:
            raise UserError(f"meal: cells {cells} and width {width} must be 1 or more")
        check_reduction("meal", reduction)
        self.similarity, self.adversarial, self.reverse = similarity, adversarial, reverse
        self.cells, self.width, self.reduction, self.margin_mm = cells, width, reduction, margin_mm

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        if self.adversarial:
            inside = student.classes * self.cells**student.dims
            self.discriminator = nn.Sequential(
                nn.Linear(inside, self.width),
                nn.LeakyReLU(0.2),
                nn.Linear(self.width, self.width),
                nn.LeakyReLU(0.2),
                nn.Linear(self.width, 2),
            )

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        loss = similarity_map(student.logits, teacher.logits, self.similarity)
        weight = voxel_weight(teacher, batch, self.reduction, self.margin_mm)
        terms = {"similarity": weighted_mean(loss, weight)}
        if self.adversarial:
            s, t = (self._pooled(view.logits, teacher.trust) for view in (student, teacher))
            s = reverse_gradient(s) if self.reverse else s
            loss = discriminator_loss(self.discriminator(s), self.discriminator(t.detach()))
            terms["discriminator"] = self.adversarial * loss
        return terms

    def turns(self, r: Round) -> Turns:
        name = "teacher"
        if r.teachers:
            name = r.teachers[int(torch.randint(len(r.teachers), ()))]
        yield Turn("student", self(r.view("student"), r.view(name), r.batch))

    def _pooled(self, logits: Tensor, trust: Tensor | None) -> Tensor:
        p = full(logits).softmax(1)
        if trust is not None:
            p = torch.where(trust > 0, p, torch.zeros_like(p)) * trust
        return resize_to(p, [self.cells] * (p.ndim - 2)).flatten(1)


def similarity_map(student: Tensor, teacher: Tensor, kind: str = "ce") -> Tensor:
    """Return how far two class distributions are apart at every voxel.

    Shapes: logits ``(B, K, *S)`` twice -> ``(B, *S)``. ``ce``: cross-entropy, sum over classes; ``l1`` and ``l2``:
    absolute and squared difference of probabilities, mean over classes. The teacher gets no gradient.
    """
    s, t = full(student), full(teacher.detach())
    if kind == "ce":
        return -(t.softmax(1) * F.log_softmax(s, dim=1)).sum(1)
    gap = s.softmax(1) - t.softmax(1)
    return gap.abs().mean(1) if kind == "l1" else (gap**2).mean(1)


def meal(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Sequence[float] | None = None, kind: str = "ce"
) -> Tensor:
    """Return the published similarity: the weighted sum over blocks of mean differences; a scalar.

    Shapes: one ``(B, C, *S)`` a block, of student and teacher.
    """
    gammas = [1.0] * len(student) if weights is None else weights
    terms = [g * similarity_map(s, t, kind).mean() for s, t, g in zip(student, teacher, gammas, strict=True)]
    return torch.stack(terms).sum()


def discriminator_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the binary cross-entropy of two outputs a sample, students to (1, 0) and teachers to (0, 1).

    Shapes: logits ``(B, 2)`` of the discriminator twice; a scalar, mean over all outputs.
    """
    both = torch.cat([full(student), full(teacher)])
    own, other = both.new_tensor([1.0, 0.0]), both.new_tensor([0.0, 1.0])
    target = torch.cat([own.expand(len(student), 2), other.expand(len(teacher), 2)])
    return F.binary_cross_entropy_with_logits(both, target)


def reverse_gradient(x: Tensor) -> Tensor:
    """Return ``x``; its gradient comes back with the other sign."""
    y: Tensor = _Reverse.apply(x)  # type: ignore[no-untyped-call]
    return y


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return -grads[0]
