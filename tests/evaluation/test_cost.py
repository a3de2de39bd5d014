"""Costs against hand-counted networks and calls of known length and size."""

import json
import time

import pytest
import torch
from torch import Tensor, nn

from medkd.evaluation.cost import (
    Cost,
    count_macs,
    count_parameters,
    latency,
    measure_cost,
    peak_memory_mb,
    weights_bytes,
)


class Odd(nn.Module):
    """Grouped, strided and transposed convolutions, an unused branch, a shared layer, and a Python operation."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv3d(4, 8, 3, padding=1, groups=2, bias=False)
        self.norm = nn.InstanceNorm3d(8)
        self.down = nn.Conv3d(8, 8, 2, stride=2)
        self.same = self.down
        self.up = nn.ConvTranspose3d(8, 2, 2, stride=2)
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(x)).relu()
        return self.up(self.down(x)).sort(dim=1).values


PARAMETERS = 8 * 2 * 27 + (8 * 8 * 8 + 8) + (8 * 2 * 8 + 2)
MACS = 64 * 8 * 2 * 27 + 8 * 8 * 8 * 8 + 8 * 8 * 2 * 8
EXAMPLE = torch.zeros(1, 4, 4, 4, 4)


def test_hand_counted_numbers() -> None:
    network = Odd()
    assert count_parameters(network) == PARAMETERS
    assert weights_bytes(network) == 4 * PARAMETERS + 3 * 8
    assert count_macs(lambda: network(EXAMPLE)) == MACS
    assert weights_bytes(network.half()) == 2 * PARAMETERS + 3 * 8


def test_cost_of_a_network_leaves_it_as_it_was() -> None:
    network = Odd().train()
    network.norm.eval()
    cost = measure_cost(network, EXAMPLE, repeats=3)
    assert (cost.parameters, cost.macs, cost.repeats, cost.input_shape) == (PARAMETERS, MACS, 3, (1, 4, 4, 4, 4))
    assert 0 < cost.latency_q1_s <= cost.latency_s <= cost.latency_q3_s < 5
    assert cost.machine
    assert cost.notes == ()
    assert network.training
    assert not network.norm.training
    assert Cost.from_json(json.loads(json.dumps(cost.to_json()))) == cost


def test_what_cannot_be_counted_is_told_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        pass

    def refuse(*_: object) -> None:
        raise Refused

    monkeypatch.setattr("medkd.evaluation.cost.FlopCounterMode.__enter__", refuse)
    cost = measure_cost(Odd(), EXAMPLE, repeats=1)
    assert cost.macs is None
    assert cost.notes == ("multiply-adds could not be counted: Refused",)
    assert cost.latency_s > 0


def test_an_error_of_the_network_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        measure_cost(Odd(), torch.zeros(1, 5, 4, 4, 4))


def test_a_call_of_ones_own_is_what_is_measured() -> None:
    network = Odd()
    cost = measure_cost(network, EXAMPLE, lambda: [network(EXAMPLE) for _ in range(3)], repeats=1)
    assert cost.macs == 3 * MACS


def test_latency_is_the_median_without_warm_up() -> None:
    pauses = iter([0.3, 0.001, 0.01, 0.01, 0.2])
    found = latency(lambda: time.sleep(next(pauses)), warmup=2, repeats=3)
    assert found.repeats == 3
    assert 0.01 <= found.median < 0.1


def test_latency_keeps_its_budget_and_times_at_least_once() -> None:
    calls: list[int] = []

    def slow() -> None:
        calls.append(1)
        time.sleep(0.05)

    assert latency(slow, repeats=1000, budget_s=0.12).repeats < 10
    calls.clear()
    found = latency(slow, repeats=5, budget_s=0.0)
    assert (found.repeats, len(calls)) == (1, 2)


def test_memory_of_a_known_size() -> None:
    size = 150_000_000

    def call() -> float:
        tensor = torch.ones(size // 4)
        time.sleep(0.05)
        return float(tensor[0])

    call()
    assert peak_memory_mb(call) == pytest.approx(size / 1e6, rel=0.1)
    assert peak_memory_mb(lambda: None) < 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cost_on_a_gpu() -> None:
    cost = measure_cost(Odd().cuda(), EXAMPLE.cuda(), repeats=3)
    assert (cost.device, cost.macs) == ("cuda", MACS)
    assert cost.peak_memory_mb > 0
