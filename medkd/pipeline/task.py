"""One node made ready to be done anywhere: in this process, in a worker, on another machine."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from medkd.errors import UserError
from medkd.pipeline.context import Context, Event
from medkd.pipeline.folder import Manifest, disk_full, disk_trouble, finish, open_partial, partial
from medkd.pipeline.nodes import Node

Step = Callable[[Node, Mapping[str, Path], Path, Context], None]
"""Does the work of a node: inputs by node name, folder to write into, surroundings. Raises UserError for the user."""

ERROR_FILE = "error.txt"
_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory")


@dataclass(frozen=True)
class Task:
    """A node, where it reads, where it writes, and what its manifest will say.

    Args:
        node: what to do.
        key: the node's key.
        folder: where the finished node will lie.
        inputs: name of each input node -> its folder.
        input_keys: name of each input node -> its key.
        part: the part of the configuration that the node reads.
        context: surroundings; ``progress`` is put in where the task is done.
    """

    node: Node
    key: str
    folder: Path
    inputs: Mapping[str, Path]
    input_keys: Mapping[str, str]
    part: Mapping[str, Any]
    context: Context


@dataclass(frozen=True)
class Failure:
    """Why a node failed.

    Args:
        node: the node.
        message: one sentence.
        trace: the traceback where it is a bug of ours, None where it is for the user to mend.
        halts: whether no other node can do better: the disk is full.
    """

    node: Node
    message: str
    trace: str | None = field(default=None, repr=False)
    halts: bool = False


def run_step(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Do the node with the real steps, which are imported only now because they bring torch."""
    from medkd.pipeline import steps

    if context.threads is not None:
        import torch

        torch.set_num_threads(context.threads)
    steps.execute(node, inputs, out, context)


def perform(task: Task, step: Step, progress: Callable[[Event], None]) -> Failure | None:
    """Do a task; the node's folder is whole afterwards, or there is a failure and a partial folder to go on from."""
    started, clock = datetime.now(timezone.utc), time.monotonic()
    try:
        out = open_partial(task.folder)
        step(task.node, task.inputs, out, replace(task.context, progress=progress))
        timings = {
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
        }
        finish(task.folder, Manifest(task.key, asdict(task.node), task.part, task.input_keys, _versions(), timings))
    except Exception as error:  # noqa: BLE001 - a node that fails must not take the others with it
        return _failure(task, error)
    return None


def _failure(task: Task, error: Exception) -> Failure:
    halts = disk_full(error, task.folder)
    if isinstance(error, UserError):
        return Failure(task.node, str(error), halts=halts)
    if sentence := disk_trouble(error, task.folder):
        return Failure(task.node, sentence, halts=halts)
    if isinstance(error, MemoryError) or any(word in str(error) for word in _MEMORY):
        advice = "lower train.batch, give a smaller plan.patch, or use fewer --jobs"
        return Failure(task.node, f"memory ran out; {advice}")
    trace = "".join(traceback.format_exception(error))
    try:
        file = partial(task.folder) / ERROR_FILE
        file.write_text(trace, encoding="utf-8")
        seen = f"; the traceback is in {file}"
    except OSError:
        seen = ""
    return Failure(task.node, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{seen}", trace)


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for package in ("medkd", "torch", "monai", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that was not installed
            continue
    return found
