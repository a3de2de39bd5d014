from __future__ import annotations

import errno
import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medkd.data import volume as volumes
from medkd.data.formats import read_stored
from medkd.data.volume import Geometry, read_label, read_volume, write_label
from medkd.errors import UserError

SHAPE = (5, 6, 7)


def rotation(degrees):
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def affine(perm=(0, 1, 2), flips=(1, 1, 1), degrees=(0, 0, 0), spacing=(0.7, 0.9, 3.0)):
    axes = np.zeros((3, 3))
    for column, row in enumerate(perm):
        axes[row, column] = flips[column]
    out = np.eye(4)
    out[:3, :3] = rotation(degrees) @ axes @ np.diag(spacing)
    out[:3, 3] = (-31.5, 12.25, 640.0)
    return out


def voxels(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


def save(path, array, matrix=None):
    nib.save(nib.Nifti1Image(array, affine() if matrix is None else matrix), path)
    return path


ORIENTATIONS = [(p, f) for p in permutations(range(3)) for f in product((1, -1), repeat=3)]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (8, -5, 11)], ids=["straight", "oblique"])
def test_every_orientation_returns_to_its_own_grid(tmp_path, ending, degrees):
    for perm, flips in ORIENTATIONS:
        stored, matrix = voxels(), affine(perm, flips, degrees)
        source = save(tmp_path / "source.nii.gz", stored, matrix)
        volume = read_volume(source)
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
        assert volume.spacing_mm == pytest.approx(np.abs(np.array((0.7, 0.9, 3.0))[np.argsort(perm)]), abs=1e-5)

        target = tmp_path / f"target{ending}"
        write_label(target, read_label(source, like=volume), volume.geometry)

        back, back_affine = read_stored(target)
        assert np.array_equal(back[0], stored)
        assert np.allclose(back_affine, matrix, atol=1e-4)
        assert np.array_equal(read_volume(target).array, volume.array)


def test_canonical_voxels_stay_where_they_are_in_the_world(tmp_path):
    matrix = affine((2, 0, 1), (1, -1, -1), (8, -5, 11))
    stored = np.arange(5 * 6 * 7, dtype=np.int16).reshape(SHAPE)
    volume = read_volume(save(tmp_path / "a.nii", stored, matrix))
    for index in ((0, 0, 0), (4, 2, 6), (1, 5, 3)):
        world = matrix @ (*index, 1)
        canonical = np.rint(np.linalg.inv(volume.affine) @ world).astype(int)[:3]
        assert volume.array[0][tuple(canonical)] == stored[index]


def test_same_as_nibabels_closest_canonical(tmp_path):
    path = save(tmp_path / "a.nii", voxels(), affine((1, 2, 0), (-1, 1, -1), (8, -5, 11)))
    volume, expected = read_volume(path), nib.as_closest_canonical(nib.load(path))
    assert np.array_equal(volume.array[0], expected.get_fdata())
    assert np.allclose(volume.affine, expected.affine)
    assert volume.geometry.canonical_shape == volume.shape == expected.shape


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_simpleitk_and_nibabel_see_the_same_world(tmp_path, ending):
    image = SimpleITK.GetImageFromArray(np.arange(210, dtype=np.int16).reshape(7, 6, 5))
    image.SetSpacing((0.7, 0.9, 3.0))
    image.SetOrigin((10.0, 20.0, -30.0))
    image.SetDirection(rotation((8, -5, 11)).ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"a{ending}"))
    volume = read_volume(tmp_path / f"a{ending}")
    lps = np.array(image.TransformIndexToPhysicalPoint((1, 2, 3)))
    index = np.linalg.inv(volume.affine) @ (-lps[0], -lps[1], lps[2], 1)
    assert np.allclose(index, np.rint(index), atol=1e-3)
    assert volume.array[0][tuple(np.rint(index).astype(int)[:3])] == image[1, 2, 3]
    assert volume.geometry.orientation == "LPS"


def test_channels_from_several_files_or_one(tmp_path):
    a, b = voxels(seed=1), voxels(seed=2)
    two = read_volume([save(tmp_path / "a.nii.gz", a), save(tmp_path / "b.nii.gz", b)])
    one = read_volume(save(tmp_path / "ab.nii.gz", np.stack([a, b], axis=-1)))
    vector = SimpleITK.GetImageFromArray(np.stack([a, b], axis=-1).transpose(2, 1, 0, 3), isVector=True)
    SimpleITK.WriteImage(vector, str(tmp_path / "ab.nrrd"))
    assert two.array.shape == (2, *SHAPE)
    assert two.array.dtype == np.float32
    assert two.array.flags.c_contiguous
    assert np.array_equal(two.array, one.array)
    # SimpleITK's default axes point left and posterior.
    assert np.array_equal(read_volume(tmp_path / "ab.nrrd").array, two.array[:, ::-1, ::-1])


