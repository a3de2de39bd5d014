"""Real cases for an export: training patches to calibrate on, other cases to compare on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.dataset import Dataset
from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image, prepare_label
from medkd.data.store import Store, read_patch
from medkd.data.volume import read_label, read_volume
from medkd.errors import UserError
from medkd.networks.weights import ModelCard
from medkd.types import IGNORE

Array = NDArray[np.float32]
CASES = 5
"""Cases that an export is compared on, where nothing else is said."""
PATCHES = 32
"""Patches that a quantisation is calibrated on."""


@dataclass(frozen=True)
class RealCase:
    """One case on the grid of the plan, read when it is needed.

    Args:
        name: case id.
        image: gives ``(C, *S)`` float32.
        label: gives ``(*S)`` in the network's classes, IGNORE where unknown; None without a label map.
    """

    name: str
    image: Callable[[], Array]
    label: Callable[[], NDArray[np.int16]] | None = None


@dataclass(frozen=True)
class Evidence:
    """What an export is calibrated and compared on.

    Args:
        patches: ``(C, *patch)`` float32 each, of cases that the network was trained on.
        cases: whole cases; of a run, test cases.
        classes: names of the classes that their labels tell apart; all of the network's in most runs.
        source: where they come from, for the certificate.
    """

    patches: tuple[Array, ...]
    cases: tuple[RealCase, ...]
    classes: tuple[str, ...]
    source: str


def evidence_of_store(
    store: Store,
    card: ModelCard,
    train: Sequence[str],
    test: Sequence[str],
    *,
    labels: Mapping[str, int] | None,
    source: str,
    cases: int = CASES,
) -> Evidence:
    """Take the evidence from a run's prepared volumes.

    Args:
        store: prepared images, and labels in the numbers of ``labels``.
        card: of the network.
        train: cases for patches.
        test: cases for comparing; the first ``cases`` are taken.
        labels: name -> value in the store's labels; None where they shall not be used.
        source: for the certificate.
        cases: how many.
    """

    def label_of(name: str) -> Callable[[], NDArray[np.int16]] | None:
        if labels is None or not store.index[name].get("voxels"):
            return None
        return lambda: _renumber(np.asarray(store.label(name)[0]), labels, card.labels)

    def image_of(name: str) -> Callable[[], Array]:
        return lambda: np.asarray(store.image(name)[...], np.float32)

    patches = []
    patch, rng = card.plan["patch"], np.random.default_rng(0)
    spread = [train[i * len(train) // PATCHES] for i in range(PATCHES)] if train else []
    for number, name in enumerate(spread):
        places = [] if number % 2 or not store.index[name].get("voxels") else [*store.positions(name).values()]
        centre = rng.choice(np.concatenate(places)) if places else None
        patches.append(_cut(store.image(name), patch, rng, centre))
    found = tuple(RealCase(name, image_of(name), label_of(name)) for name in test[:cases])
    known = tuple(name for name in card.labels if labels is None or name in labels)
    return Evidence(tuple(patches), found, known, source)


def evidence_of_dataset(dataset: Dataset, card: ModelCard, *, cases: int = CASES) -> Evidence:
    """Take the evidence from a dataset: patches of cases that the network knows, whole cases that it does not.

    Where the dataset has none of one kind, the other kind serves; the certificate says so.

    Raises:
        UserError: no labelled case, or none of the network's classes among the labels.
    """
    plan = Plan.from_json(card.plan)
    labelled = [case for case in dataset.cases if case.label is not None]
    known = tuple(name for name in card.labels if name in dataset.labels)
    if not labelled or not any(card.labels[name] for name in known):
        raise UserError(
            f"{dataset.root} has no label of {', '.join(name for name, value in card.labels.items() if value)}; "
            "give the data that the network was made for"
        )
    seen = [case for case in labelled if case.id in card.trained_on]
    new = [case for case in labelled if case.id not in card.trained_on and case.patient not in card.patients]

    def real(name: str) -> RealCase:
        case = dataset.case(name)
        assert case.label is not None
        path = case.label

        def label() -> NDArray[np.int16]:
            volume = read_volume(case.images)
            value = prepare_label(read_label(path, like=volume), volume, plan)
            return _renumber(value, dataset.labels, card.labels)

        return RealCase(name, lambda: prepare_image(read_volume(case.images), plan)[0], label)

    rng = np.random.default_rng(0)
    patches = []
    for case in (seen or new)[: PATCHES // 4]:  # reading and preparing a case takes longer than cutting from it
        image, _ = prepare_image(read_volume(case.images), plan)
        patches += [_cut(image, plan.patch, rng, None) for _ in range(4)]
    chosen = (new or seen)[:cases]
    kind = "cases that the network was not trained on" if new else "cases that the network was trained on"
    return Evidence(tuple(patches), tuple(real(case.id) for case in chosen), known, f"{dataset.name}, {kind}")


def _cut(image: Any, patch: Sequence[int], rng: np.random.Generator, centre: NDArray[Any] | None) -> Array:
    """Cut a patch around a voxel, or anywhere; beyond the image there is zero, as in inference."""
    start = []
    for axis, (size, side) in enumerate(zip(image.shape[1:], patch, strict=True)):
        room = max(size - side, 0)
        at = int(rng.integers(0, room + 1)) if centre is None else min(max(int(centre[axis]) - side // 2, 0), room)
        start.append(at if size >= side else -((side - size) // 2))
    return np.asarray(read_patch(image, start, patch, 0.0), np.float32)


def _renumber(label: NDArray[Any], theirs: Mapping[str, int], ours: Mapping[str, int]) -> NDArray[np.int16]:
    out = np.full(label.shape, IGNORE, np.int16)
    for name, value in theirs.items():
        out[label == value] = ours.get(name, 0)
    return out
