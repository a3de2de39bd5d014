"""From a trained model folder to ``student.onnx`` beside ``student.json``."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medkd.data.plan import Plan
from medkd.errors import UserError
from medkd.inference.onnx import CARD, GRAPH, OnnxNetwork
from medkd.networks.weights import file_hash, load_network

OPSET = 17
"""The oldest opset with all that MONAI's networks need; runtimes since 2022 read it."""
TOLERANCE = 1e-3
"""Largest difference of a logit on noise, as a share of the largest logit; float32 in another order stays far below."""


def export_onnx(model_folder: Path, out_folder: Path) -> Path:
    """Write the network of a model folder as ONNX, run it on noise, and keep it only if it answers the same.

    Batch is a free axis. Spatial axes are free where the exported graph also agrees at sizes it was not traced with;
    some networks (attention over windows, fixed position embeddings) bake the patch into the graph, and keep it.

    Args:
        model_folder: ``model.safetensors`` and ``model.json``.
        out_folder: gets ``student.onnx`` and, last, ``student.json``: the card of the model, and under ``onnx`` the
            graph's hash, opset, axes and largest difference on noise.

    Returns:
        The path of ``student.onnx``.

    Raises:
        UserError: no model there, the extra ``medkd[onnx]`` is missing, or the network cannot be exported faithfully.
    """
    network, card = load_network(model_folder)
    onnx = _onnx()
    plan = Plan.from_json(card.plan)
    out_folder.mkdir(parents=True, exist_ok=True)
    part = out_folder / f".{GRAPH}.part"
    shape = (1, card.in_channels, *plan.patch)
    try:
        exporter, flexible, difference = _export_faithfully(network, part, shape, plan.divisor)
        opset = max(entry.version for entry in onnx.load(part).opset_import if not entry.domain)
        # A card without its graph is worse than a graph without its card: the old card goes first.
        (out_folder / CARD).unlink(missing_ok=True)
        part.replace(out_folder / GRAPH)
    finally:
        part.unlink(missing_ok=True)
    body = json.loads((model_folder / "model.json").read_text())
    weights = body.pop("sha256", None)
    body["onnx"] = {
        "file": GRAPH,
        "sha256": file_hash(out_folder / GRAPH),
        "weights_sha256": weights,
        "opset": opset,
        "exporter": exporter,
        "torch": torch.__version__,
        "flexible": flexible,
        "difference": difference,
    }
    text = out_folder / f".{CARD}.part"
    text.write_text(json.dumps(body, indent=1) + "\n")
    text.replace(out_folder / CARD)
    return out_folder / GRAPH


def _onnx() -> Any:
    """Return the module, once it is known that the runtime is there too."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"export to ONNX needs {error.name}; install it with `pip install 'medkd[onnx]'`") from error
    return onnx


def _export_faithfully(
    network: nn.Module, path: Path, shape: tuple[int, ...], divisor: tuple[int, ...]
) -> tuple[str, bool, float]:
    """Export with free spatial axes, else with fixed ones; return exporter, whether they are free, and difference."""
    reasons: list[str] = []
    for exporter in ("trace", "export"):
        for flexible in (True, False):
            try:
                _export(network, torch.zeros(shape), path, exporter, flexible)
            except Exception as error:  # noqa: BLE001 - exporters raise whatever the traced code or their passes raise
                reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
                continue
            difference = _difference(network, path, _trial_shapes(shape, divisor, flexible))
            if difference <= TOLERANCE:
                return exporter, flexible, difference
            reasons.append(f"answers differ by {difference:.2g} of the largest logit")
    raise UserError(f"the network cannot be exported to ONNX ({reasons[-1]}); export it as a bundle instead")


def _export(network: nn.Module, image: Tensor, path: Path, exporter: str, flexible: bool) -> None:
    """Export with ``"trace"`` or with ``"export"`` (torch.export).

    Tracing is the older way, yet ten times faster and right for the MONAI networks; it may leave torch one day.
    """
    free = [0, *range(2, image.ndim)] if flexible else [0]
    extra: dict[str, Any]
    if exporter == "trace":
        names = {0: "batch", 2: "x", 3: "y", 4: "z"}
        axes = {axis: names[axis] for axis in free}
        extra = {"dynamo": False, "dynamic_axes": {"image": axes, "logits": axes}, "opset_version": OPSET}
    else:
        dynamic = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
        extra = {"dynamo": True, "external_data": False, "verbose": False, "dynamic_shapes": (dynamic,)}
    with _quiet(), torch.no_grad():
        torch.onnx.export(network, (image,), str(path), input_names=["image"], output_names=["logits"], **extra)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporters say about themselves: the comparison on noise is the judge of their work."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _trial_shapes(shape: tuple[int, ...], divisor: tuple[int, ...], flexible: bool) -> list[tuple[int, ...]]:
    """Return the traced shape, two images at once, and for free axes a size smaller and a size larger on some."""
    batch, channels, *sides = shape
    shapes = [shape, (2, *shape[1:])]
    if flexible:
        grow = (1, 0, 1)
        larger = [side + more * step for side, step, more in zip(sides, divisor, grow, strict=True)]
        smaller = [max(side - step, 2 * step) for side, step in zip(sides, divisor, strict=True)]
        shapes += [(batch, channels, *larger), (batch, channels, *smaller)]
    return shapes


def _difference(network: nn.Module, path: Path, shapes: list[tuple[int, ...]]) -> float:
    """Return the largest difference of a logit on noise relative to the largest logit; infinite where either fails."""
    exported = OnnxNetwork(path)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for shape in shapes:
        image = torch.randn(shape, generator=generator)
        try:
            with torch.inference_mode():
                expected = network(image)
            answer = exported(image)
        except Exception:  # noqa: BLE001 - each runtime refuses a size in its own way: that axis is not free
            return float("inf")
        if answer.shape != expected.shape:
            return float("inf")
        scale = max(float(expected.abs().max()), 1e-6)
        worst = max(worst, float((answer - expected).abs().max()) / scale)
    return worst
