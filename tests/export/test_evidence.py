"""Real cases for an export: which, and in whose numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medkd.data.dataset import load_dataset
from medkd.data.store import Store
from medkd.errors import UserError
from medkd.export.evidence import PATCHES, evidence_of_dataset, evidence_of_store
from medkd.networks.weights import ModelCard, read_card
from medkd.types import IGNORE

Make = Callable[..., Path]


@pytest.fixture
def card(make_model: Make) -> ModelCard:
    return replace(read_card(make_model()), labels={"background": 0, "spleen": 1, "liver": 2})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three cases of 10 x 12 x 6: voxels count up, and one corner is liver."""
    made = Store(tmp_path / "store")
    for index in range(3):
        image = np.full((1, 10, 12, 6), float(index), np.float32)
        label = np.zeros((10, 12, 6), np.int16)
        label[8:, 10:, 4:] = 1
        label[0, 0, 0] = IGNORE
        made.add(f"c{index}", image, None if index == 2 else label)
    made.close()
    return made


def test_store(store: Store, card: ModelCard) -> None:
    """Patches come of training cases alone; labels get the network's numbers, unknown stays unknown."""
    labels = {"background": 0, "liver": 1}
    found = evidence_of_store(store, card, ["c1"], ["c0", "c2"], labels=labels, source="s", cases=5)
    assert len(found.patches) == PATCHES
    assert {patch.shape for patch in found.patches} == {(1, 8, 8, 8)}
    assert all(set(np.unique(patch)) <= {0.0, 1.0} for patch in found.patches)  # zero is beyond the image: six slices
    assert all((patch[..., 1:7] == 1).all() for patch in found.patches)
    assert found.classes == ("background", "liver")
    first, second = found.cases
    assert first.image().shape == (1, 10, 12, 6)
    assert second.label is None
    assert first.label is not None
    truth = first.label()
    assert set(np.unique(truth)) == {IGNORE, 0, 2}
    assert (truth[8:, 10:, 4:] == 2).all()
    without = evidence_of_store(store, card, [], ["c0", "c1"], labels=None, source="", cases=1)
    assert [(case.name, case.label) for case in without.cases] == [("c0", None)]
    assert without.patches == ()


def test_dataset(tiny_dataset: Path, card: ModelCard) -> None:
    dataset = load_dataset(tiny_dataset)
    known = replace(card, trained_on=("tiny_00", "tiny_01"), plan={**card.plan, "spacing_mm": [1.5, 1.5, 2.0]})
    found = evidence_of_dataset(dataset, known, cases=2)
    assert [case.name for case in found.cases] == ["tiny_02", "tiny_03"]
    assert "was not trained on" in found.source
    assert found.patches[0].shape == (1, 8, 8, 8)
    assert found.cases[0].label is not None
    assert found.cases[0].label().shape == found.cases[0].image().shape[1:]
    assert set(np.unique(found.cases[0].label())) == {0, 1, 2}
    all_known = replace(known, trained_on=tuple(case.id for case in dataset.cases))
    assert "the network was trained on" in evidence_of_dataset(dataset, all_known).source
    with pytest.raises(UserError, match="no label of kidney"):
        evidence_of_dataset(dataset, replace(card, labels={"background": 0, "kidney": 1}))
