// The gradient of a large weight over few positions (sm_90a), written out as a matrix product (product.cuh):
//
//   grad_weight[o][(c, k)] = sum over (n, q) of grad_output[o][(n, q)] * input[n][c][q * stride + k * dilation - padding]
//
// One kernel makes the rows of grad_output one row of all batches for each channel, one packs columns of the input in the
// order in which products read them, and the product writes the gradient as it lies; or its splits leave sums that
// grad_sum_kernel adds up. grad_bias.cuh adds up grad_output.
//
// Roofline: the gradient once; both tensors come and go through L2.
#pragma once
#include "grad_bias.cuh"
#include "product.cuh"

namespace fastconv1d {

struct GradExplicitParams {
  const void *input, *grad_output;
  void* left;       // [channel_out][pitch]
  uint32_t* right;  // see ProductParams
  int64_t batch_stride, channel_stride, length;
  int64_t channels, columns, column_blocks, slices;  // of a group
  int64_t channels_out, pitch, depth;
  int64_t left_threads, right_threads;
  int length_out, taps, stride, dilation, padding;
};

// Both matrices: a thread makes 16 bytes of either.
template <class M, class T>
__global__ void __launch_bounds__(256) grad_explicit_kernel(const GradExplicitParams p) {
  using Element = typename M::Element;
  constexpr int values = M::values_per_word, of_thread = 4 * values;
  let_next_kernel_begin();
  const int64_t thread = blockIdx.x * int64_t{256} + threadIdx.x;
  Element value[4][values];
  if (thread < p.left_threads) {
    Digits<uint32_t> digits{static_cast<uint32_t>(thread)};
    const uint32_t first = digits.take(p.pitch / of_thread) * of_thread, channel = digits.rest;
    uint32_t batch = first / p.length_out, position = first - batch * p.length_out;
#pragma unroll
    for (int i = 0; i < of_thread; ++i) {
      value[i / values][i % values] =
          first + i < p.depth ? __ldg(static_cast<const Element*>(p.grad_output) +
                                      (batch * p.channels_out + channel) * p.length_out + position)
                              : Element{0};
      if (++position == static_cast<uint32_t>(p.length_out)) {
        position = 0;
        ++batch;
      }
    }
    uint4 words;
    memcpy(&words, value, 16);
    store_16(static_cast<Element*>(p.left) + thread * of_thread, words);
    return;
  }
  const int64_t piece = thread - p.left_threads;
  if (piece >= p.right_threads) return;
  Digits<uint32_t> digits{static_cast<uint32_t>(piece)};
  const uint32_t of_tile = digits.take(T::columns), quad = digits.take(kProductPieces),
                 slice = digits.take(p.slices), block = digits.take(p.column_blocks),
                 group = digits.rest, column = block * T::columns + of_tile,
                 channel = column / p.taps, tap = column - channel * p.taps,
                 first = (slice * 8 + quad) * of_thread;
  uint32_t batch = first / p.length_out, position = first - batch * p.length_out;
  const auto* const rows = static_cast<const Element*>(p.input) +
                           (int64_t{group} * p.channels + channel) * p.channel_stride;
  const int shift = static_cast<int>(tap) * p.dilation - p.padding;
#pragma unroll
  for (int i = 0; i < of_thread; ++i) {
    const int at = static_cast<int>(position) * p.stride + shift;
    const bool exists = column < p.columns && first + i < p.depth && at >= 0 && at < p.length;
    value[i / values][i % values] = exists ? __ldg(rows + batch * p.batch_stride + at) : Element{0};
    if (++position == static_cast<uint32_t>(p.length_out)) {
      position = 0;
      ++batch;
    }
  }
  store_right<M, T>(p.right, piece, value);
}

template <class M, class T>
struct GradExplicit {
  using Element = typename M::Element;
  static constexpr int64_t of_thread = 16 / sizeof(Element);

  static int64_t phases(const ConvArgs&) { return 1; }
  static ProductCut cut(const ConvArgs& a, int64_t) {
    const int64_t depth = a.batch * a.length_out,
                  columns = a.channels_in / a.groups * a.kernel_size;
    return Product<M, T>::cut(a.groups, a.channels_out / a.groups, columns, depth,
                              a.multiprocessors, kExplicitParts / (4 * a.channels_out * columns));
  }
  static int64_t pitch_of(const ProductCut& c) { return round_up(c.depth, of_thread); }
  // In the workspace: the right matrix, the left one, parts, and those of the bias.
  static int64_t left_bytes(const ConvArgs& a, const ProductCut& c) {
    return round_up(a.channels_out * pitch_of(c) * static_cast<int64_t>(sizeof(Element)), 128);
  }
  static int64_t parts_bytes(const ProductCut& c) {
    return c.splits == 1 ? 0 : round_up(4 * c.splits * c.groups * c.rows * c.columns, 128);
  }
  static int64_t packed_bytes(const ConvArgs& a, const ProductCut& c) {
    return c.right_bytes + left_bytes(a, c) + parts_bytes(c) +
           4 * grad_bias_splits(a) * a.channels_out;
  }

  static int launch_phase(const ConvArgs& a, const ProductCut& c, void* stream) {
    char* const right = static_cast<char*>(a.workspace);
    char* const left = right + c.right_bytes;
    char* const parts = left + left_bytes(a, c);
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    const GradExplicitParams both{a.input,
                                  a.grad_output,
                                  left,
                                  reinterpret_cast<uint32_t*>(right),
                                  a.input_batch_stride,
                                  a.input_channel_stride,
                                  a.length,
                                  a.channels_in / a.groups,
                                  c.columns,
                                  c.column_blocks,
                                  c.slices,
                                  a.channels_out,
                                  pitch_of(c),
                                  c.depth,
                                  a.channels_out * pitch_of(c) / of_thread,
                                  c.right_pieces,
                                  number(a.length_out),
                                  number(a.kernel_size),
                                  number(a.stride),
                                  number(a.dilation),
                                  number(a.padding)};
    const int64_t threads = both.left_threads + both.right_threads;
    if (threads > UINT32_MAX) return 1;  // cudaErrorInvalidValue
    GradParts bias;
    if (a.grad_bias != nullptr) {
      auto* const bias_parts = reinterpret_cast<float*>(parts + parts_bytes(c));
      if (const int error = grad_bias_parts(a, bias_parts, bias, stream)) return error;
    }
    if (const int error =
            launch(grad_explicit_kernel<M, T>, dim3(static_cast<unsigned>(ceil_div(threads, 256))),
                   dim3(256), 0, stream, both))
      return error;
    ProductParams p{};
    p.right = both.right;
    p.output = c.splits == 1 ? a.output : nullptr;
    p.parts = reinterpret_cast<float*>(parts);
    p.pitch = c.columns;
    if (const int error = Product<M, T>::template launch<false>(
            p, c, left, a.channels_out, c.depth, pitch_of(c), a.multiprocessors, stream))
      return error;
    const int64_t elements = c.splits == 1 ? 0 : c.groups * c.rows * c.columns;
    return add_parts<M>({p.parts, elements, a.output, c.splits}, bias, stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_EXPLICIT_LIBRARY(...) \
  FASTCONV1D_TILE_LIBRARY(fastconv1d::GradExplicit, __VA_ARGS__)
