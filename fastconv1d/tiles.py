"""What kernels on tensor cores make of a problem: their tiles, and how they walk them.

Legality and costs are reckoned with these. Each mirrors arithmetic of csrc/, as it says.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import product
from math import gcd
from typing import Any, cast

from fastconv1d.problem import Gpu, Problem

ROUNDED = ("tf32", "bf16", "fp16")
"""Modes whose values tensor cores multiply once, rounded."""

HOPPER_VALUES = {"tf32": 1, "ieee": 2, "bf16": 2, "fp16": 2}  # of channels in a word
HOPPER_PLANES = {"tf32": 1, "ieee": 2, "bf16": 1, "fp16": 1}  # words of weights for one
HOPPER_PRODUCTS = {"tf32": 1, "ieee": 3, "bf16": 1, "fp16": 1}  # of words, for one
HOPPER_SHARED = 227 << 10  # bytes of shared memory that a block of the Hopper kernel may take
WEAVE = 16  # columns of the Hopper kernel that a transposed convolution's outputs share
MOST_BOX = 256  # positions of a box: kMostBlockPositions of csrc/schedule.h
MOST_FOLDED = (8, 128)  # channels, and values with taps, of a group whose taps are words, there
MOST_SHARES, LEAST_STEPS = 8, 192  # of tiles that blocks share: kMostShares, kLeastSteps there
PRODUCT_START, MOST_PRODUCT_SPLITS = 8, 16  # as in csrc/schedule.h
PRODUCT_BYTES = 64 << 20  # of the sums of all splits


class _Template:
    """Dataclasses whose fields are the parameters of the C++ template of their name."""

    __slots__ = ()

    @property
    def glue(self) -> str:
        """The C++ type."""
        parameters = (getattr(self, field.name) for field in fields(cast(Any, self)))
        text = ", ".join(str(value).lower() for value in parameters)
        return f"fastconv1d::{type(self).__name__}<{text}>"


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
    presplit: bool = False
    """Whether another kernel splits the input for fp32-accurate products."""
    folded: bool = False
    """Whether taps may be words for these."""

    @property
    def channels(self) -> int:
        """Output channels of one block."""
        return self.n

    @property
    def positions(self) -> int:
        """Output positions of one block."""
        return self.warpgroups * self.m_tiles * 64

    def least_words(self, mode: str) -> int:
        """Words of channels that a slice has at least: `steps_at_once` of hopper_kernel.cuh."""
        return 16 if self.m_tiles * self.n > 128 or self.m_tiles > 1 or mode == "ieee" else 32

    @property
    def room(self) -> int:
        """Registers of a thread beside its sums: `HopperTile::room` of hopper_kernel.cuh."""
        threads = 128 + 128 * self.warpgroups
        of_block = threads * (65536 // threads // 8 * 8)
        of_producers = 128 * (48 if self.warpgroups > 3 else 40)
        of_thread = (of_block - of_producers) // (128 * self.warpgroups) // 8 * 8
        return of_thread - self.m_tiles * self.n // 2

    def folds(self, mode: str) -> bool:
        """Whether taps may be words: `HopperBlock::folds` of hopper_kernel.cuh."""
        if mode == "ieee":
            return self.folded
        return self.room >= (72 if HOPPER_VALUES[mode] > 1 else 80)


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
class GradTurnedTile(_Template):
    """How warpgroups of 64 output channels and `units_each` units cover a weight's gradient.

    A unit is a tap of so many input channels, or, of one tap, further channels.
    """

    out_tiles: int
    unit_tiles: int
    channels: int
    units_each: int

    @property
    def outs(self) -> int:
        """Output channels of one block."""
        return 64 * self.out_tiles

    @property
    def pairs(self) -> int:
        """Pairs of an input channel and a tap of one block."""
        return self.unit_tiles * self.units_each * self.channels

    @property
    def warpgroups(self) -> int:
        """That multiply."""
        return self.out_tiles * self.unit_tiles

    def units(self, stride: int) -> int:
        """Units of one block: `strided_each` of csrc/grad_turned_kernel.cuh with a stride."""
        most = self.units_each if stride == 1 else min(self.units_each, 192 // self.channels)
        return self.unit_tiles * most


AnyTile = Tile | HopperTile | ProductTile | GradTile | GradHopperTile | GradTurnedTile


def ceil_div(count: int, by: int) -> int:
    """The quotient, rounded up."""
    return -(-count // by)


def phase_count(problem: Problem) -> int:
    """How many phases a convolution has: `phase_count` of csrc/phases.h."""
    return min(problem.stride, problem.length_out) if problem.transposed else 1


def block_count(tile: Tile | HopperTile, problem: Problem) -> int:
    """How many tiles a phase has, of two warpgroups each on Hopper GPUs."""
    at_once = 1
    if isinstance(tile, HopperTile):
        at_once = tile.warpgroups  # each with a tile of its own, wherever that lies
    positions = ceil_div(problem.length_out, phase_count(problem))
    # A bucket's length stands for somewhat shorter ones: a sliver of a tile does not count.
    of_tile = tile.positions // at_once
    of_row = ceil_div(max(1, positions - of_tile // 16), of_tile)
    channel_blocks = ceil_div(problem.channels_out // problem.groups, tile.channels)
    tiles = ceil_div(problem.batch * of_row, at_once)
    return problem.groups * channel_blocks * tiles


def wave_count(tile: Tile | HopperTile, problem: Problem, gpu: Gpu) -> int:
    """How often each multiprocessor computes a tile, in each phase."""
    return ceil_div(block_count(tile, problem), gpu.multiprocessors)


def _woven_taps(problem: Problem) -> int:
    """Shifts of a transposed convolution whose outputs are woven: csrc/schedule.h."""
    step = problem.dilation if problem.dilation % problem.stride == 0 else problem.stride
    return (problem.kernel_size - 1) * problem.dilation // step + 1


def is_woven(problem: Problem) -> bool:
    """Whether the Hopper kernel makes one convolution of a transposed one: `Weave` there."""
    few = problem.stride <= WEAVE and _woven_taps(problem) <= problem.kernel_size
    return problem.transposed and few


def hopper_phases(problem: Problem) -> int:
    """How many ordinary convolutions the Hopper kernel makes of one."""
    return 1 if is_woven(problem) else phase_count(problem)


def hopper_phase(problem: Problem) -> Problem:
    """The ordinary convolution that the Hopper kernel makes of a transposed one, its largest phase.

    Outputs that are woven are columns of its: `Weave` of csrc/schedule.h. Its length is that of
    all that it reads, so that no padding is left.
    """
    if not problem.transposed:
        return problem
    stride, dilation = problem.stride, problem.dilation
    if is_woven(problem):
        taps, channels = _woven_taps(problem), WEAVE // stride
        dilation = dilation // stride if dilation % stride == 0 else 1
        positions = ceil_div(problem.length_out + problem.padding % stride, stride)
        channels_out = (
            problem.groups * WEAVE * ceil_div(problem.channels_out // problem.groups, channels)
        )
    else:
        every = stride // gcd(stride, dilation)
        taps, dilation = ceil_div(problem.kernel_size, every), dilation // (stride // every)
        positions = ceil_div(problem.length_out, stride)
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
    windows: int  # of each row: of parts, or of taps that have blocks of their own
    taps: int  # that products see: one, where taps are words
    rows: int  # of the input that a slice copies, with zeros in their place
    copied: int  # positions of each
    resident: bool  # whether shared memory keeps the weights from tile to tile
    ahead: bool  # whether there is room to copy the next rows while these are read


def hopper_fixed_bytes(tile: HopperTile, mode: str) -> int:
    """Shared memory of a block beside its stages: `hopper_fixed_bytes` of hopper_kernel.cuh."""
    itemsize = 2 if mode in ("bf16", "fp16") else 4
    outputs = 2 * 16 * (tile.m_tiles * 64 * itemsize + 48)
    of_channels = (8 if mode == "ieee" else 4) * tile.channels
    return ceil_div(640 + tile.warpgroups * (of_channels + outputs), 128) * 128


def hopper_walk(tile: HopperTile, problem: Problem, many_tiles: bool = False) -> HopperWalk | None:
    """The walk of a tile, or None if nothing fits; with `many_tiles`, the weights may stay."""
    folds = tile.folds(problem.mode) and not (is_woven(problem) and problem.stride > 1)
    problem = hopper_phase(problem)
    size, taps = problem.dtype.itemsize, problem.kernel_size
    values, planes = HOPPER_VALUES[problem.mode], HOPPER_PLANES[problem.mode]
    channels = problem.channels_in // problem.groups
    kinds = 1 if tile.presplit else 16 // problem.aligned
    least = max(tile.least_words(problem.mode), 4 * kinds)
    unit = 32 // size // values // (2 if is_narrow(problem) else 1)
    even = ceil_div(ceil_div(channels, values), 16) % 2 == 0
    fixed = hopper_fixed_bytes(tile, problem.mode)

    def block(outputs: int, taps: int, folded: bool) -> int:
        """Positions of a block of so many outputs; 0 if a box cannot have them."""
        positions = (outputs - 1) * problem.stride + (taps - 1) * problem.dilation + 16 // size
        if folded:
            positions = ceil_div(positions, 128 // size) * 128 // size
        else:
            positions = ceil_div(max(positions - unit, 0), 2 * unit) * 2 * unit + unit
        return positions if positions <= MOST_BOX else 0

    of_warpgroup = tile.positions // tile.warpgroups

    def blocks(taps: int, folded: bool) -> int:
        """Positions of a tile's blocks, as few as may be; 0 if no block is large enough."""
        of_warp = (of_warpgroup, of_warpgroup // 2, of_warpgroup // 4)
        copied = (tile.positions // outputs * block(outputs, taps, folded) for outputs in of_warp)
        return min(filter(None, copied), default=0)

    if folds and taps > 1 and channels <= MOST_FOLDED[0] and channels * taps <= MOST_FOLDED[1]:
        words = 32 if channels * taps > 16 * values else tile.least_words(problem.mode)
        slices, copied = ceil_div(channels * taps, words * values), blocks(taps, True)
        rows = 1 << (channels - 1).bit_length()
        for stages, resident in product((2, 1), (True, False)):
            if not copied or (resident and not many_tiles):
                continue
            room = stages * (rows + 1) * copied * size + 8 * MOST_FOLDED[1]
            room += (slices if resident else 3) * planes * words * tile.channels * 4
            if fixed + room <= HOPPER_SHARED:
                return HopperWalk(words, slices, 1, 1, 1, rows, copied, resident, stages > 1)

    def widest(of_part: int, copied: int, stages: int, windows: int) -> HopperWalk | None:
        """The walk with so many taps in a part, for which a slice copies so many positions."""
        parts = ceil_div(taps, of_part)
        for resident, words in product((True, False), widths):
            if not copied or (resident and not many_tiles):
                continue
            rows = words * values
            slices, ahead = ceil_div(channels, rows), stages > 1
            weights = slices * parts * of_part if resident else 3
            room = stages * rows * copied * size + weights * planes * words * tile.channels * 4
            if fixed + room <= HOPPER_SHARED:
                return HopperWalk(
                    words, slices, parts, windows, taps, rows, copied, resident, ahead
                )
        return None

    widths = [32, least] if even and least < 32 else [least]
    # Taps farther apart than a tile is long have blocks of their own where all begin alike, or are
    # copied one by one, if not all together.
    of_tile = of_warpgroup * problem.stride
    apart = problem.dilation >= of_tile
    if taps > 1 and problem.dilation > of_tile and problem.dilation * size % 16 == 0:
        of_taps = tile.warpgroups * taps * block(of_warpgroup, 1, False)
        if walk := widest(taps, of_taps, 2, taps):
            return walk
    for parts in (1, taps) if apart else range(1, taps + 1):
        of_part = ceil_div(taps, parts)
        if parts > 1 and of_part == ceil_div(taps, parts - 1):
            continue
        for stages in (2, 1):
            if walk := widest(of_part, blocks(of_part, False), stages, ceil_div(taps, of_part)):
                return walk
    return None


def hopper_slices_of_share(blocks: int, slices: int, steps: int, multiprocessors: int) -> int:
    """Slices that a block takes of a tile: `slices_of_share` of csrc/schedule.h."""
    if not blocks or 2 * blocks > multiprocessors or slices * steps < LEAST_STEPS:
        return max(1, slices)
    return ceil_div(slices, min(multiprocessors // blocks, slices, MOST_SHARES))


def hopper_shares(tile: HopperTile, problem: Problem, walk: HopperWalk) -> int:
    """How many blocks share a tile of an ordinary convolution: each has some of its slices."""
    assert problem.gpu is not None
    steps = walk.taps * walk.words // 8
    blocks = block_count(tile, problem)
    of_share = hopper_slices_of_share(blocks, walk.slices, steps, problem.gpu.multiprocessors)
    return ceil_div(walk.slices, of_share)


def is_narrow(problem: Problem) -> bool:
    """Whether rows in shared memory are an odd multiple of 4 words apart, otherwise of 8."""
    few_kinds = 16 // problem.aligned <= 2
    return HOPPER_VALUES[problem.mode] == 1 and few_kinds and problem.stride % 8 == 0


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution, or the gradient of its weight, as a product; sizes are those of a group."""

    rows: int
    columns: int
    depth: int
    line: int
    """Neighbouring elements of the left matrix."""
    turned: bool = False

    @classmethod
    def of(cls, problem: Problem, *, gradient: bool = False) -> Product:
        """A problem's, or that of the gradient of its weight."""
        channels_in = problem.channels_in // problem.groups
        channels_out = problem.channels_out // problem.groups
        positions = problem.length if problem.transposed else problem.length_out
        columns, taps = problem.batch * positions, channels_in * problem.kernel_size
        if gradient:
            return cls(channels_out, taps, columns, 0)
        if problem.transposed:
            rows = channels_out * problem.kernel_size
            return cls(rows, columns, channels_in, rows, turned=True)
        return cls(channels_out, columns, taps, taps)

    def split(self, tile: ProductTile, problem: Problem) -> tuple[int, int, int, int]:
        """Waves of blocks, slices of each, splits, and bytes of the packed columns.

        `Product::cut` of csrc/product.cuh says the same.
        """
        assert problem.gpu is not None
        column_blocks = ceil_div(self.columns, tile.columns)
        tiles = problem.groups * ceil_div(self.rows, tile.rows) * column_blocks
        slices = ceil_div(self.depth * problem.dtype.itemsize, 128)
        sums = max(1, 4 * problem.groups * self.rows * self.columns)
        most = min(PRODUCT_BYTES // sums, MOST_PRODUCT_SPLITS, max(1, slices // 2))
        at_once = problem.gpu.multiprocessors

        def waves(splits: int) -> int:
            return ceil_div(tiles * splits, at_once)

        splits = min(
            range(1, max(1, most) + 1),
            key=lambda n: waves(n) * (ceil_div(slices, n) + PRODUCT_START),
        )
        planes = 2 if problem.mode == "ieee" else 1
        packed = problem.groups * column_blocks * tile.columns * slices * 128 * planes
        return waves(splits), ceil_div(slices, splits), splits, packed
