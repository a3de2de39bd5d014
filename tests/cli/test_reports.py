"""``medkd report`` and ``medkd gate`` on the folders of finished runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medkd.cli import call
from medkd.report.summary import Arm, Comparison, DataFacts, RunSummary

ARMS = (Arm("teachers", "teacher"), Arm("student", "student"), Arm("student.control", "control"))


def finished(folder: Path, name: str, student: float = 0.85, cases: int = 8) -> Path:
    """Write what a finished run leaves: a report node with a summary."""
    level = {"teachers": 0.86, "student": student, "student.control": 0.8}
    rows = tuple(
        {"arm": arm, "stage": arm, "fold": 0, "seed": 0, "case": f"c{i}", "patient": f"c{i}", "label": "liver"}
        | {"dice": value + 0.001 * i + (0.0005 * i if arm == "student" else 0), "voxels_ref": 9, "voxels_pred": 9}
        for arm, value in level.items()
        for i in range(cases)
    )
    test = Comparison("student", "student.control", "dice", "Distillation helped.", "helped", 0.05, 0.04, 0.06, 0.01)
    data = DataFacts("Toy", labels={"background": 0, "liver": 1})
    run = RunSummary(name=name, arms=ARMS, rows=rows, comparisons=(test,), data=data)
    node = folder / name / "nodes" / "report-0123456789ab"
    node.mkdir(parents=True)
    (node / "manifest.json").write_text(json.dumps({"key": "0" * 32, "node": {"kind": "report"}}))
    (node / "summary.json").write_text(json.dumps(run.to_json()))
    return folder / name


def test_one_run_is_written_again_with_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path, "a")
    assert call(["report", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    told = json.loads((folder / "report.json").read_text())
    assert told["verdict"]["outcome"] == "helped"
    with (folder / "cases.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == 24
    assert (folder / "arms.csv").read_text().startswith("arm,role,cases,dice")
    assert (folder / "comparisons.csv").is_file()
    assert (folder / "model_card.md").read_text().startswith("# Model card: a\n")
    assert call(["report", str(folder), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "report.html").is_file()


def test_niivue_is_fetched_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("medkd.report.niivue.fetch_niivue", lambda: asked.append(True))
    folder = str(finished(tmp_path, "a"))
    assert call(["report", folder]) == 0
    assert asked == []
    assert call(["report", folder, "--niivue"]) == 0
    assert asked == [True]


def test_several_runs_make_a_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(finished(tmp_path, "a")), str(finished(tmp_path, "b", 0.9))]
    assert call(["report", *folders]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"leaderboard: {tmp_path / 'leaderboard.html'}"
    assert "2 of 2 distilled students shown to be better than their control" in out
    for suffix in ("html", "md", "csv", "json"):
        assert (tmp_path / f"leaderboard.{suffix}").is_file()
    assert call(["report", *folders, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["groups"][0]["entries"]
    assert (entries[0]["arm"], entries[0]["runs"]) == ("student", ["b"])
    assert call(["report", *folders, "--metric", "dicee"]) == 2
    assert "'dicee'" in capsys.readouterr().err


def test_runs_on_other_cases_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(finished(tmp_path, "a")), str(finished(tmp_path, "b", cases=9))]
    assert call(["report", *folders]) == 0
    assert "2 tables: these runs were not tested on the same cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        (["--min-dice", "liver=0.8", "--min-dice", "mean=0.8"], 0),
        (["--min-dice", "liver=0.9"], 1),
        (["--noninferior", "0.02"], 0),
        (["--noninferior", "0.001"], 1),
        (["--noninferior", "0.02", "--against", "student.control", "--arm", "teachers"], 0),
        (["--min-dice", "spleen=0.9"], 2),
        (["--min-dice", "liver"], 2),
        ([], 2),
    ],
)
def test_the_gate_answers_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], conditions: list[str], code: int
) -> None:
    folder = finished(tmp_path, "a")
    assert call(["gate", str(folder), *conditions]) == code
    told = capsys.readouterr()
    if code == 1:
        assert "FAIL" in told.out
        assert told.err == "medkd: error: student of a fails 1 of 1 conditions\n"
    if code == 2:
        assert told.err.startswith("medkd: error: ")
        assert told.out == ""
    else:
        assert call(["gate", str(folder), *conditions, "--json"]) == code
        assert json.loads(capsys.readouterr().out)["passed"] is (code == 0)


def test_an_unfinished_run_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["gate", str(tmp_path), "--noninferior", "0.01"]) == 2
    assert "is no folder of a finished run" in capsys.readouterr().err
