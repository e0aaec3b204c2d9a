// The columns of the explicit algorithm. Forward, they are copies of the input, and a matrix product
// follows: columns[batch][channel][tap][position] =
// input[batch][channel][position * stride - padding + tap * dilation], zero outside the input.
// Transposed, a matrix product has made columns[batch][channel][tap][position] of output channels
// and input positions, and each output sums up those that fall on it:
// position * stride - padding + tap * dilation.
//
// Both are bound by memory. im2col reads the input from L2 once per tap and writes the columns once;
// col2im reads the columns once: neighbouring outputs of a phase find theirs side by side.
#pragma once
#include "plain.cuh"

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

// `args.input` holds the columns, (channel, tap) as its channels, of M::Sum: results of 16 bits are
// rounded here alone. One thread sums up one output, in the order of its phase's taps.
template <class M>
__global__ void __launch_bounds__(kColumnThreads) col2im_kernel(const ConvArgs a) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (index >= a.batch * a.channels_out * a.length_out) return;
  const int64_t position = index % a.length_out, row = index / a.length_out;
  const int64_t channel = row % a.channels_out, batch = row / a.channels_out;
  const Reading reading = reading_of(a, position);
  const Phase& phase = reading.phase;
  const auto* columns =
      static_cast<const typename M::Sum*>(a.input) + batch * a.input_batch_stride +
      (channel * a.kernel_size + phase.first_tap) * a.input_channel_stride + reading.start;
  typename M::Sum total = 0;
  for (int64_t tap = reading.first; tap < reading.last; ++tap)
    total += columns[tap * (phase.tap_step * a.input_channel_stride + phase.shift_step)];
  if (a.bias != nullptr) total += M::from(static_cast<const typename M::Element*>(a.bias)[channel]);
  static_cast<typename M::Element*>(a.output)[index] = M::to(total);
}

template <class M>
int col2im_launch(const ConvArgs& a, void* stream) {
  const int64_t blocks = ceil_div(a.batch * a.channels_out * a.length_out, kColumnThreads);
  return launch(col2im_kernel<M>, dim3(static_cast<unsigned>(blocks)), dim3(kColumnThreads), 0,
                stream, a);
}

inline int columns_launch(int64_t mode, const ConvArgs& a, void* stream) {
  if (a.transposed)
    return with_plain(mode, [&](auto m) { return col2im_launch<decltype(m)>(a, stream); });
  switch (mode) {
    case kBf16:
    case kFp16:
      return im2col_launch<uint16_t>(a, stream);
    case kFp64:
      return im2col_launch<uint64_t>(a, stream);
    default:
      return im2col_launch<uint32_t>(a, stream);
  }
}

}  // namespace fastconv1d

#define FASTCONV1D_IM2COL_LIBRARY                                                          \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::columns_launch(variant, *args, stream);                             \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
