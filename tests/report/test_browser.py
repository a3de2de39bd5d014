"""The page in a real browser: figures are drawn, the viewer shows a volume, nothing asks the network for anything."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medkd.report.niivue import cached_file
from medkd.report.page import write_report
from medkd.report.summary import RunSummary

pytest.importorskip("jinja2")
pytest.importorskip("plotly")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is opened with playwright: pip install playwright"
)

PLACES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("MEDKD_CHROMIUM") or next(filter(None, map(shutil.which, PLACES)), None)
NIIVUE = os.environ.get("MEDKD_NIIVUE") or (str(cached_file()) if cached_file().is_file() else "")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt install chromium, or set MEDKD_CHROMIUM"
)
# Software rendering of WebGL, so that NiiVue runs on a machine without a graphics card.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENT_MS = 120_000
READ = (
    "id => { const c = document.getElementById(id);"
    " return c.getContext('2d').getImageData(0, 0, c.width, c.height).data }"
)
"""JavaScript: element id of a canvas -> its pixels, four numbers each."""
OWN = ("GPU stall", "swiftshader", "willreadfrequently")
"""Complaints about the software rendering and about this test's own reading of pixels."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser) -> Iterator[Any]:
    """A page of a laptop's size; the test fails on any complaint in its console and on any request but the file's."""
    opened = browser.new_page(viewport={"width": 1366, "height": 768})
    opened.set_default_timeout(PATIENT_MS)
    faults: list[str] = []
    opened.on("console", lambda m: faults.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda r: None if re.match("file:|data:|blob:", r.url) else faults.append(f"asks for {r.url}"))
    yield opened
    opened.close()
    assert [fault for fault in faults if not any(own.lower() in fault.lower() for own in OWN)] == []


@pytest.fixture
def written(make_run, make_view, evidence, tmp_path) -> Path:
    """A page without figures, for Plotly takes seconds to start."""
    views = (make_view("<script>alert('x')</script>"), make_view("second", seed=3, most_voxels=20_000))
    return write_report(make_run(volumes=views, rows=(), curves=()), tmp_path)


def opened(page: Any, path: Path) -> Any:
    page.goto(path.as_uri())
    page.evaluate("window.medkdViewer?.ready")
    return page


def keep(page: Any, plane: str = "axial") -> None:
    """Remember the picture of one plane, in the page: it is half a million numbers."""
    page.evaluate(f"id => {{ window.kept = ({READ})(id); }}", f"view-{plane}")


def differs(page: Any, plane: str = "axial") -> int:
    """Return how many numbers differ from the picture that was kept."""
    return page.evaluate(
        f"id => {{ const now = ({READ})(id); return window.kept.filter((v, i) => v !== now[i]).length; }}",
        f"view-{plane}",
    )


def changed(page: Any, act: Any) -> int:
    """Return how many numbers of the axial plane's picture an action changes."""
    keep(page)
    act()
    page.evaluate("medkdViewer.ready")
    return differs(page)


def test_every_figure_is_drawn_and_the_page_fits_a_laptop(page, make_run, make_view, evidence, tmp_path) -> None:
    opened(page, write_report(make_run(volumes=(make_view(),), **evidence), tmp_path))
    points = "f => [f.id, f.querySelectorAll('.point, .lines path').length]"
    drawn = page.evaluate(f"[...document.querySelectorAll('.figure')].map({points})")
    assert {name for name, _ in drawn} >= {"frontier", "per_class", "fidelity", "calibration", "curve_0"}
    assert all(count > 0 for _, count in drawn), drawn
    assert page.evaluate("document.documentElement.scrollWidth") <= 1366


def test_the_viewer_shows_a_volume_in_every_plane(page, written) -> None:
    opened(page, written)
    for plane in ("axial", "coronal", "sagittal"):
        greys, yellow = page.evaluate(
            f"""id => {{
              const d = ({READ})(id), greys = new Set();
              let yellow = 0;
              for (let i = 0; i < d.length; i += 4) {{
                if (d[i] === d[i + 1] && d[i] === d[i + 2]) greys.add(d[i]);
                if (d[i] > 150 && d[i + 1] > 140 && d[i + 2] < 120) yellow++;
              }}
              return [greys.size, yellow];
            }}""",
            f"view-{plane}",
        )
        assert greys > 40, plane  # a picture, not one colour
        assert yellow > 50, plane  # the label's outline
    assert page.locator("#viewer-case option").first.text_content() == "<script>alert('x')</script>"
    assert page.locator("#viewer-readout b").count() == 5  # place, label and three arms


def test_every_switch_changes_the_picture_and_back(page, written) -> None:
    opened(page, written)
    for box in page.locator("#viewer [data-layer]").all():
        assert changed(page, lambda box=box: box.click()) > 50
        box.click()
        assert differs(page) == 0
    counts = [changed(page, lambda box=box: box.click()) for box in page.locator("#viewer [data-error]").all()]
    assert max(counts) > 50


