from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medkd.errors import UserError
from medkd.report.summary import Comparison, Fidelity, Lost, Provenance, Reliability, RunSummary, VolumeView


def test_a_run_survives_json(make_run) -> None:
    run = make_run()
    text = json.dumps(run.to_json(), allow_nan=False)
    again = RunSummary.from_json(json.loads(text))
    assert again.to_json() == run.to_json()
    assert (again.arms, again.comparisons, again.curves) == (run.arms, run.comparisons, run.curves)
    assert (again.data, again.provenance, again.parity) == (run.data, run.provenance, run.parity)
    for mine, theirs in zip(again.slices, run.slices, strict=True):
        assert mine.image.dtype == np.uint8
        assert mine.spacing_mm == theirs.spacing_mm
        assert mine.sides == theirs.sides
        for name in ("image", "label", "student", "teacher"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_a_missing_value_is_none_in_json(make_run) -> None:
    run = make_run()
    lost = [i for i, row in enumerate(run.rows) if math.isnan(row["dice"])]
    assert lost
    written = run.to_json()["rows"]
    assert all(written[i]["dice"] is None for i in lost)


@pytest.mark.parametrize("change", [{"format": 99}, {"arms": [{"colour": "red"}]}, {"surprise": 1}])
def test_another_layout_is_refused(make_run, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="write it again"):
        RunSummary.from_json({**make_run().to_json(), **change})


def test_a_comparison_is_read_from_a_paired_test() -> None:
    values = {
        "arm_a": "s", "arm_b": "c", "metric": "dice", "sentence": "It helped.", "verdict": "helped",
        "difference": 0.02, "effect_size": 1.0, "notes": ["one seed"], "per_class": [{"label": "liver", "ci_low": 0.0}],
    }  # fmt: skip
    found = Comparison.of(values)
    assert (found.difference, found.notes, found.per_class[0]["label"]) == (0.02, ("one seed",), "liver")


def test_arms_and_comparisons_are_found(make_run) -> None:
    run = make_run()
    assert run.arm("control").name == "student.control"
    assert run.arm("same_loss") is None
    assert run.comparison("student", "student.control", "hd95_mm").difference == -1.31
    assert run.comparison("student.control", "student") is None


def test_evidence_and_volumes_survive_json(make_run) -> None:
    label = np.arange(24, dtype=np.int16).reshape(2, 3, 4) % 3 - 1
    run = make_run(
        fidelity=(Fidelity("student", "teachers", "boundary", 0.91, None, 1200),),
        reliability=(Reliability("student", 0.02, 0.1, ((0.2, 0.25, 0.1), (0.9, 0.88, 0.9))),),
        lost=(Lost("lesion", "small", 5, 0.6, 0.4, 0.35, -0.2, "below 1 ml"),),
        volumes=(VolumeView("c1", np.ones((2, 3, 4), np.uint8), np.eye(4), label, {"student": label + 1}, "halved"),),
        provenance=Provenance(seeds=(0, 1), folds=(2,), teachers={"t": "unknown training data"}),
    )
    again = RunSummary.from_json(json.loads(json.dumps(run.to_json(), allow_nan=False)))
    for name in ("fidelity", "reliability", "lost", "provenance"):
        assert getattr(again, name) == getattr(run, name)
    (mine,), (theirs,) = again.volumes, run.volumes
    assert (mine.case, mine.note, list(mine.masks)) == (theirs.case, theirs.note, ["student"])
    np.testing.assert_array_equal(mine.label, label)
    np.testing.assert_array_equal(mine.masks["student"], label + 1)
    np.testing.assert_array_equal(mine.affine, np.eye(4))


def test_a_summary_without_evidence_is_still_read(make_run) -> None:
    values = make_run().to_json()
    for name in ("fidelity", "reliability", "lost", "volumes"):
        del values[name]
    again = RunSummary.from_json(values)
    assert (again.fidelity, again.reliability, again.lost, again.volumes) == ((), (), (), ())
