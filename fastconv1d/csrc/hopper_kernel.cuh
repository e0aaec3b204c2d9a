// The dense convolution on the tensor cores of Hopper (sm_90a, wgmma), NCL to NCL.
//
// One block computes a tile of CHANNELS columns by some output positions of one phase, and
// then more: blocks take turns on the tiles. Its warps have roles, and hand stages of shared memory
// to each other by barriers:
//
//   warps 0-2   copy rows of the input as they lie in memory        -> inputs
//   warp 3      copies the packed weights of one tap and slice      -> weights
//   warps 4-    two to four warpgroups multiply the input (64 positions x 8 words, from registers) by
//               weights (8 words x N channels, from shared memory), and write their sums
//
// A word is one fp32 value or two channels of a 16-bit type. Of a step's 8 words a lane needs words
// lane % 4 and lane % 4 + 4 at two positions, wherever they lie: it reads them one by one, so any shift,
// stride, dilation and alignment is legal, values are rounded or split on the way, and a row is read
// from memory once for all taps. Weights lie [plane][quad of 4 words][channel][4 words], as wgmma takes
// them; where all fit, they stay. fp32-accurate mode (Halves) makes a word of two channels too, splits each
// value in a high and a low fp16 part and adds three products; warpgroups look through a slice for its
// largest value first, by which all are scaled, unless the input was split before (hopper_split.cuh).
//
// A column is an output channel. Of a transposed convolution of stride s it is every s-th output of one: all
// outputs are then those of an ordinary convolution with more columns, in one launch, and are woven on their
// way out (`Weave` in schedule.h). Where that would take many zeros, phases run one after the other.
//
// Roofline: copies of rows keep some 48 KB on their way without registers: boxes of rows that begin
// alike modulo 16 bytes, one instruction each, or where rows are laid out otherwise, row by row. While
// one warpgroup writes, the others multiply.
#pragma once
#include <type_traits>

#include "hopper_split.cuh"
#include "output.cuh"

namespace fastconv1d {

// WARPGROUPS of M_TILES x 64 positions by N channels each. PRESPLIT: another kernel splits the input for Halves. FOLDED:
// taps may be words for these.
template <int WARPGROUPS, int M_TILES, int N, bool PRESPLIT = false, bool FOLDED = false>
struct HopperTile {
  static constexpr bool presplit = PRESPLIT, folded = FOLDED;
  static constexpr int warpgroups = WARPGROUPS, m_tiles = M_TILES, channels = N;
  static constexpr int positions = 64 * M_TILES;  // of a warpgroup
  static constexpr int threads = 128 + 128 * WARPGROUPS;
  // Of a thread that copies, and of one that multiplies. A block has no more than it begins with: or else some
  // wait for registers for ever.
  static constexpr int producer_registers = WARPGROUPS > 3 ? 48 : 40,
                       consumer_registers =
                           (threads * (65536 / threads / 8 * 8) - 128 * producer_registers) /
                           (128 * WARPGROUPS) / 8 * 8;
  // Registers beside its sums.
  static constexpr int room = consumer_registers - M_TILES * N / 2;
};

// Steps whose values are read together, so that reading them takes no longer than their products.
template <class M, class T>
FASTCONV1D_HD constexpr int steps_at_once() {
  return T::m_tiles * T::channels > 128 || T::m_tiles > 1 || M::sets > 1 ? 1 : 2;
}

// Whether chains of products are cut, and their sums added up apart.
template <class M, class T>
FASTCONV1D_HD constexpr bool cuts_chains() {
  return M::chain > 0 && T::m_tiles * T::channels <= 96;
}

constexpr int kInputWarps = 3;  // one thread takes too long to copy many boxes
constexpr int kProducerThreads = 128, kMostWarpgroups = 4;

// Of the finite values of a slice, without their signs, as bits of fp32: the largest, and the smallest that
// is not 0, less 1.
struct Range {
  uint32_t most, least;
};

// What a block keeps before biases, sums on their way out and the pipeline's stages.
struct HopperShared {
  StageBarriers<kMostStages> inputs, weights;
  // Which tiles are the block's. Here, since all roles know it, and have few registers to keep it in.
  int channel_block, group;
  Place first;
  // Of each warpgroup's warps, what they found of a slice's values, for slices in turn.
  Range ranges[kMostWarpgroups][2][4];
};
constexpr int64_t kHopperSharedBytes = 640;
static_assert(sizeof(HopperShared) <= kHopperSharedBytes);

template <class M, class T>
FASTCONV1D_HD constexpr int64_t hopper_fixed_bytes() {
  return round_up(kHopperSharedBytes + T::warpgroups * ((M::sets > 1 ? 8 : 4) * T::channels +
                                                        OutputLayout<M, T::m_tiles>::bytes),
                  128);
}

struct HopperParams {
  RowBoxes boxes;  // of the input
  const void* input;
  const uint32_t* weights;  // packed
  const int* scales;        // of each group's and channel block's channels, for Halves: log2
  const void* bias;
  OutputParams output;
  Phase phase;
  Pipeline pipeline;
  int64_t batch, length, input_batch_stride;
  int64_t channels_in, channels_out, groups;  // channels of one group
  int64_t block_channels;                     // of the output, that T::channels columns have
  int64_t channel_blocks, tiles, runs;        // `runs` blocks take turns on pairs of batch x tiles
  int slices_of_share;  // of those of a tile: blockIdx.y says which, if several blocks share a tile
  float* shares;        // then: the sums of each share and tile of a warpgroup, thread by thread
  Place step;           // from a warpgroup's tile to its next
  Place of_warpgroup[kMostWarpgroups];  // from a block's first tile to each warpgroup's
  int64_t first_position;               // of the input, that the first tile's window begins with
  int64_t row_bytes;                    // from one row of the input to the next one
  int64_t tile_step;                    // of the input, from one tile to the next
  int in_boxes;                         // whether the input is copied in boxes
  int leads;                            // whether these show what is before a row
  int reach;          // from the first position that a part of a tile's taps sees to the last one
  SplitParams split;  // what the input was split from, if it was
};

// What all roles of a block know.
template <class M, class T>
struct HopperBlock {
  using Element = typename M::Element;
  static constexpr int64_t element = sizeof(Element);
  static constexpr int values = M::values_per_word;
  static constexpr int rows_of_quad = 4 * values;
  // Whether taps may be words, which takes room for an address of each value that a lane reads. Tiles that split values
  // are slower for it elsewhere, and so have one of their own.
  static constexpr bool folds = M::sets > 1 ? T::folded : T::room >= (values > 1 ? 72 : 80);
  static constexpr bool scans = M::sets > 1 && !T::presplit;  // whether it looks for scales
  // Whether it leaves out what is padding alone. Halves have no registers for it.
  static constexpr bool skips = M::sets == 1;
  const HopperParams& p;
  const Pipeline& l;
  HopperShared* shared;
  float* biases;                           // of each warpgroup
  int* scales;                             // likewise, of the weights, where they have such: log2
  char *output_stages, *inputs, *weights;  // the first of each

