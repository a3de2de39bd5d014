"""Deep mutual learning (DML): networks that learn together teach each other."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.methods.base import Method
from medkd.methods.logits.kd import check_reduction, voxel_weight
from medkd.methods.ops import binary_kl_map, full, kl_map, weighted_mean
from medkd.types import Batch, Round, Terms, Turn, Turns, View


@final
class DML(Method):
    r"""Every learner matches the class distribution of each of its peers, while all of them learn the labels.

    .. math:: L_i = \frac{1}{n - 1} \sum_{j \ne i} \tau^2 \frac{\sum_v w_v
        \mathrm{KL}\big(\sigma(z_{jv}/\tau) \,\|\, \sigma(z_{iv}/\tau)\big)}{\sum_v w_v}

    Args:
        temperature: :math:`\tau` (no unit); 1 in the paper.
        alternate: ask peers that have already moved in this round again, as the paper's algorithm does, for one more
            run of them a turn. False: everyone learns from where everyone stood, as most released code does.
        reduction: what :math:`w_v` is: ``balanced`` (every class that the peer sees counts the same), ``foreground``
            (within ``margin_mm`` of the peer's or the label's), ``uniform`` (the paper's).
        margin_mm: margin of ``foreground``, in mm.

    Shapes: logits ``(B, K, *S)`` of every learner; returns one scalar a learner, ``dml``.
    Reads: logits of all learners (``peers: 1`` or more in the stage). Learns: nothing. Teacher: none. Regions: yes.
    Departs from the paper: voxels in place of images, class-balanced by default; the labels are the method
        ``supervised``, which gives every learner its turn.

    Reference: Zhang et al., *Deep Mutual Learning*, CVPR 2018, arXiv:1706.00384, eq. 2, 3, 5 and algorithm 1.
    Code read: AberHu/Knowledge-Distillation-Zoo, ``kd_losses/dml.py``; tianlizhang/OKDPH, ``src/01_DML.py``
        (weight 1, temperature 1; sum over classes, mean over samples and peers, everyone moves at once).
    """

    reads_teacher: ClassVar[bool] = False
    regions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alternate: bool = False,
        reduction: str = "balanced",
        margin_mm: float = 5.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"dml: temperature {temperature} must be above 0")
        check_reduction("dml", reduction)
        self.temperature, self.alternate = temperature, alternate
        self.reduction, self.margin_mm = reduction, margin_mm

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        """Return the term of one learner and one peer, who stands in the teacher's place."""
        kl = (binary_kl_map if batch.regions else kl_map)(student.logits, teacher.logits, self.temperature)
        return {"dml": weighted_mean(kl, voxel_weight(teacher, batch, self.reduction, self.margin_mm))}

    def turns(self, r: Round) -> Turns:
        check_peers("dml", r)
        for i, me in enumerate(r.learners):
            mine, found = r.view(me), []
            for j, other in enumerate(r.learners):
                if j != i:
                    peer = _again(r, other) if self.alternate and j < i else r.view(other)
                    found.append(self(mine, as_teacher(peer, r.batch), r.batch)["dml"])
            yield Turn(me, {"dml": torch.stack(found).mean()})


def _again(r: Round, name: str) -> View:
    with torch.no_grad():
        return r.view(name, r.batch.image)


def dml(
    student: Tensor,
    peer: Tensor,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    *,
    detach: bool = True,
) -> Tensor:
    """Return the KL from a peer to a learner, mean over voxels under ``weight``.

    Shapes: logits ``(B, K, *S)``, weight ``(B, *S)`` or None for the plain mean; a scalar. ``detach=False`` lets
    the gradient through to the peer, which some released code leaves to its caller.
    """
    if detach:
        return weighted_mean(kl_map(student, peer, temperature), weight)
    log_s, log_p = (F.log_softmax(full(z) / temperature, dim=1) for z in (student, peer))
    kl = F.kl_div(log_s, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * weighted_mean(kl, weight)


def as_teacher(peer: View, batch: Batch) -> View:
    """Return a peer's view as a target, which like a teacher's says nothing beyond the volume."""
    return replace(peer.detach(), trust=batch.trust)


def check_peers(method: str, r: Round) -> None:
    """Refuse a round in which the student learns alone."""
    if len(r.learners) < 2:
        raise UserError(f"{method}: the student has nobody to learn with; add `peers: 1` to the stage")
