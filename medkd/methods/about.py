"""What a method's docstring says, taken apart: the only list of papers, formulas and readings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medkd.errors import UserError
from medkd.methods import catalogue
from medkd.methods.base import Method

PARTS = ("Args", "Shapes", "Reads", "Learns", "Teacher", "Regions", "Departs from the paper", "Reference", "Code read")
"""Parts of a docstring by their first words, in their order."""
REQUIRED = ("Shapes", "Reads", "Learns", "Teacher", "Reference")
"""Parts that no method goes without (and ``Args`` where it has any, and the formula)."""
_PART = re.compile(rf"(?:^|(?<=[.)])\s+)({'|'.join(PARTS)}):", flags=re.MULTILINE)
_YEAR = re.compile(r"\b(19|20)\d\d\b")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})")


@dataclass(frozen=True)
class About:
    """A method in words.

    Args:
        key: name in the catalogue, or ``module:Class``.
        kind: folder of its file: ``logits``, ``features``...; ``task`` for what is no distillation.
        sentence: what it does.
        maths: its formula and what stands between the formula and the arguments.
        arguments: name -> default; None also for an argument without one.
        parts: part of the docstring by its first words -> text.
        reads: what of the batch goes in, of ``logits``, ``taps``, ``labels``.
        teacher: it needs a teacher.
        cacheable: it has a teacher, and stored probabilities are enough.
        regions: also right for overlapping classes.
        paper: authors and title, as the reference has them.
        year: of the paper; None without a reference.
        arxiv: its number, or empty.
        confidence: ``of`` a paper, ``after`` one (details of the paper were not to be had), or ``ours``.
    """

    key: str
    kind: str
    sentence: str
    maths: str
    arguments: dict[str, object]
    parts: dict[str, str]
    reads: tuple[str, ...]
    teacher: bool
    cacheable: bool
    regions: bool
    paper: str
    year: int | None
    arxiv: str
    confidence: str

    @property
    def text(self) -> str:
        """Return all but the sentence, laid out for a terminal."""
        blocks = [self.maths] if self.maths else []
        return "\n\n".join([*blocks, *(f"{name}:\n{indented(text)}" for name, text in self.parts.items())])

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


def about(key: str) -> About:
    """Return what the docstring of a method says.

    Raises:
        UserError: no such method, or one without a docstring.
    """
    found = catalogue.load(key)
    text = inspect.getdoc(found) or ""
    if found.__doc__ is None:
        raise UserError(f"method {key} has no docstring; begin it with one sentence of what it does")
    head, parts = taken_apart(text)
    sentence, _, maths = head.partition("\n\n")
    reference = flat(parts.get("Reference", ""))
    years = [int(found.group()) for found in _YEAR.finditer(_ARXIV.sub("", reference))]
    arxiv = _ARXIV.search(reference)
    parameters = inspect.signature(found).parameters.values()
    return About(
        key=key,
        kind=kind_of(found),
        sentence=flat(sentence),
        maths=maths.strip(),
        arguments={p.name: None if p.default is p.empty else p.default for p in parameters},
        parts=parts,
        reads=reads(found, parts.get("Reads", "")),
        teacher=found.reads_teacher,
        cacheable=found.reads_teacher and catalogue.cacheable(key, example_of(found)),
        regions=found.regions,
        paper=paper(reference),
        year=max(years, default=None),
        arxiv=arxiv.group(1) if arxiv else "",
        confidence=("after" if reference.lower().startswith("after ") else "of") if reference else "ours",
    )


def example_of(found: type[Method], size: Sequence[int] = (8, 8, 8), channels: int = 1) -> dict[str, Any]:
    """Return constructor arguments that fit a tiny network; with size and channels for one that invents images."""
    needed = [p.name for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    given: dict[str, Any] = {"patch": tuple(size), "channels": channels} if "patch" in needed else {}
    return {**found.example, **given}


def taken_apart(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first part of a docstring, and each part's text by its first words."""
    marks = list(_PART.finditer(text))
    if not marks:
        return text.strip(), {}
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    parts = {mark[1]: inspect.cleandoc(text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)}
    return text[: marks[0].start()].strip(), parts


def lacking(key: str) -> list[str]:
    """Return the parts that the docstring of a catalogue's method should have and has not."""
    one = about(key)
    lacks = [name for name in REQUIRED if not one.parts.get(name)]
    if one.arguments and not one.parts.get("Args"):
        lacks.append("Args")
    lacks += [f"Args: {name}" for name in one.arguments if f"{name}:" not in one.parts.get("Args", "")]
    if ".. math::" not in one.maths:
        lacks.append("maths")
    if one.parts.get("Reference") and (one.year is None or not one.paper):
        lacks.append("Reference: authors, title, year")
    order = [name for name in PARTS if name in one.parts]
    if list(one.parts) != order:
        lacks.append(f"the order {', '.join(order)}")
    return lacks


def kind_of(found: type[Method]) -> str:
    """Return the folder of a method of ours; ``own`` for one's own, ``task`` for what learns the labels alone."""
    names = found.__module__.split(".")
    if names[:2] != ["medkd", "methods"]:
        return "own"
    return names[2] if len(names) > 3 else "task"


def reads(found: type[Method], said: str) -> tuple[str, ...]:
    """Return what a method reads: logits and taps by its docstring, labels where it needs or says so."""
    words = said.lower()
    named = {
        "logits": "logit" in words,
        "taps": "tap" in words,
        "labels": found.reads_labels or "label" in words,
    }
    return tuple(name for name, there in named.items() if there)


def paper(reference: str) -> str:
    """Return ``Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network`` of a reference."""
    found = re.match(r"(?:after )?(.+?\*[^*]+\*)", reference, flags=re.IGNORECASE)
    return found.group(1).replace("*", "") if found else ""


def flat(text: str) -> str:
    """Return a text on one line."""
    return " ".join(text.split())


def indented(text: str) -> str:
    """Return a text four columns to the right."""
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
