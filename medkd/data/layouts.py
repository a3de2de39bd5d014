"""How datasets lie on disk: MSD, nnU-Net raw and manifests, each turned into the same plain listing of cases."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkd.data.dicom import is_dicom
from medkd.data.formats import stem, suffix
from medkd.errors import UserError


@dataclass(frozen=True)
class Case:
    """One examination.

    Args:
        id: unique in its dataset.
        images: one file per channel, or one file that holds all channels.
        label: its label map, or None when unlabelled.
        patient: whose it is; splits never part a patient.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str


@dataclass
class Listing:
    """What a layout says, before it is checked: ``labels`` is None where the file names none."""

    name: str
    cases: list[Case]
    labels: dict[str, int] | None
    channels: tuple[str, ...]
    licence: str | None = None
    reference: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or raise a UserError that says where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error


def list_json(path: Path) -> Listing:
    """List the cases of a JSON file: MSD, nnU-Net raw or manifest, told apart by their keys."""
    content = read_json(path)
    if isinstance(content, list):
        content = {"cases": content}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object with training cases, not {type(content).__name__}")
    listing = Listing(
        name=str(content.get("name") or path.parent.name),
        cases=[],
        labels=_labels(content["labels"], path) if "labels" in content else None,
        channels=_channels(content, path),
        licence=_text(content, "licence", "license"),
        reference=_text(content, "reference"),
        groups=_groups(content, path),
    )
    if "cases" in content:
        listing.cases = [_entry(row, path, "cases") for row in _rows(content, "cases", path)]
    elif "training" in content:
        listing.cases = _msd(content, path)
    elif isinstance(content.get("dataset"), dict):
        listing.cases = [_entry({**row, "case": case}, path, "dataset") for case, row in content["dataset"].items()]
    elif "file_ending" in content or "channel_names" in content:
        listing.cases = _nnunet(path.parent, str(content.get("file_ending", ".nii.gz")), len(listing.channels))
    else:
        raise UserError(
            f"{path} lists no cases: medkd looks for the key training (MSD), channel_names (nnU-Net) or cases"
        )
    return listing


