"""Teachers that prepare a volume as a plan says: a network, a window, and medkd's own preprocessing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import Volume, read_volume
from medkd.errors import UserError
from medkd.inference.window import mirrored, sliding_window
from medkd.teachers.grids import onto_grid, prepared_affine
from medkd.teachers.sources import Float, TeacherCard

Voter = Callable[[Tensor], Tensor]
"""Anything that maps ``(B, C, *S)`` to logits ``(B, K, *S)``."""


class PlannedTeacher:
    """A network that reads what :func:`medkd.data.preprocess.prepare_image` makes by its plan.

    Args:
        card: what it says of itself.
        plan: how it wants its volumes; only spacing, intensity, patch and mirroring are read.
        voter: ``(B, C, *S)`` to logits ``(B, K, *S)``.
        device: where a module runs.
        mirror: average over the flips of the plan.
        never_live: why there is no live network, or empty where ``voter`` is one.
    """

    def __init__(
        self,
        card: TeacherCard,
        plan: Plan,
        voter: Voter,
        *,
        device: str | torch.device = "cpu",
        mirror: bool = False,
        never_live: str = "",
    ) -> None:
        self.card, self.plan, self.why_not_live = card, plan, never_live
        self._never_live = never_live
        self.device = torch.device(device) if isinstance(voter, nn.Module) else torch.device("cpu")
        self.voter = voter.eval().to(self.device) if isinstance(voter, nn.Module) else voter
        self._asked = mirrored(self.voter, plan.mirror_axes, plan.mirror_swap) if mirror else self.voter

    def answer(self, case: Case, prepared: Float, plan: Plan) -> Float:
        """Return ``(K, *S)`` on the grid of ``prepared``; the image files are read only where the plans differ."""
        if not self._differs(plan):
            self._check_channels(case, prepared.shape[0])
            return self._probabilities(prepared)
        volume = read_case(self.card, case)
        own, _ = prepare_image(volume, self.plan)
        own_affine = prepared_affine(volume.affine, volume.shape, own.shape[1:])
        target = prepared_affine(volume.affine, volume.shape, prepared.shape[1:])
        return onto_grid(self._probabilities(own), own_affine, target, prepared.shape[1:])

    def network(self, plan: Plan | None = None) -> nn.Module | None:
        """Return the network where it can read patches made by ``plan``."""
        self.why_not_live = self._never_live or (self._differs(plan) if plan is not None else "")
        return None if self.why_not_live or not isinstance(self.voter, nn.Module) else self.voter

    def _differs(self, plan: Plan) -> str:
        """Say in which way the student's volumes are not those that this network reads, or nothing."""
        for part in ("spacing_mm", "intensity"):
            theirs, ours = getattr(self.plan, part), getattr(plan, part)
            if theirs != ours:
                wanted, made = self.plan.to_json()[part], plan.to_json()[part]
                return f"teacher {self.card.name} was made for {part} {wanted} and this run prepares {made}"
        return ""

    def _check_channels(self, case: Case, found: int) -> None:
        check_channels(self.card, case, found)

    def _probabilities(self, prepared: Float) -> Float:
        try:
            answer = sliding_window(
                self._asked,
                torch.from_numpy(np.ascontiguousarray(prepared, np.float32)),
                classes=len(self.card.labels),
                patch=self.plan.patch,
                device=self.device,
            )
        except (ValueError, RuntimeError) as error:  # shapes that its author stated and its graph contradicts
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"teacher {self.card.name} does not do what its description says: {reason}") from error
        return np.asarray(answer.numpy(), np.float32)


def read_case(card: TeacherCard, case: Case) -> Volume:
    """Return the volume of a case, checked for the teacher's number of channels."""
    volume = read_volume(case.images)
    check_channels(card, case, volume.array.shape[0])
    return volume


def check_channels(card: TeacherCard, case: Case, found: int) -> None:
    """Raise a UserError where a case has another number of channels than the teacher reads."""
    if card.in_channels is not None and card.in_channels != found:
        raise UserError(f"teacher {card.name} reads {card.in_channels} image channels and case {case.id} has {found}")


def digest(*parts: Any) -> str:
    """Return a short hash of plain data: what makes two teachers answer the same."""
    body = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


def plan_digest(plan: Plan) -> dict[str, Any]:
    """Return what a plan says of preparation and windows, for :func:`digest`."""
    body = plan.to_json()
    return {part: body[part] for part in ("spacing_mm", "intensity", "patch", "mirror_axes", "mirror_swap")}
