"""Are stored targets what the teacher would say? Asked where it matters: on the patches that a student is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medkd.errors import UserError
from medkd.types import Batch

REGIONS = ("all", "foreground", "boundary", "background")
_SURE = 0.95
"""A voxel whose likeliest class has less than this in the live answer lies at a boundary."""
_TINY = 1e-12
"""Probability below which nothing is told apart: float32 softmax has no more."""


@dataclass(frozen=True)
class Agreement:
    """How well stored targets stand for a live teacher, in one region.

    Args:
        voxels: how many were compared.
        kl_nats: mean over voxels of KL(live || stored), in nats.
        softened_nats: the same of both at temperature 2.
        agreement: share of voxels with the same likeliest class.
        worst_nats: largest KL of a voxel, in nats.
        worst_case: the case that it is in.
    """

    voxels: int
    kl_nats: float
    softened_nats: float
    agreement: float
    worst_nats: float
    worst_case: str


def voxel_kl(live: Tensor, stored: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return :math:`\mathrm{KL}(\sigma(\log p / \tau) \,\|\, \sigma(\log q / \tau))` of each voxel, in nats.

    Shapes: probabilities ``(B, K, *S)`` of the live teacher (p) and from the store (q) -> ``(B, *S)``.
    """
    p = F.log_softmax(live.double().clamp_min(_TINY).log() / temperature, dim=1)
    q = F.log_softmax(stored.double().clamp_min(_TINY).log() / temperature, dim=1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1).clamp_min(0)


def audit(batches: Iterable[Batch], teacher: Callable[[Tensor], Tensor], *, whole: bool = True) -> dict[str, Agreement]:
    """Compare the targets of augmented patches with what the teacher says about the same patches.

    The two are not the same question: a stored target is the answer about the whole volume, resampled with the patch;
    the live teacher sees the resampled patch alone, and its intensity changes. So augment with ``none`` to
    measure the encoding and the patch's border, and as in training to measure what the student would get live.

    Args:
        batches: with targets; their trust says which voxels count.
        teacher: image ``(B, C, *S)`` -> probabilities ``(B, K, *S)``, in evaluation mode.
        whole: the patch's outer quarter counts too; False leaves out what the teacher sees without surroundings.

    Returns:
        :data:`REGIONS` -> agreement; a region without voxels is left out.

    Raises:
        UserError: the batches have no targets, or none that is trusted.
    """
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {region: [] for region in REGIONS}
    worst = dict.fromkeys(REGIONS, (-1.0, ""))
    for batch in batches:
        if batch.target is None:
            raise UserError("an audit compares stored targets, and this stage has none; its teacher runs live")
        with torch.no_grad():
            live = teacher(batch.image).float()
        one, two = voxel_kl(live, batch.target), voxel_kl(live, batch.target, 2.0)
        top, owner = live.max(1)
        same = owner == batch.target.argmax(1)
        counts = torch.ones_like(same) if batch.trust is None else batch.trust[:, 0] > 0
        if not whole:
            inner = torch.zeros_like(counts)
            inner[(slice(None), *(slice(n // 8, n - n // 8) for n in counts.shape[1:]))] = True
            counts &= inner
        edge = top < _SURE
        where = {"all": counts, "foreground": owner > 0, "boundary": edge, "background": (owner == 0) & ~edge}
        for region, chosen in where.items():
            mask = chosen & counts
            if bool(mask.any()):
                parts[region].append((one[mask], two[mask], same[mask].double()))
                at = one.masked_fill(~mask, -1).flatten(1).max(1).values
                if float(at.max()) > worst[region][0]:
                    worst[region] = float(at.max()), (batch.case or ("",) * len(at))[int(at.argmax())]
    if not parts["all"]:
        raise UserError("no voxel of these patches has a trusted target; draw more patches")
    return {region: _summary(found, *worst[region]) for region, found in parts.items() if found}


def _summary(found: list[tuple[Tensor, Tensor, Tensor]], worst: float, case: str) -> Agreement:
    one, two, same = (torch.cat(columns) for columns in zip(*found, strict=True))
    return Agreement(len(one), float(one.mean()), float(two.mean()), float(same.mean()), worst, case)


def sentence(found: dict[str, Agreement], encoding: str) -> str:
    """Return what an audit found, in one sentence."""
    total = found["all"]
    edge = found.get("boundary")
    at_edge = "" if edge is None else f" ({edge.kl_nats:.2g} at boundaries)"
    worst = "" if math.isinf(total.worst_nats) else f", worst voxel {total.worst_nats:.2g} nats in {total.worst_case}"
    return (
        f"stored targets ({encoding}) against the live teacher on {total.voxels:,} voxels of augmented patches: "
        f"mean KL {total.kl_nats:.2g} nats{at_edge}, same class in {100 * total.agreement:.2f} % of voxels{worst}"
    )
