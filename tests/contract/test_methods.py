"""Every method keeps every rule of :mod:`medkd.conformance`; its line in the catalogue covers a new one."""

from __future__ import annotations

import pytest

from medkd.conformance.judge import judge
from medkd.conformance.rules import RULES
from medkd.conformance.subjects import find
from medkd.methods.catalogue import CATALOGUE, load


@pytest.mark.parametrize("key", CATALOGUE)
def test_the_method_keeps_every_rule(key: str) -> None:
    broken = [f"{one.rule}: {one.why}" for one in judge(find(key)) if one.outcome == "fail"]
    assert broken == []


@pytest.mark.parametrize("key", CATALOGUE)
def test_exemptions_name_a_rule_and_a_reason(key: str) -> None:
    assert set(load(key).exempt) <= set(RULES)
    assert all(len(why) > 10 for why in load(key).exempt.values())


def test_every_rule_asks_something_of_some_method() -> None:
    """A rule that is moot for the whole catalogue would be no net."""
    some = ("cwd", "fitnets", "kd", "supervised")
    held = {one.rule for key in some for one in judge(find(key)) if one.outcome == "pass"}
    assert held == set(RULES)
