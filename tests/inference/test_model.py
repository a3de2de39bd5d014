"""A trained model as one object: what it answers, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.data.preprocess import prepare_image, restore_probabilities
from medkd.data.volume import Volume, read_volume
from medkd.errors import UserError
from medkd.inference.model import SegmentationModel, pick_device
from medkd.inference.window import sliding_window
from medkd.networks.weights import load_network

Make = Callable[..., Path]


@pytest.fixture
def volume(tmp_path: Path, write_image: Make) -> Volume:
    return read_volume(write_image(tmp_path / "image.nii.gz", (21, 9, 6)))


def test_probabilities_are_those_of_the_network(make_model: Make, volume: Volume) -> None:
    folder = make_model()
    model = SegmentationModel.from_folder(folder)
    prepared, _ = prepare_image(volume, model.plan)
    network, _ = load_network(folder)
    expected = sliding_window(network, torch.from_numpy(prepared), classes=3, patch=(8, 8, 8))
    torch.testing.assert_close(model.probabilities(prepared), expected)
    assert np.array_equal(model.label(prepared), expected.argmax(0).numpy())


def test_predict_answers_on_the_canonical_grid(make_model: Make, volume: Volume) -> None:
    model = SegmentationModel.from_folder(make_model())
    prepared, restore = prepare_image(volume, model.plan)
    label = model.predict(volume)
    assert label.shape == volume.shape
    assert label.dtype == np.int16
    assert prepared.shape[1:] != volume.shape
    assert np.array_equal(label, restore_probabilities(model.probabilities(prepared).numpy(), restore))
    assert len(np.unique(label)) > 1


def test_one_grid_and_a_tight_memory_give_the_same_label(make_model: Make, volume: Volume) -> None:
    folder = make_model()
    label = SegmentationModel.from_folder(folder).predict(volume)
    assert np.array_equal(SegmentationModel.from_folder(folder, memory_mb=1e-6).predict(volume), label)
    same = SegmentationModel.from_folder(make_model(spacing_mm=(1.0, 1.0, 3.0)))
    prepared, _ = prepare_image(volume, same.plan)
    assert np.array_equal(same.predict(volume), same.label(prepared))


def test_scores_of_some_classes(make_model: Make, volume: Volume) -> None:
    model = SegmentationModel.from_folder(make_model())
    every = model.scores(volume, dtype="float32")
    assert every.shape == (3, *volume.shape)
    np.testing.assert_allclose(every.sum(0), 1, atol=1e-5)
    assert np.array_equal(every.argmax(0), model.predict(volume))
    some = model.scores(volume, ["right", "background"])
    assert some.dtype == np.uint8
    assert np.abs(some / 255 - every[[2, 0]]).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(UserError, match="did you mean 'right'"):
        model.scores(volume, ["righ"])


def test_air_is_background(make_model: Make, volume: Volume) -> None:
    air = np.full((1, 40, 9, 6), -1000, np.float32)
    air[:, :9] = volume.array[:, :9]
    scan = Volume(air, volume.affine, volume.geometry)
    folder = make_model()
    whole, skipped = (SegmentationModel.from_folder(folder, skip_air=flag) for flag in (False, True))
    a, b = whole.predict(scan), skipped.predict(scan)
    assert np.array_equal(a[:8], b[:8])
    assert a[24:].any()  # random weights call air something
    assert not b[24:].any()


def test_ensemble_is_the_mean_of_probabilities(make_model: Make, volume: Volume) -> None:
    folders = [make_model("a", seed=1), make_model("b", seed=2)]
    models = [SegmentationModel.from_folder(folder) for folder in folders]
    both = SegmentationModel.from_folder(folders)
    prepared, _ = prepare_image(volume, both.plan)
    mean = (models[0].probabilities(prepared) + models[1].probabilities(prepared)) / 2
    torch.testing.assert_close(both.probabilities(prepared), mean)
    assert np.array_equal(both.label(prepared), mean.argmax(0).numpy())
    assert both.identity not in (models[0].identity, models[1].identity, "")


def test_mirroring_follows_the_plan(make_model: Make, volume: Volume) -> None:
    folder = make_model(mirror_axes=(0,), mirror_swap=((1, 2),))
    plain, mirror = (SegmentationModel.from_folder(folder, mirror=flag) for flag in (False, True))
    prepared = torch.zeros(1, 8, 8, 8)
    prepared[:, :4] = 1
    flipped = plain.label(prepared.flip(1))[::-1]
    once, twice = mirror.probabilities(prepared), mirror.probabilities(prepared.flip(1)).flip(1)[[0, 2, 1]]
    torch.testing.assert_close(once, twice)  # symmetric, which the plain network is not
    assert not np.array_equal(plain.label(prepared), np.array([0, 2, 1])[flipped])


def test_a_network_that_knows_one_size_gets_it(make_model: Make, write_image: Make, tmp_path: Path) -> None:
    spec = {"name": "UNETR", "feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}
    folder = make_model(spec=spec, patch=(16, 16, 16), strides=((1, 1, 1),) + ((2, 2, 2),) * 2, kernels=((3,) * 3,) * 3)
    model = SegmentationModel.from_folder(folder)
    assert model.predict(read_volume(write_image(tmp_path / "small.nii"))).shape == (11, 9, 6)


def test_members_must_share_labels_and_plan(make_model: Make) -> None:
    first = make_model("a")
    with pytest.raises(UserError, match=r"plan\.spacing_mm"):
        SegmentationModel.from_folder([first, make_model("b", spacing_mm=(2.0, 1.0, 2.0))])
    with pytest.raises(UserError, match="in_channels"):
        SegmentationModel.from_folder([first, make_model("c", channels=2)])
    with pytest.raises(UserError, match="no model folder"):
        SegmentationModel.from_folder([])


def test_damaged_weights_are_refused(make_model: Make) -> None:
    folder = make_model()
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="hash"):
        SegmentationModel.from_folder(folder)


def test_newer_format_is_refused(make_model: Make) -> None:
    folder = make_model()
    card = folder / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="upgrade"):
        SegmentationModel.from_folder(folder)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        SegmentationModel.from_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        SegmentationModel.from_folder(tmp_path / "gone")


def test_wrong_channels_are_told(make_model: Make, volume: Volume) -> None:
    with pytest.raises(UserError, match="1 channels"):
        SegmentationModel.from_folder(make_model(channels=2)).predict(volume)


def test_devices() -> None:
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="cannot be used here"):
        pick_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cuda"):
            pick_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu(make_model: Make, volume: Volume) -> None:
    folder = make_model()
    cpu, gpu = (SegmentationModel.from_folder(folder, device=device) for device in ("cpu", "cuda"))
    prepared, _ = prepare_image(volume, cpu.plan)
    torch.testing.assert_close(gpu.probabilities(prepared), cpu.probabilities(prepared), atol=1e-2, rtol=0)
