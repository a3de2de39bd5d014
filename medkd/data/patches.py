"""Training patches: which case, where, augmented; every step's batch follows from the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from medkd.data.store import Store, read_patch
from medkd.data.transforms import OUTSIDE, Augment, Patch
from medkd.errors import UserError
from medkd.types import IGNORE, Batch

Array = NDArray[Any]


class Targets(Protocol):
    """Stored teacher probabilities by case."""

    def read(self, case: str) -> Any:
        """Return ``(K, *S)``, sliceable."""
        ...

    def trust(self, case: str) -> Any:
        """Return ``(1, *S)`` in [0, 1], sliceable, or None for one everywhere."""
        ...

    def known(self, case: str) -> Sequence[bool] | None:
        """Return which classes the teachers tell from background, ``(K,)``, or None for all."""
        ...

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions by class that the teacher sees."""
        ...


class _OneHot:
    """The classes of a volume as ``(K, *S)`` float16, made for the voxels that are sliced and no others."""

    def __init__(self, source: Any, classes: int, *, soft: bool) -> None:
        self.source, self.classes, self.soft = source, classes, soft
        self.shape = (classes, *source.shape[1:])
        self.dtype = np.dtype(np.float16)

    def __getitem__(self, index: Any) -> Array:
        values = np.asarray(self.source[index])
        owner = values.argmax(0) if self.soft else values[0]
        hot: Array = owner[None] == np.arange(self.classes).reshape(-1, *[1] * owner.ndim)
        return hot.astype(np.float16)


class LabelTargets:
    """Labels in the place of a teacher: the ``same_loss`` control arm."""

    def __init__(self, store: Store, classes: int, known: Sequence[bool] | None = None) -> None:
        self.store, self.classes, self._known = store, classes, known

    def read(self, case: str) -> Any:
        """Return the one-hot label ``(K, *S)``."""
        return _OneHot(self.store.label(case), self.classes, soft=False)

    def trust(self, case: str) -> Any:
        """Return None: a label is trusted everywhere."""
        return None

    def known(self, case: str) -> Sequence[bool] | None:
        """Return which classes a label tells, or None for all."""
        return self._known

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions by class of the label."""
        return self.store.positions(case)


class HardTargets:
    """A teacher's most likely class instead of its probabilities: the ``pseudo`` control arm."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    def read(self, case: str) -> Any:
        """Return the one-hot decision ``(K, *S)``."""
        soft = self.targets.read(case)
        return _OneHot(soft, soft.shape[0], soft=True)

    def trust(self, case: str) -> Any:
        """Return the trust in the probabilities that the decision is made of."""
        return self.targets.trust(case)

    def known(self, case: str) -> Sequence[bool] | None:
        """Return which classes the decision tells from background."""
        return self.targets.known(case)

    def positions(self, case: str) -> dict[int, Array]:
        """Return voxel positions by class of the decision."""
        return self.targets.positions(case)


