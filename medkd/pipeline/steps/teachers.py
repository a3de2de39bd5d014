"""The networks that a stage learns from: where they lie, what they say of themselves, whether they may teach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medkd.data.dataset import Dataset
from medkd.data.plan import Plan
from medkd.data.splits import Split, check_leakage
from medkd.errors import UserError
from medkd.networks.weights import ModelCard, read_card


def live_teachers(teacher: Iterable[str], inputs: Mapping[str, Path]) -> list[Path]:
    """Return the folder of every network behind a list of teachers, in its order."""
    found: list[Path] = []
    for name in teacher:
        inside = [folder for node, folder in inputs.items() if node.startswith(f"train.{name}.m")]
        found += inside or [Path(name)]
    return found


def cards_of(folders: Sequence[Path]) -> dict[str, ModelCard]:
    """Return the card of each model folder by the folder's name, or by its whole path where two share a name."""
    names = [folder.name for folder in folders]
    return {f.name if names.count(f.name) == 1 else str(f): read_card(f) for f in folders}


def stored_cards(inputs: Mapping[str, Path]) -> dict[str, ModelCard]:
    """Return the cards of the teachers behind stored targets, by the name of their folders."""
    node = next(folder for name, folder in inputs.items() if name.startswith("targets."))
    cards: dict[str, Any] = json.loads((node / "teachers.json").read_text())
    return {name: ModelCard.from_json(card) for name, card in cards.items()}


def admit(cards: Mapping[str, ModelCard], split: Split, dataset: Dataset, plan: Plan | None) -> None:
    """Refuse a teacher that saw the student's test or validation patients, or was made for other data.

    Args:
        cards: name -> card.
        split: the student's fold.
        dataset: the student's dataset.
        plan: how its volumes are prepared; None where that is not known yet.

    Raises:
        UserError: naming the teacher, and the cases or what differs.
    """
    cases = {case.id for case in dataset.cases}
    for name, card in cards.items():
        # A patient may have cases that this dataset does not list; a case's name says who it is more surely.
        check_leakage((*card.trained_on, *(set(card.patients) - cases)), split, dataset, name)
        check_teacher(name, card, dataset, plan)


def check_teacher(name: str, card: ModelCard, dataset: Dataset, plan: Plan | None) -> None:
    """Refuse a teacher that speaks of other classes, or was made for other volumes."""
    if card.labels != dataset.labels:
        raise UserError(f"teacher {name} knows {card.labels}, the dataset {dataset.labels}; they must agree")
    if card.in_channels != len(dataset.channels):
        have = len(dataset.channels)
        raise UserError(f"teacher {name} takes {card.in_channels} channels and the data have {have}")
    if plan is None:
        return
    theirs, ours = card.plan, plan.to_json()
    for key in ("spacing_mm", "intensity"):
        if theirs[key] != ours[key]:
            raise UserError(
                f"teacher {name} was made for {key} {theirs[key]} and this run prepares {ours[key]}; "
                f"set `plan: {{{key}: ...}}` to the teacher's"
            )
