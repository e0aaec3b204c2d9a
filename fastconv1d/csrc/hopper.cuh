// The dense convolution on the tensor cores of Hopper (sm_90a, wgmma), NCL to NCL.
//
// One block computes a tile of CHANNELS output channels by some output positions of one phase, and
// then more: blocks take turns on the tiles. Its warps have roles, and hand stages of shared memory
// to each other by barriers:
//
//   warps 0-2   copy rows of the input as they lie in memory        -> inputs
//   warp 3      copies the packed weights of one tap and slice      -> weights
//   warps 4-11  two warpgroups multiply the input (64 positions x 8 words, from registers) by weights
//               (8 words x N channels, from shared memory), and write their sums
//
// A word is one fp32 value or two channels of a 16-bit type. Of a step's 8 words a lane needs words
// lane % 4 and lane % 4 + 4 at two positions, wherever they lie: it reads them one by one, so any shift,
// stride, dilation and alignment is legal, values are rounded or split on the way, and a row is read
// from memory once for all taps. Weights lie [plane][quad of 4 words][channel][4 words], as wgmma takes
// them; where all fit, they stay. fp32-accurate mode (Halves) makes a word of two channels too, splits each
// value in a high and a low fp16 part and adds three products; warpgroups look through a slice for its
// largest value first, by which all are scaled.
//
// Roofline: copies of rows keep some 48 KB on their way without registers: boxes of rows that begin
// alike modulo 16 bytes, one instruction each, or where rows are laid out otherwise, row by row. While
// one warpgroup writes, the other one multiplies.
#pragma once
#include <type_traits>

#include "output.cuh"
#include "tile.cuh"

namespace fastconv1d {

// Two warpgroups of M_TILES x 64 positions by N channels each.
template <int M_TILES, int N>
struct HopperTile {
  static constexpr int m_tiles = M_TILES, channels = N;
  static constexpr int positions = 64 * M_TILES;  // of a warpgroup
};

// Steps whose values are read together, so that reading them takes no longer than their products.
template <class M, class T>
FASTCONV1D_HD constexpr int steps_at_once() {
  return T::m_tiles * T::channels * M::products > 128 || T::m_tiles > 1 ? 1 : 2;
}

// Whether chains of products are cut, and their sums added up apart.
template <class M, class T>
FASTCONV1D_HD constexpr bool cuts_chains() {
  return M::chain > 0 && T::m_tiles * T::channels <= 96;
}

constexpr int kInputWarps = 3;  // one thread takes too long to copy many boxes
constexpr int kProducerThreads = 128, kConsumerThreads = 256;
constexpr int kHopperThreads = kProducerThreads + kConsumerThreads;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // of a thread
// A block has no more than it begins with: or else some wait for registers for ever.
static_assert(kProducerThreads * kProducerRegisters + kConsumerThreads * kConsumerRegisters <=
              kHopperThreads * 168);

// A barrier for each stage that is full, and one for each that is empty again.
template <int STAGES>
struct StageBarriers {
  uint64_t full[STAGES], empty[STAGES];
};
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
  Range ranges[2][2][4];
};
constexpr int64_t kHopperSharedBytes = 512;
static_assert(sizeof(HopperShared) <= kHopperSharedBytes);

template <class M, class T>
FASTCONV1D_HD constexpr int64_t hopper_fixed_bytes() {
  return round_up(kHopperSharedBytes + (M::sets > 1 ? 16 : 8) * T::channels +
                      2 * OutputLayout<M, T::m_tiles>::bytes,
                  128);
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
  BoxMap boxes[kMostKinds];   // of the rows that begin alike modulo 16 bytes
  int box_leads[kMostKinds];  // positions by which they begin before their rows
  const void* input;
  const uint32_t* weights;  // packed
  const int* scales;        // of each group's and channel block's channels, for Halves: log2
  const void* bias;
  OutputParams output;
  Phase phase;
  Pipeline pipeline;
  int64_t batch, length, input_batch_stride;
  int64_t channels_in, channels_out, groups;  // channels of one group
  int64_t channel_blocks, tiles, runs;        // `runs` blocks take turns on batch x tiles
  Place step;                                 // from a block's tile to its next
  int64_t first_position;  // of the input, that the first tile's window begins with
  int64_t row_bytes;       // from one row of the input to the next one
  int64_t tile_step;       // of the input, from one tile to the next
  int in_boxes;            // whether the input is copied in boxes
  int leads;               // whether these show what is before a row
  int64_t rows_per_batch;  // of the boxes' rows
};

