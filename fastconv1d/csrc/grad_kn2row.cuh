// The gradients of weight and bias of groups with few pairs of a channel and a tap, on tensor cores (mma.sync, sm_80
// on): a first layer's, which has few input channels, and a last layer's, which has few output channels. Any stride.
//
// One of the two tensors is large and the other small. All that such a layer should take is the reading of the large
// one's rows, once; of the small one each tap is a row of its own, seen from some positions further on:
//
//   gradient of (r, s, t)  =  sum over batches, p of  large[r][p] * small[s][p * step + t * tap_step + first]
//
//   few input channels:    large = grad_output, small = input,        step = stride, tap_step = dilation,  first = -padding
//   few output channels:   large = input,       small = grad_output,  step = 1,      tap_step = -dilation, first = padding
//
//        rows: pairs (s, t)       columns: rows r of the large tensor
//        PAIR_TILES x 16          ROW_TILES x 8
//      +-----------------+       +---+---+-- ..
//      | small, from the |   x   | l | a | r      the product runs along positions: 128 bytes of each row in a step
//      | warp's window   |       | g | e |
//      +-----------------+       +---+---+-- ..
//
// A lane reads 16 bytes of a row, neighbouring positions, with one instruction: which positions a word of the product
// has does not matter as long as both sides agree, so these are two steps of mma with no value moved. The large tensor
// sees neither shared memory nor a barrier. Rows of odd length begin anywhere within 16 bytes: a warp has rows of one
// kind, which begin alike, as every 2nd, 4th or 8th of them does.
//
// Shared memory: [warp][row of the small tensor][positions], all that a step sees. Where there is nothing, zeros. If
// values in such a step are not finite, its products are chosen one by one.
//
// Warps of a block have neighbouring rows of the same positions, and a split takes every so many-th step, so that what
// runs at a time is near to each other. `grad_sum.cuh` adds up what splits leave, in an order that the shape alone says.
//
// Roofline: DRAM sees the large tensor once. A step of 4 KB takes 60 of the 220 cycles that L1 has until the next one comes,
// and 120 with 64 pairs.
#pragma once
#include "grad_bias.cuh"
#include "grad_tile.cuh"

namespace fastconv1d {

constexpr int kGradRowWarps = 4;
constexpr int64_t kMostGradPairs = 64;
constexpr int64_t kMostGradWindows = 48 << 10;  // bytes of a block
constexpr int64_t kLeastGradSteps = 4;  // of a warp, where splits would be more than are needed

template <class M>
struct GradKn2rowParams {
  using Element = typename M::Element;
  const Element *large, *small;
  GradStore<M> sums;
  int64_t large_batch_stride, large_row_stride, small_batch_stride, small_row_stride;
  int64_t group_elements, large_elements,
      small_elements;          // of the gradient: from one's to the next one's
  int large_rows, small_rows;  // of a group
  int taps, tap_step, step, first;
  int lowest, window,
      pitch;  // a step's window: what its first position sees first; values; from row to row
  int length, small_length;
  int batch, steps_of_row, batch_step,
      row_step;  // from a warp's step to its next: so many batches, so many steps
  int kinds, row_blocks, units, splits;  // a unit: rows of one kind that a warp has
  bool adds_bias;
};

// PAIR_TILES x 16 pairs by ROW_TILES x 8 rows.
template <class M, int PAIR_TILES, int ROW_TILES>
struct GradKn2rowShape {
  using Element = typename M::Element;
  static constexpr int pair_tiles = PAIR_TILES, row_tiles = ROW_TILES;
  static constexpr int pairs = 16 * PAIR_TILES, rows = 8 * ROW_TILES, threads = 32 * kGradRowWarps;
  static constexpr int of_word = M::values_per_word, of_piece = 4 * of_word;
  // Of a row in a step: a quad of lanes has neighbouring pieces.
  static constexpr int pieces = 2, of_quad = 4 * of_piece, positions = pieces * of_quad;
  static constexpr int blocks = PAIR_TILES > 2 ? 2 : 5 - PAIR_TILES;
};

template <class M, class S, bool UNIT>
struct GradKn2rowWarp {
  using Element = typename M::Element;
  static constexpr int size = sizeof(Element);
  using Sums = float[S::pair_tiles][S::row_tiles][4];
  using Words = uint32_t[S::row_tiles][S::pieces][4];

