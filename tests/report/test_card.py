from __future__ import annotations

from dataclasses import replace

from medkd.report.card import model_card
from medkd.report.summary import Arm, DataFacts, RunSummary


def test_a_card_tells_what_where_from_how_good_and_what_not(make_run, evidence) -> None:
    card = model_card(make_run(**evidence))
    for title in ("Data", "How good it is", "Where it falls short", "Where it comes from", "Licences"):
        assert f"\n## {title}\n" in card
    assert "liver, spleen, left kidney, right kidney, pancreas and lesion" in card
    assert "Distillation helped: mean Dice +0.034" in card
    assert "not a medical device" in card
    assert "| Student " in card
    assert "| pancreas " in card
    assert "No teacher saw a validation or test case of the student." in card
    assert "- teachers: Apache-2.0" in card
    assert "- Most was lost where pancreas is small" in card
    assert "- Two seeds only" in card
    assert "ECE" in card


def test_what_is_not_known_is_said(make_run) -> None:
    card = model_card(RunSummary("nothing yet", (), ()))
    assert "- Data: not known" in card
    assert "- Leakage: not checked" in card
    assert "How far its probabilities can be believed was not measured." in card


def test_names_are_text(make_run) -> None:
    run = make_run(name="<script>\n# evil", data=DataFacts("<img>", "a\nb", labels={"<b>": 1}))
    run = replace(run, arms=tuple(Arm(a.name, a.role, f"{a.role}<script>") for a in run.arms))
    card = model_card(run)
    assert "<" not in card.replace("p < 0.0001", "")
    assert "\n# evil" not in card
