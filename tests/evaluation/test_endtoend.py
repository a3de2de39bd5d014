"""Whole cases of known length and size."""

import json
import time
from collections.abc import Mapping

import pytest
import torch

from medkd.evaluation.endtoend import STEPS, measure_case_cost

CPU = torch.device("cpu")


def case(pauses: Mapping[str, float]) -> dict[str, float]:
    for pause in pauses.values():
        time.sleep(pause)
    return dict(pauses)


def test_steps_and_whole_are_medians_without_the_first_case() -> None:
    lengths = iter([0.4, 0.02, 0.03, 0.2])
    cost = measure_case_cost(lambda: case({**dict.fromkeys(STEPS, 0.0), "network": next(lengths)}), CPU, repeats=3)
    assert cost.repeats == 3
    assert cost.case_seconds == {**dict.fromkeys(STEPS, 0.0), "network": 0.03}
    assert 0.03 <= cost.seconds_per_case < 0.2
    assert cost.machine


def test_a_slow_case_is_done_once() -> None:
    calls: list[int] = []

    def once() -> dict[str, float]:
        calls.append(1)
        return case(dict.fromkeys(STEPS, 0.02))

    cost = measure_case_cost(once, CPU, budget_s=0.0)
    assert (len(calls), cost.repeats) == (1, 1)
    assert cost.case_seconds == dict.fromkeys(STEPS, 0.02)
    assert cost.seconds_per_case >= 0.1


def test_memory_and_window() -> None:
    size = 100_000_000

    def once() -> dict[str, float]:
        held = torch.ones(size // 4)
        time.sleep(0.05)
        return dict.fromkeys(STEPS, float(held[0]))

    once()
    cost = measure_case_cost(once, CPU, lambda: time.sleep(0.01), repeats=1)
    assert cost.case_memory_mb == pytest.approx(size / 1e6, rel=0.1)
    assert cost.case_device_memory_mb is None
    assert cost.window_seconds is not None
    assert 0.01 <= cost.window_seconds < 0.1
    body = json.loads(json.dumps(cost.to_json()))
    assert {"seconds_per_case", "case_seconds", "case_memory_mb", "device", "machine", "threads"} <= body.keys()
    assert list(body["case_seconds"]) == list(STEPS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu() -> None:
    def once() -> dict[str, float]:
        torch.ones(25_000_000, device="cuda").sum().item()
        return dict.fromkeys(STEPS, 0.0)

    cost = measure_case_cost(once, torch.device("cuda"), repeats=1)
    assert cost.case_device_memory_mb == pytest.approx(100, rel=0.1)