def list_csv(path: Path) -> Listing:
    """List the cases of a CSV manifest; names of labels and channels may lie in a JSON file of the same stem."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file with a header") from error
    images = sorted((c for c in columns if c.startswith("image_") and c[6:].isdigit()), key=lambda c: int(c[6:]))
    images = images or [column for column in ("image",) if column in columns]
    if not images:
        raise UserError(f"{path} has no column image or image_0; its columns are {', '.join(columns) or 'none'}")
    sidecar = path.with_suffix(".json")
    extra = read_json(sidecar) if sidecar.is_file() else {}
    if not isinstance(extra, dict):
        raise UserError(f"{sidecar} must hold an object with labels and channels")
    cases = []
    for line, row in enumerate(rows, start=2):
        files = [(row[column] or "").strip() for column in images]
        if not all(files):
            raise UserError(f"{path}, line {line}: column {images[files.index('')]} is empty")
        known = {key: (row.get(key) or "").strip() for key in ("label", "case", "patient")}
        cases.append(_entry({"image": files, **{k: v for k, v in known.items() if v}}, path, f"line {line}"))
    return Listing(
        name=str(extra.get("name") or path.stem),
        cases=cases,
        labels=_labels(extra["labels"], sidecar) if "labels" in extra else None,
        channels=_channels(extra, sidecar) if extra else ("image",) * len(images),
        licence=_text(extra, "licence", "license"),
        reference=_text(extra, "reference"),
        groups=_groups(extra, sidecar),
    )


def _msd(content: Mapping[str, Any], path: Path) -> list[Case]:
    cases = [_entry(row, path, "training") for row in _rows(content, "training", path)]
    # Test images of the MSD come without labels: good for distillation. A test list with labels is someone's held-out
    # set, and stays out; so does any test list where the file says itself what is unlabelled.
    extra = "unlabelled" if "unlabelled" in content else "test"
    for row in _rows(content, extra, path):
        case = _entry(row, path, extra)
        if extra == "test" and case.label is not None:
            continue
        cases.append(Case(case.id, case.images, None, case.patient))
    return cases


def _nnunet(root: Path, ending: str, channels: int) -> list[Case]:
    images = root / "imagesTr"
    if not images.is_dir():
        raise UserError(f"{root} looks like nnU-Net raw data, but it has no folder imagesTr")
    ids: dict[str, Path] = {}
    for folder in (images, root / "imagesUn"):
        for file in sorted(folder.glob(f"*_0000{ending}")):
            if not file.name.startswith("."):
                ids.setdefault(file.name.removesuffix(f"_0000{ending}"), folder)
    labels = {
        file.name.removesuffix(ending): file
        for file in sorted((root / "labelsTr").glob(f"*{ending}"))
        if not file.name.startswith(".")
    }
    if orphan := next((case for case in labels if case not in ids), None):
        raise UserError(f"label {labels[orphan]} has no image {images / f'{orphan}_0000{ending}'}")
    return [
        Case(case, tuple(folder / f"{case}_{i:04d}{ending}" for i in range(channels)), labels.get(case), case)
        for case, folder in sorted(ids.items())
    ]


def _entry(row: object, path: Path, where: str) -> Case:
    """Turn one row (a file name, or an object with image, label, case, patient) into a case."""
    row = {"image": row} if isinstance(row, str) else row
    if not isinstance(row, Mapping):
        raise UserError(f"{path}, {where}: a case must be an object with image and label, not {row!r}")
    images = row.get("image") or row.get("images")
    if images is None:
        numbered = sorted((k for k in row if k.startswith("image_") and k[6:].isdigit()), key=lambda k: int(k[6:]))
        images = [row[key] for key in numbered]
    files = [images] if isinstance(images, str) else images
    label = row.get("label") or None
    if not isinstance(files, Sequence) or not files or not all(isinstance(file, str) and file for file in files):
        raise UserError(f"{path}, {where}: a case names no image file: {dict(row)!r}")
    if label is not None and not isinstance(label, str):
        raise UserError(f"{path}, {where}: label must be a file name, not {label!r}")
    paths = tuple(_resolve(path.parent, file) for file in files)
    name = stem(paths[0])
    if len(paths) > 1 or name.endswith("_0000"):
        name = name.removesuffix("_0000")
    case = str(row.get("case") or name)
    if not case or "/" in case or "\\" in case:
        raise UserError(f"{path}, {where}: {case!r} is no case id, since files are named after it")
    return Case(case, paths, None if label is None else _resolve(path.parent, label), str(row.get("patient") or case))


def _resolve(root: Path, file: str) -> Path:
    path = root / Path(file).expanduser()
    # A folder of DICOM slices, or one that is not there, of which the next check tells.
    if not suffix(path) and not is_dicom(path) and (path.exists() or path.suffix):
        raise UserError(f"{path} is no known volume format, such as .nii.gz, .nrrd, .mha or a folder of DICOM slices")
    return path


def _rows(content: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    rows = content.get(key) or []
    if not isinstance(rows, list):
        raise UserError(f"{path}: {key} must be a list of cases")
    return rows


def _labels(table: object, path: Path) -> dict[str, int]:
    """Read ``{"0": "background"}`` (MSD) or ``{"background": 0}`` (nnU-Net) as name -> value."""
    if not isinstance(table, Mapping) or not table:
        raise UserError(f"{path}: labels must map values to names or names to values")
    pairs: list[tuple[str, int]] = []
    for key, value in table.items():
        if isinstance(value, list):
            raise UserError(f"{path}: label {key!r} is a region of several values, which medkd does not read yet")
        if isinstance(value, int) and not isinstance(value, bool):
            pairs.append((str(key), value))
        elif isinstance(value, str) and str(key).isdigit():
            pairs.append((value, int(key)))
        elif isinstance(value, str) and value.isdigit():
            pairs.append((str(key), int(value)))
        else:
            raise UserError(f"{path}: label {key!r}: {value!r} pairs no name with a whole number")
    if any(name == "ignore" for name, _ in pairs):
        raise UserError(f"{path}: nnU-Net's label 'ignore' is not read yet; write -1 into the label files instead")
    if all(value != 0 for _, value in pairs):
        pairs.insert(0, ("background", 0))
    pairs.sort(key=lambda pair: pair[1])
    names, values = [name for name, _ in pairs], [value for _, value in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two labels are called {twice!r}")
    if values != list(range(len(values))):
        raise UserError(f"{path}: label values must be 0, 1, 2 and so on without gap or repeat, not {values}")
    if len(names) < 2:
        raise UserError(f"{path}: labels name only the background, so there is nothing to segment")
    return dict(pairs)


def _channels(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    table = next((content[key] for key in ("channel_names", "modality", "channels") if content.get(key)), None)
    if table is None:
        return ("image",)
    if isinstance(table, str):
        return (table,)
    if isinstance(table, Mapping) and all(str(key).isdigit() for key in table):
        return tuple(str(table[key]) for key in sorted(table, key=int))
    if isinstance(table, list):
        return tuple(str(name) for name in table)
    raise UserError(f'{path}: channel names must look like {{"0": "CT"}} or ["CT"]')


def _groups(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    groups = content.get("groups") or {}
    if not isinstance(groups, Mapping) or not all(isinstance(patient, str | int) for patient in groups.values()):
        raise UserError(f"{path}: groups must map each case to its patient")
    return {str(case): str(patient) for case, patient in groups.items()}


def _text(content: Mapping[str, Any], *keys: str) -> str | None:
    return next((str(content[key]) for key in keys if content.get(key)), None)
