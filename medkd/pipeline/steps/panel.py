"""The members behind a stage's teachers as one panel: who answers about a case, and what they say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkd.data.dataset import Dataset
from medkd.data.splits import Split, make_folds
from medkd.errors import UserError
from medkd.pipeline.config import RunConfig
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import Member, admit, known_to, open_members
from medkd.teachers.calibrate import Temperature, fit_temperature, not_fitted
from medkd.teachers.folds import answering
from medkd.teachers.fusion import Answer, Fused, fuse_answers
from medkd.teachers.labels import Ontology

Array = NDArray[Any]
Classes = tuple[str | None, ...]

CALIBRATION_CASES = 8
"""So many cases tell the temperature of a teacher; more cost time and change little."""


@dataclass(frozen=True)
class Panel:
    """Teachers that answer together.

    Members of one teacher that know the same classes are pooled, by the mean of their probabilities; a temperature
    belongs to the pooled answer, since the mean of calibrated members would be too unsure. Without temperatures all
    members that know the same classes count alike, whichever teacher they belong to.

    Args:
        members: opened teachers.
        ground: the student's data.
        who: case -> names of the members that answer about it; None where all do.
        trust: ``none`` or ``disagreement``.
        temperatures: entry of ``teacher:`` -> temperature of its pooled answer; empty for none.
    """

    members: Sequence[Member]
    ground: Ground
    who: Mapping[str, tuple[str, ...]] | None = None
    trust: str = "none"
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def about(self, case: str) -> list[Member]:
        """Return the members that answer about a case."""
        return [m for m in self.members if self.who is None or m.name in self.who[case]]

    def known(self, case: str) -> tuple[bool, ...]:
        """Return which classes those who answer about the case tell from background, ``(K,)``."""
        ontology = self.ground.ontology
        return known_to(self.about(case), ontology) or (True,) * len(ontology.labels)

    def _classes(self, member: Member) -> Classes:
        return self.ground.ontology.channels(member.card.labels, f"teacher {member.name}")

    def answer(self, case: str) -> Fused:
        """Return what the panel says of a case, on the prepared grid.

        Raises:
            UserError: the case does not fit a teacher.
        """
        return self._together(self._pooled(case, self.about(case), keep=self.trust == "disagreement"))

    def live(self, case: str, image: Tensor) -> Tensor | None:
        """Return what the panel says of a patch ``(1, C, *S)`` of a case, ``(1, K, *S)``; None where it is not live."""
        pool = _Pool()
        for member in self.about(case):
            assert member.teacher is not None
            network = member.teacher.network(self.ground.plan)
            if network is None:
                return None
            device = next((p.device for p in network.parameters()), torch.device("cpu"))
            said = network(image.to(device)).float().softmax(1)[0].cpu().numpy()
            pool.add((member.source if self.temperatures else "", self._classes(member)), said)
        return torch.from_numpy(self._together(pool).probabilities)[None]

    def _together(self, pooled: _Pool) -> Fused:
        union = self.ground.ontology.labels
        answers = [Answer(p, classes, self.temperatures.get(source, 1.0)) for (source, classes), p in pooled.mean()]
        fused = fuse_answers(answers, union)
        if len(pooled.kept) < 2:
            return fused
        doubt = fuse_answers(pooled.kept, union, trust="disagreement").trust
        both = [trust for trust in (fused.trust, doubt) if trust is not None]
        return replace(fused, trust=np.minimum.reduce(both) if both else None)

    def calibrate(self, split: Split) -> dict[str, Temperature]:
        """Return the temperature of each entry of ``teacher:``, from labelled cases that it did not learn from.

        These are the training cases where others than the members that saw them answer, or else the validation cases,
        which chose the teacher's checkpoint and nothing more.
        """
        found: dict[str, Temperature] = {}
        for source in dict.fromkeys(member.source for member in self.members):
            mine = [member for member in self.members if member.source == source]
            if self.who is not None:
                names = {member.name for member in mine}
                cases = [case for case in split.train if names & set(self.who[case])]
                note = "training cases, each answered by members that did not see it"
            else:
                cases = [case for case in split.validation if not self._seen(case, mine)]
                note = "validation cases"
            if not cases:
                found[source] = not_fitted("every labelled case was seen by the teacher")
                continue
            chosen = cases[:: -(-len(cases) // CALIBRATION_CASES)]
            found[source] = fit_temperature(self._truths(chosen, mine), note=f"{len(chosen)} {note}")
        return found

    def _seen(self, case: str, members: Sequence[Member]) -> bool:
        patient = self.ground.dataset.case(case).patient
        return any(patient in (member.seen(self.ground.dataset) or ()) for member in members)

    def _truths(self, cases: Sequence[str], members: Sequence[Member]) -> Iterator[tuple[Array, Array]]:
        """Yield the pooled answer of one teacher and the label in its own classes."""
        for case in cases:
            asked = [member for member in self.about(case) if member in members]
            (((_, classes), probabilities), *_) = self._pooled(case, asked, keep=False).mean()
            own = {name: channel for channel, name in reversed([*enumerate(classes, 1)]) if name is not None}
            table = np.zeros(len(self.ground.ontology.labels), np.int64)
            for name, channel in own.items():
                table[self.ground.ontology.labels[name]] = channel
            label = np.asarray(self.ground.store.label(case)[0])
            yield probabilities, np.where(label >= 0, table[np.maximum(label, 0)], label)

    def _pooled(self, case: str, members: Sequence[Member], *, keep: bool) -> _Pool:
        image = np.asarray(self.ground.store.image(case)[...])
        pool = _Pool()
        for member in members:
            assert member.teacher is not None
            said = member.teacher.answer(self.ground.dataset.case(case), image, self.ground.plan)
            if said.shape != (len(member.card.labels), *image.shape[1:]):
                raise UserError(
                    f"teacher {member.name} answers about case {case} with shape {said.shape}, and its "
                    f"{len(member.card.labels)} classes on the student's grid are {image.shape[1:]}"
                )
            classes = self._classes(member)
            pool.add((member.source if self.temperatures else "", classes), said)
            if keep:
                pool.kept.append(Answer(said, classes))
        return pool


class _Pool:
    """Means of answers that belong together, summed one by one, since a volume of many classes is large."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, Classes], Array] = {}
        self.counts: dict[tuple[str, Classes], int] = {}
        self.kept: list[Answer] = []

    def add(self, key: tuple[str, Classes], answer: Array) -> None:
        self.sums[key] = self.sums[key] + answer if key in self.sums else answer
        self.counts[key] = self.counts.get(key, 0) + 1

    def mean(self) -> list[tuple[tuple[str, Classes], Array]]:
        """Return the mean answer of each group."""
        return [(key, total / self.counts[key] if self.counts[key] > 1 else total) for key, total in self.sums.items()]


