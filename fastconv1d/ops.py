"""The operators in torch's dispatcher, their autograd, vmap, fake and autocast rules; `enable`.

`fastconv1d::convolution` has the argument list of `aten::convolution` plus a forced plan's name,
and `fastconv1d::convolution_backward` that of `aten::convolution_backward`: the input's gradient is
a convolution, the weight's `fastconv1d::grad_weight`, and these differentiate into each other.
docs/design.md tells which kernel answers at which key.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from fastconv1d import build, config, plan
from fastconv1d.problem import Gpu, Problem, UnsupportedError, row_alignment

_ARGUMENTS = (
    "Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups"
)

# Kept for as long as the process lives: a Library's registrations end with it.
_library = torch.library.Library("fastconv1d", "DEF")
_library.define(
    f'convolution({_ARGUMENTS}, str algorithm="") -> Tensor', tags=(torch.Tag.pt2_compliant_tag,)
)
_library.define(f'_differentiable({_ARGUMENTS}, str algorithm="") -> Tensor')
for _name in ("convolution_backward", "_differentiable_backward"):
    _library.define(
        f"{_name}(Tensor grad_output, Tensor input, Tensor weight, SymInt[]? bias_sizes, "
        "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, "
        'SymInt[] output_padding, SymInt groups, bool[3] output_mask, str algorithm="") '
        "-> (Tensor, Tensor, Tensor)"
    )
_GRADIENT_ARGUMENTS = (
    "Tensor grad_output, Tensor input, SymInt[] weight_sizes, bool bias, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups"
)
_library.define(
    f'grad_weight({_GRADIENT_ARGUMENTS}, str algorithm="") -> (Tensor, Tensor)',
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f'_differentiable_grad_weight({_GRADIENT_ARGUMENTS}, str algorithm="") -> (Tensor, Tensor)'
)
_library.define(
    "_select(Tensor input, int[] weight_sizes, bool bias, int stride, int padding, int dilation, "
    "bool transposed, int output_padding, int groups, str mode, bool gradient, str algorithm) "
    "-> int[]"
)

convolution: Callable[..., Tensor] = torch.ops.fastconv1d.convolution.default
"""The operator: aten::convolution's arguments for a 3-D input, and a plan's or family's name."""

convolution_backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]] = (
    torch.ops.fastconv1d.convolution_backward.default
)
"""Its gradients: aten::convolution_backward's arguments, and a plan's or family's name."""

grad_weight: Callable[..., tuple[Tensor, Tensor]] = torch.ops.fastconv1d.grad_weight.default
"""The gradients of weight and bias; the latter has no elements where `bias` is False.

    grad_weight[o, c, k] = sum over n, q of
                           grad_output[n, o, q] * input[n, c, q * stride + k * dilation - padding]

with the two tensors' parts swapped when transposed.
"""

_Ints = Sequence[int]

python_convolution: Callable[..., Tensor] | None = None
"""`convolution` without torch.ops, which takes longer than a small layer to read arguments.

None until a binding is loaded. Its answer to what it leaves to `convolution` is NotImplemented.
"""

ATEN, LIBRARY, IM2COL = range(3)  # the kinds that _select answers with


# --- running a plan -------------------------------------------------------------------------------


def _run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str = "",
) -> Tensor:
    """The operator until the device's binding is loaded, and wherever it does not apply."""
    arguments = (
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )  # fmt: skip
    try:
        problem = Problem.from_tensors(*arguments)
    except ValueError as error:
        # Beyond us, or beyond everybody: then ATen raises torch's own error.
        if isinstance(error, UnsupportedError) and algorithm not in ("", "aten"):
            raise RuntimeError(f"algorithm {algorithm!r} cannot run this: {error}") from error
        if bias is not None and bias.dtype != input.dtype:
            # Not all that ATen would choose checks this.
            raise RuntimeError(
                f"bias is {bias.dtype}, expected input's dtype {input.dtype}"
            ) from error
        return _aten(*arguments)
    # On a GPU the binding answers ATen's plan too: its host time is a fraction of this kernel's.
    chosen = plan.select(problem, algorithm)
    required = chosen.family != "aten"
    if (required or problem.gpu) and _binding(input.device.type, required):
        return convolution(*arguments, algorithm)
    return _aten(*arguments)


