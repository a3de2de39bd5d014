"""What each kind of node does. One file a kind; everything it may read is in its inputs and its part of the config."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from medkd.data.dataset import Dataset
from medkd.pipeline.config import RunConfig
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node

Step = Callable[[Node, Mapping[str, Path], Path, Context], None]


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Do one node: read the finished folders ``inputs`` (by node name), write artifacts into ``out``.

    A node that was interrupted is called again with the same ``out`` and goes on where it can.

    Raises:
        UserError: the input is at fault, or the disk is full.
    """
    step: Step = importlib.import_module(f"medkd.pipeline.steps.{node.kind}").execute
    step(node, inputs, out, context)


def dry_run(config: RunConfig) -> list[str]:
    """Try every stage on noise and return what was found out; see :mod:`medkd.pipeline.steps.dry`."""
    from medkd.pipeline.steps import dry

    return dry.dry_run(config)


def check_outside(config: RunConfig, dataset: Dataset) -> None:
    """Refuse teachers from outside the run that may not teach in it; see :mod:`medkd.pipeline.steps.panel`."""
    if any(teacher not in config.stages for stage in config.stages.values() for teacher in stage.teacher):
        from medkd.pipeline.steps import panel

        panel.check_outside(config, dataset)


__all__ = ["check_outside", "dry_run", "execute"]
