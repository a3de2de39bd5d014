"""Anybody's model: medkd's folders and runs, ONNX and TorchScript with a description, and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import read_volume
from medkd.errors import UserError
from medkd.export.onnx import export_onnx
from medkd.inference.model import SegmentationModel
from medkd.networks.weights import load_network, read_card
from medkd.teachers.grids import onto_grid, prepared_affine
from medkd.teachers.sources import Teacher, TeacherCard, open_teacher

Make = Callable[..., Path]
LABELS = "labels: {background: 0, left: 1, right: 2}"
SIDECAR = f"""{LABELS}
spacing_mm: [1, 1, 2]
patch: [8, 8, 8]
intensity: {{kind: ct, low: -100, high: 200, mean: 50, std: 80}}
"""


def case_of(image: Path, name: str = "a") -> Case:
    return Case(name, (image,), None, name)


def prepared_by(image: Path, plan: Plan) -> np.ndarray:
    return prepare_image(read_volume(image), plan)[0]


def ask(teacher: Teacher, image: Path, plan: Plan) -> np.ndarray:
    return teacher.answer(case_of(image), prepared_by(image, plan), plan)


def only(path: Path, **options: Any) -> Teacher:
    (teacher,) = open_teacher(path, **options)
    return teacher


def plan_of(folder: Path) -> Plan:
    return Plan.from_json(read_card(folder).plan)


def test_a_model_folder_answers_as_the_model(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(), write_image(tmp_path / "a.nii.gz")
    teacher, plan = only(folder), plan_of(folder)
    prepared = prepared_by(image, plan)
    # With the same plan no file is read: the case's image may be anywhere.
    answer = teacher.answer(case_of(tmp_path / "gone.nii.gz"), prepared, plan)
    expected = SegmentationModel.from_folder(folder).probabilities(prepared).numpy()
    np.testing.assert_array_equal(answer, expected)
    assert answer.dtype == np.float32
    assert teacher.card.kind == "medkd"
    assert teacher.card.labels == {"background": 0, "left": 1, "right": 2}
    assert teacher.card.trained_on is None  # the tiny model recorded nobody, which is not the same as nobody


def test_mirroring_is_that_of_the_model(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(mirror_axes=(0, 1), mirror_swap=((1, 2),)), write_image(tmp_path / "a.nii.gz")
    plan = plan_of(folder)
    expected = SegmentationModel.from_folder(folder, mirror=True).probabilities(prepared_by(image, plan)).numpy()
    np.testing.assert_array_equal(ask(only(folder, mirror=True), image, plan), expected)
    assert np.abs(ask(only(folder), image, plan) - expected).max() > 1e-4


def test_a_teacher_of_other_voxels_is_resampled(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(spacing_mm=(2.0, 2.0, 3.0)), write_image(tmp_path / "a.nii.gz", (24, 20, 12))
    student = plan_of(make_model("student", spacing_mm=(1.0, 1.5, 2.0)))
    answer = ask(only(folder), image, student)
    volume = read_volume(image)
    own = prepared_by(image, plan_of(folder))
    theirs = SegmentationModel.from_folder(folder).probabilities(own).numpy()
    shape = prepared_by(image, student).shape[1:]
    expected = onto_grid(
        theirs,
        prepared_affine(volume.affine, volume.shape, own.shape[1:]),
        prepared_affine(volume.affine, volume.shape, shape),
        shape,
    )
    assert answer.shape == (3, *shape) != theirs.shape
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    np.testing.assert_allclose(answer.sum(0), 1, atol=1e-5)


def test_a_live_network_only_where_plans_agree(make_model: Make) -> None:
    teacher = only(make_model())
    assert isinstance(teacher.network(), nn.Module)
    assert teacher.why_not_live == ""
    assert isinstance(teacher.network(plan_of(make_model("same", patch=(16, 16, 16)))), nn.Module)
    assert teacher.network(plan_of(make_model("other", spacing_mm=(1.0, 1.0, 1.0)))) is None
    assert "spacing_mm [1.0, 1.0, 2.0] and this run prepares [1.0, 1.0, 1.0]" in teacher.why_not_live
    assert teacher.network(plan_of(make_model("same"))) is not None
    assert teacher.why_not_live == ""


def test_other_channels_are_refused(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(channels=2), write_image(tmp_path / "a.nii.gz")
    student = plan_of(make_model("student", spacing_mm=(1.0, 1.0, 1.0)))
    with pytest.raises(UserError, match="teacher model reads 2 image channels and case a has 1"):
        ask(only(folder), image, student)


def test_the_identity_is_that_of_weights_and_preparation(make_model: Make) -> None:
    first = only(make_model("a")).card.identity
    assert only(make_model("b")).card.identity == first
    assert only(make_model("c", seed=1)).card.identity != first
    assert only(make_model("d", spacing_mm=(1.0, 1.0, 1.0))).card.identity != first


def test_a_card_survives_json(make_model: Make) -> None:
    from dataclasses import asdict, replace

    card = replace(only(make_model()).card, trained_on=("a", "b"))
    assert TeacherCard.from_json(json.loads(json.dumps(asdict(card)))) == card
    assert TeacherCard.from_json(asdict(only(make_model()).card)).trained_on is None


def write_run(run: Path, make: Make, nodes: list[dict[str, Any]]) -> Path:
    """Write a run folder whose nodes hold models; later nodes finish later."""
    for minute, node in enumerate(nodes):
        inputs = node.pop("inputs", {})
        place = make(f"run/nodes/{node['kind']}.{node['stage']}.{minute}", seed=minute)
        body = {
            "key": str(minute),
            "node": node,
            "inputs": inputs,
            "timings": {"finished": f"2026-01-01T00:{minute:02}"},
        }
        (place / "manifest.json").write_text(json.dumps(body))
    return run


def train(stage: str, member: int = 0, fold: int = 0, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "stage": stage, "member": member, "fold": fold, "seed": 0, "arm": "main", **more}


@pytest.fixture
def run(make_model: Make, tmp_path: Path) -> Path:
    taught = {"targets.teachers.f0": "x"}
    nodes = [
        train("student", inputs=taught),
        train("student", arm="control"),
        train("teachers", 0),
        train("teachers", 1),
        train("teachers", 0, part=1),
        train("teachers", 0, fold=1),
    ]
    return write_run(tmp_path / "run", make_model, nodes)


def test_a_run_teaches_with_its_last_taught_stage(run: Path) -> None:
    assert [teacher.card.name for teacher in open_teacher(run)] == ["run/student.m0.f0.s0"]


def test_a_stage_of_a_run_teaches_with_all_members(run: Path) -> None:
    names = [teacher.card.name for teacher in open_teacher(run / "teachers")]
    assert names == ["run/teachers.m0.f0.s0", "run/teachers.m0.f1.s0", "run/teachers.m1.f0.s0"]
    names = [teacher.card.name for teacher in open_teacher(run / "teachers", folds=[1])]
    assert names == ["run/teachers.m0.f1.s0"]


def test_the_parts_of_inner_folds_teach_together(make_model: Make, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_model, [train("teachers", part=part) for part in (1, 0)])
    assert [one.card.name for one in open_teacher(run)] == ["run/teachers.m0.p0.f0.s0", "run/teachers.m0.p1.f0.s0"]


def test_a_stage_or_fold_that_is_not_there(run: Path) -> None:
    with pytest.raises(UserError, match=r"no stage 'teacher' \(did you mean 'teachers'\?\)"):
        open_teacher(run / "teacher")
    with pytest.raises(UserError, match="no fold 4 of teachers"):
        open_teacher(run / "teachers", folds=[4])


def test_a_run_without_training(tmp_path: Path) -> None:
    (tmp_path / "run" / "nodes").mkdir(parents=True)
    with pytest.raises(UserError, match="no finished training yet"):
        open_teacher(tmp_path / "run")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_exported_folder(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder, image = make_model(), write_image(tmp_path / "a.nii.gz")
    export_onnx(folder, tmp_path / "onnx")
    teacher, plan = only(tmp_path / "onnx"), plan_of(folder)
    np.testing.assert_allclose(ask(teacher, image, plan), ask(only(folder), image, plan), atol=1e-4)
    assert teacher.card.kind == "onnx"
    assert teacher.network() is None
    assert "outside torch" in teacher.why_not_live
    bare = tmp_path / "net.onnx"
    bare.write_bytes((tmp_path / "onnx" / "student.onnx").read_bytes())
    with pytest.raises(UserError, match=r"says nothing of its labels and intensities; write net\.yaml beside it"):
        open_teacher(bare)
    (tmp_path / "net.yaml").write_text(SIDECAR + "trained_on: [x]\nlicence: CC0\nname: theirs\n")
    stated = only(bare)
    np.testing.assert_allclose(ask(stated, image, plan), ask(teacher, image, plan), atol=1e-6)
    assert (stated.card.name, stated.card.trained_on, stated.card.licence) == ("theirs", ("x",), "CC0")
    (tmp_path / "net.yaml").write_text(SIDECAR.replace(", right: 2", ""))
    with pytest.raises(UserError, match=r"net\.onnx has 3 classes, but its description says 2"):
        open_teacher(bare)
    (tmp_path / "net.yaml").write_text(SIDECAR.replace("intensity: ", "channels: [CT, PET]\nintensity: "))
    with pytest.raises(UserError, match=r"net\.onnx has 1 image channels, but its description says 2"):
        open_teacher(bare)
    bare.write_bytes(bare.read_bytes()[:100])
    (tmp_path / "net.yaml").write_text(SIDECAR)
    with pytest.raises(UserError, match="cannot be run by onnxruntime"):
        open_teacher(bare)


def script(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.zeros(1, 1, 8, 8, 8)).save(str(path))
    return path


def test_torchscript(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(), write_image(tmp_path / "a.nii.gz")
    path, plan = script(load_network(folder)[0], tmp_path / "net.pt"), plan_of(folder)
    (tmp_path / "net.json").write_text(
        json.dumps(
            {
                "labels": ["background", "left", "right"],
                "spacing_mm": [1, 1, 2],
                "patch": [8, 8, 8],
                "intensity": {"kind": "ct", "low": -100, "high": 200, "mean": 50, "std": 80},
            }
        )
    )
    teacher = only(path)
    np.testing.assert_allclose(ask(teacher, image, plan), ask(only(folder), image, plan), atol=1e-5)
    network = teacher.network(plan)
    assert network is not None
    patch = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    network(patch).sum().backward()
    assert patch.grad is not None  # methods that look through the teacher can
    assert all(not p.requires_grad for p in network.parameters())


def test_probabilities_of_torchscript_are_told(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(), write_image(tmp_path / "a.nii.gz")
    network = nn.Sequential(load_network(folder)[0], nn.Softmax(dim=1))
    (tmp_path / "net.yaml").write_text(SIDECAR + "output: probabilities\n")
    teacher, plan = only(script(network, tmp_path / "net.ts")), plan_of(folder)
    np.testing.assert_allclose(ask(teacher, image, plan), ask(only(folder), image, plan), atol=1e-3)


def test_a_pickled_module_is_not_unpickled(make_model: Make, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(SIDECAR)
    torch.save(load_network(make_model())[0].state_dict(), tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"pickle of torch\.save, not TorchScript"):
        open_teacher(tmp_path / "net.pt")


def test_truncated_torchscript(make_model: Make, tmp_path: Path) -> None:
    path = script(load_network(make_model())[0], tmp_path / "net.pt")
    (tmp_path / "net.yaml").write_text(SIDECAR)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"net\.pt is damaged, cut short or no TorchScript"):
        open_teacher(path)


def test_a_network_that_contradicts_its_description(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(), write_image(tmp_path / "a.nii.gz")
    path = script(load_network(folder)[0], tmp_path / "net.pt")
    (tmp_path / "net.yaml").write_text(SIDECAR.replace(", right: 2", ""))
    with pytest.raises(UserError, match="teacher net does not do what its description says"):
        ask(only(path), image, plan_of(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SIDECAR.replace("patch: [8, 8, 8]\n", ""), "does not say patch; add it"),
        (SIDECAR + "spacing: [1, 1, 1]\n", r"has no key 'spacing' \(did you mean 'spacing_mm'\?\)"),
        (SIDECAR + "format: 9\n", "has format 9, this medkd reads up to 1; upgrade medkd"),
        (SIDECAR.replace("right: 2", "right: 3"), r"label values are \[0, 1, 3\]"),
        (SIDECAR.replace("right: 2", "right: [1, 2]"), "regions that overlap"),
        (SIDECAR.replace("[1, 1, 2]", "[1, 1]"), "spacing_mm is .*: give three positive numbers"),
        (SIDECAR.replace("kind: ct", "kind: hu"), "intensity is .*: give 'zscore'"),
        (SIDECAR + "output: logit\n", r"output is 'logit' \(did you mean 'logits'\?\)"),
        (SIDECAR + "trained_on: case_1\n", "trained_on must be a list of names"),
        ("labels: [a, b\n", "cannot be read as YAML"),
        ("just words\n", "must hold keys and values"),
    ],
)
def test_descriptions_that_say_too_little(text: str, words: str, make_model: Make, tmp_path: Path) -> None:
    path = script(load_network(make_model())[0], tmp_path / "net.pt")
    (tmp_path / "net.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        open_teacher(path)
    assert "\n" not in str(error.value)


def test_nothing_known_lies_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_teacher(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no model that medkd knows"):
        open_teacher(tmp_path)
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(UserError, match="is no model file that medkd knows"):
        open_teacher(tmp_path / "model.h5")
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_final.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="is one checkpoint of nnU-Net; give its folder"):
        open_teacher(tmp_path / "fold_0" / "checkpoint_final.pth")


def test_a_damaged_or_newer_model_folder(make_model: Make) -> None:
    folder = make_model()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="changed or damaged"):
        open_teacher(folder)
    body = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**body, "format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        open_teacher(folder)
