"""Runs side by side: order, groups, corrected verdicts, and what the files say."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from medkd.evaluation.stats import paired
from medkd.report.leaderboard import leaderboard
from medkd.report.leaderboard_page import (
    leaderboard_csv,
    leaderboard_json,
    leaderboard_markdown,
    render,
    write_leaderboard,
)
from medkd.report.study import study_of
from medkd.report.summary import Provenance, RunSummary


def shifted(run: RunSummary, gain: float) -> RunSummary:
    """The student better by ``gain`` in every case."""
    rows = tuple({**row, "dice": float(str(row["dice"])) + gain * (row["arm"] == "student")} for row in run.rows)
    told = {"student": ("supervised", "Mine"), "student.control": ("labels only",)}
    arms = tuple(
        dataclasses.replace(arm, methods=told.get(arm.name, ()), teacher="" if arm.name == "teachers" else "teachers")
        for arm in run.arms
    )
    return dataclasses.replace(run, rows=rows, arms=arms)


def test_arms_are_ranked_over_runs_and_told_what_they_are(make_run: Any) -> None:
    board = leaderboard({"a": shifted(make_run(), 0.0), "b": shifted(make_run(), 0.5)})
    (group,) = board.groups
    assert [(e.arm, e.runs) for e in group.entries][:2] == [("student", ("b",)), ("teachers", ("a",))]
    means = [entry.mean for entry in group.entries]
    assert means == sorted(means, key=lambda value: -(value or 0))
    best = group.entries[0]
    assert best.methods == ("supervised", "Mine")
    assert best.teacher == "teachers"
    assert best.gap is not None
    assert best.gap == pytest.approx((best.mean or 0) - (group.entries[1].mean or 0))
    assert best.seeds == (0, 1)
    assert sum(best.by_seed.values()) / 2 == pytest.approx(best.mean)
    control = next(entry for entry in group.entries if entry.arm == "student.control")
    assert (control.methods, control.teacher, control.verdict) == (("labels only",), "teachers", "")
    assert "24 cases of 24 patients" in group.title


def test_the_comparison_with_the_control_is_corrected_for_all_of_the_table(make_run: Any) -> None:
    run = make_run()
    first = dataclasses.replace(run.comparisons[0], wilcoxon_p=0.03)
    weak = dataclasses.replace(run, comparisons=(first, *run.comparisons[1:]))
    alone = leaderboard({"a": weak}).groups[0]
    assert leaderboard({"a": weak}).headline == "One distilled student is shown to be better than its control."
    (entry,) = [entry for entry in alone.entries if entry.verdict]
    assert (entry.verdict, entry.holm_p, entry.against) == ("helped", pytest.approx(0.03), "student.control")
    both = leaderboard({"a": weak, "b": weak}).groups[0]
    assert [entry.verdict for entry in both.entries if entry.against] == ["not shown", "not shown"]
    assert [entry.holm_p for entry in both.entries if entry.against] == pytest.approx([0.06, 0.06])
    assert both.compared == 2


def test_runs_on_other_cases_or_data_stand_in_tables_of_their_own(make_run: Any) -> None:
    run = make_run()
    fewer = dataclasses.replace(run, rows=tuple(row for row in run.rows if row["case"] != "abd_003"))
    changed = dataclasses.replace(run, provenance=dataclasses.replace(run.provenance, data_hash="other"))
    board = leaderboard({"a": run, "b": fewer, "c": changed, "d": run})
    assert [{name for e in group.entries for name in e.runs} for group in board.groups] == [{"a", "d"}, {"b"}, {"c"}]
    assert board.headline.startswith("3 tables: these runs were not tested on the same cases")


def test_the_same_trainings_stand_once(make_run: Any) -> None:
    keys = {"evaluate.teachers.f0.s0.main": "k1", "evaluate.student.f0.s0.main": "k2"}
    run = make_run(provenance=Provenance(keys=keys))
    other = dataclasses.replace(
        run, provenance=Provenance(keys={**keys, "evaluate.student.f0.s0.main": "k3"}), comparisons=()
    )
    (group,) = leaderboard({"a": run, "b": other}).groups
    assert [entry.runs for entry in group.entries if entry.arm == "teachers"] == [("a", "b")]
    assert sorted(entry.runs for entry in group.entries if entry.arm == "student") == [("a",), ("b",)]


def test_methods_of_a_study_are_entries(make_run: Any) -> None:
    from medkd.evaluation.cases import Row

    run = make_run()
    of = {a: [Row.from_record(r) for r in run.rows if r["arm"] == a] for a in ("student", "student.control")}
    study = study_of("student.control", [paired(of["student"], of["student.control"], "dice")])
    (group,) = leaderboard({"a": dataclasses.replace(run, comparisons=(), study=study)}).groups
    (entry,) = [entry for entry in group.entries if entry.verdict]
    assert (entry.arm, entry.against, entry.verdict) == ("student", "student.control", "helped")


def test_distances_rank_the_other_way_round(make_run: Any) -> None:
    (group,) = leaderboard({"a": make_run()}, "hd95_mm").groups
    means = [entry.mean for entry in group.entries]
    assert means == sorted(means, key=lambda value: value or 0)
    assert next(e for e in group.entries if e.verdict).verdict == "helped"


def test_a_run_of_teachers_alone_has_no_verdict(make_run: Any) -> None:
    run = make_run()
    teachers = dataclasses.replace(run, arms=run.arms[:1], comparisons=())
    board = leaderboard({"a": teachers})
    assert board.headline == "No distilled student was compared with a control."
    assert "teachers" in leaderboard_markdown(board)


def test_files(make_run: Any, tmp_path: Path) -> None:
    board = leaderboard({"=a": shifted(make_run(), 0.0), "<b>": shifted(make_run(), 0.01)})
    paths = write_leaderboard(board, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "leaderboard.csv",
        "leaderboard.html",
        "leaderboard.json",
        "leaderboard.md",
    ]
    told = json.loads(paths["json"].read_text())
    assert told == json.loads(json.dumps(leaderboard_json(board), allow_nan=False))
    assert told["groups"][0]["entries"][0]["arm"] == "teachers"
    lines = list(csv.DictReader(io.StringIO(leaderboard_csv(board))))
    assert len(lines) == 8
    assert {line["runs"] for line in lines} == {"'=a", "<b>"}
    assert all(line["dice[liver]"] and line["dice[seed 0]"] for line in lines)
    page = render(board)
    assert "&lt;b&gt;" in page
    assert "<b>:" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('class="forest" viewBox') == 2
    assert "2 of 2 distilled students shown to be better than their control." in page
    assert paths["md"].read_text().count("| student ") == 2
