from __future__ import annotations

import numpy as np
import pytest

from medkd.report.packing import plain, unpack


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_an_array_comes_back(dtype: str) -> None:
    array = np.arange(24, dtype=dtype).reshape(4, 6)[:, ::-1]  # not contiguous
    again = unpack(plain(array))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_json_never_holds_what_it_cannot() -> None:
    assert plain({"a": float("nan"), 1: (np.float32(0.5), float("inf"), np.int64(3), True)}) == {
        "a": None,
        "1": [0.5, None, 3, True],
    }
