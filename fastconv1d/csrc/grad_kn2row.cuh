// The gradients of weight and bias of groups with few pairs of a channel and a tap, on tensor cores (mma.sync, sm_80
// on): a first layer's, which has few input channels, and a last layer's, which has few output channels. Any stride where
// input channels are few.
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
//      | small, from the |   x   | l | a | r      the product runs along positions, 128 to 512 bytes of each row
//      | team's window   |       | g | e |
//      +-----------------+       +---+---+-- ..
//
// A lane reads 16 bytes of a row, neighbouring positions, with one instruction: which positions a word of the product
// has does not matter as long as both sides agree, so these are two steps of mma with no value moved. The large tensor
// sees neither shared memory nor a barrier. Rows of odd length begin anywhere within 16 bytes: a warp has rows of one
// kind, which begin alike, as every 2nd, 4th or 8th of them does.
//
// Shared memory: two windows of a team, [row of the small tensor][residue of the stride][values], with all that a step
// sees. What a pair sees at neighbouring positions are neighbours there, whatever the stride. Warps of a team have rows
// of the same positions, and fill a step's window together while slower ones still read the other. Where there is
// nothing, zeros. If values in such a step are not finite, its products are chosen one by one.
//
// A split takes every so many-th step, so that what runs at a time is near to each other in memory. `grad_sum.cuh` adds
// up what splits leave, in an order that the shape and the multiprocessors say.
//
// Roofline: DRAM sees the large tensor once. A step of 4 KB takes some 60 of the 220 cycles that L1 has until the next
// one comes.
#pragma once
#include "grad_bias.cuh"
#include "grad_tile.cuh"

namespace fastconv1d {

constexpr int kGradRowWarps = 4;  // of a block
constexpr int64_t kMostGradPairs = 32;
constexpr int64_t kMostGradWindows = 48 << 10;  // bytes of a block
constexpr int64_t kLeastGradSteps = 4;          // of a warp

template <class M>
struct GradKn2rowParams {
  using Element = typename M::Element;
  const Element *large, *small;
  GradStore<M> sums;
  int64_t large_batch_stride, large_row_stride, small_batch_stride, small_row_stride;
  // Of the gradient, from one's elements to the next one's.
  int64_t group_elements, large_elements, small_elements;
  int large_rows, small_rows;  // of a group
  int taps, tap_step, step, first;
  int length, small_length, batch, steps_of_row;
  int batch_step, row_step;   // from a warp's step to its next: so many batches, so many steps
  int groups, teams, splits;  // teams: of a group
  int kinds, team_warps;
  // Of a window: what its first position sees first, and how many values all of them see; from row to row, and from
  // residue to residue; see `place_of`; of 8 values that a lane reads together, so many are of one row.
  int lowest, window, small_pitch, residue_pitch;
  uint32_t inverse;
  int columns_log2;
  bool adds_bias;
};

// PAIR_TILES x 16 pairs by ROW_TILES x 8 rows; the fewer of these, the more positions of each in a step.
template <class M, int PAIR_TILES, int ROW_TILES>
struct GradKn2rowShape {
  using Element = typename M::Element;
  static constexpr int pair_tiles = PAIR_TILES, row_tiles = ROW_TILES;
  static constexpr int pairs = 16 * PAIR_TILES, rows = 8 * ROW_TILES, threads = 32 * kGradRowWarps;
  static constexpr int of_word = M::values_per_word, of_piece = 4 * of_word;
  // Of a row in a step: a quad of lanes has neighbouring pieces.
  static constexpr int pieces = M::planes > 1 ? 2 : 8 / ROW_TILES, of_quad = 4 * of_piece,
                       positions = pieces * of_quad;
  static constexpr int blocks = PAIR_TILES > 1 ? 3 : 4;
};

template <class M, class S>
struct GradKn2rowWarp {
  using Element = typename M::Element;
  static constexpr int size = sizeof(Element);
  using Sums = float[S::pair_tiles][S::row_tiles][4];
  using Words = uint32_t[S::row_tiles][S::pieces][4];

  const GradKn2rowParams<M>& p;
  int lane, group, kind, number;  // number: of the lane's first row among those of its kind
  const Element *large, *small;   // that row, and the group's first one, of batch 0
  int team_thread;                // of those that fill a window together
  uint32_t* windows;              // the team's
  // Where in a window the lane's pairs see the first position that any row's step may begin with.
  int seen[S::pair_tiles][2];
  Sums sums{};
  float bias[S::row_tiles]{};

