"""Thirds by volume, and means of arms in them."""

from dataclasses import replace

import pytest

from medkd.evaluation.cases import Row
from medkd.evaluation.lost import by_size


def rows(arm: str, *values: float, label: str = "liver", seed: int = 0) -> list[Row]:
    """Case i has a volume of i ml."""
    return [
        Row(arm, arm, 0, seed, f"case{i}", f"case{i}", label, {"dice": value}, i * 1000, 10, float(i), 1.0)
        for i, value in enumerate(values)
    ]


def test_cases_are_sorted_into_thirds_by_reference_volume() -> None:
    student, teacher = rows("s", 0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9), rows("t", 0.0, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9)
    found = by_size({"s": student, "t": teacher})
    assert [group.size for group in found] == ["small", "medium", "large"]
    small = found[0]
    assert small.cases == ("case1", "case2"), "case0 has no liver, so no size"
    assert (small.low_ml, small.high_ml) == (1, 2)
    assert small.means == pytest.approx({"s": 0.2, "t": 0.5})
    assert found[2].means == pytest.approx({"s": 0.85, "t": 0.85})


def test_seeds_are_averaged_in_their_case_and_half_measured_arms_left_out() -> None:
    student = [*rows("s", 0, 0.2, 0.4, 0.6), *rows("s", 0, 0.4, 0.4, 0.6, seed=1)]
    found = by_size({"s": student, "t": rows("t", 0, 0.2, 0.4)})
    assert found[0].means == pytest.approx({"s": 0.3, "t": 0.2})
    assert set(found[2].means) == {"s"}


def test_too_few_cases_have_no_thirds() -> None:
    assert by_size({"s": rows("s", 0, 0.1, 0.2)}) == []
    assert by_size({}) == []
    broken = [replace(row, values={"dice": float("nan")}) for row in rows("s", 0, 0.1, 0.2, 0.3)]
    assert by_size({"s": broken}) == []
