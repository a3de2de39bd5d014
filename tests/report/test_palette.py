from __future__ import annotations

import pytest

from medkd.report.palette import LABEL, arm_colours, translucent
from medkd.report.summary import Arm


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


ROLES = ("teacher", "student", "control", "compute", "same_loss", "pseudo", "other", "other")


def test_no_two_arms_share_a_colour_and_none_is_the_labels() -> None:
    colours = arm_colours(Arm(f"{role}{i}", role) for i, role in enumerate(ROLES))
    assert len(set(colours.values()) | {LABEL}) == len(ROLES) + 1


def test_a_role_keeps_its_colour_whatever_else_was_run() -> None:
    alone = arm_colours([Arm("student", "student")])
    together = arm_colours([Arm("t", "teacher"), Arm("x", "other"), Arm("student", "student")])
    assert alone["student"] == together["student"]


@pytest.mark.parametrize("role", ROLES[:6])
def test_every_arm_reads_on_white_paper(role: str) -> None:
    colour = arm_colours([Arm("a", role)])["a"]
    assert 1.05 / (luminance(colour) + 0.05) >= 3.0  # WCAG 2.1, 1.4.11: graphics


def test_more_arms_than_colours_still_get_one() -> None:
    assert len(arm_colours(Arm(str(i), "other") for i in range(12))) == 12


def test_translucent() -> None:
    assert translucent("#FF8000", 0.5) == "rgba(255,128,0,0.5)"