  __device__ __forceinline__ HopperBlock(const HopperParams& params, uint32_t* memory)
      : p(params), l(params.pipeline) {
    auto* const bytes = reinterpret_cast<char*>(memory);
    shared = reinterpret_cast<HopperShared*>(bytes);
    biases = reinterpret_cast<float*>(bytes + kHopperSharedBytes);
    scales = reinterpret_cast<int*>(biases + T::warpgroups * T::channels);
    output_stages =
        bytes + kHopperSharedBytes + T::warpgroups * (M::sets > 1 ? 8 : 4) * T::channels;
    inputs = bytes + hopper_fixed_bytes<M, T>();
    weights = inputs + l.inputs * l.input_bytes;
  }

  // The block's slices: how many, and where they begin.
  __device__ __forceinline__ int slices() const {
    const int left = l.slices - first_slice();
    return left < p.slices_of_share ? left : p.slices_of_share;
  }
  __device__ __forceinline__ int first_slice() const {
    return static_cast<int>(blockIdx.y) * p.slices_of_share;
  }

  // Calls visit(place) for the block's tiles, which are those of its first warpgroup.
  template <class Visit>
  __device__ __forceinline__ void for_each_tile(Visit visit) const {
    for (Place place = shared->first; place.batch < p.batch; place.advance(p.step, p.tiles))
      visit(place);
  }
  // A warpgroup's tile, where its block's first one has that.
  __device__ __forceinline__ Place tile_of(Place place, int warpgroup) const {
    place.advance(p.of_warpgroup[warpgroup], p.tiles);
    return place;
  }
  // Warpgroups that have a tile, where the first one has that.
  __device__ __forceinline__ int busy(const Place& place) const {
    int count = 1;
    while (count < T::warpgroups && tile_of(place, count).batch < p.batch) ++count;
    return count;
  }

  // The rows of a slice, seen from a part's first tap.
  struct Source {
    int row;           // of the input, rows one after the other, the slice's first
    uint32_t address;  // of the first position that products read, in that row: the low half
    int position;      // the same, counted in the input's
    int before, left;  // positions from there to the begin of a row, if ahead, and to its end
    int rows;  // that exist from here on; none where a part of the taps sees nothing but padding
    bool
        within;  // whether all positions that are read, or looked at for a scale, exist, or are zero
    bool whole;  // whether all rows do, too
  };
  __device__ __forceinline__ Source source(const Place& place, int slice, int part) const {
    const int position = static_cast<int>(p.first_position) +
                         place.tile * static_cast<int>(p.tile_step) +
                         part * l.taps * static_cast<int>(p.phase.shift_step);
    const int channels = l.words * values, channel = l.folded > 0 ? 0 : slice * channels,
              left = static_cast<int>(p.length) - position,
              rows = skips && (position < -p.reach || left <= 0)
                         ? 0
                         : static_cast<int>(p.channels_in) - channel;
    const int row = shared->group * static_cast<int>(p.channels_in) + channel;
    // Where taps are words, rows that do not exist are not read, but looked at for a scale.
    int needed = channels;
    if (folds && l.folded > 0) needed = scans ? 1 << (l.kinds_log2 + l.box_rows_log2) : 0;
    const bool within = (position >= (scans ? 16 / element : 0) || !p.leads) &&
                        (p.in_boxes || first_of_block(l.blocks - 1) + l.block_positions <= left);
    return {place.batch * static_cast<int>(p.boxes.rows_per_batch) + row,
            static_cast<uint32_t>(reinterpret_cast<uint64_t>(p.input)) +
                static_cast<uint32_t>(element) *
                    (place.batch * static_cast<uint32_t>(p.input_batch_stride) + position) +
                row * static_cast<uint32_t>(p.row_bytes),
            position,
            position < 0 ? -position : 0,
            left < 0 ? 0 : left,
            rows,
            within,
            within && rows >= needed};
  }
  // What a warpgroup reads of the next slice; its rows begin as those of this one.
  __device__ __forceinline__ Source next_slice(Source from) const {
    from.rows -= l.words * values;
    from.whole = from.within && from.rows >= l.words * values;
    return from;
  }
  // Positions by which the rows of a kind begin in a stage before that one.
  __device__ __forceinline__ int ahead(const Source& from, int kind) const {
    return static_cast<int>((from.address + kind * static_cast<uint32_t>(p.row_bytes)) % 16 /
                            static_cast<uint32_t>(element));
  }

  // Of a warpgroup's block, counted from the first position that products read.
  __device__ __forceinline__ int first_of_block(int block) const { return block * l.block_step; }

  // A box has the rows of a kind in a block. Lanes find out side by side where theirs are, since that takes
  // longer than to begin copying. Those that would show padding alone are left out: the copy engines of all
  // multiprocessors together make some 1,000 bytes of zeros a cycle.
  __device__ __forceinline__ void copy_boxes(int warp, const Place& place, int slice, int part,
                                             char* stage, uint64_t* full) const {
    const int kinds = 1 << l.kinds_log2, of_warpgroup = l.blocks * kinds;
    const int box_bytes = l.row_pitch << l.box_rows_log2;
    const int boxes = busy(place) * of_warpgroup;
#pragma unroll 1
    for (int i = warp + kInputWarps * static_cast<int>(threadIdx.x % 32); i < boxes;
         i += kInputWarps * 32) {
      const int warpgroup = i / of_warpgroup;
      const Source from = source(tile_of(place, warpgroup), slice, part);
      if (skips && from.rows <= 0) continue;
      const int kind = i & (kinds - 1), row = from.row + kind,
                of_row = row & ((1 << l.alike_log2) - 1),
                block = (i - warpgroup * of_warpgroup) >> l.kinds_log2;
      barrier_expect(full, box_bytes);
      copy_box(stage + (i >> l.kinds_log2) * l.block_rows * l.row_pitch + kind * box_bytes,
               &p.boxes.maps[of_row],
               from.position + first_of_block(block) + p.boxes.leads[of_row] - ahead(from, kind),
               row >> l.alike_log2, full);
    }
    __syncwarp();  // all of them are expected when one thread arrives
  }

