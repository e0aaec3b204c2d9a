"""What plans can run on the CPU, and what they take, in µs: functions of a Problem.

Costs know threads and vectors' width, and two kinds of processors. Their constants were fitted to
the layer table on two cores with AVX-512 of each (docs/performance.md). Only the ratio of ours to
torch's matters: both are in proportion to threads and to the width of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from fastconv1d.problem import Problem

START = 3.0  # µs of a call
WORK_PER_THREAD = 1 << 16  # multiplications that are worth another thread: csrc/cpu_conv.h
BANDWIDTH = 16e3  # bytes per µs of one thread
ROWS = {1: 0.33, 2: 0.6, 4: 0.9, 8: 1.0}  # share of the rate that blocks of so many rows reach
SMALL_RATE = 0.75  # share that blocks of 16 registers reach where they read much of L2:
SMALL_WIDE, SMALL_WIDE_STRIDED = 512, 128  # channels of the input from which on they do
WIDE, FEW_TAPS = 512, 3  # those from which on a stride, or so few taps, leave a share of it
ROW_START = 0.05  # µs: one row of a group of few channels
PACKED_PAIRS = 0.5e-3, 1.4e-3  # as `Processor.packed`, of words of two

# With tile registers: a rate, µs for each value of input and output, and for each of the weight.
TILED_RATE, TILED_VALUE, TILED_WEIGHT = 700e3, 0.9e-3, 2.2e-3
LEAST_TILED = 12  # channels on either side: kLeastTiled of csrc/cpu_conv.h
TILED_CHANNELS, TILED_ROWS = 32, 16  # of a register, whose positions are as many as its rows

ONE_TILE = 48  # positions that surely are one tile
VECTOR_BYTES = 64  # AVX-512's

GRAD_TILE = 1024  # positions: kGradPositions of csrc/cpu_grad.h

IM2COL_RATE = 50e3  # FLOP per µs, and columns written

ATEN_START = 6.0
ATEN_RATE = {"fp16": 2e3, "fp64": 30e3}
ATEN_BF16 = {"amx": 550e3, "pairs": 202e3, "": 80e3}
"""By the products of bf16 that the processor has."""
ATEN_PACKED_BF16 = {"amx": 2.2e-3, "pairs": 0.3e-3, "": 0.3e-3}
ATEN_FRESH = ((32 << 20, 0.25e-3), (4 << 20, 0.05e-3))
"""µs for each byte of blocks of so many, which malloc maps anew, always or now and then."""
ATEN_FRESH_AMX = ((9 << 20, 2e-3), (4 << 20, 0.05e-3))
"""The same where products are AMX's, whose tensors are laid out anew."""
ATEN_LAYOUT_AMX = 1.3e-3  # µs for each value of these
ATEN_FEW = 16  # channels on either side of a group below which its blocks are partly empty
ATEN_BF16_SHARE = ((96, 0.95), (32, 0.7), (4, 0.45), (1, 0.1))  # by channels on the side of fewer
ATEN_NEAR = 0.97
"""Of its time, but of bf16: what would be about as fast by ours is its own, which loses nothing."""
ATEN_TRANSPOSED_BF16 = 0.78  # share of the rate with a stride,
ATEN_TRANSPOSED_APART = 0.15  # and dilated
ATEN_DEPTHWISE = 1.2e3  # elements per µs and thread of depthwise layers
ATEN_DEPTHWISE_RATE = 2.8e3  # FLOP per µs and thread of those that have no kernel of their own
ATEN_DEPTHWISE_TAPS = 16  # more have none
ATEN_DEPTHWISE_TRANSPOSED_RATE = 150e3
ATEN_DEPTHWISE_SMALL = 2 << 20  # elements that stay in caches

GRAD_ATEN_RATE = {"fp16": 17e3, "fp64": 45e3}
GRAD_ATEN_BF16 = {"amx": 160e3, "pairs": 160e3, "": 60e3}
GRAD_ATEN_APART = 0.6  # share of the rate where there is a stride and a dilation
GRAD_ATEN_FEW = 48  # channels, or pairs of a channel and a tap
GRAD_ATEN_GROUPED = 0.5
GRAD_ATEN_DEPTHWISE = 2.2e3  # FLOP per µs and thread


@dataclass(frozen=True, slots=True)
class Processor:
    """What tells processors apart: rates of fp32, in FLOP per µs of one thread."""

    rate: float
    pairs: float  # with its own products of bf16
    strided: float  # share of it that a stride leaves of layers with many channels,
    few_taps: float  # and that few taps leave of these
    packed: tuple[float, float]  # µs for each value of the weight, ordinary and transposed
    grad_rate: float  # of the weight's gradient
    grad_lanes: float  # positions of a tile whose products take as long as adding up lanes
    grad_sum: float  # µs for each value of the weight and tile
    aten_rate: float
    aten_transposed: float  # share of it with a stride
    aten_packed: float  # µs for each value of the weight
    aten_small: float  # share of the time of depthwise layers that stay in caches
    aten_grad_rate: float


