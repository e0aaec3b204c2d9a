// The plain convolution, any shape and dtype: one thread, one output.
//
// Neighbouring threads take neighbouring positions, so input reads of a warp fall in few cache lines
// and the weight is broadcast. Bound by L1 and the FMA units; meant for problems too small to
// matter, for fp64, and as the GPU-side reference of the other kernels.
#pragma once
#include "plain.cuh"

namespace fastconv1d {

template <class M>
__global__ void __launch_bounds__(128) direct_kernel(const ConvArgs a) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= a.batch * a.channels_out * a.length_out) return;
  const int64_t position = index % a.length_out, row = index / a.length_out;
  const int64_t out = row % a.channels_out, batch = row / a.channels_out;
  const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups;
  const int64_t group = out / channels_out;

  const Reading reading = reading_of(a, position);
  const Phase& phase = reading.phase;
  const auto* input = static_cast<const typename M::Element*>(a.input) +
                      batch * a.input_batch_stride + group * channels_in * a.input_channel_stride +
                      reading.start;
  const auto* weight = static_cast<const typename M::Element*>(a.weight) + phase.first_tap;
  typename M::Sum total = 0, part = 0;
  for (int64_t in = 0; in < channels_in; ++in) {
    const int64_t row_of_weight =
        a.transposed ? (group * channels_in + in) * channels_out + out % channels_out
                     : out * channels_in + in;
    for (int64_t tap = reading.first; tap < reading.last; ++tap)
      part += M::from(weight[row_of_weight * a.kernel_size + tap * phase.tap_step]) *
              M::from(input[in * a.input_channel_stride + tap * phase.shift_step]);
    // Short partial sums keep the rounding error of a long reduction down.
    if (in % 16 == 15) {
      total += part;
      part = 0;
    }
  }
  total += part;
  if (a.bias != nullptr) total += M::from(static_cast<const typename M::Element*>(a.bias)[out]);
  static_cast<typename M::Element*>(a.output)[index] = M::to(total);
}

template <class M>
int direct_launch(const ConvArgs& a, void* stream) {
  const int64_t outputs = a.batch * a.channels_out * a.length_out;
  return launch(direct_kernel<M>, dim3(static_cast<unsigned>(ceil_div(outputs, 128))), dim3(128), 0,
                stream, a);
}

inline int direct_launch(int64_t mode, const ConvArgs& a, void* stream) {
  return with_plain(mode, [&](auto m) { return direct_launch<decltype(m)>(a, stream); });
}

}  // namespace fastconv1d

#define FASTCONV1D_DIRECT_LIBRARY                                                          \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::direct_launch(variant, *args, stream);                              \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