  // Row by row, where boxes cannot be: whole pieces of 16 bytes.
  __device__ __forceinline__ void copy_rows(int warp, const Place& place, int slice, int part,
                                            char* stage, uint64_t* full) const {
    const int kinds = 1 << l.kinds_log2, blocks = busy(place) * l.blocks;
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      const int warpgroup = block / l.blocks;
      const Place tile = tile_of(place, warpgroup);
      const Source from = source(tile, slice, part);
      const char* const first =
          static_cast<const char*>(p.input) + tile.batch * p.input_batch_stride * element +
          (shared->group * p.channels_in + (l.folded > 0 ? 0 : slice * l.words * values)) *
              p.row_bytes;
      const int begin_of_block = from.position + first_of_block(block - warpgroup * l.blocks);
#pragma unroll 1
      for (int row = warp; row < from.rows && row < kinds << l.box_rows_log2; row += kInputWarps) {
        const int kind = row & (kinds - 1),
                  place_of_row =
                      block * l.block_rows + (kind << l.box_rows_log2) + (row >> l.kinds_log2);
        const char* const of_row = first + row * p.row_bytes;
        // Where the row's place in the stage begins and ends, and what exists in between.
        const char* const origin = of_row + (begin_of_block - ahead(from, kind)) * element;
        const char* const begin = origin < of_row ? piece_of(of_row) : origin;
        const char* const end_of_row = piece_of(of_row + p.length * element + 15);
        const char* const end =
            origin + l.row_pitch < end_of_row ? origin + l.row_pitch : end_of_row;
        if (begin >= end) continue;
        const auto bytes = static_cast<uint32_t>(end - begin);
        barrier_expect(full, bytes);
        copy_bulk(stage + place_of_row * l.row_pitch + (begin - origin), begin, bytes, full);
      }
    }
  }
  // The 16 bytes that an address lies in.
  static __device__ __forceinline__ const char* piece_of(const char* address) {
    return reinterpret_cast<const char*>(reinterpret_cast<uint64_t>(address) & ~uint64_t{15});
  }

  // Warps 0-2; row by row, one thread of each. What surrounds the positions that exist is not looked at.
  template <bool BOXES>
  __device__ __forceinline__ void copy_inputs(int warp) const {
    if constexpr (T::presplit) wait_for_kernel_before();  // that splits them
    Turn input;
    for_each_tile([&](const Place& place) {
#pragma unroll 1
      for (int slice = 0; slice < slices(); ++slice)
#pragma unroll 1
        for (int part = 0; part < l.parts; ++part) {
          char* const stage = inputs + input.stage * l.input_bytes;
          uint64_t* const full = shared->inputs.full + input.stage;
          barrier_wait(shared->inputs.empty + input.stage, input.parity ^ 1);
          const int of_tile = first_slice() + slice;
          if (BOXES)
            copy_boxes(warp, place, of_tile, part, stage, full);
          else
            copy_rows(warp, place, of_tile, part, stage, full);
          if (threadIdx.x % 32 == 0) barrier_arrive(full);
          input.advance(l.inputs);
        }
    });
  }

  // One thread of warp 3.
  __device__ __forceinline__ void copy_weights() const {
    wait_for_kernel_before();  // that packs them
    const int taps = l.slices * l.parts * l.taps;
    const auto* const from =
        reinterpret_cast<const char*>(p.weights) +
        (shared->group * p.channel_blocks + shared->channel_block) * taps * int64_t{l.weight_bytes};
    if (l.resident) {
      barrier_arrive_expecting(shared->weights.full, taps * l.weight_bytes);
#pragma unroll 1
      for (int tap = 0; tap < taps; ++tap)
        copy_bulk(weights + tap * l.weight_bytes, from + tap * int64_t{l.weight_bytes},
                  l.weight_bytes, shared->weights.full);
      return;
    }
    Turn weight;
    for_each_tile([&](const Place&) {
      const char* of_part = from + first_slice() * l.parts * l.taps * int64_t{l.weight_bytes};
      for (int slice = 0; slice < slices(); ++slice)
        for (int part = 0; part < l.parts; ++part) {
          const int count = taps_of_part(l, p.phase, part);
#pragma unroll 1
          for (int j = 0; j < count; ++j) {
            uint64_t* const full = shared->weights.full + weight.stage;
            barrier_wait(shared->weights.empty + weight.stage, weight.parity ^ 1);
            barrier_arrive_expecting(full, l.weight_bytes);
            copy_bulk(weights + weight.stage * l.weight_bytes, of_part + j * l.weight_bytes,
                      l.weight_bytes, full);
            weight.advance(l.weights);
          }
          of_part += l.taps * int64_t{l.weight_bytes};
        }
    });
  }

  // Makes zeros of what does not exist in a warpgroup's blocks of a stage. Some threads for each row; boxes may have
  // zeros already beside rows that exist.
  __device__ __forceinline__ void clear(char* stage, const Source& from, int warpgroup) const {
    const int rows = 1 << (l.kinds_log2 + l.box_rows_log2), of_row = 128 / rows,
              row = threadIdx.x % 128 / of_row, lane = threadIdx.x % of_row,
              kind = row >> l.box_rows_log2, k = row - (kind << l.box_rows_log2);
    const bool exists = kind + (k << l.alike_log2) < from.rows, has_zeros = !p.leads;
#pragma unroll 1
    for (int block = 0; block < l.blocks; ++block) {
      // Counted from where the row begins in the stage.
      const int first = first_of_block(block) - ahead(from, kind),
                begin = has_zeros ? 0 : from.before - first,
                end = exists ? has_zeros ? l.block_positions : from.left - first : 0;
      char* const of_stage =
          stage + ((warpgroup * l.blocks + block) * l.block_rows + row) * l.row_pitch;
      if (begin >= l.block_positions || end <= 0) {
        for (int piece = lane; piece < l.row_pitch / 16; piece += of_row)
          reinterpret_cast<uint4*>(of_stage)[piece] = make_uint4(0, 0, 0, 0);
        continue;
      }
      auto* const to = reinterpret_cast<Element*>(of_stage);
      for (int position = lane; position < begin; position += of_row) to[position] = 0;
      for (int position = end + lane; position < l.block_positions; position += of_row)
        to[position] = 0;
    }
    fence_async_proxy();  // before the next rows are copied there
    warpgroup_sync(warpgroup + 1);
  }

