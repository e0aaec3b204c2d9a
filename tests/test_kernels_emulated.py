"""The CUDA kernels, unmodified, on the CPU: right in every shape, free of races and overruns."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastconv1d import gpu_costs, grad_costs, plan, tiles
from fastconv1d.build import CSRC
from fastconv1d.compare import draw
from fastconv1d.config import MODES
from fastconv1d.problem import Problem
from kernel_runs import (
    CORNERS,
    DEPTHWISE,
    EMULATION,
    EVERYTHING,
    EXPLICIT,
    FEW,
    FEW_PAIRS,
    FEW_TAPS,
    FOLDED,
    HOPPER,
    IN_CI,
    KN2ROW,
    LONG,
    NARROW,
    SHARED_BYTES,
    SPLIT,
    TAPS_OF_LONG_ROWS,
    TOEPLITZ,
    TRANSPOSED,
    UNFOLDED,
    Outcome,
    Run,
    columns_runs,
    corner_runs,
    encode,
    execute,
    grad_bias_runs,
    grad_depthwise_runs,
    grad_kn2row_runs,
    grad_sliding_runs,
    grad_toeplitz_runs,
    gradient_runs,
    harness,
    has_turn,
    kn2row_runs,
    library_runs,
    on_family,
    on_plan,
    random_runs,
    shared_runs,
    sliding_mode,
    toeplitz_runs,
    with_few_tiles,
    with_tiles,
)
from random_problems import CONTIGUOUS_ROWS, laid_out

COMPILE = ("g++", "-std=c++20", "-DFASTCONV1D_EMULATE", "-Wno-attributes", f"-I{EMULATION}")
SANITIZERS = {  # what optimizes more takes longer to compile than it saves
    "plain": ("-O1",),
    "address": ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-O1", "-g1", "-fsanitize=thread"),
}

# ThreadSanitizer of gcc before 14 finds no room where the kernel scatters mappings widely.
ENTROPY = Path("/proc/sys/vm/mmap_rnd_bits")
WITHOUT_ASLR = ["setarch", "-R"] if ENTROPY.exists() and int(ENTROPY.read_text()) > 28 else []

Build = Callable[..., list[str | Path]]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile a source text with the emulation, each once a session; the command that runs it."""
    folder = tmp_path_factory.mktemp("emulated")
    built: dict[tuple[str, str, Path], Path] = {}

    def compile(source: str, sanitizer: str = "plain", csrc: Path = CSRC) -> list[str | Path]:
        key = source, sanitizer, csrc
        if key not in built:
            program = folder / str(len(built))
            command = [*COMPILE, *SANITIZERS[sanitizer], f"-I{csrc}", "-x", "c++", "-"]
            process = subprocess.run(
                [*command, "-o", program], input=source, capture_output=True, text=True
            )
            assert process.returncode == 0, process.stderr
            built[key] = program
        return [*WITHOUT_ASLR, built[key]]

    return compile


def outcome(command: list[str | Path], runs: list[Run], folder: Path) -> Outcome:
    return execute(command, runs, folder, {"TSAN_OPTIONS": "halt_on_error=1"})


def assert_right(command: list[str | Path], runs: list[Run], folder: Path) -> None:
    result = outcome(command, runs, folder)
    assert not result.complaints, "\n".join([*result.complaints, result.log])
    assert result.returncode == 0, result.log


def group(library: str) -> pytest.MarkDecorator:
    """The mark of tests that run in one process, which compiles a library once for them."""
    return pytest.mark.xdist_group(library)


def without_twins(*names: str) -> list[str]:
    """Modes or libraries; in CI none of fp16, which are bf16's but for conversions."""
    return [name for name in names if not (IN_CI and name.endswith("fp16"))]


def grouped(*libraries: str) -> list[Any]:
    """Libraries as parameters, each in its group."""
    return [pytest.param(library, marks=group(library)) for library in without_twins(*libraries)]


TESTED = {  # the tiles of each library that are compiled and run
    f"{family}_{mode}": [
        variant
        for variant, _ in enumerate(plan.tile_rows(family, mode))
        # fp16 is bf16 with other conversions, the same in gradients.
        if mode != "fp16" or variant % (6 if IN_CI else 3) == 0
        if mode != "fp16" or not (IN_CI and family.startswith("grad"))
        if has_turn(mode, variant)
    ]
    for family in plan.TENSOR_CORE_FAMILIES
    for mode in plan.TENSOR_CORE_MODES
}
TILES = [
    pytest.param(*library.rsplit("_", 1), variant, marks=group(library))
    for library, variants in TESTED.items()
    for variant in variants
]
NAMED = {
    "hopper": {3},
    "grad_dense": {1, 3},
    "grad_hopper": {1, 3},
    "grad_turned": {0, 1},
    "grad_explicit": {1},
}
"""Tiles that tests take for what is no tile's matter."""


def with_tested_tiles(library: str, runs: list[Run]) -> tuple[str, list[Run]]:
    """The harness with all tiles of a library that tests run, compiled once, and runs of these."""
    family, mode = library.rsplit("_", 1)
    named = set() if mode == "fp16" else NAMED.get(family, set())
    there = set(range(len(plan.tile_rows(family, mode))))
    return with_tiles(library, {*TESTED[library], *named} & there, runs)


