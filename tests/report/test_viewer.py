from __future__ import annotations

import base64
import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from medkd.report.page import render
from medkd.report.palette import arm_colours
from medkd.report.viewer import viewer

EVIL = "</script><script>alert('x')</script>"


@pytest.fixture(autouse=True)
def without_the_library(monkeypatch) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* Copyright 2012-2026, Plotly, Inc. */")


def test_every_volume_is_a_nifti_file_of_its_own(make_run, make_view) -> None:
    view = make_view()
    run = make_run(volumes=(view,))
    found = viewer(run, arm_colours(run.arms))
    (case,) = found["setup"]["cases"]
    assert list(case["files"]) == ["image", "label", "teachers", "student", "student.control"]
    raw = gzip.decompress(base64.b64decode(found["files"][case["files"]["student"]]))
    read = nib.Nifti1Image.from_bytes(raw)
    np.testing.assert_array_equal(np.asanyarray(read.dataobj), view.masks["student"])
    assert found["setup"]["judged"] == "student"
    assert [layer["name"] for layer in found["layers"]] == ["Label", "Teacher ensemble", "Student", "Control"]


def test_a_mask_of_no_arm_is_shown_too(make_run, make_view) -> None:
    from dataclasses import replace

    view = make_view()
    run = make_run(volumes=(replace(view, masks={"outside": view.label, "student": view.label}),))
    found = viewer(run, arm_colours(run.arms))
    assert [layer["key"] for layer in found["layers"]] == ["label", "student", "outside"]


def test_no_volumes_no_viewer(make_run) -> None:
    assert viewer(make_run(), {}) is None
    assert 'id="viewer"' not in render(make_run())


def test_names_in_the_viewer_are_text(make_run, make_view) -> None:
    from dataclasses import replace

    view = replace(make_view(), case=EVIL, note=EVIL)
    run = make_run(volumes=(view,))
    run = replace(run, data=replace(run.data, labels={f"liver{EVIL}": 1}))
    text = render(run)
    assert "<script>alert" not in text
    setup = text.split('id="viewer-setup">')[1].split("</script>")[0]
    assert json.loads(setup)["cases"][0]["case"] == EVIL


def test_niivue_goes_in_compressed_with_its_licence(make_run, make_view, tmp_path, monkeypatch) -> None:
    run = make_run(volumes=(make_view(),))
    bare = render(run)
    assert "medkd report --niivue" in bare
    assert "BSD-2-Clause" not in bare
    source = tmp_path / "niivue.js"
    source.write_text("globalThis.niivue = {}; // </script>")
    monkeypatch.setenv("MEDKD_NIIVUE", str(source))
    text = render(run)
    packed = text.split('id="niivue-source">')[1].split("</script>")[0]
    assert gzip.decompress(base64.b64decode(packed)).decode() == source.read_text()
    assert "BSD-2-Clause" in text
    assert "Redistributions in binary form" in text
    assert "Copyright 2012-2026, Plotly, Inc." in text
