"""Inter-region affinity distillation (IntRA-KD): the graph of the organs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import coarser, pair_taps
from medkd.methods.ops import full, resize_to, weighted_mean
from medkd.methods.parts import unit
from medkd.methods.regions import check_source, region_masks
from medkd.types import Anatomy, Batch, Terms, View


@final
class IntraKD(Method):
    r"""Match the graph of the organs: nodes are three moments of an organ's features, rim included, edges cosines.

    .. math:: L = \frac{1}{3|P|^2} \sum_{r=1}^3 \sum_{ij} \big(\cos(\mu^s_{ri}, \mu^s_{rj})
        - \cos(\mu^t_{ri}, \mu^t_{rj})\big)^2

    with :math:`\mu_{1k}` the mean, :math:`\mu_{2k}` the variance and :math:`\mu_{3k}` the skewness of every channel over
    the area of interest of class k, the class grown by a kernel; over the classes P that are there.

    Args:
        tap: the student's feature point, or a list of them, whose terms add.
        teacher_tap: the teacher's, or a list; the same names when None.
        kernel: side of the growth in voxels of the patch, odd; 1 for none. On a coarser grid as near as its cells allow.
        moments: weight of the second term, the squared difference of the moments themselves; needs equal channels.
        source: who says where a class is: ``label``, or the ``teacher``, which speaks about unlabelled cases too.
        least: areas with fewer cells of the feature grid are dropped.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, compared on the coarser grid; returns ``affinity``, and
        ``moments``, weighted, where asked for.
    Reads: taps, labels (or the teacher's). Learns: nothing. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: moments are computed on features shifted and scaled a channel, which changes no number but
        keeps them exact in float32; weights and kernel are not known to us.

    Reference: after Hou et al., *Inter-Region Affinity Distillation for Road Marking Segmentation*, CVPR 2020,
        arXiv:2004.05304.
    Code read: cardwing/Codes-for-IntRA-KD, which has no distillation in it.
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = "dec0",
        teacher_tap: str | Sequence[str] | None = None,
        kernel: int = 5,
        moments: float = 0.0,
        source: str = "label",
        least: float = 4.0,
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("intra_kd", tap, teacher_tap)
        check_source("intra_kd", source)
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"intra_kd: kernel {kernel} must be odd, so that it has a middle")
        if moments < 0:
            raise UserError(f"intra_kd: moments {moments} is a weight and must not be negative")
        self.kernel, self.moments, self.source, self.least = kernel, moments, source, least

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        for s, t in self.pairs:
            ours, theirs = student.taps[s].channels, teacher.taps[t].channels
            if self.moments and ours != theirs:
                raise UserError(
                    f"intra_kd: moments needs equal channels, and {s} has {ours}, the teacher's {t} {theirs}"
                )

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        affinity = moment = full(student.logits).new_zeros(())
        for a, b in self.pairs:
            s, t = student.taps[a], teacher.taps[b].detach()
            size = coarser(s, t)
            s, t = resize_to(full(s), size), resize_to(full(t), size)
            stride = [n / m for n, m in zip(batch.image.shape[2:], size, strict=True)]
            areas = grow(region_masks(teacher, batch, size, self.source), [self.kernel / step for step in stride])
            if teacher.trust is not None:  # a rim may reach into what is not trusted
                weight = resize_to(full(teacher.trust), size)
                s, t = (torch.where(weight > 0, x, torch.zeros_like(x)) for x in (s, t))
                areas = areas * (weight > 0)
            ours, theirs = moments(s, areas), moments(t, areas)
            affinity = affinity + intra_kd(ours, theirs, areas.flatten(2).sum(2) >= self.least)
            if self.moments:
                moment = moment + moment_distance(ours, theirs, areas.flatten(2).sum(2) >= self.least)
        terms = {"affinity": affinity}
        return {**terms, "moments": self.moments * moment} if self.moments else terms


class Moments(NamedTuple):
    """Mean, variance and skewness of every channel over every area, ``(B, K, C)`` each."""

    mean: Tensor
    variance: Tensor
    skewness: Tensor


def grow(masks: Tensor, kernel: Sequence[float]) -> Tensor:
    """Return which cells have any of a class within a box of ``kernel`` cells: ``(B, K, *s)`` of 0 and 1.

    One number an axis, rounded down to the next odd one, at least 1.
    """
    inside = (masks > 0).float()
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[masks.ndim - 3]
    radius = tuple(max(0, int((side - 1) / 2 + 1e-6)) for side in kernel)
    if not any(radius):
        return inside
    grown: Tensor = pool(inside, tuple(2 * r + 1 for r in radius), stride=1, padding=radius)
    return grown


def moments(features: Tensor, areas: Tensor) -> Moments:
    """Return the first three moments of ``(B, C, *s)`` over areas ``(B, K, *s)``; of an empty area zero."""
    x, m = full(features).flatten(2), full(areas).flatten(2)
    m = m.to(x.dtype)
    # about a common centre and scale: raw moments far from zero lose all digits. Constants, so no gradient is lost.
    flat = x.detach()
    centre = flat.mean(2, keepdim=True)
    scale = (flat - centre).square().mean(2, keepdim=True).sqrt().clamp_min(1e-4)
    z = (x - centre) / scale
    count = m.sum(2).clamp_min(1e-6).unsqueeze(2)
    first, second, third = (torch.einsum("bcn,bkn->bkc", z.pow(r), m) / count for r in (1, 2, 3))
    variance = (second - first.square()).clamp_min(0)
    skewness = (third - 3 * first * second + 2 * first.pow(3)) / variance.clamp_min(1e-6).pow(1.5)
    there = (m.sum(2) > 0).unsqueeze(2)
    mean = first * scale.transpose(1, 2) + centre.transpose(1, 2)
    return Moments(*(v * there for v in (mean, variance * scale.transpose(1, 2).square(), skewness)))


def intra_kd(student: Moments, teacher: Moments, present: Tensor) -> Tensor:
    """Return the squared difference of the affinities, mean over moments and pairs of present classes, one with itself.

    Shapes: moments ``(B, K, C_s)`` and ``(B, K, C_t)``, present ``(B, K)`` bool; a scalar, mean over the samples with
    any class. The teacher gets no gradient.
    """
    pairs = (present.unsqueeze(1) & present.unsqueeze(2)).to(student.mean.dtype)
    squared = torch.stack(
        [(_cosines(s) - _cosines(t.detach())).square() for s, t in zip(student, teacher, strict=True)]
    )
    per_sample = (squared.mean(0) * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)
    return weighted_mean(per_sample, present.any(1))


def moment_distance(student: Moments, teacher: Moments, present: Tensor) -> Tensor:
    """Return the squared distance of the moments, a sum over moments and channels, mean over present classes."""
    squared = sum((s - t.detach()).square().sum(2) for s, t in zip(student, teacher, strict=True))
    assert isinstance(squared, Tensor)
    return weighted_mean(squared, present)


def _cosines(nodes: Tensor) -> Tensor:
    u = unit(nodes, 2)
    return u @ u.transpose(1, 2)
