"""A thousand lengths of one layer: no compilation, no selection, no memory beyond the first few.

Audio comes in any length, so what a length costs once, a service pays at every call. On a GPU
KernelBench 67's layer with batch 2 and lengths around 20,000; without one, a smaller layer and
fewer lengths through the CPU's own plan.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from fastconv1d import build, conv1d, ops, plan
from fastconv1d.problem import Gpu, Problem

WARM = 100
"""Lengths after which memory must not grow."""


@dataclass
class Observed:
    """What calls at many lengths cost, beside as many at one length."""

    lengths: int
    buckets: int  # that the lengths fall into
    selections: int
    builds: int  # libraries asked for after warming up
    resident_growth: int  # bytes of host memory, from the 100th length to the last
    reserved_growth: int  # bytes of the GPU's, likewise
    many_ms: float  # median call, host and device
    one_ms: float

    @property
    def ratio(self) -> float:
        """Many lengths' median call over one length's."""
        return self.many_ms / self.one_ms


def observe(
    problem: Problem, lengths: list[int], device: torch.device, algorithm: str = ""
) -> Observed:
    """Convolve at all lengths, in turns with calls at one length, and watch what that costs."""
    weight = torch.randn(problem.weight_shape, device=device)
    room = torch.randn(problem.batch * problem.channels_in * max(lengths), device=device)
    # Half of all rows are as badly aligned as an odd length's, which is thus what to compare with.
    one = int(statistics.median(lengths)) | 1

    def seconds(length: int) -> float:
        input = room[: problem.batch * problem.channels_in * length]
        input = input.view(problem.batch, problem.channels_in, length)
        synchronize()
        start = time.perf_counter()
        conv1d(input, weight, algorithm=algorithm)
        synchronize()
        return time.perf_counter() - start

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    with pytest.MonkeyPatch.context() as patch:
        selections = counted(patch, plan, "candidates")
        seconds(one)
        buckets = {
            replace(problem, length=length, row_alignment=0).bucketed() for length in lengths
        }
        builds = counted(patch, build, "load")
        many_times, one_times = [], []
        for number, length in enumerate(lengths):
            if number == WARM:
                resident, reserved = resident_bytes(), reserved_bytes(device)
            many_times.append(seconds(length))
            one_times.append(seconds(one))
        return Observed(
            len(lengths),
            len(buckets),
            len(selections),
            len(builds),
            resident_bytes() - resident,
            reserved_bytes(device) - reserved,
            statistics.median(many_times) * 1e3,
            statistics.median(one_times) * 1e3,
        )


def counted(patch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a module's function from now on."""
    calls: list[tuple[Any, ...]] = []
    function: Callable[..., Any] = getattr(module, name)

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **named)

    patch.setattr(module, name, counting)
    return calls


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def reserved_bytes(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def distinct(count: int, around: int) -> list[int]:
    """So many lengths within a tenth of one, in random order."""
    tenth = around // 10
    return Random("lengths").sample(range(around - tenth, around + tenth + 1), count)


def check(seen: Observed) -> None:
    """What must hold on any device, but for the time."""
    print(f"\n{seen}, ratio {seen.ratio:.3f}")
    assert seen.builds == 0
    # One for each bucket, and one in Python before the device's binding is there.
    assert 0 < seen.selections <= seen.buckets + 2
    assert seen.resident_growth <= 8 << 20


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: several would wait for cores that other processes have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["tf32", "ieee"])
def test_a_thousand_lengths_on_a_gpu(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        "fp32_precision",
        mode,
    )
    device = torch.device("cuda")
    problem = Problem(2, 64, 128, 20_000, 3, mode=mode, gpu=Gpu.of(device))
    before = ops.calls()["aten"]
    seen = observe(problem, distinct(1000, problem.length), device)
    check(seen)
    assert seen.buckets <= 9  # three of lengths, three alignments of rows
    assert seen.reserved_growth <= 64 << 20
    assert seen.ratio <= 1.1
    if plan.model_choice(problem).family != "aten":
        assert ops.calls()["aten"] == before


def test_a_few_lengths_on_the_cpu(one_thread: None) -> None:
    before = ops.calls()["im2col"]
    problem = Problem(2, 8, 16, 4_000, 3)
    seen = observe(problem, distinct(300, problem.length), torch.device("cpu"), "im2col")
    check(seen)
    assert seen.buckets <= 9
    assert ops.calls()["im2col"] == before + 2 * 300 + 1
    assert seen.ratio <= 1.5  # a busy machine's clock is a rough one
