"""One round of a loss among tiny networks, watched: terms, and where their gradients went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medkd.conformance import toys
from medkd.methods.base import Method
from medkd.methods.partial import seen_by
from medkd.networks.taps import Tapped
from medkd.training.round import Table
from medkd.types import Batch, View

Change = Callable[[Tensor], Tensor]


class BrokenRuleError(Exception):
    """A rule does not hold; the text says why."""


class MootRuleError(Exception):
    """A rule asks nothing of this loss; the text says why."""


@dataclass(frozen=True)
class Subject:
    """What is judged.

    Args:
        name: how the table calls it.
        make: returns it anew, with the same arguments, for patches of this size.
        teachers: how many teachers it wants at the table.
        peers: how many co-learners.
        logits_only: a plain ``(student, teacher)`` loss, which is told neither trust nor declarations.
    """

    name: str
    make: Callable[[tuple[int, ...]], Method]
    teachers: int = 1
    peers: int = 0
    logits_only: bool = False

    def fresh(self, size: Sequence[int] = (8, 8, 8)) -> Method:
        """Return the loss, its random start always the same."""
        torch.manual_seed(0)
        return self.make(tuple(size))


@dataclass
class Turned:
    """One turn as it was played.

    Args:
        player: who learned.
        terms: name -> value.
        network: gradients of the player's parameters that took part.
        own: name -> gradient of the method's own parameters, None where none came.
        shown: gradients on what the student showed, logits and taps, each ``(B, ...)``.
        teacher: largest gradient that went to the teacher's view.
    """

    player: str
    terms: dict[str, float]
    network: list[Tensor] = field(default_factory=list)
    own: dict[str, Tensor | None] = field(default_factory=dict)
    shown: list[Tensor] = field(default_factory=list)
    teacher: float = 0.0


@dataclass
class Played:
    """The turns of the last round, and the method with what it remembers."""

    turns: list[Turned]
    method: Method

    @property
    def terms(self) -> dict[str, float]:
        """Every term of every player, as ``player: term``."""
        return {f"{turn.player}: {name}": value for turn in self.turns for name, value in turn.terms.items()}

    def of(self, player: str) -> list[Turned]:
        """Return the turns of one player."""
        return [turn for turn in self.turns if turn.player == player]

    @property
    def total(self) -> float:
        """Sum of the student's terms."""
        return sum(value for turn in self.of("student") for value in turn.terms.values())


class Watched(Table):
    """A table whose views pass through a change and can be asked for gradients, the teacher's too."""

    def __init__(
        self,
        learners: Mapping[str, Tapped],
        teachers: Sequence[Tapped],
        taps: Sequence[str],
        teacher_taps: Sequence[str],
        through: Change,
    ) -> None:
        super().__init__(learners, teachers, taps, teacher_taps)
        self.through = through
        self.shown: dict[str, View] = {}

    def deal(self, batch: Batch, progress: float) -> None:
        super().deal(batch, progress)
        self.shown = {}

    def view(self, name: str, image: Tensor | None = None) -> View:
        if image is not None or name in self._seen:
            return super().view(name, image)
        plain = super().view(name)
        # a teacher that asks for gradients: a method that does not detach it is found out
        frozen = name.startswith("teacher")

        def mark(x: Tensor) -> Tensor:
            return self.through(x.detach()).requires_grad_() if frozen else self.through(x)

        marked = View(mark(plain.logits), {tap: mark(x) for tap, x in plain.taps.items()}, plain.trust)
        self._seen[name] = self.shown[name] = marked
        return marked

    def tensors(self, names: Sequence[str]) -> list[Tensor]:
        """Return what these networks showed in this round and may get a gradient."""
        views = [self.shown[name] for name in names if name in self.shown]
        return [x for view in views for x in (view.logits, *view.taps.values()) if x.requires_grad]


def play(
    subject: Subject,
    batch: Batch,
    *,
    classes: int = 3,
    rounds: int = 2,
    seed: int = 0,
    through: Change = lambda x: x,
    twin: bool = False,
    method: Method | None = None,
) -> Played:
    """Play rounds with one batch; nobody's weights change, only what the method remembers.

    Args:
        subject: what is judged.
        batch: on the channels of :mod:`medkd.conformance.toys`.
        classes: of the networks.
        rounds: the last one is returned; memory banks fill in those before.
        seed: of torch while the turns are played.
        through: applied to everything that a network shows.
        twin: the student is a copy of the teacher and sees what it sees.
        method: an instance that was set up by an earlier call; a fresh one when None.

    Raises:
        BrokenRuleError: a turn or a term is not what the protocol asks for.
    """
    dims = batch.label.ndim - 1 - batch.regions
    blank = torch.zeros(1, *batch.image.shape[1:])
    teachers = [Tapped(toys.teacher(dims, classes, i), blank) for i in range(subject.teachers)]
    learners = {"student": Tapped(toys.student(dims, classes), blank)}
    learners |= {f"peer{i}": Tapped(toys.student(dims, classes, seed=i), blank) for i in range(1, subject.peers + 1)}
    if twin:
        learners["student"] = Tapped(toys.teacher(dims, classes).requires_grad_(True), blank)
    if method is None:
        method = subject.fresh(batch.image.shape[2:])
        method.setup(learners["student"].anatomy, teachers[0].anatomy)
    method.train()
    table = Watched(learners, teachers, method.taps(), method.teacher_taps(), through)
    torch.manual_seed(seed)
    turns: list[Turned] = []
    for _ in range(rounds):
        table.deal(batch, 0.5)
        turns = []
        for turn in method.turns(seen_by(method, table)):
            turns.append(_played(turn.player, turn.terms, table, method))
            table.stepped(turn.player)
    if not any(turn.player == "student" for turn in turns):
        raise BrokenRuleError("the student never had a turn")
    return Played(turns, method)


def _scalars(terms: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the terms; refuse what is not a scalar."""
    found: dict[str, Tensor] = {}
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise BrokenRuleError(f"the term {name!r} is {shape}, not a scalar tensor")
        found[name] = value
    return found


def _played(player: str, given: Mapping[str, object], table: Watched, method: Method) -> Turned:
    terms = _scalars(given)
    extra = method.players()
    networks: dict[str, nn.Module] = {**{name: table.nets[name] for name in table.learners}, **extra}
    if player not in networks:
        raise BrokenRuleError(f"a turn is for {player!r}, who is no player")
    turned = Turned(player, {name: float(value.detach()) for name, value in terms.items()})
    loss = torch.stack([value.float() for value in terms.values()]).sum()
    if not loss.requires_grad:
        return turned
    theirs = {id(p) for module in extra.values() for p in module.parameters()}
    own = {n: p for n, p in method.named_parameters() if id(p) not in theirs and p.requires_grad}
    own = own if player == "student" else {}
    parts: list[list[Tensor]] = [
        [p for p in networks[player].parameters() if p.requires_grad],
        list(own.values()),
        table.tensors([player] if player in table.learners else []),
        table.tensors(["teacher", *table.teachers]),
    ]
    wanted = [x for part in parts for x in part]
    found: list[Tensor | None] = list(torch.autograd.grad(loss, wanted, allow_unused=True))
    gradients: list[list[Tensor | None]] = []
    for part in parts:
        gradients.append(found[: len(part)])
        found = found[len(part) :]
    turned.network = [g for g in gradients[0] if g is not None]
    turned.own = dict(zip(own, gradients[1], strict=True))
    turned.shown = [g for g in gradients[2] if g is not None]
    turned.teacher = max((float(g.abs().max()) for g in gradients[3] if g is not None), default=0.0)
    return turned
