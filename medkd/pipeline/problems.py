"""What pydantic found wrong, said as ``file.yaml:12: stages.student.train.stepz: ...``."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from medkd.errors import nearest
from medkd.pipeline.yamlfile import Document, KeyPath, step_into

_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "dict": "a mapping"}


def describe(error: ValidationError, document: Document, model: type[BaseModel]) -> list[str]:
    """Return one line a mistake, in the order of the document.

    Args:
        error: what validation of ``document.data`` by ``model`` raised.
        document: the data and the place of every key.
        model: the class whose keys are valid at the top.
    """
    found: dict[KeyPath, list[str]] = {}
    for one in error.errors(include_url=False):
        path = _path(one["loc"], document.data)
        if one["type"] in ("extra_forbidden", "missing"):
            path = (*_path(one["loc"][:-1], document.data), one["loc"][-1])
        said = found.setdefault(path, [])
        message = _message(one, path, model)
        if message not in said:
            said.append(message)
    return [document.error(path, _joined(messages, document.data, path)) for path, messages in found.items()]


def _message(one: Mapping[str, Any], path: KeyPath, model: type[BaseModel]) -> str:
    kind = str(one["type"])
    if kind == "extra_forbidden":
        known = sorted({key for found in _models(model, path[:-1]) for key in _keys(found)})
        return f"unknown key{nearest(str(path[-1]), known)}; valid: {', '.join(known)}"
    if kind == "missing":
        return "is missing; add this key"
    if kind in ("model_type", "model_attributes_type"):
        return "should be a mapping"
    if kind == "string_pattern_mismatch":
        return "should be a name of letters, digits, - and _"
    word, _, what = kind.partition("_")
    if what in ("type", "parsing", "from_float") and word in _PLAIN:
        return f"should be {_PLAIN[word]}"
    if kind in ("too_short", "too_long"):
        context = one["ctx"]
        bound = "at least" if kind == "too_short" else "at most"
        return f"should have {bound} {context.get('min_length', context.get('max_length'))} items"
    return str(one["msg"]).replace("Input should be", "should be").replace("valid tuple", "list")


def _joined(messages: Sequence[str], data: object, path: KeyPath) -> str:
    """Join what the members of a union said, and show the value when it is short."""
    should = [m.removeprefix("should be ") for m in messages if m.startswith("should be ")]
    text = f"should be {' or '.join(should)}" if len(should) == len(messages) else "; ".join(messages)
    value = _value(data, path)
    shown = repr(value) if isinstance(value, str | int | float) else ""
    return f"{text}, not {shown}" if should and 0 < len(shown) < 60 else text


def _path(location: Sequence[str | int], data: object) -> KeyPath:
    """Return the part of pydantic's location that is in the data: not the names of union members."""
    path: list[str | int] = []
    for part in location:
        there, inside = step_into(data, part)
        if there:
            data = inside
            path.append(part)
    return tuple(path)


def _value(data: object, path: KeyPath) -> object:
    for part in path:
        _, data = step_into(data, part)
    return data


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield info.alias or name


def _models(annotation: Any, path: KeyPath) -> Iterator[type[BaseModel]]:
    """Yield the models that may stand at ``path`` below a value of this type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            yield annotation
        for name, info in annotation.model_fields.items():
            if path and path[0] in (name, info.alias):
                yield from _models(info.annotation, path[1:])
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        yield from _models(arguments[1], path[1:])
    elif origin is typing.Annotated:
        yield from _models(arguments[0], path)
    else:  # unions, and lists, of which one item may stand alone
        if origin in (tuple, list) and path and isinstance(path[0], int):
            path = path[1:]
        for argument in arguments:
            yield from _models(argument, path)
