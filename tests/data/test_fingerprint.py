from __future__ import annotations

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from medkd.data import fingerprint as fingerprints
from medkd.data.dataset import load_dataset
from medkd.data.fingerprint import Fingerprint, data_hash, fingerprint, inspect_case
from medkd.errors import UserError
from medkd.types import IGNORE


def change(path, array=None, affine=None):
    """Rewrite a volume with other voxels or another affine."""
    old = nib.load(path)
    voxels = np.asanyarray(old.dataobj) if array is None else array
    nib.save(nib.Nifti1Image(voxels, old.affine if affine is None else affine), path)


def voxels(path):
    return np.array(np.asanyarray(nib.load(path).dataobj))


def broken(found):
    return [problem.text for problem in found.problems if problem.severity == "broken"]


def suspicious(found):
    return [problem.text for problem in found.problems if problem.severity == "suspicious"]


def test_a_sound_dataset(tiny_dataset):
    calls: list[tuple[int, int]] = []
    found = fingerprint(load_dataset(tiny_dataset), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 8) for done in range(1, 9)]
    assert found.problems == ()
    assert not found.broken
    found.raise_if_broken()
    assert found.median_shape == (24, 28, 20)
    assert found.median_spacing_mm == (1.5, 1.5, 2.0)
    assert list(found.cases) == [f"tiny_{i:02d}" for i in range(8)]
    assert [facts.labelled for facts in found.cases.values()] == [True] * 6 + [False] * 2


def test_numbers_of_one_case(tiny_dataset):
    dataset = load_dataset(tiny_dataset)
    facts = inspect_case(dataset.case("tiny_02"), dataset)
    image, label = (voxels(tiny_dataset / f / "tiny_02.nii.gz") for f in ("imagesTr", "labelsTr"))
    assert facts.voxels == {"background": (label == 0).sum(), "liver": (label == 1).sum(), "spleen": (label == 2).sum()}
    assert facts.ml["liver"] == pytest.approx((label == 1).sum() * 1.5 * 1.5 * 2 / 1000)
    inside = image[label > 0].astype(float)
    (channel,) = facts.intensity
    assert (channel.mean, channel.std) == (pytest.approx(inside.mean()), pytest.approx(inside.std()))
    assert (channel.min, channel.median, channel.max) == (inside.min(), np.median(inside), inside.max())
    assert (channel.p00_5, channel.p99_5) == pytest.approx(np.percentile(inside, (0.5, 99.5)))


def test_an_unlabelled_case_tells_its_whole_image(tiny_dataset):
    dataset = load_dataset(tiny_dataset)
    facts = inspect_case(dataset.case("tiny_06"), dataset)
    assert facts.readable
    assert not facts.labelled
    assert facts.voxels == {}
    assert facts.intensity[0].mean == pytest.approx(
        voxels(tiny_dataset / "imagesUn" / "tiny_06.nii.gz").mean(), rel=1e-5
    )


def test_intensity_pools_the_foreground_of_all_labelled_cases(tiny_dataset):
    found = fingerprint(load_dataset(tiny_dataset))
    inside = np.concatenate(
        [
            voxels(p)[voxels(tiny_dataset / "labelsTr" / p.name) > 0]
            for p in sorted((tiny_dataset / "imagesTr").iterdir())
        ]
    )
    assert found.intensity[0].mean == pytest.approx(inside.mean(), rel=1e-5)
    assert found.intensity[0].p99_5 == pytest.approx(np.percentile(inside, 99.5), rel=1e-5)


def test_large_cases_are_sampled_and_weigh_no_more_than_others(tiny_dataset, monkeypatch):
    monkeypatch.setattr(fingerprints, "SAMPLES", 50)
    dataset = load_dataset(tiny_dataset)
    assert fingerprint(dataset) == fingerprint(dataset)
    _, drawn = fingerprints._inspect(dataset.case("tiny_00"), dataset)
    assert drawn.shape == (1, 50)
    assert set(drawn[0]) <= set(voxels(tiny_dataset / "imagesTr" / "tiny_00.nii.gz").ravel().astype(float))


def test_several_processes_find_the_same(tiny_dataset):
    dataset = load_dataset(tiny_dataset)
    assert fingerprint(dataset, jobs=2) == fingerprint(dataset)


def test_json_there_and_back(tiny_dataset):
    (tiny_dataset / "labelsTr" / "tiny_01.nii.gz").write_bytes(b"broken")
    found = fingerprint(load_dataset(tiny_dataset))
    assert Fingerprint.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.problems


