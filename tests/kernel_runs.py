"""Launches of the kernel libraries without torch: `emulation/harness.cpp` runs, this file judges.

The tests run them on the CPU, compiled with the emulation; `sanitize.py` on a GPU, under NVIDIA's
compute-sanitizer.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

from fastconv1d import grad_costs, plan
from fastconv1d.compare import (
    compare,
    compare_gradients,
    draw,
    draw_grad_output,
    expected,
    gradients,
    guards_intact,
    imprecise,
    poison,
)
from fastconv1d.config import MODES
from fastconv1d.problem import Gpu, Problem
from random_problems import CONTIGUOUS_ROWS, laid_out, random_problem

IN_CI = os.environ.get("CI") == "true"
"""On two cores, for a quarter of an hour at most."""


def has_turn(mode: str, variant: int) -> bool:
    """Whether a tile is compiled and emulated in a mode: in CI, TF32 and bf16 take turns on them.

    What a tile does is the same in both but for words and their values. Of ieee's every third is:
    of the Hopper kernel's that of 96 channels, and one of each of the others' kinds.
    """
    if not IN_CI:
        return True
    return variant % 3 == 1 if mode == "ieee" else variant % 2 == (mode == "bf16")


EMULATION = Path(__file__).parent / "emulation"
SHARED_BYTES = {"sm_90": 228 << 10, "sm_80": 164 << 10, "sm_86": 100 << 10}
"""Shared memory of one multiprocessor."""


@dataclass(frozen=True)
class Run:
    """One launch: a problem, a variant of its mode's library, and what surrounds them.

    `guard` elements lie on either side of the output. A multiple of 8, since the dense kernel takes
    outputs to begin at one, as those of torch's allocators do.

    With `columns` the weight copies: output channel (c, t) is what tap t sees of channel c, or,
    transposed, input channel (c, t) is what tap t adds to channel c, in fp32 where outputs have 16
    bits. With `rounded` the output is judged as a convolution of operands rounded to TF32, without
    tolerance for that rounding. With `spread` the input is large at some positions and tiny at
    others; `scales` are factors of input and weight, and `gap` lies between the input's rows. With
    `far` the input begins with one huge value, and zeros around it. With `infinite` positions in
    the middle are, or with `nan` the NaN of a GPU's own arithmetic, which has all bits set.

    With `gradient` the library is one of gradients, and the problem an ordinary one; the output is
    the gradient of the weight, and that of the bias if the problem has one. grad_output stands in
    the weight's place and has `cut_off` positions fewer than the problem's output. If it is
    `infinite`, so are the ends of the input's rows and the first value of one row of grad_output:
    padding, and positions and taps that do not exist, must not meet these. With `only_bias` its
    gradient alone is computed. `with_input` asks for the gradient of the input as well; then a tap
    and a value amid a row of grad_output are infinite, too.
    """

    problem: Problem
    variant: int
    layout: str = "contiguous"
    integers: bool = True
    reverse: bool = False
    multiprocessors: int = 1
    shared_bytes: int = SHARED_BYTES["sm_90"]
    guard: int = 64
    seed: int = 0
    columns: bool = False
    rounded: bool = False
    spread: bool = False
    far: bool = False
    gap: float = float("nan")
    scales: tuple[float, float] = (1.0, 1.0)
    infinite: bool = False
    nan: bool = False
    gradient: bool = False
    only_bias: bool = False
    with_input: bool = False
    cut_off: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what was wrong with each output."""

    returncode: int
    log: str
    complaints: tuple[str, ...]


HOPPER = Gpu("NVIDIA H200", (9, 0), 132)


def as_laid_out(run: Run) -> Problem:
    """The problem on a Hopper GPU, with what its input's layout leaves of the rows' alignment."""
    row_alignment = 0 if run.layout == "contiguous" else run.problem.dtype.itemsize
    return replace(run.problem, gpu=HOPPER, row_alignment=row_alignment)


def on_family(family: str, runs: Iterable[Run]) -> list[Run]:
    """Those that a family's tiles have a way for, with a Hopper GPU's shared memory.

    Of Hopper's families; runs of any other one stay as they are.
    """
    if family not in plan.HOPPER_FAMILIES:
        return list(runs)
    return [
        replace(run, shared_bytes=SHARED_BYTES["sm_90"])
        for run in runs
        if plan.tile_rows(family, run.problem.mode)[run.variant].why_not(as_laid_out(run)) is None
    ]


def shared_runs(mode: str, variant: int) -> list[Run]:
    """Reductions so long, and outputs so few, that blocks of the Hopper kernel share tiles."""
    problems = (
        Problem(1, 1024, 70, 40, 7, padding=3, bias=True),
        Problem(2, 840, 70, 41, 10, stride=2, groups=2),
        Problem(1, 900, 5, 33, 16, stride=4, padding=2, transposed=True, bias=True),
    )
    return [
        Run(replace(problem, mode=mode), variant, multiprocessors=132, seed=number)
        for number, problem in enumerate(problems)
    ]


def on_plan(name: str, runs: Iterable[Run]) -> list[Run]:
    """Those that a plan has a way for."""
    row = next(row for row in plan.EVERY_PLAN if row.name == name)
    return [r for r in runs if row.why_not(replace(r.problem, gpu=HOPPER)) is None]


def harness(library: str, variants: Sequence[int] = ()) -> str:
    """The C++ source of a program that runs convolutions of a kernel library.

    With `variants`, of a library of tiles, it has these alone, which take a part of the time to
    compile.
    """
    glue = plan.kernels()[library]
    if variants:
        family, mode = library.rsplit("_", 1)
        rows = plan.tile_rows(family, mode)
        glue = plan.tile_glue(family, mode, [rows[variant] for variant in variants])
    return glue + '#include "harness.cpp"\n'


