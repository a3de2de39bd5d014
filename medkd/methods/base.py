"""The protocol of every distillation method, and the sum of several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from medkd.errors import UserError
from medkd.methods.partial import seen_by
from medkd.types import Anatomy, Batch, Round, Terms, Turn, Turns, View


class Method(nn.Module):
    """A distillation method: batch in, turns out.

    The common face is the pure :meth:`forward`; the full face is :meth:`turns`, a generator that
    yields whose turn it is and what that player minimises. The trainer plays each turn and resumes
    the generator, so code after a ``yield`` sees updated weights. Parameters of the method itself
    reach the student's optimiser; state lives in buffers. Concrete methods are final.
    """

    version: ClassVar[int] = 1
    """Raise it when a default or the meaning of an argument changes: finished trainings are then done again."""
    reads_labels: ClassVar[bool] = False
    """Needs labels; refused when a stage has unlabelled cases and the method cannot skip them."""
    reads_teacher: ClassVar[bool] = True
    """Needs a teacher; a stage without one is refused."""
    regions: ClassVar[bool] = False
    """Also right for overlapping (sigmoid) classes."""
    needs_live_teacher: ClassVar[bool] = False
    """Needs the teacher network itself, beyond its taps (to run it on other images, say)."""
    min_batch: ClassVar[int] = 1
    """Smallest batch on which the terms mean anything."""
    zero_at_teacher: ClassVar[bool] = False
    """The terms are zero, their least, where the student shows what the teacher shows."""
    example: ClassVar[Mapping[str, object]] = {}
    """Constructor arguments for a tiny network, where the defaults do not fit one."""
    exempt: ClassVar[Mapping[str, str]] = {}
    """Rule of :mod:`medkd.conformance` -> why it cannot hold: ``{"batch": "compares the samples of a batch"}``."""

    def taps(self) -> tuple[str, ...]:
        """Return the names of the feature points read from student and teacher."""
        return ()

    def teacher_taps(self) -> tuple[str, ...]:
        """Return the teacher's feature points where their names differ from the student's."""
        return self.taps()

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        """Build adapters and banks for these channels and strides; called once, before training."""

    def players(self) -> dict[str, nn.Module]:
        """Return the method's own networks that have an optimiser each: critic, generator."""
        return {}

    def rates(self) -> dict[str, float]:
        """Return factors on the stage's learning rate by player, where a paper lets one learn slower or faster."""
        return {}

    def forward(self, student: View, teacher: View, batch: Batch) -> Terms:
        """Return the named, unweighted terms of one batch."""
        raise NotImplementedError

    def turns(self, r: Round) -> Turns:
        """Yield the turns of one round; by default the student's only."""
        yield Turn("student", self(r.view("student"), r.view("teacher"), r.batch))

    def deploy(self, student: nn.Module) -> nn.Module:
        """Return the network to ship; the student itself unless the method adds to it."""
        return student


@dataclass(frozen=True)
class Weight:
    """Multiplier of a term: ``start`` growing linearly to ``end`` over a share of the training."""

    start: float
    end: float
    over: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise UserError(f"weight {self.start} to {self.end} is not finite; give real numbers")
        if not 0 < self.over <= 1:
            raise UserError(f"a ramp lasts over {self.over} of the training; give a share in (0, 1]")

    def at(self, progress: float) -> float:
        """Return the weight when ``progress`` in [0, 1] of the training is done."""
        return self.start + (self.end - self.start) * min(1.0, progress / self.over)

    @classmethod
    def constant(cls, value: float) -> Weight:
        """Return a weight that never changes."""
        return cls(value, value)


@final
class Sum(Method):
    """Several methods as one: terms add, turns of the same player merge in order.

    Where methods wait for different players, those that do not learn the task (critics) go first, so that
    one method's critic does not split the student's turn in two. Term names become ``method/term``.
    Raises :class:`UserError` when two methods claim a player, or disagree about a player's rate.
    """

    def __init__(self, methods: Mapping[str, tuple[Method, Weight]]) -> None:
        super().__init__()
        self.methods = nn.ModuleDict({name: method for name, (method, _) in methods.items()})
        self.weights = {name: weight for name, (_, weight) in methods.items()}

    def _each(self) -> dict[str, Method]:
        return {name: m for name, m in self.methods.items() if isinstance(m, Method)}

    def taps(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t for m in self._each().values() for t in m.taps()))

    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t for m in self._each().values() if m.reads_teacher for t in m.teacher_taps()))

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        for method in self._each().values():
            method.setup(student, teacher)

    def players(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for name, method in self._each().items():
            for player, network in method.players().items():
                if player in found:
                    raise UserError(f"method {name!r} claims the player {player!r}, which another method has")
                found[player] = network
        return found

    def rates(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, method in self._each().items():
            for player, rate in method.rates().items():
                if not (math.isfinite(rate) and rate > 0):
                    raise UserError(
                        f"method {name!r} gives {player} {rate} times the learning rate; it must be above 0"
                    )
                if found.setdefault(player, rate) != rate:
                    raise UserError(f"method {name!r} gives {player} another learning rate than a method before it")
        return found

    def turns(self, r: Round) -> Turns:
        generators = {name: method.turns(seen_by(method, r)) for name, method in self._each().items()}
        due = {name: turn for name, g in generators.items() if (turn := next(g, None)) is not None}
        while due:
            waiting = [turn.player for turn in due.values()]
            player = next((name for name in waiting if name not in r.learners), waiting[0])
            now = [name for name, turn in due.items() if turn.player == player]
            yield Turn(player, {f"{name}/{term}": value for name in now for term, value in due[name].terms.items()})
            for name in now:
                turn = next(generators[name], None)
                if turn is None:
                    del due[name]
                else:
                    due[name] = turn

    def weight(self, term: str, progress: float) -> float:
        """Return the weight of the term ``method/name`` at ``progress`` of the training."""
        return self.weights[term.split("/", 1)[0]].at(progress)

    def deploy(self, student: nn.Module) -> nn.Module:
        for method in self._each().values():
            student = method.deploy(student)
        return student