  const GradKn2rowParams<M>& p;
  int lane, group, kind, number;  // number: of the lane's first row among those of its kind
  const Element *large, *small;   // that row, and the group's first one, of batch 0
  uint32_t* window;               // the warp's
  int seen[S::pair_tiles]
          [2];  // where in it the lane's pairs see the lane's first position: a value's number
  Sums sums{};
  float bias[S::row_tiles]{};

  __device__ __forceinline__ GradKn2rowWarp(const GradKn2rowParams<M>& p, uint32_t* memory,
                                            uint32_t unit)
      : p(p) {
    lane = static_cast<int>(threadIdx.x) % 32;
    window = memory + threadIdx.x / 32 * (p.small_rows * p.pitch / S::of_word);
    Digits<uint32_t> digits{unit};
    kind = static_cast<int>(digits.take(p.kinds));
    number = static_cast<int>(digits.take(p.row_blocks)) * S::rows + lane / 4;
    group = static_cast<int>(digits.rest);
    // Where the lane has none, another that begins alike.
    const int row = exists(0) ? row_of(0) : kind;
    large = p.large + (int64_t{group} * p.large_rows + row) * p.large_row_stride;
    small = p.small + int64_t{group} * p.small_rows * p.small_row_stride;
#pragma unroll
    for (int i = 0; i < S::pair_tiles; ++i)
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        // Beyond the last one any will do.
        const int last = p.small_rows * p.taps - 1, number = pair_of(i, below),
                  pair = number < last ? number : last, row = pair / p.taps;
        seen[i][below] = row * p.pitch + (pair - row * p.taps) * p.tap_step + p.first - p.lowest +
                         lane % 4 * S::of_piece * step();
      }
  }

  __device__ __forceinline__ int step() const { return UNIT ? 1 : p.step; }
  __device__ __forceinline__ int pair_of(int tile, int below) const {
    return tile * 16 + lane / 4 + below * 8;
  }
  // Of the lane's row of a tile: its number in the group, and whether there is one.
  __device__ __forceinline__ int row_of(int tile) const {
    return kind + (number + tile * 8) * p.kinds;
  }
  __device__ __forceinline__ bool exists(int tile) const { return row_of(tile) < p.large_rows; }

