"""A trained model as one object: volume in, label out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image, restore_label, restore_probabilities
from medkd.data.volume import Volume
from medkd.errors import UserError
from medkd.inference.onnx import CARD, GRAPH, OnnxNetwork, read_student
from medkd.inference.window import Network, mirrored, predict_label, sliding_window
from medkd.networks.weights import ModelCard, load_network

PROBABILITY_BYTES = 2_000_000_000
"""Above this the probabilities of all classes are not kept; the label is resampled, with slightly coarser borders."""


class SegmentationModel:
    """One network, or several that vote with the mean of their probabilities.

    Args:
        networks: map ``(B, C, *S)`` to logits ``(B, K, *S)``; modules are put in eval mode on ``device``.
        card: labels, plan and provenance; of an ensemble, the first member's.
        device: ``"auto"`` (the GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        overlap: share of a window that its neighbour covers.
        batch: windows per forward.
        mirror: average over the flips that training used; costs twice the time for each axis.
        identity: stands for the weights; written beside predictions.

    Raises:
        UserError: the device is not there.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        card: ModelCard,
        *,
        device: str | torch.device = "cpu",
        overlap: float = 0.5,
        batch: int = 1,
        mirror: bool = False,
        identity: str = "",
    ) -> None:
        if not networks:
            raise ValueError("a model needs at least one network")
        self.card, self.identity = card, identity
        self.plan = Plan.from_json(card.plan)
        # An exported graph runs on the CPU whatever is asked for, so its windows should not travel.
        self.device = pick_device(device if any(isinstance(n, nn.Module) for n in networks) else "cpu")
        self.overlap, self.batch, self.mirror = overlap, batch, mirror
        self.networks = [n.eval().to(self.device) if isinstance(n, nn.Module) else n for n in networks]

    @classmethod
    def from_folder(cls, path: str | Path | Sequence[str | Path], **options: Any) -> SegmentationModel:
        """Load a model folder (``model.json``), an exported one (``student.json``), or several as an ensemble.

        Args:
            path: the folder, or the folders of an ensemble.
            options: ``device``, ``overlap``, ``batch`` and ``mirror`` of the class.

        Raises:
            UserError: no model there, damaged or newer files, or members that do not fit together.
        """
        folders = [Path(path)] if isinstance(path, (str, Path)) else [Path(part) for part in path]
        if not folders:
            raise UserError("no model folder was given; name at least one")
        loaded = [_load(folder) for folder in folders]
        cards = [card for _, card, _ in loaded]
        for folder, card in zip(folders[1:], cards[1:], strict=True):
            for part in ("labels", "in_channels"):
                if getattr(card, part) != getattr(cards[0], part):
                    raise UserError(f"{folder} and {folders[0]} differ in {part}; an ensemble must share them")
            for part in ("spacing_mm", "patch", "intensity"):
                if card.plan[part] != cards[0].plan[part]:
                    raise UserError(f"{folder} and {folders[0]} differ in plan.{part}; an ensemble must share one plan")
        hashes = [digest for _, _, digest in loaded]
        identity = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
        return cls([network for network, *_ in loaded], cards[0], identity=identity, **options)

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> label value."""
        return self.card.labels

    def probabilities(self, prepared: Tensor | NDArray[np.float32]) -> Tensor:
        """Return the mean class probabilities of a prepared image.

        Args:
            prepared: ``(C, *S)`` from :func:`medkd.data.preprocess.prepare_image`.

        Returns:
            ``(K, *S)`` float32 on the CPU.
        """
        return sliding_window(self._voters(), torch.as_tensor(prepared), **self._window())

    def label(self, prepared: Tensor | NDArray[np.float32]) -> NDArray[np.int16]:
        """Return the most probable class ``(*S)`` of a prepared image ``(C, *S)``, in little memory."""
        return predict_label(self._voters(), torch.as_tensor(prepared), **self._window())

    def predict(self, volume: Volume) -> NDArray[np.int16]:
        """Return the label ``(X, Y, Z)`` of a canonical volume, on its own grid.

        Raises:
            UserError: the volume has another number of channels than the model.
        """
        return self.predict_timed(volume)[0]

    def predict_timed(self, volume: Volume) -> tuple[NDArray[np.int16], dict[str, float]]:
        """As :meth:`predict`; also the seconds of ``prepare``, ``network`` and ``restore``."""
        seconds: dict[str, float] = {}
        began = perf_counter()
        prepared, restore = prepare_image(volume, self.plan)
        seconds["prepare"], began = perf_counter() - began, perf_counter()
        size = 4 * self.card.classes * prepared[0].size
        # On the same grid nothing is interpolated, so probabilities would give the same label for more memory.
        if restore.shape == restore.canonical_shape or size > PROBABILITY_BYTES:
            label = self.label(prepared)
            seconds["network"], began = perf_counter() - began, perf_counter()
            label = restore_label(label, restore)
        else:
            scores = self.probabilities(prepared)
            seconds["network"], began = perf_counter() - began, perf_counter()
            label = restore_probabilities(scores.numpy(), restore)
        seconds["restore"] = perf_counter() - began
        return label, seconds

    def _voters(self) -> list[Network]:
        if not self.mirror:
            return list(self.networks)
        return [mirrored(network, self.plan.mirror_axes, self.plan.mirror_swap) for network in self.networks]

    def _window(self) -> dict[str, Any]:
        return {
            "classes": self.card.classes,
            "patch": self.plan.patch,
            "overlap": self.overlap,
            "batch": self.batch,
            "device": self.device,
        }


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device ``name``; ``"auto"`` is the GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {str(name)!r} cannot be used here ({reason}); use auto or cpu") from error
    return device


def _load(folder: Path) -> tuple[Network, ModelCard, str]:
    """Return the network of a folder, its card, and the hash of its weights."""
    if (folder / "model.json").is_file():
        network, card = load_network(folder)
        return network, card, str(json.loads((folder / "model.json").read_text()).get("sha256", ""))
    if (folder / CARD).is_file():
        card, info = read_student(folder)
        return OnnxNetwork(folder / GRAPH), card, str(info["sha256"])
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist; give the folder of a trained stage or of an export")
    raise UserError(f"{folder} holds no model: neither model.json nor {CARD}; give the folder of a trained stage")
