"""What plans can run on a GPU, and what they take, in µs: functions of a Problem, and of its tile.

For most plans there are two: `NAME_why_not`, why it cannot run the problem, or None, and `NAME`,
its cost. Kernels on tensor cores have tiles; theirs get the one of the problem's mode, or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from fastconv1d.problem import Problem
from fastconv1d.tiles import (
    HOPPER_PLANES,
    HOPPER_PRODUCTS,
    ROUNDED,
    AnyTile,
    GradTile,
    HopperTile,
    Product,
    ProductTile,
    Tile,
    block_count,
    ceil_div,
    hopper_phase,
    hopper_phases,
    hopper_shares,
    hopper_walk,
    is_narrow,
    is_woven,
    phase_count,
    wave_count,
)

# What kernels can count, walk and keep.
MOST_BATCH = 1 << 31  # batches, blocks or outputs, from which on 32-bit counters would run over
MOST_STRIDE = 1 << 22  # that the dense kernel walks: kMostLoadStep of csrc/schedule.h
MOST_LENGTH = 1 << 30  # of padded rows that the Hopper kernel walks, with 32 bits
HOPPER_CHAIN = 18  # steps after which fp32-accurate products are added up apart
MOST_EXPLICIT_STRIDE = 16  # of a transposed one
MOST_EXPLICIT_BYTES = 512 << 20  # of the workspace
MOST_SLIDING = 1 << 29  # positions of padded rows, rows and steps that the sliding kernel counts
SLIDING_CHAIN, SLIDING_MANY = (
    16,
    8,
)  # kChannelChain of csrc/depthwise.cuh, kManyRows of csrc/sliding.cuh
# kMostTaps, kMostOfPhase, kMostChannels and kThreadsEnough of csrc/depthwise.cuh.
DEPTHWISE_TAPS, DEPTHWISE_FEW_TAPS, DEPTHWISE_CHANNELS, DEPTHWISE_THREADS = 16, 8, 1024, 512
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
# Warps; blocks of a multiprocessor; by tiles.
KN2ROW_BLOCKS = {1: (8, 3), 2: (8, 2), 4: (16, 1)}
KN2ROW_SPLIT_BLOCKS = {1: (8, 2), 2: (8, 1)}  # where values are split
KN2ROW_GROUPS = 1 << 16  # which a grid's second dimension does not hold
KN2ROW_STRIDE = 1 << 15  # whose square its 32-bit counters hold

# What they take, measured on an H200. Only ratios matter to the choice between plans; arithmetic
# and bandwidth are scaled by the number of multiprocessors for other GPUs.
LAUNCH = 4.0  # µs: one kernel launch
MULTIPROCESSORS = 132  # of the GPU measured
BANDWIDTH = 3.6e6  # bytes per µs that a kernel reads and writes
DENSE_RATE = {"tf32": 130e6, "ieee": 66e6, "bf16": 240e6, "fp16": 240e6}  # FLOP per µs
# Share of it that tiles reach, by channels and positions.
DENSE_SHARE = {(128, 256): 1.0, (128, 128): 0.9, (64, 128): 0.6, (32, 128): 0.35}
DENSE_START = 34.0  # µs: both kernels of a phase, the first of which packs the weight
HOPPER_BANDWIDTH = 3.8e6  # bytes per µs that the Hopper kernel reads and writes
PACK_BANDWIDTH = {2: 1.55e6, 4: 2.1e6}  # bytes per µs in which weights are packed, by size
MOST_SPLIT_BYTES = 1 << 30  # of an input that is split before
SPLIT_START, SPLIT_BANDWIDTH = 4.9, 3.6e6  # µs, and bytes per µs, that splitting the input takes
SPLIT_BLOCK = 32, 128  # channels and positions: kSplitChannels of csrc/hopper_split.cuh
SHARE_START, SHARE_BANDWIDTH = 3.0, 2.5e6  # µs, and bytes per µs, that adding up shares takes
READ_CROWD = 0.4  # of what outputs take longer for more warpgroups, the share that steps do
SECTOR = 32  # bytes that memory writes at once
DIRECT_RATE = 3e6  # FLOP per µs
DIRECT_MEMORY = 0.12e6  # elements per µs that the direct kernel reads and writes
SLIDING_OUTPUT = 1.9e-6  # µs that the sliding kernel takes for an output and a channel that it sees
SLIDING_TAP = 0.17e-6  # likewise for each tap
SLIDING_WIDE = (0.95e-6, 0.079e-6)  # the same where rows share what is read: an output, a tap
SLIDING_CHAINS = 0.78  # share of these that many channels take
SLIDING_TURN = 0.1  # µs of each of many channels, which a thread takes one after the other
SLIDING_APART_TAP = 1e-6  # for each where values are read one by one
SLIDING_16_BIT = 0.7  # share of these that 16-bit types take
SLIDING_WIDE_16_BIT = 0.9  # likewise where rows share what is read
SLIDING_LOOP = {4: 0.3e-3, 2: 0.1e-3}  # µs more for a depthwise row whose taps are a loop, by size
SLIDING_UNROLLED = 8  # taps that are none
SLIDING_BANDWIDTH = 3.4e6  # bytes per µs that it reads and writes
# The same of csrc/depthwise.cuh; a tap apart and one of a phase as multiples of a tap.
DEPTHWISE_OUTPUT, DEPTHWISE_TAP, DEPTHWISE_APART, DEPTHWISE_WOVEN = 1.2e-6, 0.08e-6, 4, 2
DEPTHWISE_BANDWIDTH = 3.9e6
TOEPLITZ_START = 8.0  # µs: its launch, a block's first reads and its last writes
# By mode: µs for 64 taps of 16 stretches; bytes per µs that it reads and writes.
TOEPLITZ_LINE = {"tf32": 0.08, "ieee": 0.22, "bf16": 0.047, "fp16": 0.047}
TOEPLITZ_BANDWIDTH = {"tf32": 2.4e6, "ieee": 1.35e6, "bf16": 1.9e6, "fp16": 1.9e6}
EXPLICIT_START, EXPLICIT_WAVE = 2.9, 6.4  # µs: its kernels; a block's start and its end
# µs of a slice, by rows and columns of the tile and size.
EXPLICIT_SLICE = {
    (128, 256): {2: 0.79, 4: 0.63},
    (128, 224): {2: 0.74, 4: 0.58},
    (192, 128): {2: 0.84, 4: 0.70},
    (128, 192): {4: 1.42},
    (128, 128): {4: 0.95},
}
EXPLICIT_COLUMNS, EXPLICIT_PARTS = 2.8e6, 3.5e6  # bytes per µs of both, written and read
KN2ROW_CLOCK = 1755.0  # cycles per µs
# Cycles: kTile, kOwn and, by tiles, kStep of csrc/kn2row.cuh; instructions for an output: kOutput,
# kPart and kProduct there.
KN2ROW_TILE, KN2ROW_OWN, KN2ROW_STEP = 1600, 1700, {1: 40, 2: 40, 4: 90}
KN2ROW_OUTPUT = 60, 12, 5
KN2ROW_SPLIT = 2  # times as long takes a step whose values are split: kSplit there
KN2ROW_WEIGHT = 0.12  # µs that a block takes for one word of weights of each thread's
KN2ROW_BANDWIDTH = 4e6  # bytes per µs that it reads
ATEN_RATE = {"tf32": 300e6, "ieee": 46e6, "bf16": 700e6, "fp16": 700e6, "fp64": 15e6}  # FLOP per µs
ATEN_START = 22.0  # µs: the kernels of a dense convolution, beside what grows with its size
ATEN_GROUPED = 0.12  # share of that rate when groups > 1
# Share of it when transposed.
ATEN_TRANSPOSED = {"tf32": 0.28, "ieee": 0.75, "bf16": 0.33, "fp16": 0.33, "fp64": 0.75}
ATEN_LAYOUT = {2: 0.7e6, 4: 0.55e6, 8: 0.55e6}  # elements per µs from NCL to NHWC or back, by size
ATEN_RAGGED = 1.3  # of its time where channels do not fill 16 bytes, as tensor cores want them
ATEN_FEW_CHANNELS = 4  # of fp32 below which half of that is saved
ATEN_TILE = 128  # positions and channels of cuDNN's tiles
ATEN_BIAS = 0.35e6  # elements per µs that the bias pass adds to
ATEN_DEPTHWISE = 0.2e6  # elements per µs that ATen's own depthwise kernel reads and writes
ATEN_DEPTHWISE_RATE = 8e6  # FLOP per µs of that kernel


@dataclass(frozen=True, slots=True)
class HopperCosts:
    """What the Hopper kernel takes, fitted to layers and their gradients on an H200.

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
    *(0.545, 69.7, 56.7, 27.3, 622, 33.7, 1140, 0.0727, 0.00796, 11.2, 22.3, 0.322),
    *(0.0312, 0, 4.86, 530, 0.192),
)
HOPPER = {
    "tf32": HopperCosts(
        *(0.446, 60.9, 68.3, 26.8, 453, 17.8, 2120, 0.0965, 0.0156, 11.2, 0, 0.3),
        *(0.00847, 0.217, 1.17, 427, 0.172),
    ),
    "ieee": HopperCosts(
        *(0.515, 216, 142, 11.4, 1070, 3.56, 367, 0.137, 0.028, 14.9, 0, 0.271),
        *(0.123, 0, 0, 0, 0),
    ),
    "split": HopperCosts(
        *(0.609, 148, 0, 21.9, 630, 3.62, 922, 0.144, 0.00647, 9.3, 0, 0.277),
        *(0.179, 0.232, 1.21, 0, 0),
    ),
    "bf16": HOPPER_16_BIT,
    "fp16": HOPPER_16_BIT,
}
# Times as long as all that says, by channels and positions of a tile and size, but fp32-accurate.
HOPPER_TILE = {
    (256, 128): {4: 0.973, 2: 1.0},
    (192, 128): {4: 0.922, 2: 1.01},
    (128, 256): {4: 1.0, 2: 1.0},
    (128, 192): {4: 0.981, 2: 1.0},
    (128, 128): {4: 0.917, 2: 0.92},
    (96, 256): {4: 1.0, 2: 1.01},
    (96, 192): {4: 0.986, 2: 1.045},
    (64, 384): {4: 0.966, 2: 1.0},
    (64, 256): {4: 1.0, 2: 1.07},
    (64, 128): {4: 0.947, 2: 0.972},
    (32, 384): {4: 0.933, 2: 1.05},
    (32, 256): {4: 0.972, 2: 1.06},
}
# And where taps are words: a value's address is looked up once for both mma tiles of a warpgroup.
HOPPER_FOLDED = {(128, 256): 0.87, (96, 256): 0.95, (64, 384): 0.96, (32, 384): 1.0}


