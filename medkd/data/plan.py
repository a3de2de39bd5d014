"""From the facts about a dataset to voxel size, patch, batch, intensities and network shape.

The rules are those that nnU-Net published (Isensee et al., *nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation*, Nature Methods 2021, supplementary note 2 and table SN2.1), with
one addition: without a GPU the patch stays small enough that a step takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from medkd.data.dataset import Dataset, is_ct
from medkd.data.plan_values import Floats, IntensityRule, Ints, floats, ints, parse, plain, text
from medkd.data.sides import left_right
from medkd.data.strides import THICK, network_shape, round_up, thick_axis, total_stride
from medkd.errors import UserError, nearest

__all__ = ["IntensityRule", "Plan", "make_plan"]

if TYPE_CHECKING:
    from medkd.data.fingerprint import Fingerprint

BYTES_PER_VOXEL = 1900
"""Training memory per patch voxel: nnU-Net's default network takes 8 GB for two patches of 128^3."""
CPU_STEP_VOXELS = 2 * 64**3
GPU_GB_USED = 24.0
LARGEST_PATCH = 256**3


@dataclass(frozen=True)
class Plan:
    """Everything that preparation, training and inference must agree on.

    Args:
        spacing_mm: voxel size of prepared images along the canonical axes.
        patch: training patch in voxels, divisible by the total stride.
        batch: patches per step.
        intensity: one rule per channel.
        strides: per resolution of the network; the first is ``(1, 1, 1)``.
        kernels: convolution kernel per resolution.
        mirror_axes: spatial axes along which training may mirror; 0 is left-right.
        mirror_swap: label values that trade places when axis 0 is mirrored, as (left, right).
        notes: one sentence per decision.
    """

    spacing_mm: Floats
    patch: Ints
    batch: int
    intensity: tuple[IntensityRule, ...]
    strides: tuple[Ints, ...]
    kernels: tuple[Ints, ...]
    mirror_axes: tuple[int, ...] = (0,)
    mirror_swap: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def divisor(self) -> Ints:
        """Total stride along each axis: the patch is a multiple of it."""
        return total_stride(self.strides)

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and strings."""
        return {key: plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that :meth:`to_json` wrote; UserError when keys are unknown or missing."""
        _known_keys(data)
        missing = [key for key in _keys() if key not in data]
        if missing:
            raise UserError(f"the plan lacks {', '.join(missing)}: it was not written by this version; make it again")
        values = {key: parse(key, data[key], None) for key in _keys()}
        return cls(**values, notes=tuple(str(note) for note in data.get("notes", ())))


