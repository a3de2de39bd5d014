"""The same numbers as the reference packages on random, real and awkward volumes.

Surfels: DeepMind's ``surface-distance`` (and MONAI's surface Dice with subvoxels). Voxels: MONAI's metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medkd.data.volume import read_label, read_volume
from medkd.evaluation import surface
from medkd.evaluation.measure import measure_case

# MONAI 1.6 passes an argument that it deprecated itself; surface-distance reads SciPy by an old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Please (import|use) .*:DeprecationWarning"),
]

Mask = NDArray[np.bool_]
Spacing = tuple[float, ...]
TOLERANCES = (0.0, 0.93, 2.1)  # no multiple of a spacing below: there the reference depends on rounding
METRICS = ("dice", "iou", "hd95_mm", "assd_mm", *(f"nsd_{t}mm" for t in TOLERANCES))


def reference() -> ModuleType:
    return pytest.importorskip("surface_distance", reason="needs the package surface-distance")


def by_surface_distance(pred: Mask, ref: Mask, spacing: Spacing) -> dict[str, float]:
    sd = reference()
    found = sd.compute_surface_distances(ref, pred, spacing)
    to_pred, to_ref = found["distances_gt_to_pred"], found["distances_pred_to_gt"]
    area_ref, area_pred = found["surfel_areas_gt"], found["surfel_areas_pred"]
    mean = ((to_pred * area_ref).sum() + (to_ref * area_pred).sum()) / (area_ref.sum() + area_pred.sum())
    nsd = {f"nsd_{t}mm": sd.compute_surface_dice_at_tolerance(found, t) for t in TOLERANCES}
    hd95 = sd.compute_robust_hausdorff(found, 95 - 1e-7)  # exactly 95 % of equal areas is a matter of rounding there
    return {"dice": sd.compute_dice_coefficient(ref, pred), "hd95_mm": hd95, "assd_mm": mean, **nsd}


def by_monai(pred: Mask, ref: Mask, spacing: Spacing, subvoxels: bool = False) -> dict[str, float]:
    two = (torch.from_numpy(pred)[None, None], torch.from_numpy(ref)[None, None])
    given = {"include_background": True, "spacing": spacing}
    nsd = {
        f"nsd_{t}mm": compute_surface_dice(*two, class_thresholds=[t], use_subvoxels=subvoxels, **given).item()
        for t in TOLERANCES
    }
    if subvoxels:
        return nsd
    return {
        "dice": compute_dice(*(x.float() for x in two)).item(),
        "iou": compute_iou(*(x.float() for x in two)).item(),
        "hd95_mm": compute_hausdorff_distance(*two, percentile=95, **given).item(),
        "assd_mm": compute_average_surface_distance(*two, symmetric=True, **given).item(),
        **nsd,
    }


def ours(pred: Mask, ref: Mask, spacing: Spacing, convention: surface.Convention) -> dict[str, float]:
    maps = pred.astype(np.uint8), ref.astype(np.uint8)
    (line,) = measure_case(*maps, spacing, {"it": 1}, METRICS, convention=convention)
    return {name: float(str(line[name])) for name in METRICS}


def agree(pred: Mask, ref: Mask, spacing: Spacing) -> None:
    surfel, voxel = ours(pred, ref, spacing, "surfel"), ours(pred, ref, spacing, "voxel")
    for mine, theirs in (
        (surfel, by_surface_distance(pred, ref, spacing)),
        (surfel, by_monai(pred, ref, spacing, subvoxels=True)),
        (voxel, by_monai(pred, ref, spacing)),
    ):
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs, abs=1e-4)


def blob(seed: int, shape: tuple[int, ...] = (18, 21, 15)) -> Mask:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2, mode="nearest")
    return noise > np.quantile(noise, 0.7)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.0), (2.5, 0.5, 1.25)])
@pytest.mark.parametrize("seed", range(3))
def test_smooth_objects_that_touch_the_border(seed: int, spacing: Spacing) -> None:
    agree(blob(seed), blob(seed + 100), spacing)


def one(*places: tuple[int, int, int], shape: tuple[int, int, int] = (5, 6, 7)) -> Mask:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


FULL = np.ones((5, 6, 7), bool)
HALF = FULL.copy()
HALF[:, :3] = False


@pytest.mark.parametrize(
    ("pred", "ref"),
    [
        (one((2, 3, 4)), one((2, 3, 4))),
        (one((0, 0, 0)), one((0, 0, 0))),
        (one((0, 0, 0)), one((4, 5, 6))),
        (one((2, 2, 2), (3, 3, 2)), one((2, 3, 2), (3, 2, 2))),
        (one((1, 1, 1), (2, 2, 2)), one((4, 5, 6))),
        (FULL, FULL),
        (FULL, HALF),
        (HALF, one((4, 5, 6))),
        (FULL & ~one((2, 3, 3)), FULL),
        (one((0, 0, 0), shape=(1, 1, 1)), one((0, 0, 0), shape=(1, 1, 1))),
    ],
    ids=["same", "corner", "opposite", "diagonal", "pieces", "full", "half", "one of half", "hole", "one voxel volume"],
)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 4.0)])
def test_awkward_objects(pred: Mask, ref: Mask, spacing: Spacing) -> None:
    agree(pred, ref, spacing)


@pytest.mark.parametrize("convention", surface.CONVENTIONS)
def test_where_a_map_is_empty_the_references_say_infinite_and_we_say_the_diagonal(
    convention: surface.Convention,
) -> None:
    found = ours(one(), one((1, 1, 1)), (1, 2, 3), convention)
    assert [found[name] for name in METRICS] == pytest.approx([0, 0, *[np.sqrt(25 + 144 + 441)] * 2, 0, 0, 0])
    assert by_monai(one((1, 1, 1)), one((1, 1, 1)), (1, 2, 3))["hd95_mm"] == 0
    assert all(np.isnan(value) for value in ours(one(), one(), (1, 1, 1), convention).values())


sides = st.tuples(*[st.integers(1, 7)] * 3)
steps = st.sampled_from([0.5, 0.7, 1.0, 1.3, 3.7])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=sides, spacing=st.tuples(steps, steps, steps))
def test_random_voxels(data: st.DataObject, shape: tuple[int, int, int], spacing: Spacing) -> None:
    masks = arrays(np.bool_, shape)
    pred, ref = data.draw(masks), data.draw(masks)
    if pred.any() and ref.any():
        agree(pred, ref, spacing)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), spacing=st.tuples(steps, steps))
def test_two_dimensions(data: st.DataObject, shape: tuple[int, int], spacing: Spacing) -> None:
    pred, ref = data.draw(arrays(np.bool_, shape)), data.draw(arrays(np.bool_, shape))
    if pred.any() and ref.any():
        theirs = by_surface_distance(pred, ref, spacing)
        mine = ours(pred, ref, spacing, "surfel")
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs, abs=1e-4)


def test_noise_is_measured_by_a_distance_map(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pred, ref = rng.random((2, 12, 13, 14)) > 0.6
    found = surface.gaps(pred, ref, (0.7, 1.1, 2.0))
    monkeypatch.setattr(surface, "DENSE", 2.0)
    searched = surface.gaps(pred, ref, (0.7, 1.1, 2.0))
    monkeypatch.setattr(surface, "DENSE", 0.0)
    mapped = surface.gaps(pred, ref, (0.7, 1.1, 2.0))
    for one_way, other in ((found, searched), (found, mapped)):
        assert one_way.pred_to_ref == pytest.approx(other.pred_to_ref, abs=1e-9)
        assert one_way.ref_to_pred == pytest.approx(other.ref_to_pred, abs=1e-9)


@pytest.mark.real
@pytest.mark.parametrize(("name", "folder"), [("Task04_Hippocampus", "labelsTr"), ("OpenKBP_HeadNeckCT", "labels7Tr")])
def test_real_labels(real_data: Callable[[str], Path], name: str, folder: str) -> None:
    """A label against another patient's, put on the same grid: two plausible organs that differ."""
    files = sorted((real_data(name) / folder).glob("[a-z]*.nii.gz"))[:2]
    first, second = (read_label(file) for file in files)
    size = [min(a, b) for a, b in zip(first.shape, second.shape, strict=True)]
    cut = tuple(slice(0, side) for side in size)
    agree(second[cut] == 1, first[cut] == 1, read_volume(files[0]).spacing_mm)
