"""Numbers as a reader wants them: few digits, with units, and a true minus sign."""

from __future__ import annotations

import re

NOTHING = "–"
"""Stands where nothing was measured."""


def metric_title(metric: str) -> str:
    """Return the heading of a metric: ``hd95_mm`` -> ``HD95 (mm)``; ``nsd_1mm`` -> ``NSD at 1 mm``."""
    if match := re.fullmatch(r"nsd_([\d.]+)mm", metric):
        return f"NSD at {match[1]} mm"
    name, unit = metric.rsplit("_", 1) if metric.endswith(("_mm", "_ml")) else (metric, "")
    short = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "hd": "HD", "assd": "ASSD"}
    title = short.get(name, name.replace("_", " ").capitalize())
    return f"{title} ({unit})" if unit else title


def metric_value(metric: str, value: float | None) -> str:
    """Return a metric's value: overlaps to 3 decimals, mm and ml to 3 significant digits or so."""
    if value is None:
        return NOTHING
    if metric.endswith(("_mm", "_ml")):
        return _minus(f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}")
    return _minus(f"{value:.3f}")


def difference(metric: str, value: float | None) -> str:
    """Return a signed difference in the digits of the metric; zero has no sign."""
    if value is None:
        return NOTHING
    text = metric_value(metric, value)
    if float(text.replace("−", "-")) == 0:
        return text.lstrip("−")
    return text if value < 0 else f"+{text}"


def interval(metric: str, low: float | None, high: float | None) -> str:
    """Return ``+0.010 to +0.033``; a dash where it was not computed."""
    if low is None or high is None:
        return NOTHING
    return f"{difference(metric, low)} to {difference(metric, high)}"


def count(value: float | None) -> str:
    """Return a large number with its prefix: 1.23 M, 41.2 G; three digits."""
    if value is None:
        return NOTHING
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{significant(value / size)} {prefix}"
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Return seconds, three digits: 0.0412, 1.32, 128."""
    return NOTHING if value is None else significant(value)


def megabytes(value: float | None) -> str:
    """Return MB, three digits."""
    return NOTHING if value is None else significant(value)


def ratio(more: float | None, less: float | None) -> str:
    """Return how many times ``more`` is ``less``: ``14×``; empty where it cannot be told or is one."""
    if not more or not less:
        return ""
    times = significant(more / less, 2)
    return "" if times == "1.0" else f"{times}×"


def p_value(value: float | None) -> str:
    """Return a p-value: ``0.03``, ``< 0.001``."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else significant(value, 2)


def significant(value: float, digits: int = 3) -> str:
    """Return ``value`` to ``digits`` significant digits without an exponent, thousands separated."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = int(f"{rounded:e}".split("e")[1])
    return _minus(f"{rounded:,.{max(0, digits - 1 - exponent)}f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")
