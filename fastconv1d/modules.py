"""`Conv1d` and `ConvTranspose1d`: torch.nn's layers on our plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastconv1d.functional import conv1d, conv_transpose1d


class _Planned(torch.nn.Module):
    """A layer of torch's with one more keyword: the plan that it is forced to."""

    algorithm: str | None

    def __init__(self, *args: Any, algorithm: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.algorithm = algorithm

    def extra_repr(self) -> str:
        """torch's, and the algorithm where one is forced."""
        shown = super().extra_repr()
        return shown if self.algorithm is None else f"{shown}, algorithm={self.algorithm!r}"


class Conv1d(_Planned, torch.nn.Conv1d):
    """1-D convolution layer: torch.nn.Conv1d's constructor, parameters, state_dict and repr.

        out[n, o, q] = bias[o] + sum over c, k of
                       weight[o, c, k] * input[n, c, q * stride + k * dilation - padding]

    input: (batch, in_channels, length) or (in_channels, length); weight: (out_channels,
    in_channels/groups, kernel_size); bias: (out_channels,). dtypes and errors as of
    `fastconv1d.conv1d`. algorithm, keyword only, forces a plan or a family of plans.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            pads = self._reversed_padding_repeated_twice
            input, padding = torch.nn.functional.pad(input, pads, mode=self.padding_mode), 0
        return conv1d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            algorithm=self.algorithm,
        )  # fmt: skip


class ConvTranspose1d(_Planned, torch.nn.ConvTranspose1d):
    """1-D transposed convolution layer: torch.nn.ConvTranspose1d's constructor, parameters,
    state_dict and repr.

        out[n, o, p] = bias[o] + sum over c, k, q with q * stride + k * dilation - padding = p of
                       weight[c, o, k] * input[n, c, q]

    input: (batch, in_channels, length) or (in_channels, length); weight: (in_channels,
    out_channels/groups, kernel_size); bias: (out_channels,). dtypes and errors as of
    `fastconv1d.conv_transpose1d`. algorithm, keyword only, forces a plan or a family of plans.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The convolution; output_size, (length_out,) or the output's shape, sets output_padding.

        Raises: what torch.nn.ConvTranspose1d raises, ValueError for a size that no output_padding
        below the stride gives among them.
        """
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode is {self.padding_mode!r}, expected 'zeros'")
        padding: Any = self.padding
        output_padding_for: Any = self._output_padding
        output_padding = output_padding_for(
            input, output_size, self.stride, padding, self.kernel_size, 1, self.dilation
        )
        return conv_transpose1d(
            input, self.weight, self.bias, self.stride, padding, output_padding, self.groups,
            self.dilation, algorithm=self.algorithm,
        )  # fmt: skip