def make_plan(
    fingerprint: Fingerprint,
    dataset: Dataset,
    overrides: Mapping[str, object] | None = None,
    memory_gb: float | None = None,
) -> Plan:
    """Decide how ``dataset`` is resampled, cut, normalised and mirrored.

    Args:
        fingerprint: measured facts: shapes, spacings in mm, foreground intensities.
        dataset: gives channel and label names.
        overrides: values by :class:`Plan` field name that replace the automatic ones; what depends on them follows.
        memory_gb: memory for a training step; by default that of the GPU (at most 24 GB), or 8 GB without one, where
            the patch is also kept small enough for a CPU.

    Raises:
        UserError: an override is unknown or malformed, or its patch is not divisible by the total stride.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None and value != "auto"}
    _known_keys(given)
    channels = len(dataset.channels)
    fixed = {key: parse(key, value, channels) for key, value in given.items() if key != "notes"}
    readable = [case for case in fingerprint.cases.values() if case.readable]
    facts = [case for case in readable if case.labelled] or readable
    if not facts:
        raise UserError(
            "no case of the dataset could be read, so nothing can be planned: see the problems of the fingerprint"
        )
    shapes = np.array([case.shape for case in facts], float)
    spacings = np.array([case.spacing_mm for case in facts], float)
    notes: list[str] = []

    spacing = fixed.get("spacing_mm") or _spacing(spacings, shapes, notes)
    sizes = shapes * spacings / np.array(spacing)
    median = np.median(sizes, axis=0)
    budget, patch_cap = _budget(memory_gb, notes)
    strides: tuple[Ints, ...] | None = fixed.get("strides")
    patch: Ints = fixed.get("patch") or _patch(spacing, median, min(budget // 2, patch_cap), strides, notes)
    auto_strides, auto_kernels = network_shape(patch, spacing)
    strides = strides or auto_strides
    kernels: tuple[Ints, ...] = fixed.get("kernels") or _fit(auto_kernels, len(strides))
    if "patch" in fixed:
        _check_patch(patch, strides, median, notes)
    if len(kernels) != len(strides):
        raise UserError(
            f"the plan has {len(kernels)} kernels but {len(strides)} strides: give one of each per resolution"
        )
    batch = fixed.get("batch") or _batch(patch, budget, float(sizes.prod(1).sum()), notes)
    intensity = fixed.get("intensity") or _intensity(fingerprint, dataset, notes)
    axes, swap = _mirror(dataset.labels, fixed, notes)
    notes.extend(f"{key} was given, not chosen." for key in fixed)
    return Plan(spacing, patch, batch, intensity, strides, kernels, axes, swap, tuple(notes))


def _spacing(spacings: Any, shapes: Any, notes: list[str]) -> Floats:
    target = np.median(spacings, axis=0)
    axis = thick_axis(target.tolist())
    size = np.median(shapes, axis=0)
    others = [index for index in range(3) if index != axis]
    if axis is not None and size[axis] * THICK < size[others].min():
        target[axis] = max(np.percentile(spacings[:, axis], 10), target[others].max() + 1e-5)
        why = f"the median, but the 10th percentile along axis {axis} whose slices are thick"
    else:
        why = "the median of the cases"
    result = floats(np.round(target, 5))
    notes.append(f"Voxel size {text(result)} mm: {why}.")
    return result


def _budget(memory_gb: float | None, notes: list[str]) -> tuple[int, int]:
    """Return how many voxels fit in one step, and the most in one patch."""
    cap = LARGEST_PATCH
    if memory_gb is None:
        import torch  # here, so that reading a plan needs no torch

        if torch.cuda.is_available():
            memory_gb = min(torch.cuda.get_device_properties(0).total_memory / 1e9, GPU_GB_USED)
            notes.append(
                f"A training step may use {memory_gb:.0f} GB: the memory of the GPU, at most {GPU_GB_USED:.0f} GB."
            )
        else:
            memory_gb, cap = 8.0, CPU_STEP_VOXELS // 2
            notes.append(
                f"No GPU was found: a patch has at most {cap} voxels and a step {CPU_STEP_VOXELS}, so that "
                "a step of a small network takes seconds on a CPU."
            )
    else:
        notes.append(f"A training step may use {memory_gb:g} GB, as given.")
    if memory_gb <= 0:
        raise UserError(f"memory_gb is {memory_gb}: give the gigabytes that a training step may use")
    voxels = int(memory_gb * 1e9 / BYTES_PER_VOXEL)
    return (min(voxels, CPU_STEP_VOXELS) if cap < LARGEST_PATCH else voxels), cap


def _patch(spacing: Floats, median: Any, most: int, strides: tuple[Ints, ...] | None, notes: list[str]) -> Ints:
    ideal = (LARGEST_PATCH * np.prod(spacing)) ** (1 / 3) / np.array(spacing)
    raw = ints(np.maximum(np.minimum(np.round(ideal), np.ceil(median)), 1))

    def fit(wanted: Ints) -> tuple[Ints, Ints]:
        divisor = total_stride(strides or network_shape(wanted, spacing)[0])
        return round_up(wanted, divisor), divisor

    patch, divisor = fit(raw)
    smaller = False
    while np.prod(patch) > most:
        # Cut the axis that is covered best, one stride at a time; the divisor may shrink with it.
        ratio = np.array(patch) / np.maximum(median, 1)
        ratio[[patch[axis] <= divisor[axis] for axis in range(3)]] = -1
        axis = int(np.argmax(ratio))
        if ratio[axis] < 0:
            break
        cut = list(patch)
        cut[axis] -= divisor[axis]
        patch, divisor = fit(ints(cut))
        smaller = True
    whole = (
        "smaller than the median volume, to fit the budget"
        if smaller or np.any(np.array(raw) < np.floor(median))
        else ("the median volume, rounded up to the total stride")
    )
    notes.append(
        f"Patch {text(patch)} voxels: {whole} (median {text(np.round(median))}, total stride {text(divisor)})."
    )
    return patch


def _check_patch(patch: Ints, strides: tuple[Ints, ...], median: Any, notes: list[str]) -> None:
    divisor = total_stride(strides)
    if any(size % step for size, step in zip(patch, divisor, strict=True)):
        valid = ints([max(step, round(size / step) * step) for size, step in zip(patch, divisor, strict=True)])
        raise UserError(
            f"plan.patch {list(patch)} is not divisible by the total stride {list(divisor)}: use {list(valid)}"
        )
    if np.any(np.array(patch) > np.array(round_up(ints(np.ceil(median)), divisor))):
        notes.append(
            f"Patch {text(patch)} is larger than the median volume {text(np.round(median))}: "
            "the difference is padding, which costs time and teaches nothing."
        )


def _batch(patch: Ints, budget: int, dataset_voxels: float, notes: list[str]) -> int:
    voxels = int(np.prod(patch))
    memory, share = budget // voxels, round(0.05 * dataset_voxels / voxels)
    batch = max(2, min(memory, share))
    why = "the least that is used" if batch == 2 else "5 % of all voxels" if share < memory else "what the budget holds"
    notes.append(f"Batch {batch}: {why}.")
    return batch


def _intensity(fingerprint: Fingerprint, dataset: Dataset, notes: list[str]) -> tuple[IntensityRule, ...]:
    rules: list[IntensityRule] = []
    for index, name in enumerate(dataset.channels):
        stats = fingerprint.intensity[index] if is_ct(name) and index < len(fingerprint.intensity) else None
        if stats is None or not np.isfinite([stats.mean, stats.std, stats.p00_5, stats.p99_5]).all():
            rules.append(IntensityRule("zscore"))
            notes.append(
                f"Channel {name}: each volume is scaled to mean 0 and deviation 1"
                + (", since no labelled foreground gives bounds in HU." if is_ct(name) else ".")
            )
        else:
            rules.append(IntensityRule("ct", stats.p00_5, stats.p99_5, stats.mean, stats.std))
            notes.append(
                f"Channel {name}: clipped to {stats.p00_5:.0f}..{stats.p99_5:.0f} HU (0.5th and 99.5th percentile "
                f"of the foreground), then scaled by its mean {stats.mean:.0f} and deviation {stats.std:.0f}."
            )
    return tuple(rules)


def _mirror(
    labels: Mapping[str, int], fixed: Mapping[str, Any], notes: list[str]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    pairs, alone = left_right(labels)
    swap: tuple[tuple[int, int], ...] = fixed.get("mirror_swap", pairs)
    if "mirror_axes" in fixed:
        axes: tuple[int, ...] = fixed["mirror_axes"]
        if 0 in axes and alone and "mirror_swap" not in fixed:
            notes.append(f"Mirroring left-right gives {', '.join(alone)} the wrong side: no label is its partner.")
    elif alone and "mirror_swap" not in fixed:
        axes = ()
        notes.append(f"No mirroring: {', '.join(alone)} has a side but no partner to trade places with.")
    else:
        axes = (0,)
        notes.append(
            "Training mirrors left-right" + (f"; {len(swap)} left/right pairs of labels trade places." if swap else ".")
        )
    return axes, swap


def _fit(kernels: tuple[Ints, ...], count: int) -> tuple[Ints, ...]:
    return (kernels + (kernels[-1],) * count)[:count]


def _keys() -> list[str]:
    return [field.name for field in fields(Plan) if field.name != "notes"]


def _known_keys(data: Mapping[str, Any]) -> None:
    for key in data:
        if key not in _keys() and key != "notes":
            raise UserError(f"plan has no key {key!r}{nearest(str(key), _keys())}: use {', '.join(_keys())}")