@dataclass(frozen=True)
class Sampling:
    """What one training draws.

    Args:
        labelled: cases whose label is used.
        unlabelled: cases that only a teacher speaks about.
        patch: patch size in voxels.
        batch: patches a step.
        spacing_mm: voxel size of the prepared volumes.
        foreground: share of patches centred on a foreground voxel of an evenly drawn class.
        labelled_share: share of the patches from labelled cases when there are both kinds; None for half of them,
            or more where more than half of the cases have labels.
        pseudo: take the target's decision as label in unlabelled cases.
        live_teacher: a network at the table (a teacher, a peer, the student's own average) speaks about unlabelled
            cases, so they need no stored targets.
        seed: of all draws.
        live_known: ``(K,)``, the classes that live teachers tell from background; None for all.
        known: ``(K,)``, the classes that the labels tell from background; None for all.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    patch: tuple[int, ...]
    batch: int
    spacing_mm: tuple[float, ...]
    foreground: float = 0.5
    labelled_share: float | None = None
    pseudo: bool = False
    live_teacher: bool = False
    seed: int = 0
    live_known: tuple[bool, ...] | None = None
    known: tuple[bool, ...] | None = None


class Patches(Dataset[Batch]):
    """Step -> batch. Item ``i`` depends on the seed and ``i`` only, so a resumed training sees what it would have seen.

    Raises:
        UserError: no case to draw from.
    """

    def __init__(self, store: Store, sampling: Sampling, augment: Augment, targets: Targets | None = None) -> None:
        if not sampling.labelled and not sampling.unlabelled:
            raise UserError("no training case is left; give more labelled or unlabelled cases")
        if sampling.unlabelled and targets is None and not sampling.live_teacher:
            raise UserError(
                "unlabelled cases need a teacher's targets; give the stage a teacher or set `unlabelled: false`"
            )
        self.store, self.sampling, self.augment, self.targets = store, sampling, augment, targets

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.sampling.seed, step])
        labelled = self._labelled_of_batch(rng)
        drawn = [self._draw(rng, i < labelled) for i in range(self.sampling.batch)]
        patches = [patch for _, patch in drawn]
        targets = [p.target for p in patches if p.target is not None]
        return Batch(
            image=torch.stack([p.image for p in patches]),
            label=torch.stack([p.label for p in patches]),
            case=tuple(case for case, _ in drawn),
            spacing_mm=self.sampling.spacing_mm,
            target=torch.stack(targets) if targets else None,
            trust=torch.stack([p.trust for p in patches]),
            known=self._rows([self._labels_know(case, i < labelled) for i, (case, _) in enumerate(drawn)], patches),
            target_known=self._rows([self._teachers_know(case) for case, _ in drawn], patches),
        )

    def _teachers_know(self, case: str) -> Sequence[bool] | None:
        return self.sampling.live_known if self.targets is None else self.targets.known(case)

    def _labels_know(self, case: str, from_labelled: bool) -> Sequence[bool] | None:
        if from_labelled:
            return self.sampling.known
        return self._teachers_know(case) if self.sampling.pseudo else None

    def _rows(self, known: Sequence[Sequence[bool] | None], patches: Sequence[Patch]) -> torch.Tensor | None:
        """Return what is known of each sample's classes, ``(B, K)``, or None for all of all."""
        classes = next((len(one) for one in known if one is not None), None)
        if classes is None:
            return None
        rows = torch.tensor([[True] * classes if one is None else list(one) for one in known])
        for row, patch in zip(rows, patches, strict=True):
            if patch.swapped:  # what was called left is called right now, and so is what is known of it
                for a, b in self.augment.mirror_swap:
                    row[[a, b]] = row[[b, a]]
        return rows

    def _labelled_of_batch(self, rng: np.random.Generator) -> int:
        """How many patches have labels: every batch the same share, so that few steps go without a task loss."""
        s = self.sampling
        if not s.unlabelled or not s.labelled:
            return s.batch if s.labelled else 0
        share = s.labelled_share
        if share is None:
            share = max(0.5, len(s.labelled) / (len(s.labelled) + len(s.unlabelled)))
        return int(share * s.batch + rng.random())

    def _draw(self, rng: np.random.Generator, from_labelled: bool) -> tuple[str, Patch]:
        s = self.sampling
        pool = s.labelled if from_labelled else s.unlabelled
        case = pool[int(rng.integers(len(pool)))]
        affine = self.augment.wants_margin(rng)
        size = self.augment.margin if affine else s.patch
        image = self.store.image(case)
        start = self._start(case, from_labelled, image.shape[1:], size, rng)
        target, trust = self._target(case, start, size)
        if from_labelled:
            label = read_patch(self.store.label(case), start, size, OUTSIDE)[0].astype(np.int64)
        else:
            nothing = np.broadcast_to(np.int64(IGNORE), (1, *image.shape[1:]))
            label = read_patch(nothing, start, size, OUTSIDE)[0]
            if s.pseudo and target is not None:
                label = np.where(target.sum(0) > 0, target.argmax(0), label)
        shown = read_patch(image, start, size, 0.0)
        return case, self.augment(shown, label, target, rng, affine=affine, trust=trust)

    def _target(self, case: str, start: Sequence[int], size: Sequence[int]) -> tuple[Array | None, Array | None]:
        """Read what the teacher says there and how far it is trusted."""
        if self.targets is None:
            return None, None
        trust = self.targets.trust(case)
        return (
            read_patch(self.targets.read(case), start, size, 0),
            None if trust is None else read_patch(trust, start, size, 0),
        )

    def _start(
        self, case: str, labelled: bool, shape: Sequence[int], size: Sequence[int], rng: np.random.Generator
    ) -> list[int]:
        """Draw the first voxel to read: around a foreground voxel, or anywhere in the volume."""
        centre = None
        if rng.random() < self.sampling.foreground:
            if labelled:
                positions = self.store.positions(case)
                if self.sampling.known is not None and self.targets is not None:  # what only the teacher can show
                    seen = self.targets.positions(case).items()
                    positions = {**positions, **{k: where for k, where in seen if not self.sampling.known[k]}}
            else:
                positions = {} if self.targets is None else self.targets.positions(case)
            if positions:
                of_class = positions[list(positions)[int(rng.integers(len(positions)))]]
                centre = of_class[int(rng.integers(len(of_class)))]
        start = []
        for axis, (length, want, keep) in enumerate(zip(shape, size, self.sampling.patch, strict=True)):
            if length > want:
                shown, room, offset = want, length - want, 0
            else:  # no room for a margin: the part of the patch that is kept shows as much of the volume as fits
                shown, room, offset = keep, length - keep, (want - keep) // 2
            if room <= 0:
                first = int(rng.integers(room, 1))
            elif centre is None:
                first = int(rng.integers(0, room + 1))
            else:
                jitter = int(rng.integers(-shown // 4, shown // 4 + 1))
                first = int(np.clip(int(centre[axis]) - shown // 2 + jitter, 0, room))
            start.append(first - offset)
        return start


def _single(items: list[Batch]) -> Batch:
    return items[0]


def stream(patches: Patches, start: int, stop: int, *, workers: int = 0, pin: bool = False) -> Iterator[Batch]:
    """Yield the batches of steps ``start`` to ``stop`` in order, whatever the number of workers."""
    loader: DataLoader[Batch] = DataLoader(
        patches,
        batch_size=1,
        sampler=range(start, stop),
        num_workers=workers,
        collate_fn=_single,
        pin_memory=pin and workers > 0,
        generator=torch.Generator(),  # a draw from the global one would make a resumed training differ
    )
    return iter(loader)
