// The dense convolution on the tensor cores of Hopper (sm_90a, wgmma), NCL to NCL.
//
// One block computes a tile of CHANNELS output channels by some output positions of one phase, and
// then more: blocks take turns on the tiles. Its warps have roles, and hand stages of shared memory
// to each other by barriers:
//
//   warp 0      copies rows of the input as they lie in memory      -> inputs
//               and the packed weights of one tap and slice         -> weights
//   warps 1-3   round, split or pack the values: inputs             -> windows
//   warps 4-11  two warpgroups multiply weights (64 channels x 8 words) by windows (8 words x N
//               positions), and write their sums
//
// A window is [quad of 4 words][column][4 words], a word being one fp32 value or two neighbouring
// channels of a 16-bit type. That is how wgmma takes an operand whose columns are 16 bytes apart, so
// a tap is the same window read some columns further on, whatever shift or dilation. Neighbouring
// columns are a whole stride apart; taps whose shifts differ modulo the stride have windows of their
// own, made of the same rows. Weights lie alike, [quad][channel][4 words]; where all fit, they stay.
// fp32-accurate mode splits each value in a high and a low TF32 part, kept in two planes, and adds
// three products.
//
// Roofline: copies of rows keep some 48 KB on their way, of any alignment, without registers. Output
// rows are rarely 32-byte aligned, and stores that fill part of a sector cost up to three times as
// much. So tiles overlap by 8 positions, each row takes those that begin at its own boundary, and
// its sums move there between the 4 lanes that hold 8 positions of a row. While one warpgroup
// writes, the other one multiplies.
#pragma once
#include <type_traits>

#include "tile.cuh"

namespace fastconv1d {

// WARPGROUPS_M x WARPGROUPS_N warpgroups of M_TILES x 64 channels by N positions each.
template <int WARPGROUPS_M, int WARPGROUPS_N, int M_TILES, int N>
struct HopperTile {
  static_assert(WARPGROUPS_M * WARPGROUPS_N == 2 && N % 16 == 0, "two warpgroups");
  static constexpr int warpgroups_m = WARPGROUPS_M, warpgroups_n = WARPGROUPS_N;
  static constexpr int m_tiles = M_TILES, n = N, n_tiles = N / 8;
  static constexpr int channels = 64 * WARPGROUPS_M * M_TILES;
};

// What follows from a mode.
template <class M>
struct HopperLayout {
  using Element = typename M::Element;
  static constexpr int aligned_outputs = 32 / sizeof(Element);  // in a sector
  // Of a warp's sums on their way out: positions, bytes of a row, of all 16. Pitches for which the
  // pairs of 8 rows (fp32: of 4) meet all banks.
  static constexpr int staged = 128 / sizeof(Element);
  static constexpr int stage_pitch = staged * sizeof(Element) + (sizeof(Element) == 4 ? 32 : 16);
  static constexpr int stage_bytes = 16 * stage_pitch;
};

constexpr int kCopyThreads = 32, kConvertThreads = 96, kConsumerThreads = 256;
constexpr int kProducerThreads = kCopyThreads + kConvertThreads;
constexpr int kHopperThreads = kProducerThreads + kConsumerThreads;
// Of a thread. wgmma needs 154 at least while it adds to 128 sums.
constexpr int kProducerRegisters = 88, kConsumerRegisters = 208;

// A barrier for each stage that is full, and one for each that is empty again.
template <int STAGES>
struct StageBarriers {
  uint64_t full[STAGES], empty[STAGES];
};
struct HopperBarriers {
  StageBarriers<kMostStages> inputs, windows, weights;
};
constexpr int64_t kHopperBarrierBytes = 512;
static_assert(sizeof(HopperBarriers) <= kHopperBarrierBytes);

// Of shared memory, before what the pipeline takes: barriers, biases, sums on their way out.
template <class M, class T>
FASTCONV1D_HD constexpr int64_t hopper_fixed_bytes() {
  return kHopperBarrierBytes + 4 * T::channels +
         kConsumerThreads / 32 * HopperLayout<M>::stage_bytes;
}

// The stage whose turn it is, and the parity of its phase.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct HopperParams {
  const void* input;
  const uint32_t* weights;  // packed
  const void* bias;
  void* output;
  Phase phase;
  Pipeline pipeline;
  int64_t batch, length, length_out, input_batch_stride, input_channel_stride;
  int64_t channels_in, channels_out, groups;  // channels of one group
  int64_t channel_blocks, tiles, runs;        // `runs` blocks take turns on batch x tiles
  Place step;                                 // from a block's tile to its next
  int64_t first_position;                     // of the input, that the first tile's rows begin with
  int aligned_input;                          // whether windows may be read in vectors of 4 columns
  int row_pitch;       // bytes from one row of an input stage to the next one
  int step_positions;  // of the output, from one warpgroup's tile to the next one's
  int most_shift;      // positions by which sums begin earlier, where tiles overlap
  int most_overhang;   // outputs by which a tile may lie behind its rows' boundaries, where not
  int odd;             // whether rows of the output may begin at odd ones
};

