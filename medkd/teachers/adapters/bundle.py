"""A MONAI bundle as a teacher: its own network, transforms and window, or, of medkd's bundles, the very plan.

What it needs of a bundle's configuration is searched for code first, and refused unless it is trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.errors import UserError
from medkd.inference.window import sliding_window
from medkd.networks.weights import ModelCard, file_hash
from medkd.networks.zoo import build
from medkd.teachers.adapters.bundle_code import refuse_code
from medkd.teachers.adapters.medkd import card_of
from medkd.teachers.adapters.planned import PlannedTeacher, digest, read_case
from medkd.teachers.adapters.sidecar import labels_of, read_description
from medkd.teachers.adapters.torchscript import load_script
from medkd.teachers.grids import onto_grid, prepared_affine
from medkd.teachers.sources import TRUST, Float, Teacher, TeacherCard

NOT_LIVE = "a MONAI bundle prepares volumes with transforms of its own, so its answers are stored instead"
NETS, OURS = "monai.networks.nets.", "medkd."


class BundleTeacher:
    """A bundle that others wrote.

    Args:
        card: labels and origin.
        network: ``(B, C, *S)`` to logits.
        prepare: the bundle's preprocessing, a transform of ``{"image": files}``.
        window: size of its sliding window.
        device: where the network runs.
    """

    def __init__(
        self, card: TeacherCard, network: nn.Module, prepare: Any, window: tuple[int, ...], device: str
    ) -> None:
        self.card, self.why_not_live = card, NOT_LIVE
        self._network = network.eval().to(device)
        self._prepare, self._window, self._device = prepare, window, device

    def answer(self, case: Case, prepared: Float, plan: Plan) -> Float:
        """Return what the bundle's network answers to its own preparation of a case, on the grid of ``prepared``."""
        volume = read_case(self.card, case)
        files = [str(path) for path in case.images]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = self._prepare({"image": files[0] if len(files) == 1 else files})["image"]
            answer = sliding_window(
                self._logits,
                torch.as_tensor(image).float(),
                classes=len(self.card.labels),
                patch=self._window,
                device=self._device,
            )
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"bundle {self.card.name} cannot answer for case {case.id}: {reason}") from error
        affine = np.asarray(getattr(image, "affine", np.eye(4)), float)
        target = prepared_affine(volume.affine, volume.shape, prepared.shape[1:])
        return onto_grid(answer.numpy(), affine, target, prepared.shape[1:])

    def network(self, plan: Plan | None = None) -> nn.Module | None:
        """Return None: the student's patches were not prepared by the bundle."""
        return None

    def _logits(self, image: Tensor) -> Tensor:
        answer: Any = self._network(image)
        finest: Tensor = answer[0] if isinstance(answer, list | tuple) else answer  # deep supervision: it comes first
        return finest


def open_bundle(
    folder: Path, *, device: str | torch.device = "cpu", mirror: bool = False, trust_pickle: bool = False
) -> Teacher:
    """Open a bundle folder: ``configs/metadata.json``, ``configs/inference.json`` (or YAML), ``models/model.pt``.

    Raises:
        UserError: incomplete, damaged, classes that overlap, or a configuration that may run code.
    """
    metadata = read_description(folder / "configs" / "metadata.json")
    configs = sorted(folder.glob("configs/inference.*"))
    if not configs:
        raise UserError(f"bundle {folder} has no configs/inference.json; medkd reads network and preprocessing from it")
    config = read_description(configs[0])
    if "medkd" in metadata:
        return _own(folder, metadata["medkd"], config, device=device, mirror=mirror, trust=trust_pickle)
    outputs = _format(metadata, folder, "outputs")
    inputs = _format(metadata, folder, "inputs")
    labels = labels_of(outputs.get("channel_def"), folder / "configs" / "metadata.json")
    if len(labels) != outputs.get("num_channels", len(labels)):
        raise UserError(
            f"bundle {folder} answers {outputs['num_channels']} channels and names {len(labels)} in channel_def"
        )
    if _sigmoid(config.get("postprocessing")):
        raise UserError(
            f"bundle {folder} answers regions that may overlap, and a teacher must give one class per voxel"
        )
    config = {**config, "device": str(device), "bundle_root": str(folder)}
    key = next((key for key in ("network_def", "net", "network") if key in config), None)
    if key is None or "preprocessing" not in config:
        raise UserError(f"{configs[0]} has no network_def or no preprocessing; name them so, as MONAI's bundles do")
    if not trust_pickle:
        refuse_code(config, (key, "preprocessing"), configs[0])
    network, prepare = _build(config, key, configs[0])
    weights = _load(network, folder, trust_pickle)
    if isinstance(weights, nn.Module):
        network = weights
    card = TeacherCard(
        name=str(metadata.get("name") or folder.name),
        kind="bundle",
        labels=labels,
        in_channels=inputs.get("num_channels"),
        trained_on=None,
        licence=_licence(folder, metadata),
        identity=digest(_weights_hash(folder), config.get("preprocessing"), config.get("inferer"), labels),
        provenance={"version": metadata.get("version"), "monai": metadata.get("monai_version"), "folder": folder.name},
    )
    return BundleTeacher(card, network, prepare, _window(config, inputs, folder), str(device))


