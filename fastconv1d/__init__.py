"""A drop-in 1-D convolution for PyTorch on its own CUDA kernels."""

from fastconv1d.functional import conv1d, conv_transpose1d
from fastconv1d.modules import Conv1d, ConvTranspose1d
from fastconv1d.ops import calls, disable, enable, enabled

__all__ = [
    "Conv1d",
    "ConvTranspose1d",
    "__version__",
    "calls",
    "conv1d",
    "conv_transpose1d",
    "disable",
    "enable",
    "enabled",
]

__version__ = "0.1.0"