// [group][channel block][slice][group of taps][tap][plane][quad][channel][4 words]; one thread makes
// 4 words of each plane. Threads of a warp take 4 channels, and of each what lies together in the
// weight: neighbouring taps and quads.
template <class M, class T>
__global__ void __launch_bounds__(128) hopper_pack_kernel(const PackParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.count) return;
  const Schedule& s = p.schedule;
  const int quads = s.slice_words / 4;
  int64_t rest = index;
  const auto take = [&](int64_t count) {
    const int64_t taken = rest % count;
    rest /= count;
    return taken;
  };
  const int64_t row_of_4 = take(4), j = take(s.taps_per_group), tap_group_index = take(s.groups),
                quad = take(quads), channel_slice = take(s.channel_slices),
                row = take(T::channels / 4) * 4 + row_of_4, channel_block = take(p.channel_blocks),
                group = rest;
  const int64_t block = group * p.channel_blocks + channel_block;
  const int64_t stage =
      ((block * s.channel_slices + channel_slice) * s.groups + tap_group_index) * s.taps_per_group +
      j;

  uint32_t words[M::planes][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    typename M::Element value[M::values_per_word];
    weight_word<M>(p, group, channel_block * T::channels + row,
                   channel_slice * s.slice_words + quad * 4 + i, static_cast<int>(tap_group_index),
                   j, value);
    uint32_t of_plane[M::planes];
    M::split(value, of_plane);
#pragma unroll
    for (int plane = 0; plane < M::planes; ++plane) words[plane][i] = of_plane[plane];
  }
#pragma unroll
  for (int plane = 0; plane < M::planes; ++plane)
    *reinterpret_cast<uint4*>(
        p.packed + 4 * (((stage * M::planes + plane) * quads + quad) * T::channels + row)) =
        make_uint4(words[plane][0], words[plane][1], words[plane][2], words[plane][3]);
}

// What all roles of a block know.
template <class M, class T>
struct HopperBlock {
  using Element = typename M::Element;
  using L = HopperLayout<M>;
  const HopperParams& p;
  const Schedule& s;
  HopperBarriers* barriers;
  float* biases;
  char *stages, *inputs, *windows, *weights;  // the first of each
  int channel_block, group;
  Place first;

  __device__ __forceinline__ HopperBlock(const HopperParams& params, uint32_t* shared)
      : p(params), s(params.pipeline.schedule) {
    auto* const bytes = reinterpret_cast<char*>(shared);
    barriers = reinterpret_cast<HopperBarriers*>(bytes);
    biases = reinterpret_cast<float*>(bytes + kHopperBarrierBytes);
    stages = bytes + kHopperBarrierBytes + 4 * T::channels;
    windows = bytes + hopper_fixed_bytes<M, T>();
    weights = windows + p.pipeline.windows * p.pipeline.window_bytes;
    inputs = weights + p.pipeline.weights * p.pipeline.weight_bytes;
    const int64_t rest = blockIdx.x / p.channel_blocks, run = rest % p.runs;
    channel_block = static_cast<int>(blockIdx.x % p.channel_blocks);
    group = static_cast<int>(rest / p.runs);
    first = {static_cast<int>(run / p.tiles), static_cast<int>(run % p.tiles)};
  }

  // Calls visit(place) for the block's tiles.
  template <class Visit>
  __device__ __forceinline__ void for_each_tile(Visit visit) const {
    for (Place place = first; place.batch < p.batch; place.advance(p.step, p.tiles)) visit(place);
  }

  // Where columns are neighbouring positions, rows and windows begin at multiples of 4. Columns before
  // the first one that a product reads:
  __device__ __forceinline__ int lead(const Place& place, const TapGroup& taps) const {
    if (s.load_step != 1) return 0;
    return (static_cast<int>(p.first_position) + place.tile * T::warpgroups_n * p.step_positions +
            taps.first * static_cast<int>(p.phase.shift_step)) &
           3;
  }