def _aten(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
) -> Tensor:
    """ATen's own convolution, with the switches that at::convolution passes on.

    Not aten::convolution, behind which `enable` puts us.
    """
    cudnn = torch.backends.cudnn
    output: Tensor = torch.ops.aten._convolution.default(
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups,
        cudnn.benchmark,
        cudnn.deterministic or torch.are_deterministic_algorithms_enabled(),
        cudnn.enabled,
        config.fp32_mode() == "tf32",
    )  # fmt: skip
    return output.contiguous()


def _run_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    weight_sizes: _Ints,
    bias: bool,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str = "",
) -> tuple[Tensor, Tensor]:
    """As `_run`, for the gradient of the weight."""
    arguments = (
        input, weight_sizes, bias, stride, padding, dilation, transposed, output_padding, groups
    )  # fmt: skip
    try:
        problem = Problem.from_sizes(*arguments)
    except ValueError as error:
        if isinstance(error, UnsupportedError) and algorithm not in ("", "aten"):
            raise RuntimeError(f"algorithm {algorithm!r} cannot run this: {error}") from error
        return _aten_grad_weight(grad_output, *arguments)
    chosen = plan.select(problem.ordinary, algorithm, gradient=True)
    required = chosen.family != "aten"
    if (required or problem.gpu) and _binding(input.device.type, required):
        return grad_weight(grad_output, *arguments, algorithm)
    return _aten_grad_weight(grad_output, *arguments)


def _aten_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    weight_sizes: _Ints,
    bias: bool,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
) -> tuple[Tensor, Tensor]:
    channels_out = grad_output.shape[1]
    weight = input.new_empty(weight_sizes)  # nobody looks at its values
    _, grad, grad_bias = torch.ops.aten.convolution_backward.default(
        grad_output, input, weight, [channels_out], stride, padding, dilation, transposed,
        output_padding, groups, [False, True, bias],
    )  # fmt: skip
    return grad.contiguous(), grad_bias if bias else grad_output.new_empty(0)


def _select(
    input: Tensor,
    weight_sizes: _Ints,
    bias: bool,
    stride: int,
    padding: int,
    dilation: int,
    transposed: bool,
    output_padding: int,
    groups: int,
    mode: str,
    gradient: bool,
    algorithm: str,
) -> list[int]:
    """[kind, plan index, launch address, workspace address, variant] for the binding.

    Of the weight's gradient, three more: the addresses of the library for the gradient of the bias,
    0 where the plan computes that as well, and whether it brings that of the input along.
    """
    problem = Problem.from_sizes(
        input, weight_sizes, bias, [stride], [padding], [dilation], transposed, [output_padding],
        groups, mode,
    )  # fmt: skip
    aligned = replace(problem, row_alignment=row_alignment(input))
    problem = problem.ordinary if gradient else aligned
    chosen, library = _runnable(problem, algorithm, gradient)
    index = plan.EVERY_PLAN.index(chosen)
    kind = {"aten": ATEN, "im2col": IM2COL}.get(chosen.family, LIBRARY)
    variant = 0 if kind == ATEN else plan.variant_of(chosen, problem)
    numbers = [kind, index, *_addresses(library), variant]
    if not gradient:
        return numbers
    alone = plan.bias_alone(chosen, aligned, algorithm)
    numbers += _addresses(_load("grad_bias", problem.gpu) if alone else None)
    return [*numbers, int(plan.in_one_pass(chosen, aligned, algorithm))]


