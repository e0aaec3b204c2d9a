// The gradient of a bias alone: the sum of each channel's rows of grad_output, any dtype. For weights' gradients
// of ATen's, of the product written out and of those large ones where adding up on the side takes longer; and for
// transposed convolutions, where the kernels see grad_output as an input.
//
// A block has a channel, or one of `splits` shares of its values where channels are few; a second kernel adds shares up
// (grad_sum.cuh). Threads take turns on a row's pieces of 16 bytes, which rows begin and end within, and add up in fp64:
// lanes first, then warps in shared memory. The order is that of the shape, and of where rows begin. DRAM bounds it.
#pragma once
#include "grad_sum.cuh"
#include "plain.cuh"

namespace fastconv1d {

constexpr int kGradBiasThreads = 256;

template <class M>
__global__ void __launch_bounds__(kGradBiasThreads)
    grad_bias_kernel(const ConvArgs a, float* parts, int64_t splits) {
  using Element = typename M::Element;
  constexpr int of_piece = 16 / sizeof(Element), at_once = 4;  // pieces on their way together
  FASTCONV1D_SHARED(memory);
  auto* const sums = reinterpret_cast<double*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  let_next_kernel_begin();
  // A row has so many pieces, wherever it begins.
  const int64_t channel = blockIdx.x % a.channels_out, split = blockIdx.x / a.channels_out,
                pieces = ceil_div(a.length_out - 1, of_piece) + 1, all = a.batch * pieces,
                each = ceil_div(all, splits), end = smaller(all, (split + 1) * each),
                batch_step = kGradBiasThreads / pieces, step = kGradBiasThreads % pieces,
                batch_elements = a.channels_out * a.length_out;
  int64_t i = split * each + thread, batch = i / pieces, piece = i % pieces;
  const auto* const rows = static_cast<const Element*>(a.grad_output) + channel * a.length_out;
  double total = 0;
  while (i < end) {
    uint4 words[at_once];
    int64_t position[at_once];  // in its row
#pragma unroll
    for (int n = 0; n < at_once; ++n) {
      const Element* const row = rows + batch * batch_elements;
      const auto before = reinterpret_cast<uintptr_t>(row) / sizeof(Element) % of_piece;
      position[n] = i < end ? piece * of_piece - static_cast<int64_t>(before) : a.length_out;
      words[n] = make_uint4(0, 0, 0, 0);
      if (position[n] < a.length_out) words[n] = *reinterpret_cast<const uint4*>(row + position[n]);
      i += kGradBiasThreads;
      batch += batch_step;
      piece += step;
      if (piece >= pieces) {
        piece -= pieces;
        ++batch;
      }
    }
#pragma unroll
    for (int n = 0; n < at_once; ++n) {
      clear_beside<Element>(words[n], position[n], a.length_out);
      Element value[of_piece];
      memcpy(value, words + n, 16);
      typename M::Sum sum = 0;
#pragma unroll
      for (int k = 0; k < of_piece; ++k) sum += M::from(value[k]);
      total += sum;
    }
  }
  total = sum_of_lanes(total);
  if (thread % 32 == 0) sums[thread / 32] = total;
  __syncthreads();
  if (thread > 0) return;
  for (int warp = 1; warp < kGradBiasThreads / 32; ++warp) total += sums[warp];
  if (parts != nullptr)
    parts[split * a.channels_out + channel] = static_cast<float>(total);
  else
    static_cast<Element*>(a.grad_bias)[channel] = M::to(static_cast<typename M::Sum>(total));
}

// Four blocks for each multiprocessor, unless shares would be small. Parts are fp32, which fp64 has no use for.
inline int64_t grad_bias_splits(const ConvArgs& a) {
  constexpr int64_t least = 4096;
  if (a.mode == kFp64) return 1;
  return larger(1, smaller(4 * a.multiprocessors / a.channels_out, a.batch * a.length_out / least));
}

// Leaves the sums, or parts of them for `add_parts`.
template <class M>
int grad_bias_parts(const ConvArgs& a, float* workspace, GradParts& parts, void* stream) {
  const int64_t splits = grad_bias_splits(a), blocks = splits * a.channels_out;
  if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  parts = {workspace, splits > 1 ? a.channels_out : 0, a.grad_bias, splits};
  return launch(grad_bias_kernel<M>, dim3(static_cast<unsigned>(blocks)), dim3(kGradBiasThreads),
                kGradBiasThreads / 32 * sizeof(double), stream, a, splits > 1 ? workspace : nullptr,
                splits);
}
inline int grad_bias_parts(const ConvArgs& a, float* workspace, GradParts& parts, void* stream) {
  return with_plain(
      a.mode, [&](auto m) { return grad_bias_parts<decltype(m)>(a, workspace, parts, stream); });
}

inline int grad_bias_launch(const ConvArgs& a, void* stream) {
  return with_plain(a.mode, [&](auto m) {
    using M = decltype(m);
    GradParts parts;
    const int error = grad_bias_parts<M>(a, static_cast<float*>(a.workspace), parts, stream);
    return error != 0 ? error : add_parts<M>(parts, {}, stream);
  });
}
inline int64_t grad_bias_workspace(const ConvArgs& a) {
  const int64_t splits = grad_bias_splits(a);
  return splits > 1 ? 4 * splits * a.channels_out : 0;
}

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_BIAS_LIBRARY                                               \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::grad_bias_launch(*args, stream);                            \
  }                                                                                \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {        \
    return fastconv1d::grad_bias_workspace(*args);                                 \
  }
