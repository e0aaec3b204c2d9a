"""Random gradients on a GPU: every parameter, dtype, memory layout and kernel, held against fp64.

For each family of kernels for the weight's gradient, and for whatever is chosen without being asked
for one, 400 problems in each mode, with NaN in the memory that the allocator hands out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
import torch
from torch import Tensor

from fastconv1d import ops, plan
from fastconv1d.compare import (
    compare_gradients,
    draw,
    draw_grad_output,
    imprecise,
    poison_allocator,
)
from fastconv1d.config import MODES
from fastconv1d.plan import TENSOR_CORE_MODES
from fastconv1d.problem import Gpu, Problem
from random_problems import LAYOUTS, laid_out, random_problem

CUDA = torch.device("cuda")
PROBLEMS_PER_MODE = 400
FLOPS = 1 << 27
REPEATS = 100
FAMILIES = {
    "by itself": ("", MODES),
    "hopper": ("hopper", ("tf32", "bf16", "fp16")),
    "turned": ("turned", ("bf16", "fp16")),
    "explicit": ("explicit", ("tf32", "bf16", "fp16")),
    "dense": ("dense", tuple(TENSOR_CORE_MODES)),
    "sliding": ("sliding", tuple(TENSOR_CORE_MODES)),
    "toeplitz": ("toeplitz", ("tf32", "bf16", "fp16")),
    "kn2row": ("kn2row", tuple(TENSOR_CORE_MODES)),
    "direct": ("direct", MODES),
}
"""By a name for `-k`: the algorithm asked for, and the modes that it has."""

CASES = [
    pytest.param(algorithm, mode, id=f"{name}-{mode}")
    for name, (algorithm, modes) in FAMILIES.items()
    for mode in modes
]
cases = pytest.mark.parametrize(("algorithm", "fp32_precision"), CASES, indirect=["fp32_precision"])

Gradients = tuple[Tensor | None, Tensor, Tensor | None]

pytestmark = pytest.mark.gpu


def rows_that_run(problem: Problem, algorithm: str) -> set[str]:
    """Names of the plans for the weight's gradient that `algorithm` admits and can run it.

    Whatever the layout of the tensors.
    """
    ordinary = replace(problem.ordinary, row_alignment=problem.dtype.itemsize)
    rows = plan.explain(ordinary, algorithm, gradient=True)
    return {row.name for row, why_not, _ in rows if why_not is None}


def problems(random: Random, mode: str, algorithm: str) -> Iterator[Problem]:
    """Random ones that `algorithm` can run; they end where it seems to have none."""
    gpu = Gpu.of(torch.device("cuda"))
    misses = 0
    while misses < 10_000:
        problem = random_problem(
            random, mode, FLOPS, transposed=random.random() < 0.25,
            narrow=algorithm in ("sliding", "toeplitz", "kn2row") or random.random() < 0.2, gpu=gpu,
        )  # fmt: skip
        if rows_that_run(problem, algorithm):
            misses = 0
            yield problem
        misses += 1


def backward(
    problem: Problem, grad_output: Tensor, input: Tensor, weight: Tensor, algorithm: str, way: str
) -> Gradients:
    """The gradients by one of both operators; that of the input where all is left to us."""
    geometry = (
        [problem.stride], [problem.padding], [problem.dilation], problem.transposed,
        [problem.output_padding], problem.groups,
    )  # fmt: skip
    if way == "grad_weight":
        grad_weight, grad_bias = torch.ops.fastconv1d.grad_weight(
            grad_output, input, list(problem.weight_shape), problem.bias, *geometry, algorithm
        )
        return None, grad_weight, grad_bias if problem.bias else None
    # Not every kernel for the weight's gradient has a namesake for the input's convolution.
    mask = [algorithm in ("", "direct"), True, problem.bias]
    gradients: Gradients = ops.convolution_backward(
        grad_output, input, weight, [problem.channels_out] if problem.bias else None, *geometry,
        mask, algorithm,
    )  # fmt: skip
    assert [gradient is not None for gradient in gradients] == mask
    return gradients


def left_to_aten(problem: Problem, algorithm: str) -> tuple[bool, bool, bool]:
    """Whether ATen computes the gradients of input, weight and bias.

    What it runs may add up atomically, and round 16-bit sums more than once.
    """
    of_input = plan.select(problem.adjoint, algorithm if algorithm == "direct" else "")
    of_weight = plan.select(problem.ordinary, algorithm, gradient=True)
    both = of_weight.family == "aten"
    return of_input.family == "aten", both, both


def run(problem: Problem, algorithm: str, random: Random, device: torch.device = CUDA) -> str:
    """Compute the gradients of one problem, laid out at random; what was wrong, or ''."""
    by_aten = left_to_aten(problem, algorithm)
    rounds_once = not any(by_aten) or problem.dtype.itemsize > 2
    exact = rounds_once and random.random() < 0.4
    seed = random.randrange(1 << 30)
    input, weight, _ = draw(problem, device, seed, integers=exact)
    grad_output = draw_grad_output(problem, device, seed, integers=exact)
    layouts = tuple(random.choice(LAYOUTS) for _ in range(3))
    grad_output, input, weight = map(laid_out, (grad_output, input, weight), layouts)
    way = random.choice(("grad_weight", "convolution_backward"))
    poison_allocator(math.prod(problem.weight_shape) * problem.dtype.itemsize, device)
    before = ops.calls()
    gradients, again = (
        backward(problem, grad_output, input, weight, algorithm, way) for _ in range(2)
    )
    after = ops.calls()
    judged = [
        None if aten and not rounds_once else gradient
        for gradient, aten in zip(gradients, by_aten, strict=True)
    ]
    verdicts = compare_gradients(judged, grad_output, input, weight, problem, exact=exact)
    reasons = [verdict.reason for verdict in verdicts.values() if not verdict.ok]
    # Expanded tensors make elements alike, and their mean chance.
    alike = any("expanded" in layout for layout in layouts)
    if not exact and not alike and (gradient := verdicts.get("grad_weight")):
        terms = problem.batch * (problem.length if problem.transposed else problem.length_out)
        reasons.append(imprecise(gradient, terms, math.prod(problem.weight_shape), problem))
    for one, two, aten in zip(gradients, again, by_aten, strict=True):
        if one is not None and two is not None and not (aten or torch.equal(one, two)):
            reasons.append("a second call gave another result")
    rows = rows_that_run(problem, algorithm)
    if algorithm and sum(after[name] - before[name] for name in rows) != 2:
        reasons.append("another plan ran it")
    reason = "; ".join(filter(None, reasons))
    where = f"{algorithm or 'by itself'}, {way}, layouts {layouts}, {problem}"
    return f"{where}: {reason}" if reason else ""


@cases
def test_random_gradients(algorithm: str, fp32_precision: str) -> None:
    mode = fp32_precision
    random = Random(f"random gradients in {mode} {algorithm}".strip())
    before = ops.calls()
    faults, count = [], 0
    for problem in islice(problems(random, mode, algorithm), PROBLEMS_PER_MODE):
        count += 1
        if fault := run(problem, algorithm, random):
            faults.append(fault)
    ran = Counter(ops.calls()) - Counter(before)
    print(f"{mode}: {count} problems, {len(faults)} wrong, calls by plan {dict(ran)}")
    assert not faults, "\n".join([f"{len(faults)} of {count} wrong", *faults[:10]])
    assert count == PROBLEMS_PER_MODE


@cases
def test_a_step_is_bit_identical_every_time(algorithm: str, fp32_precision: str) -> None:
    """Many blocks share a sum here, whose order must not be theirs of arriving."""
    mode, device = fp32_precision, torch.device("cuda")
    long = [
        Problem(16, 32, 48, 4096, 3, padding=1, bias=True),
        Problem(16, 24, 24, 4096, 7, padding=3, groups=24, bias=True),
        Problem(8, 64, 32, 1024, 4, stride=2, padding=1, transposed=True, bias=True),
        Problem(70, 8, 8, 300, 200, padding=199, groups=8, bias=True),
    ]
    gpu = Gpu.of(device)
    chosen = [replace(problem, mode=mode, gpu=gpu) for problem in long]
    chosen = [problem for problem in chosen if rows_that_run(problem, algorithm)]
    assert chosen
    for problem in chosen:
        input, weight, _ = draw(problem, device, 1)
        grad_output = draw_grad_output(problem, device, 1)

        def step(
            problem: Problem = problem,
            tensors: tuple[Tensor, ...] = (grad_output, input, weight),
        ) -> Gradients:
            return backward(problem, *tensors, algorithm, "convolution_backward")

        first, by_aten = step(), left_to_aten(problem, algorithm)
        for _ in range(REPEATS):
            for one, two, aten in zip(first, step(), by_aten, strict=True):
                equal = one is None or (two is not None and torch.equal(one, two))
                assert aten or equal, problem


@pytest.mark.parametrize("fp32_precision", ["tf32", "bf16"], indirect=True)
def test_a_thread_may_begin_with_gradients(fp32_precision: str) -> None:
    """As autograd's does in the first step of a process: nothing has used the GPU there before."""
    problem = Problem(4, 64, 128, 4096, 3, mode=fp32_precision, gpu=Gpu.of(CUDA))
    input, weight, _ = draw(problem, CUDA, 1)
    grad_output = draw_grad_output(problem, CUDA, 1)

    def step() -> Gradients:
        return backward(problem, grad_output, input, weight, "", "convolution_backward")

    with ThreadPoolExecutor(1) as thread:
        there = thread.submit(step).result()
    for one, other in zip(there, step(), strict=True):
        assert (
            torch.equal(one, other)
            if isinstance(one, Tensor) and isinstance(other, Tensor)
            else one is other
        )


