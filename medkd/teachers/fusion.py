"""Teachers of different organs as one: a distribution over the union of their classes, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkd.errors import UserError, nearest

RULES = ("confidence",)
TRUSTS = ("none", "disagreement")


@dataclass(frozen=True)
class Answer:
    """What one teacher says of one volume.

    Args:
        probabilities: ``(1 + len(classes), *S)``; channel 0 is its background, "none of mine".
        classes: name in the union of each channel from 1 on, or None for a class that the union lacks, which is then
            part of the teacher's background. Channels of the same name are added.
        temperature: of its calibration; its probabilities become softmax(log p / temperature).
    """

    probabilities: NDArray[Any]
    classes: tuple[str | None, ...]
    temperature: float = 1.0


@dataclass(frozen=True)
class Fused:
    """One answer over the union.

    Args:
        probabilities: ``(K, *S)`` float32, a distribution in every voxel; 0 for a class that nobody knows.
        trust: ``(1, *S)`` float32 in [0, 1], or None for one everywhere.
        known: ``(K,)`` bool: the background, and the classes that a teacher knows.
        conflicts: voxels that teachers claim for different classes.
        claimed: voxels that a teacher claims for a class of its own.
    """

    probabilities: NDArray[np.float32]
    trust: NDArray[np.float32] | None
    known: NDArray[np.bool_]
    conflicts: int
    claimed: int

    @property
    def conflict_rate(self) -> float:
        """Share of the claimed voxels that are claimed for different classes; 0 where nothing is claimed."""
        return self.conflicts / self.claimed if self.claimed else 0.0


def fuse_answers(
    answers: Sequence[Answer], union: Mapping[str, int], rule: str = "confidence", *, trust: str = "none"
) -> Fused:
    r"""Fuse the answers of teachers that need not know the same classes.

    Teacher :math:`t` knows the classes :math:`C_t`; its background is the chance of none of these, so it is silent
    about every other class. Wanted is the distribution over the union whose marginals are what each teacher says:

    .. math:: q_c = \tfrac{1}{|T_c|} \sum_{t \in T_c} p_t(c), \quad T_c = \{t : c \in C_t\}, \qquad q_0 = 1 - S,
        \quad S = \sum_c q_c

    Where all teachers know the same classes this is the mean of their probabilities, background included. Where
    :math:`S > 1` the teachers claim more than there is, and no distribution agrees with all of them. By the rule
    ``confidence`` the class of the largest :math:`q_w` (calibrated, where temperatures are given) wins: the classes of
    the teachers that know :math:`w` keep their :math:`q`, and the others share, in proportion, what these leave; trust
    falls to :math:`1 - (S - 1)`, 1 less the mass that is claimed twice, and not below 0.

    A *conflict* is a voxel where two teachers each claim (more likely than not background) another class, and not both
    know both classes; those that do are averaged like any ensemble.

    With trust ``disagreement`` the mutual information of teachers that know the same classes lowers the trust too:
    :math:`1 - (H(\bar p) - \overline{H(p)}) / \log \min(n, K_t)` for :math:`n` teachers and their :math:`K_t` classes
    and background; the least of all such numbers holds.

    Args:
        answers: one a teacher, in any order.
        union: class name -> value, ``{"background": 0, ...}``, values 0, 1, 2 and so on.
        rule: how claims of different classes are settled; ``confidence``.
        trust: ``none`` (conflicts alone lower it) or ``disagreement``.

    Raises:
        UserError: no answer, channels that do not fit the classes, answers on different grids, a class not in the
            union, a temperature that is not above 0, or an unknown rule.
    """
    if not answers:
        raise UserError("there is no teacher's answer to fuse; give at least one")
    if len({answer.probabilities.shape[1:] for answer in answers}) > 1:
        shapes = ", ".join(str(answer.probabilities.shape[1:]) for answer in answers)
        raise UserError(f"teachers answer on different grids, {shapes}; resample them to the student's")
    channels = [channels_in(answer.classes, union) for answer in answers]
    volumes = [
        temper(torch.from_numpy(np.ascontiguousarray(answer.probabilities))[None], answer.temperature)
        for answer in answers
    ]
    fused = fuse_partial(volumes, channels, len(union), rule=rule, trust=trust)
    return Fused(
        probabilities=fused.probabilities[0].numpy(),
        trust=None if fused.trust is None else fused.trust[0].numpy(),
        known=fused.known.numpy(),
        conflicts=fused.conflicts,
        claimed=fused.claimed,
    )


def channels_in(classes: Sequence[str | None], union: Mapping[str, int]) -> tuple[int, ...]:
    """Return the value in the union of each of a teacher's channels from 1 on; 0 for a class that the union lacks."""
    for name in classes:
        if name is not None and name not in union:
            raise UserError(f"a teacher answers about {name!r}, which is no class of this run{nearest(name, union)}")
    return tuple(0 if name is None else union[name] for name in classes)


