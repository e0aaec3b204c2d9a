"""Every kernel instantiation compiled by nvcc: no spills, no local memory, registers in bounds."""

from __future__ import annotations

import re
import subprocess
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

import pytest

from fastconv1d import build, plan
from kernel_runs import IN_CI, has_turn

pytestmark = pytest.mark.xdist_group("budgets")  # every library is compiled once

ARCHITECTURES = ("80", "90a", "100")
# CI's two cores compile every eighth of the tiles that they emulate (every second of ieee's, which
# have the fewest registers to spare), of kernels without tiles and of the portable ones those of
# ieee or fp32 alone, of the others those of bf16, and none of toeplitz, of ieee's product and of
# gradients one by one, which take a minute each.
LEFT_OUT = "binding"
if IN_CI:
    LEFT_OUT += "|fp16|_tf32|toeplitz|(sliding|kn2row|dense)_bf16|^explicit_ieee|grad_direct"
LIBRARIES = {n: g for n, g in plan.kernels("90a").items() if not re.search(LEFT_OUT, n)}


def tiles_of(family: str, mode: str) -> list[plan.Plan]:
    """The tiles that are compiled."""
    rows = [r for v, r in enumerate(plan.tile_rows(family, mode)) if has_turn(mode, v)]
    if not IN_CI:
        return rows
    return rows[len(rows) // 2 :: 2] if mode == "ieee" else rows[::8]


for _family, _mode in product(plan.TENSOR_CORE_FAMILIES, plan.TENSOR_CORE_MODES):
    if f"{_family}_{_mode}" in LIBRARIES:
        LIBRARIES[f"{_family}_{_mode}"] = plan.tile_glue(_family, _mode, tiles_of(_family, _mode))
STATIC_SHARED_LIMIT = 48 << 10  # bytes, on every architecture

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one instantiation."""

    name: str
    architecture: str
    stack: int
    spills: int
    registers: int
    shared: int


def kernels_in(log: str) -> list[Kernel]:
    """Every kernel in the output of `nvcc -Xptxas -v`."""
    return [
        Kernel(
            found["name"],
            found["architecture"],
            int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
            int(found["registers"]),
            int(found["shared"] or 0),
        )
        for found in ENTRY.finditer(log)
    ]


def architectures_of(library: str) -> list[str]:
    # fp16's kernels are bf16's but for conversions: one architecture tells. CI's two cores compile
    # all for the least architecture alone.
    architectures: tuple[str, ...] = ARCHITECTURES
    if library.endswith("fp16"):
        architectures = ("90a",)
    elif IN_CI:
        architectures = ("90a",) if plan.needs_hopper(library) else ("80",)
    return [a for a in architectures if library in plan.kernels(a)]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[str]]:
    """What ptxas says of each library, two compilations at a time."""
    try:
        toolkit = build.find_compiler(ARCHITECTURES[-1]).toolkit
    except build.BuildError as error:
        warnings.warn(f"no kernel was compiled: {error}", stacklevel=2)
        pytest.skip(f"no kernel was compiled: {error}")
    assert toolkit is not None
    folder = tmp_path_factory.mktemp("budgets")
    command = [
        str(toolkit.nvcc),
        *build.NVCC_FLAGS,
        f"-I{build.CSRC}",
        "-Xptxas=-v",
        "-fatbin",
    ]

    def compile(source: Path) -> str:
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures_of(source.stem)]
        process = subprocess.run(
            [*command, *codes, str(source), "-o", str(source.with_suffix(".fatbin"))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stdout
        return process.stdout

    pool = ThreadPoolExecutor(2)
    futures = {}
    for name, glue in LIBRARIES.items():
        source = folder / f"{name}.cu"
        source.write_text(glue)
        futures[name] = pool.submit(compile, source)
    pool.shutdown(wait=False)
    return futures


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_kernel_spills(logs: dict[str, Future[str]], library: str) -> None:
    kernels = kernels_in(logs[library].result())
    names = {kernel.name for kernel in kernels}
    assert {(k.name, k.architecture) for k in kernels} == {
        (name, architecture) for name in names for architecture in architectures_of(library)
    }
    for kernel in kernels:
        assert kernel.spills == 0, kernel
        assert kernel.stack == 0, kernel  # nothing lives in local memory
        assert kernel.registers <= 255, kernel
        assert kernel.shared <= STATIC_SHARED_LIMIT, kernel


@pytest.mark.parametrize("library", [name for name in LIBRARIES if plan.needs_hopper(name)])
def test_products_of_the_hopper_kernels_overlap(logs: dict[str, Future[str]], library: str) -> None:
    log = logs[library].result()
    # What ptxas says where it serialises wgmma or waits for it, or ignores a count of registers; a
    # fence that it adds (C7519) is none of these.
    assert not re.findall(r"C7508|C751[0-8]", log)
    # What setmaxnreg hands out must be there from the start, or warps wait for it for ever.
    kernels = [k for k in kernels_in(log) if re.search("(?:hopper|product|turned)_kernel", k.name)]
    assert kernels
    # Of 384 threads, of 512 and of 640.
    assert {kernel.registers for kernel in kernels} <= {168, 128, 96}


@pytest.mark.parametrize("mode", plan.TENSOR_CORE_MODES)
@pytest.mark.parametrize("family", plan.TENSOR_CORE_FAMILIES)
def test_each_tile_is_compiled(logs: dict[str, Future[str]], family: str, mode: str) -> None:
    if f"{family}_{mode}" not in logs:
        pytest.skip("left out in CI")
    names = [k.name for k in kernels_in(logs[f"{family}_{mode}"].result())]
    compiled = {
        tuple(map(int, re.findall(r"\d+", found[1])))
        for name in names
        if (
            found := re.search(
                r"_kernel.*(?:4|10Hopper|8Grad|14GradHopper|14GradTurned|11Product)TileI((?:L[ib]\d+E)+)E",
                name,
            )
        )
    }
    assert compiled == {astuple(row.tiles[mode]) for row in tiles_of(family, mode)}


def test_a_spill_is_read() -> None:
    log = """\
ptxas info    : Compiling entry function '_Z1fv' for 'sm_90a'
ptxas info    : Function properties for _Z1fv
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function '_Z1gv' for 'sm_90a'
ptxas info    : Function properties for _Z1gv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""
    assert kernels_in(log) == [
        Kernel("_Z1fv", "90a", 16, 12, 30, 1024),
        Kernel("_Z1gv", "90a", 0, 0, 255, 0),
    ]
