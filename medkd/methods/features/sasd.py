"""Self-attention and self-distillation (SASD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import coarser
from medkd.methods.ops import full, resize_to, weighted_mean
from medkd.methods.parts import NODES, unit
from medkd.methods.regions import trusted_nodes
from medkd.types import Batch, Terms, View


@final
class SASD(Method):
    r"""Match which places attend to which, and let the student's deepest stage teach its shallow ones how places relate.

    .. math:: L_A = \frac{1}{M} \sum_i w_i\,\mathrm{KL}(a^t_i \| a^s_i), \quad a_i = \sigma_j(x_i \cdot x_j / \tau),
        \qquad L_C = \sum_{l} \frac{1}{M^2} \|G(F^s_l) - G(F^s_L)\|_F^2

    on features of length one pooled to M nodes; :math:`w_i = 1 - \cos(a^t_i, a^s_i)`, brought to mean one: places where
    the networks disagree count more. G is the matrix of cosines; no gradient flows into the deepest stage L.

    Args:
        tap: the student's deepest feature point.
        teacher_tap: the teacher's, where its name differs.
        shallow: the student's feature points that learn from its deepest.
        attention: weight of :math:`L_A`.
        context: weight of :math:`L_C`.
        temperature: :math:`\tau` (no unit).
        adaptive: weigh places by disagreement; else all count the same.
        nodes: features are pooled to at most so many positions; at most 4096.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, any channels, compared on the coarser grid; shallow ones on the
        deepest's; returns ``attention`` and ``context``, weighted.
    Reads: taps. Learns: nothing. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: only its abstract could be read, so that both forms are a reading; attention is of the
        features themselves, without learned queries and keys.

    Reference: after An et al., *Efficient Semantic Segmentation via Self-Attention and Self-Distillation*, IEEE TITS
        2022.
    """

    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str = "bottleneck",
        teacher_tap: str | None = None,
        shallow: str | Sequence[str] = ("enc0",),
        attention: float = 1.0,
        context: float = 0.1,
        temperature: float = 0.1,
        adaptive: bool = True,
        nodes: int = 1728,
    ) -> None:
        super().__init__()
        if attention < 0 or context < 0:
            raise UserError(f"sasd: attention {attention} and context {context} are weights and must not be negative")
        if temperature <= 0:
            raise UserError(f"sasd: temperature {temperature} must be above 0")
        if not 1 <= nodes <= NODES:
            raise UserError(f"sasd: nodes {nodes} must lie between 1 and {NODES}; a map of their pairs must fit")
        self.tap, self.teacher_tap = tap, teacher_tap or tap
        self.shallow = (shallow,) if isinstance(shallow, str) else tuple(shallow)
        self.weights = (attention, context)
        self.temperature, self.adaptive, self.nodes = temperature, adaptive, nodes

    def taps(self) -> tuple[str, ...]:
        return (self.tap, *self.shallow)

    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher_tap,)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        s, t = student.taps[self.tap], teacher.taps[self.teacher_tap].detach()
        size = coarser(s, t)
        (ours, weight), (theirs, _) = (
            trusted_nodes(resize_to(full(x), size), teacher.trust, self.nodes) for x in (s, t)
        )
        ours, theirs = unit(ours, 2), unit(theirs, 2)
        a_s, a_t = (log_attention(x, x, self.temperature, weight) for x in (ours, theirs))
        attention = attention_kl(a_s, a_t, weight, adaptive=self.adaptive)
        deep, weight = trusted_nodes(s, teacher.trust, self.nodes)
        context = torch.zeros_like(attention)
        for name in self.shallow:
            nodes, _ = trusted_nodes(resize_to(full(student.taps[name]), s.shape[2:]), teacher.trust, self.nodes)
            context = context + context_distance(nodes, deep, weight)
        return {"attention": self.weights[0] * attention, "context": self.weights[1] * context}


def log_attention(query: Tensor, key: Tensor, temperature: float | None = None, weight: Tensor | None = None) -> Tensor:
    """Return the log of each node's attention: queries and keys ``(B, M, d)`` -> ``(B, M, M)``, a softmax over keys.

    Args:
        query: of each node.
        key: of each node.
        temperature: divides the inner products; the square root of d when None.
        weight: ``(B, M)``; a key without weight is attended to by none.
    """
    logits = full(query) @ full(key).transpose(1, 2) / (query.shape[2] ** 0.5 if temperature is None else temperature)
    return (logits if weight is None else logits.masked_fill((weight <= 0).unsqueeze(1), -1e4)).log_softmax(2)


def attention_kl(student: Tensor, teacher: Tensor, weight: Tensor | None = None, *, adaptive: bool = True) -> Tensor:
    """Return the KL of both attentions, mean over nodes.

    Args:
        student: log-attention ``(B, M, M)``.
        teacher: log-attention ``(B, M, M)``; gets no gradient.
        weight: ``(B, M)`` of the nodes, or None for one.
        adaptive: weigh each node by one less the cosine of its attentions, brought to mean one, without gradient.

    Shapes: a scalar.
    """
    teacher = teacher.detach()
    kl = (teacher.exp() * (teacher - student)).sum(2)
    weight = torch.ones_like(kl) if weight is None else weight.to(kl.dtype)
    if adaptive:
        a, b = student.detach().exp(), teacher.exp()
        weight = weight * (1 - (unit(a, 2) * unit(b, 2)).sum(2)).clamp_min(1e-6)
    return weighted_mean(kl, weight)


def context_distance(shallow: Tensor, deep: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of the cosines between nodes, under the product of their weights.

    Shapes: ``(B, M, C_l)``, ``(B, M, C_L)``, weight ``(B, M)`` or None; a scalar. The deep side gets no gradient.
    """
    a, b = unit(shallow, 2), unit(deep.detach(), 2)
    squared = (a @ a.transpose(1, 2) - b @ b.transpose(1, 2)).square()
    return weighted_mean(squared, None if weight is None else weight.unsqueeze(1) * weight.unsqueeze(2))
