"""The colour of every arm: the same in each figure, table and slice.

The hues follow Okabe and Ito's colour-blind safe set ("Color Universal Design", 2008), with the
blue lightened so that it reads on a grey scan as well as on white paper.
"""

from __future__ import annotations

from collections.abc import Iterable

from medkd.report.summary import Arm

LABEL = "#F0E442"
"""The reference label; never an arm, so the yellow stays on the dark slices where it reads."""

ROLE_COLOURS = {
    "teacher": "#2B8CDB",
    "student": "#E25C00",
    "control": "#6E6E6E",
    "compute": "#A67C00",
    "same_loss": "#009E73",
    "pseudo": "#B0589A",
}
"""Role -> colour of its first arm."""

_OTHERS = ("#8A6D00", "#5B4BB7", "#00808A", "#7A3B1D", "#A3A3A3")


def arm_colours(arms: Iterable[Arm]) -> dict[str, str]:
    """Return arm name -> hex colour: by role, the first of a role first; further arms from a second set."""
    colours: dict[str, str] = {}
    free = dict(ROLE_COLOURS)
    spare = list(_OTHERS)
    for arm in arms:
        colour = free.pop(arm.role, None) or (spare.pop(0) if spare else _OTHERS[-1])
        colours[arm.name] = colour
    return colours


def translucent(colour: str, alpha: float) -> str:
    """Return ``#RRGGBB`` as a CSS ``rgba(...)`` with ``alpha`` in [0, 1]."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"
