"""What plans for the weight's gradient can run on a GPU, and what they take: as in `gpu_costs`."""

from __future__ import annotations

from math import gcd

from fastconv1d import gpu_costs
from fastconv1d.gpu_costs import (
    KN2ROW_CLOCK,
    LAUNCH,
    MOST_BATCH,
    MOST_LENGTH,
    MOST_SLIDING,
    MOST_STRIDE,
    MULTIPROCESSORS,
    STRETCH,
    STRETCHES,
    TOEPLITZ_BANDWIDTH,
    TOEPLITZ_LINE,
    gpu_scale,
    larger,
)
from fastconv1d.problem import Problem
from fastconv1d.tiles import (
    ROUNDED,
    GradHopperTile,
    GradTile,
    GradTurnedTile,
    ProductTile,
    ceil_div,
)

# Measured on an H100 but for the Hopper kernel, the product written out and torch's.
GRAD_DENSE_START = 26.0  # µs: both kernels, and what a block does before its first slice
GRAD_SLICE = {  # ns that a slice of a tile takes, by rows, columns and mode
    (128, 192): {"tf32": 2022},
    (128, 96): {"tf32": 2004, "ieee": 1969, "bf16": 2300, "fp16": 2300},
    (64, 96): {"tf32": 1500, "ieee": 1544, "bf16": 1670, "fp16": 1670},
    (128, 32): {"tf32": 1224, "ieee": 1618, "bf16": 1603, "fp16": 1603},
    (16, 256): {"tf32": 1375, "ieee": 1375, "bf16": 2022, "fp16": 2022},
}
MOST_BOX_POSITIONS = 256  # kMostBoxPositions of csrc/grad_boxes.cuh
# That the Hopper kernel walks, by size: its rows fit boxes.
MOST_GRAD_STRIDE = {2: 3, 4: 8}
# What it takes, measured on an H200: µs of a slice, by channels and pairs, in TF32 and in 16 bits,
# which has twice as many positions in one.
GRAD_HOPPER_SLICE = {
    (128, 256): {4: 0.816, 2: 1.14},
    (128, 192): {4: 0.73, 2: 0.99},
    (128, 128): {4: 0.662, 2: 0.85},
    (64, 256): {4: 0.618, 2: 0.833},
    (64, 192): {4: 0.485, 2: 0.634},
}
# Times as long where it adds up a bias; where taps are so far apart that each has a row; where rows
# of either tensor begin at odd values, as far as a bucket's length can tell.
GRAD_HOPPER_BIAS, GRAD_HOPPER_APART = {4: 1.11, 2: 1.06}, {4: 2.2, 2: 2.1}
GRAD_HOPPER_ODD = {4: 1.28, 2: 1.45}
# Of fp32 rows that come as products read them: where taps have rows of their own; where a block has
# one tap of several, so that L2 is asked for the same rows by as many blocks.
GRAD_HOPPER_DIRECT_APART, GRAD_HOPPER_ONE_TAP = 1.3, 1.25
GRAD_HOPPER_INNERMOST = 4  # taps: `pairs_of` of csrc/grad_hopper.cuh
GRAD_BIAS_APART = 512  # pairs of a group: kBiasApart there
# Where it adds up no bias and rows of grad_output come as products read them, as far as a bucket's
# length can tell, by channels and pairs; what 16-bit rows with a bias take so is in the above.
GRAD_HOPPER_DIRECT = {(128, 256): 0.937, (128, 192): 0.802, (128, 128): 0.796}
GRAD_HOPPER_SHARED = 223 << 10  # bytes of shared memory for stages
GRAD_HOPPER_START, GRAD_HOPPER_WAVE = 13.4, 4.9  # µs: both kernels; a block's start and its end
GRAD_HOPPER_BANDWIDTH = 3.36e6  # bytes per µs that it reads
# What a kernel takes that adds up the bias alone: µs more than without it, and bytes per µs.
GRAD_BIAS_START, GRAD_BIAS_BANDWIDTH = 0.5, 3.5e6
GRAD_COPY_BANDWIDTH = 3.1e6  # bytes per µs in which rows are copied to where they begin at 16 bytes
GRAD_BLOCK_SLICES = 12  # slices' time that a block's start takes: splits_of in csrc/grad_tile.cuh
# Times as long with a stride, and where rows have few slices and taps share little of what is read.
GRAD_STRIDED, GRAD_SHORT = 1.18, 1.5
GRAD_FEW_SLICES = 8
GRAD_EXPLICIT = {4: (10.6, 0.836), 2: (6.0, 0.92)}  # µs more than the product, times its share
MOST_TURNED_STRIDE = 3  # of 64 positions in a box
# The kernel that turns the input, measured on an H200: its start, and that of a wave, µs; cycles of
# a slice beside what `_turned_form` counts; how many of these there are in a µs; times as long with
# a stride, where a row's first and last slice are many, where taps have rows of their own, and
# where kinds of rows are read for one tap.
GRAD_TURNED_START, GRAD_TURNED_WAVE, GRAD_TURNED_SLICE, GRAD_TURNED_CLOCK = 8.0, 11.0, 220, 1.8e3
GRAD_TURNED_STRIDED, GRAD_TURNED_ENDS = 1.35, 5.0
GRAD_TURNED_APART, GRAD_TURNED_KINDS = 1.8, 1.35
GRAD_TURNED_LEAST = 500  # cycles of a slice: kTurnedSlice of csrc/grad_turned.cuh
GRAD_TURNED_SHARED = 225 << 10  # bytes of shared memory for stages
GRAD_PARTS_BANDWIDTH = 2.7e6  # bytes per µs in which parts are written and added up
GRAD_WORKSPACE = 64 << 20  # bytes of parts: kGradWorkspace of csrc/grad_tile.cuh
GRAD_BANDWIDTH = 2.3e6  # bytes per µs that the dense kernel reads
GRAD_SLIDING_START, GRAD_SLIDING_BANDWIDTH = 9.0, 2.9e6
GRAD_SLIDING = (0.6e-6, 0.18e-6)  # µs for each position of a pair of channels, and for each tap
GRAD_SLIDING_LONG = 0.092e-6  # for each tap, where there are many
GRAD_SLIDING_APART = (3.9e-6, 0.86e-6)  # for each tap that is read by itself: a share of it, and it
GRAD_SLIDING_WINDOWS = (0.5e-6, 0.4e-6)  # a depthwise layer's position; each of its taps apart
GRAD_TOEPLITZ_START = 14.0  # µs
GRAD_TOEPLITZ_COPY = 4  # lines' time in which a row's are copied
# Taps of which the long kernel has more: kLongKernel of csrc/grad_sliding.cuh.
GRAD_LONG_KERNEL = 32
# Taps with which it computes the input's gradient as well, of neighbours and where they are apart:
# kMostTaps and kMostTapsApart there.
GRAD_MOST_TAPS, GRAD_MOST_TAPS_APART = 16, 8
# kMostGradPairs and kMostGradWindows of csrc/grad_kn2row.cuh.
MOST_GRAD_PAIRS, GRAD_KN2ROW_WINDOWS = 32, 48 << 10
GRAD_KN2ROW_START, GRAD_KN2ROW_BANDWIDTH = 15.0, 3.4e6  # µs, and bytes per µs that it reads
# Cycles of a multiprocessor that a warp's step takes, by tiles of 16 pairs; not measured for ieee.
# More than alone where memory is all that it waits for: the input's gradient runs beside it.
GRAD_KN2ROW_STEP = {
    "tf32": {1: 308, 2: 355},
    "ieee": {1: 400, 2: 560},
    "bf16": {1: 250, 2: 380},
    "fp16": {1: 250, 2: 380},
}
GRAD_DIRECT_RATE = 0.3e6  # FLOP per µs
GRAD_ATEN_START = 30.0  # µs
GRAD_ATEN_RATE = {"tf32": 155e6, "ieee": 36e6, "bf16": 670e6, "fp16": 670e6, "fp64": 10e6}
GRAD_ATEN_GROUPED = {2: 0.13, 4: 0.75, 8: 0.75}  # share of that rate with groups, by size
GRAD_ATEN_DILATED = {2: 0.5, 4: 1.0, 8: 1.0}  # and with taps apart
GRAD_ATEN_LAYOUT = {2: 0.62e6, 4: 0.46e6, 8: 0.4e6}  # elements per µs that change their layout
GRAD_ATEN_WEIGHTS = {2: 0.3e6, 4: 0.5e6, 8: 0.5e6}  # likewise, of the gradient
GRAD_ATEN_FILLED = 64  # rows and columns below which cuDNN's tiles are partly empty
GRAD_ATEN_DEPTHWISE_RATE = 1e6  # FLOP per µs


