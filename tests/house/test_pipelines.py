"""Every run that the project ships, and every run that its texts show, is one that medkd accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medkd.errors import UserError
from medkd.pipeline import yamlfile
from medkd.pipeline.config import load_config, parse

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "pipelines").rglob("*.yaml"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def whole_runs(text: str) -> list[str]:
    """Return the YAML blocks of a Markdown text that are whole runs: they begin with a name."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block in blocks if re.search(r"^name:", block, flags=re.MULTILINE)]


SHOWN = [(file, block) for file in TEXTS if file.exists() for block in whole_runs(file.read_text(encoding="utf-8"))]


def test_the_demo_is_there() -> None:
    assert ROOT / "pipelines" / "phantom.yaml" in RUNS


@pytest.mark.parametrize("file", RUNS, ids=[str(file.relative_to(ROOT)) for file in RUNS])
def test_every_pipeline_loads(file: Path) -> None:
    config = load_config(file)
    assert config.name == file.stem, "a run is called as its file, so that its folder is found"


@pytest.mark.parametrize("file", RUNS, ids=[str(file.relative_to(ROOT)) for file in RUNS])
def test_every_pipeline_survives_being_resolved(file: Path) -> None:
    config = load_config(file)
    again = parse(yamlfile.parse(config.to_yaml(), file.name))
    assert again.resolved() == config.resolved()


@pytest.mark.parametrize(("file", "block"), SHOWN, ids=[f"{file.name}-{i}" for i, (file, _) in enumerate(SHOWN)])
def test_every_run_in_the_texts_loads(file: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in re.findall(r"teacher: (\S+/\S+)", block):  # folders that a reader would have
        (tmp_path / model).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    parse(yamlfile.parse(block, file.name))


def test_the_readme_shows_a_whole_run() -> None:
    assert any(file.name == "README.md" for file, _ in SHOWN)


def test_a_run_with_a_slip_would_be_seen() -> None:
    text = "name: x\ndata: {source: here}\nstages: {a: {model: {name: UNet}, methodz: [supervised]}}\n"
    (block,) = whole_runs(f"Like this:\n\n```yaml\n{text}```\n")
    with pytest.raises(UserError, match="methodz"):
        parse(yamlfile.parse(block, "x.md"))
