"""Images in memory: the same label whatever they come as, and it goes back as what came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

import medkd
from medkd.data.volume import read_volume, to_stored
from medkd.errors import UserError
from medkd.inference.model import SegmentationModel

Make = Callable[..., Path]


@pytest.fixture
def model(make_model: Make) -> SegmentationModel:
    return medkd.load(make_model())


def test_every_kind_gives_the_same_label(model: SegmentationModel, write_image: Make, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz")
    volume = read_volume(path)
    truth = model.predict(volume)
    assert len(np.unique(truth)) > 1
    stored = to_stored(truth, volume.geometry)

    nifti = nibabel.load(path)
    label = model.predict(nifti)
    assert isinstance(label, nibabel.Nifti1Image)
    assert np.array_equal(np.asanyarray(label.dataobj), stored)
    assert np.array_equal(label.affine, nifti.affine)
    assert label.get_data_dtype() == np.uint8

    image = SimpleITK.ReadImage(str(path))
    made = model.predict(image)
    assert isinstance(made, SimpleITK.Image)
    assert np.array_equal(SimpleITK.GetArrayFromImage(made), stored.T)
    assert made.GetDirection() == image.GetDirection()
    assert made.GetOrigin() == image.GetOrigin()
    assert made.GetSpacing() == image.GetSpacing()

    voxels = np.asarray(nifti.dataobj)
    array = model.predict(voxels, affine=nifti.affine)
    assert array.dtype == np.int16
    assert np.array_equal(array, stored)
    assert np.array_equal(model.predict(volume.array[0], spacing_mm=(1, 1, 3)), truth)
    assert np.array_equal(model.predict(volume.array, spacing_mm=volume.spacing_mm), truth)


def test_channels(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    model = medkd.load(make_model("two", channels=2))
    files = [write_image(tmp_path / f"{i}.nii.gz", seed=i) for i in range(2)]
    volume = read_volume(files)
    stored = to_stored(model.predict(volume), volume.geometry)
    images = [nibabel.load(file) for file in files]
    (label,) = [model.predict(images)]
    assert np.array_equal(np.asanyarray(label.dataobj), stored)
    joined = nibabel.Nifti1Image(np.stack([np.asarray(i.dataobj) for i in images], -1), images[0].affine)
    assert np.array_equal(np.asanyarray(model.predict(joined).dataobj), stored)
    vector = SimpleITK.Compose([SimpleITK.ReadImage(str(file)) for file in files])
    assert np.array_equal(SimpleITK.GetArrayFromImage(model.predict(vector)), stored.T)
    moved = nibabel.Nifti1Image(np.asarray(images[1].dataobj), images[1].affine + np.eye(4, k=3))
    with pytest.raises(UserError, match="channel 1 is not on the grid of channel 0"):
        model.predict([images[0], moved])
    with pytest.raises(UserError, match=r"the array has 3 channels, and the model reads 2 channels \(CT, CT\)"):
        model.predict(np.zeros((3, 9, 9, 9), np.float32), spacing_mm=(1, 1, 1))


ONE = np.zeros((9, 8, 7), np.float32)


@pytest.mark.parametrize(
    ("image", "named", "said"),
    [
        (ONE, {}, "does not tell its voxel size"),
        (ONE, {"spacing_mm": (1, 1, 1), "affine": np.eye(4)}, "one of spacing_mm and affine"),
        (ONE, {"spacing_mm": (1, 1)}, "three numbers"),
        (ONE, {"spacing_mm": (1, 1, 0)}, "no usable geometry"),
        (ONE, {"affine": np.eye(3)}, "4 x 4"),
        (ONE[0], {"spacing_mm": (1, 1, 1)}, "is no volume"),
        (ONE[:, :0], {"spacing_mm": (1, 1, 1)}, "has shape"),
        (np.stack([ONE] * 4), {"spacing_mm": (1, 1, 1)}, "is 4-D: 4 volumes"),
        (ONE * np.nan, {"spacing_mm": (1, 1, 1)}, "504 voxels are NaN"),
        (ONE.astype(complex), {"spacing_mm": (1, 1, 1)}, "complex128"),
        (nibabel.Nifti1Image(ONE, np.eye(4)), {"spacing_mm": (1, 1, 1)}, "tells its own geometry"),
        (nibabel.Nifti1Image(ONE, None), {}, "unknown orientation"),
        (nibabel.Nifti1Image(np.stack([ONE] * 5, -1), np.eye(4)), {}, "is 4-D: 5 volumes"),
        (SimpleITK.Image(4, 4, SimpleITK.sitkFloat32), {}, "is 2-D"),
        ("scan.nii.gz", {}, "not str; files go through `medkd predict`"),
        ([], {}, "images of one kind"),
        ([ONE, "x"], {}, "images of one kind"),
    ],
)
def test_mistakes_are_told(model: SegmentationModel, image: Any, named: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        model.predict(image, **named)
