"""Derivatives of every order and direction, and functorch's transforms: as torch's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastconv1d
from fastconv1d import ops

Conv = Callable[[Tensor, Tensor, Tensor], Tensor]
GEOMETRY: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}


@dataclass(frozen=True)
class Pair:
    """A convolution of ours and torch's own."""

    ours: Conv
    theirs: Conv


@pytest.fixture(params=["ordinary", "transposed"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["", "im2col"])
def pair(request: pytest.FixtureRequest, kind: str) -> Pair:
    """Our convolution, by the default plan and by one that runs our own code, and torch's."""
    mine: Callable[..., Tensor] = fastconv1d.conv1d
    other: Callable[..., Tensor] = F.conv1d
    geometry = GEOMETRY
    if kind == "transposed":
        mine, other = fastconv1d.conv_transpose1d, F.conv_transpose1d
        geometry = GEOMETRY | {"output_padding": 1}
    return Pair(partial(mine, **geometry, algorithm=request.param), partial(other, **geometry))


@pytest.fixture
def xwb(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """input (2, 4, 9), weight (4, 2, 3), bias (4,); transposed, too"""
    shapes = (2, 4, 9), (4, 2, 3), (4,)
    x, w, b = (torch.randn(shape, dtype=torch.float64).to(device) for shape in shapes)
    return x, w, b


def same(measure: Callable[[Conv], Any], pair: Pair) -> None:
    mine, other = tree_leaves(measure(pair.ours)), tree_leaves(measure(pair.theirs))
    assert len(mine) == len(other) > 0
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two)


def scalar(conv: Conv) -> Conv:
    """Not linear in the output, so that second derivatives are not zero."""
    return lambda *given: conv(*given).pow(3).sum()


def tangents(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.cos() for tensor in given)


ALL = (0, 1, 2)
TRANSFORMS: dict[str, Callable[[Conv], Callable[..., Any]]] = {
    "grad": lambda c: grad(scalar(c), ALL),
    "grad of grad": lambda c: grad(
        lambda *a: sum(t.square().sum() for t in grad(scalar(c), ALL)(*a)), ALL
    ),
    "vjp": lambda c: lambda *a: vjp(c, *a)[1](c(*a).cos()),
    "jvp": lambda c: lambda *a: jvp(c, a, tangents(a)),
    "jvp in the input": lambda c: lambda x, w, b: jvp(lambda x: c(x, w, b), (x,), (x.cos(),)),
    "jvp in the weight": lambda c: lambda x, w, b: jvp(lambda w: c(x, w, b), (w,), (w.cos(),)),
    "jvp in the bias": lambda c: lambda x, w, b: jvp(lambda b: c(x, w, b), (b,), (b.cos(),)),
    "jvp of jvp": lambda c: (
        lambda x, w, b: jvp(
            lambda w: jvp(lambda x: c(x, w, b).square(), (x,), (x.sin(),)), (w,), (w.cos(),)
        )
    ),
    "jvp of grad": lambda c: lambda *a: jvp(grad(scalar(c), ALL), a, tangents(a)),
    "grad of jvp": lambda c: grad(
        lambda *a: sum(t.pow(3).sum() for t in jvp(c, a, tangents(a))), ALL
    ),
    "hessian": lambda c: hessian(scalar(c), (0, 1)),
    "jacrev": lambda c: jacrev(c, ALL),
    "jacfwd": lambda c: jacfwd(c, ALL),
    "jacfwd of jacfwd": lambda c: jacfwd(jacfwd(scalar(c), 1), 0),
    "jacrev of jacrev": lambda c: jacrev(jacrev(scalar(c), 1), 0),
    "jacrev of jacfwd": lambda c: jacrev(jacfwd(scalar(c), 1), 0),
    "linearize": lambda c: lambda *a: linearize(c, *a)[1](*tangents(a)),
    "functionalize": functionalize,
}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_functorch(name: str, pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]) -> None:
    same(lambda conv: TRANSFORMS[name](conv)(*xwb), pair)


MAPPED = [dims for dims in product((None, 1), (None, 2), (None, 1)) if any(dims)]


def batched(
    given: tuple[Tensor, ...], dims: tuple[int | None, ...], size: int = 3
) -> tuple[Tensor, ...]:
    """Each tensor with a fresh dimension of random samples at its in_dim."""
    return tuple(
        tensor if dim is None else torch.randn(size, *tensor.shape).to(tensor).movedim(0, dim)
        for tensor, dim in zip(given, dims, strict=True)
    )


@pytest.mark.parametrize("dims", MAPPED, ids=str)
def test_vmap(dims: tuple[int | None, ...], pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]) -> None:
    given = batched(xwb, dims)
    same(lambda c: vmap(c, dims)(*given), pair)
    same(lambda c: vmap(c, dims, chunk_size=2)(*given), pair)
    same(lambda c: vmap(c, dims, out_dims=2)(*given), pair)
    same(lambda c: vmap(grad(scalar(c), ALL), dims)(*given), pair)
    same(lambda c: vmap(lambda *a: jvp(c, a, tangents(a)), dims)(*given), pair)
    same(lambda c: grad(lambda *a: scalar(vmap(c, dims))(*a), ALL)(*given), pair)


