"""How a teacher's probabilities become few bytes and a distribution again; numpy alone.

Three encodings, from exact to small:

- ``full16``: float16 of every class.
- ``uint8``: a byte a class, the cube root of the probability in 255 steps. Of linear steps, roots, logarithms and
  logits the cube root loses least at temperatures 1 and 2 together (``benchmarks/targets.py`` prints the table):
  the smallest step is 6e-8 wide, and a probability near one half is known to 1.5 %.
- ``topk``: the ``k`` likeliest classes and how likely they are; what is left is spread as the case's mean remainder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.errors import UserError, nearest

Array = NDArray[Any]
NAMES = ("full16", "uint8", "topk")
KEPT = 4
"""Classes that ``topk`` keeps unless told: at a corner of three organs and the background none is lost."""
_LEAST = 1e-3
"""``topk`` gives a class below this no place of its own; where nothing competes a voxel is one byte repeated."""


@dataclass(frozen=True)
class Encoding:
    """An encoding and, for ``topk``, how many classes it keeps.

    Raises:
        UserError: no such encoding, or ``k`` below 1.
    """

    name: str = "full16"
    k: int = KEPT

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"encoding {self.name!r} is not one of {', '.join(NAMES)}{nearest(self.name, NAMES)}")
        if self.k < 1:
            raise UserError(f"targets keep k: {self.k} classes; give 1 or more")
        if self.name != "topk":  # equal where it makes no difference
            object.__setattr__(self, "k", KEPT)


@dataclass(frozen=True)
class Code:
    """An encoded volume.

    Args:
        planes: ``(P, *S)`` float16 or uint8.
        prior: ``(K,)`` float32 that sums to one, how ``topk`` spreads what it does not keep; else None.
    """

    planes: Array
    prior: Array | None = None


def _steps(power: int, levels: int, lowest: float) -> Array:
    """Return what each code means: ``(code / levels) ** power``, and something above zero for zero."""
    values = (np.arange(256) / levels) ** power
    values[0] = (lowest / levels) ** power
    return values.astype(np.float32)


# 0.3 of a step: what rounds to zero is not zero, and a target of zero where the teacher has mass costs an infinite KL
_BYTE_POWER, _BYTE_LEVELS = 3, 255
_BYTE = _steps(_BYTE_POWER, _BYTE_LEVELS, 0.3)
_KEPT_POWER, _KEPT_LEVELS = 3, 31  # at a border finer steps cost bytes and gain nothing beside what is not kept
_KEPT_MOST = 0.49  # whoever comes second has at most half, and stays second
_KEPT = np.float32(_KEPT_MOST) * _steps(_KEPT_POWER, _KEPT_LEVELS, 0.0)
_REST_POWER, _REST_LEVELS = 4, 12  # the remainder is noise of known size: its order of magnitude is what counts
_REST = _steps(_REST_POWER, _REST_LEVELS, 0.3)


def _codes(values: Array, power: int, levels: int) -> Array:
    # In float32 and in place: a volume of many classes is the largest thing in memory.
    work = np.maximum(values, 0, dtype=np.float32)
    np.power(work, np.float32(1 / power), out=work)
    np.multiply(work, np.float32(levels), out=work)
    np.add(work, np.float32(0.5), out=work)
    return np.minimum(work, np.float32(levels), out=work).astype(np.uint8)


def encode(probabilities: Array, encoding: Encoding) -> Code:
    """Return the code of ``(K, *S)`` probabilities.

    Raises:
        UserError: a probability is not finite.
    """
    if not np.isfinite(probabilities.sum(dtype=np.float64)):
        raise UserError("a teacher's probabilities are not finite; look at its weights and at this case")
    if encoding.name == "full16":
        return Code(probabilities.astype(np.float16))
    if encoding.name == "uint8":
        total = np.maximum(probabilities.sum(0), 1e-6)
        return Code(np.stack([_codes(one / total, _BYTE_POWER, _BYTE_LEVELS) for one in probabilities]))
    return _encode_topk(probabilities, min(encoding.k, len(probabilities)))


def _encode_topk(probabilities: Array, k: int) -> Code:
    r"""Write :math:`p \approx v + r \pi`: kept values ``v``, and the prior ``pi`` over all classes, scaled by ``r``.

    The form is linear, so that resampling what is decoded is the same as decoding what is resampled.
    Of ``v`` the first is what the others leave of one.
    """
    classes, shape = len(probabilities), probabilities.shape[1:]
    flat = probabilities.reshape(classes, -1)
    voxels = flat.shape[1]
    ids, values = np.zeros((k, voxels), np.uint16), np.zeros((k, voxels), np.float32)
    rest = np.zeros(classes)
    for start in range(0, voxels, 1 << 16):  # by slabs: sorting makes copies
        at = slice(start, min(start + (1 << 16), voxels))
        slab = np.ascontiguousarray(flat[:, at].T, dtype=np.float32)
        slab /= np.maximum(slab.sum(1, keepdims=True), 1e-6)
        best = np.argpartition(slab, classes - k, axis=1)[:, classes - k :]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(slab, best, 1), axis=1, kind="stable"), 1)
        kept = np.take_along_axis(slab, best, 1)
        kept[:, 1:][kept[:, 1:] < _LEAST] = 0
        ids[:, at], values[:, at] = best.T, kept.T
        rest += slab.sum(0, dtype=np.float64)
        rest -= np.bincount(best.ravel(), kept.ravel(), minlength=classes)
    rest = np.maximum(rest, 1e-7 * voxels)  # a class that never appears is unlikely, not impossible
    prior = (rest / rest.sum()).astype(np.float32)
    lent = np.where(values > 0, prior[ids], 0)  # what the prior gives to kept classes is taken from their values
    scale = np.maximum(1 - values.sum(0), 0) / np.maximum(1 - lent.sum(0), 1e-6)
    values -= lent * scale
    codes = _codes(values[1:] / _KEPT_MOST, _KEPT_POWER, _KEPT_LEVELS)
    ids[1:][codes == 0] = 0  # the name of a class that counts nothing would be noise
    high = [(ids >> 8).astype(np.uint8)] if classes > 256 else []
    last = _codes(scale, _REST_POWER, _REST_LEVELS)[None]
    planes = np.concatenate([(ids & 255).astype(np.uint8), *high, codes, last])
    return Code(planes.reshape(-1, *shape), prior)


def decode(code: Code, encoding: Encoding, classes: int) -> Array:
    """Return ``(K, *S)`` probabilities: float16 as written for ``full16``, else float32 that sums to one."""
    if encoding.name == "full16":
        exact: Array = code.planes
        return exact
    if encoding.name == "uint8":
        values: Array = _BYTE[code.planes]
        values /= values.sum(0)
        return values
    assert code.prior is not None
    planes, k = code.planes.reshape(len(code.planes), -1), min(encoding.k, classes)
    values, rest = _KEPT[planes[-k:-1]], _REST[planes[-1]]
    first = np.maximum(1 - rest - values.sum(0), 0)
    out: Array = np.multiply(code.prior[:, None], rest)
    flat, voxels = out.reshape(-1), np.arange(planes.shape[1])
    for rank in range(k):
        at = voxels if rank == 0 else np.flatnonzero(planes[-k + rank - 1])
        owner = planes[rank, at].astype(np.intp)
        if classes > 256:
            owner += planes[k + rank, at].astype(np.intp) << 8
        flat[owner * len(voxels) + at] += first if rank == 0 else values[rank - 1, at]
    total = rest + first + values.sum(0)
    if total.max(initial=0) > 1 + 1e-6:  # where nothing was left for the first
        out /= total
    return out.reshape(classes, *code.planes.shape[1:])


# Bytes per voxel as measured with benchmarks/targets.py, the larger of its data sets, and a quarter more.
_PER_VOXEL = {"full16": (1.0, 1.3), "uint8": (0.2, 0.45), "topk": (0.4, 0.0)}
_CHEAP = 2e9
"""Bytes that nobody minds: below this every target is exact."""
_ROOM = 0.5
"""Share of the free disk that targets may take."""


def estimate_bytes(shapes: Iterable[Sequence[int]], classes: int, encoding: Encoding) -> int:
    """Return the bytes that targets of volumes ``shapes`` (each ``(*S)``) will take on disk.

    Args:
        shapes: prepared volumes.
        classes: with the background.
        encoding: how they are stored.
    """
    base, per_class = _PER_VOXEL[encoding.name]
    return int(sum(prod(shape) for shape in shapes) * (base + per_class * classes))


def choose_encoding(shapes: Sequence[Sequence[int]], classes: int, free_bytes: float) -> Encoding:
    """Return the most exact encoding that is cheap or, where none is, that leaves half of the free disk.

    Raises:
        UserError: even the smallest does not fit.
    """
    sizes = {name: estimate_bytes(shapes, classes, Encoding(name)) for name in NAMES}
    room = _ROOM * free_bytes
    for name in NAMES:
        if sizes[name] <= min(_CHEAP, room):
            return Encoding(name)
    for name in NAMES[1:]:
        if sizes[name] <= room:
            return Encoding(name)
    raise UserError(
        f"targets of {len(shapes)} cases need about {sizes['topk'] / 1e9:.1f} GB as topk and {free_bytes / 1e9:.1f} GB "
        "are free, half of it for the rest of the run; free some space, give another --runs, or use fewer cases"
    )
