"""Anybody's model as a teacher: one interface, whatever trained it and however it was saved.

A teacher reads a case its own way (its own preprocessing, spacing, window) and answers with probabilities on the grid
on which the student is trained. What kind of model lies at a path is seen from the files there; see
``docs/bring-your-own-teacher.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.errors import UserError

Float = NDArray[np.float32]
Kind = Literal["medkd", "nnunet", "bundle", "torchscript", "onnx", "probabilities"]

TRUST = "trust_pickle: true"
"""What a person writes who knows where a file comes from; refusals name it."""


@dataclass(frozen=True)
class TeacherCard:
    """What a teacher says of itself.

    Args:
        name: for people, and for messages.
        kind: how it was saved.
        labels: class name -> channel of its answers, background included.
        in_channels: image channels it reads; None where its answers are stored and no image is read.
        trained_on: case ids it learned from; None where nobody recorded them, which a report must say.
        patients: the patients of these cases, where recorded.
        licence: of the weights or of the data behind them, where recorded.
        identity: digest of weights and preprocessing; equal identities give equal answers.
        provenance: versions, files, and whatever else was found.
    """

    name: str
    kind: Kind
    labels: dict[str, int]
    in_channels: int | None
    trained_on: tuple[str, ...] | None
    identity: str
    patients: tuple[str, ...] = ()
    licence: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TeacherCard:
        """Return the card that :func:`dataclasses.asdict` turned into plain data; TypeError when a field is missing."""
        known = {key: value for key, value in body.items() if key in cls.__dataclass_fields__}
        if known.get("trained_on") is not None:
            known["trained_on"] = tuple(known["trained_on"])
        return cls(**{**known, "patients": tuple(known.get("patients", ()))})


class Teacher(Protocol):
    """A model that answers for whole cases."""

    card: TeacherCard
    why_not_live: str
    """Why :meth:`network` last returned None, in one sentence without a full stop; empty where it did not."""

    def answer(self, case: Case, prepared: Float, plan: Plan) -> Float:
        """Return the class probabilities of a case on the student's grid.

        Args:
            case: names the image files, which a teacher with a preprocessing of its own reads.
            prepared: ``(C, *S)``, the case as the student sees it.
            plan: how ``prepared`` was made.

        Returns:
            ``(K, *S)`` float32, summing to one over the classes of ``card.labels``.

        Raises:
            UserError: the case does not fit the teacher, or its stored answer is missing or damaged.
        """
        ...

    def network(self, plan: Plan | None = None) -> nn.Module | None:
        """Return the live network, ``(B, C, *S)`` on the student's patches to logits ``(B, K, *S)``, or None.

        Args:
            plan: the student's; a network made for other voxels or intensities cannot read its patches. None asks
                whether there is a live network at all.
        """
        ...


def open_teacher(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    mirror: bool = False,
    trust_pickle: bool = False,
    folds: Sequence[int | str] | None = None,
) -> list[Teacher]:
    """Open whatever model lies at a path; several members (folds, ensembles) come as several teachers.

    Args:
        path: a model folder of medkd, an exported one, a run folder (or ``RUN/STAGE``), an ``.onnx`` file, a
            TorchScript file, a MONAI bundle, an nnU-Net v2 results folder (or one ``fold_0`` of it), or a folder of
            saved probabilities.
        device: where networks run.
        mirror: average over the flips that the model was trained with; takes twice the time for each axis.
        trust_pickle: allow formats that may run code of their author when they are read: pickles that hold more than
            weights, and expressions in a bundle's configuration.
        folds: of several folds, take these; None for all that are there.

    Raises:
        UserError: nothing known lies there, or it is damaged, of a newer format, incomplete, or may run code.
    """
    found = Path(path).expanduser()
    kind = kind_of(found)
    if kind == "medkd":
        from medkd.teachers.adapters.medkd import open_model

        return [open_model(found, device=device, mirror=mirror)]
    if kind == "run":
        from medkd.teachers.adapters.medkd import open_run

        return open_run(found, device=device, mirror=mirror, folds=folds)
    if kind == "onnx":
        from medkd.teachers.adapters.onnx import open_graph

        return [open_graph(found, mirror=mirror)]
    if kind == "torchscript":
        from medkd.teachers.adapters.torchscript import open_script

        return [open_script(found, device=device, mirror=mirror)]
    if kind == "bundle":
        from medkd.teachers.adapters.bundle import open_bundle

        return [open_bundle(found, device=device, mirror=mirror, trust_pickle=trust_pickle)]
    if kind == "nnunet":
        from medkd.teachers.adapters.nnunet import open_results

        return open_results(found, device=device, mirror=mirror, trust_pickle=trust_pickle, folds=folds)
    from medkd.teachers.adapters.probabilities import open_answers

    return [open_answers(found, trust_pickle=trust_pickle)]


def kind_of(path: Path) -> str:
    """Tell what lies at a path: a :data:`Kind`, or ``"run"`` for a run folder.

    Raises:
        UserError: nothing is there, or nothing that could teach.
    """
    if path.is_file():
        return _kind_of_file(path)
    if not path.exists():
        if (path.parent / "nodes").is_dir():  # RUN/STAGE
            return "run"
        raise UserError(f"teacher {path} does not exist; give a model file, a model folder, or a finished run")
    if (path / "model.json").is_file():
        return "medkd"
    if (path / "student.json").is_file():
        return "onnx"
    if (path / "configs" / "metadata.json").is_file():
        return "bundle"
    if any(path.glob("fold_*")) or any(path.glob("*__*__*/fold_*")) or any(path.glob("checkpoint_*.pth")):
        return "nnunet"
    if (path / "nodes").is_dir():
        return "run"
    if any(any(path.glob(pattern)) for pattern in ("*.npz", "*.nii", "*.nii.gz")):
        return "probabilities"
    raise UserError(
        f"{path} holds no model that medkd knows: no model.json or student.json (medkd), configs/metadata.json (MONAI "
        "bundle), fold_0 (nnU-Net), nodes (a run), nor *.npz or *.nii.gz (saved probabilities)"
    )


def _kind_of_file(path: Path) -> str:
    ending = path.suffix.lower()
    if ending == ".onnx":
        return "onnx"
    if ending in (".pt", ".ts"):
        return "torchscript"
    if ending == ".pth" and path.parent.name.startswith("fold_"):
        raise UserError(f"{path} is one checkpoint of nnU-Net; give its folder, {path.parent}")
    raise UserError(
        f"{path} is no model file that medkd knows: give .onnx, TorchScript (.pt, .ts), or the folder of a model"
    )
