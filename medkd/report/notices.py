"""The licences of the software that a page carries, which ask to be shown wherever it goes."""

from __future__ import annotations

import re
from importlib.resources import files

from medkd.report.niivue import VERSION


def notices(*, plotly: str, niivue: bool) -> list[dict[str, str]]:
    """Return name, licence, copyright line and licence text of each library inside the page.

    Args:
        plotly: source of Plotly.js, whose first lines name its holder; empty where it is not inside.
        niivue: whether NiiVue is inside.
    """
    found = []
    if plotly:
        banner = re.search(r"Copyright [^\n]*", plotly[:1000])
        found.append(("Plotly.js", "MIT", banner[0] if banner else "Copyright Plotly, Inc.", "MIT"))
    if niivue:
        holder = "Copyright (c) 2021, Niivue. All rights reserved."
        found.append((f"NiiVue {VERSION}", "BSD-2-Clause", holder, "BSD-2-Clause"))
    return [
        {"name": name, "licence": licence, "copyright": holder, "text": _text(file)}
        for name, licence, holder, file in found
    ]


def _text(name: str) -> str:
    return files("medkd.report").joinpath("templates", "licences", f"{name}.txt").read_text(encoding="utf-8").strip()
