"""Structured knowledge distillation (SKD): voxel by voxel, pair by pair, and as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.adversarial.skd_critic import StructureCritic
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import full, kl_map, resize_to, weighted_mean
from medkd.methods.parts import pool_nodes
from medkd.types import Anatomy, Batch, Round, Terms, Turn, Turns, View

ADVERSARIES = ("wgan-gp", "hinge")
_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


@final
class SKD(Method):
    r"""Match each voxel's distribution and the likeness of every two positions; fool a critic that sees whole maps.

    .. math:: L = \lambda_p \frac{\sum_n w_n \mathrm{KL}\big(\sigma(t_n) \,\|\, \sigma(s_n)\big)}{\sum_n w_n}
        + \lambda_a \frac{1}{N^2}\sum_{ij}(a^S_{ij} - a^T_{ij})^2 - \lambda_h\, \mathbb{E}\,D(\sigma(s) \mid x),
        \quad a_{ij} = \cos(F_i, F_j)

    .. math:: L_D = \mathbb{E}\,D(\sigma(s)|x) - \mathbb{E}\,D(\sigma(t)|x)
        + \lambda_g\,\mathbb{E}\big(\|\nabla_{\hat p} D(\hat p|x)\| - 1\big)^2

    Args:
        pixel: :math:`\lambda_p`; 10 in the paper.
        pair: :math:`\lambda_a`; 10 in the paper (CVPR), 0.5 to 1 in the release. 0 leaves features unread.
        holistic: :math:`\lambda_h`; 0.1 in the paper, 0.001 in work after it. 0 leaves the critic out.
        temperature: of the voxel term (no unit); 1 in the paper.
        adversary: ``wgan-gp`` (the paper's, with the penalty) or ``hinge``.
        penalty: :math:`\lambda_g` of ``wgan-gp``; 10 in the release.
        critic_rate: the critic's learning rate as a factor of the stage's: 0.13 of 0.003 is the 4e-4 that the release
            gives it with Adam, beside 0.01 with SGD for the student.
        tap: feature point of the student for the pairs.
        teacher_tap: the teacher's, where its name differs; channels may differ too.
        nodes: positions at most that are paired; maps are pooled to them.
        detach_norm: take the features' lengths as constants, as the release does.
        width: channels of the critic's first layer.
        reduction: voxel weights: ``balanced``, ``foreground`` or ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)``, taps ``(B, C, *s)``; returns ``pixel``, ``pair`` and ``holistic`` for the student,
        ``critic`` for the critic.
    Reads: logits, one tap, the image. Learns: a critic, with an optimiser of its own. Teacher: one, frozen; cacheable
        without ``pair``. Regions: no.
    Departs from the paper: means over voxels and pairs; the critic judges probabilities and image pooled by two and
        has three strided layers; average pooling of the nodes, to their number and not to a share of the map.

    Reference: Liu et al., *Structured Knowledge Distillation for Semantic Segmentation*, CVPR 2019,
        arXiv:1903.04197, eq. 1 to 5.
    Code read: irfanICMLL/structure_knowledge_distillation, ``utils/criterion.py`` (voxel term: cross-entropy over
        H x W, not over the batch, so B times ours in gradient; pairs: mean, lengths detached).
    """

    def __init__(
        self,
        *,
        pixel: float = 10.0,
        pair: float = 10.0,
        holistic: float = 0.1,
        temperature: float = 1.0,
        adversary: str = "wgan-gp",
        penalty: float = 10.0,
        critic_rate: float = 0.13,
        tap: str = "bottleneck",
        teacher_tap: str | None = None,
        nodes: int = 512,
        detach_norm: bool = False,
        width: int = 16,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if min(pixel, pair, holistic, penalty) < 0:
            raise UserError("skd: pixel, pair, holistic and penalty must not be negative")
        if temperature <= 0:
            raise UserError(f"skd: temperature {temperature} must be above 0")
        if adversary not in ADVERSARIES:
            raise UserError(f"skd: adversary {adversary!r} is not one of {', '.join(ADVERSARIES)}")
        if not 1 <= nodes <= 4096:
            raise UserError(f"skd: nodes {nodes} must lie in 1 to 4096: their pairs are all kept in memory")
        if critic_rate <= 0:
            raise UserError(f"skd: critic_rate {critic_rate} must be above 0; `holistic: 0` leaves the critic out")
        check_reduction("skd", reduction)
        self.pixel, self.pair, self.holistic, self.temperature = pixel, pair, holistic, temperature
        self.adversary, self.penalty, self.critic_rate = adversary, penalty, critic_rate
        self.tap, self.teacher_tap, self.nodes, self.detach_norm = tap, teacher_tap or tap, nodes, detach_norm
        self.width, self.reduction, self.margin_mm = width, reduction, margin_mm

    def taps(self) -> tuple[str, ...]:
        return (self.tap,) if self.pair else ()

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,) if self.pair else ()

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        if self.holistic:
            # the image's channels are not told; their mean stands for it
            self.critic = StructureCritic(student.classes + 1, student.dims, width=self.width)

    def players(self) -> dict[str, nn.Module]:
        return {"critic": self.critic} if self.holistic else {}

    def rates(self) -> dict[str, float]:
        return {"critic": self.critic_rate} if self.holistic else {}

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        kl = kl_map(student.logits, teacher.logits, self.temperature)
        weight = voxel_weight(teacher, batch, self.reduction, self.margin_mm)
        terms = {"pixel": self.pixel * weighted_mean(kl, weight)}
        if self.pair:
            s, t = student.taps[self.tap], teacher.taps[self.teacher_tap].detach()
            t = pool_nodes(full(t), self.nodes)
            s = resize_to(full(s), t.shape[2:])
            trust = None if teacher.trust is None else resize_to(full(teacher.trust), t.shape[2:])
            terms["pair"] = self.pair * pairwise(s, t, trust=trust, detach_norm=self.detach_norm)
        if self.holistic:
            maps, image = self._maps(student.logits, teacher.trust), self._image(batch, teacher.trust)
            terms["holistic"] = self.holistic * -self.critic(torch.cat([maps, image], 1)).mean()
        return terms

    def turns(self, r: Round) -> Turns:
        yield from super().turns(r)
        if not self.holistic:
            return
        teacher = r.view("teacher")
        image = self._image(r.batch, teacher.trust)
        fake = self._maps(r.view("student").logits.detach(), teacher.trust)
        real = self._maps(teacher.logits.detach(), teacher.trust)

        def judge(maps: Tensor) -> Tensor:
            scores: Tensor = self.critic(torch.cat([maps, image], 1))
            return scores

        if self.adversary == "hinge":
            yield Turn("critic", {"critic": hinge_critic(judge(fake), judge(real))})
            return
        mix = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
        terms = {"critic": wgan_critic(judge(fake), judge(real))}
        if self.penalty:
            terms["penalty"] = self.penalty * gradient_penalty(judge, fake, real, mix)
        yield Turn("critic", terms)

    def _maps(self, logits: Tensor, trust: Tensor | None) -> Tensor:
        p = full(logits).softmax(1)
        if trust is not None:
            p = torch.where(trust > 0, p, torch.full_like(p, 1 / p.shape[1]))
        return resize_to(p, [-(-size // 2) for size in p.shape[2:]])

    def _image(self, batch: Batch, trust: Tensor | None) -> Tensor:
        image = full(batch.image.detach()).mean(1, keepdim=True)
        if trust is not None:
            image = torch.where(trust > 0, image, torch.zeros_like(image))
        return resize_to(image, [-(-size // 2) for size in image.shape[2:]])


def pairwise(student: Tensor, teacher: Tensor, *, trust: Tensor | None = None, detach_norm: bool = False) -> Tensor:
    """Return the mean squared difference of the cosines of all pairs of positions.

    Args:
        student: ``(B, C, *s)``, already pooled.
        teacher: ``(B, C', *s)``; a constant.
        trust: ``(B, 1, *s)``; a pair counts as the product of its two, or None for one.
        detach_norm: take lengths as constants, so that the gradient has no part along a feature.

    Shapes: a scalar.
    """
    maps = [cosines(student, detach_norm=detach_norm), cosines(teacher.detach(), detach_norm=detach_norm)]
    gap = (maps[0] - maps[1]) ** 2
    if trust is None:
        return gap.mean()
    w = trust.flatten(2)
    return weighted_mean(gap, w.transpose(1, 2) * w)


def cosines(x: Tensor, *, detach_norm: bool = False) -> Tensor:
    """Return the cosine of every two positions of ``(B, C, *s)``: ``(B, N, N)``."""
    rows = full(x).flatten(2)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True) + 1e-8
    rows = rows / (length.detach() if detach_norm else length)
    likeness: Tensor = rows.transpose(1, 2) @ rows
    return likeness


def max_pool(x: Tensor, kernel: int | tuple[int, ...]) -> Tensor:
    """Return ``(B, C, *S)`` max-pooled by ``kernel``, with partial windows at the end, as released code pools nodes."""
    y: Tensor = _POOL[x.ndim - 3](x, kernel, stride=kernel, ceil_mode=True)
    return y


def pixelwise(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the KL from teacher to student, mean over voxels and batch: logits ``(B, K, *S)`` twice; a scalar."""
    return kl_map(student, teacher, temperature).mean()


def wgan_critic(student: Tensor, teacher: Tensor) -> Tensor:
    """Return what a Wasserstein critic minimises, from its scores of any shape: low for students, high for teachers."""
    return full(student).mean() - full(teacher).mean()


def hinge_critic(student: Tensor, teacher: Tensor) -> Tensor:
    """Return what a hinge critic minimises, from its scores: students below -1, teachers above 1."""
    return F.relu(1 + full(student)).mean() + F.relu(1 - full(teacher)).mean()


def fool(student: Tensor) -> Tensor:
    """Return what the student minimises, from the critic's scores of its maps."""
    return -full(student).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor, mix: Tensor) -> Tensor:
    """Return how far the critic's slope is from one on the way from student to teacher maps, squared, mean over batch.

    Shapes: maps ``(B, K, *S)`` twice; ``mix`` ``(B, 1, ...)`` in [0, 1], the teacher's share; a scalar.
    """
    between = (mix * teacher.detach() + (1 - mix) * student.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # not the norm itself, whose own slope at zero is none
    length = (slope.flatten(1) ** 2).sum(1).clamp_min(1e-24).sqrt()
    return ((length - 1) ** 2).mean()
