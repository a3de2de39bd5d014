"""The walls between the floors of medkd, read from the source without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "medkd"

FLOORS = (
    ("errors", "types"),
    ("data",),
    ("networks",),
    ("inference",),  # above teachers, which answer for whole volumes
    ("methods",),
    ("teachers",),
    ("training",),
    ("conformance",),
    ("evaluation",),
    ("export",),
    ("report",),
    ("pipeline",),
    ("cli", "__main__", "__init__"),
)
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}

METHODS_SEE = {"medkd.types", "medkd.errors", "medkd.methods", "torch", "einops"}
NO_METHOD_OF_ITS_OWN = {"base", "catalogue", "ops", "parts"}  # what training may know of methods
TERMINAL = {"rich", "typer", "click", "tqdm"}
PROGRAMS = {"medkd.export.runner"}  # a program of its own, which must do without what `medkd.cli` needs


class Import(NamedTuple):
    line: int
    name: str  # dotted, absolute; for `from a import b` it is a.b


def imports(tree: ast.AST, module: str, package: bool) -> Iterator[Import]:
    """Yield every import of a module, those inside functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(node.lineno, f"{base}.{alias.name}") for alias in node.names)


def inside(name: str, *homes: str) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)


def floor_of(name: str) -> str | None:
    """Return the floor of a dotted medkd name; None for `medkd` itself and for what its front door offers."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else None


def crossings(root: Path) -> list[str]:
    """Return one line for each wall that a file below ``root`` (the package's folder) breaks."""
    found = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        package = parts[-1] == "__init__" and len(parts) > 1
        module = ".".join(["medkd", *(parts[:-1] if package else parts)])
        floor, tree = parts[0], ast.parse(file.read_text(encoding="utf-8"), str(file))
        if floor not in LEVEL:
            found.append(f"{module}: {floor!r} is no floor; put it on one, or add the floor to this test and say why")
            continue
        found += [
            f"{module}:{line}: {why}" for line, name in imports(tree, module, package) for why in broken(floor, name)
        ]
        if floor not in FLOORS[-1] and module not in PROGRAMS:
            found += [f"{module}:{line}: prints; hand the text to the command line" for line in prints(tree)]
    return found


def broken(floor: str, name: str) -> Iterator[str]:
    """Yield why a module on ``floor`` may not import ``name``."""
    other = floor_of(name) if inside(name, "medkd") else None
    if other is not None and LEVEL[other] > LEVEL[floor]:
        yield f"{floor} imports {name}, a floor below it"
    if inside(name, "medkd") and other is None and floor not in FLOORS[-1] and name != "medkd.__version__":
        yield f"{floor} imports {name}; import the module that defines it"
    if floor == "methods" and not inside(name, *METHODS_SEE) and name.split(".")[0] not in sys.stdlib_module_names:
        yield f"a method sees types, errors, methods, torch and einops, not {name}"
    if floor == "training" and inside(name, "medkd.methods") and name.split(".")[2:3] != []:
        known = name.split(".")[2]
        if known not in NO_METHOD_OF_ITS_OWN:
            yield f"training imports the concrete method {name}; it plays turns and asks no more"
    if LEVEL[floor] < LEVEL["pipeline"] and inside(name, "yaml"):
        yield "nothing below the pipeline knows that YAML exists"
    if floor not in FLOORS[-1] and name.split(".")[0] in TERMINAL:
        yield f"only the command line speaks to a terminal, and {name} does"


def prints(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that write to the terminal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "input"):
            yield node.lineno
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"):
            yield node.lineno


def test_every_floor_keeps_its_walls() -> None:
    assert crossings(PACKAGE) == []


def test_every_floor_of_the_design_stands() -> None:
    missing = [n for n in LEVEL if not (PACKAGE / f"{n}.py").exists() and not (PACKAGE / n / "__init__.py").exists()]
    assert missing == []


@pytest.mark.parametrize(
    ("file", "source", "word"),
    [
        ("data/volume.py", "from medkd.networks import zoo", "a floor below it"),
        ("data/volume.py", "def f():\n    import medkd.cli", "a floor below it"),
        ("data/volume.py", "from ..training import fit", "a floor below it"),
        ("data/__init__.py", "from ..training import fit", "a floor below it"),
        ("data/volume.py", "from medkd import load", "the module that defines it"),
        ("methods/logits/kd.py", "import numpy as np", "not numpy"),
        ("methods/logits/kd.py", "from medkd.data.volume import Volume", "not medkd.data"),
        ("training/fit.py", "from medkd.methods.logits.kd import KD", "concrete method"),
        ("training/fit.py", "from medkd.methods import supervised", "concrete method"),
        ("report/page.py", "import yaml", "YAML exists"),
        ("report/page.py", "from rich.console import Console", "the command line"),
        ("pipeline/run.py", "print('done')", "prints"),
        ("pipeline/run.py", "import sys\nsys.stderr.write('done')", "prints"),
        ("extras/thing.py", "", "no floor"),
    ],
)
def test_a_broken_wall_is_seen(tmp_path: Path, file: str, source: str, word: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    seen = crossings(tmp_path)
    assert seen, f"nothing seen in {source!r}"
    assert any(word in line for line in seen), seen


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/volume.py", "from medkd.errors import UserError\nfrom . import dataset"),
        ("methods/logits/kd.py", "import math, torch\nfrom einops import rearrange\nfrom medkd.methods import ops"),
        ("training/fit.py", "from medkd.methods.base import Method, Sum"),
        ("pipeline/config.py", "import yaml"),
        ("cli.py", "from medkd.pipeline import run\nprint('done')"),
        ("inference/runner.py", "from medkd import __version__"),
    ],
)
def test_what_is_allowed_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    assert crossings(tmp_path) == []
