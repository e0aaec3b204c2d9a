"""The plan table: legality, selection, forcing, and the libraries that it asks for."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import warnings
from dataclasses import astuple, replace
from itertools import chain, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fastconv1d import build, gpu_costs, plan, tiles
from fastconv1d.build import CSRC
from fastconv1d.config import MODES
from fastconv1d.problem import Gpu, Problem

H200 = Gpu("NVIDIA H200", (9, 0), 132)
A100 = Gpu("NVIDIA A100", (8, 0), 108)
B200 = Gpu("NVIDIA B200", (10, 0), 148)
V100 = Gpu("Tesla V100", (7, 0), 80)
LAYER_67 = Problem(32, 64, 128, 131072, 3, mode="tf32", gpu=H200)
UPSAMPLING = Problem(
    16, 512, 256, 1000, 16, stride=8, padding=4, transposed=True, mode="tf32", gpu=H200
)
DEPTHWISE = Problem(8, 64, 64, 4096, 4, padding=3, groups=64, mode="bf16", gpu=H200)
LONG_KERNEL = Problem(32, 768, 768, 768, 768, padding=767, groups=768, mode="tf32", gpu=H200)
SHORT_ROWS = Problem(12, 512, 1024, 264, 16, stride=8, padding=4, mode="tf32", gpu=H200)
FEW_OUT = Problem(12, 64, 1, 16896, 7, padding=3, bias=True, mode="tf32", gpu=H200)
TINY = Problem(1, 4, 4, 64, 3, mode="tf32", gpu=H200)
BY_NAME = {row.name: row for row in plan.EVERY_PLAN}


def on_cpu(problem: Problem) -> Problem:
    return replace(problem, gpu=None, mode="ieee")


def test_names_are_distinct_and_no_family_takes_another_plans_name() -> None:
    assert len(BY_NAME) == len(plan.EVERY_PLAN)
    for row in plan.PLANS:
        assert row.family in BY_NAME or row.family in plan.TENSOR_CORE_FAMILIES


@pytest.mark.parametrize(
    ("name", "problem", "reason"),
    [
        ("hopper_128x256", LAYER_67, None),
        ("hopper_128x256", on_cpu(LAYER_67), "needs a CUDA device"),
        ("hopper_128x256", replace(LAYER_67, gpu=B200), "needs compute capability 9.0"),
        ("hopper_128x256", replace(LAYER_67, gpu=A100), "needs compute capability 9.0"),
        ("hopper_128x256", replace(LAYER_67, mode="ieee"), "has no ieee arithmetic"),
        ("hopper_128x256", replace(LAYER_67, stride=20), "more shared memory"),
        ("hopper_128x256", replace(LAYER_67, length=1 << 30), "rows below"),
        ("hopper_128x128", replace(LAYER_67, mode="ieee"), None),
        ("hopper_128x128", replace(LAYER_67, mode="ieee", channels_in=128), "18 steps"),
        ("hopper_96x128", replace(LAYER_67, mode="ieee", channels_in=128), None),
        ("hopper_split_128x128", LAYER_67, "has no tf32 arithmetic"),
        ("hopper_split_128x128", replace(LAYER_67, mode="ieee", batch=31), None),
        ("hopper_split_128x128", replace(LAYER_67, mode="ieee", batch=33), "bytes or less"),
        (
            "hopper_split_96x128",
            replace(UPSAMPLING, mode="ieee", stride=17, kernel_size=17),
            "one phase",
        ),
        ("hopper_128x256", replace(LAYER_67, batch=gpu_costs.MOST_BATCH), "batches below"),
        ("hopper_128x256", UPSAMPLING, None),
        ("hopper_128x256", replace(UPSAMPLING, length=1 << 27), "rows below"),
        ("hopper_128x256", replace(UPSAMPLING, dilation=9), None),
        (
            "hopper_128x256",
            replace(UPSAMPLING, length=1, kernel_size=1, stride=17, padding=0),
            None,
        ),
        ("hopper_128x128", replace(UPSAMPLING, mode="ieee"), "18 steps of 16 channels and taps"),
        ("dense_128x128", LAYER_67, None),
        ("dense_128x128", replace(LAYER_67, transposed=True, stride=3), None),
        ("dense_128x128", on_cpu(LAYER_67), "needs a CUDA device"),
        ("dense_128x128", replace(LAYER_67, gpu=V100), "needs compute capability 8.0"),
        ("dense_128x128", replace(LAYER_67, mode="fp64"), "has no fp64 arithmetic"),
        ("sliding", LAYER_67, None),
        ("sliding", on_cpu(LAYER_67), "needs a CUDA device"),
        ("sliding", replace(LAYER_67, gpu=V100), "needs compute capability 8.0"),
        ("sliding", replace(LAYER_67, mode="fp64"), "has no fp64 arithmetic"),
        (
            "sliding",
            replace(LAYER_67, transposed=True, stride=3),
            "strides of 1 and (2, 4, 8), not 3",
        ),
        ("sliding", replace(LAYER_67, transposed=True, stride=2, dilation=3), "with a dilation"),
        ("sliding", replace(LAYER_67, length=1 << 29), "counts rows, steps and positions"),
        (
            "sliding",
            Problem(1, 1, 8, 9000, 4000, mode="tf32", gpu=H200),
            "weights in shared memory",
        ),
        ("sliding", Problem(1, 1, 8, 9000, 4000, mode="bf16", gpu=H200), None),
        ("sliding", Problem(1, 2, 2, 90000, 30000, groups=2, mode="tf32", gpu=A100), None),
        (
            "sliding",
            Problem(1, 2, 2, 90000, 30000, groups=2, mode="tf32", gpu=Gpu("RTX 3090", (8, 6), 82)),
            "weights in shared memory",
        ),
        ("toeplitz", LONG_KERNEL, None),
        ("toeplitz", replace(LONG_KERNEL, transposed=True, channels_out=1536), None),
        ("toeplitz", replace(LONG_KERNEL, gpu=A100, mode="fp16"), None),
        ("toeplitz", on_cpu(LONG_KERNEL), "needs a CUDA device"),
        ("toeplitz", replace(LONG_KERNEL, gpu=V100), "needs compute capability 8.0"),
        ("toeplitz", replace(LONG_KERNEL, mode="ieee"), None),
        ("toeplitz", replace(LONG_KERNEL, mode="fp64"), "has no fp64 arithmetic"),
        ("toeplitz", replace(LONG_KERNEL, groups=384), "one input channel a group, not 2"),
        ("toeplitz", replace(LONG_KERNEL, stride=2), "a stride of 2"),
        ("toeplitz", replace(LONG_KERNEL, dilation=2), "dilation 2"),
        ("toeplitz", replace(LONG_KERNEL, length=1 << 29), "positions of padded rows below"),
        ("toeplitz", replace(LONG_KERNEL, batch=1 << 19, length=1 << 18), "blocks"),
        ("explicit_128x224", SHORT_ROWS, None),
        ("explicit_128x224", SHORT_ROWS.adjoint, None),
        ("explicit_128x224", on_cpu(SHORT_ROWS), "needs a CUDA device"),
        ("explicit_128x224", replace(SHORT_ROWS, gpu=A100), "needs compute capability 9.0"),
        ("explicit_128x224", replace(SHORT_ROWS, mode="ieee"), "has no ieee arithmetic"),
        ("explicit_128x192", replace(SHORT_ROWS, mode="ieee"), None),
        ("explicit_128x192", SHORT_ROWS, "has no tf32 arithmetic"),
        ("explicit_128x128", replace(SHORT_ROWS, mode="ieee", length=1 << 20), "writes out up to"),
        ("explicit_128x224", replace(SHORT_ROWS, channels_in=511, kernel_size=15), "16 bytes"),
        ("explicit_128x224", replace(SHORT_ROWS.adjoint, stride=17), "strides up to 16"),
        ("explicit_128x224", replace(SHORT_ROWS.adjoint, groups=64), "groups of 32 channels"),
        ("explicit_128x224", replace(SHORT_ROWS, length=1 << 27), "padded rows below"),
        ("explicit_128x224", replace(SHORT_ROWS, length=1 << 20), "writes out up to"),
        ("kn2row", FEW_OUT, None),
        ("kn2row", replace(FEW_OUT, transposed=True, stride=3, dilation=2, channels_out=8), None),
        ("kn2row", replace(FEW_OUT, gpu=A100, mode="fp16", channels_out=8), None),
        ("kn2row", replace(FEW_OUT, groups=2, channels_out=2), None),
        ("kn2row", on_cpu(FEW_OUT), "needs a CUDA device"),
        ("kn2row", replace(FEW_OUT, gpu=V100), "needs compute capability 8.0"),
        ("kn2row", replace(FEW_OUT, mode="ieee"), None),
        ("kn2row", replace(FEW_OUT, mode="ieee", kernel_size=33), "32 pairs"),
        (
            "kn2row",
            replace(FEW_OUT, channels_out=9),
            "64 pairs of an output channel and a tap, not",
        ),
        ("kn2row", replace(FEW_OUT, kernel_size=65), "64 pairs"),
        ("kn2row", replace(FEW_OUT, channels_in=768, channels_out=4, kernel_size=15), None),
        ("kn2row", replace(FEW_OUT, channels_in=8192), "in shared memory"),
        ("kn2row", replace(FEW_OUT, dilation=50), "a window that no tap leaves"),
        ("kn2row", replace(FEW_OUT, length=1 << 29), "positions of padded rows"),
        ("kn2row", replace(FEW_OUT, stride=1 << 15, padding=1 << 18), "strides below"),
        ("kn2row", replace(FEW_OUT, batch=1 << 19), "tiles"),
        ("grad_kn2row", FEW_OUT, None),
        ("grad_kn2row", replace(FEW_OUT, channels_in=1, channels_out=512, stride=8), None),
        ("grad_kn2row", replace(FEW_OUT, gpu=A100, mode="ieee"), None),
        ("grad_kn2row", replace(FEW_OUT, groups=2, channels_out=2), None),
        ("grad_kn2row", on_cpu(FEW_OUT), "needs a CUDA device"),
        ("grad_kn2row", replace(FEW_OUT, gpu=V100), "needs compute capability 8.0"),
        ("grad_kn2row", replace(FEW_OUT, mode="fp64"), "no fp64"),
        ("grad_kn2row", replace(FEW_OUT, kernel_size=33), "32 pairs"),
        ("grad_kn2row", replace(FEW_OUT, stride=2), "no strides where output channels are few"),
        ("grad_kn2row", replace(FEW_OUT, dilation=4000), "in shared memory"),
        ("grad_kn2row", replace(FEW_OUT, length=1 << 29), "positions of padded rows"),
        ("grad_kn2row", replace(FEW_OUT, batch=1 << 28), "tensors of fewer than"),
        (
            "grad_kn2row",
            Problem(1, 1, 1 << 31, 1, 1, mode="bf16", gpu=H200),
            "counts batches, channels and positions",
        ),
        (
            "kn2row",
            Problem(1, 1 << 17, 1 << 16, 9, 3, groups=1 << 16, mode="tf32", gpu=H200),
            "65536 groups",
        ),
        ("direct", replace(LAYER_67, mode="fp64"), None),
        ("direct", replace(LAYER_67, gpu=V100), None),
        ("direct", replace(LAYER_67, transposed=True, stride=3, output_padding=2), None),
        ("direct", on_cpu(LAYER_67), "needs a CUDA device"),
        ("im2col", on_cpu(LAYER_67), None),
        ("im2col", replace(on_cpu(LAYER_67), mode="bf16"), "has no bf16 arithmetic on the CPU"),
        ("im2col", replace(LAYER_67, transposed=True), None),
        ("im2col", replace(on_cpu(LAYER_67), mode="fp16", transposed=True), "no fp16 arithmetic"),
        ("aten", replace(on_cpu(LAYER_67), mode="fp16", transposed=True), None),
    ],
)
def test_why_not(name: str, problem: Problem, reason: str | None) -> None:
    answer = BY_NAME[name].why_not(problem)
    assert answer == reason if reason is None else reason in str(answer)


@pytest.mark.parametrize("mode", ["tf32", "ieee", "bf16", "fp16"])
def test_the_showcases_run_on_tensor_cores(mode: str) -> None:
    layer_76 = Problem(64, 64, 128, 524280, 3, stride=3, dilation=4, gpu=H200)
    for bias in (False, True):
        for gpu in (H200, A100, B200):
            families = {
                plan.select(replace(problem, mode=mode, bias=bias, gpu=gpu)).family
                for problem in (LAYER_67, layer_76)
            }
            assert families <= ({"hopper", "dense"} if gpu is H200 else {"dense"})
        assert plan.select(replace(LAYER_67, mode=mode, bias=bias)).family == "hopper"


def test_the_showcases_gradients_run_on_tensor_cores() -> None:
    for mode, families in (("tf32", "hopper"), ("bf16", "turned"), ("ieee", "dense")):
        for gpu, family in ((H200, families), (A100, "dense"), (B200, "dense")):
            problem = replace(LAYER_67, mode=mode, gpu=gpu)
            assert plan.select(problem, gradient=True).family == family
    wide, strided = plan.GRADIENT_PLANS[0], replace(LAYER_67, stride=4)
    assert wide.name == "grad_hopper_128x256"
    assert wide.why_not(strided) is None
    assert "strides up to 3" in str(wide.why_not(replace(strided, mode="bf16")))
    assert "capability 9.0" in str(wide.why_not(replace(LAYER_67, gpu=A100)))
    assert "rows below" in str(wide.why_not(replace(LAYER_67, length=1 << 30)))
    assert "rows, these are" in str(wide.why_not(replace(LAYER_67, batch=1 << 24, length=8)))


def test_tiles_follow_the_channels() -> None:
    chosen = {
        n: plan.select(replace(LAYER_67, channels_out=n, mode="bf16", gpu=A100)).name
        for n in (32, 64, 128)
    }
    assert chosen == {32: "dense_32x128", 64: "dense_64x128", 128: "dense_128x128"}
    chosen = {
        n: plan.select(replace(LAYER_67, channels_out=n, mode="bf16")).name for n in (32, 64, 96)
    }
    assert chosen == {32: "hopper_32x384", 64: "hopper_64x384", 96: "hopper_96x256"}


def test_a_tiny_problem_takes_one_launch() -> None:
    assert plan.select(TINY).name == "sliding"
    assert plan.select(replace(TINY, mode="fp64")).name == "direct"


@pytest.mark.parametrize("mode", ["tf32", "ieee", "bf16", "fp16"])
def test_groups_of_few_channels_slide(mode: str) -> None:
    depthwise = Problem(8, 2048, 2048, 8192, 4, padding=3, groups=2048, mode=mode, gpu=H200)
    for problem in (
        depthwise,
        replace(depthwise, transposed=True, stride=2),
        replace(depthwise, kernel_size=31, dilation=2),
        Problem(64, 32, 1, 24006, 7, mode=mode, gpu=H200),
    ):
        assert plan.select(problem).name == "sliding"


@pytest.mark.parametrize("mode", ["tf32", "bf16", "fp16"])
def test_long_kernels_run_on_tensor_cores(mode: str) -> None:
    for gpu in (H200, A100, B200):
        problem = replace(LONG_KERNEL, mode=mode, gpu=gpu)
        for each in (problem, problem.adjoint, replace(problem, channels_out=1536)):
            assert plan.select(each).name == "toeplitz"
        assert plan.select(problem, gradient=True).name == "grad_toeplitz"
    accurate = replace(LONG_KERNEL, mode="ieee")
    assert plan.select(accurate).name == "toeplitz"
    assert plan.select(accurate, gradient=True).name == "grad_sliding"
    assert plan.select(replace(accurate, kernel_size=7, padding=6)).name == "sliding"
    assert plan.select(replace(LONG_KERNEL, mode=mode, kernel_size=7, padding=6)).name == "sliding"


@pytest.mark.parametrize("mode", ["tf32", "ieee", "bf16", "fp16"])
def test_few_output_channels_are_read_once(mode: str) -> None:
    stem = Problem(2, 4, 768, 196608, 15, padding=7, mode=mode, gpu=H200)
    assert plan.select(replace(FEW_OUT, mode=mode)).name == "kn2row"
    if mode != "ieee":  # which has no tile of 60 pairs
        assert plan.select(stem.adjoint).name == "kn2row"
    assert plan.select(stem).family == "hopper"


def test_taps_that_see_padding_alone_cost_nothing() -> None:
    row = BY_NAME["toeplitz"]
    causal = replace(LONG_KERNEL, length=4096, padding=4095, kernel_size=4096)
    without_padding = replace(causal, length=2 * 4096 - 1 + 4095, padding=0)
    assert causal.length_out == without_padding.length_out
    assert row.cost(causal) < 0.6 * row.cost(without_padding)


@pytest.mark.parametrize("mode", ["tf32", "ieee", "bf16", "fp16"])
def test_depthwise_gradients_come_in_one_pass(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_pass(algorithm: str = "", **changes: Any) -> bool:
        problem = replace(DEPTHWISE, mode=mode, **changes)
        of_weight = plan.select(problem.ordinary, algorithm, gradient=True)
        return plan.in_one_pass(of_weight, problem, algorithm)

    assert one_pass() and one_pass(kernel_size=16) and one_pass(padding=40, bias=True)
    assert one_pass(dilation=2) and one_pass(kernel_size=8, dilation=128, padding=448)
    assert one_pass("sliding") and one_pass("grad_sliding")
    assert not one_pass("direct") and not one_pass("aten")
    assert not one_pass("im2col")  # that of the input; the weight's is left free
    apart: tuple[dict[str, Any], ...] = (
        {"kernel_size": 17},
        {"stride": 2},
        {"dilation": 2, "kernel_size": 9},
        {"transposed": True},
        {"channels_out": 128},
        {"groups": 32},
        {"gpu": V100},
        {"batch": 1 << 24, "length": 16},
    )
    for changes in apart:
        assert not one_pass(**changes), changes
    problem = replace(DEPTHWISE, gpu=None, mode="ieee")
    assert not plan.in_one_pass(plan.select(problem, gradient=True), problem)
    monkeypatch.setenv("FASTCONV1D_PLAN", "im2col")
    assert not one_pass()
    monkeypatch.setenv("FASTCONV1D_PLAN", "sliding")
    assert one_pass()


def test_transposed_strides_share_no_rows() -> None:
    problem = Problem(8, 16, 16, 20000, 4, stride=2, padding=1, transposed=True, gpu=H200)
    for mode in ("tf32", "bf16"):
        assert plan.select(replace(problem, mode=mode)).family == "hopper"
        assert plan.select(replace(problem, mode=mode, gpu=A100)).name != "sliding"


@pytest.mark.parametrize("mode", ["tf32", "bf16", "fp64"])
def test_an_empty_batch_costs_something(mode: str) -> None:
    for transposed in (False, True):
        for base in (TINY, SHORT_ROWS, FEW_OUT):
            problem = replace(base, batch=0, mode=mode, transposed=transposed)
            assert plan.select(problem).cost(problem) > 0
            assert plan.select(problem.ordinary, gradient=True).cost(problem.ordinary) > 0


def test_who_adds_up_the_gradient_of_a_bias() -> None:
    aten, ours = (plan.select(LAYER_67, name, gradient=True) for name in ("aten", "hopper"))
    biased = replace(LAYER_67, bias=True)
    turned = replace(biased, transposed=True)
    assert plan.bias_alone(aten, biased)
    assert plan.bias_alone(ours, turned)
    assert plan.bias_alone(ours, replace(turned, length=1 << 30))
    assert not plan.bias_alone(aten, biased, "aten")
    for problem in (LAYER_67, biased, replace(turned, bias=False), on_cpu(turned)):
        assert not plan.bias_alone(ours, problem), problem


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_costs_are_explained_on_every_gpu_and_in_every_mode(mode: str, gradient: bool) -> None:
    transposed = Problem(2, 8, 8, 100, 4, stride=2, transposed=True, bias=True)
    for problem in (LAYER_67, DEPTHWISE, FEW_OUT, transposed, replace(transposed, batch=0)):
        for gpu in (V100, A100, H200):
            case = replace(problem, mode=mode, gpu=gpu)
            rows = plan.explain(case.ordinary if gradient else case, gradient=gradient)
            assert all(0 < cost < math.inf for _, reason, cost in rows if reason is None)


def test_aten_runs_what_would_be_slower_here() -> None:
    wide = Problem(4, 768, 768, 131072, 5, padding=2, mode="tf32", gpu=A100)
    assert plan.select(wide).name == "aten"
    assert plan.select(replace(wide, gpu=H200, bias=True)).name == "hopper_256x128"
    assert plan.select(replace(LAYER_67, mode="fp64")).name == "aten"


def test_torch_takes_longer_where_channels_do_not_fill_16_bytes() -> None:
    layer = Problem(32, 448, 448, 400, 3, padding=8, dilation=4, mode="tf32", gpu=H200)
    ragged = replace(layer, channels_in=450)
    assert gpu_costs.aten(ragged) > 1.25 * gpu_costs.aten(layer)
    exact = [replace(problem, mode="ieee") for problem in (ragged, layer)]
    assert gpu_costs.aten(exact[0]) < 1.05 * gpu_costs.aten(exact[1])


def test_an_input_is_split_once_where_many_products_see_it() -> None:
    wide = Problem(8, 1280, 1280, 3000, 3, stride=2, padding=1, bias=True, mode="ieee", gpu=H200)
    assert plan.select(wide).name == "hopper_split_96x128"
    assert plan.select(replace(LAYER_67, mode="ieee")).name == "hopper_128x128"


def test_taps_beyond_a_tile_are_copied_one_by_one() -> None:
    """Unless all of them are one part: rows between them are read by nobody."""
    layer = Problem(64, 25, 25, 784, 7, padding=768, dilation=128, mode="bf16", gpu=H200)
    tile = BY_NAME["hopper_32x384"].tiles["bf16"]
    assert isinstance(tile, tiles.HopperTile)
    walk = tiles.hopper_walk(tile, layer)
    assert walk is not None and (walk.parts, walk.copied) == (7, 3 * 136)
    near = tiles.hopper_walk(tile, replace(layer, dilation=40))
    few = tiles.hopper_walk(tile, replace(layer, kernel_size=2))
    assert near is not None and 1 < near.parts < 7
    assert few is not None and few.parts == 1


def test_taps_beyond_a_tile_have_blocks_of_their_own() -> None:
    """Where these find room, and begin alike modulo 16 bytes."""
    layer = Problem(16, 256, 256, 16384, 3, padding=128, dilation=128, mode="tf32", gpu=H200)
    tile = BY_NAME["hopper_256x128"].tiles["tf32"]
    assert isinstance(tile, tiles.HopperTile)
    copied = {}
    for dilation in (32, 64, 128, 130, 512):
        walk = tiles.hopper_walk(tile, replace(layer, padding=dilation, dilation=dilation))
        assert walk is not None
        copied[dilation] = (walk.parts, walk.copied)
    assert copied == {
        32: (1, 2 * 136),
        64: (1, 2 * 200),
        128: (1, 6 * 72),
        130: (3, 2 * 72),
        512: (1, 6 * 72),
    }


def test_a_transposed_convolution_is_one_launch_or_many() -> None:
    """Woven outputs cost little more than ordinary ones; phases cost a launch each, and more."""
    row, woven = BY_NAME["hopper_128x256"], tiles.hopper_phase(UPSAMPLING)
    assert (woven.kernel_size, woven.channels_out, woven.length_out) == (2, 8 * 256, 1001)
    assert woven.output_elements >= UPSAMPLING.output_elements
    assert 1 < row.cost(UPSAMPLING) / row.cost(woven) < 1.2
    phases = replace(UPSAMPLING, stride=32, kernel_size=32)
    assert row.cost(phases) > 32 * gpu_costs.HOPPER["tf32"].start
    assert plan.select(UPSAMPLING).family == "hopper"


def test_the_cpu_runs_its_own_kernel_and_im2col_when_asked() -> None:
    for problem in (on_cpu(LAYER_67), on_cpu(TINY)):
        assert plan.select(problem).name == "simd"
        assert plan.select(problem, "im2col").name == "im2col"


@pytest.mark.parametrize("mode", ["tf32", "ieee", "bf16", "fp64"])
def test_im2col_is_never_chosen_unasked(mode: str) -> None:
    for channels in (1, 16, 256):
        for kernel in (1, 3, 31):
            for transposed in (False, True):
                problem = Problem(
                    8, channels, channels, 4096, kernel, transposed=transposed, mode=mode, gpu=H200
                )
                assert plan.select(problem).name != "im2col"
                assert "im2col" not in [row.name for row in plan.candidates(problem)]


def test_im2col_writes_and_reads_its_columns() -> None:
    im2col = BY_NAME["im2col"]
    for transposed in (False, True):
        problem = replace(LAYER_67, mode="fp16", transposed=transposed)
        longer = replace(problem, kernel_size=6)
        channels = problem.channels_out if transposed else problem.channels_in
        column_bytes = 4 if transposed else 2  # sums of 16-bit products are not rounded on the way
        more = 2 * problem.batch * channels * 3 * problem.length * column_bytes
        more_us = more / gpu_costs.BANDWIDTH + problem.flops / gpu_costs.ATEN_RATE["fp16"]
        assert im2col.cost(longer) - im2col.cost(problem) == pytest.approx(more_us, rel=0.01)


def test_a_thousand_lengths_are_few_decisions_and_no_growing_cache() -> None:
    plan._cheapest_first.cache_clear()
    chosen = {plan.select(replace(LAYER_67, length=n)).name for n in range(1000, 2000)}
    assert len(chosen) <= 3
    assert plan._cheapest_first.cache_info().currsize <= 32
    for length in range(1000, 2000, 97):
        problem = replace(LAYER_67, length=length, batch=3)
        assert plan.select(problem) is plan.select(problem.bucketed())


def test_a_family_takes_its_best_tile_and_falls_back_in_order() -> None:
    assert plan.select(LAYER_67, "dense").name == "dense_128x256"
    assert plan.select(LAYER_67, "dense_32x128").name == "dense_32x128"
    order = [row.name for row in plan.candidates(LAYER_67, "direct")]
    assert order[0] == "direct"
    assert order.count("direct") == 1
    assert "aten" in order


def test_each_phase_of_a_transposed_convolution_costs_its_launches() -> None:
    """As much arithmetic whatever the stride, so many launches more, and more traffic."""
    problems = [
        Problem(1, 64, 64, 4096, 8, stride=stride, transposed=True, mode="tf32", gpu=A100)
        for stride in (1, 2, 4, 8)
    ]
    dense = BY_NAME["dense_64x128"]
    ordinary = replace(problems[0], transposed=False, padding=7)
    assert problems[0].length_out == ordinary.length_out
    for row in (dense, BY_NAME["direct"]):
        assert row.cost(problems[0]) == pytest.approx(row.cost(ordinary), rel=0.01)
    for one, twice in pairwise(problems):
        more = dense.cost(twice) - dense.cost(one)
        assert gpu_costs.DENSE_START * one.stride < more < 2 * gpu_costs.DENSE_START * one.stride
    # As many phases as outputs at most: the others of a stride beyond the output have none.
    few = replace(problems[0], length=1, stride=1000)
    assert dense.cost(few) < 9 * gpu_costs.DENSE_START


def test_the_plain_kernel_takes_the_taps_of_the_longest_phase() -> None:
    problem = Problem(8, 64, 64, 65536, 8, stride=4, transposed=True, mode="tf32", gpu=A100)
    direct = BY_NAME["direct"]
    # Strides and dilations with a common factor leave phases without taps, whose threads wait.
    assert direct.cost(replace(problem, dilation=4)) > 3.9 * direct.cost(problem)
    assert direct.cost(replace(problem, dilation=3)) == pytest.approx(direct.cost(problem), rel=0.1)


def test_an_unknown_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(ValueError, match="algorithm is 'winograd', expected one of aten, dense"):
        plan.select(LAYER_67, "winograd")
    with pytest.raises(ValueError, match="winograd"):
        plan.explain(LAYER_67, "winograd")


@pytest.mark.parametrize("strict", ["0", "1"])
def test_a_keyword_that_is_not_legal_is_always_an_error(
    strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTCONV1D_STRICT", strict)
    with pytest.raises(RuntimeError, match=r"algorithm 'dense' cannot run .*: needs a CUDA device"):
        plan.select(on_cpu(LAYER_67), "dense")


def test_the_environment_forces_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV1D_PLAN", "im2col")
    assert plan.select(LAYER_67).name == "im2col"
    assert plan.select(LAYER_67, "aten").name == "aten"
    monkeypatch.setenv("FASTCONV1D_PLAN", "winograd")
    with pytest.raises(ValueError, match="FASTCONV1D_PLAN is 'winograd'"):
        plan.select(LAYER_67)


def test_the_environment_falls_back_once_warned_unless_strict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTCONV1D_PLAN", "im2col")
    problem = replace(on_cpu(LAYER_67), mode="bf16")
    with pytest.raises(RuntimeError, match=r"PLAN 'im2col' cannot run .*: has no bf16 arithmetic"):
        plan.select(problem)
    monkeypatch.setenv("FASTCONV1D_STRICT", "0")
    plan._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="has no bf16 arithmetic") as caught:
        chosen = plan.select(problem)
        assert plan.select(replace(problem, length=70000)) is chosen
    assert chosen.name != "im2col"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.select(problem)


def test_explain_covers_the_table() -> None:
    rows = plan.explain(replace(LAYER_67, mode="fp64"))
    assert [row for row, _, _ in rows] == list(plan.PLANS)
    for row, reason, cost in rows:
        assert (reason is None) == (row.name in ("direct", "im2col", "aten"))
        assert cost > 0
    assert [row.name for row, _, _ in plan.explain(LAYER_67, "direct")] == ["direct"]


@pytest.mark.parametrize("gpu", [None, H200], ids=["cpu", "gpu"])
@pytest.mark.parametrize("mode", MODES)
def test_explain_has_a_cost_for_every_case(mode: str, gpu: Gpu | None) -> None:
    for kind in (LAYER_67, SHORT_ROWS, DEPTHWISE):
        for kernel_size in (1, 9, 40):
            for _, _, cost in plan.explain(
                replace(kind, mode=mode, gpu=gpu, kernel_size=kernel_size)
            ):
                assert cost > 0


@pytest.mark.parametrize("mode", ["tf32", "ieee", "bf16"])
def test_large_weights_over_few_positions_are_written_out(mode: str) -> None:
    problem = replace(SHORT_ROWS, mode=mode)
    for each in (problem, problem.adjoint):
        assert plan.select(each).family == "explicit"
        # What counts is the number of positions, not how many rows these lie in.
        assert plan.select(replace(each, batch=1, length=12 * each.length)).family == "explicit"
        assert plan.select(replace(each, batch=500)).family != "explicit"
    if mode == "ieee":
        return
    assert plan.select(problem, gradient=True).family == "explicit"
    assert plan.select(replace(problem, batch=500), gradient=True).family != "explicit"


def test_every_plan_has_its_library_and_variant() -> None:
    kernels, libraries = plan.kernels(), plan.libraries()
    assert set(kernels) == {
        "dense_tf32", "dense_ieee", "dense_bf16", "dense_fp16", "direct", "im2col",
        "hopper_tf32", "hopper_ieee", "hopper_bf16", "hopper_fp16",
        "sliding_fp32", "sliding_bf16", "sliding_fp16",
        "toeplitz_tf32", "toeplitz_ieee", "toeplitz_bf16", "toeplitz_fp16",
        "grad_toeplitz_tf32", "grad_toeplitz_bf16", "grad_toeplitz_fp16",
        "explicit_tf32", "explicit_ieee", "explicit_bf16", "explicit_fp16",
        "grad_explicit_tf32", "grad_explicit_bf16", "grad_explicit_fp16",
        "kn2row_tf32", "kn2row_ieee", "kn2row_bf16", "kn2row_fp16",
        "grad_kn2row_tf32", "grad_kn2row_ieee", "grad_kn2row_bf16", "grad_kn2row_fp16",
        "grad_hopper_tf32", "grad_hopper_bf16", "grad_hopper_fp16",
        "grad_turned_bf16", "grad_turned_fp16",
        "grad_dense_tf32", "grad_dense_ieee", "grad_dense_bf16", "grad_dense_fp16",
        "grad_sliding_fp32", "grad_sliding_bf16", "grad_sliding_fp16", "grad_direct", "grad_bias",
        "binding_cuda", *plan.CPU_LIBRARIES,
    }  # fmt: skip
    assert kernels["dense_tf32"].splitlines() == [
        '#include "dense.cuh"',
        "FASTCONV1D_DENSE_LIBRARY(fastconv1d::Tf32, fastconv1d::Tile<4, 4, 2, 8>, "
        "fastconv1d::Tile<4, 2, 2, 8>, fastconv1d::Tile<4, 2, 1, 8>, fastconv1d::Tile<2, 4, 1, 4>)",
    ]
    assert kernels["hopper_ieee"].splitlines() == [
        '#include "hopper.cuh"',
        "FASTCONV1D_HOPPER_LIBRARY(fastconv1d::Halves, "
        + ", ".join(
            f"fastconv1d::HopperTile<{tile}>"
            for tile in (
                *("2, 1, 128, false, false", "2, 1, 96, false, false", "2, 1, 64, false, false"),
                *("3, 1, 32, false, false", "2, 1, 128, false, true"),
                *("2, 1, 128, true, false", "2, 1, 96, true, false", "2, 1, 64, true, false"),
            )
        )
        + ")",
    ]
    assert set(libraries) - set(plan.libraries("90a")) == set(plan.CPU_LIBRARIES)
    assert set(plan.kernels("90a")) == set(kernels) - set(plan.CPU_LIBRARIES)
    assert not any(re.search("hopper|explicit", name) for name in plan.libraries("100"))
    for row in plan.EVERY_PLAN:
        for mode in row.tiles:
            problem = replace(LAYER_67, mode=mode)
            glue = libraries[plan.library_of(row, problem)]
            tiles_there = re.findall(r"fastconv1d::\w+<[^>]*>", glue)
            assert len(tiles_there) <= plan.MOST_TILES
            assert tiles_there[plan.variant_of(row, problem)] == row.tiles[mode].glue
        if not row.tiles:
            name = plan.library_of(row, LAYER_67)
            assert name in libraries or (name == "" and row.family == "aten")
    # What is compiled apart is what is compiled together.
    for name, glue in kernels.items():
        parts = [text for part, text in libraries.items() if re.fullmatch(rf"{name}(_\d+)?", part)]
        compiled = [re.findall(r"fastconv1d::\w+<[^>]*>", text) for text in (glue, *parts)]
        assert list(chain(*compiled[1:])) == compiled[0], name
    assert plan.library_of(BY_NAME["im2col"], on_cpu(LAYER_67)) == ""
    assert plan.variant_of(BY_NAME["dense_32x128"], LAYER_67) == 3
    assert plan.library_of(BY_NAME["hopper_32x256"], LAYER_67) == "hopper_tf32_3"
    assert plan.variant_of(BY_NAME["direct"], replace(LAYER_67, mode="fp64")) == 4
    assert plan.variant_of(BY_NAME["im2col"], replace(LAYER_67, mode="bf16")) == 2
    assert plan.variant_of(BY_NAME["im2col"], replace(LAYER_67, mode="fp16")) == 3


def test_a_tiles_name_is_what_it_covers() -> None:
    for row in plan.PLANS:
        for tile in row.tiles.values():
            if isinstance(tile, tiles.ProductTile):
                covers = tile.rows, tile.columns
            else:
                covers = tile.channels, tile.positions
            kind = "_split" * getattr(tile, "presplit", False)
            kind += "_folded" * getattr(tile, "folded", False)
            assert row.name == "{}{}_{}x{}".format(row.family, kind, *covers)


def test_a_batch_that_the_dense_kernel_does_not_walk() -> None:
    problem = replace(LAYER_67, batch=gpu_costs.MOST_BATCH)
    assert "batches below" in str(BY_NAME["dense_128x128"].why_not(problem))
    fewer = replace(problem, batch=gpu_costs.MOST_BATCH - 1)
    assert BY_NAME["dense_128x128"].why_not(fewer) is None


def test_a_stride_that_the_dense_kernel_does_not_walk() -> None:
    problem = replace(LAYER_67, length=1 << 25, stride=gpu_costs.MOST_STRIDE + 1)
    assert "strides up to" in str(BY_NAME["dense_128x128"].why_not(problem))
    assert BY_NAME["dense_128x128"].why_not(replace(problem, stride=gpu_costs.MOST_STRIDE)) is None
    header = (build.CSRC / "schedule.h").read_text()
    assert f"kMostLoadStep = 1 << {gpu_costs.MOST_STRIDE.bit_length() - 1};" in header


def test_what_the_depthwise_kernels_take() -> None:
    header = " ".join((build.CSRC / "depthwise.cuh").read_text().split())
    for name, value in (
        ("kMostTaps", gpu_costs.DEPTHWISE_TAPS),
        ("kMostOfPhase", gpu_costs.DEPTHWISE_FEW_TAPS),
        ("kMostChannels", gpu_costs.DEPTHWISE_CHANNELS),
        ("kThreadsEnough", gpu_costs.DEPTHWISE_THREADS),
        ("kChannelChain", gpu_costs.SLIDING_CHAIN),
    ):
        assert re.search(rf"{name} = {value}[,;]", header), name


WALKS = """#include <cstdio>
#include "schedule.h"
using namespace fastconv1d;
int main() {
  long warpgroups, planes, values, size, alike, outputs, channels, least, folds, fixed, many;
  ConvArgs a{};
  while (scanf("%ld %ld %ld %ld %ld %ld %ld %ld %ld %ld %ld", &warpgroups, &planes, &values,
               &size, &alike, &outputs, &channels, &least, &folds, &fixed, &many) == 11 &&
         scanf("%ld %ld %ld %ld %ld %ld %ld %ld", &a.channels_in, &a.channels_out, &a.length_out,
               &a.kernel_size, &a.stride, &a.padding, &a.dilation, &a.transposed) == 8) {
    const long phases = is_woven(a) ? 1 : phase_count(a);
    Phase phase = is_woven(a) ? woven_phase(a) : phase_of(a, 0);
    const long positions = phase.positions;
    for (long r = 1; r < phases; ++r)
      if (phase_of(a, r).taps > phase.taps) phase = phase_of(a, r);
    const Pipeline l = pipeline_of({warpgroups, outputs, channels, planes, values, size, alike,
                                    least, folds && weave_of(a).stride == 1,
                                    (227 << 10) - fixed, many != 0}, phase, a.channels_in);
    printf("%ld %ld %ld %ld ", phases, phase.taps, phase.shift_step, positions);
    printf("%ld ", ceil_div(a.channels_out, channels / kWeave * weave_of(a).channels));
    const long taps = l.folded > 0 ? 1 : phase.taps;
    printf("%ld ", slices_of_share(channels / 8, l.slices, taps * (l.words / 8), 132));
    const bool own = l.block_step != l.block_outputs * phase.in_step;
    printf("%d %d %d %d %ld %ld %d %d %d %d\\n", l.taps > 0, l.words, l.slices, l.parts,
           own ? taps : l.parts, taps, 1 << (l.kinds_log2 + l.box_rows_log2),
           int(warpgroups) * l.blocks * l.block_positions, l.resident, l.inputs > 1);
  }
}
"""


def test_walks_are_those_of_the_kernel(tmp_path: Path) -> None:
    """`hopper_walk` says of random problems what csrc/schedule.h makes of them."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    program = tmp_path / "walks"
    command = ["g++", "-std=c++17", f"-I{CSRC}", "-x", "c++", "-", "-o", str(program)]
    subprocess.run(command, input=WALKS, text=True, check=True)
    random = Random(0)
    cases = []
    for _ in range(500):
        mode = random.choice(("tf32", "ieee", "bf16"))
        tile = random.choice(plan.tile_rows("hopper", mode)).tiles[mode]
        problem = Problem(
            1,
            random.choice((1, 3, 4, 16, 33, 512)),
            random.choice((1, 16, 128, 530)),
            1_000_000 + random.randrange(16),
            random.choice((1, 2, 3, 10, 16, 41, 500)),
            stride=random.choice((1, 2, 3, 5, 8, 16, 33, 64)),
            padding=random.choice((0, 1, 2, 7, 100)),
            dilation=random.choice((1, 2, 3, 100, 700)),
            transposed=random.random() < 0.5,
            mode=mode,
        )
        cases.append((tile, problem, random.random() < 0.5))
    # Taps are words, of two planes, that leave room for one stage of the input.
    folded_tile = BY_NAME["hopper_folded_128x128"].tiles["ieee"]
    few = Problem(1, 5, 128, 1_000_000, 16, stride=15, mode="ieee")
    cases += [(folded_tile, few, many) for many in (False, True)]
    lines = []
    for tile, problem, many in cases:
        size = problem.dtype.itemsize
        values = tiles.HOPPER_VALUES[problem.mode]
        numbers: tuple[int, ...] = (
            tile.warpgroups,
            tiles.HOPPER_PLANES[problem.mode],
            values,
            size,
            1 if tile.presplit else 16 // problem.aligned,
        )
        fixed = tiles.hopper_fixed_bytes(tile, problem.mode)
        numbers += (
            tile.positions // tile.warpgroups,
            tile.channels,
            tile.least_words(problem.mode),
            int(tile.folds(problem.mode)),
            fixed,
        )
        numbers += (int(many), problem.channels_in, problem.channels_out, problem.length_out)
        numbers += (problem.kernel_size, problem.stride, problem.padding, problem.dilation)
        numbers += (int(problem.transposed),)
        lines.append(" ".join(map(str, numbers)))
    output = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    ).stdout
    refused = shared = folded = 0
    for (tile, problem, many), line in zip(cases, output.splitlines(), strict=True):
        phases, taps, dilation, positions, channel_blocks, share, fits, *numbers = map(
            int, line.split()
        )
        phase = tiles.hopper_phase(problem)
        assert (tiles.hopper_phases(problem), phase.kernel_size) == (phases, taps), problem
        assert phase.dilation == dilation or taps == 1, problem
        assert phase.length_out == positions, problem
        assert -(-phase.channels_out // tile.channels) == channel_blocks, problem
        walk = tiles.hopper_walk(tile, problem, many)
        assert (walk is not None) == bool(fits), (tile, problem)
        refused += walk is None
        if walk is not None:
            assert list(astuple(walk)) == numbers, problem
            steps = walk.taps * walk.words // 8
            folded += walk.taps < phase.kernel_size
            taken = tiles.hopper_slices_of_share(tile.channels // 8, walk.slices, steps, 132)
            assert taken == share, problem
            shared += taken < walk.slices
    assert min(shared, folded) > 10
    assert 0 < refused < len(cases)