  __device__ __forceinline__ GradKn2rowWarp(const GradKn2rowParams<M>& p, uint32_t* memory,
                                            uint32_t team)
      : p(p) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    team_thread = static_cast<int>(threadIdx.x) % (32 * p.team_warps);
    windows = memory + warp / p.team_warps * 2 * window_words();
    group = static_cast<int>(team) / p.teams;
    const int unit =
        (static_cast<int>(team) - group * p.teams) * p.team_warps + warp % p.team_warps;
    kind = unit % p.kinds;
    number = unit / p.kinds * S::rows + lane / 4;
    // Where the lane has none, another that begins alike: all lanes' steps begin with the same position.
    const int large_row = exists(0) ? row_of(0) : kind;
    large = p.large + (int64_t{group} * p.large_rows + large_row) * p.large_row_stride;
    small = p.small + int64_t{group} * p.small_rows * p.small_row_stride;
#pragma unroll
    for (int i = 0; i < S::pair_tiles; ++i)
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        // Beyond the last one any will do.
        const Pair pair = pair_of(static_cast<int>(
            smaller(number_of_pair(i, below), int64_t{p.small_rows} * p.taps - 1)));
        seen[i][below] = pair.small_row * p.small_pitch + place_of(pair.offset - p.lowest) +
                         lane % 4 * S::of_piece;
      }
  }

  __device__ __forceinline__ int window_words() const {
    return p.small_rows * p.small_pitch / S::of_word;
  }

  // Where a row's value that a step sees is in a window.
  __device__ __forceinline__ int place_of(int value) const {
    const auto quotient =
        static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(value)) * p.inverse >> 31);
    return (value - quotient * p.step) * p.residue_pitch + quotient;
  }

  __device__ __forceinline__ int number_of_pair(int tile, int below) const {
    return tile * 16 + lane / 4 + below * 8;
  }
  // A row of the small tensor and a tap, and where these see position 0.
  struct Pair {
    int small_row, tap, offset;
  };
  __device__ __forceinline__ Pair pair_of(int number) const {
    const int small_row = number / p.taps, tap = number - small_row * p.taps;
    return {small_row, tap, tap * p.tap_step + p.first};
  }
  // Of the lane's row of a tile: its number in the group, and whether there is one.
  __device__ __forceinline__ int row_of(int tile) const {
    return kind + (number + tile * 8) * p.kinds;
  }
  // The same of a lane's sums, of which it has two neighbours.
  __device__ __forceinline__ int row_of_sum(int tile, int odd) const {
    return kind + (number - lane / 4 + lane % 4 * 2 + odd + tile * 8) * p.kinds;
  }
  __device__ __forceinline__ bool exists(int tile) const { return row_of(tile) < p.large_rows; }

  // A value rounded to what is multiplied, where that is in fp32.
  static __device__ __forceinline__ Element as_multiplied(Element value) {
    if constexpr (S::of_word == 1)
      return float_of(M::pack({value}));
    else
      return value;
  }

  // Fills the team's window with all that positions from the first on see. Of some rows at a time, some values are on
  // their way together.
  __device__ __forceinline__ void fill(uint32_t* window, int batch, int first) const {
    constexpr int at_once = 8;
    const int team_threads = 32 * p.team_warps, columns = team_threads << p.columns_log2,
              rows = at_once >> p.columns_log2, seen_first = first * p.step + p.lowest;
    const Element* const of_batch = small + batch * p.small_batch_stride;
    const auto column_of = [&](int i) {
      return (i & ((1 << p.columns_log2) - 1)) * team_threads + team_thread;
    };
#pragma unroll 1
    for (int first_row = 0; first_row < p.small_rows; first_row += rows)
#pragma unroll 1
      for (int first_column = 0; first_column < p.window; first_column += columns) {
        Element value[at_once];
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
          const int row = first_row + (i >> p.columns_log2), column = first_column + column_of(i),
                    position = seen_first + column;
          value[i] = Element{};
          if (row < p.small_rows && column < p.window && position >= 0 && position < p.small_length)
            value[i] = __ldg(of_batch + row * p.small_row_stride + position);
        }
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
          const int row = first_row + (i >> p.columns_log2), column = first_column + column_of(i);
          if (row >= p.small_rows || column >= p.window) continue;
          const int place = row * p.small_pitch + place_of(column);
          reinterpret_cast<Element*>(window)[place] = as_multiplied(value[i]);
        }
      }
    // Nobody fills a window before all have been here again, and so have read it.
    if (p.team_warps == 1)
      __syncwarp();
    else
      threads_sync(1 + static_cast<int>(threadIdx.x) / team_threads, team_threads);
  }

  // What a pair sees at the lane's positions in a piece.
  __device__ __forceinline__ void read_window(uint32_t (&word)[4], const uint32_t* window,
                                              int first) const {
    if constexpr (S::of_word == 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = window[first + i];
    } else {
      const int bits = first % 2 * 16;
      uint32_t raw[5];
#pragma unroll
      for (int i = 0; i < 5; ++i) raw[i] = window[first / 2 + i];
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = shifted_right(raw[i], raw[i + 1], bits);
    }
  }

  __device__ __forceinline__ void multiply(const Words& words, const uint32_t* window, int behind) {
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
          read_window(of_pair[below], window, seen[i][below] + behind + piece * S::of_quad);
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
                large_row = row_of_sum(j, which % 2);
      const Pair pair = pair_of(number_of_pair(i, which / 2));
      if (pair.small_row >= p.small_rows || large_row >= p.large_rows) continue;
      const Element* const of_large =
          p.large + batch * p.large_batch_stride +
          (int64_t{group} * p.large_rows + large_row) * p.large_row_stride;
      const Element* const of_small =
          small + batch * p.small_batch_stride + pair.small_row * p.small_row_stride;
      float sum = 0;
      for (int position = begin < 0 ? 0 : begin; position < end; ++position) {
        const int64_t at = int64_t{position} * p.step + pair.offset;
        if (at >= 0 && at < p.small_length)
          sum = fmaf(M::from(__ldg(of_large + position)), M::from(__ldg(of_small + at)), sum);
      }
#pragma unroll
      for (int k = 0; k < S::pair_tiles * S::row_tiles * 4; ++k)
        if (k == turn) sums[k / (4 * S::row_tiles)][k / 4 % S::row_tiles][k % 4] += sum;
    }
  }

  // Whether a step's values are finite; all lanes call it.
  __device__ __forceinline__ bool finite(const Words& words, const uint32_t* window) const {
    float zero = 0;
    for (int row = 0; row < p.small_rows; ++row)
      for (int i = lane; i < p.window; i += 32) {
        const int place = row * p.small_pitch + place_of(i);
        zero = fmaf(M::from(reinterpret_cast<const Element*>(window)[place]), 0, zero);
      }
#pragma unroll
    for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
      for (int piece = 0; piece < S::pieces; ++piece) {
        Element value[S::of_piece];
        memcpy(value, words[j][piece], 16);
#pragma unroll
        for (int e = 0; e < S::of_piece; ++e)
          zero = fmaf(M::from(as_multiplied(value[e])), 0, zero);
      }
    return sum_of_lanes(zero) == 0;
  }

  // Takes a step of a batch's rows.
  __device__ __forceinline__ void add(int batch, int step_of_row, uint32_t* window) {
    const Element* const row = large + batch * p.large_batch_stride;
    // Pieces begin where memory's do: so far behind the first position that the window serves.
    const int behind =
                  S::of_piece - 1 - static_cast<int>(reinterpret_cast<uint64_t>(row) % 16) / size,
              first = step_of_row * S::positions - (S::of_piece - 1), begin = first + behind,
              position = begin + lane % 4 * S::of_piece;
    Words words;
#pragma unroll
    for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
      for (int piece = 0; piece < S::pieces; ++piece) {
        const int at = position + piece * S::of_quad;
        uint4 four = make_uint4(0, 0, 0, 0);
        if (exists(j) && at > -S::of_piece && at < p.length)
          four = read_once(reinterpret_cast<const uint4*>(
              row + int64_t{8 * j} * p.kinds * p.large_row_stride + at));
        words[j][piece][0] = four.x;
        words[j][piece][1] = four.y;
        words[j][piece][2] = four.z;
        words[j][piece][3] = four.w;
      }
    fill(window, batch, first);
    const int seen_first = begin * p.step + p.lowest;
    const bool in_row = begin >= 0 && begin + S::positions <= p.length,
               inside = in_row && seen_first >= 0 &&
                        seen_first + p.window - (S::of_piece - 1) * p.step <= p.small_length;
    if (!in_row)
#pragma unroll
      for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
        for (int piece = 0; piece < S::pieces; ++piece)
          clear_beside<Element>(words[j][piece], position + piece * S::of_quad, p.length);
    if (p.adds_bias) add_bias(words);
    if (inside || finite(words, window))
      multiply(words, window, behind);
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
#pragma unroll
    for (int i = 0; i < S::pair_tiles; ++i)
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const Pair pair = pair_of(number_of_pair(i, below));
        if (pair.small_row >= p.small_rows) continue;
        const int64_t element =
            group * p.group_elements + pair.small_row * p.small_elements + pair.tap;
#pragma unroll
        for (int j = 0; j < S::row_tiles; ++j)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int row = row_of_sum(j, odd);
            if (row < p.large_rows)
              p.sums.store_weight(split, element + row * p.large_elements,
                                  sums[i][j][2 * below + odd]);
          }
      }
    if (!p.adds_bias) return;
