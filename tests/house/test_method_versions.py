"""A default is part of what a finished training means: it does not change without a new version of its method.

A training's key holds the arguments as they are written, not the defaults beside them. So that a run made before and
one made after a change are told apart, the change raises ``version``, and is written down here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from medkd.methods.base import Method
from medkd.methods.catalogue import CATALOGUE, load

KNOWN = Path(__file__).with_name("method_defaults.json")


def told(method: type[Method]) -> dict[str, Any]:
    """Return version and defaults of a method as plain data; an argument without a default is null."""
    found = {}
    for name, parameter in inspect.signature(method).parameters.items():
        value = parameter.default
        found[name] = None if value is inspect.Parameter.empty else value
    plain: dict[str, Any] = json.loads(json.dumps({"version": method.version, "defaults": found}))
    return plain


def slips(methods: Mapping[str, dict[str, Any]], known: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what to do about each method whose defaults or version are not the known ones."""
    for name, now in methods.items():
        before = known.get(name)
        if before == now:
            continue
        line = f'"{name}": {json.dumps(now)}'
        if before is None:
            yield f"{name} is new; add to {KNOWN.name}: {line}"
        elif now["version"] > before["version"]:
            yield f"{name} has a new version; write it down in {KNOWN.name}: {line}"
        elif before["defaults"].items() <= now["defaults"].items():
            # Their defaults should do what was done before; whoever adds them knows.
            why = f"write them down in {KNOWN.name}, with a new version if they change what stood"
            yield f"{name} has new arguments; {why}: {line}"
        else:
            yield (
                f"{name}: defaults were {before['defaults']} and are {now['defaults']}; finished trainings would be "
                f"taken for new ones, so set `version: ClassVar[int] = {before['version'] + 1}` in its class"
            )
    yield from (f"{name} is gone; take it out of {KNOWN.name}" for name in known if name not in methods)


def test_no_default_changes_without_a_new_version() -> None:
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    assert list(slips({name: told(load(name)) for name in CATALOGUE}, known)) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"version": 1, "defaults": {"temperature": 4.0}}, "set `version: ClassVar[int] = 2` in its class"),
        ({"version": 2, "defaults": {"temperature": 4.0}}, "write it down in method_defaults.json"),
        ({"version": 1, "defaults": {"temperature": 2.0, "new": 1}}, "write them down in method_defaults.json, with"),
        ({"version": 1, "defaults": {"new": 1}}, "set `version: ClassVar[int] = 2`"),
    ],
)
def test_a_changed_default_is_seen(now: dict[str, Any], said: str) -> None:
    known = {"kd": {"version": 1, "defaults": {"temperature": 2.0}}}
    (line,) = slips({"kd": now}, known)
    assert said in line


def test_new_and_lost_methods_are_seen() -> None:
    one = {"version": 1, "defaults": {}}
    assert [line.split(";")[0] for line in slips({"new": one}, {"old": one})] == ["new is new", "old is gone"]
