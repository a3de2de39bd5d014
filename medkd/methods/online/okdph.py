"""Online distillation with a hybrid of all learners' weights (OKDPH)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.online.dml import check_peers
from medkd.methods.ops import first_head, full, kl_map, weighted_mean
from medkd.methods.supervised import dice_ce
from medkd.types import Batch, Round, Terms, Turn, Turns, View

HYBRIDS = ("mean", "dirichlet")
Weights = Mapping[str, Tensor]


@final
class OKDPH(Method):
    r"""Learners of one architecture also train the network of their mixed weights, and are drawn towards it.

    .. math:: \theta_h = \sum_i r_i \theta_i, \quad
        L_i = \lambda_h\, \mathrm{DiceCE}\big(f(x_h; \theta_h), y\big)
        + \lambda_e\, \tau^2\, \mathrm{KL}\big(\sigma(\bar z/\tau) \,\|\, \sigma(z_i/\tau)\big), \quad
        \theta_i \leftarrow (1 - \gamma)\theta_i + \gamma\theta_h \text{ every } m \text{ steps}

    with :math:`\bar z` the mean logits of all learners and the hybrid, a constant.

    Args:
        hybrid: :math:`\lambda_h`; the paper's :math:`1 - \omega` = 0.2, beside ``supervised`` with weight 0.8.
        ensemble: :math:`\lambda_e`; the paper's :math:`\beta` = 0.8.
        temperature: :math:`\tau` (no unit); 4 in the paper for many classes, 2 here.
        gamma: :math:`\gamma` in [0, 1]; 0.5 in the paper, 1 for some networks.
        interval: :math:`m`, in steps; one epoch in the paper, five batches for some networks.
        mix: ``mean`` (all :math:`r_i` equal) or ``dirichlet`` (drawn evenly from the simplex in every step).
        noise: deviation of the Gaussian noise by which :math:`x_h` differs from the learners' image, in units of
            the normalised intensity.
        hybrid_gradient: let the hybrid's loss train the learners, each by its share :math:`r_i`, as the paper says;
            False as the released code, where the hybrid is a copy and the term a constant.
        reduction: voxel weights of the KL: ``balanced``, ``foreground`` or ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` of every learner; returns two scalars a learner, ``hybrid`` and ``ensemble``.
    Reads: logits, labels, weights of all learners (``peers: 1`` or more). Learns: nothing. Teacher: none. Regions: no.
    Departs from the paper: Dice is added to the hybrid's cross-entropy; learners see one image and the hybrid a noisy
        copy, since averaged logits must lie on one grid; the fusion mixes the weights after the step.

    Reference: Zhang et al., *Generalization Matters: Loss Minima Flattening via Parameter Hybridization for Efficient
        Online Knowledge Distillation*, CVPR 2023, arXiv:2303.14666, eq. 3 to 7.
    Code read: tianlizhang/OKDPH, ``src/OKDPH.py`` (the hybrid is filled by copying, so no gradient passes).
    """

    reads_labels: ClassVar[bool] = True
    reads_teacher: ClassVar[bool] = False
    exempt: ClassVar[Mapping[str, str]] = {"ignore": "learners also agree on voxels that nobody has labelled"}
    steps: Tensor

    def __init__(
        self,
        *,
        hybrid: float = 0.2,
        ensemble: float = 0.8,
        temperature: float = 2.0,
        gamma: float = 0.5,
        interval: int = 50,
        mix: str = "mean",
        noise: float = 0.1,
        hybrid_gradient: bool = True,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"okdph: temperature {temperature} must be above 0")
        if not 0 <= gamma <= 1:
            raise UserError(f"okdph: gamma {gamma} must lie in [0, 1]")
        if interval < 1:
            raise UserError(f"okdph: interval {interval} must be 1 step or more")
        if mix not in HYBRIDS:
            raise UserError(f"okdph: mix {mix!r} is not one of {', '.join(HYBRIDS)}")
        if noise < 0:
            raise UserError(f"okdph: noise {noise} must not be negative")
        check_reduction("okdph", reduction)
        self.hybrid, self.ensemble, self.temperature = hybrid, ensemble, temperature
        self.gamma, self.interval, self.mix, self.noise = gamma, interval, mix, noise
        self.hybrid_gradient, self.reduction, self.margin_mm = hybrid_gradient, reduction, margin_mm
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        """Return the term of one learner and the ensemble, which stands in the teacher's place."""
        kl = kl_map(student.logits, teacher.logits, self.temperature)
        weight = voxel_weight(teacher, batch, self.reduction, self.margin_mm)
        return {"ensemble": self.ensemble * weighted_mean(kl, weight)}

    def turns(self, r: Round) -> Turns:
        check_peers("okdph", r)
        nets = [r.nets[name] for name in r.learners]
        before = [_copy(net) for net in nets]
        check_alike(before)
        ratios = draw_ratios(len(nets), self.mix)
        mixed = hybrid(before, ratios)
        image = r.batch.image + self.noise * torch.randn_like(r.batch.image)
        with torch.no_grad():
            told = self._run(nets[0], mixed, image)
        views = [r.view(name) for name in r.learners]
        everyone = View(torch.stack([full(v.logits.detach()) for v in views] + [full(told)]).mean(0))
        for net, name, view, ratio in zip(nets, r.learners, views, ratios, strict=True):
            if self.hybrid_gradient:
                # the value of the hybrid, with a path to this learner's share of it
                own = {key: mixed[key] + ratio * (p - p.detach()) for key, p in net.named_parameters()}
                told = self._run(net, {**mixed, **own}, image)
            dice, ce = dice_ce(told, r.batch.label, classes=r.batch.known)
            yield Turn(name, {"hybrid": self.hybrid * (dice + ce), **self(view, everyone, r.batch)})
        if r.did_step:
            self.steps += 1
            if int(self.steps) % self.interval == 0:
                after = [_copy(net) for net in nets]
                target = hybrid(after, ratios)
                for net, own in zip(nets, after, strict=True):
                    _write(net, fuse(own, target, self.gamma))

    @staticmethod
    def _run(net: nn.Module, weights: Weights, image: Tensor) -> Tensor:
        # buffers of its own, so that running statistics of the learner stay what its own images made them
        return first_head(torch.func.functional_call(net, dict(weights), (image,)), image.ndim - 2)


def hybrid(learners: Sequence[Weights], ratios: Sequence[float]) -> dict[str, Tensor]:
    """Return the mixed weights, name by name; what is no floating-point number is the first learner's.

    Raises:
        UserError: as many ratios as learners are needed.
    """
    if len(learners) != len(ratios):
        raise UserError(f"okdph: {len(ratios)} ratios for {len(learners)} learners; give one each")
    return {
        key: sum((ratio * one[key] for one, ratio in zip(learners, ratios, strict=True)), torch.zeros_like(first))
        if first.is_floating_point()
        else first.clone()
        for key, first in learners[0].items()
    }


def fuse(own: Weights, mixed: Weights, gamma: float) -> dict[str, Tensor]:
    """Return the weights moved towards the hybrid's by the share ``gamma``."""
    return {
        key: (1 - gamma) * value + gamma * mixed[key] if value.is_floating_point() else value
        for key, value in own.items()
    }


def okdph(
    student: Tensor,
    hybrid_logits: Tensor,
    ensemble: Tensor,
    label: Tensor,
    *,
    omega: float = 0.8,
    beta: float = 0.8,
    temperature: float = 4.0,
) -> Tensor:
    """Return the published loss of one learner: two cross-entropies and the tempered KL to the ensemble.

    Shapes: logits ``(B, K, *S)``, label ``(B, *S)``; a scalar, mean over voxels. ``ensemble`` is a constant.
    """
    ce, other = (nn.functional.cross_entropy(full(z), label) for z in (student, hybrid_logits))
    return omega * ce + (1 - omega) * other + beta * kl_map(student, ensemble, temperature).mean()


def draw_ratios(count: int, mix: str) -> list[float]:
    """Return the share of each learner in the hybrid: equal, or drawn evenly from the simplex."""
    if mix == "mean":
        return [1 / count] * count
    draw = -torch.rand(count, dtype=torch.float64).clamp_min(1e-12).log()
    return [float(x) for x in draw / draw.sum()]


def check_alike(learners: Sequence[Weights]) -> None:
    """Refuse learners whose weights cannot be mixed."""
    shapes = [{key: value.shape for key, value in one.items()} for one in learners]
    if any(one != shapes[0] for one in shapes[1:]):
        raise UserError("okdph: the learners differ in architecture, and only equal ones can be mixed; use `peers:`")


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in (*net.named_parameters(), *net.named_buffers())}


@torch.no_grad()
def _write(net: nn.Module, weights: Weights) -> None:
    for key, value in (*net.named_parameters(), *net.named_buffers()):
        value.copy_(weights[key])
