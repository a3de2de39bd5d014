"""What the page's volume viewer is given: names, colours, and every volume as a compressed NIfTI file."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from typing import Any

from medkd.report.niivue import find_niivue
from medkd.report.palette import LABEL
from medkd.report.summary import RunSummary
from medkd.report.volumes import nifti

ERRORS = (
    ("extra", "False alarm", "#00D1B2", "the network marks what the label does not have"),
    ("missed", "Missed", "#FF4D4D", "the label has what the network does not mark"),
    ("wrong", "Wrong structure", "#C58AFF", "both mark something, but not the same"),
)
"""Kind, title, colour and explanation, in the order of the values 1, 2, 3 of an error map.

Teal, red and violet are far from the arms' hues and from each other also without red or green vision.
"""


def viewer(run: RunSummary, colours: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what the template needs to draw the viewer; None where the run has no volumes.

    Returns:
        ``setup`` for the page's script (cases, arms, labels, colours), ``files`` (element id -> base64 of a gzipped
        NIfTI file) and ``niivue`` (base64 of NiiVue's gzipped source, empty where it was not found).
    """
    if not run.volumes:
        return None
    arms = [arm for arm in run.arms if any(arm.name in view.masks for view in run.volumes)]
    known = {arm.name for arm in arms}
    # A teacher that was given as a file is no arm of the run, but what it said is worth seeing.
    others = list(dict.fromkeys(name for view in run.volumes for name in view.masks if name not in known))
    layers = [{"key": "label", "name": "Label", "colour": LABEL, "role": "label"}]
    layers += [{"key": arm.name, "name": arm.shown, "colour": colours[arm.name], "role": arm.role} for arm in arms]
    layers += [{"key": name, "name": name, "colour": "#A3A3A3", "role": "other"} for name in others]
    files: dict[str, str] = {}
    cases = []
    for i, view in enumerate(run.volumes):
        volumes = {"image": view.image, "label": view.label, **view.masks}
        ids = {}
        for j, (key, array) in enumerate(volumes.items()):
            ids[key] = f"volume-{i}-{j}"
            files[ids[key]] = base64.b64encode(nifti(array, view.affine)).decode()
        cases.append({"case": view.case, "note": view.note, "files": ids})
    roles = [layer["key"] for role in ("student", "control", "teacher") for layer in layers if layer["role"] == role]
    source = find_niivue()
    packed = base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode() if source else ""
    return {
        "setup": {
            "cases": cases,
            "layers": layers,
            "labels": {str(value): name for name, value in run.data.labels.items()},
            "errors": [{"key": kind, "name": title, "colour": colour} for kind, title, colour, _ in ERRORS],
            "judged": next(iter(roles), layers[-1]["key"]),
        },
        "layers": layers,
        "errors": [
            {"key": kind, "name": title, "colour": colour, "help": text} for kind, title, colour, text in ERRORS
        ],
        "files": files,
        "niivue": packed,
    }
