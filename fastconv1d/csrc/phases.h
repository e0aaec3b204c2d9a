// The arithmetic of taps and phases: shared by all kernels, on GPUs and CPUs, launchers and tests.
#pragma once
#include <cstdint>

#include "args.h"

#if defined(__CUDACC__)
#define FASTCONV1D_HD __host__ __device__
#else
#define FASTCONV1D_HD
#endif

namespace fastconv1d {

FASTCONV1D_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTCONV1D_HD constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
FASTCONV1D_HD constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCONV1D_HD constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTCONV1D_HD constexpr int64_t gcd(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}

// One phase of a convolution: output position `out_offset + q * out_step`, q < positions, sums over
// taps j < taps the weight slice `first_tap + j * tap_step` times the input at
// `q * in_step + first_shift + j * shift_step`; shift_step > 0.
struct Phase {
  int64_t first_tap, tap_step, taps;
  int64_t first_shift, shift_step;
  int64_t in_step, out_offset, out_step, positions;
};

FASTCONV1D_HD constexpr int64_t phase_count(const ConvArgs& a) {
  return a.transposed ? smaller(a.stride, a.length_out) : 1;
}

FASTCONV1D_HD constexpr Phase phase_of(const ConvArgs& a, int64_t r) {
  if (!a.transposed)
    return {0, 1, a.kernel_size, -a.padding, a.dilation, a.stride, 0, 1, a.length_out};
  // Output r + stride * q meets tap t where t * dilation = r + padding (mod stride). Taps run
  // backwards, so that shifts ascend.
  const int64_t g = gcd(a.stride, a.dilation), every = a.stride / g;
  Phase phase{
      0, -every, 0, 0, a.dilation / g, 1, r, a.stride, ceil_div(a.length_out - r, a.stride)};
  for (int64_t t = 0; t < every && t < a.kernel_size; ++t) {
    if ((r + a.padding - t * a.dilation) % a.stride != 0) continue;
    phase.taps = ceil_div(a.kernel_size - t, every);
    phase.first_tap = t + (phase.taps - 1) * every;
    phase.first_shift = (r + a.padding - phase.first_tap * a.dilation) / a.stride;
  }
  return phase;
}

}  // namespace fastconv1d