  // Fills the window of a step: the first value's place in a row of the batch's, which may be before it or behind it.
  // Returns 0, or a NaN if some values that the lane has are not finite.
  __device__ __forceinline__ float fill(const Element* of_batch, int64_t first) const {
    constexpr int at_once = 4;
    float zero = 0;
    __syncwarp();  // all have read what was here
#pragma unroll 1
    for (int row = 0; row < p.small_rows; ++row) {
      const Element* const from = of_batch + row * p.small_row_stride + first;
#pragma unroll 1
      for (int i = lane; i < p.window; i += 32 * at_once) {
        Element value[at_once];
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
          const int64_t position = first + i + 32 * k;
          value[k] = Element{};
          if (i + 32 * k < p.window && position >= 0 && position < p.small_length)
            value[k] = __ldg(from + i + 32 * k);
        }
#pragma unroll
        for (int k = 0; k < at_once; ++k) {
          zero = fmaf(M::from(value[k]), 0, zero);
          if (i + 32 * k >= p.window) continue;
          if constexpr (S::of_word == 1)
            window[row * p.pitch + i + 32 * k] = M::pack({value[k]});
          else
            reinterpret_cast<Element*>(window)[row * p.pitch + i + 32 * k] = value[k];
        }
      }
    }
    __syncwarp();
    return zero;
  }

  // What a pair sees at the lane's positions in a piece.
  __device__ __forceinline__ void read_window(uint32_t (&word)[4], int first) const {
    if constexpr (S::of_word == 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = window[first + i * step()];
    } else if constexpr (UNIT) {
      const int bits = first % 2 * 16;
      uint32_t raw[5];
#pragma unroll
      for (int i = 0; i < 5; ++i) raw[i] = window[first / 2 + i];
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = shifted_right(raw[i], raw[i + 1], bits);
    } else {
      const auto* const values = reinterpret_cast<const Element*>(window) + first;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = values[2 * i * step()] | static_cast<uint32_t>(values[(2 * i + 1) * step()])
                                               << 16;
    }
  }

  __device__ __forceinline__ void multiply(const Words& words) {
    static_assert(M::chain == 0 || 2 * S::pieces <= M::chain);
    Sums of_chain{};
    Sums& to = M::chain > 0 ? of_chain : sums;
#pragma unroll
    for (int piece = 0; piece < S::pieces; ++piece) {
      uint32_t b[2][S::row_tiles][M::planes][2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            uint32_t of_plane[M::planes];
            const uint32_t word = words[j][piece][2 * half + k];
            if constexpr (S::of_word == 1)
              M::split({float_of(word)}, of_plane);
            else
              of_plane[0] = word;
#pragma unroll
            for (int plane = 0; plane < M::planes; ++plane) b[half][j][plane][k] = of_plane[plane];
          }
#pragma unroll
      for (int i = 0; i < S::pair_tiles; ++i) {
        uint32_t of_pair[2][4];
#pragma unroll
        for (int below = 0; below < 2; ++below)
          read_window(of_pair[below], seen[i][below] + piece * S::of_quad * step());
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t a[M::planes][4];
          unpack_four<M>({of_pair[0][2 * half], of_pair[1][2 * half], of_pair[0][2 * half + 1],
                          of_pair[1][2 * half + 1]},
                         a);
#pragma unroll
          for (int product = 0; product < M::products; ++product)
#pragma unroll
            for (int j = 0; j < S::row_tiles; ++j) M::multiply(product, to[i][j], a, b[half][j]);
        }
      }
    }
    if constexpr (M::chain > 0)
#pragma unroll
      for (int i = 0; i < S::pair_tiles; ++i)
