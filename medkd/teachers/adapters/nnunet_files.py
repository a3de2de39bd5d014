"""What an nnU-Net v2 results folder says in JSON: labels, plans, folds, and who was in them. Needs no nnunetv2."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkd.data.layouts import read_json
from medkd.errors import UserError
from medkd.teachers.adapters.sidecar import labels_of

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
SPLITS = "splits_final.json"


@dataclass(frozen=True)
class Results:
    """A trained configuration of nnU-Net.

    Args:
        folder: with ``plans.json``, ``dataset.json`` and ``fold_*``.
        plans: of all configurations.
        dataset: labels and channels.
        labels: class name -> channel.
        channels: image channels.
        configuration: ``3d_fullres``...
        folds: fold -> checkpoint.
        splits: training and validation cases by fold; None where the file was not found.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    labels: dict[str, int]
    channels: tuple[str, ...]
    configuration: str
    folds: dict[str, Path]
    splits: tuple[Mapping[str, Sequence[str]], ...] | None

    def trained_on(self, fold: str) -> tuple[str, ...] | None:
        """Return the cases that a fold learned from, or None where nobody recorded them.

        The best checkpoint was chosen by the validation cases, so it has seen those too.
        """
        if self.splits is None:
            return None
        if fold == "all":
            split, seen_val = self.splits[0], True
        elif int(fold) < len(self.splits):
            split = self.splits[int(fold)]
            seen_val = "best" in self.folds[fold].name
        else:  # nnU-Net then drew a split of its own, which it did not keep
            return None
        cases = (*split["train"], *(split.get("val", ()) if seen_val else ()))
        return tuple(sorted({str(case) for case in cases}))


def read_results(folder: Path, folds: Sequence[int | str] | None = None) -> Results:
    """Read a results folder, ``.../Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres``.

    The folder above does as well where it holds one training, and ``fold_0`` inside stands for that fold alone.

    Raises:
        UserError: several trainings there, files missing, a fold missing or unfinished, overlapping regions, or a kind
            of network that cannot answer for a case on its own (a cascade).
    """
    if folder.name.startswith("fold_") and folds is None:
        folder, folds = folder.resolve().parent, [folder.name.removeprefix("fold_")]
    folder = _training(folder)
    if not (folder / "plans.json").is_file():
        old = " (plans.pkl is of nnU-Net v1, which medkd does not read)" if (folder / "plans.pkl").is_file() else ""
        raise UserError(f"nnU-Net folder {folder} has no plans.json{old}; give the folder that training wrote")
    if not (folder / "dataset.json").is_file():
        raise UserError(f"nnU-Net folder {folder} has no dataset.json; copy it there, it names the labels")
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    configuration = folder.name.rpartition("__")[2]
    known = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(known, dict) or not isinstance(dataset, dict):
        raise UserError(f"{folder / 'plans.json'} has no configurations: it is of another nnU-Net than v2")
    if configuration not in known:
        if len(known) > 1:
            raise UserError(
                f"{folder / 'plans.json'} has no configuration {configuration!r}, only {', '.join(known)}; "
                "keep the name that nnU-Net gave the folder, TRAINER__PLANS__CONFIGURATION"
            )
        configuration = next(iter(known))
    if "cascade" in configuration:
        raise UserError(f"{folder} is a cascade, which needs the answers of another network; use its 3d_fullres")
    found = {f.name.removeprefix("fold_"): f for f in sorted(folder.glob("fold_*")) if f.is_dir()}
    wanted = list(found) if folds is None else [str(fold) for fold in folds]
    if missing := [fold for fold in wanted if fold not in found]:
        raise UserError(f"{folder} has no fold {', '.join(missing)}, only {', '.join(found)}")
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    return Results(
        folder=folder,
        plans=plans,
        dataset=dataset,
        labels=nnunet_labels(dataset, folder / "dataset.json"),
        channels=tuple(str(name) for name in channels.values()),
        configuration=configuration,
        folds={fold: _checkpoint(found[fold]) for fold in wanted},
        splits=_splits(folder, str(plans.get("dataset_name", ""))),
    )


def nnunet_labels(dataset: Any, path: Path) -> dict[str, int]:
    """Return class name -> channel of an nnU-Net ``dataset.json``; its label ``ignore`` is no class.

    Raises:
        UserError: labels are missing, not consecutive, or regions that overlap.
    """
    labels = dataset.get("labels") if isinstance(dataset, Mapping) else None
    if isinstance(labels, Mapping):
        labels = {name: value for name, value in labels.items() if name != "ignore"}
        single = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in labels.items()}
        return labels_of(single, path)
    return labels_of(labels, path)


def turns_volumes(plans: Any) -> bool:
    """Tell whether nnU-Net's reader turns volumes to RAS+ before anything else."""
    return isinstance(plans, Mapping) and "Reorient" in str(plans.get("image_reader_writer", ""))


def _training(folder: Path) -> Path:
    if any(folder.glob("fold_*")):
        return folder
    inside = sorted({fold.parent for fold in folder.glob("*__*__*/fold_*")})
    if len(inside) > 1:
        raise UserError(f"{folder} holds several trainings; give one of {', '.join(item.name for item in inside)}")
    return inside[0] if inside else folder


def _checkpoint(fold: Path) -> Path:
    found = next((fold / name for name in CHECKPOINTS if (fold / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{fold} has neither {' nor '.join(CHECKPOINTS)}; let the training finish, or leave this fold out"
        )
    return found


def _splits(folder: Path, dataset: str) -> tuple[Mapping[str, Sequence[str]], ...] | None:
    places = [folder, folder.parent]
    if dataset:
        if base := os.environ.get("nnUNet_preprocessed"):  # noqa: SIM112 - nnU-Net's own spelling
            places.append(Path(base) / dataset)
        # Where nnU-Net's guide puts it: beside nnUNet_results.
        places.append(folder.resolve().parents[1].parent / "nnUNet_preprocessed" / dataset)
    path = next((place / SPLITS for place in places if (place / SPLITS).is_file()), None)
    if path is None:
        return None
    body = read_json(path)
    if not isinstance(body, list) or not all(isinstance(part, dict) and "train" in part for part in body) or not body:
        raise UserError(f"{path} is not a list of folds with train and val; restore the file that nnU-Net wrote")
    return tuple(body)