// [group][channel block][slice][part][tap][plane][quad][channel][4 words]; one thread makes 4 words of
// each plane. Threads of a warp take 4 channels, and of each what lies together in the weight:
// neighbouring taps and quads.
struct HopperPackParams : WeightParams {
  Pipeline pipeline;
  int* scales;
};

// A block finds the scale of an output channel's weights.
template <class M, class T>
__global__ void __launch_bounds__(128) hopper_scale_kernel(const HopperPackParams p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const int64_t block = blockIdx.x / T::channels, row = blockIdx.x % T::channels;
  const int64_t group = block / p.channel_blocks,
                channel = block % p.channel_blocks * T::channels + row;
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < p.channels_in * p.phase.taps; i += 128) {
    const float weight = weight_of<float>(p, group, channel, i / p.phase.taps, i % p.phase.taps);
    const uint32_t bits = bits_of(weight) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  most = largest_of_warp(most);
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = most;
  __syncthreads();
  for (int warp = 0; warp < 4; ++warp) most = memory[warp] > most ? memory[warp] : most;
  if (threadIdx.x == 0)
    p.scales[blockIdx.x] = Scale::log2_for(static_cast<int>(smaller(most >> 23, Scale::most)));
}
template <class M, class T>
__global__ void __launch_bounds__(128) hopper_pack_kernel(const HopperPackParams p) {
  let_next_kernel_begin();
  if constexpr (M::sets > 1) wait_for_kernel_before();  // that finds the scales
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.count) return;
  const Pipeline& l = p.pipeline;
  const int quads = l.words / 4;
  constexpr int values = M::values_per_word;
  Digits digits{index};
  const int64_t row_of_4 = digits.take(4), tap = digits.take(l.taps), part = digits.take(l.parts),
                quad = digits.take(quads), slice = digits.take(l.slices),
                row = digits.take(T::channels / 4) * 4 + row_of_4,
                channel_block = digits.take(p.channel_blocks), group = digits.rest;
  const int64_t stage =
      (((group * p.channel_blocks + channel_block) * l.slices + slice) * l.parts + part) * l.taps +
      tap;
  const int64_t kind = quad >> l.quads_of_kind_log2, j = quad - (kind << l.quads_of_kind_log2);

  float scale = 1;
  if constexpr (M::sets > 1)
    scale = Scale::power_of_two(
        p.scales[(group * p.channel_blocks + channel_block) * T::channels + row]);
  uint32_t words[M::planes][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    typename M::Element value[values];
#pragma unroll
    for (int v = 0; v < values; ++v)
      value[v] = weight_of<typename M::Element>(
          p, group, channel_block * T::channels + row,
          slice * l.words * values + kind + (((j * 4 + i) * values + v) << l.alike_log2),
          part * l.taps + tap);
    uint32_t of_plane[M::planes];
    if constexpr (M::sets > 1)
      M::split(value, of_plane, scale);
    else
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
  static constexpr int64_t element = sizeof(Element);
  static constexpr int values = M::values_per_word;
  static constexpr int rows_of_quad = 4 * values;
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
    scales = reinterpret_cast<int*>(biases + 2 * T::channels);
    output_stages = bytes + kHopperSharedBytes + (M::sets > 1 ? 16 : 8) * T::channels;
    inputs = bytes + hopper_fixed_bytes<M, T>();
    weights = inputs + l.inputs * l.input_bytes;
  }

  // Calls visit(place) for the block's tiles.
  template <class Visit>
  __device__ __forceinline__ void for_each_tile(Visit visit) const {
    for (Place place = shared->first; place.batch < p.batch; place.advance(p.step, p.tiles))
      visit(place);
  }

  // The rows of a slice, seen from a part's first tap.
  struct Source {
    int row;           // of the input, rows one after the other, the slice's first
    uint32_t address;  // of the first position that products read, in that row: the low half
    int position;      // the same, counted in the input's
    int before, left;  // positions from there to the begin of a row, if ahead, and to its end
    int rows;          // that exist
    bool whole;        // whether all that is read, or looked at for a scale, exists or is zero
  };
  __device__ __forceinline__ Source source(const Place& place, int slice, int part) const {
    const int position = static_cast<int>(p.first_position) +
                         place.tile * static_cast<int>(p.tile_step) +
                         part * l.taps * static_cast<int>(p.phase.shift_step);
    const int channels = l.words * values, channel = slice * channels,
              left = static_cast<int>(p.length) - position,
              rows = static_cast<int>(p.channels_in) - channel;
    const int row = shared->group * static_cast<int>(p.channels_in) + channel;
    return {place.batch * static_cast<int>(p.rows_per_batch) + row,
            static_cast<uint32_t>(reinterpret_cast<uint64_t>(p.input)) +
                static_cast<uint32_t>(element) *
                    (place.batch * static_cast<uint32_t>(p.input_batch_stride) + position) +
                row * static_cast<uint32_t>(p.row_bytes),
            position,
            position < 0 ? -position : 0,
            left < 0 ? 0 : left,
            rows < channels ? rows : channels,
            rows >= channels && (position >= (M::sets > 1 ? 16 / element : 0) || !p.leads) &&
                (p.in_boxes || first_of_block(l.blocks - 1) + l.block_positions <= left)};
  }
  // Positions by which the rows of a kind begin in a stage before that one.
  __device__ __forceinline__ int ahead(const Source& from, int kind) const {
    return static_cast<int>((from.address + kind * static_cast<uint32_t>(p.row_bytes)) % 16 /
                            static_cast<uint32_t>(element));
  }

  // Of a block, counted from the first position that products read.
  __device__ __forceinline__ int first_of_block(int block) const {
    return block * l.block_outputs * static_cast<int>(p.phase.in_step);
  }

  // A box has the rows of a kind in a block. Lanes find out side by side where theirs are, since that takes
  // longer than to begin copying.
  __device__ __forceinline__ uint32_t copy_boxes(int warp, const Source& from, char* stage,
                                                 uint64_t* full) const {
    const int kinds = 1 << l.alike_log2, boxes = l.blocks * kinds;
    const int box_bytes = (rows_of_quad << l.quads_of_kind_log2) * l.row_pitch;
#pragma unroll 1
    for (int i = warp + kInputWarps * static_cast<int>(threadIdx.x % 32); i < boxes;
         i += kInputWarps * 32) {
      const int kind = i & (kinds - 1), row = from.row + kind, of_row = row & (kinds - 1);
      copy_box(stage + i * box_bytes, &p.boxes[of_row],
               from.position + first_of_block(i >> l.alike_log2) + p.box_leads[of_row] -
                   ahead(from, kind),
               row >> l.alike_log2, full);
    }
    reconverge();
    return (boxes - warp + kInputWarps - 1) / kInputWarps * box_bytes;  // of the warp
  }

  // Row by row, where boxes cannot be: whole pieces of 16 bytes. `first` is the first row's begin.
  __device__ __forceinline__ uint32_t copy_rows(int warp, const char* first, const Source& from,
                                                char* stage, uint64_t* full) const {
    const int kinds = 1 << l.alike_log2, rows_of_kind = rows_of_quad << l.quads_of_kind_log2;
    uint32_t bytes = 0;
#pragma unroll 1
    for (int block = 0; block < l.blocks; ++block) {
      const int begin_of_block = from.position + first_of_block(block);
#pragma unroll 1
      for (int row = warp; row < from.rows; row += kInputWarps) {
        const int kind = row & (kinds - 1),
                  place = (block * kinds + kind) * rows_of_kind + (row >> l.alike_log2);
        const char* const of_row = first + row * p.row_bytes;
        // Where the row's place in the stage begins and ends, and what exists in between.
        const char* const origin = of_row + (begin_of_block - ahead(from, kind)) * element;
        const char* const begin = origin < of_row ? piece_of(of_row) : origin;
        const char* const end_of_row = piece_of(of_row + p.length * element + 15);
        const char* const end =
            origin + l.row_pitch < end_of_row ? origin + l.row_pitch : end_of_row;
        if (begin >= end) continue;
        copy_bulk(stage + place * l.row_pitch + (begin - origin), begin,
                  static_cast<uint32_t>(end - begin), full);
        bytes += static_cast<uint32_t>(end - begin);
      }
    }
    return bytes;
  }
  // The 16 bytes that an address lies in.
  static __device__ __forceinline__ const char* piece_of(const char* address) {
    return reinterpret_cast<const char*>(reinterpret_cast<uint64_t>(address) & ~uint64_t{15});
  }

  // Warps 0-2; row by row, one thread of each. What surrounds the positions that exist is not looked at.
  template <bool BOXES>
  __device__ __forceinline__ void copy_inputs(int warp) const {
    Turn input;
    for_each_tile([&](const Place& place) {
#pragma unroll 1
      for (int slice = 0; slice < l.slices; ++slice)
#pragma unroll 1
        for (int part = 0; part < l.parts; ++part) {
          const Source from = source(place, slice, part);
          char* const stage = inputs + input.stage * l.input_bytes;
          uint64_t* const full = shared->inputs.full + input.stage;
          barrier_wait(shared->inputs.empty + input.stage, input.parity ^ 1);
          uint32_t bytes;
          if constexpr (BOXES)
            bytes = copy_boxes(warp, from, stage, full);
          else
            bytes = copy_rows(
                warp,
                static_cast<const char*>(p.input) + place.batch * p.input_batch_stride * element +
                    (shared->group * p.channels_in + slice * l.words * values) * p.row_bytes,
                from, stage, full);
          if (threadIdx.x % 32 == 0) barrier_arrive_expecting(full, bytes);
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
      const char* of_part = from;
      for (int i = 0; i < l.slices * l.parts; ++i) {
        const int count = taps_of_part(l, p.phase, i % l.parts);
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

  // Makes zeros of what does not exist in a warpgroup's blocks of a stage.
  __device__ __forceinline__ void clear(char* stage, const Source& from, int warpgroup) const {
    const int lane = threadIdx.x % 32, rows = l.words * values, of_warpgroup = l.blocks / 2;
    for (int i = threadIdx.x / 32 % 4; i < of_warpgroup * rows; i += 4) {
      const int block = warpgroup * of_warpgroup + i / rows, row = i % rows,
                kind = row / rows_of_quad >> l.quads_of_kind_log2,
                k = row - (kind << l.quads_of_kind_log2) * rows_of_quad;
      // Counted from where the row begins in the stage.
      const int first = first_of_block(block) - ahead(from, kind);
      const int begin = from.before - first, end = from.left - first;
      const bool exists = kind + (k << l.alike_log2) < from.rows;
      auto* const to = reinterpret_cast<Element*>(stage + (block * rows + row) * l.row_pitch);
      for (int position = lane; position < l.block_positions; position += 32)
        if (!exists || position < begin || position >= end) to[position] = 0;
    }
    fence_async_proxy();  // before the next rows are copied there
    warpgroup_sync(warpgroup + 1);
  }

  // The range of what is in a warpgroup's blocks of a stage.
  __device__ __forceinline__ Range range_of(const char* stage, int warpgroup, int turn) const {
    const int pieces = l.input_bytes / 2 / 16, warp = threadIdx.x / 32 % 4;
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
        const uint32_t size = word & 0x7fffffffu;
        widen({size < 0x7f800000u ? size : 0, size - 1});
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
  // A warpgroup's sums: of each of m_tiles x N / 8 mma tiles, two channels by two positions.
  using Sums = float[T::m_tiles][M::sets][T::channels / 2];

  using Writer = OutputWriter<M, T::m_tiles, T::channels>;

  // Where a lane reads: bytes from a stage's first row on.
  struct Places {
    int bytes[T::m_tiles][2];
  };

  // A slice in a stage, as a tap sees it.
  struct Slice {
    Source from;
    const char* rows;  // at the tap's first position, of the first kind's rows if they begin alike
    int shift;         // of the tap, in positions
    // For Halves. Values outside of `span` from `least` on, as bits without the sign, count as zeros.
    float scale;
    uint32_t least, span;
  };

  // How a tap's values are found. KINDS: rows begin in several ways. PAIRS: of a 16-bit type, two
  // neighbours are one word. SOME: only those of a certain size.
  template <bool KINDS, bool PAIRS, bool SOME = false>
  struct Way {};

  // What a lane reads for a step: of each mma tile and half, values of a word at two positions, or pairs.
  template <bool PAIRS>
  struct Raw {
    std::conditional_t<PAIRS, uint32_t, Element> of[T::m_tiles][2][PAIRS ? 1 : 2][values];
  };

  template <bool KINDS, bool PAIRS, bool SOME>
  __device__ __forceinline__ void read(Way<KINDS, PAIRS, SOME>, Raw<PAIRS>& raw, const Slice& slice,
                                       int step, const Places& at) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int quad = 2 * step + half;
      const char* rows = slice.rows + quad * (rows_of_quad * l.row_pitch);
      if (KINDS) rows += ahead(slice.from, quad >> l.quads_of_kind_log2) * element;
#pragma unroll
      for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
        for (int h = 0; h < (PAIRS ? 1 : 2); ++h)
#pragma unroll
          for (int v = 0; v < values; ++v) {
            auto& value = raw.of[m][half][h][v];
            value = *reinterpret_cast<const std::decay_t<decltype(value)>*>(rows + at.bytes[m][h] +
                                                                            v * l.row_pitch);
          }
    }
  }

  template <bool KINDS, bool PAIRS, bool SOME>
  static __device__ __forceinline__ void split(Way<KINDS, PAIRS, SOME>, const Raw<PAIRS>& raw,
                                               Fragment& fragment, const Slice& slice) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t words[M::planes];
          Element value[values];
#pragma unroll
          for (int v = 0; v < values; ++v)
            if constexpr (PAIRS)
              value[v] = static_cast<Element>(raw.of[m][half][0][v] >> 16 * h);
            else
              value[v] = raw.of[m][half][h][v];
          if constexpr (SOME)
#pragma unroll
            for (int v = 0; v < values; ++v)
              if ((bits_of(value[v]) & 0x7fffffffu) - slice.least >= slice.span) value[v] = 0;
          M::split(value, words, slice.scale);
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
  template <bool KINDS, bool PAIRS, bool SOME>
  __device__ __forceinline__ void multiply_tap(Way<KINDS, PAIRS, SOME> way, Sums& sums,
                                               Fragments& fragments, const Slice& slice,
                                               const Places& at, const Operand& right) const {
    const int steps = l.words / 8;
    Raw<PAIRS> raw[at_once];
    // Values that take long to split are read while products of the step before are made.
    constexpr bool early = M::sets > 1;
    const auto read_from = [&](int first) {
#pragma unroll
      for (int i = 0; i < at_once; ++i) read(way, raw[i], slice, first + i, at);
    };
    if (early) read_from(0);
    // Two at a time, so that their fragments are two also in the eyes of the compiler, which does not keep
    // it from reusing registers that products of the iteration before still read.
#pragma unroll 1
    for (int pair = 0; pair < steps; pair += 2 * at_once) {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int first = pair + b * at_once;
        // The products of what was here before are over.
        wgmma_wait<1>();
        if (!early) read_from(first);
#pragma unroll
        for (int i = 0; i < at_once; ++i) split(way, raw[i], fragments[b][i], slice);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < at_once; ++i)
#pragma unroll
          for (int m = 0; m < T::m_tiles; ++m)
            M::multiply(sums[m], fragments[b][i][m], right.step(first + i));
        wgmma_commit();
        // The last ones once more, where there are no others.
        if (early) read_from(first + at_once < steps ? first + at_once : first);
      }
    }
  }
  __device__ __forceinline__ void multiply_tap(Sums& sums, Fragments& fragments, const Slice& slice,
                                               const Places& at, const Operand& right, bool kinds,
                                               bool pairs) const {
    constexpr bool can_pair = element == 2;
    const auto tap = [&](auto way) { multiply_tap(way, sums, fragments, slice, at, right); };
    if (kinds && pairs)
      tap(Way<true, can_pair>());
    else if (kinds)
      tap(Way<true, false>());
    else if (pairs)
      tap(Way<false, can_pair>());
    else
      tap(Way<false, false>());
  }

  // Warps 4-11. Each warpgroup has biases of its own.
  __device__ __forceinline__ void keep_biases() const {
    const int thread = static_cast<int>(threadIdx.x) - kProducerThreads, warpgroup = thread / 128;
    for (int i = thread % 128; i < T::channels; i += 128)
      biases[warpgroup * T::channels + i] =
          bias_of<M>(p.bias, shared->group,
                     static_cast<int64_t>(shared->channel_block) * T::channels + i, p.channels_out);
    if constexpr (M::sets > 1) {
      wait_for_kernel_before();
      for (int i = thread % 128; i < T::channels; i += 128)
        scales[warpgroup * T::channels + i] =
            p.scales[(shared->group * p.channel_blocks + shared->channel_block) * T::channels + i];
    }
    warpgroup_sync(warpgroup + 1);
  }

  __device__ __forceinline__ void multiply() const {
    // The same for all lanes, which the compiler should know.
    const int warpgroup =
        __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - kProducerThreads) / 128, 0);
    const Writer writer{p.output, output_stages + warpgroup * OutputLayout<M, T::m_tiles>::bytes,
                        warpgroup + 1};
    const Operand all_weights(weights, T::channels * 16, l.words * T::channels * 4);
    const int steps = l.words / 8;
    const bool kinds = l.alike_log2 > 0;
    // Whether 16-bit values lie in aligned pairs in rows of all kinds, if in those of one.
    const bool in_pairs = element == 2 && p.phase.in_step == 1 && p.row_bytes % 4 == 0;
    Places at;
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int stride = static_cast<int>(p.phase.in_step),
                  output = Writer::position_of_lane(m, h);
        const int block = warpgroup * (l.blocks / 2) + output / l.block_outputs;
        at.bytes[m][h] =
            (block * l.words + static_cast<int>(threadIdx.x % 4)) * values * l.row_pitch +
            output % l.block_outputs * stride * static_cast<int>(element);
      }
    Turn input, weight;
    Sums sums;
    constexpr bool cuts = cuts_chains<M, T>();
    float total[cuts ? T::m_tiles : 1][cuts ? T::channels / 2 : 1];
    Fragments fragments;
    int turn = 0;
    bool paired = false;  // how the tap before was read
    if (l.resident && l.slices > 0) barrier_wait(shared->weights.full, 0);
    for_each_tile([&](const Place& place) {
      for_each_sum([&](int m, int i) {
#pragma unroll
        for (int set = 0; set < M::sets; ++set) sums[m][set][i] = 0;
        if constexpr (cuts) total[m][i] = 0;
      });
      hold(sums);
      int chained = 0;
      // Of the largest value so far, at least, and log2 of theirs.
      int exponent = 0, scale = Scale::log2_for(0);
      int used_weight = -1;  // the stage that was read before, still to be given back
      if (l.resident) weight.stage = 0;
      for (int i = 0; i < l.slices * l.parts; ++i) {
        const int slice = i / l.parts, part = i % l.parts;
        const int taps = taps_of_part(l, p.phase, part);
        char* const stage = inputs + input.stage * l.input_bytes;
        Slice seen{source(place, slice, part), stage, 0, 1, 0, 0};
        const int before = ahead(seen.from, 0);
        if (!kinds) seen.rows += before * element;
        barrier_wait(shared->inputs.full + input.stage, input.parity);
        if (!seen.from.whole) clear(stage, seen.from, warpgroup);
        uint32_t smallest = ~0u;  // less 1
        if constexpr (M::sets > 1) {
          const Range range = range_of(stage, warpgroup, turn);
          turn ^= 1;
          smallest = range.least;
          const int largest = static_cast<int>(smaller(range.most >> 23, Scale::most));
          if (largest > exponent) {
            const int before = scale;
            // One more, so that this happens less often.
            exponent = largest < Scale::most ? largest + 1 : largest;
            scale = Scale::log2_for(exponent);
            if (i > 0) {
              scale_sums(sums, scale - before);
              if constexpr (cuts)
                for_each_sum([&](int m, int i) {
                  total[m][i] = Scale::without(total[m][i], before - scale);
                });
            }
          }
          seen.scale = Scale::power_of_two(scale);
        }
        // Whether some values are too small for this scale.
        const bool small =
            M::sets > 1 && smallest + 1 > 0 && smallest + 1 < Scale::least_whole(scale);
        for (int j = 0; j < taps; ++j) {
          if (!l.resident) barrier_wait(shared->weights.full + weight.stage, weight.parity);
          const Operand right = all_weights.after(weight.stage * l.weight_bytes);
          const bool pairs = in_pairs && (seen.shift + before) % 2 == 0;
          if (pairs != paired) wgmma_settle();
          paired = pairs;
          if (small) {
            if constexpr (M::sets > 1)
              multiply_small(sums, fragments, seen, at, right, scale, smallest + 1);
          } else {
            multiply_tap(sums, fragments, seen, at, right, kinds, pairs);
          }
          // All products of the tap before are over.
          give_back(shared->weights.empty, used_weight);
          if constexpr (cuts) {
            chained += steps;
            if (chained + steps > M::chain) {
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
          seen.shift += static_cast<int>(p.phase.shift_step);
          seen.rows += p.phase.shift_step * element;
          used_weight = l.resident ? -1 : weight.stage;
          if (l.resident)
            ++weight.stage;
          else
            weight.advance(l.weights);
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
      write(writer, sums, place, warpgroup);
    });
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
  __device__ __forceinline__ void multiply_small(Sums& sums, Fragments& fragments, Slice seen,
                                                 const Places& at, const Operand& right, int scale,
                                                 uint32_t smallest) const {
    seen.least = Scale::least_whole(scale);
    seen.span = 0x80000000u - seen.least;
    int of_these = scale;
    if (l.alike_log2 == 0) seen.rows -= ahead(seen.from, 0) * element;
    // Sums of low parts are not cut, and may be too large for larger scales.
    wgmma_settle();
    hold(sums);
    for_each_sum([&](int m, int i) {
      sums[m][0][i] += sums[m][1][i] * (1 / M::low);
      sums[m][1][i] = 0;
    });
    hold(sums);
    for (int step = 0;; ++step) {
      multiply_tap(Way<true, false, true>(), sums, fragments, seen, at, right);
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

  // One thread speaks for its warp, which has read all that it will.
  static __device__ __forceinline__ void give_back(uint64_t* empty, int stage) {
    if (stage < 0) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + stage);
  }

  __device__ __forceinline__ void write(const Writer& writer, Sums& sums, const Place& place,
                                        int warpgroup) const {
    const int64_t first_channel = static_cast<int64_t>(shared->channel_block) * T::channels;
    writer.write(sums, biases + warpgroup * T::channels,
                 {(place.batch * p.groups + shared->group) * p.channels_out + first_channel,
                  static_cast<int>(smaller(T::channels, p.channels_out - first_channel)),
                  (static_cast<int64_t>(place.tile) * 2 + warpgroup) * T::positions});
  }
};

template <class M, class T>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_kernel(const __grid_constant__ HopperParams p) {
  FASTCONV1D_SHARED(memory);
  auto& shared = *reinterpret_cast<HopperShared*>(memory);
  if (threadIdx.x == 0) {
    const int64_t rest = blockIdx.x / p.channel_blocks, run = rest % p.runs;
    shared.channel_block = static_cast<int>(blockIdx.x % p.channel_blocks);
    shared.group = static_cast<int>(rest / p.runs);
    shared.first = {static_cast<int>(run / p.tiles), static_cast<int>(run % p.tiles)};
    for (int i = 0; i < kMostStages; ++i) {
      barrier_init(shared.inputs.full + i, kInputWarps);
      barrier_init(shared.inputs.empty + i, kConsumerThreads / 32);
      barrier_init(shared.weights.full + i, 1);
      barrier_init(shared.weights.empty + i, kConsumerThreads / 32);
    }
    fence_async_proxy();
  }
  __syncthreads();
  if (threadIdx.x < kProducerThreads) {
    keep_registers<kProducerRegisters>();
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
    take_registers<kConsumerRegisters>();
    const HopperBlock<M, T> block(p, memory);
    block.keep_biases();
    block.multiply();
  }
}

template <class M, class T>
struct Hopper {
  using Element = typename M::Element;

  // A phase of a convolution, cut for this tile.
  struct Cut {
    Phase phase;
    Pipeline pipeline;
    int64_t groups, channels_in, channels_out, channel_blocks;  // channels of one group
    int64_t tiles, runs;
    int64_t packed_threads;
  };

  static Cut cut(const ConvArgs& a, int64_t r) {
    Cut c{};
    c.phase = phase_of(a, r);
    c.groups = a.groups;
    c.channels_in = a.channels_in / a.groups;
    c.channels_out = a.channels_out / a.groups;
    c.channel_blocks = ceil_div(c.channels_out, T::channels);
    c.tiles = ceil_div(c.phase.positions, 2 * T::positions);
    c.runs = runs_of(a.batch * c.tiles, a.groups * c.channel_blocks, a.multiprocessors);
    c.pipeline =
        pipeline_of({T::positions, T::channels, M::planes, M::values_per_word, sizeof(Element),
                     rows_alike(a.input_channel_stride * static_cast<int64_t>(sizeof(Element))),
                     16 * steps_at_once<M, T>(), shared_budget(1) - hopper_fixed_bytes<M, T>(),
                     ceil_div(a.batch * c.tiles, c.runs) >= 4},
                    c.phase, c.channels_in);
    Pipeline& l = c.pipeline;
    if (M::chain > 0 && !cuts_chains<M, T>() && l.slices * c.phase.taps * (l.words / 8) > M::chain)
      l.taps = 0;
    c.packed_threads =
        a.groups * c.channel_blocks * l.slices * l.parts * l.taps * (l.words / 4) * T::channels;
    return c;
  }

  // Packed weights, and behind them scales.
  static int64_t packed_bytes(const Cut& c) {
    return weight_bytes(c) + (M::sets > 1 ? 4 * scales(c) : 0);
  }
  static int64_t weight_bytes(const Cut& c) { return c.packed_threads * 16 * M::planes; }
  static int64_t scales(const Cut& c) { return c.groups * c.channel_blocks * T::channels; }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    const Pipeline& l = c.pipeline;
    if (l.taps == 0) return 1;  // cudaErrorInvalidValue: `why_not` should have said so
    auto* const packed = static_cast<uint32_t*>(a.workspace);
    auto* const scales = static_cast<int*>(a.workspace) + weight_bytes(c) / 4;
    const HopperPackParams pack{{a.weight, packed, c.phase, c.channels_in, c.channels_out, a.groups,
                                 a.kernel_size, a.transposed, c.channel_blocks, c.packed_threads},
                                l,
                                scales};
    const dim3 pack_blocks(static_cast<unsigned>(ceil_div(c.packed_threads, 128)));
    int error = 0;
    if constexpr (M::sets > 1) {
      error = fastconv1d::launch(hopper_scale_kernel<M, T>,
                                 dim3(static_cast<unsigned>(Hopper::scales(c))), dim3(128), 16,
                                 stream, pack);
      if (error == 0 && c.packed_threads > 0)
        error = fastconv1d::launch<true>(hopper_pack_kernel<M, T>, pack_blocks, dim3(128), 0,
                                         stream, pack);
    } else if (c.packed_threads > 0) {
      error = fastconv1d::launch(hopper_pack_kernel<M, T>, pack_blocks, dim3(128), 0, stream, pack);
    }
    if (error != 0) return error;
    const int64_t bytes = hopper_fixed_bytes<M, T>() + stage_bytes(l);
    const auto kernel = hopper_kernel<M, T>;
    error = set_shared_limit(kernel, bytes);
    if (error != 0) return error;
    HopperParams p{};
    p.input = a.input;
    p.weights = packed;
    p.scales = scales;
    p.bias = a.bias;
    p.output = {a.output,           a.length_out,     c.phase.positions,
                c.phase.out_offset, c.phase.out_step, a.length_out % 2 != 0};
    p.phase = c.phase;
    p.pipeline = l;
    p.batch = a.batch;
    p.length = a.length;
    p.input_batch_stride = a.input_batch_stride;
    p.channels_in = c.channels_in;
    p.channels_out = c.channels_out;
    p.groups = a.groups;
    p.channel_blocks = c.channel_blocks;
    p.tiles = c.tiles;
    p.runs = c.runs;
    p.step = {static_cast<int>(c.runs / c.tiles), static_cast<int>(c.runs % c.tiles)};
    p.first_position = c.phase.first_shift;
    p.row_bytes = a.input_channel_stride * static_cast<int64_t>(sizeof(Element));
    p.tile_step = 2 * T::positions * c.phase.in_step;
    p.in_boxes = make_boxes(a, l, p);
    const dim3 blocks(static_cast<unsigned>(a.groups * c.channel_blocks * c.runs));
    // Nothing but the packing comes before it then, and what came before that is over.
    if (c.packed_threads > 0 || M::sets > 1)
      return fastconv1d::launch<true>(kernel, blocks, dim3(kHopperThreads), bytes, stream, p);
    return fastconv1d::launch(kernel, blocks, dim3(kHopperThreads), bytes, stream, p);
  }

  // Whether the input's rows, those of all batches one after the other, can be copied in boxes.
  static bool make_boxes(const ConvArgs& a, const Pipeline& l, HopperParams& p) {
    p.leads = 1;
    if (a.input_channel_stride <= 0) return false;
    if (a.batch > 1 && (a.input_batch_stride < 0 || a.input_batch_stride % a.input_channel_stride))
      return false;
    const int64_t per_batch = a.batch > 1 ? a.input_batch_stride / a.input_channel_stride : 0,
                  rows = (a.batch - 1) * per_batch + a.channels_in;
    if (rows >= INT32_MAX) return false;
    int leads = 0;
    for (int kind = 0; kind < 1 << l.alike_log2; ++kind) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(a.input),
                      first = begin + kind * static_cast<uintptr_t>(p.row_bytes);
      p.box_leads[kind] = static_cast<int>(first % 16 / sizeof(Element));
      leads += p.box_leads[kind];
      // A kind may have no rows, and a map of it then nothing that anybody looks at, but within the input.
      const uintptr_t of_map = kind < rows ? first : begin;
      const int64_t columns = a.length + (kind < rows ? p.box_leads[kind] : 0);
      if (make_box_map(p.boxes + kind, sizeof(Element),
                       reinterpret_cast<const void*>(of_map & ~uintptr_t{15}), columns,
                       larger(1, ceil_div(rows - kind, 1 << l.alike_log2)),
                       p.row_bytes << l.alike_log2, l.block_positions,
                       (4 * M::values_per_word) << l.quads_of_kind_log2) != 0)
        return false;
    }
    p.leads = leads > 0;
    p.rows_per_batch = per_batch;
    return true;
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_HOPPER_LIBRARY(...) FASTCONV1D_TILE_LIBRARY(fastconv1d::Hopper, __VA_ARGS__)
