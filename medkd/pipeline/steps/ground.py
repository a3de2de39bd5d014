"""What every step stands on: the dataset, the plan, the fold's split, the prepared volumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.data.dataset import Dataset, load_dataset
from medkd.data.plan import Plan
from medkd.data.splits import Split, make_folds
from medkd.data.store import Store
from medkd.errors import UserError
from medkd.pipeline.context import Context
from medkd.teachers.labels import Ontology, renumber


def read_dataset(context: Context) -> Dataset:
    """Return the run's dataset."""
    return load_dataset(context.config.data.source, context.data_root)


@dataclass(frozen=True)
class Ground:
    """The prepared data of a run.

    Args:
        folder: artifact of the ``prepare`` node.
        context: the run.
    """

    folder: Path
    context: Context

    @classmethod
    def of(cls, inputs: Mapping[str, Path], context: Context) -> Ground:
        """Return the ground among a node's inputs."""
        return cls(inputs["prepare"], context)

    @cached_property
    def dataset(self) -> Dataset:
        """The cases and labels."""
        return read_dataset(self.context)

    @cached_property
    def plan(self) -> Plan:
        """Spacing, patch, intensities."""
        return Plan.from_json(json.loads((self.folder / "plan.json").read_text()))

    @cached_property
    def store(self) -> Store:
        """The prepared volumes."""
        return Store(self.folder)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Data hash and what else the preparation noted."""
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        return facts

    def split(self, fold: int | None) -> Split:
        """Return the split of one fold."""
        data = self.context.config.data
        return make_folds(self.dataset, folds=data.folds, seed=data.seed, validation=data.validation)[fold or 0]

    @cached_property
    def ontology(self) -> Ontology:
        """Which class of others is which of the run's."""
        return Ontology.of(self.dataset.labels, self.context.config.data.ontology)

    @property
    def here(self) -> NDArray[np.int64]:
        """The value that the network has for each class of the run; 0 for a class that it has not."""
        return renumber(self.ontology.labels, self.dataset.labels)

    @property
    def taught(self) -> tuple[str, ...]:
        """The classes that the label maps tell from background."""
        return tuple(name for name, value in self.dataset.labels.items() if value > 0)

    @property
    def known(self) -> tuple[bool, ...] | None:
        """Which classes the labels tell from background, ``(K,)``; None for all."""
        return None

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.dataset.labels)

    def patients(self, cases: tuple[str, ...]) -> tuple[str, ...]:
        """Return the patients of cases, sorted."""
        return tuple(sorted({self.dataset.case(case).patient for case in cases}))

    def check_classes(self, fold: int) -> None:
        """Refuse a fold in which a class is in none of the training cases: nothing can learn it.

        Raises:
            UserError: naming the class.
        """
        train = self.split(fold).train
        if lost := self._lacking(train):
            raise UserError(
                f"class {lost!r} is in none of the {len(train)} training cases of fold {fold}, so nothing can "
                "learn it; give another data.seed, or more cases that have it"
            )

    def check_kept(self, cases: tuple[str, ...], part: int) -> None:
        """Refuse to leave out an inner part without which a class is in none of the labelled cases kept.

        Raises:
            UserError: naming the class.
        """
        if lost := self._lacking(cases):
            raise UserError(
                f"class {lost!r} is in none of the {len(cases)} training cases that are left without part {part}, so "
                "that network cannot learn it; give more inner_folds, or another data.seed"
            )

    def _lacking(self, cases: tuple[str, ...]) -> str | None:
        """Return a class that none of the labelled cases has."""
        found = {value for case in cases for value in self.store.index[case]["voxels"]}
        return next((name for name in self.taught if str(self.dataset.labels[name]) not in found), None)
