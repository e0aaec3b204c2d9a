"""Random convolutions and gradients through the CPU's kernels: every parameter, dtype and layout.

A few here, as many as RANDOM_PROBLEMS in the environment says elsewhere. Threads change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
import torch
from torch import Tensor

import test_random_gpu
import test_random_gradients_gpu
from fastconv1d import conv1d, ops, plan
from fastconv1d.compare import draw, draw_grad_output
from fastconv1d.problem import Problem
from random_problems import random_problem

CPU = torch.device("cpu")
MODES = ("ieee", "bf16", "fp16", "fp64")
KINDS = ("ordinary", "transposed", "narrow", "narrow transposed")
PROBLEMS = int(os.environ.get("RANDOM_PROBLEMS", "400"))
PER_CASE = -(-PROBLEMS // (2 * len(MODES) * len(KINDS)))
FLOPS = 1 << 23
[SIMD] = [row for row in plan.PLANS if row.name == "simd"]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def problems(random: Random, mode: str, kind: str) -> Iterator[Problem]:
    for _ in range(PER_CASE):
        yield random_problem(
            random, mode, FLOPS, transposed="transposed" in kind, narrow="narrow" in kind
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_random_convolutions(mode: str, kind: str) -> None:
    random = Random(f"convolutions {mode} {kind}")
    faults = []
    for problem in problems(random, mode, kind):
        with threads(random.choice((1, 2))):
            faults.append(test_random_gpu.run(problem, SIMD, random, CPU))
    faults = [fault for fault in faults if fault]
    assert not faults, "\n".join(faults[:10])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_random_gradients(mode: str, kind: str) -> None:
    random = Random(f"gradients {mode} {kind}")
    faults = []
    for problem in problems(random, mode, kind):
        with threads(random.choice((1, 2))):
            faults.append(test_random_gradients_gpu.run(problem, "simd", random, CPU))
    faults = [fault for fault in faults if fault]
    assert not faults, "\n".join(faults[:10])


THREADED = [
    Problem(1, 32, 48, 4096, 3, padding=1, bias=True),
    Problem(3, 24, 24, 2500, 7, padding=3, groups=24, bias=True),
    Problem(2, 64, 32, 500, 4, stride=2, padding=1, transposed=True, bias=True),
    Problem(2, 3, 17, 3001, 10, stride=5, bias=True, mode="bf16"),
    Problem(2, 12, 12, 2500, 7, padding=3, groups=12, bias=True, mode="bf16"),
    Problem(2, 70, 40, 1201, 5, padding=2, bias=True, mode="bf16"),
    Problem(1, 64, 33, 150, 8, stride=4, padding=2, transposed=True, bias=True, mode="bf16"),
]


@pytest.mark.parametrize("problem", THREADED, ids=str)
def test_results_are_the_same_for_any_number_of_threads(problem: Problem) -> None:
    input, weight, bias = draw(problem, CPU, 0)
    grad_output = draw_grad_output(problem, CPU, 0)
    geometry = (
        [problem.stride], [problem.padding], [problem.dilation], problem.transposed,
        [problem.output_padding], problem.groups,
    )  # fmt: skip

    def step() -> tuple[Tensor | None, ...]:
        return (
            ops.convolution(input, weight, bias, *geometry, "simd"),
            *ops.convolution_backward(
                grad_output, input, weight, [problem.channels_out], *geometry, [True] * 3, "simd"
            ),
        )

    results = []
    for count in (1, 2, 3):
        with threads(count):
            results += [step() for _ in range(5)]
    for result in results[1:]:
        for one, two in zip(results[0], result, strict=True):
            assert one is not None and two is not None and torch.equal(one, two)


def test_torch_and_ours_take_turns() -> None:
    """With the processor's registers for bf16, which one finds as the other one left them."""
    torch.manual_seed(0)
    input, weight = torch.randn(2, 64, 500).bfloat16(), torch.randn(48, 64, 3).bfloat16()
    other, square = torch.randn(3, 33, 200).bfloat16(), torch.randn(96, 96).bfloat16()
    calls = {
        "ours": lambda: conv1d(input, weight, algorithm="simd"),
        "ours, other sizes": lambda: conv1d(other, weight[:20, :33].contiguous(), algorithm="simd"),
        "torch": lambda: torch.nn.functional.conv1d(input, weight),
        "a product": lambda: square @ square,
    }
    alone = {name: call() for name, call in calls.items()}
    for name in 25 * ("ours", "torch", "a product", "torch", "ours, other sizes", "a product"):
        assert torch.equal(calls[name](), alone[name]), name