#pragma unroll
        for (int j = 0; j < S::row_tiles; ++j) end_chain(sums[i][j], of_chain[i][j]);
  }

  // Adds a step's products one by one: of the lane's sums each in turn.
  __device__ __forceinline__ void add_one_by_one(int batch, int begin) {
    const int end = static_cast<int>(smaller(p.length, int64_t{begin} + S::positions));
#pragma unroll 1
    for (int turn = 0; turn < S::pair_tiles * S::row_tiles * 4; ++turn) {
      const int i = turn / (4 * S::row_tiles), j = turn / 4 % S::row_tiles, which = turn % 4,
                pair = pair_of(i, which / 2), row = pair / p.taps,
                offset = (pair - row * p.taps) * p.tap_step + p.first,
                number_of_row = number - lane / 4 + lane % 4 * 2 + which % 2 + j * 8,
                large_row = kind + number_of_row * p.kinds;
      if (row >= p.small_rows || large_row >= p.large_rows) continue;
      const Element* const of_large =
          p.large + batch * p.large_batch_stride +
          (int64_t{group} * p.large_rows + large_row) * p.large_row_stride;
      const Element* const of_small =
          small + batch * p.small_batch_stride + row * p.small_row_stride;
      float sum = 0;
      for (int position = begin < 0 ? 0 : begin; position < end; ++position) {
        const int64_t at = int64_t{position} * p.step + offset;
        if (at >= 0 && at < p.small_length)
          sum = fmaf(M::from(__ldg(of_large + position)), M::from(__ldg(of_small + at)), sum);
      }
#pragma unroll
      for (int k = 0; k < S::pair_tiles * S::row_tiles * 4; ++k)
        if (k == turn) sums[k / (4 * S::row_tiles)][k / 4 % S::row_tiles][k % 4] += sum;
    }
  }

  // Whether all lanes' values are finite, and what they found before is 0; all lanes call it.
  static __device__ __forceinline__ bool finite(const Words& words, float zero) {
#pragma unroll
    for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
      for (int piece = 0; piece < S::pieces; ++piece) {
        Element value[S::of_piece];
        memcpy(value, words[j][piece], 16);
#pragma unroll
        for (int e = 0; e < S::of_piece; ++e) zero = fmaf(M::from(value[e]), 0, zero);
      }
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) zero += __shfl_xor_sync(0xffffffffu, zero, bits);
    return zero == 0;
  }

  // Takes a step of a batch's rows.
  __device__ __forceinline__ void add(int batch, int step_of_row) {
    const Element* const row = large + batch * p.large_batch_stride;
    // Pieces begin where memory's do.
    const int lead = static_cast<int>(reinterpret_cast<uint64_t>(row) % 16) / size,
              begin = step_of_row * S::positions - lead, position = begin + lane % 4 * S::of_piece;
    Words words;
#pragma unroll
    for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
      for (int piece = 0; piece < S::pieces; ++piece) {
        const int first = position + piece * S::of_quad;
        uint4 four = make_uint4(0, 0, 0, 0);
        if (exists(j) && first > -S::of_piece && first < p.length)
          four = __ldg(reinterpret_cast<const uint4*>(
              row + int64_t{8 * j} * p.kinds * p.large_row_stride + first));
        words[j][piece][0] = four.x;
        words[j][piece][1] = four.y;
        words[j][piece][2] = four.z;
        words[j][piece][3] = four.w;
      }
    const int64_t first_seen = int64_t{begin} * step() + p.lowest;
    const float zero = fill(small + batch * p.small_batch_stride, first_seen);
    const bool in_row = begin >= 0 && begin + S::positions <= p.length,
               inside = in_row && first_seen >= 0 && first_seen + p.window <= p.small_length;
    if (!in_row)
#pragma unroll
      for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
        for (int piece = 0; piece < S::pieces; ++piece)
          clear_beside<Element>(words[j][piece], position + piece * S::of_quad, p.length);
    if (p.adds_bias) add_bias(words);
    if (inside || finite(words, zero))
      multiply(words);
    else
      add_one_by_one(batch, begin);
  }

  __device__ __forceinline__ void add_bias(const Words& words) {
#pragma unroll
    for (int j = 0; j < S::row_tiles; ++j) {
      float sum = 0;
#pragma unroll
      for (int piece = 0; piece < S::pieces; ++piece) {
        Element value[S::of_piece];
        memcpy(value, words[j][piece], 16);
#pragma unroll
        for (int e = 0; e < S::of_piece; ++e) sum += M::from(value[e]);
      }
      bias[j] += sum;
    }
  }

  // Leaves the sums of a split.
  __device__ __forceinline__ void leave(int split) const {
    const int first = number - lane / 4 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::pair_tiles; ++i)
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const int pair = pair_of(i, below), small_row = pair / p.taps,
                  tap = pair - small_row * p.taps;
        if (small_row >= p.small_rows) continue;
        const int64_t element = group * p.group_elements + small_row * p.small_elements + tap;
#pragma unroll
        for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int row = kind + (first + odd + j * 8) * p.kinds;
            if (row < p.large_rows)
              p.sums.store_weight(split, element + row * p.large_elements,
                                  sums[i][j][2 * below + odd]);
          }
      }
    if (!p.adds_bias) return;
#pragma unroll
    for (int j = 0; j < S::row_tiles; ++j) {
      float sum = bias[j];
#pragma unroll
      for (int bits = 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
      if (lane % 4 == 0 && exists(j))
        p.sums.store_bias(split, int64_t{group} * p.large_rows + row_of(j), sum);
    }
  }
};

template <class M, class S, bool UNIT>
__global__ void __launch_bounds__(S::threads, S::blocks)
    grad_kn2row_kernel(const GradKn2rowParams<M> p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const uint32_t warp = blockIdx.x * kGradRowWarps + threadIdx.x / 32, split = warp / p.units;
  if (split < static_cast<uint32_t>(p.splits)) {
    GradKn2rowWarp<M, S, UNIT> of_warp(p, memory, warp - split * p.units);
    int batch = static_cast<int>(split / p.steps_of_row),
        step = static_cast<int>(split % p.steps_of_row);
#pragma unroll 1
    while (batch < p.batch) {
      of_warp.add(batch, step);
      batch += p.batch_step;
      step += p.row_step;
      if (step >= p.steps_of_row) {
        step -= p.steps_of_row;
        ++batch;
      }
    }
    of_warp.leave(static_cast<int>(split));
  }
  wait_for_kernel_before();  // so that both are over for the kernel after this one
}

