"""What builds the container: a Dockerfile of known shape, services that start, a context that holds no data."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
WORDS = {
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "RUN",
    "USER",
    "VOLUME",
    "WORKDIR",
}

Stage = list[tuple[str, str]]


def parse(text: str) -> tuple[Stage, list[Stage]]:
    """Return what stands before the first FROM, and each stage, as pairs of instruction and arguments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    top: Stage = []
    stages: list[Stage] = []
    for line in joined.splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        assert word in WORDS, f"no instruction of a Dockerfile: {line}"
        if word == "FROM":
            stages.append([])
        (stages[-1] if stages else top).append((word, rest.strip()))
    return top, stages


TOP, STAGES = parse(DOCKERFILE)


def given(stage: Stage, word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def undeclared(stage: Stage) -> list[str]:
    """Return the ``${NAME}`` of a stage that no ARG or ENV before them, nor the line itself, declares."""
    known, missing = {"PATH"}, []
    for word, rest in stage:
        if word == "ARG":
            known |= {part.partition("=")[0] for part in rest.split()}
        elif word == "ENV":
            known |= set(re.findall(r"(\w+)=", rest))
        if word != "FROM":
            own = set(re.findall(r"\b(\w+)=\"?\$\(", rest))
            missing += [name for name in re.findall(r"\$\{?(\w+)", rest) if name not in known | own]
    return missing


def test_the_base_is_one_argument_with_an_exact_tag() -> None:
    (base,) = given(TOP, "ARG")
    assert re.fullmatch(r"BASE_IMAGE=nvidia/cuda:\d+\.\d+\.\d+-(base|runtime)-ubuntu\d\d\.\d\d", base)
    assert [stage[0][1].split()[0] for stage in STAGES] == ["${BASE_IMAGE}"] * 2


def test_every_argument_is_declared_where_it_is_used() -> None:
    assert [undeclared(stage) for stage in STAGES] == [[], []]
    assert undeclared([("FROM", "x"), ("RUN", "a ${B}"), ("ARG", "B"), ("RUN", "a ${B} $C")]) == ["B", "C"]
    declared = {part.partition("=")[0] for stage in STAGES for part in given(stage, "ARG")}
    assert {"PYTHON", "EXTRAS", "TORCH_INDEX", "BASE_IMAGE"} <= declared


def test_what_runs_is_medkd_and_is_not_root() -> None:
    final = STAGES[-1]
    assert given(final, "USER") == ["10001:10001"]
    assert [word for word, _ in final[[word for word, _ in final].index("USER") :] if word == "RUN"] == []
    assert json.loads(given(final, "ENTRYPOINT")[0]) == ["medkd"]
    assert json.loads(given(final, "VOLUME")[0]) == ["/data", "/runs"]
    assert re.search(r'CMD \["medkd", "--version"\]$', given(final, "HEALTHCHECK")[0])
    assert {"title", "version", "revision", "licenses"} <= set(
        re.findall(r"org\.opencontainers\.image\.(\w+)=", given(final, "LABEL")[0])
    )


def test_the_final_stage_only_copies_what_was_built() -> None:
    final = STAGES[-1]
    assert not re.search(r"\b(pip|gcc|build-essential|hatchling|-dev|-venv)\b", " ".join(given(final, "RUN")))
    assert given(final, "COPY") == ["--from=build /usr/local/medkd /usr/local/medkd", "pipelines /pipelines"] + [
        "docker/sbom.py /usr/local/medkd/"
    ]
    assert [line for stage in STAGES for line in given(stage, "ADD")] == []
    assert "curl" not in DOCKERFILE and "wget" not in DOCKERFILE
    installs = re.findall(r"pip\S*(?: --python \S+)? install [^&]*", " ".join(given(STAGES[0], "RUN")))
    assert installs and all("--no-cache-dir" in line for line in installs)
    assert all("constraints.txt" in line or "--no-deps" in line for line in installs)


def test_the_extras_exist() -> None:
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]\n")[2]
    known = set(re.findall(r"^([\w-]+) = \[", section.partition("\n[")[0], flags=re.MULTILINE))
    assert {*defaults()["EXTRAS"].split(","), "notebooks"} <= known