#pragma unroll
    for (int j = 0; j < S::row_tiles; ++j) {
      const float sum = sum_of_lanes<4>(bias[j]);
      if (lane % 4 == 0 && exists(j))
        p.sums.store_bias(split, int64_t{group} * p.large_rows + row_of(j), sum);
    }
  }
};

template <class M, class S>
__global__ void __launch_bounds__(S::threads, S::blocks)
    grad_kn2row_kernel(const GradKn2rowParams<M> p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const uint32_t all_teams = p.groups * p.teams,
                 number = blockIdx.x * (kGradRowWarps / p.team_warps) +
                          threadIdx.x / (32 * p.team_warps),
                 split = number / all_teams;
  if (split < static_cast<uint32_t>(p.splits)) {
    GradKn2rowWarp<M, S> of_warp(p, memory, number - split * all_teams);
    int batch = static_cast<int>(split / p.steps_of_row),
        step = static_cast<int>(split % p.steps_of_row);
    uint32_t *window = of_warp.windows, *other = window + of_warp.window_words();
#pragma unroll 1
    while (batch < p.batch) {
      of_warp.add(batch, step, window);
      batch += p.batch_step;
      step += p.row_step;
      if (step >= p.steps_of_row) {
        step -= p.steps_of_row;
        ++batch;
      }
      uint32_t* const filled = window;
      window = other;
      other = filled;
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

// The two tensors, and how rows of the large one's groups begin.
template <class M>
struct GradKn2rowRows {
  bool few_in;
  TensorRows large, small;
  int64_t kinds, of_kind;
  explicit GradKn2rowRows(const ConvArgs& a)
      : few_in(grad_kn2row_has_few_in(a)),
        large(few_in ? rows_of_grad_output(a) : rows_of_input(a)),
        small(few_in ? rows_of_input(a) : rows_of_grad_output(a)) {
    constexpr int64_t size = sizeof(typename M::Element);
    kinds = smaller(large.channels / a.groups, rows_alike(large.channel_stride * size));
    of_kind = ceil_div(large.channels / a.groups, kinds);
  }
};

// Who does what, as the shape and the multiprocessors say.
template <class M, class S>
struct GradKn2rowWork : GradKn2rowRows<M> {
  using Rows = GradKn2rowRows<M>;
  using Rows::few_in;
  int64_t window, small_pitch, residue_pitch, shared_bytes;
  int64_t team_warps = 1, teams, steps_of_row, splits;

  explicit GradKn2rowWork(const ConvArgs& a) : Rows(a) {
    // Rows of the large tensor begin anywhere within a piece. Of 16-bit values a lane may read one behind its last, of the
    // same word. Residues begin in different banks.
    const int64_t reach = (a.kernel_size - 1) * a.dilation,
                  positions = S::positions + S::of_piece - 1;
    window = (positions - 1) * a.stride + reach + 1;
    residue_pitch = (ceil_div(positions + reach / a.stride + 2, S::of_word) | 1) * S::of_word;
    small_pitch = a.stride * residue_pitch;
    // As many warps fill a window together as leave few without rows.
    const int64_t units = Rows::kinds * ceil_div(Rows::of_kind, S::rows);
    for (int64_t warps = 2; warps <= kGradRowWarps; warps *= 2)
      if (8 * round_up(units, warps) <= 9 * units) team_warps = warps;
    teams = ceil_div(units, team_warps);
    shared_bytes = kGradRowWarps / team_warps * 2 * Rows::small.channels / a.groups * small_pitch *
                   static_cast<int64_t>(sizeof(typename M::Element));
    steps_of_row = ceil_div(Rows::large.length + S::of_piece - 1, S::positions);
    const int64_t steps = a.batch * steps_of_row,
                  at_once = a.multiprocessors * S::blocks * kGradRowWarps /
                            (a.groups * teams * team_warps),
                  enough = smaller(smaller(at_once, steps / kLeastGradSteps), most_splits(a));
    splits = larger(larger(1, enough), ceil_div(steps * S::positions, kGradChain));
  }
  int64_t bytes(const ConvArgs& a) const {
    return GradStore<M>::bytes(a, splits) + (few_in ? 0 : grad_bias_workspace(a));
  }
};

template <class M>
struct GradKn2rowKernels {
  static int launch(const ConvArgs& a, void* stream) {
    return with_shape(a, [&](auto s) { return run(s, a, stream); });
  }
  static int64_t workspace(const ConvArgs& a) {
    return with_shape(
        a, [&](auto s) { return GradKn2rowWork<M, typename decltype(s)::Type>(a).bytes(a); });
  }

 private:
  template <class S>
  struct Of {
    using Type = S;
  };
  template <class S>
  static bool fits(const ConvArgs& a) {
    return GradKn2rowWork<M, S>(a).shared_bytes <= kMostGradWindows;
  }
  template <class Function>
  static auto with_shape(const ConvArgs& a, const Function& function) {
    const GradKn2rowRows<M> rows(a);
    const int64_t pairs = rows.small.channels / a.groups * a.kernel_size;
    constexpr int most = M::planes > 1 ? 2 : 4;  // sums of split products are twice as many
    if (pairs <= 16) {
      // Of few rows a warp has more positions, since there is more of them to be read at a time.
      using One = GradKn2rowShape<M, 1, 1>;
      using Two = GradKn2rowShape<M, 1, 2>;
      if (rows.of_kind <= One::rows && fits<One>(a)) return function(Of<One>{});
      if (rows.of_kind <= Two::rows && fits<Two>(a)) return function(Of<Two>{});
      return function(Of<GradKn2rowShape<M, 1, most>>{});
    }
    return function(Of<GradKn2rowShape<M, 2, most>>{});
  }

  template <class S>
  static int run(Of<S>, const ConvArgs& a, void* stream) {
    using Element = typename M::Element;
    const GradKn2rowWork<M, S> work(a);
    const TensorRows &large = work.large, &small = work.small;
    const int64_t of_large = large.channels / a.groups, of_small = small.channels / a.groups,
                  blocks = ceil_div(a.groups * work.teams * work.team_warps * work.splits,
                                    kGradRowWarps),
                  reach = (a.kernel_size - 1) * a.dilation;
    // cudaErrorInvalidValue: `grad_costs.kn2row_why_not` should have said so.
    if (of_small * a.kernel_size > kMostGradPairs || (!work.few_in && a.stride > 1) ||
        work.shared_bytes > kMostGradWindows || blocks > INT32_MAX / kGradRowWarps)
      return 1;
    GradKn2rowParams<M> p{static_cast<const Element*>(large.first),
                          static_cast<const Element*>(small.first), GradStore<M>(a, work.splits)};
    p.large_batch_stride = large.batch_stride;
    p.large_row_stride = large.channel_stride;
    p.small_batch_stride = small.batch_stride;
    p.small_row_stride = small.channel_stride;
    p.group_elements = of_large * of_small * a.kernel_size;
    p.large_elements = (work.few_in ? of_small : 1) * a.kernel_size;
    p.small_elements = (work.few_in ? 1 : of_large) * a.kernel_size;
    p.large_rows = static_cast<int>(of_large);
    p.small_rows = static_cast<int>(of_small);
    p.taps = static_cast<int>(a.kernel_size);
    p.step = static_cast<int>(a.stride);
    p.tap_step = static_cast<int>(work.few_in ? a.dilation : -a.dilation);
    p.first = static_cast<int>(work.few_in ? -a.padding : a.padding);
    p.lowest = static_cast<int>(work.few_in ? -a.padding : a.padding - reach);
    p.window = static_cast<int>(work.window);
    p.small_pitch = static_cast<int>(work.small_pitch);
    p.residue_pitch = static_cast<int>(work.residue_pitch);
    p.inverse = static_cast<uint32_t>(ceil_div(int64_t{1} << 31, a.stride));
    p.length = static_cast<int>(large.length);
    p.small_length = static_cast<int>(small.length);
    p.batch = static_cast<int>(a.batch);
    p.steps_of_row = static_cast<int>(work.steps_of_row);
    p.batch_step = static_cast<int>(work.splits / work.steps_of_row);
    p.row_step = static_cast<int>(work.splits % work.steps_of_row);
    p.kinds = static_cast<int>(work.kinds);
    p.groups = static_cast<int>(a.groups);
    p.teams = static_cast<int>(work.teams);
    p.team_warps = static_cast<int>(work.team_warps);
    p.splits = static_cast<int>(work.splits);
    while (p.columns_log2 < 3 && 32 * work.team_warps << p.columns_log2 < work.window)
      ++p.columns_log2;
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
    // Nobody waits for what the bias is added up by but the last kernel.
    error = launch_early(apart, grad_kn2row_kernel<M, S>, dim3(static_cast<unsigned>(blocks)),
                         dim3(S::threads), work.shared_bytes, stream, p);
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
