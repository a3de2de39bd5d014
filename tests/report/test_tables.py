from __future__ import annotations

import csv
import io
import json

import pytest

from medkd.report import tables
from medkd.report.page import render
from medkd.report.summary import Arm, CaseCost, RunSummary


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_arms_keep_their_order_and_their_numbers(make_run) -> None:
    head, body = tables.arms_table(make_run())
    assert head[:6] == ["Arm", "Cases", "Dice", "HD95 (mm)", "NSD at 2 mm", "Parameters"]
    assert [row[0] for row in body] == ["Teacher ensemble", "Student", "Control", "Pseudo-labels"]
    assert body[1][5:] == ["318 k", "26.1 G", "1.47", "412", "1.31"]


def test_markdown_is_one_table_with_every_cell_escaped(make_run) -> None:
    run = make_run(arms=(Arm("student", "student", "a|b"),))
    lines = tables.arms_markdown(run).splitlines()
    assert len(lines) == 3
    assert "a\\|b" in lines[2]
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}
    assert len({len(line) for line in lines}) == 1


def test_json_is_full_precision_and_finite(make_run) -> None:
    run = make_run()
    found = tables.arms_json(run)
    json.dumps(found, allow_nan=False)
    student = next(arm for arm in found if arm["arm"] == "student")
    cases = [row["dice"] for row in run.rows if row["arm"] == "student" and row["label"] == "liver"]
    assert student["per_class"]["liver"]["dice"] == pytest.approx(sum(cases) / len(cases))
    assert student["weights_bytes"] == 1_310_000


def test_classes_are_rows_and_arms_are_columns(make_run) -> None:
    head, body = tables.classes_table(make_run(), "hd95_mm")
    assert head == ["Class", "Teacher ensemble", "Student", "Control", "Pseudo-labels"]
    assert [row[0] for row in body][-2:] == ["pancreas", "lesion"]


def test_csv_of_cases_holds_every_row_and_leaves_gaps_empty(make_run) -> None:
    run = make_run()
    found = read(tables.cases_csv(run))
    assert len(found) == len(run.rows)
    assert {row["dice"] for row in found if row["case"] == "abd_001" and row["label"] == "lesion"} == {""}
    assert float(found[0]["dice"]) == run.rows[0]["dice"]


def test_csv_of_arms_has_a_column_for_a_class(make_run) -> None:
    assert float(read(tables.arms_csv(make_run()))[1]["dice[liver]"]) > 0.9


def test_what_a_case_costs_from_file_to_file(make_run) -> None:
    cost = CaseCost("student", "cuda", "GPU", 4, 3, 1.5, {"load": 0.5, "network": 0.25}, 412.0, 96.4, 0.01)
    run = make_run(case_costs=(cost, CaseCost("gone", "cpu")))
    head, body = tables.case_costs_table(run)
    assert (head[2], head[3], head[-1]) == ("Case (s)", "Load", "One window (s)")
    assert body[0] == ["Student", "cuda (96 MB)", "1.50", "0.500", "–", "0.250", "–", "–", "412", "0.0100"]
    assert body[1][:3] == ["gone", "cpu", "–"]
    assert RunSummary.from_json(json.loads(json.dumps(run.to_json()))).case_costs == run.case_costs
    page = render(run)
    assert "A case from file to file" in page
    assert "A case from file to file" not in render(make_run())


def test_a_spreadsheet_runs_no_name_as_a_formula(make_run) -> None:
    row = {"arm": "student", "case": "=HYPERLINK(1)", "label": "liver", "dice": -0.5}
    found = read(tables.cases_csv(make_run(rows=(row,))))[0]
    assert (found["case"], found["dice"]) == ("'=HYPERLINK(1)", "-0.5")


def test_a_run_without_arms_or_rows_is_an_empty_table(make_run) -> None:
    assert tables.arms_table(make_run(arms=(), rows=()))[1] == []
    assert tables.classes_table(make_run(rows=()))[1] == []
