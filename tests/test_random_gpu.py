"""Random convolutions: every parameter, dtype, memory layout and plan, held against fp64.

On a GPU 2,200 problems, each on one of the plans that can run it, with NaN in the memory that the
allocator hands out, 2,080 more through the tiles of the Hopper kernel, and 1,600 with groups of few
channels through the sliding one, 1,200 written out as products, and 600 each through that of
Toeplitz blocks and that of few output channels. Without a GPU, a few through the CPU's own plan.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch

from fastconv1d import ops
from fastconv1d.compare import compare, draw, poison_allocator
from fastconv1d.config import MODES
from fastconv1d.plan import PLANS, TENSOR_CORE_MODES, Plan, tile_rows
from fastconv1d.problem import Gpu, Problem
from random_problems import LAYOUTS, laid_out, random_problem

PROBLEMS_PER_MODE = 440
PROBLEMS_PER_MODE_ON_HOPPER = 520
PROBLEMS_PER_MODE_WRITTEN_OUT = 300
PROBLEMS_PER_MODE_OF_FEW_CHANNELS = 400
PROBLEMS_PER_MODE_OF_A_SPECIALIST = 200
PROBLEMS_PER_MODE_ON_CPU = 20
SPECIALISTS = ("toeplitz", "kn2row")
FLOPS = 1 << 27


def run(problem: Problem, plan: Plan, random: Random, device: torch.device) -> str:
    """Run one problem on a plan, its tensors laid out at random; what was wrong, or ''."""
    # Where products are added in fp32 and rounded once, small integers leave no rounding error.
    rounds_once = plan.family != "im2col" or problem.dtype.itemsize > 2
    exact = rounds_once and random.random() < 0.3
    input, weight, bias = draw(problem, device, random.randrange(1 << 30), integers=exact)
    layouts = random.choice(LAYOUTS), random.choice(LAYOUTS)
    input, weight = laid_out(input, layouts[0]), laid_out(weight, layouts[1])
    poison_allocator(math.prod(problem.output_shape) * problem.dtype.itemsize, device)
    before = ops.calls()[plan.name]

    def convolve() -> torch.Tensor:
        return ops.convolution(
            input, weight, bias, [problem.stride], [problem.padding], [problem.dilation],
            problem.transposed, [problem.output_padding], problem.groups, plan.name,
        )  # fmt: skip

    with torch.no_grad():
        output, again = convolve(), convolve()
    reason = compare(output, input, weight, bias, problem, exact=exact).reason
    if not reason and not torch.equal(output, again):
        reason = "a second call gave another result"
    if not reason and ops.calls()[plan.name] != before + 2:
        reason = "another plan ran it"
    return f"{plan.name}, layouts {layouts}, {problem}: {reason}" if reason else ""


def random_runs(
    mode: str, count: int, device: torch.device, family: str = ""
) -> tuple[Counter[str], list[str]]:
    """How many problems each plan (of a family) ran, and what went wrong."""
    random = Random(f"random problems in {mode} {family}".strip())
    narrow = family in ("sliding", "toeplitz")
    gpu = Gpu.of(device) if device.type == "cuda" else None
    ran: Counter[str] = Counter()
    faults = []
    while ran.total() < count:
        transposed = random.random() < 0.25
        problem = random_problem(random, mode, FLOPS, transposed=transposed, narrow=narrow, gpu=gpu)
        # However the input will be laid out.
        anyhow = replace(problem, row_alignment=problem.dtype.itemsize)
        plans = [p for p in PLANS if p.family != "aten" and p.why_not(anyhow) is None]
        plans = [p for p in plans if family in ("", p.family)]
        if not plans:
            continue
        plan = min(plans, key=lambda p: ran[p.name])
        ran[plan.name] += 1
        if fault := run(problem, plan, random, device):
            faults.append(fault)
    return ran, faults


@pytest.mark.gpu
@pytest.mark.parametrize("fp32_precision", MODES, indirect=True)
def test_random_problems(fp32_precision: str) -> None:
    mode = fp32_precision
    ran, faults = random_runs(mode, PROBLEMS_PER_MODE, torch.device("cuda"))
    print(f"{mode}: {ran.total()} problems, {len(faults)} wrong, by plan {dict(ran)}")
    assert not faults, "\n".join([f"{len(faults)} of {ran.total()} wrong", *faults[:10]])
    assert "direct" in ran and "im2col" in ran
    assert len(ran) > 2 or mode == "fp64"


@pytest.mark.gpu
@pytest.mark.parametrize("fp32_precision", TENSOR_CORE_MODES, indirect=True)
def test_random_problems_through_the_hopper_kernel(fp32_precision: str) -> None:
    mode, device = fp32_precision, torch.device("cuda")
    if Gpu.of(device).capability != (9, 0):
        pytest.skip("needs a Hopper GPU")
    ran, faults = random_runs(mode, PROBLEMS_PER_MODE_ON_HOPPER, device, "hopper")
    print(f"{mode}: {ran.total()} problems, {len(faults)} wrong, by plan {dict(ran)}")
    assert not faults, "\n".join([f"{len(faults)} of {ran.total()} wrong", *faults[:10]])
    assert set(ran) == {plan.name for plan in tile_rows("hopper", mode)}


@pytest.mark.gpu
@pytest.mark.parametrize("fp32_precision", TENSOR_CORE_MODES, indirect=True)
def test_random_problems_written_out_as_products(fp32_precision: str) -> None:
    mode, device = fp32_precision, torch.device("cuda")
    if Gpu.of(device).capability != (9, 0):
        pytest.skip("needs a Hopper GPU")
    ran, faults = random_runs(mode, PROBLEMS_PER_MODE_WRITTEN_OUT, device, "explicit")
    print(f"{mode}: {ran.total()} problems, {len(faults)} wrong, by plan {dict(ran)}")
    assert not faults, "\n".join([f"{len(faults)} of {ran.total()} wrong", *faults[:10]])
    assert set(ran) == {plan.name for plan in tile_rows("explicit", mode)}


@pytest.mark.gpu
def test_a_weight_that_begins_anywhere() -> None:
    """Rows of a weight are copied from multiples of 16 bytes; a tensor may begin elsewhere."""
    device = torch.device("cuda")
    if Gpu.of(device).capability != (9, 0):
        pytest.skip("needs a Hopper GPU")
    problem = Problem(2, 64, 40, 33, 8, mode="bf16", gpu=Gpu.of(device))
    input, weight, bias = draw(problem, device, 0, integers=True)
    moved = weight.new_empty(weight.numel() + 1)[1:].view_as(weight).copy_(weight)
    assert moved.data_ptr() % 16 == 2
    output = ops.convolution(input, moved, bias, [1], [0], [1], False, [0], 1, "explicit")
    assert compare(output, input, weight, bias, problem, exact=True).ok


@pytest.mark.gpu
@pytest.mark.parametrize("fp32_precision", TENSOR_CORE_MODES, indirect=True)
def test_random_problems_of_few_channels(fp32_precision: str) -> None:
    mode, device = fp32_precision, torch.device("cuda")
    ran, faults = random_runs(mode, PROBLEMS_PER_MODE_OF_FEW_CHANNELS, device, "sliding")
    print(f"{mode}: {ran.total()} problems, {len(faults)} wrong, by plan {dict(ran)}")
    assert not faults, "\n".join([f"{len(faults)} of {ran.total()} wrong", *faults[:10]])


@pytest.mark.gpu
@pytest.mark.parametrize("family", SPECIALISTS)
@pytest.mark.parametrize("fp32_precision", TENSOR_CORE_MODES, indirect=True)
def test_random_problems_of_a_specialist(fp32_precision: str, family: str) -> None:
    mode, device = fp32_precision, torch.device("cuda")
    ran, faults = random_runs(mode, PROBLEMS_PER_MODE_OF_A_SPECIALIST, device, family)
    print(f"{mode}: {ran.total()} problems, {len(faults)} wrong, by plan {dict(ran)}")
    assert not faults, "\n".join([f"{len(faults)} of {ran.total()} wrong", *faults[:10]])


@pytest.mark.parametrize("mode", ["ieee", "fp64"])
def test_random_problems_on_the_cpu(mode: str) -> None:
    ran, faults = random_runs(mode, PROBLEMS_PER_MODE_ON_CPU, torch.device("cpu"))
    assert not faults, "\n".join(faults)
    assert set(ran) == {"simd", "im2col"}
