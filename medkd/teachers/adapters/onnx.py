"""ONNX as a teacher: an exported student of medkd, or anybody's graph with a description beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from medkd.data.plan import Plan
from medkd.errors import UserError
from medkd.inference.onnx import GRAPH, OnnxNetwork, read_student
from medkd.networks.weights import file_hash
from medkd.teachers.adapters.medkd import card_of
from medkd.teachers.adapters.planned import PlannedTeacher, Voter, digest, plan_digest
from medkd.teachers.adapters.sidecar import Sidecar, sidecar_of
from medkd.teachers.ensemble import FLOOR
from medkd.teachers.sources import Kind, Teacher, TeacherCard

NOT_LIVE = "an ONNX graph runs outside torch, without gradients or taps, so its answers are stored instead"


def open_graph(path: Path, *, mirror: bool = False) -> Teacher:
    """Open an exported folder (``student.onnx`` and ``student.json``) or an ``.onnx`` file with a sidecar.

    Raises:
        UserError: onnxruntime is missing, the graph is damaged, or it contradicts its description.
    """
    if path.is_dir():
        model, info = read_student(path)
        card = card_of(model, path.name, "onnx", str(info["sha256"]))
        network = OnnxNetwork(path / GRAPH)
        _check_shape(network, card, path / GRAPH)
        return PlannedTeacher(card, Plan.from_json(model.plan), network, mirror=mirror, never_live=NOT_LIVE)
    sidecar = sidecar_of(path)
    card = stated_card(path, sidecar, "onnx")
    network = OnnxNetwork(path)
    _check_shape(network, card, path)
    voter = as_logits(network) if sidecar.output == "probabilities" else network
    return PlannedTeacher(card, sidecar.plan, voter, mirror=mirror, never_live=NOT_LIVE)


def stated_card(path: Path, sidecar: Sidecar, kind: Kind) -> TeacherCard:
    """Return the card of a model file whose description lies beside it."""
    return TeacherCard(
        name=sidecar.name or path.stem,
        kind=kind,
        labels=sidecar.labels,
        in_channels=len(sidecar.plan.intensity),
        trained_on=sidecar.trained_on,
        patients=sidecar.patients,
        licence=sidecar.licence,
        identity=digest(file_hash(path), plan_digest(sidecar.plan), sidecar.labels, sidecar.output),
        provenance={"file": path.name, **sidecar.provenance},
    )


def as_logits(network: Voter) -> Voter:
    """Return a network whose probabilities are logits: their logarithm, floored."""

    def answer(image: Tensor) -> Tensor:
        return torch.log(network(image).float().clamp_min(FLOOR))

    return answer


def _check_shape(network: OnnxNetwork, card: TeacherCard, path: Path) -> None:
    """Compare the graph's channels, where it fixes them, with the description."""
    inputs, outputs = network.session.get_inputs(), network.session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; a teacher has one image and one answer"
        )
    for shape, stated, what in (
        (inputs[0].shape, card.in_channels, "image channels"),
        (outputs[0].shape, len(card.labels), "classes"),
    ):
        if len(shape) not in (0, 5):
            raise UserError(f"{path} works on arrays of {len(shape)} axes; medkd needs 5: batch, channel, x, y, z")
        if shape and isinstance(shape[1], int) and shape[1] != stated:
            raise UserError(f"{path} has {shape[1]} {what}, but its description says {stated}; correct the description")