ZEN_4 = Processor(
    *(104e3, 198e3, 0.95, 1.0, (1e-3, 2e-3), 58e3, 100, 2e-3),
    *(99e3, 0.9, 0.6e-3, 0.5, 80e3),
)
EMERALD_RAPIDS = Processor(
    *(104e3, 60e3, 0.63, 0.76, (1e-3, 2.7e-3), 92e3, 300, 1.8e-3),
    *(81e3, 1.05, 0.8e-3, 1.15, 60e3),
)


def _processor() -> Processor:
    """AMX tells Intel's since Sapphire Rapids, of which one was measured, from all others."""
    return EMERALD_RAPIDS if _products_of_bf16() == "amx" else ZEN_4


@lru_cache(maxsize=1)
def _width() -> float:
    """Vectors' width, as a share of AVX-512's."""
    name = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": 1.0, "AVX2": 0.5}.get(name, 0.25)


@lru_cache(maxsize=1)
def _products_of_bf16() -> str:
    """The processor's own: 'amx', if the system lets a process have that, 'pairs' or ''."""
    kinds = {"amx": "_init_amx", "pairs": "_is_avx512_bf16_supported"}
    return next((kind for kind, name in kinds.items() if getattr(torch.cpu, name, bool)()), "")


def _aten_rate(
    mode: str, fp32: float, others: Mapping[str, float], bf16: Mapping[str, float]
) -> float:
    """A rate of torch's by mode; of bf16, by the products that the processor has."""
    return bf16[_products_of_bf16()] if mode == "bf16" else others.get(mode, fp32)


def _has_amx(problem: Problem) -> bool:
    return problem.mode == "bf16" and _products_of_bf16() == "amx"


