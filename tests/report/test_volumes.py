from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from medkd.errors import UserError
from medkd.report.volumes import nifti, volume_view

AFFINE = np.array([[1.5, 0, 0, -20], [0, 1.5, 0, -30], [0, 0, 3, 7], [0, 0, 0, 1]], float)


def case(shape=(24, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).normal(40, 60, shape).astype(np.float32)
    label = np.zeros(shape, np.int16)
    label[8:14, 6:12, 5:9] = 2
    return image, label


def test_a_small_case_stays_as_it_is() -> None:
    image, label = case()
    view = volume_view("c", image, label, {"student": label}, AFFINE, window=(-160, 240))
    assert view.image.dtype == np.uint8
    assert (view.label.dtype, view.note) == (np.uint8, "")
    np.testing.assert_array_equal(view.label, label)
    np.testing.assert_array_equal(view.affine, AFFINE)
    np.testing.assert_allclose(view.image, np.rint(np.clip((image + 160) / 400, 0, 1) * 255), atol=1)


def test_a_large_case_keeps_its_structures_and_its_place_in_the_world() -> None:
    image, label = case((120, 96, 48))
    label[:] = 0
    label[50:70, 40:60, 20:30] = 1
    label[54:58, 44:48, 22:24] = -1
    view = volume_view("c", image, label, {"student": np.abs(label)}, AFFINE, most_voxels=6000)
    assert view.image.size <= 6000
    assert "cropped" in view.note
    assert "shown as one" in view.note
    assert view.label.dtype == np.int16
    assert {-1, 0, 1} == set(np.unique(view.label))

    def centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]

    voxel = np.abs(np.diag(view.affine)[:3])
    np.testing.assert_allclose(centre(view.label != 0, view.affine), centre(label != 0, AFFINE), atol=voxel.max() / 2)
    volume = np.prod(voxel) * (view.masks["student"] == 1).sum()
    assert volume == pytest.approx(np.prod(np.diag(AFFINE)[:3]) * (label != 0).sum(), rel=0.25)


def test_joined_voxels_take_the_commonest_class() -> None:
    label = np.zeros((4, 4, 4), np.int16)
    label[:2, :2, 0] = 3  # all four of the eight, the lower value wins a tie
    label[2:, 2:, :2] = 5
    view = volume_view("c", np.zeros((4, 4, 4)), label, {}, np.eye(4), most_voxels=8)
    assert view.label.shape == (2, 2, 2)
    assert view.label[0, 0, 0] == 0
    assert view.label[1, 1, 0] == 5
    np.testing.assert_allclose(view.affine[:3, 3], 0.5)


def test_nifti_is_read_by_nibabel_and_is_the_same_every_time() -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 1
    raw = nifti(array, AFFINE)
    assert raw == nifti(array, AFFINE)
    read = nib.Nifti1Image.from_bytes(gzip.decompress(raw))
    np.testing.assert_array_equal(np.asanyarray(read.dataobj), array)
    np.testing.assert_allclose(read.affine, AFFINE)
    np.testing.assert_allclose(read.header.get_zooms(), (1.5, 1.5, 3))


def test_what_does_not_fit_is_named() -> None:
    image, label = case()
    with pytest.raises(UserError, match=r"case c: .*'student': \(2, 2, 2\)"):
        volume_view("c", image, label, {"student": label[:2, :2, :2]}, AFFINE)
    with pytest.raises(UserError, match="float64"):
        nifti(np.zeros((2, 2, 2)), AFFINE)  # type: ignore[arg-type]


def test_voxels_that_are_no_number_are_black() -> None:
    image, label = case()
    image[0, 0, 0] = np.nan
    assert volume_view("c", image, label, {}, AFFINE, window=(0, 100)).image[0, 0, 0] == 0