def _runnable(
    problem: Problem, algorithm: str, gradient: bool
) -> tuple[plan.Plan, ctypes.CDLL | None]:
    """The best plan whose library builds, and that library where it needs one."""
    for candidate in plan.candidates(problem, algorithm, gradient=gradient):
        name = plan.library_of(candidate, problem)
        if not name:
            return candidate, None
        library = _load(name, problem.gpu)
        if library is not None:
            return candidate, library
    raise RuntimeError(f"no plan runs {problem}")


def _addresses(library: ctypes.CDLL | None) -> list[int]:
    """Those of a library's two functions; zeros for none."""
    if library is None:
        return [0, 0]
    functions = library.fastconv1d_launch, library.fastconv1d_workspace
    return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]


def _load(name: str, gpu: Gpu | None, required: bool = True) -> ctypes.CDLL | None:
    """A library, or None after a warning; RuntimeError under FASTCONV1D_STRICT=1.

    One that is not required makes no noise.
    """
    result = _attempt(name, "cpu" if gpu is None else build.arch_of(gpu.capability))
    if isinstance(result, ctypes.CDLL):
        return result
    if required:
        _fall_back(result)
    return None


@lru_cache(maxsize=256)
def _attempt(name: str, arch: str) -> ctypes.CDLL | str:
    # A failure is remembered too: it would cost the compiler's time again and again.
    try:
        return build.load(name, plan.libraries()[name], arch)
    except build.BuildError as error:
        return str(error)


def _fall_back(reason: str) -> None:
    if config.strict():
        raise RuntimeError(reason)
    _warn_once(reason)


@lru_cache(maxsize=64)
def _warn_once(text: str) -> None:
    warnings.warn(f"{text}\nATen's convolution is used instead.", RuntimeWarning, stacklevel=2)


