"""The benchmark: gate before clock, complete rows, honest labels."""

from __future__ import annotations

import json
import os
import time
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import fastconv1d
from fastconv1d import bench, export, layers, ops, plan, timing
from fastconv1d.layers import Layer
from fastconv1d.problem import Problem

ROOT = Path(__file__).parent.parent
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TINY = Layer("Test", "tiny", Problem(2, 8, 16, 101, 3, stride=2, padding=1, bias=True), "here")
TIMES = [field.name for field in fields(bench.Row) if field.name.endswith(("_ms", "_us"))]


def measure(device: str = "cpu", layer: Layer = TINY, **options: Any) -> list[bench.Row]:
    return list(bench.run([layer], device=torch.device(device), seconds=0.02, **options))


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_is_checked_timed_and_complete(device: str) -> None:
    rows = measure(device, modes=["ieee"], bias="both")
    assert [row.bias for row in rows] == [False, True]
    for row in rows:
        assert row.correct, row.failure
        assert row.checked == 2 * 16 * 51
        assert row.error is not None and row.error < 1e-6
        assert row.ours_ms is not None and row.torch_ms is not None and row.floor_ms is not None
        assert row.ratio == pytest.approx(row.torch_ms / row.ours_ms)
        assert row.roofline_share == pytest.approx(row.floor_ms / row.ours_ms)
        assert row.im2col_ms is not None
        assert row.ours_spread is not None
        assert row.ours_spread[0] <= row.ours_ms <= row.ours_spread[1]
        assert row.host_us is not None and row.host_us > 0
        assert (row.peak_bytes is not None) == (device == "cuda")
        assert row.provenance["sources_hash"] == ops.sources_hash(device, forward=True)


