"""What a method sees where a teacher, or a label, does not know every class: so that no method has to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medkd.methods.ops import marginal, merge_label
from medkd.types import IGNORE, Batch, Round, View

if TYPE_CHECKING:
    from medkd.methods.base import Method


def seen_by(method: Method, r: Round) -> Round:
    """Return the round as a method should see it: as it is where everybody knows every class.

    A method with a teacher compares what both can say: in its views the classes that the teacher does not know are part
    of the background (:func:`medkd.methods.ops.marginal`). Without a teacher, what the labels do not know is, for a
    method that reads labels.
    """
    batch = r.batch
    known = batch.target_known if method.reads_teacher else batch.known if method.reads_labels else None
    if (known is None or bool(known.all())) and (batch.known is None or bool(batch.known.all())):
        return r
    return Partial(r, known, with_teacher=method.reads_teacher)


class Partial:
    """A :class:`medkd.types.Round` in which some classes cannot be told from background.

    Args:
        r: the round behind it.
        known: ``(B, K)`` bool, classes that views show; None for all.
        with_teacher: the labels stand beside a teacher, who may know more classes than they do.
    """

    def __init__(self, r: Round, known: Tensor | None, *, with_teacher: bool) -> None:
        self._round, self._known = r, known
        self._views: dict[str, tuple[View, View]] = {}
        self.batch = labels_beside_teacher(r.batch, known) if with_teacher else r.batch

    @property
    def progress(self) -> float:
        """Share of the training done."""
        return self._round.progress

    @property
    def did_step(self) -> bool:
        """Whether the last turn changed weights."""
        return self._round.did_step

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        """Every network by name."""
        return self._round.nets

    @property
    def learners(self) -> tuple[str, ...]:
        """Networks that learn the task."""
        return self._round.learners

    @property
    def teachers(self) -> tuple[str, ...]:
        """Single teachers."""
        return self._round.teachers

    def view(self, name: str, image: Tensor | None = None) -> View:
        """Return what ``name`` shows, the unknown classes in its background; kept as long as the round keeps it."""
        shown = self._round.view(name, image)
        if image is not None:
            return self._merged(shown)
        if name not in self._views or self._views[name][0] is not shown:
            self._views[name] = shown, self._merged(shown)
        return self._views[name][1]

    def _merged(self, view: View) -> View:
        if self._known is None or len(view.logits) != len(self._known):
            return view
        regions = self.batch.regions
        heads = {
            name: marginal(tap, self._known, regions=regions)
            for name, tap in view.taps.items()
            if name.startswith("logits")
        }
        taps = {**view.taps, **heads} if heads else view.taps
        return replace(view, logits=marginal(view.logits, self._known, regions=regions), taps=taps, known=self._known)


def labels_beside_teacher(batch: Batch, known: Tensor | None) -> Batch:
    """Return the batch with labels that mean what a teacher of ``known`` ``(B, K)`` classes means.

    A class that the teacher does not know becomes background. Background becomes ``IGNORE`` where the label's own may
    be a class that the teacher does know. Overlapping regions stay as they are: each has an ``IGNORE`` of its own.
    """
    if batch.regions:
        return batch
    label, own = batch.label, batch.known
    if own is not None:
        told = torch.ones_like(own) if known is None else known.to(own.device)
        unsure = (told & ~own).any(1).view(-1, *[1] * (label.ndim - 1))
        label = torch.where(unsure & (label == 0), IGNORE, label)
    if known is not None:
        label = merge_label(label, known.to(label.device))
    return replace(batch, label=label, known=known)