def gpu_scale(problem: Problem) -> float:
    """A GPU's multiprocessors, as a share of those of the GPU measured; 1 for the CPU."""
    return problem.gpu.multiprocessors / MULTIPROCESSORS if problem.gpu else 1.0


def tensor_core_why_not(tile: AnyTile | None, problem: Problem) -> str | None:
    """What keeps a problem from all kernels on tensor cores, or from those without a tile."""
    if problem.gpu is None:
        return "needs a CUDA device"
    if tile is None:
        return f"has no {problem.mode} arithmetic"
    if problem.batch >= MOST_BATCH:
        return f"walks batches below {MOST_BATCH}, this one is {problem.batch}"
    return None


def wgmma_why_not(tile: AnyTile | None, problem: Problem) -> str | None:
    """The same of kernels on the tensor cores of Hopper."""
    if problem.gpu and problem.gpu.capability != (9, 0):
        return f"needs compute capability 9.0 (wgmma), this GPU has {problem.gpu.capability}"
    return tensor_core_why_not(tile, problem)


def dense_why_not(tile: Tile | GradTile | None, problem: Problem) -> str | None:
    """The portable kernel on tensor cores; that of gradients walks no more."""
    if problem.gpu and problem.gpu.capability < (8, 0):
        return f"needs compute capability 8.0, this GPU has {problem.gpu.capability}"
    if reason := tensor_core_why_not(tile, problem):
        return reason
    if problem.stride > MOST_STRIDE:
        return f"walks strides up to {MOST_STRIDE}, this one is {problem.stride}"
    return None