TRANSPOSED = Problem(
    2, 8, 16, 23, 3, stride=5, padding=6, output_padding=1, dilation=2, groups=4,
    transposed=True,
)  # fmt: skip
TRAINING = ["backward", "train"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("problem", [TINY.problem, TRANSPOSED], ids=["conv", "transposed"])
def test_gradients_are_checked_and_timed(device: str, problem: Problem) -> None:
    layer = replace(TINY, problem=problem)
    rows = measure(device, layer, modes=["ieee"], bias="both", operations=TRAINING)
    assert [(row.op, row.bias) for row in rows] == [
        (op, bias) for bias in (False, True) for op in TRAINING
    ]
    for row in rows:
        assert row.correct, row.failure
        names = ["grad_input", "grad_weight", *(["grad_bias"] if row.bias else [])]
        checked = problem.input_elements + 8 * 16 // problem.groups * 3 + 16 * row.bias
        if row.op == "train":
            names, checked = ["output", *names], checked + problem.output_elements
        assert row.checked == checked and not row.forced and row.plan
        for errors, worst in ((row.errors, row.error), (row.torch_errors, row.torch_error)):
            assert errors is not None and list(errors) == names
            assert worst == max(errors.values()) and 0 < worst < 1e-6
        assert row.ours_ms is not None and row.torch_ms is not None and row.floor_ms is not None
        assert row.ratio == pytest.approx(row.torch_ms / row.ours_ms)
        assert row.roofline_share == pytest.approx(row.floor_ms / row.ours_ms)
        assert row.host_us is not None and row.torch_host_us is not None
        assert row.im2col_ms is None and row.im2col_peak_bytes is None
        assert (row.peak_bytes is not None) == (device == "cuda")
        assert row.provenance["sources_hash"] == ops.sources_hash(device)
        # One element of so few may be further off than twice torch's worst; all together may not.
        assert row.torch_correct and "L2" not in (row.less_accurate or "")
    if device == "cpu":
        of_weight = plan.select(problem.ordinary, gradient=True).name  # ours or ATen's: it depends
        assert [row.plan for row in rows] == [
            f"simd + {of_weight}",
            f"simd + simd + {of_weight}",
        ] * 2
        backward, train = rows[0].floor_ms, rows[1].floor_ms
        assert backward and train and backward < train  # of ceilings measured once a run


@pytest.mark.parametrize("gradient", [0, 1, 2])
def test_a_wrong_gradient_gets_no_times(monkeypatch: pytest.MonkeyPatch, gradient: int) -> None:
    right = ops.convolution_backward

    def wrong(*arguments: Any) -> Any:
        gradients = right(*arguments)
        gradients[gradient].view(-1)[-1] += 0.5
        return gradients

    monkeypatch.setattr(ops, "convolution_backward", wrong)
    [row] = measure(operations=["backward"], plans=["aten"])
    assert row.correct is False
    name = ("grad_input[", "grad_weight[", "grad_bias[")[gradient]
    assert str(row.failure).startswith(f"ours: {name}") and "1 of " in str(row.failure)
    assert [name for name in TIMES if getattr(row, name) is not None] == []


def test_training_is_judged_through_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(right: Any) -> Any:
        def call(input: torch.Tensor, weight: torch.Tensor, *rest: Any, **more: Any) -> Any:
            zero = weight.sum() - weight.sum().detach()  # no error but in the gradient
            return right(input, weight, *rest, **more) + zero

        return call

    theirs, ours = bench.F.conv1d, bench.conv1d
    monkeypatch.setattr(bench.F, "conv1d", wrong(theirs))
    [row] = measure(operations=["train"])
    assert row.correct and row.torch_correct is False and row.ours_ms is not None
    monkeypatch.setattr(bench.F, "conv1d", theirs)
    monkeypatch.setattr(bench, "conv1d", wrong(ours))
    [row] = measure(operations=["train"])
    assert row.correct is False and "grad_weight" in str(row.failure)
    monkeypatch.setattr(bench, "conv1d", lambda *given, **more: ours(*given, **more) + 0.5)
    [row] = measure(operations=["train"])
    assert row.correct is False and "output[" in str(row.failure)


def test_a_position_left_out_of_a_long_sum_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # By no element's bound: that of a sum of 16384 products hides one of them.
    right = ops.convolution_backward
    layer = replace(TINY, problem=Problem(2, 8, 16, 8192, 3, padding=1))

    def wrong(grad_output: torch.Tensor, *rest: Any) -> Any:
        cut = grad_output.clone()
        cut[-1, :, 4000] = 0
        return right(grad_output, *rest)[0], *right(cut, *rest)[1:]

    monkeypatch.setattr(ops, "convolution_backward", wrong)
    [row] = measure(layer=layer, operations=["backward"], plans=["aten"])
    assert row.correct is False
    assert str(row.failure).startswith("ours: grad_weight: relative L2 error")


def test_kernels_of_gradients_are_tested_on_integers_and_must_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = {row.name: row for row in plan.PLANS}
    pairs = [(named[name], named[name]) for name in ("im2col", "direct")]
    monkeypatch.setattr(bench, "_selected", lambda *_: pairs)
    [row] = measure(operations=["backward"])
    assert row.plan == "im2col + direct" and row.correct is False
    assert "another one ran" in str(row.failure)

    right = ops.convolution_backward
    monkeypatch.setattr(bench, "CHECK_BYTES", 1e4)

    def wrong(grad_output: torch.Tensor, *rest: Any) -> Any:
        gradients = right(grad_output, *rest)
        if len(grad_output) == 1:
            gradients[2][3] += 1
        return gradients

    monkeypatch.setattr(ops, "convolution_backward", wrong)
    [row] = measure(operations=["backward"])
    assert str(row.failure).startswith("im2col, direct, small integers: grad_bias[3]")


@pytest.mark.parametrize("mode", bench.GPU_MODES)
def test_every_layers_gradients_have_plans(mode: str) -> None:
    plans = set()
    for layer in layers.load():
        case = replace(layer.problem, mode=mode, gpu=export.TARGETS["90a"])
        other = case.adjoint
        other.validate()
        assert other.input_shape == case.output_shape and other.weight_shape == case.weight_shape
        assert other.output_shape == case.input_shape
        of_input, of_weight = (chosen for chosen, _ in bench._selected(case, "", "backward"))
        in_one_pass = of_input is of_weight
        assert of_weight.gradient and of_input.gradient == in_one_pass
        assert in_one_pass == plan.in_one_pass(of_weight, case)
        assert bench._selected(case, "", "train")[0][0] is plan.select(case)
        plans.add(bench._together([of_input, of_weight]))
    assert any(" + grad_" in name for name in plans)


def test_a_plan_of_both_gradients_is_named_once() -> None:
    gpu = export.TARGETS["90a"]
    depthwise = Problem(8, 64, 64, 4096, 4, padding=3, groups=64, mode="bf16", gpu=gpu)
    names = {
        op: bench._together([chosen for chosen, _ in bench._selected(depthwise, "", op)])
        for op in ("forward", "backward", "train")
    }
    assert names == {
        "forward": "sliding",
        "backward": "grad_sliding",
        "train": "sliding + grad_sliding",
    }
    direct = bench._selected(depthwise, "direct", "backward")
    assert bench._together([chosen for chosen, _ in direct]) == "direct + grad_direct"


@pytest.mark.parametrize("mode", ["ieee", "fp64"])
def test_a_plan_asked_for_computes_what_it_can(mode: str) -> None:
    [row] = measure(modes=[mode], operations=["backward"], plans=["im2col"])
    # No plan for the gradient of the weight is called im2col.
    assert row.plan in ("im2col + grad_simd", "im2col + grad_aten")
    assert row.forced and row.correct, row.failure


def test_training_is_not_compiled() -> None:
    with pytest.raises(ValueError, match="compile"):
        measure(operations=["train"], compile=True)


def test_rows_are_flat_json_and_every_field_is_documented() -> None:
    [row] = measure(plans=["aten"])
    flat = json.loads(json.dumps(row.flat()))
    documented = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [name for name in flat if f"`{name}`" not in documented] == []
    issue = (
        "layer op transposed shape dtype mode bias correct ours_ms torch_ms ratio floor_ms "
        "roofline_share plan host_us peak_bytes commit dirty sources_hash gpu driver torch cudnn "
        "date"
    )
    assert set(issue.split()) <= set(flat)
    assert flat["shape"]["length_out"] == 51 and flat["forced"] is True


def test_on_a_cpu_our_kernels_race_the_explicit_algorithm_too() -> None:
    [row] = measure()
    assert (row.plan, row.forced, row.mode) == ("simd", False, "ieee")
    assert row.im2col_ms is not None


@pytest.mark.parametrize("where", ["small integers", "real shape"])
def test_a_wrong_kernel_gets_no_times(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    right = fastconv1d.conv1d
    # The integers are tested on a reduced shape: batch 1.
    monkeypatch.setattr(bench, "CHECK_BYTES", 1e4)

    def wrong(input: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        output = right(input, *arguments, **keywords)
        if (len(input) == 1) == (where == "small integers"):
            output[-1, -1, -1] += 0.5
        return output

    monkeypatch.setattr(bench, "conv1d", wrong)
    [row] = measure()
    assert row.correct is False
    assert "output[" in str(row.failure) and "1 of " in str(row.failure)
    assert ("small integers" in str(row.failure)) == (where == "small integers")
    assert [name for name in TIMES if getattr(row, name) is not None] == []
    assert row.ratio is None and row.roofline_share is None


def test_another_plan_than_the_one_named_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "calls", lambda: dict.fromkeys((row.name for row in plan.PLANS), 7))
    [row] = measure()
    assert row.correct is False and "another one ran" in str(row.failure)
    assert row.ours_ms is None


def test_falling_back_is_forbidden_inside_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV1D_STRICT", "0")
    seen = []

    def look(row: bench.Row, *rest: Any) -> bench.Row:
        seen.append(os.environ["FASTCONV1D_STRICT"])
        return row

    monkeypatch.setattr(bench, "_measure", look)
    measure()
    assert seen == ["1"] and os.environ["FASTCONV1D_STRICT"] == "0"


def test_a_transposed_layer_races_torchs_transposed_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Geometry that no mix-up of arguments survives, and padding beyond the kernel's reach.
    problem = replace(TRANSPOSED, bias=True)
    theirs, calls = bench.F.conv_transpose1d, []
    monkeypatch.setattr(
        bench.F, "conv_transpose1d", lambda *given: calls.append(given) or theirs(*given)
    )
    [row] = measure(layer=replace(TINY, problem=problem))
    assert row.correct, row.failure
    assert calls and row.transposed and row.plan == "simd"
    assert row.shape["length_out"] == problem.length_out and row.shape["output_padding"] == 1
    assert row.checked == problem.output_elements
    assert None not in (row.ours_ms, row.torch_ms, row.host_us, row.torch_host_us)


def test_plans_that_cannot_run_say_why() -> None:
    [row] = measure(plans=["dense"])
    assert "CUDA" in str(row.skipped) and row.ours_ms is None


def test_a_cpu_run_says_what_it_cut_down() -> None:
    [layer] = layers.find(["67"], layers.load())
    small, scaled = bench._fit(layer.problem, None, None, torch.device("cpu"))
    assert small.batch == 1 and small.flops <= bench.CPU_FLOPS and small.bytes <= bench.CPU_BYTES
    assert scaled == f"batch 32 → 1, length 131072 → {small.length}"
    whole, scaled = bench._fit(layer.problem, None, None, torch.device("cpu"), bench.CPU_ALONE)
    assert whole == replace(layer.problem, batch=1) and scaled == "batch 32 → 1"
    assert bench._fit(TINY.problem, None, None, torch.device("cpu")) == (TINY.problem, None)
    assert bench._fit(TINY.problem, 5, None, torch.device("cpu"))[1] == "batch 2 → 5"
    whole = bench._fit(layer.problem, None, 131072, torch.device("cpu"))
    assert whole == (replace(layer.problem, batch=1), "batch 32 → 1")
    assert bench._fit(layer.problem, 32, None, torch.device("cpu"))[0].batch == 32
    assert bench._fit(layer.problem, 32, 131072, torch.device("cpu")) == (layer.problem, None)


def test_tf32_does_not_exist_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="mode is 'tf32'"):
        measure(modes=["tf32"])


def test_calls_take_turns() -> None:
    order: list[str] = []

    def call(name: str) -> timing.Call:
        def record() -> torch.Tensor:
            order.append(name)
            return torch.empty(0)

        return record

    timings = timing.race({name: call(name) for name in "abc"}, torch.device("cpu"), 1e-6)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds) and len(rounds) >= 1 + 1 + 5
    before = {pair for pair in pairwise(order[6:]) if pair[1] != "a"}
    assert before == {("a", "b"), ("a", "c"), ("b", "c"), ("c", "b")}
    assert all(t.p10 <= t.median <= t.p90 for t in timings.values())


