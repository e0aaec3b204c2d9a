"""Gradients through conv1d and conv_transpose1d, held against fp64; derivatives of those against
torch's. What functorch's transforms make of the operator is in test_transforms.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import fastconv1d
from fastconv1d import ops
from fastconv1d.compare import (
    UNIT_ROUNDOFF,
    compare_gradients,
    draw,
    draw_grad_output,
    imprecise,
)
from fastconv1d.config import MODES
from fastconv1d.problem import Problem
from random_problems import random_problem

RANDOM_PROBLEMS = 12
FLOPS = 1 << 21
PROBLEMS = {
    "ordinary": Problem(3, 6, 9, 41, 5, stride=2, padding=3, dilation=2, groups=3, bias=True),
    "depthwise": Problem(2, 5, 10, 33, 4, padding=3, groups=5, bias=True),
    "positions that no output sees": Problem(2, 4, 3, 23, 2, stride=5, padding=1, bias=True),
    "transposed": Problem(
        3, 6, 9, 21, 5, stride=3, padding=2, dilation=2, groups=3, output_padding=2,
        transposed=True, bias=True,
    ),
    "transposed, much output padding": Problem(
        2, 4, 3, 13, 3, stride=2, dilation=5, padding=1, output_padding=4, transposed=True,
        bias=True,
    ),
}  # fmt: skip


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return PROBLEMS[request.param]


def convolve(problem: Problem, *tensors: Tensor | None) -> Tensor:
    """`problem` through the function of its kind; tensors: input, weight, bias."""
    geometry: dict[str, Any] = {
        "stride": problem.stride, "padding": problem.padding, "dilation": problem.dilation,
        "groups": problem.groups,
    }  # fmt: skip
    if problem.transposed:
        geometry["output_padding"] = problem.output_padding
        return fastconv1d.conv_transpose1d(*tensors, **geometry)
    return fastconv1d.conv1d(*tensors, **geometry)


def geometry_of(problem: Problem) -> tuple[Any, ...]:
    """The operators' arguments from stride to groups."""
    return (
        [problem.stride], [problem.padding], [problem.dilation], problem.transposed,
        [problem.output_padding], problem.groups,
    )  # fmt: skip


def leaves(
    problem: Problem, device: torch.device, seed: int = 0, *, integers: bool = False
) -> list[Tensor]:
    """input, weight and bias, there or not."""
    tensors = draw(problem, device, seed, integers=integers)
    return [tensor.requires_grad_() for tensor in tensors if tensor is not None]


def fault(
    gradients: tuple[Tensor | None, ...],
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    problem: Problem,
    *,
    exact: bool = False,
) -> str:
    """What is wrong with the gradients of input, weight and bias that there are, or ''."""
    input, weight = input.detach(), weight.detach()
    verdicts = compare_gradients(gradients, grad_output, input, weight, problem, exact=exact)
    positions = problem.batch * problem.length_out
    products = {
        "grad_input": problem.channels_out // problem.groups * problem.kernel_size,
        "grad_weight": problem.batch * problem.length if problem.transposed else positions,
        "grad_bias": positions,
    }
    for (name, terms), tensor in zip(products.items(), gradients, strict=True):
        if tensor is None:
            continue
        verdict = verdicts[name]
        if problem.dtype.itemsize == 2 and tensor.device.type == "cpu" and not exact:
            # ATen's kernels for the CPU round in between.
            if not verdict.relative_l2 <= 8 * UNIT_ROUNDOFF[problem.dtype]:
                return f"{name}: relative L2 error {verdict.relative_l2:.3g}, {problem}"
            continue
        reason = verdict.reason
        if not (reason or exact):
            reason = imprecise(verdict, terms, tensor.numel(), problem)
        if reason:
            return f"{name}: {reason}, {problem}"
    return ""


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True], ids=["ordinary", "transposed"])
@pytest.mark.parametrize("fp32_precision", MODES, indirect=True)
def test_random_problems(device: torch.device, fp32_precision: str, transposed: bool) -> None:
    mode = fp32_precision
    if mode == "tf32" and device.type == "cpu":
        pytest.skip("fp32 on the CPU has one mode")
    random = Random(f"gradients {mode} {transposed}")
    for number in range(RANDOM_PROBLEMS):
        problem = random_problem(random, mode, FLOPS, transposed=transposed, narrow=number % 3 == 0)
        given = leaves(problem, device, number)
        grad_output = draw_grad_output(problem, device, number)
        gradients = torch.autograd.grad(convolve(problem, *given), given, grad_output)
        if not problem.bias:
            gradients = *gradients, None
        assert not fault(gradients, grad_output, *given[:2], problem)


