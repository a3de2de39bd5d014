"""A trained network on disk: ``model.safetensors`` beside ``model.json``. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from medkd.data.hashing import file_hash
from medkd.errors import UserError
from medkd.networks.zoo import build

__all__ = ["FORMAT", "ModelCard", "file_hash", "load_network", "read_card", "save_network"]

FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to use a network, and where it comes from.

    Args:
        network: complete spec for :func:`medkd.networks.zoo.build`.
        in_channels: image channels.
        classes: output channels, background included.
        labels: class name -> value.
        plan: the plan as JSON: spacing, patch, intensity.
        channels: channel names.
        trained_on: case ids whose images the network, or a teacher behind it, learned from.
        patients: the patients of these cases.
        provenance: licences, versions, teachers, data hash.
    """

    network: dict[str, Any]
    in_channels: int
    classes: int
    labels: dict[str, int]
    plan: dict[str, Any]
    channels: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ModelCard:
        """Return the card among the fields of ``body``; TypeError when one is missing."""
        fields = {key: value for key, value in body.items() if key in cls.__dataclass_fields__}
        for name in ("channels", "trained_on", "patients"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)

    def build(self) -> nn.Module:
        """Return the network with fresh weights."""
        return build(self.network, in_channels=self.in_channels, classes=self.classes, patch=self.plan["patch"])


def save_network(folder: Path, network: nn.Module, card: ModelCard) -> None:
    """Write weights and card into ``folder``; the card is last, so a folder with a card is whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    part = folder / "model.safetensors.part"
    save_file(state, part)
    part.replace(folder / "model.safetensors")
    body = {"format": FORMAT, "sha256": file_hash(folder / "model.safetensors"), **asdict(card)}
    text = folder / "model.json.part"
    text.write_text(json.dumps(body, indent=1))
    text.replace(folder / "model.json")


def read_card(folder: Path) -> ModelCard:
    """Read the card of a model folder.

    Raises:
        UserError: no card there, or written by a newer medkd.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: model.json is missing; give the folder of a trained stage")
    try:
        body = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); train or export the model again") from error
    if not isinstance(body, dict):
        raise UserError(f"{path} is not a model card; train or export the model again")
    if body.get("format", 0) > FORMAT:
        raise UserError(f"{path} has format {body['format']}, this medkd reads up to {FORMAT}; upgrade medkd")
    try:
        return ModelCard.from_json(body)
    except TypeError as error:
        raise UserError(f"{path} is not a whole model card ({error}); train or export the model again") from error


def load_network(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Return the network of a model folder, in evaluation mode on the CPU, and its card.

    Raises:
        UserError: incomplete folder, or weights that do not match the recorded hash.
    """
    from safetensors.torch import load_file

    card = read_card(folder)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder} has no model.safetensors; train or export the model again")
    expected = json.loads((folder / "model.json").read_text()).get("sha256")
    if expected and file_hash(weights) != expected:
        raise UserError(f"{weights} differs from the hash in model.json: changed or damaged; train or export it again")
    network = card.build()
    try:
        network.load_state_dict(load_file(weights))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{weights} does not fit {card.network['name']} of model.json: {reason}") from error
    return network.eval(), card