# Rows of the input that begin at 16 bytes, as tiles of few channels are for: several channel blocks
# and groups; strides, whose taps see other residues; taps apart, some of which see padding alone;
# one tap and more channels than a tile has; the last slice a part; biases.
WHOLE_PIECES = (
    Problem(2, 24, 20, 256, 11, padding=5, bias=True),
    Problem(3, 70, 33, 136, 3, padding=2, groups=1),
    Problem(2, 48, 70, 128, 8, dilation=3, groups=2, bias=True),
    Problem(2, 25, 18, 272, 4, stride=2, padding=1),
    Problem(1, 9, 20, 264, 7, stride=3),
    Problem(2, 20, 9, 152, 7, padding=300, dilation=100),
    Problem(2, 300, 70, 200, 1, bias=True),
    Problem(1, 40, 140, 80, 1, stride=2),
    Problem(2, 13, 8, 64, 2),
    Problem(3, 24, 3, 768, 11, stride=3, padding=15, dilation=3, groups=3, bias=True),
    Problem(1, 9, 20, 40, 1, dilation=1200),
)


@pytest.mark.parametrize(("family", "mode", "variant"), TILES)
def test_tiles(build: Build, tmp_path: Path, family: str, mode: str, variant: int) -> None:
    # Tiles take turns on the corners: what these are about is seldom a tile's.
    runs = corner_runs(EVERYTHING[variant % 3 :: 3], mode, variant) + random_runs(6, mode, variant)
    runs = [replace(run, rounded=mode == "tf32") for run in runs]
    if family == "hopper":
        folded = corner_runs(list(FOLDED.values())[variant % 2 :: 2], mode, variant)
        runs += [*shared_runs(mode, variant), *folded]
    if family.endswith("explicit"):
        few = list(EXPLICIT.values())
        runs += corner_runs(few[-variant % 3 :: 3] if IN_CI else few, mode, variant)
        split = corner_runs(SPLIT.values(), mode, variant)
        runs += [replace(run, multiprocessors=132) for run in split]
    if family == "grad_turned":
        runs += [
            replace(run, infinite=infinite)
            for infinite in (False, True)
            for run in corner_runs(WHOLE_PIECES, mode, variant)
            if not (infinite and run.problem.padding)
        ]
    if family.startswith("grad"):
        runs = gradient_runs(runs)
    runs = on_family(family, runs)
    assert len(runs) >= 8
    source, runs = with_tested_tiles(f"{family}_{mode}", runs)
    assert_right(build(source), runs, tmp_path)


@pytest.mark.parametrize(
    "library",
    grouped(
        "grad_dense_tf32",
        "grad_dense_ieee",
        "grad_dense_bf16",
        "grad_hopper_tf32",
        "grad_hopper_bf16",
        "grad_turned_bf16",
        "grad_explicit_tf32",
        "grad_explicit_bf16",
    ),
)
def test_infinity_reaches_dense_gradients_that_see_it_alone(
    build: Build, tmp_path: Path, library: str
) -> None:
    """Positions that grad_output does not have meet no product, whatever the input has there."""
    names = (
        "several tiles and slices",
        "runs of whole tiles",
        "stride 3, dilation 4",
        "stride beyond the kernel",
    )
    family, mode = library.rsplit("_", 1)
    runs = gradient_runs(corner_runs([CORNERS[name] for name in names], mode, 1))
    runs = [replace(run, infinite=True) for run in runs]
    runs = on_family(family, runs)
    source, runs = with_tested_tiles(library, runs)
    assert_right(build(source), runs, tmp_path)


# Rows of grad_output that begin at 16 bytes, where those of the input do not: more channels than a
# tile has, groups, batches, the last slice a part.
ALIGNED_GRADIENTS = (
    Problem(3, 18, 140, 135, 2, padding=1, groups=2),
    Problem(2, 20, 150, 273, 5, stride=2, padding=1),
)


@pytest.mark.parametrize(
    "library", grouped("grad_hopper_tf32", "grad_hopper_bf16", "grad_turned_bf16")
)
def test_rows_that_come_as_products_read_them(build: Build, tmp_path: Path, library: str) -> None:
    family, mode = library.rsplit("_", 1)
    variant = min(TESTED[library])
    # What padding is multiplied by must be finite.
    seen_alone = [
        replace(problem, length=problem.length + 2, padding=0) for problem in ALIGNED_GRADIENTS
    ]
    runs = corner_runs(seen_alone, mode, variant)
    runs = [replace(run, infinite=True) for run in runs]
    runs += corner_runs(ALIGNED_GRADIENTS, mode, variant)
    biased = [replace(run, problem=replace(run.problem, bias=True)) for run in runs]
    runs = on_family(family, gradient_runs([*runs, *biased]))
    assert len(runs) >= 6
    source, runs = with_tested_tiles(library, runs)
    assert_right(build(source), runs, tmp_path)