  // Where the rows of a tile and a group of taps begin, and the window, counted from there.
  struct Beginning {
    int64_t rows;
    int window;
  };
  __device__ __forceinline__ Beginning beginning(const Place& place, const TapGroup& taps) const {
    const int64_t tile = p.first_position + static_cast<int64_t>(place.tile) * T::warpgroups_n *
                                                p.step_positions * p.phase.in_step;
    const int64_t window = tile + taps.first * p.phase.shift_step - lead(place, taps);
    if (p.pipeline.rows_per_group) return {window, 0};
    const int64_t rows = s.load_step == 1 ? tile & ~int64_t{3} : tile;
    return {rows, static_cast<int>(window - rows)};
  }
  __device__ __forceinline__ const Element* row_of(const Place& place, int channel_slice) const {
    const int64_t channel = group * p.channels_in + static_cast<int64_t>(channel_slice) *
                                                        s.slice_words * M::values_per_word;
    return static_cast<const Element*>(p.input) + place.batch * p.input_batch_stride +
           channel * p.input_channel_stride;
  }
  // Rows lie in shared memory as far behind a multiple of 16 bytes as they do in memory.
  static __device__ __forceinline__ int lead_of(const Element* begin) {
    return static_cast<int>(reinterpret_cast<uint64_t>(begin) % 16);
  }
  __device__ __forceinline__ int channels_left(int channel_slice) const {
    return static_cast<int>(p.channels_in) - channel_slice * s.slice_words * M::values_per_word;
  }

  // What warp 0 copies next: the rows of a slice, or of one of its groups of taps.
  struct NextInput {
    Place place;
    int slice = 0, group = 0;
    Turn turn;
  };

  // Only whole pieces of 16 bytes can be copied; what surrounds the positions that exist is not
  // looked at.
  __device__ __forceinline__ void copy_input(NextInput& next) const {
    if (next.place.batch >= p.batch) return;
    constexpr int element = sizeof(Element);
    const Pipeline& l = p.pipeline;
    const int64_t from = beginning(next.place, tap_group(s, p.phase.taps, next.group)).rows;
    const int64_t begin = larger(from, 0), end = smaller(from + l.row_positions, p.length);
    const int64_t rows = smaller(s.slice_words * M::values_per_word, channels_left(next.slice));
    char* const stage = inputs + next.turn.stage * l.input_bytes;
    uint64_t* const full = barriers->inputs.full + next.turn.stage;
    barrier_wait(barriers->inputs.empty + next.turn.stage, next.turn.parity ^ 1);
    const Element* const row_0 = row_of(next.place, next.slice);
    uint32_t bytes = 0;
    for (int row = threadIdx.x; row < rows && begin < end; row += kCopyThreads) {
      const auto address = reinterpret_cast<uint64_t>(row_0 + row * p.input_channel_stride);
      const uint64_t first = (address + begin * element) & ~uint64_t{15},
                     last = (address + end * element + 15) & ~uint64_t{15};
      const auto skipped = static_cast<int>(first - (address + from * element));
      copy_bulk(stage + lead_of(row_0 + from) + row * p.row_pitch + skipped,
                reinterpret_cast<const void*>(first), static_cast<uint32_t>(last - first), full);
      bytes += static_cast<uint32_t>(last - first);
    }
    barrier_arrive_expecting(full, bytes);
    next.turn.advance(l.inputs);
    if (l.rows_per_group && ++next.group < s.groups) return;
    next.group = 0;
    if (++next.slice < s.channel_slices) return;
    next.slice = 0;
    next.place.advance(p.step, p.tiles);
  }

  // Warp 0. What it copies of the input is some stages ahead of the weights, so that neither waits for
  // room that only the other could make.
  __device__ __forceinline__ void copy() const {
    const Pipeline& l = p.pipeline;
    const int taps = s.channel_slices * s.groups * s.taps_per_group;
    const auto* const from =
        reinterpret_cast<const char*>(p.weights) +
        (group * p.channel_blocks + channel_block) * taps * int64_t{l.weight_bytes};
    const bool copies_weights = threadIdx.x == 0;
    if (s.resident && copies_weights) {
      barrier_arrive_expecting(barriers->weights.full, taps * l.weight_bytes);
      for (int tap = 0; tap < taps; ++tap)
        copy_bulk(weights + tap * l.weight_bytes, from + tap * l.weight_bytes, l.weight_bytes,
                  barriers->weights.full);
    }
    NextInput next{first};
    for (int i = 0; i < l.inputs; ++i) copy_input(next);
    Turn weight;
    for_each_tile([&](const Place&) {
      const char* tap = from;
      for (int slice = 0; slice < s.channel_slices; ++slice)
        for (int g = 0; g < s.groups; ++g) {
          const int count = s.resident ? 0 : tap_group(s, p.phase.taps, g).count;
          for (int j = 0; j < count && copies_weights; ++j) {
            uint64_t* const full = barriers->weights.full + weight.stage;
            barrier_wait(barriers->weights.empty + weight.stage, weight.parity ^ 1);
            barrier_arrive_expecting(full, l.weight_bytes);
            copy_bulk(weights + weight.stage * l.weight_bytes, tap + j * l.weight_bytes,
                      l.weight_bytes, full);
            weight.advance(l.weights);
          }
          tap += s.taps_per_group * l.weight_bytes;
          if (g == s.groups - 1 || l.rows_per_group) copy_input(next);
        }
    });
  }

