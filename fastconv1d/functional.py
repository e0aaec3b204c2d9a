"""`conv1d` and `conv_transpose1d`: torch.nn.functional's forms of arguments, and errors that say
what was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv1d import ops
from fastconv1d.problem import Problem, UnsupportedError


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """1-D convolution, as torch.nn.functional.conv1d:

        out[n, o, q] = bias[o] + sum over c, k of
                       weight[o, c, k] * input[n, c, q * stride + k * dilation - padding]

    input: (batch, channels_in, length) or (channels_in, length), any strides; weight:
    (channels_out, channels_in/groups, kernel_size); bias: (channels_out,) or None; the result:
    (batch, channels_out, length_out), or without batch as the input is. One dtype and device;
    fp32, bf16, fp16 and fp64 run our plans, others ATen's. padding is an int, a 1-tuple, 'valid'
    or 'same'. algorithm forces a plan or a family of plans: 'hopper', 'explicit', 'dense',
    'toeplitz', 'kn2row', 'sliding', 'direct', 'im2col', 'aten'.

    Raises: what torch.nn.functional.conv1d raises for the same arguments; ValueError for an unknown
    algorithm, RuntimeError for one that cannot run this convolution.
    """
    return _convolve(
        input, weight, bias, stride, padding, dilation, False, 0, groups, algorithm or ""
    )


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    algorithm: str | None = None,
) -> Tensor:
    """1-D transposed convolution, as torch.nn.functional.conv_transpose1d:

        out[n, o, p] = bias[o] + sum over c, k, q with q * stride + k * dilation - padding = p of
                       weight[c, o, k] * input[n, c, q]

    input: (batch, channels_in, length) or (channels_in, length), any strides; weight:
    (channels_in, channels_out/groups, kernel_size); bias: (channels_out,) or None; the result:
    (batch, channels_out, length_out), or without batch as the input is, with length_out =
    (length - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + 1 + output_padding.
    dtypes and algorithm as of `conv1d`.

    Raises: what torch.nn.functional.conv_transpose1d raises for the same arguments; ValueError for
    an unknown algorithm, RuntimeError for one that cannot run this convolution.
    """
    return _convolve(
        input, weight, bias, stride, padding, dilation, True, output_padding, groups,
        algorithm or "",
    )  # fmt: skip


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    transposed: bool,
    output_padding: int | Sequence[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    try:
        # Dynamo must not look at what changes when a binding is loaded: it would compile anew.
        if not torch.compiler.is_dynamo_compiling() and ops.python_convolution is not None:
            direct = ops.python_convolution(
                input, weight, bias, stride, padding, dilation, transposed, output_padding, groups,
                algorithm,
            )  # fmt: skip
            if direct is not NotImplemented:
                return direct
        batched = input.dim() == 3
        if weight.dim() != 3 or not (batched or input.dim() == 2):
            raise RuntimeError("input or weight has the wrong number of dimensions")
        if input.is_complex() and not algorithm:
            # torch splits these into real convolutions before its operator is reached.
            theirs: Any = torch.nn.functional
            answer: Tensor = (
                theirs.conv_transpose1d(
                    input, weight, bias, stride, padding, output_padding, groups, dilation
                )
                if transposed
                else theirs.conv1d(input, weight, bias, stride, padding, dilation, groups)
            )
            return answer
        strides, dilations = _single(stride), _single(dilation)
        if isinstance(padding, str) and not transposed:
            padded, pads = _pad(input, weight, strides, padding, dilations)
        else:
            padded, pads = input, _single(padding)
        output = ops.convolution(
            padded if batched else padded.unsqueeze(0),
            weight, bias, strides, pads, dilations, transposed, _single(output_padding), groups,
            algorithm,
        )  # fmt: skip
        return output if batched else output.squeeze(0)
    except Exception as error:
        # Arguments are examined here alone, so that good ones cost nothing.
        fault = _fault(
            input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
        )
        if fault is None:
            raise
        raise fault from error


def _single(value: Any) -> Sequence[int]:
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, bool):
        raise TypeError("a bool is no size")
    return (value,)


def _pad(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: str, dilation: Sequence[int]
) -> tuple[Tensor, Sequence[int]]:
    """The padding that 'valid' or 'same' means; where that is odd, the right end gets one more."""
    if padding == "valid":
        return input, (0,)
    if padding != "same" or stride[0] != 1:
        raise RuntimeError("padding is no 'same' or 'valid', or strided")
    total = dilation[0] * (weight.shape[2] - 1)
    if total % 2:
        input = torch.nn.functional.pad(input, (0, 1))
    return input, (total // 2,)


def _fault(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: Any,
) -> Exception | None:
    """What is wrong with the arguments, as an error of torch's class for it; or None."""
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not (isinstance(tensor, Tensor) or (name == "bias" and tensor is None)):
            return TypeError(f"{name} is a {type(tensor).__name__}, expected a Tensor")
    if not _is_int(groups):
        return TypeError(f"groups is {groups!r}, expected an int")
    sizes: dict[str, Any] = {}
    named = isinstance(padding, str) and not transposed
    for name, value in (
        ("stride", stride),
        ("padding", 0 if named else padding),
        ("dilation", dilation),
        ("output_padding", output_padding),
    ):
        sizes[name] = value if isinstance(value, (tuple, list)) else (value,)
        if not all(map(_is_int, sizes[name])):
            return TypeError(f"{name} is {value!r}, expected an int or a tuple of one int")
        if len(sizes[name]) != 1:
            return RuntimeError(f"{name} is {value!r}, expected an int or a tuple of one int")
    if input.dim() not in (2, 3):
        return RuntimeError(
            f"input has shape {tuple(input.shape)}, expected (batch, channels, length) or "
            "(channels, length)"
        )
    if named:
        if padding not in ("same", "valid"):
            return RuntimeError(
                f"padding is {padding!r}, expected 'same', 'valid', an int or a tuple of one int"
            )
        if padding == "same" and sizes["stride"][0] != 1:
            return RuntimeError(f"stride is {stride!r}, expected 1 with padding='same'")
        # Whatever 'same' comes to, it is enough for the kernel.
        same = padding == "same" and weight.dim() == 3
        sizes["padding"] = (abs(sizes["dilation"][0]) * weight.shape[2] if same else 0,)
    try:
        Problem.from_tensors(
            input if input.dim() == 3 else input.unsqueeze(0), weight, bias,
            **sizes, transposed=transposed, groups=groups,
        )  # fmt: skip
    except UnsupportedError:
        return None
    except ValueError as error:
        return RuntimeError(str(error))
    return None


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