def test_small_integers_are_exact(device: torch.device, problem: Problem) -> None:
    given = leaves(problem, device, integers=True)
    grad_output = draw_grad_output(problem, device, 0, integers=True)
    gradients = torch.autograd.grad(convolve(problem, *given), given, grad_output)
    assert not fault(gradients, grad_output, *given[:2], problem, exact=True)


GRADS_OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "one value": lambda g: g[:1, :1, :1].expand(g.shape),
    "expanded batch": lambda g: g[:1].expand(g.shape),
    "expanded channels": lambda g: g[:, :1].expand(g.shape),
    "expanded positions": lambda g: g[:, :, :1].expand(g.shape),
    "channels last": lambda g: g.transpose(1, 2).contiguous().transpose(1, 2),
    "batch inside": lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
    "every other position": lambda g: torch.stack([g, g.cos()], 3)[..., 0],
    "within a larger one": lambda g: torch.nn.functional.pad(g, (3, 2, 1, 1))[:, 1:-1, 3:-2],
}


@pytest.mark.parametrize("layout", GRADS_OUTPUT)
@pytest.mark.parametrize("fp32_precision", ["ieee", "fp64"], indirect=True)
def test_any_layout_of_grad_output(
    device: torch.device, fp32_precision: str, problem: Problem, layout: str
) -> None:
    problem = replace(problem, mode=fp32_precision)
    given = leaves(problem, device)
    grad_output = GRADS_OUTPUT[layout](draw_grad_output(problem, device, 0))
    gradients = torch.autograd.grad(convolve(problem, *given), given, grad_output)
    verdicts = compare_gradients(
        gradients, grad_output, *(tensor.detach() for tensor in given[:2]), problem
    )
    for name, verdict in verdicts.items():
        assert verdict.ok, f"{name}: {verdict.reason}"


def test_an_empty_batch(device: torch.device, problem: Problem) -> None:
    given = leaves(problem, device)
    given[0] = given[0].detach()[:0].requires_grad_()
    convolve(problem, *given).sum().backward()
    for tensor in given:
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


# --- what a training loop does --------------------------------------------------------------------


SUBSETS = [wanted for wanted in product((False, True), repeat=3) if any(wanted)]


@pytest.mark.parametrize("wanted", SUBSETS, ids=str)
def test_the_operator_gives_what_its_mask_asks_for(
    device: torch.device, problem: Problem, wanted: tuple[bool, ...]
) -> None:
    input, weight, bias = (tensor.detach() for tensor in leaves(problem, device))
    grad_output = draw_grad_output(problem, device, 0)
    gradients = ops.convolution_backward(
        grad_output, input, weight, [len(bias)], *geometry_of(problem), list(wanted)
    )
    assert tuple(gradient is not None for gradient in gradients) == wanted
    assert not fault(gradients, grad_output, input, weight, problem)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("fp32_precision", MODES, indirect=True)
def test_the_operator_of_the_weights_gradient(
    device: torch.device, fp32_precision: str, problem: Problem, bias: bool
) -> None:
    problem = replace(problem, mode=fp32_precision)
    input, weight, _ = (tensor.detach() for tensor in leaves(problem, device))
    grad_output = draw_grad_output(problem, device, 0)
    grad_weight, grad_bias = torch.ops.fastconv1d.grad_weight(
        grad_output, input, problem.weight_shape, bias, *geometry_of(problem)
    )
    assert grad_weight.is_contiguous()
    assert grad_bias.shape == ((problem.channels_out,) if bias else (0,))
    gradients = None, grad_weight, grad_bias if bias else None
    assert not fault(gradients, grad_output, input, weight, problem)


