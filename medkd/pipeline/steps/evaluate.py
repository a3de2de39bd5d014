"""Predict the test cases of a fold on their original grid and measure them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.preprocess import prepare_image, restore_label, restore_probabilities
from medkd.data.volume import Volume, read_label, read_volume, write_label
from medkd.evaluation.cases import Row, measure_rows, write_rows
from medkd.evaluation.fidelity import BAND_MM, CaseFidelity, agreement, outcomes, region_map
from medkd.evaluation.probabilities import brier, expected_gap, reliability
from medkd.inference.model import SegmentationModel
from medkd.pipeline.context import Context
from medkd.pipeline.nodes import Node
from medkd.pipeline.steps.answers import Answers
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.share import measured_labels, share_of
from medkd.pipeline.steps.teachers import live_teachers

RELIABILITY = "reliability.json"
FIDELITY = "fidelity.json"
REGION = "voxels that the reference or the prediction calls foreground"
"""Where probabilities are compared with the truth: elsewhere everyone is sure and right."""
KEPT_BYTES = 2_000_000_000
"""Above this the probabilities of a case are not held to be measured; its label is streamed all the same."""


def execute(node: Node, inputs: Mapping[str, Path], out: Path, context: Context) -> None:
    """Write ``cases.csv``, ``predictions/<case>.nii.gz``, ``reliability.json`` and, with a teacher, ``fidelity.json``.

    Several models are measured as their ensemble. What is told of probabilities is measured on the prepared grid; a
    case whose probabilities are too large to hold is left out there.
    """
    ground = Ground.of(inputs, context)
    share = share_of(context.config, node.stage, ground.dataset, ground.ontology)
    measured = measured_labels(share, ground.dataset.labels, taught=node.arm in ("main", "pseudo"))
    model = SegmentationModel.from_folder(live_teachers((node.stage,), inputs), device=context.device)
    teachers = Answers.among(inputs)
    cases = ground.split(node.fold).test
    predictions = out / "predictions"
    predictions.mkdir(exist_ok=True)
    rows: list[Row] = []
    trusted: list[dict[str, Any]] = []
    faithful: list[CaseFidelity] = []
    for done, name in enumerate(cases, 1):
        case = ground.dataset.case(name)
        assert case.label is not None  # the test part has labelled cases only
        volume = read_volume(case.images)
        label = read_label(case.label, like=volume)
        answer, probabilities = predict(model, volume)
        answer, probabilities = share.classes_in_run(answer), share.probabilities_in_run(probabilities)
        write_label(predictions / f"{name}.nii.gz", answer, volume.geometry)
        rows += measure_rows(
            answer,
            label,
            volume.spacing_mm,
            measured,
            context.config.evaluate.metrics,
            convention=context.config.evaluate.surfaces,
            lesions=context.config.evaluate.lesions,
            case=name,
            patient=case.patient,
            arm=node.arm_name,
            stage=node.stage,
            fold=node.fold or 0,
            seed=node.seed or 0,
        )
        if probabilities is not None:
            truth = share.told_apart(np.asarray(ground.store.label(name)[0]))
            trusted += calibration_of(name, probabilities, truth)
            if teachers is not None:
                faithful.append(fidelity_of(name, probabilities, truth, teachers, ground))
        context.progress({"node": node.name, "step": done, "of": len(cases)})
    write_rows(out / "cases.csv", rows)
    (out / RELIABILITY).write_text(json.dumps({"region": REGION, "cases": trusted}, indent=1))
    if teachers is not None:
        body = {"band_mm": BAND_MM, "cases": [case.to_json() for case in faithful]}
        (out / FIDELITY).write_text(json.dumps(body, indent=1))


def predict(model: SegmentationModel, volume: Volume) -> tuple[NDArray[np.int16], NDArray[np.float32] | None]:
    """Return the label ``(X, Y, Z)`` as :meth:`SegmentationModel.predict` does, and the probabilities behind it.

    Returns:
        The label on the volume's grid, and ``(K, *S)`` on the prepared grid, or None where these are too large.
    """
    prepared, restore = prepare_image(volume, model.plan)
    if 4 * model.card.classes * prepared[0].size > KEPT_BYTES:
        return model.label_back(prepared, restore), None
    scores = model.probabilities(prepared).numpy()
    if restore.shape == restore.canonical_shape:
        return restore_label(scores.argmax(0).astype(np.int16), restore), scores
    return restore_probabilities(scores, restore), scores


def calibration_of(name: str, probabilities: NDArray[np.float32], truth: NDArray[Any]) -> list[dict[str, Any]]:
    """Return the reliability of one case over :data:`REGION`; nothing where that region is empty."""
    where = (truth > 0) | ((probabilities.argmax(0) > 0) & (truth >= 0))
    voxels = int(where.sum())
    if not voxels:
        return []
    found = reliability(probabilities, truth, where=where)
    bins = [
        [float(confidence), float(accuracy), float(share)] if share > 0 else [None, None, 0.0]
        for confidence, accuracy, share in zip(*found, strict=True)
    ]
    score = brier(probabilities, truth, where=where)
    return [{"case": name, "n_voxels": voxels, "ece": expected_gap(found), "brier": score, "bins": bins}]


def fidelity_of(
    name: str,
    probabilities: NDArray[np.float32],
    truth: NDArray[Any],
    teachers: Answers,
    ground: Ground,
) -> CaseFidelity:
    """Compare one case with what the teachers said of it.

    Classes that no teacher knows are background to them, so they are for the arm too, and no outcome is counted.
    """
    labels, known = dict(ground.dataset.labels), teachers.known(name)
    if known is not None:
        probabilities, truth = probabilities.copy(), truth.copy()
        probabilities[0] += probabilities[~known].sum(0)
        probabilities[~known] = 0
        truth[np.isin(truth, np.flatnonzero(~known))] = 0
        labels = {label: value for label, value in labels.items() if known[value]}
    classes = teachers.classes(name)
    regions = region_map(truth, ground.plan.spacing_mm)
    who = outcomes(classes, probabilities.argmax(0), truth, labels)
    return CaseFidelity(name, agreement(teachers.read(name), probabilities, regions, classes), who)
