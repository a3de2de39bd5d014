"""Folders of saved answers: nnU-Net's archives with their properties, and NIfTI with the classes last."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import read_volume
from medkd.errors import UserError
from medkd.networks.weights import read_card
from medkd.teachers.sources import Teacher, open_teacher

Make = Callable[..., Path]
SHAPE = (11, 9, 6)


@pytest.fixture
def image(write_image: Make, tmp_path: Path) -> Path:
    """A volume stored LPS with 1 x 1 x 3 mm voxels."""
    return write_image(tmp_path / "images" / "a.nii.gz", SHAPE)


@pytest.fixture
def plan(make_model: Make) -> Plan:
    """A student's plan that keeps the voxels as they are."""
    return Plan.from_json(read_card(make_model(spacing_mm=(1.0, 1.0, 3.0))).plan)


def stored(seed: int = 0) -> np.ndarray:
    """Probabilities ``(2, x, y, z)`` on the stored axes of the image."""
    p = np.random.default_rng(seed).random(SHAPE).astype(np.float32)
    return np.stack([1 - p, p])


def canonical() -> np.ndarray:
    return np.flip(stored(), (1, 2))  # LPS to RAS


def folder_of(tmp_path: Path, text: str | None = "labels: {background: 0, liver: 1}\n") -> Path:
    folder = tmp_path / "answers"
    folder.mkdir()
    if text is not None:
        (folder / "teacher.yaml").write_text(text)
    return folder


def only(path: Path, **options: Any) -> Teacher:
    (teacher,) = open_teacher(path, **options)
    return teacher


def ask(teacher: Teacher, image: Path, plan: Plan, case: str = "a") -> np.ndarray:
    return teacher.answer(Case(case, (image,), None, "p"), prepare_image(read_volume(image), plan)[0], plan)


def write_npz(folder: Path, answer: np.ndarray, properties: Any = None, case: str = "a") -> Path:
    """Write as nnU-Net does: axes class, z, y, x, and a pickle beside it."""
    np.savez_compressed(folder / f"{case}.npz", probabilities=answer.transpose(0, 3, 2, 1))
    if properties is not None:
        (folder / f"{case}.pkl").write_bytes(pickle.dumps(properties))
    return folder / f"{case}.npz"


ITK = {"sitk_stuff": {"spacing": (1.0, 1.0, 3.0), "origin": (0.0, 0.0, 0.0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}}


@pytest.mark.parametrize("properties", [None, ITK, {**ITK, "bbox": np.zeros((3, 2), np.int64), "n": np.float64(1)}])
def test_an_archive_of_nnunet(image: Path, plan: Plan, tmp_path: Path, properties: Any) -> None:
    folder = folder_of(tmp_path)
    write_npz(folder, stored(), properties)
    teacher = only(folder)
    np.testing.assert_allclose(ask(teacher, image, plan), canonical(), atol=1e-6)
    assert (teacher.card.kind, teacher.card.trained_on, teacher.card.in_channels) == ("probabilities", None, None)
    assert teacher.network() is None
    assert "no network to run" in teacher.why_not_live


def test_properties_say_where_a_crop_lies(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    answer = stored()[:, 2:, 1:, :]
    write_npz(folder, answer, {"sitk_stuff": {**ITK["sitk_stuff"], "origin": (2.0, 1.0, 0.0)}})
    found = ask(only(folder), image, plan)
    np.testing.assert_allclose(found[:, :9, :8], canonical()[:, :9, :8], atol=1e-6)
    assert (found[0, 10] == 1).all()  # further than a voxel from the crop there is background


def test_properties_in_json(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_npz(folder, stored())
    (folder / "a.json").write_text(json.dumps({"affine": np.diag([-1.0, -1.0, 3.0, 1.0]).tolist()}))
    np.testing.assert_allclose(ask(only(folder), image, plan), canonical(), atol=1e-6)


def test_a_reader_that_turns_volumes(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_npz(folder, canonical())
    (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "NibabelIOWithReorient"}))
    np.testing.assert_allclose(ask(only(folder), image, plan), canonical(), atol=1e-6)


def test_nifti_with_the_classes_last(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "labels: [background, liver]\ntrained_on: [x, y]\nlicence: CC0\n")
    # On coarser slices than the image, to have something to resample.
    answer = stored()[..., ::2]
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(answer, 0, -1), np.diag([-1.0, -1.0, 6.0, 1.0])), folder / "a.nii.gz")
    teacher = only(folder)
    found = ask(teacher, image, plan)
    np.testing.assert_allclose(found[..., 2], canonical()[..., 2], atol=1e-6)
    np.testing.assert_allclose(found[..., 1], (canonical()[..., 0] + canonical()[..., 2]) / 2, atol=1e-6)
    assert (teacher.card.trained_on, teacher.card.licence) == (("x", "y"), "CC0")


