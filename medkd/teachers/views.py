"""Stored targets as arrays: decoded for the voxels that are sliced and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkd.teachers.encodings import Code, Encoding, decode

Array = NDArray[Any]
Guard = Callable[[], AbstractContextManager[None]]
"""Says of which case a damaged file is."""


class Decoded:
    """Probabilities ``(K, *S)``.

    Args:
        planes: the code, ``(P, *S)``, something that is sliced.
        card: ``classes`` and ``prior`` of the case; empty where the planes are the classes.
        encoding: of the code.
        guard: around every read.
    """

    def __init__(self, planes: Any, card: Mapping[str, Any], encoding: Encoding, guard: Guard) -> None:
        exact = encoding.name == "full16"
        self._planes, self._encoding, self._guard = planes, encoding, guard
        self._prior = None if card.get("prior") is None else np.array(card["prior"], np.float32)
        self.shape = (int(planes.shape[0] if exact else card["classes"]), *planes.shape[1:])
        self.dtype = np.dtype(np.float16 if exact else np.float32)

    def __getitem__(self, index: Any) -> Array:
        index = index if isinstance(index, tuple) else (index,)
        first, rest = (slice(None), index) if index[0] is Ellipsis else (index[0], index[1:])
        with self._guard():
            planes = np.asarray(self._planes[(slice(None), *rest)])
        whole: Array = decode(Code(planes, self._prior), self._encoding, self.shape[0])[first]
        return whole


class Trust:
    """Trust ``(1, *S)`` float32 in [0, 1].

    Args:
        steps: ``(1, *S)`` uint8, something that is sliced.
        guard: around every read.
    """

    def __init__(self, steps: Any, guard: Guard) -> None:
        self._steps, self._guard = steps, guard
        self.shape, self.dtype = tuple(steps.shape), np.dtype(np.float32)

    def __getitem__(self, index: Any) -> Array:
        with self._guard():
            return np.asarray(self._steps[index]) / np.float32(255)
