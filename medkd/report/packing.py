"""Dataclasses and arrays to what JSON can hold, and back."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def plain(value: Any) -> Any:
    """Return ``value`` as lists, dicts, numbers and strings; NaN and infinity become None (JSON has neither)."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        packed = base64.b64encode(zlib.compress(np.ascontiguousarray(value).tobytes(), 9)).decode()
        return {"shape": list(value.shape), "dtype": value.dtype.str, "zlib": packed}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unpack(value: Mapping[str, Any]) -> NDArray[Any]:
    """Return the array that :func:`plain` packed."""
    raw = zlib.decompress(base64.b64decode(value["zlib"]))
    return np.frombuffer(raw, dtype=np.dtype(value["dtype"])).reshape(value["shape"])
