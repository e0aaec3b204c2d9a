"""One 1-D convolution as a value: geometry, validation, FLOPs and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd, prod

import torch

from fastconv1d import config

MODE_DTYPES = {
    "tf32": torch.float32,
    "ieee": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


class UnsupportedError(ValueError):
    """A convolution that ATen may run and this project cannot describe."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What plan selection knows of a GPU."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        """Describe a CUDA device."""
        index = torch.cuda.current_device() if device.index is None else device.index
        return _gpu(index)


@lru_cache(maxsize=64)
def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        properties.name, (properties.major, properties.minor), properties.multi_processor_count
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """The geometry, arithmetic and device of one 1-D convolution; channel counts are totals.

        out[n, o, q] = bias[o] + sum over c, k of
                       weight[o, c, k] * input[n, c, q * stride + k * dilation - padding]

    or its transpose. `mode` is one of `config.MODES`; `gpu` is None on the CPU.
    """

    batch: int
    channels_in: int
    channels_out: int
    length: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    transposed: bool = False
    output_padding: int = 0
    bias: bool = False
    mode: str = "ieee"
    gpu: Gpu | None = None
    row_alignment: int = 0
    """Bytes, of 16 at most, by multiples of which the input's rows lie apart.

    0 stands for those of a contiguous input. Some kernels move rows alike together.
    """

    @classmethod
    def from_tensors(
        cls,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
        mode: str | None = None,
    ) -> Problem:
        """The problem that an operator's arguments pose.

        input is (batch, channels_in, length); weight is (channels_out, channels_in/groups,
        kernel_size), or (channels_in, channels_out/groups, kernel_size) when transposed; bias is
        (channels_out,). Every sequence holds one int.

        Raises: ValueError for arguments that pose no convolution, naming the one at fault;
        UnsupportedError for a dtype, device or layout that is not ours.
        """
        if input.dim() != 3:
            raise ValueError(f"input has shape {tuple(input.shape)}, expected 3 dimensions")
        if weight.dim() != 3:
            raise ValueError(f"weight has shape {tuple(weight.shape)}, expected 3 dimensions")
        for name, other in (("weight", weight), ("bias", bias)):
            if other is not None and other.dtype != input.dtype:
                raise ValueError(f"{name} is {other.dtype}, expected input's dtype {input.dtype}")
            if other is not None and other.device != input.device:
                raise ValueError(
                    f"{name} is on {other.device}, expected input's device {input.device}"
                )
        problem = cls.from_sizes(
            input, weight.shape, bias is not None, stride, padding, dilation, transposed,
            output_padding, groups, mode,
        )  # fmt: skip
        if bias is not None and tuple(bias.shape) != (problem.channels_out,):
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}, expected ({problem.channels_out},)"
            )
        return problem

    @classmethod
    def from_sizes(
        cls,
        input: torch.Tensor,
        weight_sizes: Sequence[int],
        bias: bool,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
        mode: str | None = None,
    ) -> Problem:
        """`from_tensors` where there is no weight, but its three sizes are known.

        Raises: as `from_tensors`.
        """
        if input.dim() != 3:
            raise ValueError(f"input has shape {tuple(input.shape)}, expected 3 dimensions")
        for name, values in (
            ("stride", stride),
            ("padding", padding),
            ("dilation", dilation),
            ("output_padding", output_padding),
        ):
            if len(values) != 1:
                raise ValueError(f"{name} is {tuple(values)}, expected one int")
        if groups < 1:
            raise ValueError(f"groups is {groups}, expected at least 1")
        batch, channels_in, length = input.shape
        rows, columns, kernel_size = weight_sizes
        problem = cls(
            batch=batch,
            channels_in=channels_in,
            channels_out=columns * groups if transposed else rows,
            length=length,
            kernel_size=kernel_size,
            stride=stride[0],
            padding=padding[0],
            dilation=dilation[0],
            groups=groups,
            transposed=transposed,
            output_padding=output_padding[0],
            bias=bias,
            mode=mode or "ieee",
        )
        if transposed and channels_in != rows:
            raise ValueError(f"input has {channels_in} channels, expected weight's {rows}")
        if not transposed and channels_in != columns * groups:
            raise ValueError(
                f"input has {channels_in} channels, expected groups x weight's channels = "
                f"{groups} x {columns} = {groups * columns}"
            )
        problem.validate()
        return replace(
            problem,
            mode=mode or _mode_of(input),
            gpu=Gpu.of(input.device) if input.is_cuda else None,
        )

    def validate(self) -> None:
        """Raise ValueError if no such convolution exists, naming the argument at fault."""
        for name, value, least in (
            ("batch", self.batch, 0),
            ("channels_in", self.channels_in, 1),
            ("channels_out", self.channels_out, 1),
            ("length", self.length, 1),
            ("kernel_size", self.kernel_size, 1),
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
            ("groups", self.groups, 1),
            ("output_padding", self.output_padding, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        for name, value in (("channels_in", self.channels_in), ("channels_out", self.channels_out)):
            if value % self.groups:
                raise ValueError(f"{name} is {value}, expected a multiple of groups={self.groups}")
        if self.mode not in config.MODES:
            raise ValueError(f"mode is {self.mode!r}, expected one of {config.MODES}")
        if self.output_padding and not self.transposed:
            raise ValueError(
                f"output_padding is {self.output_padding}, expected 0 unless transposed"
            )
        if self.output_padding >= max(self.stride, self.dilation):
            raise ValueError(
                f"output_padding is {self.output_padding}, expected less than stride="
                f"{self.stride} or dilation={self.dilation}"
            )
        if self.transposed:
            if self.length_out < 1:
                raise ValueError(
                    f"padding is {self.padding}, expected a smaller one: the output would have "
                    f"length {self.length_out}"
                )
        elif self.length + 2 * self.padding < self.reach:
            raise ValueError(
                f"input has length {self.length}, with padding {self.length + 2 * self.padding}, "
                f"expected at least the kernel's reach {self.reach} "
                f"(kernel_size={self.kernel_size}, dilation={self.dilation})"
            )

    @property
    def reach(self) -> int:
        """Input positions from the kernel's first tap to its last: dilation (K - 1) + 1."""
        return self.dilation * (self.kernel_size - 1) + 1

    @property
    def has_neighbours(self) -> bool:
        """Whether taps see neighbouring positions, if there are several."""
        return self.dilation == 1 or self.kernel_size == 1

    @property
    def least_length(self) -> int:
        """`reach`, or more where a transposed convolution would have no outputs of that length."""
        if not self.transposed:
            return self.reach
        cut_off = 2 * self.padding - self.reach - self.output_padding
        return max(self.reach, 2 + cut_off // self.stride)

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' dtype."""
        return MODE_DTYPES[self.mode]

    @property
    def length_out(self) -> int:
        """floor((L + 2 padding - reach) / stride) + 1, or the transpose's
        (L - 1) stride - 2 padding + reach + output_padding."""
        if self.transposed:
            spread = (self.length - 1) * self.stride
            return spread - 2 * self.padding + self.reach + self.output_padding
        return (self.length + 2 * self.padding - self.reach) // self.stride + 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(batch, channels_in, length)"""
        return self.batch, self.channels_in, self.length

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """(channels_out, channels_in/groups, kernel_size), in and out swapped when transposed."""
        if self.transposed:
            return self.channels_in, self.channels_out // self.groups, self.kernel_size
        return self.channels_out, self.channels_in // self.groups, self.kernel_size

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(batch, channels_out, length_out)"""
        return self.batch, self.channels_out, self.length_out

    @property
    def flops(self) -> int:
        """Two per multiplication: 2 batch positions channels_in channels_out/groups kernel_size."""
        positions = self.length if self.transposed else self.length_out
        pairs = self.channels_in * (self.channels_out // self.groups)
        return 2 * self.batch * positions * pairs * self.kernel_size

    @property
    def input_elements(self) -> int:
        """batch channels_in length"""
        return self.batch * self.channels_in * self.length

    @property
    def weight_elements(self) -> int:
        """channels_in channels_out kernel_size / groups"""
        return prod(self.weight_shape)

    @property
    def output_elements(self) -> int:
        """batch channels_out length_out"""
        return self.batch * self.channels_out * self.length_out

    @property
    def bytes(self) -> int:
        """Bytes of input, weight and bias read once and output written once."""
        parameters = self.weight_elements + self.channels_out * self.bias
        return (self.input_elements + parameters + self.output_elements) * self.dtype.itemsize

    @property
    def gradient_flops(self) -> int:
        """Of the gradients of input and weight, each of which multiplies as often as `flops`."""
        return 2 * self.flops

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the output's gradient, input and weight read once and all gradients written."""
        parameters = 2 * self.weight_elements + self.channels_out * self.bias
        elements = self.output_elements + 2 * self.input_elements + parameters
        return elements * self.dtype.itemsize

    @property
    def aligned(self) -> int:
        """`row_alignment`, that of a contiguous input worked out."""
        return self.row_alignment or gcd(16, self.length * self.dtype.itemsize)

    @property
    def ordinary(self) -> Problem:
        """The ordinary convolution that has this one's gradient of the weight; often itself.

        A transposed convolution's is that of an ordinary one with the same weight, whose input is
        the gradient of the output and whose gradient of the output is the input. With
        output_padding >= stride, `length_out` of the result is more than the input has positions:
        `length` of this problem is the true number. It has no bias: the gradient of a transposed
        convolution's sums up other positions, those of its own output.
        """
        if not self.transposed:
            return self
        return replace(
            self,
            channels_in=self.channels_out,
            channels_out=self.channels_in,
            length=self.length_out,
            transposed=False,
            output_padding=0,
            bias=False,
            row_alignment=0,  # of a tensor that is grad_output here
        )

    @property
    def adjoint(self) -> Problem:
        """The convolution of this one's grad_output that computes the gradient of the input.

        It has the same weight, and no bias. Where output_padding >= the stride, its output has more
        positions than the input.
        """
        other = replace(
            self,
            channels_in=self.channels_out,
            channels_out=self.channels_in,
            length=self.length_out,
            transposed=not self.transposed,
            output_padding=0,
            bias=False,
            row_alignment=0,
        )
        missing = 0 if self.transposed else self.length - other.length_out
        return replace(other, output_padding=missing)

    def bucketed(self) -> Problem:
        """This problem with batch and length rounded up to four significant bits.

        All that plan selection looks at, so that a new length costs no new decision.
        """
        return replace(
            self,
            batch=_bucket(self.batch),
            length=_bucket(self.length),
            row_alignment=self.aligned,
        )


def row_alignment(input: torch.Tensor) -> int:
    """`Problem.row_alignment` of an input (batch, channels, length)."""
    if input.shape[2] > 1 and input.stride(2) != 1:
        return 0  # it will be made contiguous
    aligned = gcd(16, input.stride(1) * input.element_size())
    return 0 if aligned == gcd(16, input.shape[2] * input.element_size()) else aligned


def _bucket(count: int) -> int:
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step


def _mode_of(input: torch.Tensor) -> str:
    if input.device.type not in ("cpu", "cuda") or input.layout != torch.strided:
        raise UnsupportedError(
            f"input is a {input.layout} tensor on {input.device}, "
            "expected a strided one on the CPU or a CUDA device"
        )
    if input.dtype == torch.float32:
        tensor_cores = input.is_cuda and Gpu.of(input.device).capability >= (8, 0)
        return config.fp32_mode() if tensor_cores else "ieee"
    for mode, dtype in MODE_DTYPES.items():
        if dtype == input.dtype:
            return mode
    raise UnsupportedError(
        f"input is {input.dtype}, expected a floating-point dtype of 16 to 64 bits"
    )
