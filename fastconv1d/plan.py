"""The table of plans: what each can run, what it would cost, and which one a problem gets.

Selection looks at `Problem.bucketed()` and at what was tuned for it, so it is a function of the
geometry with batch and length rounded: new lengths cost no search, no compilation and no growing
cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Any, cast

from fastconv1d import build, config, cpu_costs, tuned
from fastconv1d.problem import Gpu, Problem

# The cost model's constants, measured on an H200. Only ratios matter to the choice between plans;
# arithmetic and bandwidth are scaled by the number of multiprocessors for other GPUs.
LAUNCH = 4.0  # µs: one kernel launch
MULTIPROCESSORS = 132  # of the GPU measured
BANDWIDTH = 3.6e6  # bytes per µs that a kernel reads and writes
DENSE_RATE = {"tf32": 130e6, "ieee": 66e6, "bf16": 240e6, "fp16": 240e6}  # FLOP per µs
DENSE_START = 34.0  # µs: both kernels of a phase, the first of which packs the weight
SECTOR = 32  # bytes that memory writes at once
DIRECT_RATE = 3e6  # FLOP per µs
DIRECT_MEMORY = 0.12e6  # elements per µs that the direct kernel reads and writes
SLIDING_OUTPUT = 1.9e-6  # µs that the sliding kernel takes for an output and a channel that it sees
SLIDING_TAP = 0.17e-6  # likewise for each tap
SLIDING_WIDE = (0.9e-6, 0.075e-6)  # the same where rows share what is read: an output, a tap
SLIDING_CHAINS = 0.78  # share of these that many channels take
SLIDING_TURN = 0.1  # µs of each of many channels, which a thread takes one after the other
SLIDING_APART_TAP = 1e-6  # for each where values are read one by one
SLIDING_16_BIT = 0.7  # share of these that 16-bit types take
SLIDING_WIDE_16_BIT = 0.9  # likewise where rows share what is read
SLIDING_BANDWIDTH = 3.4e6  # bytes per µs that it reads and writes
TOEPLITZ_START = 8.0  # µs: its launch, a block's first reads and its last writes
TOEPLITZ_LINE = {4: 0.08, 2: 0.047}  # µs for 64 taps of 16 stretches, by size
TOEPLITZ_BANDWIDTH = {4: 2.4e6, 2: 1.9e6}  # bytes per µs that it reads and writes, likewise
EXPLICIT_START, EXPLICIT_WAVE = 2.9, 6.4  # µs: its kernels; a block's start and its end
# µs of a slice, by rows and columns of the tile and size.
EXPLICIT_SLICE = {
    (128, 256): {2: 0.79, 4: 0.63},
    (128, 224): {2: 0.74, 4: 0.58},
    (192, 128): {2: 0.84, 4: 0.70},
}
EXPLICIT_COLUMNS, EXPLICIT_PARTS = 2.8e6, 3.5e6  # bytes per µs of both, written and read
EXPLICIT_BYTES = 64 << 20  # of the sums of all splits
MOST_EXPLICIT_STRIDE = 16  # of a transposed one
MOST_EXPLICIT_BYTES = 512 << 20  # of the workspace
PRODUCT_START, MOST_PRODUCT_SPLITS = 8, 16  # as in csrc/schedule.h
KN2ROW_CLOCK = 1755.0  # cycles per µs
# Cycles: kTile, kOwn and, by tiles, kStep of csrc/kn2row.cuh; instructions for an output: kOutput,
# kPart and kProduct there.
KN2ROW_TILE, KN2ROW_OWN, KN2ROW_STEP = 1600, 1700, {1: 40, 2: 40, 4: 90}
KN2ROW_OUTPUT = 60, 12, 5
KN2ROW_WEIGHT = 0.12  # µs that a block takes for one word of weights of each thread's
KN2ROW_BANDWIDTH = 4e6  # bytes per µs that it reads
ATEN_RATE = {"tf32": 300e6, "ieee": 46e6, "bf16": 700e6, "fp16": 700e6, "fp64": 15e6}  # FLOP per µs
ATEN_START = 22.0  # µs: the kernels of a dense convolution, beside what grows with its size
ATEN_GROUPED = 0.12  # share of that rate when groups > 1
# Share of it when transposed.
ATEN_TRANSPOSED = {"tf32": 0.28, "ieee": 0.75, "bf16": 0.33, "fp16": 0.33, "fp64": 0.75}
ATEN_LAYOUT = {2: 0.7e6, 4: 0.55e6, 8: 0.55e6}  # elements per µs from NCL to NHWC or back, by size
ATEN_FEW_CHANNELS = 4  # of fp32 below which half of that is saved
ATEN_TILE = 128  # positions and channels of cuDNN's tiles
ATEN_BIAS = 0.35e6  # elements per µs that the bias pass adds to
ATEN_DEPTHWISE = 0.2e6  # elements per µs that ATen's own depthwise kernel reads and writes
ATEN_DEPTHWISE_RATE = 8e6  # FLOP per µs of that kernel
CPU_RATE = 50e3  # FLOP per µs of the plain loops and of ATen alike

# Of the kernels for the weight's gradient, measured on an H100.
GRAD_DENSE_START = 32.0  # µs: both kernels, and what a block does before its first slice
GRAD_SLICE = {  # ns that a slice of a tile takes, by rows, columns and mode
    (128, 192): {"tf32": 2022},
    (128, 96): {"tf32": 2004, "ieee": 1969, "bf16": 2647, "fp16": 2647},
    (64, 96): {"tf32": 1500, "ieee": 1544, "bf16": 1969, "fp16": 1969},
    (128, 32): {"tf32": 1224, "ieee": 1618, "bf16": 1603, "fp16": 1603},
    (16, 256): {"tf32": 1375, "ieee": 1375, "bf16": 2022, "fp16": 2022},
}
# The same of the Hopper kernel of gradients, by channels and pairs, measured on an H200: µs that a
# slice takes in TF32, and in 16 bits, which has twice as many positions in one.
GRAD_HOPPER_SLICE = {
    (128, 256): {4: 1.03, 2: 1.26},
    (128, 192): {4: 0.85, 2: 1.08},
    (128, 128): {4: 0.89, 2: 0.97},
    (64, 256): {4: 0.71, 2: 0.88},
    (64, 192): {4: 0.60, 2: 0.65},
}
# Times as long where rows begin within 16 bytes, at odd 16-bit values, where taps are so far apart
# that each has a row of its own, and with a stride of 8, whose reads meet the same banks.
GRAD_HOPPER_WITHIN, GRAD_HOPPER_ODD = {4: 1.25, 2: 1.07}, 1.9
GRAD_HOPPER_APART, GRAD_HOPPER_FAR = 2.3, 1.4
GRAD_HOPPER_SHARED = 223 << 10  # bytes of shared memory for stages
GRAD_HOPPER_START, GRAD_HOPPER_WAVE = 6.0, 7.7  # µs: both kernels; a block's start and its end
GRAD_HOPPER_BANDWIDTH = 3.9e6  # bytes per µs that it reads
GRAD_BLOCK_SLICES = 12  # slices' time that a block's start takes: splits_of in csrc/grad_tile.cuh
GRAD_STRIDED, GRAD_SHORT = 1.18, 1.5  # times as long with a stride, and where rows have few slices
GRAD_FEW_SLICES = 8
GRAD_PARTS_BANDWIDTH = 2.7e6  # bytes per µs in which parts are written and added up
GRAD_WORKSPACE = 64 << 20  # bytes of parts: kGradWorkspace of csrc/grad_dense.cuh
GRAD_BANDWIDTH = 2.3e6  # bytes per µs that the dense kernel reads
GRAD_SLIDING_START, GRAD_SLIDING_BANDWIDTH = 9.0, 2.9e6
GRAD_SLIDING = (0.6e-6, 0.18e-6)  # µs for each position of a pair of channels, and for each tap
GRAD_SLIDING_LONG = 0.092e-6  # for each tap, where there are many
GRAD_SLIDING_APART = (3.9e-6, 0.86e-6)  # for each tap that is read by itself: a share of it, and it
GRAD_SLIDING_WINDOWS = (0.5e-6, 0.4e-6)  # a depthwise layer's position; each of its taps apart
GRAD_LONG_KERNEL = (
    32  # taps of which the long kernel has more: kLongKernel of csrc/grad_sliding.cuh
)
# Taps with which it computes the input's gradient as well, of neighbours and where they are apart:
# kMostTaps and kMostTapsApart there.
GRAD_MOST_TAPS, GRAD_MOST_TAPS_APART = 16, 8
GRAD_DIRECT_RATE = 0.3e6  # FLOP per µs
GRAD_ATEN_START = 40.0  # µs
GRAD_ATEN_RATE = {"tf32": 125e6, "ieee": 36e6, "bf16": 560e6, "fp16": 560e6, "fp64": 10e6}
GRAD_ATEN_GROUPED = 0.75
GRAD_ATEN_LAYOUT = {2: 0.62e6, 4: 0.46e6, 8: 0.4e6}  # elements per µs that change their layout
GRAD_ATEN_BIAS = 0.54e6  # elements per µs
GRAD_ATEN_FILLED = 64  # rows and columns below which cuDNN's tiles are partly empty
GRAD_ATEN_DEPTHWISE_RATE = 1e6  # FLOP per µs

HOPPER_SHARED = 227 << 10  # bytes of shared memory that a block of the Hopper kernel may take
HOPPER_BANDWIDTH = 3.8e6  # bytes per µs that the Hopper kernel reads and writes
WEAVE = 16  # columns of the Hopper kernel that a transposed convolution's outputs share
PACK_BANDWIDTH = {2: 1.55e6, 4: 2.1e6}  # bytes per µs in which weights are packed, by size
SHARE_START, SHARE_BANDWIDTH = 3.0, 2.5e6  # µs, and bytes per µs, that adding up shares takes
READ_CROWD = 0.4  # of what outputs take longer for more warpgroups, the share that steps do
HOPPER_CHAIN = 18  # steps after which fp32-accurate products are added up apart
MOST_BOX = 256  # positions of a box: kMostBlockPositions of csrc/schedule.h
MOST_FOLDED = (8, 128)  # channels, and values with taps, of a group whose taps are words, there
MOST_SHARES, LEAST_STEPS = 8, 192  # of tiles that blocks share: kMostShares, kLeastSteps there
MOST_STRIDE = 1 << 22  # that the dense kernel walks: kMostLoadStep of csrc/schedule.h
# That the Hopper kernel of gradients walks, by size: its rows fit boxes of 256 positions.
MOST_GRAD_STRIDE = {2: 3, 4: 8}
MOST_LENGTH = 1 << 30  # of padded rows that the Hopper kernel walks, with 32 bits
MOST_SLIDING = 1 << 29  # positions of padded rows, rows and steps that the sliding kernel counts
SLIDING_CHAIN, SLIDING_MANY = 16, 8  # kSlidingChain and kManyRows of csrc/sliding.cuh
# Bytes of shared memory that its blocks may take, by the least compute capability.
SLIDING_SHARED = (
    ((12, 0), 99 << 10),
    ((9, 0), 227 << 10),
    ((8, 6), 99 << 10),
    ((8, 0), 163 << 10),
)
SLIDING_PARTS = 12 << 10  # of which this for sums of parts
SLIDING_STRIDES = (2, 4, 8)  # of transposed convolutions that it has kernels for
STRETCH, STRETCHES = 64, 16  # kStretch and kStretches of csrc/toeplitz.cuh
KN2ROW_WINDOW = 32  # kWindow of csrc/kn2row.cuh
KN2ROW_BLOCKS = {
    1: (8, 3),
    2: (8, 2),
    4: (16, 1),
}  # warps, and blocks of a multiprocessor, by tiles
KN2ROW_GROUPS = 1 << 16  # which a grid's second dimension does not hold
KN2ROW_STRIDE = 1 << 15  # whose square its 32-bit counters hold
MOST_BATCH = 1 << 31  # from here on its 32-bit counters would run over


class _Template:
    """Dataclasses whose fields are the parameters of the C++ template of their name."""

    __slots__ = ()

    @property
    def glue(self) -> str:
        """The C++ type."""
        parameters = (getattr(self, field.name) for field in fields(cast(Any, self)))
        return f"fastconv1d::{type(self).__name__}<{', '.join(map(str, parameters))}>"


@dataclass(frozen=True, slots=True)
class Tile(_Template):
    """How a dense kernel's block covers (channels_out/groups, positions) with m16n8 products."""

    warps_m: int
    warps_n: int
    m_tiles: int
    n_tiles: int

    @property
    def channels(self) -> int:
        """Output channels of one block."""
        return self.warps_m * self.m_tiles * 16

    @property
    def positions(self) -> int:
        """Output positions of one block."""
        return self.warps_n * self.n_tiles * 8


