"""Masked generative distillation (MGD)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.features.fitnets import pair_taps
from medkd.methods.ops import full, resize_to, trusted_mean
from medkd.methods.parts import Adapter, conv
from medkd.types import Anatomy, Batch, Terms, View

MASKS = ("voxel", "channel")


@final
class MGD(Method):
    r"""Make the teacher's whole feature map out of a student's of which most is hidden.

    .. math:: L = \frac{1}{BCN} \sum_{b,c,n} \big(G(M \odot A F^s)_{bcn} - F^t_{bcn}\big)^2

    with a random mask M, the same for all channels, and a small generator G: convolution, ReLU, convolution.

    Args:
        tap: the student's feature point, or a list of them, whose terms add.
        teacher_tap: the teacher's, or a list; the same names when None.
        ratio: share that is hidden; 0.75 in the paper for segmentation, 0.15 for classification.
        mask: hide places (``voxel``), or whole channels (``channel``), the paper's form for classification.
        block: side of a hidden place, in voxels of the feature grid; neighbours in a volume give each other away.
        kernel: of the generator's convolutions.

    Shapes: taps ``(B, C_s, *s)`` and ``(B, C_t, *t)``, the student's brought to the teacher's grid; returns one scalar,
        ``mgd``.
    Reads: taps. Learns: an adapter where channels differ, and the generator. Teacher: one, frozen, live. Regions: yes.
    Departs from the paper: the mean, where the paper has the sum over channels and voxels: its weight of 2e-5 is
        2e-5 C N here, 42 to 168 for its maps of 64 x 64 with 512 to 2048 channels. Blocks of 2 by default.

    Reference: Yang et al., *Masked Generative Distillation*, ECCV 2022, arXiv:2205.01529, section 3.
    Code read: yzd-v/MGD, segmentation and classification.
    """

    regions: ClassVar[bool] = True
    example: ClassVar[Mapping[str, object]] = {"tap": "dec0"}  # a bottleneck of eight voxels may be masked whole

    def __init__(
        self,
        *,
        tap: str | Sequence[str] = "bottleneck",
        teacher_tap: str | Sequence[str] | None = None,
        ratio: float = 0.75,
        mask: str = "voxel",
        block: int = 2,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.pairs = pair_taps("mgd", tap, teacher_tap)
        if not 0 <= ratio <= 1:
            raise UserError(f"mgd: ratio {ratio} must lie in [0, 1]")
        if mask not in MASKS:
            raise UserError(f"mgd: mask {mask!r} is not one of {', '.join(MASKS)}")
        if block < 1:
            raise UserError(f"mgd: block {block} must be 1 or more voxels")
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"mgd: kernel {kernel} must be odd, so that it has a middle")
        self.ratio, self.mask, self.block, self.kernel = ratio, mask, block, kernel
        self.adapters, self.generators = nn.ModuleList(), nn.ModuleList()

    def taps(self) -> tuple[str, ...]:
        return tuple(s for s, _ in self.pairs)

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(t for _, t in self.pairs)

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        dims = student.dims
        for s, t in self.pairs:
            ours, theirs = student.taps[s], teacher.taps[t]
            wide = theirs.channels
            self.adapters.append(nn.Identity() if ours.channels == wide else Adapter(ours, theirs, dims))
            layers = conv(dims, wide, wide, self.kernel), nn.ReLU(), conv(dims, wide, wide, self.kernel)
            self.generators.append(nn.Sequential(*layers))

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        loss = student.logits.new_zeros((), dtype=full(student.logits).dtype)
        for (s, t), adapter, generator in zip(self.pairs, self.adapters, self.generators, strict=True):
            target = teacher.taps[t]
            ours = resize_to(adapter(full(student.taps[s])), target.shape[2:])
            kept = draw_mask(ours, self.ratio, mask=self.mask, block=self.block)
            loss = loss + mgd(ours, target, generator, kept, teacher.trust)
        return {"mgd": loss}


def mgd(
    student: Tensor,
    teacher: Tensor,
    generator: Callable[[Tensor], Tensor],
    kept: Tensor,
    trust: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of the features generated from what is kept, over all places.

    Args:
        student: ``(B, C, *s)``, adapted.
        teacher: ``(B, C, *s)``; gets no gradient.
        generator: maps ``(B, C, *s)`` to the same shape.
        kept: 1 where the student's features are seen, 0 where hidden; broadcasts. They are not scaled up for it.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one.

    Shapes: a scalar. The paper's sum over channels and voxels, mean over the batch, is this times ``C N``.
    """
    made = generator(full(student) * kept)
    return trusted_mean((full(made) - full(teacher.detach())).square(), trust)


def draw_mask(
    features: Tensor,
    ratio: float,
    *,
    mask: str = "voxel",
    block: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a random mask, 0 for about ``ratio`` of the places (or channels) and 1 for the others.

    Args:
        features: ``(B, C, *s)``, of which shape, type and device are taken.
        ratio: share that is hidden.
        mask: ``voxel`` or ``channel``.
        block: side of a hidden place, in voxels.
        generator: to draw from; torch's own when None.

    Shapes: ``(B, 1, *s)``, or ``(B, C, 1...)`` for channels.
    """
    samples, channels, *size = features.shape
    cells = [-(-s // block) for s in size] if mask == "voxel" else [1 for _ in size]
    shape = (samples, 1 if mask == "voxel" else channels, *cells)
    kept = kept_of(torch.rand(shape, device=features.device, generator=generator), ratio, mask=mask)
    kept = kept.to(features.dtype)
    if mask == "voxel" and block > 1:
        for axis, s in enumerate(size, 2):
            kept = kept.repeat_interleave(block, axis).narrow(axis, 0, s)
    return kept


def kept_of(draw: Tensor, ratio: float, *, mask: str = "voxel") -> Tensor:
    """Return what uniform draws in [0, 1) keep, as bool: the low ones of voxels, the high ones of channels."""
    return draw < 1 - ratio if mask == "voxel" else draw >= ratio
