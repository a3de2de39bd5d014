from __future__ import annotations

import io

import pytest
from rich.console import Console

from medkd.cli import watch
from medkd.cli.watch import Watch, clock, nodes, said


def events(see: Watch) -> None:
    for node in ("prepare", "train.a.m0.f0.s0.main", "report"):
        see({"node": node, "state": "waiting"})
    see({"node": "old", "state": "reused"})
    see({"node": "prepare", "state": "started"})
    see({"node": "prepare", "state": "done"})
    see({"node": "train.a.m0.f0.s0.main", "state": "started"})
    see({"node": "train.a.m0.f0.s0.main", "step": 5, "of": 10, "terms": {"kd/kd": 0.12345}})
    see({"node": "train.a.m0.f0.s0.main", "step": 10, "of": 10, "dice": 0.8})
    see({"node": "train.a.m0.f0.s0.main", "state": "failed"})
    see({"node": "report", "state": "skipped"})


def test_without_a_terminal_there_are_lines() -> None:
    out = io.StringIO()
    with Watch(Console(file=out, width=80)) as see:
        events(see)
    assert out.getvalue().splitlines() == [
        "1 node finished before and reused",
        "start   prepare",
        "done    prepare  0:00",
        "start   train.a.m0.f0.s0.main",
        "FAILED  train.a.m0.f0.s0.main  0:00",
        "skipped report",
    ]


def test_a_long_node_speaks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Watch(Console(file=out, width=80)) as see:
        see({"node": "n", "state": "waiting"})
        see({"node": "n", "state": "started"})
        for step in range(1, 101):
            now[0] += 1
            see({"node": "n", "step": step, "of": 100, "terms": {"kd": 0.5}, "dice": 0.25})
        see({"node": "n", "state": "done"})
    lines = out.getvalue().splitlines()
    assert lines[1:4] == [f"        n  {step}/100  kd 0.5  Dice 0.250" for step in (31, 62, 93)]
    assert lines[4] == "done    n  1:40  validation Dice 0.250"


def test_in_a_terminal_there_are_bars() -> None:
    out = io.StringIO()
    with Watch(Console(file=out, width=160, force_terminal=True)) as see:
        see({"node": "n", "state": "waiting"})
        see({"node": "n", "state": "started"})
        see({"node": "n", "step": 5, "of": 10, "terms": {"kd": 0.5}, "dice": 0.25})
        see.bars.refresh()
        drawn = out.getvalue()
        see({"node": "n", "state": "done"})
    assert "all nodes" in drawn
    assert "5/10" in drawn
    assert "kd 0.5" in drawn
    assert "validation Dice 0.250" in out.getvalue()


def test_words() -> None:
    assert clock(42) == "0:42"
    assert clock(725) == "12:05"
    assert clock(3723.4) == "1:02:03"
    assert nodes(1) == "1 node"
    assert nodes(0) == "0 nodes"
    assert said({}) == ""
    assert said({"terms": None, "dice": 0.5}) == "Dice 0.500"