@dataclass(frozen=True, slots=True)
class HopperTile(_Template):
    """How warpgroups cover (channels_out/groups, positions) with m64nN products, N = `n`."""

    warpgroups: int
    m_tiles: int
    n: int

    @property
    def channels(self) -> int:
        """Output channels of one block."""
        return self.n

    @property
    def positions(self) -> int:
        """Output positions of one block."""
        return self.warpgroups * self.m_tiles * 64

    def least_words(self, mode: str) -> int:
        """Words of channels that a slice has at least: `steps_at_once` of hopper.cuh."""
        products = HOPPER_PRODUCTS[mode]
        return 16 if self.m_tiles * self.n * products > 128 or self.m_tiles > 1 else 32

    @property
    def room(self) -> int:
        """Registers of a thread beside its sums: `HopperTile::room` of hopper.cuh."""
        threads = 128 + 128 * self.warpgroups
        of_block = threads * (65536 // threads // 8 * 8)
        of_thread = (of_block - 128 * 40) // (128 * self.warpgroups) // 8 * 8
        return of_thread - self.m_tiles * self.n // 2

    def folds(self, mode: str) -> bool:
        """Whether taps may be words: `HopperBlock::folds` of hopper.cuh."""
        return mode != "ieee" and self.room >= (72 if HOPPER_VALUES[mode] > 1 else 80)


@dataclass(frozen=True, slots=True)
class ProductTile(_Template):
    """How warpgroups cover (rows, columns) of a convolution written out as a product."""

    warpgroups: int
    columns: int

    @property
    def rows(self) -> int:
        """Rows of one block."""
        return 64 * self.warpgroups


@dataclass(frozen=True, slots=True)
class GradTile(_Template):
    """How a block covers (channels_out/groups, channels and taps) of the weight's gradient."""

    warps_m: int
    warps_n: int
    m_tiles: int
    n_tiles: int
    blocks: int
    """That share a multiprocessor."""

    @property
    def rows(self) -> int:
        """Output channels of one block."""
        return self.warps_m * self.m_tiles * 16

    @property
    def columns(self) -> int:
        """Pairs of an input channel and a tap of one block."""
        return self.warps_n * self.n_tiles * 8


@dataclass(frozen=True, slots=True)
class GradHopperTile(_Template):
    """How warpgroups cover (channels and taps, channels_out/groups) with m64nN products: n is N."""

    warpgroups: int
    m_tiles: int
    n: int

    @property
    def pairs(self) -> int:
        """Pairs of an input channel and a tap of one block."""
        return self.warpgroups * self.m_tiles * 64

    @property
    def channels(self) -> int:
        """Output channels of one block."""
        return self.n


@dataclass(frozen=True, slots=True)
class HopperCosts:
    """What the Hopper kernel takes, fitted to 55 layers on an H200 (docs/performance.md).

    All ns but `start`. A step is 8 words of channels and one tap.
    """

    column: float  # one of a step's products, of 64 positions by one channel
    step: float  # one step at least: reading and rounding what it multiplies
    wide: float  # more, where a warpgroup has two mma tiles
    conflict: float  # more, for each lane that waits for another one's bank
    slice: float  # one slice of the input handed over between warps
    tap: float  # one tap's weights handed over
    ragged: float  # clearing a slice whose channels do not exist
    output: float  # one output written
    byte: float  # one byte copied to shared memory
    start: float  # µs: of both kernels
    apart: float  # of a step, where 16-bit values are read one by one and not in pairs
    alternating: float  # share of a tile more where rows are copied and read in turns
    narrow: float  # share of the traffic more where a warpgroup has one mma tile
    split: float  # the same again, where rows of the output are no whole sectors
    row: float  # then: one row of a tile's outputs
    clear: float  # a slice of a row's first tile, whose maps show what is before the row
    crowd: float  # share of outputs more for each warpgroup beyond two


HOPPER_16_BIT = HopperCosts(
    *(0.59, 72.9, 49.1, 19.0, 624, 7.85, 1790, 0.0719, 0.00289, 11.2, 20.7, 0.382),
    *(0.202, 0, 4.57, 598, 0.191),
)
HOPPER = {
    "tf32": HopperCosts(
        *(0.449, 64.3, 69.2, 8.55, 458, 33.6, 2820, 0.092, 0.0138, 9.89, 0, 0.29),
        *(0.021, 0.223, 0, 345, 0.206),
    ),
    "ieee": HopperCosts(
        *(0.708, 201, 142, 32.2, 987, 6, 1600, 0.108, 0.0285, 17.3, 0, 0.29),
        *(0.28, 0, 0, 0, 0),
    ),
    "bf16": HOPPER_16_BIT,
    "fp16": HOPPER_16_BIT,
}
HOPPER_VALUES = {"tf32": 1, "ieee": 2, "bf16": 2, "fp16": 2}  # of channels in a word
HOPPER_PLANES = {"tf32": 1, "ieee": 2, "bf16": 1, "fp16": 1}  # words of weights for one
HOPPER_PRODUCTS = {"tf32": 1, "ieee": 3, "bf16": 1, "fp16": 1}  # of words, for one


AnyTile = Tile | HopperTile | ProductTile | GradTile | GradHopperTile


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run a convolution.

    `tiles` are those of a kernel on tensor cores, by mode; `efficiency` is the share of its
    family's arithmetic rate that they reach; a plan that is not `automatic` runs when asked for.
    One for the `gradient` computes that of the weight instead, of an ordinary convolution.
    """

    name: str
    family: str
    legality: Callable[[Plan, Problem], str | None]
    model: Callable[[Plan, Problem], float]
    tiles: Mapping[str, AnyTile] = field(default_factory=dict, hash=False)
    efficiency: float = 1.0
    automatic: bool = True
    gradient: bool = False

    def why_not(self, problem: Problem) -> str | None:
        """Why this plan cannot run the problem, or None if it can."""
        return self.legality(self, problem)

    def cost(self, problem: Problem) -> float:
        """The model's estimate of the time the plan takes, in µs."""
        return self.model(self, problem)


def _ceil_div(count: int, by: int) -> int:
    return -(-count // by)


def _scale(problem: Problem) -> float:
    return problem.gpu.multiprocessors / MULTIPROCESSORS if problem.gpu else 1.0


def _tensor_core_why_not(plan: Plan, problem: Problem) -> str | None:
    if problem.gpu is None:
        return "needs a CUDA device"
    if problem.mode not in plan.tiles:
        return f"has no {problem.mode} arithmetic"
    if problem.batch >= MOST_BATCH:
        return f"walks batches below {MOST_BATCH}, this one is {problem.batch}"
    return None


def _phase_count(problem: Problem) -> int:
    """How many phases a convolution has: `phase_count` of csrc/schedule.h."""
    return min(problem.stride, problem.length_out) if problem.transposed else 1


def _blocks(tile: Tile | HopperTile, problem: Problem) -> int:
    """How many tiles a phase has, of two warpgroups each on Hopper GPUs."""
    at_once = 1
    if isinstance(tile, HopperTile):
        at_once = tile.warpgroups  # each with a tile of its own, wherever that lies
    positions = _ceil_div(problem.length_out, _phase_count(problem))
    # A bucket's length stands for somewhat shorter ones: a sliver of a tile does not count.
    of_tile = tile.positions // at_once
    of_row = _ceil_div(max(1, positions - of_tile // 16), of_tile)
    channel_blocks = _ceil_div(problem.channels_out // problem.groups, tile.channels)
    tiles = _ceil_div(problem.batch * of_row, at_once)
    return problem.groups * channel_blocks * tiles


def _waves(tile: Tile | HopperTile, problem: Problem, gpu: Gpu) -> int:
    """How often each multiprocessor computes a tile, in each phase."""
    return _ceil_div(_blocks(tile, problem), gpu.multiprocessors)


def _dense_why_not(plan: Plan, problem: Problem) -> str | None:
    if problem.gpu and problem.gpu.capability < (8, 0):
        return f"needs compute capability 8.0, this GPU has {problem.gpu.capability}"
    if reason := _tensor_core_why_not(plan, problem):
        return reason
    if problem.stride > MOST_STRIDE:
        return f"walks strides up to {MOST_STRIDE}, this one is {problem.stride}"
    return None


def _dense_cost(plan: Plan, problem: Problem) -> float:
    # Whole tiles are computed, in waves of one block per multiprocessor, over channels padded to
    # the product's depth. The phases of a transposed convolution are launched one after the other
    # and share out the taps; each reads the input and writes every stride-th output.
    if problem.gpu is None or problem.mode not in plan.tiles:
        return float("inf")
    tile = plan.tiles[problem.mode]
    assert isinstance(tile, Tile)
    step = 16 if problem.dtype.itemsize == 2 else 8
    depth = _ceil_div(problem.channels_in // problem.groups, step) * step
    flops = 2 * tile.channels * tile.positions * depth * problem.kernel_size
    rate = DENSE_RATE[problem.mode] * plan.efficiency / MULTIPROCESSORS
    arithmetic = _waves(tile, problem, problem.gpu) * flops / rate
    phases, itemsize = _phase_count(problem), problem.dtype.itemsize
    again = (phases - 1) * problem.input_elements
    again += (min(phases, SECTOR // itemsize) - 1) * problem.output_elements
    traffic = (problem.bytes + again * itemsize) / (BANDWIDTH * _scale(problem))
    # Multiplying and moving overlap, but not wholly.
    return phases * DENSE_START + max(traffic, arithmetic) + 0.5 * min(traffic, arithmetic)


def _woven_taps(problem: Problem) -> int:
    """Shifts of a transposed convolution whose outputs are woven: csrc/schedule.h."""
    step = problem.dilation if problem.dilation % problem.stride == 0 else problem.stride
    return (problem.kernel_size - 1) * problem.dilation // step + 1


def _is_woven(problem: Problem) -> bool:
    few = problem.stride <= WEAVE and _woven_taps(problem) <= problem.kernel_size
    return problem.transposed and few


def hopper_phases(problem: Problem) -> int:
    """How many ordinary convolutions the Hopper kernel makes of one."""
    if not problem.transposed or _is_woven(problem):
        return 1
    return min(problem.stride, problem.length_out)


def hopper_phase(problem: Problem) -> Problem:
    """The ordinary convolution that the Hopper kernel makes of a transposed one, its largest phase.

    Outputs that are woven are columns of its: `Weave` of csrc/schedule.h. Its length is that of
    all that it reads, so that no padding is left.
    """
    if not problem.transposed:
        return problem
    stride, dilation = problem.stride, problem.dilation
    if _is_woven(problem):
        taps, channels = _woven_taps(problem), WEAVE // stride
        dilation = dilation // stride if dilation % stride == 0 else 1
        positions = _ceil_div(problem.length_out + problem.padding % stride, stride)
        channels_out = (
            problem.groups * WEAVE * _ceil_div(problem.channels_out // problem.groups, channels)
        )
    else:
        every = stride // gcd(stride, dilation)
        taps, dilation = _ceil_div(problem.kernel_size, every), dilation // (stride // every)
        positions = _ceil_div(problem.length_out, stride)
        channels_out = problem.channels_out
    return replace(
        problem,
        channels_out=channels_out,
        length=positions + (taps - 1) * dilation,
        kernel_size=taps,
        stride=1,
        padding=0,
        dilation=dilation,
        transposed=False,
        output_padding=0,
        row_alignment=problem.aligned,
    )


@dataclass(frozen=True, slots=True)
class HopperWalk:
    """How the Hopper kernel walks a tile: `pipeline_of` of csrc/schedule.h."""

    words: int  # of channels in a slice, or of channels and taps
    slices: int
    parts: int  # of the taps
    taps: int  # that products see: one, where taps are words
    rows: int  # of the input that a slice copies, with zeros in their place
    copied: int  # positions of each
    resident: bool  # whether shared memory keeps the weights from tile to tile
    ahead: bool  # whether there is room to copy the next rows while these are read


def hopper_fixed_bytes(tile: HopperTile, mode: str) -> int:
    """Shared memory that a block takes beside its stages: `hopper_fixed_bytes` of hopper.cuh."""
    itemsize = 2 if mode in ("bf16", "fp16") else 4
    outputs = 2 * 16 * (tile.m_tiles * 64 * itemsize + 48)
    of_channels = (8 if mode == "ieee" else 4) * tile.channels
    return _ceil_div(640 + tile.warpgroups * (of_channels + outputs), 128) * 128


def hopper_walk(tile: HopperTile, problem: Problem, many_tiles: bool = False) -> HopperWalk | None:
    """The walk of a tile, or None if nothing fits; with `many_tiles`, the weights may stay."""
    folds = tile.folds(problem.mode) and not (_is_woven(problem) and problem.stride > 1)
    problem = hopper_phase(problem)
    size, taps = problem.dtype.itemsize, problem.kernel_size
    values, planes = HOPPER_VALUES[problem.mode], HOPPER_PLANES[problem.mode]
    channels, kinds = problem.channels_in // problem.groups, 16 // problem.aligned
    least = max(tile.least_words(problem.mode), 4 * kinds)
    unit = 32 // size // values // (2 if _narrow(problem) else 1)
    even = _ceil_div(_ceil_div(channels, values), 16) % 2 == 0
    fixed = hopper_fixed_bytes(tile, problem.mode)

    def blocks(taps: int, folded: bool) -> int:
        """Positions of a tile's blocks, as few as may be; 0 if no block is large enough."""
        copied = 0
        outputs = of_warpgroup = tile.positions // tile.warpgroups
        while outputs >= of_warpgroup // 4:  # a warp's
            positions = (outputs - 1) * problem.stride + (taps - 1) * problem.dilation
            positions += 16 // size
            if folded:
                block = _ceil_div(positions, 128 // size) * 128 // size
            else:
                block = _ceil_div(max(positions - unit, 0), 2 * unit) * 2 * unit + unit
            of_tile = tile.positions // outputs * block
            if block <= MOST_BOX and (copied == 0 or of_tile < copied):
                copied = of_tile
            outputs //= 2
        return copied

    if folds and taps > 1 and channels <= MOST_FOLDED[0] and channels * taps <= MOST_FOLDED[1]:
        words = 32 if channels * taps > 16 * values else tile.least_words(problem.mode)
        slices, copied = _ceil_div(channels * taps, words * values), blocks(taps, True)
        rows = 1 << (channels - 1).bit_length()
        for stages, resident in product((2, 1), (True, False)):
            if not copied or (resident and not many_tiles):
                continue
            room = stages * (rows + 1) * copied * size + 8 * MOST_FOLDED[1]
            room += (slices if resident else 3) * words * tile.channels * 4
            if fixed + room <= HOPPER_SHARED:
                return HopperWalk(words, slices, 1, 1, rows, copied, resident, stages > 1)
    for parts in range(1, taps + 1):
        of_part = _ceil_div(taps, parts)
        if parts > 1 and of_part == _ceil_div(taps, parts - 1):
            continue
        copied = blocks(of_part, False)
        if copied == 0:
            continue
        widths = [32, least] if even and least < 32 else [least]
        for stages, resident, words in product((2, 1), (True, False), widths):
            if resident and not many_tiles:
                continue
            slices = _ceil_div(channels, words * values)
            whole_parts = _ceil_div(taps, of_part)
            weights = slices * whole_parts * of_part if resident else 3
            room = stages * words * values * copied * size
            room += weights * planes * words * tile.channels * 4
            if fixed + room <= HOPPER_SHARED:
                rows = words * values
                return HopperWalk(
                    words, slices, whole_parts, taps, rows, copied, resident, stages > 1
                )
    return None


def hopper_slices_of_share(blocks: int, slices: int, steps: int, multiprocessors: int) -> int:
    """Slices that a block takes of a tile: `slices_of_share` of csrc/schedule.h."""
    if 2 * blocks > multiprocessors or slices * steps < LEAST_STEPS:
        return max(1, slices)
    return _ceil_div(slices, min(multiprocessors // blocks, slices, MOST_SHARES))


def hopper_shares(tile: HopperTile, problem: Problem, walk: HopperWalk) -> int:
    """How many blocks share a tile of an ordinary convolution: each has some of its slices."""
    assert problem.gpu is not None
    steps = walk.taps * walk.words // 8
    blocks = _blocks(tile, problem)
    of_share = hopper_slices_of_share(blocks, walk.slices, steps, problem.gpu.multiprocessors)
    return _ceil_div(walk.slices, of_share)


def _lanes_of_bank(problem: Problem) -> int:
    """How many lanes that read a step's values meet in one bank of shared memory."""
    even = min(problem.stride & -problem.stride, 8)
    if problem.dtype.itemsize == 2:
        return max(even // 2, 1)
    return min(even, 4) if _narrow(problem) else even


def _narrow(problem: Problem) -> bool:
    """Whether rows in shared memory are an odd multiple of 4 words apart, otherwise of 8."""
    few_kinds = 16 // problem.aligned <= 2
    return HOPPER_VALUES[problem.mode] == 1 and few_kinds and problem.stride % 8 == 0


def _rows_are_split(problem: Problem) -> bool:
    """Whether rows of the output begin within sectors, as far as a bucket's length can tell."""
    strided = problem.stride > 1 and not problem.transposed
    whole = problem.length_out * problem.dtype.itemsize % SECTOR == 0
    return strided or problem.aligned < 16 or not whole


def _hopper_why_not(plan: Plan, problem: Problem) -> str | None:
    if problem.gpu and problem.gpu.capability != (9, 0):
        return f"needs compute capability 9.0 (wgmma), this GPU has {problem.gpu.capability}"
    if reason := _tensor_core_why_not(plan, problem):
        return reason
    padded = (problem.length_out if problem.transposed else problem.length) + 2 * problem.padding
    if padded >= MOST_LENGTH:
        return f"walks padded rows below {MOST_LENGTH}, not {padded}"
    tile = plan.tiles[problem.mode]
    assert isinstance(tile, HopperTile)
    walk = hopper_walk(tile, problem)
    if walk is None:
        return f"a stride of {problem.stride} needs more shared memory than a block may take"
    steps = walk.slices * walk.words // 8 * walk.taps
    if problem.mode == "ieee" and tile.channels > 96 and steps > HOPPER_CHAIN:
        return f"adds up {HOPPER_CHAIN} steps of 16 channels and taps, not {steps}"
    return None


def _hopper_cost(plan: Plan, problem: Problem) -> float:
    tile = plan.tiles.get(problem.mode)
    if problem.gpu is None or not isinstance(tile, HopperTile):
        return float("inf")
    phases, traffic = hopper_phases(problem), problem.bytes / (HOPPER_BANDWIDTH * _scale(problem))
    weights = problem.channels_in * problem.channels_out // problem.groups * problem.kernel_size
    woven = _is_woven(problem) and problem.stride > 1
    split = _rows_are_split(problem)
    problem = hopper_phase(problem)
    assert problem.gpu is not None
    waves, costs = _waves(tile, problem, problem.gpu), HOPPER[problem.mode]
    walk = hopper_walk(tile, problem, waves >= 4)
    if walk is None:
        return float("inf")
    size = problem.dtype.itemsize
    products = tile.m_tiles * tile.n * HOPPER_PRODUCTS[problem.mode]
    conflicts = _lanes_of_bank(problem) - 1
    shares = hopper_shares(tile, problem, walk)
    of_share = _ceil_div(walk.slices, shares)
    taps, slices = of_share * walk.taps, of_share * walk.parts
    # Warpgroups share the tensor cores, which small products fill less, and more of them have their
    # instructions done sooner.
    crowd = 1 + costs.crowd * (tile.warpgroups - 2)
    read = costs.step + costs.wide * (tile.m_tiles - 1) + costs.conflict * conflicts
    read += costs.apart * (problem.stride > 1 or problem.aligned < 4)
    step = _larger(
        products * costs.column * (tile.warpgroups / 2) ** 1.1,
        read * (1 + READ_CROWD * (crowd - 1)),
    )
    time = taps * walk.words / 8 * step + slices * costs.slice
    # The way of woven outputs takes twice as many instructions.
    out = tile.m_tiles * 128 * costs.output * (1 + woven) + costs.row * split
    time += tile.channels * out * crowd
    channels = problem.channels_in // problem.groups
    missing = 1 - channels / (walk.slices * walk.rows) if walk.taps == problem.kernel_size else 0
    time += walk.parts * costs.ragged * missing
    if problem.aligned < 16 and problem.kernel_size > 1:
        time += slices * costs.clear / _ceil_div(problem.length_out, 64 * tile.m_tiles)
    copied = slices * walk.copied * walk.rows * size
    if not walk.resident:
        time += taps * costs.tap
        copied += taps * walk.words * tile.channels * 4 * HOPPER_PLANES[problem.mode]
    if not walk.ahead:
        time *= 1 + costs.alternating
    time = waves * _larger(time, copied * costs.byte) / 1e3
    if shares > 1:
        sums = shares * _blocks(tile, problem) * tile.channels * tile.positions * 4
        time += SHARE_START + 2 * sums / SHARE_BANDWIDTH
    time += 2 * weights * size / PACK_BANDWIDTH[size]
    narrow = costs.narrow + costs.split * split
    # Phases that are not woven write parts of the same sectors.
    time = _larger(time, traffic * (1 + narrow * (tile.m_tiles == 1)))
    return phases * (costs.start + time)


def _larger(one: float, other: float) -> float:
    """The larger of two times that overlap, and some more where both are long."""
    return float((one**4 + other**4) ** 0.25)


def _fma_why_not(problem: Problem) -> str | None:
    if problem.gpu is None:
        return "needs a CUDA device"
    if problem.gpu.capability < (8, 0):
        return f"needs compute capability 8.0, this GPU has {problem.gpu.capability}"
    if problem.mode == "fp64":
        return "has no fp64 arithmetic"
    return None


def _sliding_why_not(plan: Plan, problem: Problem) -> str | None:
    if reason := _fma_why_not(problem):
        return reason
    if problem.transposed and problem.stride > 1:
        if problem.stride not in SLIDING_STRIDES:
            return f"has transposed strides of 1 and {SLIDING_STRIDES}, not {problem.stride}"
        if problem.dilation > 1 and problem.kernel_size > 1:
            return f"has no transposed strides with a dilation, this one is {problem.dilation}"
    rows = problem.batch * problem.channels_out
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach, rows)
    if max(*sizes, 8 * problem.stride) >= MOST_SLIDING:
        return f"counts rows, steps and positions of padded rows below {MOST_SLIDING}"
    if rows * _ceil_div(problem.length_out, 256) >= MOST_BATCH:
        return f"has fewer than {MOST_BATCH} blocks"
    assert problem.gpu is not None
    shared = next(size for least, size in SLIDING_SHARED if problem.gpu.capability >= least)
    kept = 4 * _sliding_rows(problem) * (problem.kernel_size + 8 * problem.stride + 8)
    if kept + SLIDING_PARTS > shared:
        return f"keeps a row's weights in shared memory, {kept} bytes of {shared}"
    return None


def _sliding_rows(problem: Problem) -> int:
    """Rows that a thread of the sliding kernel has, those of csrc/sliding.cuh or more."""
    channels_in = problem.channels_in // problem.groups
    channels_out = problem.channels_out // problem.groups
    if channels_out == 1 or (problem.transposed and problem.stride > 1):
        return 1
    of_piece = 16 // problem.dtype.itemsize
    if channels_in <= SLIDING_CHAIN:
        return 64 // of_piece if channels_out >= SLIDING_MANY else 1
    return 16 // of_piece


def _sliding_cost(plan: Plan, problem: Problem) -> float:
    traffic = problem.bytes / SLIDING_BANDWIDTH
    return LAUNCH + _larger(traffic, _sliding_time(problem)) / _scale(problem)


def _sliding_time(problem: Problem) -> float:
    """µs that the sliding kernel takes where memory has all in time."""
    channels_in = problem.channels_in // problem.groups
    # Taps that an output sees, most of which may see padding.
    taps = problem.kernel_size / (problem.stride if problem.transposed else 1)
    taps = min(taps, problem.length)
    neighbours = problem.dilation == 1 or problem.kernel_size == 1
    # Rows that share what is read.
    wide = channels_in <= SLIDING_CHAIN and _sliding_rows(problem) > 1
    if not problem.transposed and problem.stride > (2 if neighbours else 1) and not wide:
        of_output = channels_in * taps * SLIDING_APART_TAP
    elif wide:
        of_output = SLIDING_WIDE[0] + channels_in * taps * SLIDING_WIDE[1]
    else:
        of_output = channels_in * (SLIDING_OUTPUT + taps * SLIDING_TAP)
        of_output *= SLIDING_CHAINS if channels_in > SLIDING_CHAIN else 1.0
    time = problem.output_elements * of_output
    if problem.dtype.itemsize == 2:
        time *= SLIDING_WIDE_16_BIT if wide else SLIDING_16_BIT
    return time + (channels_in * SLIDING_TURN if channels_in > SLIDING_CHAIN else 0.0)


def _toeplitz_why_not(plan: Plan, problem: Problem) -> str | None:
    if reason := _fma_why_not(problem):
        return reason
    if problem.mode not in _ROUNDED:
        return f"has no {problem.mode} arithmetic"
    if problem.channels_in != problem.groups:
        return f"takes one input channel a group, not {problem.channels_in // problem.groups}"
    if problem.stride > 1 or (problem.dilation > 1 and problem.kernel_size > 1):
        return f"takes neighbours, not a stride of {problem.stride}, dilation {problem.dilation}"
    rows = problem.batch * problem.channels_out
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach, rows)
    if max(sizes) >= MOST_SLIDING:
        return f"counts rows and positions of padded rows below {MOST_SLIDING}"
    if rows * (_ceil_div(problem.length_out, STRETCH) + 1) >= MOST_BATCH:
        return f"has fewer than {MOST_BATCH} blocks"
    return None


def _toeplitz_cost(plan: Plan, problem: Problem) -> float:
    # A warp has some stretches of each of some batches, and multiplies what these see but padding,
    # and a line more, since a kernel's first and last tap begin and end within one.
    if problem.mode not in _ROUNDED:
        return float("inf")
    size = problem.dtype.itemsize
    stretches = _ceil_div(problem.length_out, STRETCH)
    tiles = min(
        _ceil_div(problem.batch, batches) * _ceil_div(stretches, STRETCHES // batches)
        for batches in (16, 8, 4, 2, 1)
    )
    seen = min(problem.length, problem.length_out) * problem.kernel_size
    lines = 1 + seen / (max(problem.length_out, 1) * STRETCH)
    time = problem.channels_out * tiles * lines * TOEPLITZ_LINE[size] / MULTIPROCESSORS
    # Each output channel reads its input.
    elements = problem.channels_out // problem.groups * problem.input_elements
    traffic = (elements + problem.output_elements) * size / TOEPLITZ_BANDWIDTH[size]
    return TOEPLITZ_START + _larger(traffic, time) / _scale(problem)


@dataclass(frozen=True, slots=True)
class _Product:
    """A convolution, or the gradient of its weight, as a product; sizes are those of a group."""

    rows: int
    columns: int
    depth: int
    line: int
    """Neighbouring elements of the left matrix."""
    turned: bool = False

    def split(self, tile: ProductTile, problem: Problem) -> tuple[int, int, int, int]:
        """Waves of blocks, slices of each, splits, and bytes of the packed columns.

        `Product::cut` of csrc/product.cuh says the same.
        """
        assert problem.gpu is not None
        column_blocks = _ceil_div(self.columns, tile.columns)
        tiles = problem.groups * _ceil_div(self.rows, tile.rows) * column_blocks
        slices = _ceil_div(self.depth * problem.dtype.itemsize, 128)
        sums = max(1, 4 * problem.groups * self.rows * self.columns)
        most = min(EXPLICIT_BYTES // sums, MOST_PRODUCT_SPLITS, max(1, slices // 2))
        at_once = problem.gpu.multiprocessors

        def waves(splits: int) -> int:
            return _ceil_div(tiles * splits, at_once)

        splits = min(
            range(1, max(1, most) + 1),
            key=lambda n: waves(n) * (_ceil_div(slices, n) + PRODUCT_START),
        )
        packed = problem.groups * column_blocks * tile.columns * slices * 128
        return waves(splits), _ceil_div(slices, splits), splits, packed


def _product(problem: Problem, *, gradient: bool = False) -> _Product:
    channels_in = problem.channels_in // problem.groups
    channels_out = problem.channels_out // problem.groups
    positions = problem.length if problem.transposed else problem.length_out
    columns, taps = problem.batch * positions, channels_in * problem.kernel_size
    if gradient:
        return _Product(channels_out, taps, columns, 0)
    if problem.transposed:
        rows = channels_out * problem.kernel_size
        return _Product(rows, columns, channels_in, rows, turned=True)
    return _Product(channels_out, columns, taps, taps)


def _explicit_why_not(plan: Plan, problem: Problem) -> str | None:
    if problem.gpu and problem.gpu.capability != (9, 0):
        return f"needs compute capability 9.0 (wgmma), this GPU has {problem.gpu.capability}"
    if reason := _tensor_core_why_not(plan, problem):
        return reason
    product, size = _product(problem, gradient=plan.gradient), problem.dtype.itemsize
    if product.line * size % 16:
        return (
            f"copies rows of the weight that are multiples of 16 bytes, not {product.line * size}"
        )
    if plan.gradient and product.columns % 2:
        return f"writes pairs of channels and taps, not {product.columns}"
    slice_depth = 128 // size
    if product.turned and problem.groups > 1 and product.depth % slice_depth:
        return f"takes groups of {slice_depth} channels or a multiple, not {product.depth}"
    if product.turned and problem.stride > MOST_EXPLICIT_STRIDE:
        return f"weaves strides up to {MOST_EXPLICIT_STRIDE}, this one is {problem.stride}"
    padded = max(problem.length, problem.length_out) + 2 * problem.padding + problem.reach
    if padded * problem.stride >= MOST_LENGTH:
        return f"counts steps of padded rows below {MOST_LENGTH}"
    tile = plan.tiles[problem.mode]
    assert isinstance(tile, ProductTile)
    _, _, splits, packed = product.split(tile, problem)
    of_row = _ceil_div(product.columns, tile.columns) * tile.columns
    bytes_needed = packed + 4 * splits * problem.groups * product.rows * of_row
    if problem.output_elements >= MOST_BATCH:
        return f"counts fewer than {MOST_BATCH} outputs"
    if bytes_needed > MOST_EXPLICIT_BYTES:
        return f"writes out up to {MOST_EXPLICIT_BYTES} bytes, not {bytes_needed}"
    return None


def _explicit_cost(plan: Plan, problem: Problem) -> float:
    tile = plan.tiles.get(problem.mode)
    if problem.gpu is None or not isinstance(tile, ProductTile):
        return float("inf")
    size, scale = problem.dtype.itemsize, _scale(problem)
    product = _product(problem, gradient=plan.gradient)
    waves, slices, splits, packed = product.split(tile, problem)
    slice_time = EXPLICIT_SLICE[tile.rows, tile.columns][size]
    weights = prod(problem.weight_shape) * size / HOPPER_BANDWIDTH / scale
    time = _larger(waves * (slices * slice_time + EXPLICIT_WAVE), weights)
    elements = problem.input_elements + (1 + plan.gradient) * problem.output_elements
    time += (2 * packed + elements * size) / EXPLICIT_COLUMNS / scale
    if not plan.gradient or splits > 1:
        sums = 4 * splits * problem.groups * product.rows * product.columns
        # Neighbouring residues are read together, whether there are so many or not.
        idle = 4 / min(problem.stride, 4) if product.turned else 1.0
        time += (1 + idle) * sums / EXPLICIT_PARTS / scale
    if plan.gradient and problem.bias:
        time += LAUNCH
    return EXPLICIT_START + time


def _kn2row_shape(problem: Problem) -> tuple[int, int]:
    """Tiles of 16 rows that the products of an output channel take; those of all of a group's."""
    tiles = _ceil_div(problem.kernel_size, 16)
    channels_out = problem.channels_out // problem.groups
    return tiles, tiles * _ceil_div(channels_out, 16 * tiles // problem.kernel_size)


def _kn2row_time(problem: Problem) -> float | None:
    """µs that the kn2row kernel takes, or None if it cannot: `Kn2rowWork` of csrc/kn2row.cuh."""
    assert problem.gpu is not None
    stretch, tiles = _kn2row_shape(problem)
    tiles = next((count for count in KN2ROW_BLOCKS if count >= tiles), 0)
    if not tiles:
        return None
    warps, blocks = KN2ROW_BLOCKS[tiles]
    size, reach = problem.dtype.itemsize, problem.reach - 1
    kinds = max(1, 4 * size // problem.aligned)  # of rows, by how they begin modulo 4 values
    of_step = 32 // size
    steps = _ceil_div(_ceil_div(problem.channels_in // problem.groups, kinds), of_step)
    shared = next(most for least, most in SLIDING_SHARED if problem.gpu.capability >= least)
    channels_out = problem.channels_out // problem.groups
    seen = problem.kernel_size // (problem.stride if problem.transposed else 1)
    times: list[float] = []
    for parts in (1, 2, 4, 8, 16):
        if parts < kinds or parts > warps:
            continue
        window = warps // parts * KN2ROW_WINDOW
        positions = window - (SECTOR // size - 1)
        outputs = positions * problem.stride - reach
        if not problem.transposed:
            outputs = (positions - 1 - reach) // problem.stride + 1
        bytes = 4 * (kinds * steps * tiles * 128 + parts * stretch * 16 * (window + 4))
        if outputs < 1 or (not problem.transposed and positions <= reach) or bytes > shared:
            continue
        resident = min(blocks, shared // bytes)
        at_once = resident * problem.gpu.multiprocessors
        rows = max(1, problem.groups * problem.batch)
        turns = _ceil_div(rows * _ceil_div(problem.length_out, outputs), at_once)
        of_tile = _ceil_div(problem.length_out, max(1, turns * at_once // rows))
        of_tile = min(outputs, max(_ceil_div(outputs, 2), of_tile))
        columns = (of_tile - 1) * problem.stride + reach + 1
        if problem.transposed:
            columns = (of_tile - 1 + reach) // problem.stride + 1
        windows = parts * _ceil_div(columns + 8, KN2ROW_WINDOW)
        instructions = KN2ROW_OUTPUT[0] + parts * (KN2ROW_OUTPUT[1] + KN2ROW_OUTPUT[2] * seen)
        busy = KN2ROW_OWN + KN2ROW_STEP[tiles] * windows * _ceil_div(steps, parts // kinds)
        busy += channels_out * of_tile * instructions // 128
        time = turns * (KN2ROW_TILE + resident * busy) / KN2ROW_CLOCK
        times.append(time + KN2ROW_WEIGHT * kinds * steps * tiles * 4 / warps)
    return min(times, default=None)


def _kn2row_why_not(plan: Plan, problem: Problem) -> str | None:
    if reason := _fma_why_not(problem):
        return reason
    if problem.mode not in _ROUNDED:
        return f"has no {problem.mode} arithmetic"
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach)
    if max(sizes) >= MOST_SLIDING or problem.stride >= KN2ROW_STRIDE:
        return (
            f"counts positions of padded rows below {MOST_SLIDING}, strides below {KN2ROW_STRIDE}"
        )
    if problem.batch * problem.length_out >= MOST_BATCH:
        return f"has fewer than {MOST_BATCH} tiles"
    if problem.groups >= KN2ROW_GROUPS:
        return f"has fewer than {KN2ROW_GROUPS} groups, not {problem.groups}"
    rows, most = 16 * _kn2row_shape(problem)[1], 16 * max(KN2ROW_BLOCKS)
    if rows > most:
        return f"takes {most} pairs of an output channel and a tap, not {rows}"
    if _kn2row_time(problem) is None:
        return "keeps all weights and a window that no tap leaves in shared memory"
    return None


def _kn2row_cost(plan: Plan, problem: Problem) -> float:
    if problem.gpu is None or problem.mode not in _ROUNDED:
        return float("inf")
    time = _kn2row_time(problem)
    if time is None:
        return float("inf")
    return LAUNCH + _larger(problem.bytes / (KN2ROW_BANDWIDTH * _scale(problem)), time)


def _direct_why_not(plan: Plan, problem: Problem) -> str | None:
    if problem.gpu is None:
        return "needs a CUDA device"
    return None


def _direct_cost(plan: Plan, problem: Problem) -> float:
    # Neighbouring threads are of different phases: all take the time of that with the most taps.
    elements = problem.input_elements + problem.output_elements
    every = problem.stride // gcd(problem.stride, problem.dilation) if problem.transposed else 1
    taps = _ceil_div(problem.kernel_size, every)
    flops = 2 * problem.output_elements * (problem.channels_in // problem.groups) * taps
    arithmetic = flops / DIRECT_RATE
    return LAUNCH + max(elements / DIRECT_MEMORY, arithmetic) / _scale(problem)


def _simd_why_not(plan: Plan, problem: Problem) -> str | None:
    return None if problem.gpu is None else "needs a CPU tensor, this one is on a GPU"


def _im2col_why_not(plan: Plan, problem: Problem) -> str | None:
    if problem.gpu is None and problem.dtype.itemsize < 4:
        return f"has no {problem.mode} arithmetic on the CPU"
    return None


def _im2col_cost(plan: Plan, problem: Problem) -> float:
    # Columns are written and read again; the bias is a pass of its own, unless the columns of a
    # transposed convolution are summed up with it. Those of 16-bit types have 32 bits.
    itemsize = problem.dtype.itemsize
    if problem.transposed:
        columns = problem.batch * problem.channels_out * problem.kernel_size * problem.length
        bias, column_bytes = 0, max(itemsize, 4)
    else:
        columns = problem.batch * problem.channels_in * problem.kernel_size * problem.length_out
        bias, column_bytes = int(problem.bias), itemsize
    if problem.gpu is None:
        return (problem.flops + columns) / CPU_RATE
    passes = 2 * columns * column_bytes + 2 * bias * problem.output_elements * itemsize
    time = (problem.bytes + passes) / BANDWIDTH + problem.flops / ATEN_RATE[problem.mode]
    return (2 + bias) * LAUNCH + time / _scale(problem)


def _aten_why_not(plan: Plan, problem: Problem) -> str | None:
    return None


def _aten_cost(plan: Plan, problem: Problem) -> float:
    # cuDNN's dense kernels want NHWC, so input and output change layout; the bias is a pass too.
    # Depthwise layers go to a kernel of ATen's own, without either.
    if problem.gpu is None:
        return cpu_costs.aten(problem)
    elements = problem.input_elements + problem.output_elements
    if problem.groups == problem.channels_in and problem.groups > 1:
        arithmetic = problem.flops / ATEN_DEPTHWISE_RATE
        return LAUNCH + max(elements / ATEN_DEPTHWISE, arithmetic) / _scale(problem)
    rate = ATEN_RATE[problem.mode] * (ATEN_GROUPED if problem.groups > 1 else 1.0)
    rate *= ATEN_TRANSPOSED[problem.mode] if problem.transposed else 1.0
    # Few positions leave multiprocessors idle, however deep the reduction is.
    tiles = _ceil_div(problem.batch * problem.length_out, ATEN_TILE)
    tiles *= _ceil_div(problem.channels_out, ATEN_TILE)
    rate *= min(1.0, max(1, tiles) / problem.gpu.multiprocessors)
    if problem.dtype.itemsize > 2:
        elements += prod(problem.weight_shape)  # which changes its own, too
    layout = elements / ATEN_LAYOUT[problem.dtype.itemsize]
    if problem.channels_in // problem.groups < ATEN_FEW_CHANNELS and problem.dtype.itemsize == 4:
        layout /= 2
    time = max(problem.bytes / BANDWIDTH, problem.flops / rate) + layout
    time += problem.bias * problem.output_elements / ATEN_BIAS
    return ATEN_START + problem.bias * LAUNCH + time / _scale(problem)


def _grad_dense_why_not(plan: Plan, problem: Problem) -> str | None:
    if reason := _dense_why_not(plan, problem):
        return reason
    if problem.dilation > MOST_STRIDE:
        return f"walks dilations up to {MOST_STRIDE}, this one is {problem.dilation}"
    return None


def _grad_hopper_why_not(plan: Plan, problem: Problem) -> str | None:
    if problem.gpu and problem.gpu.capability != (9, 0):
        return f"needs compute capability 9.0, this GPU has {problem.gpu.capability}"
    if reason := _tensor_core_why_not(plan, problem):
        return reason
    most = MOST_GRAD_STRIDE[problem.dtype.itemsize]
    if problem.stride > most:
        return f"walks strides up to {most}, this one is {problem.stride}"
    if max(problem.length, problem.length_out) + 2 * problem.padding + problem.reach > MOST_LENGTH:
        return f"walks padded rows below {MOST_LENGTH}"
    return None


def _grad_hopper_cost(plan: Plan, problem: Problem) -> float:
    tile = plan.tiles.get(problem.mode)
    if problem.gpu is None or not isinstance(tile, GradHopperTile):
        return float("inf")
    tiles = problem.groups * _ceil_div(problem.channels_out // problem.groups, tile.channels)
    blocks, apart = _grad_pair_blocks(tile, problem)
    if not blocks:
        return float("inf")
    tiles *= blocks
    waves, slices, splits = _grad_split(problem, tiles, problem.gpu.multiprocessors)
    itemsize = problem.dtype.itemsize
    work = waves * slices * GRAD_HOPPER_SLICE[tile.channels, tile.pairs][itemsize]
    if problem.length_out * itemsize % 4 or problem.aligned % 4:
        work *= GRAD_HOPPER_ODD
    elif problem.length_out * itemsize % 16:
        work *= GRAD_HOPPER_WITHIN[itemsize]
    if problem.stride >= 8:
        work *= GRAD_HOPPER_FAR
    if apart:
        work *= GRAD_HOPPER_APART
    traffic = problem.bytes / (GRAD_HOPPER_BANDWIDTH * _scale(problem))
    time = GRAD_HOPPER_START + waves * GRAD_HOPPER_WAVE + _larger(work, traffic)
    return time + _grad_parts_time(problem, splits)


def _grad_pair_blocks(tile: GradHopperTile, problem: Problem) -> tuple[int, bool]:
    """Blocks of a group's channels and taps, and whether these have rows of their own.

    `best_pairs` of csrc/grad_hopper.cuh, roughly: three stages of the input must find room beside
    those of grad_output. No blocks where there is no way.
    """
    channels_in, kernel_size = problem.channels_in // problem.groups, problem.kernel_size
    itemsize = problem.dtype.itemsize
    vector, positions = 16 // itemsize, 128 // itemsize
    room = GRAD_HOPPER_SHARED // 3 - 2 * tile.channels * 144

    def vectors(reach: int) -> int:
        return _ceil_div((positions - 1) * problem.stride + reach + vector, vector) | 1

    fewest, apart_at_best = 0, False
    first = _ceil_div(kernel_size, tile.pairs)
    for taps in {_ceil_div(kernel_size, n) for n in range(first, kernel_size + 1)[:40]}:
        apart, together = vectors(0), vectors((taps - 1) * problem.dilation)
        shares = together <= min(taps * apart, 256 // vector)
        row = together if shares else apart * taps
        channels = min(channels_in, tile.pairs // taps, room // (16 * row))
        if channels > 0 and (together if shares else apart) * vector <= 256:
            blocks = _ceil_div(channels_in, channels) * _ceil_div(kernel_size, taps)
            if not fewest or blocks < fewest:
                fewest, apart_at_best = blocks, not shares and taps > 1
    return fewest, apart_at_best


def _grad_split(problem: Problem, tiles: int, at_once: int) -> tuple[int, int, int]:
    """Waves of blocks, slices of each block and splits: `splits_of` of csrc/grad_tile.cuh."""
    of_row = _ceil_div(problem.length_out, 64 if problem.dtype.itemsize == 2 else 32)
    slices = problem.batch * of_row
    most = max(1, min(slices // 4, GRAD_WORKSPACE // (4 * _grad_elements(problem))))
    best = (0, 0, 0)
    least = float("inf")
    for turns in (1, 2, 3, 4):
        splits = min(most, max(1, turns * at_once // tiles))
        waves, each = _ceil_div(tiles * splits, at_once), _ceil_div(slices, splits)
        if waves * (each + GRAD_BLOCK_SLICES) < least:
            least = waves * (each + GRAD_BLOCK_SLICES)
            best = (waves, each, splits)
    return best


def _grad_elements(problem: Problem) -> int:
    """Of the gradients of weight and bias."""
    return _grad_pairs(problem) * problem.kernel_size + problem.channels_out


def _grad_parts_time(problem: Problem, splits: int) -> float:
    """µs in which parts are written and added up."""
    return 8 * splits * _grad_elements(problem) / GRAD_PARTS_BANDWIDTH


def _grad_column_blocks(tile: GradTile, problem: Problem) -> int:
    """Blocks of columns of a group: `best_columns` of csrc/grad_dense.cuh, roughly."""
    channels_in, kernel_size = problem.channels_in // problem.groups, problem.kernel_size
    fewest = channels_in * kernel_size
    for blocks in range(_ceil_div(kernel_size, tile.columns), kernel_size + 1)[:8]:
        taps = _ceil_div(kernel_size, blocks)
        channels = min(channels_in, tile.columns // taps)
        if 8 < channels < channels_in:
            channels -= channels % 8
        fewest = min(fewest, _ceil_div(channels_in, channels) * _ceil_div(kernel_size, taps))
    return fewest


def _grad_dense_cost(plan: Plan, problem: Problem) -> float:
    # Blocks take turns on the slices of whole tiles; a second kernel adds up what they leave.
    tile = plan.tiles.get(problem.mode)
    if problem.gpu is None or not isinstance(tile, GradTile):
        return float("inf")
    tiles = problem.groups * _ceil_div(problem.channels_out // problem.groups, tile.rows)
    tiles *= _grad_column_blocks(tile, problem)
    waves, slices, splits = _grad_split(problem, tiles, problem.gpu.multiprocessors * tile.blocks)
    each = GRAD_SLICE[tile.rows, tile.columns][problem.mode] / 1e3
    if problem.stride > 1:
        each *= GRAD_STRIDED
    if _ceil_div(problem.length_out, 64 if problem.dtype.itemsize == 2 else 32) < GRAD_FEW_SLICES:
        each *= GRAD_SHORT
    traffic = problem.bytes / (GRAD_BANDWIDTH * _scale(problem))
    time = GRAD_DENSE_START + _larger(waves * slices * each, traffic)
    return time + _grad_parts_time(problem, splits)


def _grad_sliding_why_not(plan: Plan, problem: Problem) -> str | None:
    if reason := _fma_why_not(problem):
        return reason
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach)
    if max(*sizes, problem.batch, 128 * problem.stride) >= MOST_SLIDING:
        return f"counts batches, steps and positions of padded rows below {MOST_SLIDING}"
    if _grad_pairs(problem) * problem.kernel_size >= MOST_BATCH:
        return f"has fewer than {MOST_BATCH} blocks"
    return None


def _grad_pairs(problem: Problem) -> int:
    """Pairs of an output channel and an input channel of its group."""
    return problem.channels_out * (problem.channels_in // problem.groups)


def _grad_sliding_cost(plan: Plan, problem: Problem) -> float:
    traffic = problem.bytes / GRAD_SLIDING_BANDWIDTH
    return GRAD_SLIDING_START + _larger(traffic, _grad_sliding_time(problem)) / _scale(problem)


def _grad_sliding_time(problem: Problem) -> float:
    """µs that the sliding kernel of gradients takes where memory has all in time."""
    # Each pair of channels reads its rows again, mostly from L2.
    positions = problem.batch * problem.length_out * _grad_pairs(problem)
    taps, neighbours = problem.kernel_size, problem.dilation == 1 or problem.kernel_size == 1
    of_position, of_tap = GRAD_SLIDING
    if neighbours and problem.stride == 1 and taps > GRAD_LONG_KERNEL:
        seen = min(problem.length_out, problem.length + GRAD_LONG_KERNEL)
        time = positions / problem.length_out * seen * taps * GRAD_SLIDING_LONG
    elif neighbours and problem.stride <= 2:
        at_once = next(n for n in (4, 8, 16, 32) if n >= min(taps, 32 // problem.stride))
        time = positions * _ceil_div(taps, at_once) * (of_position + at_once * of_tap)
        time *= 1.5 if problem.stride == 2 else 1.0
    elif has_one_pass(problem):
        of_position, of_tap = GRAD_SLIDING_WINDOWS
        time = positions * (of_position + taps * of_tap)
    else:
        of_share, of_tap = GRAD_SLIDING_APART
        time = positions * taps * (of_share / min(taps, 8) + of_tap)
    return time * (0.84 if problem.dtype.itemsize == 2 else 1.0)


def has_one_pass(problem: Problem) -> bool:
    """Whether grad_sliding has a way to all gradients of a problem: csrc's `GradBoth`."""
    depthwise = problem.groups == problem.channels_in == problem.channels_out
    neighbours = problem.dilation == 1 or problem.kernel_size == 1
    few = problem.kernel_size <= (GRAD_MOST_TAPS if neighbours else GRAD_MOST_TAPS_APART)
    counted = problem.batch * problem.channels_out < MOST_SLIDING
    return depthwise and problem.stride == 1 and few and counted and not problem.transposed


def in_one_pass(of_weight: Plan, problem: Problem, algorithm: str = "") -> bool:
    """Whether a problem's plan for the weight's gradient is to compute the input's in its pass.

    Not where another plan was asked for, or tuned, for the latter; `algorithm` as for `select`.
    """
    adjoint, problem = problem.adjoint, problem.bucketed()
    if not has_one_pass(problem) or of_weight.family != "sliding":
        return False
    of_input = select(adjoint, algorithm)
    if algorithm or config.forced_plan() or tuned_choice(adjoint):
        return of_input.family == "sliding"
    apart = of_weight.cost(problem) + of_input.cost(problem.adjoint)
    return _one_pass_cost(problem) < apart


def _one_pass_cost(problem: Problem) -> float:
    # What two kernels would multiply, but grad_output, which both read, comes from memory once.
    time = _grad_sliding_time(problem) + _sliding_time(problem.adjoint)
    written = problem.input_elements * problem.dtype.itemsize
    traffic = (problem.bytes + written) / GRAD_SLIDING_BANDWIDTH
    return GRAD_SLIDING_START + _larger(traffic, time) / _scale(problem)


def _grad_direct_cost(plan: Plan, problem: Problem) -> float:
    return LAUNCH + problem.flops / (GRAD_DIRECT_RATE * _scale(problem))


def _grad_aten_cost(plan: Plan, problem: Problem) -> float:
    # cuDNN changes the layout of both tensors, and few channels leave its tiles empty; ATen's own
    # depthwise kernel adds up products one by one.
    if problem.gpu is None:
        return cpu_costs.grad_aten(problem)
    elements = problem.input_elements + problem.output_elements
    if problem.groups == problem.channels_in and problem.groups > 1:
        time = problem.flops / GRAD_ATEN_DEPTHWISE_RATE
        return GRAD_ATEN_START / 3 + time / _scale(problem)
    rows = problem.channels_out // problem.groups
    columns = problem.channels_in // problem.groups * problem.kernel_size
    filled = min(1.0, rows / GRAD_ATEN_FILLED) * min(1.0, columns / GRAD_ATEN_FILLED)
    rate = GRAD_ATEN_RATE[problem.mode] * max(filled, 0.05)
    rate *= GRAD_ATEN_GROUPED if problem.groups > 1 else 1.0
    time = problem.flops / rate + elements / GRAD_ATEN_LAYOUT[problem.dtype.itemsize]
    time += problem.bias * problem.output_elements / GRAD_ATEN_BIAS
    return GRAD_ATEN_START + time / _scale(problem)


def _dense(name: str, tile: Tile, ieee_tile: Tile, efficiency: float) -> Plan:
    tiles = {"tf32": tile, "bf16": tile, "fp16": tile, "ieee": ieee_tile}
    return Plan(name, "dense", _dense_why_not, _dense_cost, tiles, efficiency)


_ROUNDED = ("tf32", "bf16", "fp16")


def _hopper(warpgroups: int, m_tiles: int, n: int, modes: Sequence[str] = _ROUNDED) -> Plan:
    tile = HopperTile(warpgroups, m_tiles, n)
    name = f"hopper_{tile.channels}x{tile.positions}"
    return Plan(name, "hopper", _hopper_why_not, _hopper_cost, dict.fromkeys(modes, tile))


def _explicit(warpgroups: int, columns: int, *, gradient: bool = False) -> Plan:
    tile = ProductTile(warpgroups, columns)
    name = f"{'grad_' * gradient}explicit_{tile.rows}x{tile.columns}"
    tiles = dict.fromkeys(_ROUNDED, tile)
    return Plan(name, "explicit", _explicit_why_not, _explicit_cost, tiles, gradient=gradient)


# Hopper rows: warpgroups, mma tiles of 64 positions that each has, channels, and the modes that
# have this tile. The sums of ieee take two or three times the room; with more warpgroups a thread
# has fewer registers.
# Dense rows: the tile of tf32, bf16 and fp16, then that of ieee, then the share of the full rate.
# Four rows of warps keep four alignments of output rows apart (see csrc/schedule.h); 16 warps are
# too many for the registers of ieee, and slower than 8 where a 16-bit type halves the weights.
PLANS: tuple[Plan, ...] = (
    _hopper(2, 1, 256),
    _hopper(2, 1, 192),
    _hopper(2, 2, 128),
    _hopper(3, 1, 128),
    _hopper(2, 1, 128, (*_ROUNDED, "ieee")),
    _hopper(2, 2, 96),
    _hopper(3, 1, 96),
    _hopper(2, 1, 96, ("ieee",)),
    _hopper(3, 2, 64),
    _hopper(4, 1, 64),
    _hopper(2, 1, 64, (*_ROUNDED, "ieee")),
    _hopper(3, 2, 32),
    _hopper(4, 1, 32),
    Plan("dense_128x256", "dense", _dense_why_not, _dense_cost, {"tf32": Tile(4, 4, 2, 8)}, 1.0),
    _dense("dense_128x128", Tile(4, 2, 2, 8), Tile(4, 2, 2, 8), 0.9),
    _dense("dense_64x128", Tile(4, 2, 1, 8), Tile(2, 4, 2, 4), 0.6),
    _dense("dense_32x128", Tile(2, 4, 1, 4), Tile(2, 4, 1, 4), 0.35),
    _explicit(2, 256),
    _explicit(2, 224),
    _explicit(3, 128),
    Plan("toeplitz", "toeplitz", _toeplitz_why_not, _toeplitz_cost),
    Plan("kn2row", "kn2row", _kn2row_why_not, _kn2row_cost),
    Plan("sliding", "sliding", _sliding_why_not, _sliding_cost),
    Plan("direct", "direct", _direct_why_not, _direct_cost),
    Plan("simd", "simd", _simd_why_not, lambda plan, problem: cpu_costs.simd(problem)),
    Plan("im2col", "im2col", _im2col_why_not, _im2col_cost, automatic=False),
    Plan("aten", "aten", _aten_why_not, _aten_cost),
)


def _grad_dense(tile: GradTile, modes: Sequence[str], ieee_tile: GradTile | None = None) -> Plan:
    tiles = dict.fromkeys(modes, tile)
    if ieee_tile:
        tiles["ieee"] = ieee_tile
    name = f"grad_dense_{tile.rows}x{tile.columns}"
    return Plan(name, "dense", _grad_dense_why_not, _grad_dense_cost, tiles, gradient=True)


def _grad_hopper(warpgroups: int, m_tiles: int, n: int) -> Plan:
    tile = GradHopperTile(warpgroups, m_tiles, n)
    name = f"grad_hopper_{tile.channels}x{tile.pairs}"
    tiles = dict.fromkeys(_ROUNDED, tile)
    return Plan(name, "hopper", _grad_hopper_why_not, _grad_hopper_cost, tiles, gradient=True)


# The tile of these modes, then that of ieee, whose sums take twice the room. 16-bit types, which
# keep two planes, gain nothing from the largest one.
GRADIENT_PLANS: tuple[Plan, ...] = (
    _grad_hopper(2, 2, 128),
    _grad_hopper(3, 1, 128),
    _grad_hopper(2, 1, 128),
    _grad_hopper(2, 2, 64),
    _grad_hopper(3, 1, 64),
    _explicit(2, 256, gradient=True),
    _explicit(2, 224, gradient=True),
    _explicit(3, 128, gradient=True),
    _grad_dense(GradTile(2, 6, 4, 4, 1), ("tf32",)),
    _grad_dense(GradTile(2, 3, 4, 4, 2), _ROUNDED, GradTile(2, 4, 4, 3, 1)),
    _grad_dense(GradTile(2, 3, 2, 4, 2), _ROUNDED, GradTile(2, 3, 2, 4, 1)),
    _grad_dense(GradTile(4, 1, 2, 4, 2), _ROUNDED, GradTile(4, 1, 2, 4, 2)),
    _grad_dense(GradTile(1, 8, 1, 4, 1), _ROUNDED, GradTile(1, 8, 1, 4, 1)),
    Plan("grad_sliding", "sliding", _grad_sliding_why_not, _grad_sliding_cost, gradient=True),
    Plan("grad_direct", "direct", _direct_why_not, _grad_direct_cost, gradient=True),
    Plan(
        "grad_simd",
        "simd",
        _simd_why_not,
        lambda plan, problem: cpu_costs.grad_simd(problem),
        gradient=True,
    ),
    Plan("grad_aten", "aten", _aten_why_not, _grad_aten_cost, gradient=True),
)

EVERY_PLAN = (*PLANS, *GRADIENT_PLANS)

_BY_NAME = {plan.name: plan for plan in PLANS}


def select(problem: Problem, algorithm: str = "", *, gradient: bool = False) -> Plan:
    """The plan that runs a problem: the one asked for, the one tuned for it, or the cheapest legal.

    `algorithm` names a plan or a family of plans; FASTCONV1D_PLAN does where it is ''. With
    `gradient`, the plan for the weight's gradient of an ordinary problem, which a name that only
    the other plans have leaves free.

    Raises: ValueError for an unknown name; RuntimeError, saying why, if the plan asked for cannot
    run the problem (from the environment: under FASTCONV1D_STRICT=1 only, else one warning).
    """
    return candidates(problem, algorithm, gradient=gradient)[0]


def candidates(
    problem: Problem, algorithm: str = "", *, gradient: bool = False
) -> tuple[Plan, ...]:
    """The plans to try in turn, best first; ATen is always the last resort. See `select`."""
    bucketed = problem.bucketed()
    requested = algorithm or config.forced_plan()
    source = "algorithm" if algorithm else "FASTCONV1D_PLAN"
    automatic = _cheapest_first(bucketed, "", True) if gradient else _tuned_first(bucketed)
    if not requested:
        return automatic
    rows = _named(requested, gradient, source)
    if not rows:
        return automatic
    asked = _cheapest_first(bucketed, requested, gradient)
    if not asked:
        reasons = "; ".join(sorted({str(row.why_not(bucketed)) for row in rows}))
        text = f"{source} {requested!r} cannot run this convolution: {reasons}"
        if algorithm or config.strict():
            raise RuntimeError(f"{text} ({problem})")
        _warn_once(f"{text}; another plan runs it")
        return automatic
    return asked + tuple(plan for plan in automatic if plan not in asked)


def explain(
    problem: Problem, algorithm: str = "", *, gradient: bool = False
) -> list[tuple[Plan, str | None, float]]:
    """Each plan that `algorithm` admits, why it cannot run the problem (or None), its cost in µs.

    As `select`, `gradient` says which plans.

    Raises: ValueError for an unknown name.
    """
    bucketed = problem.bucketed()
    table = GRADIENT_PLANS if gradient else PLANS
    return [
        (plan, plan.why_not(bucketed), plan.cost(bucketed))
        for plan in (_named(algorithm, gradient) if algorithm else table)
    ]


def tuned_choice(problem: Problem) -> tuned.Choice | None:
    """What `fastconv1d tune` stored for a problem, if that plan can still run it."""
    stored = tuned.choices()
    if not stored:
        return None
    choice = stored.get(tuned.context(problem.gpu, _hash_for(problem)), {}).get(
        tuned.geometry(problem)
    )
    row = choice and _BY_NAME.get(choice.plan)
    return choice if row and row.why_not(problem.bucketed()) is None else None


def _hash_for(problem: Problem) -> str:
    return sources_hash("cuda" if problem.gpu else "cpu")


def model_choice(problem: Problem) -> Plan:
    """The plan that the cost model alone would take."""
    return _cheapest_first(problem.bucketed(), "", False)[0]


@lru_cache(maxsize=1024)
def _tuned_first(bucketed: Problem) -> tuple[Plan, ...]:
    order = _cheapest_first(bucketed, "", False)
    choice = tuned_choice(bucketed)
    if choice is None:
        return order
    fastest = _BY_NAME[choice.plan]
    return (fastest, *(plan for plan in order if plan is not fastest))


@lru_cache(maxsize=1024)
def _cheapest_first(bucketed: Problem, requested: str, gradient: bool) -> tuple[Plan, ...]:
    table = GRADIENT_PLANS if gradient else PLANS
    rows = _named(requested, gradient) if requested else [row for row in table if row.automatic]
    legal = [plan for plan in rows if plan.why_not(bucketed) is None]
    return tuple(sorted(legal, key=lambda plan: plan.cost(bucketed)))


def _named(requested: str, gradient: bool, source: str = "algorithm") -> list[Plan]:
    """The plans of a name or family among those for gradients, or the others."""
    rows = [plan for plan in EVERY_PLAN if requested in (plan.name, plan.family)]
    if requested and not rows:
        names = sorted({name for plan in EVERY_PLAN for name in (plan.name, plan.family)})
        raise ValueError(f"{source} is {requested!r}, expected one of {', '.join(names)}")
    return [plan for plan in rows if plan.gradient == gradient]


@lru_cache(maxsize=64)
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


TENSOR_CORE_MODES = {"tf32": "Tf32", "ieee": "Ieee", "bf16": "Bf16", "fp16": "Fp16"}
HOPPER_FAMILIES = ("hopper", "explicit", "grad_hopper", "grad_explicit")
TENSOR_CORE_FAMILIES = (*HOPPER_FAMILIES, "dense", "grad_dense")


def arithmetic(family: str, mode: str) -> str:
    """The C++ type of a family's arithmetic in a mode, from csrc/modes.cuh."""
    return "Halves" if (family, mode) == ("hopper", "ieee") else TENSOR_CORE_MODES[mode]


def tile_glue(family: str, mode: str, rows: Sequence[Plan]) -> str:
    """The C++ glue of a library with some of a family's tiles."""
    tiles = ", ".join(plan.tiles[mode].glue for plan in rows)
    return (
        f'#include "{family}.cuh"\n'
        f"FASTCONV1D_{family.upper()}_LIBRARY(fastconv1d::{arithmetic(family, mode)}, {tiles})\n"
    )


CPU_LIBRARIES = ("simd", "grad_simd", "binding_cpu")


def libraries() -> dict[str, str]:
    """The C++ glue of every library, by name: the instantiations that the table needs."""
    glue = {}
    for family in TENSOR_CORE_FAMILIES:
        for mode in TENSOR_CORE_MODES:
            if rows := tile_rows(family, mode):
                glue[f"{family}_{mode}"] = tile_glue(family, mode, rows)
    for mode in _ROUNDED:
        glue[f"toeplitz_{mode}"] = (
            '#include "toeplitz.cuh"\n'
            f"FASTCONV1D_TOEPLITZ_LIBRARY(fastconv1d::{TENSOR_CORE_MODES[mode]})\n"
        )
        glue[f"kn2row_{mode}"] = (
            '#include "kn2row.cuh"\n'
            f"FASTCONV1D_KN2ROW_LIBRARY(fastconv1d::{TENSOR_CORE_MODES[mode]})\n"
        )
    for mode_type in ("Fp32", "Bf16", "Fp16"):
        glue[f"sliding_{mode_type.lower()}"] = (
            f'#include "sliding.cuh"\nFASTCONV1D_SLIDING_LIBRARY(fastconv1d::{mode_type})\n'
        )
        glue[f"grad_sliding_{mode_type.lower()}"] = (
            '#include "grad_sliding.cuh"\n'
            f"FASTCONV1D_GRAD_SLIDING_LIBRARY(fastconv1d::{mode_type})\n"
        )
    glue["grad_direct"] = '#include "grad_direct.cuh"\nFASTCONV1D_GRAD_DIRECT_LIBRARY\n'
    glue["grad_bias"] = '#include "grad_bias.cuh"\nFASTCONV1D_GRAD_BIAS_LIBRARY\n'
    glue["direct"] = '#include "direct.cuh"\nFASTCONV1D_DIRECT_LIBRARY\n'
    glue["im2col"] = '#include "im2col.cuh"\nFASTCONV1D_IM2COL_LIBRARY\n'
    glue["grad_simd"] = '#include "cpu_grad.h"\nFASTCONV1D_GRAD_SIMD_LIBRARY\n'
    glue["simd"] = '#include "cpu_conv.h"\nFASTCONV1D_SIMD_LIBRARY\n'
    glue["binding_cuda"] = '#define FASTCONV1D_CUDA 1\n#include "binding.cpp"\n'
    glue["binding_cpu"] = '#include "binding.cpp"\n'
    return glue


@lru_cache(maxsize=2)
def sources_hash(device: str = "cuda") -> str:
    """A hash of all that our kernels' results on a device depend on: sources and generated glue."""
    glue = libraries().items()
    of_device = [text for name, text in glue if (name in CPU_LIBRARIES) == (device == "cpu")]
    return build.sources_hash(text for text in of_device if "binding.cpp" not in text)


def needs_hopper(library: str) -> bool:
    """Whether a library is of a family whose instructions GPUs of sm_90a alone have."""
    return library.rsplit("_", 1)[0] in HOPPER_FAMILIES


def libraries_for(arch: str) -> dict[str, str]:
    """Those libraries that a GPU architecture, as '90a', can run."""
    return {
        name: glue
        for name, glue in libraries().items()
        if name not in CPU_LIBRARIES and (arch == "90a" or not needs_hopper(name))
    }


def family_of(plan: Plan) -> str:
    """What a plan's libraries and C++ headers are named after."""
    return f"grad_{plan.family}" if plan.gradient else plan.family


def tile_rows(family: str, mode: str) -> list[Plan]:
    """A family's plans that have this arithmetic, in the order of their library's variants."""
    return [plan for plan in EVERY_PLAN if family_of(plan) == family and mode in plan.tiles]


def library_of(plan: Plan, problem: Problem) -> str:
    """The kernel library that a plan runs from, or '' if it needs none."""
    family = family_of(plan)
    if family in (*TENSOR_CORE_FAMILIES, "toeplitz", "kn2row"):
        return f"{family}_{problem.mode}"
    if plan.family == "sliding":
        return f"{family}_{'fp32' if problem.dtype.itemsize == 4 else problem.mode}"
    if plan.family == "aten" or (plan.family == "im2col" and problem.gpu is None):
        return ""
    return family


def variant_of(plan: Plan, problem: Problem) -> int:
    """The variant of its library that a plan runs."""
    family = family_of(plan)
    if family in TENSOR_CORE_FAMILIES:
        return tile_rows(family, problem.mode).index(plan)
    return config.MODES.index(problem.mode)