  // Rounds what is in a warpgroup's blocks of a stage, where no boxes have done so.
  __device__ __forceinline__ void round_values(char* stage, int warpgroup) const {
    const int words = l.input_bytes / T::warpgroups / 4;
    auto* const word = reinterpret_cast<uint32_t*>(stage) + warpgroup * words;
#pragma unroll 4
    for (int i = threadIdx.x % 128; i < words; i += 128) word[i] = round_tf32(float_of(word[i]));
    fence_async_proxy();
    warpgroup_sync(warpgroup + 1);
  }

  // From the first position that so many taps of a tile see to the last one.
  __device__ __forceinline__ int reach(int taps) const {
    return (T::positions - 1) * static_cast<int>(p.phase.in_step) +
           (taps - 1) * static_cast<int>(p.phase.shift_step);
  }

  // Where a lane looks up whether a slice has values too small for the scale that it was split with: some lanes have a
  // block of channels each, in all blocks of positions that a part of the taps sees.
  struct SplitBlocks {
    const uint16_t* first;
    int count;  // of positions
  };
  static constexpr int split_lanes = 4;  // of blocks of channels that a slice may be in
  __device__ __forceinline__ SplitBlocks split_blocks(const Place& place, const Source& from,
                                                      int taps) const {
    const int last = from.position + reach(taps),
              first_block = from.before > 0 ? 0 : from.position / kSplitPositions,
              end = (last < p.length ? last : static_cast<int>(p.length) - 1) / kSplitPositions + 1;
    return {p.split.marks +
                (place.batch * p.split.position_blocks() + first_block) * p.split.channel_blocks(),
            place.batch >= p.batch || last < 0 ? 0 : end - first_block};
  }
  // The same of a lane, in one slice.
  __device__ __forceinline__ uint32_t small_of_lane(const SplitBlocks& blocks, int slice) const {
    const int channels = l.words * values,
              first = shared->group * static_cast<int>(p.channels_in) + slice * channels,
              lane = threadIdx.x % 32, block = first / kSplitChannels + lane % split_lanes,
              all = static_cast<int>(p.split.channel_blocks());
    uint32_t small = 0;
    if (block * kSplitChannels < first + channels && block < all)
#pragma unroll 1
      for (int i = lane / split_lanes; i < blocks.count; i += 32 / split_lanes)
        small |= SplitParams::is_small(blocks.first[i * all + block]);
    return small;
  }
  // log2 of the scale for what a warpgroup's tile sees alone, where that of its batch's words cannot do.
  __device__ __forceinline__ int scale_of_tile(const Place& place) const {
    const auto taps = static_cast<int>(larger(p.phase.taps, 1));
    const SplitBlocks blocks = split_blocks(place, source(place, 0, 0), taps);
    const int all = static_cast<int>(p.split.channel_blocks()),
              channels = static_cast<int>(p.channels_in), first = shared->group * channels,
              end = (first + channels - 1) / kSplitChannels + 1;
    uint32_t exponent = 0;
#pragma unroll 1
    for (int i = 0; i < blocks.count; ++i)
#pragma unroll 1
      for (int block = first / kSplitChannels + static_cast<int>(threadIdx.x % 32); block < end;
           block += 32) {
        const uint32_t of_block = SplitParams::exponent_of(blocks.first[i * all + block]);
        exponent = of_block > exponent ? of_block : exponent;
      }
    return Scale::log2_for(static_cast<int>(largest_of_warp(exponent)));
  }
  // Has a warpgroup's blocks of a stage hold the input's values in place of their words.
  __device__ __forceinline__ void restore(char* stage, const Source& from, const Place& place,
                                          int slice, int warpgroup) const {
    const int rows = l.words * values, of_row = 128 / rows,
              row = static_cast<int>(threadIdx.x) % 128 / of_row, lane = threadIdx.x % of_row,
              channel = slice * rows + row;
    const bool exists = channel < p.channels_in;
    const float* const input = p.split.input + place.batch * p.split.batch_stride +
                               (shared->group * p.channels_in + channel) * p.split.channel_stride;
#pragma unroll 1
    for (int block = 0; block < l.blocks; ++block) {
      auto* const of_stage = reinterpret_cast<float*>(
          stage + ((warpgroup * l.blocks + block) * l.block_rows + row) * l.row_pitch);
      const int first = from.position + first_of_block(block) - ahead(from, 0);
#pragma unroll 1
      for (int i = lane; i < l.block_positions; i += of_row) {
        const int position = first + i;
        of_stage[i] = exists && position >= 0 && position < p.length ? input[position] : 0.f;
      }
    }
    fence_async_proxy();
    warpgroup_sync(warpgroup + 1);
  }

  // Lets the weights of a part's taps go by.
  __device__ __forceinline__ void pass_weights(Turn& weight, int taps) const {
    if (l.resident) {
      weight.stage += l.taps;
      return;
    }
#pragma unroll 1
    for (int j = 0; j < taps; ++j) {
      barrier_wait(shared->weights.full + weight.stage, weight.parity);
      give_back(shared->weights.empty, weight.stage);
      weight.advance(l.weights);
    }
  }

  // The range of what is in a warpgroup's blocks of a stage.
  __device__ __forceinline__ Range range_of(const char* stage, int warpgroup, int turn) const {
    const int pieces = l.input_bytes / T::warpgroups / 16, warp = threadIdx.x / 32 % 4;
    const auto* const from = reinterpret_cast<const uint4*>(stage) + warpgroup * pieces;
    Range range{0, ~0u};
    const auto widen = [&](const Range& by) {
      range.most = by.most > range.most ? by.most : range.most;
      range.least = by.least < range.least ? by.least : range.least;
    };
#pragma unroll 2
    for (int i = threadIdx.x % 128; i < pieces; i += 128) {
      const uint4 piece = from[i];
      for (const uint32_t word : {piece.x, piece.y, piece.z, piece.w}) {
        widen({finite_size(word), (word & 0x7fffffffu) - 1});
      }
    }
    range = {largest_of_warp(range.most), smallest_of_warp(range.least)};
    Range* const ranges = shared->ranges[warpgroup][turn];
    if (threadIdx.x % 32 == 0) ranges[warp] = range;
    warpgroup_sync(warpgroup + 1);
#pragma unroll 1
    for (int i = 0; i < 4; ++i) widen(ranges[i]);
    return range;
  }