def with_tiles(library: str, tiles: Iterable[int], runs: Iterable[Run]) -> tuple[str, list[Run]]:
    """The harness with some tiles of a library alone, among them those of all runs, and the runs
    by their numbers there."""
    variants = sorted(tiles)
    moved = [replace(run, variant=variants.index(run.variant)) for run in runs]
    return harness(library, variants), moved


def with_few_tiles(library: str, runs: Iterable[Run], every: int = 1) -> tuple[str, list[Run]]:
    """The harness with the tiles of some runs alone, or with each `every`-th, and those runs."""
    if library.rsplit("_", 1)[0] not in plan.TENSOR_CORE_FAMILIES:
        return harness(library), list(runs)
    runs = [replace(run, variant=run.variant - run.variant % every) for run in runs]
    runs = on_family(library.rsplit("_", 1)[0], runs)
    return with_tiles(library, {run.variant for run in runs}, runs)


def execute(
    command: Sequence[str | Path],
    runs: Iterable[Run],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a harness, whose command line is completed here, and judge each output."""
    folder.mkdir(exist_ok=True)
    files: list[Path] = []
    pending = []
    for number, run in enumerate(runs):
        input, weight, bias = draw(run.problem, "cpu", run.seed, integers=run.integers)
        of_input = weight if run.with_input else None
        if run.gradient:
            assert not (run.problem.transposed or run.columns)
            weight = draw_grad_output(run.problem, "cpu", run.seed, integers=run.integers)
            weight = weight[:, :, : run.problem.length_out - run.cut_off].contiguous()
            if run.infinite:
                weight[0, -1, 0] = float("inf")
                if of_input is not None:
                    amid = weight.shape[1] // 2, weight.shape[2] // 2
                    of_input[0, 0, -1] = weight[-1][amid] = float("inf")
        if run.spread:
            input *= 2.0 ** -(torch.arange(input.shape[2]) // 20 * 37 % 100)
            input[:, ::3, ::7] = 0
        if run.far:
            input[:, :, :192] = 0
            input[0, 0, 0] = 1e37
        input, weight = input * run.scales[0], weight * run.scales[1]
        if run.infinite:
            input[..., -1 if run.gradient else input.shape[2] // 2] = float("inf")
        if run.nan:
            input.view(torch.int32)[..., input.shape[2] // 2] = 0x7FFFFFFF
        if run.columns and run.problem.transposed and input.element_size() == 2:
            input = input.float() * (1 if run.integers else 1 + 2**-12)
        input = laid_out(input, run.layout, run.gap)
        if run.columns:
            taps = torch.eye(run.problem.kernel_size, dtype=run.problem.dtype)
            weight = taps[:, None].repeat(run.problem.groups, 1, 1)
        problem, result = folder / f"{number}.problem", folder / f"{number}.result"
        problem.write_bytes(encode(run, input, weight, bias, of_input))
        result.write_bytes(b"")
        files += [problem, result]
        pending.append((run, input, weight, bias, of_input, result))
    process = subprocess.run(
        [*command, *files], capture_output=True, text=True, timeout=300, env=environment
    )
    complaints = tuple(
        f"{run}: {reason}"
        for run, input, weight, bias, of_input, result in pending
        if (reason := _fault(run, input, weight, bias, of_input, result.read_bytes()))
    )
    return Outcome(process.returncode, process.stdout + process.stderr, complaints)


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def encode(
    run: Run,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    of_input: torch.Tensor | None,
) -> bytes:
    """The harness's PROBLEM file."""
    p = run.problem
    storage = torch.empty(0, dtype=input.dtype).set_(input.untyped_storage())
    numbers = (
        run.variant, run.reverse, run.shared_bytes, run.gradient, run.with_input,
        p.dtype.itemsize, input.element_size(),
        storage.numel(), input.storage_offset(), weight.numel(),
        0 if bias is None else bias.numel(), run.guard,
        0, 0, 0, 0, 0, 0, 0, 0,  # the pointers of ConvArgs
        p.batch, p.channels_in, p.channels_out, p.length, p.length_out - run.cut_off,
        p.kernel_size, p.stride, p.padding, p.dilation, p.groups, p.transposed,
        input.stride(0), input.stride(1), MODES.index(p.mode), run.multiprocessors,
    )  # fmt: skip
    header = torch.tensor(numbers, dtype=torch.int64)
    if run.gradient:
        bias = None  # only whether there is one counts
    return b"".join(_raw(t) for t in (header, storage, weight, bias, of_input) if t is not None)


def _fault(
    run: Run,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    of_input: torch.Tensor | None,
    result: bytes,
) -> str:
    """What is wrong with a RESULT file, or ''."""
    problem = run.problem
    shapes: list[tuple[int, ...]] = [problem.output_shape]
    if run.gradient:
        shapes = [problem.weight_shape, *([(problem.channels_out,)] if problem.bias else [])]
        shapes += [problem.input_shape] if run.with_input else []
    written = [poison(shape, problem.dtype, guard=run.guard) for shape in shapes]
    wholes = [torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()) for t in written]
    expected_bytes = 8 + sum(whole.numel() for whole in wholes)
    if len(result) != expected_bytes:
        return f"the result has {len(result)} bytes, expected {expected_bytes}"
    if error := int.from_bytes(result[:8], "little", signed=True):
        return f"the launch returned error {error}"
    bytes_written = torch.frombuffer(bytearray(result[8:]), dtype=torch.uint8)
    for whole, part in zip(wholes, bytes_written.split([w.numel() for w in wholes]), strict=True):
        whole.copy_(part)
    if not all(map(guards_intact, written)):
        return "written beside the output"
    output = written[0]
    if (run.infinite or run.nan) and not run.gradient:
        reached = ~input.isfinite()
        finite = input.masked_fill(reached, 0)
        ones = torch.ones_like(weight)
        sees = expected(reached.double(), ones, None, problem).y64 > 0
        if output[sees].isfinite().any():
            return "an output that sees infinity is finite"
        without = expected(finite, weight, bias, problem).y64.to(output.dtype)
        output, input = torch.where(sees, without, output), finite
    if run.gradient:
        # The weight matters to the gradient of the input alone.
        grad_output, weight = weight, input.new_zeros(problem.weight_shape)
        if of_input is not None:
            weight = of_input
        actual = [
            written[-1] if run.with_input else None,
            output,
            written[1] if problem.bias else None,
        ]
        if run.infinite:
            if not _reached(actual, grad_output, input, weight, problem):
                return "an element that sees infinity is finite"
            grad_output, input, weight = map(_finite, (grad_output, input, weight))
        of_input, of_weight, of_bias = actual
        verdicts = compare_gradients(
            (of_input, None, of_bias), grad_output, input, weight, problem, exact=run.integers
        )
        for verdict in verdicts.values():
            if not verdict.ok:
                return verdict.reason
        if run.only_bias:
            return ""
        if run.rounded:
            input, grad_output = _to_tf32(input), _to_tf32(grad_output)
            problem = replace(problem, mode="ieee")
        verdict = compare_gradients(
            (None, of_weight, None), grad_output, input, weight, problem, exact=run.integers
        )["grad_weight"]
        ordinary_values = not (run.integers or run.spread or run.far) and run.scales == (1.0, 1.0)
        terms = problem.batch * grad_output.shape[2]
        if verdict.ok and ordinary_values:
            return imprecise(verdict, terms, output.numel(), problem)
        return verdict.reason
    if run.rounded:
        input, weight, problem = _to_tf32(input), _to_tf32(weight), replace(problem, mode="ieee")
    return compare(output, input, weight, bias, problem, exact=run.integers).reason


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.masked_fill(tensor.isinf(), 0)


