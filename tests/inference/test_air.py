"""Air outside the body: found in CT by its HU, in MR by Otsu's threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medkd.data.plan import IntensityRule, Plan
from medkd.data.volume import Geometry, Volume
from medkd.inference.air import body_mask, otsu


def plan(*kinds: str) -> Plan:
    return Plan(
        spacing_mm=(1.0, 1.0, 1.0),
        patch=(8, 8, 8),
        batch=1,
        intensity=tuple(IntensityRule(kind, -100.0, 200.0, 50.0, 80.0) for kind in kinds),  # type: ignore[arg-type]
        strides=((1, 1, 1),),
        kernels=((3, 3, 3),),
    )


def volume(array: NDArray[np.float32]) -> Volume:
    shape = (array.shape[1], array.shape[2], array.shape[3])
    return Volume(array, np.eye(4), Geometry(shape, np.eye(4)))


def test_ct_by_hu_on_the_prepared_grid() -> None:
    array = np.full((1, 10, 10, 10), -1000, np.float32)
    array[:, :4] = -90  # fat, where the plan clips
    mask = body_mask(volume(array), plan("ct"), (5, 20, 10))
    assert mask.shape == (5, 20, 10)
    assert mask[:2].all()
    assert not mask[2:].any()
    assert body_mask(volume(array), plan("ct"), (10, 10, 10), threshold=-2000).all()


def test_mr_by_otsu_and_any_channel_counts() -> None:
    rng = np.random.default_rng(0)
    array = np.abs(rng.normal(0, 4, (2, 12, 12, 12))).astype(np.float32)
    array[0, :6] += 300
    array[1, :, :3] += 70
    mask = body_mask(volume(array), plan("zscore", "zscore"), (12, 12, 12))
    assert mask[:6].all()
    assert mask[:, :3].all()
    assert not mask[6:, 3:].any()


def test_otsu_parts_two_heaps() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(10, 2, 5000), rng.normal(100, 10, 1000)])
    assert 18 < otsu(values) < 70
    # The slow way: every threshold, the least variance within.
    options = np.linspace(0, 130, 200)

    def within(t: float) -> float:
        low, high = values[values <= t], values[values > t]
        return float(len(low) * low.var() if len(low) else 0) + float(len(high) * high.var() if len(high) else 0)

    assert within(otsu(values)) <= 1.001 * min(within(t) for t in options)


def test_otsu_of_one_value_finds_no_body() -> None:
    flat = np.full((4, 4), 7.0)
    assert not (flat > otsu(flat)).any()