  // A step's 8 words at a lane's positions, as wgmma takes them: [mma tile][plane].
  using Fragment = uint32_t[T::m_tiles][M::planes][4];
  static constexpr int at_once = steps_at_once<M, T>();
  using Fragments = Fragment[2][at_once];
  static constexpr int sums_of_tile = 128 * T::m_tiles * T::channels / 2;  // of a warpgroup
  // A warpgroup's sums: of each of m_tiles x N / 8 mma tiles, two channels by two positions.
  using Sums = float[T::m_tiles][M::sets][T::channels / 2];

  using Writer = OutputWriter<M, T::m_tiles, T::channels>;

  // Where a lane's words of each quad lie, of the first position that it reads: bytes from a stage's first
  // row on, of both values of a word, or of both rows of an mma tile. In registers where these suffice,
  // since an address more for each value is what a step takes longest for.
  static constexpr int kept = folds ? 2 : 1;
  template <int STEPS>
  struct Quads {
    int at[kept][2 * STEPS];
    int from_value, from_row,
        from_tile;  // bytes to a word's second value, a tile's second row, the next tile
  };

  // Where taps are words: where a value's first position lies in a block, but for what its row, so many bytes
  // behind the first one, begins further on, modulo 16.
  struct FoldedValue {
    int at, row_bytes;
  };
  __device__ __forceinline__ FoldedValue* folded_values() const {
    return reinterpret_cast<FoldedValue*>(weights + l.weights * l.weight_bytes);
  }
  // All threads, before any other work: these places, and the rows of zeros.
  __device__ __forceinline__ void begin_folded() const {
    const int thread = static_cast<int>(threadIdx.x), of_row = l.row_pitch / 16,
              zeros = 1 << l.kinds_log2;  // number of that row
    for (int i = thread; i < l.slices * l.words * values; i += T::threads) {
      const int channel = i / l.folded, tap = i - channel * l.folded;
      const bool exists = channel < p.channels_in;
      folded_values()[i] = {
          exists ? channel * l.row_pitch + tap * static_cast<int>(p.phase.shift_step * element)
                 : zeros * l.row_pitch,
          exists ? static_cast<int>(channel * p.row_bytes % 16) : 0};
    }
    for (int i = thread; i < l.inputs * T::warpgroups * l.blocks * of_row; i += T::threads) {
      const int block = i / of_row;
      reinterpret_cast<uint4*>(inputs +
                               (block * l.block_rows + zeros) * l.row_pitch)[i - block * of_row] =
          make_uint4(0, 0, 0, 0);
    }
  }

  // A slice in a stage, as a tap sees it.
  struct Slice {
    const char* rows;  // at the tap's first position
    // For Halves. Values outside of `span` from `least` on, as bits without the sign, count as zeros.
    float scale;
    uint32_t least, span;
  };

  // How a tap's values are found. PAIRS: of a 16-bit type, two neighbours are one word. SOME: only those of
  // a certain size.
  template <bool PAIRS, bool SOME = false>
  struct Way {};

  // What a lane reads for a step: of each mma tile and half, values of a word at two positions, or pairs.
  template <bool PAIRS>
  struct Raw {
    std::conditional_t<PAIRS, uint32_t, Element> of[T::m_tiles][2][PAIRS ? 1 : 2][values];
  };

  template <bool PAIRS, int STEPS>
  __device__ __forceinline__ void read(Raw<PAIRS>& raw, const Slice& slice, int step,
                                       const Quads<STEPS>& quads) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
        for (int h = 0; h < (PAIRS ? 1 : 2); ++h)
#pragma unroll
          for (int v = 0; v < values; ++v) {
            auto& value = raw.of[m][half][h][v];
            const bool of_value = values > 1 && v > 0, of_row = h > 0;
            const bool found = kept > 1 && (values > 1 ? of_value : of_row);
            const char* from = slice.rows + quads.at[found][2 * step + half];
            if (of_value && !found) from += quads.from_value;
            if (of_row && (values > 1 || !found)) from += quads.from_row;
            if (m > 0) from += quads.from_tile;
            value = *reinterpret_cast<const std::decay_t<decltype(value)>*>(from);
          }
  }

  template <bool PAIRS, bool SOME>
  static __device__ __forceinline__ void split(Way<PAIRS, SOME>, const Raw<PAIRS>& raw,
                                               Fragment& fragment, const Slice& slice) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t words[M::planes];
          if constexpr (PAIRS) {
            words[0] = halves_of(raw.of[m][half][0][0], raw.of[m][half][0][1], h);
          } else {
            Element value[values];
#pragma unroll
            for (int v = 0; v < values; ++v) value[v] = raw.of[m][half][h][v];
            if constexpr (SOME)
#pragma unroll
              for (int v = 0; v < values; ++v)
                if ((bits_of(value[v]) & 0x7fffffffu) - slice.least >= slice.span) value[v] = 0;
            if constexpr (T::presplit && !SOME) {
              words[0] = halves_of(bits_of(value[0]), bits_of(value[values - 1]), false);
              words[M::planes - 1] = halves_of(bits_of(value[0]), bits_of(value[values - 1]), true);
            } else {
              M::split(value, words, slice.scale);
            }
          }
#pragma unroll
          for (int plane = 0; plane < M::planes; ++plane)
            fragment[m][plane][half * 2 + h] = words[plane];
        }
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int plane = 0; plane < M::planes; ++plane) wgmma_hold(fragment[m][plane]);
  }

  // Multiplies a slice by the weights of one tap. Without branches: ptxas serialises products that it finds
  // one between.
  template <bool PAIRS, bool SOME, int STEPS>
  __device__ __forceinline__ void multiply_tap(Way<PAIRS, SOME> way, Sums& sums,
                                               Fragments& fragments, const Slice& slice,
                                               const Quads<STEPS>& quads,
                                               const Operand& right) const {
    // Groups of products: an even number, for two fragments that take turns from tap to tap.
    constexpr int groups = STEPS / at_once;
    static_assert(groups % 2 == 0);
    // Values are read while products of the group before are made, unless one instruction after another
    // makes a word of a value where it is: ptxas serialises products then.
    constexpr bool early = values > 1;
    Raw<PAIRS> raw[at_once];
    const auto read_group = [&](int group) {
#pragma unroll
      for (int i = 0; i < at_once; ++i)
        read<PAIRS, STEPS>(raw[i], slice, group * at_once + i, quads);
    };
    if (early) read_group(0);
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      // The products of what was here before are over.
      wgmma_wait<1>();
      if (!early) read_group(group);
      auto& fragment = fragments[group % 2];
#pragma unroll
      for (int i = 0; i < at_once; ++i) split(way, raw[i], fragment[i], slice);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < at_once; ++i)
