"""What a run shows beyond its scores: fidelity, calibration, what was lost, and cases to look at."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.volume import Volume, read_label, read_volume
from medkd.evaluation.fidelity import CaseFidelity, pool
from medkd.evaluation.lost import by_size
from medkd.pipeline.nodes import Node, answers_node
from medkd.pipeline.rules import ARMS, arm_name
from medkd.pipeline.steps.evaluate import FIDELITY, RELIABILITY
from medkd.pipeline.steps.gather import Gathered
from medkd.report.slices import ct_window, worst_cases, worst_slice
from medkd.report.summary import Fidelity, Lost, Outcome, Reliability, Slice, VolumeView
from medkd.report.volumes import volume_view

Label = NDArray[np.int16]
VIEWED = 3
"""Most cases in the viewer: each takes a few MB of the page."""


def fidelity(gathered: Gathered) -> tuple[tuple[Fidelity, ...], tuple[Outcome, ...]]:
    """Return how far each arm of a distilled stage says what its teacher says, and who is right, over all its cases."""
    found: list[Fidelity] = []
    who: list[Outcome] = []
    for (stage, arm), cases in _parts(gathered, FIDELITY).items():
        config = gathered.context.config
        teacher = gathered.teacher_of(stage) or "+".join(Path(name).name for name in config.stages[stage].teacher)
        name = arm_name(stage, arm)
        if name not in gathered.shown:
            continue
        regions, outcomes = pool(CaseFidelity.from_json(case) for case in cases)
        found += [Fidelity(name, teacher, r.region, r.agreement, r.kl_nats, r.n_voxels) for r in regions]
        for one in outcomes:
            counts = (one.both_right, one.student_only, one.teacher_only, one.both_wrong)
            shares = [count / one.n_voxels if one.n_voxels else None for count in counts]
            who.append(Outcome(name, teacher, one.label, one.n_voxels, *shares))
    return tuple(found), tuple(who)


def calibration(gathered: Gathered) -> Iterator[Reliability]:
    """Yield how far each arm's probabilities can be believed: all its cases' voxels sorted into the same bins."""
    for (stage, arm), cases in _parts(gathered, RELIABILITY).items():
        name = arm_name(stage, arm)
        if name not in gathered.shown or not cases:
            continue
        voxels = np.array([case["n_voxels"] for case in cases], np.float64)
        bins = np.array([case["bins"] for case in cases], np.float64)  # (cases, bins, 3), NaN where a bin is empty
        weight = voxels[:, None] * bins[:, :, 2]
        total = weight.sum(0)
        there = total > 0
        sure, right = (np.nansum(weight * bins[:, :, i], 0)[there] / total[there] for i in (0, 1))
        share = total[there] / total.sum()
        yield Reliability(
            name,
            ece=float((share * np.abs(sure - right)).sum()),
            brier=float(np.average([case["brier"] for case in cases], weights=voxels)),
            bins=tuple((float(c), float(a), float(s)) for c, a, s in zip(sure, right, share, strict=True)),
        )


def _parts(gathered: Gathered, file: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return what the ``evaluate`` nodes wrote of each case, by stage and arm; nothing of nodes that wrote none."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for node in _evaluations(gathered):
        path = gathered.inputs[node.name] / file
        if path.is_file():
            found[node.stage, node.arm] += json.loads(path.read_text())["cases"]
    return found


def _evaluations(gathered: Gathered) -> Iterator[Node]:
    config = gathered.context.config
    for name, stage in config.stages.items():
        for arm in ("main", *(ARMS[entry] for entry in stage.control)):
            for fold in config.data.run_folds:
                for seed in config.seeds_of(name):
                    node = Node("evaluate", name, None, fold, seed, arm)
                    if node.name in gathered.inputs:
                        yield node


def lost(gathered: Gathered) -> Iterator[Lost]:
    """Yield the mean Dice of student, teacher and control by class and size of the class."""
    stage = gathered.student
    arms = {"student": gathered.rows_of(stage, "main"), "teacher": gathered.taught_by(stage)}
    control = control_of(gathered)
    if control is not None:
        arms["control"] = gathered.rows_of(stage, control)
    for group in by_size(arms):
        student, teacher = group.means["student"], group.means.get("teacher")
        yield Lost(
            group.label,
            group.size,
            len(group.cases),
            teacher,
            student,
            group.means.get("control"),
            None if teacher is None else student - teacher,
            _range(_ml(group.low_ml), _ml(group.high_ml)),
        )


def _range(low: str, high: str) -> str:
    return f"{low} ml" if low == high else f"{low} to {high} ml"


def _ml(volume: float) -> str:
    return f"{volume:.0f}" if volume >= 10 else f"{volume:.1f}" if volume >= 1 else f"{volume:.2g}"


def control_of(gathered: Gathered) -> str | None:
    """Return the arm that tells whether the student's teacher helped: the first of its controls."""
    own = [ARMS[entry] for entry in gathered.context.config.stages[gathered.student].control]
    return next((arm for arm in ("control", "compute", "same_loss", "pseudo") if arm in own), None)


