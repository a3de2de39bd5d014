"""What a network costs: parameters, multiply-adds, bytes, measured seconds and measured memory.

Parameters and multiply-adds do not predict seconds (a full-resolution stem is cheap on paper), so both are given and
a student should be chosen by what was measured, on the machine where it will run.
"""

from __future__ import annotations

import ctypes
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

SAMPLE_S = 0.005
"""How often resident memory is looked at; a shorter peak is missed."""


@dataclass(frozen=True)
class Cost:
    """The cost of one network on one input.

    Args:
        parameters: number of parameters, shared ones once.
        weights_bytes: bytes of parameters and buffers in memory.
        macs: multiply-adds of one call, or None where they could not be counted.
        latency_s: measured seconds of one call, median.
        latency_q1_s: first quartile.
        latency_q3_s: third quartile.
        repeats: timed calls.
        peak_memory_mb: what one call needs at its peak on top of the loaded weights, in MB (10^6 bytes); sampled
            resident memory on a CPU, the allocator's own count on a GPU.
        input_shape: shape of the example.
        device: ``cpu`` or ``cuda``...
        machine: name of the processor or GPU.
        threads: CPU threads that torch used.
        notes: what could not be measured, and why.
    """

    parameters: int
    weights_bytes: int
    macs: float | None
    latency_s: float
    latency_q1_s: float
    latency_q3_s: float
    repeats: int
    peak_memory_mb: float
    input_shape: tuple[int, ...]
    device: str
    machine: str
    threads: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and strings."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cost:
        """Return the cost that :meth:`to_json` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)


class Latency(NamedTuple):
    """Seconds of one call: median, quartiles, and how many calls were timed."""

    median: float
    q1: float
    q3: float
    repeats: int


def measure_cost(
    network: nn.Module,
    example: Tensor,
    call: Callable[[], object] | None = None,
    *,
    repeats: int = 20,
    budget_s: float = 30.0,
) -> Cost:
    """Measure a network where it is, in evaluation mode and without gradients.

    Args:
        network: the network (an ensemble: one module that holds and calls its members).
        example: ``(B, C, *S)`` on the network's device.
        call: what is counted, timed and watched; the network on the example by default. Give a whole-volume
            prediction to learn what a case costs.
        repeats: timed calls at most.
        budget_s: seconds for the timed calls; at least one is timed.
    """
    run = call or (lambda: network(example))
    notes: list[str] = []
    with _inference(network):
        counted = count_macs(run, notes)  # the first call, so it also warms up
        memory = peak_memory_mb(run, example.device)
        seconds = latency(run, example.device, repeats=repeats, budget_s=budget_s)
    return Cost(
        parameters=count_parameters(network),
        weights_bytes=weights_bytes(network),
        macs=counted,
        latency_s=seconds.median,
        latency_q1_s=seconds.q1,
        latency_q3_s=seconds.q3,
        repeats=seconds.repeats,
        peak_memory_mb=memory,
        input_shape=tuple(example.shape),
        device=example.device.type,
        machine=machine(example.device),
        threads=torch.get_num_threads(),
        notes=tuple(notes),
    )


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters, trainable or not, shared ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def weights_bytes(network: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))


def count_macs(call: Callable[[], object], notes: list[str] | None = None) -> float | None:
    """Count the multiply-adds of ``call`` by running it once.

    Convolutions, matrix products and attention count, whatever module they come from; all else (activations, norms,
    recurrent kernels, operators unknown to torch) counts nothing.

    Args:
        call: what is counted.
        notes: gets a line where counting failed.

    Returns:
        The number, or None where torch's counter cannot follow ``call``, though the call itself works.
    """
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            call()
    except Exception as error:  # noqa: BLE001 - operators may refuse a dispatch mode in any way; the run goes on
        with torch.no_grad():
            call()  # an error of the call itself is not ours to hide
        if notes is not None:
            notes.append(f"multiply-adds could not be counted: {type(error).__name__}")
        return None
    return counter.get_total_flops() / 2


def latency(
    call: Callable[[], object],
    device: torch.device | None = None,
    *,
    warmup: int = 2,
    repeats: int = 20,
    budget_s: float = 30.0,
) -> Latency:
    """Time ``call``, after a warm-up, until ``repeats`` calls or ``budget_s`` seconds are reached.

    The warm-up is cut to one call where two would take more than a quarter of the budget; it is not in the numbers.
    """
    wait = _wait(device)
    start = time.perf_counter()
    for _ in range(warmup):
        call()
        wait()
        if time.perf_counter() - start > budget_s / 4:
            break
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < max(1, repeats) and (not seconds or time.perf_counter() - start < budget_s):
        before = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - before)
    if len(seconds) == 1:
        return Latency(seconds[0], seconds[0], seconds[0], 1)
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return Latency(median, q1, q3, len(seconds))


def peak_memory_mb(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Run ``call`` once and return its peak of memory over what was in use before, in MB (10^6 bytes).

    On a GPU the allocator counts exactly. On a CPU a thread samples resident memory every :data:`SAMPLE_S`: memory
    that the process had freed and kept is handed back first where the system allows it (glibc), else the number may
    be too small. Measure in a process that does nothing else.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    _trim()
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        held = call()
    finally:
        done.set()
        watcher.join()
    peak = max(peak, process.memory_info().rss)  # the result is still held
    del held
    return (peak - before) / 1e6


def machine(device: torch.device) -> str:
    """Return the name of the GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def _inference(network: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was


def _wait(device: torch.device | None) -> Callable[[], None]:
    if device is not None and device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _trim() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
