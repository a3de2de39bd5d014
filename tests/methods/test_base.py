"""The protocol: turns of several methods, ramps, players."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.methods.base import Method, Sum, Weight
from medkd.types import Anatomy, Batch, Tap, Turn, Turns, View

ANATOMY = Anatomy({"enc0": Tap(4, (1, 1))}, 2, 2)


class FakeRound:
    """A table with a student, a peer and a teacher; remembers who was looked at."""

    def __init__(self) -> None:
        self.batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
        self.progress, self.did_step = 0.0, True
        self.looks: list[str] = []

    nets: Mapping[str, nn.Module] = {}
    learners = ("student", "peer1")
    teachers = ("teacher0",)

    def view(self, name: str, image: Tensor | None = None) -> View:
        self.looks.append(name)
        return View(torch.zeros(1, 2, 2, 2))


class Script(Method):
    """Takes these turns; notes when it is resumed."""

    def __init__(self, *script: str, players: tuple[str, ...] = (), notes: list[str] | None = None) -> None:
        super().__init__()
        self.script, self.notes = script, [] if notes is None else notes
        self.own = nn.ModuleDict({name: nn.Linear(1, 1) for name in players})

    def players(self) -> dict[str, nn.Module]:
        return dict(self.own.items())

    def turns(self, r: object) -> Turns:
        for i, player in enumerate(self.script):
            yield Turn(player, {f"t{i}": torch.tensor(float(i))})
            self.notes.append(f"after {i}")


def play(**methods: Method) -> Iterator[Turn]:
    return Sum({name: (m, Weight.constant(1)) for name, m in methods.items()}).turns(FakeRound())


def plain(turns: Iterator[Turn]) -> list[tuple[str, list[str]]]:
    return [(turn.player, list(turn.terms)) for turn in turns]


def test_the_common_face_is_one_turn_of_the_student() -> None:
    class Plain(Method):
        def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
            return {"x": (student.logits - teacher.logits).mean()}

    r = FakeRound()
    (turn,) = Plain().turns(r)
    assert turn.player == "student"
    assert list(turn.terms) == ["x"]
    assert r.looks == ["student", "teacher"]


def test_defaults_of_a_method_do_nothing() -> None:
    method, student = Method(), nn.Linear(1, 1)
    method.setup(ANATOMY, ANATOMY)
    assert method.taps() == method.teacher_taps() == ()
    assert method.players() == {}
    assert method.deploy(student) is student
    with pytest.raises(NotImplementedError):
        next(method.turns(FakeRound()))


def test_terms_of_one_player_are_one_turn() -> None:
    assert plain(play(a=Script("student"), b=Script("student"))) == [("student", ["a/t0", "b/t0"])]


def test_turns_of_the_same_player_merge_in_order() -> None:
    turns = plain(play(a=Script("student", "peer1"), b=Script("student", "peer1"), c=Script("student")))
    assert turns == [("student", ["a/t0", "b/t0", "c/t0"]), ("peer1", ["a/t1", "b/t1"])]


@pytest.mark.parametrize("turned", [False, True])
def test_a_critic_before_the_student_does_not_split_its_turn(turned: bool) -> None:
    methods = {"a": Script("student"), "b": Script("critic", "critic", "student"), "c": Script("student")}
    if turned:
        methods = dict(reversed(methods.items()))
    turns = plain(play(**methods))
    assert [player for player, _ in turns] == ["critic", "critic", "student"]
    assert turns[-1][1] == [f"{name}/t{2 if name == 'b' else 0}" for name in methods]


def test_a_critic_after_the_student_has_its_turn_then() -> None:
    turns = plain(play(a=Script("student"), b=Script("student", "critic")))
    assert turns == [("student", ["a/t0", "b/t0"]), ("critic", ["b/t1"])]


def test_a_method_goes_on_only_after_its_own_turn() -> None:
    notes: list[str] = []
    turns = play(a=Script("student", "student", notes=notes), b=Script("student", "critic", "student"))
    seen = []
    for turn in turns:
        seen.append((turn.player, list(turn.terms), list(notes)))
    assert seen == [
        ("student", ["a/t0", "b/t0"], []),
        ("critic", ["b/t1"], ["after 0"]),
        ("student", ["a/t1", "b/t2"], ["after 0"]),
    ]
    assert notes == ["after 0", "after 1"]


def test_a_method_without_a_turn_is_no_matter() -> None:
    assert plain(play(a=Script(), b=Script("student"))) == [("student", ["b/t0"])]
    assert plain(play(a=Script())) == []


def test_players_of_all_methods_and_no_name_twice() -> None:
    def both(second: str) -> Sum:
        a, b = Script(players=("critic",)), Script(players=(second,))
        return Sum({"a": (a, Weight.constant(1)), "b": (b, Weight.constant(1))})

    assert list(both("judge").players()) == ["critic", "judge"]
    with pytest.raises(UserError, match="'b' claims the player 'critic'"):
        both("critic").players()


class Taps(Method):
    def __init__(self, mine: tuple[str, ...], theirs: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.mine, self.theirs = mine, theirs
        self.met: list[Anatomy] = []

    def taps(self) -> tuple[str, ...]:
        return self.mine

    def teacher_taps(self) -> tuple[str, ...]:
        return self.mine if self.theirs is None else self.theirs

    def setup(self, student: Anatomy, teacher: Anatomy) -> None:
        self.met = [student, teacher]
        self.adapter = nn.Linear(student.taps["enc0"].channels, 1)

    def deploy(self, student: nn.Module) -> nn.Module:
        return nn.Sequential(student, nn.Identity())


class Alone(Taps):
    """Reads its own student's features only."""

    reads_teacher = False


