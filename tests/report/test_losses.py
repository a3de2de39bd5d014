from __future__ import annotations

from medkd.report.losses import MOST_ROWS, losses
from medkd.report.summary import Lost


def test_the_greatest_loss_comes_first_and_few_cases_are_never_the_headline(make_run, evidence) -> None:
    told = losses(make_run(**evidence))
    assert [row["label"] for row in told["rows"]] == ["lesion", "pancreas", "liver"]
    assert [row["side"] for row in told["rows"]] == ["less", "less", "more"]
    assert told["rows"][0]["few"]
    assert told["rows"][0]["width"] == 100
    assert told["sentence"] == (
        "Most was lost where pancreas is small (31 to 55 ml): mean Dice −0.110 against the teacher over 8 cases; "
        "the student is better than the control there by 0.050."
    )


def test_no_loss_is_said_so(make_run) -> None:
    told = losses(make_run(lost=(Lost("liver", "small", 5, 0.9, 0.92, None, 0.02),)))
    assert told["sentence"].startswith("In no class and size")
    assert not told["control"]


def test_unmeasured_and_many_rows(make_run) -> None:
    many = tuple(Lost(f"c{i}", "small", 5, 0.9, 0.8, 0.8, -0.1) for i in range(MOST_ROWS + 4))
    told = losses(make_run(lost=(*many, Lost("empty", "large", 0, None, None, None, None))))
    assert (len(told["rows"]), len(told["more"])) == (MOST_ROWS, 4)
    assert "the control does as well" in told["sentence"]
    assert losses(make_run()) == {"rows": [], "more": [], "control": False, "sentence": ""}
