"""A comparison in plain English."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medkd.evaluation.stats import Paired

_NAMES = {"dice": "Dice", "iou": "IoU", "hd95_mm": "HD95", "assd_mm": "ASSD", "volume_error_ml": "volume error"}


def metric_name(metric: str) -> str:
    """Return a metric's name for readers: ``nsd_1mm`` -> ``NSD at 1 mm``."""
    if metric.startswith("nsd_"):
        return f"NSD at {metric.removeprefix('nsd_').removesuffix('mm')} mm"
    return _NAMES.get(metric, metric)


def metric_unit(metric: str) -> str:
    """Return ``mm``, ``ml`` or an empty string for shares."""
    return "" if metric.startswith("nsd_") else metric.rpartition("_")[2] if metric.endswith(("_mm", "_ml")) else ""


def sentence(result: Paired, subject: str) -> str:
    """Tell a comparison: verdict, size, certainty, on how much data, and what to be careful about."""
    if not result.n_pairs:
        return " ".join(
            [f"{subject} could not be judged by {metric_name(result.metric)}: no pair to compare.", *result.notes]
        )
    unit = f" {metric_unit(result.metric)}" if metric_unit(result.metric) else ""
    digits = _digits(result.metric, (result.difference, result.ci_low, result.ci_high))
    change, low, high = (
        f"{round(value, digits) + 0.0:+.{digits}f}" for value in (result.difference, result.ci_low, result.ci_high)
    )
    direction = "" if result.higher_is_better else "lower is better; "
    told = {"helped": "helped", "hurt": "hurt", "not shown": "was not shown to help or hurt"}[result.verdict]
    cases = _count(result.n_cases, "case")
    if result.n_cases != result.n_patients:
        cases += f" of {_count(result.n_patients, 'patient')}"
    main = (
        f"{subject} {told}: mean {metric_name(result.metric)} {change}{unit} ({direction}{result.level:.0%} interval "
        f"{low} to {high}{unit}, Wilcoxon {_p(result.wilcoxon_p)}) over {cases} and {_count(result.n_seeds, 'seed')}"
    ).replace("% interval", " % interval")
    reason = f"; {result.reason}." if result.reason else "."
    return " ".join([main + reason, *_margin(result, unit), *result.notes])


def _margin(result: Paired, unit: str) -> list[str]:
    if result.margin is None or result.noninferiority_p is None:
        return []
    loss = f"{result.margin:g}{unit} of {metric_name(result.metric)}"
    if result.metric == "dice":
        points = f"{100 * result.margin:g}"
        loss = f"{points} Dice point{'' if points == '1' else 's'}"
    told = "yes" if result.non_inferior else "not shown"
    return [f"{result.arm_a} within {loss} of {result.arm_b}: {told}, one-sided {_p(result.noninferiority_p)}."]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _p(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}" if value < 0.01 else f"p = {value:.2f}"


def _digits(metric: str, values: tuple[float, ...]) -> int:
    usual = 2 if metric_unit(metric) else 3
    digits = usual
    # a small but real number, above all the end of an interval, must not read as +0.000
    while digits < usual + 2 and any(0 < abs(value) < 0.5 * 10.0**-digits for value in values):
        digits += 1
    return digits
