"""Which class is which: the classes of a run, the names that others give them, and who knows what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError, nearest

BACKGROUND = "background"


@dataclass(frozen=True)
class Ontology:
    """The union of the classes of a run, and their other names.

    Every teacher, dataset and stage declares the classes that it knows, by name; what it calls background means "none
    of mine". Names agree whatever their case, spaces, hyphens and underscores: ``left_parotid`` is ``LeftParotid``.

    Args:
        labels: class name -> value, ``{"background": 0, ...}``, values 0, 1, 2 and so on.
        aliases: class name -> its other names. Those of the background are classes of somebody else that this run
            does not tell from background, where ``*`` stands for any letters: ``{"background": ["rib*", "spleen"]}``.

    Raises:
        UserError: no background at 0, aliases of a class that is not there, or a name that means two classes.
    """

    labels: Mapping[str, int]
    aliases: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        if sorted(self.labels.values()) != list(range(len(self.labels))):
            raise UserError(f"labels must be the background 0 and then 1, 2 and so on, not {dict(self.labels)}")
        taken: dict[str, str] = {}
        for name, others in self.aliases.items():
            mine = self.name(name, "the ontology")
            if isinstance(others, str):
                raise UserError(f"ontology: the other names of {name} must be a list, such as [{others}]")
            for other in others:
                owner = taken.setdefault(plain(other), mine)
                exact = self._plain.get(plain(other), mine)
                if owner != mine or exact != mine:
                    twice = owner if owner != mine else exact
                    raise UserError(f"ontology: {other!r} means both {twice} and {mine}; leave it with one of them")

    @classmethod
    def of(cls, labels: Mapping[str, int], aliases: Mapping[str, Sequence[str]] | None = None) -> Ontology:
        """Return the ontology of a dataset's labels; classes that only ``aliases`` name are added after them.

        So a run can hold organs that its labels lack and a teacher knows.
        """
        known, union = {BACKGROUND, *(plain(name) for name in labels)}, dict(labels)
        for name in aliases or {}:
            if plain(name) not in known:
                union[name] = len(union)
        return cls(union, aliases or {})

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of their values, background first."""
        return tuple(sorted(self.labels, key=lambda name: self.labels[name]))

    @property
    def background(self) -> str:
        """What the dataset calls 0."""
        return self.names[0]

    @cached_property
    def _plain(self) -> dict[str, str]:
        return {BACKGROUND: self.background} | {plain(name): name for name in self.labels}

    @cached_property
    def _others(self) -> dict[str, str]:
        return {plain(other): self.name(name, "the ontology") for name, all_ in self.aliases.items() for other in all_}

    @cached_property
    def _outside(self) -> tuple[str, ...]:
        mine = [others for name, others in self.aliases.items() if self.name(name, "the ontology") == self.background]
        return tuple(word.casefold() for others in mine for word in others if "*" in word)

    def name(self, word: str, where: str) -> str:
        """Return the class that ``word`` means.

        Args:
            word: a class name or one of its other names.
            where: who says it, for the message.

        Raises:
            UserError: nothing is called so; tells the nearest name.
        """
        if word in self.labels:
            return word
        if plain(word) in self._plain:
            return self._plain[plain(word)]
        if self.aliases and plain(word) in self._others:
            return self._others[plain(word)]
        if any(fnmatchcase(word.casefold(), pattern) for pattern in self._outside):
            return self.background
        known = [*self.labels, *(other for others in self.aliases.values() for other in others)]
        hint = nearest(word, known)
        raise UserError(
            f"{where} names the class {word!r}, and this run has {', '.join(self.names[1:])}{hint}; "
            f"say what it is under `ontology`, {{{self.names[-1]}: [{word}]}} or {{background: [{word}]}}, say"
        )

    def part(self, words: Iterable[str], where: str) -> dict[str, int]:
        """Return the labels of somebody who knows only some classes: background and these, renumbered in order.

        Raises:
            UserError: an unknown name, one that means background, or a class named twice.
        """
        found: list[str] = []
        for word in words:
            name = self.name(word, where)
            if name == self.background:
                raise UserError(
                    f"{where} names {word!r}, which means background here; name only what is known beside it"
                )
            if name in found:
                raise UserError(f"{where} names the class {name} twice; keep one")
            found.append(name)
        kept = [self.background, *(name for name in self.names if name in found)]
        return {name: value for value, name in enumerate(kept)}

    def channels(self, labels: Mapping[str, int], where: str) -> tuple[str | None, ...]:
        """Return the class of each of a teacher's channels from 1 on, None for what this run calls background.

        Args:
            labels: the teacher's, name -> channel, background at 0.
            where: who it is, for the message.
        """
        ordered = sorted(labels, key=lambda name: labels[name])
        if [labels[name] for name in ordered] != list(range(len(ordered))):
            raise UserError(f"{where} has the labels {dict(labels)}; they must be 0, 1, 2 and so on")
        found = [self.name(name, where) for name in ordered[1:]]
        return tuple(None if name == self.background else name for name in found)

    def knows(self, names: Iterable[str | None]) -> NDArray[np.bool_]:
        """Return ``(K,)`` bool: the background and the named classes of the union."""
        known = np.zeros(len(self.labels), dtype=np.bool_)
        known[[0, *(self.labels[name] for name in names if name is not None)]] = True
        return known


def renumber(labels: Mapping[str, int], part: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the value in ``part`` of each value of ``labels``, ``(K,)``; 0 for a class that ``part`` does not know."""
    table = np.zeros(len(labels), dtype=np.int64)
    for name, value in labels.items():
        table[value] = part.get(name, 0)
    return table


def plain(word: str) -> str:
    """Return a name without case, spaces and marks: what two spellings of one class share."""
    return re.sub(r"[\W_]+", "", word).casefold()
