"""Clocks: what a call costs in time and memory, and what the device could do at best."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastconv1d.problem import MODE_DTYPES, Problem

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """The median and the 10th and 90th percentile of one call's times, in milliseconds."""

    median: float
    p10: float
    p90: float


@contextlib.contextmanager
def precision(mode: str) -> Iterator[None]:
    """Sets torch's fp32 switches to what `mode` stands for, and cuDNN to benchmark mode, inside.

    Both the convolutions and the matrix products follow, so that every candidate of a benchmark
    computes in the same arithmetic.
    """
    backends: Any = torch.backends
    saved = (
        backends.cudnn.benchmark,
        backends.cudnn.conv.fp32_precision,
        backends.cuda.matmul.fp32_precision,
    )
    wanted = "tf32" if mode == "tf32" else "ieee"
    backends.cudnn.benchmark = True
    backends.cudnn.conv.fp32_precision = wanted
    backends.cuda.matmul.fp32_precision = wanted
    try:
        yield
    finally:
        (
            backends.cudnn.benchmark,
            backends.cudnn.conv.fp32_precision,
            backends.cuda.matmul.fp32_precision,
        ) = saved


def synchronize(device: torch.device) -> None:
    """Waits for the device's work; nothing to do on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def race(calls: Mapping[str, Call], device: torch.device, seconds: float) -> dict[str, Timing]:
    """Times the calls in turn, round after round, for about `seconds` (5 to 200 rounds).

    Taking turns lets a change of clock or temperature hit every call alike; every second round has
    all but the first in reverse, since what came before can matter. Before each timed call
    a buffer larger than the last-level cache is written, outside of the timed region: the inputs
    come from memory, as they do in a model. On a GPU it is written as often as keeps the device
    busy until the host has enqueued the call, so that times are the device's alone, by CUDA events;
    `host_microseconds` has the host's. On the CPU they are the wall clock's.
    """
    flush = torch.empty(256 << 20 if device.type == "cuda" else 64 << 20, dtype=torch.int8).to(
        device
    )
    for call in calls.values():
        call()
    writes = 1 if device.type == "cpu" else _writes_ahead(calls, device, flush)
    start = time.perf_counter()
    _rounds(calls, device, flush, writes, 1)
    lap = time.perf_counter() - start
    rounds = min(200, max(5, round(seconds / lap)))
    samples = _rounds(calls, device, flush, writes, rounds)
    timings = {}
    for name, times in samples.items():
        deciles = statistics.quantiles(times, n=10, method="inclusive")
        timings[name] = Timing(statistics.median(times), deciles[0], deciles[-1])
    return timings


def _writes_ahead(calls: Mapping[str, Call], device: torch.device, flush: torch.Tensor) -> int:
    """How often `flush` is written while the host enqueues a call, were it twice as slow as now."""
    several, most = 4, 64
    enqueueing = max(host_microseconds(calls, device, 0, burst=several).values()) / 1e6
    synchronize(device)
    start = time.perf_counter()
    for _ in range(several):
        flush.zero_()
    synchronize(device)
    write = (time.perf_counter() - start) / several
    # Of calls that take longer, or wait for the device themselves, the host's share is small.
    return 1 + min(most, math.ceil(2 * enqueueing / write))


def _rounds(
    calls: Mapping[str, Call], device: torch.device, flush: torch.Tensor, writes: int, count: int
) -> dict[str, list[float]]:
    if device.type == "cpu":
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(count):
            for name, call in _in_turn(calls, number):
                flush.zero_()
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
        return times
    event: Callable[..., torch.cuda.Event] = torch.cuda.Event
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for number in range(count):
        for name, call in _in_turn(calls, number):
            first, last = event(enable_timing=True), event(enable_timing=True)
            for _ in range(writes):
                flush.zero_()
            first.record()
            call()
            last.record()
            marks[name].append((first, last))
    synchronize(device)
    return {n: [first.elapsed_time(last) for first, last in pairs] for n, pairs in marks.items()}


def _in_turn(calls: Mapping[str, Call], number: int) -> list[tuple[str, Call]]:
    """The calls as a round has them: of three and more none always follows the same one."""
    first, *others = calls.items()
    return [first, *(reversed(others) if number % 2 else others)]


def host_microseconds(
    calls: Mapping[str, Call], device: torch.device, seconds: float = 0.3, burst: int = 20
) -> dict[str, float]:
    """Median host time of one call in µs, enqueueing only: the device is waited for between
    bursts of calls, never inside one (on the CPU the call's own work is in it)."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or not all(times.values()):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(burst):
                call()
            times[name].append((time.perf_counter() - start) / burst * 1e6)
    synchronize(device)
    return {name: statistics.median(samples) for name, samples in times.items()}


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Device memory that one call needs at its peak, output included; None on the CPU."""
    if device.type == "cpu":
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class Ceilings:
    """What this device reaches on a plain copy and on a square matrix product, measured once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copy_gbs = 0.0
        self._matmul_tflops: dict[str, float] = {}

    @property
    def copy_gbs(self) -> float:
        """GB/s of a device copy, bytes read plus bytes written."""
        if not self._copy_gbs:
            size = 1 << (30 if self.device.type == "cuda" else 27)
            source = torch.zeros(size, dtype=torch.int8, device=self.device)
            target = torch.empty_like(source)
            timing = race({"copy": lambda: target.copy_(source)}, self.device, 0.2)["copy"]
            self._copy_gbs = 2 * size / timing.median / 1e6
        return self._copy_gbs

    def matmul_tflops(self, mode: str) -> float:
        """TFLOP/s of an 8192³ matrix product in this mode (1024³ on the CPU).

        fp32-accurate work on tensor cores is three TF32 products: on a GPU the "ieee" ceiling is a
        third of the TF32 rate.
        """
        if mode == "ieee" and self.device.type == "cuda":
            return self.matmul_tflops("tf32") / 3
        if mode not in self._matmul_tflops:
            size = 8192 if self.device.type == "cuda" else 1024
            with precision(mode):
                left = torch.randn(size, size, device=self.device).to(MODE_DTYPES[mode])
                right = torch.randn(size, size, device=self.device).to(MODE_DTYPES[mode])
                timing = race({"matmul": lambda: left @ right}, self.device, 0.2)["matmul"]
            self._matmul_tflops[mode] = 2 * size**3 / timing.median / 1e9
        return self._matmul_tflops[mode]

    def floor_ms(self, problem: Problem, op: str = "forward") -> float:
        """The roofline: max(bytes / copy rate, FLOPs / matrix product rate), in milliseconds.

        For `backward`, of all gradients at once, as if grad_output and input were read once for
        both that need them; for `train`, of forward and backward one after the other.
        """

        def floor(bytes: int, flops: int) -> float:
            products = flops / self.matmul_tflops(problem.mode) / 1e9
            return max(bytes / self.copy_gbs / 1e6, products)

        total = 0.0
        if op != "backward":
            total += floor(problem.bytes, problem.flops)
        if op != "forward":
            total += floor(problem.gradient_bytes, problem.gradient_flops)
        return total
