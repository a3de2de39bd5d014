"""The network as a torch file that needs no medkd: a torch.export program, or TorchScript."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medkd.data.plan import Plan
from medkd.errors import UserError
from medkd.export.evidence import Evidence
from medkd.export.portable import Built, Exported, seal, staged
from medkd.export.variants import GATE
from medkd.inference.window import Network
from medkd.networks.weights import ModelCard, load_network

TOLERANCE = 1e-3
"""Largest difference of a logit on noise, as a share of the largest logit."""


def export_torch(
    model_folder: Path, out_folder: Path, form: str, *, evidence: Evidence | None = None, gate: float = GATE
) -> Exported:
    """Write ``student.pt2`` (torch.export) or ``student.pt`` (TorchScript) with ``student.json`` and the certificate.

    TorchScript gets ``student.yaml`` beside it, the description with which it can be a teacher.

    Args:
        model_folder: ``model.safetensors`` and ``model.json``.
        out_folder: an older export there is replaced.
        form: ``"pt2"`` or ``"torchscript"``.
        evidence: real cases; None leaves the certificate out.
        gate: not used; there is one variant.

    Raises:
        UserError: no model there, or the network cannot be exported faithfully.
    """
    network, card = load_network(model_folder)
    with staged(out_folder) as part:
        file = "student.pt2" if form == "pt2" else "student.pt"
        write = _write_program if form == "pt2" else _write_script
        flexible = _faithfully(network, card, part / file, write)
        body = json.loads((model_folder / "model.json").read_text())
        body.pop("sha256", None)
        if form == "torchscript":
            (part / "student.yaml").write_text(json.dumps(_description(card), indent=1) + "\n", encoding="utf-8")
        built = {"fp32": Built(file, (file,), f"torch {torch.__version__}", {"flexible": flexible})}
        done = seal(part, form, model_folder, body, built, {}, evidence, gate, open_torch)
        return replace(done, folder=out_folder)


def open_torch(path: Path) -> Network:
    """Return the network of a file that :func:`export_torch` wrote."""
    with _quiet():
        if path.suffix == ".pt2":
            program: Any = torch.export.load(str(path))
            module: Any = program.module()
        else:
            load: Any = torch.jit.load
            module = load(str(path), map_location="cpu").eval()

    def network(image: Tensor) -> Tensor:  # no module: an exported program cannot be put in a mode or taken apart
        logits: Tensor = module(image)
        return logits

    return network


def _write_program(network: nn.Module, image: Tensor, path: Path, flexible: bool) -> None:
    free = [0, *range(2, image.ndim)] if flexible else [0]
    dynamic = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=(dynamic,)), path)


def _write_script(network: nn.Module, image: Tensor, path: Path, flexible: bool) -> None:
    trace: Any = torch.jit.trace  # what it has baked in is found by the trial at other sizes
    save: Any = torch.jit.save
    with torch.no_grad():
        save(trace(network, (image,), check_trace=False), str(path))


def _faithfully(network: nn.Module, card: ModelCard, path: Path, write: Any) -> bool:
    """Write the file, with free spatial axes where it agrees at other sizes; return whether they are free."""
    plan = Plan.from_json(card.plan)
    shape = (2, card.in_channels, *plan.patch)
    reason = ""
    for flexible in (True, False):
        try:
            with _quiet():
                write(network, torch.randn(shape, generator=torch.Generator().manual_seed(0)), path, flexible)
                reloaded = open_torch(path)
                larger = tuple(side + step for side, step in zip(plan.patch, plan.divisor, strict=True))
                shapes = [(1, *shape[1:]), (3, *shape[1:]), *([(1, card.in_channels, *larger)] if flexible else [])]
                worst = max(_difference(network, reloaded, one) for one in shapes)
        except Exception as error:  # noqa: BLE001 - tracing raises whatever the network's code raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        if worst <= TOLERANCE:
            return flexible
        reason = f"answers differ by {worst:.2g} of the largest logit"
    path.unlink(missing_ok=True)
    raise UserError(f"the network cannot be exported as {path.suffix[1:]} ({reason}); export it as onnx or bundle")


@torch.no_grad()
def _difference(network: nn.Module, other: Network, shape: tuple[int, ...]) -> float:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected, answer = network(image), other(image)
    if answer.shape != expected.shape:
        return float("inf")
    return float((answer - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)


def _description(card: ModelCard) -> dict[str, Any]:
    """Return what a bare model file cannot say, in the words of docs/bring-your-own-teacher.md; JSON is YAML too."""
    keys = ("spacing_mm", "patch", "intensity", "mirror_axes", "mirror_swap")
    return {
        "labels": card.labels,
        "channels": list(card.channels) or card.in_channels,
        **{key: card.plan[key] for key in keys},
        "trained_on": list(card.trained_on),
        "patients": list(card.patients),
        "provenance": card.provenance,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings that TorchScript is old and that tracing may bake values in: the trial decides."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
