"""What every file of the project owes its reader."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "medkd"
LONGEST = 300

# Names that say where code was left over, not what it does.
VAGUE_FILES = {"utils", "util", "utilities", "helpers", "helper", "common", "misc", "tools", "core", "stuff"}
VAGUE_CLASSES = re.compile(r"^(Custom|My)[A-Z]|(Criterion|Distiller|Utils|Helper)$")
METHOD_CLASSES = re.compile(r"Loss$")  # a method is called as its paper calls it

# Absolute paths of one machine. In two pieces, so that this file passes its own test.
MACHINE = re.compile(r"(?<![\w.~$}>-])/" + r"(work|root|home|opt|mnt|Users|scratch)/" + r"|[A-Z]:\\Users")

NOT_OURS = {"forward"}  # torch.nn.Module documents what overrides it

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules(root: Path) -> dict[Path, ast.Module]:
    return {f.relative_to(root): ast.parse(f.read_text(encoding="utf-8")) for f in sorted(root.rglob("*.py"))}


def is_table(tree: ast.Module) -> bool:
    """Return whether a module only holds data: a table may be as long as its subject."""
    return not any(isinstance(node, Function | ast.ClassDef) for node in ast.walk(tree))


def public(body: list[ast.stmt], kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[ast.AST]:
    """Yield what others may call; an overload only lends its types to the function that follows it."""
    found = (node for node in body if isinstance(node, kind) and not node.name.startswith("_"))
    return (node for node in found if "overload" not in map(ast.unparse, node.decorator_list))


def undocumented(trees: dict[Path, ast.Module]) -> Iterator[str]:
    """Yield each public module, class, function and method without a docstring; an override inherits its own."""
    classes = {c.name: c for tree in trees.values() for c in tree.body if isinstance(c, ast.ClassDef)}

    def documented_above(c: ast.ClassDef, method: str) -> bool:
        for base in c.bases:
            above = classes.get(ast.unparse(base).split("[")[0].split(".")[-1])
            if above is None or above is c:
                continue
            own = {f.name: f for f in above.body if isinstance(f, Function)}
            if (method in own and ast.get_docstring(own[method])) or documented_above(above, method):
                return True
        return False

    for file, tree in trees.items():
        if not ast.get_docstring(tree):
            yield f"{file}"
        for f in public(tree.body, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not ast.get_docstring(f):
                yield f"{file}: {f.name}"
        for c in public(tree.body, ast.ClassDef):
            if not ast.get_docstring(c):
                yield f"{file}: {c.name}"
            for f in public(c.body, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if not (ast.get_docstring(f) or f.name in NOT_OURS or documented_above(c, f.name)):
                    yield f"{file}: {c.name}.{f.name}"


def tracked() -> list[Path]:
    """Return the project's files: those that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so nothing says which files are the project's")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def machine_paths(text: str) -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if MACHINE.search(line)]


def test_no_file_is_longer_than_a_sitting() -> None:
    long = {
        str(file): length
        for file, tree in modules(PACKAGE).items()
        if (length := len((PACKAGE / file).read_text(encoding="utf-8").splitlines())) > LONGEST and not is_table(tree)
    }
    assert long == {}


def test_everything_public_has_a_docstring() -> None:
    assert list(undocumented(modules(PACKAGE))) == []


def test_every_folder_is_a_package() -> None:
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_names_say_what_is_inside() -> None:
    vague = [str(file) for file in modules(PACKAGE) if VAGUE_FILES & {*file.with_suffix("").parts}]
    vague += [
        f"{file}: {node.name}"
        for file, tree in modules(PACKAGE).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and (VAGUE_CLASSES.search(node.name) or ("methods" in file.parts and METHOD_CLASSES.search(node.name)))
    ]
    assert vague == []


def test_no_file_holds_a_path_of_one_machine() -> None:
    found = []
    for file in tracked():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or other data
        found += [f"{file.relative_to(ROOT)}:{line}" for line in machine_paths(text)]
    assert found == []


def test_every_test_stands_where_its_subject_does() -> None:
    """tests/ mirrors medkd/: a file tests/<floor>/test_<x>.py has a subject or a folder of its own kind."""
    floors = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    own_kind = {"house", "contract", "parity", "golden", "whole", "cli", "notebooks"}
    folders = {file.relative_to(ROOT / "tests").parts[0] for file in (ROOT / "tests").rglob("test_*.py")}
    strays = {f for f in folders - floors - own_kind if not f.endswith(".py") or not _top(f)}
    assert strays == set()


def _top(test: str) -> bool:
    return (PACKAGE / test.removeprefix("test_")).exists() or test == "test_init.py"


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("see /" + "root/x", True),
        ("data = '/" + "home/me/data'", True),
        ("pip --find-links=/" + "opt/wheels/", True),
        ("pipelines/work/x.yaml", False),
        ("https://example.org/home/x", False),
        ("$HOME/work/x", False),
        ("../shared/data", False),
    ],
)
def test_a_path_of_one_machine_is_seen(line: str, seen: bool) -> None:
    assert bool(machine_paths(line)) == seen


def test_a_missing_docstring_is_seen() -> None:
    source = '''
"""A module."""
class Base:
    """A base."""
    def told(self):
        """Do it."""
    def _private(self): ...
class Child(Base):
    """A child."""
    def told(self): ...
    def untold(self): ...
class Bare: ...
def bare(): ...
def _private(): ...
'''
    trees = {Path("a.py"): ast.parse(source), Path("b.py"): ast.parse("x = 1")}
    assert list(undocumented(trees)) == ["a.py: bare", "a.py: Child.untold", "a.py: Bare", "b.py"]


def test_a_table_may_be_long() -> None:
    assert is_table(ast.parse("A = {1: 2}"))
    assert not is_table(ast.parse("A = {1: 2}\ndef f(): ..."))
