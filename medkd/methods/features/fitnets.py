"""Hints: the student's features regressed to the teacher's (FitNets)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.ops import full, resize_to, trusted_mean
from medkd.methods.parts import conv, norm
from medkd.types import Anatomy, Batch, Terms, View


@final
class FitNets(Method):
    r"""Match the teacher's features at a tap, through a learned regressor from the student's.

    .. math:: L = \frac{1}{BCN} \sum_{b,c,n} \big(F^t_{bcn} - r(F^s)_{bcn}\big)^2

    Args:
        tap: the student's feature point (the guided layer), or a list of them, whose terms add.
        teacher_tap: the teacher's (the hint layer), or a list; the same names when None.
        kernel: of the regressor's convolution, in voxels of the feature grid; 1, or odd.
        activation: add normalisation and ReLU to the regressor, for hints that are not negative.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``; compared on the coarser of the two grids; returns one scalar,
        ``fitnets``.
    Reads: taps. Learns: one regressor a tap. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: in one stage with the task, as most benchmarks have it; for the paper's two, give a stage
        this method alone and start the next from it with ``init``. A padded convolution and pooling where the paper
        has an unpadded one; the mean of squares where the paper has half the sum (times 2 over the elements).

    Reference: Romero et al., *FitNets: Hints for Thin Deep Nets*, ICLR 2015, arXiv:1412.6550, eq. 3.
    Code read: adri-romsor/FitNets; HobbitLong/RepDistiller (mean of squares, weight 100).
    """

    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = "bottleneck",
        teacher_tap: str | Sequence[str] | None = None,
        kernel: int = 1,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("fitnets", tap, teacher_tap)
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"fitnets: kernel {kernel} must be odd, so that it has a middle")
        self.kernel, self.activation = kernel, activation
        self.regressors = nn.ModuleList()

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        dims = student.dims
        for s, t in self.pairs:
            inside, outside = student.taps[s].channels, teacher.taps[t].channels
            layers = [conv(dims, inside, outside, self.kernel)]
            if self.activation:
                layers += [norm(dims, outside), nn.ReLU()]
            self.regressors.append(nn.Sequential(*layers))

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        loss = student.logits.new_zeros((), dtype=full(student.logits).dtype)
        for (s, t), regressor in zip(self.pairs, self.regressors, strict=True):
            size = coarser(student.taps[s], teacher.taps[t])
            guided = regressor(resize_to(full(student.taps[s]), size))
            loss = loss + fitnets(guided, resize_to(full(teacher.taps[t]), size), teacher.trust)
        return {"fitnets": loss}


def fitnets(student: Tensor, teacher: Tensor, trust: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of the regressed features and the hint.

    Shapes: ``(B, C, *s)`` twice, trust ``(B, 1, *S)`` or None; a scalar. The paper's half sum of squares is this times
    half the number of elements. The teacher gets no gradient.
    """
    return trusted_mean((full(student) - full(teacher.detach())).square(), trust)


def coarser(student: Tensor, teacher: Tensor) -> tuple[int, ...]:
    """Return the smaller size of two maps along every axis."""
    return tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))


def pair_taps(
    method: str, tap: str | Sequence[str], teacher_tap: str | Sequence[str] | None
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of student's and teacher's taps that arguments mean; a name alone is a list of one.

    Raises:
        UserError: no tap, or lists of different length.
    """
    ours = (tap,) if isinstance(tap, str) else tuple(tap)
    theirs = ours if teacher_tap is None else (teacher_tap,) if isinstance(teacher_tap, str) else tuple(teacher_tap)
    if not ours:
        raise UserError(f"{method}: tap is empty; name a feature point, for example `tap: bottleneck`")
    if len(ours) != len(theirs):
        raise UserError(f"{method}: {len(ours)} taps of the student and {len(theirs)} of the teacher; give pairs")
    return tuple(zip(ours, theirs, strict=True))
