"""`fastconv1d export`: one convolution as a self-contained file with a `ModelNew` class.

The file is a KernelBench submission: the kernels' sources, flattened, between the few lines of
Python that compile and call them. It needs torch and nvcc, and no fastconv1d.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from string import Template

from fastconv1d import layers, plan
from fastconv1d.problem import Gpu, Problem

# The constructor parameters of each problem's Model that follow `stride`, with their defaults.
SIGNATURES: dict[int, dict[str, int | bool]] = {
    67: {"padding": 0, "dilation": 1, "groups": 1, "bias": False},
    76: {"dilation": 1, "bias": False},
}

# Tiles are chosen for these GPUs whatever the machine at hand, so that a file can be made again.
TARGETS = {
    "80": Gpu("NVIDIA A100", (8, 0), 108),
    "90a": Gpu("NVIDIA H200", (9, 0), 132),
    "100": Gpu("NVIDIA B200", (10, 0), 148),
}

_COMMENT_OR_LITERAL = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])'""", re.DOTALL | re.VERBOSE
)
_INCLUDE = re.compile(r'#include "([^"]+)"')


def export(
    path: Path,
    problem: int = 67,
    *,
    arch: str = "90a",
    in_channels: int | None = None,
    out_channels: int | None = None,
    kernel_size: int | None = None,
    stride: int | None = None,
    padding: int | None = None,
    dilation: int | None = None,
    groups: int | None = None,
    bias: bool | None = None,
    batch_size: int | None = None,
    length: int | None = None,
) -> Problem:
    """Write `source(...)` to a file and return the problem it is tuned for.

    `problem` is a KernelBench level 1 number, 67 or 76; `arch` one of TARGETS; every other argument
    replaces one of the problem's values.

    Raises: ValueError for another number or architecture, a geometry that poses no convolution, or
    an argument that the problem's constructor does not have.
    """
    if problem not in SIGNATURES:
        raise ValueError(f"problem is {problem}, expected one of {sorted(SIGNATURES)}")
    overrides = {
        "channels_in": in_channels,
        "channels_out": out_channels,
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": bias,
        "batch": batch_size,
        "length": length,
    }
    [layer] = layers.find([str(problem)], layers.load())
    given = {name: value for name, value in overrides.items() if value is not None}
    convolution = replace(layer.problem, **given)  # type: ignore[arg-type]
    text = source(convolution, problem, arch)
    path.write_text(text, encoding="utf-8")
    return convolution


def source(convolution: Problem, problem: int, arch: str = "90a") -> str:
    """The text of the file: ModelNew with the constructor of a KernelBench problem (67 or 76).

    Kernels and tiles are the plan table's choice for `convolution` in each mode on a GPU of `arch`,
    one of TARGETS; get_inputs() makes its input, and get_init_inputs() its constructor arguments.

    Raises: ValueError for another architecture, a geometry that poses no convolution or that the
    constructor cannot say.
    """
    if arch not in TARGETS:
        raise ValueError(f"arch is {arch!r}, expected one of {', '.join(TARGETS)}")
    convolution.validate()
    names = SIGNATURES[problem]
    values: dict[str, int | bool] = {
        "padding": convolution.padding,
        "dilation": convolution.dilation,
        "groups": convolution.groups,
        "bias": convolution.bias,
    }
    for name, default in SIGNATURES[67].items():
        if name not in names and values[name] != default:
            raise ValueError(
                f"{name} is {values[name]}, expected {default}: the constructor of problem "
                f"{problem} has no such argument"
            )
    if convolution.transposed:
        raise ValueError("the convolution is transposed, expected an ordinary one")
    parameters = "\n".join(
        f"        {name}: {type(default).__name__} = {default}," for name, default in names.items()
    )
    arguments = [name if name in names else str(SIGNATURES[67][name]) for name in values]
    major, minor = TARGETS[arch].capability
    exactly = arch.endswith("a")
    instruction = "wgmma" if exactly else "mma.sync"
    return _read("model_new.py.in").substitute(
        problem=problem,
        how=f"{instruction}; compute capability {major}.{minor} {'only' if exactly else 'on'}",
        oldest=(major, minor),
        exactly=exactly,
        cuda=_flatten("model_new.cu", {"tiles.h": _tiles(convolution, TARGETS[arch])}),
        cpp=_flatten("model_new.cpp", {}),
        signature=parameters,
        arguments=", ".join(arguments),
        batch=convolution.batch,
        channels=convolution.channels_in,
        length=convolution.length,
        init=_init_inputs(convolution, names, values),
    )


def _init_inputs(
    convolution: Problem, names: Mapping[str, int | bool], values: Mapping[str, int | bool]
) -> list[int | bool]:
    """Positional constructor arguments, without those at the end that equal their defaults."""
    optional = [(convolution.stride, 1), *((values[name], names[name]) for name in names)]
    while optional and optional[-1][0] == optional[-1][1]:
        optional.pop()
    required = [convolution.channels_in, convolution.channels_out, convolution.kernel_size]
    return [*required, *(value for value, _ in optional)]


def _tiles(convolution: Problem, gpu: Gpu) -> str:
    """The kernel of each mode, with the tile that the plan table takes."""
    includes, lines = [], []
    for mode, name in plan.TENSOR_CORE_MODES.items():
        wanted = replace(convolution, mode=mode, gpu=gpu)
        rows = [row for row in plan.explain(wanted) if row[0].tiles and row[1] is None]
        chosen, _, _ = min(rows, key=lambda row: row[2])
        includes.append(f'#include "{chosen.family}.cuh"')
        kernel, tile = chosen.family.capitalize(), chosen.tiles[mode]
        arithmetic = plan.arithmetic(chosen.family, mode)
        lines.append(f"using {name}Kernel = TileLibrary<{kernel}, {arithmetic}, {tile.glue}>;")
    return "\n".join([*includes, "namespace fastconv1d {", *lines, "}"])


def _read(name: str) -> Template:
    return Template(_text("templates", name))


def _text(folder: str, name: str) -> str:
    return (resources.files("fastconv1d") / folder / name).read_text(encoding="utf-8")


def _flatten(name: str, generated: Mapping[str, str]) -> str:
    """A source file with our own headers in place of their first #include, without comments."""
    included: set[str] = set()

    def lines_of(text: str) -> list[str]:
        lines = []
        for line in _without_emulation(text).splitlines():
            found = _INCLUDE.fullmatch(line.strip())
            if found is None:
                if line.strip() != "#pragma once":
                    lines.append(line)
            elif found[1] not in included:
                included.add(found[1])
                lines += lines_of(generated.get(found[1]) or _text("csrc", found[1]))
        return lines

    text = "\n".join(lines_of(_text("templates", name)))
    text = _COMMENT_OR_LITERAL.sub(
        lambda found: " " if found[0].startswith("/") else found[0], text
    )
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{2,}", "\n", text).strip() + "\n"


def _without_emulation(text: str) -> str:
    """Without the branches that run a kernel on the CPU for tests."""
    kept: list[str] = []
    conditionals: list[bool] = []  # that are open: whether each asks for the emulation
    skipping = False
    for line in text.splitlines():
        emulation = False
        if line.startswith("#if"):
            emulation = "FASTCONV1D_EMULATE" in line
            conditionals.append(emulation)
            skipping = skipping or emulation
        elif line.startswith(("#else", "#endif")):
            emulation = conditionals[-1] if line.startswith("#else") else conditionals.pop()
            skipping = skipping and not emulation
        if not (emulation or skipping):
            kept.append(line)
    return "\n".join(kept)
