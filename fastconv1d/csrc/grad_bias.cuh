// The gradient of a bias alone: the sum of each channel's rows of grad_output, any dtype. For weights' gradients
// of ATen's, of the product written out and of those large ones where adding up on the side takes longer; and for
// transposed convolutions, where the kernels see grad_output as an input.
//
// A block has a channel, or one of `splits` shares of its rows, whole ones or equal parts of them; a second kernel adds
// shares up (grad_sum.cuh). Some threads share a row, in pieces of 16 bytes, which it begins and ends within, and add up
// in fp64: lanes first, then warps in shared memory. The order is that of the shape, and of where rows begin.
//
// DRAM bounds it: 1,536 threads of a multiprocessor, two pieces of each on their way.
#pragma once
#include "grad_sum.cuh"
#include "plain.cuh"

namespace fastconv1d {

constexpr int kGradBiasThreads = 256, kGradBiasPieces = 2;  // of a block; of a thread, at once
constexpr int kGradBiasBlocks = 6;                          // of a multiprocessor

// How rows are shared out.
struct GradBiasCut {
  int64_t splits, units, units_of_split, pieces_of_unit;  // units: of all batches
  int units_log2;                                         // of a row
  int threads_log2;                                       // of a unit

  template <class Element>
  static GradBiasCut of(const ConvArgs& a) {
    constexpr int of_piece = 16 / sizeof(Element);
    constexpr int64_t least = 4096;  // values of a split
    constexpr int64_t short_unit = 2 * kGradBiasPieces * kGradBiasThreads;
    // A row has one piece more where it begins within one.
    const int64_t pieces = ceil_div(a.length_out, of_piece),
                  wanted = kGradBiasBlocks * a.multiprocessors / a.channels_out,
                  most = a.batch * a.length_out / least;
    GradBiasCut c{};
    // Parts are fp32, which fp64 has no use for.
    c.splits = sizeof(Element) == 8 ? 1 : larger(1, smaller(wanted, most));
    // Splits have as many units to an eighth, unless these were short. Their values are counted in 32 bits.
    while ((a.batch << c.units_log2 < 8 * c.splits && pieces >> c.units_log2 > short_unit) ||
           a.batch << c.units_log2 < c.splits || pieces >> c.units_log2 >= 1 << 26)
      ++c.units_log2;
    c.units = a.batch << c.units_log2;
    c.units_of_split = ceil_div(c.units, c.splits);
    c.splits = ceil_div(c.units, c.units_of_split);
    c.pieces_of_unit = ceil_div(pieces, int64_t{1} << c.units_log2);
    while (kGradBiasPieces << c.threads_log2 < c.pieces_of_unit &&
           1 << c.threads_log2 < kGradBiasThreads)
      ++c.threads_log2;
    return c;
  }
};

template <class M>
__global__ void __launch_bounds__(kGradBiasThreads, kGradBiasBlocks)
    grad_bias_kernel(const ConvArgs a, float* parts, const GradBiasCut c) {
  using Element = typename M::Element;
  constexpr int of_piece = 16 / sizeof(Element);
  FASTCONV1D_SHARED(memory);
  auto* const sums = reinterpret_cast<double*>(memory);
  const int thread = static_cast<int>(threadIdx.x), threads = 1 << c.threads_log2;
  let_next_kernel_begin();
  const int64_t channel = blockIdx.x % a.channels_out, split = blockIdx.x / a.channels_out,
                end = smaller(c.units, (split + 1) * c.units_of_split);
  const auto* const rows = static_cast<const Element*>(a.grad_output) + channel * a.length_out;
  double total = 0;
  for (int64_t unit = split * c.units_of_split + (thread >> c.threads_log2); unit < end;
       unit += kGradBiasThreads >> c.threads_log2) {
    const int64_t batch = unit >> c.units_log2, of_row = unit - (batch << c.units_log2),
                  first = of_row * c.pieces_of_unit;
    const Element* const row = rows + batch * a.channels_out * a.length_out;
    const auto before =
        static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(Element) % of_piece);
    const auto* const pieces = reinterpret_cast<const uint4*>(row - before) + first;
    // Of the unit: its first value, and what is behind its last. The last unit of a row has what is left.
    const int64_t left = a.length_out + before - first * of_piece;
    const int begin = of_row == 0 ? before : 0,
              stop = static_cast<int>(of_row + 1 == int64_t{1} << c.units_log2
                                          ? left
                                          : smaller(left, c.pieces_of_unit * of_piece));
    for (int at = (thread & (threads - 1)) * of_piece; at < stop;
         at += kGradBiasPieces * of_piece << c.threads_log2) {
      uint4 words[kGradBiasPieces];
#pragma unroll
      for (int n = 0; n < kGradBiasPieces; ++n) {
        const int from = at + n * of_piece * threads;
        words[n] = make_uint4(0, 0, 0, 0);
        if (from < stop) words[n] = read_once(pieces + from / of_piece);
      }
#pragma unroll
      for (int n = 0; n < kGradBiasPieces; ++n) {
        clear_beside<Element>(words[n], at + n * of_piece * threads - begin, stop - begin);
        Element value[of_piece];
        memcpy(value, words + n, 16);
        typename M::Sum sum = 0;
#pragma unroll
        for (int k = 0; k < of_piece; ++k) sum += M::from(value[k]);
        total += sum;
      }
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

inline int64_t grad_bias_splits(const ConvArgs& a) {
  return with_plain(
      a.mode, [&](auto m) { return GradBiasCut::of<typename decltype(m)::Element>(a).splits; });
}

// Leaves the sums, or parts of them for `add_parts`.
template <class M>
int grad_bias_parts(const ConvArgs& a, float* workspace, GradParts& parts, void* stream) {
  const auto c = GradBiasCut::of<typename M::Element>(a);
  const int64_t splits = c.splits, blocks = splits * a.channels_out;
  if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  parts = {workspace, splits > 1 ? a.channels_out : 0, a.grad_bias, splits};
  return launch(grad_bias_kernel<M>, dim3(static_cast<unsigned>(blocks)), dim3(kGradBiasThreads),
                kGradBiasThreads / 32 * sizeof(double), stream, a, splits > 1 ? workspace : nullptr,
                c);
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
