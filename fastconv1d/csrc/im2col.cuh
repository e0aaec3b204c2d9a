// The columns of the explicit algorithm: columns[batch][channel][tap][position] =
// input[batch][channel][position * stride - padding + tap * dilation], zero outside the input.
//
// A pure copy, bound by memory: the input is read from L2 once per tap, the columns are written once.
#pragma once
#include "device.cuh"
#include "schedule.h"

namespace fastconv1d {

constexpr int kColumnsPerThread = 4, kColumnThreads = 256;

// `args.output` holds the columns; `Word` is an unsigned integer of the element's size.
template <class Word>
__global__ void __launch_bounds__(kColumnThreads) im2col_kernel(const ConvArgs a) {
  const int64_t blocks = ceil_div(a.length_out, kColumnsPerThread * kColumnThreads);
  const int64_t row = blockIdx.x / blocks;  // (batch, channel, tap)
  const int64_t tap = row % a.kernel_size, channel = row / a.kernel_size % a.channels_in;
  const int64_t batch = row / a.kernel_size / a.channels_in;
  const auto* input = static_cast<const Word*>(a.input) + batch * a.input_batch_stride +
                      channel * a.input_channel_stride;
  auto* columns = static_cast<Word*>(a.output) + row * a.length_out;
  int64_t q = blockIdx.x % blocks * (kColumnsPerThread * kColumnThreads) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kColumnsPerThread; ++i, q += kColumnThreads) {
    const int64_t position = q * a.stride - a.padding + tap * a.dilation;
    if (q < a.length_out)
      columns[q] = position >= 0 && position < a.length ? input[position] : Word{0};
  }
}

template <class Word>
int im2col_launch(const ConvArgs& a, void* stream) {
  const int64_t blocks = a.batch * a.channels_in * a.kernel_size *
                         ceil_div(a.length_out, kColumnsPerThread * kColumnThreads);
  return launch(im2col_kernel<Word>, dim3(static_cast<unsigned>(blocks)), dim3(kColumnThreads), 0,
                stream, a);
}

inline int im2col_launch(int64_t element_bytes, const ConvArgs& a, void* stream) {
  switch (element_bytes) {
    case 2:
      return im2col_launch<uint16_t>(a, stream);
    case 4:
      return im2col_launch<uint32_t>(a, stream);
    default:
      return im2col_launch<uint64_t>(a, stream);
  }
}

}  // namespace fastconv1d

#define FASTCONV1D_IM2COL_LIBRARY                                                          \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::im2col_launch(variant, *args, stream);                              \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
