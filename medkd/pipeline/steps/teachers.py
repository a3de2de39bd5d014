"""The networks that a stage learns from: where they lie, what they say of themselves, whether they may teach."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medkd.data.dataset import Dataset
from medkd.data.plan import Plan
from medkd.data.splits import Split, check_leakage, leaked_cases
from medkd.errors import UserError
from medkd.inference.model import pick_device
from medkd.networks.weights import ModelCard, read_card
from medkd.teachers.adapters.medkd import card_of, open_model
from medkd.teachers.folds import seen_patients
from medkd.teachers.fusion import channels_in
from medkd.teachers.labels import Ontology
from medkd.teachers.sources import Teacher, TeacherCard, open_teacher

NO_LEAK = "none"
"""What the card of a network says when nothing is known against it."""
CARDS = "teachers.json"


@dataclass(frozen=True)
class Member:
    """One network behind a list of teachers.

    Args:
        name: of this run's members only it has this; for messages and cards.
        source: the entry of ``teacher:`` that it stands behind, a stage or a path.
        card: what it says of itself.
        teacher: the network itself, or None where only its stored answers are read.
        folder: where it lies, of a stage's network.
    """

    name: str
    source: str
    card: TeacherCard
    teacher: Teacher | None = None

    def seen(self, dataset: Dataset) -> frozenset[str] | None:
        """Return the patients of ``dataset`` that it learned from, or None where that is not known."""
        card = self.card
        return None if card.trained_on is None else seen_patients(card.trained_on, card.patients, dataset)

    @property
    def licences(self) -> dict[str, str]:
        """What it was made of -> licence."""
        recorded = self.card.provenance.get("licences")
        return dict(recorded) if isinstance(recorded, dict) else {self.name: self.card.licence or "not stated"}

    @property
    def leaks(self) -> tuple[str, ...]:
        """What its card says against what it learned from."""
        told = str(self.card.provenance.get("leakage", NO_LEAK))
        return () if told == NO_LEAK else tuple(told.split("; "))


def live_teachers(teacher: Iterable[str], inputs: Mapping[str, Path]) -> list[Path]:
    """Return the folder of every network behind a list of teachers, in its order."""
    found: list[Path] = []
    for name in teacher:
        inside = [folder for node, folder in inputs.items() if node.startswith(f"train.{name}.m")]
        found += inside or [Path(name)]
    return found


def open_members(
    teacher: Iterable[str],
    inputs: Mapping[str, Path],
    *,
    device: str = "cpu",
    mirror: bool = False,
    trust_pickle: bool = False,
) -> list[Member]:
    """Open every network behind a list of teachers, in its order.

    Raises:
        UserError: one of them cannot be read.
    """
    where = pick_device(device)
    found: list[Member] = []
    places: list[str] = []
    for name in teacher:
        inside = [folder for node, folder in inputs.items() if node.startswith(f"train.{name}.m")]
        for folder in inside:
            opened = open_model(folder, device=where, mirror=mirror)
            found.append(Member(folder.name, name, opened.card, opened))
            places.append(str(folder))
        if not inside:
            for opened in open_teacher(name, device=where, mirror=mirror, trust_pickle=trust_pickle):
                found.append(Member(opened.card.name, name, opened.card, opened))
                places.append(f"{Path(name).parent / opened.card.name}")
    return _told_apart(found, places)


def _told_apart(members: Sequence[Member], places: Sequence[str]) -> list[Member]:
    """Give two members of the same name their whole places as names, and a number where these are the same too."""
    names = [member.name for member in members]
    longer = [p if names.count(n) > 1 else n for n, p in zip(names, places, strict=True)]
    return [
        replace(member, name=name if longer.count(name) == 1 else f"{name}#{longer[:i].count(name) + 1}")
        for i, (member, name) in enumerate(zip(members, longer, strict=True))
    ]


def start_of(stage: str, inputs: Mapping[str, Path]) -> tuple[Member, Path]:
    """Return the network of another stage whose weights a training starts from, and its folder."""
    folder = live_teachers((stage,), inputs)[0]
    return Member(folder.name, stage, card_of(read_card(folder), folder.name, "medkd", "")), folder


def write_members(members: Sequence[Member], folder: Path) -> None:
    """Write who is behind stored targets."""
    body = {member.name: {"source": member.source, **asdict(member.card)} for member in members}
    (folder / CARDS).write_text(json.dumps(body, indent=1))


def stored_members(folder: Path) -> list[Member]:
    """Return who is behind the stored targets of a finished node; the networks stay closed."""
    bodies: dict[str, dict[str, Any]] = json.loads((folder / CARDS).read_text())
    found = []
    for name, body in bodies.items():
        if "identity" in body:
            card = TeacherCard.from_json(body)
        else:  # of a run before teachers could be anybody's
            card = card_of(ModelCard.from_json(body), name, "medkd", "")
        found.append(Member(name, str(body.get("source", name)), card))
    return found


def targets_folder(inputs: Mapping[str, Path]) -> Path:
    """Return the finished ``targets`` node among a node's inputs."""
    return next(folder for name, folder in inputs.items() if name.startswith("targets."))


