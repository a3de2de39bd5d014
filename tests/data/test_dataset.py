from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from medkd.data.dataset import Case, is_ct, load_dataset
from medkd.errors import UserError


def save(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((4, 5, 6), dtype=np.uint8) if array is None else array
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def edit(root, **changes):
    """Change keys of a dataset.json; None removes a key."""
    path = root / "dataset.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return root


def nnunet(root, cases=("a", "b"), channels=2, labels=None):
    for case in cases:
        for channel in range(channels):
            save(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        save(root / "labelsTr" / f"{case}.nii.gz")
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": labels or {"background": 0, "edema": 1, "core": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_msd(tiny_dataset):
    dataset = load_dataset(tiny_dataset)
    assert dataset.name == "Tiny"
    assert dataset.root == tiny_dataset
    assert dataset.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert dataset.channels == ("CT",)
    assert dataset.modality == "ct"
    assert (dataset.licence, dataset.reference) == ("CC0", "made by a test")
    assert [case.id for case in dataset.labelled] == [f"tiny_{i:02d}" for i in range(6)]
    assert [case.id for case in dataset.unlabelled] == ["tiny_06", "tiny_07"]
    image, label = (tiny_dataset / folder / "tiny_03.nii.gz" for folder in ("imagesTr", "labelsTr"))
    assert dataset.case("tiny_03") == Case("tiny_03", (image,), label, "tiny_03")
    with pytest.raises(UserError, match=r"no case 'tiny03' \(did you mean 'tiny_03'\?\)"):
        dataset.case("tiny03")


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "liver", "2": "spleen"},
        {"background": 0, "liver": 1, "spleen": 2},
        {"liver": "1", "spleen": "2"},
        {"2": "spleen", "1": "liver", "0": "background"},
    ],
)
def test_labels_either_way_round(tiny_dataset, labels):
    found = load_dataset(edit(tiny_dataset, labels=labels)).labels
    assert list(found.items()) == [("background", 0), ("liver", 1), ("spleen", 2)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, r"label 'whole' is a region of several values"),
        ({"background": 0, "liver": 1, "ignore": 2}, r"'ignore' is not read yet"),
        ({"background": 0, "liver": 1, "spleen": 3}, r"without gap or repeat, not \[0, 1, 3\]"),
        ({"0": "background", "1": "liver", "2": "liver"}, r"two labels are called 'liver'"),
        ({"background": 0}, "nothing to segment"),
        ({"liver": 1.5}, r"label 'liver': 1.5 pairs no name with a whole number"),
        (["liver"], "labels must map"),
    ],
)
def test_labels_that_make_no_sense(tiny_dataset, labels, message):
    with pytest.raises(UserError, match=message):
        load_dataset(edit(tiny_dataset, labels=labels))


def test_test_images_are_unlabelled_unless_the_file_says_what_is(tiny_dataset):
    save(tiny_dataset / "imagesTs" / "x.nii.gz")
    assert "x" not in [case.id for case in load_dataset(edit(tiny_dataset, test=["./imagesTs/x.nii.gz"])).cases]
    dataset = load_dataset(edit(tiny_dataset, unlabelled=None))
    assert [case.id for case in dataset.unlabelled] == ["x"]


def test_a_labelled_test_list_stays_out(tiny_dataset):
    image, label = save(tiny_dataset / "imagesTs" / "x.nii.gz"), save(tiny_dataset / "labelsTs" / "x.nii.gz")
    edit(tiny_dataset, unlabelled=None, test=[{"image": str(image), "label": str(label)}])
    assert len(load_dataset(tiny_dataset).cases) == 6


def test_groups_are_patients(tiny_dataset):
    dataset = load_dataset(edit(tiny_dataset, groups={"tiny_00": "p", "tiny_06": "p", "elsewhere": "q"}))
    assert {case.id for case in dataset.cases if case.patient == "p"} == {"tiny_00", "tiny_06"}
    assert dataset.case("tiny_01").patient == "tiny_01"
    with pytest.raises(UserError, match=r"names no patient for case 'tiny_01' \(did you mean 'tiny01'\?\)"):
        load_dataset(edit(tiny_dataset, groups={"tiny_00": "p", "tiny01": "p"}))


def test_another_json_of_the_same_folder(tiny_dataset):
    content = json.loads((tiny_dataset / "dataset.json").read_text())
    content["training"] = content["training"][:2]
    (tiny_dataset / "dataset_2.json").write_text(json.dumps(content))
    assert len(load_dataset(tiny_dataset / "dataset_2.json").labelled) == 2
    (tiny_dataset / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"has no dataset\.json; name one of dataset_2\.json"):
        load_dataset(tiny_dataset)


