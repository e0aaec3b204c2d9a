// The gradient of a bias alone: the sum of each channel's rows of grad_output, any dtype. For weights' gradients
// that ATen computes, whose own sum takes up to a quarter of their time, and for transposed convolutions, where
// the kernels see grad_output as an input.
//
// A block has a channel, or one of `splits` shares of its values where channels are few; a second kernel adds
// shares up (grad_sum.cuh). Threads take turns on a channel's values, neighbours on neighbouring ones, and add up
// in fp64: [thread] in shared memory, then a tree. The order is the shape's alone. DRAM bounds it.
#pragma once
#include "grad_sum.cuh"
#include "plain.cuh"

namespace fastconv1d {

constexpr int kGradBiasThreads = 256;

template <class M>
__global__ void __launch_bounds__(kGradBiasThreads)
    grad_bias_kernel(const ConvArgs a, float* parts, int64_t splits) {
  using Element = typename M::Element;
  constexpr int at_once = 8;  // reads on their way together
  FASTCONV1D_SHARED(memory);
  auto* const sums = reinterpret_cast<double*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  let_next_kernel_begin();
  const int64_t channel = blockIdx.x % a.channels_out, split = blockIdx.x / a.channels_out,
                all = a.batch * a.length_out, each = ceil_div(all, splits),
                end = smaller(all, (split + 1) * each),
                batch_step = kGradBiasThreads / a.length_out,
                step = kGradBiasThreads % a.length_out,
                batch_elements = a.channels_out * a.length_out;
  int64_t i = split * each + thread, batch = i / a.length_out, q = i % a.length_out;
  const auto* const rows = static_cast<const Element*>(a.grad_output) + channel * a.length_out;
  double total = 0;
  while (i < end) {
    Element value[at_once];
#pragma unroll
    for (int n = 0; n < at_once; ++n) {
      value[n] = i < end ? rows[batch * batch_elements + q] : Element{0};
      i += kGradBiasThreads;
      batch += batch_step;
      q += step;
      if (q >= a.length_out) {
        q -= a.length_out;
        ++batch;
      }
    }
    typename M::Sum sum = 0;
#pragma unroll
    for (int n = 0; n < at_once; ++n) sum += M::from(value[n]);
    total += sum;
  }
  sums[thread] = total;
  __syncthreads();
  for (int half = kGradBiasThreads / 2; half > 0; half /= 2) {
    if (thread < half) sums[thread] += sums[thread + half];
    __syncthreads();
  }
  if (thread > 0) return;
  if (parts != nullptr)
    parts[split * a.channels_out + channel] = static_cast<float>(sums[0]);
  else
    static_cast<Element*>(a.grad_bias)[channel] = M::to(static_cast<typename M::Sum>(sums[0]));
}

// Two blocks for each multiprocessor, unless shares would be small. Parts are fp32, which fp64 has no use for.
inline int64_t grad_bias_splits(const ConvArgs& a) {
  constexpr int64_t least = 4096;
  if (a.mode == kFp64) return 1;
  return larger(1, smaller(2 * a.multiprocessors / a.channels_out, a.batch * a.length_out / least));
}

template <class M>
int grad_bias_launch(const ConvArgs& a, void* stream) {
  const int64_t splits = grad_bias_splits(a), blocks = splits * a.channels_out;
  if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  auto* const parts = splits > 1 ? static_cast<float*>(a.workspace) : nullptr;
  const int error =
      launch(grad_bias_kernel<M>, dim3(static_cast<unsigned>(blocks)), dim3(kGradBiasThreads),
             kGradBiasThreads * sizeof(double), stream, a, parts, splits);
  if (error != 0 || splits == 1) return error;
  return add_parts<M>({parts, a.channels_out, a.grad_bias}, {nullptr, 0, nullptr}, splits, stream);
}

inline int grad_bias_launch(int64_t mode, const ConvArgs& a, void* stream) {
  return with_plain(mode, [&](auto m) { return grad_bias_launch<decltype(m)>(a, stream); });
}
inline int64_t grad_bias_workspace(const ConvArgs& a) {
  const int64_t splits = grad_bias_splits(a);
  return splits > 1 ? 4 * splits * a.channels_out : 0;
}

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_BIAS_LIBRARY                                                       \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::grad_bias_launch(variant, *args, stream);                           \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {                \
    return fastconv1d::grad_bias_workspace(*args);                                         \
  }
