"""A whole run: from a configuration to finished nodes and a report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medkd.errors import UserError, nearest
from medkd.pipeline.config import RunConfig
from medkd.pipeline.context import Context, Event, silent
from medkd.pipeline.datakey import data_key
from medkd.pipeline.folder import disk_errors, run_lock, write_text
from medkd.pipeline.graph import Graph, build_graph
from medkd.pipeline.local import Outcome, execute
from medkd.pipeline.nodes import Node
from medkd.pipeline.reuse import adopt
from medkd.pipeline.rules import check_splits
from medkd.pipeline.task import Step, run_step
from medkd.pipeline.track import check_trackers, enter, open_store

REPORT = "report.html"


@dataclass(frozen=True)
class Finished:
    """A run that has ended, well or not.

    Args:
        folder: ``runs/<name>``.
        graph: all nodes of the run.
        outcome: how each ended.
        seconds: wall time of this call.
    """

    folder: Path
    graph: Graph
    outcome: Outcome
    seconds: float

    @property
    def report(self) -> Path | None:
        """The page, where the whole run is done."""
        page = self.folder / REPORT
        return page if page.is_file() and any(node.kind == "report" for node in self.ended) else None

    @property
    def export(self) -> Path | None:
        """The folder of the exported student, where the run has one."""
        return next((self.node_folder(node) for node in self.ended if node.kind == "export"), None)

    @property
    def ended(self) -> tuple[Node, ...]:
        """The nodes that are whole, from this call or before."""
        return (*self.outcome.reused, *self.outcome.done)

    def node_folder(self, node: Node) -> Path:
        """Return where a finished node lies."""
        return self.graph.folder(node, self.folder / "nodes")


def run(
    config: RunConfig,
    *,
    runs: Path = Path("runs"),
    only: str | None = None,
    jobs: int = 1,
    device: str = "auto",
    progress: Callable[[Event], None] = silent,
    step: Step = run_step,
    key: str | None = None,
) -> Finished:
    """Do what is not done yet of a run.

    Args:
        config: what to do.
        runs: folder of all runs; this one lies in ``runs/<name>``.
        only: name of a stage: do its nodes and what they need, no export and no report.
        jobs: worker processes.
        device: ``auto``, ``cpu``, ``cuda``...
        progress: takes the events of all nodes.
        step: does one node.
        key: digest of the data set; worked out from its files when None.

    Raises:
        UserError: unknown stage or device, missing data, too few cases, a folder that is in use or cannot be written.
            A node that fails is told in the outcome instead.
        KeyboardInterrupt: finished nodes are whole, and the same call goes on.
    """
    clock = time.monotonic()
    if only is not None and only not in config.stages:
        stages = ", ".join(config.stages)
        raise UserError(f"--only {only}: no stage is called that{nearest(only, config.stages)}; this run has {stages}")
    _check_device(device)
    check_trackers(config)
    folder = runs / config.name
    root = None if config.data.root is None else Path(config.data.root)
    with run_lock(folder):
        graph = build_graph(config, key or _data_key(config, root, folder))
        wanted = graph.nodes if only is None else graph.of_stage(only)
        write_text(folder / "config.yaml", config.to_yaml())
        context = Context(config, folder, root, device=device, progress=progress)
        adopt(graph, wanted, folder)
        store = open_store(config, folder)
        outcome = execute(graph, wanted, context, jobs=jobs, step=step)
        finished = Finished(folder, graph, outcome, time.monotonic() - clock)
        _show_report(finished)
        if store is not None:
            enter(store, config, graph, finished.ended, folder)
    return finished


def _data_key(config: RunConfig, root: Path | None, folder: Path) -> str:
    from medkd.data.dataset import load_dataset
    from medkd.pipeline import steps

    dataset = load_dataset(config.data.source, root)
    check_splits(config, dataset)
    steps.check_outside(config, dataset)
    return data_key(dataset, folder / "data_files.json")


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu"):
        from medkd.inference.model import pick_device

        pick_device(device)


def _show_report(finished: Finished) -> None:
    """Put the page and its tables where they are easily found, beside the nodes."""
    for node in finished.ended:
        folder = finished.node_folder(node)
        if node.kind != "report" or not (folder / REPORT).is_file():
            continue
        for found in sorted(folder.iterdir()):
            if found.name in (REPORT, "report.json") or found.suffix in (".csv", ".md"):
                shown = finished.folder / found.name
                with disk_errors(shown):
                    part = shown.with_name(f"{found.name}.part")
                    shutil.copyfile(found, part)
                    part.replace(shown)
