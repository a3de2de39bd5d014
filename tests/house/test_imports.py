"""The front door is quick: what a plain import and a plain `--help` load."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    *("torch", "monai", "lightning", "lightning_fabric", "safetensors", "onnx", "onnxruntime", "onnxscript", "ray"),
    *("numpy", "scipy", "nibabel", "SimpleITK", "blosc2", "plotly", "jinja2", "tensorboard", "pydantic"),
    *("pydicom", "highdicom"),
}

FRONT = ("medkd.cli", "medkd.errors")

# A bare interpreter has some 40, Typer makes it some 250; half a second would be about a thousand.
MOST_MODULES = 450

AFTER = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def loaded(program: str) -> set[str]:
    """Return the names of the modules that are loaded once ``program`` has run in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", f"{program}\n{AFTER}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def help_of(*arguments: str) -> str:
    """Return a program that runs ``medkd *arguments --help`` and goes on."""
    return "\n".join(
        [
            "import sys",
            f"sys.argv = ['medkd', *{list(arguments)!r}, '--help']",
            "from medkd.cli import main",
            "try:",
            "    main()",
            "except SystemExit as stop:",
            "    assert not stop.code, stop.code",
        ]
    )


def test_import_medkd_loads_nothing_heavy() -> None:
    assert loaded("import medkd") & HEAVY == set()


def test_the_public_names_are_these() -> None:
    """A name that goes, or comes, does so on purpose."""
    import medkd

    assert medkd.__all__ == sorted(medkd.__all__)
    assert set(medkd.__all__) == {"UserError", "__version__", "load"}
    assert all(hasattr(medkd, name) for name in medkd.__all__)


@pytest.mark.parametrize("verb", [(), ("run",), ("predict",), ("data",), ("data", "phantom")])
def test_help_loads_nothing_heavy(verb: tuple[str, ...]) -> None:
    found = loaded(help_of(*verb))
    assert found & (HEAVY - {"pydantic"}) == set()  # Typer reads a verb's arguments with pydantic
    assert [name for name in found if name.startswith("medkd.") and not name.startswith(FRONT)] == []
    assert len(found) < MOST_MODULES


def test_a_heavy_module_would_be_seen() -> None:
    assert "safetensors" in loaded("import medkd, safetensors")
