"""What lies beside labels: the names and colours of classes, and who was labelled by which model."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medkd import __version__
from medkd.data.colours import itksnap_table, slicer_table
from medkd.data.dicom import series_files
from medkd.errors import UserError

SIDECAR = "labels.json"
RECORD = "predictions.jsonl"


@dataclass(frozen=True)
class PredictedCase:
    """What became of one case.

    Args:
        case: name of the case, without channel number and suffix.
        inputs: the image files, one per channel; a DICOM series is its folder.
        output: the label file, or the place where it would be.
        status: ``skipped`` when the same model had labelled the same image before.
        error: why it failed, in one sentence.
        seconds: time of ``load``, ``prepare``, ``network``, ``restore``, ``write``. Reading and writing go on beside
            the network of other cases, so the sum over cases is more than passes.
    """

    case: str
    inputs: tuple[Path, ...]
    output: Path
    status: Literal["done", "skipped", "failed"]
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "case": self.case,
            "status": self.status,
            "inputs": [str(path) for path in self.inputs],
            "output": str(self.output),
            "error": self.error,
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True)
class Maker:
    """What decides a label besides the image.

    Args:
        labels: class name -> value.
        model: stands for the weights.
        options: what else changes the answer, such as overlap.
    """

    labels: Mapping[str, int]
    model: str
    options: Mapping[str, Any]


class Record:
    """The files beside labels: ``labels.json``, tables for viewers, and one line of JSON for each case.

    Args:
        folder: of the labels.
        prefix: before every name, where the output is one file.
        maker: of the labels.
        overwrite: labels of another maker may be there.

    Raises:
        UserError: labels of another model or other options are there, or the disk refuses.
    """

    def __init__(self, folder: Path, prefix: str, maker: Maker, *, overwrite: bool) -> None:
        self.lock = threading.Lock()
        self.maker, self.path = maker, folder / f"{prefix}{RECORD}"
        sidecar = folder / f"{prefix}{SIDECAR}"
        if sidecar.exists() and not overwrite:
            _check_maker(sidecar, maker)
        else:
            body = {"labels": maker.labels, "model": maker.model, "options": maker.options, "medkd": __version__}
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / f"{prefix}labels.txt", itksnap_table(maker.labels))
                _write(folder / f"{prefix}labels.ctbl", slicer_table(maker.labels))
                _write(sidecar, json.dumps(body, indent=1) + "\n")
            except OSError as error:
                raise UserError(f"cannot write {sidecar}: {error.strerror or error}") from error
        text = _text(self.path)
        self.known = _read(text)
        self.torn = not text.endswith("\n") and text != ""

    def is_done(self, case: str, files: Sequence[Path], target: Path) -> bool:
        """Tell whether the label is there, by the same maker, of the same image.

        Raises:
            UserError: a file is there that no record knows; it may be someone's own.
        """
        if not target.exists():
            return False
        line = self.known.get(target.name)
        if line is None:
            raise UserError(f"{target} is there, and no record says that medkd wrote it; move it away or overwrite it")
        return bool(
            line.get("model") == self.maker.model
            and line.get("options") == dict(self.maker.options)
            and line.get("stamps") == _stamps(files)
        )

    def add(self, one: PredictedCase) -> None:
        """Append a case that was just done or has failed.

        Raises:
            UserError: the disk refuses.
        """
        line = one.to_json() | {"output": one.output.name, "model": self.maker.model}
        line |= {"options": dict(self.maker.options), "stamps": _stamps(one.inputs)}
        self._append(line)

    def begin(self, target: Path) -> None:
        """Note that a label is about to be written: a crash may leave it there without its own line.

        Raises:
            UserError: the disk refuses.
        """
        self._append({"output": target.name, "status": "begun"})

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self.lock, self.path.open("a", encoding="utf-8") as stream:
                # A crash or a full disk may have cut the last line short; it must not swallow this one.
                stream.write(("\n" if self.torn else "") + json.dumps(line) + "\n")
                self.torn = False
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error


def _check_maker(sidecar: Path, maker: Maker) -> None:
    try:
        before = json.loads(sidecar.read_text(encoding="utf-8"))
        model, options = before.get("model", ""), before.get("options", dict(maker.options))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{sidecar} cannot be read ({error}); remove it or give another output folder") from error
    if model != maker.model:
        raise UserError(f"{sidecar.parent} holds labels of another model; give another folder or overwrite them")
    if options != dict(maker.options):
        changed = [name for name, value in maker.options.items() if options.get(name) != value]
        told = ", ".join(f"{name} {options.get(name)}, now {maker.options[name]}" for name in changed) or "fewer"
        raise UserError(
            f"{sidecar.parent} holds labels made with other options ({told}); give another folder or overwrite them"
        )


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    """Return name, size and time of every image file, by which a changed image is known."""
    stamps: list[list[Any]] = []
    for path in files:
        try:
            states = [part.stat() for part in series_files(path)]
        except OSError:
            return []
        sizes, times = sum(state.st_size for state in states), [state.st_mtime_ns for state in states]
        stamps.append([path.name, sizes, max(times, default=0)])
    return stamps


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _read(text: str) -> dict[str, dict[str, Any]]:
    """Return the last line of each label; a line cut short by a crash is passed over.

    A label that was begun and has no more to tell is medkd's, but of what it is no one knows: it is made again.
    """
    known: dict[str, dict[str, Any]] = {}
    for part in text.splitlines():
        try:
            line = json.loads(part)
            if line["status"] in ("done", "begun"):
                known[str(line["output"])] = line
        except (ValueError, KeyError, TypeError):
            continue
    return known


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