def test_names_are_looked_for_in_root_then_environment_then_data(tiny_dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDKD_DATA", raising=False)
    for place in ("root", "env", "data"):
        shutil.copytree(tiny_dataset, tmp_path / place / "Task98_Other")
    monkeypatch.setenv("MEDKD_DATA", str(tmp_path / "env"))
    assert load_dataset("msd/Task98_Other", tmp_path / "root").root == tmp_path / "root" / "Task98_Other"
    assert load_dataset("Task98_Other").root == tmp_path / "env" / "Task98_Other"
    monkeypatch.delenv("MEDKD_DATA")
    assert load_dataset("msd/Task98_Other").root.resolve() == tmp_path / "data" / "Task98_Other"
    with pytest.raises(UserError, match=r"'msd/Task97_Other' was not found in .*did you mean 'Task98_Other'.*"):
        load_dataset("msd/Task97_Other")
    with pytest.raises(UserError, match="`medkd data download msd/Task97_Other` fetches it"):
        load_dataset("msd/Task97_Other")


def test_missing_files_are_named_at_once(tiny_dataset):
    (tiny_dataset / "labelsTr" / "tiny_02.nii.gz").unlink()
    with pytest.raises(UserError, match=r"^label of case tiny_02 is missing: .*tiny_02\.nii\.gz$"):
        load_dataset(tiny_dataset)
    (tiny_dataset / "imagesUn" / "tiny_06.nii.gz").unlink()
    with pytest.raises(UserError, match=r"\(2 files of the dataset are missing\)"):
        load_dataset(tiny_dataset)


def test_shared_case_ids_are_refused(tiny_dataset):
    for patient in ("p1", "p2"):
        save(tiny_dataset / patient / "ct.nii.gz")
    rows = [{"image": f"{p}/ct.nii.gz", "label": "labelsTr/tiny_00.nii.gz", "patient": p} for p in ("p1", "p2")]
    with pytest.raises(UserError, match=r"patients 'p1' and 'p2' share the case id 'ct'"):
        load_dataset(edit(tiny_dataset, training=rows))
    with pytest.raises(UserError, match=r"two cases have the id 'ct': .*p1/ct\.nii\.gz and .*p2/ct\.nii\.gz"):
        load_dataset(edit(tiny_dataset, training=[{k: row[k] for k in ("image", "label")} for row in rows]))


def test_no_labelled_case(tiny_dataset):
    with pytest.raises(UserError, match="none of its 2 cases has a label"):
        load_dataset(edit(tiny_dataset, training=[]))
    with pytest.raises(UserError, match="lists no case"):
        load_dataset(edit(tiny_dataset, training=[], unlabelled=[]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": [}', r"dataset\.json, line 1: not valid JSON"),
        ("7", "must hold an object"),
        ('{"name": "x"}', "lists no cases"),
        ('{"training": {}, "labels": {"a": 1}}', "lists no case"),
        ('{"training": {"a": 1}, "labels": {"a": 1}}', "training must be a list"),
        ('{"training": [{"label": "a.nii"}]}', "names no image file"),
        ('{"training": [{"image": "a.png"}]}', "no known volume format"),
        ('{"training": [3]}', "a case must be an object"),
        ('{"training": [{"image": "a.nii", "case": "../a"}]}', "is no case id"),
    ],
)
def test_descriptions_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path)