def _registered(device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("fastconv1d::convolution", device.upper())


def _binding(device: str, required: bool = True) -> bool:
    """Load a device's binding; False if it cannot be built, see `_load`."""
    if _registered(device):
        return True
    gpu = Gpu.of(torch.device(device)) if device == "cuda" else None
    library = _load(f"binding_{device}", gpu, required)
    if library is None:
        return False
    if not _registered(device):
        raise RuntimeError(f"binding_{device} was loaded and registered no {device.upper()} kernel")
    _attach(library)
    return True


def _attach(library: ctypes.CDLL) -> None:
    global python_convolution
    if python_convolution is not None:
        return  # that of the other device's binding, which is the same
    try:
        function = ctypes.PYFUNCTYPE(ctypes.py_object)(("fastconv1d_python_convolution", library))
    except AttributeError:
        return  # it was built without Python's headers
    python_convolution = cast(Callable[..., Tensor], function())


# --- autograd -------------------------------------------------------------------------------------


_Modes = tuple[bool, bool] | None  # whether reverse and forward mode are on; None: leave them

# Also below the key that tracks views: ATen's output is a view of a 2-D convolution's.
_below_autograd = torch._C._AutoDispatchBelowADInplaceOrView


@contextmanager
def _gradients(modes: _Modes) -> Iterator[None]:
    """Inside a function's forward and jvp, which torch runs without gradients: with them again."""
    if modes is None:
        yield
    else:
        reverse, forward = modes
        with torch.set_grad_enabled(reverse), forward_ad._set_fwd_grad_enabled(forward):
            yield


# torch.autograd.Function would start over at the top of functorch's stack of transforms; inside the
# dispatcher, where one level of it is being run, the function of a single level is what fits.
class _Convolution(_SingleLevelFunction):
    """The operator with its derivatives, each of them differentiable again."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        modes: _Modes,
    ) -> Tensor:
        with _gradients(modes), _below_autograd():
            return convolution(input, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.geometry, ctx.modes = inputs
        for_input, for_weight, _ = ctx.needs_input_grad[:3]
        ctx.save_for_backward(input if for_weight else None, weight if for_input else None)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(input, weight)
        ctx.length, ctx.weight_sizes, ctx.output_shape = input.shape[2], weight.shape, output.shape
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return None, None, None, None, None
        input, weight = ctx.saved_tensors
        grads = _wanted_gradients(
            grad_output, input, ctx.length, weight, ctx.weight_sizes, ctx.needs_input_grad,
            _for_gradients(ctx.geometry),
        )  # fmt: skip
        return *grads, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        input_t: Tensor | None,
        weight_t: Tensor | None,
        bias_t: Tensor | None,
        *_: None,
    ) -> Tensor | None:
        input, weight = (forward_ad.unpack_dual(saved).primal for saved in ctx.saved_tensors)
        terms = []
        with _gradients(ctx.modes):
            if input_t is not None:
                terms.append(convolution(input_t, weight, None, *ctx.geometry))
            if weight_t is not None:
                terms.append(convolution(input, weight_t, None, *ctx.geometry))
            if bias_t is not None:
                terms.append(bias_t.unsqueeze(-1).expand(ctx.output_shape))
            return sum(terms[1:], terms[0]) if terms else None


class _GradWeight(_SingleLevelFunction):
    """The weight's gradient with its derivatives: it is linear in both tensors."""

    @staticmethod
    def forward(
        grad_output: Tensor,
        input: Tensor,
        weight_sizes: _Ints,
        bias: bool,
        geometry: tuple[Any, ...],
        modes: _Modes,
    ) -> tuple[Tensor, Tensor]:
        with _gradients(modes), _below_autograd():
            return grad_weight(grad_output, input, weight_sizes, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad_output, input, ctx.weight_sizes, ctx.bias, ctx.geometry, ctx.modes = inputs
        ctx.save_for_backward(grad_output, input)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(grad_output, input)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        # The cotangents of both results are a weight and a bias.
        grad_output, input = ctx.saved_tensors
        geometry = _for_gradients(ctx.geometry)
        bias = bias if ctx.bias else None
        for_grad_output = for_input = None
        if ctx.needs_input_grad[0]:
            if weight is not None:
                for_grad_output = convolution(input, weight, bias, *geometry)
            elif bias is not None:
                for_grad_output = bias.unsqueeze(-1).expand(grad_output.shape)
        if ctx.needs_input_grad[1] and weight is not None:
            for_input = _grad_input(grad_output, input.shape[2], weight, *geometry)
        return for_grad_output, for_input, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, grad_output_t: Tensor | None, input_t: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None]:
        grad_output, input = (forward_ad.unpack_dual(saved).primal for saved in ctx.saved_tensors)
        weight: Tensor | None = None
        bias: Tensor | None = None
        with _gradients(ctx.modes):
            if grad_output_t is not None:
                weight, bias = grad_weight(
                    grad_output_t, input, ctx.weight_sizes, ctx.bias, *ctx.geometry
                )
            if input_t is not None:
                term, nothing = grad_weight(
                    grad_output, input_t, ctx.weight_sizes, False, *ctx.geometry
                )
                weight = term if weight is None else weight + term
                if bias is None:
                    bias = grad_output.new_zeros(grad_output.shape[1]) if ctx.bias else nothing
        return weight, bias


def _differentiable(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str = "",
) -> Tensor:
    geometry = (stride, padding, dilation, transposed, output_padding, groups, algorithm)
    output: Tensor = _applied(_Convolution, input, weight, bias, geometry)
    return output


def _differentiable_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    weight_sizes: _Ints,
    bias: bool,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str = "",
) -> tuple[Tensor, Tensor]:
    geometry = (stride, padding, dilation, transposed, output_padding, groups, algorithm)
    grads: tuple[Tensor, Tensor]
    grads = _applied(_GradWeight, grad_output, input, weight_sizes, bias, geometry)
    return grads


