"""MONAI bundles as teachers: medkd's own, somebody else's, and those whose configuration is a program."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import read_volume
from medkd.errors import UserError
from medkd.export.bundle import export_bundle
from medkd.networks.weights import read_card
from medkd.teachers.sources import Teacher, open_teacher

Make = Callable[..., Path]


def only(path: Path, **options: Any) -> Teacher:
    (teacher,) = open_teacher(path, **options)
    return teacher


def ask(teacher: Teacher, image: Path, plan: Plan) -> np.ndarray:
    prepared = prepare_image(read_volume(image), plan)[0]
    return teacher.answer(Case("a", (image,), None, "a"), prepared, plan)


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "configs" / name
    body = json.loads(path.read_text())
    edit(body)
    path.write_text(json.dumps(body))


def test_our_own_bundle_is_the_next_teacher(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    folder, image = make_model(), write_image(tmp_path / "a.nii.gz")
    plan = Plan.from_json(read_card(folder).plan)
    other = Plan.from_json(read_card(make_model("other", spacing_mm=(2.0, 2.0, 2.0))).plan)
    teacher, source = only(export_bundle(folder, tmp_path / "bundle")), only(folder)
    for student in (plan, other):
        np.testing.assert_allclose(ask(teacher, image, student), ask(source, image, student), atol=1e-6)
    assert teacher.card.kind == "bundle"
    assert teacher.card.labels == source.card.labels
    assert teacher.network(plan) is not None


def test_what_the_student_learned_from_goes_with_its_bundle(make_model: Make, tmp_path: Path) -> None:
    folder = make_model()
    body = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**body, "trained_on": ["a", "b"], "patients": ["p"]}))
    card = only(export_bundle(folder, tmp_path / "bundle")).card
    assert (card.trained_on, card.patients) == (("a", "b"), ("p",))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Write a bundle as others do: LAS orientation, 2 mm voxels, intensities scaled, a device in an expression."""
    folder = tmp_path / "theirs"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    torch.manual_seed(0)
    net = monai.networks.nets.UNet(**arguments)
    torch.save(net.state_dict(), folder / "models" / "model.pt")
    pattern = {"num_channels": 2, "spatial_shape": [8, 8, 8]}
    metadata = {
        "name": "Spleen of others",
        "version": "1.0",
        "copyright": "Others",
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1, "spatial_shape": [8, 8, 8]}},
            "outputs": {"pred": {**pattern, "channel_def": {"0": "background", "1": "spleen"}}},
        },
    }
    config = {
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", **arguments},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "LAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -100,
                    "a_max": 200,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5},
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    return folder


