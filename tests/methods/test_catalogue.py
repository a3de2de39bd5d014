"""Names to methods."""

from __future__ import annotations

import inspect

import pytest

from medkd.errors import UserError
from medkd.methods import catalogue
from medkd.methods.base import Method, Weight
from medkd.methods.logits.kd import KD


class Own(Method):
    """A user's own method."""

    needs_live_teacher = True

    def __init__(self, *, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength


class Features(Method):
    """Reads the teacher's features."""

    def taps(self) -> tuple[str, ...]:
        return ("enc0",)


class OwnFeatures(Features):
    """Reads features of the student alone."""

    reads_teacher = False


def path(found: type) -> str:
    return f"{__name__}:{found.__name__}"


def test_sorted_and_every_line_loads() -> None:
    assert list(catalogue.CATALOGUE) == sorted(catalogue.CATALOGUE)
    for name in catalogue.CATALOGUE:
        found = catalogue.load(name)
        assert issubclass(found, Method)
        assert getattr(found, "__final__", False), f"{name} is not final"
        kinds = {p.kind for p in inspect.signature(found).parameters.values()}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY}, f"{name} takes an argument without a name"


def test_arguments_reach_the_method() -> None:
    method = catalogue.make("kd", {"temperature": 3.0})
    assert isinstance(method, KD)
    assert method.temperature == 3


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("kdd", {}, r"'kdd' is not in the catalogue \(did you mean 'kd'\?\); known: "),
        ("kd", {"temprature": 1}, r"no argument 'temprature' \(did you mean 'temperature'\?\); it takes temperature, "),
        ("kd", {"temperature": "hot"}, "kd: "),
        ("kd", {"temperature": -1.0}, "above 0"),
        ("no_such_package:X", {}, "cannot be imported"),
        ("medkd.methods.logits.kd:Nothing", {}, "cannot be imported"),
        ("medkd.methods.logits.kd:kd", {}, "not a subclass"),
        ("torch.nn:Linear", {}, "not a subclass"),
    ],
)
def test_a_mistake_is_told(name: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        catalogue.make(name, arguments)


def test_ones_own_method() -> None:
    method = catalogue.make(path(Own), {"strength": 2.0})
    assert type(method).__name__ == "Own"


def test_what_stored_targets_can_answer() -> None:
    assert catalogue.cacheable("kd", {})
    assert catalogue.cacheable("supervised", {})
    assert not catalogue.cacheable(path(Own), {})
    assert not catalogue.cacheable(path(Features), {})
    assert catalogue.cacheable(path(OwnFeatures), {})
    assert catalogue.reads_teacher("kd")
    assert not catalogue.reads_teacher("supervised")


def test_a_sum_has_the_names_and_weights_given() -> None:
    total = catalogue.combine(
        [("sup", "supervised", {}, Weight.constant(1)), ("kd", "kd", {"temperature": 4.0}, Weight(0, 2))]
    )
    assert list(total.methods) == ["sup", "kd"]
    assert total.weight("kd/kd", 0.5) == 1
    assert total.weight("sup/dice", 0.5) == 1


def test_one_alias_twice_is_refused() -> None:
    one = Weight.constant(1)
    with pytest.raises(UserError, match="two methods are called 'kd'"):
        catalogue.combine([("kd", "kd", {}, one), ("kd", "kd", {"temperature": 4.0}, one)])
