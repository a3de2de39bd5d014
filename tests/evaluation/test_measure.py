"""A case: hand-made numbers, empty classes, edges, regions, lesions, and MONAI with many classes."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_iou, compute_surface_dice
from monai.networks.utils import one_hot
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medkd.errors import UserError
from medkd.evaluation.measure import measure_case

# MONAI 1.6 passes an argument that it deprecated itself
MONAI = pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")

ALL = ("dice", "iou", "hd95_mm", "assd_mm", "nsd_1mm", "nsd_2.5mm", "volume_error_ml")
ONE = {"background": 0, "liver": 1}


def organs(seed: int, classes: int = 4, shape: tuple[int, int, int] = (16, 19, 13)) -> NDArray[np.int16]:
    noise = np.random.default_rng(seed).standard_normal((classes, *shape))
    return np.argmax(gaussian_filter(noise, (0, 2, 2, 2), mode="nearest"), axis=0).astype(np.int16)


def block(*corner: int, size: int = 2, shape: tuple[int, int, int] = (8, 8, 8)) -> NDArray[np.int16]:
    label = np.zeros(shape, np.int16)
    label[tuple(slice(start, start + size) for start in corner)] = 1
    return label


def test_hand_counted_blocks() -> None:
    """Two 2 x 2 x 2 cubes, one slice of 3 mm apart: half of each is shared."""
    (line,) = measure_case(block(2, 2, 3), block(2, 2, 2), (1, 2, 3), ONE, ALL, convention="voxel")
    expected = {
        "label": "liver",
        "dice": 0.5,
        "iou": 1 / 3,
        "hd95_mm": 3.0,
        "assd_mm": 1.5,
        "nsd_1mm": 0.5,
        "nsd_2.5mm": 0.5,
        "volume_error_ml": 0.0,
        "voxels_ref": 8,
        "voxels_pred": 8,
        "volume_ref_ml": 0.048,
        "volume_pred_ml": 0.048,
    }
    assert line == pytest.approx(expected)


def test_perfect_is_perfect_also_for_one_voxel_in_the_corner() -> None:
    label = block(0, 0, 0, size=1)
    (line,) = measure_case(label, label, (0.5, 1, 4), ONE, ALL)
    assert [line[name] for name in ALL] == [1, 1, 0, 0, 1, 1, 0]


def test_absent_in_both_is_nan_everywhere() -> None:
    nothing = np.zeros((4, 4, 4), np.int16)
    (line,) = measure_case(nothing, nothing, (1, 1, 1), ONE, ALL)
    assert all(math.isnan(float(str(line[name]))) for name in ALL)
    assert line["voxels_ref"] == line["voxels_pred"] == 0


@pytest.mark.parametrize("missed", [True, False])
def test_in_one_map_only_is_an_error_of_full_size(missed: bool) -> None:
    there, nothing = block(1, 1, 1), np.zeros((8, 8, 8), np.int16)
    pred, ref = (nothing, there) if missed else (there, nothing)
    (line,) = measure_case(pred, ref, (1, 2, 3), ONE, ALL)
    diagonal = math.sqrt(8**2 + 16**2 + 24**2)
    assert [line[name] for name in ALL] == pytest.approx([0, 0, diagonal, diagonal, 0, 0, 0.048])


def test_missing_is_never_better_than_finding_badly() -> None:
    far = measure_case(block(7, 7, 7, size=1), block(0, 0, 0, size=1), (1, 2, 3), ONE, ("hd95_mm",))
    none = measure_case(np.zeros((8, 8, 8), np.int16), block(0, 0, 0, size=1), (1, 2, 3), ONE, ("hd95_mm",))
    assert float(str(none[0]["hd95_mm"])) > float(str(far[0]["hd95_mm"]))


def test_ignored_voxels_count_for_nothing() -> None:
    ref = block(2, 2, 2)
    ref[6:] = -1
    pred = block(2, 2, 2)
    pred[6:] = 1
    (line,) = measure_case(pred, ref, (1, 1, 1), ONE, ALL)
    assert [line[name] for name in ALL] == [1, 1, 0, 0, 1, 1, 0]


def test_values_without_a_name_are_background() -> None:
    pred, ref = block(2, 2, 2), block(2, 2, 2)
    pred[0], ref[7] = 9, 5
    (line,) = measure_case(pred, ref, (1, 1, 1), ONE, ALL)
    assert line["dice"] == 1
    assert line["hd95_mm"] == 0


@MONAI
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.7, 2.5)])
def test_monai_agrees_on_many_classes(spacing: tuple[float, float, float]) -> None:
    pred, ref = organs(1), organs(2)
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    lines = measure_case(pred, ref, spacing, labels, ("iou", "hd95_mm", "nsd_2mm"), convention="voxel")
    both = [one_hot(torch.from_numpy(x.astype(np.int64))[None, None], 4) for x in (pred, ref)]
    theirs = {
        "iou": compute_iou(*both, include_background=False)[0].tolist(),
        "hd95_mm": compute_hausdorff_distance(*both, percentile=95, spacing=spacing)[0].tolist(),
        "nsd_2mm": compute_surface_dice(*both, class_thresholds=[2.0] * 3, spacing=spacing)[0].tolist(),
    }
    for metric, values in theirs.items():
        assert [line[metric] for line in lines] == pytest.approx(values, abs=1e-4)


def test_two_dimensions_work() -> None:
    (line,) = measure_case(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8), (1, 1), ONE, ALL)
    assert line["dice"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred": np.zeros((8, 8, 7), np.int16)}, "differ in shape"),
        ({"pred": np.zeros((8, 8, 8), np.float32)}, "not integer labels"),
        ({"spacing_mm": (1, 1)}, "3 positive numbers"),
        ({"spacing_mm": (1, 0, 1)}, "3 positive numbers"),
        ({"labels": {"a": 1, "b": 1}}, "two names to one value"),
        ({"metrics": ("hd95",)}, "did you mean 'hd95_mm'"),
    ],
)
def test_mistakes_are_told(change: dict[str, object], words: str) -> None:
    given = {"pred": block(1, 1, 1), "ref": block(1, 1, 1), "spacing_mm": (1, 1, 1), "labels": ONE, "metrics": ALL}
    with pytest.raises(UserError, match=words):
        measure_case(**{**given, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_every_integer_type(dtype: type[np.integer]) -> None:
    top = min(np.iinfo(dtype).max, 40_000)
    label = np.zeros((4, 4, 4), dtype)
    label[1:3, 1:3, 1:3], label[0, 0, 0] = top, 1
    lines = measure_case(label, label, (1, 1, 1), {"high": int(top), "beyond": int(top) + 1, "low": 1}, ("dice",))
    assert [line["voxels_ref"] for line in lines] == [8, 0, 1]
    assert [lines[0]["dice"], lines[2]["dice"]] == [1, 1]


def test_a_region_is_the_union_of_its_values() -> None:
    """nnU-Net's whole tumour: oedema and core; within it, one value for another is no error."""
    ref, pred = block(1, 1, 1, size=4), block(1, 1, 1, size=4)
    ref[1:3], pred[1:2] = ref[1:3] * 2, pred[1:2] * 2
    whole, core = measure_case(pred, ref, (1, 1, 1), {"whole": (1, 2), "core": 2}, ("dice",))
    assert whole["dice"] == 1
    assert core["dice"] == pytest.approx(2 * 16 / 48)
    with pytest.raises(UserError, match="two names to one value"):
        measure_case(pred, ref, (1, 1, 1), {"a": (1, 2), "b": (2, 1)}, ("dice",))


