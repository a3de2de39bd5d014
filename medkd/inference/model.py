"""A trained model as one object: volume in, label out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medkd.data.plan import Plan
from medkd.data.preprocess import Restore, prepare_image
from medkd.data.volume import Volume
from medkd.errors import UserError, nearest
from medkd.inference.air import body_mask
from medkd.inference.api import check_channels, open_image
from medkd.inference.grid import lay_grid
from medkd.inference.heads import Network, defer_head
from medkd.inference.onnx import CARD, GRAPH, OnnxNetwork, read_student
from medkd.inference.slabs import predict_back
from medkd.inference.window import mirrored, predict_label, sliding_window
from medkd.networks.weights import ModelCard, load_network

ImageLike = TypeVar("ImageLike")


@dataclass(frozen=True, eq=False)
class Ready:
    """A volume as the network takes it.

    Args:
        image: ``(C, *S)`` prepared.
        restore: the way back.
        body: ``(*S)``, where it is worth looking; None for everywhere.
        seconds: of ``prepare``; ``network`` and ``restore`` are added later.
    """

    image: NDArray[np.float32]
    restore: Restore
    body: Tensor | None
    seconds: dict[str, float]


class SegmentationModel:
    """One network, or several that vote with the mean of their probabilities.

    Args:
        networks: map ``(B, C, *S)`` to logits ``(B, K, *S)``; modules are put in eval mode on ``device``.
        card: labels, plan and provenance; of an ensemble, the first member's.
        device: ``"auto"`` (the GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        overlap: share of a window that its neighbour covers.
        batch: windows per forward; None for one on a CPU and a few on a GPU, as many as fit.
        mirror: average over the flips that training used; costs twice the time for each axis.
        identity: stands for the weights; written beside predictions.
        skip_air: leave out windows that show air alone, and call them background.
        memory_mb: what blending may take before an image is done in parts; None for half of what is free.

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
        batch: int | None = None,
        mirror: bool = False,
        identity: str = "",
        skip_air: bool = False,
        memory_mb: float | None = None,
    ) -> None:
        if not networks:
            raise ValueError("a model needs at least one network")
        self.card, self.identity = card, identity
        self.plan = Plan.from_json(card.plan)
        # An exported graph runs on the CPU whatever is asked for, so its windows should not travel.
        self.device = pick_device(device if any(isinstance(n, nn.Module) for n in networks) else "cpu")
        self.overlap, self.batch, self.mirror = overlap, batch, mirror
        self.skip_air, self.memory_mb = skip_air, memory_mb
        self.networks = [n.eval().to(self.device) if isinstance(n, nn.Module) else n for n in networks]
        self._parted: list[Network] | None = None

    @classmethod
    def from_folder(
        cls, path: str | Path | Sequence[str | Path], *, threads: int | None = None, **options: Any
    ) -> SegmentationModel:
        """Load a model folder (``model.json``), an exported one (``student.json``), or several as an ensemble.

        Args:
            path: the folder, or the folders of an ensemble.
            threads: CPU threads, of torch in the whole process; None leaves the choice to it.
            options: ``device``, ``overlap``, ``batch``, ``mirror``, ``skip_air`` and ``memory_mb`` of the class.

        Raises:
            UserError: no model there, damaged or newer files, or members that do not fit together.
        """
        folders = [Path(path)] if isinstance(path, (str, Path)) else [Path(part) for part in path]
        if not folders:
            raise UserError("no model folder was given; name at least one")
        if threads is not None:
            torch.set_num_threads(threads)
        loaded = [_load(folder, threads) for folder in folders]
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
    def options(self) -> dict[str, Any]:
        """What changes the answer besides weights and image."""
        return {"overlap": self.overlap, "mirror": self.mirror, "skip_air": self.skip_air}

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
        image = torch.as_tensor(prepared)
        return sliding_window(self._voters(image), image, **self._window())

    def label(self, prepared: Tensor | NDArray[np.float32]) -> NDArray[np.int16]:
        """Return the most probable class ``(*S)`` of a prepared image ``(C, *S)``, in little memory."""
        image = torch.as_tensor(prepared)
        return predict_label(self._voters(image), image, **self._window())

    @overload
    def predict(self, image: Volume) -> NDArray[np.int16]: ...
    @overload
    def predict(
        self,
        image: ImageLike,
        *,
        spacing_mm: Sequence[float] | None = None,
        affine: NDArray[Any] | None = None,
    ) -> ImageLike: ...
    def predict(self, image: Any, **geometry: Any) -> Any:
        """Return the label of an image, on its own grid and of its own kind.

        Args:
            image: a :class:`~medkd.data.volume.Volume`; a numpy array ``(X, Y, Z)`` or ``(C, X, Y, Z)``; a nibabel or
                SimpleITK image; or a list of such images, one per channel.
            geometry: for arrays, ``spacing_mm`` (axes then run left to right, posterior to anterior, inferior to
                superior) or ``affine`` (``(4, 4)``, index -> RAS mm).

        Returns:
            Whole numbers: an array int16 for volumes and arrays, an image of the same library for images.

        Raises:
            UserError: the image has another number of channels than the model, or no usable geometry.
        """
        if isinstance(image, Volume):
            return self.predict_timed(image)[0]
        given = open_image(image, **geometry)
        check_channels(given.volume, self.card, given.name)
        return given.like(self.predict_timed(given.volume)[0])

    def predict_timed(self, volume: Volume) -> tuple[NDArray[np.int16], dict[str, float]]:
        """As :meth:`predict`; also the seconds of ``prepare``, ``network`` and ``restore``."""
        ready = self.prepare(volume)
        return self.label_ready(ready), ready.seconds

    def prepare(self, volume: Volume) -> Ready:
        """Do all that comes before the network; from then on the volume is not needed.

        Raises:
            UserError: the volume has another number of channels than the model.
        """
        prepared, restore, seconds = self._prepare(volume)
        return Ready(prepared, restore, self._body(volume, restore), seconds)

    def label_ready(self, ready: Ready) -> NDArray[np.int16]:
        """Return the label ``(X, Y, Z)`` on the canonical grid of what :meth:`prepare` made ready."""
        return self.label_back(ready.image, ready.restore, body=ready.body, seconds=ready.seconds)

    def label_back(
        self,
        prepared: Tensor | NDArray[np.float32],
        restore: Restore,
        *,
        body: Tensor | None = None,
        seconds: dict[str, float] | None = None,
    ) -> NDArray[np.int16]:
        """Return the label ``(X, Y, Z)`` of a prepared image ``(C, *S)`` on the canonical grid, slab by slab."""
        return self._back(prepared, restore, body=body, seconds=seconds)

    def scores(
        self, volume: Volume, classes: Sequence[str] | None = None, *, dtype: str = "uint8"
    ) -> NDArray[np.uint8] | NDArray[np.floating[Any]]:
        """Return the probabilities of some classes on the volume's own grid.

        Args:
            volume: canonical volume.
            classes: their names; None for all of them.
            dtype: ``"uint8"`` (0 to 255), ``"float16"`` or ``"float32"``.

        Returns:
            ``(len(classes), X, Y, Z)``, in the order asked for.

        Raises:
            UserError: a class that the model does not know, or another number of channels.
        """
        names = list(self.labels) if classes is None else list(classes)
        for name in names:
            if name not in self.labels:
                raise UserError(f"the model has no class {name!r}{nearest(name, self.labels)}")
        prepared, restore, _ = self._prepare(volume)
        keep = [self.labels[name] for name in names]
        return self._back(prepared, restore, body=self._body(volume, restore), keep=keep, dtype=dtype)

    def _prepare(self, volume: Volume) -> tuple[NDArray[np.float32], Restore, dict[str, float]]:
        began = perf_counter()
        prepared, restore = prepare_image(volume, self.plan)
        return prepared, restore, {"prepare": perf_counter() - began, "network": 0.0, "restore": 0.0}

    def _body(self, volume: Volume, restore: Restore) -> Tensor | None:
        return torch.from_numpy(body_mask(volume, self.plan, restore.shape)) if self.skip_air else None

    def _back(self, prepared: Tensor | NDArray[np.float32], restore: Restore, **options: Any) -> NDArray[Any]:
        image = torch.as_tensor(prepared)
        options |= self._window() | {"memory_mb": self.memory_mb}
        return predict_back(self._voters(image), image, restore, **options)

    def _voters(self, image: Tensor) -> list[Network]:
        """Return what votes on ``image``: where windows are blended, the networks without their heads if that helps."""
        networks = self.networks
        if len(lay_grid(image.shape[1:], self.plan.patch, self.overlap)) > 1:
            if self._parted is None:
                noise = torch.Generator().manual_seed(0)
                sample = torch.randn((1, self.card.in_channels, *self.plan.patch), generator=noise).to(self.device)
                self._parted = [defer_head(network, sample, self.card.classes) or network for network in networks]
            networks = self._parted
        if not self.mirror:
            return list(networks)
        return [mirrored(network, self.plan.mirror_axes, self.plan.mirror_swap) for network in networks]

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


def _load(folder: Path, threads: int | None) -> tuple[Network, ModelCard, str]:
    """Return the network of a folder, its card, and the hash of its weights."""
    if (folder / "model.json").is_file():
        network, card = load_network(folder)
        return network, card, str(json.loads((folder / "model.json").read_text()).get("sha256", ""))
    if (folder / CARD).is_file():
        card, info = read_student(folder)
        return OnnxNetwork(folder / GRAPH, threads=threads), card, str(info["sha256"])
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist; give the folder of a trained stage or of an export")
    raise UserError(f"{folder} holds no model: neither model.json nor {CARD}; give the folder of a trained stage")
