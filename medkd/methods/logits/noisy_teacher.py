"""Logit regression to a teacher whose logits are perturbed in every step."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import OFF, binary_kl_map, full, kl_map, weighted_mean
from medkd.types import Batch, Terms, View

MATCHES = ("logits", "kl")


@final
class NoisyTeacher(Method):
    r"""Match the teacher's logits after random factors: every step has a slightly different teacher.

    .. math:: L = \frac{1}{2} \frac{\sum_n w_n \frac{1}{K} \sum_k ((1 + b\,\xi_k)\,t_{nk} - s_{nk})^2}{\sum_n w_n},
        \quad b \sim \mathrm{Bernoulli}(\alpha), \quad \xi_k \sim \mathcal{N}(0, \sigma^2)

    Args:
        probability: :math:`\alpha`, share of the samples that are perturbed; the paper searched it.
        sigma: :math:`\sigma`, deviation of the factors; a variance of 0.1 in a public port.
        grid: cells along each axis on which noise is drawn and interpolated between. 1: one draw for the whole
            patch, another teacher; noise that is white over voxels would average out.
        shared: one draw for all classes of a sample.
        additive: add the noise to the logits in place of scaling them.
        match: ``logits`` is the paper's regression; ``kl`` the tempered KL to the perturbed teacher.
        temperature: of ``kl`` (no unit).
        reduction: what :math:`w_n` is: ``balanced`` (every class that the teacher sees counts the same),
            ``foreground`` (within ``margin_mm`` of it), ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` of student and teacher; returns one scalar, ``noisy_teacher``.
    Reads: logits. Learns: nothing. Teacher: one or an ensemble, frozen, cacheable. Regions: yes.
    Departs from the paper: mean over classes and voxels, so that its loss is K times ours; class-balanced by default;
        both logits less their mean over exclusive classes, since stored targets know them up to a constant.

    Reference: Sau, Balasubramanian, *Deep Model Compression: Distilling Knowledge from Noisy Teachers*, 2016,
        arXiv:1610.09650, section 3.
    Code read: SforAiDl/KD_Lib (perturbs whole batches, probability 0.5, variance 0.1, tempered KL).
    """

    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        probability: float = 0.5,
        sigma: float = 0.3,
        grid: int = 1,
        shared: bool = False,
        additive: bool = False,
        match: str = "logits",
        temperature: float = 2.0,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise UserError(f"noisy_teacher: probability {probability} must lie in [0, 1]")
        if sigma < 0:
            raise UserError(f"noisy_teacher: sigma {sigma} must not be negative")
        if grid < 1:
            raise UserError(f"noisy_teacher: grid {grid} must be 1 or more cells")
        if match not in MATCHES:
            raise UserError(f"noisy_teacher: match {match!r} is not one of {', '.join(MATCHES)}")
        if temperature <= 0:
            raise UserError(f"noisy_teacher: temperature {temperature} must be above 0")
        check_reduction("noisy_teacher", reduction)
        self.probability, self.sigma, self.grid, self.shared = probability, sigma, grid, shared
        self.additive, self.match, self.temperature = additive, match, temperature
        self.reduction, self.margin_mm = reduction, margin_mm

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        s, t = full(student.logits), full(teacher.logits.detach())
        keep = None
        if student.known is not None:
            keep = student.known.view(*student.known.shape, *[1] * (s.ndim - 2))
            s, t = s * keep, t * keep  # a class that is switched off has no logit to compare
        if not batch.regions:
            s, t = centred(s, keep), centred(t, keep)
        noise = draw_noise(t, self.probability, self.sigma, grid=self.grid, shared=self.shared)
        t = perturb(t, noise, additive=self.additive)
        if self.match == "logits":
            loss = regression_map(s, t)
        else:
            if keep is not None:
                s, t = (torch.where(keep, x, OFF) for x in (s, t))
            loss = (binary_kl_map if batch.regions else kl_map)(s, t, self.temperature)
        return {"noisy_teacher": weighted_mean(loss, voxel_weight(teacher, batch, self.reduction, self.margin_mm))}


def noisy_teacher(
    student: Tensor, teacher: Tensor, noise: Tensor, *, additive: bool = False, weight: Tensor | None = None
) -> Tensor:
    """Return half the squared distance to the perturbed teacher, mean over voxels and classes.

    Shapes: logits ``(B, K, *S)``, noise that broadcasts to them, weight ``(B, *S)`` or None; a scalar. ``*S`` may be
    empty. The paper sums over classes: K times this.
    """
    return weighted_mean(regression_map(student, perturb(teacher, noise, additive=additive)), weight)


def centred(logits: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return ``(B, K, *S)`` logits less their mean over the classes to keep; the others must be 0 and stay so."""
    if keep is None:
        return logits - logits.mean(1, keepdim=True)
    return (logits - logits.sum(1, keepdim=True) / keep.sum(1, keepdim=True)) * keep


def perturb(teacher: Tensor, noise: Tensor, *, additive: bool = False) -> Tensor:
    """Return ``(1 + noise) * teacher``, or ``teacher + noise``, without gradient."""
    t = full(teacher.detach())
    return t + noise if additive else t * (1 + noise)


def regression_map(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the squared difference of logits, mean over classes: ``(B, K, *S)`` twice -> ``(B, *S)``."""
    return 0.5 * (full(student) - full(teacher)).square().mean(1)


def draw_noise(
    logits: Tensor,
    probability: float,
    sigma: float,
    *,
    grid: int = 1,
    shared: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return Gaussian noise for a share of the samples, zero for the others.

    Args:
        logits: ``(B, K, *S)``, of which shape, type and device are taken.
        probability: of a sample to be perturbed.
        sigma: deviation of the noise (a little less between the nodes of a grid).
        grid: nodes along each axis, interpolated linearly; 1 for noise that is constant over space.
        shared: one draw for all classes.
        generator: to draw from; torch's own when None.

    Shapes: ``(B, K or 1, *S)``, or ones in place of ``*S`` for a grid of 1.
    """
    samples, classes, *size = logits.shape
    device, dtype = logits.device, logits.dtype
    chosen = torch.rand(samples, 1, *[1 for _ in size], device=device, dtype=dtype, generator=generator) < probability
    cells = [min(grid, s) for s in size]
    drawn = (samples, 1 if shared else classes, *cells)
    noise = sigma * torch.randn(drawn, device=device, dtype=dtype, generator=generator)
    if max(cells, default=1) > 1:
        mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
        noise = F.interpolate(noise, size, mode=mode, align_corners=True)
    return noise * chosen
