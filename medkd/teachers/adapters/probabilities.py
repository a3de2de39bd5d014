"""A folder of saved answers as a teacher: nothing runs, the files are read and brought onto the student's grid."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from medkd.data.dataset import Case
from medkd.data.formats import READABLE, read_stored, stem, suffix
from medkd.data.layouts import read_json
from medkd.data.plan import Plan
from medkd.data.volume import Geometry, read_volume
from medkd.errors import UserError, nearest
from medkd.teachers.adapters.nnunet_files import nnunet_labels, turns_volumes
from medkd.teachers.adapters.planned import digest
from medkd.teachers.adapters.properties import stored_affine
from medkd.teachers.adapters.sidecar import check_keys, credentials, labels_of, read_description
from medkd.teachers.grids import Affine, onto_grid, prepared_affine
from medkd.teachers.sources import Float, Teacher, TeacherCard

NAMES = ("teacher.yaml", "teacher.yml", "teacher.json", "dataset.json")
"""Where the labels may be told, first come first; nnU-Net copies its ``dataset.json`` beside its predictions."""
TAIL = 1 << 16
"""Bytes at the end of a compressed file that are hashed: they hold the checksums of all the rest."""
OFF = 0.05
"""By how much probabilities may miss a sum of one before they are taken for something else."""
_FREE = ("format", "name", "trained_on", "patients", "licence", "provenance")


class AnswersTeacher:
    """Probabilities of another program, one file a case.

    Args:
        card: labels and origin.
        files: case id -> file.
        turned: the writer had turned the volumes to RAS+ first (nnU-Net's reorienting readers).
        trust_pickle: read properties whatever they hold.
    """

    def __init__(self, card: TeacherCard, files: dict[str, Path], *, turned: bool, trust_pickle: bool) -> None:
        self.card, self.files = card, files
        self.why_not_live = "its answers are files, and there is no network to run"
        self._turned, self._trust = turned, trust_pickle

    def answer(self, case: Case, prepared: Float, plan: Plan) -> Float:
        """Return the stored answer ``(K, *S)`` for a case, on the grid of ``prepared``."""
        if case.id not in self.files:
            raise UserError(
                f"teacher {self.card.name} has no answer for case {case.id}{nearest(case.id, self.files)}; "
                f"files are named after cases, as {case.id}.npz or {case.id}.nii.gz"
            )
        path = self.files[case.id]
        volume = read_volume(case.images)
        if path.suffix == ".npz":
            found = _read_npz(path)
            affine = self._affine(path, volume.geometry, found.shape[1:])
        else:
            found, affine = read_stored(path)
        classes = len(self.card.labels)
        if found.shape[0] != classes:
            raise UserError(f"{path} holds {found.shape[0]} classes and teacher {self.card.name} names {classes}")
        _check_sums(found, path)
        target = prepared_affine(volume.affine, volume.shape, prepared.shape[1:])
        return onto_grid(found, affine, target, prepared.shape[1:])

    def network(self, plan: Plan | None = None) -> nn.Module | None:
        """Return None: there is no network."""
        return None

    def _affine(self, path: Path, image: Geometry, shape: tuple[int, ...]) -> Affine:
        """Return where an array of nnU-Net lies: as its properties say, or on the grid of the case's image."""
        told = stored_affine(path, trust_pickle=self._trust)
        if told is not None:
            return told
        usual, affine = (image.canonical_shape, image.canonical_affine) if self._turned else (image.shape, image.affine)
        if tuple(usual) != shape:
            raise UserError(
                f"{path} has the shape {shape} and the image {tuple(usual)}, and no {path.stem}.pkl or .json beside it "
                "says where it lies; save the properties too"
            )
        return affine


def open_answers(folder: Path, *, trust_pickle: bool = False) -> Teacher:
    """Open a folder of ``<case>.npz`` (nnU-Net, ``--save_probabilities``) or ``<case>.nii.gz`` (4-D, class last).

    Raises:
        UserError: no answers there, or nothing beside them names the classes.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.npz"))}
    if not files:  # with .npz, the NIfTI files beside them are nnU-Net's labels
        files = {stem(file): file for file in sorted(folder.iterdir()) if suffix(file) in READABLE}
    described = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if described is None:
        described = next((folder.parent / name for name in NAMES[-1:] if (folder.parent / name).is_file()), None)
    if described is None:
        raise UserError(f"{folder} does not say which classes its answers hold; write teacher.yaml there with labels")
    if described.name == "dataset.json":
        dataset = read_json(described)
        body = {"licence": dataset.get("licence")} if isinstance(dataset, dict) else {}
        labels = nnunet_labels(dataset, described)
    else:
        body = read_description(described)
        check_keys(body, ("labels",), _FREE, described)
        labels = labels_of(body["labels"], described)
    told = credentials(body, described)
    name = told.pop("name") or folder.name
    identity = digest(labels, [(case, _fingerprint(file)) for case, file in sorted(files.items())])
    card = TeacherCard(name=name, kind="probabilities", labels=labels, in_channels=None, identity=identity, **told)
    return AnswersTeacher(card, files, turned=_turned(folder), trust_pickle=trust_pickle)


def _turned(folder: Path) -> bool:
    """Tell whether nnU-Net's plans, in the folder or above it, name a reader that turns volumes to RAS+ first."""
    plans = next((p for place in (folder, folder.parent) if (p := place / "plans.json").is_file()), None)
    return plans is not None and turns_volumes(read_json(plans))


def _read_npz(path: Path) -> NDArray[Any]:
    """Return ``(K, x, y, z)`` of nnU-Net's ``(K, z, y, x)``."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            key = next((name for name in ("probabilities", "softmax") if name in archive.files), None)
            if key is None:
                raise UserError(f"{path} has no array named probabilities, only {', '.join(archive.files) or 'none'}")
            found: NDArray[Any] = archive[key]
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut short; predict the case again") from error
    if found.ndim != 4 or found.dtype.kind != "f":
        raise UserError(
            f"{path} holds {found.dtype} of shape {found.shape}; probabilities have the axes class, z, y, x"
        )
    return found.transpose(0, 3, 2, 1)


def _check_sums(found: NDArray[Any], path: Path) -> None:
    middle = found[..., found.shape[-1] // 2].astype(np.float32)
    total = middle.sum(0)
    if not np.isfinite(middle).all() or middle.min() < -OFF or np.abs(total - 1).max() > OFF:
        raise UserError(
            f"{path} holds no probabilities: over the classes they sum to {total.min():.3g}..{total.max():.3g}"
        )


def _fingerprint(path: Path) -> str:
    with path.open("rb") as stream:
        size = path.stat().st_size
        if path.suffix in (".npz", ".gz"):
            stream.seek(max(size - TAIL, 0))
        return hashlib.blake2b(stream.read() + str(size).encode(), digest_size=16).hexdigest()
