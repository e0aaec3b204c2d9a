"""Settings: the environment variables of the project and torch's fp32 precision switch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

MODES = ("tf32", "ieee", "bf16", "fp16", "fp64")
"""Arithmetic modes; a mode's index is its number in `csrc/args.h`."""

ENVIRONMENT: dict[str, str] = {
    "FASTCONV1D_PLAN": "run this plan (or family of plans) wherever it is legal",
    "FASTCONV1D_STRICT": "1: raise an error that says why, instead of falling back to another plan",
    "FASTCONV1D_CACHE_DIR": "folder of kernels and tuned plans (default: the user's cache folder)",
    "FASTCONV1D_HUGE_PAGES": "0: torch's allocator for large outputs on the CPU, no huge pages",
    "FASTCONV1D_BUILD_TIMEOUT": "seconds to wait for a build by another process (default: 600)",
}


def strict() -> bool:
    """Whether falling back to another plan is forbidden."""
    return os.environ.get("FASTCONV1D_STRICT", "") not in ("", "0")


def forced_plan() -> str:
    """The plan or family that the environment asks for, or ''."""
    return os.environ.get("FASTCONV1D_PLAN", "")


def cache_dir() -> Path:
    """The folder of compiled kernels and tuned plans."""
    if explicit := os.environ.get("FASTCONV1D_CACHE_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastconv1d"


def build_timeout() -> float:
    """Seconds to wait for a build that another process holds the lock of.

    Raises: ValueError if FASTCONV1D_BUILD_TIMEOUT is not a positive number.
    """
    text = os.environ.get("FASTCONV1D_BUILD_TIMEOUT", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise ValueError(
            f"FASTCONV1D_BUILD_TIMEOUT is {text!r}, expected a positive number of seconds"
        )
    return seconds


def fp32_mode() -> str:
    """'tf32' where torch's own convolutions would use it on this machine's GPU, else 'ieee'.

    Follows `torch.backends.cudnn.allow_tf32` and `torch.backends.cudnn.conv.fp32_precision`.
    """
    # The switch that at::convolution reads. The older one, allow_tf32, writes this one too, and
    # raises when read after somebody has set the newer one alone.
    cudnn: Any = torch.backends.cudnn
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"
