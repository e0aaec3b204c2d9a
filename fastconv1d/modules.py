"""`Conv1d`: torch.nn.Conv1d on our plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastconv1d.functional import conv1d


class Conv1d(torch.nn.Conv1d):
    """1-D convolution layer: torch.nn.Conv1d's constructor, parameters, state_dict and repr.

        out[n, o, q] = bias[o] + sum over c, k of
                       weight[o, c, k] * input[n, c, q * stride + k * dilation - padding]

    input: (batch, in_channels, length) or (in_channels, length); weight: (out_channels,
    in_channels/groups, kernel_size); bias: (out_channels,). dtypes and errors as of
    `fastconv1d.conv1d`. algorithm, keyword only, forces a plan or a family of plans.
    """

    algorithm: str | None

    def __init__(self, *args: Any, algorithm: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.algorithm = algorithm

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            pads = self._reversed_padding_repeated_twice
            input, padding = torch.nn.functional.pad(input, pads, mode=self.padding_mode), 0
        return conv1d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups,
            algorithm=self.algorithm,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """nn.Conv1d's, and the algorithm where one is forced."""
        shown: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return shown if self.algorithm is None else f"{shown}, algorithm={self.algorithm!r}"
