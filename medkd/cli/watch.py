"""A run as it goes on: bars in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from medkd.cli.terminal import console

QUIET_S = 30.0
"""Without a terminal a node that works tells so this often."""
_MARKS = {"done": "done   ", "failed": "FAILED ", "skipped": "skipped"}


class Watch:
    """Takes the events of a run and shows them on stderr.

    Args:
        screen: where; stderr when None.
    """

    def __init__(self, screen: Console | None = None) -> None:
        self.screen = screen or console(err=True)
        self.live = self.screen.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
        )
        # Four times a second: drawing must not take the core that a training needs.
        self.bars = Progress(*columns, console=self.screen, transient=True, refresh_per_second=4, disable=not self.live)
        self.tasks: dict[str, TaskID] = {}
        self.known: dict[str, dict[str, Any]] = {}
        self.all, self.ended, self.reused = 0, 0, 0
        self.whole: TaskID | None = None

    def __enter__(self) -> Watch:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event, see :data:`medkd.pipeline.context.Event`."""
        node = str(event["node"])
        if (state := event.get("state")) is not None:
            self._state(node, str(state))
            return
        known = self.known.setdefault(node, {})
        known.update({key: event[key] for key in ("step", "of", "terms", "dice", "note") if event.get(key) is not None})
        if node in self.tasks:
            self.bars.update(self.tasks[node], completed=known.get("step"), total=known.get("of"), said=said(known))
        elif time.monotonic() - known.get("told", 0.0) > QUIET_S:
            known["told"] = time.monotonic()
            self._line(f"        {node}  {known.get('step', '?')}/{known.get('of', '?')}  {said(known)}")

    def _state(self, node: str, state: str) -> None:
        if state == "waiting":
            self.all += 1
        elif state == "reused":
            self.reused += 1
        elif state == "started":
            if self.reused:
                self._line(f"{nodes(self.reused)} finished before and reused")
                self.reused = 0
            self.known[node] = {"began": time.monotonic(), "told": time.monotonic()}
            if self.live:
                if self.whole is None:
                    self.whole = self.bars.add_task("all nodes", total=self.all, said="")
                self.tasks[node] = self.bars.add_task(node, total=None, said="")
            else:
                self._line(f"start   {node}")
        else:
            self._end(node, state)

    def _end(self, node: str, state: str) -> None:
        known = self.known.pop(node, {})
        took = f"  {clock(time.monotonic() - known['began'])}" if "began" in known else ""
        dice = f"  validation Dice {known['dice']:.3f}" if "dice" in known and state == "done" else ""
        note = f"  {known['note']}" if "note" in known and state == "done" else ""
        self._line(f"{_MARKS.get(state, state)} {node}{took}{dice}{note}")
        self.ended += 1
        if node in self.tasks:
            self.bars.remove_task(self.tasks.pop(node))
        if self.whole is not None:
            self.bars.update(self.whole, completed=self.ended)

    def _line(self, text: str) -> None:
        self.screen.print(Text(text), soft_wrap=True)


def said(known: Mapping[str, Any]) -> str:
    """Return loss terms and Dice in a few words."""
    words = [f"{name} {float(value):.3g}" for name, value in (known.get("terms") or {}).items()]
    if "dice" in known:
        words.append(f"Dice {float(known['dice']):.3f}")
    return "  ".join(words)


def nodes(count: int) -> str:
    """Return ``1 node``, ``2 nodes``."""
    return "1 node" if count == 1 else f"{count} nodes"


def clock(seconds: float) -> str:
    """Return ``0:42``, ``12:05`` or ``1:02:03``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def counted(title: str) -> Progress:
    """Return the bar of a loop, a context manager for :func:`advance`."""
    screen = console(err=True)
    columns = (TextColumn(title), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    shown = screen.is_terminal
    return Progress(*columns, *left, console=screen, transient=True, refresh_per_second=4, disable=not shown)


def advance(bar: Progress, done: int, of: int) -> None:
    """Move the only bar of :func:`counted`."""
    task = bar.task_ids[0] if bar.task_ids else bar.add_task("", total=of or None)
    bar.update(task, completed=done, total=of or None)