@pytest.mark.parametrize("fp32_precision", TENSOR_CORE_MODES, indirect=True)
def test_a_depthwise_layers_gradients_come_in_one_pass(fp32_precision: str) -> None:
    assert ops._binding("cuda")  # without it, each gradient is asked for by itself
    for layout in LAYOUTS:
        problem = Problem(4, 40, 40, 9001, 4, padding=3, groups=40, bias=True, mode=fp32_precision)
        input, weight, _ = draw(problem, "cuda", 0)
        grad_output = draw_grad_output(problem, "cuda", 0)
        input, weight, grad_output = (laid_out(t, layout) for t in (input, weight, grad_output))
        before = Counter(ops.calls())
        gradients = backward(problem, grad_output, input, weight, "", "convolution_backward")
        assert Counter(ops.calls()) - before == {"grad_sliding": 1}
        for verdict in compare_gradients(gradients, grad_output, input, weight, problem).values():
            assert verdict.ok, f"{layout}: {verdict.reason}"


@pytest.mark.parametrize("fp32_precision", MODES, indirect=True)
def test_a_family_that_cannot_run_a_problem_says_why(fp32_precision: str) -> None:
    problem = Problem(2, 64, 64, 100, 3, mode=fp32_precision)
    input, weight, _ = draw(problem, "cuda", 0)
    grad_output = draw_grad_output(problem, "cuda", 0)
    for algorithm in ("hopper", "dense", "sliding", "direct"):
        if not rows_that_run(replace(problem, gpu=Gpu.of(input.device)), algorithm):
            with pytest.raises(RuntimeError, match=f"algorithm '{algorithm}' cannot run this"):
                backward(problem, grad_output, input, weight, algorithm, "grad_weight")
