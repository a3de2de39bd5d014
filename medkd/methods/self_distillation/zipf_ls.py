"""Zipf's label smoothing: soft labels from the student's own ranking of the wrong classes."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import OFF, boundary, dilate, full, one_hot
from medkd.types import IGNORE, Batch, Round, Terms, Turn, Turns, View

DISTRIBUTIONS = ("rank_zipf", "unbiased_zipf")
_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@final
class ZipfLS(Method):
    r"""Near boundaries, shape the wrong classes' probabilities like Zipf's law in the order that neighbours vote for.

    .. math:: L = \frac{1}{|V|}\sum_{n \in V} \mathrm{KL}\big(q_n \,\|\, \sigma(z_n)_{c \ne y_n}\big), \quad
        q_{nc} \propto r_{nc}^{-p}, \quad r_{nc} = 1 + |\{c' : v_{nc'} > v_{nc}\}|

    with :math:`v` the votes: how many voxels of a cube around n the student gives to each class, and the softmax
    over the K - 1 classes that are not the label.

    Args:
        distribution: ``unbiased_zipf`` (the release's default: :math:`q` is the integral of :math:`x^{-p}` over the
            rank's cell, averaged over tied ranks) or ``rank_zipf`` (the paper's formula).
        power: :math:`p` (no unit); 1 in the paper.
        left_bound: where the first cell of ``unbiased_zipf`` begins; 0.001 in the released recipes.
        right_bound: where the last one ends.
        votes: edge of the cube in voxels, odd; 1 ranks by the voxel's own logits.
        band_mm: half width, in mm, of the band around label boundaries in which voxels take part: elsewhere the
            cube votes for one class and all others tie.
        correct_only: leave out voxels that the student gets wrong (an option of the release).

    Shapes: logits ``(B, K, *S)``, labels ``(B, *S)``; returns one scalar, ``zipf_ls``; zero for two classes.
    Reads: logits of the student, labels. Learns: nothing. Teacher: none. Regions: no.
    Departs from the paper: the vote of an image's feature positions becomes a vote of a voxel's neighbours; only
        voxels near a boundary; heads at earlier stages are left out.

    Reference: Liang et al., *Efficient One Pass Self-distillation with Zipf's Label Smoothing*, ECCV 2022,
        arXiv:2207.12980, eq. 1 to 5.
    Code read: megvii-research/zipfls, ``pytorch_zipfls`` (weight 0.1 for 100 and 1000 classes, else 1; mean over
        samples).
    """

    reads_labels: ClassVar[bool] = True
    reads_teacher: ClassVar[bool] = False

    def __init__(
        self,
        *,
        distribution: str = "unbiased_zipf",
        power: float = 1.0,
        left_bound: float = 0.001,
        right_bound: float = 1.0,
        votes: int = 5,
        band_mm: float = 3.0,
        correct_only: bool = False,
    ) -> None:
        super().__init__()
        if distribution not in DISTRIBUTIONS:
            raise UserError(f"zipf_ls: distribution {distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")
        if power < 0:
            raise UserError(f"zipf_ls: power {power} must not be negative")
        if not 0 < left_bound < right_bound:
            raise UserError(f"zipf_ls: bounds {left_bound} to {right_bound} must be above 0 and in order")
        if votes < 1 or votes % 2 == 0:
            raise UserError(f"zipf_ls: votes {votes} must be an odd number of voxels")
        if band_mm <= 0:
            raise UserError(f"zipf_ls: band_mm {band_mm} must be above 0")
        self.distribution, self.power = distribution, power
        self.left_bound, self.right_bound = left_bound, right_bound
        self.votes, self.band_mm, self.correct_only = votes, band_mm, correct_only

    def forward(self, student: View, teacher: View | None, batch: Batch) -> Terms:
        z, label = student.logits, batch.label
        here = dilate(boundary(label), self.band_mm, batch.spacing_mm) & (label != IGNORE)
        if not bool(here.any()):
            return {"zipf_ls": full(z).sum() * 0.0}
        scores = z.detach() if self.votes == 1 else neighbour_votes(z, self.votes, label != IGNORE)
        rows, rank_by = z.movedim(1, -1)[here], scores.movedim(1, -1)[here]
        loss = zipf_ls(
            rows,
            label[here],
            rank_by,
            distribution=self.distribution,
            power=self.power,
            left_bound=self.left_bound,
            right_bound=self.right_bound,
            share_ties=self.votes > 1,
            correct_only=self.correct_only,
        )
        return {"zipf_ls": loss}

    def turns(self, r: Round) -> Turns:
        yield Turn("student", self(r.view("student"), None, r.batch))


def neighbour_votes(logits: Tensor, edge: int, known: Tensor | None = None) -> Tensor:
    """Return, for each voxel and class, the voxels won by the class in a cube of odd ``edge``: ``(B, K, *S)``.

    ``known`` ``(B, *S)`` bool leaves out voxels, or none when None.
    """
    wins = one_hot(logits.detach().argmax(1), logits.shape[1])
    if known is not None:
        wins = wins * known.unsqueeze(1)
    wins = F.pad(wins, [edge // 2] * (2 * (logits.ndim - 2)))
    pooled: Tensor = _POOL[logits.ndim - 3](wins, edge, stride=1)
    # whole numbers again, so that ties are ties
    votes: Tensor = (pooled * float(edge ** (logits.ndim - 2))).round()
    return votes


def zipf_ls(
    logits: Tensor,
    label: Tensor,
    scores: Tensor,
    *,
    distribution: str = "unbiased_zipf",
    power: float = 1.0,
    left_bound: float = 0.01,
    right_bound: float = 1.0,
    share_ties: bool = True,
    correct_only: bool = False,
) -> Tensor:
    """Return the KL from the Zipf target to the softmax over the classes that are not the label, mean over voxels.

    Args:
        logits: ``(N, K)`` or ``(B, K, *S)``.
        label: ``(N,)`` or ``(B, *S)``, every one known.
        scores: what classes are ranked by, of the logits' shape: the logits, or votes.
        distribution: ``rank_zipf`` or ``unbiased_zipf``.
        power: exponent of the law.
        left_bound: of ``unbiased_zipf``.
        right_bound: of ``unbiased_zipf``.
        share_ties: tied classes share the mean of their cells (``unbiased_zipf`` on votes in the release).
        correct_only: mean over the voxels whose likeliest class is the label; zero where there is none.
    """
    classes = logits.shape[1]
    z, y = full(logits).movedim(1, -1).reshape(-1, classes), label.reshape(-1, 1)
    s = scores.detach().movedim(1, -1).reshape(-1, classes)
    if distribution == "rank_zipf":
        law = rank_zipf(ranks(s)[0].to(z.dtype), power)
    else:
        first, last = (rank.to(z.dtype) for rank in ranks(s))
        law = unbiased_zipf(first, last if share_ties else first, classes, power, left_bound, right_bound)
    law = law * (z > OFF / 2)  # a class that is switched off has no rank
    wrong = torch.ones_like(z, dtype=torch.bool).scatter_(1, y, value=False)
    target = law[wrong].view(-1, classes - 1)
    target = target / target.sum(1, keepdim=True).clamp_min(1e-12)
    log_p = F.log_softmax(z[wrong].view(-1, classes - 1), dim=1)
    kl = F.kl_div(log_p, target, reduction="none").sum(1)
    if not correct_only:
        return kl.mean()
    right = (z.argmax(1, keepdim=True) == y).squeeze(1).to(kl.dtype)
    return (kl * right).sum() / right.sum().clamp_min(1)


def ranks(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last rank that each entry of ``(N, K)`` may claim, 1 the best; they differ for ties."""
    count = scores.shape[1]
    order = scores.sort(dim=1).values
    above = count - torch.searchsorted(order, scores.contiguous(), right=True)
    return above + 1, count - torch.searchsorted(order, scores.contiguous(), right=False)


def rank_zipf(rank: Tensor, power: float = 1.0) -> Tensor:
    """Return Zipf's law of ranks from 1, not normalised."""
    return rank**-power


def unbiased_zipf(
    first: Tensor, last: Tensor, classes: int, power: float = 1.0, left_bound: float = 0.01, right_bound: float = 1.0
) -> Tensor:
    """Return the integral of ``x ** -power`` over the cells of ranks ``first`` to ``last``, divided by their number.

    ``classes`` equal cells divide the way from ``left_bound`` to ``right_bound``; not normalised, and for powers
    other than 1 without the constant factor.
    """
    cell = (right_bound - left_bound) / classes
    a, b = left_bound + (first - 1) * cell, left_bound + last * cell
    if power == 1:
        return (b / a).log() / (last - first + 1)
    return (a ** (1 - power) - b ** (1 - power)) / (power - 1) / (last - first + 1)
