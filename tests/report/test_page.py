from __future__ import annotations

import base64
import builtins
import json
import re
import stat
from html.parser import HTMLParser

import pytest

from medkd.errors import UserError
from medkd.report.page import render, write_report
from medkd.report.summary import Arm, DataFacts, Provenance, RunSummary
from medkd.report.tables import cases_csv
from medkd.report.verdict import verdict

pytest.importorskip("jinja2")
pytest.importorskip("plotly")
EVIL = "</script><script>alert('x')</script>"
LIBRARY = "/**\n* plotly.js v0\n*/"
VOID = {"meta", "link", "input", "br", "img"}


@pytest.fixture(autouse=True)
def without_the_library(request, monkeypatch) -> None:
    """Put a line in the place of Plotly's 5 MB, which take seconds to parse."""
    if "whole" not in request.node.name:
        monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: LIBRARY)


class Page(HTMLParser):
    """Elements, their texts, and whether they were closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        for tag in self.open[-1:]:
            self.texts.setdefault(tag, []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def figures(self) -> dict[str, object]:
        return next((json.loads(t) for t in self.texts.get("script", []) if t.startswith('{"per_class"')), {})


def small(text: str) -> str:
    """Return the page without the library, whose text is not ours."""
    return re.sub(r"<script>/\*.*?</script>", "", text, flags=re.DOTALL)


def test_every_element_is_closed_and_every_figure_has_its_place(make_run) -> None:
    page = Page(render(make_run()))
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(page.figures) == {"per_class", "frontier", "curve_0", "curve_1", "curve_2"}
    assert set(page.figures) <= set(ids)
    anchors = {attrs["href"][1:] for attrs in page.of("a") if attrs["href"].startswith("#")}
    assert anchors <= set(ids)


def test_the_verdict_comes_first(make_run) -> None:
    run = make_run()
    page = Page(render(run))
    assert page.texts["h1"] == ["Distillation helped: mean Dice rose by 0.034."]
    assert page.texts["p"][:2] == [verdict(run).lost, run.comparisons[0].sentence]
    assert page.texts["h2"] == [
        "Before you trust these numbers", "The arms", "Accuracy against speed", "Class by class", "Worst cases",
        "Training", "Export", "What was run",
    ]  # fmt: skip


def test_the_page_asks_the_network_for_nothing(make_run) -> None:
    text = render(make_run())
    page = Page(text)
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "srcset", "data"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value}>"
    policy = next(attrs["content"] for attrs in page.of("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "@import" not in small(text)
    assert "url(" not in small(text)


def test_the_whole_of_plotly_is_inside_once_and_only_where_there_is_a_figure(make_run) -> None:
    text = render(make_run())
    assert text.count("* plotly.js v") == 1
    assert len(text) > 1_000_000
    bare = render(make_run(rows=(), curves=()))
    assert "plotly.js" not in bare
    assert len(bare) < 200_000


def test_names_are_text_not_markup(make_run) -> None:
    arms = tuple(Arm(a.name, a.role, a.role + EVIL, EVIL, latency_s=a.latency_s) for a in make_run().arms)
    rows = tuple({**row, "label": row["label"] + EVIL, "case": row["case"] + EVIL} for row in make_run().rows)
    run = make_run(
        name=EVIL, arms=arms, rows=rows, config=EVIL, plan_notes=(EVIL,), warnings=(EVIL,), cost_note=EVIL,
        data=DataFacts(EVIL, EVIL, EVIL, {f"liver{EVIL}": 1}, {EVIL: 1}),
        provenance=Provenance(*[EVIL] * 3, {EVIL: EVIL}, {EVIL: EVIL}, {EVIL: 1.0}, EVIL, {EVIL: EVIL}, EVIL),
    )  # fmt: skip
    page = Page(render(run))
    assert page.open == []
    assert len(page.of("script")) == 4
    assert "<script>alert" not in render(run)
    assert EVIL in page.texts["pre"]
    assert page.figures["per_class"]


def test_cases_csv_can_be_taken_from_the_page(make_run) -> None:
    run = make_run()
    link = next(attrs for attrs in Page(render(run)).of("a") if attrs.get("download") == "cases.csv")
    assert base64.b64decode(link["href"].split("base64,")[1]).decode() == cases_csv(run)


def test_every_arm_has_one_colour(make_run) -> None:
    text = small(render(make_run()))
    for name in ("Teacher ensemble", "Student", "Control", "Pseudo-labels"):
        assert len(set(re.findall(rf'background:(#\w+)"></span>{name}<', text))) == 1


def test_slices_and_their_switches(make_run) -> None:
    run = make_run()
    page = Page(render(run))
    assert len([attrs for attrs in page.of("svg") if attrs.get("class") == "slice"]) == len(run.slices)
    assert {attrs["id"] for attrs in page.of("input")} == {"show-label", "show-teacher", "show-student"}
    assert "<h2>Worst cases" not in render(make_run(slices=()))


def test_the_least_run_still_has_a_page() -> None:
    page = Page(render(RunSummary("nothing yet", (), ())))
    assert page.open == []
    assert page.texts["h1"][0].startswith("Whether distillation helped was not measured")


def test_written_readable_and_into_a_folder_or_a_file(make_run, tmp_path) -> None:
    run = make_run(rows=(), curves=(), slices=())
    assert write_report(run, tmp_path / "new" / "a.html") == tmp_path / "new" / "a.html"
    path = write_report(run, tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render(run)
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "report.html"]


def test_a_place_that_cannot_be_written_is_named(make_run, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file"):
        write_report(make_run(rows=(), curves=(), slices=()), tmp_path / "file" / "report.html")


@pytest.mark.parametrize("absent", ["jinja2", "plotly", "skimage"])
def test_what_to_install_is_told(make_run, monkeypatch, absent: str) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.split(".")[0] == absent:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'medkd\[report\]'"):
        render(make_run())
