"""Attentive feature distillation (AFD): the teacher's features, channel by channel, where they matter."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full, resize_to
from medkd.methods.parts import Adapter, conv
from medkd.types import Anatomy, Batch, Terms, View


@final
class AFDAttentionTransfer(Method):
    r"""Match each channel's map, of unit length, weighted by what a small network makes of the teacher's channel means.

    .. math:: L = \frac{1}{B} \sum_b \sum_c \rho_{bc} \Big\| \frac{s_{bc}}{\|s_{bc}\|} - \frac{t_{bc}}{\|t_{bc}\|} \Big\|^2,
        \quad \rho_b = \frac{\sigma(g(\bar t_b))}{\sum_c \sigma(g(\bar t_b))_c}

    Args:
        squeeze: share of the channels in the middle of :math:`g` (no unit); 0.5 in the port.
        tap: feature point of the student, through a 1x1x1 adapter where the channels differ.
        teacher_tap: the teacher's, where its name differs.

    Shapes: taps ``(B, C, *s)`` on the teacher's grid; returns one scalar, ``afd_attention_transfer``.
    Reads: one tap. Learns: :math:`g`, the adapter. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: sum over positions (between 0 and 4 for each channel), so that the patch size does not
        matter: the port's mean is ours divided by the number of positions.

    Reference: after Wang et al., *Pay Attention to Features, Transfer Learn Faster CNNs*, ICLR 2020.
    Code read: AberHu/Knowledge-Distillation-Zoo, ``kd_losses/afd.py``, a port by others (mean over positions and batch).
    """

    regions: ClassVar[bool] = True

    def __init__(self, *, squeeze: float = 0.5, tap: str = "bottleneck", teacher_tap: str | None = None) -> None:
        super().__init__()
        if not 0 < squeeze <= 1:
            raise UserError(f"afd_attention_transfer: squeeze {squeeze} must lie in (0, 1]")
        self.squeeze, self.tap, self.teacher_tap = squeeze, tap, teacher_tap or tap
        self.adapter: nn.Module = nn.Identity()

    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        s, t = student.taps[self.tap], teacher.taps[self.teacher_tap]
        if s.channels != t.channels:
            self.adapter = Adapter(s, t, student.dims)
        self.attention = channel_attention(t.channels, self.squeeze, student.dims)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        t = full(teacher.taps[self.teacher_tap].detach())
        s = resize_to(self.adapter(full(student.taps[self.tap])), t.shape[2:])
        if teacher.trust is not None:
            seen = resize_to(full(teacher.trust), t.shape[2:])
            s, t = (torch.where(seen > 0, x, torch.zeros_like(x)) * seen for x in (s, t))
        logits = self.attention(t.flatten(2).mean(2).view(*t.shape[:2], *[1] * (t.ndim - 2)))
        return {"afd_attention_transfer": afd_attention_transfer(s, t, logits.flatten(1))}


def channel_attention(channels: int, squeeze: float, dims: int) -> nn.Sequential:
    """Return the network :math:`g`: two 1x1x1 convolutions, from channel means to a logit for each channel."""
    middle = max(1, int(channels * squeeze))
    return nn.Sequential(conv(dims, channels, middle), nn.ReLU(), conv(dims, middle, channels))


def afd_attention_transfer(student: Tensor, teacher: Tensor, logits: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the squared distance of unit-length channel maps, weighted over channels, mean over the batch.

    Shapes: features ``(B, C, *s)`` twice, attention logits ``(B, C)``; a scalar. ``eps`` keeps empty channels finite.
    """
    rho = torch.sigmoid(full(logits))
    rho = rho / rho.sum(1, keepdim=True)
    s, t = (full(x).flatten(2) for x in (student, teacher.detach()))
    s, t = (x / (torch.linalg.vector_norm(x, dim=2, keepdim=True) + eps) for x in (s, t))
    loss: Tensor = (rho * ((s - t) ** 2).sum(2)).sum(1).mean()
    return loss
