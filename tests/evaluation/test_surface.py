"""Surface distances: hand-made numbers and MONAI on random objects with uneven spacing."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medkd.evaluation import surface

# MONAI 1.6 passes an argument that it deprecated itself
MONAI = pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.9, 3.0), (2.5, 0.5, 1.25)]


def blob(seed: int, shape: tuple[int, ...] = (18, 21, 15)) -> NDArray[np.bool_]:
    """Random smooth objects, some of them touching the border of the volume."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2, mode="nearest")
    return noise > np.quantile(noise, 0.7)


def test_two_voxels_in_a_row() -> None:
    pred, ref = np.zeros((2, 5, 4, 3), bool)
    pred[1, 1, 1], ref[4, 1, 1] = True, True
    found = surface.gaps(pred, ref, (0.5, 1, 2), "voxel")
    assert found.pred_to_ref.tolist() == [1.5] == found.ref_to_pred.tolist()
    assert surface.hausdorff_mm(found) == surface.assd_mm(found) == 1.5
    assert surface.nsd(found, 1.5) == 1
    assert surface.nsd(found, 1.4) == 0


def test_a_slab_grown_by_one_slice() -> None:
    """Planes through the whole volume: every boundary voxel that moved moved by one slice of 2 mm."""
    pred, ref = np.zeros((2, 4, 4, 9), bool)
    ref[..., 0:1], pred[..., 0:2] = True, True  # both planes are boundary all over, the edge of the volume is outside
    found = surface.gaps(pred, ref, (1, 1, 2), "voxel")
    assert sorted(found.pred_to_ref) == [0] * 16 + [2] * 16
    assert not found.ref_to_pred.any()
    assert surface.hausdorff_mm(found) == 2
    assert surface.assd_mm(found) == pytest.approx(32 / 48)
    assert surface.nsd(found, 1) == pytest.approx(32 / 48)


def test_the_edge_of_the_volume_is_boundary_and_the_inside_is_not() -> None:
    assert surface.boundary(np.ones((3, 3, 3), bool)).sum() == 26
    assert not surface.boundary(np.zeros((3, 3, 3), bool)).any()


def test_a_distance_equal_to_the_tolerance_counts_whatever_the_rounding() -> None:
    pred, ref = np.zeros((2, 12, 1, 1), bool)
    pred[0], ref[3] = True, True
    assert 3 * 0.1 > 0.3
    assert surface.nsd(surface.gaps(pred, ref, (0.1, 1, 1), "voxel"), 0.3) == 1


def test_nothing_has_no_surface() -> None:
    with pytest.raises(ValueError, match="one of them is empty"):
        surface.gaps(np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool), (1, 1, 1))


@MONAI
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_monai_agrees(seed: int, spacing: tuple[float, float, float]) -> None:
    pred, ref = blob(seed), blob(seed + 100)
    found = surface.gaps(pred, ref, spacing, "voxel")
    one = (torch.from_numpy(pred)[None, None], torch.from_numpy(ref)[None, None])
    settings = {"include_background": True, "spacing": spacing}
    theirs = {
        "hd95": compute_hausdorff_distance(*one, percentile=95, **settings),
        "hd": compute_hausdorff_distance(*one, **settings),
        "assd": compute_average_surface_distance(*one, symmetric=True, **settings),
        "nsd": compute_surface_dice(*one, class_thresholds=[1.7], **settings),
    }
    ours = {
        "hd95": surface.hausdorff_mm(found),
        "hd": surface.hausdorff_mm(found, 100),
        "assd": surface.assd_mm(found),
        "nsd": surface.nsd(found, 1.7),
    }
    assert ours == pytest.approx({name: value.item() for name, value in theirs.items()}, abs=1e-4)
