"""What one case costs from the file on disk to the label on disk, step by step, and what one window costs alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from medkd.evaluation.cost import latency, machine, peak_memory_mb

STEPS = ("load", "prepare", "network", "restore", "write")
"""The parts of a case, in their order."""


@dataclass(frozen=True)
class CaseCost:
    """The cost of a whole case on one device.

    Args:
        device: ``cpu`` or ``cuda``...
        machine: name of the processor or GPU.
        threads: CPU threads that torch used.
        repeats: timed cases; each reads and writes its files anew.
        seconds_per_case: median of the whole.
        case_seconds: median of each of :data:`STEPS`; they need not sum to the median of the whole.
        case_memory_mb: peak of resident memory over what the loaded model holds, in MB (10^6 bytes).
        case_device_memory_mb: the same of the GPU's memory, as its allocator counts; None on a CPU.
        window_seconds: median of one forward of the network on one window, on the device; None where not asked for.
    """

    device: str
    machine: str
    threads: int
    repeats: int
    seconds_per_case: float
    case_seconds: Mapping[str, float]
    case_memory_mb: float
    case_device_memory_mb: float | None = None
    window_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, strings and one dictionary."""
        return {**asdict(self), "case_seconds": dict(self.case_seconds)}


def measure_case_cost(
    once: Callable[[], Mapping[str, float]],
    device: torch.device,
    window: Callable[[], object] | None = None,
    *,
    repeats: int = 5,
    budget_s: float = 30.0,
) -> CaseCost:
    """Do a case several times and keep the medians.

    The first case is watched for memory and warms up; it is timed too only where the budget is spent by then.

    Args:
        once: does one case and returns the seconds of each of :data:`STEPS`; its result must be complete, so that
            nothing still runs on the device.
        device: where the network runs.
        window: one forward of the network alone, or None.
        repeats: timed cases at most.
        budget_s: seconds for the timed cases.
    """
    first: list[tuple[float, Mapping[str, float]]] = []

    def timed() -> None:
        start = time.perf_counter()
        parts = once()
        first.append((time.perf_counter() - start, parts))

    on_device: list[float] = []
    if device.type == "cuda":
        memory = peak_memory_mb(lambda: on_device.append(peak_memory_mb(timed, device)))
    else:
        memory = peak_memory_mb(timed)
    found, first[:] = list(first), []
    began = time.perf_counter()
    if found[0][0] < budget_s:
        while len(first) < max(1, repeats) and (not first or time.perf_counter() - began < budget_s):
            timed()
        found = list(first)
    return CaseCost(
        device=device.type,
        machine=machine(device),
        threads=torch.get_num_threads(),
        repeats=len(found),
        seconds_per_case=statistics.median(whole for whole, _ in found),
        case_seconds={step: statistics.median(float(parts[step]) for _, parts in found) for step in STEPS},
        case_memory_mb=memory,
        case_device_memory_mb=on_device[0] if on_device else None,
        window_seconds=latency(window, device, repeats=10, budget_s=budget_s / 4).median if window else None,
    )
