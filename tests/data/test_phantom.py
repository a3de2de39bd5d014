from __future__ import annotations

import hashlib
import json

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medkd.data.dataset import load_dataset
from medkd.data.fingerprint import fingerprint
from medkd.data.phantom import MODALITIES, simulate, write_phantoms
from medkd.data.phantom_anatomy import ORGANS
from medkd.data.phantom_space import Space, rotation, smooth_noise
from medkd.errors import UserError

SMALL = {"shape": (48, 40, 24), "spacing_mm": (6.8, 6.8, 10.0)}


def value(name):
    return ORGANS.index(name) + 1


@pytest.fixture(scope="module")
def patients():
    return [simulate(index) for index in range(6)]


def centre_mm(label, affine, name):
    return np.array(ndimage.center_of_mass(label == value(name))) @ affine[:3, :3] + affine[:3, 3]


def ml(label, affine, name):
    return (label == value(name)).sum() * np.linalg.det(affine[:3, :3]) / 1000


def test_every_patient_has_every_organ_at_a_plausible_size(patients):
    bounds = {
        "liver": (600, 2200),
        "spleen": (30, 400),
        "kidney_left": (40, 330),
        "kidney_right": (40, 330),
        "aorta": (35, 200),
        "vertebrae": (150, 600),
        "stomach": (80, 600),
    }
    for _, label, affine in patients:
        assert label.max() == len(ORGANS)
        for name, (low, high) in bounds.items():
            assert low < ml(label, affine, name) < high, name


def test_anatomy_lies_where_it_should(patients):
    for _, label, affine in patients:
        at = {name: centre_mm(label, affine, name) for name in ORGANS}
        # RAS: x grows to the patient's right hand in array order left to right, y to the front, z to the head.
        assert at["liver"][0] > 20 > 0 > at["spleen"][0]
        assert at["kidney_right"][0] > 30 and at["kidney_left"][0] < -30
        assert at["vertebrae"][1] < at["aorta"][1] < at["stomach"][1]
        assert at["spleen"][2] > at["kidney_left"][2]


def test_ct_is_in_hounsfield_units(patients):
    for image, label, _ in patients:
        assert image.dtype == np.int16 and image.min() < -990
        assert abs(np.median(image[:, -1]) + 1000) < 15  # air in front of the patient
        inner = {name: np.median(image[ndimage.binary_erosion(label == value(name))]) for name in ("liver", "spleen")}
        assert 40 < inner["liver"] < 140 and 30 < inner["spleen"] < 160
        assert np.percentile(image[label == value("vertebrae")], 95) > 350
        fat = image[(image > -150) & (image < -60)]
        assert abs(np.median(fat) + 100) < 15 and fat.size > 0.04 * image.size


def test_contrast_phase_differs_between_patients(patients):
    aorta = [np.median(image[label == value("aorta")]) for image, label, _ in patients]
    assert max(aorta) - min(aorta) > 60


def test_task_is_not_a_threshold(patients):
    """Liver and what surrounds it share intensities, so that a network has to look at place and shape."""
    for image, label, _ in patients:
        low, high = np.percentile(image[label == value("liver")], (5, 95))
        inside = (image >= low) & (image <= high)
        hit = inside & (label == value("liver"))
        assert 2 * hit.sum() / (inside.sum() + (label == value("liver")).sum()) < 0.85


def test_edges_are_blurred_by_partial_volume(patients):
    image = patients[0][0]
    body = image > -500
    edge = body ^ ndimage.binary_erosion(body)
    assert 0.2 < ((image > -900) & (image < -200))[edge | ndimage.binary_dilation(body) & ~body].mean() < 0.9


def test_mr_has_bias_noise_and_its_own_scale():
    scales = []
    for index in range(4):
        image, label, _ = simulate(index, modality="mr")
        assert image.min() >= 0
        air = image[:, -2:]
        assert air.std() > 0 and air.mean() < 0.2 * np.percentile(image, 99)
        scales.append(np.percentile(image, 99))
        assert set(np.unique(label)) == set(range(len(ORGANS) + 1))
    assert max(scales) / min(scales) > 1.5


def test_patients_differ_and_repeat_exactly():
    first, second = simulate(3, **SMALL), simulate(4, **SMALL)
    again, reseeded = simulate(3, **SMALL), simulate(3, seed=1, **SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], second[2])
    assert first[0].shape != reseeded[0].shape or not np.array_equal(first[0], reseeded[0])


