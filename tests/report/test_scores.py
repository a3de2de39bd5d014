from __future__ import annotations

import pytest

from medkd.report.scores import Scores


def row(case: str, label: str, dice: float | None, **more: object) -> dict[str, object]:
    return {"arm": "s", "seed": 0, "case": case, "label": label, "dice": dice, **more}


def test_seeds_then_classes_then_cases_then_patients() -> None:
    scores = Scores([
        row("a", "liver", 0.6, patient="p"), row("a", "liver", 0.8, patient="p", seed=1),
        row("a", "spleen", 0.9, patient="p"),
        row("b", "liver", 0.5, patient="p"), row("b", "spleen", float("nan"), patient="p"),
        row("c", "liver", 0.2, patient="q"), row("c", "spleen", None, patient="q"),
    ])  # fmt: skip
    assert scores.by_case("s", "dice", "liver") == pytest.approx({"a": 0.7, "b": 0.5, "c": 0.2})
    assert scores.case_means("s", "dice") == pytest.approx({"a": 0.8, "b": 0.5, "c": 0.2})
    assert scores.mean("s", "dice") == pytest.approx(((0.8 + 0.5) / 2 + 0.2) / 2)
    assert scores.mean("s", "dice", "spleen") == pytest.approx(0.9)
    assert (scores.cases("s"), scores.patients(), scores.labels) == (3, 2, ("liver", "spleen"))


def test_only_metrics_are_metrics() -> None:
    found = Scores(
        [row("a", "liver", 0.6, fold=2, voxels_ref=10, volume_pred_ml=1.0, nsd_1mm=1, absent=False, stage="x")]
    )
    assert found.metrics == ("dice", "nsd_1mm")


def test_nothing_measured_is_none() -> None:
    scores = Scores([row("a", "liver", None)])
    assert scores.mean("s", "dice") is None
    assert scores.mean("unknown", "dice", "liver") is None
    assert scores.cases("s") == 0
