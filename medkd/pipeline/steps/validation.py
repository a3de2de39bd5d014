"""What a training is judged by while it lasts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medkd.data.patches import Targets
from medkd.inference.window import sliding_window
from medkd.pipeline.steps.ground import Ground


class Validation:
    """Mean Dice over the classes that the labels of the validation cases know, whole volumes, on the prepared grid.

    Args:
        ground: the data.
        cases: validation cases.
        most: use only so many, spread evenly; all when None.
    """

    def __init__(self, ground: Ground, cases: tuple[str, ...], most: int | None) -> None:
        step = 1 if most is None else max(1, len(cases) // most)
        self.ground, self.cases = ground, cases[::step][:most]

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return ``dice`` and one ``dice/<class>`` each; a class that a case lacks in label and answer counts not."""
        names = self.names()
        found: dict[int, list[float]] = {value: [] for value in names}
        device = next(network.parameters()).device
        for case in self.cases:
            image = torch.from_numpy(np.asarray(self.ground.store.image(case)[...])).to(device)
            answer = (
                sliding_window(
                    network,
                    image,
                    classes=self.ground.classes,
                    patch=self.ground.plan.patch,
                    overlap=0.25,
                    mode="logits",
                )
                .argmax(0)
                .numpy()
            )
            label = self.truth(case)
            for value in names:
                a, b = answer == value, label == value
                both = int(a.sum()) + int(b.sum())
                if both:
                    found[value].append(2.0 * int((a & b).sum()) / both)
        per_class = {f"dice/{names[value]}": float(np.mean(scores)) for value, scores in found.items() if scores}
        return {"dice": float(np.mean(list(per_class.values()))) if per_class else 0.0, **per_class}

    def names(self) -> dict[int, str]:
        """Return the classes that are compared, by value."""
        return {self.ground.dataset.labels[name]: name for name in self.ground.taught}

    def truth(self, case: str) -> NDArray[Any]:
        """Return what the answer about a case is compared with, ``(*S)``."""
        return np.asarray(self.ground.store.label(case)[0])


class Agreement(Validation):
    """Mean Dice against the teachers, for a stage that knows no label: on cases that it learns from, in want of others.

    Args:
        ground: the data.
        cases: cases that the teachers have answered about.
        most: use only so many; at most 8.
        targets: their stored answers, or None where they run live: then the last network is kept.
    """

    def __init__(self, ground: Ground, cases: tuple[str, ...], most: int | None, targets: Targets | None) -> None:
        super().__init__(ground, cases, min(most or 8, 8))
        self.targets = targets

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return ``dice`` and one ``dice/<class>`` each, or ``dice`` alone, not a number, where there is nothing."""
        return {"dice": math.nan} if self.targets is None else super().__call__(network)

    def names(self) -> dict[int, str]:
        """Return the classes that are compared, by value."""
        return {value: name for name, value in self.ground.dataset.labels.items() if value > 0}

    def truth(self, case: str) -> NDArray[Any]:
        """Return the likeliest class by the teachers, ``(*S)``."""
        assert self.targets is not None
        told: NDArray[Any] = np.asarray(self.targets.read(case)[...]).argmax(0)
        return told
