"""What a node's step may know besides the node and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkd.pipeline.config import RunConfig

Event = Mapping[str, Any]
"""``{"node": name, "step": 10, "of": 100, "terms": {"kd": 0.1}, "dice": 0.8}``; every key but ``node`` is optional.

``note`` holds a few words that are told when the node is done.

The executor adds ``{"node": name, "state": "started" | "done" | "failed" | "skipped" | "reused"}``.
"""


def silent(event: Event) -> None:
    """Forget the event."""


@dataclass(frozen=True)
class Context:
    """Surroundings of a step.

    Args:
        config: the whole run; results may depend only on the parts that the node's key reads.
        run_folder: ``runs/<name>``.
        data_root: where data sets are looked for by name, or None for the default places.
        threads: CPU threads this node may use, the executor's choice; None leaves it to torch.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``...
        progress: takes events; cheap, may be called at every step.
    """

    config: RunConfig
    run_folder: Path
    data_root: Path | None = None
    threads: int | None = None
    device: str = "auto"
    progress: Callable[[Event], None] = silent