def _reached(
    actual: list[torch.Tensor | None],
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    problem: Problem,
) -> bool:
    """Whether no gradient of these is finite where it sees infinity. There it is then replaced by
    what it were if none of the tensors had any."""
    tensors = grad_output, input, weight
    infinite = [tensor.isinf().double() for tensor in tensors]
    ones = [torch.ones_like(tensor) for tensor in infinite]
    with_grad = gradients(infinite[0], ones[1], ones[2], problem)
    with_others = gradients(ones[0], infinite[1], infinite[2], problem)
    without = gradients(*map(_finite, tensors), problem)
    sees = (
        with_grad.input.y64 + with_others.input.y64 > 0,
        with_grad.weight.y64 + with_others.weight.y64 > 0,
        with_grad.bias.y64 > 0,
    )
    references = without.input, without.weight, without.bias
    for number, (gradient, where, reference) in enumerate(
        zip(actual, sees, references, strict=True)
    ):
        if gradient is None:
            continue
        if gradient[where].isfinite().any():
            return False
        actual[number] = torch.where(where, reference.y64.to(gradient.dtype), gradient)
    return True


def _to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """To eleven significant bits, to nearest, ties away from zero."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


CORNERS = {
    "aligned rows": Problem(1, 32, 20, 768, 3, padding=1, bias=True),
    "one of everything": Problem(1, 1, 1, 1, 1),
    "tails": Problem(2, 19, 37, 131, 3, padding=1, bias=True),
    "several tiles and slices": Problem(1, 40, 130, 261, 3),
    "runs of whole tiles": Problem(8, 7, 128, 455, 2, bias=True),
    "taps in uneven groups": Problem(1, 25, 25, 784, 7, padding=768, dilation=128),
    # In tiles of 64 and 128 positions a tap sees a row's first one, or its last one, and no more.
    "taps that see a row's ends": Problem(1, 90, 25, 259, 3, padding=384, dilation=257),
    "taps in blocks of their own": Problem(2, 25, 20, 301, 3, padding=200, dilation=136, bias=True),
    "the same, aligned rows": Problem(1, 40, 70, 512, 2, stride=2, padding=70, dilation=272),
    "a group without taps": Problem(1, 8, 8, 1200, 5, stride=2, dilation=221),
    "travelling weights": Problem(1, 150, 70, 150, 5, padding=2),
    "long rows": Problem(1, 8, 17, 3203, 2, bias=True),
    "stride 2": Problem(2, 9, 20, 75, 4, stride=2, padding=3),
    "stride 3, dilation 4": Problem(1, 24, 33, 500, 3, stride=3, dilation=4),
    "stride 5, dilation 5": Problem(1, 5, 3, 333, 7, stride=5, dilation=5, padding=2),
    "stride 8": Problem(1, 3, 9, 400, 10, stride=8, dilation=3, padding=5, bias=True),
    "stride beyond the kernel": Problem(1, 17, 16, 700, 2, stride=7),
    "padding beyond the reach": Problem(2, 4, 6, 5, 3, padding=40, bias=True),
    "travelling weights, far padding": Problem(1, 150, 17, 90, 3, padding=160, dilation=30),
    "kernel as long as the input": Problem(1, 6, 5, 31, 31, padding=0),
    "many taps": Problem(1, 10, 16, 150, 129, padding=64),
    "far taps": Problem(1, 8, 16, 700, 3, dilation=300, padding=11),
    "groups": Problem(2, 3 * 7, 3 * 18, 140, 5, groups=3, padding=2, bias=True),
    "depthwise": Problem(1, 6, 12, 133, 3, groups=6, padding=1),
}
TRANSPOSED = {
    "transposed": Problem(2, 9, 20, 67, 3, padding=1, transposed=True, bias=True),
    "transposed, stride 2": Problem(
        1, 17, 19, 70, 4, stride=2, padding=1, output_padding=1, transposed=True, bias=True
    ),
    "transposed, empty phases": Problem(
        1, 8, 5, 40, 3, stride=2, dilation=2, padding=1, transposed=True, bias=True
    ),
    "transposed, stride 5": Problem(
        1, 6, 8, 33, 7, stride=5, dilation=3, padding=4, groups=2, transposed=True
    ),
    "transposed, odd rows": Problem(
        3, 10, 34, 139, 5, stride=2, padding=1, transposed=True, bias=True
    ),
    "transposed, whole tiles, odd padding": Problem(
        1, 7, 128, 256, 4, stride=2, padding=1, transposed=True, bias=True
    ),
    "transposed, whole tiles, even padding": Problem(
        2, 5, 64, 280, 8, stride=4, padding=2, transposed=True, bias=True
    ),
    "transposed, whole tiles, odd rows": Problem(
        1, 4, 50, 290, 6, stride=3, padding=1, output_padding=2, transposed=True
    ),
    "transposed, stride 8": Problem(3, 20, 5, 60, 16, stride=8, padding=4, transposed=True),
    "transposed, stride 16": Problem(
        1, 9, 6, 20, 32, stride=16, padding=8, groups=3, transposed=True, bias=True
    ),
    "transposed, stride 17": Problem(
        1, 4, 3, 9, 34, stride=17, padding=9, output_padding=1, transposed=True, bias=True
    ),
    "transposed, stride beyond the kernel": Problem(
        2, 4, 70, 7, 3, stride=19, padding=1, transposed=True, bias=True
    ),
    "transposed, dilation beyond the stride": Problem(
        1, 5, 70, 33, 5, stride=3, dilation=5, padding=4, transposed=True
    ),
    "transposed, padding beyond the reach": Problem(
        1, 5, 18, 60, 2, stride=3, padding=7, transposed=True, bias=True
    ),
    "transposed, one position": Problem(2, 5, 6, 1, 4, stride=4, padding=1, transposed=True),
}
NARROW = {
    "causal depthwise": Problem(2, 5, 5, 301, 4, padding=3, groups=5, bias=True),
    "depthwise, many threads": Problem(1, 3, 3, 5000, 3, padding=1, groups=3, bias=True),
    "depthwise, short rows": Problem(5, 7, 7, 13, 7, padding=3, groups=7),
    "depthwise, stride 2": Problem(2, 6, 6, 275, 12, stride=2, groups=6),
    "depthwise, dilated": Problem(2, 4, 4, 300, 3, padding=37, dilation=37, groups=4, bias=True),
    "depthwise, long kernel": Problem(1, 4, 4, 150, 131, padding=130, groups=4, bias=True),
    "depthwise, stride 3": Problem(1, 6, 6, 400, 5, stride=3, padding=2, groups=6),
    "several rows of a group": Problem(2, 4, 20, 133, 9, padding=4, groups=4, bias=True),
    "to one channel": Problem(2, 40, 1, 333, 7, padding=3, bias=True),
    "batches in turns": Problem(70, 20, 1, 40, 3, padding=1),
    "weights in turns": Problem(1, 700, 1, 70, 12, padding=5),
    "to few channels": Problem(1, 33, 5, 270, 5, padding=2, bias=True),
    "to few channels of groups": Problem(2, 24, 9, 140, 3, padding=1, groups=3),
    "to one channel, stride 2": Problem(1, 9, 1, 300, 6, stride=2, padding=1),
    "to one channel, dilated": Problem(1, 18, 2, 200, 3, dilation=5, padding=4),
    "from one channel, stride 5": Problem(2, 1, 12, 300, 10, stride=5, bias=True),
}
FEW_TAPS = {
    "whole pieces": Problem(2, 3, 3, 64, 5, padding=2, groups=3),
    "as many taps as there may be": Problem(2, 3, 3, 90, 16, padding=9, groups=3, bias=True),
    "more taps than positions": Problem(2, 3, 3, 11, 15, padding=9, groups=3),
    "many threads": Problem(1, 2, 2, 4150, 7, padding=3, groups=2, bias=True),
    "too many taps": Problem(2, 3, 3, 90, 17, padding=33, groups=3, bias=True),
    "several rows of an input": Problem(2, 3, 6, 41, 2, padding=1, groups=3, bias=True),
    "several rows in a piece": Problem(9, 3, 3, 1, 1, groups=3, bias=True),
    "rows of padding alone": Problem(2, 3, 3, 2, 3, padding=30, groups=3, bias=True),
    "taps apart": Problem(2, 3, 3, 70, 6, padding=12, dilation=5, groups=3, bias=True),
    "too many taps apart": Problem(2, 3, 3, 70, 17, padding=30, dilation=3, groups=3),
    "stride 2, too many taps": Problem(2, 3, 3, 90, 18, stride=2, padding=9, groups=3),
    "stride 2, apart": Problem(2, 3, 3, 90, 3, stride=2, padding=5, dilation=4, groups=3),
    "transposed": Problem(2, 3, 3, 37, 7, padding=3, groups=3, transposed=True, bias=True),
    "transposed, apart": Problem(2, 3, 3, 37, 7, dilation=9, groups=3, transposed=True),
    "transposed, stride 2": Problem(
        2, 3, 3, 57, 12, stride=2, padding=5, groups=3, transposed=True, bias=True
    ),
    "transposed, stride 2, rows of an input": Problem(
        2, 3, 6, 57, 4, stride=2, padding=2, output_padding=1, groups=3, transposed=True, bias=True
    ),
    "transposed, stride 2, fewer taps than phases": Problem(
        2, 3, 3, 57, 1, stride=2, output_padding=1, groups=3, transposed=True, bias=True
    ),
    "several channels": Problem(2, 50, 1, 4200, 7, padding=3, bias=True),
    "several channels, transposed": Problem(1, 32, 1, 8300, 8, padding=4, transposed=True),
    "transposed, stride 2, too many taps": Problem(
        2, 3, 3, 57, 20, stride=2, padding=5, groups=3, transposed=True
    ),
}
"""For csrc/depthwise.cuh, and what is next to it."""
TOEPLITZ = {
    "causal, many batches": Problem(20, 2, 2, 200, 200, padding=199, groups=2),
    "as many batches as a tile": Problem(16, 2, 2, 139, 31, padding=15, groups=2, bias=True),
    "few batches": Problem(3, 2, 2, 300, 70, padding=69, groups=2, bias=True),
    "one long row": Problem(1, 1, 1, 2500, 40, groups=1, bias=True),
    "tiles in turns": Problem(9, 1, 1, 1300, 33, padding=5),
    "taps that see nothing but padding": Problem(1, 2, 2, 10, 220, padding=160, groups=2),
    "several rows of an input": Problem(5, 3, 6, 33, 35, padding=17, groups=3, bias=True),
    "whole sectors": Problem(2, 2, 2, 320, 64, padding=0, groups=2, bias=True),
    "one tap": Problem(2, 3, 3, 65, 1, padding=3, dilation=4, groups=3, bias=True),
    "one position": Problem(6, 2, 2, 1, 33, padding=16, groups=2),
    "as long as the input": Problem(18, 1, 1, 100, 100),
    "transposed, causal": Problem(4, 2, 2, 269, 135, padding=134, groups=2, transposed=True),
    "transposed, several rows": Problem(2, 2, 4, 90, 37, groups=2, transposed=True, bias=True),
    "transposed, tiles in turns": Problem(17, 1, 1, 600, 65, padding=7, transposed=True),
}
TAPS_OF_LONG_ROWS = {
    "rows in pieces, blocks share them": Problem(
        3, 2, 2, 2100, 80, padding=40, groups=2, bias=True
    ),
    "the input's row is shorter": Problem(2, 2, 4, 700, 900, padding=899, groups=2, bias=True),
    "both in pieces, tiles of taps": Problem(1, 1, 1, 1200, 1100, padding=1000, bias=True),
    "more warps than batches": Problem(1, 3, 3, 300, 290, padding=20, groups=3),
}
"""For the gradients of long kernels: see csrc/grad_toeplitz.cuh."""
IN_PIECES = Run(Problem(2, 1, 1, 1300, 7100, padding=3200, bias=True), 0, shared_bytes=36 << 10)
"""More taps than fit in shared memory at a time."""
KN2ROW = {
    "to one channel, even rows": Problem(2, 40, 1, 1334, 7, padding=3, bias=True),
    "to one channel, odd rows": Problem(3, 70, 1, 95, 7, padding=3, bias=True),
    "to four channels": Problem(2, 33, 4, 600, 15, padding=7, bias=True),
    "to five channels": Problem(1, 24, 5, 270, 5, padding=2, bias=True),
    "to few channels of groups": Problem(2, 24 * 3, 2 * 3, 300, 3, padding=1, groups=3),
    "to one channel, stride 2": Problem(1, 19, 1, 900, 6, stride=2, padding=1),
    "to two channels, dilated": Problem(1, 18, 2, 400, 3, dilation=5, padding=4),
    "to one channel, 50 taps": Problem(1, 20, 1, 500, 50, padding=20, bias=True),
    "to two channels, 30 taps": Problem(1, 20, 2, 500, 30, padding=20, bias=True),
    "one position": Problem(4, 30, 2, 1, 5, padding=2),
    "padding beyond the reach": Problem(1, 9, 2, 30, 3, padding=40),
    "transposed, to four channels": Problem(2, 40, 4, 500, 15, padding=7, transposed=True),
    "transposed, stride 5": Problem(2, 50, 1, 1319, 10, stride=5, transposed=True, bias=True),
    "transposed, stride 8": Problem(3, 64, 1, 399, 16, stride=8, transposed=True, bias=True),
    "transposed, stride 3, dilation 2": Problem(
        1, 20, 2, 199, 7, stride=3, dilation=2, padding=4, output_padding=2, transposed=True
    ),
    "transposed, empty phases": Problem(
        1, 20, 2, 199, 5, stride=4, dilation=6, padding=4, transposed=True, bias=True
    ),
    "transposed, stride beyond the kernel": Problem(
        2, 20, 3, 61, 3, stride=9, padding=1, transposed=True, bias=True
    ),
}
"""Few output channels a group, and many input channels."""
FEW_PAIRS = {
    "from one channel": Problem(2, 1, 70, 1333, 7, padding=3, bias=True),
    "from one channel, even rows": Problem(3, 1, 33, 262, 7, padding=3, bias=True),
    "from one channel, stride 5": Problem(2, 1, 40, 1300, 10, stride=5, bias=True),
    "from four channels, whole steps": Problem(2, 4, 64, 512, 8, padding=4),
    "from three channels of groups": Problem(2, 9, 60, 300, 9, padding=4, groups=3, bias=True),
    "from one channel, dilated": Problem(2, 1, 20, 201, 5, padding=30, dilation=13, bias=True),
    "from two channels, stride beyond the kernel": Problem(2, 2, 9, 400, 3, stride=7, padding=9),
    "to one channel": Problem(2, 40, 1, 1333, 7, padding=3, bias=True),
    "to one channel, whole steps": Problem(1, 64, 1, 1024, 7, padding=3),
    "to one channel, a warp's rows": Problem(2, 24, 1, 1024, 7, padding=3, bias=True),
    "to three channels of groups": Problem(2, 48, 6, 301, 9, padding=11, groups=2, bias=True),
    "to five channels, dilated": Problem(2, 50, 5, 300, 5, dilation=7, padding=2, bias=True),
    "one tap": Problem(2, 1, 40, 260, 1, bias=True),
    "one tap, to one channel": Problem(2, 40, 1, 260, 1, bias=True),
    "padding beyond the reach": Problem(2, 3, 20, 40, 4, padding=150, bias=True),
    "rows shorter than a piece": Problem(9, 1, 20, 3, 3, padding=1, bias=True),
    "fewer channels than kinds": Problem(2, 2, 3, 515, 4, padding=1, bias=True),
    "depthwise": Problem(2, 3, 3, 131, 5, padding=2, groups=3, bias=True),
    "more positions than a chain": Problem(1, 1, 9, 70_001, 2, bias=True),
}
"""Few pairs of a channel and a tap, for csrc/grad_kn2row.cuh."""
UNFOLDED = {
    f"transposed, {channels_in} to {channels_out} of {groups}, {k} stride {s}": Problem(
        2,
        channels_in,
        channels_out,
        71,
        k,
        stride=s,
        padding=p,
        groups=groups,
        output_padding=(k + s) % 2 * (s > 1),
        transposed=True,
        bias=k % 2 == 0,
    )
    for channels_in, channels_out, groups in ((6, 6, 6), (20, 1, 1), (6, 9, 3))
    for s, k, p in ((1, 5, 2), (2, 4, 1), (2, 12, 0), (2, 1, 0), (4, 7, 3), (8, 16, 4), (8, 3, 1))
}


LONG = {
    "long, causal": Problem(3, 2, 2, 90, 70, padding=69, groups=2, bias=True),
    "long, chunks of taps": Problem(5, 1, 1, 120, 300, padding=299, bias=True),
    "long, chunks of positions": Problem(2, 2, 2, 1300, 33, padding=5, groups=2),
    "long, longer segments": Problem(1, 1, 1, 2500, 40, bias=True),
    "long, several channels": Problem(4, 3, 6, 31, 33, padding=16, groups=3, bias=True),
    "long, taps that see nothing": Problem(1, 2, 2, 10, 220, padding=160, groups=2),
    "long, many rows": Problem(90, 16, 16, 20, 35, padding=17, groups=16, bias=True),
    "long, one position": Problem(6, 2, 2, 1, 33, padding=16, groups=2, bias=True),
    "many taps, dilated": Problem(2, 3, 3, 150, 9, padding=7, dilation=5, groups=3, bias=True),
    "many taps, stride 2": Problem(2, 2, 4, 160, 21, stride=2, padding=9, groups=2, bias=True),
    "shared by blocks": Problem(3, 1, 1, 9001, 7, padding=3, bias=True),
    "shared by blocks, apart": Problem(3, 1, 1, 5001, 4, stride=3, dilation=2, bias=True),
    "more warps than pieces": Problem(1, 9, 9, 40, 20, padding=10, groups=9, bias=True),
}
"""For the gradients of few channels: many taps, and reductions that blocks share."""

DEPTHWISE = {
    f"depthwise, {batch}x{channels}x{length}, {k} taps, dilation {d}, padding {p}": Problem(
        batch, channels, channels, length, k,
        padding=p, dilation=d, groups=channels, bias=(k + d) % 3 > 1,
    )
    for batch, channels, length, k, d, p in (
        (2, 5, 301, 4, 1, 3),
        (3, 4, 131, 4, 1, 0),
        (1, 3, 5000, 3, 1, 1),
        (5, 7, 13, 7, 1, 3),
        (2, 3, 64, 1, 1, 0),
        (2, 3, 50, 1, 9, 5),
        (2, 2, 90, 2, 1, 40),
        (1, 4, 333, 5, 1, 2),
        (2, 3, 77, 8, 1, 0),
        (3, 2, 40, 8, 1, 60),
        (2, 3, 259, 9, 1, 4),
        (1, 2, 100, 16, 1, 15),
        (2, 3, 83, 16, 1, 0),
        (4, 2, 3, 16, 1, 21),
        (3, 3, 1, 4, 1, 3),
        (90, 16, 20, 13, 1, 6),
        (3, 1, 9001, 4, 1, 2),
        (2, 5, 399, 3, 128, 128),
        (3, 4, 272, 3, 16, 32),
        (2, 3, 200, 3, 50, 0),
        (1, 3, 2000, 2, 7, 7),
        (2, 3, 90, 7, 12, 72),
        (3, 2, 131, 8, 2, 3),
        (2, 2, 61, 4, 3, 200),
        (90, 16, 20, 3, 5, 5),
        (4, 2, 3, 3, 1000, 1000),
        (2, 2, 16377, 3, 4, 4),
        (2, 1, 15609, 2, 3, 1),
        (2, 2, 7805, 4, 1, 2),
        (1, 2, 8189, 3, 1, 1),
        (40, 17, 19, 4, 1, 1),
        (40, 11, 18, 5, 4, 8),
        (2, 3, 256, 4, 1, 3),
        (3, 2, 512, 3, 1, 1),
        (2, 3, 128, 3, 5, 14),
        (2, 3, 160, 2, 2, 0),
    )
}  # fmt: skip
"""For all gradients in one pass: padding of none to more than the kernel, rows of any length, taps
side by side or apart, rows of whole pieces with a bias and without, units of 33 to 128 pieces."""

FOLDED = {
    "one channel, stride 5": Problem(2, 1, 70, 1333, 10, stride=5, bias=True),
    "four channels, same": Problem(1, 4, 33, 200, 15, padding=7, bias=True),
    "three channels, odd rows": Problem(3, 3, 20, 141, 7, padding=3),
    "groups of four, many taps": Problem(2, 8, 24, 300, 31, stride=4, padding=15, groups=2),
    "backwards": Problem(2, 1, 32, 131, 7, padding=3, transposed=True),
    "two channels, dilated": Problem(1, 2, 16, 200, 5, padding=6, dilation=3, bias=True),
    "one channel, stride 8": Problem(2, 1, 40, 1000, 16, stride=8, bias=True),
    "eight channels, aligned rows": Problem(1, 8, 130, 512, 3, padding=1),
    "padding beyond the reach": Problem(1, 5, 9, 40, 4, padding=150),
}
"""Few channels, whose taps are words of the Hopper kernel."""
EXPLICIT = {
    "short rows": Problem(12, 16, 70, 40, 16, stride=8, padding=4, bias=True),
    "transposed, short rows": Problem(
        12, 40, 24, 33, 16, stride=8, padding=4, transposed=True, bias=True
    ),
    "tiles and slices": Problem(3, 40, 200, 150, 8, padding=3, bias=True),
    "transposed, groups of a slice": Problem(
        2, 128, 32, 20, 4, stride=2, groups=2, transposed=True
    ),
    "groups": Problem(2, 3 * 8, 3 * 20, 50, 4, groups=3, padding=2, dilation=3, bias=True),
    "transposed, empty phases": Problem(
        3, 30, 40, 41, 4, stride=4, dilation=2, padding=1, output_padding=3, transposed=True
    ),
    "one position": Problem(5, 24, 9, 8, 8, stride=3),
    "transposed, padding beyond the reach": Problem(
        2, 9, 16, 60, 2, stride=3, padding=7, transposed=True, bias=True
    ),
    "far taps": Problem(2, 8, 30, 60, 8, padding=50, dilation=13, bias=True),
    "transposed, stride 1": Problem(4, 70, 8, 31, 6, padding=2, transposed=True, bias=True),
}
"""Weights whose rows the explicit product can copy."""

SPLIT = {
    "split": Problem(2, 264, 24, 33, 8, padding=3, bias=True),
    "transposed, split": Problem(3, 700, 16, 20, 8, stride=4, transposed=True, bias=True),
}
"""Reductions so deep, and tiles so few, that these are split."""

EVERYTHING = (*CORNERS.values(), *TRANSPOSED.values())
FEW = tuple(
    {**CORNERS, **TRANSPOSED}[name]
    for name in (
        "tails",
        "several tiles and slices",
        "runs of whole tiles",
        "stride 3, dilation 4",
        "padding beyond the reach",
        "groups",
        "transposed, odd rows",
        "transposed, whole tiles, odd padding",
    )
)
"""For runs under a sanitizer, which are slow."""


def corner_runs(problems: Iterable[Problem], mode: str, variant: int) -> list[Run]:
    """Each problem on small integers, layouts, orders, machines and alignments taken in turn."""
    return [
        Run(
            replace(problem, mode=mode),
            variant,
            layout=CONTIGUOUS_ROWS[number % len(CONTIGUOUS_ROWS)],
            reverse=number % 2 == 1,
            shared_bytes=tuple(SHARED_BYTES.values())[number % 3],
            guard=(64, 72, 16)[number % 3],
            seed=number,
        )
        for number, problem in enumerate(problems)
    ]


def random_runs(
    count: int, mode: str, variant: int, flops: int = 1 << 20, *, narrow: bool = False
) -> list[Run]:
    """Random problems on normal values, everything around them random as well."""
    random = Random(f"{mode} {variant}")
    return [
        Run(
            random_problem(random, mode, flops, transposed=random.random() < 0.25, narrow=narrow),
            variant,
            layout=random.choice(CONTIGUOUS_ROWS),
            integers=False,
            reverse=random.random() < 0.5,
            multiprocessors=random.choice((1, 132)),
            shared_bytes=random.choice(tuple(SHARED_BYTES.values())),
            guard=8 * random.randrange(2, 16),
            seed=number,
        )
        for number in range(count)
    ]


def gradient_runs(runs: Iterable[Run]) -> list[Run]:
    """The same for a library of gradients, of the ordinary problem where one is transposed."""
    return [
        replace(
            run,
            problem=run.problem.ordinary,
            gradient=True,
            cut_off=run.problem.ordinary.length_out - run.problem.length
            if run.problem.transposed
            else 0,
        )
        for run in runs
    ]


def grad_bias_runs(runs: Iterable[Run]) -> list[Run]:
    """The same for the library of a bias's gradient alone."""
    return [
        replace(run, problem=replace(run.problem, bias=True), only_bias=True)
        for run in gradient_runs(runs)
    ]


