"""Colours of classes, and the tables by which viewers know them: ITK-SNAP's label file and Slicer's colour table."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

from medkd.data.sides import words

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

_KNOWN: dict[str, Colour] = {
    "aorta": (224, 72, 60),
    "artery": (232, 96, 84),
    "bladder": (222, 198, 74),
    "bone": (238, 226, 196),
    "brain": (232, 190, 160),
    "brainstem": (196, 140, 90),
    "colon": (202, 164, 108),
    "duodenum": (232, 180, 120),
    "esophagus": (212, 152, 130),
    "gallbladder": (120, 172, 84),
    "heart": (200, 84, 96),
    "kidney": (186, 96, 76),
    "liver": (176, 104, 86),
    "lung": (166, 206, 222),
    "mandible": (226, 212, 160),
    "oesophagus": (212, 152, 130),
    "pancreas": (240, 176, 126),
    "parotid": (132, 190, 160),
    "prostate": (176, 132, 186),
    "spleen": (150, 90, 140),
    "stomach": (228, 146, 158),
    "tumor": (150, 220, 60),
    "tumour": (150, 220, 60),
    "cancer": (150, 220, 60),
    "lesion": (150, 220, 60),
    "vein": (76, 128, 206),
    "vertebra": (238, 226, 196),
}
"""Close to what anatomy atlases paint; a tumour is green since no tissue is."""
_GOLDEN = 0.61803398875
"""Steps of this share of the colour circle never meet again."""


def label_colours(labels: Mapping[str, int]) -> dict[str, Colour]:
    """Return a colour for each class; the same name or value has the same colour in every model.

    A known organ has its own, others one by their value; no two classes share one. Background is black.
    """
    colours: dict[str, Colour] = {}
    for name, value in sorted(labels.items(), key=lambda pair: pair[1]):
        if value == 0:
            colours[name] = (0, 0, 0)
            continue
        known = next((_KNOWN[word] for word in reversed(words(name)) if word in _KNOWN), None)
        step = value
        colour = known or _wheel(step)
        while colour in colours.values():  # the other side of the same organ, say: a little further on
            step += 1
            colour = _shade(known, step - value) if known and step - value < 4 else _wheel(step + 1000)
        colours[name] = colour
    return colours


def itksnap_table(labels: Mapping[str, int]) -> str:
    """Return ITK-SNAP's label description file: value, colour, opacity, visible, meshed, name."""
    colours = label_colours(labels)
    lines = ["# ITK-SNAP label description: value, red, green, blue, opacity, visible, in 3-D, name"]
    for name, value in sorted(labels.items(), key=lambda pair: pair[1]):
        red, green, blue = colours[name]
        shown = 1 if value else 0
        clean = _one_line(name).replace('"', "'")
        lines.append(f'{value:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "{clean}"')
    return "\n".join(lines) + "\n"


def slicer_table(labels: Mapping[str, int]) -> str:
    """Return 3D Slicer's colour table: value, name without spaces, colour, opacity (0 for background)."""
    colours = label_colours(labels)
    lines = [f"# 3D Slicer color table: {len(labels)} labels"]
    for name, value in sorted(labels.items(), key=lambda pair: pair[1]):
        red, green, blue = colours[name]
        lines.append(f"{value} {'_'.join(_one_line(name).split())} {red} {green} {blue} {255 if value else 0}")
    return "\n".join(lines) + "\n"


def _one_line(name: str) -> str:
    return " ".join(name.split()) or "unnamed"


def _wheel(step: int) -> Colour:
    saturation, value = (0.55, 0.95) if step % 2 else (0.75, 0.8)
    return _rounded(colorsys.hsv_to_rgb(step * _GOLDEN % 1, saturation, value))


def _shade(colour: Colour, step: int) -> Colour:
    red, green, blue = (channel / 255 for channel in colour)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    return _rounded(colorsys.hsv_to_rgb((hue + 0.06 * step) % 1, saturation, value * (1 - 0.12 * step)))


def _rounded(channels: tuple[float, float, float]) -> Colour:
    red, green, blue = (round(255 * channel) for channel in channels)
    return red, green, blue