def test_channels_on_different_grids_are_refused(tmp_path):
    a = save(tmp_path / "a.nii.gz", voxels())
    b = save(tmp_path / "b.nii.gz", voxels((5, 6, 8)))
    with pytest.raises(UserError, match=r"b\.nii\.gz is not on the grid of .*a\.nii\.gz: shapes \(5, 6, 7\) and"):
        read_volume([a, b])


def test_scaled_integers_are_read_as_their_values(tmp_path):
    image = nib.Nifti1Image(voxels().astype(np.int16), affine())
    image.header.set_slope_inter(2.0, -1000.0)
    nib.save(image, tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array[0], nib.load(tmp_path / "a.nii.gz").get_fdata())


def test_label_in_another_axis_order_fits_the_same_voxels(tmp_path):
    matrix = affine()
    image = read_volume(save(tmp_path / "image.nii.gz", voxels(), matrix))
    flipped = matrix @ nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], SHAPE)
    label = voxels(seed=3)
    save(tmp_path / "label.nii.gz", label[::-1], flipped)
    assert np.array_equal(read_label(tmp_path / "label.nii.gz", like=image), label)


def test_near_45_degrees_the_label_turns_as_its_image(tmp_path):
    before, after = affine(degrees=(0, 0, 44.9999)), affine(degrees=(0, 0, 45.0001))
    image = read_volume(save(tmp_path / "image.nii.gz", voxels(), before))
    save(tmp_path / "label.nii.gz", voxels(), after)
    assert np.array_equal(read_label(tmp_path / "label.nii.gz", like=image), image.array[0])


def test_label_with_other_shape_names_both(tmp_path):
    image = read_volume(save(tmp_path / "image.nii.gz", voxels()))
    save(tmp_path / "label.nii.gz", voxels((5, 6, 8)))
    with pytest.raises(UserError, match=r"label .*label\.nii\.gz does not fit .*\(5, 6, 7\) and \(5, 6, 8\) differ"):
        read_label(tmp_path / "label.nii.gz", like=image)


def test_label_with_other_affine_tells_millimetres(tmp_path):
    image = read_volume(save(tmp_path / "image.nii.gz", voxels()))
    moved = affine()
    moved[:3, 3] += (3.0, 4.0, 0.0)
    save(tmp_path / "label.nii.gz", voxels(), moved)
    with pytest.raises(UserError, match=r"same shape \(5, 6, 7\), but the affine differs by up to 5 mm"):
        read_label(tmp_path / "label.nii.gz", like=image)


def test_rounding_of_an_affine_is_forgiven(tmp_path):
    image = read_volume(save(tmp_path / "image.nii.gz", voxels()))
    rounded = affine()
    rounded[:3, 3] += 0.01
    save(tmp_path / "label.nii.gz", voxels(), rounded)
    assert read_label(tmp_path / "label.nii.gz", like=image).shape == SHAPE


def test_float_labels_must_be_whole(tmp_path):
    save(tmp_path / "whole.nii.gz", voxels().astype(np.float32))
    assert np.array_equal(read_label(tmp_path / "whole.nii.gz"), voxels())
    assert read_label(tmp_path / "whole.nii.gz").dtype == np.int16
    for name, value in (("half", 0.5), ("nan", np.nan), ("inf", np.inf)):
        broken = voxels().astype(np.float32)
        broken[0, 0, 0] = value
        save(tmp_path / f"{name}.nii.gz", broken)
        with pytest.raises(UserError, match=rf"{name}\.nii\.gz has values that are not whole numbers"):
            read_label(tmp_path / f"{name}.nii.gz")


def test_label_out_of_range_or_with_channels(tmp_path):
    save(tmp_path / "big.nii.gz", np.full(SHAPE, 40_000, dtype=np.int32))
    with pytest.raises(UserError, match="values from 40000 to 40000"):
        read_label(tmp_path / "big.nii.gz")
    save(tmp_path / "four.nii.gz", voxels((5, 6, 7, 3)))
    with pytest.raises(UserError, match="has 3 channels"):
        read_label(tmp_path / "four.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(tmp_path, value):
    broken = voxels().astype(np.float32)
    broken[0, 0, :3] = value
    save(tmp_path / "a.nii.gz", broken)
    with pytest.raises(UserError, match=r"image .*a\.nii\.gz: 3 voxels are NaN or infinite"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "text"])