  // Makes a window of rows of the input, whose first position is `from` and whose first value lies at
  // `rows`. WHOLE: all positions and channels are there. A thread takes 8 words of a column.
  template <bool WHOLE>
  __device__ __forceinline__ void convert(const char* rows, int64_t from, int offset, int channels,
                                          uint4* window) const {
    constexpr int values = M::values_per_word;
    const int quads = s.slice_words / 4;
    int quad = 0, column = threadIdx.x - kCopyThreads;
    for (;; column += kConvertThreads) {
      for (; column >= s.columns; column -= s.columns) quad += 2;
      if (quad >= quads) break;
      const int at = offset + column * s.load_step;
      const bool inside = WHOLE || (from + at >= 0 && from + at < p.length);
      const char* value_of_row =
          rows + at * static_cast<int>(sizeof(Element)) + quad * 4 * values * p.row_pitch;
      Element value[8][values];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int v = 0; v < values; ++v) {
          value[i][v] = 0;
          if (WHOLE || (inside && (quad * 4 + i) * values + v < channels))
            value[i][v] = *reinterpret_cast<const Element*>(value_of_row);
          value_of_row += p.row_pitch;
        }
      uint32_t words[8][M::planes];
#pragma unroll
      for (int i = 0; i < 8; ++i) M::split(value[i], words[i]);
      store_quad(window + quad * s.pitch + column, words);
      store_quad(window + (quad + 1) * s.pitch + column, words + 4);
    }
  }

  // The same where rows are aligned and columns neighbouring positions: a thread takes 4 words of 4
  // columns. 8 lanes in a row write to 2 such pieces of 4 quads (or 4 of 2): since the pitch is odd, to
  // all banks.
  template <bool WHOLE>
  __device__ __forceinline__ void convert_vectors(const char* rows, int64_t from, int offset,
                                                  int channels, uint4* window) const {
    constexpr int values = M::values_per_word;
    using Vector = std::conditional_t<sizeof(Element) == 4, uint4, uint2>;
    const int lane = threadIdx.x % 32, warp = (threadIdx.x - kCopyThreads) / 32;
    const int quads = s.slice_words / 4, few_log2 = quads < 4 ? 1 : 2, few = 1 << few_log2;
    const int first_quad = lane / 2 % few, piece = lane % 2 + (lane >> (1 + few_log2)) * 2;
    const int step = 4 * (32 >> few_log2) * (kConvertThreads / 32);
    for (int column = 4 * (piece + (32 >> few_log2) * warp); column < s.columns; column += step)
      for (int quad = first_quad; quad < quads; quad += few) {
        const char* value_of_row = rows + (offset + column) * static_cast<int>(sizeof(Element)) +
                                   quad * 4 * values * p.row_pitch;
        Element value[4][values][4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int v = 0; v < values; ++v) {
            const Vector vector = *reinterpret_cast<const Vector*>(value_of_row);
            memcpy(value[i][v], &vector, sizeof vector);
            value_of_row += p.row_pitch;
          }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t position = from + offset + column + e;
          const bool inside = WHOLE || (position >= 0 && position < p.length);
          uint32_t words[4][M::planes];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            Element of_word[values];
#pragma unroll
            for (int v = 0; v < values; ++v)
              of_word[v] = WHOLE || (inside && (quad * 4 + i) * values + v < channels)
                               ? value[i][v][e]
                               : Element{0};
            M::split(of_word, words[i]);
          }
          store_quad(window + quad * s.pitch + column + e, words);
        }
      }
  }

  __device__ __forceinline__ void store_quad(uint4* to, const uint32_t (*words)[M::planes]) const {
#pragma unroll
    for (int plane = 0; plane < M::planes; ++plane)
      to[plane * (s.slice_words / 4) * s.pitch] =
          make_uint4(words[0][plane], words[1][plane], words[2][plane], words[3][plane]);
  }

  // Warps 1-3.
  __device__ __forceinline__ void make_windows() const {
    const Pipeline& l = p.pipeline;
    Turn input, window;
    for_each_tile([&](const Place& place) {
      for (int slice = 0; slice < s.channel_slices; ++slice)
        for (int g = 0; g < s.groups; ++g) {
          const TapGroup taps = tap_group(s, p.phase.taps, g);
          const Beginning begin = beginning(place, taps);
          const int64_t from = begin.rows;
          const char* rows =
              inputs + input.stage * l.input_bytes + lead_of(row_of(place, slice) + from);
          auto* to = reinterpret_cast<uint4*>(windows + window.stage * l.window_bytes);
          const int channels = channels_left(slice);
          if (g == 0 || l.rows_per_group)
            barrier_wait(barriers->inputs.full + input.stage, input.parity);
          barrier_wait(barriers->windows.empty + window.stage, window.parity ^ 1);
          const bool whole = from >= 0 && from + l.row_positions <= p.length &&
                             channels >= s.slice_words * M::values_per_word;
          if (p.aligned_input) {
            if (whole)
              convert_vectors<true>(rows, from, begin.window, channels, to);
            else
              convert_vectors<false>(rows, from, begin.window, channels, to);
          } else {
            if (whole)
              convert<true>(rows, from, begin.window, channels, to);
            else
              convert<false>(rows, from, begin.window, channels, to);
          }
          fence_async_proxy();
          barrier_arrive(barriers->windows.full + window.stage);
          window.advance(l.windows);
          if (g == s.groups - 1 || l.rows_per_group) {
            barrier_arrive(barriers->inputs.empty + input.stage);
            input.advance(l.inputs);
          }
        }
    });
  }

  // A warpgroup's sums: of each of M_TILES x N / 8 mma tiles, channels lane/4 and lane/4 + 8 of a
  // warp's 16 by two positions.
  static constexpr int sums_count = T::n / 2;
  using SumsOfTile = float[sums_count];

  // Warps 4-11.
  __device__ __forceinline__ void multiply() const {
    const Pipeline& l = p.pipeline;
    // The same for all lanes, which the compiler should know.
    const int warpgroup =
        __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - kProducerThreads) / 128, 0);
    const int m = warpgroup % T::warpgroups_m, n = warpgroup / T::warpgroups_m;
    const Operand all_weights(weights + m * T::m_tiles * 64 * 16, T::channels * 16,
                              s.slice_words * T::channels * 4),
        all_windows(windows + n * p.step_positions * 16, s.pitch * 16, s.slice_words * s.pitch * 4);
    const int steps = s.slice_words / 8;
    Turn window, weight;
    SumsOfTile chain[T::m_tiles];
    SumsOfTile total[M::chain ? T::m_tiles : 1];
    if (s.resident) barrier_wait(barriers->weights.full, 0);
    for_each_tile([&](const Place& place) {
      for_each_sum([&](int m, int i) {
        chain[m][i] = 0;
        if constexpr (M::chain > 0) total[m][i] = 0;
      });
      hold(chain);
      int chained = 0;
      // The stages that were read before, still to be given back.
      int used_weight = -1, used_window = -1;
      if (s.resident) weight.stage = 0;
      for (int slice = 0; slice < s.channel_slices; ++slice)
        for (int g = 0; g < s.groups; ++g) {
          const TapGroup taps = tap_group(s, p.phase.taps, g);
          Operand left = all_weights.after(weight.stage * l.weight_bytes),
                  right = all_windows.after(window.stage * l.window_bytes + lead(place, taps) * 16);
          barrier_wait(barriers->windows.full + window.stage, window.parity);
          for (int j = 0; j < taps.count; ++j) {
            if (!s.resident) barrier_wait(barriers->weights.full + weight.stage, weight.parity);
            wgmma_fence();
          // A commit that does not follow products at once becomes a group of its own.
#pragma unroll 1
            for (int step = 0; step < steps; step += 2) {
#pragma unroll
              for (int i = step; i < step + 2; ++i)
#pragma unroll
                for (int m = 0; m < T::m_tiles; ++m)
                  M::multiply(chain[m], left.step(i).after(m * 64 * 16), right.step(i));
              wgmma_commit();
            }
            right = right.after(s.column_step * 16);
            if (M::chain > 0) {
              chained += steps;
              if (chained + steps > M::chain) {
                wgmma_wait<0>();
                hold(chain);
                chained = 0;
                for_each_sum([&](int m, int i) {
                  total[M::chain ? m : 0][i] += chain[m][i];
                  chain[m][i] = 0;
                });
                hold(chain);
              }
            }
            if (s.resident) {
              left = left.after(l.weight_bytes);
              if (j > 0) continue;
            }
            wgmma_wait<1>();
            give_back(barriers->windows.empty, used_window);
            used_window = -1;
            if (s.resident) continue;
            give_back(barriers->weights.empty, used_weight);
            used_weight = weight.stage;
            weight.advance(l.weights);
            left = all_weights.after(weight.stage * l.weight_bytes);
          }
          if (s.resident) weight.stage += s.taps_per_group;
          if (taps.count == 0) {
            wgmma_wait<0>();
            give_back(barriers->windows.empty, used_window);
          }
          used_window = window.stage;
          window.advance(l.windows);
        }
      wgmma_wait<0>();
      hold(chain);
      give_back(barriers->windows.empty, used_window);
      give_back(barriers->weights.empty, used_weight);
      if constexpr (M::chain > 0) for_each_sum([&](int m, int i) { chain[m][i] += total[m][i]; });
#pragma unroll
      for (int i = 0; i < T::m_tiles; ++i) write(chain[i], place, m * T::m_tiles + i, n);
    });
  }

  static __device__ __forceinline__ void hold(SumsOfTile (&sums)[T::m_tiles]) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m) wgmma_hold(sums[m]);
  }

  template <class Visit>
  static __device__ __forceinline__ void for_each_sum(const Visit& visit) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int i = 0; i < sums_count; ++i) visit(m, i);
  }

  // Nobody but wgmma has read the stage, so one thread speaks for its warp.
  static __device__ __forceinline__ void give_back(uint64_t* empty, int stage) {
    if (stage < 0) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + stage);
  }

  // Writes the sums of 64 channels, the m-th such.
  __device__ __forceinline__ void write(SumsOfTile& sums, const Place& place, int m, int n) const {
    const int first_row = m * 64 + threadIdx.x / 32 % 4 * 16;  // of the warp's 16
    const int64_t first_channel = static_cast<int64_t>(channel_block) * T::channels + first_row;
    const Rows rows{(place.batch * p.groups + group) * p.channels_out + first_channel,
                    static_cast<int>(smaller(16, p.channels_out - first_channel)),
                    (static_cast<int64_t>(place.tile) * T::warpgroups_n + n) * p.step_positions};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float bias = biases[first_row + threadIdx.x % 32 / 4 + 8 * h];
#pragma unroll
      for (int i = 0; i < T::n_tiles; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) sums[i * 4 + h * 2 + e] += bias;
    }
    if (p.phase.out_step != 1)
      write_apart(sums, rows);
    else if (p.most_overhang == 0 && p.odd == 0 && rows.count == 16 && rows.first >= p.most_shift &&
             rows.first + p.step_positions <= p.phase.positions)
      write_neighbours<true>(sums, rows);
    else
      write_neighbours<false>(sums, rows);
  }

  // A warp's 16 rows of the output, of which `count` exist, and the first position of the tile. Where
  // tiles overlap, sums begin `most_shift` positions earlier, and each row writes `step_positions` from
  // its last boundary before `first` on: whole sectors.
  struct Rows {
    int64_t row;
    int count;
    int64_t first;
  };
  __device__ __forceinline__ Element* row_of_output(int64_t row) const {
    return static_cast<Element*>(p.output) + row * p.length_out + p.phase.out_offset;
  }
  // How many outputs a row begins behind a sector's boundary. Tiles begin at one, seen from the row.
  __device__ __forceinline__ int behind(int64_t row) const {
    return static_cast<int>(row * p.length_out % L::aligned_outputs);
  }

  // Through shared memory, where rows lie as far behind a boundary as in memory: 16 bytes a lane,
  // neighbours in a row, are what memory takes fastest. 128 bytes of a row at a time. WHOLE: all rows
  // begin at even outputs and write whole sectors only.
  template <bool WHOLE>
  __device__ __forceinline__ void write_neighbours(const SumsOfTile& sums, const Rows& rows) const {
    const int lane = threadIdx.x % 32, row_of_lane = lane / 8, piece = lane % 8;
    constexpr int element = sizeof(Element), outputs = 16 / element;
    char* const stage = stages + (threadIdx.x - kProducerThreads) / 32 * L::stage_bytes;
    // Where this lane's pairs go.
    int at[2];
    char* to[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      at[h] = lane % 4 * 2 + behind(rows.row + row) - p.most_shift;
      to[h] = stage + row * L::stage_pitch + at[h] * element;
    }
    // And what it writes: where, and from which output to which one counted from there.
    Element* out[4];
    int begin[4], end[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = rows.row + row_of_lane + 4 * i, boundary = rows.first - behind(row);
      const int64_t first = p.most_shift > 0 ? larger(boundary, 0) : rows.first;
      const int64_t last =
          smaller((p.most_shift > 0 ? boundary : rows.first) + p.step_positions, p.phase.positions);
      out[i] = row_of_output(row) + boundary + piece * outputs;
      begin[i] = static_cast<int>(first - boundary) - piece * outputs;
      end[i] = row_of_lane + 4 * i < rows.count
                   ? static_cast<int>(last - boundary) - piece * outputs
                   : begin[i];
    }
    const char* const from = stage + row_of_lane * L::stage_pitch + piece * 16;
#pragma unroll
    for (int chunk = 0; chunk < T::n + (WHOLE ? 0 : L::staged); chunk += L::staged) {
      if (chunk == T::n && p.most_overhang == 0) break;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = WHOLE ? 0 : -L::aligned_outputs; i < L::staged + L::aligned_outputs; i += 8) {
          const int tile = (chunk + i) / 8;
          if (chunk + i < 0 || tile >= T::n_tiles) continue;
          // Only the first and the last tiles may lie outside.
          const auto inside = [&](int e) {
            return (i >= L::aligned_outputs || at[h] + i + e >= 0) &&
                   (i + 8 + (WHOLE ? 0 : L::aligned_outputs) <= L::staged ||
                    at[h] + i + e < L::staged);
          };
          const float first = sums[tile * 4 + h * 2], second = sums[tile * 4 + h * 2 + 1];
          if (!WHOLE && p.odd) {
            if (inside(0)) reinterpret_cast<Element*>(to[h])[i] = M::to(first);
            if (inside(1)) reinterpret_cast<Element*>(to[h])[i + 1] = M::to(second);
          } else if (inside(0)) {
            M::store_pair(to[h] + i * element, first, second);
          }
        }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const char* const sixteen = from + 4 * i * L::stage_pitch;
        const uint4 vector = *reinterpret_cast<const uint4*>(sixteen);
        if (WHOLE ? chunk + L::staged + L::aligned_outputs <= T::n || chunk < end[i]
                  : begin[i] <= chunk && chunk + outputs <= end[i])
          *reinterpret_cast<uint4*>(out[i] + chunk) = vector;
        else if (!WHOLE && begin[i] < chunk + outputs && chunk < end[i])
#pragma unroll 1
          for (int e = 0; e < outputs; ++e)
            if (begin[i] <= chunk + e && chunk + e < end[i])
              out[i][chunk + e] = reinterpret_cast<const Element*>(sixteen)[e];
      }
      __syncwarp();
    }
  }

  // Where a row's positions are not neighbours.
  __device__ __forceinline__ void write_apart(const SumsOfTile& sums, const Rows& rows) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      const int64_t position = rows.first + lane % 4 * 2;
      Element* const to = row_of_output(rows.row + row) + position * p.phase.out_step;
      const int64_t end = row < rows.count ? p.phase.positions - position : 0;