def test_lesions_are_dark_and_in_the_liver():
    found = 0
    for index in range(4):
        image, label, _ = simulate(index, lesions=True)
        lesion = label == len(ORGANS) + 1
        found += lesion.any()
        if lesion.sum() > 30:
            around = ndimage.binary_dilation(lesion, iterations=2) & ~lesion
            assert (label[around] == value("liver")).mean() > 0.5
            assert image[lesion].mean() < image[label == value("liver")].mean() + 5
    assert found >= 3


def test_writes_a_dataset_that_medkd_reads(tmp_path):
    seen = []
    root = write_phantoms(
        tmp_path / "p", cases=2, unlabelled=1, lesions=True, progress=lambda *n: seen.append(n), **SMALL
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    dataset = load_dataset(root)
    assert dataset.labels == {"background": 0, **{name: value(name) for name in ORGANS}, "lesion": 8}
    assert dataset.channels == ("CT",) and dataset.modality == "ct" and dataset.licence == "CC0"
    assert [case.label is not None for case in dataset.cases] == [True, True, False]
    facts = fingerprint(dataset)
    assert not [p for p in facts.problems if p.severity == "broken" and "lesion" not in p.text]
    assert not list(root.rglob("part_*"))
    image = nibabel.load(root / "imagesTr" / "phantom_000.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")


def test_files_are_the_same_bytes_again(tmp_path):
    def digest(root):
        return {
            str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
        }

    one, two = (write_phantoms(tmp_path / name, cases=1, unlabelled=1, **SMALL) for name in "ab")
    assert digest(one) == digest(two)
    # A case does not depend on how many there are: more cases may be added to a study later.
    more = write_phantoms(tmp_path / "c", cases=2, **SMALL)
    assert digest(more)["imagesTr/phantom_000.nii.gz"] == digest(one)["imagesTr/phantom_000.nii.gz"]
    assert digest(more)["imagesTr/phantom_001.nii.gz"] == digest(one)["imagesUn/phantom_001.nii.gz"]


def test_without_unlabelled_the_key_is_there_and_empty(tmp_path):
    root = write_phantoms(tmp_path, cases=1, modality="mr", **SMALL)
    description = json.loads((root / "dataset.json").read_text())
    assert description["unlabelled"] == [] and description["modality"] == {"0": "MRI"}
    assert not (root / "imagesUn").exists()


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match=r"no phantom of modality 'mri' \(did you mean 'mr'\?\)"):
        write_phantoms(tmp_path, modality="mri")
    with pytest.raises(UserError, match="0 cases"):
        write_phantoms(tmp_path, cases=0)
    with pytest.raises(UserError, match="is no volume"):
        write_phantoms(tmp_path, shape=(64, 64))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        write_phantoms(tmp_path / "file")
    assert MODALITIES == ("ct", "mr")


def test_shapes_are_distances():
    grid = np.stack(np.meshgrid(*[np.arange(-20, 21, dtype=np.float32)] * 3, indexing="ij"))
    space = Space(grid, 1.0, np.random.default_rng(0))
    ball = space.ellipsoid((2, -3, 1), (8, 8, 8))
    exact = np.sqrt(((grid - np.reshape((2, -3, 1), (3, 1, 1, 1))) ** 2).sum(0)) - 8
    near = np.abs(exact) < 5
    np.testing.assert_allclose(ball[near], exact[near], atol=1e-3)
    tube = space.tube([(-10, 0, 0), (10, 0, 0)], (3, 3))
    np.testing.assert_allclose(tube[20, 20], np.abs(np.arange(-20, 21)) - 3, atol=1e-4)
    # Occupancy counts volume below the voxel: the sum is that of the ball, though none of its edges is on the grid.
    assert abs(space.fill(ball).sum() / (4 / 3 * np.pi * 8**3) - 1) < 0.01
    long = space.ellipsoid((0, 0, 0), (12, 4, 4), (0, 0, 90))
    assert long[20, 31, 20] < 0 < long[31, 20, 20]


def test_rotation_and_noise():
    np.testing.assert_allclose(rotation((0, 0, 90)) @ (1, 0, 0), (0, 1, 0), atol=1e-12)
    np.testing.assert_allclose(rotation((90, 0, 0)) @ (0, 1, 0), (0, 0, 1), atol=1e-12)
    np.testing.assert_allclose(rotation((0, 90, 0)) @ (0, 0, 1), (1, 0, 0), atol=1e-12)
    noise = smooth_noise((30, 32, 34), (5, 5, 5), np.random.default_rng(0))
    assert abs(noise.std() - 1) < 1e-3
    assert np.abs(np.diff(noise, axis=0)).max() < 0.5
