"""The networks at the table for one mini-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.networks.taps import Tapped
from medkd.teachers.ensemble import fuse, to_logits
from medkd.teachers.fusion import fuse_partial
from medkd.types import Batch, View


class Table:
    """Implements :class:`medkd.types.Round`: views are made when first asked for and kept for the round.

    Args:
        learners: ``student``, ``peer1``... with their taps reader.
        teachers: frozen networks in evaluation mode; empty with cached targets, or without a teacher.
        taps: feature points to read from the learners.
        teacher_taps: feature points to read from the teachers.
        channels: by teacher, the student's class of each of its channels from 1 on (0 for a class that the student
            lacks), where one of them has other classes than the student; else None. What they know together is the
            batch's ``target_known``.
    """

    def __init__(
        self,
        learners: Mapping[str, Tapped],
        teachers: Sequence[Tapped] = (),
        taps: Sequence[str] = (),
        teacher_taps: Sequence[str] = (),
        channels: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._channels = None if channels is None else dict(zip(self._names(teachers), channels, strict=True))
        self._learners = dict(learners)
        self._teachers = dict(zip(self._names(teachers), teachers, strict=True))
        self._taps, self._teacher_taps = tuple(taps), tuple(teacher_taps)
        self._seen: dict[str, View] = {}
        self.batch: Batch
        self.progress = 0.0
        self.did_step = False

    @staticmethod
    def _names(teachers: Sequence[Tapped]) -> list[str]:
        return [f"teacher{i}" for i in range(len(teachers))]

    def deal(self, batch: Batch, progress: float) -> None:
        """Begin a round: a new batch, no views."""
        self.batch, self.progress, self.did_step = batch, progress, False
        self._seen.clear()

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        """Every network by name."""
        return {name: t.network for name, t in (self._learners | self._teachers).items()}

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the networks that learn the task."""
        return tuple(self._learners)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the single teachers; empty when their fused answer is cached."""
        return tuple(self._teachers)

    def view(self, name: str, image: Tensor | None = None) -> View:
        """Return what ``name`` shows for the batch, or for ``image`` ``(B, C, *S)``.

        Raises:
            UserError: no such network at this table, or cached targets asked about another image.
        """
        if image is not None:
            return self._run(name, image)
        if name not in self._seen:
            self._seen[name] = self._run(name, None)
        return self._seen[name]

    def stepped(self, name: str, *, did_step: bool = True) -> None:
        """After a turn: the player's view is history, a target and never a path."""
        self.did_step = did_step
        if name in self._seen:
            self._seen[name] = self._seen[name].detach()

    def _run(self, name: str, image: Tensor | None) -> View:
        if name in self._learners:
            return self._learners[name](self.batch.image if image is None else image, self._taps)
        if name == "teacher" and not self._teachers:
            if self.batch.target is None:
                raise UserError("this method asks for a teacher and the stage has none; add `teacher:` to the stage")
            if image is not None:
                raise UserError("this method asks the teacher about new images, which stored targets cannot answer")
            return View(to_logits(self.batch.target, regions=self.batch.regions), NoTaps(STORED), self.batch.trust)
        if name != "teacher" and name not in self._teachers:
            raise UserError(f"there is no network {name!r} at the table; there are {', '.join(self.nets)}")
        asked = list(self._teachers) if name == "teacher" else [name]
        x = self.batch.image if image is None else image
        # a teacher's parameters are frozen; an image that wants a gradient still gets one through it
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            views = [self._teachers[one](x, self._teacher_taps) for one in asked]
        trust = self.batch.trust if image is None else None
        if self._channels is None:
            logits = fuse([v.logits for v in views], regions=self.batch.regions)
        else:
            logits, trust = self._fuse_partial(asked, [v.logits for v in views], trust)
        return View(logits, views[0].taps if len(views) == 1 else NoTaps(TOGETHER), trust)

    def _fuse_partial(
        self, asked: Sequence[str], logits: Sequence[Tensor], trust: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return over the student's classes what teachers say that may know others, and the trust in it."""
        assert self._channels is not None
        if self.batch.regions:
            raise UserError("teachers of other classes than the student's cannot be fused where classes overlap")
        if len(asked) < len(self._teachers) and len({tuple(c) for c in self._channels.values()}) > 1:
            raise UserError("a method asks the teachers one by one, which needs teachers that know the same classes")
        classes = next(iter(self._learners.values())).anatomy.classes
        fused = fuse_partial([z.float().softmax(1) for z in logits], [self._channels[name] for name in asked], classes)
        if fused.trust is not None:
            trust = fused.trust if trust is None else trust * fused.trust
        return to_logits(fused.probabilities), trust


TOGETHER = "several have no features together; give it one"
STORED = "stored targets have no features; let the teacher run live"


class NoTaps(dict[str, Any]):
    """The taps of a teacher that has none: several together, whose features mean different things, or stored targets.

    Args:
        why: end of the sentence that a method is told when it asks for one.
    """

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why

    def __missing__(self, name: str) -> Any:
        raise UserError(f"a method reads {name!r} of its teacher, and {self.why}")