# Several taps and channels of a block, of which the last blocks have a part on NAMED tiles, and
# several kinds of rows; grad_output made ready, and as products read it. They have so many pairs
# that the bias is added up apart where it may be; the last one's in parts of other numbers than the
# weight's.
NEIGHBOURING_TAPS = (
    Problem(2, 26, 20, 171, 71, padding=3, groups=2),
    Problem(1, 13, 20, 170, 71, padding=2),
)
BIAS_IN_PARTS = Problem(2, 520, 4, 4200, 1, bias=True)


@pytest.mark.parametrize(
    "library", grouped("grad_hopper_tf32", "grad_hopper_bf16", "grad_turned_bf16")
)
def test_taps_that_are_neighbours(build: Build, tmp_path: Path, library: str) -> None:
    family, mode = library.rsplit("_", 1)
    runs = [
        run
        for variant in {*TESTED[library], max(NAMED[family])}
        for run in corner_runs(NEIGHBOURING_TAPS, mode, variant)
    ]
    biased = [replace(run, problem=replace(run.problem, bias=True)) for run in runs]
    parts = corner_runs([BIAS_IN_PARTS], mode, min(TESTED[library]))
    parts = [replace(run, multiprocessors=132) for run in parts]
    runs = on_family(family, gradient_runs([*runs, *biased, *parts]))
    source, runs = with_tested_tiles(library, runs)
    assert_right(build(source), runs, tmp_path)


# Taps far apart, some of which see padding alone for whole slices, before rows and behind them:
# grad_output made ready, and as products read it; rows that begin within 16 bytes; short rows, the
# last of which some slices do not see at all; with a bias.
TAPS_BESIDE_ROWS = (
    Problem(2, 5, 20, 150, 3, padding=200, dilation=100),
    Problem(2, 10, 20, 152, 3, padding=200, dilation=100, groups=2),
    Problem(3, 6, 9, 151, 4, stride=2, padding=300, dilation=101),
    Problem(2, 3, 5, 40, 3, padding=400, dilation=400),
    Problem(1, 5, 20, 40, 2, padding=300, dilation=400),
    Problem(2, 5, 20, 152, 3, padding=200, dilation=100, bias=True),
)


@pytest.mark.parametrize(
    "library", grouped("grad_hopper_tf32", "grad_hopper_bf16", "grad_turned_bf16")
)
def test_taps_that_see_padding_alone(build: Build, tmp_path: Path, library: str) -> None:
    family, mode = library.rsplit("_", 1)
    runs = [
        run for variant in TESTED[library] for run in corner_runs(TAPS_BESIDE_ROWS, mode, variant)
    ]
    runs = on_family(family, gradient_runs(runs))
    source, runs = with_tested_tiles(library, runs)
    assert_right(build(source), runs, tmp_path)


# More positions than sums of products may have, of one part, twice.
A_CHAIN = Run(
    Problem(1, 1, 3, 70_001, 2, bias=True, mode="bf16"), 4, gradient=True, multiprocessors=1
)


@pytest.mark.parametrize(
    "library",
    grouped("grad_dense_bf16", "grad_hopper_bf16", "grad_hopper_tf32", "grad_turned_bf16"),
)
def test_a_chain_of_products_ends(build: Build, tmp_path: Path, library: str) -> None:
    family, mode = library.rsplit("_", 1)
    variant = max(NAMED[family])
    run = replace(A_CHAIN, problem=replace(A_CHAIN.problem, mode=mode), variant=variant)
    source, runs = with_tested_tiles(library, [run])
    assert_right(build(source), runs, tmp_path)


@pytest.mark.parametrize("mode", plan.TENSOR_CORE_MODES)
def test_blocks_share_what_is_said_to_be_shared(mode: str) -> None:
    for variant, row in enumerate(plan.tile_rows("hopper", mode)):
        tile = row.tiles[mode]
        assert isinstance(tile, tiles.HopperTile)
        for run in on_family("hopper", shared_runs(mode, variant)):
            problem = tiles.hopper_phase(replace(run.problem, gpu=HOPPER))
            walk = tiles.hopper_walk(tile, problem)
            assert walk is not None and tiles.hopper_shares(tile, problem, walk) > 1


SPREAD = [
    Run(problem, variant, integers=False, spread=True, layout=layout)
    for layout in ("contiguous", "batch_inside")
    for variant, _ in enumerate(plan.tile_rows("hopper", "ieee"))
    for problem in (
        Problem(2, 70, 20, 275, 3, padding=1, bias=True, mode="ieee"),
        Problem(1, 40, 70, 300, 1, mode="ieee"),
        Problem(1, 33, 9, 280, 5, stride=2, dilation=3, mode="ieee"),
        Problem(1, 80, 6, 150, 2, groups=2, dilation=130, padding=70, mode="ieee"),
        Problem(1, 40, 5, 150, 4, stride=2, padding=1, transposed=True, mode="ieee"),
    )
]


