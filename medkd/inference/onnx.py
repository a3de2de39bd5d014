"""An exported student: ``student.onnx`` beside ``student.json``, run by onnxruntime."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medkd.errors import UserError
from medkd.networks.weights import FORMAT, ModelCard, file_hash

CARD = "student.json"
GRAPH = "student.onnx"


class OnnxNetwork:
    """Callable like a network: ``(B, C, *S)`` to logits ``(B, K, *S)``, both on the CPU.

    Args:
        path: the ``.onnx`` file.
        threads: CPU threads; None leaves the choice to onnxruntime.

    Raises:
        UserError: onnxruntime is missing, or cannot read the file.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path} needs onnxruntime to run; install it with `pip install 'medkd[onnx]'`") from error
        options: Any = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about graph optimisations, nothing a user can act on
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise UserError(f"{path} cannot be run by onnxruntime ({error}); export the model again") from error
        self.input = str(self.session.get_inputs()[0].name)
        self.output = str(self.session.get_outputs()[0].name)

    def __call__(self, image: Tensor) -> Tensor:
        (logits,) = self.session.run([self.output], {self.input: image.detach().cpu().contiguous().numpy()})
        return torch.from_numpy(logits)


def read_student(folder: Path) -> tuple[ModelCard, dict[str, Any]]:
    """Read the card of an exported student.

    Returns:
        The card, and what the export knows of the graph: ``sha256``, ``opset``, ``flexible`` (takes any size that the
        plan's total stride divides, not the patch alone).

    Raises:
        UserError: incomplete, written by a newer medkd, or a graph that is not the one exported.
    """
    path = folder / CARD
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the model again") from error
    if body.get("format", 0) > FORMAT:
        raise UserError(f"{path} has format {body['format']}, this medkd reads up to {FORMAT}; upgrade medkd")
    graph = folder / GRAPH
    if (form := body.get("form", "onnx")) != "onnx":
        hint = "medkd-run runs it" if form == "openvino" else "it is for other programs"
        raise UserError(f"{folder} is an export to {form}; {hint}, and medkd reads the one to onnx")
    if not graph.is_file():
        raise UserError(f"{folder} has no {GRAPH}; export the model again")
    info: dict[str, Any] = body.get("onnx", {})
    if info.get("sha256") != file_hash(graph):
        raise UserError(f"{graph} differs from the hash in {CARD}: changed or damaged; export the model again")
    known = {field.name for field in fields(ModelCard)}
    body = {key: value for key, value in body.items() if key in known}
    for name in ("channels", "trained_on", "patients"):
        body[name] = tuple(body.get(name, ()))
    return ModelCard(**body), info