#pragma unroll
        for (int m = 0; m < T::m_tiles; ++m)
          M::multiply(sums[m], fragment[i][m], right.step(group * at_once + i));
      wgmma_commit();
      if (early && group + 1 < groups) read_group(group + 1);
    }
  }

  // Warps 4-11. Each warpgroup has biases of its own.
  __device__ __forceinline__ void keep_biases() const {
    const int thread = static_cast<int>(threadIdx.x) - kProducerThreads, warpgroup = thread / 128;
    for (int i = thread % 128; i < T::channels; i += 128)
      biases[warpgroup * T::channels + i] = bias_of<M>(
          p.bias, shared->group,
          column_of(p.output.weave, static_cast<int64_t>(shared->channel_block) * T::channels + i)
              .channel,
          p.channels_out);
    if constexpr (M::sets > 1) {
      wait_for_kernel_before();
      for (int i = thread % 128; i < T::channels; i += 128)
        scales[warpgroup * T::channels + i] =
            p.scales[(shared->group * p.channel_blocks + shared->channel_block) * T::channels + i];
    }
    warpgroup_sync(warpgroup + 1);
  }

  // For slices of STEPS steps.
  template <int STEPS>
  __device__ __forceinline__ void multiply() const {
    // The same for all lanes, which the compiler should know.
    const int warpgroup =
        __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - kProducerThreads) / 128, 0);
    const Writer writer{p.output, output_stages + warpgroup * OutputLayout<M, T::m_tiles>::bytes,
                        warpgroup + 1};
    const Operand all_weights(weights, T::channels * 16, l.words * T::channels * 4);
    // Whether 16-bit values lie in aligned pairs in all rows and tiles, if in those of one.
    const bool in_pairs = element == 2 && p.phase.in_step == 1 && p.row_bytes % 4 == 0 &&
                          p.input_batch_stride % 2 == 0 && l.folded == 0;
    const int stride_bytes = static_cast<int>(p.phase.in_step * element);
    // Where a lane's first word lies, where rows begin with a stage's first position.
    const int output = writer.position_of_lane(0, 0),
              block = warpgroup * l.blocks + output / l.block_outputs,
              lane_word = static_cast<int>(threadIdx.x % 4),
              first_row =
                  block * l.block_rows * l.row_pitch + output % l.block_outputs * stride_bytes,
              first_word = first_row + lane_word * values * l.row_pitch;
    Quads<STEPS> quads;
    quads.from_value = l.row_pitch;
    quads.from_row = stride_bytes * writer.between();
    quads.from_tile = stride_bytes * 16;
    const int second = values > 1 ? quads.from_value : quads.from_row;
    keep_in_register(quads.from_value);
    keep_in_register(quads.from_row);
    keep_in_register(quads.from_tile);
    const auto find_quads = [&](const Source& from, int slice) {
      if constexpr (folds)
        if (l.folded > 0) {
          const FoldedValue* const folded =
              folded_values() + (slice * l.words + lane_word) * values;
#pragma unroll
          for (int quad = 0; quad < 2 * STEPS; ++quad)
#pragma unroll
            for (int i = 0; i < kept; ++i) {
              const FoldedValue value = folded[quad * 4 * values + (values > 1 ? i : 0)];
              quads.at[i][quad] = first_row + (values > 1 ? 0 : i * second) + value.at +
                                  static_cast<int>((from.address + value.row_bytes) % 16);
              keep_in_register(quads.at[i][quad]);
            }
          return;
        }
#pragma unroll
      for (int quad = 0; quad < 2 * STEPS; ++quad)
#pragma unroll
        for (int i = 0; i < kept; ++i) {
          quads.at[i][quad] = first_word + i * second + quad * (rows_of_quad * l.row_pitch) +
                              ahead(from, quad >> l.quads_of_kind_log2) * static_cast<int>(element);
          keep_in_register(quads.at[i][quad]);
        }
    };
    Turn input, weight;
    Sums sums;
    constexpr bool cuts = cuts_chains<M, T>();
    float total[cuts ? T::m_tiles : 1][cuts ? T::channels / 2 : 1];
    Fragments fragments;
    int turn = 0;
    bool paired = false;  // how the tap before was read
    bool ready = false;   // whether the next tap's weights are known to be there
    if (l.resident && l.slices > 0) barrier_wait(shared->weights.full, 0);
    // Code takes long to come when it runs for the first time. So one warpgroup rehearses a long way out, without
    // products and without writing, while others are on their way to the first products. Not where outputs are woven or
    // apart: what it rehearsed would not be what takes long there.
    bool rehearses = M::sets == 1 && Writer::is_long && p.shares == nullptr &&
                     p.output.weave.stride == 1 && p.output.out_step == 1 &&
                     warpgroup == T::warpgroups - 1 &&
                     tile_of(shared->first, warpgroup).batch < p.batch;
    for (Place of_block = shared->first; of_block.batch < p.batch;
         rehearses ? void(rehearses = false) : of_block.advance(p.step, p.tiles)) {
      const Place place = tile_of(of_block, warpgroup);
      // Of the largest value so far, at least, and log2 of theirs.
      int exponent = 0, scale = Scale::log2_for(0);
      bool wide = false;  // whether the scale of its batch cannot do
      if constexpr (T::presplit)
        if (place.batch < p.batch) {
          wide = p.split.wide[place.batch] != 0;
          scale = wide ? scale_of_tile(place) : p.split.scales[place.batch];
        }
      for_each_sum([&](int m, int i) {
#pragma unroll
        for (int set = 0; set < M::sets; ++set) sums[m][set][i] = 0;
        if constexpr (cuts) total[m][i] = 0;
      });
      hold(sums);
      int chained = 0;
      Source from;
      uint32_t next_small = 0;
      int used_weight = -1;  // the stage that was read before, still to be given back
      if (l.resident) weight.stage = 0;
#pragma unroll 1
      for (int slice = 0; slice < slices() && !rehearses; ++slice)
#pragma unroll 1
        for (int part = 0; part < l.parts; ++part) {
          const int taps = taps_of_part(l, p.phase, part);
          char* const stage = inputs + input.stage * l.input_bytes;
          // Halves have no registers to keep it.
          const bool anew = l.parts > 1 || l.folded > 0 || slice == 0;
          from =
              anew || M::sets > 1 ? source(place, first_slice() + slice, part) : next_slice(from);
          if (anew) find_quads(from, first_slice() + slice);
          if constexpr (T::presplit)
            if (anew) {
              next_small = small_of_lane(split_blocks(place, from, taps), first_slice() + slice);
            }
          Slice seen{stage, 1, 0, 0};
          // Of a tap's first value, counted in values: all tiles have an even number of positions.
          int first = static_cast<int>(reinterpret_cast<uint64_t>(p.input) / 2 + p.first_position +
                                       part * l.taps * p.phase.shift_step);
          barrier_wait(shared->inputs.full + input.stage, input.parity);
          if (skips && from.rows <= 0) {
            wgmma_settle();
            give_back(shared->weights.empty, used_weight);
            used_weight = -1;
            pass_weights(weight, taps);
            ready = false;
            give_back(shared->inputs.empty, input.stage);
            input.advance(l.inputs);
            continue;
          }
          if (!from.whole) clear(stage, from, warpgroup);
          if (M::boxes == BoxForm::rounded && !p.in_boxes) round_values(stage, warpgroup);
          uint32_t smallest = ~0u;  // less 1
          bool small = false;       // whether some values are too small for this scale
          if constexpr (T::presplit) {
            small = wide || largest_of_warp(next_small) > 0;
            if (slice + 1 < slices())
              next_small =
                  small_of_lane(split_blocks(place, from, taps), first_slice() + slice + 1);
            if (small) restore(stage, from, place, first_slice() + slice, warpgroup);
          }
          if (M::sets > 1 && (scans || small)) {
            const Range range = range_of(stage, warpgroup, turn);
            turn ^= 1;
            smallest = range.least;
            const int largest = static_cast<int>(smaller(range.most >> 23, Scale::most));
            if (scans && largest > exponent) {
              const int old = scale;
              // One more, so that this happens less often.
              exponent = largest < Scale::most ? largest + 1 : largest;
              scale = Scale::log2_for(exponent);
              if (slice + part > 0) {
                scale_sums(sums, scale - old);
                if constexpr (cuts)
                  for_each_sum([&](int m, int i) {
                    total[m][i] = Scale::without(total[m][i], old - scale);
                  });
              }
            }
            seen.scale = Scale::power_of_two(scale);
            if (scans) small = smallest + 1 > 0 && smallest + 1 < Scale::least_whole(scale);
          }
#pragma unroll 1
          for (int j = 0; j < taps; ++j) {
            if (!l.resident && !ready)
              barrier_wait(shared->weights.full + weight.stage, weight.parity);
            const Operand right = all_weights.after(weight.stage * l.weight_bytes);
            if constexpr (M::sets > 1) {
              if (small)
                multiply_small<STEPS>(sums, fragments, seen, quads, right, scale, smallest + 1);
              else
                multiply_tap(Way<false>(), sums, fragments, seen, quads, right);
            } else if constexpr (element == 2) {
              const bool pairs = in_pairs && first % 2 == 0;
              if (pairs != paired) wgmma_settle();
              paired = pairs;
              if (pairs)
                multiply_tap(Way<true>(), sums, fragments, seen, quads, right);
              else
                multiply_tap(Way<false>(), sums, fragments, seen, quads, right);
            } else {
              multiply_tap(Way<false>(), sums, fragments, seen, quads, right);
            }
            const int stage_before = used_weight;
            if (l.resident) {
              ++weight.stage;
            } else {
              used_weight = weight.stage;
              weight.advance(l.weights);
              ready = barrier_is_over(shared->weights.full + weight.stage, weight.parity);
            }
            // All products of the tap before are over.
            give_back(shared->weights.empty, stage_before);
            if constexpr (cuts) {
              chained += STEPS;
              if (chained + STEPS > M::chain) {
                wgmma_wait<0>();
                hold(sums);
                chained = 0;
                for_each_sum([&](int m, int i) {
                  total[m][i] += sums[m][0][i];
                  sums[m][0][i] = 0;
                });
                hold(sums);
              }
            }
            first += static_cast<int>(p.phase.shift_step);
            seen.rows += l.tap_bytes;
          }
          if (l.resident) weight.stage += l.taps - taps;
          give_back(shared->inputs.empty, input.stage);
          input.advance(l.inputs);
        }
      wgmma_wait<0>();
      hold(sums);
      give_back(shared->weights.empty, used_weight);
      if constexpr (M::sets > 1) {
        const int* const of_channels = scales + warpgroup * T::channels + threadIdx.x % 4 * 2;
        for_each_sum([&](int m, int i) {
          float sum = sums[m][0][i] + sums[m][1][i] * (1 / M::low);
          if constexpr (cuts) sum += total[m][i];
          sums[m][0][i] = Scale::without(sum, scale + of_channels[i / 4 * 8 + i % 2]);
        });
      }
      if (place.batch >= p.batch) continue;
      if (p.shares == nullptr)
        write(writer, sums, place, warpgroup, rehearses);
      else
        keep(sums, place);
    }
  }

  // Multiplies the sums so far by a power of two.
  static __device__ __forceinline__ void scale_sums(Sums& sums, int log2) {
    wgmma_wait<0>();
    hold(sums);
    for_each_sum([&](int m, int i) {
#pragma unroll
      for (int set = 0; set < M::sets; ++set)
        sums[m][set][i] = Scale::without(sums[m][set][i], -log2);
    });
    hold(sums);
  }

  // A tap of a slice that has values too small for its scale: again with larger scales until all have had
  // their turn. Rare, and slow.
  template <int STEPS>
  __device__ __forceinline__ void multiply_small(Sums& sums, Fragments& fragments, Slice seen,
                                                 const Quads<STEPS>& quads, const Operand& right,
                                                 int scale, uint32_t smallest) const {
    seen.least = Scale::least_whole(scale);
    seen.span = 0x80000000u - seen.least;
    int of_these = scale;
    // Sums of low parts are not cut, and may be too large for larger scales.
    wgmma_settle();
    hold(sums);
    for_each_sum([&](int m, int i) {
      sums[m][0][i] += sums[m][1][i] * (1 / M::low);
      sums[m][1][i] = 0;
    });
    hold(sums);
    for (int step = 0;; ++step) {
      multiply_tap(Way<false, true>(), sums, fragments, seen, quads, right);
      if (seen.least <= smallest || step == Scale::most_steps) break;
      const int next = Scale::next(of_these);
      scale_sums(sums, next - of_these);
      of_these = next;
      seen.scale = Scale::power_of_two(next);
      const uint32_t least = step + 1 < Scale::most_steps ? Scale::least_whole(next) : 0;
      seen.span = seen.least - least;
      seen.least = least;
    }
    scale_sums(sums, scale - of_these);
  }

  static __device__ __forceinline__ void hold(Sums& sums) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int set = 0; set < M::sets; ++set) wgmma_hold(sums[m][set]);
  }

  template <class Visit>
  static __device__ __forceinline__ void for_each_sum(const Visit& visit) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int i = 0; i < T::channels / 2; ++i) visit(m, i);
  }

  // Where a thread's sums of a share are kept: neighbouring threads side by side.
  __device__ __forceinline__ void keep(const Sums& sums, const Place& place) const {
    const int64_t tiles = p.batch * p.tiles,
                  tile = (shared->group * p.channel_blocks + shared->channel_block) * tiles +
                         place.batch * p.tiles + place.tile,
                  all = p.groups * p.channel_blocks * tiles;
    float* const to = p.shares + (blockIdx.y * all + tile) * sums_of_tile + threadIdx.x % 128;
    for_each_sum([&](int m, int i) { to[(m * T::channels / 2 + i) * 128] = sums[m][0][i]; });
  }

  __device__ __forceinline__ void write(const Writer& writer, Sums& sums, const Place& place,
                                        int warpgroup, bool rehearses) const {
    const int64_t first_channel = static_cast<int64_t>(shared->channel_block) * p.block_channels;
    writer.write(sums, biases + warpgroup * T::channels,
                 {(place.batch * p.groups + shared->group) * p.channels_out + first_channel,
                  static_cast<int>(smaller(p.block_channels, p.channels_out - first_channel)),
                  static_cast<int64_t>(place.tile) * (T::positions - p.output.overlap)},
                 rehearses);
  }
};