@group("hopper_ieee")
def test_fp32_values_of_all_sizes(build: Build, tmp_path: Path) -> None:
    """Values far below the largest of a tile count as they do in fp32: Halves scales them apart."""
    aligned_otherwise = Problem(1, 32, 64, 133, 1, mode="ieee")
    few = [
        Run(aligned_otherwise, 0, layout="sliced", integers=False, gap=3e38),
        Run(aligned_otherwise, 1, layout="batch_inside", integers=False, gap=3e38),
        Run(aligned_otherwise, 2, integers=False, scales=(2.0**-130, 2.0**60)),
        Run(aligned_otherwise, 0, integers=False, scales=(2.0**100, 2.0**-120)),
        Run(aligned_otherwise, 3, layout="batch_inside", integers=False, gap=3e38),
        Run(aligned_otherwise, 4, integers=False, scales=(2.0**-130, 2.0**60)),
        Run(aligned_otherwise, 5, integers=False, scales=(2.0**100, 2.0**-120)),
    ]
    few += [
        Run(problem, variant, integers=False, far=True)
        for variant, _ in enumerate(plan.tile_rows("hopper", "ieee"))
        for problem in (
            Problem(2, 40, 20, 300, 1, padding=63, mode="ieee"),
            Problem(1, 80, 6, 300, 2, groups=2, dilation=3, padding=63, mode="ieee"),
        )
    ]
    tested = [run for run in (*SPREAD, *few) if run.variant in TESTED["hopper_ieee"]]
    source, runs = with_tested_tiles("hopper_ieee", on_family("hopper", tested))
    assert_right(build(source), runs, tmp_path)


@group("explicit_ieee")
def test_fp32_values_of_all_sizes_written_out(build: Build, tmp_path: Path) -> None:
    """From where low parts begin to be subnormal up to what TF32 would round to infinity."""
    names = "groups", "transposed, groups of a slice"
    problems = [replace(EXPLICIT[name], mode="ieee", bias=False) for name in names]
    largest = [float(draw(p, torch.device("cpu"), 0)[0].abs().max()) for p in problems]
    runs = [
        run
        for variant in TESTED["explicit_ieee"]
        for problem, most in zip(problems, largest, strict=True)
        for run in (
            Run(problem, variant, integers=False, spread=True),
            Run(problem, variant, integers=False, scales=(2.0**-100, 2.0**60)),
            Run(problem, variant, integers=False, scales=(2.0**100, 2.0**-100)),
            Run(problem, variant, integers=False, scales=(2.0**-130, 2.0**4)),
            Run(problem, variant, integers=False, scales=(3.4028e38 / most, 2.0**-10)),
        )
    ]
    source, runs = with_tested_tiles("explicit_ieee", on_family("explicit", runs))
    assert len(runs) == 10 * len(TESTED["explicit_ieee"])
    assert_right(build(source), runs, tmp_path)


@pytest.mark.parametrize("library", grouped("explicit_tf32", "explicit_ieee", "explicit_bf16"))
def test_infinity_reaches_what_sees_it_written_out(
    build: Build, tmp_path: Path, library: str
) -> None:
    family, mode = library.rsplit("_", 1)
    variant = min(TESTED[library])
    runs = corner_runs([*EXPLICIT.values(), *SPLIT.values()], mode, variant)
    runs = on_family(family, [replace(run, infinite=True) for run in runs])
    assert len(runs) > 8
    source, runs = with_tested_tiles(library, runs)
    assert_right(build(source), runs, tmp_path)


@group("direct")
@pytest.mark.parametrize("mode", MODES)
def test_direct(build: Build, tmp_path: Path, mode: str) -> None:
    variant = MODES.index(mode)
    runs = corner_runs(EVERYTHING, mode, variant) + random_runs(12, mode, variant)
    assert_right(build(harness("direct")), runs, tmp_path)


@pytest.mark.parametrize("library", grouped("sliding_fp32", "sliding_bf16", "sliding_fp16"))
def test_sliding(build: Build, tmp_path: Path, library: str) -> None:
    mode = sliding_mode(library)
    problems = [*NARROW.values(), *FEW_TAPS.values(), *UNFOLDED.values(), *EVERYTHING]
    problems += DEPTHWISE.values()
    runs = corner_runs(problems, mode, 0) + random_runs(40, mode, 0, narrow=True)
    runs = on_plan("sliding", runs)
    assert len(runs) > 110
    assert_right(build(harness(library)), runs, tmp_path)


@pytest.mark.parametrize("mode", without_twins("tf32", "ieee", "bf16", "fp16"))
def test_toeplitz(build: Build, tmp_path: Path, mode: str) -> None:
    runs = toeplitz_runs(TOEPLITZ.values(), mode)
    runs += on_plan("toeplitz", random_runs(300, mode, 0, narrow=True))
    runs = [replace(run, rounded=mode == "tf32") for run in runs]
    assert len(runs) > 30
    # A product of a zero and what no tap sees would be a NaN.
    plain = toeplitz_runs(TOEPLITZ.values(), mode)
    runs += [replace(run, infinite=True) for run in plain]
    if mode in ("tf32", "ieee"):
        runs += [replace(run, nan=True) for run in plain]
    assert_right(build(harness(f"toeplitz_{mode}")), runs, tmp_path)


