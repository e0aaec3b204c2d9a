"""The CPU's kernels without torch: right in every shape and for every width of vectors.

A program of their own runs them between guard pages, or with sanitizers, in three threads.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fastconv1d.build import CSRC, NATIVE_FLAGS
from fastconv1d.problem import Problem
from kernel_runs import (
    CORNERS,
    EMULATION,
    EVERYTHING,
    LONG,
    NARROW,
    UNFOLDED,
    Run,
    corner_runs,
    execute,
    gradient_runs,
    harness,
    random_runs,
)

MODES = ("ieee", "bf16", "fp16", "fp64")
SANITIZE = ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
FLAGS = {
    "native": ("-O2", *NATIVE_FLAGS),
    "plain": ("-O2",),
    "sanitized": (*SANITIZE, *NATIVE_FLAGS),
}
if platform.machine() == "x86_64":
    FLAGS["AVX2"] = ("-O2", "-march=haswell")
LIBRARIES = ("simd", "grad_simd")
PROBLEMS = (*EVERYTHING, *NARROW.values(), *UNFOLDED.values(), *LONG.values())

# For a processor's tile registers: groups, odd channels, few of a last block; several classes of
# phases, some without taps, many phases; rows that end within a register; weights that one task
# alone reads.
TILED = tuple(
    replace(problem, mode="bf16", bias=True)
    for problem in (
        Problem(2, 99, 135, 41, 3, padding=1, groups=3),
        Problem(1, 12, 12, 70, 5, stride=2, dilation=3, padding=4),
        Problem(3, 34, 17, 33, 1),
        Problem(2, 40, 20, 29, 4, stride=3, dilation=2, padding=1, transposed=True),
        Problem(1, 70, 14, 17, 3, stride=5, transposed=True),
        Problem(2, 12, 24, 9, 64, stride=64, transposed=True),
        *(Problem(2, 64, 48, length, 1) for length in (1, 15, 17, 33, 100)),
    )
)

Build = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A library's program, compiled with some flags once."""
    folder = tmp_path_factory.mktemp("programs")

    def compile(library: str, flags: str) -> Path:
        program = folder / f"{library}-{flags}"
        if not program.exists():
            command = ["g++", "-std=c++20", "-DFASTCONV1D_CPU", "-Wall", "-Wextra", "-Wno-psabi"]
            command += [*FLAGS[flags], f"-I{CSRC}", f"-I{EMULATION}", "-x", "c++", "-", "-pthread"]
            done = subprocess.run(
                [*command, "-o", program], input=harness(library), capture_output=True, text=True
            )
            assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        return program

    return compile


def runs_of(library: str, problems: Iterable[Problem]) -> list[Run]:
    """Every problem, modes taken in turn, and random ones in each; nothing beside the outputs."""
    runs = [
        run
        for number, problem in enumerate(problems)
        for run in corner_runs([problem], MODES[number % 4], 0)
    ]
    runs += corner_runs(TILED, "bf16", 0)
    runs += [run for mode in MODES for run in random_runs(6, mode, 0, narrow=len(runs) % 2 == 0)]
    if library == "grad_simd":
        runs = gradient_runs(runs)
    return [
        replace(run, guard=0, multiprocessors=3, reverse=number % 3 == 0)
        for number, run in enumerate(runs)
    ]


def native(library: str) -> pytest.MarkDecorator:
    """The mark of tests in one process, which compiles a library's program once for them."""
    return pytest.mark.xdist_group(f"{library}, native")


@pytest.mark.parametrize(
    ("library", "flags"),
    [
        pytest.param(library, flags, marks=[native(library)] if flags == "native" else [])
        for library in LIBRARIES
        for flags in FLAGS
    ],
)
def test_kernels_between_guards(build: Build, tmp_path: Path, library: str, flags: str) -> None:
    if flags == "AVX2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs a processor with AVX2")
    result = execute([build(library, flags)], runs_of(library, PROBLEMS), tmp_path)
    assert not result.complaints, "\n".join([*result.complaints[:10], result.log])
    assert result.returncode == 0, result.log


@pytest.mark.parametrize(
    "library", [pytest.param(library, marks=native(library)) for library in LIBRARIES]
)
def test_infinities_reach_only_what_sees_them(build: Build, tmp_path: Path, library: str) -> None:
    runs = runs_of(library, (*CORNERS.values(), *NARROW.values()))
    runs = [replace(run, infinite=True, integers=False) for run in runs]
    if library == "grad_simd":
        runs = [run for run in runs if run.problem.padding == 0]
    result = execute([build(library, "native")], runs, tmp_path)
    assert not result.complaints, "\n".join([*result.complaints[:10], result.log])