@pytest.mark.parametrize("wanted", SUBSETS, ids=str)
def test_only_the_gradients_asked_for(
    device: torch.device, problem: Problem, wanted: tuple[bool, ...]
) -> None:
    input, weight, bias = leaves(problem, device)
    grad_output = draw_grad_output(problem, device, 0)
    given = [t.requires_grad_(on) for t, on in zip((input, weight, bias), wanted, strict=True)]
    convolve(problem, *given).backward(grad_output)
    assert tuple(tensor.grad is not None for tensor in given) == wanted
    assert not fault(tuple(t.grad for t in given), grad_output, input, weight, problem)


@pytest.mark.parametrize("fp32_precision", MODES, indirect=True)
def test_a_step_run_twice_is_bit_identical(
    device: torch.device, fp32_precision: str, problem: Problem
) -> None:
    problem = replace(problem, mode=fp32_precision)
    given = leaves(problem, device)
    grad_output = draw_grad_output(problem, device, 0)
    first, second = (
        torch.autograd.grad(convolve(problem, *given), given, grad_output) for _ in range(2)
    )
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


BESIDE = {
    "weights of few positions": Problem(4, 256, 128, 40, 16, stride=8, padding=4),
    "splits of a long row": Problem(2, 32, 64, 20_000, 7, padding=9, dilation=3, bias=True),
    "groups, transposed": Problem(2, 40, 80, 500, 4, stride=2, groups=2, transposed=True),
}


@pytest.mark.gpu
@pytest.mark.parametrize("fp32_precision", ["tf32", "ieee", "bf16"], indirect=True)
@pytest.mark.parametrize("name", BESIDE)
def test_gradients_run_beside_each_other(fp32_precision: str, name: str) -> None:
    """On two streams: whatever is allocated meanwhile, and in a captured graph."""
    device = torch.device("cuda")
    problem = replace(BESIDE[name], mode=fp32_precision)
    input, weight, bias = draw(problem, device, 0)
    grad_output = draw_grad_output(problem, device, 0)

    late = torch.empty_like(grad_output)

    def gradients(factor: float = 1) -> list[Tensor]:
        """Of grad_output times a power of two, with all enqueued before the GPU begins."""
        late.fill_(math.nan)
        torch.cuda._sleep(10_000_000)  # cycles
        torch.mul(grad_output, factor, out=late)
        sizes = None if bias is None else [problem.channels_out]
        geometry = [problem.stride], [problem.padding], [problem.dilation], problem.transposed
        of_all = ops.convolution_backward(
            late, input, weight, sizes, *geometry, [problem.output_padding], problem.groups,
            [True, True, bias is not None],
        )  # fmt: skip
        # The last one first, as the stream beside may be late.
        return [g.clone() for g in reversed(of_all) if g is not None][::-1]

    expected = gradients()
    assert not fault((*expected, None)[:3], grad_output, input, weight, problem)
    for number in range(20):
        factor = 1 + number % 2  # so that nothing of the last time is right
        found = gradients(factor)
        # Takes whatever workspace has been freed.
        taken = [torch.full((1 << size,), math.nan, device=device) for size in range(8, 23)]
        for gradient, right in zip(found, expected, strict=True):
            assert torch.equal(gradient, right * factor)
        del taken
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradients()
    for gradient in found:
        gradient.fill_(math.nan)
    graph.replay()
    assert all(map(torch.equal, found, expected))


def test_backward_twice_adds_up(device: torch.device, problem: Problem) -> None:
    given = leaves(problem, device)
    loss = convolve(problem, *given).square().sum()
    loss.backward(retain_graph=True)
    once = [tensor.grad.clone() for tensor in given]
    loss.backward()
    for tensor, gradient in zip(given, once, strict=True):
        assert torch.equal(tensor.grad, 2 * gradient)