LESIONS = ("lesion_f1", "lesion_recall", "lesion_precision", "lesion_missed", "lesion_false")


def test_lesions_of_classes_that_are_named_so_or_told_so() -> None:
    ref = block(1, 1, 1) | block(5, 5, 5)
    labels = {"liver": 2, "liver tumour": 1}
    organ, tumour = measure_case(block(1, 1, 1), ref, (1, 1, 1), labels, LESIONS)
    assert all(math.isnan(float(str(organ[name]))) for name in LESIONS)
    assert [tumour[name] for name in LESIONS] == [pytest.approx(2 / 3), 0.5, 1, 1, 0]
    told = measure_case(block(1, 1, 1), ref, (1, 1, 1), {"spots": 1}, ("lesion_f1",), lesions=("spots",))
    assert told[0]["lesion_f1"] == pytest.approx(2 / 3)
    none = measure_case(block(1, 1, 1), ref, (1, 1, 1), labels, ("lesion_f1",), lesions=())
    assert math.isnan(float(str(none[1]["lesion_f1"])))
    with pytest.raises(UserError, match="did you mean 'spots'"):
        measure_case(ref, ref, (1, 1, 1), {"spots": 1}, LESIONS, lesions=("spot",))


def test_lesions_in_one_map_only() -> None:
    ref, nothing = block(1, 1, 1) | block(5, 5, 5), np.zeros((8, 8, 8), np.int16)
    (missed,) = measure_case(nothing, ref, (1, 1, 1), {"lesion": 1}, LESIONS)
    assert [missed[name] for name in LESIONS] == [0, 0, 0, 2, 0]
    (false,) = measure_case(ref, nothing, (1, 1, 1), {"lesion": 1}, LESIONS)
    assert math.isnan(float(str(false["lesion_recall"])))  # there was none to find, whatever the arm
    assert [false[name] for name in LESIONS if name != "lesion_recall"] == [0, 0, 0, 2]


def test_the_threshold_of_a_match_is_in_the_name() -> None:
    ref, pred = block(1, 1, 1, size=4), block(1, 1, 1, size=4)
    pred[1:3] = 0  # IoU 0.5
    names = ("lesion_f1", "lesion_f1_iou0.5", "lesion_f1_iou0.51")
    (line,) = measure_case(pred, ref, (1, 1, 1), {"lesion": 1}, names)
    assert [line[name] for name in names] == [1, 1, 0]