def test_summary_is_plain_data(tiny_dataset):
    (tiny_dataset / "imagesTr" / "tiny_01.nii.gz").write_bytes(b"broken")
    summary = fingerprint(load_dataset(tiny_dataset)).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["cases"], summary["labelled"], summary["unlabelled"], summary["unreadable"]) == (8, 6, 2, 1)
    assert summary["broken"] is True
    assert summary["problems"][0]["case"] == "tiny_01"
    assert summary["classes"]["liver"]["cases"] == 5
    assert summary["spacing_mm"]["median"] == [1.5, 1.5, 2.0]


def test_damaged_image(tiny_dataset):
    path = tiny_dataset / "imagesTr" / "tiny_01.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    found = fingerprint(load_dataset(tiny_dataset))
    assert len(broken(found)) == 1
    assert "tiny_01.nii.gz cannot be read" in broken(found)[0]
    assert not found.cases["tiny_01"].readable
    assert found.median_shape == (24, 28, 20)
    with pytest.raises(UserError, match=r"^dataset Tiny: file .*tiny_01\.nii\.gz cannot be read: it is damaged"):
        found.raise_if_broken()


def test_damaged_label_leaves_the_image_known(tiny_dataset):
    (tiny_dataset / "labelsTr" / "tiny_01.nii.gz").write_bytes(b"")
    found = fingerprint(load_dataset(tiny_dataset))
    assert len(broken(found)) == 1
    assert "labelsTr/tiny_01.nii.gz cannot be read: it is empty" in broken(found)[0]
    assert found.cases["tiny_01"].readable
    assert found.cases["tiny_01"].voxels == {}


def test_nan(tiny_dataset):
    path = tiny_dataset / "imagesTr" / "tiny_01.nii.gz"
    array = voxels(path).astype(np.float32)
    array[3, 4, 5] = np.nan
    change(path, array)
    assert broken(fingerprint(load_dataset(tiny_dataset))) == [
        f"image {path}: 1 voxel is NaN or infinite; repair the file or leave the case out"
    ]


def test_undeclared_labels(tiny_dataset):
    path = tiny_dataset / "labelsTr" / "tiny_01.nii.gz"
    array = voxels(path)
    array[:2, 0, 0] = 7
    change(path, array)
    assert broken(fingerprint(load_dataset(tiny_dataset))) == [
        f"label {path} holds values that the dataset does not declare: 7 (2 voxels)"
    ]


def test_ignored_voxels_are_no_class(tiny_dataset):
    path = tiny_dataset / "labelsTr" / "tiny_01.nii.gz"
    array = voxels(path).astype(np.int16)
    array[0] = IGNORE
    change(path, array)
    found = fingerprint(load_dataset(tiny_dataset))
    assert found.problems == ()
    assert sum(found.cases["tiny_01"].voxels.values()) == array.size - array[0].size


def test_geometry_mismatch(tiny_dataset):
    change(tiny_dataset / "labelsTr" / "tiny_01.nii.gz", affine=np.diag([1.5, 1.5, 3.0, 1.0]))
    change(tiny_dataset / "labelsTr" / "tiny_02.nii.gz", np.ones((24, 28, 19), dtype=np.uint8))
    texts = broken(fingerprint(load_dataset(tiny_dataset)))
    assert "the affine differs by up to 19 mm" in texts[0]
    assert "shapes (24, 28, 20) and (24, 28, 19) differ" in texts[1]
    with pytest.raises(UserError, match=r"\(and 1 more; `medkd data inspect` lists them\)"):
        fingerprint(load_dataset(tiny_dataset)).raise_if_broken()


def test_class_absent_from_every_case(tiny_dataset):
    for path in (tiny_dataset / "labelsTr").iterdir():
        change(path, np.minimum(voxels(path), 1))
    found = fingerprint(load_dataset(tiny_dataset))
    assert broken(found) == ["class 'spleen' is in none of the 6 labelled cases"]
    assert found.summary()["classes"]["spleen"] == {"cases": 0}


def test_wrong_number_of_channels(tiny_dataset):
    path = tiny_dataset / "imagesTr" / "tiny_01.nii.gz"
    change(path, np.stack([voxels(path)] * 2, axis=-1))
    found = fingerprint(load_dataset(tiny_dataset))
    assert broken(found) == [f"image {path}: the channels should be CT, but it has 2"]
    assert len(found.intensity) == 1


