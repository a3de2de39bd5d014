"""Files in, files out: one label file for every case."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch

from medkd.data.formats import READABLE, WRITABLE, stem, suffix
from medkd.data.volume import read_volume, write_label
from medkd.errors import UserError
from medkd.inference.model import SegmentationModel

SIDECAR = "labels.json"
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class PredictedCase:
    """What became of one case.

    Args:
        case: name of the case, without channel number and suffix.
        inputs: the image files, one per channel.
        output: the label file, or the place where it would be.
        status: ``skipped`` when the label was there already.
        error: why it failed, in one sentence.
        seconds: time of ``load``, ``prepare``, ``network``, ``restore``, ``write``.
    """

    case: str
    inputs: tuple[Path, ...]
    output: Path
    status: Literal["done", "skipped", "failed"]
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


Progress = Callable[[int, int, PredictedCase], None]
"""Called after every case with how many are finished, how many there are, and the case."""


def predict_files(
    model: SegmentationModel,
    input: Path,  # noqa: A002 - the command line's word
    output: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[PredictedCase]:
    """Segment one file, or every volume in a folder.

    Labels lie on the grid of their image, under its name and in its format (``.mhd`` becomes ``.mha``, ``.nhdr``
    becomes ``.nrrd``: one file each). Channels are one file each, ``case_0000.nii.gz``, ``case_0001.nii.gz``, or one
    file with all of them. ``labels.json`` beside the labels names the classes and the model. A case that cannot be
    read or does not fit the model is reported and the others are done; a second call skips what is finished.

    Args:
        model: loaded once, used for all.
        input: a file or a folder (not its subfolders).
        output: a folder; for one file also a file name.
        overwrite: predict again what is there already.
        progress: told after every case.

    Returns:
        One entry per case, sorted by name.

    Raises:
        UserError: nothing to predict, output in place of the input, or labels of another model in ``output``.
    """
    cases = find_cases(input, model.card.in_channels)
    to_file = suffix(output) != ""
    if to_file and input.is_dir():
        raise UserError(f"output {output} is a file name but {input} is a folder; give a folder for the labels")
    if to_file and suffix(output) not in WRITABLE:
        raise UserError(f"cannot write {output}: the name must end in one of {', '.join(WRITABLE)}")
    folder = output.parent if to_file else output
    if not to_file and folder.resolve() == (input if input.is_dir() else input.parent).resolve():
        raise UserError(f"labels in {folder} would replace the images of the same names; give another output folder")
    if to_file and output.resolve() in {path.resolve() for files in cases.values() for path in files}:
        raise UserError(f"output {output} is the image itself; give another name")
    _write_sidecar(folder / (f"{stem(output)}.{SIDECAR}" if to_file else SIDECAR), model, overwrite)

    results: list[PredictedCase] = []
    taken: dict[Path, str] = {}
    for case, files in cases.items():
        ending = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix(files[0]), suffix(files[0]))
        target = output if to_file else folder / f"{stem(Path(case))}{ending}"
        if target in taken:
            error = f"{files[0]} and case {taken[target]} would write the same {target.name}; rename one"
            result = PredictedCase(case, files, target, "failed", error)
        elif target.exists() and not overwrite:
            result = PredictedCase(case, files, target, "skipped")
        else:
            result = _predict_case(model, case, files, target)
        taken.setdefault(target, case)
        results.append(result)
        if progress is not None:
            progress(len(results), len(cases), result)
    return results


def find_cases(source: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Return the image files of every case in a file or folder, in the order of their channels.

    A number as in ``case_0000`` is a channel where the model has several, or where every file ends in ``_0000``.

    Raises:
        UserError: nothing there that medkd reads.
    """
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if p.is_file() and suffix(p) and not p.name.startswith("."))
    elif source.is_file():
        files = _siblings(source) if channels > 1 else [source]
    else:
        raise UserError(f"input {source} does not exist; give a volume or a folder of volumes")
    if not files:
        hint = "convert the DICOM series to NIfTI first" if any(source.glob("*.dcm")) else "give another folder"
        raise UserError(f"{source} has no volume ({', '.join(READABLE)}); {hint}")
    matches = {path: _CHANNEL.fullmatch(stem(path)) for path in files}
    numbered = channels > 1 or all(match is not None and match["channel"] == "0000" for match in matches.values())
    grouped: dict[tuple[str, str], list[Path]] = {}
    for path, match in matches.items():
        name = match["case"] if numbered and match is not None else stem(path)
        grouped.setdefault((name, suffix(path)), []).append(path)
    names = [name for name, _ in grouped]
    # The suffix joins the name only where two files would otherwise share it.
    return {
        name if names.count(name) == 1 else f"{name}{ending}": tuple(sorted(paths))
        for (name, ending), paths in sorted(grouped.items())
    }


def _siblings(path: Path) -> list[Path]:
    """Return the other channels of a file named ``case_0000``, or the file alone."""
    match = _CHANNEL.fullmatch(stem(path))
    if match is None:
        return [path]
    others = (p for p in path.parent.iterdir() if suffix(p) == suffix(path))
    found = ((p, _CHANNEL.fullmatch(stem(p))) for p in others)
    return sorted(p for p, other in found if other is not None and other["case"] == match["case"])


def _predict_case(model: SegmentationModel, case: str, files: tuple[Path, ...], target: Path) -> PredictedCase:
    seconds: dict[str, float] = {}
    try:
        if len(files) not in (1, model.card.in_channels):
            raise UserError(f"case {case} has {len(files)} files but the model reads {model.card.in_channels} channels")
        if len(files) > 1 and any(not stem(path).endswith(f"_{i:04d}") for i, path in enumerate(files)):
            raise UserError(f"case {case} lacks a channel: its files must end in _0000 to _{len(files) - 1:04d}")
        began = perf_counter()
        volume = read_volume(files)
        seconds["load"] = perf_counter() - began
        label, spent = model.predict_timed(volume)
        seconds.update(spent)
        began = perf_counter()
        write_label(target, label, volume.geometry)
        seconds["write"] = perf_counter() - began
    except UserError as error:
        return PredictedCase(case, files, target, "failed", str(error), seconds)
    except (MemoryError, torch.OutOfMemoryError):
        error_ = f"case {case} does not fit in memory; use a GPU or machine with more, or a smaller batch"
        return PredictedCase(case, files, target, "failed", error_, seconds)
    return PredictedCase(case, files, target, "done", None, seconds)


def _write_sidecar(path: Path, model: SegmentationModel, overwrite: bool) -> None:
    """Write class names and model; refuse to mix the labels of two models in one folder."""
    if path.exists() and not overwrite:
        try:
            before = json.loads(path.read_text()).get("model", "")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it or give another output folder") from error
        if before != model.identity:
            raise UserError(f"{path.parent} holds labels of another model; give another folder or overwrite them")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps({"labels": model.labels, "model": model.identity}, indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