def dense_why_not(tile: GradTile | None, problem: Problem) -> str | None:
    """Tensor cores from sm_80 on."""
    if reason := gpu_costs.dense_why_not(tile, problem):
        return reason
    if problem.dilation > MOST_STRIDE:
        return f"walks dilations up to {MOST_STRIDE}, this one is {problem.dilation}"
    return None


def _boxes_why_not(problem: Problem) -> str | None:
    """What the copy engine counts in 32 bits: positions, and rows of all batches."""
    if max(problem.length, problem.length_out) + 2 * problem.padding + problem.reach > MOST_LENGTH:
        return f"walks padded rows below {MOST_LENGTH}"
    rows = problem.batch * max(problem.channels_in, problem.channels_out)
    if rows >= MOST_BATCH - 1:
        return f"walks fewer than {MOST_BATCH - 1} rows, these are {rows}"
    return None


def hopper_why_not(tile: GradHopperTile | None, problem: Problem) -> str | None:
    """The Hopper kernel of gradients."""
    if reason := gpu_costs.wgmma_why_not(tile, problem):
        return reason
    most = MOST_GRAD_STRIDE[problem.dtype.itemsize]
    if problem.stride > most:
        return f"walks strides up to {most}, this one is {problem.stride}"
    return _boxes_why_not(problem)


