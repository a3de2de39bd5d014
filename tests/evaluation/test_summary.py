"""Statistics of one arm."""

import math

import pytest

from medkd.evaluation.cases import Row
from medkd.evaluation.summary import summarise


def test_summary_by_arm_and_class() -> None:
    values = [0.2, 0.4, 0.9, float("nan")]
    rows = [Row("student", "", 0, 0, str(at), str(at), "liver", {"dice": value}) for at, value in enumerate(values)]
    rows.append(Row("student", "", 0, 0, "9", "9", "spleen", {"dice": 0.5}))
    liver, spleen = summarise(rows, "dice")
    assert (liver.n, liver.absent, liver.median, liver.q1, liver.q3) == pytest.approx((3, 1, 0.4, 0.3, 0.65))
    assert liver.mean == pytest.approx(0.5)
    assert liver.sd == pytest.approx(math.sqrt(0.13))
    assert (spleen.n, spleen.mean, spleen.to_json()["sd"]) == (1, 0.5, None)


def test_never_there() -> None:
    (line,) = summarise([Row("a", "", 0, 0, "1", "1", "liver", {"dice": float("nan")})], "dice")
    assert (line.n, line.absent) == (0, 1)
    assert line.to_json()["mean"] is None
