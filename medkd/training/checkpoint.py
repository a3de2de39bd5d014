"""The state of a training on disk, complete enough to go on as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medkd.errors import UserError


def random_state() -> dict[str, Any]:
    """Return the state of every generator that a training may draw from, in plain types."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # MONAI and others draw from it
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to ``state``."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) so that the file is whole or absent.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_suffix(".part")
    try:
        torch.save(state, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"checkpoint {path} cannot be written ({error}); free disk space and run again") from error


def load(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save`; nothing in it is executed.

    Raises:
        UserError: damaged file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise UserError(
            f"checkpoint {path} is damaged ({type(error).__name__}); delete it to train this stage anew"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds no training state; delete it to train this stage anew")
    return state
