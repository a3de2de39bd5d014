"""Writes what an image is made of to standard output, as CycloneDX 1.6 JSON: Python packages and Debian packages.

Needs nothing but Python: an image that tells its parts should not grow by what tells them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import quote

DPKG = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")


def normal(name: str) -> str:
    """Return a package's name as PEP 503 spells it, ``Foo.Bar_baz`` as ``foo-bar-baz``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licences(distribution: Distribution) -> list[dict[str, object]]:
    """Return CycloneDX licences: the SPDX expression where there is one, else what the package says in words."""
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    told = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or () if c.startswith("License :: ")]
    if not told and "License" in metadata and (words := metadata["License"].strip()):
        told = [words.splitlines()[0][:120]]
    return [{"license": {"name": name}} for name in told]


def python_packages(found: list[Distribution]) -> Iterator[dict[str, object]]:
    """Yield a component for each installed distribution."""
    for distribution in found:
        name = normal(distribution.metadata["Name"])
        purl = f"pkg:pypi/{name}@{quote(distribution.version)}"
        component: dict[str, object] = {"type": "library", "bom-ref": purl, "name": name}
        component |= {"version": distribution.version, "purl": purl}
        if told := licences(distribution):
            component["licenses"] = told
        yield component


def needs(found: list[Distribution]) -> Iterator[dict[str, object]]:
    """Yield for each distribution the installed ones that it names, whatever their markers say."""
    refs = {normal(d.metadata["Name"]): f"pkg:pypi/{normal(d.metadata['Name'])}@{quote(d.version)}" for d in found}
    for distribution in found:
        named = {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in distribution.requires or ()}
        ref = refs[normal(distribution.metadata["Name"])]
        yield {"ref": ref, "dependsOn": sorted({refs[name] for name in named if name in refs} - {ref})}


def system_packages(status: str, system: str) -> Iterator[dict[str, object]]:
    """Yield a component for each installed package of dpkg's ``status`` file; ``system`` as ``debian``."""
    for entry in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if re.match(r"[\w-]+: ", line))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        purl = f"pkg:deb/{system}/{quote(name)}@{quote(version, safe='')}?arch={fields['Architecture']}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill(found: list[Distribution], status: str, system: str) -> dict[str, object]:
    """Return the whole document; medkd is what it is about, all else its components."""
    found = sorted(found, key=lambda d: normal(d.metadata["Name"]))
    components = list(python_packages(found))
    own = [c for c in components if c["name"] == "medkd"]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**own[0], "type": "application"}} if own else {},
        "components": [*(c for c in components if c["name"] != "medkd"), *system_packages(status, system)],
        "dependencies": list(needs(found)),
    }


def main() -> None:
    """Describe this machine."""
    status = DPKG.read_text(encoding="utf-8") if DPKG.is_file() else ""
    release = OS_RELEASE.read_text(encoding="utf-8") if OS_RELEASE.is_file() else ""
    system = re.search(r"^ID=\"?([\w-]+)", release, flags=re.MULTILINE)
    # One environment may show a distribution twice where two folders of its path hold it; the first is the one in use.
    first = {normal(d.metadata["Name"]): d for d in reversed(list(distributions()))}
    json.dump(bill(list(first.values()), status, system[1] if system else "debian"), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
