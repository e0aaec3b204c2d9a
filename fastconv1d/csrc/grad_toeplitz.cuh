// The gradients of weight and bias where kernels are long, on tensor cores, for groups of one input channel (mma.sync,
// sm_80 on): stride and dilation 1.
//
//   grad_weight[tap] = sum over batches and positions of  grad_output[position] * input[position + tap - padding]
//
// Of one batch that is a convolution whose kernel is a row of grad_output and whose outputs are taps: `toeplitz.cuh`
// has it, with T made of that row. Or T is made of the input's row, if that is shorter, and outputs are taps from the last
// one on: TURNED, where the row that slides is grad_output's. The sums of all batches join, so a warp keeps those of 16
// stretches of taps, and takes batches in turn, of long rows piece by piece. What a warp multiplies lies in shared memory
// of its own, so that warps wait for nobody while some copy and others multiply. At the end the warps of a block add up
// their sums, and `grad_sum.cuh` those of blocks that share the same taps.
//
// Shared memory: [warp] as in `toeplitz.cuh`; at the end [warp][mma tile][lane] of the sums, [warp] of the bias. A piece
// with a value that is not finite is multiplied one by one, from where it lies in memory.
//
// Roofline: 1024 products for each value of the shorter row and 1024 taps, on mma.sync; of fewer taps some of the 16
// stretches are empty.
#pragma once
#include "grad_tile.cuh"
#include "toeplitz.cuh"

namespace fastconv1d {

constexpr int kGradToeplitzWarps = 8, kGradToeplitzLines = 16;  // lines of a piece at most
constexpr int kTapsOfTile = kStretches * kStretch;

template <class M>
struct GradToeplitzParams {
  ToeplitzParams<M>
      of_batch;  // whose weight are the rows that T is made of, whose outputs are taps
  int64_t weight_batch_stride, weight_channel_stride;
  int channels_per_weight;  // of the output, for one of these rows
  int turned;
  const typename M::Element* grad_output;
  int length_out;
  GradStore<M> sums;
  int64_t items_of_split;  // pieces of batches
  int tiles, pieces;       // of a channel's taps; of a row that T is made of
  int warp_words;          // of shared memory
};

template <class M>
struct GradToeplitzBlock : ToeplitzBlock<M> {
  using typename ToeplitzBlock<M>::S;
  using typename ToeplitzBlock<M>::Element;
  using typename ToeplitzBlock<M>::Sums;
  using ToeplitzBlock<M>::ToeplitzBlock;

  // The products of some lines of the weight's row, one by one, of those positions that exist.
  __device__ __forceinline__ void multiply_far(Sums& sums, const Element* weights, int of_tile,
                                               int from, int to) const {
    const auto& p = this->p;
    const int g = this->lane / 4, c = this->lane % 4;
    const Element* const input = p.input + this->first_batch * p.input_batch_stride +
                                 this->channel / p.channels_per_input * p.input_channel_stride;
#pragma unroll 1
    for (int k = from * kStretch; k < to * kStretch; ++k)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int position = (of_tile + g + 8 * h) * kStretch + k + p.origin;
        if (position < 0 || position >= p.length) continue;
        const float value = M::from(input[position]);
#pragma unroll
        for (int i = 0; i < S::tiles; ++i)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int at = k - (8 * i + 2 * c + odd);
            if (at < 0 || at >= p.taps) continue;
            float& sum = sums[i][2 * h + odd];
            sum = fmaf(M::from(weights[at]), value, sum);
          }
      }
  }
};