def dense(tile: Tile | None, problem: Problem) -> float:
    """The portable kernel on tensor cores."""
    # Whole tiles are computed, in waves of one block per multiprocessor, over channels padded to
    # the product's depth. The phases of a transposed convolution are launched one after the other
    # and share out the taps; each reads the input and writes every stride-th output.
    if problem.gpu is None or tile is None:
        return float("inf")
    step = 16 if problem.dtype.itemsize == 2 else 8
    depth = ceil_div(problem.channels_in // problem.groups, step) * step
    flops = 2 * tile.channels * tile.positions * depth * problem.kernel_size
    rate = DENSE_RATE[problem.mode] * DENSE_SHARE[tile.channels, tile.positions] / MULTIPROCESSORS
    arithmetic = wave_count(tile, problem, problem.gpu) * flops / rate
    phases, itemsize = phase_count(problem), problem.dtype.itemsize
    again = (phases - 1) * problem.input_elements
    again += (min(phases, SECTOR // itemsize) - 1) * problem.output_elements
    traffic = (problem.bytes + again * itemsize) / (BANDWIDTH * gpu_scale(problem))
    # Multiplying and moving overlap, but not wholly.
    return phases * DENSE_START + max(traffic, arithmetic) + 0.5 * min(traffic, arithmetic)


def _lanes_of_bank(problem: Problem) -> int:
    """How many lanes that read a step's values meet in one bank of shared memory."""
    even = min(problem.stride & -problem.stride, 8)
    if problem.dtype.itemsize == 2:
        return max(even // 2, 1)
    return min(even, 4) if is_narrow(problem) else even


def _rows_are_split(problem: Problem) -> bool:
    """Whether rows of the output begin within sectors, as far as a bucket's length can tell."""
    strided = problem.stride > 1 and not problem.transposed
    whole = problem.length_out * problem.dtype.itemsize % SECTOR == 0
    return strided or problem.aligned < 16 or not whole


def hopper_why_not(tile: HopperTile | None, problem: Problem) -> str | None:
    """The Hopper kernel: wgmma, and room in shared memory for a walk."""
    if reason := wgmma_why_not(tile, problem):
        return reason
    padded = (problem.length_out if problem.transposed else problem.length) + 2 * problem.padding
    if padded >= MOST_LENGTH:
        return f"walks padded rows below {MOST_LENGTH}, not {padded}"
    assert tile is not None
    if tile.presplit and (reason := _presplit_why_not(problem)):
        return reason
    walk = hopper_walk(tile, problem)
    if walk is None:
        return f"a stride of {problem.stride} needs more shared memory than a block may take"
    steps = walk.slices * walk.words // 8 * walk.taps
    if problem.mode == "ieee" and tile.channels > 96 and steps > HOPPER_CHAIN:
        return f"adds up {HOPPER_CHAIN} steps of 16 channels and taps, not {steps}"
    return None


def _presplit_why_not(problem: Problem) -> str | None:
    """The Hopper kernel's tiles whose input is split before."""
    if hopper_phases(problem) > 1:
        return "splits the input of one phase, not of several"
    words = problem.batch * problem.channels_in * ceil_div(problem.length, 4) * 4
    if 4 * words > MOST_SPLIT_BYTES:
        return f"keeps a split input of {MOST_SPLIT_BYTES} bytes or less"
    return None


def _presplit_cost(problem: Problem) -> float:
    """Splitting the input before products: it is read twice, and as much is written."""
    channels = ceil_div(problem.channels_in, SPLIT_BLOCK[0]) * SPLIT_BLOCK[0]
    positions = ceil_div(problem.length, SPLIT_BLOCK[1]) * SPLIT_BLOCK[1]
    values = problem.batch * channels * positions
    return SPLIT_START + 12 * values / (SPLIT_BANDWIDTH * gpu_scale(problem))


def hopper(tile: HopperTile | None, problem: Problem) -> float:
    """The Hopper kernel."""
    if problem.gpu is None or tile is None:
        return float("inf")
    phases = hopper_phases(problem)
    traffic = problem.bytes / (HOPPER_BANDWIDTH * gpu_scale(problem))
    woven = is_woven(problem) and problem.stride > 1
    split, weights = _rows_are_split(problem), problem.weight_elements
    before = _presplit_cost(problem) if tile.presplit else 0.0
    whole, problem = problem, hopper_phase(problem)
    assert problem.gpu is not None
    waves = wave_count(tile, problem, problem.gpu)
    costs = HOPPER["split" if tile.presplit else problem.mode]
    walk = hopper_walk(tile, whole, waves >= 4)
    if walk is None:
        return float("inf")
    size = problem.dtype.itemsize
    products = tile.m_tiles * tile.n * HOPPER_PRODUCTS[problem.mode]
    conflicts = _lanes_of_bank(problem) - 1
    shares = hopper_shares(tile, problem, walk)
    of_share = ceil_div(walk.slices, shares)
    taps, slices = of_share * walk.taps, of_share * walk.parts
    # Warpgroups share the tensor cores, which small products fill less, and more of them have their
    # instructions done sooner.
    crowd = 1 + costs.crowd * (tile.warpgroups - 2)
    read = costs.step + costs.wide * (tile.m_tiles - 1) + costs.conflict * conflicts
    read += costs.apart * (problem.stride > 1 or problem.aligned < 4)
    step = larger(
        products * costs.column * (tile.warpgroups / 2) ** 1.1,
        read * (1 + READ_CROWD * (crowd - 1)),
    )
    time = taps * walk.words / 8 * step + slices * costs.slice
    # The way of woven outputs takes twice as many instructions.
    out = tile.m_tiles * 128 * costs.output * (1 + woven) + costs.row * split
    time += tile.channels * out * crowd
    channels = problem.channels_in // problem.groups
    folded = walk.taps < problem.kernel_size
    missing = 0.0 if folded else 1 - channels / (walk.slices * walk.rows)
    time += walk.windows * costs.ragged * missing
    if problem.aligned < 16 and problem.kernel_size > 1:
        time += slices * costs.clear / ceil_div(problem.length_out, 64 * tile.m_tiles)
    copied = slices * walk.copied * walk.rows * size
    if not walk.resident:
        time += taps * costs.tap
        copied += taps * walk.words * tile.channels * 4 * HOPPER_PLANES[problem.mode]
    if not walk.ahead:
        time *= 1 + costs.alternating
    time = waves * larger(time, copied * costs.byte) / 1e3
    if shares > 1:
        sums = shares * block_count(tile, problem) * tile.channels * tile.positions * 4
        time += SHARE_START + 2 * sums / SHARE_BANDWIDTH
    # Weights that are scaled are read once more.
    time += (3 if problem.mode == "ieee" else 2) * weights * size / PACK_BANDWIDTH[size]
    narrow = costs.narrow + costs.split * split
    # Phases that are not woven write parts of the same sectors.
    time = larger(time, traffic * (1 + narrow * (tile.m_tiles == 1)))
    time = phases * (costs.start + time) + before
    if problem.mode != "ieee":
        time *= HOPPER_TILE[tile.channels, tile.positions][size]
        if folded:
            time *= HOPPER_FOLDED.get((tile.channels, tile.positions), 1.12)
    return time


def larger(one: float, other: float) -> float:
    """The larger of two times that overlap, and some more where both are long."""
    return float((one**4 + other**4) ** 0.25)


def fma_why_not(problem: Problem) -> str | None:
    """What keeps a problem from all kernels on FMA units but the direct one."""
    if problem.gpu is None:
        return "needs a CUDA device"
    if problem.gpu.capability < (8, 0):
        return f"needs compute capability 8.0, this GPU has {problem.gpu.capability}"
    if problem.mode == "fp64":
        return "has no fp64 arithmetic"
    return None


def sliding_why_not(problem: Problem) -> str | None:
    """Windows that slide along rows, on FMA units."""
    if reason := fma_why_not(problem):
        return reason
    if problem.transposed and problem.stride > 1:
        if problem.stride not in SLIDING_STRIDES:
            return f"has transposed strides of 1 and {SLIDING_STRIDES}, not {problem.stride}"
        if not problem.has_neighbours:
            return f"has no transposed strides with a dilation, this one is {problem.dilation}"
    rows = problem.batch * problem.channels_out
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach, rows)
    if max(*sizes, 8 * problem.stride) >= MOST_SLIDING:
        return f"counts rows, steps and positions of padded rows below {MOST_SLIDING}"
    if rows * ceil_div(problem.length_out, 256) >= MOST_BATCH:
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


def sliding(problem: Problem) -> float:
    """Windows that slide along rows, on FMA units."""
    if problem.mode == "fp64":
        return float("inf")
    if _is_in_order(problem):
        time, traffic = _in_order_time(problem), problem.bytes / DEPTHWISE_BANDWIDTH
    else:
        time, traffic = _sliding_time(problem), problem.bytes / SLIDING_BANDWIDTH
        if problem.channels_in == problem.groups and problem.kernel_size > SLIDING_UNROLLED:
            time += problem.batch * problem.channels_out * SLIDING_LOOP[problem.dtype.itemsize]
    return LAUNCH + larger(traffic, time) / gpu_scale(problem)


def _is_in_order(problem: Problem) -> bool:
    """Whether csrc/depthwise.cuh computes what the sliding plan stands for."""
    several = problem.channels_in > problem.groups
    woven = problem.transposed and problem.stride > 1
    taps = (problem.kernel_size - 1) // problem.stride + 2 if woven else problem.kernel_size
    if taps > (DEPTHWISE_FEW_TAPS if woven or several else DEPTHWISE_TAPS):
        return False
    if problem.stride > (1 if several or not problem.has_neighbours else 2):
        return False
    if not several:
        return problem.channels_out < SLIDING_MANY * problem.groups
    rows = problem.batch * problem.channels_out
    threads = rows * ceil_div(problem.length_out * problem.dtype.itemsize, 32)
    return (
        problem.channels_out == 1
        and problem.channels_in <= DEPTHWISE_CHANNELS
        and problem.has_neighbours
        and threads >= DEPTHWISE_THREADS * MULTIPROCESSORS * gpu_scale(problem)
    )


def _in_order_time(problem: Problem) -> float:
    """µs that csrc/depthwise.cuh takes where memory has all in time."""
    woven = problem.transposed and problem.stride > 1
    taps = min(problem.kernel_size / (problem.stride if woven else 1), problem.length)
    taps *= DEPTHWISE_WOVEN if woven else 1 if problem.has_neighbours else DEPTHWISE_APART
    products = problem.output_elements * (problem.channels_in // problem.groups)
    time = products * (DEPTHWISE_OUTPUT + taps * DEPTHWISE_TAP)
    return time * (SLIDING_16_BIT if problem.dtype.itemsize == 2 else 1.0)


def _sliding_time(problem: Problem) -> float:
    """µs that the sliding kernel takes where memory has all in time."""
    channels_in = problem.channels_in // problem.groups
    # Taps that an output sees, most of which may see padding.
    taps = problem.kernel_size / (problem.stride if problem.transposed else 1)
    taps = min(taps, problem.length)
    # Rows that share what is read.
    wide = channels_in <= SLIDING_CHAIN and _sliding_rows(problem) > 1
    if (
        not problem.transposed
        and problem.stride > (2 if problem.has_neighbours else 1)
        and not wide
    ):
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


def toeplitz_why_not(problem: Problem) -> str | None:
    """Long depthwise kernels, as products of Toeplitz matrices."""
    if reason := fma_why_not(problem):
        return reason
    if problem.channels_in != problem.groups:
        return f"takes one input channel a group, not {problem.channels_in // problem.groups}"
    if problem.stride > 1 or not problem.has_neighbours:
        return f"takes neighbours, not a stride of {problem.stride}, dilation {problem.dilation}"
    rows = problem.batch * problem.channels_out
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach, rows)
    if max(sizes) >= MOST_SLIDING:
        return f"counts rows and positions of padded rows below {MOST_SLIDING}"
    if rows * (ceil_div(problem.length_out, STRETCH) + 1) >= MOST_BATCH:
        return f"has fewer than {MOST_BATCH} blocks"
    return None


def toeplitz(problem: Problem) -> float:
    """Long depthwise kernels, as products of Toeplitz matrices."""
    # A warp has some stretches of each of some batches, and multiplies what these see but padding,
    # and a line more, since a kernel's first and last tap begin and end within one.
    if problem.mode == "fp64":
        return float("inf")
    size = problem.dtype.itemsize
    stretches = ceil_div(problem.length_out, STRETCH)
    tiles = min(
        ceil_div(problem.batch, batches) * ceil_div(stretches, STRETCHES // batches)
        for batches in (16, 8, 4, 2, 1)
    )
    seen = min(problem.length, problem.length_out) * problem.kernel_size
    lines = 1 + seen / (max(problem.length_out, 1) * STRETCH)
    time = problem.channels_out * tiles * lines * TOEPLITZ_LINE[problem.mode] / MULTIPROCESSORS
    # Each output channel reads its input.
    elements = problem.channels_out // problem.groups * problem.input_elements
    traffic = (elements + problem.output_elements) * size / TOEPLITZ_BANDWIDTH[problem.mode]
    return TOEPLITZ_START + larger(traffic, time) / gpu_scale(problem)


def explicit_why_not(
    tile: ProductTile | None, problem: Problem, *, gradient: bool = False
) -> str | None:
    """The product written out, or that of the gradient of the weight."""
    if reason := wgmma_why_not(tile, problem):
        return reason
    product, size = Product.of(problem, gradient=gradient), problem.dtype.itemsize
    if product.line * size % 16:
        return (
            f"copies rows of the weight that are multiples of 16 bytes, not {product.line * size}"
        )
    if gradient and product.columns % 2:
        return f"writes pairs of channels and taps, not {product.columns}"
    slice_depth = 128 // size
    if product.turned and problem.groups > 1 and product.depth % slice_depth:
        return f"takes groups of {slice_depth} channels or a multiple, not {product.depth}"
    if product.turned and problem.stride > MOST_EXPLICIT_STRIDE:
        return f"weaves strides up to {MOST_EXPLICIT_STRIDE}, this one is {problem.stride}"
    padded = max(problem.length, problem.length_out) + 2 * problem.padding + problem.reach
    if padded * problem.stride >= MOST_LENGTH:
        return f"counts steps of padded rows below {MOST_LENGTH}"
    assert tile is not None
    _, _, splits, packed = product.split(tile, problem)
    of_row = ceil_div(product.columns, tile.columns) * tile.columns
    bytes_needed = packed + 4 * splits * problem.groups * product.rows * of_row
    if problem.output_elements >= MOST_BATCH:
        return f"counts fewer than {MOST_BATCH} outputs"
    if bytes_needed > MOST_EXPLICIT_BYTES:
        return f"writes out up to {MOST_EXPLICIT_BYTES} bytes, not {bytes_needed}"
    return None


def explicit(tile: ProductTile | None, problem: Problem, *, gradient: bool = False) -> float:
    """The product written out, or that of the gradient of the weight."""
    if problem.gpu is None or tile is None:
        return float("inf")
    size, scale = problem.dtype.itemsize, gpu_scale(problem)
    product = Product.of(problem, gradient=gradient)
    waves, slices, splits, packed = product.split(tile, problem)
    slice_time = EXPLICIT_SLICE[tile.rows, tile.columns][size]
    weights = problem.weight_elements * size / HOPPER_BANDWIDTH / scale
    time = larger(waves * (slices * slice_time + EXPLICIT_WAVE), weights)
    elements = problem.input_elements + (1 + gradient) * problem.output_elements
    time += (2 * packed + elements * size) / EXPLICIT_COLUMNS / scale
    if not gradient or splits > 1:
        sums = 4 * splits * problem.groups * product.rows * product.columns
        # Neighbouring residues are read together, whether there are so many or not.
        idle = 4 / min(problem.stride, 4) if product.turned else 1.0
        time += (1 + idle) * sums / EXPLICIT_PARTS / scale
    return EXPLICIT_START + time


def _kn2row_blocks(problem: Problem) -> dict[int, tuple[int, int]]:
    """Warps, and blocks of a multiprocessor, by tiles of 16 rows: `Kn2rowShape`."""
    return KN2ROW_SPLIT_BLOCKS if problem.mode == "ieee" else KN2ROW_BLOCKS


def _kn2row_shape(problem: Problem) -> tuple[int, int]:
    """Tiles of 16 rows that the products of an output channel take; those of all of a group's."""
    tiles = ceil_div(problem.kernel_size, 16)
    channels_out = problem.channels_out // problem.groups
    return tiles, tiles * ceil_div(channels_out, 16 * tiles // problem.kernel_size)


def _kn2row_time(problem: Problem) -> float | None:
    """µs that the kn2row kernel takes, or None if it cannot: `Kn2rowWork` of csrc/kn2row.cuh."""
    assert problem.gpu is not None
    stretch, tiles = _kn2row_shape(problem)
    of_tiles = _kn2row_blocks(problem)
    tiles = next((count for count in of_tiles if count >= tiles), 0)
    if not tiles:
        return None
    warps, blocks = of_tiles[tiles]
    size, reach = problem.dtype.itemsize, problem.reach - 1
    kinds = max(1, 4 * size // problem.aligned)  # of rows, by how they begin modulo 4 values
    of_step = 32 // size
    steps = ceil_div(ceil_div(problem.channels_in // problem.groups, kinds), of_step)
    shared = next((most for least, most in SLIDING_SHARED if problem.gpu.capability >= least), 0)
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
        turns = ceil_div(rows * ceil_div(problem.length_out, outputs), at_once)
        of_tile = ceil_div(problem.length_out, max(1, turns * at_once // rows))
        of_tile = min(outputs, max(ceil_div(outputs, 2), of_tile))
        columns = (of_tile - 1) * problem.stride + reach + 1
        if problem.transposed:
            columns = (of_tile - 1 + reach) // problem.stride + 1
        windows = parts * ceil_div(columns + 8, KN2ROW_WINDOW)
        instructions = KN2ROW_OUTPUT[0] + parts * (KN2ROW_OUTPUT[1] + KN2ROW_OUTPUT[2] * seen)
        step = KN2ROW_STEP[tiles] * (KN2ROW_SPLIT if problem.mode == "ieee" else 1)
        busy = KN2ROW_OWN + step * windows * ceil_div(steps, parts // kinds)
        busy += channels_out * of_tile * instructions // 128
        time = turns * (KN2ROW_TILE + resident * busy) / KN2ROW_CLOCK
        times.append(time + KN2ROW_WEIGHT * kinds * steps * tiles * 4 / warps)
    return min(times, default=None)


def kn2row_why_not(problem: Problem) -> str | None:
    """Products of all taps and positions, added up where outputs see them."""
    if reason := fma_why_not(problem):
        return reason
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach)
    if max(sizes) >= MOST_SLIDING or problem.stride >= KN2ROW_STRIDE:
        return (
            f"counts positions of padded rows below {MOST_SLIDING}, strides below {KN2ROW_STRIDE}"
        )
    if problem.batch * problem.length_out >= MOST_BATCH:
        return f"has fewer than {MOST_BATCH} tiles"
    if problem.groups >= KN2ROW_GROUPS:
        return f"has fewer than {KN2ROW_GROUPS} groups, not {problem.groups}"
    rows, most = 16 * _kn2row_shape(problem)[1], 16 * max(_kn2row_blocks(problem))
    if rows > most:
        return f"takes {most} pairs of an output channel and a tap, not {rows}"
    if _kn2row_time(problem) is None:
        return "keeps all weights and a window that no tap leaves in shared memory"
    return None


def kn2row(problem: Problem) -> float:
    """Products of all taps and positions, added up where outputs see them."""
    if problem.gpu is None or problem.mode == "fp64":
        return float("inf")
    time = _kn2row_time(problem)
    if time is None:
        return float("inf")
    return LAUNCH + larger(problem.bytes / (KN2ROW_BANDWIDTH * gpu_scale(problem)), time)


def direct_why_not(problem: Problem) -> str | None:
    """The plain kernels, of convolutions and of gradients, which run everything."""
    if problem.gpu is None:
        return "needs a CUDA device"
    return None


def direct(problem: Problem) -> float:
    """The plain kernel: one thread, one output."""
    # Neighbouring threads are of different phases: all take the time of that with the most taps.
    elements = problem.input_elements + problem.output_elements
    every = problem.stride // gcd(problem.stride, problem.dilation) if problem.transposed else 1
    taps = ceil_div(problem.kernel_size, every)
    flops = 2 * problem.output_elements * (problem.channels_in // problem.groups) * taps
    arithmetic = flops / DIRECT_RATE
    return LAUNCH + max(elements / DIRECT_MEMORY, arithmetic) / gpu_scale(problem)


def im2col(problem: Problem) -> float:
    """Columns written out, and a product of cuBLAS."""
    # Columns are written and read again; the bias is a pass of its own, unless the columns of a
    # transposed convolution are summed up with it. Those of 16-bit types have 32 bits.
    itemsize = problem.dtype.itemsize
    if problem.transposed:
        columns = problem.batch * problem.channels_out * problem.kernel_size * problem.length
        bias, column_bytes = 0, max(itemsize, 4)
    else:
        columns = problem.batch * problem.channels_in * problem.kernel_size * problem.length_out
        bias, column_bytes = int(problem.bias), itemsize
    passes = 2 * columns * column_bytes + 2 * bias * problem.output_elements * itemsize
    time = (problem.bytes + passes) / BANDWIDTH + problem.flops / ATEN_RATE[problem.mode]
    return (2 + bias) * LAUNCH + time / gpu_scale(problem)


def aten(problem: Problem) -> float:
    """torch's own convolution."""
    # cuDNN's dense kernels want NHWC, so input and output change layout; the bias is a pass too.
    # Depthwise layers go to a kernel of ATen's own, without either.
    assert problem.gpu is not None
    elements = problem.input_elements + problem.output_elements
    if problem.groups == problem.channels_in and problem.groups > 1:
        arithmetic = problem.flops / ATEN_DEPTHWISE_RATE
        return LAUNCH + max(elements / ATEN_DEPTHWISE, arithmetic) / gpu_scale(problem)
    rate = ATEN_RATE[problem.mode] * (ATEN_GROUPED if problem.groups > 1 else 1.0)
    rate *= ATEN_TRANSPOSED[problem.mode] if problem.transposed else 1.0
    # Few positions leave multiprocessors idle, however deep the reduction is.
    tiles = ceil_div(problem.batch * problem.length_out, ATEN_TILE)
    tiles *= ceil_div(problem.channels_out, ATEN_TILE)
    rate *= min(1.0, max(1, tiles) / problem.gpu.multiprocessors)
    if problem.dtype.itemsize > 2:
        elements += problem.weight_elements  # which changes its own, too
    layout = elements / ATEN_LAYOUT[problem.dtype.itemsize]
    channels = problem.channels_in // problem.groups
    if channels < ATEN_FEW_CHANNELS and problem.dtype.itemsize == 4:
        layout /= 2
    time = max(problem.bytes / BANDWIDTH, problem.flops / rate) + layout
    time += problem.bias * problem.output_elements / ATEN_BIAS
    time = ATEN_START + problem.bias * LAUNCH + time / gpu_scale(problem)
    rounded = problem.mode in ROUNDED and channels >= ATEN_FEW_CHANNELS
    return time * (ATEN_RAGGED if rounded and channels * problem.dtype.itemsize % 16 else 1.0)
