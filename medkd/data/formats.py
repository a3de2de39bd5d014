"""Volume files as they are stored: voxels, affine, and one clear sentence for whatever is wrong with them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medkd.data.dicom import is_dicom, read_series
from medkd.errors import UserError

_nib: Any = nibabel  # untyped in part; what it returns is checked here, where it enters medkd

NIFTI = (".nii.gz", ".nii")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
READABLE = NIFTI + ITK
"""Suffixes that :func:`read_volume` understands."""
WRITABLE = (*NIFTI, ".nrrd", ".mha")
"""Suffixes that :func:`write_label` understands: one file each, so that it can be replaced in one step."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
"""What the file readers raise for damaged bytes, from a wrong checksum to a header that asks for terabytes."""


def suffix(path: Path) -> str:
    """Return the volume suffix of ``path``, such as ``".nii.gz"``, or ``""`` when it names no volume format."""
    return next((ending for ending in READABLE if path.name.lower().endswith(ending)), "")


def stem(path: Path) -> str:
    """Return the file name of ``path`` without its volume suffix."""
    return path.name[: len(path.name) - len(suffix(path))]


def read_stored(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read the voxels of a file, or of the DICOM series in a folder, as they are stored.

    Returns:
        ``(C, *stored axes)`` of any real dtype, and the ``(4, 4)`` affine from stored index to RAS mm.

    Raises:
        UserError: the file is missing, damaged, not a volume, or without usable geometry.
    """
    if not suffix(path) and is_dicom(path):
        return read_series(path)
    if not path.is_file():
        raise UserError(f"file {path} does not exist" if not path.exists() else f"{path} is a folder, not a volume")
    if not (ending := suffix(path)):
        raise UserError(f"file {path} is no known volume format; medkd reads {', '.join(READABLE)}")
    try:
        array, affine = (_read_nifti if ending in NIFTI else _read_itk)(path)
    except PermissionError as error:
        raise UserError(f"file {path} may not be read: permission denied") from error
    except UserError:
        raise
    except _UNREADABLE as error:
        reason = "it is empty" if path.stat().st_size == 0 else "it is damaged, cut short or not what its name says"
        raise UserError(f"file {path} cannot be read: {reason}") from error
    check_stored(array, affine, f"file {path}")
    return array, affine


def check_stored(array: NDArray[Any], affine: NDArray[np.float64], name: str) -> None:
    """Raise a UserError unless ``(C, *axes)`` has three spatial axes of real numbers and a usable affine."""
    if array.dtype.kind not in "buif":
        raise UserError(f"{name} holds {array.dtype} voxels, and medkd reads one number per voxel")
    if array.ndim != 4 or 0 in array.shape:
        raise UserError(f"{name} has shape {array.shape[1:]}, and medkd needs three spatial axes")
    spacing = voxel_size(affine)
    if not (np.isfinite(affine).all() and min(spacing) > 0 and abs(np.linalg.det(affine)) > 1e-6 * np.prod(spacing)):
        raise UserError(f"{name} has no usable geometry: voxel sizes {spacing} mm and axes that span no space")


def _read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    # Whole files in memory: gzip then verifies its checksum, which a reader that stops at the last voxel never does.
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    second = data[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # NIfTI-2 headers are 540 bytes long
    image = (_nib.Nifti2Image if second else _nib.Nifti1Image).from_bytes(data)
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise UserError(
            f"file {path} has an unknown orientation (sform and qform codes are 0), so left and right cannot be told; "
            "convert it again, or set the codes if the affine is right"
        )
    array = np.asanyarray(image.dataobj)
    if array.ndim == 5 and array.shape[3] == 1:  # the standard keeps vectors on the fifth axis
        array = array[:, :, :, 0]
    array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    return array, np.asarray(image.affine, dtype=np.float64)


def write_stored(path: Path, stored: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write ``(*stored axes)`` to ``path`` in the format that its suffix names.

    Raises:
        OSError, RuntimeError: the disk refuses; SimpleITK tells a full disk as a RuntimeError.
    """
    (_write_nifti if suffix(path) in NIFTI else _write_itk)(path, stored, affine)


def _write_nifti(path: Path, stored: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = _nib.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    _nib.save(image, path)


def _read_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK

    image: Any = SimpleITK.ReadImage(str(path))
    if path.suffix.lower() in (".nrrd", ".nhdr") and not image.HasMetaDataKey("NRRD_space"):
        raise UserError(
            f"file {path} has an unknown orientation (its header names no space), so left and right cannot be told; "
            "write it with one, such as left-posterior-superior"
        )
    return itk_stored(image, f"file {path}")


def itk_stored(image: Any, name: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the voxels ``(C, *stored axes)`` of a SimpleITK image and its ``(4, 4)`` affine to RAS mm."""
    import SimpleITK

    dims = image.GetDimension()
    array = SimpleITK.GetArrayFromImage(image)
    vector = image.GetNumberOfComponentsPerPixel() > 1
    array = np.moveaxis(array, -1, 0) if vector else array[None] if dims == 3 else array
    if dims not in (3, 4) or array.ndim != 4:
        raise UserError(f"{name} is {dims}-D, and medkd needs three spatial axes")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:3, :3]
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    return array.transpose(0, 3, 2, 1), _LPS_TO_RAS @ affine


def itk_image(stored: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """Return ``(*stored axes)`` on the grid of ``affine`` (to RAS mm) as a SimpleITK image."""
    import SimpleITK

    lps = _LPS_TO_RAS @ affine
    spacing = np.array(voxel_size(affine))
    image: Any = SimpleITK.GetImageFromArray(np.ascontiguousarray(stored.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _write_itk(path: Path, stored: NDArray[Any], affine: NDArray[np.float64]) -> None:
    import SimpleITK

    SimpleITK.WriteImage(itk_image(stored, affine), str(path), True)


def voxel_size(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the voxel size in mm along the three axes of ``(4, 4)`` ``affine``."""
    x, y, z = (float(side) for side in np.sqrt((affine[:3, :3] ** 2).sum(0)))
    return x, y, z
