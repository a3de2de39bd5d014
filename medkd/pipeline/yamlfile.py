"""YAML that remembers where each key stands: YAML 1.2 core scalars, no tags, no merging, no code."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from medkd.errors import UserError, nearest

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of a document to a value."""

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {"": None, "~": None} | {
    spelling: value
    for word, value in {"null": None, "true": True, "false": False}.items()
    for spelling in (word, word.capitalize(), word.upper())
}
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")} | {
    "tag:yaml.org,2002:value"
}


@dataclass(frozen=True)
class Document:
    """Plain data of a YAML file and the place of every value.

    Args:
        data: mappings, lists and scalars only.
        source: how errors call the document, a file name.
        places: key path -> ``file.yaml:12`` or ``--set key``.
    """

    data: dict[str, object]
    source: str
    places: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Return the place of ``path``, or of its nearest ancestor that stands in the file."""
        # Positions may not stand in the file: one model, where several may be, is written without a list.
        for shorter in (path, tuple(part for part in path if not isinstance(part, int))):
            for end in range(len(shorter), 0, -1):
                if (place := self.places.get(shorter[:end])) is not None:
                    return place
        return self.source

    def error(self, path: KeyPath, message: str) -> str:
        """Return ``file.yaml:12: stages.student.model: message``."""
        return f"{self.where(path)}: {dotted(path)}: {message}" if path else f"{self.where(path)}: {message}"

    def override(self, assignments: Sequence[str]) -> Document:
        """Return the document with each ``key.path=value`` of ``assignments`` applied in order.

        Values are typed as in YAML. Raises :class:`UserError` for a malformed assignment, an unknown stage, a list
        position that does not exist, or a path through something that has no keys.
        """
        data, places = copy.deepcopy(self.data), dict(self.places)
        for text in assignments:
            parts, value = _assignment(text)
            _assign(data, parts, value, text)
            path = _typed(data, parts)
            places = {known: place for known, place in places.items() if known[: len(path)] != path}
            places[path] = f"--set {dotted(path)}"
        return Document(data, self.source, places)


def dotted(path: KeyPath) -> str:
    """Return ``stages.student.methods.1`` for a key path."""
    return ".".join(str(part) for part in path)


def read(file: Path) -> Document:
    """Read a YAML mapping.

    Raises :class:`UserError` with file and line for a missing or unreadable file, a syntax error, a key given twice,
    a tag, or anything but a mapping at the top.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the YAML file of a run") from None
    except IsADirectoryError:
        raise UserError(f"{file}: is a folder; give the YAML file of a run") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    return parse(text, str(file))


def parse(text: str, source: str) -> Document:
    """Read a YAML mapping from ``text``; errors call it ``source``. Raises as :func:`read`."""
    places: dict[KeyPath, str] = {}
    root = _compose(text, source)
    data = None if root is None else _Reader(source, places).value(root, (), ())
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise UserError(f"{source}: {what}; a run is a mapping with the keys name, data, stages...")
    return Document(data, source, places)


def parse_value(text: str) -> object:
    """Return the value that ``text`` has in YAML: ``500`` is an int, ``[1, 2]`` a list."""
    root = _compose(text, f"value {text!r}")
    return None if root is None else _Reader(f"value {text!r}", {}).value(root, (), ())


def dump(data: Mapping[str, object]) -> str:
    """Return ``data`` as YAML text that :func:`parse` reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what this module would read as something else than text, and knows no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> ScalarNode:
    plain = isinstance(scalar(value), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_Dumper.add_representer(str, _text)


def scalar(text: str) -> object:
    """Return a plain scalar by the YAML 1.2 core schema: ``1e-5`` is a number, ``no`` and ``on`` are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.lower() in (".inf", "+.inf", "-.inf"):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if text.lower() == ".nan" else text


def _compose(text: str, source: str) -> Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = source if mark is None else f"{source}:{mark.line + 1}"
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


@dataclass
class _Reader:
    source: str
    places: dict[KeyPath, str]

    def value(self, node: Node, path: KeyPath, above: tuple[int, ...]) -> object:
        if id(node) in above:
            raise self.refuse(node, "an alias may not contain itself")
        if node.tag not in _TAGS:
            raise self.refuse(node, f"the tag {node.tag!r} is not read; write plain text, numbers, lists and mappings")
        above = (*above, id(node))
        if isinstance(node, MappingNode):
            return self.mapping(node, path, above)
        if isinstance(node, SequenceNode):
            for i, item in enumerate(node.value):
                self.places[(*path, i)] = self.place(item)
            return [self.value(item, (*path, i), above) for i, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return scalar(node.value) if node.style is None else node.value

    def mapping(self, node: MappingNode, path: KeyPath, above: tuple[int, ...]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag not in _TAGS:
                raise self.refuse(key_node, "a key should be plain text (merging with << is not read)")
            key = key_node.value
            if key in found:
                raise UserError(f"{self.place(key_node)}: {dotted((*path, key))}: given twice; keep one")
            self.places[(*path, key)] = self.place(key_node)
            found[key] = self.value(value_node, (*path, key), above)
        return found

    def place(self, node: Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"

    def refuse(self, node: Node, what: str) -> UserError:
        return UserError(f"{self.place(node)}: {what}")


def step_into(data: object, part: str | int) -> tuple[bool, object]:
    """Return whether ``data`` has the key or position ``part``, and what stands there."""
    if isinstance(data, Mapping) and part in data:
        return True, data[part]
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return True, data[part]
    return False, None


def _assignment(text: str) -> tuple[list[str], object]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {text}: not an assignment; write --set stages.student.train.steps=500")
    return parts, parse_value(value)


def _assign(data: dict[str, object], parts: list[str], value: object, text: str) -> None:
    here: object = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        above = dotted(tuple(parts[:depth]))
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise UserError(f"--set {text}: {above} is a list of {len(here)}; {part!r} is no position in it")
            if last:
                here[int(part)] = value
            else:
                here = here[int(part)]
        elif isinstance(here, dict):
            if above == "stages" and not last and part not in here:
                raise UserError(f"--set {text}: no stage is called {part!r}{nearest(part, map(str, here))}")
            if last:
                here[part] = value
            else:
                if here.get(part) is None:
                    here[part] = {}
                here = here[part]
        else:
            raise UserError(f"--set {text}: {above} is {here!r}, which has no keys; set {above} as a whole")


def _typed(data: object, parts: Sequence[str]) -> KeyPath:
    """Return ``parts`` with list positions as numbers, as the places are keyed."""
    path: list[str | int] = []
    for part in parts:
        if isinstance(data, list):
            path.append(int(part))
            data = data[int(part)]
        else:
            assert isinstance(data, dict)
            path.append(part)
            data = data[part]
    return tuple(path)
