"""The model card of an exported folder, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medkd.export.parity import Parity
from medkd.export.variants import Verdict, tell
from medkd.networks.weights import ModelCard


def model_page(
    body: Mapping[str, Any], card: ModelCard, parity: Parity | None, verdicts: Sequence[Verdict], source: str
) -> str:
    """Return ``model_card.md``: what the network is, where it comes from, and how its files compare.

    Args:
        body: content of ``student.json``.
        card: of the trained network.
        parity: trained against exported, or None.
        verdicts: on the smaller variants.
        source: of the cases.
    """
    names = [name for name, value in card.labels.items() if value > 0]
    licences = body["licences"] or {"data": "not recorded"}
    values = ", ".join(f"{value} = {_text(name)}" for name, value in card.labels.items())
    teachers = ", ".join(card.provenance.get("teachers", ())) or "none"
    lines = [
        f"# {_text(card.network['name'])} for {_text(', '.join(names))}",
        "",
        "For research. It is not a medical device, and no clinical decision may rest on it alone.",
        "",
        "## What goes in and what comes out",
        "",
        f"- Input: {card.in_channels} channel(s): {_text(', '.join(card.channels) or 'unnamed')}.",
        "- Any orientation and voxel size; both are brought to the network's own.",
        f"- Inside: voxels of {_numbers(card.plan['spacing_mm'])} mm, windows of {_numbers(card.plan['patch'])}.",
        f"- Output: one label map on the grid of the input: {values}.",
        "",
        "## Files",
        "",
        "| variant | file | kB | made | Dice lost against fp32 |",
        "|---|---|---:|---|---:|",
    ]
    for name, facts in body["files"].items():
        lost = tell(facts["dice_loss"]) if "dice_loss" in facts else "-"
        lines.append(f"| {name} | `{facts['file']}` | {facts['bytes'] / 1000:.0f} | {facts['how']} | {lost} |")
    lines += [f"\nRefused, {one.variant}: {_text(one.reason)}." for one in verdicts if not one.kept]
    lines += ["", "## Does it answer as the trained network does?", ""]
    if parity is None:
        lines.append("Compared on noise alone: no real cases were given.")
    else:
        lines += [
            f"On {len(parity.cases)} real cases ({_text(source)}):",
            "",
            f"- {parity.told}",
            f"- probabilities differ by at most {parity.difference:.1e}",
            "- every case and its worst voxel are in `parity.json`",
        ]
    lines += [
        "",
        "## Where it comes from",
        "",
        *(f"- Licence, {_text(name)}: {_text(text)}" for name, text in licences.items()),
        f"- Leakage: {_text(body['leakage'])}",
        f"- Trained on {len(card.trained_on)} cases of {len(card.patients)} patients; teachers: {_text(teachers)}.",
        *(f"- {key}: {_text(str(card.provenance[key]))}" for key in ("dataset", "data_hash") if key in card.provenance),
        "",
        "## Run it",
        "",
        "    pip install --no-deps medkd",
        f"    pip install numpy scipy nibabel {'openvino' if body['form'] == 'openvino' else 'onnxruntime'}",
        "    medkd-run THIS_FOLDER IMAGES LABELS",
    ]
    return "\n".join(lines) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _text(value: str) -> str:
    """Return a name as one line that Markdown shows as it is."""
    line = " ".join(str(value).split())
    for sign in ("\\", "`", "*", "[", "|"):
        line = line.replace(sign, f"\\{sign}")
    return line.replace("<", "&lt;")
