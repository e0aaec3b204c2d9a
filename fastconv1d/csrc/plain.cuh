// What the kernels with one thread for each output share: arithmetic, and what an output reads.
#pragma once
#include "device.cuh"
#include "schedule.h"

namespace fastconv1d {

struct PlainFp32 {
  using Element = float;
  using Sum = float;
  static __device__ __forceinline__ Sum from(Element x) { return x; }
  static __device__ __forceinline__ Element to(Sum x) { return x; }
};
struct PlainBf16 {
  using Element = uint16_t;
  using Sum = float;
  static __device__ __forceinline__ Sum from(Element x) { return bf16_to_float(x); }
  static __device__ __forceinline__ Element to(Sum x) { return float_to_bf16(x); }
};
struct PlainFp16 {
  using Element = uint16_t;
  using Sum = float;
  static __device__ __forceinline__ Sum from(Element x) { return fp16_to_float(x); }
  static __device__ __forceinline__ Element to(Sum x) { return float_to_fp16(x); }
};
struct PlainFp64 {
  using Element = double;
  using Sum = double;
  static __device__ __forceinline__ Sum from(Element x) { return x; }
  static __device__ __forceinline__ Element to(Sum x) { return x; }
};

// `function` of the arithmetic of a mode.
template <class Function>
int with_plain(int64_t mode, const Function& function) {
  switch (mode) {
    case kBf16:
      return function(PlainBf16{});
    case kFp16:
      return function(PlainFp16{});
    case kFp64:
      return function(PlainFp64{});
    default:
      return function(PlainFp32{});
  }
}

// The input positions that an output reads: `start + j * phase.shift_step` for its phase's taps
// first <= j < last, which fall inside of the input.
struct Reading {
  Phase phase;
  int64_t start, first, last;
};

__device__ __forceinline__ Reading reading_of(const ConvArgs& a, int64_t position) {
  int64_t r = 0, q = position;
  if (a.transposed) {
    r = position % a.stride;
    q = position / a.stride;
  }
  const Phase phase = phase_of(a, r);
  const int64_t start = q * phase.in_step + phase.first_shift;
  const int64_t first = start < 0 ? ceil_div(-start, phase.shift_step) : 0;
  const int64_t last =
      smaller(phase.taps, start < a.length ? ceil_div(a.length - start, phase.shift_step) : 0);
  return {phase, start, first, last};
}

}  // namespace fastconv1d
