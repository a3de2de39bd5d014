"""Finished nodes of other runs: what was trained once is not trained again because a second run needs it too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from medkd.pipeline.folder import disk_errors, is_done
from medkd.pipeline.graph import Graph
from medkd.pipeline.nodes import Node

SHARED = frozenset({"prepare", "train", "targets", "answers", "evaluate"})
"""Kinds that other runs may lend; a cost is measured anew, a report is always a run's own."""


def adopt(graph: Graph, nodes: Collection[Node], folder: Path) -> list[Node]:
    """Take over from the runs beside ``folder`` every node of ``nodes`` that is missing there and has the same key.

    Finished nodes never change, so their files are shared by hard links, and copied where the disk has none.

    Returns:
        The nodes taken over.
    """
    mine = folder / "nodes"
    others = [path for path in sorted(folder.parent.glob("*/nodes")) if path != mine]
    taken: list[Node] = []
    for node in nodes:
        here = graph.folder(node, mine)
        if node.kind not in SHARED or is_done(here, graph.keys[node]):
            continue
        source = next((path for other in others if is_done(path := graph.folder(node, other), graph.keys[node])), None)
        if source is None:
            continue
        part = here.with_name(f"{here.name}.adopting")
        with disk_errors(here):
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source, part, copy_function=_link)
            shutil.rmtree(here, ignore_errors=True)
            part.replace(here)
        taken.append(node)
    return taken


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
