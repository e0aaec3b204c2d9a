"""Memory of large outputs on the CPU: whole huge pages, used again; torch's own if so wished."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fastconv1d import ops

PAGE = 2 << 20
PROBE = """
import torch
from fastconv1d import ops
y = ops.convolution(torch.ones(1, 1, 1 << 20), torch.ones(1, 1, 1), None, [1], [0], [1], False,
                    [0], 1, "simd")
assert y.eq(1).all()
print(y.data_ptr() % (2 << 20) == 0)
"""


def scaled(by: float, elements: int = 1 << 20) -> torch.Tensor:
    """An output with one value, in a block of its own."""
    return ops.convolution(
        torch.full((1, 1, elements), by), torch.ones(1, 1, 1), None, [1], [0], [1], False, [0], 1,
        "simd",
    )  # fmt: skip


def test_a_freed_output_serves_the_next_of_about_its_size() -> None:
    first = scaled(1.0)
    place = first.data_ptr()
    assert place % PAGE == 0
    second = scaled(2.0)
    assert second.data_ptr() != place and first.eq(1).all()
    del first
    assert scaled(3.0, 1 << 18).data_ptr() != place  # a fourth of it would lie idle
    third = scaled(4.0, (1 << 20) - 1)
    assert third.data_ptr() == place
    assert third.eq(4).all() and second.eq(2).all()


def test_outputs_can_grow_and_small_ones_are_torchs() -> None:
    output = scaled(1.0)
    output.resize_(1, 1, 3 << 20)
    assert output[..., : 1 << 20].eq(1).all()
    assert scaled(1.0, 100).untyped_storage().nbytes() == 400


@pytest.mark.parametrize(("value", "ours"), [("", "True"), ("0", "False")])
def test_the_switch(value: str, ours: str) -> None:
    environment = os.environ | {"FASTCONV1D_HUGE_PAGES": value}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == ours
