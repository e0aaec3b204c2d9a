"""Seeded random convolutions and awkward memory layouts, for the tests that run kernels."""

from __future__ import annotations

from random import Random

import torch

from fastconv1d.problem import Gpu, Problem

CONTIGUOUS_ROWS = ("contiguous", "sliced", "batch_expanded", "batch_inside")
"""Layouts whose positions are neighbours in memory, as the kernels read them."""

LAYOUTS = (*CONTIGUOUS_ROWS, "channels_last", "every_other", "channels_expanded")
"""All layouts: the others are copied before a kernel reads them."""


def random_problem(
    random: Random,
    mode: str,
    flops: int,
    *,
    transposed: bool = False,
    narrow: bool = False,
    gpu: Gpu | None = None,
) -> Problem:
    """A valid problem of at most so many FLOPs, any parameter of which may be odd or extreme.

    A narrow one has groups of few channels, on one side at least, and may have many taps.
    """

    def size(most: int) -> int:
        return int(most ** random.random() + random.random())  # small ones as likely as large ones

    while True:
        if narrow:
            groups = random.choice((1, size(100)))
            sides = [random.choice((1, 1, 2, 4, 8)), random.choice((1, 1, size(60)))]
            random.shuffle(sides)
            channels_in, channels_out = sides
        else:
            groups = random.choice((1, 1, 1, 1, 2, 3, 8))
            channels_in = random.choice((1, 8, 16, size(150)))
            channels_out = random.choice((1, 16, 64, size(150)))
        most_taps = 1024 if narrow else 60
        kernel_size, dilation = random.choice((1, 2, 3, 3, 4, 5, 7, 11, size(most_taps))), size(6)
        stride = random.choice((1, 1, 1, 2, 3, 4, 5, size(20)))
        problem = Problem(
            batch=size(6),
            channels_in=groups * channels_in,
            channels_out=groups * channels_out,
            length=random.choice((size(3000), 64 * size(40))),
            kernel_size=kernel_size,
            stride=stride,
            padding=random.choice((0, dilation * (kernel_size - 1) // 2, size(90))),
            dilation=dilation,
            groups=groups,
            transposed=transposed,
            output_padding=random.randrange(max(stride, dilation)) if transposed else 0,
            bias=random.random() < 0.5,
            mode=mode,
            gpu=gpu,
        )
        try:
            problem.validate()
        except ValueError:
            continue
        if problem.flops <= flops:
            return problem


def laid_out(tensor: torch.Tensor, layout: str, gap: float = float("nan")) -> torch.Tensor:
    """The values of a (batch, channels, length) tensor in a layout, `gap` in the gaps.

    Expanded layouts repeat the first row, so their values differ from the tensor's.
    """
    batch, channels, length = tensor.shape

    def within(*shape: int) -> torch.Tensor:
        return tensor.new_full(shape, gap)

    if layout == "contiguous":
        return tensor
    if layout == "batch_expanded":
        return tensor[:1].expand(batch, -1, -1)
    if layout == "channels_expanded":
        return tensor[:, :1].expand(-1, channels, -1)
    if layout == "sliced":
        view = within(batch + 1, channels + 2, length + 5)[1:, 1:-1, 3:-2]
    elif layout == "batch_inside":
        view = within(channels, batch, length + 1)[:, :, 1:].transpose(0, 1)
    elif layout == "channels_last":
        view = within(batch, length, channels + 1)[:, :, 1:].transpose(1, 2)
    elif layout == "every_other":
        view = within(batch, channels, 2 * length + 1)[:, :, 1::2]
    else:
        raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")
    return view.copy_(tensor)