def _own(
    folder: Path,
    told: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    device: str | torch.device,
    mirror: bool,
    trust: bool,
) -> Teacher:
    """Open a bundle that medkd exported: it carries the plan, so it answers as the model folder it came from."""
    spec = _spec(config.get("network_def"), folder)
    for name in _names(spec):
        if "." in name and not name.startswith(OURS) and not trust:
            raise UserError(f"bundle {folder} imports {name}, which may run code; if you trust it, set `{TRUST}`")
    plan = Plan.from_json(told["plan"])
    labels = labels_of(told["labels"], folder / "configs" / "metadata.json")
    model = ModelCard.from_json(
        {**told, "network": spec, "in_channels": len(plan.intensity), "classes": len(labels), "labels": labels}
    )
    network = build(spec, in_channels=model.in_channels, classes=model.classes, patch=plan.patch)
    _load(network, folder, trust)
    card = card_of(model, folder.name, "bundle", _weights_hash(folder))
    return PlannedTeacher(card, plan, network, device=device, mirror=mirror)


def _spec(definition: Any, folder: Path) -> dict[str, Any]:
    """Turn MONAI's words for a network back into a spec of :func:`medkd.networks.zoo.build`."""
    if not isinstance(definition, Mapping) or "_target_" not in definition:
        raise UserError(f"bundle {folder} has no network_def with a _target_; export it again")
    arguments = {
        key: _spec(value, folder) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in definition.items()
        if key != "_target_"
    }
    return {"name": str(definition["_target_"]).removeprefix(NETS), **arguments}


def _names(spec: Mapping[str, Any]) -> Iterator[str]:
    yield str(spec["name"])
    for value in spec.values():
        if isinstance(value, Mapping) and "name" in value:
            yield from _names(value)


def _format(metadata: Mapping[str, Any], folder: Path, side: str) -> Mapping[str, Any]:
    """Return the one input or output that ``network_data_format`` describes."""
    found = metadata.get("network_data_format", {}).get(side)
    if not isinstance(found, Mapping) or len(found) != 1:
        raise UserError(f"bundle {folder} must describe one of network_data_format.{side} in configs/metadata.json")
    (one,) = found.values()
    return dict(one)


def _sigmoid(postprocessing: Any) -> bool:
    items = postprocessing.get("transforms", []) if isinstance(postprocessing, Mapping) else []
    return any(isinstance(item, Mapping) and item.get("sigmoid") is True for item in items)


def _build(config: Mapping[str, Any], key: str, path: Path) -> tuple[nn.Module, Any]:
    from monai.bundle import ConfigParser

    parser = ConfigParser(dict(config))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser.get_parsed_content(key), parser.get_parsed_content("preprocessing")
    except Exception as error:  # MONAI wraps whatever a constructor raises in errors of several kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be resolved by MONAI: {reason}") from error


def _weights_file(folder: Path) -> Path:
    for name in ("model.pt", "model.ts"):
        if (folder / "models" / name).is_file():
            return folder / "models" / name
    raise UserError(f"bundle {folder} has no models/model.pt or model.ts; download its weights")


def _weights_hash(folder: Path) -> str:
    return file_hash(_weights_file(folder))


def _load(network: nn.Module, folder: Path, trust: bool) -> nn.Module | None:
    """Load the weights into ``network``, or return the whole TorchScript module where there is nothing else."""
    path = _weights_file(folder)
    if path.suffix == ".ts":
        return load_script(path)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=not trust)
    except UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or a pickle with more than weights in it, which may run code; if you know where it "
            f"comes from, set `{TRUST}`"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut short; download or export the bundle again") from error
    for key in ("state_dict", "model", "network"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:200]
        raise UserError(f"{path} does not fit the network of the bundle: {reason}") from error
    return None


def _window(config: Mapping[str, Any], inputs: Mapping[str, Any], folder: Path) -> tuple[int, ...]:
    stated = config.get("inferer")
    for window in (stated.get("roi_size") if isinstance(stated, Mapping) else None, inputs.get("spatial_shape")):
        if isinstance(window, list) and len(window) == 3 and all(isinstance(side, int) for side in window):
            return tuple(window)
    raise UserError(f"bundle {folder} states no window of three numbers: neither inferer.roi_size nor spatial_shape")


def _licence(folder: Path, metadata: Mapping[str, Any]) -> str | None:
    file = folder / "LICENSE"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return next((line.strip() for line in lines if line.strip()), None) or metadata.get("copyright") or None
