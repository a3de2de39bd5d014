"""The table of cases on disk."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medkd.errors import UserError
from medkd.evaluation.cases import Row, measure_rows, read_rows, write_rows

ALL = ("dice", "iou", "hd95_mm", "assd_mm", "nsd_1mm", "nsd_2.5mm", "volume_error_ml")


def block(*corner: int, size: int = 2, shape: tuple[int, int, int] = (8, 8, 8)) -> NDArray[np.int16]:
    label = np.zeros(shape, np.int16)
    label[tuple(slice(start, start + size) for start in corner)] = 1
    return label


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    labels = {"background": 0, "liver, left": 1, "absent": 2}
    where = {"case": "c1", "patient": "p1", "arm": "student", "stage": "s", "fold": 2, "seed": 3}
    rows = measure_rows(block(1, 1, 1), block(1, 1, 2), (1, 1, 0.7), labels, ALL, **where)  # type: ignore[arg-type]
    assert [row.absent for row in rows] == [False, True]
    write_rows(tmp_path / "cases.csv", rows)
    again = read_rows(tmp_path / "cases.csv")
    assert again[0] == rows[0]
    assert isinstance(again[0], Row)
    assert again[1].absent
    assert math.isnan(again[1].values["dice"])
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table of cases"):
        read_rows(tmp_path / "x.csv")
