"""How near stored answers are to what the teachers say live, on patches as a student is shown them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from medkd.data.patches import Patches, Sampling, Targets
from medkd.data.strides import thick_axis
from medkd.data.transforms import Augment
from medkd.pipeline.steps.panel import Panel
from medkd.teachers.audit import audit, sentence
from medkd.types import Batch

PATCHES = 4
"""So many are compared; they are drawn around foreground."""


def audited(panel: Panel, targets: Targets, cases: tuple[str, ...], encoding: str) -> dict[str, Any]:
    """Compare stored targets with the live teachers and return what was found, for ``audit.json``.

    Args:
        panel: the teachers.
        targets: what was stored.
        cases: training cases.
        encoding: of the stored targets.

    Returns:
        ``augmented`` (patches as in training, intensity changes included) and ``plain`` (not changed: what storing
        and the border of a patch alone do), region -> numbers, and a ``sentence``; ``why`` alone where the teachers
        cannot be asked live.
    """
    plan, members = panel.ground.plan, panel.members
    for member in members:
        assert member.teacher is not None
        if member.teacher.network(plan) is None:
            return {"why": member.teacher.why_not_live}
    found: dict[str, Any] = {}
    told = ""
    for name, level in (("plain", "none"), ("augmented", "default")):
        augment = Augment(
            level,
            plan.patch,
            mirror_axes=plan.mirror_axes,
            mirror_swap=plan.mirror_swap,
            flat_axis=thick_axis(plan.spacing_mm),
        )
        sampling = Sampling((), cases, plan.patch, 1, plan.spacing_mm, foreground=1.0)
        asked: list[str] = []

        def batches(patches: Patches, asked: list[str] = asked) -> Iterator[Batch]:
            for step in range(PATCHES):
                batch = patches[step]
                asked.append(batch.case[0])  # who answers depends on the case
                yield batch

        def teacher(image: Tensor, asked: list[str] = asked) -> Tensor:
            said = panel.live(asked[-1], image)
            assert said is not None
            return said

        with torch.no_grad():
            regions = audit(batches(Patches(panel.ground.store, sampling, augment, targets)), teacher)
        found[name] = {region: asdict(one) for region, one in regions.items()}
        told = sentence(regions, encoding)
    return {**found, "sentence": told}
