"""Datasets: which cases there are, whose they are, and what their labels mean."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from medkd.data.dicom import is_dicom
from medkd.data.layouts import Case, Listing, list_csv, list_json
from medkd.data.volume import read_label
from medkd.errors import UserError, nearest

__all__ = ["Case", "Dataset", "is_ct", "load_dataset"]


@dataclass(frozen=True)
class Dataset:
    """Cases that share channels and labels.

    Args:
        name: for people.
        root: the folder that the files were found from.
        cases: sorted by id.
        labels: name -> value, ``{"background": 0, ...}``, values 0, 1, 2 and so on.
        channels: name of each image channel, such as ``("CT",)`` or ``("T1", "T2")``.
        licence: as the dataset states it.
        reference: whom to cite.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    labels: dict[str, int]
    channels: tuple[str, ...]
    licence: str | None = None
    reference: str | None = None

    @property
    def modality(self) -> str:
        """``"ct"`` when a channel is a CT, else ``"mr"``."""
        return "ct" if any(is_ct(channel) for channel in self.channels) else "mr"

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases with a label map."""
        return tuple(case for case in self.cases if case.label is not None)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Cases without a label map."""
        return tuple(case for case in self.cases if case.label is None)

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self.cases}

    def case(self, id: str) -> Case:  # noqa: A002 - the field of a case has the same name
        """Return one case, or raise a UserError with the nearest id."""
        if id not in self._by_id:
            raise UserError(f"dataset {self.name} has no case {id!r}{nearest(id, self._by_id)}")
        return self._by_id[id]


def is_ct(channel: str) -> bool:
    """Tell whether a channel name means calibrated Hounsfield units: CT, CTA, CBCT, "CT portal"..."""
    return re.search(r"(?<![a-z])(ce|cb|ld|nc)?cta?(?![a-z])|computed tomography", channel.lower()) is not None


def load_dataset(source: str | Path, root: Path | None = None) -> Dataset:
    """Find a dataset and list its cases; no volume is read.

    Args:
        source: a folder with ``dataset.json`` (MSD or nnU-Net raw); such a JSON file itself; a manifest (``.csv``, or
            ``.json`` with ``cases``); or a name such as ``msd/Task04_Hippocampus``, looked for in ``root``, in
            ``$MEDKD_DATA`` and in ``./data``.
        root: folder of datasets to search first.

    In an MSD file the cases under ``unlabelled``, or else under ``test`` without labels, are unlabelled cases, and
    ``groups`` maps cases to patients. In nnU-Net raw data an image without label is an unlabelled case, and so are the
    images in ``imagesUn``; ``imagesTs`` stays untouched. A CSV manifest has the columns ``image`` (or ``image_0``,
    ``image_1``...; files, or folders of one DICOM series), ``label``, ``case``, ``patient``, all but the first
    optional, and takes label and channel names from a JSON file of the same stem; without one, labels are named after
    the values found in the files.

    Raises:
        UserError: the dataset or one of its files is missing, its description contradicts itself, two cases share an
            id, or no case is labelled.
    """
    path = _find(str(source), root)
    listing = list_csv(path) if path.suffix.lower() == ".csv" else list_json(path)
    cases = _grouped(listing, path)
    _check_ids(cases, path)
    _check_files(cases)
    _check_channels(cases, listing.channels, path)
    if all(case.label is None for case in cases):
        raise UserError(f"{path}: none of its {len(cases)} cases has a label, and medkd needs some to measure against")
    return Dataset(
        name=listing.name,
        root=path.parent,
        cases=tuple(sorted(cases, key=lambda case: case.id)),
        labels=listing.labels or _found_labels(cases, path),
        channels=listing.channels,
        licence=listing.licence,
        reference=listing.reference,
    )


def _find(source: str, root: Path | None) -> Path:
    """Return the file that describes the dataset."""
    places = [place for place in (root, os.environ.get("MEDKD_DATA"), "data") if place]
    bases = [Path(place) for place in places]
    tail = source.rsplit("/", 1)[-1]
    candidates = [Path(source).expanduser(), *(base / name for base in bases for name in (source, tail))]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        searched = "this folder, " + ", ".join(str(base) for base in bases)
        hint = nearest(tail, [item.name for base in bases if base.is_dir() for item in base.iterdir()])
        hint += f"; `medkd data download {source}` fetches it" if source.startswith("msd/") else ""
        raise UserError(f"dataset {source!r} was not found in {searched}{hint}")
    if found.is_file():
        if found.suffix.lower() not in (".json", ".csv"):
            raise UserError(f"{found} describes no dataset; medkd reads a folder, a .json or a .csv file")
        return found
    for name in ("dataset.json", "manifest.json", "manifest.csv"):
        if (found / name).is_file():
            return found / name
    others = sorted(item.name for item in found.glob("*.json"))
    raise UserError(f"folder {found} has no dataset.json" + (f"; name one of {', '.join(others)}" if others else ""))


def _grouped(listing: Listing, path: Path) -> list[Case]:
    ids = {case.id for case in listing.cases}
    unknown = sorted(set(listing.groups) - ids)
    alone = sorted(ids - set(listing.groups))
    # A group too many: this file lists a subset. A case too few: its own patient. Both, with like names: a slip.
    if unknown and alone and (guess := nearest(alone[0], unknown)):
        raise UserError(f"{path}: groups names no patient for case {alone[0]!r}{guess}")
    return [replace(case, patient=listing.groups.get(case.id, case.patient)) for case in listing.cases]


def _check_ids(cases: Sequence[Case], path: Path) -> None:
    if not cases:
        raise UserError(f"{path} lists no case")
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.id, case)
        if other is case:
            continue
        if other.patient != case.patient:
            raise UserError(f"{path}: patients {other.patient!r} and {case.patient!r} share the case id {case.id!r}")
        raise UserError(f"{path}: two cases have the id {case.id!r}: {other.images[0]} and {case.images[0]}")


def _check_files(cases: Iterable[Case]) -> None:
    missing: list[tuple[str, Path]] = []
    for case in cases:
        files = [("image", image) for image in case.images] + ([("label", case.label)] if case.label else [])
        missing += [
            (f"{what} of case {case.id}", file) for what, file in files if not (file.is_file() or is_dicom(file))
        ]
    if missing:
        more = "" if len(missing) == 1 else f" ({len(missing)} files of the dataset are missing)"
        raise UserError(f"{missing[0][0]} is missing: {missing[0][1]}{more}")


def _check_channels(cases: Iterable[Case], channels: Sequence[str], path: Path) -> None:
    counts = Counter(len(case.images) for case in cases)
    # One file may hold several channels; that is seen only when it is read.
    wrong = next((count for count in counts if count not in (1, len(channels))), None)
    if wrong is not None:
        raise UserError(f"{path}: a case has {wrong} image files, but the channels are {', '.join(channels)}")


def _found_labels(cases: Iterable[Case], path: Path) -> dict[str, int]:
    values: set[int] = {0}
    for case in cases:
        if case.label is not None:
            values |= {int(value) for value in np.unique(read_label(case.label)) if value >= 0}
    if sorted(values) != list(range(len(values))):
        raise UserError(f"{path} names no labels, and the values found, {sorted(values)}, are not 0, 1, 2 and so on")
    if len(values) < 2:
        raise UserError(f"{path} names no labels, and its label files hold nothing but background")
    return {"background" if value == 0 else f"label_{value}": value for value in sorted(values)}
