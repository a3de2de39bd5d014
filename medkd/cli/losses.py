"""Verbs about distillation losses: ``methods`` and ``conformance``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medkd.cli.terminal import AsJson, note, say, say_json, table
from medkd.errors import UserError

if TYPE_CHECKING:
    from medkd.methods.about import About

MARKS = {"pass": "pass", "fail": "FAIL", "moot": "-", "exempt": "exempt"}


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Tell this one in full: formula, arguments, source, a run.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the methods, or tell one in full."""
    from medkd.methods.about import about
    from medkd.methods.catalogue import CATALOGUE

    if name is not None:
        found = about(name)
        if as_json:
            say_json({**found.to_json(), "example": _example(name)})
        else:
            _tell(found, _example(name))
        return 0
    every = [about(key) for key in CATALOGUE]
    if as_json:
        say_json([one.to_json() for one in every])
    else:
        head = ("method", "kind", "reads", "teacher", "what it does", "paper")
        table(head, [_line(one) for one in every])
        note("cached: stored probabilities are enough; after: not every detail of the paper was to be had")
    return 0


def _line(one: About) -> tuple[str, ...]:
    teacher = ("cached" if one.cacheable else "live") if one.teacher else "none"
    who = one.paper.split(",")[0].removesuffix(".") if one.paper else one.confidence
    paper = f"{'after ' if one.confidence == 'after' else ''}{who} {one.year or ''}".strip()
    return one.key, one.kind, " ".join(one.reads), teacher, one.sentence, paper


def _tell(one: About, example: str | None) -> None:
    arguments = ", ".join(f"{name}={default!r}" for name, default in one.arguments.items())
    say(f"{one.key}({arguments})\n\n{one.sentence}\n\n{one.text}")
    if example is not None:
        say(f"\nIn a run:\n\n{example}".rstrip())


def _example(name: str) -> str | None:
    """Return the method's run, as the repository and the installed package have it."""
    import medkd

    package = Path(medkd.__file__).parent
    for folder in (package / "examples", package.parent / "pipelines"):  # as installed, and in a checkout
        file = folder / "methods" / f"{name}.yaml"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def conformance(
    name: Annotated[
        str,
        typer.Argument(metavar="LOSS", help="module:function, file.py:Class, or a method's name.", show_default=False),
    ],
    arguments: Annotated[
        list[str] | None, typer.Option("--with", metavar="KEY=VALUE", help="An argument of the loss; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Judge a distillation loss by the rules that volumes need.

    The loss is a function of the logits of student and teacher, (batch, classes, *axes) each, and of the labels where
    a parameter is called label; or a class that makes one. The exit code is 1 when a rule fails.
    """
    import sys

    from medkd.conformance.judge import judge
    from medkd.conformance.subjects import find

    sys.path.insert(0, "")  # a module beside the user is found, as python -m does
    findings = judge(find(name, _arguments(arguments or [])))
    failed = [one for one in findings if one.outcome == "fail"]
    if as_json:
        say_json({"loss": name, "ok": not failed, "rules": [one.to_json() for one in findings]})
        return 1 if failed else 0
    table(("rule", "", "what it asks, and why not"), [(one.rule, MARKS[one.outcome], one.line) for one in findings])
    asked = sum(one.outcome in ("pass", "fail") for one in findings)
    say(f"{name} keeps {asked - len(failed)} of {asked} rules")
    return 1 if failed else 0


def _arguments(texts: list[str]) -> dict[str, Any]:
    from medkd.pipeline.yamlfile import parse_value

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--with {text}: not an assignment; write --with temperature=2")
        found[key] = parse_value(value)
    return found
