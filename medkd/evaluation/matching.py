"""Which prediction belongs to which reference, by file name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medkd.data.formats import READABLE, stem, suffix
from medkd.errors import UserError

_TAIL = re.compile(r"(_0000|[._-](d?seg|segmentation|pred|prediction|labels?|mask|gt))$", re.IGNORECASE)
"""What tools add to a case's name: nnU-Net's first channel, and words for a label map."""


@dataclass(frozen=True)
class Problem:
    """Something a reader of the scores must know.

    Args:
        case: case id, or the stem of a file without partner.
        sentence: what is wrong, where, and what to do.
        scored: True when the case has rows nevertheless.
    """

    case: str
    sentence: str
    scored: bool


def match_files(pred: Path, ref: Path) -> tuple[dict[str, tuple[Path, Path]], list[Problem]]:
    """Pair the files of two folders (or two files, whatever their names).

    Names match when they are equal without the volume suffix, or else without what tools add: ``case_0000.nii.gz``,
    ``case_seg.nrrd`` and ``case.mha`` are the same case. Instead of files there may be a folder for each case, with a
    file for each class (TotalSegmentator); its name is the case's.

    Returns:
        Case -> (prediction, reference), sorted by case, and a problem for each file without a single partner.

    Raises:
        UserError: a folder or file is missing, or nothing matches.
    """
    for path in (pred, ref):
        if not path.exists():
            raise UserError(f"{path} does not exist: give a folder of label maps or one file")
    if pred.is_file() and ref.is_file():
        return {stem(ref): (pred, ref)}, []
    predictions, references = _files(pred), _files(ref)
    by_stem = {stem(file): file for file in predictions}
    by_core: dict[str, list[Path]] = {}
    for file in predictions:
        by_core.setdefault(_core(file), []).append(file)
    alike = Counter(_core(file) for file in references)
    found: dict[str, tuple[Path, Path]] = {}
    problems = []
    for file in references:
        case, near = stem(file), by_core.get(_core(file), [])
        if case in by_stem:
            found[case] = (by_stem[case], file)
        elif len(near) == 1 and alike[_core(file)] == 1:
            found[case] = (near[0], file)
        elif near:
            names = ", ".join(sorted(one.name for one in near))
            problems.append(_told(case, f"case {case}: {names} may each be its prediction; name it {case}"))
        else:
            problems.append(_told(case, f"case {case}: no prediction in {pred}"))
    if not found:
        raise UserError(
            f"no prediction in {pred} ({_some(predictions)}) matches a reference in {ref} ({_some(references)}): "
            "name both by the case"
        )
    used = {file for file, _ in found.values()}
    # a file that may belong to a case has been told with that case
    lonely = [file for file in predictions if file not in used and _core(file) not in alike]
    problems += [_told(stem(file), f"prediction {file.name} has no reference in {ref}") for file in lonely]
    return found, problems


def _told(case: str, sentence: str) -> Problem:
    return Problem(case, sentence, scored=False)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = _volumes(path) or sorted(folder for folder in path.iterdir() if folder.is_dir() and class_files(folder))
    if not files:
        raise UserError(f"{path} holds no label map: medkd reads {', '.join(READABLE)}")
    doubled = [name for name, count in Counter(stem(file) for file in files).items() if count > 1]
    if doubled:
        raise UserError(f"{path} holds {doubled[0]!r} in two formats: keep one")
    return files


def class_files(folder: Path) -> dict[str, Path]:
    """Return the files of a case's folder by their stems: one per class, there or in ``segmentations`` below."""
    below = folder / "segmentations"
    return {stem(file): file for file in _volumes(below if below.is_dir() else folder)} if folder.is_dir() else {}


def _volumes(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if suffix(file) and not file.name.startswith(".") and file.is_file()
    )


def _core(file: Path) -> str:
    name, before = stem(file).lower(), ""
    while name != before:
        before, name = name, _TAIL.sub("", name)
    return name


def _some(files: Iterable[Path]) -> str:
    names = [file.name for file in files]
    return f"{len(names)} file{'s' if len(names) > 1 else ''} like {names[0]}"
