"""What a folder of stored targets says of itself: ``index.json``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medkd.errors import UserError

FORMAT = 1
INDEX = "index.json"


def content_digest(*parts: object) -> str:
    """Return one digest of everything that decides a target: data hash, teachers' identities, preprocessing, encoding.

    Args:
        parts: anything that JSON can write, mappings in any order.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return what a folder of targets says of itself, or None where it says nothing.

    Raises:
        UserError: it is damaged, or of a newer medkd.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        told = {key: index[key] for key in ("format", "encoding", "k", "classes", "content")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete the folder {folder} and run again") from error
    if told["format"] != FORMAT:
        raise UserError(f"{path} is of a newer medkd (format {told['format']}); update medkd or delete the folder")
    return told


def describe(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a folder holds; the first who comes does.

    Raises:
        UserError: this is not what it holds already.
    """
    there = read_index(folder)
    if there is None:
        write_json(folder / INDEX, {"format": FORMAT, **about})
    elif different := ", ".join(key for key in about if about[key] != there[key]):
        raise UserError(f"{folder} holds targets of another {different}; delete it or give another")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, whoever else writes it.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes may describe one folder at once
    try:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}); free disk space or choose another folder") from error
