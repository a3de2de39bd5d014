"""Notebooks in git hold text and code, never what a run of them said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
IDS = [file.name for file in NOTEBOOKS]


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def left(notebook: dict[str, Any]) -> list[str]:
    """Return the ids of cells that hold an output, a count, or anything but tags beside them."""
    return [
        cell["id"]
        for cell in notebook["cells"]
        if cell.get("outputs") or cell.get("execution_count") is not None or set(cell["metadata"]) - {"tags"}
    ]


def text(notebook: dict[str, Any]) -> str:
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def test_the_notebooks_are_there() -> None:
    assert IDS == [
        "01_first_distillation.ipynb",
        "02_analyse_dice.ipynb",
        "03_write_a_method.ipynb",
        "04_bring_your_own_teacher.ipynb",
    ]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=IDS)
def test_outputs_are_stripped(file: Path) -> None:
    notebook = read(file)
    assert left(notebook) == [], f"strip the outputs of {file.name}: `make strip`"
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=IDS)
def test_a_notebook_begins_with_its_title_and_what_can_be_changed(file: Path) -> None:
    cells = read(file)["cells"]
    assert "".join(cells[0]["source"]).startswith("# ")
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert first["metadata"] == {"tags": ["parameters"]}
    assert "MEDKD_NOTEBOOKS" in "".join(first["source"])


@pytest.mark.parametrize("file", NOTEBOOKS, ids=IDS)
def test_links_lead_somewhere(file: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text(read(file)))
    assert links
    assert [link for link in links if "://" not in link and not (file.parent / link).exists()] == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=IDS)
def test_code_is_explained(file: Path) -> None:
    """No three cells of code follow each other without a word between them."""
    kinds = "".join(cell["cell_type"][0] for cell in read(file)["cells"])
    assert "ccc" not in kinds
    assert kinds.endswith("m"), "the last word is what to do next"


def test_an_output_would_be_seen() -> None:
    clean = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": []}
    ran = {**clean, "id": "b", "execution_count": 3}
    shown = {**clean, "id": "c", "outputs": [{"output_type": "stream"}]}
    marked = {**clean, "id": "d", "metadata": {"scrolled": True}}
    assert left({"cells": [clean, ran, shown, marked]}) == ["b", "c", "d"]