template <class M, class T>
__global__ void __launch_bounds__(T::threads, 1)
    hopper_kernel(const __grid_constant__ HopperParams p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  auto& shared = *reinterpret_cast<HopperShared*>(memory);
  // A thread for each stage, since one takes 20 cycles a barrier, and another warp's first one for the rest.
  if (threadIdx.x < kMostStages) {
    const int stage = static_cast<int>(threadIdx.x);
    barrier_init(shared.inputs.full + stage, kInputWarps);
    barrier_init(shared.inputs.empty + stage, 4 * T::warpgroups);
    barrier_init(shared.weights.full + stage, 1);
    barrier_init(shared.weights.empty + stage, 4 * T::warpgroups);
    fence_async_proxy();
  } else if (threadIdx.x == 32) {
    Digits<uint32_t> digits{blockIdx.x};
    shared.channel_block = static_cast<int>(digits.take(p.channel_blocks));
    const uint32_t run = digits.take(p.runs);
    shared.group = static_cast<int>(digits.rest);
    Digits<uint32_t> first{T::warpgroups * run};
    shared.first.tile = static_cast<int>(first.take(p.tiles));
    shared.first.batch = static_cast<int>(first.rest);
  }
  if constexpr (HopperBlock<M, T>::folds)
    if (p.pipeline.folded > 0) HopperBlock<M, T>(p, memory).begin_folded();
  __syncthreads();
  if (threadIdx.x < kProducerThreads) {
    keep_registers<T::producer_registers>();
    const HopperBlock<M, T> block(p, memory);
    const int warp = static_cast<int>(threadIdx.x / 32);
    if (warp < kInputWarps && p.in_boxes)
      block.template copy_inputs<true>(warp);
    else if (threadIdx.x % 32 > 0)
      return;
    else if (warp < kInputWarps)
      block.template copy_inputs<false>(warp);
    else
      block.copy_weights();
  } else {
    take_registers<T::consumer_registers>();
    const HopperBlock<M, T> block(p, memory);
    block.keep_biases();
    if constexpr (HopperBlock<M, T>::at_once > 1)
      block.template multiply<4>();
    else if (p.pipeline.words == 32)
      block.template multiply<4>();
    else
      block.template multiply<2>();
  }
}