def test_labels_from_nnunets_dataset_json(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None)
    write_npz(folder, stored())
    labels = {"background": 0, "liver": [1], "ignore": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}, "format": "x"}))
    assert only(folder).card.labels == {"background": 0, "liver": 1}


def test_no_labels_beside_the_answers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None)
    write_npz(folder, stored())
    with pytest.raises(UserError, match=r"does not say which classes its answers hold; write teacher\.yaml"):
        open_teacher(folder)


def test_a_case_without_an_answer(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_npz(folder, stored(), case="case_01")
    with pytest.raises(UserError, match=r"no answer for case case_1 \(did you mean 'case_01'\?\)"):
        ask(only(folder), image, plan, "case_1")


def test_other_classes_than_named(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "labels: [background, liver, spleen]\n")
    write_npz(folder, stored())
    with pytest.raises(UserError, match="holds 2 classes and teacher answers names 3"):
        ask(only(folder), image, plan)


def test_what_is_no_probability(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_npz(folder, stored() * 5 - 2)
    with pytest.raises(UserError, match="holds no probabilities"):
        ask(only(folder), image, plan)


def test_another_shape_without_properties(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_npz(folder, stored()[..., 1:])
    with pytest.raises(UserError, match=r"has the shape \(11, 9, 5\) and the image \(11, 9, 6\), and no a\.pkl"):
        ask(only(folder), image, plan)


def test_a_truncated_archive(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    path = write_npz(folder, stored())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="is damaged or cut short; predict the case again"):
        ask(only(folder), image, plan)


def test_an_archive_of_something_else(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    np.savez_compressed(folder / "a.npz", seg=np.zeros(3))
    with pytest.raises(UserError, match="has no array named probabilities, only seg"):
        ask(only(folder), image, plan)
    np.savez_compressed(folder / "a.npz", probabilities=np.array([{}], object))
    with pytest.raises(UserError, match="is damaged"):  # objects would be unpickled; numpy refuses
        ask(only(folder), image, plan)


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_properties_that_would_run_code(image: Path, plan: Plan, tmp_path: Path) -> None:
    folder, proof = folder_of(tmp_path), tmp_path / "ran"
    write_npz(folder, stored(), {**ITK, "x": Evil(proof)})
    with pytest.raises(UserError, match=r"a pickle that asks for .*which may run code.*set `trust_pickle: true`"):
        ask(only(folder), image, plan)
    assert not proof.exists()
    np.testing.assert_allclose(ask(only(folder, trust_pickle=True), image, plan), canonical(), atol=1e-6)
    assert proof.exists()


@pytest.mark.parametrize("body", [b"", b"\x80\x04", pickle.dumps(ITK)[:-9], b"no pickle at all"])
def test_damaged_properties(image: Path, plan: Plan, tmp_path: Path, body: bytes) -> None:
    folder = folder_of(tmp_path)
    path = write_npz(folder, stored())
    path.with_suffix(".pkl").write_bytes(body)
    with pytest.raises(UserError, match="is damaged or cut short"):
        ask(only(folder), image, plan)


def test_the_identity_follows_the_content(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_npz(folder, stored())
    first = only(folder).card.identity
    assert only(folder).card.identity == first
    write_npz(folder, stored(1))
    assert only(folder).card.identity != first
