"""Which cases there are to label, and under which names their labels go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkd.data.dicom import is_dicom, split_uid
from medkd.data.formats import READABLE, WRITABLE, stem, suffix
from medkd.errors import UserError, nearest

FORMATS = {"nii.gz": ".nii.gz", "nii": ".nii", "nrrd": ".nrrd", "mha": ".mha", "seg": ".dcm"}
"""What labels can be written as, and how their names end then; ``seg`` is a DICOM segmentation object."""
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd", "": ".nii.gz"}


@dataclass(frozen=True)
class Job:
    """A case with the place of its label.

    Args:
        case: its name.
        files: one per channel; a DICOM series is the path of its folder.
        target: the label file.
        error: why it cannot be done, known before anything is read.
    """

    case: str
    files: tuple[Path, ...]
    target: Path
    error: str | None = None


def names_file(output: Path) -> bool:
    """Tell whether ``output`` names one label file rather than a folder."""
    return suffix(output) != "" or output.suffix.lower() == ".dcm"


def plan_jobs(sources: Sequence[Path], output: Path, *, channels: int, format: str | None = None) -> list[Job]:  # noqa: A002
    """Return what there is to do, sorted by name within each source.

    Args:
        sources: files, folders of files, DICOM series.
        output: a folder; for one case also a file name.
        channels: of the model.
        format: a key of :data:`FORMATS`; None for the format of each image, and NIfTI for DICOM.

    Raises:
        UserError: nothing to do, a name that cannot be written, or labels that would replace images.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"labels cannot be written as {format!r}{nearest(format, FORMATS)}; take {', '.join(FORMATS)}")
    to_file = names_file(output)
    if to_file and suffix(output) not in WRITABLE and output.suffix.lower() != ".dcm":
        raise UserError(f"cannot write {output}: the name must end in one of {', '.join((*WRITABLE, '.dcm'))}")
    found = _gather(sources, channels, None if to_file else output)
    if to_file and (len(found) > 1 or (len(sources) == 1 and sources[0].is_dir() and not is_dicom(sources[0]))):
        raise UserError(f"output {output} is a file name but the input is a folder or several; give a folder")
    if to_file and format is not None and not output.name.lower().endswith(FORMATS[format]):
        raise UserError(f"output {output} contradicts --format {format}; give one of the two")
    _keep_images(found, sources, output, to_file)
    taken: dict[Path, str] = {}
    jobs = []
    for case, files in found:
        ending = suffix(files[0])
        ending = FORMATS[format] if format is not None else _ONE_FILE.get(ending, ending)
        target = output if to_file else output / f"{stem(Path(case)).replace('#', '_')}{ending}"
        error = None
        if target in taken:
            error = f"{files[0]} and case {taken[target]} would write the same {target.name}; rename one"
        elif target.suffix.lower() == ".dcm" and suffix(target) == "" and not is_dicom(files[0]):
            error = f"{files[0]} is no DICOM series, so no DICOM SEG can refer to it; write another format"
        taken.setdefault(target, case)
        jobs.append(Job(case, files, target, error))
    return jobs


def find_cases(source: Path, channels: int, leave_out: Path | None = None) -> dict[str, tuple[Path, ...]]:
    """Return the images of every case in a file, a folder or a DICOM series, in the order of their channels.

    A number as in ``case_0000`` is a channel where the model has several, or where every file ends in ``_0000``.
    DICOM series are found in subfolders at any depth, volume files are not.

    Args:
        source: where to look.
        channels: of the model.
        leave_out: a folder below it that is not searched.

    Raises:
        UserError: nothing there that medkd reads.
    """
    dicom = not suffix(source) and is_dicom(source)
    if not source.exists() and not dicom:
        raise UserError(f"input {source} does not exist; give a volume, a DICOM series or a folder of them")
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if p.is_file() and suffix(p) and not p.name.startswith("."))
        # Beside volumes a DICOM file is a stray, a segmentation perhaps; without them it is a slice.
        files += [source] if dicom and not files else []
        files += sorted(_series_below(source, leave_out))
    else:
        files = [source] if dicom or channels == 1 else _siblings(source)
    if not files:
        raise UserError(f"{source} has no volume ({', '.join(READABLE)}) and no DICOM series; give another folder")
    return _grouped(source, files, channels)