def sliding_mode(library: str) -> str:
    """A mode that a library for few channels computes in."""
    element = library.rsplit("_", 1)[1]
    return "ieee" if element == "fp32" else element


def toeplitz_runs(problems: Iterable[Problem], mode: str) -> list[Run]:
    """Each problem on `corner_runs`, and one whose taps come piece by piece."""
    in_pieces = replace(IN_PIECES, problem=replace(IN_PIECES.problem, mode=mode))
    return [*corner_runs(problems, mode, 0), in_pieces]


def kn2row_runs(problems: Iterable[Problem], mode: str) -> list[Run]:
    """Each problem on `corner_runs`, on one multiprocessor and on some in turn."""
    return [
        replace(run, shared_bytes=SHARED_BYTES["sm_90"], multiprocessors=(1, 5)[number // 2 % 2])
        for number, run in enumerate(on_plan("kn2row", corner_runs(problems, mode, 0)))
    ]


def grad_kn2row_runs(problems: Iterable[Problem], mode: str) -> list[Run]:
    """Each problem on `gradient_runs`, with few multiprocessors and with many in turn."""
    runs = on_plan("grad_kn2row", gradient_runs(corner_runs(problems, mode, 0)))
    return [replace(r, multiprocessors=(1, 132)[n // 2 % 2]) for n, r in enumerate(runs)]


def grad_sliding_runs(problems: Iterable[Problem], mode: str) -> list[Run]:
    """Each problem on `gradient_runs`, with few multiprocessors and with many in turn."""
    runs = gradient_runs(corner_runs(problems, mode, 0))
    return [replace(r, multiprocessors=(132, 1)[n % 3 // 2]) for n, r in enumerate(runs)]


def grad_depthwise_runs(problems: Iterable[Problem], mode: str) -> list[Run]:
    """Those whose gradients come in one pass, with the gradient of the input."""
    runs = grad_sliding_runs(problems, mode)
    return [replace(run, with_input=True) for run in runs if grad_costs.has_one_pass(run.problem)]


def grad_toeplitz_runs(problems: Iterable[Problem], mode: str) -> list[Run]:
    """Each problem on `gradient_runs`, with few multiprocessors and with many in turn."""
    runs = on_plan("grad_toeplitz", gradient_runs(corner_runs(problems, mode, 0)))
    return [replace(r, multiprocessors=(1, 132)[n // 2 % 2]) for n, r in enumerate(runs)]


def columns_runs(mode: str, problems: Iterable[Problem]) -> list[Run]:
    """The columns of each problem: one channel of them for each channel and tap.

    An ordinary problem's are made, one output channel for each input channel and tap; a transposed
    one's are summed up, one input channel for each output channel and tap.
    """
    as_copies = [
        replace(p, channels_in=p.channels_out * p.kernel_size, groups=p.channels_out)
        if p.transposed
        else replace(
            p, channels_out=p.channels_in * p.kernel_size, groups=p.channels_in, bias=False
        )
        for p in problems
        if p.channels_in * p.kernel_size < 200
    ]
    runs = corner_runs(as_copies, mode, MODES.index(mode))
    return [
        replace(run, columns=True, integers=integers)
        for run in runs
        for integers in ((True, False) if run.problem.transposed else (True,))
    ]


def library_runs(library: str, problems: Iterable[Problem], *, clears: bool = True) -> list[Run]:
    """Each problem once on a library, its variants taken in turn; no guards beside the output.

    With `clears`, Hopper kernels also get problems where they clear a part of a stage, or not, from
    one use to the next: reductions of many slices, and for gradients padded rows that do not begin
    at 16 bytes.
    """
    problems = list(problems)
    if library == "im2col":
        runs = [run for mode in ("bf16", "ieee", "fp64") for run in columns_runs(mode, problems)]
    elif library in ("direct", "grad_direct", "grad_bias"):
        runs = [
            run
            for number, problem in enumerate(problems)
            for run in corner_runs([problem], MODES[number % 5], number % 5)
        ]
        if library == "grad_direct":
            runs = gradient_runs(runs)
        if library == "grad_bias":
            runs = grad_bias_runs(runs)
    elif library.startswith("grad_sliding"):
        mode = sliding_mode(library)
        narrow = [*list(NARROW.values())[::3], *list(UNFOLDED.values())[::8]]
        runs = grad_sliding_runs([*LONG.values(), *narrow], mode)
        runs += grad_depthwise_runs(list(DEPTHWISE.values())[::3], mode)
    elif library.startswith("toeplitz"):
        runs = toeplitz_runs(list(TOEPLITZ.values())[1::3], library.rsplit("_", 1)[1])
    elif library.startswith("grad_toeplitz"):
        few = [*list(TOEPLITZ.values())[::4], *TAPS_OF_LONG_ROWS.values()]
        runs = grad_toeplitz_runs(few, library.rsplit("_", 1)[1])
    elif library.startswith("kn2row"):
        runs = kn2row_runs(list(KN2ROW.values())[::4], library.rsplit("_", 1)[1])
    elif library.startswith("grad_kn2row"):
        runs = grad_kn2row_runs(list(FEW_PAIRS.values())[::3], library.rsplit("_", 1)[1])
    elif library.startswith("sliding"):
        mode = sliding_mode(library)
        few = [*list(NARROW.values())[::2], *FEW_TAPS.values(), *list(UNFOLDED.values())[::5]]
        runs = on_plan("sliding", corner_runs([*problems, *few], mode, 0))
    else:
        family, mode = library.rsplit("_", 1)
        tiles = len(plan.tile_rows(family, mode))
        runs = [
            replace(run, variant=number % tiles)
            for number, run in enumerate(corner_runs(problems, mode, 0))
        ]
        if family == "hopper" and clears:
            runs += shared_runs(mode, 0)[1:]
        if family.endswith("explicit"):
            runs += corner_runs(list(EXPLICIT.values())[::2], mode, 0)
        if family.startswith("grad"):
            runs = gradient_runs(runs)
        if family == "grad_hopper" and not clears:
            runs = [r for r in runs if r.problem.padding == 0 or as_laid_out(r).aligned == 16]
        runs = on_family(family, runs)
    return [replace(run, guard=0) for run in runs]
