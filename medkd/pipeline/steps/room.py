"""Room on the disk for stored answers: how they are encoded, and whether they fit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from medkd.errors import UserError
from medkd.pipeline.specs import TargetsConfig
from medkd.teachers.encodings import KEPT, Encoding, choose_encoding, estimate_bytes


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk on which ``path`` is, or will be."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def choose(wanted: TargetsConfig, shapes: Sequence[Sequence[int]], classes: int, free: float) -> tuple[Encoding, int]:
    """Return how answers about volumes ``shapes`` (each ``(*S)``) are stored, and about how many bytes that takes.

    Raises:
        UserError: there is no room for them.
    """
    if wanted.encoding == "auto":
        encoding = choose_encoding(shapes, classes, free)
        return encoding, estimate_bytes(shapes, classes, encoding)
    encoding = Encoding(wanted.encoding, wanted.k or KEPT)
    size = estimate_bytes(shapes, classes, encoding)
    if size > free:
        raise UserError(
            f"the teacher's answers about {len(shapes)} cases need about {told(size)} as {encoding.name} and "
            f"{told(free)} are free; free some space, set `targets: {{encoding: auto}}`, or give another --runs"
        )
    return encoding, size


def told(size: float) -> str:
    """Return bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
