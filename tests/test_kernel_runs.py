"""The harness and its judge, on a library of gradients that is right but for one fault."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest

from fastconv1d.build import CSRC
from kernel_runs import (
    CORNERS,
    EMULATION,
    TRANSPOSED,
    Run,
    corner_runs,
    execute,
    gradient_runs,
    random_runs,
)

pytestmark = pytest.mark.xdist_group("faulty gradients")  # which are compiled once

LIBRARY = """
#include <cstdlib>

#include "args.h"
#include "device.cuh"

const int fault = std::atoi(std::getenv("FAULT"));

template <class T>
void gradient(const fastconv1d::ConvArgs& a) {
  const auto* x = static_cast<const T*>(a.input);
  const auto* g = static_cast<const T*>(a.grad_output);
  auto* out = static_cast<T*>(a.output);
  auto* bias = static_cast<T*>(a.grad_bias);
  static_cast<char*>(a.workspace)[a.channels_out - 1] = 1;
  const int64_t rows = a.channels_out / a.groups, columns = a.channels_in / a.groups;
  const int64_t batch = a.batch - (fault == 1), positions = a.length_out - (fault == 2);
  for (int64_t o = 0; o < a.channels_out; ++o) {
    double sum = 0;
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t q = 0; q < positions; ++q) sum += g[(n * a.channels_out + o) * a.length_out + q];
    if (bias && fault != 3) bias[o] = sum;
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t k = 0; k < a.kernel_size; ++k) {
        double sum = 0;
        const int64_t channel = (fault == 4 ? 0 : o / rows) * columns + c;
        for (int64_t n = 0; n < batch; ++n)
          for (int64_t q = 0; q < positions; ++q) {
            const int64_t i = q * a.stride + k * a.dilation - a.padding;
            if (i < 0 || i >= a.length) continue;
            int64_t row = n * a.input_batch_stride + channel * a.input_channel_stride;
            if (fault == 5) row = (n * a.channels_in + channel) * a.length;
            sum += double(g[(n * a.channels_out + o) * a.length_out + q]) * x[row + i];
          }
        out[(o * columns + c) * a.kernel_size + k] = sum;
      }
  }
  if (fault == 6) out[a.channels_out * columns * a.kernel_size] = 0;
  if (fault == 7 && bias) bias[-1] = 0;
}

extern "C" int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void*) {
  args->mode == fastconv1d::kFp64 ? gradient<double>(*args) : gradient<float>(*args);
  return fault == 8;
}
extern "C" int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {
  return args->channels_out;
}
#include "harness.cpp"
"""
RIGHT, *FAULTS = (
    "none",
    "a batch row left out",
    "a position left out",
    "the bias not written",
    "one group for all",
    "the layout not looked at",
    "written beside the weight's",
    "written beside the bias's",
    "error",
)


Complaints = Callable[[int, list[Run]], tuple[str, ...]]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> Complaints:
    """What the judge says of runs of the library with a fault; it is compiled once for all."""
    folder = tmp_path_factory.mktemp("faulty")
    program = folder / "program"
    command = ("g++", "-std=c++20", "-O1", "-DFASTCONV1D_EMULATE", "-Wno-attributes")
    subprocess.run(
        [*command, f"-I{EMULATION}", f"-I{CSRC}", "-x", "c++", "-", "-o", program],
        input=LIBRARY, text=True, check=True,
    )  # fmt: skip

    def judge(fault: int, runs: list[Run]) -> tuple[str, ...]:
        outcome = execute([program], runs, folder / str(fault), {"FAULT": str(fault)})
        assert outcome.returncode == 0, outcome.log
        return outcome.complaints

    return judge


def test_right_gradients_pass(complaints: Complaints) -> None:
    runs = [
        *corner_runs([*CORNERS.values(), *TRANSPOSED.values()], "ieee", 0),
        *random_runs(20, "ieee", 0, 1 << 18),
        *random_runs(10, "fp64", 0, 1 << 18),
    ]
    runs = gradient_runs(runs)
    assert any(run.cut_off for run in runs)
    assert not complaints(0, runs)


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_gradients_are_seen(complaints: Complaints, fault: str) -> None:
    problem = replace(CORNERS["groups"], mode="ieee")
    run = Run(problem, 0, layout="sliced", gradient=True)
    for candidate in (run, replace(run, integers=False)):
        assert len(complaints(1 + FAULTS.index(fault), [candidate])) == 1
    if fault == "the bias not written":
        without = replace(run, problem=replace(problem, bias=False))
        assert not complaints(3, [without])
