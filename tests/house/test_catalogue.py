"""A method is whole: a line in the catalogue, every part of the docstring, a run that loads, a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.methods.about import about, lacking
from medkd.methods.catalogue import CATALOGUE, load
from medkd.pipeline.config import load_config

ROOT = Path(__file__).parents[2]
LONGEST_RUN = 30


def test_the_catalogue_is_sorted() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)


def test_every_method_of_the_package_is_in_the_catalogue() -> None:
    import ast

    listed = {line.partition(":")[0] for line in CATALOGUE.values()}
    files = (ROOT / "medkd" / "methods").rglob("*.py")
    lost = []
    for file in files:
        module = ".".join(file.relative_to(ROOT / "medkd" / "methods").with_suffix("").parts)
        classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
        methods = [c.name for c in classes if "Method" in [ast.unparse(base) for base in c.bases]]
        if methods and module not in listed and module != "base":
            lost.append(f"{module}: {', '.join(methods)}")
    assert lost == []


@pytest.mark.parametrize("key", CATALOGUE)
def test_the_docstring_has_every_part(key: str) -> None:
    assert lacking(key) == []


@pytest.mark.parametrize("key", CATALOGUE)
def test_the_name_is_one_word_everywhere(key: str) -> None:
    module, _, name = CATALOGUE[key].partition(":")
    assert module.rpartition(".")[2] == key
    assert name.lower() == key.replace("_", "")
    assert getattr(load(key), "__final__", False), "a concrete method is final"


@pytest.mark.parametrize("key", CATALOGUE)
def test_a_run_shows_the_method(key: str) -> None:
    if key == "supervised":  # every other run has it
        return
    file = ROOT / "pipelines" / "methods" / f"{key}.yaml"
    assert file.is_file(), f"write pipelines/methods/{key}.yaml"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_RUN
    stages = load_config(file).stages.values()
    assert any(method.name == key for stage in stages for method in stage.methods)


@pytest.mark.parametrize("key", CATALOGUE)
def test_the_method_has_a_test(key: str) -> None:
    module = CATALOGUE[key].partition(":")[0].replace(".", "/")
    folder = (ROOT / "tests" / "methods" / module).parent
    assert (folder / f"test_{key}.py").is_file(), f"write tests/methods/{module}"


def test_what_lacks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from medkd.methods.logits.kd import KD

    text = KD.__doc__ or ""
    assert about("kd").year == 2014
    for part, words in (("Shapes:", "Shapes"), (".. math::", "maths"), ("temperature:", "Args: temperature")):
        monkeypatch.setattr(KD, "__doc__", text.replace(part, "Gone."))
        assert words in lacking("kd")
    monkeypatch.setattr(KD, "__doc__", text.replace(" 2014", ""))
    assert lacking("kd") == ["Reference: authors, title, year"]