template <class M>
__global__ void __launch_bounds__(32 * kGradToeplitzWarps, 2)
    grad_toeplitz_kernel(const GradToeplitzParams<M> p) {
  let_next_kernel_begin();
  using Block = GradToeplitzBlock<M>;
  using Element = typename M::Element;
  FASTCONV1D_SHARED(memory);
  const ToeplitzParams<M>& of_batch = p.of_batch;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Block block(of_batch, memory + warp * p.warp_words, 0, 1);
  Digits<uint32_t> digits{blockIdx.x};
  const auto tile = static_cast<int>(digits.take(p.tiles));
  block.channel = static_cast<int>(digits.take(of_batch.channels_out));
  const int64_t split = digits.rest;
  const int of_tile = tile * kStretches;
  const bool has_bias = p.sums.bias != nullptr && tile == 0;

  typename Block::Sums total{};
  float bias = 0;
  const int64_t first_item = split * p.items_of_split,
                last_item =
                    smaller(first_item + p.items_of_split, int64_t{of_batch.batch} * p.pieces);
#pragma unroll 1
  for (int64_t item = first_item + warp; item < last_item; item += kGradToeplitzWarps) {
    block.first_batch = static_cast<int>(item / p.pieces);
    const int piece = static_cast<int>(item - int64_t{block.first_batch} * p.pieces),
              first = piece * of_batch.lines_of_piece,
              end = static_cast<int>(smaller(first + of_batch.lines_of_piece, of_batch.lines)),
              from =
                  static_cast<int>(larger(first, of_batch.first_line - of_tile - kStretches + 1)),
              to = static_cast<int>(smaller(end, of_batch.last_line + 1 - of_tile));
    if (has_bias && piece == 0) {
      const Element* const grads =
          p.grad_output + int64_t{block.row_of_output(block.first_batch)} * p.length_out;
      float of_row = 0;
#pragma unroll 4
      for (int i = block.lane; i < p.length_out; i += 32) of_row += M::from(__ldg(grads + i));
      bias += of_row;
    }
    if (from >= to) continue;
    const Element* const weights = of_batch.weight + block.first_batch * p.weight_batch_stride +
                                   block.channel / p.channels_per_weight * p.weight_channel_stride;
    float zero = 0;  // or a NaN
    __syncwarp();    // all have read what was here
    block.keep_weights(weights, first,
                       [&](Element weight) { zero = fmaf(M::from(weight), 0, zero); });
    block.keep_lines(of_tile + from, of_tile + kStretches - 1 + to);
    const bool finite = largest_of_warp(zero == 0 ? 0 : 1) == 0;
    __syncwarp();
    typename Block::Sums sums{};
    if (finite && block.is_finite())
      block.multiply(sums, first, from, to, [](int z) { return z; });
    else
      block.multiply_far(sums, weights, of_tile, from, to);
#pragma unroll
    for (int i = 0; i < Block::tiles; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) total[i][e] += sums[i][e];
  }

  // [warp][mma tile][lane] of four sums.
  constexpr int lane_sums = 4, tile_sums = 32 * lane_sums, warp_sums = Block::tiles * tile_sums;
  static_assert(warp_sums == kTapsOfTile);
  auto* const sums = reinterpret_cast<float*>(memory);
  float* const bias_of_warps = sums + kGradToeplitzWarps * warp_sums;
  bias = sum_of_lanes(bias);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Block::tiles; ++i)
    *reinterpret_cast<float4*>(sums + warp * warp_sums + i * tile_sums + block.lane * lane_sums) =
        make_float4(total[i][0], total[i][1], total[i][2], total[i][3]);
  if (block.lane == 0) bias_of_warps[warp] = bias;
  __syncthreads();
  const auto of_warps = [](const float* from, int step) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kGradToeplitzWarps; ++w) sum += from[w * step];
    return sum;
  };
  // The gradient has the kernel's taps, which here are outputs.
  const int kernel_size = of_batch.length_out;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kTapsOfTile; i += 32 * kGradToeplitzWarps) {
    const int z = i / kStretch, m = i % kStretch, tap = of_tile * kStretch + i;
    if (tap >= kernel_size) break;
    const float* const from =
        sums + m / 8 * tile_sums + (z % 8 * 4 + m % 8 / 2) * lane_sums + z / 8 * 2 + m % 2;
    p.sums.store_weight(
        split, int64_t{block.channel} * kernel_size + (p.turned ? kernel_size - 1 - tap : tap),
        of_warps(from, warp_sums));
  }
  if (has_bias && threadIdx.x == 0)
    p.sums.store_bias(split, block.channel, of_warps(bias_of_warps, 1));
}

// Who does what, as the shape and the multiprocessors alone say.
template <class M>
struct GradToeplitzWork {
  using T = ToeplitzShape<M>;
  bool turned;
  int64_t lines, pieces, lines_of_piece, tiles, units, splits, items_of_split, warp_words,
      shared_bytes;

