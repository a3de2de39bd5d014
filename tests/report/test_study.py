from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from medkd.evaluation.cases import Row
from medkd.evaluation.stats import paired
from medkd.report.page import render
from medkd.report.study import Study, study_of
from medkd.report.summary import RunSummary
from medkd.report.tables import study_files, study_table
from medkd.report.verdict import verdict

GAINS = {"kd": 0.05, "cwd": 0.004, "at": -0.06}


def rows(arm: str, gain: float, cases: int = 14) -> list[Row]:
    draw = np.random.default_rng(3)
    found = []
    for seed in range(3):
        for i in range(cases):
            base = 0.8 + 0.05 * draw.normal()
            noise = 0.03 * float(np.random.default_rng([seed, i, len(arm)]).normal())
            dice = base + gain + (noise if arm != "plain" else 0.0)
            values = {"dice": dice, "hd95_mm": 10 * (1 - dice)}
            found.append(Row(arm, arm, 0, seed, f"c{i}", f"p{i}", "liver", values, 100, 100))
    return found


@pytest.fixture
def study() -> Study:
    plain = rows("plain", 0.0)
    return study_of("plain", [paired(rows(m, g), plain, k) for k in ("hd95_mm", "dice") for m, g in GAINS.items()])


def test_dice_decides_and_the_best_stands_first(study: Study) -> None:
    assert study.metrics == ("dice", "hd95_mm")
    assert [line.method for line in study.main] == ["kd", "cwd", "at"]
    assert [line.method for line in study.of("hd95_mm")] == ["kd", "cwd", "at"], "smaller distances first"
    assert study.main[0].difference == pytest.approx(0.05, abs=0.02)


def test_p_is_corrected_for_the_number_of_methods(study: Study) -> None:
    raw = sorted(line.wilcoxon_p for line in study.main if line.wilcoxon_p is not None)
    smallest = min(line.holm_p for line in study.main if line.holm_p is not None)
    assert smallest == pytest.approx(3 * raw[0])
    assert {line.method: line.verdict for line in study.main} == {"kd": "helped", "cwd": "not shown", "at": "hurt"}


def test_a_gain_that_holm_does_not_bear_out_is_not_shown() -> None:
    plain = rows("plain", 0.0, cases=7)
    one = paired(rows("kd", 0.05, cases=7), plain)
    assert one.verdict == "helped"
    many = study_of("plain", [one, *(dataclasses.replace(one, arm_a=f"m{i}") for i in range(9))])
    assert {line.verdict for line in many.main} == {"not shown"}


def test_headline_and_evidence(study: Study) -> None:
    assert study.headline == "1 of 3 methods helped and 1 hurt, against plain."
    assert study.evidence.startswith("Best: kd, mean Dice +0.0")
    assert study.evidence.endswith("over 14 cases and 3 seeds; p is corrected for 3 methods by Holm.")


def test_the_table_ends_with_the_baseline(study: Study) -> None:
    head, body = study_table(study)
    assert head == ["Method", "Mean Dice", "Difference", "95 % interval", "Wilcoxon p (Holm)", "Verdict"]
    assert [row[0] for row in body] == ["kd", "cwd", "at", "plain (baseline)"]
    assert all(len(row) == len(head) for row in body)


def test_files_hold_every_metric(study: Study) -> None:
    files = study_files(study)
    assert set(files) == {"study.md", "study.csv", "study.json"}
    assert "| kd " in files["study.md"]
    lines = list(csv.DictReader(io.StringIO(files["study.csv"])))
    assert [(line["metric"], line["method"]) for line in lines[:4]] == [
        ("dice", "kd"), ("dice", "cwd"), ("dice", "at"), ("hd95_mm", "kd")
    ]  # fmt: skip
    assert Study.from_json(json.loads(files["study.json"])) == study


def test_the_page_begins_with_the_study(make_run, study: Study) -> None:
    run = make_run(study=study)
    assert verdict(run).headline == study.headline
    page = render(run)
    assert "Every method against plain" in page
    assert page.index('id="study"') < page.index('id="arms"')
    assert "Every method against" not in render(make_run())


def test_a_summary_with_a_study_is_read_back(make_run, study: Study) -> None:
    run = make_run(study=study)
    assert RunSummary.from_json(json.loads(json.dumps(run.to_json()))).study == study


def test_a_study_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="without a comparison"):
        study_of("plain", [])
