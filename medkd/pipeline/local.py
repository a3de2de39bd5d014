"""Does the nodes of a graph on this machine: one after another, or in worker processes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from medkd.pipeline.context import Context, silent
from medkd.pipeline.folder import is_done
from medkd.pipeline.graph import Graph
from medkd.pipeline.nodes import Node
from medkd.pipeline.task import Failure, Step, Task, perform, run_step
from medkd.pipeline.workers import Workers

ALONE = frozenset({"cost"})
"""Kinds that run while nothing else does: a latency measured beside a training is not one."""
_PASSING = frozenset({"prepare", "targets", "answers"})
"""Kinds that nobody looks at: made again only when another node needs them, so their folders may be deleted."""


@dataclass
class Outcome:
    """How a run ended, node by node.

    Args:
        reused: were finished before.
        done: finished now.
        failed: node -> why.
        skipped: not begun, because of the failed node that they need, or that stopped the run.
    """

    reused: list[Node] = field(default_factory=list)
    done: list[Node] = field(default_factory=list)
    failed: dict[Node, Failure] = field(default_factory=dict)
    skipped: dict[Node, Node] = field(default_factory=dict)


def cpu_count() -> int:
    """Return how many threads this process should use: $OMP_NUM_THREADS, or its cores, two hyper-threads being one."""
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(asked) > 0:
        return int(asked)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def unfinished(graph: Graph, nodes: Collection[Node], folder: Path) -> set[Node]:
    """Return which of ``nodes`` have to be done, given what lies in ``folder``."""
    absent = {node for node in nodes if not is_done(graph.folder(node, folder), graph.keys[node])}
    needed: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in absent and (node.kind not in _PASSING or node in needed):
            needed.add(node)
            needed.update(dependency for dependency in graph.dependencies[node] if dependency in absent)
    return needed


def execute(
    graph: Graph,
    nodes: Collection[Node],
    context: Context,
    *,
    jobs: int = 1,
    step: Step = run_step,
) -> Outcome:
    """Do the unfinished ones of ``nodes``; one that fails holds back what needs it, and all the rest on a full disk.

    Args:
        graph: the whole run.
        nodes: what is wanted, dependencies included.
        context: surroundings; ``progress`` also hears ``{"node": name, "state": ...}``.
        jobs: worker processes; with 1 everything happens in this process.
        step: does one node; with several jobs a function that a fresh process can import.

    Raises:
        KeyboardInterrupt: after the workers have ended; finished nodes are whole.
    """
    todo = _Todo(graph, nodes, context)
    if jobs == 1 or len(todo.waiting) < 2:
        while (node := todo.pop(busy=False)) is not None:
            todo.ended(node, perform(todo.task(node, cpu_count()), step, context.progress))
        return todo.outcome
    jobs = min(jobs, len(todo.waiting))
    share = max(1, cpu_count() // jobs)
    workers = Workers(jobs, step, share, context.progress)
    running: set[Node] = set()
    try:
        while todo.waiting or running:
            alone = any(node.kind in ALONE for node in running)
            while workers.idle and not alone and (node := todo.pop(busy=bool(running))) is not None:
                running.add(node)
                alone = node.kind in ALONE
                workers.start(todo.task(node, cpu_count() if alone else share))
            for task, failure in workers.wait():
                running.discard(task.node)
                todo.ended(task.node, failure)
    finally:
        workers.close()
    return todo.outcome


class _Todo:
    """Which nodes wait, which may begin, and how the others ended."""

    def __init__(self, graph: Graph, nodes: Collection[Node], context: Context) -> None:
        self.graph, self.context = graph, context
        self.folder = context.run_folder / "nodes"
        needed = unfinished(graph, nodes, self.folder)
        self.waiting = [node for node in graph.nodes if node in needed]
        self.outcome = Outcome(reused=[node for node in graph.nodes if node in nodes and node not in needed])
        self._tell(dict.fromkeys(self.outcome.reused, "reused"))
        self._tell(dict.fromkeys(self.waiting, "waiting"))

    def pop(self, *, busy: bool) -> Node | None:
        """Return a node that may begin now; one that must run alone only when nothing runs and nothing else can."""
        ready = [node for node in self.waiting if not self._open(node)]
        shared = [node for node in ready if node.kind not in ALONE]
        chosen = shared or ([] if busy else ready)
        if not chosen:
            return None
        self.waiting.remove(chosen[0])
        self._tell({chosen[0]: "started"})
        return chosen[0]

    def task(self, node: Node, threads: int) -> Task:
        """Return the node ready to be done with ``threads``, or in a training what its stage says."""
        graph, config = self.graph, self.context.config
        inputs = graph.dependencies[node]
        # The function that takes events stays here: it may hold a terminal, which no other process can be sent.
        own = config.train_of(node.stage).threads if node.kind == "train" else None
        context = replace(self.context, progress=silent, threads=own or threads)
        return Task(
            node,
            graph.keys[node],
            graph.folder(node, self.folder),
            {one.name: graph.folder(one, self.folder) for one in inputs},
            {one.name: graph.keys[one] for one in inputs},
            graph.parts[node],
            context,
        )

    def ended(self, node: Node, failure: Failure | None) -> None:
        """Note how the node ended, and take out what can no longer be done."""
        if failure is None:
            self.outcome.done.append(node)
            self._tell({node: "done"})
            return
        self.outcome.failed[node] = failure
        self._tell({node: "failed"})
        lost = {node}
        for other in list(self.waiting):  # in order, so that the dependants of dependants follow
            if failure.halts or lost & set(self.graph.dependencies[other]):
                lost.add(other)
                self.waiting.remove(other)
                self.outcome.skipped[other] = node
                self._tell({other: "skipped"})

    def _open(self, node: Node) -> bool:
        """Whether something that the node reads is not there yet."""
        ended = {*self.outcome.done, *self.outcome.reused}
        return any(one not in ended for one in self.graph.dependencies[node])

    def _tell(self, states: Mapping[Node, str]) -> None:
        for node, state in states.items():
            self.context.progress({"node": node.name, "state": state})
