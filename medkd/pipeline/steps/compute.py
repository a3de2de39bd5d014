"""The control arm ``compute``: plain training for as long as distillation computed.

What is counted, in multiply-adds of forward passes over one patch. A training step of the student costs 3 forwards of
each patch (one forward, and a backward of about two). A teacher that runs live adds its forward on each patch. A
teacher whose answers are stored adds, once, its forward on every window of every training case; this is charged whole
to each training, although the seeds of a stage share it, so that the control gets at least what distillation had.
Training the teacher, validation, and the methods' own layers are not counted. Seconds are not used: two machines, or
two runs on one, would give two different controls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medkd.errors import UserError
from medkd.evaluation.cost import count_macs
from medkd.inference.window import lay_grid
from medkd.networks.zoo import build, complete
from medkd.pipeline.nodes import Node, Taught, TrainJob
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import open_members

STEP_FORWARDS = 3
"""Forward passes that a training step of one patch is worth."""
FILE = "compute.json"


@dataclass(frozen=True)
class Compute:
    """What distillation computed, and the plain training that computes as much.

    Args:
        steps: of the distilled training.
        patches: of one step.
        student_macs: forward of the student on one patch.
        live_macs: forward of all teachers on one patch in every step; 0 where their answers are stored.
        stored_macs: all forwards that the stored answers took.
    """

    steps: int
    patches: int
    student_macs: float
    live_macs: float
    stored_macs: float

    @property
    def same(self) -> int:
        """Steps of plain training with the same multiply-adds, rounded up."""
        step = STEP_FORWARDS * self.patches * self.student_macs
        extra = self.steps * self.patches * self.live_macs + self.stored_macs
        # Rounding of a float must not add a step where the quotient is whole.
        return self.steps + math.ceil(extra / step - 1e-9)


def same_compute(job: TrainJob, node: Node, ground: Ground, inputs: Mapping[str, Path], out: Path) -> TrainJob:
    """Return the job of an arm ``compute`` with its steps counted, and write ``compute.json``; other jobs as they are.

    Raises:
        UserError: what a teacher computes cannot be counted.
    """
    if job.taught is None:
        return job
    plan = ground.plan
    batch = plan.batch if job.train.batch == "auto" else job.train.batch
    student = _macs(_network(job.model.spec, ground), ground)
    live, stored = _teachers(job.taught, node, ground)
    found = Compute(job.train.steps, batch * job.train.accumulate, student, live, stored)
    (out / FILE).write_text(json.dumps({**asdict(found), "same_compute_steps": found.same}, indent=1))
    return replace(job, train=job.train.model_copy(update={"steps": found.same}))


def _teachers(taught: Taught, node: Node, ground: Ground) -> tuple[float, float]:
    """Return the multiply-adds of the teachers: live on one patch, or stored, of all their forwards."""
    context, split = ground.context, ground.split(node.fold)
    costs = [[_macs(_network(spec, ground), ground) for spec in specs] for specs in taught.networks]
    trusted = context.config.stages[node.stage].trust_pickle
    outside = []
    for member in open_members(taught.outside, {}, trust_pickle=trusted) if taught.outside else ():
        assert member.teacher is not None
        network = member.teacher.network(ground.plan)
        if network is None and member.card.kind != "probabilities":
            raise UserError(
                f"control: compute counts what a teacher computes, and {member.name} is no network of torch here "
                f"({member.teacher.why_not_live}); use `control: steps`"
            )
        outside.append(0.0 if network is None else _macs(network, ground))
    if not taught.cached:
        inside = sum(parts * sum(of) for parts, of in zip(taught.inner_folds, costs, strict=True))
        return inside + sum(outside), 0.0
    flips = 2 ** len(ground.plan.mirror_axes) if taught.mirror else 1
    labelled, rest = (_windows(cases, ground) * flips for cases in (split.train, split.unlabelled))
    stored = (labelled + rest) * sum(outside)
    for parts, of in zip(taught.inner_folds, costs, strict=True):
        # Out of fold the one network that left a labelled case out answers about it, else all of them do.
        stored += (labelled * (1 if taught.out_of_fold else parts) + rest * parts) * sum(of)
    return 0.0, stored


def _windows(cases: Sequence[str], ground: Ground) -> int:
    shapes = (ground.store.index[case]["shape"][1:] for case in cases)
    return sum(len(lay_grid(shape, ground.plan.patch)) for shape in shapes)


def _network(spec: Mapping[str, Any], ground: Ground) -> nn.Module:
    plan = ground.plan
    size: dict[str, Any] = {"in_channels": len(ground.dataset.channels), "classes": ground.classes, "patch": plan.patch}
    return build(complete(dict(spec), **size, strides=plan.strides[1:], kernels=plan.kernels), **size)


def _macs(network: nn.Module, ground: Ground) -> float:
    patch = torch.zeros((1, len(ground.dataset.channels), *ground.plan.patch))
    counted = count_macs(lambda: network.eval()(patch))
    if not counted:
        raise UserError(
            f"control: compute counts multiply-adds, and those of {type(network).__name__} cannot be counted; "
            "use `control: steps`"
        )
    return counted