def who_answers(
    members: Sequence[Member], cases: Sequence[str], dataset: Dataset, ontology: Ontology
) -> dict[str, tuple[str, ...]]:
    """Return which members answer about each case out of fold; of each set of classes somebody must.

    Raises:
        UserError: all members that know some classes saw a case, or it is not known what one saw.
    """
    groups: dict[Classes, dict[str, frozenset[str] | None]] = {}
    for member in members:
        classes = ontology.channels(member.card.labels, f"teacher {member.name}")
        groups.setdefault(classes, {})[member.name] = member.seen(dataset)
    found: dict[str, tuple[str, ...]] = dict.fromkeys(cases, ())
    for seen in groups.values():
        for case, names in answering(cases, seen, dataset).items():
            found[case] = (*found[case], *names)
    return found


def outside_of(
    config: RunConfig, stage: str, dataset: Dataset, splits: Mapping[int, Split]
) -> tuple[list[Member], tuple[str, ...]]:
    """Open the teachers of a stage that are no stages of the run, before anything is done.

    Args:
        config: the run.
        stage: name of the stage.
        dataset: its data.
        splits: the folds that are run.

    Returns:
        The teachers, and what a reader must know of them, see :func:`medkd.pipeline.steps.teachers.admit`.

    Raises:
        UserError: one cannot be read, or may not teach in one of the folds.
    """
    wanted, ontology = config.stages[stage], Ontology.of(dataset.labels, config.data.ontology)
    outside = [teacher for teacher in wanted.teacher if teacher not in config.stages]
    if not outside:
        return [], ()
    members = open_members(outside, {}, trust_pickle=wanted.trust_pickle)
    told: list[str] = []
    for split in splits.values():
        told += admit(members, split, dataset, ontology, config.allowed(outside))
        if config.out_of_fold(stage) and len(outside) == len(wanted.teacher):
            who_answers(members, (*split.train, *split.unlabelled), dataset, ontology)
    return members, tuple(dict.fromkeys(told))


def check_outside(config: RunConfig, dataset: Dataset) -> None:
    """Refuse teachers from outside the run that may not teach in it. Raises as :func:`outside_of`."""
    data = config.data
    folds = make_folds(dataset, folds=data.folds, seed=data.seed, validation=data.validation)
    for name in config.stages:
        outside_of(config, name, dataset, {fold: folds[fold] for fold in data.run_folds})
