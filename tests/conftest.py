"""Fixtures of every test: strict plans, a fixed seed, and each device that there is."""

from __future__ import annotations

import os

# Before torch runs a convolution: a test must never pass on a plan that it did not ask for.
os.environ["FASTCONV1D_STRICT"] = "1"
os.environ.pop("FASTCONV1D_PLAN", None)

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped without one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device to test on: the CPU, and CUDA where there is one."""
    return torch.device(request.param)