def defaults() -> dict[str, str]:
    """Return the default of every build argument that has one."""
    pairs = [arg.partition("=") for stage in (TOP, *STAGES) for arg in given(stage, "ARG")]
    return {name: value for name, equals, value in pairs if equals}


@cache
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def test_the_services_are_whole() -> None:
    services = compose()["services"]
    assert set(services) == {"run", "tensorboard", "jupyter"}
    for name, service in services.items():
        assert service["user"] == "${MEDKD_USER:-10001:10001}", name
        assert {"image", "entrypoint"} <= set(service), name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens to the whole network"
        for mount in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount["source"])
            # a folder that is not there is told, not made as root's; those of the project are there
            assert (
                mount["bind"]["create_host_path"] is False if "bind" in mount else (ROOT / "docker" / source).is_dir()
            )
    for name in ("run", "jupyter"):
        build = services[name]["build"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).samefile(ROOT / "docker" / "Dockerfile")
        declared = {part.partition("=")[0] for stage in STAGES for part in given(stage, "ARG")}
        assert set(build["args"]) <= declared, name
        for argument, value in build["args"].items():
            more = ",notebooks" if (name, argument) == ("jupyter", "EXTRAS") else ""
            assert value == f"${{{argument}:-{defaults()[argument]}}}{more}"
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


def ignored(path: str, rules: str) -> bool:
    """Return whether the last rule that meets ``path`` or a folder above it leaves it out of the context."""
    out = False
    for line in rules.splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern, keep = rule.removeprefix("!"), rule.startswith("!")
        parts = path.split("/")
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        anywhere = pattern.startswith("**/")
        names = parts if anywhere else above
        if any(fnmatchcase(name, pattern.removeprefix("**/")) and (anywhere or _deep(name, pattern)) for name in names):
            out = not keep
    return out


def _deep(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/")  # a star does not cross a folder


@pytest.mark.parametrize(
    "path",
    [
        *("data/phantom/imagesTr/a.nii.gz", "runs/phantom/report.html", ".venv/bin/python", ".git/config"),
        *("notebooks/work/a.npz", "medkd/__pycache__/a.pyc", "weights.pt", ".env", "docker/.env", "tests/conftest.py"),
    ],
)
def test_the_context_leaves_out(path: str) -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert ignored(path, rules)
    if path.startswith(("data", "runs", ".venv", ".git")):
        assert ignored(path, rules.replace("*\n", "", 1)), "told by the first line only"


def test_the_context_holds_what_the_dockerfile_copies() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    copied = [line.split() for stage in STAGES for line in given(stage, "COPY") if not line.startswith("--from")]
    sources = [source for words in copied for source in words[:-1]]
    assert {"constraints.txt", "medkd", "pipelines", "docker/sbom.py"} <= set(sources)
    for source in [*sources, "medkd/data/volume.py", "medkd/report/templates/page.html", "pipelines/phantom.yaml"]:
        assert not ignored(source, rules), source
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_check_is_a_program() -> None:
    script = ROOT / "docker" / "check"
    assert script.stat().st_mode & 0o111
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    done = subprocess.run([bash, "-n", str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_says_what_is_missing(tmp_path: Path) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(
        [bash, str(ROOT / "docker" / "check")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MEDKD_TOOL": "no-such-tool"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "none of no-such-tool answers here" in done.stderr


@cache
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "docker" / "sbom.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DPKG = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14
Description: GNU C Library
 with: a colon in a line that goes on

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1:2.0
"""


def test_the_bill_of_materials_lists_every_part_once() -> None:
    found = {sbom().normal(d.metadata["Name"]): d for d in distributions()}
    bill = json.loads(json.dumps(sbom().bill(list(found.values()), DPKG, "debian")))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    names = {component["name"] for component in bill["components"]}
    assert {"torch", "numpy", "pyyaml", "libc6"} <= names and "gone" not in names
    refs = [component["bom-ref"] for component in bill["components"]]
    assert len(refs) == len(set(refs))
    assert "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64" in refs
    (torch,) = [c for c in bill["components"] if c["name"] == "torch"]
    assert torch["licenses"] and torch["version"] == found["torch"].version
    about = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert any(ref.startswith("pkg:pypi/numpy@") for ref in about[f"pkg:pypi/scipy@{found['scipy'].version}"])


def test_the_bill_of_materials_is_a_program() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docker" / "sbom.py")], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["components"]
