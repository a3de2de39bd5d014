from __future__ import annotations

import pytest

from medkd.report import numbers


@pytest.mark.parametrize(
    ("metric", "title"),
    [("dice", "Dice"), ("hd95_mm", "HD95 (mm)"), ("nsd_1mm", "NSD at 1 mm"), ("nsd_2.5mm", "NSD at 2.5 mm"),
     ("volume_error_ml", "Volume error (ml)"), ("iou", "IoU")],
)  # fmt: skip
def test_titles(metric: str, title: str) -> None:
    assert numbers.metric_title(metric) == title


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("dice", 0.86949, "0.869"), ("hd95_mm", 1.414, "1.41"), ("hd95_mm", 38.25, "38.2"), ("dice", None, "–")],
)
def test_values(metric: str, value: float | None, text: str) -> None:
    assert numbers.metric_value(metric, value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "+0.012"), (-0.0123, "−0.012"), (-0.0001, "0.000"), (0.0, "0.000"), (None, "–")]
)
def test_differences_have_a_sign_and_zero_has_none(value: float | None, text: str) -> None:
    assert numbers.difference("dice", value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(318_214, "318 k"), (38_412_006, "38.4 M"), (1.92e12, "1.92 T"), (999_900, "1.00 M"), (812, "812"), (0, "0")],
)
def test_counts(value: float, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04123, "0.0412"), (21.44, "21.4"), (6120.0, "6,120"), (0.9996, "1.00"), (-12.3, "−12.3"), (0, "0")],
)
def test_significant(value: float, text: str) -> None:
    assert numbers.significant(value) == text


def test_ratio_and_p() -> None:
    assert numbers.ratio(42.0, 3.0) == "14×"
    assert numbers.ratio(1.01, 1.0) == ""
    assert numbers.ratio(None, 1.0) == ""
    assert [numbers.p_value(p) for p in (0.0004, 0.031, None)] == ["< 0.001", "0.031", "–"]


def test_interval() -> None:
    assert numbers.interval("dice", -0.01, 0.02) == "−0.010 to +0.020"
    assert numbers.interval("dice", None, 0.02) == "–"
