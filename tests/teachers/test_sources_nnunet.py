"""nnU-Net folders as teachers: what their JSON says, which needs no nnunetv2, and what their networks answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import read_volume
from medkd.errors import UserError
from medkd.networks.weights import read_card
from medkd.teachers.adapters.nnunet import read_checkpoint
from medkd.teachers.adapters.nnunet_files import read_results
from medkd.teachers.grids import onto_grid, prepared_affine
from medkd.teachers.sources import Teacher, open_teacher

Make = Callable[..., Path]
TRAINING = "nnUNetTrainer__nnUNetPlans__3d_fullres"
HAS = find_spec("nnunetv2") is not None
needs_nnunet = [
    pytest.mark.skipif(not HAS, reason="needs nnunetv2, which is not installed"),
    pytest.mark.filterwarnings("ignore"),  # its own imports warn
]

UNET = {
    "n_stages": 2,
    "features_per_stage": [4, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 2,
    "strides": [[1, 1, 1], [2, 2, 2]],
    "n_conv_per_stage": [1, 1],
    "n_conv_per_stage_decoder": [1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def plans(**more: Any) -> dict[str, Any]:
    """Return plans as nnU-Net writes them, for one small network on 2 x 1 x 1 mm voxels (z, y, x)."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        "median_image_size_in_voxels": [8.0, 12.0, 12.0],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": UNET,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset099_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "original_median_shape_after_transp": [8, 12, 12],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 50.0, "std": 80.0}},
        "configurations": {"3d_fullres": configuration},
        **more,
    }


DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "left": 1, "right": 2},
    "numTraining": 4,
    "file_ending": ".nii.gz",
    "licence": "CC0",
}
SPLITS = [{"train": ["c", "b"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Write a results folder with two folds, whose checkpoints hold nothing yet."""
    folder = tmp_path / "nnUNet_results" / "Dataset099_Tiny" / TRAINING
    for fold in ("fold_0", "fold_1"):
        (folder / fold).mkdir(parents=True)
        (folder / fold / "checkpoint_final.pth").write_bytes(b"")
    (folder / "plans.json").write_text(json.dumps(plans()))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    return folder


def write_splits(place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "splits_final.json").write_text(json.dumps(SPLITS))


def test_labels_channels_and_folds(results: Path) -> None:
    for path in (results, results.parent):
        found = read_results(path)
        assert found.labels == {"background": 0, "left": 1, "right": 2}
        assert found.channels == ("CT",)
        assert found.configuration == "3d_fullres"
        assert list(found.folds) == ["0", "1"]
    assert list(read_results(results, [1]).folds) == ["1"]
    assert list(read_results(results / "fold_1").folds) == ["1"]


def test_who_was_in_a_fold_is_not_known_without_the_splits(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert read_results(results).trained_on("0") is None


@pytest.mark.parametrize("place", ["beside", "above", "variable", "usual"])
def test_who_was_in_a_fold(results: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre" if place == "variable" else tmp_path / "none"))
    places = {
        "beside": results,
        "above": results.parent,
        "variable": tmp_path / "pre" / "Dataset099_Tiny",
        "usual": tmp_path / "nnUNet_preprocessed" / "Dataset099_Tiny",
    }
    write_splits(places[place])
    found = read_results(results)
    assert found.trained_on("0") == ("b", "c")
    assert found.trained_on("1") == ("a", "c")


def test_the_best_checkpoint_has_seen_its_validation_cases(results: Path) -> None:
    write_splits(results)
    (results / "fold_0" / "checkpoint_final.pth").rename(results / "fold_0" / "checkpoint_best.pth")
    assert read_results(results).trained_on("0") == ("a", "b", "c")


def test_all_cases_and_folds_beyond_the_splits(results: Path) -> None:
    write_splits(results)
    (results / "fold_1").rename(results / "fold_all")
    assert read_results(results).trained_on("all") == ("a", "b", "c")
    (results / "fold_all").rename(results / "fold_2")
    assert read_results(results).trained_on("2") is None


def change(path: Path, **more: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def test_what_cannot_be_a_teacher(results: Path) -> None:
    with pytest.raises(UserError, match="has no fold 3, only 0, 1"):
        read_results(results, [3])
    (results / "fold_1" / "checkpoint_final.pth").unlink()
    with pytest.raises(UserError, match=r"fold_1 has neither checkpoint_final\.pth nor checkpoint_best\.pth"):
        read_results(results)
    change(results / "dataset.json", labels={"background": 0, "whole": [1, 2], "core": [2]})
    with pytest.raises(UserError, match="regions that overlap"):
        read_results(results, [0])
    (results / "plans.json").write_text(json.dumps({"plans_per_stage": {}}))
    with pytest.raises(UserError, match="has no configurations: it is of another nnU-Net than v2"):
        read_results(results)
    (results / "plans.json").unlink()
    with pytest.raises(UserError, match=r"has no plans\.json; give the folder that training wrote"):
        read_results(results)
    (results / "plans.pkl").write_bytes(b"")
    with pytest.raises(UserError, match=r"plans\.pkl is of nnU-Net v1"):
        read_results(results)


def test_a_cascade_is_refused(results: Path) -> None:
    both = plans()["configurations"]
    change(results / "plans.json", configurations={**both, "3d_cascade_fullres": {}})
    moved = results.rename(results.with_name("nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"))
    with pytest.raises(UserError, match=r"is a cascade.* use its 3d_fullres"):
        read_results(moved)


def test_several_trainings_above(results: Path) -> None:
    (results.with_name("nnUNetTrainer__nnUNetPlans__2d") / "fold_0").mkdir(parents=True)
    with pytest.raises(UserError, match="holds several trainings; give one of nnUNetTrainer__nnUNetPlans__2d, "):
        read_results(results.parent)


@pytest.mark.skipif(HAS, reason="nnunetv2 is installed")
def test_without_nnunetv2(results: Path) -> None:
    with pytest.raises(UserError, match=r"needs nnunetv2; install it with `pip install 'medkd\[nnunet\]'`"):
        open_teacher(results)


CHECKPOINT = {
    "network_weights": {"w": torch.zeros(1)},
    "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "3d_fullres", "fold": 0},
    "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.5)], "n": np.int64(3)},
    "_best_ema": np.float64(0.1),
    "inference_allowed_mirroring_axes": (0, 1, 2),
}


def test_numbers_in_a_checkpoint_are_harmless(tmp_path: Path) -> None:
    torch.save(CHECKPOINT, tmp_path / "checkpoint_final.pth")
    assert read_checkpoint(tmp_path / "checkpoint_final.pth")["_best_ema"] == 0.1


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code(tmp_path: Path) -> None:
    path, proof = tmp_path / "checkpoint_final.pth", tmp_path / "ran"
    torch.save({**CHECKPOINT, "extra": Evil(proof)}, path)
    with pytest.raises(UserError, match=r"more than weights in it.*which may run code.*set `trust_pickle: true`"):
        read_checkpoint(path)
    assert not proof.exists()
    read_checkpoint(path, trust_pickle=True)
    assert proof.exists()


def test_damaged_and_other_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    torch.save(CHECKPOINT, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged or cut short"):
        read_checkpoint(path)
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="lacks network_weights, trainer_name, init_args"):
        read_checkpoint(path)


def train(results: Path, fold: int = 0) -> None:
    """Write a checkpoint with random weights for the network of the plans."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(fold)
    architecture = plans()["configurations"]["3d_fullres"]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"], UNET, architecture["_kw_requires_import"], 1, 3, deep_supervision=False
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    body = {**CHECKPOINT, "network_weights": network.state_dict()}
    torch.save(body, results / f"fold_{fold}" / "checkpoint_final.pth")


def _predict(results: Path, image: Path, out: Path, mirror: bool) -> None:
    """Do what ``nnUNetv2_predict -f 0 --save_probabilities`` does, in this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir()
    predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(results), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential([[str(image)]], [str(out / "a")], save_probabilities=True)
    (out / "dataset.json").write_text((results / "dataset.json").read_text())


class TestNetwork:
    """What nnU-Net's networks answer."""

    pytestmark = needs_nnunet

    @pytest.fixture
    def teachers(self, results: Path) -> list[Teacher]:
        write_splits(results)
        train(results, 0)
        train(results, 1)
        return open_teacher(results)

    @pytest.mark.parametrize("mirror", [False, True])
    def test_agrees_with_its_own_prediction(
        self, teachers: list[Teacher], results: Path, write_image: Make, make_model: Make, tmp_path: Path, mirror: bool
    ) -> None:
        image = write_image(tmp_path / "images" / "a_0000.nii.gz", (20, 18, 7))
        _predict(results, image, tmp_path / "out", mirror)
        theirs = np.load(tmp_path / "out" / "a.npz")["probabilities"].transpose(0, 3, 2, 1)
        teacher = open_teacher(results, folds=[0], mirror=mirror)[0]
        plan = Plan.from_json(read_card(make_model(spacing_mm=(2.0, 1.0, 3.0))).plan)
        volume = read_volume(image)
        prepared, _ = prepare_image(volume, plan)
        case = Case("a", (image,), None, "a")
        answer = teacher.answer(case, prepared, plan)
        target = prepared_affine(volume.affine, volume.shape, prepared.shape[1:])
        expected = onto_grid(theirs, volume.geometry.affine, target, prepared.shape[1:])
        np.testing.assert_allclose(answer, expected, atol=1e-6)
        assert np.ptp(answer) > 0.2
        # What it saved is a teacher too, and says the same.
        (saved,) = open_teacher(tmp_path / "out")
        np.testing.assert_allclose(saved.answer(case, prepared, plan), answer, atol=1e-6)
        assert saved.card.labels == teacher.card.labels

    def test_the_cards(self, teachers: list[Teacher]) -> None:
        first, second = (teacher.card for teacher in teachers)
        assert (first.name, second.name) == ("Dataset099_Tiny.3d_fullres.fold_0", "Dataset099_Tiny.3d_fullres.fold_1")
        assert (first.trained_on, second.trained_on) == (("b", "c"), ("a", "c"))
        assert (first.kind, first.in_channels, first.licence) == ("nnunet", 1, "CC0")
        assert first.identity != second.identity
        assert teachers[0].network() is None
        assert "preprocessing of its own" in teachers[0].why_not_live

    def test_other_channels(self, teachers: list[Teacher], write_image: Make, make_model: Make, tmp_path: Path) -> None:
        images = tuple(write_image(tmp_path / f"a_{c}.nii.gz") for c in range(2))
        plan = Plan.from_json(read_card(make_model(channels=2)).plan)
        prepared, _ = prepare_image(read_volume(images), plan)
        with pytest.raises(UserError, match="reads 1 image channels and case a has 2"):
            teachers[0].answer(Case("a", images, None, "a"), prepared, plan)

    def test_weights_of_another_network(self, results: Path) -> None:
        torch.save(CHECKPOINT, results / "fold_0" / "checkpoint_final.pth")
        with pytest.raises(UserError, match=r"does not fit the network of plans\.json"):
            open_teacher(results, folds=[0])

    def test_a_trainer_that_is_not_there(self, results: Path) -> None:
        torch.save({**CHECKPOINT, "trainer_name": "nnUNetTrainerMine"}, results / "fold_0" / "checkpoint_final.pth")
        with pytest.raises(UserError, match=r"trained by nnUNetTrainerMine, .* set nnUNet_extTrainer"):
            open_teacher(results, folds=[0])
