"""Be your own teacher (BYOT): the deepest head teaches heads on the way to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full, kl_map, label_to, resize_to
from medkd.methods.parts import Adapter, conv
from medkd.methods.supervised import dice_ce
from medkd.types import Anatomy, Batch, Round, Terms, Turn, Turns, View


@final
class BYOT(Method):
    r"""Heads on intermediate features learn the labels, the network's own output, and its last features.

    .. math:: L = \sum_i \Big[ (1 - \alpha)\,\mathrm{DiceCE}(q_i, y)
        + \alpha\,\tau^2\,\mathrm{KL}\big(\sigma(q_C/\tau) \,\|\, \sigma(q_i/\tau)\big)
        + \lambda\,\frac{1}{C N} \| A_i(F_i) - F_C \|^2 \Big]

    with :math:`q_C, F_C` the network's own logits and last features, both constants.

    Args:
        alpha: :math:`\alpha`, share of the distillation, 0.3 in the release (which has no :math:`\tau^2`: there
            0.3 is 0.033 of ours).
        feature: :math:`\lambda`; 0.03 in the release, on the unsquared norm over the whole batch.
        temperature: :math:`\tau` (no unit); 3 in the release.
        heads: feature points that get a head, a 1x1x1 convolution each; ``bottleneck`` and ``dec1`` say, the
            shallower first.
        deepest: feature point whose features are the teacher's; the last before the network's own head.

    Shapes: logits ``(B, K, *S)``, taps ``(B, C_i, *s_i)``; returns ``label``, ``kl`` and ``feature``, each the sum
        over the heads. Labels come to a head's grid by nearest, the teacher's probabilities by area.
    Reads: logits and taps of the student, labels. Learns: the heads, which are not shipped. Teacher: none. Regions: no.
    Departs from the paper: one convolution for a section's bottleneck and classifier; mean squared feature distance;
        the network's own loss is the method ``supervised`` beside it.

    Reference: Zhang et al., *Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
        Distillation*, ICCV 2019, arXiv:1905.08094, eq. 2 to 5.
    Code read: ArchipLab-LinfengZhang/pytorch-self-distillation-final, ``train.py`` (alpha 0.3, temperature 3, means
        over samples, no square of the temperature).
    """

    reads_labels: ClassVar[bool] = True
    reads_teacher: ClassVar[bool] = False

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        feature: float = 0.03,
        temperature: float = 3.0,
        heads: Sequence[str] = ("bottleneck",),
        deepest: str = "dec0",
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise UserError(f"byot: alpha {alpha} must lie in [0, 1]")
        if feature < 0:
            raise UserError(f"byot: feature {feature} must not be negative")
        if temperature <= 0:
            raise UserError(f"byot: temperature {temperature} must be above 0")
        names = (heads,) if isinstance(heads, str) else tuple(heads)
        if not names or len(set(names)) < len(names):
            raise UserError(f"byot: heads {', '.join(names) or '()'} must be one or more different taps")
        if deepest in names:
            raise UserError(f"byot: {deepest} cannot be head and teacher; choose shallower heads")
        self.alpha, self.feature, self.temperature = alpha, feature, temperature
        self.at, self.deepest = names, deepest
        self.heads, self.adapters = nn.ModuleList(), nn.ModuleList()

    def taps(self) -> tuple[str, ...]:
        return (*self.at, self.deepest)

    def teacher_taps(self) -> tuple[str, ...]:
        return ()

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        places = [student.taps[name] for name in self.at]
        last = student.taps[self.deepest]
        self.heads = nn.ModuleList(conv(student.dims, p.channels, student.classes) for p in places)
        self.adapters = nn.ModuleList(Adapter(p, last, student.dims) for p in places)

    def forward(self, student: View, teacher: View | None, batch: Batch) -> Terms:
        last = full(student.taps[self.deepest].detach())
        answer = full(student.logits.detach())
        label = kl = feature = student.logits.new_zeros((), dtype=torch.float32)
        for name, head, adapter in zip(self.at, self.heads, self.adapters, strict=True):
            x = full(student.taps[name])
            q = head(x)
            dice, ce = dice_ce(q, label_to(batch.label, q.shape[2:]), classes=batch.known)
            label = label + dice + ce
            kl = kl + soft_term(q, answer, self.temperature)
            feature = feature + feature_term(adapter(x, last.shape[2:]), last)
        return {"label": (1 - self.alpha) * label, "kl": self.alpha * kl, "feature": self.feature * feature}

    def turns(self, r: Round) -> Turns:
        yield Turn("student", self(r.view("student"), None, r.batch))


def soft_term(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the tempered KL from the deepest head to one that may have a coarser grid, mean over voxels.

    Shapes: ``(B, K, *s)`` and ``(B, K, *S)``; the teacher's tempered probabilities come to ``*s`` by area. A scalar.
    """
    if student.shape == teacher.shape:
        return kl_map(student, teacher, temperature).mean()
    p = resize_to(F.softmax(full(teacher.detach()) / temperature, dim=1), student.shape[2:])
    log_s = F.log_softmax(full(student) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, p, reduction="none").sum(1).mean()


def feature_term(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared distance of two feature maps of one shape; the teacher's is a constant."""
    return ((full(student) - full(teacher.detach())) ** 2).mean()


def byot(
    logits: Sequence[Tensor],
    label: Tensor,
    *,
    alpha: float = 0.3,
    temperature: float = 3.0,
    features: Sequence[tuple[Tensor, Tensor]] = (),
    feature_weight: float = 0.03,
) -> Tensor:
    r"""Return the released loss: cross-entropies, soft cross-entropies without :math:`\tau^2`, and feature norms.

    Args:
        logits: ``(B, K, *S)`` of each exit, the deepest first.
        label: ``(B, *S)``.
        alpha: share of the soft cross-entropy of every exit but the deepest.
        temperature: of the soft cross-entropy.
        features: adapted feature and the deepest's, one pair an exit that has this term.
        feature_weight: of the Euclidean norm, not squared, of each pair's difference over the whole batch.
    """
    deepest, *others = (full(z) for z in logits)
    p = F.softmax(deepest.detach() / temperature, dim=1)
    loss = F.cross_entropy(deepest, label)
    for z in others:
        soft = -(p * F.log_softmax(z / temperature, dim=1)).sum(1).mean()
        loss = loss + (1 - alpha) * F.cross_entropy(z, label) + alpha * soft
    for own, target in features:
        loss = loss + feature_weight * torch.linalg.vector_norm(full(own) - full(target.detach()))
    return loss
