"""Names of classes: from nnU-Net's and MSD's ``dataset.json``, a plain mapping, or a table of lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medkd.data.layouts import read_json
from medkd.errors import UserError

IGNORED = "ignore"
"""nnU-Net's name of the value that marks voxels nobody labelled."""

_QUOTED = re.compile(r'(?P<value>\d+)\b.*"(?P<name>[^"]+)"')  # ITK-SNAP: 1 255 0 0 1 1 1 "liver"
_VALUE_FIRST = re.compile(r"(?P<value>\d+)\s*[\s,;:=]\s*(?P<name>[^\d\W].*?)(?:(?:\s+\d+){4})?")  # Slicer adds a colour
_NAME_FIRST = re.compile(r"(?P<name>[^\d\W].*?)\s*[\s,;:=]\s*(?P<value>\d+)")


class Classes(NamedTuple):
    """What the values of a label map mean.

    Args:
        labels: class name -> value, or the values that make a region.
        ignore: the value of voxels that count for nothing, or None.
    """

    labels: dict[str, int | tuple[int, ...]]
    ignore: int | None = None


def read_labels(path: Path) -> Classes:
    """Read class names from a file.

    JSON: the key ``labels``, or the whole file, as ``{"1": "liver"}`` (MSD), ``{"liver": 1}`` (nnU-Net) or
    ``{"whole tumour": [1, 2]}`` (a region). Text: one class a line, ``1 liver``, ``liver,1``, a table of ITK-SNAP or
    3D Slicer; lines that begin with ``#`` and a head without a number say nothing.

    Raises:
        UserError: no such file, no names in it, or values that are not whole numbers.
    """
    if not path.is_file():
        raise UserError(f"file {path} with the labels does not exist")
    table = _json(path) if path.suffix.lower() == ".json" else _lines(path)
    named: dict[str, int | tuple[int, ...]] = {}
    for key, value in table.items():
        name, number = (str(value), key) if str(key).isdigit() else (str(key), value)
        values = number if isinstance(number, list) else [number]
        if not values or any(isinstance(one, bool) or not str(one).isdigit() for one in values):
            raise UserError(f"{path}: label {name!r} has the value {number!r}, which is no whole number, nor some")
        named[name] = tuple(int(str(one)) for one in values) if isinstance(number, list) else int(str(number))
    ignored = named.pop(IGNORED, None)
    if isinstance(ignored, tuple):
        raise UserError(f"{path}: {IGNORED!r} must be one value, not {list(ignored)}")
    return Classes(named, ignored)


def labels_beside(folder: Path) -> Path | None:
    """Return the ``dataset.json`` that tells what the labels in a folder mean: in it, or just above (``labelsTr``)."""
    beside = (place / "dataset.json" for place in (folder if folder.is_dir() else folder.parent, folder.parent))
    for file in beside:
        if file.is_file() and isinstance(content := read_json(file), dict) and content.get("labels"):
            return file
    return None


def _json(path: Path) -> Mapping[str, object]:
    content = read_json(path)
    table = content.get("labels", content) if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} has no key labels that maps names to values")
    return table


def _lines(path: Path) -> Mapping[str, object]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file") from error
    found: dict[str, object] = {}
    for line in lines:
        if not line or line.startswith("#"):
            continue
        match = next((m for p in (_QUOTED, _VALUE_FIRST, _NAME_FIRST) if (m := p.fullmatch(line))), None)
        if match is not None:
            found[match["value"]] = match["name"].strip().strip('"')
        elif any(character.isdigit() for character in line):
            raise UserError(f"{path}: the line {line!r} pairs no class with a whole number")
    if not found:
        raise UserError(f"{path} names no class: write one a line, such as 1 liver")
    return found