def admit(
    members: Iterable[Member], split: Split, dataset: Dataset, ontology: Ontology, allowed: Collection[str] = ()
) -> tuple[str, ...]:
    """Refuse a teacher that saw the student's test or validation patients, or speaks of other things.

    Args:
        members: the networks behind the stage's teachers.
        split: the student's fold.
        dataset: the student's dataset.
        ontology: the classes of the run.
        allowed: entries of ``teacher:`` that may have seen held-out patients.

    Returns:
        What a reader must know: leaks that were overridden by hand, teachers of whom it is not known what they saw,
        and what these are told to carry from before. Empty where there is nothing against anybody.

    Raises:
        UserError: naming the teacher, and the cases or what differs.
    """
    told: list[str] = []
    for member in members:
        card = member.card
        told += member.leaks
        if card.trained_on is None:
            told.append(f"not known for {member.name}, which does not tell what it was trained on")
        else:
            # A name that is also the name of another patient's case says nothing: the cases are recorded beside it.
            patient_of = {case.id: case.patient for case in dataset.cases}
            saw = (*card.trained_on, *(p for p in card.patients if patient_of.get(p, p) == p))
            if member.source not in allowed:
                check_leakage(saw, split, dataset, member.name)
            for part, cases in leaked_cases(saw, split, dataset).items():
                number = f"{len(cases)} {part} case{'s' if len(cases) > 1 else ''}"
                told.append(f"overridden by hand: {member.name} was trained on patients of {number} of its student")
        ontology.channels(card.labels, f"teacher {member.name}")
        if card.in_channels not in (None, len(dataset.channels)):
            have = len(dataset.channels)
            raise UserError(f"teacher {member.name} takes {card.in_channels} channels and the data have {have}")
    return tuple(dict.fromkeys(told))


def live_networks(members: Iterable[Member], plan: Plan | None) -> list[torch.nn.Module]:
    """Return the networks that run in every step.

    Args:
        members: opened teachers.
        plan: how the student's patches are prepared; None where that is not known yet.

    Raises:
        UserError: a teacher is no network of torch, or was made for other volumes; says what can be done instead.
    """
    found = []
    for member in members:
        assert member.teacher is not None
        network = member.teacher.network(plan)
        if network is None:
            advice = "use a method that reads logits alone, such as kd, for which its answers are stored"
            raise UserError(
                f"a method here needs the teacher in every step, and {member.teacher.why_not_live}; {advice}"
            )
        found.append(network)
    return found


def channels_of(
    members: Sequence[Member], ontology: Ontology, here: NDArray[np.int64] | None = None
) -> list[tuple[int, ...]] | None:
    """Return the student's class of each channel of each teacher, from 1 on; None where all have its own classes.

    Args:
        members: teachers.
        ontology: the classes of the run.
        here: the student's value of each class of the run, 0 for one that it has not; None where it has them all.
    """
    here = np.arange(len(ontology.labels)) if here is None else here
    union = [channels_in(ontology.channels(one.card.labels, f"teacher {one.name}"), ontology.labels) for one in members]
    found = [tuple(int(here[value]) for value in channels) for channels in union]
    own = tuple(range(1, int(here.max()) + 1))
    return None if all(channels == own for channels in found) else found


def known_to(
    members: Iterable[Member], ontology: Ontology, here: NDArray[np.int64] | None = None
) -> tuple[bool, ...] | None:
    """Return which classes of the run, or of a student as in :func:`channels_of`, somebody knows; None for all."""
    named = [name for one in members for name in ontology.channels(one.card.labels, f"teacher {one.name}")]
    knows = ontology.knows(named)
    if here is not None:
        knows = np.array([bool(knows[here == value].any()) or value == 0 for value in range(int(here.max()) + 1)])
    return None if knows.all() else tuple(bool(one) for one in knows)


def leakage_line(cards: Iterable[Mapping[str, Any]]) -> str:
    """Return the report's line about leakage.

    Args:
        cards: the provenance of every network of the run.
    """
    told = [note for card in cards for note in str(card.get("leakage", NO_LEAK)).split("; ") if note != NO_LEAK]
    if not told:
        return "none: no teacher was trained on a validation or test patient of its student"
    return "; ".join(dict.fromkeys(told))