def _grouped(source: Path, files: Sequence[Path], channels: int) -> dict[str, tuple[Path, ...]]:
    names = {path: _name(source, path) for path in files}
    matches = {path: _CHANNEL.fullmatch(name) for path, name in names.items()}
    numbered = channels > 1 or all(match is not None and match["channel"] == "0000" for match in matches.values())
    grouped: dict[tuple[str, str], list[Path]] = {}
    for path, match in matches.items():
        name = match["case"] if numbered and match is not None else names[path]
        grouped.setdefault((name, suffix(path)), []).append(path)
    every = [name for name, _ in grouped]
    # The suffix joins the name only where two files would otherwise share it.
    return {
        name if every.count(name) == 1 else f"{name}{ending}": tuple(sorted(paths))
        for (name, ending), paths in sorted(grouped.items())
    }


def _name(source: Path, path: Path) -> str:
    """Return the name of a case: its file's, or for a series below ``source`` the folders that lead to it."""
    if suffix(path):
        return stem(path)
    place, uid = split_uid(path)
    if place.is_file():
        return place.stem
    parts = [place.resolve().name] if place == source or uid else list(place.relative_to(source).parts)
    return "_".join([*parts, *([uid] if uid else [])])


def _series_below(source: Path, leave_out: Path | None) -> Iterator[Path]:
    skip = leave_out.resolve() if leave_out is not None else None
    for folder, below, _ in os.walk(source):
        here = Path(folder)
        below[:] = [name for name in below if not name.startswith(".") and (here / name).resolve() != skip]
        if here != source and is_dicom(here):
            yield here


def _siblings(path: Path) -> list[Path]:
    """Return the other channels of a file named ``case_0000``, or the file alone."""
    match = _CHANNEL.fullmatch(stem(path))
    if match is None:
        return [path]
    others = (p for p in path.parent.iterdir() if suffix(p) == suffix(path))
    found = ((p, _CHANNEL.fullmatch(stem(p))) for p in others)
    return sorted(p for p, other in found if other is not None and other["case"] == match["case"])


def _gather(sources: Sequence[Path], channels: int, output: Path | None) -> list[tuple[str, tuple[Path, ...]]]:
    """Return the cases of all sources, each once; where names meet, the folder's name comes before them."""
    if not sources:
        raise UserError("nothing to label was given; name a volume, a DICOM series or a folder")
    found: dict[tuple[Path, ...], tuple[str, tuple[Path, ...]]] = {}
    for source in sources:
        for case, files in find_cases(source, channels, output).items():
            found.setdefault(tuple(path.resolve() for path in files), (case, files))
    names = [case for case, _ in found.values()]
    return [
        (case if names.count(case) == 1 else f"{key[0].parent.name}_{case}", files)
        for key, (case, files) in found.items()
    ]


def _keep_images(
    found: Sequence[tuple[str, tuple[Path, ...]]], sources: Sequence[Path], output: Path, to_file: bool
) -> None:
    """Raise where a label would take the place of an image, or lie among the slices of a series."""
    images = {path.resolve() for _, files in found for path in files}
    places = {split_uid(path)[0].resolve() for path in images}
    if to_file and output.resolve() in images:
        raise UserError(f"output {output} is the image itself; give another name")
    folder = (output.parent if to_file else output).resolve()
    if folder in {place for place in places if place.is_dir()}:
        raise UserError(f"labels in {output} would lie among the slices of a DICOM series; give another output folder")
    inputs = {source.resolve() if source.is_dir() else source.resolve().parent for source in sources}
    if not to_file and folder in inputs:
        raise UserError(f"labels in {output} would replace the images of the same names; give another output folder")
