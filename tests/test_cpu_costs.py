"""The CPU's cost model: the plans that measurements ask for, whatever the threads and vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from fastconv1d import build, cpu_costs, plan
from fastconv1d.problem import Problem

OURS = [
    Problem(1, 64, 128, 131072, 3),
    Problem(1, 1, 512, 160000, 10, stride=5),
    Problem(1, 4, 768, 40000, 15, padding=7),
    Problem(16, 32, 1, 8192, 7, padding=3),
    Problem(1, 5120, 5120, 2048, 4, padding=3, groups=5120),
    Problem(16, 512, 512, 417, 31, padding=15, groups=512),
    Problem(3, 192, 192, 8202, 12, stride=2, groups=192, transposed=True),
    Problem(16, 64, 32, 4096, 4, stride=2, padding=1, transposed=True),
    Problem(1, 1536, 768, 16, 16, stride=8, padding=4, transposed=True),
]
ATENS = [
    Problem(1, 1280, 1280, 406, 3, stride=2, padding=1),
    Problem(1, 768, 768, 154, 11, padding=25, dilation=5),
]


@pytest.fixture(
    params=[(1, 1.0, "pairs"), (2, 1.0, "amx"), (2, 0.5, ""), (16, 1.0, "amx"), (64, 0.25, "")],
    autouse=True,
)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads, the width of vectors as a share of AVX-512's, and products of bf16."""
    threads, width, products = request.param
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu_costs, "_products_of_bf16", lambda: products)
    monkeypatch.setattr(cpu_costs, "_width", lambda: width)
    plan._cheapest_first.cache_clear()
    plan._tuned_first.cache_clear()
    yield
    plan._cheapest_first.cache_clear()
    plan._tuned_first.cache_clear()


@pytest.mark.parametrize("problem", OURS, ids=str)
def test_what_torch_is_slow_at_is_ours(problem: Problem) -> None:
    for mode in ("ieee", "fp16", "fp64"):
        assert plan.select(replace(problem, mode=mode)).name == "simd"


@pytest.mark.parametrize("problem", ATENS, ids=str)
def test_weights_that_few_positions_read_are_torchs(problem: Problem) -> None:
    # Packing counts for less where products take longer; a newer Xeon is slow at strides alone.
    exempt = cpu_costs._processor() is cpu_costs.EMERALD_RAPIDS and problem.stride == 1
    assert plan.select(problem).name == "aten" or cpu_costs._width() < 1 or exempt


@pytest.mark.parametrize("products", ["amx", "pairs", ""])
def test_bf16_of_many_channels_is_ours_whatever_products_there_are(
    monkeypatch: pytest.MonkeyPatch, products: str
) -> None:
    monkeypatch.setattr(cpu_costs, "_products_of_bf16", lambda: products)
    wide = Problem(4, 128, 128, 2048, 7, padding=3, mode="bf16")
    assert plan.select(wide).name == "simd"
    assert plan.select(replace(OURS[1], mode="bf16")).name == "simd"


def test_who_has_tile_registers_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Problem(4, 128, 128, 2048, 7, padding=3, mode="bf16")
    few = replace(wide, channels_out=cpu_costs.LEAST_TILED - 1)
    costs = {}
    for products in ("amx", "pairs"):
        monkeypatch.setattr(cpu_costs, "_products_of_bf16", lambda: products)  # noqa: B023
        costs[products] = [cpu_costs.simd(problem) for problem in (wide, few)]
    assert costs["amx"][0] < 0.6 * costs["pairs"][0]
    assert costs["amx"][1] > costs["pairs"][1]
    header = (build.CSRC / "cpu_conv.h").read_text()
    assert f"kLeastTiled = {cpu_costs.LEAST_TILED};" in header


@pytest.mark.parametrize(("products", "name"), [("amx", "grad_simd"), ("pairs", "grad_aten")])
def test_processors_differ_in_the_weights_gradient(
    monkeypatch: pytest.MonkeyPatch, products: str, name: str
) -> None:
    monkeypatch.setattr(cpu_costs, "_width", lambda: 1.0)
    monkeypatch.setattr(cpu_costs, "_products_of_bf16", lambda: products)
    assert plan.select(Problem(1, 64, 128, 40692, 3), gradient=True).name == name


def test_gradients_of_few_channels_are_ours_and_wide_ones_torchs() -> None:
    for problem in OURS[4:6]:
        assert plan.select(problem, gradient=True).name == "grad_simd"
    for problem in ATENS:
        assert plan.select(problem, gradient=True).name == "grad_aten"
