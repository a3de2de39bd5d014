"""Left and right in label names: which classes trade places when a volume is mirrored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])")
GLUED = re.compile(r"^(left|right)([a-z]{3,})$")


def left_right(labels: Mapping[str, int]) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """Pair the labels that differ only by their side: ``kidney_left``/``kidney_right``, ``LeftParotid``, ``Kidney L``.

    Args:
        labels: name to value.

    Returns:
        ``(left value, right value)`` of each pair, and the names that have a side but not exactly one partner.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in labels:
        parts = words(name)
        sides = {SIDES[word] for word in parts if word in SIDES}
        if len(sides) == 1:  # none: no side; both: a structure that lies on the midline or spans it
            key = tuple("*" if word in SIDES else word for word in parts)
            groups.setdefault(key, {"left": [], "right": []})[sides.pop()].append(name)
    pairs = [(labels[g["left"][0]], labels[g["right"][0]]) for g in groups.values() if _paired(g)]
    alone = [name for g in groups.values() if not _paired(g) for name in (*g["left"], *g["right"])]
    return tuple(sorted(pairs)), tuple(alone)


def _paired(group: Mapping[str, list[str]]) -> bool:
    return len(group["left"]) == len(group["right"]) == 1


def words(name: str) -> list[str]:
    """Return the words of a label name, lower case, sides apart: ``LeftParotid`` -> ``left``, ``parotid``."""
    return list(_split(word.lower() for word in WORD.findall(name)))


def _split(parts: Iterable[str]) -> Iterable[str]:
    for word in parts:
        glued = GLUED.match(word)
        yield from glued.groups() if glued else (word,)