def test_errors_are_the_voxels_where_the_network_differs(page, written, make_view) -> None:
    opened(page, written)
    view = make_view()
    for arm in ("student", "student.control"):
        page.select_option("#viewer-judged", arm)
        label, said = view.label, view.masks[arm]
        wanted = [
            ((label == 0) & (said > 0)).sum(),
            ((label > 0) & (said == 0)).sum(),
            ((label > 0) & (said > 0) & (label != said)).sum(),
        ]
        assert page.evaluate("medkdViewer.state.errors.counts.slice(1)") == [int(n) for n in wanted]
    cross = page.evaluate("medkdViewer.state.cross")
    page.select_option("#viewer-judged", "student")
    page.select_option("#viewer-goto", "5")
    x, y, z = page.evaluate("medkdViewer.state.cross")
    assert [x, y, z] != cross
    assert view.label[x, y, z] != view.masks["student"][x, y, z]
    assert 5 in (view.label[x, y, z], view.masks["student"][x, y, z])


def test_mouse_keys_and_sliders_move_through_the_case(page, written) -> None:
    opened(page, written)
    state = "medkdViewer.state.cross"
    x, y, z = page.evaluate(state)
    page.focus("#view-axial")
    for key in ("PageUp", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    # Left on the screen is the patient's right: x rises in RAS+. Down is posterior: y falls.
    assert page.evaluate(state) == [x + 1, y - 1, z + 1]
    page.locator("#view-coronal").click(position={"x": 150, "y": 180})
    assert page.evaluate(state) != [x + 1, y - 1, z + 1]
    slider = page.locator('.plane[data-plane="axial"] input')
    slider.focus()
    page.keyboard.press("Home")
    assert page.evaluate(state)[2] == 0
    assert changed(page, lambda: page.click("#viewer-in")) > 50
    page.select_option("#viewer-show", "coronal")
    assert page.locator("#view-coronal").bounding_box()["width"] > 1000
    assert not page.locator("#view-axial").is_visible()


def test_another_case_is_opened_and_says_how_it_was_reduced(page, written) -> None:
    opened(page, written)
    page.select_option("#viewer-case", "1")
    page.evaluate("medkdViewer.ready")
    assert "shown as one" in page.locator("#viewer-note").text_content()


def test_a_browser_that_cannot_unpack_says_so_and_keeps_the_pictures(page, written) -> None:
    page.add_init_script("delete window.DecompressionStream")
    opened(page, written)
    assert "cannot unpack" in page.locator("#viewer-fault").text_content()
    assert not page.locator("#viewer-body").is_visible()
    assert page.locator("svg.slice").first.is_visible()


def test_on_paper_the_pictures_take_the_viewers_place(page, written) -> None:
    opened(page, written)
    page.emulate_media(media="print")
    assert not page.locator("#viewer").is_visible()
    assert page.locator("svg.slice").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.skipif(not NIIVUE, reason="no NiiVue here: medkd report --niivue, or set MEDKD_NIIVUE")
def test_niivue_draws_in_three_dimensions(page, make_run, make_view, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDKD_NIIVUE", NIIVUE)
    opened(page, write_report(make_run(volumes=(make_view(),), rows=(), curves=()), tmp_path))
    page.click("#viewer-three")
    page.evaluate("medkdViewer.three")
    assert page.locator("#viewer-three").text_content() == "3-D (NiiVue)"
    shown = page.locator("#niivue").screenshot()
    assert len(shown) > 10_000  # a black canvas is a few hundred bytes of PNG
    page.locator("#viewer [data-error]").first.click()
    page.evaluate("medkdViewer.three")


def test_without_webgl_the_planes_stay(page, make_run, make_view, tmp_path, monkeypatch) -> None:
    source = tmp_path / "niivue.js"
    refusal = "class { constructor() { throw Error('no WebGL2'); } }"
    source.write_text(f"globalThis.niivue = {{SHOW_RENDER: {{}}, SLICE_TYPE: {{}}, Niivue: {refusal}}};")
    monkeypatch.setenv("MEDKD_NIIVUE", str(source))
    opened(page, write_report(make_run(volumes=(make_view(),), rows=(), curves=()), tmp_path))
    page.click("#viewer-three")
    page.locator("#viewer-three[disabled]").wait_for()
    assert "no WebGL2" in page.locator("#viewer-three").get_attribute("title")
    assert page.locator("#view-axial").is_visible()


def test_a_page_without_volumes_is_quiet(page, tmp_path) -> None:
    opened(page, write_report(RunSummary("nothing yet", (), ()), tmp_path))
    assert page.locator("h1").is_visible()
