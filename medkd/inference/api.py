"""Images in memory as volumes, and labels back as the same kind of image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from medkd.data.formats import itk_image, itk_stored
from medkd.data.volume import Volume, to_stored, to_volume
from medkd.errors import UserError
from medkd.networks.weights import ModelCard

_nib: Any = nibabel  # untyped in part
_KINDS = "a numpy array, a nibabel or SimpleITK image, or a list of them, one per channel"


@dataclass(frozen=True, eq=False)
class Given:
    """An image as a volume, and the way back.

    Args:
        volume: canonical.
        name: what it is, for sentences.
        like: turns a canonical label ``(X, Y, Z)`` into what was given.
    """

    volume: Volume
    name: str
    like: Callable[[NDArray[Any]], Any]


def open_image(image: Any, *, spacing_mm: Sequence[float] | None = None, affine: NDArray[Any] | None = None) -> Given:
    """Return an image of any known kind as a volume. See :meth:`medkd.inference.model.SegmentationModel.predict`.

    Raises:
        UserError: another kind of object, channels on different grids, or an image that is no volume.
    """
    if isinstance(image, (list, tuple)):
        return _channels(list(image), spacing_mm=spacing_mm, affine=affine)
    if isinstance(image, np.ndarray):
        return _array(image, spacing_mm, affine)
    if spacing_mm is not None or affine is not None:
        raise UserError("the image tells its own geometry; give spacing_mm or affine for numpy arrays only")
    if isinstance(image, nibabel.spatialimages.SpatialImage):
        return _nibabel(image)
    if type(image).__module__.partition(".")[0] == "SimpleITK" and hasattr(image, "GetDirection"):
        return _simpleitk(image)
    raise UserError(f"an image must be {_KINDS}, not {type(image).__name__}; files go through `medkd predict`")


def check_channels(volume: Volume, card: ModelCard, name: str) -> None:
    """Raise a UserError, with ``name`` before it, where a volume has not as many channels as a model reads."""
    count, wanted = len(volume.array), card.in_channels
    if count == wanted:
        return
    if wanted == 1:
        raise UserError(f"{name} is 4-D: {count} volumes (time points or channels), and the model reads one; choose it")
    channels = f"{wanted} channels ({', '.join(card.channels)})" if card.channels else f"{wanted} channels"
    raise UserError(f"{name} has {count} channels, and the model reads {channels}; give them all, in this order")


def _array(image: NDArray[Any], spacing_mm: Sequence[float] | None, affine: NDArray[Any] | None) -> Given:
    if (spacing_mm is None) == (affine is None):
        raise UserError("a numpy array does not tell its voxel size; give one of spacing_mm and affine")
    if image.ndim not in (3, 4):
        raise UserError(f"an array of shape {image.shape} is no volume; give (X, Y, Z) or (C, X, Y, Z)")
    if affine is None:
        sides = np.asarray(spacing_mm, dtype=np.float64)
        if sides.shape != (3,):
            raise UserError(f"spacing_mm must be three numbers, along X, Y and Z, not {spacing_mm}")
        affine = np.diag([*sides, 1.0])
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise UserError(f"affine must be 4 x 4, not of shape {matrix.shape}")
    volume = to_volume(image if image.ndim == 4 else image[None], matrix, "the array")
    return Given(volume, "the array", lambda label: to_stored(label, volume.geometry).astype(np.int16))


def _nibabel(image: Any) -> Given:
    stored = np.asanyarray(image.dataobj)
    if stored.ndim == 5 and stored.shape[3] == 1:
        stored = stored[:, :, :, 0]
    if stored.ndim not in (3, 4):
        raise UserError(f"an image of shape {stored.shape} is no volume; give three axes, or channels as the fourth")
    if image.affine is None:
        raise UserError("the image has an unknown orientation: its affine is None")
    stored = np.moveaxis(stored, -1, 0) if stored.ndim == 4 else stored[None]
    volume = to_volume(stored, np.asarray(image.affine, dtype=np.float64), "the image")

    def like(label: NDArray[Any]) -> Any:
        made = _nib.Nifti1Image(_small(to_stored(label, volume.geometry)), image.affine)
        made.header.set_xyzt_units("mm")
        return made

    return Given(volume, "the image", like)


def _simpleitk(image: Any) -> Given:
    stored, affine = itk_stored(image, "the image")
    volume = to_volume(stored, affine, "the image")

    def like(label: NDArray[Any]) -> Any:
        made = itk_image(_small(to_stored(label, volume.geometry)), affine)
        if image.GetDimension() == 3:
            made.CopyInformation(image)  # to the last digit
        return made

    return Given(volume, "the image", like)


def _channels(images: list[Any], **geometry: Any) -> Given:
    if not images or len({type(image) for image in images}) > 1:
        raise UserError(f"a list must hold images of one kind, one per channel; an image is {_KINDS}")
    given = [open_image(image, **geometry) for image in images]
    first = given[0]
    for number, other in enumerate(given):
        same = other.volume.shape == first.volume.shape and np.allclose(
            other.volume.affine, first.volume.affine, atol=0.1 * min(first.volume.spacing_mm)
        )
        if not same:
            raise UserError(f"channel {number} is not on the grid of channel 0; bring them to one grid first")
    joined = np.concatenate([one.volume.array for one in given])
    volume = Volume(joined, first.volume.affine, first.volume.geometry)
    return Given(volume, first.name, first.like)


def _small(label: NDArray[Any]) -> NDArray[Any]:
    return label.astype(np.uint8 if int(label.max(initial=0)) < 256 else np.int16)
