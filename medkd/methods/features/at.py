"""Attention transfer (AT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import coarser, pair_taps
from medkd.methods.ops import full, resize_to
from medkd.types import Batch, Terms, View

MAPS = ("sum", "max")
FORMS = ("sum", "mean", "norm")


@final
class AT(Method):
    r"""Match where the networks look: the energy of all channels together, as one map of length one.

    .. math:: L = \frac{1}{B} \sum_{b,j} \Big\| \frac{Q^s_{bj}}{\|Q^s_{bj}\|_2} - \frac{Q^t_{bj}}{\|Q^t_{bj}\|_2}
        \Big\|_2^2, \quad Q_{n} = \sum_c |F_{cn}|^q

    for every tap :math:`j`; this is :math:`2 - 2\cos(Q^s, Q^t)`, in [0, 2].

    Args:
        tap: the student's feature point, or a list of them, whose terms add (the paper: one a group of blocks).
        teacher_tap: the teacher's, or a list; the same names when None.
        power: :math:`q` (no unit); 2 in the paper.
        channels: ``sum`` of the powers over them, or their ``max``.
        form: ``sum`` as above; ``mean`` over the voxels too, as released, which shrinks with the patch; ``norm``: half
            the length of the difference, not squared, as the paper writes it.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, any channels; the larger grid is pooled to the smaller; returns
        one scalar, ``at``.
    Reads: taps. Learns: nothing. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: the released weight of 1000 is for a mean over voxels; with the sum it is 1000 over the
        voxels of a map, about 1 to 16 for the maps of 8 x 8 to 32 x 32 there. Voxels without trust leave both maps.
        The variant on gradients of the input is a function here, :func:`gradient_at`, and is not wired.

    Reference: Zagoruyko, Komodakis, *Paying More Attention to Attention: Improving the Performance of Convolutional
        Neural Networks via Attention Transfer*, ICLR 2017, arXiv:1612.03928, eq. 2.
    Code read: szagoruyko/attention-transfer; HobbitLong/RepDistiller (pools features of the larger grid).
    """

    regions: ClassVar[bool] = True
    zero_at_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = "bottleneck",
        teacher_tap: str | Sequence[str] | None = None,
        power: float = 2.0,
        channels: str = "sum",
        form: str = "sum",
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("at", tap, teacher_tap)
        if power <= 0:
            raise UserError(f"at: power {power} must be above 0")
        if channels not in MAPS:
            raise UserError(f"at: channels {channels!r} is not one of {', '.join(MAPS)}")
        if form not in FORMS:
            raise UserError(f"at: form {form!r} is not one of {', '.join(FORMS)}")
        self.power, self.channels, self.form = power, channels, form

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        loss = student.logits.new_zeros((), dtype=full(student.logits).dtype)
        for s, t in self.pairs:
            loss = loss + at(
                student.taps[s],
                teacher.taps[t],
                power=self.power,
                channels=self.channels,
                form=self.form,
                trust=teacher.trust,
            )
        return {"at": loss}


def at(
    student: Tensor,
    teacher: Tensor,
    power: float = 2.0,
    *,
    channels: str = "sum",
    form: str = "sum",
    trust: Tensor | None = None,
) -> Tensor:
    """Return how far apart the attention maps of one tap are, mean over the batch.

    Args:
        student: ``(B, C_s, *s)``.
        teacher: ``(B, C_t, *t)``; gets no gradient.
        power: of the activations.
        channels: ``sum`` or ``max`` over them.
        form: ``sum`` of squares over voxels, their ``mean`` (the released code), or half the ``norm`` (the paper).
        trust: ``(B, 1, *S)`` in [0, 1], or None for one.

    Shapes: a scalar.
    """
    size = coarser(student, teacher)
    mask = None if trust is None else resize_to(full(trust), size)
    s = attention(resize_to(full(student), size), power, channels=channels, trust=mask)
    t = attention(resize_to(full(teacher.detach()), size), power, channels=channels, trust=mask)
    if form == "mean":
        return (s - t).square().mean()
    if form == "norm":
        return 0.5 * _length(s - t).mean()
    return (s - t).square().sum(1).mean()


def attention(features: Tensor, power: float = 2.0, *, channels: str = "sum", trust: Tensor | None = None) -> Tensor:
    """Return the flat attention map of each sample, of length one: ``(B, C, *s)`` -> ``(B, N)``; zero stays zero."""
    energy = full(features).abs().pow(power)
    q = (
        energy.mean(1) if channels == "sum" else energy.amax(1)
    )  # the mean over channels: the sum up to a factor that cancels
    if trust is not None:
        q = q * trust.squeeze(1)
    return F.normalize(q.flatten(1), dim=1)


def gradient_at(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the distance of the losses' gradients with respect to the image, mean over the batch.

    Shapes: ``(B, C, *S)`` twice, the student's made with ``create_graph=True``; a scalar. The teacher gets no gradient.
    """
    return 0.5 * _length((full(student) - full(teacher.detach())).flatten(1)).mean()


def _length(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norm