def test_nnunet_raw(tmp_path):
    root = nnunet(tmp_path / "Dataset001_X")
    for channel in range(2):
        save(root / "imagesTr" / f"c_{channel:04d}.nii.gz")
        save(root / "imagesUn" / f"d_{channel:04d}.nii.gz")
    (root / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"litter of another system")
    dataset = load_dataset(root)
    assert dataset.name == "Dataset001_X"
    assert dataset.channels == ("T1", "T2")
    assert dataset.modality == "mr"
    assert [case.id for case in dataset.labelled] == ["a", "b"]
    assert [case.id for case in dataset.unlabelled] == ["c", "d"]
    assert [path.name for path in dataset.case("a").images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_nnunet_raw_with_a_channel_or_an_image_missing(tmp_path):
    root = nnunet(tmp_path)
    (root / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"image of case b is missing: .*b_0001\.nii\.gz"):
        load_dataset(root)
    (root / "imagesTr" / "b_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"label .*b\.nii\.gz has no image .*b_0000\.nii\.gz"):
        load_dataset(root)


def test_nnunet_with_its_own_list(tmp_path):
    root = nnunet(tmp_path)
    listed = {"z": {"images": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}}
    dataset = load_dataset(edit(root, dataset=listed))
    assert [(case.id, len(case.images)) for case in dataset.cases] == [("z", 2)]


def test_more_images_than_channels(tmp_path):
    root = nnunet(tmp_path)
    listed = {"z": {"images": ["imagesTr/a_0000.nii.gz"] * 3, "label": "labelsTr/a.nii.gz"}}
    with pytest.raises(UserError, match="a case has 3 image files, but the channels are T1, T2"):
        load_dataset(edit(root, dataset=listed))


def test_csv_manifest(tmp_path):
    for name in ("a_t1", "a_t2", "b_t1", "b_t2"):
        save(tmp_path / f"{name}.nii.gz")
    save(tmp_path / "a_label.nii.gz", np.arange(120, dtype=np.uint8).reshape(4, 5, 6) % 3)
    table = (
        "image_0,image_1,label,case,patient\na_t1.nii.gz,a_t2.nii.gz,a_label.nii.gz,a,p\nb_t1.nii.gz,b_t2.nii.gz,,b,p\n"
    )
    (tmp_path / "mine.csv").write_text(table)
    dataset = load_dataset(tmp_path / "mine.csv")
    assert [(case.id, case.patient, case.label is None) for case in dataset.cases] == [
        ("a", "p", False),
        ("b", "p", True),
    ]
    assert dataset.labels == {"background": 0, "label_1": 1, "label_2": 2}
    assert len(dataset.channels) == 2

    (tmp_path / "mine.json").write_text(json.dumps({"labels": {"lesion": 1, "cyst": 2}, "channels": ["T1", "T2"]}))
    dataset = load_dataset(tmp_path / "mine.csv")
    assert dataset.labels == {"background": 0, "lesion": 1, "cyst": 2}
    assert dataset.channels == ("T1", "T2")


def test_csv_manifest_mistakes(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("scan,label\na,b\n")
    with pytest.raises(UserError, match="no column image or image_0; its columns are scan, label"):
        load_dataset(path)
    path.write_text("image,label\n,b.nii\n")
    with pytest.raises(UserError, match="line 2: column image is empty"):
        load_dataset(path)
    save(tmp_path / "a.nii.gz")
    save(tmp_path / "l.nii.gz", np.full((4, 5, 6), 5, dtype=np.uint8))
    path.write_text("image,label\na.nii.gz,l.nii.gz\n")
    with pytest.raises(UserError, match=r"the values found, \[0, 5\], are not 0, 1, 2"):
        load_dataset(path)


def test_json_manifest(tmp_path):
    for name in ("a", "b", "l"):
        save(tmp_path / f"{name}.nii.gz")
    rows = [
        {"image": "a.nii.gz", "label": "l.nii.gz", "case": "first", "patient": "p"},
        {"image_0": "b.nii.gz", "case": "second"},
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"cases": rows, "labels": {"liver": 1}, "modality": "CT"}))
    dataset = load_dataset(path)
    assert [(case.id, case.patient) for case in dataset.cases] == [("first", "p"), ("second", "second")]
    assert dataset.modality == "ct"


@pytest.mark.parametrize("name", ["CT", "cta", "CBCT", "CECT", "PET/CT", "ct_portal", "Computed Tomography"])
def test_ct_channels(name):
    assert is_ct(name)


@pytest.mark.parametrize("name", ["MRI", "T1", "FLAIR", "ACT", "octane", "contrast", "PET", "image"])
def test_other_channels(name):
    assert not is_ct(name)


def test_real_datasets(real_data):
    hippocampus = load_dataset("msd/Task04_Hippocampus", real_data("Task04_Hippocampus").parent)
    assert hippocampus.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert len(hippocampus.cases) == 201
    assert len({case.patient for case in hippocampus.cases}) == 131
    assert hippocampus.modality == "mr"
    root = real_data("OpenKBP_HeadNeckCT")
    assert [len(load_dataset(root).labelled), len(load_dataset(root).unlabelled)] == [76, 12]
    seven = load_dataset(root / "dataset_7organs.json")
    assert (len(seven.labelled), len(seven.labels), seven.modality) == (30, 8, "ct")
