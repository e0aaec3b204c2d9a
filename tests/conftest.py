"""Fixtures of every test: strict plans, a fixed seed, and each device that there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before torch runs a convolution: a test must never pass on a plan that it did not ask for.
os.environ["FASTCONV1D_STRICT"] = "1"
os.environ.pop("FASTCONV1D_PLAN", None)
# Before torch loads OpenMP: the threads of several tests at a time share the cores, and one that
# spins while it waits for the others of its team keeps them from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from fastconv1d import plan, tuned

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped without one")
    config.addinivalue_line("markers", "xdist_group: those of a group run in one process")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def forget_tuned() -> None:
    """Have the next selection read the stored choices again, as a process that starts does."""
    tuned.choices.cache_clear()
    plan._tuned_first.cache_clear()


@pytest.fixture(autouse=True)
def tuned_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of tuned plans, which is the test's own and missing: users' choices are not seen."""
    file = tmp_path_factory.getbasetemp() / f"tuned-{os.getpid()}" / "tuned.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "path", lambda: file)
        forget_tuned()
        yield file
    forget_tuned()
    shutil.rmtree(file.parent, ignore_errors=True)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device to test on: the CPU, and CUDA where there is one."""
    return torch.device(request.param)


@pytest.fixture
def fp32_precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """torch's fp32 switch set to a mode; the modes of other dtypes do not look at it."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32" if request.param == "tf32" else "ieee"
    yield str(request.param)
    convolutions.fp32_precision = before
