"""What verbs share: where text goes, and how it looks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program, instead of text.")]
Device = Annotated[str, typer.Option(help="auto (the GPU where there is one), cpu, cuda, cuda:1.")]


def say(text: str) -> None:
    """Print a line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """Print a line that is not the result, to stderr."""
    typer.echo(text, err=True)


def fail(message: str, code: int = 2) -> int:
    """Print why a verb failed, to stderr, and return the exit code."""
    note(f"medkd: error: {message}" if code != 130 else f"medkd: {message}")
    return code


def say_json(value: Any) -> None:
    """Print JSON; what is not finite becomes null."""
    typer.echo(json.dumps(_plain(value), indent=1))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table(head: Sequence[str], body: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> None:
    """Print a table.

    Args:
        head: column titles.
        body: rows of cells.
        numbers: positions of the columns that stand right-aligned.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, title in enumerate(head):
        drawn.add_column(title, justify="right" if i in numbers else "left")
    for row in body:
        drawn.add_row(*[Text(str(cell)) for cell in row])
    console().print(drawn)


def console(*, err: bool = False) -> Console:
    """Return the terminal, or what stands in its place; without one lines are not cut."""
    import sys

    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(stderr=err, width=None if stream.isatty() else 160, highlight=False)
