"""Global information distillation (GID): a transformer's tokens taught to a convolutional student."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import binary_kl_map, full, kl_map, resize_to, weighted_mean
from medkd.methods.parts import NODES, conv
from medkd.methods.regions import trusted_nodes
from medkd.types import Anatomy, Batch, Terms, View


@final
class GID(Method):
    r"""Match the teacher's tokens through a transformer layer of the training alone, and the pooled predictions.

    .. math:: L_T = \frac{1}{M d} \big\|H(\mathrm{conv}(F^s)) - F^t\big\|_2^2, \quad L_P = \tau^2\,\overline{\mathrm{KL}
        \big(\sigma(\mathrm{pool}_r(t)/\tau) \,\|\, \sigma(\mathrm{pool}_r(s)/\tau)\big)}

    H is one pre-norm layer of attention over the M tokens: it does the mixing over the volume, so that the student has
    to supply only its ingredients.

    Args:
        tap: the student's feature point.
        teacher_tap: the teacher's, where its name differs: tokens as a grid, or any features.
        tokens: weight of :math:`L_T`.
        prediction: weight of :math:`L_P`.
        temperature: :math:`\tau` (no unit).
        pool: r, in voxels along each axis; 1 compares every voxel, the patch's size its mean alone.
        heads: of the attention; fewer where the teacher's channels do not divide by it.
        most: tokens; a finer grid of the teacher is pooled. At most 4096.

    Shapes: logits ``(B, K, *S)``; taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, the student's brought to the teacher's
        grid; returns ``tokens`` and ``prediction``, weighted.
    Reads: logits, one tap. Learns: a 3x3x3 convolution, positions and the layer; dropped afterwards. Teacher: one,
        frozen, live. Regions: yes.
    Departs from the paper: only its abstract could be read, so that the forms of the layer and of the pooled term are
        a reading, and the weights ours.

    Reference: after Ye et al., *GID: Global information distillation for medical semantic segmentation*,
        Neurocomputing 2022.
    """

    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str = "bottleneck",
        teacher_tap: str | None = None,
        tokens: float = 1.0,
        prediction: float = 1.0,
        temperature: float = 2.0,
        pool: int = 2,
        heads: int = 8,
        most: int = 1728,
    ) -> None:
        super().__init__()
        if tokens < 0 or prediction < 0:
            raise UserError(f"gid: tokens {tokens} and prediction {prediction} are weights and must not be negative")
        if temperature <= 0:
            raise UserError(f"gid: temperature {temperature} must be above 0")
        if pool < 1 or heads < 1:
            raise UserError(f"gid: pool {pool} and heads {heads} must be 1 or more")
        if not 1 <= most <= NODES:
            raise UserError(f"gid: most {most} must lie between 1 and {NODES}; attention takes its square")
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.weights = (tokens, prediction)
        self.temperature, self.pool, self.heads, self.most = temperature, pool, heads, most
        self.transfer: nn.Module = nn.Identity()

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        inside, outside = student.taps[self.tap].channels, teacher.taps[self.teacher_tap].channels
        self.transfer = Transfer(inside, outside, student.dims, self.heads, self.most)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        t = teacher.taps[self.teacher_tap].detach()
        made, weight = self.transfer(resize_to(full(student.taps[self.tap]), t.shape[2:]), teacher.trust)
        target, _ = trusted_nodes(t, teacher.trust, self.most)
        terms = (
            token_distance(made, target, weight),
            pooled_kl(
                student.logits,
                teacher.logits,
                self.temperature,
                self.pool,
                trust=teacher.trust,
                regions=batch.regions,
            ),
        )
        return {name: w * x for name, w, x in zip(("tokens", "prediction"), self.weights, terms, strict=True)}


class Transfer(nn.Module):
    """The information transfer module: convolution, positions, one pre-norm layer of attention.

    Args:
        inside: channels of the student's tap.
        outside: channels of the teacher's.
        dims: spatial axes.
        heads: most heads of the attention.
        most: tokens; finer grids are pooled.

    Shapes: ``(B, C_s, *t)`` and trust ``(B, 1, *S)`` or None -> tokens ``(B, M, C_t)`` and their trust ``(B, M)``.
    """

    def __init__(self, inside: int, outside: int, dims: int, heads: int, most: int) -> None:
        super().__init__()
        self.most = most
        self.conv = conv(dims, inside, outside, 3)
        # a coarse map of positions, brought to whatever grid the patch has
        self.position = nn.Parameter(0.02 * torch.randn(1, outside, *[4] * dims))
        self.before, self.after = nn.LayerNorm(outside), nn.LayerNorm(outside)
        self.attention = nn.MultiheadAttention(outside, math.gcd(heads, outside), batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(outside, 4 * outside), nn.GELU(), nn.Linear(4 * outside, outside))

    def forward(self, x: Tensor, trust: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens; what is not trusted is seen by no other."""
        if trust is not None:
            x = torch.where(resize_to(full(trust), x.shape[2:]) > 0, x, torch.zeros_like(x))
        x = self.conv(x)
        tokens, weight = trusted_nodes(x + resize_to(self.position, x.shape[2:]).to(x.dtype), trust, self.most)
        hidden = weight <= 0
        hidden = hidden & ~hidden.all(1, keepdim=True)  # a softmax over nothing is not a number
        q = self.before(tokens)
        tokens = tokens + self.attention(q, q, q, key_padding_mask=hidden, need_weights=False)[0]
        return tokens + self.mlp(self.after(tokens)), weight


def token_distance(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of tokens ``(B, M, d)`` under ``(B, M)``; the teacher gets no gradient."""
    squared = (full(student) - full(teacher.detach())).square().mean(2)
    return weighted_mean(squared, weight)


def pooled_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    pool: int = 2,
    *,
    trust: Tensor | None = None,
    regions: bool = False,
) -> Tensor:
    """Return the tempered KL of logits that were averaged over cells, mean over cells.

    Args:
        student: logits ``(B, K, *S)``.
        teacher: logits ``(B, K, *S)``; get no gradient.
        temperature: of both distributions.
        pool: side of a cell in voxels; cells at the end may overlap where it does not divide the patch.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one.
        regions: classes may overlap (binary KL).

    Shapes: a scalar.
    """
    size = [-(-s // pool) for s in student.shape[2:]]
    s, t = full(student), full(teacher.detach())
    weight = None
    if trust is not None:
        trust = full(trust).to(s.dtype)
        weight = resize_to(trust, size)
        s, t = (torch.where(trust > 0, x, torch.zeros_like(x)) * trust for x in (s, t))
    s, t = resize_to(s, size), resize_to(t, size)
    if weight is not None:
        s, t = s / weight.clamp_min(1e-6), t / weight.clamp_min(1e-6)
    kl = (binary_kl_map if regions else kl_map)(s, t, temperature)
    return weighted_mean(kl, None if weight is None else weight.squeeze(1))