// Which tensor is the large one: of two that could be, the one with more channels.
inline bool grad_kn2row_has_few_in(const ConvArgs& a) {
  const int64_t in = a.channels_in / a.groups, out = a.channels_out / a.groups;
  return in * a.kernel_size <= kMostGradPairs &&
         (in <= out || a.stride > 1 || out * a.kernel_size > kMostGradPairs);
}

// Who does what, as the shape and the multiprocessors say.
template <class M, class S>
struct GradKn2rowWork {
  bool few_in;
  int64_t window, pitch, shared_bytes;
  int64_t rows, length, kinds, row_blocks, units, steps_of_row, splits;

  explicit GradKn2rowWork(const ConvArgs& a) : few_in(grad_kn2row_has_few_in(a)) {
    rows = (few_in ? a.channels_out : a.channels_in) / a.groups;
    length = few_in ? a.length_out : a.length;
    const int64_t row_stride = few_in ? a.length_out : a.input_channel_stride;
    // Of 16-bit values a lane may read one behind its last, of the same word.
    window = (S::positions - 1) * a.stride + (a.kernel_size - 1) * a.dilation + 1;
    pitch = round_up(window + S::of_word - 1, S::of_word);
    shared_bytes = kGradRowWarps * (few_in ? a.channels_in : a.channels_out) / a.groups * pitch *
                       static_cast<int64_t>(sizeof(typename M::Element)) +
                   4;
    kinds =
        smaller(rows, rows_alike(row_stride * static_cast<int64_t>(sizeof(typename M::Element))));
    row_blocks = ceil_div(ceil_div(rows, kinds), S::rows);
    units = a.groups * kinds * row_blocks;
    // Rows may begin within a piece.
    steps_of_row = ceil_div(length + S::of_piece - 1, S::positions);
    const int64_t steps = a.batch * steps_of_row,
                  at_once = a.multiprocessors * S::blocks * kGradRowWarps / units,
                  enough = smaller(smaller(at_once, steps / kLeastGradSteps), most_splits(a));
    splits = larger(larger(1, enough), ceil_div(steps * S::positions, kGradChain));
  }
  static int64_t bias_bytes(const ConvArgs& a) { return 4 * grad_bias_splits(a) * a.channels_out; }
  int64_t bytes(const ConvArgs& a) const {
    return GradStore<M>::bytes(a, splits) + (few_in ? 0 : bias_bytes(a));
  }
};

template <class M>
struct GradKn2rowKernels {
  static int launch(const ConvArgs& a, void* stream) {
    return with_shape(a, [&](auto s) { return run(s, a, stream); });
  }
  static int64_t workspace(const ConvArgs& a) {
    return with_shape(a, [&](auto s) { return work_of(s, a).bytes(a); });
  }

 private:
  template <class S>
  struct Of {
    using Type = S;
  };
  template <class Function>
  static auto with_shape(const ConvArgs& a, const Function& function) {
    const int64_t few = grad_kn2row_has_few_in(a) ? a.channels_in : a.channels_out,
                  pairs = few / a.groups * a.kernel_size;
    // Sums of split products are twice as many.
    constexpr int rows = M::planes > 1 ? 2 : 4;
    if (pairs <= 16) return function(Of<GradKn2rowShape<M, 1, rows>>{});
    if (pairs <= 32) return function(Of<GradKn2rowShape<M, 2, rows>>{});
    return function(Of<GradKn2rowShape<M, 4, rows>>{});
  }