def hopper(tile: GradHopperTile | None, problem: Problem) -> float:
    """The Hopper kernel of gradients."""
    if problem.gpu is None or tile is None:
        return float("inf")
    tiles = problem.groups * ceil_div(problem.channels_out // problem.groups, tile.channels)
    blocks, taps, taps_apart = _pair_blocks(tile, problem)
    if not blocks:
        return float("inf")
    tiles *= blocks
    waves, slices, splits = _split(problem, tiles, problem.gpu.multiprocessors)
    itemsize = problem.dtype.itemsize
    size = tile.channels, tile.pairs
    work = waves * slices * GRAD_HOPPER_SLICE[size][itemsize]
    row_bytes = problem.length_out * itemsize
    pairs = problem.channels_in // problem.groups * problem.kernel_size
    apart = problem.bias and pairs >= GRAD_BIAS_APART and (itemsize == 4 or row_bytes % 16 == 0)
    if problem.bias and not apart:
        work *= GRAD_HOPPER_BIAS[itemsize]
    elif row_bytes % 16 == 0:
        work *= GRAD_HOPPER_DIRECT.get(size, 1)
    # Not where neighbouring taps are rows that products read together: half of these are even.
    taps_innermost = problem.dilation == 1 and problem.kernel_size >= GRAD_HOPPER_INNERMOST
    if (row_bytes | problem.aligned) % (2 * itemsize) and not taps_innermost:
        work *= GRAD_HOPPER_ODD[itemsize]
    direct_fp32 = itemsize == 4 and row_bytes % 16 == 0 and (apart or not problem.bias)
    if taps_apart:
        work *= GRAD_HOPPER_DIRECT_APART if direct_fp32 else GRAD_HOPPER_APART[itemsize]
    elif direct_fp32 and taps == 1 < problem.kernel_size:
        work *= GRAD_HOPPER_ONE_TAP
    traffic = problem.bytes / (GRAD_HOPPER_BANDWIDTH * gpu_scale(problem))
    time = GRAD_HOPPER_START + waves * GRAD_HOPPER_WAVE + larger(work, traffic)
    return time + _parts_time(problem, splits) + (_bias_time(problem) if apart else 0.0)


def _bias_time(problem: Problem) -> float:
    """µs in which a kernel of its own adds up the bias, if there is one."""
    if not problem.bias:
        return 0.0
    read = problem.output_elements * problem.dtype.itemsize
    return GRAD_BIAS_START + read / (GRAD_BIAS_BANDWIDTH * gpu_scale(problem))


def _pair_blocks(tile: GradHopperTile, problem: Problem) -> tuple[int, int, bool]:
    """Blocks of a group's channels and taps, taps of one, and whether these have rows of their own.

    `best_pairs` of csrc/grad_hopper.cuh, roughly: three stages of the input must find room beside
    those of grad_output. No blocks where there is no way.
    """
    channels_in, kernel_size = problem.channels_in // problem.groups, problem.kernel_size
    raw = 144 * tile.channels  # bytes of a stage of grad_output as it lies in memory
    room = GRAD_HOPPER_SHARED // 3 - 2 * raw

    # Cycles of a slice: products, or what goes through shared memory, with three quarters of them.
    products = tile.pairs * tile.channels // 32
    grad_output = 2 * raw + 128 * (tile.channels + 1)
    least, best = 0.0, (0, 0, False)
    first = ceil_div(kernel_size, tile.pairs)
    # Of what costs the same, most taps.
    ways = {ceil_div(kernel_size, n) for n in range(first, kernel_size + 1)[:40]}
    for taps in sorted(ways, reverse=True):
        vectors, shared = _rows_of_input(problem, taps)
        row = vectors if shared else vectors * taps
        channels = min(channels_in, tile.pairs // taps, room // (16 * row)) if row else 0
        if channels > 0:
            of_channels = ceil_div(channels_in, channels)
            channels = ceil_div(channels_in, of_channels)
            blocks = of_channels * ceil_div(kernel_size, taps)
            traffic = (grad_output + 16 * channels * row) / 128 + products * 3 / 4
            cost = blocks * larger(products, traffic)
            if not best[0] or cost < least:
                least, best = cost, (blocks, taps, not shared and taps > 1)
    return best


def _rows_of_input(problem: Problem, taps: int, may_share: bool = True) -> tuple[int, bool]:
    """Pieces of 16 bytes of a row in which taps see a slice, and whether they share one row.

    `GradRows` of csrc/grad_boxes.cuh. No pieces where no box has so many.
    """
    vector, positions = 16 // problem.dtype.itemsize, 128 // problem.dtype.itemsize

    def vectors(reach: int) -> int:
        return ceil_div((positions - 1) * problem.stride + reach + vector, vector) | 1

    most = MOST_BOX_POSITIONS // vector
    apart, together = vectors(0), vectors((taps - 1) * problem.dilation)
    shared = may_share and together <= min(taps * apart, most)
    row = together if shared else apart
    return row if row <= most else 0, shared


def turned_why_not(tile: GradTurnedTile | None, problem: Problem) -> str | None:
    """Sixteen-bit types on Hopper GPUs, whose input is turned in shared memory."""
    if reason := gpu_costs.wgmma_why_not(tile, problem):
        return reason
    if problem.stride > MOST_TURNED_STRIDE:
        return f"walks strides up to {MOST_TURNED_STRIDE}, this one is {problem.stride}"
    if reason := _boxes_why_not(problem):
        return reason
    if tile and not _turned_form(tile, problem)[0]:
        return "has no room in shared memory for rows of so many positions"
    return None


def turned(tile: GradTurnedTile | None, problem: Problem) -> float:
    """Sixteen-bit types on Hopper GPUs, whose input is turned in shared memory."""
    if problem.gpu is None or tile is None:
        return float("inf")
    blocks, cycles, apart = _turned_form(tile, problem)
    if not blocks:
        return float("inf")
    tiles = problem.groups * ceil_div(problem.channels_out // problem.groups, tile.outs) * blocks
    waves, slices, splits = _split(problem, tiles, problem.gpu.multiprocessors)
    work = waves * slices * (cycles + GRAD_TURNED_SLICE) / GRAD_TURNED_CLOCK
    work *= 1 + min(1.0, GRAD_TURNED_ENDS / _slices_of_row(problem))
    if problem.stride > 1:
        work *= GRAD_TURNED_STRIDED
    if apart:
        work *= GRAD_TURNED_APART
    if problem.kernel_size == 1 and problem.aligned < 16:
        work *= GRAD_TURNED_KINDS
    traffic = problem.bytes / (GRAD_HOPPER_BANDWIDTH * gpu_scale(problem))
    time = GRAD_TURNED_START + waves * GRAD_TURNED_WAVE + larger(work, traffic)
    if _turned_kinds(tile, problem)[1]:
        copied = 2 * problem.input_elements * problem.dtype.itemsize
        time += LAUNCH + copied / (GRAD_COPY_BANDWIDTH * gpu_scale(problem))
    return time + _parts_time(problem, splits)


def _turned_form(tile: GradTurnedTile, problem: Problem) -> tuple[int, float, bool]:
    """Blocks of a group's channels and taps, cycles of a slice, and whether taps have own rows.

    `cut` of csrc/grad_turned.cuh. No blocks where there is no way.
    """
    channels_in, stride = problem.channels_in // problem.groups, problem.stride
    (kinds, _), by_channels = _turned_kinds(tile, problem), problem.kernel_size == 1
    of_kind = tile.channels // kinds // 8 * 8  # whole groups of 8 channels of each kind of rows
    all_units = ceil_div(channels_in, tile.channels) if by_channels else problem.kernel_size
    best, least, apart_at_best = 0, 0.0, False
    most = min(all_units, tile.units(stride))
    # As many blocks as so many units leave, and no more units than these need.
    ways = {ceil_div(all_units, ceil_div(all_units, n)) for n in range(1, most + 1)}
    for units in sorted(ways, reverse=True):
        row, shared = _rows_of_input(problem, units, may_share=not by_channels)
        classes = 1 if shared else units
        of_input = classes * tile.channels * 16 * row
        rows = ceil_div((row * 8 - 1) // stride + 9, 8) * 8
        of_turned = classes * stride * ceil_div(rows * 2 * tile.channels, 1024) * 1024
        of_grads = 144 * tile.outs  # whatever the length is
        stages = 2 * of_grads + 3 * (of_input + of_turned)
        if not row or stages > GRAD_TURNED_SHARED:
            continue
        products = tile.warpgroups * ceil_div(units, tile.unit_tiles) * tile.channels * 2
        traffic = (of_grads + 3 * of_input) / 128 + tile.warpgroups * 96 + products / 2
        if by_channels:
            blocks = ceil_div(channels_in, units * tile.channels)
        else:
            channel_blocks = ceil_div(ceil_div(channels_in, kinds), of_kind)
            blocks = channel_blocks * ceil_div(problem.kernel_size, units)
        cycles = larger(GRAD_TURNED_LEAST, larger(products, traffic))
        if not best or blocks * cycles < least:
            least, best = blocks * cycles, blocks
            apart_at_best = classes > 1 and not by_channels
    return best, least / best if best else 0.0, apart_at_best


def _turned_kinds(tile: GradTurnedTile, problem: Problem) -> tuple[int, bool]:
    """Kinds of rows by how they begin, and whether rows are copied first, to be of one kind.

    They are where groups of 8 channels are fewer than kinds.
    """
    kinds = 16 // gcd(16, problem.aligned)
    copied = 8 * kinds > tile.channels
    return 1 if copied else kinds, copied


def _slices_of_row(problem: Problem) -> int:
    """Of grad_output, 32 words of positions each: `kGradWords` of csrc/grad_tile.cuh."""
    return ceil_div(problem.length_out, 64 if problem.dtype.itemsize == 2 else 32)


def _split(problem: Problem, tiles: int, at_once: int) -> tuple[int, int, int]:
    """Waves of blocks, slices of each block and splits: `splits_of` of csrc/grad_tile.cuh."""
    slices = problem.batch * _slices_of_row(problem)
    most = max(1, min(slices // 4, GRAD_WORKSPACE // (4 * _elements(problem))))
    best = (0, 0, 0)
    least = float("inf")
    for turns in (1, 2, 3, 4):
        splits = min(most, max(1, turns * at_once // tiles))
        waves, each = ceil_div(tiles * splits, at_once), ceil_div(slices, splits)
        if waves * (each + GRAD_BLOCK_SLICES) < least:
            least = waves * (each + GRAD_BLOCK_SLICES)
            best = (waves, each, splits)
    return best


def _elements(problem: Problem) -> int:
    """Of the gradients of weight and bias."""
    return problem.weight_elements + problem.channels_out


def _parts_time(problem: Problem, splits: int) -> float:
    """µs in which parts are written and added up."""
    return 8 * splits * _elements(problem) / GRAD_PARTS_BANDWIDTH


def _column_blocks(tile: GradTile, problem: Problem) -> int:
    """Blocks of columns of a group: `best_columns` of csrc/grad_dense.cuh, roughly."""
    channels_in, kernel_size = problem.channels_in // problem.groups, problem.kernel_size
    fewest = channels_in * kernel_size
    for blocks in range(ceil_div(kernel_size, tile.columns), kernel_size + 1)[:8]:
        taps = ceil_div(kernel_size, blocks)
        channels = min(channels_in, tile.columns // taps)
        if 8 < channels < channels_in:
            channels -= channels % 8
        fewest = min(fewest, ceil_div(channels_in, channels) * ceil_div(kernel_size, taps))
    return fewest


def dense(tile: GradTile | None, problem: Problem) -> float:
    """Tensor cores from sm_80 on."""
    # Blocks take turns on the slices of whole tiles; a second kernel adds up what they leave.
    if problem.gpu is None or tile is None:
        return float("inf")
    tiles = problem.groups * ceil_div(problem.channels_out // problem.groups, tile.rows)
    tiles *= _column_blocks(tile, problem)
    waves, slices, splits = _split(problem, tiles, problem.gpu.multiprocessors * tile.blocks)
    each = GRAD_SLICE[tile.rows, tile.columns][problem.mode] / 1e3
    if problem.stride > 1:
        each *= GRAD_STRIDED
    if _slices_of_row(problem) < GRAD_FEW_SLICES and problem.kernel_size < 4 * problem.stride:
        each *= GRAD_SHORT
    traffic = problem.bytes / (GRAD_BANDWIDTH * gpu_scale(problem))
    time = GRAD_DENSE_START + larger(waves * slices * each, traffic)
    return time + _parts_time(problem, splits)


def toeplitz_why_not(problem: Problem) -> str | None:
    """Long kernels of groups with one input channel, as products of Toeplitz matrices."""
    if problem.gpu and problem.mode == "ieee":
        return "has no ieee arithmetic"
    return gpu_costs.toeplitz_why_not(problem)


def toeplitz(problem: Problem) -> float:
    """Long kernels of groups with one input channel, as products of Toeplitz matrices."""
    # A warp multiplies lines of the shorter row of a batch by 16 stretches of taps.
    if problem.gpu is None or problem.mode not in ROUNDED:
        return float("inf")
    lines = ceil_div(STRETCH - 1 + min(problem.length, problem.length_out), STRETCH)
    tiles = ceil_div(problem.kernel_size, STRETCHES * STRETCH)
    items = problem.channels_out * tiles * problem.batch
    time = items * (lines + GRAD_TOEPLITZ_COPY) * TOEPLITZ_LINE[problem.mode] / MULTIPROCESSORS
    traffic = tiles * problem.bytes / TOEPLITZ_BANDWIDTH[problem.mode]
    return GRAD_TOEPLITZ_START + larger(traffic, time) / gpu_scale(problem)


def sliding_why_not(problem: Problem) -> str | None:
    """Groups of few channels, on FMA units."""
    if reason := gpu_costs.fma_why_not(problem):
        return reason
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach)
    if max(*sizes, problem.batch, 128 * problem.stride) >= MOST_SLIDING:
        return f"counts batches, steps and positions of padded rows below {MOST_SLIDING}"
    if problem.weight_elements >= MOST_BATCH:
        return f"has fewer than {MOST_BATCH} blocks"
    return None


def _pairs(problem: Problem) -> int:
    """Pairs of an output channel and an input channel of its group."""
    return problem.channels_out * (problem.channels_in // problem.groups)


def sliding(problem: Problem) -> float:
    """Groups of few channels, on FMA units."""
    traffic = problem.bytes / GRAD_SLIDING_BANDWIDTH
    return GRAD_SLIDING_START + larger(traffic, _sliding_time(problem)) / gpu_scale(problem)


def _sliding_time(problem: Problem) -> float:
    """µs that the sliding kernel of gradients takes where memory has all in time."""
    # Each pair of channels reads its rows again, mostly from L2.
    positions = problem.batch * problem.length_out * _pairs(problem)
    taps, neighbours = problem.kernel_size, problem.has_neighbours
    of_position, of_tap = GRAD_SLIDING
    if neighbours and problem.stride == 1 and taps > GRAD_LONG_KERNEL:
        seen = min(problem.length_out, problem.length + GRAD_LONG_KERNEL)
        time = positions / problem.length_out * seen * taps * GRAD_SLIDING_LONG
    elif neighbours and problem.stride <= 2:
        at_once = next(n for n in (4, 8, 16, 32) if n >= min(taps, 32 // problem.stride))
        time = positions * ceil_div(taps, at_once) * (of_position + at_once * of_tap)
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
    neighbours = problem.has_neighbours
    few = problem.kernel_size <= (GRAD_MOST_TAPS if neighbours else GRAD_MOST_TAPS_APART)
    counted = problem.batch * problem.channels_out < MOST_SLIDING
    return depthwise and problem.stride == 1 and few and counted and not problem.transposed


def _few_in(problem: Problem) -> bool:
    """Whether the kn2row kernel reads grad_output once: `grad_kn2row_has_few_in` of csrc."""
    channels_in = problem.channels_in // problem.groups
    channels_out = problem.channels_out // problem.groups
    fewer = channels_in <= channels_out or problem.stride > 1
    other = channels_out * problem.kernel_size <= MOST_GRAD_PAIRS
    return channels_in * problem.kernel_size <= MOST_GRAD_PAIRS and (fewer or not other)


def kn2row_why_not(problem: Problem) -> str | None:
    """Groups with few pairs of a channel and a tap, as products of these by the others' rows."""
    if reason := gpu_costs.fma_why_not(problem):
        return reason
    few_in = _few_in(problem)
    few = problem.channels_in if few_in else problem.channels_out
    pairs = few // problem.groups * problem.kernel_size
    if pairs > MOST_GRAD_PAIRS:
        return f"has up to {MOST_GRAD_PAIRS} pairs of a channel and a tap, these are {pairs}"
    if not few_in and problem.stride > 1:
        return f"has no strides where output channels are few, this one is {problem.stride}"
    if _kn2row_windows(problem, 128) > GRAD_KN2ROW_WINDOWS:
        return "keeps what a step sees in shared memory, which this kernel's reach and stride leave"
    sizes = (problem.length + 2 * problem.padding, problem.length_out, problem.reach)
    channels = problem.batch, problem.channels_in, problem.channels_out
    if max(*sizes, *channels) >= MOST_SLIDING:
        return f"counts batches, channels and positions of padded rows below {MOST_SLIDING}"
    rows = max(1, problem.batch) * (problem.channels_in + problem.channels_out)
    if rows * max(problem.length, problem.length_out) >= MOST_BATCH * 32:
        return f"has tensors of fewer than {MOST_BATCH * 32} elements"
    return None


def _kn2row_windows(problem: Problem, row_bytes: int) -> int:
    """Bytes of shared memory that windows take of a step of so many bytes of a row, at most.

    Two for each of four warps: `GradKn2rowWork` of csrc/grad_kn2row.cuh.
    """
    few = problem.channels_in if _few_in(problem) else problem.channels_out
    size = problem.dtype.itemsize
    columns = (row_bytes + 16) // size + 1 + (problem.reach - 1) // problem.stride
    words = problem.stride * (ceil_div(columns * size, 4) | 1)
    return 32 * few // problem.groups * words


def kn2row(problem: Problem) -> float:
    """Groups with few pairs of a channel and a tap, as products of these by the others' rows."""
    if problem.gpu is None or problem.mode not in GRAD_KN2ROW_STEP:
        return float("inf")
    few_in = _few_in(problem)
    small, large = problem.channels_in, problem.channels_out
    length, size = problem.length_out, problem.dtype.itemsize
    if not few_in:
        small, large, length = large, small, problem.length
    aligned = gcd(16, length * size) if few_in else problem.aligned
    kinds = min(large // problem.groups, 16 // aligned)
    of_kind = ceil_div(large // problem.groups, kinds)
    tiles = ceil_div(small // problem.groups * problem.kernel_size, 16)
    # Rows of a warp, and bytes of each in a step: `GradKn2rowShape` of csrc/grad_kn2row.cuh.
    most = 16 if problem.mode == "ieee" else 32
    rows, row_bytes = most, 128
    for fewer in (8, 16):
        longer = 128 if problem.mode == "ieee" else 4096 // fewer
        fits = _kn2row_windows(problem, longer) <= GRAD_KN2ROW_WINDOWS
        if tiles == 1 and of_kind <= fewer < most and fits:
            rows, row_bytes = fewer, longer
            break
    steps = problem.batch * ceil_div(length * size + 15, row_bytes)
    of_step = GRAD_KN2ROW_STEP[problem.mode].get(tiles, float("inf"))
    cycles = problem.groups * kinds * ceil_div(of_kind, rows) * steps * of_step
    time = cycles / (MULTIPROCESSORS * KN2ROW_CLOCK)
    traffic = problem.bytes / GRAD_KN2ROW_BANDWIDTH
    return GRAD_KN2ROW_START + larger(traffic, time) / gpu_scale(problem)


def explicit_why_not(tile: ProductTile | None, problem: Problem) -> str | None:
    """The product written out."""
    return gpu_costs.explicit_why_not(tile, problem, gradient=True)


def explicit(tile: ProductTile | None, problem: Problem) -> float:
    """The product written out."""
    if tile is None:
        return float("inf")
    start, share = GRAD_EXPLICIT[problem.dtype.itemsize]
    time = start + share * gpu_costs.explicit(tile, problem, gradient=True)
    return time + _bias_time(problem)


def direct(problem: Problem) -> float:
    """The plain kernel: one block for each element."""
    return LAUNCH + problem.flops / (GRAD_DIRECT_RATE * gpu_scale(problem))


def aten(problem: Problem) -> float:
    """torch's own gradient."""
    # cuDNN changes the layout of both tensors, and few channels leave its tiles empty; ATen's own
    # depthwise kernel adds up products one by one.
    elements = problem.input_elements + problem.output_elements
    of_bias = _bias_time(problem)  # our own kernel adds it up
    if problem.groups == problem.channels_in and problem.groups > 1:
        time = problem.flops / GRAD_ATEN_DEPTHWISE_RATE
        return GRAD_ATEN_START / 3 + time / gpu_scale(problem) + of_bias
    rows = problem.channels_out // problem.groups
    columns = problem.channels_in // problem.groups * problem.kernel_size
    filled = min(1.0, rows / GRAD_ATEN_FILLED) * min(1.0, columns / GRAD_ATEN_FILLED)
    rate = GRAD_ATEN_RATE[problem.mode] * max(filled, 0.05)
    if problem.groups > 1:
        rate *= GRAD_ATEN_GROUPED[problem.dtype.itemsize]
    if problem.dilation > 1:
        rate *= GRAD_ATEN_DILATED[problem.dtype.itemsize]
    time = problem.flops / rate + elements / GRAD_ATEN_LAYOUT[problem.dtype.itemsize]
    time += _elements(problem) / GRAD_ATEN_WEIGHTS[problem.dtype.itemsize]
    return GRAD_ATEN_START + time / gpu_scale(problem) + of_bias