def test_the_device_is_kept_busy_for_as_long_as_a_call_is_enqueued() -> None:
    cpu, flush = torch.device("cpu"), torch.empty(4 << 20, dtype=torch.int8)

    def writes(seconds: float) -> int:
        calls = {"quick": lambda: None, "slow": lambda: time.sleep(seconds)}
        return timing._writes_ahead(calls, cpu, flush)

    assert 2 <= writes(0) < writes(0.1) == 1 + 64


def test_precision_is_set_inside_and_restored() -> None:
    backends: Any = torch.backends

    def switches() -> tuple[Any, ...]:
        cudnn = backends.cudnn
        matmul = backends.cuda.matmul.fp32_precision
        return cudnn.benchmark, cudnn.conv.fp32_precision, matmul

    before = switches()
    with timing.precision("tf32"):
        assert switches() == (True, "tf32", "tf32")
    with timing.precision("ieee"):
        assert switches() == (True, "ieee", "ieee")
    assert switches() == before


def test_the_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    ceilings = timing.Ceilings(torch.device("cuda"))
    ceilings._copy_gbs, ceilings._matmul_tflops = 1000.0, {"tf32": 300.0}
    assert ceilings.matmul_tflops("ieee") == 100.0
    [layer] = layers.find(["67"], layers.load())
    problem = replace(layer.problem, mode="tf32")
    assert ceilings.floor_ms(problem) == pytest.approx(problem.bytes / 1e9)
    wide = replace(problem, channels_in=4096, channels_out=4096, batch=1)
    assert ceilings.floor_ms(wide) == pytest.approx(wide.flops / 300e9)
    for one, floor in ((problem, problem.gradient_bytes / 1e9), (wide, 2 * wide.flops / 300e9)):
        assert ceilings.floor_ms(one, "backward") == pytest.approx(floor)
        both = floor + ceilings.floor_ms(one)
        assert ceilings.floor_ms(one, "train") == pytest.approx(both)


