"""What ``targets.py`` measures on: answers of trained teachers, and of a made-up one with many organs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medkd.data.plan import Plan
from medkd.data.store import Store
from medkd.inference.model import SegmentationModel
from medkd.networks.weights import load_network
from medkd.teachers.encodings import Encoding

Array = NDArray[Any]


def encodings(classes: int) -> list[Encoding]:
    kept = (2,) if classes < 6 else (2, 3) if classes < 20 else (2, 4, 6)
    return [Encoding("full16"), Encoding("uint8"), *(Encoding("topk", k) for k in kept)]


def name_of(encoding: Encoding) -> str:
    return f"topk {encoding.k}" if encoding.name == "topk" else encoding.name


def phantom(classes: int, size: int = 128, seed: int = 0, sharp: float = 1.0) -> Array:
    """Return the answer of a teacher that knows many organs: ``(K, *S)`` float32.

    Ellipsoids whose logit falls by one every 0.1 to 0.3 voxels at the border, as those of the trained teachers here do,
    class by class another level far away, and a network's smooth noise on all of it.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 3, indexing="ij"))
    logits = np.empty((classes, size, size, size), np.float32)
    for number in range(classes):
        coarse = rng.normal(size=[size // 4] * 3).astype(np.float32)
        logits[number] = 0.7 * ndimage.zoom(coarse, 4, order=1)
        if number == 0:
            logits[0] += 6
            continue
        centre = rng.uniform(4, size - 4, 3).astype(np.float32).reshape(3, 1, 1, 1)
        radius = np.exp(rng.normal(np.log(size / 16), 0.4, 3)).astype(np.float32).reshape(3, 1, 1, 1)
        inside = 1 - np.sqrt((((grid - centre) / radius) ** 2).sum(0))
        slope = float(radius.mean()) * sharp / rng.uniform(0.1, 0.3)
        logits[number] += np.clip(6 + slope * inside, rng.normal(-7, 1.2), 60)
    logits -= logits.max(0)
    np.exp(logits, out=logits)
    logits /= logits.sum(0)
    return logits


class Run:
    """A finished run with teachers: prepared cases, live answers, networks."""

    def __init__(self, folder: Path) -> None:
        nodes = folder / "nodes"
        self.name = folder.name
        prepared = next(nodes.glob("prepare-*"))
        self.store, self.plan = Store(prepared), Plan.from_json(json.loads((prepared / "plan.json").read_text()))
        self.teachers = sorted(
            p for p in nodes.glob("train.*") if (p / "model.json").is_file() and ".teacher" in p.name
        )
        self.student = next(p for p in sorted(nodes.glob("train.student.*")) if (p / "model.json").is_file())
        self.card = load_network(self.student)[1]
        self.classes = self.card.classes
        self._model = SegmentationModel.from_folder(self.teachers)

    def cases(self, most: int) -> list[str]:
        labelled = [case for case, entry in self.store.index.items() if entry["labelled"]]
        return labelled[:: max(1, len(labelled) // most)][:most]

    def answer(self, case: str) -> Array:
        return self._model.probabilities(np.asarray(self.store.image(case)[...])).numpy()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |",
            flush=True,
        )
