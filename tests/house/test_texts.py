"""What the texts say of keys, defaults, verbs and files is what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from medkd.pipeline.config import RunConfig
from medkd.pipeline.specs import DataConfig, EvaluateConfig, MethodSpec, ReportConfig, Stage, TargetsConfig, TrainConfig
from medkd.pipeline.yamlfile import parse_value

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference-yaml.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "The run": RunConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "a stage": Stage,
    "targets": TargetsConfig,
    "methods": MethodSpec,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
}
IN_WORDS = {"required", "none", "see below", "see above"}


def table(text: str, section: str) -> dict[str, str]:
    """Return key -> default as the first table of a section writes them, backticks removed from keys."""
    _, _, rest = text.partition(f"\n## {section}\n")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", rest.partition("\n## ")[0], flags=re.MULTILINE)
    return {key: default.strip() for key, default in rows}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_has_every_key_and_its_default(section: str) -> None:
    said, fields = table(REFERENCE.read_text(encoding="utf-8"), section), SECTIONS[section].model_fields
    assert sorted(said) == sorted(field.alias or name for name, field in fields.items())
    for name, field in fields.items():
        default = said[field.alias or name]
        if field.is_required() or default in IN_WORDS:
            assert field.is_required() == (default == "required"), f"{section}: {name}"
            continue
        told = parse_value(default.strip("`"))
        told = {} if told == "auto" and field.get_default(call_default_factory=True) == {} else told
        real = field.get_default(call_default_factory=True)
        real = list(real) if isinstance(real, tuple) else real
        assert told == real or [told] == real, f"{section}: {name} is {real!r}, the text says {default}"


def test_the_reference_has_every_key_of_the_plan() -> None:
    from dataclasses import fields

    from medkd.data.plan import Plan

    text = REFERENCE.read_text(encoding="utf-8").partition("\n## plan\n")[2].partition("\n## ")[0]
    said = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(said) == sorted({field.name for field in fields(Plan)} - {"notes"})


@pytest.mark.parametrize("file", TEXTS, ids=[file.name for file in TEXTS])
def test_links_lead_somewhere(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if "://" not in link and not (file.parent / link).exists()] == []
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert [anchor for anchor in re.findall(r"\]\(#([^)]+)\)", text) if anchor not in anchors] == []


def commands(program: str) -> list[list[str]]:
    """Return every call of ``program`` in the texts: lines of shell blocks, and code within a line."""
    found = []
    for file in TEXTS:
        text = file.read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        found += [line for line in (*lines, *inline) if line.split()[:1] == [program]]
    return [shlex.split(line.replace("\\|", "|"), comments=True) for line in found]


def test_every_target_of_make_that_the_texts_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {word for call in commands("make") for word in call[1:] if "=" not in word}
    assert {"demo", "test"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []


def test_every_command_that_the_texts_show_is_understood() -> None:
    """Parse each `medkd ...` without doing it; words in capitals stand for files."""
    from typer.main import get_command

    from medkd.cli import app

    shown = commands("medkd")
    assert len(shown) > 10
    wrong = []
    for call in shown:
        for words in alternatives(call[1:]):
            command, rest = get_command(app), words
            while rest and rest[0] in (verbs := getattr(command, "commands", {})):
                command, rest = verbs[rest[0]], rest[1:]
            if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
                wrong.append(f"{' '.join(call)}: no verb {rest[0]!r}")
                continue
            options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
            wrong += [f"{' '.join(call)}: no option {w}" for w in rest if w.startswith("-") and w not in options]
    assert wrong == []


def test_the_readme_names_every_verb() -> None:
    from typer.main import get_command

    from medkd.cli import app

    verbs: dict[str, object] = get_command(app).commands  # type: ignore[attr-defined]
    rows = re.findall(r"^\| `medkd (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(verbs)


def alternatives(words: list[str]) -> list[list[str]]:
    """Return the calls that ``data inspect|download`` stands for; redirections and ``[NAME]`` are cut off."""
    words = [word for word in words[: words.index(">")] if word] if ">" in words else words
    for i, word in enumerate(words):
        if "|" in word and i < 2:
            return [[*words[:i], one, *words[i + 1 :]] for one in word.split("|")]
    return [words]


def test_a_command_with_alternatives_is_taken_apart() -> None:
    assert alternatives(["data", "a|b"]) == [["data", "a"], ["data", "b"]]
    assert alternatives(["data", "a", ">", "x"]) == [["data", "a"]]