#pragma unroll
      for (int i = 0; i < T::n_tiles; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (i * 8 + e < end) to[(i * 8 + e) * p.phase.out_step] = M::to(sums[i * 4 + h * 2 + e]);
    }
  }
};

template <class M, class T>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_kernel(const __grid_constant__ HopperParams p) {
  using Element = typename M::Element;
  FASTCONV1D_SHARED(shared);
  const HopperBlock<M, T> block(p, shared);
  HopperBarriers& barriers = *block.barriers;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kMostStages; ++i) {
      barrier_init(barriers.inputs.full + i, kCopyThreads);
      barrier_init(barriers.inputs.empty + i, kConvertThreads);
      barrier_init(barriers.windows.full + i, kConvertThreads);
      barrier_init(barriers.windows.empty + i, kConsumerThreads / 32);
      barrier_init(barriers.weights.full + i, 1);
      barrier_init(barriers.weights.empty + i, kConsumerThreads / 32);
    }
    fence_async_proxy();
  }
  for (int i = threadIdx.x; i < T::channels; i += kHopperThreads) {
    const int64_t channel = static_cast<int64_t>(block.channel_block) * T::channels + i;
    const bool exists = p.bias != nullptr && channel < p.channels_out;
    block.biases[i] =
        exists
            ? M::from(static_cast<const Element*>(p.bias)[block.group * p.channels_out + channel])
            : 0;
  }
  __syncthreads();
  if (threadIdx.x < kProducerThreads) {
    keep_registers<kProducerRegisters>();
    if (threadIdx.x < kCopyThreads)
      block.copy();
    else
      block.make_windows();
  } else {
    take_registers<kConsumerRegisters>();
    block.multiply();
  }
}