def test_damaged_files_are_named(tmp_path, ending, damage):
    path = tmp_path / f"a{ending}"
    write_label(path, voxels((20, 20, 20)), Geometry((20, 20, 20), affine()))
    data = path.read_bytes()
    noise = np.random.default_rng(0).bytes(len(data))
    path.write_bytes(
        {"cut": data[: len(data) * 2 // 3], "empty": b"", "noise": noise, "text": b"<html>404</html>"}[damage]
    )
    with pytest.raises(UserError, match=rf"file .*a{ending} cannot be read: it is (empty|damaged)"):
        read_volume(path)


def test_one_flipped_bit_fails_the_checksum(tmp_path):
    path = tmp_path / "a.nii.gz"
    raw = save(tmp_path / "a.nii", voxels((20, 20, 20))).read_bytes()
    data = bytearray(gzip.compress(raw, compresslevel=0))  # stored blocks: nothing but the checksum sees the change
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_volume(path)


def test_a_nifti_that_only_looks_compressed_is_read(tmp_path):
    save(tmp_path / "a.nii", voxels()).rename(tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array[0], voxels())


def test_nifti_2(tmp_path):
    nib.save(nib.Nifti2Image(voxels(), affine()), tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array[0], voxels())


def test_no_file_no_format_no_volume(tmp_path):
    with pytest.raises(UserError, match=r"file .*a\.nii\.gz does not exist"):
        read_volume(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="is a folder"):
        read_volume(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no known volume format"):
        read_volume(tmp_path / "a.png")
    save(tmp_path / "flat.nii.gz", voxels()[0])
    with pytest.raises(UserError, match=r"flat\.nii\.gz has shape \(6, 7\), and medkd needs three"):
        read_volume(tmp_path / "flat.nii.gz")
    save(tmp_path / "complex.nii.gz", voxels().astype(np.complex64))
    with pytest.raises(UserError, match="holds complex64 voxels"):
        read_volume(tmp_path / "complex.nii.gz")


def test_geometry_that_spans_no_space(tmp_path):
    image = nib.Nifti1Image(voxels(), None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(UserError, match="no usable geometry"):
        read_volume(tmp_path / "a.nii")


def test_written_label_is_small_and_keeps_negative_values(tmp_path):
    grid = Geometry(SHAPE, affine())
    write_label(tmp_path / "a.nii.gz", voxels().astype(np.int64), grid)
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint8
    ignored = voxels().astype(np.int16) - 1
    write_label(tmp_path / "b.nii.gz", ignored, grid)
    assert np.array_equal(read_label(tmp_path / "b.nii.gz"), ignored)


def test_write_makes_folders_and_refuses_unknown_formats(tmp_path):
    grid = Geometry(SHAPE, affine())
    write_label(tmp_path / "new" / "folder" / "a.nii.gz", voxels(), grid)
    assert [item.name for item in (tmp_path / "new" / "folder").iterdir()] == ["a.nii.gz"]
    with pytest.raises(UserError, match=r"must end in one of \.nii\.gz"):
        write_label(tmp_path / "a.png", voxels(), grid)
    with pytest.raises(ValueError, match="for a grid of shape"):
        write_label(tmp_path / "a.nii.gz", voxels((5, 6, 8)), grid)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("ITK ERROR")])
def test_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, error):
    path = save(tmp_path / "a.nii.gz", voxels())
    before = path.read_bytes()

    def full(target: Path, *_):
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr(volumes, "write_stored", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.nii\.gz: (No space left on device|the disk refused)"):
        write_label(path, voxels(seed=5), Geometry(SHAPE, affine()))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_real_volumes_return_to_their_grid(real_data, tmp_path):
    for name, case in (("Task04_Hippocampus", "hippocampus_003"), ("OpenKBP_HeadNeckCT", "hn_002")):
        root = real_data(name)
        volume = read_volume(root / "imagesTr" / f"{case}.nii.gz")
        source = root / "labelsTr" / f"{case}.nii.gz"
        write_label(tmp_path / f"{case}.nii.gz", read_label(source, like=volume), volume.geometry)
        old, new = nib.load(source), nib.load(tmp_path / f"{case}.nii.gz")
        assert np.array_equal(np.asanyarray(old.dataobj), np.asanyarray(new.dataobj))
        assert np.allclose(old.affine, new.affine)


def test_unknown_orientation(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), None), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"a.nii.gz has an unknown orientation \(sform and qform codes are 0\)"):
        read_volume(tmp_path / "a.nii.gz")
    head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\nspacings: 1 1 1\n\n"
    (tmp_path / "b.nrrd").write_bytes(head + bytes(16))
    with pytest.raises(UserError, match=r"b.nrrd has an unknown orientation \(its header names no space\)"):
        read_volume(tmp_path / "b.nrrd")
