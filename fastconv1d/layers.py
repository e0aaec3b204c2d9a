"""The table of real layers that benchmarks, exports and explanations speak of."""

import csv
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from fastconv1d.problem import Problem


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution of a published model: its name, its geometry and where both come from."""

    model: str
    layer: str
    problem: Problem
    source: str

    @property
    def name(self) -> str:
        """`model · layer`, as tables and benchmark rows print it."""
        return f"{self.model} · {self.layer}"


def load(path: Path | None = None) -> list[Layer]:
    """Reads a layer table, by default the one shipped with the package.

    A table is a CSV file with the columns model, layer, kind ("conv" or "transposed"), batch,
    in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups,
    bias (0 or 1), length and source.

    Raises:
        ValueError: a column is missing or holds something else.
    """
    table = path if path is not None else resources.files("fastconv1d") / "layers.csv"
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_layer(row, f"{table}, line {line}") for line, row in enumerate(rows, start=2)]


def _layer(row: dict[str, str], where: str) -> Layer:
    if row.get("kind") not in ("conv", "transposed"):
        raise ValueError(f"{where}: kind is {row.get('kind')!r}, expected 'conv' or 'transposed'")
    try:
        problem = Problem(
            batch=int(row["batch"]),
            channels_in=int(row["in_channels"]),
            channels_out=int(row["out_channels"]),
            length=int(row["length"]),
            kernel_size=int(row["kernel_size"]),
            stride=int(row["stride"]),
            padding=int(row["padding"]),
            output_padding=int(row["output_padding"]),
            dilation=int(row["dilation"]),
            groups=int(row["groups"]),
            bias=row["bias"] == "1",
            transposed=row["kind"] == "transposed",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error!r}") from error
    return Layer(row["model"], row["layer"], problem, row.get("source") or "")


def find(selectors: Sequence[str], layers: Sequence[Layer]) -> list[Layer]:
    """Picks layers by KernelBench number ("67"), by any part of their name, or "all" of them, in
    table order.

    Raises:
        ValueError: a selector matches no layer.
    """
    chosen = set()
    for selector in selectors:
        matches = {index for index, layer in enumerate(layers) if _matches(layer, selector)}
        if not matches:
            known = ", ".join(sorted({layer.model for layer in layers}))
            raise ValueError(
                f"layer is {selector!r}, expected 'all', a KernelBench number (67, 76, …) "
                f"or a part of a layer's name; models: {known}"
            )
        chosen |= matches
    return [layers[index] for index in sorted(chosen)]


def _matches(layer: Layer, selector: str) -> bool:
    if selector.isdigit():
        return layer.model == f"KernelBench-L1-{selector}"
    return selector == "all" or selector.lower() in layer.name.lower()


def shrink(
    problem: Problem, flops: float, bytes: float, fields: Collection[str] = ("batch", "length")
) -> Problem:
    """The same layer with its batch, then its length, cut until it costs at most `flops` and moves
    at most `bytes` (never below one sample of `Problem.least_length`); of the two, only `fields`.
    """

    def largest(field: str, counts: range, of: Problem) -> Problem:
        def cut(count: int) -> Problem:
            change: dict[str, Any] = {field: count}
            return replace(of, **change)

        def exceeds(count: int) -> bool:
            return cut(count).flops > flops or cut(count).bytes > bytes

        return cut(counts[max(0, bisect_left(counts, True, key=exceeds) - 1)])

    if "batch" in fields:
        problem = largest("batch", range(1, problem.batch + 1), problem)
    if "length" in fields:
        shortest = min(problem.least_length, problem.length)
        problem = largest("length", range(shortest, problem.length + 1), problem)
    return problem
