"""The task loss: soft Dice plus cross-entropy, a method like any other."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.methods.base import Method
from medkd.methods.ops import full, label_to, marginal, one_hot, resize_to, weighted_mean
from medkd.types import IGNORE, Batch, Round, Terms, Turn, Turns, View


@final
class Supervised(Method):
    r"""Learn the labels: soft Dice over the foreground classes plus cross-entropy, for every learner.

    .. math:: L = \lambda_D \Big(1 - \tfrac{1}{|F|}\sum_{k \in F}
        \frac{2\sum_n p_{nk} y_{nk} + \epsilon}{\sum_n p_{nk} + \sum_n y_{nk} + \epsilon}\Big)
        - \lambda_C \tfrac{1}{N}\sum_n \log p_{n y_n}

    The Dice sums run over the batch, so that a class absent from one patch does no harm. Voxels and
    whole cases without label are skipped. Where a label knows only some classes, its background means "none of
    these": the others' probability is added to the background's, and :math:`F` are those known. Deep-supervision heads (``logits_1``...) weigh 1/2, 1/4, ...

    Args:
        dice: :math:`\lambda_D`, weight of the Dice term (no unit).
        ce: :math:`\lambda_C`, weight of the cross-entropy.
        smooth: :math:`\epsilon`, in voxels.

    Shapes: logits ``(B, K, *S)``, labels ``(B, *S)``, or ``(B, K, *S)`` for overlapping regions
        (sigmoid, binary cross-entropy, every region counts); returns ``dice`` and ``ce``.
    Reads: logits, labels. Learns: nothing. Teacher: none.
    Departs from the paper: Dice over the batch, not per sample.

    Reference: Isensee et al., *nnU-Net*, Nature Methods 18 (2021), arXiv:1809.10486 (loss and head weights).
    Code read: MIC-DKFZ/nnUNet, ``training/loss``.
    """

    reads_labels: ClassVar[bool] = True
    reads_teacher: ClassVar[bool] = False
    regions: ClassVar[bool] = True

    def __init__(self, *, dice: float = 1.0, ce: float = 1.0, smooth: float = 1e-5) -> None:
        super().__init__()
        self.dice, self.ce, self.smooth = dice, ce, smooth

    def forward(self, student: View, teacher: View | None, batch: Batch) -> Terms:
        label = batch.label
        heads = [student.logits, *(tap for name, tap in sorted(student.taps.items()) if name.startswith("logits_"))]
        weights = [0.5**i for i in range(len(heads))]
        total = sum(weights)
        dice = ce = student.logits.new_zeros((), dtype=torch.float32)
        for head, weight in zip(heads, weights, strict=True):
            logits = head
            target = label
            if head.shape[2:] != label.shape[-(head.ndim - 2) :]:
                if batch.regions:
                    logits = resize_to(head, label.shape[2:])
                else:
                    target = label_to(label, head.shape[2:])
            d, c = (
                dice_ce_regions(logits, target, self.smooth)
                if batch.regions
                else dice_ce(logits, target, self.smooth, batch.known)
            )
            dice, ce = dice + weight / total * d, ce + weight / total * c
        return {"dice": self.dice * dice, "ce": self.ce * ce}

    def turns(self, r: Round) -> Turns:
        for name in r.learners:
            yield Turn(name, self(r.view(name), None, r.batch))


def soft_dice(p: Tensor, y: Tensor, smooth: float = 1e-5) -> Tensor:
    """Return the soft Dice coefficient of each class over the batch: ``(B, K, *S)`` twice -> ``(K,)``."""
    axes = [0, *range(2, p.ndim)]
    return (2 * (p * y).sum(axes) + smooth) / (p.sum(axes) + y.sum(axes) + smooth)


def dice_ce(
    logits: Tensor, label: Tensor, smooth: float = 1e-5, classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the Dice loss of the foreground classes and the cross-entropy of exclusive classes.

    Shapes: logits ``(B, K, *S)``, label ``(B, *S)`` with ``IGNORE`` skipped, ``classes`` ``(B, K)`` bool, those that
    each sample's label tells from background, or None for all; two scalars, zero (with a zero gradient) where no voxel
    is labelled. A class that no sample knows has no part in the mean of the Dice.
    """
    logits = full(marginal(logits, classes))
    known = label != IGNORE
    counted = None if classes is None or bool(classes.all()) else classes[:, 1:].any(0)
    if not bool(known.any()) or (counted is not None and not bool(counted.any())):
        return logits.sum() * 0.0, logits.sum() * 0.0
    log_p = F.log_softmax(logits, dim=1)
    ce = weighted_mean(F.nll_loss(log_p, label.clamp_min(0), reduction="none"), known)
    p = log_p.exp() * known.unsqueeze(1)
    dice = soft_dice(p[:, 1:], one_hot(label, logits.shape[1])[:, 1:], smooth)
    return 1 - (dice if counted is None else dice[counted]).mean(), ce


def dice_ce_regions(logits: Tensor, label: Tensor, smooth: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return Dice loss and binary cross-entropy of overlapping regions, both ``(B, K, *S)``, mean over regions."""
    logits = full(logits)
    known = label != IGNORE
    target = label.clamp_min(0).float()
    ce = weighted_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), known)
    dice = soft_dice(torch.sigmoid(logits) * known, target * known, smooth)
    return torch.where(known.any(), 1 - dice.mean(), logits.sum() * 0.0), ce
