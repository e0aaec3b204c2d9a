"""`fastconv1d export`: one convolution as a self-contained file with a `ModelNew` class.

The file is a KernelBench submission: the kernels' sources, flattened, between the few lines of
Python that compile and call them. It needs torch and nvcc, and no fastconv1d.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from string import Template

from fastconv1d import layers, plan
from fastconv1d.problem import Gpu, Problem

# What a layer is made of beside its channels, kernel_size and stride, with the defaults.
DEFAULTS: dict[str, int | bool] = {
    "padding": 0,
    "output_padding": 0,
    "dilation": 1,
    "groups": 1,
    "bias": False,
}

# Which of it each problem's Model takes after `stride`, in this order.
SIGNATURES: dict[int, tuple[str, ...]] = {
    64: ("padding", "output_padding", "groups", "bias"),
    67: ("padding", "dilation", "groups", "bias"),
    74: ("padding", "dilation", "bias"),
    76: ("dilation", "bias"),
    79: ("padding", "dilation", "bias"),
}
TRANSPOSED = frozenset({64, 74, 79})  # of these problems

# Tiles are chosen for these GPUs whatever the machine at hand, so that a file can be made again.
TARGETS = {
    "80": Gpu("NVIDIA A100", (8, 0), 108),
    "90a": Gpu("NVIDIA H200", (9, 0), 132),
    "100": Gpu("NVIDIA B200", (10, 0), 148),
}

# What a file says of itself: its kernels' instruction, and an output's length, transposed last.
INSTRUCTIONS = {"hopper": "wgmma", "dense": "mma.sync"}
LENGTHS = (
    "floor((length + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1",
    "(length - 1) stride - 2 padding + dilation (kernel_size - 1) + 1 + output_padding",
)

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
    output_padding: int | None = None,
    dilation: int | None = None,
    groups: int | None = None,
    bias: bool | None = None,
    batch_size: int | None = None,
    length: int | None = None,
) -> Problem:
    """Write `source(...)` to a file and return the problem it is tuned for.

    `problem` is a KernelBench level 1 number of SIGNATURES; `arch` one of TARGETS; every other
    argument replaces one of the problem's values.

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
        "output_padding": output_padding,
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
    """The text of the file: ModelNew with the constructor of a KernelBench problem.

    Kernels and tiles are the plan table's choice for `convolution` in each mode on a GPU of `arch`,
    one of TARGETS; get_inputs() makes its input, and get_init_inputs() its constructor arguments.

    Raises: ValueError for another architecture, a geometry that poses no convolution or that the
    constructor cannot say.
    """
    if arch not in TARGETS:
        raise ValueError(f"arch is {arch!r}, expected one of {', '.join(TARGETS)}")
    convolution.validate()
    transposed = problem in TRANSPOSED
    if convolution.transposed != transposed:
        kinds = ("an ordinary one", "a transposed one")
        raise ValueError(
            f"the convolution is {kinds[not transposed]}, problem {problem} expected "
            f"{kinds[transposed]}"
        )
    names = SIGNATURES[problem]
    values: dict[str, int | bool] = {name: getattr(convolution, name) for name in DEFAULTS}
    for name, default in DEFAULTS.items():
        if name not in names and values[name] != default:
            raise ValueError(
                f"{name} is {values[name]}, expected {default}: the constructor of problem "
                f"{problem} has no such argument"
            )
    parameters = "\n".join(
        f"        {name}: {type(DEFAULTS[name]).__name__} = {DEFAULTS[name]}," for name in names
    )
    arguments = [name if name in names else str(default) for name, default in DEFAULTS.items()]
    families, tiles = _tiles(convolution, TARGETS[arch])
    major, minor = TARGETS[arch].capability
    exactly = "hopper" in families
    instructions = [word for family, word in INSTRUCTIONS.items() if family in families]
    channels = ("in_channels", "out_channels")
    return _read("model_new.py.in").substitute(
        problem=problem,
        how=f"{' and '.join(instructions)}; compute capability {major}.{minor} "
        f"{'only' if exactly else 'on'}",
        oldest=(major, minor),
        exactly=exactly,
        cuda=_flatten("model_new.cu", {"tiles.h": tiles}),
        cpp=_flatten("model_new.cpp", {}),
        layer="ConvTranspose1d" if transposed else "Conv1d",
        name="conv1d_transpose" if transposed else "conv1d",
        transposed=transposed,
        rows=channels[not transposed],
        columns=channels[transposed],
        length_out=LENGTHS[transposed],
        signature=parameters,
        arguments=", ".join(arguments),
        batch=convolution.batch,
        channels=convolution.channels_in,
        length=convolution.length,
        init=_init_inputs(convolution, names, values),
    )


def _init_inputs(
    convolution: Problem, names: Sequence[str], values: Mapping[str, int | bool]
) -> list[int | bool]:
    """Positional constructor arguments, without those at the end that equal their defaults."""
    optional = [(convolution.stride, 1), *((values[name], DEFAULTS[name]) for name in names)]
    while optional and optional[-1][0] == optional[-1][1]:
        optional.pop()
    required = [convolution.channels_in, convolution.channels_out, convolution.kernel_size]
    return [*required, *(value for value, _ in optional)]


def _tiles(convolution: Problem, gpu: Gpu) -> tuple[set[str], str]:
    """The families that the plan table takes, and the kernel of each mode with its tile."""
    families, lines = set(), []
    for mode, name in plan.TENSOR_CORE_MODES.items():
        wanted = replace(convolution, mode=mode, gpu=gpu)
        legal = [row for row in plan.explain(wanted) if row[1] is None]
        # A file runs any batch and length, which an explicit product's memory grows with.
        rows = [row for row in legal if row[0].family in INSTRUCTIONS]
        chosen, _, _ = min(rows, key=lambda row: row[2])
        families.add(chosen.family)
        kernel, tile = chosen.family.capitalize(), chosen.tiles[mode]
        arithmetic = plan.arithmetic(chosen.family, mode)
        lines.append(f"using {name}Kernel = TileLibrary<{kernel}, {arithmetic}, {tile.glue}>;")
    includes = [f'#include "{family}.cuh"' for family in sorted(families)]
    return families, "\n".join([*includes, "namespace fastconv1d {", *lines, "}"])


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