def test_somebody_elses_bundle(foreign: Path, make_model: Make, write_image: Make, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.nii.gz", (20, 18, 7))
    plan = Plan.from_json(read_card(make_model("student", spacing_mm=(1.0, 1.0, 3.0))).plan)
    teacher = only(foreign)
    assert teacher.card.labels == {"background": 0, "spleen": 1}
    assert (teacher.card.name, teacher.card.trained_on, teacher.card.licence) == ("Spleen of others", None, "Others")
    assert teacher.network() is None
    answer = ask(teacher, image, plan)
    assert answer.shape == (2, 20, 18, 7)
    np.testing.assert_allclose(answer.sum(0), 1, atol=1e-5)
    # By hand: MONAI's own transforms, one window (the volume is smaller), and each voxel found by its place in mm.
    config = json.loads((foreign / "configs" / "inference.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI announces defaults
        steps = monai.bundle.ConfigParser({**config, "device": "cpu"}).get_parsed_content("preprocessing")
    prepared = steps({"image": str(image)})["image"]
    net = monai.networks.nets.UNet(3, 1, 2, [4, 8], [2])
    net.load_state_dict(torch.load(foreign / "models" / "model.pt", weights_only=True))
    shape = prepared.shape[1:]
    before = [(16 - n) // 2 for n in shape]
    padded = torch.zeros(1, 1, 16, 16, 16)
    inside = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    padded[(0, 0, *inside)] = prepared[0].as_tensor()
    with torch.no_grad():
        theirs = net.eval()(padded).softmax(1)[0][(slice(None), *inside)].numpy()
    at = np.linalg.inv(np.asarray(prepared.affine)) @ read_volume(image).affine @ np.array([10, 9, 4, 1.0])
    low = np.floor(at[:3]).astype(int)
    share = at[:3] - low
    expected = np.zeros(2)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod([s if c else 1 - s for s, c in zip(share, corner, strict=True)])
        if weight > 1e-9:
            expected += weight * theirs[(slice(None), *(low + corner))]
    np.testing.assert_allclose(answer[:, 10, 9, 4], expected, atol=1e-4)


def test_what_would_run_as_code_is_refused(foreign: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    for evil in (
        {"_target_": "Lambdad", "keys": "image", "func": f"$open({str(proof)!r}, 'w').close()"},
        {"_target_": "pathlib.Path.touch", "self": str(proof)},
        {"_target_": "EnsureTyped", "keys": "image", "device": "@elsewhere"},
        {"_target_": "EnsureTyped", "keys": "@##elsewhere"},
        {"_target_": "EnsureTyped", "keys": "%elsewhere"},
        {"_target_": "download_url", "url": "http://localhost/"},
    ):
        kept = (foreign / "configs" / "inference.json").read_text()
        change(foreign, "inference.json", lambda c, evil=evil: c["preprocessing"]["transforms"].append(evil))
        change(foreign, "inference.json", lambda c: c.update(elsewhere=f"$open({str(proof)!r}, 'w')"))
        with pytest.raises(UserError, match=r"runs as code when it is read; .* set `trust_pickle: true`"):
            open_teacher(foreign)
        assert not proof.exists()
        (foreign / "configs" / "inference.json").write_text(kept)


def test_code_that_is_trusted_runs(foreign: Path, make_model: Make, write_image: Make, tmp_path: Path) -> None:
    expression = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * 0"}
    change(foreign, "inference.json", lambda c: c["preprocessing"]["transforms"].append(expression))
    image = write_image(tmp_path / "a.nii.gz", (16, 16, 6))
    plan = Plan.from_json(read_card(make_model("student")).plan)
    answer = ask(only(foreign, trust_pickle=True), image, plan)
    assert np.ptp(answer[:, 4:9, 4:9, 4:6], axis=(1, 2, 3)).max() < 0.2  # nothing but the borders to see


def test_a_pickle_for_weights_is_refused(foreign: Path) -> None:
    torch.save(monai.networks.nets.UNet(3, 1, 2, [4, 8], [2]), foreign / "models" / "model.pt")
    with pytest.raises(UserError, match=r"more than weights in it.*set `trust_pickle: true`"):
        open_teacher(foreign)


def test_overlapping_regions_are_refused(foreign: Path) -> None:
    steps = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}]
    change(foreign, "inference.json", lambda c: c.update(postprocessing={"_target_": "Compose", "transforms": steps}))
    with pytest.raises(UserError, match="regions that may overlap"):
        open_teacher(foreign)


def test_a_bundle_that_is_not_whole(foreign: Path) -> None:
    change(foreign, "metadata.json", lambda m: m["network_data_format"]["outputs"]["pred"].update(num_channels=5))
    with pytest.raises(UserError, match="answers 5 channels and names 2"):
        open_teacher(foreign)
    change(foreign, "metadata.json", lambda m: m["network_data_format"]["outputs"]["pred"].update(num_channels=2))
    weights = foreign / "models" / "model.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(UserError, match="is damaged"):
        open_teacher(foreign)
    torch.save({"wrong": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="does not fit the network of the bundle"):
        open_teacher(foreign)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no models/model\.pt"):
        open_teacher(foreign)
    weights.write_bytes(whole)
    change(foreign, "inference.json", lambda c: c.pop("preprocessing"))
    with pytest.raises(UserError, match="no network_def or no preprocessing"):
        open_teacher(foreign)


def test_a_foreign_class_in_our_own_bundle(make_model: Make, tmp_path: Path) -> None:
    bundle = export_bundle(make_model(), tmp_path / "bundle")
    change(bundle, "inference.json", lambda c: c["network_def"].update(_target_="antigravity.Net"))
    with pytest.raises(UserError, match=r"imports antigravity\.Net, which may run code"):
        open_teacher(bundle)


def test_a_bundle_of_a_newer_medkd(make_model: Make, tmp_path: Path) -> None:
    bundle = export_bundle(make_model(), tmp_path / "bundle")
    change(bundle, "metadata.json", lambda m: m["medkd"]["plan"].update(novelty=1))
    with pytest.raises(UserError, match="plan has no key 'novelty'"):
        open_teacher(bundle)
