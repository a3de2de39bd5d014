"""Everything that can be found wrong with a run before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medkd.pipeline import yamlfile
from medkd.pipeline.config import RunConfig, parse
from medkd.pipeline.graph import build_graph
from medkd.pipeline.track import check_trackers


def check(file: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, list[str]]:
    """Check a run's YAML file: keys, stages, methods, networks, data, and one dry step of every stage.

    Args:
        file: the YAML file.
        overrides: ``key.path=value`` assignments.

    Returns:
        The configuration, and one sentence for each thing that was found out.

    Raises:
        UserError: the first thing that would stop the run; of mistakes in the file all, a line each.
    """
    from medkd.data.dataset import load_dataset
    from medkd.pipeline import steps

    config = parse(yamlfile.read(file).override(overrides), networks=True)
    check_trackers(config)
    root = None if config.data.root is None else Path(config.data.root)
    dataset = load_dataset(config.data.source, root)
    nodes = build_graph(config, "unread").nodes
    trainings = sum(node.kind == "train" for node in nodes)
    counts = f"{len(dataset.labelled)} labelled and {len(dataset.unlabelled)} unlabelled cases"
    data = f"{dataset.name}: {counts}, {len(dataset.labels)} classes, channels {', '.join(dataset.channels)}"
    size = f"{len(config.stages)} stages make {len(nodes)} nodes, {trainings} of them trainings"
    return config, [data, size, *steps.dry_run(config)]