  template <class S>
  static GradKn2rowWork<M, S> work_of(Of<S>, const ConvArgs& a) {
    return GradKn2rowWork<M, S>(a);
  }
  template <class S>
  static int run(Of<S>, const ConvArgs& a, void* stream) {
    using Element = typename M::Element;
    const GradKn2rowWork<M, S> work(a);
    const int64_t in = a.channels_in / a.groups, out = a.channels_out / a.groups,
                  of_large = work.few_in ? out : in, of_small = work.few_in ? in : out,
                  blocks = ceil_div(work.units * work.splits, kGradRowWarps),
                  reach = (a.kernel_size - 1) * a.dilation,
                  out_batch = a.channels_out * a.length_out;
    // cudaErrorInvalidValue: `grad_costs.kn2row_why_not` should have said so.
    if (of_small * a.kernel_size > kMostGradPairs || (!work.few_in && a.stride > 1) ||
        work.shared_bytes > kMostGradWindows || blocks > INT32_MAX / kGradRowWarps)
      return 1;
    const auto *const input = static_cast<const Element*>(a.input), *const grad_output =
                                                                        static_cast<const Element*>(
                                                                            a.grad_output);
    GradKn2rowParams<M> p{input, grad_output, GradStore<M>(a, work.splits)};
    p.large_batch_stride = p.small_batch_stride = a.input_batch_stride;
    p.large_row_stride = p.small_row_stride = a.input_channel_stride;
    (work.few_in ? p.large : p.small) = grad_output;
    (work.few_in ? p.small : p.large) = input;
    (work.few_in ? p.large_batch_stride : p.small_batch_stride) = out_batch;
    (work.few_in ? p.large_row_stride : p.small_row_stride) = a.length_out;
    p.group_elements = out * in * a.kernel_size;
    p.large_elements = (work.few_in ? in : 1) * a.kernel_size;
    p.small_elements = (work.few_in ? 1 : in) * a.kernel_size;
    p.large_rows = static_cast<int>(of_large);
    p.small_rows = static_cast<int>(of_small);
    p.taps = static_cast<int>(a.kernel_size);
    p.step = static_cast<int>(a.stride);
    p.tap_step = static_cast<int>(work.few_in ? a.dilation : -a.dilation);
    p.first = static_cast<int>(work.few_in ? -a.padding : a.padding);
    p.lowest = static_cast<int>(work.few_in ? -a.padding : a.padding - reach);
    p.window = static_cast<int>(work.window);
    p.pitch = static_cast<int>(work.pitch);
    p.length = static_cast<int>(work.length);
    p.small_length = static_cast<int>(work.few_in ? a.length : a.length_out);
    p.batch = static_cast<int>(a.batch);
    p.steps_of_row = static_cast<int>(work.steps_of_row);
    p.batch_step = static_cast<int>(work.splits / work.steps_of_row);
    p.row_step = static_cast<int>(work.splits % work.steps_of_row);
    p.kinds = static_cast<int>(work.kinds);
    p.row_blocks = static_cast<int>(work.row_blocks);
    p.units = static_cast<int>(work.units);
    p.splits = static_cast<int>(work.splits);
    p.adds_bias = work.few_in && a.grad_bias != nullptr;
    GradParts bias{p.sums.bias_parts, p.adds_bias && work.splits > 1 ? a.channels_out : 0,
                   a.grad_bias, work.splits};
    const bool apart = !work.few_in && a.grad_bias != nullptr;
    int error = 0;
    if (apart)
      error = grad_bias_parts(a,
                              reinterpret_cast<float*>(static_cast<char*>(a.workspace) +
                                                       GradStore<M>::bytes(a, work.splits)),
                              bias, stream);
    if (error != 0) return error;
    const auto kernel =
        a.stride == 1 ? grad_kn2row_kernel<M, S, true> : grad_kn2row_kernel<M, S, false>;
    // Nobody waits for what the bias is added up by but the last kernel.
    error = launch_early(apart, kernel, dim3(static_cast<unsigned>(blocks)), dim3(S::threads),
                         work.shared_bytes, stream, p);
    if (error != 0) return error;
    return add_parts<M>(
        {p.sums.weight_parts, work.splits > 1 ? p.sums.weights : 0, a.output, work.splits}, bias,
        stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_KN2ROW_LIBRARY(MODE)                                       \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::GradKn2rowKernels<MODE>::launch(*args, stream);             \
  }                                                                                \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {        \
    return fastconv1d::GradKn2rowKernels<MODE>::workspace(*args);                  \
  }
