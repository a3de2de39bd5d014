"""The gate lets a variant through, or stops it with the number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medkd.export import variants
from medkd.export.evidence import Evidence, RealCase
from medkd.export.variants import judge, tell
from medkd.inference.model import SegmentationModel
from medkd.types import IGNORE

Make = Callable[..., Path]
SHAPE = (8, 8, 8)


def certain(labels: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Return a network that gives ``labels`` ``(*S)`` to the window that it sees, whatever is in it."""
    hot = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 3).movedim(-1, 0).float()
    return lambda image: hot[None].expand(len(image), -1, -1, -1, -1)


@pytest.fixture
def card(make_model: Make) -> SegmentationModel:
    return SegmentationModel.from_folder(make_model())


def blocks(left: int = 4, right: int = 2) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int64)
    labels[:left] = 1
    labels[8 - right :] = 2
    return labels


def evidence(truth: np.ndarray | None) -> Evidence:
    image = np.zeros((1, *SHAPE), np.float32)
    label = None if truth is None else (lambda: truth.astype(np.int16))
    return Evidence((), (RealCase("a", lambda: image, label),), ("background", "left", "right"), "made")


def test_loss_by_hand(card: SegmentationModel) -> None:
    """Left loses one of four rows: Dice falls from 1 to 6/7, and the mean over two classes by half of that."""
    models = [SegmentationModel([certain(blocks(left))], card.card) for left in (4, 3)]
    verdict = judge(models[0], {"int8": models[1]}, evidence(blocks()), gate=0.05)["int8"]
    assert not verdict.kept
    assert verdict.loss == pytest.approx(1 / 14)
    assert (verdict.worst_class, verdict.worst_loss) == ("left", pytest.approx(1 / 7))
    assert verdict.against == "the label maps"
    assert verdict.agreement == pytest.approx(7 / 8)
    assert "0.07143" in verdict.reason
    assert "0.05 is allowed" in verdict.reason
    assert judge(models[0], {"int8": models[1]}, evidence(blocks()), gate=0.08)["int8"].kept
    assert verdict.to_json()["cases"][0]["int8"] == {"left": pytest.approx(6 / 7), "right": 1.0}


def test_better_than_fp32_is_no_loss(card: SegmentationModel) -> None:
    models = [SegmentationModel([certain(blocks(left))], card.card) for left in (3, 4)]
    verdict = judge(models[0], {"int8": models[1]}, evidence(blocks()))["int8"]
    assert verdict.kept
    assert verdict.loss < 0


def test_without_labels_the_masks_of_fp32_count(card: SegmentationModel) -> None:
    models = [SegmentationModel([certain(blocks(left))], card.card) for left in (3, 4)]
    verdict = judge(models[0], {"int8": models[1]}, evidence(None))["int8"]
    assert not verdict.kept
    assert verdict.against == "the masks of fp32"
    assert verdict.loss == pytest.approx(1 / 14)


def test_one_ruined_class_is_not_hidden_by_the_mean(card: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine good classes would hide a lost one; here two classes, and a factor that is as strict."""
    monkeypatch.setattr(variants, "ONE_CLASS", 1.5)
    models = [SegmentationModel([certain(blocks(4, right))], card.card) for right in (2, 0)]
    assert judge(models[0], {"int8": models[1]}, evidence(blocks()), gate=0.7)["int8"].kept  # 1.0 < 1.5 * 0.7
    verdict = judge(models[0], {"int8": models[1]}, evidence(blocks()), gate=0.6)["int8"]
    assert not verdict.kept
    assert "in right" in verdict.reason


def test_unknown_voxels_do_not_count(card: SegmentationModel) -> None:
    models = [SegmentationModel([certain(blocks(left))], card.card) for left in (4, 3)]
    truth = blocks()
    truth[3] = IGNORE
    assert judge(models[0], {"int8": models[1]}, evidence(truth))["int8"].loss == 0


def test_nan_never_passes(card: SegmentationModel) -> None:
    whole = SegmentationModel([certain(blocks())], card.card)
    broken = SegmentationModel([lambda image: certain(blocks())(image) * float("nan")], card.card)
    verdict = judge(whole, {"fp16": broken}, evidence(blocks()), gate=1.0)["fp16"]
    assert not verdict.kept
    assert "NaN" in verdict.reason
    assert verdict.to_json()["difference"] is None


def test_what_rounds_to_nothing_has_no_sign() -> None:
    assert (tell(-0.00001), tell(0.01234), tell(-0.002)) == ("0.0000", "0.0123", "-0.0020")