def test_empty_label_is_suspicious(tiny_dataset):
    path = tiny_dataset / "labelsTr" / "tiny_01.nii.gz"
    change(path, voxels(path) * 0)
    found = fingerprint(load_dataset(tiny_dataset))
    assert suspicious(found) == [f"label {path} is empty: nothing but background"]
    assert not found.broken


def test_duplicates_are_found_whatever_their_compression(tiny_dataset):
    image = nib.load(tiny_dataset / "imagesTr" / "tiny_01.nii.gz")
    array = np.asanyarray(image.dataobj).astype(np.float32)
    nib.save(nib.Nifti1Image(array, image.affine), tiny_dataset / "imagesUn" / "tiny_07.nii.gz")
    (text,) = suspicious(fingerprint(load_dataset(tiny_dataset)))
    assert text.startswith("cases tiny_01 and tiny_07 hold the same image, yet they count as two patients")


@pytest.mark.parametrize(
    ("array", "side", "message"),
    [
        (None, 0.001, "has voxels of (0.001, 0.001, 0.001) mm"),
        (None, 30.0, "has voxels of (30, 30, 30) mm"),
        (np.arange(7 * 28 * 20, dtype=np.int16).reshape(7, 28, 20) - 9, 1.0, "is tiny: shape (7, 28, 20)"),
        (np.full((24, 28, 20), -3, dtype=np.int16), 1.0, "channel CT is -3 everywhere"),
        (np.arange(24 * 28 * 20, dtype=np.int16).reshape(24, 28, 20), 1.0, "has no value below 0"),
    ],
)
def test_odd_images_are_suspicious(tiny_dataset, array, side, message):
    change(tiny_dataset / "imagesUn" / "tiny_07.nii.gz", array, np.diag([side, side, side, 1.0]))
    found = fingerprint(load_dataset(tiny_dataset))
    (text,) = suspicious(found)
    assert message in text
    assert not found.broken


def test_nothing_readable_is_told_too(tiny_dataset):
    for path in tiny_dataset.glob("images*/*.nii.gz"):
        path.write_bytes(b"x")
    found = fingerprint(load_dataset(tiny_dataset))
    assert len(broken(found)) == 8
    assert found.median_shape == (0, 0, 0)
    assert found.intensity == ()
    assert Fingerprint.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_data_hash_sees_every_byte_and_every_name(tiny_dataset):
    seen = {data_hash(load_dataset(tiny_dataset))}
    assert fingerprint(load_dataset(tiny_dataset)).data_hash in seen
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        path = sorted((tiny_dataset / folder).iterdir())[-1]
        array = voxels(path)
        array[0, 0, 0] += 1
        change(path, array)
        seen.add(data_hash(load_dataset(tiny_dataset)))
    description = tiny_dataset / "dataset.json"
    text = description.read_text()
    for old, new in (
        ('"liver"', '"kidney"'),
        ('"CT"', '"MR"'),
        ('"training"', '"groups": {"tiny_00": "p"}, "training"'),
    ):
        description.write_text(text.replace(old, new))
        seen.add(data_hash(load_dataset(tiny_dataset)))
    assert len(seen) == 7


def test_data_hash_does_not_depend_on_the_place(tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "elsewhere")
    assert data_hash(load_dataset(tiny_dataset)) == data_hash(load_dataset(tmp_path / "elsewhere"))


def test_data_hash_reads_a_file_once_and_again_when_it_changed(tiny_dataset, monkeypatch):
    dataset = load_dataset(tiny_dataset)
    monkeypatch.setattr(fingerprints, "_hashes", {})
    first = data_hash(dataset)
    assert len(fingerprints._hashes) == 14
    data_hash(dataset)
    assert len(fingerprints._hashes) == 14
    path = dataset.cases[0].images[0]
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert data_hash(dataset) != first
    path.unlink()
    with pytest.raises(UserError, match=r"tiny_00\.nii\.gz cannot be read"):
        data_hash(dataset)


def test_ignore_is_the_same_number_everywhere():
    assert fingerprints._IGNORE == IGNORE


def test_real_datasets_are_sound(real_data):
    hippocampus = fingerprint(load_dataset(real_data("Task04_Hippocampus")))
    assert hippocampus.problems == ()
    assert hippocampus.median_spacing_mm == (1.0, 1.0, 1.0)
    assert hippocampus.summary()["classes"]["Anterior"]["cases"] == 201
    head = fingerprint(load_dataset(real_data("OpenKBP_HeadNeckCT")))
    assert head.problems == ()
    assert head.median_spacing_mm[2] == 3.0
    assert -200 < head.intensity[0].p00_5 < 0 < head.intensity[0].p99_5