constexpr int64_t kMostOverlappingDepth = 640;  // words of the reduction, for each product

template <class M, class T>
struct Hopper {
  using Element = typename M::Element;

  // A phase of a convolution, cut for this tile.
  struct Cut {
    Phase phase;
    Pipeline pipeline;
    int64_t channels_in, channels_out, channel_blocks;  // of one group
    int64_t tiles, runs, step_positions, most_shift, most_overhang;
    int64_t packed_threads;
  };

  static Cut cut(const ConvArgs& a, int64_t r) {
    Cut c{};
    c.phase = phase_of(a, r);
    c.channels_in = a.channels_in / a.groups;
    c.channels_out = a.channels_out / a.groups;
    c.channel_blocks = ceil_div(c.channels_out, T::channels);
    // Where memory is the limit, tiles overlap so that only whole sectors are written; where products
    // are, these would be too dear.
    constexpr int aligned = HopperLayout<M>::aligned_outputs;
    const int64_t behind =
        c.phase.out_step == 1 ? aligned - gcd(aligned, a.length_out % aligned) : 0;
    const int64_t depth = c.phase.taps * ceil_div(c.channels_in, M::values_per_word) * M::products;
    const bool overlap = behind > 0 && depth <= kMostOverlappingDepth;
    c.most_shift = overlap ? behind : 0;
    c.most_overhang = overlap ? 0 : behind;
    c.step_positions = T::n - (overlap ? aligned : 0);
    c.tiles = ceil_div(c.phase.positions + c.most_shift, T::warpgroups_n * c.step_positions);
    c.runs = runs_of(a.batch * c.tiles, a.groups * c.channel_blocks, a.multiprocessors);
    c.pipeline = pipeline_of(
        {(T::warpgroups_n - 1) * c.step_positions + T::n, T::channels, M::planes,
         M::values_per_word, sizeof(Element), shared_budget(1) - hopper_fixed_bytes<M, T>(),
         ceil_div(a.batch * c.tiles, c.runs) >= 4},
        c.phase, c.channels_in);
    const Schedule& s = c.pipeline.schedule;
    c.packed_threads = a.groups * c.channel_blocks * s.channel_slices * s.groups *
                       s.taps_per_group * (s.slice_words / 4) * T::channels;
    return c;
  }