def test_taps_of_all_methods_once_each() -> None:
    total = Sum(
        {
            "a": (Taps(("enc0", "dec0")), Weight.constant(1)),
            "b": (Taps(("dec0", "enc1"), ("dec1",)), Weight.constant(1)),
            "c": (Alone(("bottleneck",)), Weight.constant(1)),
        }
    )
    assert total.taps() == ("enc0", "dec0", "enc1", "bottleneck")
    assert total.teacher_taps() == ("enc0", "dec0", "dec1")  # nothing of a teacher for who reads none


def test_setup_and_deploy_reach_every_method() -> None:
    one, two = Taps(()), Taps(())
    total = Sum({"a": (one, Weight.constant(1)), "b": (two, Weight.constant(1))})
    total.setup(ANATOMY, ANATOMY)
    assert one.met == two.met == [ANATOMY, ANATOMY]
    assert len(list(total.parameters())) == 4
    student = nn.Linear(1, 1)
    shipped = total.deploy(student)
    assert [m for m in shipped.modules() if m is student]
    assert len([m for m in shipped.modules() if isinstance(m, nn.Identity)]) == 2


class Rated(Script):
    """Has rates of its own."""

    def __init__(self, **rates: float) -> None:
        super().__init__()
        self.own_rates = rates

    def rates(self) -> dict[str, float]:
        return self.own_rates


def rates(*methods: Method) -> dict[str, float]:
    return Sum({f"m{i}": (method, Weight.constant(1)) for i, method in enumerate(methods)}).rates()


def test_rates_of_all_players_come_together() -> None:
    assert rates(Script(), Script()) == {}
    assert rates(Rated(critic=0.1), Script(), Rated(generator=2.0, critic=0.1)) == {"critic": 0.1, "generator": 2.0}
    with pytest.raises(UserError, match="'m1' gives student another learning rate"):
        rates(Rated(student=0.1), Rated(student=0.2))
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"'m0' gives critic .* must be above 0"):
            rates(Rated(critic=nonsense))


def test_ramp() -> None:
    ramp = Weight(0.0, 2.0, over=0.5)
    assert [ramp.at(p) for p in (0, 0.25, 0.5, 0.75, 1)] == [0, 1, 2, 2, 2]
    assert [Weight(1.0, 0.0).at(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert Weight.constant(3.0).at(0.7) == 3
    total = Sum({"a": (Script(), ramp), "b": (Script(), Weight.constant(5))})
    assert total.weight("a/x", 0.25) == 1
    assert total.weight("b/x/y", 0.25) == 5


@pytest.mark.parametrize(
    "arguments", [(float("nan"), 1.0), (0.0, float("inf")), (0.0, 1.0, 0.0), (0.0, 1.0, 1.5), (0.0, 1.0, float("nan"))]
)
def test_a_weight_that_is_none_is_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="give"):
        Weight(*arguments)
