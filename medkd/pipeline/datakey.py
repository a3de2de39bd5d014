"""Digests of what a run reads from outside: the data set's files, teachers from elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.data.dicom import series_files, split_uid
from medkd.errors import UserError

if TYPE_CHECKING:
    from medkd.data.dataset import Dataset

_BLOCK = 1 << 22


def data_key(dataset: Dataset, remembered: Path | None = None) -> str:
    """Return a digest of the cases, labels, channels and contents of the files of a data set, wherever it lies.

    Args:
        dataset: the data set.
        remembered: JSON file with the digests of files already read, known again by size and time; written too.

    Raises:
        UserError: a file is missing or unreadable.
    """
    files = [file for case in dataset.cases for file in (*case.images, *((case.label,) if case.label else ()))]
    digests = _digests([part for file in files for part in series_files(file)], remembered)

    def content(file: Path) -> str | list[str]:
        parts = series_files(file)
        return digests[file] if parts == [file] else [split_uid(file)[1], *(digests[part] for part in parts)]

    cases = [
        [case.id, case.patient, [content(file) for file in case.images], digests[case.label] if case.label else None]
        for case in dataset.cases
    ]
    return _digest(json.dumps([cases, list(dataset.labels.items()), list(dataset.channels)]).encode())


def folder_key(path: Path) -> str:
    """Return a digest of a file, or of all files in a folder with their names. Raises as :func:`data_key`."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digests = _digests(files, None)
    return _digest(json.dumps([[file.relative_to(path).as_posix(), digests[file]] for file in files]).encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digests(files: Iterable[Path], remembered: Path | None) -> dict[Path, str]:
    known = _recall(remembered)
    found: dict[Path, str] = {}
    noted: dict[str, list[object]] = {}
    for file in files:
        try:
            state = file.stat()
            mark = [state.st_size, state.st_mtime_ns]
            before = known.get(str(file))
            digest = str(before[2]) if before and before[:2] == mark else _read(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}); every case needs its files") from None
        found[file] = digest
        noted[str(file)] = [*mark, digest]
    if remembered is not None and noted != known:
        part = remembered.with_name(f"{remembered.name}.{os.getpid()}.part")
        part.write_text(json.dumps(noted))
        part.replace(remembered)
    return found


def _recall(remembered: Path | None) -> Mapping[str, list[object]]:
    try:
        known = json.loads(remembered.read_text()) if remembered is not None else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _read(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