def test_what_is_saved_may_not_change(device: torch.device, problem: Problem) -> None:
    input, weight, bias = leaves(problem, device)
    output = convolve(problem, input, weight, bias)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(device: torch.device, problem: Problem, reentrant: bool) -> None:
    given = leaves(problem, device)

    def layer(*tensors: Tensor) -> Tensor:
        return convolve(problem, *tensors).tanh()

    expected = torch.autograd.grad(layer(*given).square().sum(), given)
    checkpoint(layer, *given, use_reentrant=reentrant).square().sum().backward()
    for tensor, gradient in zip(given, expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


def test_bf16_autocast(device: torch.device, problem: Problem) -> None:
    given = leaves(problem, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = convolve(problem, *given)
    assert output.dtype == torch.bfloat16
    low = replace(problem, mode="bf16")
    grad_output = draw_grad_output(low, device, 0)
    gradients = torch.autograd.grad(output, given, grad_output)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    # Computed in bf16, and widened without loss.
    input, weight = (tensor.detach().bfloat16() for tensor in given[:2])
    narrow = tuple(gradient.bfloat16() for gradient in gradients)
    for gradient, other in zip(gradients, narrow, strict=True):
        assert torch.equal(gradient, other.float())
    assert not fault(narrow, grad_output, input, weight, low)


@pytest.mark.parametrize("fp32_precision", ["tf32", "ieee", "bf16", "fp64"], indirect=True)
def test_a_scaled_loss_scales_the_gradients_exactly(
    device: torch.device, fp32_precision: str, problem: Problem
) -> None:
    """By a power of two, where nothing overflows or becomes subnormal."""
    problem = replace(problem, mode=fp32_precision)
    given = leaves(problem, device)
    grad_output = draw_grad_output(problem, device, 0)
    plain, scaled = (
        torch.autograd.grad(convolve(problem, *given), given, grad_output * scale)
        for scale in (1, 2**10)
    )
    for one, two in zip(plain, scaled, strict=True):
        assert torch.equal(one * 2**10, two)


def test_gradient_scaler_skips_the_step_that_overflows(device: torch.device) -> None:
    layer = fastconv1d.Conv1d(4, 6, 3, padding=1).to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    x = torch.randn(2, 4, 20, device=device)
    for factor, moves in ((1.0, True), (math.inf, False), (1.0, True)):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(layer(x).mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, layer.weight) != moves
        assert layer.weight.isfinite().all()


def test_training_takes_torchs_path(device: torch.device) -> None:
    """Layers of both kinds in fp64, so that ten steps end in the same place."""

    def model(source: Any) -> torch.nn.Module:
        torch.manual_seed(4)
        return torch.nn.Sequential(
            source.Conv1d(3, 8, 5, padding=2), torch.nn.GELU(),
            source.Conv1d(8, 8, 4, stride=2, padding=1, groups=8), torch.nn.GELU(),
            source.ConvTranspose1d(8, 3, 4, stride=2, padding=1),
        ).to(device, torch.float64)  # fmt: skip

    x = torch.randn(4, 3, 40, dtype=torch.float64).to(device)
    ends = []
    for source in (fastconv1d, torch.nn):
        layers = model(source)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=0.01)
        for _ in range(10):
            optimizer.zero_grad()
            loss = (layers(x) - x).square().mean()
            loss.backward()
            optimizer.step()
        ends.append([loss.detach(), *(parameter.detach() for parameter in layers.parameters())])
    for mine, other in zip(*ends, strict=True):
        torch.testing.assert_close(mine, other)


# --- derivatives of gradients ---------------------------------------------------------------------


def small(problem: Problem) -> Problem:
    """Of the same kind, with fewer positions, for derivatives by differences."""
    return replace(problem, mode="fp64", batch=2, length=max(7, problem.length // 3))


def test_gradcheck_and_gradgradcheck(device: torch.device, problem: Problem) -> None:
    problem = small(problem)
    given = leaves(problem, device)
    function = partial(convolve, problem)
    assert torch.autograd.gradcheck(function, given, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        function, given, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
    )


def test_gradients_three_deep(device: torch.device, problem: Problem) -> None:
    # ATen's third derivative of a transposed convolution refuses output_padding.
    problem = replace(small(problem), output_padding=0)
    given = leaves(problem, device)

    def theirs(*tensors: Tensor) -> Tensor:
        return torch.convolution(*tensors, *geometry_of(problem))

    answers = []
    for conv in (partial(convolve, problem), theirs):
        value = conv(*given).pow(3).mean()
        for _ in range(2):
            parts = torch.autograd.grad(value, given, create_graph=True)
            value = sum((part.square().mean() for part in parts[1:]), parts[0].square().mean())
        answers.append(torch.autograd.grad(value, given))
    for mine, other in zip(*answers, strict=True):
        torch.testing.assert_close(mine, other)


def test_second_derivatives_of_the_operator_of_gradients(
    device: torch.device, problem: Problem
) -> None:
    problem = small(problem)
    input, weight, _ = leaves(problem, device)
    grad_output = draw_grad_output(problem, device, 0).requires_grad_()
    function = backward_of(ops.convolution_backward, problem)
    given = (grad_output, input, weight)
    assert torch.autograd.gradcheck(function, given, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def backward_of(operator: Callable[..., Any], problem: Problem) -> Backward:
    """An operator of gradients as a function of its three tensors."""

    def backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor, Tensor] = operator(
            g, x, w, [problem.channels_out], *geometry_of(problem), [True, True, True]
        )
        return gradients

    return backward


def loss_of(backward: Backward) -> Callable[..., Tensor]:
    return lambda *tensors: sum(part.pow(3).sum() for part in backward(*tensors))  # type: ignore


OF_THE_OPERATOR: dict[str, Callable[[Backward], Callable[..., Any]]] = {
    "grad": lambda f: grad(loss_of(f), (0, 1, 2)),
    "vjp": lambda f: lambda *a: vjp(f, *a)[1](tuple(part.cos() for part in f(*a))),
    "jvp": lambda f: lambda *a: jvp(f, a, tuple(tensor.cos() for tensor in a)),
    "jvp in one": lambda f: lambda g, x, w: jvp(lambda x: f(g, x, w), (x,), (x.cos(),)),
    "vmap of grad_output": lambda f: lambda g, x, w: vmap(f, (0, None, None))(
        torch.stack([g, g.cos(), g.sin()]), x, w
    ),
    "vmap of the input": lambda f: lambda g, x, w: vmap(f, (None, 1, None))(
        g, torch.stack([x, x.cos(), x.sin()], 1), w
    ),
    "vmap of all": lambda f: lambda *a: vmap(f, (0, 0, 0))(
        *(torch.stack([tensor, tensor.cos()]) for tensor in a)
    ),
    "a gradient for each sample": lambda f: lambda g, x, w: vmap(f, (0, 0, None))(
        g[:, None], x[:, None], w
    ),
    "grad of vmap": lambda f: lambda g, x, w: grad(
        lambda w: sum(p.pow(3).sum() for p in vmap(f, (0, 0, None))(g[:, None], x[:, None], w))
    )(w),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_OPERATOR)
def test_transforms_of_the_operator_of_gradients(
    device: torch.device, problem: Problem, name: str
) -> None:
    problem = small(problem)
    input, weight, _ = (tensor.detach() for tensor in leaves(problem, device))
    tensors = draw_grad_output(problem, device, 0), input, weight
    answers = [
        torch.utils._pytree.tree_leaves(
            OF_THE_OPERATOR[name](backward_of(operator, problem))(*tensors)
        )
        for operator in (ops.convolution_backward, torch.ops.aten.convolution_backward)
    ]
    assert len(answers[0]) > 0
    for mine, other in zip(*answers, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("gradient", [False, True])
def test_opcheck(device: torch.device, problem: Problem, gradient: bool) -> None:
    input, weight, _ = (t.detach().requires_grad_(gradient) for t in leaves(problem, device))
    grad_output = draw_grad_output(problem, device, 0).requires_grad_(gradient)
    geometry = geometry_of(problem)
    for mask in ([True, True, True], [False, True, False], [True, False, True]):
        torch.library.opcheck(
            ops.convolution_backward,
            (grad_output, input, weight, [problem.channels_out], *geometry, mask),
        )
    for bias in (False, True):
        torch.library.opcheck(
            torch.ops.fastconv1d.grad_weight.default,
            (grad_output, input, problem.weight_shape, bias, *geometry),
        )
