"""Agreement by region and who is right, against counts by hand."""

import json

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.evaluation.fidelity import (
    REGIONS,
    CaseFidelity,
    agreement,
    label_agreement,
    outcomes,
    pool,
    region_map,
)

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def line(*values: int) -> np.ndarray:
    return np.array(values, np.int16)[:, None, None]


def one_hot(label: np.ndarray, sure: float = 1.0) -> np.ndarray:
    other = (1 - sure) / 2
    return np.stack([np.where(label == k, sure, other) for k in range(3)]).astype(np.float32)


def test_regions_lie_by_distance_in_mm() -> None:
    label = line(0, 0, 0, 0, 1, 1, 1, 1, 1, -1)
    assert region_map(label, (1, 1, 1), 0).ravel().tolist() == [2, 2, 2, 1, 1, 0, 0, 0, 0, 255]
    assert region_map(label, (1, 1, 1), 2).ravel().tolist() == [2, 1, 1, 1, 1, 1, 1, 0, 0, 255]
    assert region_map(label, (2, 1, 1), 2).ravel().tolist() == [2, 2, 1, 1, 1, 1, 0, 0, 0, 255]
    nothing = np.zeros((3, 4, 5), np.int16)
    assert (region_map(nothing, (1, 1, 1)) == 2).all()
    assert (region_map(nothing + 1, (1, 1, 1)) == 0).all()


def test_a_surface_between_two_organs_is_a_boundary() -> None:
    assert region_map(line(1, 1, 2, 2), (1, 1, 1), 0).ravel().tolist() == [0, 1, 1, 0]


def test_regions_of_a_large_volume_are_those_of_the_whole_distance_map() -> None:
    """Distances are only worked out around the surfaces; nothing may be lost by that."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    label = (ndimage.gaussian_filter(rng.standard_normal((20, 18, 22)), 3) > 0.03).astype(np.int16)
    found = region_map(label, (1.5, 1.0, 3.0), 3.0)
    edge = region_map(label, (1.5, 1.0, 3.0), 0) == 1
    near = ndimage.distance_transform_edt(~edge, sampling=(1.5, 1.0, 3.0)) <= 3.0
    assert np.array_equal(found == 1, near)


def test_agreement_and_divergence_by_hand() -> None:
    reference = line(0, 0, 0, 1, 1, 1)
    regions = region_map(reference, (1, 1, 1), 0)
    teacher, student = one_hot(reference, 0.8), one_hot(line(0, 0, 1, 1, 1, 1), 0.8)
    found = {one.region: one for one in agreement(teacher, student, regions)}
    assert tuple(found) == REGIONS
    assert [found[name].n_voxels for name in REGIONS] == [2, 2, 2, 6]
    assert [found[name].agreement for name in REGIONS] == [1, 0.5, 1, 5 / 6]
    kl = 0.8 * np.log(0.8 / 0.1) + 0.1 * np.log(0.1 / 0.8)
    assert found["boundary"].kl_nats == pytest.approx(kl / 2, rel=1e-5)
    assert found["foreground"].kl_nats == pytest.approx(0, abs=1e-6)
    assert found["all"].kl_nats == pytest.approx(kl / 6, rel=1e-5)


def test_classes_that_were_kept_decide_where_probabilities_are_coarse() -> None:
    label = line(0, 1, 2)
    coarse = np.full((3, 3, 1, 1), 1 / 3, np.float32)
    regions = region_map(label, (1, 1, 1))
    assert agreement(coarse, one_hot(label), regions)[-1].agreement == pytest.approx(1 / 3)
    assert agreement(coarse, one_hot(label), regions, label)[-1].agreement == 1


def test_divergence_is_finite_and_has_a_direction() -> None:
    label = line(0, 1)
    regions = region_map(label, (1, 1, 1))
    sure, unsure = one_hot(label), one_hot(label, 0.5)
    forward = agreement(sure, unsure, regions)[-1].kl_nats
    assert forward == pytest.approx(np.log(2), rel=1e-5)
    backward = agreement(unsure, sure, regions)[-1].kl_nats
    assert backward is not None
    assert np.isfinite(backward)
    assert backward > 2
    half = agreement((sure * 0.5).astype(np.float16), unsure, regions)[-1]  # stored coarsely, not quite a distribution
    assert half.kl_nats == pytest.approx(forward, rel=1e-3)


def test_outcomes_count_what_anybody_gives_to_the_class() -> None:
    reference = line(0, 1, 1, 1, 1, 0, 2, -1)
    teacher = line(0, 1, 1, 0, 0, 1, 2, 1)
    student = line(0, 1, 0, 1, 0, 0, 2, 2)
    liver, spleen = outcomes(teacher, student, reference, LABELS)
    assert (liver.label, liver.both_right, liver.student_only, liver.teacher_only, liver.both_wrong) == (
        "liver",
        1,
        2,
        1,
        1,
    )
    assert (spleen.n_voxels, spleen.both_right) == (1, 1)


def test_cases_are_added_and_survive_json() -> None:
    reference = line(0, 0, 1, 1)
    regions = region_map(reference, (1, 1, 1), 0)
    soft = one_hot(reference, 0.8)
    first = CaseFidelity("a", agreement(soft, soft, regions), outcomes(reference, reference, reference, LABELS))
    second = CaseFidelity(
        "b", label_agreement(reference, 1 - reference, regions), outcomes(reference, 1 - reference, reference, LABELS)
    )
    first, second = (CaseFidelity.from_json(json.loads(json.dumps(case.to_json()))) for case in (first, second))
    together, who = pool([first, second])
    assert together[-1].agreement == 0.5
    assert together[-1].kl_nats is None, "one case knows no divergence"
    assert pool([first, first])[0][-1].kl_nats == pytest.approx(0, abs=1e-6)
    assert (who[0].n_voxels, who[0].both_right, who[0].teacher_only) == (6, 2, 4)
    assert pool([]) == ((), ())


def test_other_grids_and_bands_are_refused() -> None:
    regions = region_map(line(0, 1), (1, 1, 1))
    with pytest.raises(UserError, match="do not lie on one grid"):
        agreement(one_hot(line(0, 1)), one_hot(line(0, 1, 1)), regions)
    with pytest.raises(UserError, match="do not lie on one grid"):
        label_agreement(line(0, 1), line(0, 1, 1), regions)
    with pytest.raises(UserError, match="band_mm -1"):
        region_map(line(0, 1), (1, 1, 1), -1)