def test_the_layer_table_is_sound() -> None:
    table = layers.load()
    for layer in table:
        layer.problem.validate()
        assert layer.source
    assert len({(layer.name, layer.problem) for layer in table}) == len(table)
    assert layers.find(["all"], table) == table
    assert [layer.model for layer in layers.find(["76", "67"], table)] == [
        "KernelBench-L1-67",
        "KernelBench-L1-76",
    ]
    with pytest.raises(ValueError, match="layer is 'nonsense'"):
        layers.find(["67", "nonsense"], table)


def test_a_bad_layer_table_is_named(tmp_path: Path) -> None:
    good = (ROOT / "fastconv1d" / "layers.csv").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "layers.csv"
    for line in (good[1].replace(",conv,", ",convex,"), good[1].replace(",131072,", ",long,")):
        file.write_text(f"{good[0]}\n{good[2]}\n{line}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"layers\.csv, line 3"):
            layers.load(file)


@pytest.mark.parametrize("layer", layers.load(), ids=lambda layer: layer.name)
def test_shrinking_keeps_the_layer_and_fits(layer: Layer) -> None:
    small = layers.shrink(layer.problem, 1e8, 1e7)
    small.validate()
    assert replace(small, batch=0, length=0) == replace(layer.problem, batch=0, length=0)
    least = small.batch == 1 and small.length == small.least_length
    assert least or (small.flops <= 1e8 and small.bytes <= 1e7)


def test_a_commit_given_is_believed() -> None:
    row = bench.provenance(torch.device("cpu"), "0123abcd")
    assert (row["commit"], row["dirty"]) == ("0123abcd", None)