def test_nested_vmap_and_per_sample_gradients(
    pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, w, b = xwb
    xs, ws, bs = batched(xwb, (0, 0, 0))
    same(lambda c: vmap(vmap(c, (0, None, None)), (None, 0, 0))(xs, ws, bs), pair)
    same(
        lambda c: vmap(vmap(c, (0, 0, None)), (None, 0, 0))(xs, torch.stack([ws, ws]), bs[:2]), pair
    )
    same(lambda c: vmap(grad(lambda w, x: scalar(c)(x[None], w, b)), (None, 0))(w, x), pair)
    same(
        lambda c: vmap(vmap(grad(scalar(c), ALL), (0, None, 0)), (None, 0, None))(xs, ws, bs), pair
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_of_a_transposed_convolution(
    groups: int, dims: tuple[int | None, int | None], device: torch.device
) -> None:
    x, w = torch.randn(2, 4, 5).to(device), torch.randn(4, 3, 3).to(device)
    given = batched((x, w), dims)

    def conv(x: Tensor, w: Tensor) -> Tensor:
        return ops.convolution(x, w, None, [2], [1], [1], True, [1], groups)

    def expected(x: Tensor, w: Tensor) -> Tensor:
        return F.conv_transpose1d(x, w, None, 2, 1, 1, groups)

    torch.testing.assert_close(vmap(conv, dims)(*given), vmap(expected, dims)(*given))


def leaves(given: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in given]


def test_gradcheck_and_gradgradcheck(pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(
        pair.ours, leaves(xwb), check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True, fast_mode=True,
    )  # fmt: skip
    assert torch.autograd.gradgradcheck(
        pair.ours, leaves(xwb), check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
    )


class Asked(TorchDispatchMode):
    """Records which gradients are computed: of the input, the weight, the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = [False, False, False]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self._note(*args[10])
        elif func is torch.ops.fastconv1d.convolution.default:
            self._note(True, False, False)
        elif func is torch.ops.fastconv1d.grad_weight.default:
            self._note(False, True, args[3])
        elif func is torch.ops.aten.sum.dim_IntList:
            self._note(False, False, True)
        return func(*args, **(kwargs or {}))

    def _note(self, *computed: bool) -> None:
        self.wanted = [before or now for before, now in zip(self.wanted, computed, strict=True)]


@pytest.mark.parametrize("wanted", [w for w in product((False, True), repeat=3) if any(w)], ids=str)
def test_only_the_gradients_asked_for(
    wanted: tuple[bool, ...], pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]
) -> None:
    def measure(conv: Conv) -> Any:
        given = [t.detach().clone().requires_grad_(on) for t, on in zip(xwb, wanted, strict=True)]
        loss = scalar(conv)(*given)
        with Asked() as asked:
            loss.backward()
        assert asked.wanted == list(wanted)
        return [tensor.grad for tensor in given if tensor.grad is not None]

    same(measure, pair)


def test_no_graph_where_none_is_wanted(pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]) -> None:
    assert pair.ours(*xwb).grad_fn is None
    with torch.no_grad():
        assert not pair.ours(*leaves(xwb)).requires_grad
    with torch.inference_mode():
        assert pair.ours(*leaves(xwb)).is_inference()
    y = pair.ours(*leaves(xwb))
    assert y.requires_grad
    assert not y._is_view()
    y.add_(1).sum().backward()


def test_forward_mode_in_eager(pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, b = xwb

    def measure(conv: Conv) -> Any:
        answers = []
        for dual in product((False, True), repeat=3):
            with forward_ad.dual_level():
                given = [
                    forward_ad.make_dual(t, t.cos()) if on else t
                    for t, on in zip((x, w, b), dual, strict=True)
                ]
                answers += [t for t in forward_ad.unpack_dual(conv(*given)) if t is not None]
        assert len(answers) == 8 + 7
        return answers

    same(measure, pair)
    with torch.no_grad():
        same(measure, pair)


def test_eager_gradients_through_transforms(pair: Pair, xwb: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, b = xwb

    def mixed(conv: Conv) -> Any:
        leaf = x.clone().requires_grad_()
        inner = grad(lambda w: scalar(conv)(leaf, w, b))(w)
        return torch.autograd.grad(inner.square().sum(), leaf)

    def many(conv: Conv) -> Any:
        given = leaves((x, w))
        y = conv(*given, b)
        seeds = torch.arange(5.0).to(y).view(5, 1, 1, 1).expand(5, *y.shape)
        return torch.autograd.grad(y, given, seeds, is_grads_batched=True)

    same(mixed, pair)
    same(many, pair)
