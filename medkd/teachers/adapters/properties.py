"""What nnU-Net writes beside its probabilities: where they lie in the world. A pickle, read without running it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medkd.errors import UserError
from medkd.teachers.grids import Affine
from medkd.teachers.sources import TRUST

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HARMLESS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""All that numbers and arrays need; a pickle that asks for more might run anything."""


class _Numbers(pickle.Unpickler):
    """Reads plain data and arrays, and looks nothing else up."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def stored_affine(array: Path, *, trust_pickle: bool = False) -> Affine | None:
    """Return voxel ``(x, y, z)`` to RAS mm from the properties beside ``<case>.npz``.

    Args:
        array: the ``.npz`` file; ``<case>.json`` or ``<case>.pkl`` beside it is read.
        trust_pickle: read a pickle that holds more than plain data.

    Returns:
        ``(4, 4)``, or None where there are no properties or they say nothing of the place.

    Raises:
        UserError: they are damaged, or a pickle that may run code.
    """
    if (path := array.with_suffix(".json")).is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}); save the properties again") from error
    elif (path := array.with_suffix(".pkl")).is_file():
        found = _unpickle(path, trust_pickle)
    else:
        return None
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds no properties of an image; save the probabilities again")
    try:
        return _affine(found)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} says nothing usable of where the image lies ({error}); save it again") from error


def _affine(found: Mapping[str, Any]) -> Affine | None:
    for values in (found, found.get("nibabel_stuff", {})):
        for key in ("reoriented_affine", "original_affine", "affine"):
            if key in values:
                affine = np.asarray(values[key], float)
                if affine.shape != (4, 4):
                    raise ValueError(f"{key} has the shape {affine.shape}")
                return affine
    itk = found.get("sitk_stuff")
    if not itk:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array(itk["direction"], float).reshape(3, 3) * np.array(itk["spacing"], float)
    affine[:3, 3] = itk["origin"]
    return np.asarray(_LPS_TO_RAS @ affine, float)


def _unpickle(path: Path, trust: bool) -> Any:
    reader = pickle.Unpickler if trust else _Numbers
    with path.open("rb") as stream:
        try:
            return reader(stream).load()
        except pickle.UnpicklingError as error:
            if "." in str(error) and " " not in str(error):
                raise UserError(
                    f"{path} is a pickle that asks for {error}, which may run code; if you know where it comes from, "
                    f"set `{TRUST}`"
                ) from error
            raise UserError(f"{path} is damaged or cut short; predict the case again") from error
        except (EOFError, ValueError, TypeError, AttributeError, ImportError, IndexError, KeyError) as error:
            raise UserError(f"{path} is damaged or cut short; predict the case again") from error
