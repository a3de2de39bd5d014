"""Boundary-guided distillation of predictions and features (BGKD)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import teacher_owner
from medkd.methods.ops import boundary, distance_mm, full, kl_map, resize_to, weighted_mean
from medkd.methods.parts import Adapter, unit
from medkd.types import IGNORE, Anatomy, Batch, Terms, View

_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


@final
class BGKD(Method):
    r"""Match the teacher's predictions and features in the band that dilation and erosion leave around boundaries.

    .. math:: b = \mathrm{dilate}_r(y) - \mathrm{erode}_r(y), \quad
        L_p = \tau^2 \frac{\sum_n w_n \mathrm{KL}\big(\sigma(t_n/\tau) \,\|\, \sigma(s_n/\tau)\big)}{\sum_n w_n}, \quad
        L_f = \frac{\sum_n w_n \| \hat A(F_S)_n - \hat F_{T,n} \|^2}{\sum_n w_n}

    with :math:`w = b`, or :math:`\exp(-d_n^2 / 2\sigma^2)` for the soft band, and unit vectors :math:`\hat F`.

    Args:
        radius: :math:`r`, in voxels; 1 by default (nothing published was found).
        sigma_mm: :math:`\sigma` of the soft band, in mm, cut off at three of it; None for the hard band. Where slices
            are far apart this is the one to take: a voxel is 0.7 mm in the plane and 5 mm across of an abdominal CT.
        temperature: :math:`\tau` (no unit).
        feature: weight of :math:`L_f`; 0 leaves features unread, so that the teacher can be cached.
        tap: the feature map of the student, through a 1x1x1 adapter.
        teacher_tap: the teacher's, where its name differs.

    Shapes: logits ``(B, K, *S)``, labels ``(B, *S)``, taps ``(B, C, *s)`` on the teacher's grid; returns
        ``prediction`` and, unless its weight is 0, ``feature``; both zero without any boundary.
    Reads: logits, labels (where unknown, the teacher's classes), one tap. Learns: the adapter. Teacher: one, frozen;
        cacheable without ``feature``. Regions: no.
    Departs from the paper: a reading of the family under its name, since no text was found; heads that predict the
        boundary are left out; distillation of all voxels is the method ``kd`` beside it.

    Reference: after Wen et al., *Towards Efficient Medical Image Segmentation via Boundary-Guided Knowledge
        Distillation*, ICME 2021.
    """

    reads_labels: ClassVar[bool] = True

    def __init__(
        self,
        *,
        radius: int = 1,
        sigma_mm: float | None = None,
        temperature: float = 2.0,
        feature: float = 0.5,
        tap: str = "dec0",
        teacher_tap: str | None = None,
    ) -> None:
        super().__init__()
        if radius < 1:
            raise UserError(f"bgkd: radius {radius} must be 1 voxel or more")
        if sigma_mm is not None and sigma_mm <= 0:
            raise UserError(f"bgkd: sigma_mm {sigma_mm} must be above 0")
        if temperature <= 0:
            raise UserError(f"bgkd: temperature {temperature} must be above 0")
        if feature < 0:
            raise UserError(f"bgkd: feature {feature} must not be negative")
        self.radius, self.sigma_mm, self.temperature, self.feature = radius, sigma_mm, temperature, feature
        self.tap, self.teacher_tap = tap, teacher_tap or tap

    def taps(self) -> tuple[str, ...]:
        return (self.tap,) if self.feature else ()

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,) if self.feature else ()

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        if self.feature:
            self.adapter = Adapter(student.taps[self.tap], teacher.taps[self.teacher_tap], student.dims)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        owner = torch.where(batch.label == IGNORE, teacher_owner(teacher, regions=False), batch.label)
        if self.sigma_mm is None:
            weight = morphological_band(owner, self.radius).float()
        else:
            weight = soft_band(owner, self.sigma_mm, batch.spacing_mm)
        if teacher.trust is not None:
            weight = weight * teacher.trust.squeeze(1)
        kl = kl_map(student.logits, teacher.logits, self.temperature)
        terms = {"prediction": weighted_mean(kl, weight)}
        if self.feature:
            t = teacher.taps[self.teacher_tap]
            s = self.adapter(full(student.taps[self.tap]), t.shape[2:])
            terms["feature"] = self.feature * feature_distance(s, t, weight)
        return terms


def morphological_band(owner: Tensor, radius: int = 1) -> Tensor:
    """Return dilation minus erosion of every class at once, ``(B, *S)`` bool.

    A voxel lies in it where two known classes meet in the cube of ``radius`` voxels around it; ``IGNORE`` is no class.
    """
    pool, kernel = _POOL[owner.ndim - 2], 2 * radius + 1
    known = owner != IGNORE
    x = owner.unsqueeze(1).float()
    out = torch.full_like(x, -torch.inf)
    highest, lowest = (
        pool(torch.where(known.unsqueeze(1), sign * x, out), kernel, stride=1, padding=radius).squeeze(1)
        for sign in (1, -1)
    )
    return known & (highest > -lowest)


def soft_band(owner: Tensor, sigma_mm: float, spacing_mm: tuple[float, ...]) -> Tensor:
    r"""Return :math:`\exp(-d^2/2\sigma^2)` of the distance in mm to the nearest boundary voxel, ``(B, *S)``.

    Zero beyond three sigma, and everywhere without a boundary.
    """
    d = distance_mm(boundary(owner), spacing_mm, 3 * sigma_mm)
    return torch.exp(-0.5 * (d / sigma_mm) ** 2)


def bgkd(student: Tensor, teacher: Tensor, weight: Tensor, temperature: float = 2.0) -> Tensor:
    """Return the tempered KL under a band's weight: logits ``(B, K, *S)`` twice, weight ``(B, *S)``; a scalar."""
    return weighted_mean(kl_map(student, teacher, temperature), weight)


def feature_distance(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Return the squared distance of unit features, mean over positions under ``weight``.

    Shapes: ``(B, C, *s)`` twice, weight ``(B, *S)``, brought to the grid of the features by area; a scalar.
    """
    d = ((unit(student) - unit(teacher.detach())) ** 2).sum(1)
    return weighted_mean(d, resize_to(weight.unsqueeze(1), d.shape[1:]).squeeze(1))
