from __future__ import annotations

import json
from pathlib import Path

import pytest

from medkd.cli import call
from medkd.conformance.rules import RULES
from medkd.methods.catalogue import CATALOGUE

LOSSES = """\
import torch.nn.functional as F

def good(student, teacher, temperature=1.0):
    s, t = student.float() / temperature, teacher.detach().float() / temperature
    return F.kl_div(s.log_softmax(1), t.softmax(1), reduction="none").sum(1).mean()

def batchmean(student, teacher):
    return F.kl_div(student.float().log_softmax(1), teacher.detach().float().softmax(1), reduction="batchmean")
"""


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("losses_for_a_test.py").write_text(LOSSES)
    return "losses_for_a_test.py"


def test_a_good_loss_keeps_every_rule(losses: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["conformance", f"{losses}:good", "--with", "temperature=2"]) == 0
    out = capsys.readouterr().out
    assert "keeps 19 of 19 rules" in out
    assert "FAIL" not in out


def test_a_broken_loss_is_told_why_and_fails(losses: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = losses.removesuffix(".py")  # beside the user, not installed
    assert call(["conformance", f"{module}:batchmean"]) == 1
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("patch"))
    assert "FAIL" in row
    assert "with four times the voxels" in row or "mirror" in row


def test_conformance_for_programs(losses: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["conformance", f"{losses}:batchmean", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [one["rule"] for one in told["rules"]] == list(RULES)
    assert {one["rule"] for one in told["rules"] if one["outcome"] == "fail"} == {"patch"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["losses_for_a_test.py:god"], "did you mean 'good'"),
        (["nowhere:god"], "nowhere cannot be imported"),
        (["kdd"], "'kdd' is no method of the catalogue (did you mean 'kd'?)"),
        (["losses_for_a_test.py:good", "--with", "temperature"], "--with temperature: not an assignment"),
    ],
)
def test_what_is_no_loss_is_told(losses: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["conformance", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_list_has_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(any(line.startswith(f"{key} ") for line in out.splitlines()) for key in CATALOGUE)
    row = next(line for line in out.splitlines() if line.startswith("kd "))
    assert "logits" in row
    assert "cached" in row
    assert "Hinton 2014" in row
    assert call(["methods", "--json"]) == 0
    told = {one["key"]: one for one in json.loads(capsys.readouterr().out)}
    assert told["boundary"]["confidence"] == "after"
    assert told["at"]["cacheable"] is False


def test_a_method_is_told_with_its_formula_and_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["methods", "dist"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("dist(temperature=1.0")
    assert ".. math::" in out
    assert "Reference:" in out
    assert out.index("In a run:") < out.index("name: dist")
    assert call(["methods", "dist", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["example"].count("dist") >= 2
    assert told["arguments"]["beta"] == 1.0
