"""TorchScript as a teacher: a compiled module with a description beside it."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medkd.errors import UserError
from medkd.teachers.adapters.onnx import stated_card
from medkd.teachers.adapters.planned import PlannedTeacher
from medkd.teachers.adapters.sidecar import sidecar_of
from medkd.teachers.ensemble import FLOOR
from medkd.teachers.sources import Teacher


class _Logits(nn.Module):
    """A network that answers probabilities, as one that answers logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return torch.log(self.network(image).float().clamp_min(FLOOR))


def open_script(path: Path, *, device: str | torch.device = "cpu", mirror: bool = False) -> Teacher:
    """Open a TorchScript file (``torch.jit.save``) with a sidecar.

    TorchScript is read by its own interpreter, never by Python's pickle.

    Raises:
        UserError: no description, or not TorchScript: a pickled module or a state dict, damaged, of a newer torch.
    """
    network = load_script(path)
    sidecar = sidecar_of(path)
    card = stated_card(path, sidecar, "torchscript")
    voter = _Logits(network) if sidecar.output == "probabilities" else network
    return PlannedTeacher(card, sidecar.plan, voter, device=device, mirror=mirror)


def load_script(path: Path) -> nn.Module:
    """Return the module of a TorchScript file, frozen in evaluation mode on the CPU.

    Raises:
        UserError: it is something else, or damaged.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged, cut short or no TorchScript; save the model again with torch.jit.save")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") or name == "constants.pkl" for name in archive.namelist()):
            raise UserError(
                f"{path} is a pickle of torch.save, not TorchScript, and medkd does not unpickle whole models; "
                "save it with torch.jit.save(torch.jit.trace(model, example), ...)"
            )
    load: Any = torch.jit.load
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch discourages writing TorchScript; this reads it
            module: nn.Module = load(str(path), map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{path} cannot be read as TorchScript ({reason[:200]}); save it again, with this torch"
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()
