"""Run an exported folder without torch: ``medkd-run FOLDER INPUT OUTPUT``.

Needs numpy, scipy, nibabel and onnxruntime (or OpenVINO for such a folder), and of medkd only what needs no more: the
same reading, preparing and restoring as ``medkd predict``, the same windows, blended in numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.formats import NIFTI, stem, suffix
from medkd.data.hashing import file_hash
from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import Volume, read_volume, write_label
from medkd.errors import UserError, nearest
from medkd.export.blend import predict_back
from medkd.export.sessions import PROVIDERS, open_session

CARD = "student.json"
FORMAT = 1
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


class Portable:
    """An exported student: volume in, label out.

    Args:
        folder: holds ``student.json`` and the networks that it names.
        variant: ``fp32``, or another that the export kept.
        provider: where onnxruntime computes; a key of :data:`medkd.export.sessions.PROVIDERS`.
        threads: CPU threads; None leaves the choice to the runtime.
        overlap: share of a window that its neighbour covers; None for what the folder says.
        batch: windows at a time.

    Raises:
        UserError: no such folder or variant, a file that is not the one exported, or no runtime for it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        variant: str = "fp32",
        provider: str = "cpu",
        threads: int | None = None,
        overlap: float | None = None,
        batch: int = 1,
    ) -> None:
        body = read_card(folder)
        files: dict[str, Any] = body["files"]
        if variant not in files:
            refused = body.get("refused", {}).get(variant)
            why = f": {refused}" if refused else nearest(variant, files)
            raise UserError(f"{folder} has no variant {variant}{why}; it has {', '.join(files)}")
        for name, digest in files[variant]["sha256"].items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{folder} has no {name}; copy the folder again, or export the model again")
            if file_hash(path) != digest:
                raise UserError(f"{path} differs from the hash in {CARD}: changed or damaged; copy the folder again")
        self.body, self.variant = body, variant
        self.labels: dict[str, int] = body["labels"]
        self.plan = Plan.from_json(body["plan"])
        self.channels = int(body["in_channels"])
        self.identity = str(next(iter(files[variant]["sha256"].values())))
        self.session = open_session(folder / files[variant]["file"], provider=provider, threads=threads)
        self.window: dict[str, Any] = {
            "classes": int(body["classes"]),
            "patch": self.plan.patch,
            "overlap": body["inference"]["overlap"] if overlap is None else overlap,
            "batch": batch,
        }

    def predict(self, volume: Volume) -> NDArray[np.int16]:
        """Return the label ``(X, Y, Z)`` of a canonical volume, on its own grid.

        Raises:
            UserError: the volume has another number of channels than the model.
        """
        prepared, restore = prepare_image(volume, self.plan)
        return predict_back(self.session, prepared, restore, **self.window)


def read_card(folder: Path) -> dict[str, Any]:
    """Return what ``student.json`` says.

    Raises:
        UserError: none there, damaged, of a newer medkd, or of one that exported no portable folder.
    """
    path = folder / CARD
    if not path.is_file():
        raise UserError(f"{folder} holds no {CARD}; give a folder that `medkd export --to onnx` has written")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version = body.get("format", 0)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the folder again") from error
    if version > FORMAT:
        raise UserError(f"{path} has format {version}, this medkd reads up to {FORMAT}; upgrade medkd")
    if missing := [
        key for key in ("files", "inference", "labels", "plan", "classes", "in_channels") if key not in body
    ]:
        raise UserError(f"{path} lacks {', '.join(missing)}: an older medkd wrote it; export the model again")
    return dict(body)


@dataclass(frozen=True)
class Done:
    """What became of one case.

    Args:
        case: its name.
        output: the label file.
        status: ``done``, ``skipped`` (it was there) or ``failed``.
        error: why it failed, in one sentence.
        seconds: from reading to writing.
    """

    case: str
    output: Path
    status: str
    error: str | None = None
    seconds: float = 0.0


