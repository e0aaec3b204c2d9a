"""The table of plans: what each can run, what it would cost, and which one a problem gets.

Selection looks at `Problem.bucketed()` and at what was tuned for it, so it is a function of the
geometry with batch and length rounded: new lengths cost no search, no compilation and no growing
cache.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from fastconv1d import build, config, cpu_costs, gpu_costs, grad_costs, tuned
from fastconv1d.problem import Gpu, Problem
from fastconv1d.tiles import (
    ROUNDED,
    AnyTile,
    GradHopperTile,
    GradTile,
    GradTurnedTile,
    HopperTile,
    ProductTile,
    Tile,
    ceil_div,
)

SomeTile = TypeVar("SomeTile", bound=AnyTile)


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run a convolution.

    `tiles` are those of a kernel on tensor cores, by mode; a plan that is not `automatic` runs when
    asked for. One for the `gradient` computes that of the weight instead, of an ordinary
    convolution.
    """

    name: str
    family: str
    why_not: Callable[[Problem], str | None]
    """Why this plan cannot run a problem, or None if it can."""
    cost: Callable[[Problem], float]
    """The model's estimate of the time the plan takes, in µs."""
    tiles: Mapping[str, AnyTile] = field(default_factory=dict, hash=False)
    automatic: bool = True
    gradient: bool = False


def _tiled(
    name: str,
    family: str,
    why_not: Callable[[SomeTile | None, Problem], str | None],
    cost: Callable[[SomeTile | None, Problem], float],
    tiles: Mapping[str, SomeTile],
    *,
    gradient: bool = False,
) -> Plan:
    """A plan of a kernel that has tiles: `why_not` and `cost` get the one of the problem's mode."""
    return Plan(
        name,
        family,
        lambda problem: why_not(tiles.get(problem.mode), problem),
        lambda problem: cost(tiles.get(problem.mode), problem),
        tiles,
        gradient=gradient,
    )


def _on_either(
    gpu: Callable[[Problem], float], cpu: Callable[[Problem], float]
) -> Callable[[Problem], float]:
    """The cost of a plan that both a GPU and the CPU can run."""
    return lambda problem: gpu(problem) if problem.gpu else cpu(problem)


def _always(problem: Problem) -> None:
    """What keeps a problem from ATen: nothing."""


def _by_mode(
    tile: SomeTile, modes: Sequence[str], ieee_tile: SomeTile | None
) -> Mapping[str, SomeTile]:
    """The tile of some modes, and that of ieee where there is one."""
    tiles = dict.fromkeys(modes, tile)
    return {**tiles, "ieee": ieee_tile} if ieee_tile else tiles


def _dense(tile: Tile, modes: Sequence[str], ieee_tile: Tile | None = None) -> Plan:
    tiles = _by_mode(tile, modes, ieee_tile)
    name = f"dense_{tile.channels}x{tile.positions}"
    return _tiled(name, "dense", gpu_costs.dense_why_not, gpu_costs.dense, tiles)


def _hopper(
    warpgroups: int,
    m_tiles: int,
    n: int,
    modes: Sequence[str] = ROUNDED,
    *,
    presplit: bool = False,
    folded: bool = False,
) -> Plan:
    tile = HopperTile(warpgroups, m_tiles, n, presplit, folded)
    name = f"hopper_{'split_' * presplit}{'folded_' * folded}{tile.channels}x{tile.positions}"
    tiles = dict.fromkeys(modes, tile)
    return _tiled(name, "hopper", gpu_costs.hopper_why_not, gpu_costs.hopper, tiles)


def _explicit(
    warpgroups: int, columns: int, modes: Sequence[str] = ROUNDED, *, gradient: bool = False
) -> Plan:
    tile = ProductTile(warpgroups, columns)
    name = f"{'grad_' * gradient}explicit_{tile.rows}x{tile.columns}"
    tiles = dict.fromkeys(modes, tile)
    if gradient:
        legal, cost = grad_costs.explicit_why_not, grad_costs.explicit
        return _tiled(name, "explicit", legal, cost, tiles, gradient=True)
    return _tiled(name, "explicit", gpu_costs.explicit_why_not, gpu_costs.explicit, tiles)


