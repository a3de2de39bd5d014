"""The facts about a dataset: plain data, written as JSON and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from medkd.errors import UserError


@dataclass(frozen=True)
class Problem:
    """Something wrong with a case, or with the whole dataset when ``case`` is None.

    Args:
        severity: ``"broken"`` stops a run; ``"suspicious"`` is for a person to look at.
        text: one sentence.
        case: id of the case.
    """

    severity: Literal["broken", "suspicious"]
    text: str
    case: str | None = None


@dataclass(frozen=True)
class Intensity:
    """Intensities of one channel: in HU for CT, without unit for MR."""

    mean: float
    std: float
    median: float
    p00_5: float
    p99_5: float
    min: float
    max: float


@dataclass(frozen=True)
class CaseFacts:
    """What one case holds; of an unreadable case only its problems are known.

    Args:
        id: case id.
        labelled: whether it has a label file.
        readable: whether its image could be read.
        shape: voxels along canonical X, Y, Z.
        spacing_mm: voxel size along X, Y, Z.
        intensity: per channel, over the labelled structures; over all voxels where nothing is labelled.
        voxels: class name -> voxels; empty when unlabelled or when the label could not be read.
        ml: class name -> millilitres.
        problems: what is wrong with it.
        image_hash: of the voxels, so that a copy under another name or compression is known again.
    """

    id: str
    labelled: bool
    readable: bool = False
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    intensity: tuple[Intensity, ...] = ()
    voxels: Mapping[str, int] = field(default_factory=dict)
    ml: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    image_hash: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset is made of.

    Args:
        name: of the dataset.
        labels: name -> value.
        channels: channel names.
        cases: id -> facts, in the order of the dataset.
        median_shape: voxels along X, Y, Z over the labelled cases.
        median_spacing_mm: voxel size along X, Y, Z over the labelled cases.
        intensity: per channel, over voxels drawn from the labelled structures of all cases; empty when there are none.
        dataset_problems: problems that no single case shows.
        data_hash: see :func:`medkd.data.fingerprint.data_hash`.
    """

    name: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    cases: dict[str, CaseFacts]
    median_shape: tuple[int, int, int]
    median_spacing_mm: tuple[float, float, float]
    intensity: tuple[Intensity, ...]
    dataset_problems: tuple[Problem, ...]
    data_hash: str

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems, the broken ones first."""
        every = [problem for facts in self.cases.values() for problem in facts.problems] + list(self.dataset_problems)
        return tuple(sorted(every, key=lambda problem: problem.severity != "broken"))

    @property
    def broken(self) -> bool:
        """Whether something must be repaired before training."""
        return any(problem.severity == "broken" for problem in self.problems)

    def raise_if_broken(self) -> None:
        """Raise a UserError with the first broken problem, and how many more there are."""
        broken = [problem.text for problem in self.problems if problem.severity == "broken"]
        if broken:
            more = f" (and {len(broken) - 1} more; `medkd data inspect` lists them)" if len(broken) > 1 else ""
            raise UserError(f"dataset {self.name}: {broken[0]}{more}")

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint that :meth:`to_json` told."""
        return cls(
            **{
                **data,
                "cases": {case: _case(facts) for case, facts in data["cases"].items()},
                "intensity": tuple(Intensity(**channel) for channel in data["intensity"]),
                "dataset_problems": tuple(Problem(**problem) for problem in data["dataset_problems"]),
                **{key: tuple(data[key]) for key in ("channels", "median_shape", "median_spacing_mm")},
            }
        )

    def summary(self) -> dict[str, Any]:
        """Return what ``medkd data inspect --json`` tells: plain dicts, lists, strings and numbers."""
        readable = [facts for facts in self.cases.values() if facts.readable]
        return {
            "name": self.name,
            "cases": len(self.cases),
            "labelled": sum(facts.labelled for facts in self.cases.values()),
            "unlabelled": sum(not facts.labelled for facts in self.cases.values()),
            "unreadable": len(self.cases) - len(readable),
            "channels": list(self.channels),
            "labels": dict(self.labels),
            "shape": _spread([facts.shape for facts in readable]),
            "spacing_mm": _spread([facts.spacing_mm for facts in readable]),
            "intensity": {name: asdict(i) for name, i in zip(self.channels, self.intensity, strict=False)},
            "classes": {name: self._class(name) for name, value in self.labels.items() if value},
            "problems": [asdict(problem) for problem in self.problems],
            "broken": self.broken,
            "data_hash": self.data_hash,
        }

    def _class(self, name: str) -> dict[str, Any]:
        ml = [facts.ml[name] for facts in self.cases.values() if facts.voxels.get(name)]
        voxels = [facts.voxels[name] for facts in self.cases.values() if facts.voxels.get(name)]
        if not ml:
            return {"cases": 0}
        return {
            "cases": len(ml),
            "median_ml": float(np.median(ml)),
            "min_ml": min(ml),
            "max_ml": max(ml),
            "median_voxels": float(np.median(voxels)),
        }


def _case(data: Mapping[str, Any]) -> CaseFacts:
    return CaseFacts(
        **{
            **data,
            "intensity": tuple(Intensity(**channel) for channel in data["intensity"]),
            "problems": tuple(Problem(**problem) for problem in data["problems"]),
            **{key: tuple(data[key]) for key in ("shape", "spacing_mm")},
        }
    )


def _spread(triples: list[Any]) -> dict[str, list[float]] | None:
    """Median, least and most along each axis, or None when there is nothing to measure."""
    if not triples:
        return None
    table = np.array(triples, dtype=float)
    return {
        "median": np.median(table, axis=0).tolist(),
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
    }
