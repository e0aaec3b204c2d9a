"""The comparer accepts what is right and rejects each kind of wrong output, in every mode."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fastconv1d.compare import (
    UNIT_ROUNDOFF,
    check,
    compare,
    compare_gradients,
    draw,
    draw_grad_output,
    expected,
    gradients,
    guards_intact,
    imprecise,
    less_accurate,
    poison,
    poison_allocator,
)
from fastconv1d.config import MODES
from fastconv1d.problem import Problem

PROBLEMS = {
    "dense": Problem(3, 48, 32, 101, 3, padding=1, bias=True),
    "strided": Problem(2, 16, 8, 90, 5, stride=3, dilation=2, padding=4, bias=True),
    "grouped": Problem(2, 24, 12, 64, 4, groups=4, bias=True),
    "depthwise": Problem(2, 10, 10, 64, 7, groups=10, bias=True),
    "transposed": Problem(
        2, 12, 8, 40, 4, stride=2, padding=1, transposed=True, output_padding=1, bias=True
    ),
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest, mode: str) -> Problem:
    return replace(PROBLEMS[request.param], mode=mode)


def round_tf32(x: torch.Tensor) -> torch.Tensor:
    """To 11 significant bits, to nearest, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def torch_convolution(
    problem: Problem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """What torch computes at the mode's precision, 16-bit types accumulated in fp32."""
    if problem.mode == "tf32":
        input, weight = round_tf32(input), round_tf32(weight)
    if problem.dtype.itemsize == 2:
        input, weight, bias = input.float(), weight.float(), None if bias is None else bias.float()
    output = torch.convolution(
        input,
        weight,
        bias,
        [problem.stride],
        [problem.padding],
        [problem.dilation],
        problem.transposed,
        [problem.output_padding],
        problem.groups,
    )
    return output.to(problem.dtype)


@pytest.mark.parametrize("seed", range(3))
def test_torch_is_right(problem: Problem, seed: int) -> None:
    tensors = draw(problem, "cpu", seed)
    verdict = compare(torch_convolution(problem, *tensors), *tensors, problem)
    assert verdict.ok, verdict.reason
    assert verdict.worst <= 1
    assert verdict.relative_l2 < 0.01
    assert (verdict.relative_l2 > 0) == (problem.mode != "fp64")


def test_torch_is_exact_on_integers(problem: Problem) -> None:
    tensors = draw(problem, "cpu", 0, integers=True)
    verdict = compare(torch_convolution(problem, *tensors), *tensors, problem, exact=True)
    assert verdict.ok, verdict.reason
    assert verdict.worst == 0


FAULTS = ["element", "row", "tap", "bias", "last", "nan", "infinity", "zero"]


def inject(
    fault: str,
    problem: Problem,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """torch's output with one fault in it."""
    assert bias is not None
    if fault == "tap":
        weight = weight.clone()
        weight[..., -1] = 0
    if fault == "bias":
        bias = torch.zeros_like(bias)
    output = torch_convolution(problem, input, weight, bias)
    if fault == "element":
        output[-1, 3, 17] += 1
    if fault == "row":
        output[0, 2] = output[0, 2].roll(1)
    if fault == "last":
        output[-1, -1, -1] = 0
    if fault == "nan":
        output[1, 5, 9] = math.nan
    if fault == "infinity":
        output[1, 5, 9] = math.inf
    if fault == "zero":
        output.zero_()
    return output


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("exact", [False, True])
def test_wrong_outputs_are_rejected(problem: Problem, fault: str, exact: bool) -> None:
    tensors = draw(problem, "cpu", 1, integers=exact)
    if exact and fault == "last":
        tensors[0][...] = 1  # so that the last output is not 0 by chance
        tensors[1][...] = 1
    verdict = compare(inject(fault, problem, *tensors), *tensors, problem, exact=exact)
    assert not verdict.ok
    assert verdict.worst > 1
    where = {"element": (-1, 3, 17), "last": (-1, -1, -1), "nan": (1, 5, 9), "infinity": (1, 5, 9)}
    if fault in where:
        index = tuple(i % n for i, n in zip(where[fault], problem.output_shape, strict=True))
        assert (verdict.index, verdict.wrong) == (index, 1)
        assert str(list(index)) in verdict.reason
    else:
        assert verdict.wrong > 1


def nudge(output: torch.Tensor, index: tuple[int, ...], ulps: int) -> None:
    """Move one element away from zero by units in its last place."""
    bits = output.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[output.element_size()])
    bits[index] += ulps


@pytest.mark.parametrize(("ulps", "right"), [(1, True), (16, False)])
@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_units_in_the_last_place(mode: str, ulps: int, right: bool) -> None:
    problem = replace(PROBLEMS["dense"], mode=mode)
    tensors = draw(problem, "cpu", 2)
    output = torch_convolution(problem, *tensors)
    index = tuple(int(i) for i in torch.unravel_index(output.float().abs().argmax(), output.shape))
    nudge(output, index, ulps)
    verdict = compare(output, *tensors, problem)
    assert verdict.ok == right
    assert right or verdict.index == index


def test_tf32_rounding_is_allowed_in_tf32_alone() -> None:
    problem = replace(PROBLEMS["dense"], mode="tf32")
    tensors = draw(problem, "cpu", 3)
    output = torch_convolution(problem, *tensors)
    assert compare(output, *tensors, problem).ok
    assert not compare(output, *tensors, replace(problem, mode="ieee")).ok


def test_tf32_with_coarser_operands_is_rejected() -> None:
    problem = replace(PROBLEMS["depthwise"], mode="tf32")
    input, weight, bias = draw(problem, "cpu", 3)
    coarse = torch_convolution(problem, input.bfloat16().float(), weight, bias)
    assert not compare(coarse, input, weight, bias, problem).ok


def test_chunks_agree_with_the_whole(problem: Problem) -> None:
    tensors = draw(problem, "cpu", 4)
    output = torch_convolution(problem, *tensors)
    whole = check(output, expected(*tensors, problem), problem)
    rows = compare(output, *tensors, problem, chunk_bytes=1)
    if problem.mode != "fp64":  # where the errors are those of the reference itself
        assert rows.index == whole.index
        for name in ("worst", "peak", "relative_l2"):
            assert getattr(rows, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    output[-1, 0, 0] = math.nan
    assert compare(output, *tensors, problem, chunk_bytes=1).index == (problem.batch - 1, 0, 0)


def test_infinity_where_the_truth_overflows() -> None:
    problem = Problem(1, 1, 1, 4, 1, mode="fp16")
    input = torch.full((1, 1, 4), 60000.0, dtype=torch.float16)
    weight = torch.full((1, 1, 1), 2.0, dtype=torch.float16)
    output = torch_convolution(problem, input, weight, None)
    assert output.isinf().all()
    assert compare(output, input, weight, None, problem).ok
    assert not compare(-output, input, weight, None, problem).ok
    input[0, 0, 1] = math.nan
    assert not compare(output, input, weight, None, problem).ok
    output[0, 0, 1] = math.nan
    assert compare(output, input, weight, None, problem).ok


def test_shape_and_dtype_are_checked() -> None:
    problem = PROBLEMS["dense"]
    tensors = draw(problem, "cpu", 5)
    output = torch_convolution(problem, *tensors)
    assert "shape" in compare(output[:, :, 1:], *tensors, problem).reason
    assert "float64" in compare(output.double(), *tensors, problem).reason


def test_an_output_may_lie_in_any_order() -> None:
    problem = PROBLEMS["dense"]
    tensors = draw(problem, "cpu", 5)
    output = torch_convolution(problem, *tensors)
    strided = output.transpose(0, 2).contiguous().transpose(0, 2)
    assert compare(strided, *tensors, problem).ok
    strided[1, 2, 3] += 1
    verdict = compare(strided, *tensors, problem)
    assert (verdict.index, verdict.wrong) == ((1, 2, 3), 1)


def test_an_empty_batch_is_right() -> None:
    problem = replace(PROBLEMS["dense"], batch=0)
    tensors = draw(problem, "cpu", 6)
    assert compare(torch_convolution(problem, *tensors), *tensors, problem).ok


def test_less_accurate() -> None:
    problem = replace(PROBLEMS["dense"], mode="ieee")
    tensors = draw(problem, "cpu", 7)
    output = torch_convolution(problem, *tensors)
    theirs = compare(output, *tensors, problem)
    truth = expected(*tensors, problem)
    exact = check(truth.y64.float(), truth, problem)
    assert exact.relative_l2 < UNIT_ROUNDOFF[torch.float32] < theirs.relative_l2
    assert less_accurate(theirs, theirs, problem) == ""
    assert less_accurate(exact, theirs, problem) == ""
    noise = 4 * UNIT_ROUNDOFF[torch.float32] * torch.randn_like(output) * truth.magnitude.float()
    noisy = check(output + noise, truth, problem)
    assert "L2" in less_accurate(noisy, theirs, problem)
    spike = output.clone()
    spike[0, 0, 0] += 1e-6 * truth.magnitude[0, 0, 0].item()
    assert "largest" in less_accurate(check(spike, truth, problem), theirs, problem)
    perfect = replace(exact, error_squares=0.0, peak=0.0)
    assert less_accurate(exact, perfect, problem) == ""
    assert less_accurate(noisy, perfect, problem)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("guard", [1, 7, 256])
def test_poison(dtype: torch.dtype, guard: int) -> None:
    tensor = poison((2, 3, 5), dtype, guard=guard)
    assert tensor.shape == (2, 3, 5) and tensor.is_contiguous()
    assert tensor.isnan().all()
    tensor.zero_()
    assert guards_intact(tensor)
    for offset in (-1, tensor.numel()):
        tensor = poison((2, 3, 5), dtype, guard=guard)
        tensor.as_strided((1,), (1,), guard + offset).fill_(math.nan).neg_()
        assert not guards_intact(tensor)


@pytest.mark.gpu
def test_the_allocator_hands_out_nan() -> None:
    device = torch.device("cuda")
    poison_allocator(4 << 20, device)
    assert torch.empty(1 << 20, device=device).isnan().all()


GRADIENTS = ("grad_input", "grad_weight", "grad_bias")
GRADIENT_PROBLEMS = {
    **PROBLEMS,
    "out of reach": Problem(2, 6, 4, 23, 2, stride=9, padding=7, bias=True),
    "a stride beyond everything": Problem(3, 2, 2, 3, 1, stride=11, padding=4, bias=True),
    "transposed, much output padding": Problem(
        2, 6, 4, 15, 3, stride=2, dilation=5, output_padding=4, transposed=True, bias=True
    ),
    "transposed, grouped": Problem(
        3, 6, 9, 17, 4, stride=3, padding=2, groups=3, transposed=True, bias=True
    ),
}


@pytest.fixture(params=GRADIENT_PROBLEMS)
def differentiated(request: pytest.FixtureRequest, mode: str) -> Problem:
    return replace(GRADIENT_PROBLEMS[request.param], mode=mode)


def drawn(problem: Problem, seed: int, *, integers: bool = False) -> list[torch.Tensor]:
    """grad_output, input and weight."""
    input, weight, _ = draw(problem, "cpu", seed, integers=integers)
    return [draw_grad_output(problem, "cpu", seed, integers=integers), input, weight]


def torch_gradients(
    problem: Problem, grad_output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor
) -> list[torch.Tensor]:
    """What torch computes at the mode's precision, 16-bit types accumulated in fp32."""
    bias_source = grad_output
    if problem.mode == "tf32":
        grad_output, input, weight = map(round_tf32, (grad_output, input, weight))
    if problem.dtype.itemsize == 2:
        grad_output, input, weight = grad_output.float(), input.float(), weight.float()
        bias_source = grad_output
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output, input, weight, [problem.channels_out], [problem.stride], [problem.padding],
        [problem.dilation], problem.transposed, [problem.output_padding], problem.groups,
        [True, True, False],
    )  # fmt: skip
    return [t.to(problem.dtype) for t in (grad_input, grad_weight, bias_source.sum((0, 2)))]


@pytest.mark.parametrize("exact", [False, True])
def test_torchs_gradients_are_right(differentiated: Problem, exact: bool) -> None:
    problem = differentiated
    tensors = drawn(problem, 0, integers=exact)
    actual = torch_gradients(problem, *tensors)
    verdicts = compare_gradients(actual, *tensors, problem, exact=exact)
    references = gradients(*tensors, problem)
    assert tuple(verdicts) == GRADIENTS
    parts = (references.input, references.weight, references.bias)
    for reference, tensor in zip(parts, actual, strict=True):
        verdict = verdicts[reference.name]
        assert verdict.ok, verdict.reason
        assert verdict.worst <= (0 if exact else 1)
        assert check(tensor, reference, problem, exact=exact).ok
        assert exact or not imprecise(verdict, reference.products, tensor.numel(), problem)


def test_fp64_gradients_are_torchs(differentiated: Problem) -> None:
    problem = replace(differentiated, mode="fp64")
    grad_output, *leaves = drawn(problem, 1)
    bias = torch.zeros(problem.channels_out, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (*leaves, bias)]
    output = torch_convolution(problem, *leaves)
    truth = torch.autograd.grad(output, leaves, grad_output)
    ours = gradients(grad_output, *leaves[:2], problem)
    absolute = [tensor.detach().abs() for tensor in (grad_output, *leaves[:2])]
    magnitudes = gradients(*absolute, problem)
    for name, right in zip(("input", "weight", "bias"), truth, strict=True):
        reference = getattr(ours, name)
        torch.testing.assert_close(reference.y64, right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(reference.magnitude, getattr(magnitudes, name).y64)


GRADIENT_FAULTS = {
    "element": GRADIENTS,
    "nan": GRADIENTS,
    "taps": ("grad_weight",),
    "batch row": ("grad_weight", "grad_bias"),
    "a row of zeros": ("grad_input",),
    "zero": GRADIENTS,
    "groups": ("grad_weight",),
}


def second(tensor: torch.Tensor) -> tuple[int, ...]:
    """The index of its second element along each dimension that has two."""
    return tuple(min(1, size - 1) for size in tensor.shape)


@pytest.mark.parametrize("fault", GRADIENT_FAULTS)
@pytest.mark.parametrize("exact", [False, True])
def test_wrong_gradients_are_rejected(problem: Problem, fault: str, exact: bool) -> None:
    if fault == "groups" and problem.groups == 1:
        pytest.skip("has one group")
    tensors = drawn(problem, 1, integers=exact)
    actual = torch_gradients(problem, *tensors)
    if fault == "batch row":
        without = [tensors[0][1:], tensors[1][1:], tensors[2]]
        actual[1:] = torch_gradients(problem, *without)[1:]
    for gradient in actual:
        if fault == "element":
            gradient[second(gradient)] += 1
        if fault == "nan":
            gradient[second(gradient)] = math.nan
        if fault == "zero":
            gradient.zero_()
    if fault == "taps":
        actual[1] = actual[1].flip(2)
    if fault == "a row of zeros":
        actual[0][-1, -1] = 0
    if fault == "groups":
        actual[1] = actual[1].roll(len(actual[1]) // problem.groups, 0)
    verdicts = compare_gradients(actual, *tensors, problem, exact=exact)
    for name, gradient in zip(GRADIENTS, actual, strict=True):
        verdict = verdicts[name]
        assert verdict.ok == (name not in GRADIENT_FAULTS[fault])
        if fault in ("element", "nan"):
            index = second(gradient)
            assert (verdict.index, verdict.wrong) == (index, 1)
            assert f"{name}{list(index)}" in verdict.reason


def test_gradients_chunk_by_chunk(differentiated: Problem) -> None:
    problem = differentiated
    tensors = drawn(problem, 2)
    actual = torch_gradients(problem, *tensors)
    whole = compare_gradients(actual, *tensors, problem)
    rows = compare_gradients(actual, *tensors, problem, chunk_bytes=1)
    for name in GRADIENTS if problem.mode != "fp64" else ():
        assert rows[name].index == whole[name].index
        assert rows[name].relative_l2 == pytest.approx(whole[name].relative_l2, rel=1e-6)
    actual[0][-1, 0, 0] = math.nan
    rows = compare_gradients(actual, *tensors, problem, chunk_bytes=1)
    assert rows["grad_input"].index == (problem.batch - 1, 0, 0)
    assert rows["grad_weight"].ok and rows["grad_bias"].ok


def test_gradients_that_are_not_there_are_not_judged() -> None:
    problem = PROBLEMS["dense"]
    tensors = drawn(problem, 3)
    grad_input, grad_weight, grad_bias = torch_gradients(problem, *tensors)
    assert list(compare_gradients((None, grad_weight, None), *tensors, problem)) == ["grad_weight"]
    verdicts = compare_gradients(
        (grad_input[:, 1:], grad_weight.double(), grad_bias[1:]), *tensors, problem
    )
    for name, words in zip(GRADIENTS, ("shape", "float64", "shape"), strict=True):
        assert words in verdicts[name].reason and name in verdicts[name].reason


def test_gradients_of_an_empty_batch_are_zero() -> None:
    problem = replace(PROBLEMS["dense"], batch=0)
    tensors = drawn(problem, 4)
    zeros = [torch.zeros(shape) for shape in (problem.input_shape, problem.weight_shape, (32,))]
    verdicts = compare_gradients(zeros, *tensors, problem)
    assert all(verdict.ok for verdict in verdicts.values())
    assert not compare_gradients([None, zeros[1] + 1, None], *tensors, problem)["grad_weight"].ok


@pytest.mark.parametrize("mode", MODES)
def test_a_position_left_out_of_a_long_sum_is_imprecise(mode: str) -> None:
    """Its bound lets it pass: as much may be lost in so many additions, if all err alike."""
    problem = Problem(2, 12, 8, 9000, 3, padding=1, mode=mode)
    tensors = drawn(problem, 5)
    right = torch_gradients(problem, *tensors)[1]
    tensors[0][-1, :, -1] = 0
    wrong = torch_gradients(problem, *tensors)[1]
    tensors = drawn(problem, 5)
    products = gradients(*tensors, problem).weight.products
    assert products == 18000
    for gradient, found in ((right, False), (wrong, True)):
        verdict = compare_gradients((None, gradient, None), *tensors, problem)["grad_weight"]
        assert bool(imprecise(verdict, products, gradient.numel(), problem)) == found


def test_grad_output_differs_from_the_tensors_that_it_meets() -> None:
    problem = Problem(2, 4, 4, 50, 1)
    grad_output, input, _ = drawn(problem, 6)
    assert grad_output.shape == input.shape
    assert not torch.equal(grad_output, input)
    assert torch.equal(grad_output, draw_grad_output(problem, "cpu", 6))
    integers = draw_grad_output(problem, "cpu", 6, integers=True)
    assert set(integers.unique().tolist()) == set(range(-3, 4))