# Hopper rows: warpgroups, mma tiles of 64 positions that each has, channels, and the modes that
# have this tile. The sums of ieee take two or three times the room; with more warpgroups a thread
# has fewer registers. Its input is split by the warps that multiply, or before.
# Dense rows: a tile, the modes that have it, and the tile of ieee.
# Four rows of warps keep four alignments of output rows apart (see csrc/schedule.h); 16 warps are
# too many for the registers of ieee, and slower than 8 where a 16-bit type halves the weights.
PLANS: tuple[Plan, ...] = (
    _hopper(2, 1, 256),
    _hopper(2, 1, 192),
    _hopper(2, 2, 128),
    _hopper(3, 1, 128),
    _hopper(2, 1, 128, (*ROUNDED, "ieee")),
    _hopper(2, 2, 96),
    _hopper(3, 1, 96),
    _hopper(2, 1, 96, ("ieee",)),
    _hopper(3, 2, 64),
    _hopper(4, 1, 64),
    _hopper(2, 1, 64, (*ROUNDED, "ieee")),
    _hopper(3, 2, 32),
    _hopper(4, 1, 32),
    _hopper(3, 1, 32, ("ieee",)),
    _hopper(2, 1, 128, ("ieee",), folded=True),
    _hopper(2, 1, 128, ("ieee",), presplit=True),
    _hopper(2, 1, 96, ("ieee",), presplit=True),
    _hopper(2, 1, 64, ("ieee",), presplit=True),
    _dense(Tile(4, 4, 2, 8), ("tf32",)),
    _dense(Tile(4, 2, 2, 8), ROUNDED, Tile(4, 2, 2, 8)),
    _dense(Tile(4, 2, 1, 8), ROUNDED, Tile(2, 4, 2, 4)),
    _dense(Tile(2, 4, 1, 4), ROUNDED, Tile(2, 4, 1, 4)),
    _explicit(2, 256),
    _explicit(2, 224),
    _explicit(3, 128),
    _explicit(2, 192, ("ieee",)),
    _explicit(2, 128, ("ieee",)),
    Plan("toeplitz", "toeplitz", gpu_costs.toeplitz_why_not, gpu_costs.toeplitz),
    Plan("kn2row", "kn2row", gpu_costs.kn2row_why_not, gpu_costs.kn2row),
    Plan("sliding", "sliding", gpu_costs.sliding_why_not, gpu_costs.sliding),
    Plan("direct", "direct", gpu_costs.direct_why_not, gpu_costs.direct),
    Plan("simd", "simd", cpu_costs.simd_why_not, cpu_costs.simd),
    Plan(
        "im2col",
        "im2col",
        cpu_costs.im2col_why_not,
        _on_either(gpu_costs.im2col, cpu_costs.im2col),
        automatic=False,
    ),
    Plan("aten", "aten", _always, _on_either(gpu_costs.aten, cpu_costs.aten)),
)


def _grad_dense(tile: GradTile, modes: Sequence[str], ieee_tile: GradTile | None = None) -> Plan:
    tiles = _by_mode(tile, modes, ieee_tile)
    name = f"grad_dense_{tile.rows}x{tile.columns}"
    return _tiled(name, "dense", grad_costs.dense_why_not, grad_costs.dense, tiles, gradient=True)


def _grad_hopper(warpgroups: int, m_tiles: int, n: int) -> Plan:
    tile = GradHopperTile(warpgroups, m_tiles, n)
    name = f"grad_hopper_{tile.channels}x{tile.pairs}"
    tiles = dict.fromkeys(ROUNDED, tile)
    return _tiled(
        name, "hopper", grad_costs.hopper_why_not, grad_costs.hopper, tiles, gradient=True
    )


def _grad_turned(out_tiles: int, unit_tiles: int, channels: int, units_each: int) -> Plan:
    tile = GradTurnedTile(out_tiles, unit_tiles, channels, units_each)
    name = f"grad_turned_{tile.outs}x{tile.pairs}"
    tiles = dict.fromkeys(("bf16", "fp16"), tile)
    return _tiled(
        name, "turned", grad_costs.turned_why_not, grad_costs.turned, tiles, gradient=True
    )