def _applied(function: type[_SingleLevelFunction], *arguments: Any) -> Any:
    apply: Callable[..., Any] = cast(Any, function).apply
    if torch._C._are_functorch_transforms_active():
        # The transforms further down the stack need the modes that a function turns off.
        modes = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        with enable_single_level_autograd_function():
            return apply(*arguments, modes)
    return apply(*arguments, None)


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether a derivative with respect to any of these may be asked for."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _autograd(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    if _recorded(input, weight, bias):
        return _differentiable(input, weight, bias, *geometry)
    with _below_autograd():
        return convolution(input, weight, bias, *geometry)


def _autograd_grad_weight(grad_output: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if _recorded(grad_output, input):
        return _differentiable_grad_weight(grad_output, input, *rest)
    with _below_autograd():
        return grad_weight(grad_output, input, *rest)


_FOR_EVERYTHING = ("aten", "direct")
"""Families that run every convolution: asked for one, gradients are computed by it as well."""


def _for_gradients(geometry: tuple[Any, ...]) -> tuple[Any, ...]:
    """A convolution's geometry and forced plan, as its gradients are to be computed."""
    *sizes, algorithm = geometry
    return *sizes, algorithm if algorithm in _FOR_EVERYTHING else ""


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: _Ints | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    output_mask: Sequence[bool],
    algorithm: str = "",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    geometry = (stride, padding, dilation, transposed, output_padding, groups)
    if grad_output.dim() != 3 or input.dim() != 3:
        grads: tuple[Tensor | None, Tensor | None, Tensor | None]
        grads = torch.ops.aten.convolution_backward.default(
            grad_output, input, weight, bias_sizes, *geometry, output_mask
        )
        return grads
    return _wanted_gradients(
        grad_output, input, input.shape[2], weight, weight.shape, output_mask,
        (*geometry, algorithm),
    )  # fmt: skip


def _wanted_gradients(
    grad_output: Tensor,
    input: Any,
    length: int,
    weight: Any,
    weight_sizes: _Ints,
    wanted: Sequence[bool],
    geometry: tuple[Any, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of input, weight and bias that are `wanted`.

    input, of `length` positions, is looked at for the weight's, and weight for the input's alone.
    """
    for_input, for_weight, for_bias = wanted[:3]
    grad_input = grad = grad_bias = None
    if for_input:
        grad_input = _grad_input(grad_output, length, weight, *geometry)
    if for_weight:
        grad, grad_bias = grad_weight(grad_output, input, weight_sizes, for_bias, *geometry)
    elif for_bias:
        grad_bias = grad_output.sum((0, 2))
    return grad_input, grad, grad_bias if for_bias else None


def _grad_input(
    grad_output: Tensor,
    length: int,
    weight: Tensor,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str,
) -> Tensor:
    """The other convolution with the same weight, of which the input had `length` positions."""
    if transposed:
        grad = convolution(
            grad_output, weight, None, stride, padding, dilation, False, (0,), groups, algorithm
        )
        # There are more where output_padding is a stride or more.
        return grad if grad.shape[2] == length else grad.narrow(2, 0, length)
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    spread = (grad_output.shape[2] - 1) * stride[0] - 2 * padding[0] + reach
    return convolution(
        grad_output, weight, None, stride, padding, dilation, True, (length - spread,), groups,
        algorithm,
    )  # fmt: skip


# --- vmap, fake tensors, autocast -----------------------------------------------------------------


def _vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str = "",
) -> tuple[Tensor, int]:
    """One convolution for the whole batch B: B moves into the batch, the channels or the groups.

    input (N, C, L), weight (O, C/groups, K) or (C, O/groups, K) when transposed, bias (O,), each
    with B at its in_dim or without it.
    """
    size, out_dim = info.batch_size, 0
    input_dim, weight_dim, bias_dim = in_dims[:3]
    shared_bias = bias if bias_dim is None else None
    if input_dim is not None and weight_dim is not None:
        # Each weight has its own input: B times the groups.
        input = input.movedim(input_dim, 1).flatten(1, 2)
        weight = weight.movedim(weight_dim, 0).flatten(0, 1)
        groups, out_dim = groups * size, 1
        shared_bias = None
    elif weight_dim is not None:
        # Every weight sees the same input: B times the output channels, within each group.
        if transposed:
            weight = weight.movedim(weight_dim, 1).flatten(1, 2)
        else:
            weight = weight.movedim(weight_dim, 0).unflatten(1, (groups, -1))
            weight = weight.movedim(0, 1).flatten(0, 2)
        shared_bias = None
    elif input_dim is not None:
        input = input.movedim(input_dim, 0).flatten(0, 1)
    output = convolution(
        input, weight, shared_bias, stride, padding, dilation, transposed, output_padding, groups,
        algorithm,
    )  # fmt: skip
    if weight_dim is None:
        output = output.unflatten(0, (1 if input_dim is None else size, -1))
    elif input_dim is not None:
        output = output.unflatten(1, (size, -1))
    else:
        output = output.unflatten(1, (groups, size, -1)).movedim(2, 0).flatten(2, 3)
    if bias is not None and shared_bias is None:
        # (B, O) or (O,) beside (B, N, O, L) or (N, B, O, L)
        added = bias if bias_dim is None else bias.movedim(bias_dim, 0)
        if bias_dim is not None and out_dim == 0:
            added = added.unsqueeze(1)
        output = output + added.unsqueeze(-1)
    return output, out_dim


def _vmap_grad_weight(
    info: Any,
    in_dims: tuple[int | None, ...],
    grad_output: Tensor,
    input: Tensor,
    weight_sizes: _Ints,
    bias: bool,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str = "",
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
    """One gradient for the whole batch B, which moves into the groups or into their channels.

    grad_output (N, O, Q), input (N, C, L), at least one of them with B at its in_dim. The weight's
    rows are the channels of the one, its columns those of the other within a group; transposed, of
    the input and of grad_output.
    """
    size, (grad_dim, input_dim) = info.batch_size, in_dims[:2]
    rows, columns, taps = weight_sizes
    out_dim = 0

    def folded(tensor: Tensor, dim: int, apart: bool) -> Tensor:
        """B times the groups, or B times the channels of each group."""
        if apart:
            return tensor.movedim(dim, 1).flatten(1, 2)
        of_groups: Tensor = tensor.movedim(dim, 1).unflatten(2, (groups, -1))
        return of_groups.transpose(1, 2).flatten(1, 3)

    both = grad_dim is not None and input_dim is not None
    if grad_dim is not None:
        grad_output = folded(grad_output, grad_dim, both)
    if input_dim is not None:
        input = folded(input, input_dim, both)
    of_rows = input_dim if transposed else grad_dim
    more_rows = both or of_rows is not None
    sizes = [size * rows, columns, taps] if more_rows else [rows, size * columns, taps]
    if both:
        groups = groups * size
    weight, of_bias = grad_weight(
        grad_output, input, sizes, bias, stride, padding, dilation, transposed, output_padding,
        groups, algorithm,
    )  # fmt: skip
    if both:
        weight = weight.unflatten(0, (size, rows))
    elif of_rows is not None:
        weight = weight.unflatten(0, (groups, size, -1)).transpose(0, 1).flatten(1, 2)
    else:
        weight = weight.unflatten(1, (size, columns))
        out_dim = 1
    if not bias or grad_dim is None:
        return (weight, of_bias), (out_dim, None)
    if both:
        return (weight, of_bias.unflatten(0, (size, -1))), (out_dim, 0)
    of_bias = of_bias.unflatten(0, (groups, size, -1)).transpose(0, 1).flatten(1, 2)
    return (weight, of_bias), (out_dim, 0)


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
    algorithm: str = "",
) -> Tensor:
    # ATen's own rule checks the arguments and computes the shape; our layout is always contiguous.
    output = torch.ops.aten.convolution.default(
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    return input.new_empty(output.shape)


def _fake_grad_weight(
    grad_output: Tensor, input: Tensor, weight_sizes: _Ints, bias: bool, *_: Any
) -> tuple[Tensor, Tensor]:
    return (
        grad_output.new_empty(weight_sizes),
        grad_output.new_empty(grad_output.shape[1] if bias else 0),
    )


def _autocast(device: str) -> Callable[..., Tensor]:
    key = f"Autocast{device.upper()}"
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)

        def cast(tensor: Tensor) -> Tensor:
            eligible = tensor.device.type == device and tensor.is_floating_point()
            return tensor.to(dtype) if eligible and tensor.dtype != torch.float64 else tensor

        with torch._C._ExcludeDispatchKeyGuard(keyset):
            bias = None if bias is None else cast(bias)
            return convolution(cast(input), cast(weight), bias, *geometry)

    _library.impl("convolution", kernel, key)
    return kernel


_library.impl("convolution", _run, "CompositeExplicitAutograd")
_library.impl("convolution", _autograd, "Autograd")
_library.impl("_differentiable", _differentiable, "CompositeImplicitAutograd")
_library.impl("convolution_backward", _backward, "CompositeImplicitAutograd")
_library.impl("convolution_backward", _backward, "FuncTorchBatchedDecomposition")
_library.impl("_differentiable_backward", _backward, "CompositeImplicitAutograd")
_library.impl("grad_weight", _run_grad_weight, "CompositeExplicitAutograd")
_library.impl("grad_weight", _autograd_grad_weight, "Autograd")
_library.impl(
    "_differentiable_grad_weight", _differentiable_grad_weight, "CompositeImplicitAutograd"
)
_library.impl("_select", _select, "CompositeExplicitAutograd")
torch.library.register_vmap("fastconv1d::convolution", _vmap, lib=_library)
torch.library.register_vmap("fastconv1d::grad_weight", _vmap_grad_weight, lib=_library)
torch.library.register_fake("fastconv1d::convolution", _fake, lib=_library)
torch.library.register_fake("fastconv1d::grad_weight", _fake_grad_weight, lib=_library)
for _device in ("cpu", "cuda"):
    _autocast(_device)


# --- standing in for aten::convolution ------------------------------------------------------------

_enabled: set[str] = set()


def enable(device: str = "cuda") -> None:
    """Run every 1-D `aten::convolution` on a device by our plans: nn.Conv1d, F.conv1d, any model.

    Other convolutions go to ATen, as before. Without a GPU or a compiler: one warning, no effect.

    Raises: ValueError if device is not 'cuda' or 'cpu'; RuntimeError instead of a warning under
    FASTCONV1D_STRICT=1.
    """
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device is {device!r}, expected 'cuda' or 'cpu'")
    if device == "cuda" and not torch.cuda.is_available():
        _fall_back("fastconv1d.enable('cuda'): torch sees no CUDA device")
    elif _binding(device):
        getattr(torch.ops.fastconv1d, f"_enable_{device}")(True)
        _enabled.add(device)


def disable(device: str = "cuda") -> None:
    """Undo `enable`; without effect where it was not called."""
    if device in _enabled:
        getattr(torch.ops.fastconv1d, f"_enable_{device}")(False)
        _enabled.discard(device)


@contextmanager
def enabled(device: str = "cuda") -> Iterator[None]:
    """`enable` for the length of a with block; leaves things as they were."""
    before = device in _enabled
    enable(device)
    try:
        yield
    finally:
        if not before:
            disable(device)


def calls() -> dict[str, int]:
    """How many convolutions each plan has run so far, by the plan's name."""
    counts = {row.name: 0 for row in plan.EVERY_PLAN}
    for device in ("cpu", "cuda"):
        if _registered(device):
            flat = getattr(torch.ops.fastconv1d, f"_calls_{device}")()
            for index, count in zip(flat[::2], flat[1::2], strict=True):
                counts[plan.EVERY_PLAN[index].name] += count
    return counts


sources_hash = plan.sources_hash