def run_files(model: Portable, source: Path, output: Path, *, overwrite: bool = False) -> list[Done]:
    """Label one NIfTI file, or every one in a folder; a bad one does not stop the rest.

    Args:
        model: loaded once.
        source: a file, or a folder; channels are ``case_0000.nii.gz``, ``case_0001.nii.gz`` or one 4-D file.
        output: a folder; for one file also a file name.
        overwrite: write again what is there.

    Raises:
        UserError: nothing to label, or labels would replace images.
    """
    cases = find_cases(source, model.channels)
    to_file = suffix(output) != ""
    if to_file and (source.is_dir() or suffix(output) not in NIFTI):
        wrong = "a file name for a folder of images" if source.is_dir() else "no NIfTI name"
        raise UserError(f"output {output} is {wrong}; give a folder for the labels")
    folder = output.parent if to_file else output
    images = {path.resolve() for files in cases.values() for path in files}
    targets = {case: output if to_file else folder / f"{case}{suffix(files[0])}" for case, files in cases.items()}
    if any(target.resolve() in images for target in targets.values()):
        raise UserError(f"labels in {folder} would replace the images of the same names; give another output folder")
    done = []
    for case, files in cases.items():
        target = targets[case]
        began = perf_counter()
        if target.exists() and not overwrite:
            done.append(Done(case, target, "skipped"))
            continue
        try:
            if len(files) not in (1, model.channels):
                raise UserError(f"case {case} has {len(files)} files but the model reads {model.channels} channels")
            volume = read_volume(files)
            write_label(target, model.predict(volume), volume.geometry)
        except UserError as error:
            done.append(Done(case, target, "failed", str(error), perf_counter() - began))
        except MemoryError:
            done.append(Done(case, target, "failed", f"case {case} does not fit in memory; use a machine with more"))
        else:
            done.append(Done(case, target, "done", None, perf_counter() - began))
    if any(one.status == "done" for one in done):
        _name_labels(folder / (f"{stem(output)}.labels.json" if to_file else "labels.json"), model)
    return done


def find_cases(source: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Return the NIfTI files of every case, in the order of their channels.

    Raises:
        UserError: no such file or folder, or none in it.
    """
    if not source.exists():
        raise UserError(f"input {source} does not exist; give a NIfTI file or a folder of them")
    match = _CHANNEL.fullmatch(stem(source))
    several = channels > 1 and match is not None and source.is_file()
    files = sorted(source.parent.iterdir()) if several else sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in files if suffix(path) in NIFTI and path.is_file() and not path.name.startswith(".")]
    names = {path: _CHANNEL.fullmatch(stem(path)) for path in files}
    numbered = channels > 1 or all(found is not None and found["channel"] == "0000" for found in names.values())
    grouped: dict[str, list[Path]] = {}
    for path, found in names.items():
        name = found["case"] if numbered and found is not None else stem(path)
        if not several or (match is not None and name == match["case"]):
            grouped.setdefault(name, []).append(path)
    if not grouped:
        raise UserError(f"{source} has no NIfTI volume ({', '.join(NIFTI)}); convert the images, or use medkd predict")
    return {name: tuple(paths) for name, paths in grouped.items()}


def _name_labels(path: Path, model: Portable) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps({"labels": model.labels, "model": model.identity}, indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 where something could not be done."""
    parser = argparse.ArgumentParser(
        prog="medkd-run", description="Label NIfTI volumes with an exported student, without torch."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what `medkd export` has written")
    parser.add_argument("source", metavar="INPUT", type=Path, help="a NIfTI file, or a folder of them")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a folder for the labels, or a file for one")
    parser.add_argument("--variant", default="fp32", help="which network: fp32 (the default), int8, fp16")
    parser.add_argument("--provider", default="cpu", choices=tuple(PROVIDERS), help="where onnxruntime computes")
    parser.add_argument("--threads", type=_count, help="CPU threads [all]")
    parser.add_argument("--batch", type=_count, default=1, help="windows at a time [1]")
    parser.add_argument("--overlap", type=_share, help="share of a window that the next covers [as exported]")
    parser.add_argument("--overwrite", action="store_true", help="label again what is there")
    parser.add_argument("--json", action="store_true", help="say what was done as JSON")
    given = parser.parse_args(arguments)
    try:
        model = Portable(
            given.folder,
            variant=given.variant,
            provider=given.provider,
            threads=given.threads,
            overlap=given.overlap,
            batch=given.batch,
        )
        done = run_files(model, given.source, given.output, overwrite=given.overwrite)
    except UserError as error:
        sys.stderr.write(f"medkd-run: {error}\n")
        return 2
    if given.json:
        rows = [{**vars(one), "output": str(one.output)} for one in done]
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    for one in done:
        if one.error:
            sys.stderr.write(f"medkd-run: {one.case}: {one.error}\n")
        elif not given.json:
            was = " (was there; --overwrite labels it again)" if one.status == "skipped" else ""
            sys.stdout.write(f"{one.output}{was}\n")
    return 2 if any(one.status == "failed" for one in done) else 0


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("give a whole number of at least 1")
    return number


def _share(text: str) -> float:
    if not 0 <= (number := float(text)) <= 0.9:
        raise argparse.ArgumentTypeError("give a number from 0 to 0.9")
    return number


if __name__ == "__main__":
    sys.exit(main())