@pytest.mark.parametrize("mode", without_twins("tf32", "bf16", "fp16"))
def test_gradients_of_long_kernels(build: Build, tmp_path: Path, mode: str) -> None:
    problems = [*TOEPLITZ.values(), *TAPS_OF_LONG_ROWS.values()]
    runs = grad_toeplitz_runs(problems, mode)
    runs += on_plan("grad_toeplitz", gradient_runs(random_runs(300, mode, 0, narrow=True)))
    runs = [replace(run, rounded=mode == "tf32") for run in runs]
    assert len(runs) > 30
    # What sees an infinity must not be one that a zero of T meets.
    runs += [replace(run, infinite=True) for run in grad_toeplitz_runs(problems, mode)]
    assert_right(build(harness(f"grad_toeplitz_{mode}")), runs, tmp_path)


@pytest.mark.parametrize("mode", without_twins("tf32", "ieee", "bf16", "fp16"))
def test_kn2row(build: Build, tmp_path: Path, mode: str) -> None:
    runs = kn2row_runs(KN2ROW.values(), mode)
    few = [  # however rows begin
        run
        for run in random_runs(60, mode, 0)
        if on_plan("kn2row", [replace(run, problem=replace(run.problem, row_alignment=2))])
    ]
    assert len(few) > 25
    runs += [replace(r, shared_bytes=SHARED_BYTES["sm_90"], multiprocessors=5) for r in few]
    runs = [replace(run, rounded=mode == "tf32") for run in runs]
    # Columns of what a row has beside it meet products, but no sum.
    runs += [replace(run, infinite=True) for run in kn2row_runs(list(KN2ROW.values())[::3], mode)]
    if mode == "ieee":  # what TF32 would round to infinity
        few = kn2row_runs([KN2ROW["to one channel, even rows"]], mode)
        most = max(float(draw(run.problem, "cpu", 0)[0].abs().max()) for run in few)
        runs += [
            replace(run, integers=False, seed=0, scales=(3.4028e38 / most, 2.0**-10)) for run in few
        ]
    assert_right(build(harness(f"kn2row_{mode}")), runs, tmp_path)


@pytest.mark.parametrize("mode", without_twins("tf32", "ieee", "bf16", "fp16"))
def test_gradients_of_few_pairs(build: Build, tmp_path: Path, mode: str) -> None:
    runs = grad_kn2row_runs(FEW_PAIRS.values(), mode)
    assert len(runs) == len(FEW_PAIRS)
    random = gradient_runs(random_runs(300, mode, 0, narrow=True))
    random = on_plan("grad_kn2row", random)[:40]
    assert len(random) == 40
    # What no pair sees must not be multiplied by the zero in its place.
    infinite = [replace(run, infinite=True) for run in runs]
    if mode == "tf32":  # nor what would be infinite when rounded
        few = gradient_runs([Run(Problem(2, 20, 1, 3, 3, padding=1, mode=mode), 0, integers=False)])
        most = float(draw(few[0].problem, torch.device("cpu"), 0)[0].abs().max())
        infinite += [replace(run, scales=(3.4028e38 / most, 2.0**-10)) for run in few]
    runs = [replace(run, rounded=mode == "tf32") for run in [*runs, *random]]
    assert_right(build(harness(f"grad_kn2row_{mode}")), [*runs, *infinite], tmp_path)


def test_kn2row_has_the_blocks_that_its_costs_count(build: Build) -> None:
    expected = {
        **{("Tf32", tiles): blocks for tiles, blocks in gpu_costs.KN2ROW_BLOCKS.items()},
        **{("Ieee", tiles): blocks for tiles, blocks in gpu_costs.KN2ROW_SPLIT_BLOCKS.items()},
    }
    prints = "".join(
        f'std::printf("%d %d\\n", fastconv1d::Kn2rowShape<fastconv1d::{mode}, {tiles}>::warps, '
        f"fastconv1d::Kn2rowShape<fastconv1d::{mode}, {tiles}>::blocks);\n"
        for mode, tiles in expected
    )
    source = f'#include <cstdio>\n#include "kn2row.cuh"\nint main() {{\n{prints}}}\n'
    lines = subprocess.run(build(source), capture_output=True, text=True, check=True).stdout
    found = [tuple(map(int, line.split())) for line in lines.splitlines()]
    assert found == list(expected.values())


