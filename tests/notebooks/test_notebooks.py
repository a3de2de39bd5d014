"""The notebooks run from top to bottom, on scans so small that it takes seconds, one after another in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
Play = Callable[[str], Any]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the notebooks make, shared by all of them."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def play(work: Path) -> Play:
    """Run a notebook in a kernel of its own, in the folder where a reader would; returns it with its outputs."""
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed; the extra `dev` brings it")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; the extra `dev` brings it")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed; the extra `dev` brings it")
    pytest.importorskip("plotly", reason="plotly is not installed; the extra `report` brings it")

    def played(name: str) -> Any:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEDKD_NOTEBOOKS", str(work))
            patch.setenv("MEDKD_NOTEBOOKS_QUICK", "1")
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("IPYTHONDIR", str(work / "ipython"))  # a user's own settings stay out
            client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}})
            client.execute()
        return notebook

    return played


@pytest.fixture(scope="module")
def first(play: Play) -> Any:
    """The first notebook, whose scans and run the others use."""
    return play("01_first_distillation")


def said(notebook: Any) -> str:
    """All that the cells of a notebook printed."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def figures(notebook: Any) -> int:
    """How many plots the cells of a notebook show."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)


def test_the_first_distillation(first: Any, work: Path) -> None:
    text = said(first)
    assert "8 patients" in text
    assert "nothing wrong" not in text
    assert "done   train.student.m0.f0.s0.control" in text
    assert "Distillation" in text, "the sentence of the comparison"
    assert figures(first) == 2
    assert (work / "runs" / "first" / "report.html").is_file()


def test_the_analysis_of_dice(first: Any, play: Play, work: Path) -> None:
    notebook = play("02_analyse_dice")
    text = said(notebook)
    (report,) = (work / "runs" / "first" / "nodes").glob("report-*")
    arms = {arm["arm"]: arm for arm in json.loads((report / "arms.json").read_text())}
    for organ, values in arms["student"]["per_class"].items():
        assert organ in text
        if values["dice"] is not None:
            assert f"{values['dice']:.3f}" in text
    assert "verdict: not shown fewer than 6 patients" in text
    assert figures(notebook) >= 4


def test_a_method_of_ones_own(first: Any, play: Play, work: Path) -> None:
    notebook = play("03_write_a_method")
    text = said(notebook)
    assert "patch " in text, "the rule that the first try breaks"
    assert "reused train.teacher.m0.f0.s0.main" in text, "the teacher is trained once"
    assert "done   train.unsure.m0.f0.s0.main" in text
    study = json.loads((next((work / "runs" / "own_method" / "nodes").glob("report-*")) / "study.json").read_text())
    assert {"kd", "unsure"} <= set(json.dumps(study).replace('"', " ").split())


def test_a_teacher_from_elsewhere(first: Any, play: Play, work: Path) -> None:
    notebook = play("04_bring_your_own_teacher")
    text = said(notebook)
    assert "net.pt says nothing of its labels and intensities" in text
    assert "torchscript net: 8 classes, licence CC BY 4.0" in text
    assert "probabilities of 8 cases" in text
    assert "was trained on patients of the student's" in text, "the leak is refused"
    report = next((work / "runs" / "foreign" / "nodes").glob("report-*"))
    arms = {arm["arm"]: arm["dice"] for arm in json.loads((report / "arms.json").read_text())}
    assert arms["of_a_model"] == pytest.approx(arms["of_files"], abs=0.02)
    assert set(arms) >= {"of_a_model", "of_files", "of_files.control"}
