"""DeepInversion: invent volumes that the teacher's batch statistics remember, and distil on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, kd, voxel_weight
from medkd.methods.ops import full, label_to
from medkd.methods.supervised import dice_ce
from medkd.types import IGNORE, Anatomy, Batch, Round, Terms, Turn, Turns, View

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Dream(nn.Module):
    """Invented volumes that learn: the image is ``gain`` times the parameter.

    Args:
        shape: ``(n, C, *S)``.
        gain: makes one optimiser step move the image so many times further.

    Shapes: returns ``(n, C, *S)``.
    """

    def __init__(self, shape: Sequence[int], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.image = nn.Parameter(torch.randn(tuple(shape)) / gain)

    def forward(self) -> Tensor:
        """Return the image as it is now."""
        return self.gain * self.image

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again from noise."""
        self.image.copy_(torch.randn_like(self.image) / self.gain)


@final
class DeepInversion(Method):
    r"""Optimise noise until the teacher sees the wanted organs and its batch statistics fit; the student learns on that.

    .. math:: L(x) = \mathrm{DiceCE}(t(x), y) + a_f \sum_l s_l \big(\|\mu_l(x) - \hat\mu_l\| + \|v_l(x) - \hat v_l\|\big)
        + a_{tv} R_{tv}(x) + a_2 \overline{x^2} + a_c \big(1 - \mathrm{JS}(t(x), s(x))\big)

    with :math:`\mu_l, v_l` mean and variance of the input of the teacher's l-th batch normalisation, and the hatted
    ones those it remembers. Student: :math:`\tau^2 \mathrm{KL}` to the teacher on finished dreams.

    Args:
        patch: voxels of a dream along each axis, divisible by the networks' strides.
        channels: of the image.
        count: dreams at a time.
        dream_steps: optimiser steps a dream; 2000 to 3000 in the paper.
        inner: of these in each round, beside one step of the student.
        bank: finished sets of dreams kept; the student draws among them.
        gain: how much faster a dream moves than the stage's learning rate: 0.05 to 0.25 in the paper, so 30 for 0.003.
        feature: :math:`a_f`; 10 for CIFAR-10, 0.01 for ImageNet in the release.
        first: :math:`s_1`, factor of the first layer; 10 in the release's ImageNet setting, 1 for the others.
        tv: :math:`a_{tv}`, on the root mean square difference of neighbours.
        l2: :math:`a_2`, on the mean square of the image.
        compete: :math:`a_c`; above 0 dreams go where student and teacher differ (the adaptive version).
        temperature: :math:`\tau` of the student's loss (no unit).
        jitter: largest shift in voxels of a dream before the teacher sees it.
        reduction: voxel weights of the student's loss: ``balanced``, ``foreground`` or ``uniform``.
        margin_mm: margin of ``foreground``, in mm.

    Shapes: invented images ``(count, C, *patch)``; returns ``main``, ``feature``, ``tv``, ``l2`` and ``compete`` for
        the dream, ``deepinversion`` for the student.
    Reads: masks of the batch, never its images; the live teacher. Learns: the dreams, with an optimiser of their own.
        Teacher: one, frozen, live, with batch normalisation. Regions: no.
    Departs from the paper: wanted masks in place of wanted classes; means in the image priors; dreams and student
        in turns; one resolution; the optimiser is the stage's.

    Reference: Yin et al., *Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion*, CVPR 2020,
        arXiv:1912.08795, eq. 3 to 8.
    Code read: NVlabs/DeepInversion, ``deepinversion.py`` (unsquared norms; clamped probabilities in the competition).
    """

    reads_labels: ClassVar[bool] = True
    needs_live_teacher: ClassVar[bool] = True
    wanted: Tensor
    kept: Tensor
    age: Tensor
    finished: Tensor

    def __init__(
        self,
        *,
        patch: Sequence[int],
        channels: int = 1,
        count: int = 2,
        dream_steps: int = 200,
        inner: int = 4,
        bank: int = 4,
        gain: float = 30.0,
        feature: float = 1.0,
        first: float = 1.0,
        tv: float = 0.1,
        l2: float = 0.01,
        compete: float = 0.0,
        temperature: float = 2.0,
        jitter: int = 2,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        size = tuple(int(s) for s in patch)
        if not size or min(*size, channels, count, dream_steps, inner, bank) < 1:
            raise UserError("deepinversion: patch, channels, count, dream_steps, inner and bank must be 1 or more")
        if gain <= 0 or temperature <= 0:
            raise UserError(f"deepinversion: gain {gain} and temperature {temperature} must be above 0")
        if min(feature, first, tv, l2, compete, jitter) < 0:
            raise UserError("deepinversion: feature, first, tv, l2, compete and jitter must not be negative")
        check_reduction("deepinversion", reduction)
        self.dream_steps, self.inner, self.jitter, self.temperature = dream_steps, inner, jitter, temperature
        self.feature, self.first, self.tv, self.l2, self.compete = feature, first, tv, l2, compete
        self.reduction, self.margin_mm = reduction, margin_mm
        self.dream = Dream((count, channels, *size), gain)
        self.register_buffer("wanted", torch.full((count, *size), IGNORE))
        self.register_buffer("kept", torch.zeros(bank, count, channels, *size))
        self.register_buffer("age", torch.zeros((), dtype=torch.long))
        self.register_buffer("finished", torch.zeros((), dtype=torch.long))

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        if self.wanted.ndim - 1 != student.dims:
            raise UserError(f"deepinversion: patch has {self.wanted.ndim - 1} axes and the network {student.dims}")

    def players(self) -> dict[str, nn.Module]:
        return {"dream": self.dream}

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        """Return the student's term on invented images."""
        weight = voxel_weight(teacher, batch, self.reduction, self.margin_mm)
        return {"deepinversion": kd(student.logits, teacher.logits, self.temperature, weight)}

    def turns(self, r: Round) -> Turns:
        layers = batch_norms(r.nets[name] for name in (r.teachers or ()))
        for _ in range(self.inner):
            if int(self.age) == 0:
                self._begin(r.batch.label)
            yield Turn("dream", self._dream_terms(r, layers))
            if r.did_step:
                self._grow_older()
        image = self.dream().detach()
        if int(self.finished):
            image = self.kept[int(torch.randint(min(int(self.finished), len(self.kept)), ()))]
        batch = Batch(image, torch.full_like(self.wanted, IGNORE), spacing_mm=r.batch.spacing_mm)
        with torch.no_grad():
            teacher = r.view("teacher", image)
        yield Turn("student", self(r.view("student", image), teacher, batch))

    def _begin(self, label: Tensor) -> None:
        rows = torch.arange(len(self.wanted), device=label.device) % len(label)
        self.wanted.copy_(label_to(label[rows], self.wanted.shape[1:]))
        self.dream.restart()

    def _grow_older(self) -> None:
        self.age += 1
        if int(self.age) >= self.dream_steps:
            self.kept[int(self.finished) % len(self.kept)] = self.dream().detach()
            self.finished += 1
            self.age.zero_()

    def _dream_terms(self, r: Round, layers: Sequence[nn.Module]) -> Terms:
        axes = list(range(2, 1 + self.wanted.ndim))
        shift = [int(torch.randint(-self.jitter, self.jitter + 1, ())) for _ in axes]
        image = torch.roll(self.dream(), shift, axes)
        label = torch.roll(self.wanted, shift, [axis - 1 for axis in axes])
        with recording(layers) as seen:
            teacher = r.view("teacher", image)
        dice, ce = dice_ce(teacher.logits, label)
        _, rms = total_variation(image, mean=True)
        terms = {"main": dice + ce, "tv": self.tv * rms, "l2": self.l2 * (image**2).mean()}
        factors = [self.first] + [1.0] * (len(layers) - 1)
        gaps = [f * statistics_gap(seen[layer], *_memory(layer)) for f, layer in zip(factors, layers, strict=True)]
        terms["feature"] = self.feature * torch.stack(gaps).mean()
        if self.compete:
            terms["compete"] = self.compete * competition(r.view("student", image).logits, teacher.logits)
        return terms


def batch_norms(networks: Iterator[nn.Module]) -> list[nn.Module]:
    """Return the normalisations that remember statistics, in the order of the networks' modules.

    Raises:
        UserError: there is none.
    """
    found = [m for net in networks for m in net.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    if not found:
        raise UserError(
            "deepinversion: the teacher remembers no batch statistics; train one with batch normalisation "
            "(`norm: batch` in its model), since instance and group normalisation keep none"
        )
    return list(found)


@contextmanager
def recording(layers: Sequence[nn.Module]) -> Iterator[Mapping[nn.Module, Tensor]]:
    """Collect the input of each layer while the block runs."""
    seen: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, inputs: Any, _output: Any) -> None:
        seen[layer] = inputs[0]

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _memory(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.get_buffer("running_mean"), layer.get_buffer("running_var")


def statistics_gap(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the Euclidean distances of channel means and of channel variances to the remembered ones, added.

    Shapes: ``(B, C, *S)``, ``(C,)``, ``(C,)``; a scalar. Variances are biased, over batch and space.
    """
    rows = full(x).transpose(0, 1).flatten(1)
    gaps = (variance.to(rows) - rows.var(1, correction=0), mean.to(rows) - rows.mean(1))
    return torch.stack([torch.linalg.vector_norm(gap) for gap in gaps]).sum()


def total_variation(image: Tensor, *, mean: bool = False) -> tuple[Tensor, Tensor]:
    """Return the absolute and the Euclidean total variation of ``(B, C, *S)``, summed over directions.

    Directions are the axes and both diagonals of every two axes: four in 2-D, nine in 3-D. The first is the mean
    over voxels; the second the norm over the whole batch, or the root of the mean square where ``mean``.
    """
    x, axes = full(image), range(2, image.ndim)
    ahead = {axis: (x.narrow(axis, 0, x.shape[axis] - 1), x.narrow(axis, 1, x.shape[axis] - 1)) for axis in axes}
    gaps = [a - b for a, b in ahead.values()]
    for i, j in combinations(axes, 2):
        low, high = ahead[i]
        n = x.shape[j] - 1
        gaps += [high.narrow(j, 0, n) - low.narrow(j, 1, n), low.narrow(j, 0, n) - high.narrow(j, 1, n)]
    gaps = [gap for gap in gaps if gap.numel()]
    if not gaps:
        return x.sum() * 0.0, x.sum() * 0.0
    l1 = torch.stack([gap.abs().mean() for gap in gaps]).sum()
    norms = [torch.linalg.vector_norm(gap) / (gap.numel() ** 0.5 if mean else 1.0) for gap in gaps]
    return l1, torch.stack(norms).sum()


def competition(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """Return one minus the released form of the Jensen-Shannon divergence: 1 where both agree, less where not.

    Shapes: logits ``(B, K, *S)`` twice; a scalar, mean over voxels. Probabilities are held in [0.01, 0.99], not
    normalised again, and the divergences lead from the middle to either end. Both get a gradient.
    """
    p, q = (F.softmax(full(z) / temperature, dim=1) for z in (student, teacher))
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    apart = 0.5 * ((m * (m / p).log()).sum(1).mean() + (m * (m / q).log()).sum(1).mean())
    return 1 - apart.clamp(0, 1)