def temper(probabilities: Tensor, temperature: float) -> Tensor:
    """Return ``(B, K, *S)`` probabilities in float32, softened by a temperature; as they are at temperature 1."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"a teacher's temperature is {temperature}; it must be above 0")
    p = probabilities.float()
    return p if temperature == 1 else torch.softmax(p.clamp_min(1e-12).log() / temperature, dim=1)


@dataclass(frozen=True)
class FusedBatch:
    """:class:`Fused` for a batch of torch volumes: ``(B, K, *S)``, ``(B, 1, *S)`` or None, ``(K,)``."""

    probabilities: Tensor
    trust: Tensor | None
    known: Tensor
    conflicts: int
    claimed: int


def fuse_partial(
    answers: Sequence[Tensor],
    channels: Sequence[Sequence[int]],
    classes: int,
    *,
    rule: str = "confidence",
    trust: str = "none",
) -> FusedBatch:
    """Fuse as :func:`fuse_answers` does, on tensors.

    Args:
        answers: ``(B, 1 + len(channels[t]), *S)`` probabilities of each teacher.
        channels: by teacher, the value in the union of each channel from 1 on; 0 joins it with the background.
        classes: K, the size of the union, background included.
        rule: as there.
        trust: as there.
    """
    if rule not in RULES:
        raise UserError(f"conflict rule {rule!r} is not one of {', '.join(RULES)}")
    if trust not in TRUSTS:
        raise UserError(f"trust {trust!r} is not one of {', '.join(TRUSTS)}")
    device = answers[0].device
    knows = torch.zeros(len(answers), classes, dtype=torch.bool, device=device)
    known_to: list[list[int]] = []
    merged: list[Tensor] = []
    for row, (answer, values) in enumerate(zip(answers, channels, strict=True)):
        if answer.shape[1] != len(values) + 1:
            raise UserError(
                f"a teacher of {len(values)} classes answers with {answer.shape[1]} channels; "
                "it must have one for each, and the background first"
            )
        mine = sorted({value for value in values if value > 0})
        knows[row, mine] = True
        known_to.append(mine)
        merged.append(_merge(answer.float(), values, mine))
    same = len({tuple(mine) for mine in known_to if mine}) <= 1
    speakers = [(p, mine) for p, mine in zip(merged, known_to, strict=True) if mine] or [(merged[0], known_to[0])]
    shape = (merged[0].shape[0], classes, *merged[0].shape[2:])
    q = torch.zeros(shape, device=device)
    doubt: Tensor | None = None
    if same:
        q[:, [0, *speakers[0][1]]] = _mean([p for p, _ in speakers])
        claimed, conflicts = int((q.argmax(1) > 0).sum()) if len(speakers) == 1 else _claimed(speakers), 0
    else:
        for value in range(1, classes):
            told = [p[:, 1 + mine.index(value)] for p, mine in speakers if value in mine]
            if told:
                q[:, value] = _mean(told)
        excess = q.sum(1) - 1
        q[:, 0] = (-excess).clamp_min(0)
        if bool((excess > 0).any()):
            _settle(q, excess, knows)
            doubt = excess.clamp(0, 1)
        claimed, conflicts = _conflicts(speakers, knows)
    if trust == "disagreement":
        for known_alike in {tuple(mine) for _, mine in speakers}:
            group = [p for p, mine in speakers if tuple(mine) == known_alike]
            if len(group) > 1:
                mutual = disagreement(group)
                doubt = mutual if doubt is None else torch.maximum(doubt, mutual)
    known = knows.any(0)
    known[0] = True
    # rounding may leave a sum of 1.0000001: that is no doubt
    lowered = doubt is not None and bool((doubt > 1e-5).any())
    return FusedBatch(q, (1 - doubt).unsqueeze(1) if lowered and doubt is not None else None, known, conflicts, claimed)


def disagreement(group: Sequence[Tensor]) -> Tensor:
    """Return the normalised mutual information of answers ``(B, K, *S)`` about the same classes: ``(B, *S)`` in [0, 1].

    Entropy of the mean less the mean entropy, over its largest value, log min(n, K).
    """
    mean = _mean(list(group))
    mutual = _entropy(mean) - _mean([_entropy(p) for p in group])
    return (mutual / math.log(min(len(group), mean.shape[1]))).clamp(0, 1)


def _entropy(p: Tensor) -> Tensor:
    surprise: Tensor = torch.special.entr(p)
    return surprise.sum(1)


def _mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:  # not stacked: a volume of many classes is large
        total = total + value
    return total if len(values) == 1 else total / len(values)


def _merge(answer: Tensor, values: Sequence[int], mine: Sequence[int]) -> Tensor:
    """Return ``(B, 1 + len(mine), *S)``: channels of one class added, those without a class in the background."""
    if list(values) == list(mine):
        return answer
    out = answer.new_zeros(answer.shape[0], 1 + len(mine), *answer.shape[2:])
    out[:, 0] = answer[:, 0]
    for channel, value in enumerate(values, 1):
        out[:, 1 + mine.index(value) if value > 0 else 0] += answer[:, channel]
    return out


def _settle(q: Tensor, excess: Tensor, knows: Tensor) -> None:
    """Make ``q`` a distribution where the classes claim more than 1: the winner's side first, in place."""
    voxels, where = q.movedim(1, -1), excess > 0
    claims = voxels[where]  # (N, K)
    # classes known to somebody who knows w, for every w
    side = (knows.float().T @ knows.float()) > 0
    winners = side[claims.argmax(1)]
    kept = claims * winners
    kept = kept / kept.sum(1, keepdim=True).clamp_min(1)
    rest = claims * ~winners
    room = (1 - kept.sum(1, keepdim=True)).clamp_min(0)
    voxels[where] = kept + rest * (room / rest.sum(1, keepdim=True).clamp_min(1e-12)).clamp_max(1)


def _claims(speakers: Sequence[tuple[Tensor, list[int]]]) -> list[Tensor]:
    """Return what each teacher takes a voxel for, ``(B, *S)`` in values of the union; 0 for none of its classes."""
    return [torch.tensor([0, *mine], device=p.device)[p.argmax(1)] for p, mine in speakers]


def _claimed(speakers: Sequence[tuple[Tensor, list[int]]]) -> int:
    return int((torch.stack(_claims(speakers)) > 0).any(0).sum())


def _conflicts(speakers: Sequence[tuple[Tensor, list[int]]], knows: Tensor) -> tuple[int, int]:
    claims = _claims(speakers)
    rows = [[value in mine for value in range(knows.shape[1])] for _, mine in speakers]
    table = torch.tensor(rows, device=knows.device)
    clash = torch.zeros_like(claims[0], dtype=torch.bool)
    for i, a in enumerate(claims):
        for j in range(i):
            b = claims[j]
            clash |= (a > 0) & (b > 0) & (a != b) & ~(table[i][b] & table[j][a])
    return int((torch.stack(claims) > 0).any(0).sum()), int(clash.sum())
