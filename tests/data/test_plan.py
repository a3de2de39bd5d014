from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medkd.data.dataset import Dataset, load_dataset
from medkd.data.facts import CaseFacts, Fingerprint, Intensity
from medkd.data.fingerprint import fingerprint
from medkd.data.plan import IntensityRule, Plan, make_plan
from medkd.data.sides import left_right
from medkd.data.strides import network_shape, thick_axis, total_stride
from medkd.errors import UserError

LABELS = {"background": 0, "organ": 1}


def dataset(channels=("MRI",), labels=LABELS):
    return Dataset("d", Path(), (), dict(labels), channels, None, None)


def facts(shapes, spacings, intensity=()):
    cases = {
        str(i): CaseFacts(str(i), True, readable=True, shape=tuple(shape), spacing_mm=tuple(spacing))
        for i, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True))
    }
    return Fingerprint("d", dict(LABELS), ("MRI",), cases, (1, 1, 1), (1.0, 1.0, 1.0), tuple(intensity), (), "")


def alike(shape, spacing_mm, count=100, intensity=()):
    return facts([shape] * count, [spacing_mm] * count, intensity)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_hippocampus_gets_nnunets_plan():
    plan = make_plan(alike((35, 51, 35), (1.0, 1.0, 1.0), 260), dataset(), memory_gb=8)
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.patch == (40, 56, 40)
    assert plan.batch == 9
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.kernels == ((3, 3, 3),) * 4


def test_prostate_is_anisotropic_as_in_nnunet():
    plan = make_plan(alike((320, 320, 20), (0.625, 0.625, 3.6), 32), dataset(), memory_gb=8)
    assert plan.patch[:2] == (320, 320) and plan.patch[2] == 20
    assert plan.strides == (
        (1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1),
    )  # fmt: skip
    assert plan.kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


def test_thick_slices_take_the_tenth_percentile():
    spacings = [(0.7, 0.7, z) for z in np.linspace(2.5, 7.5, 11)]
    plan = make_plan(facts([(512, 512, 60)] * 11, spacings), dataset(), memory_gb=8)
    assert plan.spacing_mm == (0.7, 0.7, 3.0)
    isotropic = [(0.7, 0.7, z) for z in np.linspace(0.7, 1.7, 11)]
    assert make_plan(facts([(512, 512, 60)] * 11, isotropic), dataset(), memory_gb=8).spacing_mm == (0.7, 0.7, 1.2)
    # As many thick slices as pixels is a long scan, not a flat one: the median stays.
    assert make_plan(facts([(200, 200, 200)] * 11, spacings), dataset(), memory_gb=8).spacing_mm == (0.7, 0.7, 5.0)


def test_without_gpu_the_patch_is_modest():
    large = alike((512, 512, 300), (0.8, 0.8, 1.0))
    cpu, gpu = make_plan(large, dataset()), make_plan(large, dataset(), memory_gb=24)
    assert np.prod(cpu.patch) <= 64**3 and cpu.batch == 2
    assert np.prod(gpu.patch) > 10 * np.prod(cpu.patch)
    assert any("No GPU" in note for note in cpu.notes)
    assert any("24 GB, as given" in note for note in gpu.notes)
    small = make_plan(alike((35, 51, 35), (1.0, 1.0, 1.0), 260), dataset())
    assert small.patch == (40, 56, 40) and 2 <= small.batch <= 9


def test_memory_of_the_gpu_is_used(monkeypatch):
    class Properties:
        total_memory = 16e9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    case = alike((512, 512, 300), (0.8, 0.8, 1.0))
    assert make_plan(case, dataset()).patch == make_plan(case, dataset(), memory_gb=16).patch


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 600)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.3, 8)] * 3),
    memory_gb=st.sampled_from([None, 2.0, 8.0, 24.0]),
)
def test_every_plan_can_be_trained(shape, spacing_mm, memory_gb):
    plan = make_plan(alike(shape, spacing_mm, 10), dataset(), memory_gb=memory_gb)
    size = np.array(shape) * np.array(spacing_mm) / plan.spacing_mm
    assert all(p % d == 0 for p, d in zip(plan.patch, plan.divisor, strict=True))
    assert all(p < s + d for p, s, d in zip(plan.patch, np.ceil(size), plan.divisor, strict=True))
    assert plan.batch >= 2 and len(plan.strides) == len(plan.kernels)
    assert network_shape(plan.patch, plan.spacing_mm) == (plan.strides, plan.kernels)
    least = np.array(plan.patch) / plan.divisor
    assert all(rest >= 4 or step == 1 for rest, step in zip(least, plan.divisor, strict=True))
    if memory_gb is None:
        assert np.prod(plan.patch) <= 64**3


