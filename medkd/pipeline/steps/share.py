"""The classes of one stage: which its network tells apart, and which of them its labels know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.dataset import Dataset
from medkd.data.patches import Targets
from medkd.data.plan import Plan
from medkd.data.store import Store
from medkd.pipeline.config import RunConfig
from medkd.pipeline.steps.ground import Ground
from medkd.pipeline.steps.teachers import open_members
from medkd.teachers.labels import Ontology, renumber

Array = NDArray[Any]


@dataclass(frozen=True)
class Share:
    """What one stage has of the run's classes.

    Args:
        labels: of its network, name -> value, background at 0, in the order of the run.
        own: those that its label maps tell from background; the others only its teachers know.
        union: the run's labels.
    """

    labels: Mapping[str, int]
    own: frozenset[str]
    union: Mapping[str, int]

    @property
    def whole(self) -> bool:
        """Whether the network has every class of the run, with the run's values."""
        return len(self.labels) == len(self.union)

    @property
    def known(self) -> tuple[bool, ...] | None:
        """Which classes of the network the labels tell from background, or None for all."""
        known = tuple(value == 0 or name in self.own for name, value in self.labels.items())
        return None if all(known) else known

    @property
    def sentence(self) -> str:
        """Who teaches which class."""
        own = [name for name in self.labels if name in self.own]
        taught = [name for name, value in self.labels.items() if value > 0 and name not in self.own]
        told = f"its labels know {', '.join(own) or 'no class'}"
        return told + (f"; its teachers alone {', '.join(taught)}" if taught else "")

    @property
    def here(self) -> NDArray[np.int64]:
        """Value of the network by value of the run; 0 for a class that it has not."""
        return renumber(self.union, self.labels)

    @property
    def back(self) -> NDArray[np.int64]:
        """Value of the run by value of the network."""
        return np.array([self.union[name] for name in self.labels], dtype=np.int64)

    def classes_in_run(self, label: NDArray[np.int16]) -> NDArray[np.int16]:
        """Return an answer of the network, any shape, in values of the run."""
        return label if self.whole else self.back.astype(np.int16)[label]

    def probabilities_in_run(self, probabilities: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """Return the probabilities ``(K, *S)`` of the network over all classes of the run, or None for None."""
        if probabilities is None or self.whole:
            return probabilities
        wide = np.zeros((len(self.union), *probabilities.shape[1:]), np.float32)
        wide[self.back] = probabilities
        return wide

    def told_apart(self, truth: Array) -> Array:
        """Return reference labels in values of the run, where classes that the network has not are background."""
        if self.whole:
            return truth
        table = np.where(self.here > 0, np.arange(len(self.union)), 0).astype(truth.dtype)
        return np.where(truth >= 0, table[np.maximum(truth, 0)], truth)


def share_of(config: RunConfig, stage: str, dataset: Dataset, ontology: Ontology) -> Share:
    """Return the classes of a stage: those it names under ``labels`` (or all of the dataset) and its teachers'.

    Every arm of a stage has the same, with a teacher or without, so that their networks are the same.

    Raises:
        UserError: a name that the run does not know.
    """
    spec, union = config.stages[stage], ontology.labels
    own = dataset.labels if spec.labels is None else ontology.part(spec.labels, f"stage {stage}")
    named = set(own)
    for teacher in spec.teacher:
        if len(named) == len(union):
            break
        if teacher in config.stages:
            named |= set(share_of(config, teacher, dataset, ontology).labels)
            continue
        for member in open_members((teacher,), {}, trust_pickle=spec.trust_pickle):
            channels = ontology.channels(member.card.labels, f"teacher {member.name}")
            named |= {name for name in channels if name is not None}
    labels = {name: value for value, name in enumerate(name for name in ontology.names if name in named)}
    return Share(labels, frozenset(own) - {ontology.background}, union)


@dataclass(frozen=True)
class StageGround(Ground):
    """The prepared data as one stage sees them: its own classes, numbered as in its network.

    Args:
        share: the stage's classes.
    """

    share: Share

    @classmethod
    def at(cls, inputs: Mapping[str, Path], base: Ground, stage: str) -> Ground:
        """Return the ground of a stage; ``base`` itself where the stage has all classes and labels of them."""
        share = share_of(base.context.config, stage, base.dataset, base.ontology)
        return base if share.whole and share.known is None else cls(base.folder, base.context, share)

    @cached_property
    def dataset(self) -> Dataset:
        """The cases, and the labels of the stage's network."""
        return replace(super().dataset, labels=dict(self.share.labels))

    @cached_property
    def ontology(self) -> Ontology:
        """The classes of the whole run."""
        return Ground(self.folder, self.context).ontology

    @cached_property
    def plan(self) -> Plan:
        """The plan, with the pairs of left and right that the stage has both of."""
        plan, here = super().plan, self.share.here
        pairs = [(int(here[a]), int(here[b])) for a, b in plan.mirror_swap]
        alone = any((a > 0) != (b > 0) for a, b in pairs)
        # mirrored, a left parotid is a right one, which this network does not know
        axes = tuple(axis for axis in plan.mirror_axes if axis != 0 or not alone)
        return replace(plan, mirror_axes=axes, mirror_swap=tuple(pair for pair in pairs if all(pair)))

    @cached_property
    def store(self) -> Store:
        """The prepared volumes, their labels renumbered."""
        return Renumbered(self.folder, self.share.here, {self.share.union[name] for name in self.share.own})

    @property
    def taught(self) -> tuple[str, ...]:
        """The classes that the stage's labels know."""
        return tuple(name for name in self.dataset.labels if name in self.share.own)

    @property
    def known(self) -> tuple[bool, ...] | None:
        """Which classes the labels tell from background, or None for all."""
        return self.share.known


class Renumbered(Store):
    """A store whose labels know only some classes, and number them in another way.

    Args:
        folder: of the store.
        here: new value by old value; 0 for a class that is left out.
        own: old values that the labels may tell; any other is background.
    """

    def __init__(self, folder: Path, here: NDArray[np.int64], own: set[int]) -> None:
        super().__init__(folder)
        self._table = np.array([new if old in own else 0 for old, new in enumerate(here)], dtype=np.int64)
        for entry in self.index.values():
            if "voxels" in entry:
                counted = {int(old): n for old, n in entry["voxels"].items()}
                entry["voxels"] = {str(self._table[old]): n for old, n in counted.items() if self._table[old] > 0}

    def label(self, case: str) -> Any:
        """Return the label of a case, ``(1, *S)`` int16, sliceable, or None where it has none."""
        label = super().label(case)
        return None if label is None else Mapped(label, self._table.astype(np.int16))

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions ``(n, dims)`` by foreground class that the label tells."""
        found = super().positions(case)
        return {int(self._table[old]): where for old, where in found.items() if self._table[old] > 0}


class Mapped:
    """Labels that are renumbered where they are sliced; what is negative stays."""

    def __init__(self, source: Any, table: NDArray[np.int16]) -> None:
        self._source, self._table = source, table
        self.shape, self.dtype = source.shape, table.dtype

    def __getitem__(self, index: Any) -> Array:
        values = np.asarray(self._source[index])
        return np.where(values >= 0, self._table[np.maximum(values, 0)], values).astype(self.dtype)


class PartTargets:
    """Stored answers over the run's classes, as a stage with some of them reads them.

    Args:
        targets: over the union.
        share: the stage's classes; they hold all that its teachers know.
    """

    def __init__(self, targets: Targets, share: Share) -> None:
        self.targets, self.share = targets, share

    def read(self, case: str) -> Any:
        """Return the probabilities ``(K, *S)`` of the stage's classes, sliceable."""
        return Chosen(self.targets.read(case), self.share.back)

    def trust(self, case: str) -> Any:
        """Return the trust in them, or None for one everywhere."""
        return self.targets.trust(case)

    def known(self, case: str) -> Sequence[bool] | None:
        """Return which classes the teachers tell from background, or None for all."""
        known = self.targets.known(case)
        mine = None if known is None else [bool(known[value]) for value in self.share.back]
        return None if mine is None or all(mine) else mine

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions by class that the teachers see."""
        here = self.share.here
        return {int(here[old]): where for old, where in self.targets.positions(case).items() if here[old] > 0}


class Chosen:
    """Some channels of an array ``(K, *S)``, picked where it is sliced."""

    def __init__(self, source: Any, channels: NDArray[np.int64]) -> None:
        self._source, self._channels = source, channels
        self.shape, self.dtype = (len(channels), *source.shape[1:]), source.dtype

    def __getitem__(self, index: Any) -> Array:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is Ellipsis:
            first, rest = slice(None), []
        picked: Array = np.asarray(self._source[(slice(None), *rest)])[self._channels][first]
        return picked


def measured_labels(share: Share, reference: Mapping[str, int], *, taught: bool) -> dict[str, int]:
    """Return the classes on which an arm of a stage is measured, name -> value of the run, background first.

    Args:
        share: the stage's classes.
        reference: labels of the data set, against which alone anything can be measured.
        taught: the arm has the stage's teachers; without them it knows what its labels know.
    """
    mine = set(share.labels) if taught else share.own
    return {name: value for name, value in reference.items() if value == 0 or name in mine}
