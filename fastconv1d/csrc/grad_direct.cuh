// The plain gradients of an ordinary convolution's weight and bias, any shape and dtype: one block, one element.
//
// The threads of a block take turns on the pairs (batch, position) that the element sums over, neighbours
// on neighbouring positions, add up 16 products at a time, and then each other's sums as a tree in shared
// memory: [thread]. Elements of the bias come behind those of the weight. Every element reads its whole rows,
// so L2 bounds it; meant for problems too small to matter, for fp64, and as the GPU-side reference of
// the other kernels. The order of additions is the shape's alone.
#pragma once
#include "plain.cuh"

namespace fastconv1d {

constexpr int kGradDirectThreads = 128;

template <class M>
__global__ void __launch_bounds__(kGradDirectThreads)
    grad_direct_kernel(const ConvArgs a, int64_t elements) {
  using Element = typename M::Element;
  using Sum = typename M::Sum;
  FASTCONV1D_SHARED(memory);
  auto* const sums = reinterpret_cast<Sum*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups,
                weights = a.channels_out * channels_in * a.kernel_size;
  for (int64_t element = blockIdx.x; element < elements; element += gridDim.x) {
    const bool of_bias = element >= weights;
    const int64_t tap = element % a.kernel_size, pair = element / a.kernel_size,
                  out = of_bias ? element - weights : pair / channels_in,
                  in = out / channels_out * channels_in + pair % channels_in,
                  shift = tap * a.dilation - a.padding;
    const auto* const grad = static_cast<const Element*>(a.grad_output) + out * a.length_out;
    const auto* const input =
        static_cast<const Element*>(a.input) + (of_bias ? 0 : in * a.input_channel_stride);
    Sum total = 0, part = 0;
    int parts = 0;
    int64_t batch = thread / a.length_out, q = thread % a.length_out;
    const int64_t batch_step = kGradDirectThreads / a.length_out,
                  step = kGradDirectThreads % a.length_out;
    while (batch < a.batch) {
      const Sum value = M::from(grad[batch * a.channels_out * a.length_out + q]);
      const int64_t position = q * a.stride + shift;
      if (of_bias)
        part += value;
      else if (position >= 0 && position < a.length)
        part += value * M::from(input[batch * a.input_batch_stride + position]);
      // Short partial sums keep the rounding error of a long reduction down.
      if (++parts == 16) {
        total += part;
        part = 0;
        parts = 0;
      }
      batch += batch_step;
      q += step;
      if (q >= a.length_out) {
        q -= a.length_out;
        ++batch;
      }
    }
    sums[thread] = total + part;
    __syncthreads();
    for (int half = kGradDirectThreads / 2; half > 0; half /= 2) {
      if (thread < half) sums[thread] += sums[thread + half];
      __syncthreads();
    }
    if (thread == 0) {
      if (of_bias)
        static_cast<Element*>(a.grad_bias)[out] = M::to(sums[0]);
      else
        static_cast<Element*>(a.output)[element] = M::to(sums[0]);
    }
  }
}

template <class M>
int grad_direct_launch(const ConvArgs& a, void* stream) {
  const int64_t elements = a.channels_out * (a.channels_in / a.groups) * a.kernel_size +
                           (a.grad_bias != nullptr ? a.channels_out : 0);
  return launch(grad_direct_kernel<M>, dim3(static_cast<unsigned>(smaller(elements, INT32_MAX))),
                dim3(kGradDirectThreads), kGradDirectThreads * sizeof(typename M::Sum), stream, a,
                elements);
}

inline int grad_direct_launch(int64_t mode, const ConvArgs& a, void* stream) {
  return with_plain(mode, [&](auto m) { return grad_direct_launch<decltype(m)>(a, stream); });
}

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_DIRECT_LIBRARY                                                     \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::grad_direct_launch(variant, *args, stream);                         \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