# The tile of these modes, then that of ieee, whose sums take twice the room. 16-bit types, which
# keep two planes, gain nothing from the largest one.
GRADIENT_PLANS: tuple[Plan, ...] = (
    _grad_hopper(2, 2, 128),
    _grad_hopper(3, 1, 128),
    _grad_hopper(2, 1, 128),
    _grad_hopper(2, 2, 64),
    _grad_hopper(3, 1, 64),
    _grad_turned(2, 1, 64, 4),
    _grad_turned(1, 2, 64, 4),
    _grad_turned(1, 2, 32, 6),
    _explicit(2, 256, gradient=True),
    _explicit(2, 224, gradient=True),
    _explicit(3, 128, gradient=True),
    _grad_dense(GradTile(2, 6, 4, 4, 1), ("tf32",)),
    _grad_dense(GradTile(2, 3, 4, 4, 2), ROUNDED, GradTile(2, 4, 4, 3, 1)),
    _grad_dense(GradTile(2, 3, 2, 4, 2), ROUNDED, GradTile(2, 3, 2, 4, 1)),
    _grad_dense(GradTile(4, 1, 2, 4, 2), ROUNDED, GradTile(4, 1, 2, 4, 2)),
    _grad_dense(GradTile(1, 8, 1, 4, 1), ROUNDED, GradTile(1, 8, 1, 4, 1)),
    Plan(
        "grad_toeplitz",
        "toeplitz",
        grad_costs.toeplitz_why_not,
        grad_costs.toeplitz,
        gradient=True,
    ),
    Plan("grad_kn2row", "kn2row", grad_costs.kn2row_why_not, grad_costs.kn2row, gradient=True),
    Plan("grad_sliding", "sliding", grad_costs.sliding_why_not, grad_costs.sliding, gradient=True),
    Plan("grad_direct", "direct", gpu_costs.direct_why_not, grad_costs.direct, gradient=True),
    Plan("grad_simd", "simd", cpu_costs.simd_why_not, cpu_costs.grad_simd, gradient=True),
    Plan(
        "grad_aten",
        "aten",
        _always,
        _on_either(grad_costs.aten, cpu_costs.grad_aten),
        gradient=True,
    ),
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
    choice = stored.get(tuned.context(problem.gpu, hash_for(problem.gpu)), {}).get(
        tuned.geometry(problem)
    )
    row = choice and _BY_NAME.get(choice.plan)
    return choice if row and row.why_not(problem.bucketed()) is None else None


def hash_for(gpu: Gpu | None) -> str:
    """The hash of the kernels that tuned choices for a GPU, or the CPU, depend on."""
    return sources_hash("cuda" if gpu else "cpu", forward=True)


def model_choice(problem: Problem) -> Plan:
    """The plan that the cost model alone would take."""
    return _cheapest_first(problem.bucketed(), "", False)[0]


def bias_alone(of_weight: Plan, problem: Problem, algorithm: str = "") -> bool:
    """Whether the library `grad_bias` makes a bias's gradient, not the weight's plan or torch."""
    left = problem.transposed or of_weight.family == "aten"
    return problem.bias and left and problem.gpu is not None and algorithm != "aten"


def in_one_pass(of_weight: Plan, problem: Problem, algorithm: str = "") -> bool:
    """Whether a problem's plan for the weight's gradient is to compute the input's in its pass.

    Not where another plan was asked for, or tuned, for the latter; `algorithm` as for `select`.
    """
    if not grad_costs.has_one_pass(problem) or of_weight.family != "sliding":
        return False
    asked_for = algorithm or config.forced_plan() or tuned_choice(problem.adjoint)
    return not asked_for or select(problem.adjoint, algorithm).family == "sliding"


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
HOPPER_FAMILIES = ("hopper", "explicit", "grad_hopper", "grad_turned", "grad_explicit")
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


MOST_TILES = 4
"""Tiles of a library at most: who needs one waits for the others to be compiled."""


def kernels(arch: str = "", most_tiles: int = sys.maxsize) -> dict[str, str]:
    """The C++ glue of each family's kernels in each mode, by name: what the table needs.

    With `arch`, as '90a', of those that a GPU of it runs. No more than `most_tiles` are together.
    """
    glue = {}
    for family in TENSOR_CORE_FAMILIES:
        for mode in TENSOR_CORE_MODES:
            for name, rows in tile_parts(family, mode, most_tiles).items():
                glue[name] = tile_glue(family, mode, rows)
    for mode in TENSOR_CORE_MODES:
        glue[f"toeplitz_{mode}"] = (
            '#include "toeplitz.cuh"\n'
            f"FASTCONV1D_TOEPLITZ_LIBRARY(fastconv1d::{TENSOR_CORE_MODES[mode]})\n"
        )
        for family in ("kn2row", "grad_kn2row"):
            glue[f"{family}_{mode}"] = (
                f'#include "{family}.cuh"\n'
                f"FASTCONV1D_{family.upper()}_LIBRARY(fastconv1d::{TENSOR_CORE_MODES[mode]})\n"
            )
    for mode in ROUNDED:
        glue[f"grad_toeplitz_{mode}"] = (
            '#include "grad_toeplitz.cuh"\n'
            f"FASTCONV1D_GRAD_TOEPLITZ_LIBRARY(fastconv1d::{TENSOR_CORE_MODES[mode]})\n"
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
    if not arch:
        return glue
    return {
        name: text
        for name, text in glue.items()
        if name not in CPU_LIBRARIES and (arch == "90a" or not needs_hopper(name))
    }


def libraries(arch: str = "") -> dict[str, str]:
    """The C++ glue of every library, by name: `kernels`, many tiles of which several share.

    Those that take long to compile come first, for who builds all of them side by side.
    """
    glue, long = kernels(arch, MOST_TILES), ("binding", "hopper", "sliding")
    return {
        name: glue[name] for name in sorted(glue, key=lambda name: [s not in name for s in long])
    }


@lru_cache(maxsize=4)
def sources_hash(device: str = "cuda", *, forward: bool = False) -> str:
    """A hash of all that our kernels' results on a device depend on: sources and generated glue.

    With `forward`, of the kernels that compute outputs alone, not those of gradients of a weight.
    """
    return build.sources_hash(
        text
        for name, text in kernels().items()
        if (name in CPU_LIBRARIES) == (device == "cpu")
        and "binding" not in name
        and not (forward and name.startswith("grad_"))
    )


def sources_hashes() -> frozenset[str]:
    """Those that rows of today's kernels have, on any device."""
    return frozenset(
        sources_hash(device, forward=forward)
        for device in ("cuda", "cpu")
        for forward in (False, True)
    )


def needs_hopper(name: str) -> bool:
    """Whether kernels are of a family whose instructions GPUs of sm_90a alone have."""
    return name.startswith(tuple(f"{family}_" for family in HOPPER_FAMILIES))


def family_of(plan: Plan) -> str:
    """What a plan's libraries and C++ headers are named after."""
    return f"grad_{plan.family}" if plan.gradient else plan.family


def tile_rows(family: str, mode: str) -> list[Plan]:
    """A family's plans that have this arithmetic, in the order of the table."""
    return [plan for plan in EVERY_PLAN if family_of(plan) == family and mode in plan.tiles]


def tile_parts(family: str, mode: str, most_tiles: int = MOST_TILES) -> dict[str, list[Plan]]:
    """The same by library."""
    rows, name = tile_rows(family, mode), f"{family}_{mode}"
    if len(rows) <= most_tiles:
        return {name: rows} if rows else {}
    each = ceil_div(len(rows), ceil_div(len(rows), most_tiles))
    firsts = enumerate(range(0, len(rows), each), 1)
    return {f"{name}_{number}": rows[first : first + each] for number, first in firsts}


def _library_and_variant(plan: Plan, mode: str) -> tuple[str, int]:
    """Of a plan with tiles."""
    parts = tile_parts(family_of(plan), mode).items()
    return next((name, rows.index(plan)) for name, rows in parts if plan in rows)


def library_of(plan: Plan, problem: Problem) -> str:
    """The kernel library that a plan runs from, or '' if it needs none."""
    family, mode = family_of(plan), problem.mode
    if family in TENSOR_CORE_FAMILIES:
        return _library_and_variant(plan, mode)[0]
    if plan.family in ("toeplitz", "kn2row"):
        return f"{family}_{mode}"
    if plan.family == "sliding":
        return f"{family}_{'fp32' if problem.dtype.itemsize == 4 else mode}"
    if plan.family == "aten" or (plan.family == "im2col" and problem.gpu is None):
        return ""
    return family


def variant_of(plan: Plan, problem: Problem) -> int:
    """The variant of its library that a plan runs."""
    if family_of(plan) in TENSOR_CORE_FAMILIES:
        return _library_and_variant(plan, problem.mode)[1]
    return config.MODES.index(problem.mode)