def looked_at(gathered: Gathered) -> Iterator[tuple[Slice, VolumeView | None]]:
    """Yield the student's worst cases, with what label, teacher, student and control say: a plane, and the volume."""
    config = gathered.context.config
    stage, fold, seed = gathered.student, config.data.run_folds[0], config.seeds_of(gathered.student)[0]
    mine = [row for row in gathered.rows_of(stage, "main") if (row.fold, row.seed) == (fold, seed)]
    records = [row.to_record() for row in mine]
    rule = gathered.ground.plan.intensity[0]
    window = ct_window(rule.low) if rule.kind == "ct" else None
    control = control_of(gathered)
    for place, name in enumerate(worst_cases(records, stage, config.report.cases)):
        case = gathered.ground.dataset.case(name)
        volume = read_volume(case.images)
        assert case.label is not None  # test cases have a label
        label = read_label(case.label, like=volume)
        student = _predicted(gathered, Node("evaluate", stage, None, fold, seed, "main"), name)
        assert student is not None
        teacher = _teacher(gathered, fold, name)
        plane = worst_slice(name, volume.array[0], label, student, teacher, volume.spacing_mm, window=window)
        if place >= VIEWED:
            yield plane, None
            continue
        masks = {gathered.teacher_of(stage) or "teacher": teacher, stage: student}
        if control is not None:
            plain = _predicted(gathered, Node("evaluate", stage, None, fold, seed, control), name)
            masks[arm_name(stage, control)] = plain
        yield plane, _volume(name, volume, label, masks, window)


def _volume(
    name: str,
    volume: Volume,
    label: Label,
    masks: dict[str, Label | None],
    window: tuple[float, float] | None,
) -> VolumeView:
    there = {arm: mask for arm, mask in masks.items() if mask is not None}
    return volume_view(name, volume.array[0], label, there, volume.affine, window=window)


def _teacher(gathered: Gathered, fold: int, case: str) -> Label | None:
    """Return what the student's teacher says of a case: of a stage its first seed, else all of them together."""
    config = gathered.context.config
    teacher = gathered.teacher_of(gathered.student)
    if teacher is None:
        inside = [name for name in config.stages[gathered.student].teacher if name in config.stages]
        teacher = next(iter(inside), None)
    if teacher is None:
        return None
    if teacher in config.stages:
        node = Node("evaluate", teacher, None, fold, config.seeds_of(teacher)[0], "main")
    else:
        node = answers_node(config, gathered.student, fold)
    return _predicted(gathered, node, case)


def _predicted(gathered: Gathered, node: Node, case: str) -> Label | None:
    folder = gathered.inputs.get(node.name)
    path = None if folder is None else folder / "predictions" / f"{case}.nii.gz"
    return read_label(path) if path is not None and path.is_file() else None