def _threads(problem: Problem) -> int:
    return min(torch.get_num_threads(), 1 + problem.flops // (2 * WORK_PER_THREAD))


def _channels(problem: Problem) -> tuple[int, int]:
    return problem.channels_in // problem.groups, problem.channels_out // problem.groups


def _positions(problem: Problem) -> int:
    """Those of a phase."""
    return -(-problem.length_out // (problem.stride if problem.transposed else 1))


def _filled(count: int, size: int) -> float:
    """The share of registers of a size that so many fill, since these are whole."""
    return count / (-(-count // size) * size)


def _is_depthwise(problem: Problem) -> bool:
    return problem.groups > 1 and problem.groups in (problem.channels_in, problem.channels_out)


def _fresh(size: int, costs: tuple[tuple[int, float], ...] = ATEN_FRESH) -> float:
    return next((size * each for least, each in costs if size >= least), 0.0)


def simd_why_not(problem: Problem) -> str | None:
    """Why our kernels cannot run a problem, or None."""
    return None if problem.gpu is None else "needs a CPU tensor, this one is on a GPU"


def im2col_why_not(problem: Problem) -> str | None:
    """Why columns cannot be written out, or None; on a GPU they always can."""
    if problem.gpu is None and problem.dtype.itemsize < 4:
        return f"has no {problem.mode} arithmetic on the CPU"
    return None


def simd(problem: Problem) -> float:
    """Our kernels' time."""
    rows = _channels(problem)[1] * (problem.stride if problem.transposed else 1)
    block = next(size for size in (8, 4, 2, 1) if size <= rows)
    pairs = problem.mode == "bf16" and _products_of_bf16() != ""
    if _has_amx(problem) and min(_channels(problem)) >= LEAST_TILED:
        return START + _tiled(problem, rows) / _threads(problem)
    processor = _processor()
    rate = processor.pairs if pairs else processor.rate
    sum_bytes = max(4, problem.dtype.itemsize)
    rate *= ROWS[block] * _width() * 4 / sum_bytes
    channels_in = _channels(problem)[0]
    strided = problem.stride > 1 and not problem.transposed
    if _width() < 1 and channels_in >= (SMALL_WIDE_STRIDED if strided else SMALL_WIDE):
        rate *= SMALL_RATE
    elif strided and channels_in >= WIDE:
        rate *= processor.strided
    elif channels_in >= WIDE and problem.kernel_size <= FEW_TAPS:
        rate *= processor.few_taps
    positions = _positions(problem)
    rate *= _filled(positions, int(VECTOR_BYTES * _width()) // sum_bytes)
    time = max(problem.flops / rate, problem.bytes / BANDWIDTH)
    if rows < 8:
        time += problem.batch * problem.groups * ROW_START
    # Weights that one tile alone reads are packed in cache.
    in_cache = problem.batch == 1 and positions <= ONE_TILE
    packed = (PACKED_PAIRS if pairs else processor.packed)[problem.transposed and not in_cache]
    return START + (time + problem.weight_elements * packed) / _threads(problem)


def _tiled(problem: Problem, rows: int) -> float:
    """Our kernels' time where tile registers multiply blocks of these rows, on one thread."""
    rate = TILED_RATE * _filled(_channels(problem)[0], TILED_CHANNELS)
    rate *= _filled(rows, TILED_ROWS) * _filled(_positions(problem), TILED_ROWS)
    values = (problem.input_elements + problem.output_elements) * TILED_VALUE
    return problem.flops / rate + values + problem.weight_elements * TILED_WEIGHT


def im2col(problem: Problem) -> float:
    """The time of columns written out, and of their product."""
    if problem.transposed:
        columns = problem.batch * problem.channels_out * problem.kernel_size * problem.length
    else:
        columns = problem.batch * problem.channels_in * problem.kernel_size * problem.length_out
    return (problem.flops + columns) / IM2COL_RATE


def aten(problem: Problem) -> float:
    """The time of torch's own convolution."""
    threads, itemsize = _threads(problem), problem.dtype.itemsize
    processor = _processor()
    amx = _has_amx(problem)
    start = ATEN_START
    start += _fresh(problem.output_elements * itemsize, ATEN_FRESH_AMX if amx else ATEN_FRESH)
    if problem.weight_elements * itemsize >= ATEN_FRESH[0][0]:
        start += _fresh(problem.weight_elements * itemsize)
    elements = problem.input_elements + problem.output_elements
    if _is_depthwise(problem):
        time = elements / ATEN_DEPTHWISE
        if elements < ATEN_DEPTHWISE_SMALL:
            time *= processor.aten_small
        apart = problem.dilation > 1 or problem.stride > 1
        if problem.transposed and not apart and itemsize == 4:
            time = max(time, problem.flops / ATEN_DEPTHWISE_TRANSPOSED_RATE)
        elif apart or problem.kernel_size > ATEN_DEPTHWISE_TAPS or problem.mode in ("fp16", "fp64"):
            time = max(time, problem.flops / ATEN_DEPTHWISE_RATE)
        return start + time / threads
    rate = _aten_rate(problem.mode, processor.aten_rate, ATEN_RATE, ATEN_BF16)
    channels = min(_channels(problem))
    if problem.mode == "bf16":
        rate *= next(share for least, share in ATEN_BF16_SHARE if channels >= least)
    else:
        rate *= min(1.0, channels / ATEN_FEW)
    rate *= _width()
    if problem.transposed and problem.stride > 1:
        share = ATEN_TRANSPOSED_BF16 if problem.mode == "bf16" else processor.aten_transposed
        rate *= share if problem.dilation == 1 else ATEN_TRANSPOSED_APART
    if problem.groups > 1:
        rate *= 0.7
    time = max(problem.flops / rate, problem.bytes / BANDWIDTH)
    time += elements * ATEN_LAYOUT_AMX if amx else 0.0
    packed, near = processor.aten_packed, ATEN_NEAR
    if problem.mode == "bf16":
        packed, near = ATEN_PACKED_BF16[_products_of_bf16()], 1.0
    return start + near * (time + problem.weight_elements * packed) / threads


def grad_simd(problem: Problem) -> float:
    """Our kernels' time for the gradient of the weight."""
    tiles = -(-problem.length_out // GRAD_TILE)
    positions = problem.length_out / tiles
    processor = _processor()
    rate = processor.grad_rate * _width() * 4 / max(4, problem.dtype.itemsize)
    if _channels(problem)[1] == 1:
        rate *= 0.4
    lanes = 1 + processor.grad_lanes / positions
    time = max(problem.flops / rate * lanes, problem.bytes / BANDWIDTH)
    sums = problem.weight_elements * problem.batch * tiles * processor.grad_sum
    return START + (time + sums) / _threads(problem)


def grad_aten(problem: Problem) -> float:
    """torch's time for the gradient of the weight."""
    threads = _threads(problem)
    if _is_depthwise(problem):
        return ATEN_START + problem.flops / GRAD_ATEN_DEPTHWISE / threads
    processor = _processor()
    rate = _aten_rate(problem.mode, processor.aten_grad_rate, GRAD_ATEN_RATE, GRAD_ATEN_BF16)
    channels_in, channels_out = _channels(problem)
    # The columns of its product are pairs of a channel and a tap.
    pairs = min(channels_out, channels_in * problem.kernel_size) / GRAD_ATEN_FEW
    rate *= min(1.0, pairs) * _width()
    if problem.groups > 1:
        rate *= GRAD_ATEN_GROUPED
    elif channels_in < 4:
        rate *= 0.5
    if problem.stride > 1 and problem.dilation > 1:
        rate *= GRAD_ATEN_APART
    time = max(problem.flops / rate, problem.bytes / BANDWIDTH)
    return ATEN_START + (time + problem.weight_elements * 2 * processor.aten_packed) / threads
