"""The nouns that every floor shares; torch only.

Shapes are written ``(B, C, *S)``: batch, channels or classes, then any number of spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

IGNORE = -1
"""Label of a voxel about which nothing is known: unlabelled case, padding, partial label."""

Terms = dict[str, Tensor]
"""Name -> scalar mean, unweighted."""


@dataclass(frozen=True)
class View:
    """What one network showed for one batch.

    Args:
        logits: ``(B, K, *S)``; for cached targets the log-probabilities.
        taps: tap name -> ``(B, C, *s)``, features at the points a method asked for.
        trust: ``(B, 1, *S)`` in [0, 1], or None for one everywhere.
        known: ``(B, K)`` bool: the classes that the logits tell from background, or None for all. The others are part
            of the background, and their channels are switched off (:func:`medkd.methods.ops.marginal`).
    """

    logits: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    trust: Tensor | None = None
    known: Tensor | None = None

    def detach(self) -> View:
        """Return the same view as history: a target, never a path for gradients."""
        taps = {name: tap.detach() for name, tap in self.taps.items()}
        return View(self.logits.detach(), taps, None if self.trust is None else self.trust.detach(), self.known)


@dataclass(frozen=True)
class Batch:
    """One mini-batch of patches.

    Args:
        image: ``(B, C, *S)``.
        label: ``(B, *S)`` int64 with :data:`IGNORE` where unknown; for overlapping regions
            ``(B, K, *S)`` of 0, 1 and :data:`IGNORE`.
        case: the case of each sample.
        spacing_mm: voxel size along ``*S``.
        target: ``(B, K, *S)`` cached teacher probabilities, or None when the teacher is live.
        trust: ``(B, 1, *S)`` trust in ``target``, or None for one everywhere.
        regions: True when classes may overlap (sigmoid), False when they exclude each other.
        known: ``(B, K)`` bool, the classes that each sample's label tells from background, or None for all: label 0
            means "none of these".
        target_known: likewise for the teacher, live or stored.
    """

    image: Tensor
    label: Tensor
    case: tuple[str, ...] = ()
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    target: Tensor | None = None
    trust: Tensor | None = None
    regions: bool = False
    known: Tensor | None = None
    target_known: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in ("image", "label", "target", "trust", "known", "target_known")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)


class Turn(NamedTuple):
    """One optimiser step: who learns, and the terms it minimises."""

    player: str
    terms: Terms


class Tap(NamedTuple):
    """Shape of one feature point: channels, and its stride against the image along ``*S``."""

    channels: int
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Anatomy:
    """What a dry run found in a network.

    Args:
        taps: feature point -> channels and stride.
        classes: of its logits.
        dims: spatial axes.
        heads: feature point -> path of the module that makes the logits from it alone, where there is one.
        network: the network itself, for the few methods that ship a part of it.
    """

    taps: Mapping[str, Tap]
    classes: int
    dims: int = 3
    heads: Mapping[str, str] = field(default_factory=dict)
    network: nn.Module | None = None


class Round(Protocol):
    """One mini-batch on the table, as a method sees it; the trainer provides it."""

    batch: Batch

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1]."""
        ...

    @property
    def did_step(self) -> bool:
        """After a ``yield``: True when the player's weights changed (False while accumulating)."""
        ...

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        """Every network at the table by name; a teacher's parameters are frozen."""
        ...

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the networks that learn the task: ``student``, then ``peer1``..."""
        ...

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the single teachers behind the fused ``teacher``: ``teacher0``..."""
        ...

    def view(self, name: str, image: Tensor | None = None) -> View:
        """Return what ``name`` shows for the batch (kept for the round) or for ``image``."""
        ...


Turns = Iterator[Turn]