def test_ct_is_clipped_by_foreground_and_mr_is_not():
    stats = Intensity(50.0, 30.0, 55.0, -90.0, 240.0, -1000.0, 2000.0)
    plan = make_plan(alike((64, 64, 64), (1, 1, 1), intensity=[stats] * 2), dataset(("CT", "PET")), memory_gb=8)
    assert plan.intensity == (IntensityRule("ct", -90.0, 240.0, 50.0, 30.0), IntensityRule("zscore"))
    unlabelled = make_plan(alike((64, 64, 64), (1, 1, 1)), dataset(("CT",)), memory_gb=8)
    assert unlabelled.intensity == (IntensityRule("zscore"),)
    assert any("no labelled foreground" in note for note in unlabelled.notes)


@pytest.mark.parametrize(
    ("labels", "pairs", "alone"),
    [
        (["background", "LeftParotid", "RightParotid"], ((1, 2),), ()),
        (["background", "kidney_right", "liver", "kidney_left"], ((3, 1),), ()),
        (["background", "Kidney R", "Kidney L", "OpticNerve_L", "OpticNerve_R"], ((2, 1), (3, 4)), ()),
        (["background", "left-lung", "right-lung", "lung_upper_lobe_left"], ((1, 2),), ("lung_upper_lobe_left",)),
        (["background", "lefthippocampus", "righthippocampus"], ((1, 2),), ()),
        (["background", "vertebrae_L1", "bright lesion", "Anterior", "left and right atrium"], (), ()),
        (["background", "SMG_R", "LKidney", "RKidney"], ((2, 3),), ("SMG_R",)),
        (["background", "Parotid_Lt", "Parotid_Rt"], ((1, 2),), ()),
    ],
)
def test_sides_are_found_in_names(labels, pairs, alone):
    assert left_right({name: value for value, name in enumerate(labels)}) == (pairs, alone)


def test_mirroring_follows_the_names():
    case = alike((64, 64, 64), (1.0, 1.0, 1.0))
    paired = make_plan(case, dataset(labels={"background": 0, "LeftEye": 1, "RightEye": 2}))
    assert paired.mirror_axes == (0,) and paired.mirror_swap == ((1, 2),)
    single = dataset(labels={"background": 0, "LeftEye": 1})
    alone = make_plan(case, single)
    assert alone.mirror_axes == () and any("LeftEye" in note for note in alone.notes)
    forced = make_plan(case, single, {"mirror_axes": [0]})
    assert forced.mirror_axes == (0,) and any("wrong side" in note for note in forced.notes)
    assert make_plan(case, dataset(), {"mirror_axes": []}).mirror_axes == ()


def test_overrides_replace_and_the_rest_follows():
    case = alike((100, 100, 100), (1.0, 1.0, 1.0))
    coarse = make_plan(case, dataset(), {"spacing_mm": [2, 2, 2], "batch": 3}, memory_gb=8)
    assert coarse.spacing_mm == (2.0, 2.0, 2.0) and coarse.batch == 3
    assert max(coarse.patch) <= 56
    patch = make_plan(case, dataset(), {"patch": [32, 32, 16]})
    assert patch.patch == (32, 32, 16) and patch.divisor == (8, 8, 4)
    strides = make_plan(case, dataset(), {"strides": [[1, 1, 1], [2, 2, 2]]}, memory_gb=8)
    assert strides.divisor == (2, 2, 2) and strides.patch == (100, 100, 100) and len(strides.kernels) == 2
    rule = {"kind": "ct", "low": -100, "high": 200, "mean": 40, "std": 50}
    assert make_plan(case, dataset(), {"intensity": rule}).intensity == (
        IntensityRule("ct", -100.0, 200.0, 40.0, 50.0),
    )
    assert make_plan(case, dataset(("T1", "T2")), {"intensity": "zscore"}).intensity == (IntensityRule("zscore"),) * 2
    assert make_plan(case, dataset(), {"patch": None, "spacing_mm": "auto"}) == make_plan(case, dataset())
    assert any("batch was given" in note for note in coarse.notes)