@pytest.mark.parametrize(
    "library", grouped("grad_sliding_fp32", "grad_sliding_bf16", "grad_sliding_fp16")
)
def test_gradients_of_few_channels(build: Build, tmp_path: Path, library: str) -> None:
    mode = sliding_mode(library)
    problems = [*NARROW.values(), *UNFOLDED.values(), *LONG.values(), *CORNERS.values()]
    # Whatever the table says of wide groups, they come out right.
    problems = [p for p in problems if p.channels_out * p.channels_in // p.groups < 500]
    runs = grad_sliding_runs(problems, mode)
    runs += gradient_runs(random_runs(40, mode, 0, narrow=True))
    runs += [replace(run, integers=False) for run in grad_sliding_runs(LONG.values(), mode)]
    assert_right(build(harness(library)), runs, tmp_path)


@pytest.mark.parametrize("library", grouped("grad_sliding_fp32", "grad_sliding_bf16"))
def test_infinity_reaches_gradients_that_see_it_alone(
    build: Build, tmp_path: Path, library: str
) -> None:
    mode = sliding_mode(library)
    runs = grad_sliding_runs([*NARROW.values(), *UNFOLDED.values(), *LONG.values()], mode)
    runs = [replace(run, infinite=True) for run in runs]
    assert_right(build(harness(library)), runs, tmp_path)


@group("grad_direct")
@pytest.mark.parametrize("mode", ["ieee", "bf16"])
def test_infinity_reaches_plain_gradients_that_see_it_alone(
    build: Build, tmp_path: Path, mode: str
) -> None:
    runs = grad_sliding_runs([*NARROW.values(), *UNFOLDED.values(), *LONG.values()], mode)[::4]
    runs = [replace(run, infinite=True, variant=MODES.index(mode)) for run in runs]
    assert_right(build(harness("grad_direct")), runs, tmp_path)


@pytest.mark.parametrize(
    "library", grouped("grad_sliding_fp32", "grad_sliding_bf16", "grad_sliding_fp16")
)
def test_all_gradients_of_depthwise_layers_in_one_pass(
    build: Build, tmp_path: Path, library: str
) -> None:
    mode = sliding_mode(library)
    runs = grad_depthwise_runs(DEPTHWISE.values(), mode)
    runs = [
        replace(run, layout=layout, integers=integers, multiprocessors=multiprocessors)
        for number, run in enumerate(runs)
        for layout, integers, multiprocessors in (
            (run.layout, True, run.multiprocessors),
            (
                CONTIGUOUS_ROWS[(number + 1) % len(CONTIGUOUS_ROWS)],
                False,
                133 - run.multiprocessors,
            ),
        )
    ]
    assert len(runs) == 2 * len(DEPTHWISE)
    runs += [replace(run, infinite=True) for run in runs[::2]]
    # Blocks share long rows that begin as those of their gradient do.
    runs += [replace(run, layout="contiguous") for run in runs[::2] if run.problem.length > 7000]
    # Where taps are apart the same kernel serves the weight alone.
    runs += [replace(run, with_input=False) for run in runs[::2] if run.problem.dilation > 1]
    assert_right(build(harness(library)), runs, tmp_path)


@group("grad_sliding_bf16")
def test_taps_as_far_apart_as_numbers_of_32_bits_allow(build: Build, tmp_path: Path) -> None:
    """No tap sees anything, a padded row is more than a reference has memory for."""
    problem = Problem(
        1, 2, 2, 10, 2, padding=200_000_000, dilation=400_000_000, groups=2, mode="bf16"
    )
    run = Run(problem, 0, gradient=True, with_input=True, guard=0)
    assert grad_costs.has_one_pass(problem)
    assert grad_costs.sliding_why_not(replace(problem, gpu=HOPPER)) is None
    infinite, ones = torch.full(problem.input_shape, float("inf")), torch.ones
    tensors = infinite, ones(problem.output_shape), ones(problem.weight_shape)
    input, grad_output, weight = (tensor.bfloat16() for tensor in tensors)
    input = laid_out(input, "sliced")  # the kernel of more taps than there are
    files = tmp_path / "problem", tmp_path / "result"
    files[0].write_bytes(encode(run, input, grad_output, None, weight))
    command = [*build(harness("grad_sliding_bf16"), "address"), *files]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    gradients = problem.weight_elements + problem.input_elements
    assert files[1].read_bytes() == bytes(8 + 2 * gradients)


@group("grad_direct")
@pytest.mark.parametrize("mode", MODES)
def test_plain_gradients(build: Build, tmp_path: Path, mode: str) -> None:
    variant = MODES.index(mode)
    few = [
        p for p in EVERYTHING if p.channels_out * p.channels_in // p.groups * p.kernel_size < 5e3
    ]
    runs = gradient_runs(corner_runs(few, mode, variant) + random_runs(8, mode, variant))
    assert_right(build(harness("grad_direct")), runs, tmp_path)


@group("grad_bias")
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_a_bias_alone(build: Build, tmp_path: Path, mode: str) -> None:
    variant = MODES.index(mode)
    few = [p for p in EVERYTHING if p.output_elements < 1e5]
    runs = grad_bias_runs(corner_runs(few, mode, variant) + random_runs(8, mode, variant))
    # Channels are shared out, and rows, which begin within pieces, have parts; fewer shares than
    # were wanted are as full.
    long = [Problem(3, 2, 2, 9001, 3, padding=1), Problem(5, 2, 2, 3501, 3, padding=1)]
    many = [replace(run, multiprocessors=132) for run in corner_runs(long, mode, variant)]
    assert_right(build(harness("grad_bias")), runs + grad_bias_runs(many), tmp_path)


@pytest.mark.parametrize("library", grouped("sliding_fp32", "sliding_bf16"))
def test_infinity_reaches_what_sees_it_alone(build: Build, tmp_path: Path, library: str) -> None:
    """No weight that is not there meets it as a zero."""
    mode = sliding_mode(library)
    problems = [*NARROW.values(), *FEW_TAPS.values(), *UNFOLDED.values()]
    runs = [
        replace(run, infinite=True) for run in on_plan("sliding", corner_runs(problems, mode, 0))
    ]
    assert_right(build(harness(library)), runs, tmp_path)


@pytest.mark.parametrize("library", grouped("hopper_tf32", "hopper_bf16"))
def test_infinity_reaches_what_sees_it_where_taps_are_words(
    build: Build, tmp_path: Path, library: str
) -> None:
    mode = library.rsplit("_", 1)[1]
    runs = [replace(run, infinite=True) for run in corner_runs(FOLDED.values(), mode, 3)]
    runs = on_family("hopper", runs)
    tile = plan.tile_rows("hopper", mode)[3].tiles[mode]
    assert isinstance(tile, tiles.HopperTile)
    walks = [tiles.hopper_walk(tile, run.problem) for run in runs]
    assert all(walk and walk.taps == 1 for walk in walks)
    assert len(walks) == len(FOLDED)
    source, runs = with_tested_tiles(library, runs)
    assert_right(build(source), runs, tmp_path)


@group("im2col")
@pytest.mark.parametrize("mode", ["bf16", "fp16", "ieee", "fp64"])
def test_im2col_and_col2im(build: Build, tmp_path: Path, mode: str) -> None:
    assert_right(build(harness("im2col")), columns_runs(mode, EVERYTHING), tmp_path)


def test_fewer_rows_than_ways_to_begin(build: Build, tmp_path: Path) -> None:
    """Nothing beyond the input is read, whatever the maps of rows that do not exist say."""
    for mode in ("bf16",) if IN_CI else ("bf16", "ieee"):
        runs = corner_runs([Problem(1, 1, 1, n, 3, padding=1) for n in (139, 143)], mode, 0)
        runs = [replace(run, layout="contiguous", guard=0) for run in runs]
        source, runs = with_few_tiles(f"hopper_{mode}", runs)
        assert_right(build(source, "address"), runs, tmp_path)


# fp16 is bf16 with other conversions.
SANITIZED = [name for name in plan.kernels("90a") if not re.search("binding|fp16", name)]


@pytest.mark.parametrize(
    ("library", "sanitizer"),
    [
        (library, sanitizer)
        for number, library in enumerate(SANITIZED)
        for turn, sanitizer in enumerate(("address", "thread"))
        if not IN_CI or number % 12 == 2 + 4 * turn
    ],
)
def test_sanitized(build: Build, tmp_path: Path, library: str, sanitizer: str) -> None:
    few = FEW[::2] if library == "grad_direct" else FEW  # which takes its time
    source, runs = with_few_tiles(library, library_runs(library, few), every=3)
    assert len(runs) >= 4
    assert_right(build(source, sanitizer), runs, tmp_path)


WAIT = re.compile(
    r"__sync\w+\(\)|(?:warpgroup|threads)_sync\([^;]*\)(?=;)|copy_async_wait<\d+>\(\)|wgmma_wait<\d+>\(\)|barrier_wait\([^;]*\)(?=;)"
)
WAITS = [
    (family, header, number)
    for family, header in (
        ("hopper", "hopper_kernel"),
        ("hopper", "hopper_pack"),
        ("hopper", "output"),
        ("explicit", "product"),
        ("dense", "dense"),
        ("sliding", "sliding"),
        ("sliding", "depthwise"),
        ("toeplitz", "toeplitz"),
        ("kn2row", "kn2row"),
        ("grad_kn2row", "grad_kn2row"),
        ("grad_dense", "grad_dense"),
        ("grad_dense", "grad_sum"),
        ("grad_hopper", "grad_hopper_kernel"),
        ("grad_toeplitz", "grad_toeplitz"),
        ("grad_sliding", "grad_sliding"),
        ("grad_sliding", "grad_long"),
        ("grad_direct", "grad_direct"),
        ("grad_bias", "grad_bias"),
        ("grad_turned", "grad_turned_kernel"),
    )
    for number, _ in enumerate(WAIT.finditer((CSRC / f"{header}.cuh").read_text()))
][25 * IN_CI :: 18 if IN_CI else 1]


@pytest.mark.parametrize(("family", "header", "number"), WAITS)
def test_each_wait_is_needed(
    build: Build, tmp_path: Path, family: str, header: str, number: int
) -> None:
    """Without any one barrier or wait, results are wrong or ThreadSanitizer names the race."""
    csrc = shutil.copytree(CSRC, tmp_path / "csrc")
    source = (CSRC / f"{header}.cuh").read_text()
    wait = list(WAIT.finditer(source))[number]
    before, after = source[: wait.start()], source[wait.end() :]
    (csrc / f"{header}.cuh").write_text(before + "(void)0" + after)
    few = [CORNERS["several tiles and slices"], CORNERS["runs of whole tiles"]]
    runs = {"bf16": corner_runs(few, "bf16", 1)}
    if family == "sliding":
        names = ("depthwise, long kernel", "to one channel", "weights in turns", "batches in turns")
        few = [*(NARROW[name] for name in names), FEW_TAPS["several channels"]]
        runs["bf16"] = corner_runs(few, "bf16", 0)
    if family == "toeplitz":
        runs["bf16"] = toeplitz_runs([TOEPLITZ["few batches"]], "bf16")
    if family == "grad_toeplitz":
        few = [TAPS_OF_LONG_ROWS["rows in pieces, blocks share them"]]
        runs["bf16"] = grad_toeplitz_runs(few, "bf16")
    if family == "kn2row":
        names = ("to one channel, even rows", "to four channels")
        runs["bf16"] = kn2row_runs([KN2ROW[name] for name in names], "bf16")
    if family == "grad_kn2row":
        runs["bf16"] = [
            replace(run, layout="contiguous", multiprocessors=1)
            for run in grad_kn2row_runs(
                [FEW_PAIRS["from one channel"], FEW_PAIRS["to one channel, a warp's rows"]], "bf16"
            )
        ]
    if family == "grad_sliding":
        few = [LONG[name] for name in ("long, causal", "long, many rows", "shared by blocks")]
        runs = {"bf16": gradient_runs(corner_runs(few, "bf16", 0))}
    if family == "grad_dense":
        many_parts = corner_runs([CORNERS["long rows"]], "bf16", 1)
        runs["bf16"] += [replace(run, multiprocessors=132) for run in many_parts]
        runs = {"bf16": gradient_runs(runs["bf16"])}
    if family in ("grad_hopper", "grad_turned"):
        variant = {"grad_hopper": 4, "grad_turned": 1}[family]
        few += [CORNERS["aligned rows"], CORNERS["long rows"], CORNERS["far taps"]]
        runs = {"bf16": on_family(family, gradient_runs(corner_runs(few, "bf16", variant)))}
        runs["bf16"].append(replace(A_CHAIN, variant=variant))
    if family == "grad_direct":
        runs = {
            "bf16": gradient_runs(corner_runs([CORNERS["groups"]], "bf16", MODES.index("bf16")))
        }
    if family == "grad_bias":
        runs = {
            "bf16": grad_bias_runs(corner_runs([CORNERS["groups"]], "bf16", MODES.index("bf16")))
        }
    if family == "explicit":
        few = [EXPLICIT["tiles and slices"], *SPLIT.values()]
        # fp32-accurate products are added up in between.
        runs = {mode: on_family(family, corner_runs(few, mode, 0)) for mode in ("bf16", "ieee")}
    if family == "hopper":
        few.append(CORNERS["travelling weights"])
        runs["bf16"] += corner_runs([CORNERS["aligned rows"]], "bf16", 1)
        runs["bf16"] += corner_runs([CORNERS["travelling weights"]], "bf16", 1)
        runs["bf16"] += corner_runs([CORNERS["a group without taps"]], "bf16", 3)
        runs["bf16"] += corner_runs([TRANSPOSED["transposed, whole tiles, odd rows"]], "bf16", 1)
        without_taps = TRANSPOSED["transposed, stride beyond the kernel"]
        runs["bf16"] += corner_runs([without_taps], "bf16", 3)
        runs["ieee"] = corner_runs(few, "ieee", 1)  # adds up sums in between
        presplit = [
            variant
            for variant, row in enumerate(plan.tile_rows("hopper", "ieee"))
            if getattr(row.tiles["ieee"], "presplit", False)
        ]
        small = [run for run in SPREAD if run.variant == presplit[-1]]
        runs["ieee"] += [*SPREAD[:2], *small[:2]]
        # Values that no boxes round.
        in_rows = corner_runs(few, "tf32", 1)
        runs["tf32"] = [replace(run, layout="batch_inside") for run in in_rows]
        runs["bf16"] += corner_runs([CORNERS["travelling weights, far padding"]], "bf16", 1)
        runs["bf16"] += shared_runs("bf16", 3)[1:2]
    for mode in runs:
        for sanitizer in ("plain", "thread"):
            source, chosen = with_few_tiles(
                family if family in ("grad_direct", "grad_bias") else f"{family}_{mode}", runs[mode]
            )
            program = build(source, sanitizer, csrc)
            result = outcome(program, chosen, tmp_path)
            if result.complaints or "data race" in result.log or result.returncode != 0:
                return
    line = before.count("\n") + 1
    pytest.fail(f"nothing misses {wait[0]} in line {line} of {header}.cuh")


RIGHT = (
    "tf32",
    "bf16",
    "fp16",
    "reduction",
    "shuffles",
    "copies",
    "barriers",
    "limits",
    "conversions",
)
WRONG = {  # what each sanitizer must say of it
    "missing_barrier": {"plain": "", "address": "", "thread": "data race"},
    "missing_warp_barrier": {"plain": "", "address": "", "thread": "data race"},
    "missing_barrier_wait": {"plain": "", "address": "", "thread": ""},
    "missing_wait": {"plain": "", "address": "", "thread": ""},
    "shared_overrun": {"address": "heap-buffer-overflow"},
    "divergence": {"plain": "deadlock", "address": "deadlock", "thread": "deadlock"},
    "constant_workspace": {"plain": "another kernel", "address": "another kernel"},
}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_emulation_itself(build: Build, tmp_path: Path, sanitizer: str) -> None:
    command = build((EMULATION / "self_test.cpp").read_text(), sanitizer)
    for case in RIGHT:
        result = outcome([*command, case], [], tmp_path)
        assert result.returncode == 0, f"{case}: {result.log}"
    for case, words in WRONG.items():
        if sanitizer in words:
            result = outcome([*command, case], [], tmp_path)
            assert result.returncode != 0, f"{case} went unnoticed"
            assert words[sanitizer] in result.log, f"{case}: {result.log}"
