"""What every step stands on: the dataset, the plan, the fold's split, the prepared volumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medkd.data.dataset import Dataset, load_dataset
from medkd.data.plan import Plan
from medkd.data.splits import Split, make_folds
from medkd.data.store import Store
from medkd.errors import UserError
from medkd.pipeline.context import Context


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
        found = {value for case in train for value in self.store.index[case]["voxels"]}
        for name, value in self.dataset.labels.items():
            if value > 0 and str(value) not in found:
                raise UserError(
                    f"class {name!r} is in none of the {len(train)} training cases of fold {fold}, so nothing can "
                    "learn it; give another data.seed, or more cases that have it"
                )