struct SharesParams {
  const float* shares;
  const void* bias;
  OutputParams output;
  int64_t batch, tiles, channels_out, groups, block_channels, channel_blocks;
  int count;  // of shares
};

// Adds up the shares of each warpgroup's tile, in their order, and writes the sums. A block has one tile.
template <class M, class T>
__global__ void __launch_bounds__(128, 2) hopper_add_kernel(const SharesParams p) {
  FASTCONV1D_SHARED(memory);
  using Writer = OutputWriter<M, T::m_tiles, T::channels>;
  constexpr int64_t sums_of_tile = HopperBlock<M, T>::sums_of_tile;
  auto* const biases = reinterpret_cast<float*>(memory);
  const int64_t rows = p.batch * p.tiles, tile = blockIdx.x, row = tile % rows, block = tile / rows,
                group = block / p.channel_blocks, channel_block = block % p.channel_blocks,
                channel = channel_block * p.block_channels;
  const Place place{static_cast<int>(row / p.tiles), static_cast<int>(row % p.tiles)};
  for (int i = static_cast<int>(threadIdx.x); i < T::channels; i += 128)
    biases[i] = bias_of<M>(p.bias, group,
                           column_of(p.output.weave, channel_block * T::channels + i).channel,
                           p.channels_out);
  wait_for_kernel_before();
  typename Writer::Sums sums;
  const float* from = p.shares + tile * sums_of_tile + threadIdx.x;
#pragma unroll
  for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
    for (int i = 0; i < T::channels / 2; ++i) sums[m][0][i] = from[(m * T::channels / 2 + i) * 128];
#pragma unroll 1
  for (int share = 1; share < p.count; ++share) {
    from += p.groups * p.channel_blocks * rows * sums_of_tile;
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int i = 0; i < T::channels / 2; ++i)
        sums[m][0][i] += from[(m * T::channels / 2 + i) * 128];
  }
  warpgroup_sync(1);
  const Writer writer{p.output, reinterpret_cast<char*>(biases + T::channels), 1};
  writer.write(sums, biases,
               {(place.batch * p.groups + group) * p.channels_out + channel,
                static_cast<int>(smaller(p.block_channels, p.channels_out - channel)),
                static_cast<int64_t>(place.tile) * (T::positions - p.output.overlap)});
}

}  // namespace fastconv1d
