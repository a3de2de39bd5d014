"""Artifact folders: written under another name, renamed when whole, known again by their manifest."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medkd.errors import UserError

MANIFEST = "manifest.json"
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this disk or `ulimit -f` allows",
}
_FEW_BYTES = 64_000
"""With less than this nothing of a run can be written."""
_CLOSED = {errno.EACCES: "permission denied", errno.EPERM: "permission denied", errno.EROFS: "it is read-only"}


@dataclass(frozen=True)
class Manifest:
    """What a finished node's folder tells about itself.

    Args:
        key: the node's whole key.
        node: kind, stage, member, fold, seed and arm.
        config: the part of the configuration that the node read.
        inputs: name of each input node -> its key.
        versions: package -> version.
        timings: ``started`` and ``finished`` (ISO 8601, UTC), ``seconds`` of the last, finishing attempt.
    """

    key: str
    node: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a finished node, or None where there is none that can be read."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(**values)
    except (OSError, ValueError, TypeError):
        return None


def is_done(folder: Path, key: str) -> bool:
    """Return whether ``folder`` holds the finished node with this key."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.key == key


def partial(folder: Path) -> Path:
    """Return the name under which ``folder`` is written until it is whole."""
    return folder.with_name(f"{folder.name}.partial")


def open_partial(folder: Path) -> Path:
    """Return the partial folder, made if need be; what an interrupted attempt left in it is still there."""
    with disk_errors(folder):
        part = partial(folder)
        part.mkdir(parents=True, exist_ok=True)
        (part / MANIFEST).unlink(missing_ok=True)
    return part


def finish(folder: Path, manifest: Manifest) -> None:
    """Make the partial folder the finished one: manifest first, then one rename."""
    part = partial(folder)
    with disk_errors(folder):
        (part / "error.txt").unlink(missing_ok=True)
        with (part / MANIFEST).open("w", encoding="utf-8") as stream:
            json.dump(asdict(manifest), stream, indent=1, default=str)
            stream.flush()
            os.fsync(stream.fileno())
        if folder.exists():  # without a valid manifest, or finish() would not have been called
            shutil.rmtree(folder)
        part.rename(folder)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)


@contextmanager
def run_lock(run_folder: Path) -> Iterator[None]:
    """Hold a run's folder; the lock ends with the process, however that ends.

    Raises :class:`UserError` when another process holds it, or the folder cannot be made.
    """
    with disk_errors(run_folder):
        run_folder.mkdir(parents=True, exist_ok=True)
        stream = (run_folder / ".lock").open("a+", encoding="utf-8")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "unknown"
            what = f"{run_folder} is in use by another medkd run (process {owner})"
            raise UserError(f"{what}; wait for it to end, or give another --runs") from None
        except OSError as error:  # some network drives know no locks
            raise UserError(f"{run_folder} cannot be locked ({error.strerror}); put --runs on a local disk") from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a closed folder into one sentence; other errors pass."""
    try:
        yield
    except OSError as error:
        if sentence := disk_trouble(error, path):
            raise UserError(sentence) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            where = error.filename or path
            raise UserError(f"{where} cannot be made: a file stands in its way; choose another folder") from error
        raise


def disk_trouble(error: BaseException, path: Path) -> str | None:
    """Return one sentence when ``error``, or what caused it, is a full disk or a closed folder; else None."""
    for one in _causes(error):
        code = one.errno if isinstance(one, OSError) else None
        where = getattr(one, "filename", None) or path
        if _says_full(one):
            reason = _FULL.get(code or errno.ENOSPC, "the disk is full")
            return f"{where} cannot be written: {reason}; free some space and run the same command to go on"
        if code in _CLOSED:
            return f"{where} cannot be opened or written: {_CLOSED[code]}; check the folder's owner and mode"
    return None


def disk_full(error: BaseException, path: Path) -> bool:
    """Return whether ``error`` came of a full disk, also where a library only told that it could not write."""
    if any(_says_full(one) for one in _causes(error)):
        return True
    there = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    return there is not None and shutil.disk_usage(there).free < _FEW_BYTES


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _says_full(error: BaseException) -> bool:
    # Libraries that write by themselves (safetensors, zarr) tell of a full disk only in words.
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error)


def find_model(path: Path) -> Path:
    """Return the folder to load a model from: ``path`` itself, or of a run's folder the student that it exported.

    Of a run without an export it is the network trained last, not a control arm's. Raises :class:`UserError` for a run
    that has not trained anything yet.
    """
    nodes = path / "nodes"
    if not nodes.is_dir():
        return path
    exports = [folder for folder in nodes.glob("export.*") if read_manifest(folder) is not None]
    for folder in sorted(exports, key=_age):
        try:
            entries = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for entry in entries:
            trained, exported = nodes / str(entry["from"]), folder / str(entry["folder"])
            if trained.is_dir():
                return trained
            if (exported / "student.json").is_file():
                return exported
    trained_here = [folder for folder in nodes.glob("train.*.main-*") if read_manifest(folder) is not None]
    if not trained_here:
        raise UserError(f"{path} holds no trained model yet; run its YAML file first")
    return min(trained_here, key=_age)


def _age(folder: Path) -> float:
    return -(folder / MANIFEST).stat().st_mtime
