"""Short forms that a run's YAML may use, for pydantic to expand: one item for a list, a name for a mapping."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BeforeValidator


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _many(value: Any) -> Any:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _perhaps(value: Any) -> Any:
    return None if value is None else _many(value)


def _named(value: Any) -> Any:
    return tuple({"name": item} if isinstance(item, str) else item for item in _many(value))


def _control(value: Any) -> Any:
    if value is False or value == "none":
        return ()
    return ("steps",) if value is True else _many(value)


def _mode(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


def _overrides(value: Any) -> Any:
    return {} if value is None or value == "auto" else value


as_tuple = BeforeValidator(_tuple)
"""A list, where strict pydantic wants a tuple."""


def items(item: Any) -> BeforeValidator:
    """Return the reader of a list."""
    return BeforeValidator(_tuple, json_schema_input_type=list[item])


def one_or_many(item: Any) -> BeforeValidator:
    """Return the reader of a list, of which one item may stand alone and nothing means none."""
    return BeforeValidator(_many, json_schema_input_type=item | list[item])


def perhaps(item: Any) -> BeforeValidator:
    """Return the reader of one item, a list, or nothing, which stays nothing."""
    return BeforeValidator(_perhaps, json_schema_input_type=item | list[item] | None)


def named(item: Any) -> BeforeValidator:
    """Return the reader of a list of mappings, where a name alone stands for ``{name: ...}``."""
    return BeforeValidator(_named, json_schema_input_type=str | item | list[str | item])


def control_arms(arm: Any) -> BeforeValidator:
    """Return the reader of ``control``: an arm, a list of them, or ``none`` and ``false`` for no arm."""
    return BeforeValidator(_control, json_schema_input_type=arm | Literal["none"] | bool | list[arm] | None)


def overrides(mapping: Any) -> BeforeValidator:
    """Return the reader of a mapping of values set by hand, or ``auto`` for none."""
    return BeforeValidator(_overrides, json_schema_input_type=mapping | Literal["auto"])


def mode_alone(mapping: Any) -> BeforeValidator:
    """Return the reader of a mapping, whose ``mode`` may stand for the whole."""
    return BeforeValidator(_mode, json_schema_input_type=str | mapping)