  static int64_t workspace(const ConvArgs& a) {
    int64_t bytes = 0;
    for (int64_t r = 0; r < phase_count(a); ++r)
      bytes = larger(bytes, cut(a, r).packed_threads * 16 * M::planes);
    return bytes;
  }

  static int launch(const ConvArgs& a, void* stream) {
    for (int64_t r = 0; r < phase_count(a); ++r) {
      const int error = launch_phase(a, cut(a, r), stream);
      if (error != 0) return error;
    }
    return 0;
  }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    const Schedule& s = c.pipeline.schedule;
    if (s.taps_per_group == 0) return 1;  // cudaErrorInvalidValue: `why_not` should have said so
    auto* const packed = static_cast<uint32_t*>(a.workspace);
    int error = fastconv1d::launch(
        hopper_pack_kernel<M, T>, dim3(static_cast<unsigned>(ceil_div(c.packed_threads, 128))),
        dim3(128), 0, stream,
        PackParams{a.weight, packed, c.phase, s, c.channels_in, c.channels_out, a.groups,
                   a.kernel_size, a.transposed, c.channel_blocks, c.packed_threads, 0});
    if (error != 0) return error;
    const int64_t bytes = hopper_fixed_bytes<M, T>() + stage_bytes(c.pipeline);
    const auto kernel = hopper_kernel<M, T>;
    error = set_shared_limit(kernel, bytes);
    if (error != 0) return error;
    return fastconv1d::launch(
        kernel, dim3(static_cast<unsigned>(a.groups * c.channel_blocks * c.runs)),
        dim3(kHopperThreads), bytes, stream,
        HopperParams{a.input, packed, a.bias, a.output, c.phase, c.pipeline, a.batch, a.length,
                     a.length_out, a.input_batch_stride, a.input_channel_stride, c.channels_in,
                     c.channels_out, a.groups, c.channel_blocks, c.tiles, c.runs,
                     Place{static_cast<int>(c.runs / c.tiles), static_cast<int>(c.runs % c.tiles)},
                     c.phase.first_shift - c.most_shift * c.phase.in_step,
                     c.pipeline.schedule.load_step == 1 &&
                         reinterpret_cast<uintptr_t>(a.input) % (4 * sizeof(Element)) == 0 &&
                         a.input_channel_stride % 4 == 0 &&
                         (a.batch == 1 || a.input_batch_stride % 4 == 0),
                     // As many bytes behind a multiple of 16 as in memory.
                     c.pipeline.row_bytes - 16 +
                         static_cast<int>(a.input_channel_stride * sizeof(Element) % 16),
                     static_cast<int>(c.step_positions), static_cast<int>(c.most_shift),
                     static_cast<int>(c.most_overhang), a.length_out % 2 != 0});
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_HOPPER_LIBRARY(...) FASTCONV1D_TILE_LIBRARY(fastconv1d::Hopper, __VA_ARGS__)