def test_patch_larger_than_the_volume_is_allowed_and_told():
    plan = make_plan(alike((35, 51, 35), (1.0, 1.0, 1.0)), dataset(), {"patch": [64, 64, 64]})
    assert plan.patch == (64, 64, 64)
    assert any("padding" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"spacing": [1, 1, 1]}, "did you mean 'spacing_mm'"),
        ({"patch": [44, 56, 40]}, r"not divisible by the total stride \[8, 8, 8\]: use \[48, 56, 40\]"),
        ({"patch": [40, 56]}, "three positive whole numbers"),
        ({"patch": [40.5, 56, 40]}, "three positive whole numbers"),
        ({"spacing_mm": [1, 0, 1]}, "three positive numbers in mm"),
        ({"spacing_mm": "fine"}, "three positive numbers in mm"),
        ({"batch": 0}, "a positive whole number"),
        ({"batch": "many"}, "a positive whole number"),
        ({"intensity": "minmax"}, "'zscore', or"),
        ({"intensity": {"kind": "ct"}}, "'zscore', or"),
        ({"intensity": {"kind": "ct", "low": 0, "high": 1, "mean": 0, "sd": 1}}, "'zscore', or"),
        ({"intensity": ["zscore", "zscore"]}, "2 rules but the dataset has 1 channels"),
        ({"mirror_axes": [3]}, "a list of axes"),
        ({"mirror_axes": 0}, "a list of axes"),
        ({"mirror_swap": [[1, 2, 3]]}, "pairs of label values"),
        ({"kernels": [[3, 3, 3]]}, "1 kernels but 4 strides"),
        ({"intensity": {"kind": "ct", "low": 5, "high": 1, "mean": 0, "std": 1}}, "low < high"),
        ({"strides": []}, "three whole numbers per resolution"),
    ],
)
def test_mistakes_are_told(overrides, told):
    with pytest.raises(UserError, match=told):
        make_plan(alike((35, 51, 35), (1.0, 1.0, 1.0)), dataset(), overrides)


def test_nothing_readable_is_told():
    with pytest.raises(UserError, match="no case of the dataset could be read"):
        make_plan(facts([], []), dataset())
    with pytest.raises(UserError, match="memory_gb"):
        make_plan(alike((35, 51, 35), (1.0, 1.0, 1.0)), dataset(), memory_gb=0)


def test_json_round_trip():
    stats = Intensity(50.0, 30.0, 55.0, -90.0, 240.0, -1000.0, 2000.0)
    pair = dataset(("CT",), {"background": 0, "eye_l": 1, "eye_r": 2})
    plan = make_plan(alike((200, 200, 30), (0.8, 0.8, 5.0), intensity=[stats]), pair)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(UserError, match="the plan lacks patch"):
        Plan.from_json({key: value for key, value in plan.to_json().items() if key != "patch"})
    with pytest.raises(UserError, match="no key 'pach'"):
        Plan.from_json({**plan.to_json(), "pach": 1})


def test_thick_axis_and_strides():
    assert thick_axis((1, 1, 3.1)) == 2 and thick_axis((4, 1, 1.2)) == 0
    assert thick_axis((1, 1, 3.0)) is None and thick_axis((1, 4, 4)) is None
    assert total_stride(((1, 1, 1), (2, 2, 1), (2, 2, 2))) == (4, 4, 2)


def test_a_written_dataset(tiny_dataset):
    found = load_dataset(tiny_dataset)
    plan = make_plan(fingerprint(found), found)
    assert plan.spacing_mm == (1.5, 1.5, 2.0) and plan.intensity[0].kind == "ct"
    assert plan.intensity[0].low > -50 and plan.intensity[0].high < 200


def test_real_hippocampus(real_data):
    found = load_dataset(real_data("Task04_Hippocampus"))
    plan = make_plan(fingerprint(found), found, memory_gb=8)
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.patch == (40, 56, 40) and plan.batch >= 2
    assert plan.intensity == (IntensityRule("zscore"),) and plan.mirror_axes == (0,)