  explicit GradToeplitzWork(const ConvArgs& a)
      : turned(a.length < a.length_out),
        lines(ceil_div(kStretch + smaller(a.length, a.length_out) - 1, kStretch)),
        pieces(ceil_div(lines, kGradToeplitzLines)),
        lines_of_piece(ceil_div(lines, pieces)),
        tiles(ceil_div(a.kernel_size, kTapsOfTile)),
        units(a.channels_out * tiles) {
    const int64_t items = a.batch * pieces, turns = ceil_div(items, kGradToeplitzWarps);
    splits = fullest_splits(units, turns, kBlocks * a.multiprocessors,
                            larger(1, smaller(most_splits(a), turns)), kStart);
    items_of_split = larger(1, ceil_div(items, splits));
    splits = larger(1, ceil_div(items, items_of_split));
    warp_words = round_up(T::weight_words(static_cast<int>(lines_of_piece)) +
                              (kStretches - 1 + lines_of_piece) * T::line_words + 1,
                          4);
    shared_bytes = 4 * kGradToeplitzWarps * larger(warp_words, kTapsOfTile + 1);
  }

 private:
  static constexpr int64_t kBlocks = 2;  // of a multiprocessor
  static constexpr int64_t kStart = 1;   // turns' time of a block's start and end
};

template <class M>
int grad_toeplitz_launch(const ConvArgs& a, void* stream) {
  using Element = typename M::Element;
  const GradToeplitzWork<M> work(a);
  const int64_t blocks = work.units * work.splits;
  if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  const struct {
    const void* first;
    int64_t batch_stride, channel_stride, length,
        channels_out;  // channels of the output for one of its
  } input{a.input, a.input_batch_stride, a.input_channel_stride, a.length,
          a.channels_out / a.groups},
      grad{a.grad_output, a.channels_out * a.length_out, a.length_out, a.length_out, 1},
      &still = work.turned ? input : grad, &slides = work.turned ? grad : input;
  const int64_t origin = work.turned ? a.padding - a.kernel_size + 1 : -a.padding;
  GradToeplitzParams<M> p{{},
                          still.batch_stride,
                          still.channel_stride,
                          static_cast<int>(still.channels_out),
                          work.turned,
                          static_cast<const Element*>(a.grad_output),
                          static_cast<int>(a.length_out),
                          GradStore<M>(a, work.splits),
                          work.items_of_split,
                          static_cast<int>(work.tiles),
                          static_cast<int>(work.pieces),
                          static_cast<int>(work.warp_words)};
  ToeplitzParams<M>& of_batch = p.of_batch;
  of_batch.input = static_cast<const Element*>(slides.first);
  of_batch.weight = static_cast<const Element*>(still.first);
  of_batch.input_batch_stride = slides.batch_stride;
  of_batch.input_channel_stride = slides.channel_stride;
  of_batch.channels_out = static_cast<int>(a.channels_out);
  of_batch.channels_per_input = static_cast<int>(slides.channels_out);
  of_batch.batch = static_cast<int>(a.batch);
  of_batch.length = static_cast<int>(slides.length);
  of_batch.length_out = static_cast<int>(a.kernel_size);
  of_batch.taps = static_cast<int>(still.length);
  of_batch.tap_step = 1;
  of_batch.origin = static_cast<int>(origin);
  static_assert(kStretches == 1 << 4);  // a warp's, all of one batch
  of_batch.stretches_log2 = 4;
  of_batch.first_line = static_cast<int>(toeplitz_line_of(-origin));
  of_batch.last_line = static_cast<int>(toeplitz_line_of(slides.length - 1 - origin));
  of_batch.row_step = static_cast<int>(kStretches - 1 + work.lines_of_piece);
  of_batch.lines = static_cast<int>(work.lines);
  of_batch.lines_of_piece = static_cast<int>(work.lines_of_piece);
  const auto kernel = grad_toeplitz_kernel<M>;
  if (const int error = set_shared_limit(kernel, work.shared_bytes)) return error;
  if (const int error = launch(kernel, dim3(static_cast<unsigned>(blocks)),
                               dim3(32 * kGradToeplitzWarps), work.shared_bytes, stream, p))
    return error;
  return add_parts(p.sums, stream);
}

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_TOEPLITZ_LIBRARY(MODE)                                                   \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) {               \
    return fastconv1d::grad_toeplitz_launch<MODE>(*args, stream);                                \
  }                                                                                              \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {                      \
    return fastconv1d::GradStore<MODE>::bytes(*args,                                             \
                                              fastconv1d::GradToeplitzWork<MODE>(*args).splits); \
  }
