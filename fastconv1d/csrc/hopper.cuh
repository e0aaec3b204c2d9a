// The dense convolution on the tensor cores of Hopper (sm_90a, wgmma), NCL to NCL.
//
// One block computes a tile of CHANNELS output channels by some output positions of one phase, and
// then more: blocks take turns on the tiles. Its warps have roles, and hand stages of shared memory
// to each other by barriers:
//
//   warp 0      copies rows of the input as they lie in memory      -> inputs
//               and the packed weights of one tap and slice         -> weights
//   warps 1-3   round, split or transpose the values: inputs        -> windows
//   warps 4-11  two warpgroups multiply weights (64 channels x 8 words) by windows (8 words x N
//               positions), and write their sums
//
// A window is [plane][quad of 4 words][class][column][4 words], a word being one fp32 value or two
// channels of a 16-bit type. That is how wgmma takes an operand whose columns are 16 bytes apart, so a
// tap is the same window read some columns further on, whatever shift, stride or dilation. Weights lie
// alike, [plane][quad][channel][4 words]; where all fit, they stay. fp32-accurate mode splits each value
// in a high and a low TF32 part, kept in two planes, and adds three products.
//
// Roofline: copies of rows keep some 48 KB on their way without registers: boxes of rows that begin
// alike modulo 16 bytes, one instruction each, or where rows are laid out otherwise, row by row. Where
// memory is the limit, tiles overlap by 8 positions so that each row's sums fill whole sectors. While one
// warpgroup writes, the other one multiplies.
#pragma once
#include "output.cuh"
#include "tile.cuh"

namespace fastconv1d {

// WARPGROUPS_M x WARPGROUPS_N warpgroups of M_TILES x 64 channels by N positions each.
template <int WARPGROUPS_M, int WARPGROUPS_N, int M_TILES, int N>
struct HopperTile {
  static_assert(WARPGROUPS_M * WARPGROUPS_N == 2 && N % 16 == 0, "two warpgroups");
  static constexpr int warpgroups_m = WARPGROUPS_M, warpgroups_n = WARPGROUPS_N;
  static constexpr int m_tiles = M_TILES, n = N;
  static constexpr int channels = 64 * WARPGROUPS_M * M_TILES;
};

constexpr int kCopyThreads = 32, kConvertThreads = 96, kConsumerThreads = 256;
constexpr int kConvertWarps = kConvertThreads / 32;
constexpr int kProducerThreads = kCopyThreads + kConvertThreads;
constexpr int kHopperThreads = kProducerThreads + kConsumerThreads;
// Of a thread. wgmma needs 154 at least while it adds to 128 sums.
constexpr int kProducerRegisters = 120, kConsumerRegisters = 192;

// A barrier for each stage that is full, and one for each that is empty again.
template <int STAGES>
struct StageBarriers {
  uint64_t full[STAGES], empty[STAGES];
};
// What a block keeps before biases, sums on their way out and the pipeline's stages.
struct HopperShared {
  StageBarriers<kMostStages> inputs, windows, weights;
  // Of a position's residue modulo the stride; -1 where no tap reads it.
  int8_t class_of[kMostClasses];
  // Where threads that must write what no tap reads do so.
  alignas(16) uint4 unread[kConvertThreads];
};
constexpr int64_t kHopperSharedBytes = 2048;
static_assert(sizeof(HopperShared) <= kHopperSharedBytes);

template <class M, class T>
FASTCONV1D_HD constexpr int64_t hopper_fixed_bytes() {
  return kHopperSharedBytes + 4 * T::channels +
         kConsumerThreads / 32 * OutputLayout<M>::stage_bytes;
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
  const void* bias;
  OutputParams output;
  Phase phase;
  Pipeline pipeline;
  int64_t batch, length, input_batch_stride, input_channel_stride;
  int64_t channels_in, channels_out, groups;  // channels of one group
  int64_t channel_blocks, tiles, runs;        // `runs` blocks take turns on batch x tiles
  Place step;                                 // from a block's tile to its next
  int64_t first_position;       // of the input, that the first tile's window begins with
  int64_t row_bytes;            // from one row of the input to the next one
  int64_t tile_step;            // of the input, from one tile to the next
  int in_boxes;                 // whether the input is copied in boxes
  int64_t rows_per_batch;       // of the boxes' rows
  int stride;                   // in_step
  int step_columns, step_rest;  // 8 * kConvertWarps / stride, and % stride
  uint32_t stride_reciprocal;   // 2^32 / in_step, rounded up
  uint32_t block_reciprocal;    // of the pieces in a block of an input stage's rows
  int block_gap;                // bytes from its end to the row's next block
};

// [group][channel block][slice's input][part][slice of it][tap][plane][quad][channel][4 words]; one
// thread makes 4 words of each plane. Threads of a warp take 4 channels, and of each what lies together
// in the weight: neighbouring taps and quads.
struct HopperPackParams : WeightParams {
  Pipeline pipeline;
};
template <class M, class T>
__global__ void __launch_bounds__(128) hopper_pack_kernel(const HopperPackParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.count) return;
  const Pipeline& l = p.pipeline;
  const int quads = l.words / 4, all_quads = quads * l.slices_alike;
  constexpr int values = M::values_per_word;
  Digits digits{index};
  const int64_t row_of_4 = digits.take(4), tap = digits.take(l.taps), part = digits.take(l.parts),
                quad = digits.take(quads), slice = digits.take(l.slices_alike),
                input = digits.take(l.slices / l.slices_alike),
                row = digits.take(T::channels / 4) * 4 + row_of_4,
                channel_block = digits.take(p.channel_blocks), group = digits.rest;
  const int64_t of_block = ((input * l.parts + part) * l.slices_alike + slice) * l.taps + tap,
                stage = (group * p.channel_blocks + channel_block) * l.slices * l.parts * l.taps +
                        of_block;
  const int64_t number = slice * quads + quad, kind = number >> l.quads_of_kind_log2,
                j = number - (kind << l.quads_of_kind_log2),
                first_in =
                    input * all_quads * 4 * values + kind + (j * l.quad_step << l.alike_log2);

  uint32_t words[M::planes][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    typename M::Element value[values];
#pragma unroll
    for (int v = 0; v < values; ++v)
      value[v] = weight_of<typename M::Element>(
          p, group, channel_block * T::channels + row,
          first_in + ((i * values + v) * l.row_step << l.alike_log2), part * l.taps + tap);
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
  static constexpr int64_t element = sizeof(Element);
  static constexpr int values = M::values_per_word, of_piece = 16 / element;
  static constexpr int rows_of_quad = 4 * values;
  const HopperParams& p;
  const Pipeline& l;
  HopperShared* shared;
  float* biases;
  char *output_stages, *inputs, *windows, *weights;  // the first of each
  int channel_block, group;
  Place first;

  __device__ __forceinline__ HopperBlock(const HopperParams& params, uint32_t* memory)
      : p(params), l(params.pipeline) {
    auto* const bytes = reinterpret_cast<char*>(memory);
    shared = reinterpret_cast<HopperShared*>(bytes);
    biases = reinterpret_cast<float*>(bytes + kHopperSharedBytes);
    output_stages = bytes + kHopperSharedBytes + 4 * T::channels;
    inputs = bytes + hopper_fixed_bytes<M, T>();
    windows = inputs + l.inputs * l.input_bytes;
    weights = windows + l.windows * l.window_bytes;
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

  // The rows of the slices that are dealt out together, seen from a window.
  struct Source {
    int64_t address;   // of the first position that products read, in the first row
    int position;      // the same, counted in the input's
    int before, left;  // positions from there to the begin of a row, if ahead, and to its end
    int rows;          // that exist
    bool whole;        // whether all that a window needs exists
  };
  __device__ __forceinline__ Source source(const Place& place, int alike, int part) const {
    constexpr int64_t far = 1 << 30;
    const int64_t position = p.first_position + place.tile * p.tile_step +
                             static_cast<int64_t>(part) * l.taps * p.phase.shift_step;
    const int64_t rows_alike = quads_alike() * rows_of_quad, channel = alike * (l.words * values);
    const int64_t row = place.batch * p.input_batch_stride +
                        (group * p.channels_in + channel) * p.input_channel_stride;
    return {static_cast<int64_t>(reinterpret_cast<uint64_t>(p.input)) + (row + position) * element,
            static_cast<int>(position),
            static_cast<int>(position < 0 ? smaller(-position, far) : 0),
            static_cast<int>(smaller(larger(0, p.length - position), far)),
            static_cast<int>(smaller(rows_alike, p.channels_in - channel)),
            position >= 0 && position + l.positions <= p.length &&
                channel + rows_alike <= p.channels_in};
  }
  __device__ __forceinline__ int quads_alike() const { return l.slices_alike * (l.words / 4); }
  // Of the first position that products read, in a row.
  __device__ __forceinline__ int64_t address_of(const Source& from, int row) const {
    return from.address + row * p.row_bytes;
  }
  // Positions by which the rows of a kind begin in a stage before that one.
  __device__ __forceinline__ int ahead(const Source& from, int kind) const {
    return static_cast<int>(static_cast<uint32_t>(address_of(from, kind)) % 16 / element);
  }
  // Of a quad in a stage: its kind, that one's first quad, and the quad's first row of the kind.
  struct Quad {
    int kind, first, row;
  };
  __device__ __forceinline__ Quad quad_of_input(int number) const {
    const int kind = number >> l.quads_of_kind_log2, j = number - (kind << l.quads_of_kind_log2);
    return {kind, number - j, j * l.quad_step};
  }
  // Whether a position of a stage's row exists.
  __device__ __forceinline__ bool exists(const Source& from, const Quad& quad, int i,
                                         int position) const {
    return quad.kind + (quad.row + i * l.row_step << l.alike_log2) < from.rows &&
           position >= from.before && position < from.left;
  }

  // What warp 0 copies next of the input.
  struct NextInput {
    Place place;
    int alike = 0, part = 0;
    Turn turn;
  };

  // What surrounds the positions that exist is not looked at.
  __device__ __forceinline__ void copy_input(NextInput& next) const {
    if (next.place.batch >= p.batch) return;
    const Source from = source(next.place, next.alike, next.part);
    char* const stage = inputs + next.turn.stage * l.input_bytes;
    uint64_t* const full = shared->inputs.full + next.turn.stage;
    barrier_wait(shared->inputs.empty + next.turn.stage, next.turn.parity ^ 1);
    const uint32_t bytes =
        p.in_boxes ? copy_boxes(next, from, stage, full) : copy_rows(from, stage, full);
    barrier_arrive_expecting(full, bytes);
    next.turn.advance(l.inputs);
    if (++next.part < l.parts) return;
    next.part = 0;
    next.alike += l.slices_alike;
    if (next.alike < l.slices) return;
    next.alike = 0;
    next.place.advance(p.step, p.tiles);
  }

  // A lane copies the rows of a kind, a box for each block of columns.
  __device__ __forceinline__ uint32_t copy_boxes(const NextInput& next, const Source& from,
                                                 char* stage, uint64_t* full) const {
    const int kind = threadIdx.x % 32, kinds = 1 << l.alike_log2;
    if (kind >= kinds) return 0;
    const int64_t first = next.place.batch * p.rows_per_batch + group * p.channels_in +
                          int64_t{next.alike} * l.words * values;
    const auto row = static_cast<uint32_t>(first + kind), of_row = row & (kinds - 1);
    int column = from.position + p.box_leads[of_row] - ahead(from, kind);
    const int bytes = (rows_of_quad << l.quads_of_kind_log2) * l.row_pitch;
    for (char* to = stage + kind * bytes; to < stage + l.input_bytes;
         to += kinds * bytes, column += l.block_positions)
      copy_box(to, &p.boxes[of_row], column, static_cast<int>(row >> l.alike_log2), full);
    return l.input_bytes >> l.alike_log2;
  }

  // Row by row, where boxes cannot be: whole pieces.
  __device__ __forceinline__ uint32_t copy_rows(const Source& from, char* stage,
                                                uint64_t* full) const {
    const int64_t begin = from.before * element,
                  end = (from.left < l.positions ? from.left : l.positions) * element;
    const int kinds = 1 << l.alike_log2, rows_of_kind = rows_of_quad << l.quads_of_kind_log2;
    uint32_t bytes = 0;
    for (int row = threadIdx.x % 32; row < from.rows && begin < end; row += 32) {
      const int64_t address = address_of(from, row);
      const int64_t first = (address + begin) & ~int64_t{15},
                    last = (address + end + 15) & ~int64_t{15}, origin = address & ~int64_t{15};
      char* const to =
          stage + ((row & (kinds - 1)) * rows_of_kind + (row >> l.alike_log2)) * l.row_pitch;
      for (int block = 0; block < l.blocks; ++block) {
        const int64_t of_block = origin + block * l.row_pitch;
        const int64_t from_here = larger(first, of_block),
                      to_here = smaller(last, of_block + l.row_pitch);
        if (from_here >= to_here) continue;
        copy_bulk(to + block * kinds * rows_of_kind * l.row_pitch + (from_here - of_block),
                  reinterpret_cast<const void*>(from_here),
                  static_cast<uint32_t>(to_here - from_here), full);
        bytes += static_cast<uint32_t>(to_here - from_here);
      }
    }
    return bytes;
  }

  // Warp 0. What it copies of the input is some stages ahead of the weights, so that neither waits for
  // room that only the other could make.
  __device__ __forceinline__ void copy() const {
    if (l.slices == 0) return;
    const int taps = l.slices * l.parts * l.taps;
    const auto* const from =
        reinterpret_cast<const char*>(p.weights) +
        (group * p.channel_blocks + channel_block) * taps * int64_t{l.weight_bytes};
    const bool copies_weights = threadIdx.x == 0;
    if (l.resident && copies_weights) {
      barrier_arrive_expecting(shared->weights.full, taps * l.weight_bytes);
      for (int tap = 0; tap < taps; ++tap)
        copy_bulk(weights + tap * l.weight_bytes, from + tap * l.weight_bytes, l.weight_bytes,
                  shared->weights.full);
    }
    NextInput next{first};
    for (int i = 0; i < l.inputs; ++i) copy_input(next);
    Turn weight;
    for_each_tile([&](const Place&) {
      const char* window = from;
      for (int alike = 0; alike < l.slices; alike += l.slices_alike)
        for (int part = 0; part < l.parts; ++part) {
          const int count = l.resident ? 0 : taps_of_part(l, p.phase, part);
          for (int slice = 0; slice < l.slices_alike && copies_weights; ++slice) {
            for (int j = 0; j < count; ++j) {
              uint64_t* const full = shared->weights.full + weight.stage;
              barrier_wait(shared->weights.empty + weight.stage, weight.parity ^ 1);
              barrier_arrive_expecting(full, l.weight_bytes);
              copy_bulk(weights + weight.stage * l.weight_bytes, window + j * l.weight_bytes,
                        l.weight_bytes, full);
              weight.advance(l.weights);
            }
            window += l.taps * l.weight_bytes;
          }
          reconverge();
          copy_input(next);
        }
    });
  }

  // Where a window keeps a position, counted from the first one that products read.
  template <bool NEIGHBOURS>
  struct Column {
    const HopperBlock& block;
    int column, rest;
    __device__ __forceinline__ Column(const HopperBlock& block, int position) : block(block) {
      position += block.l.slack * block.p.stride;
      column =
          NEIGHBOURS ? position : static_cast<int>(__umulhi(position, block.p.stride_reciprocal));
      rest = NEIGHBOURS ? 0 : position - column * block.p.stride;
    }
    // From its quad's first column on, or negative where no product reads it.
    __device__ __forceinline__ int offset() const {
      if (NEIGHBOURS) return column;
      const int number = block.shared->class_of[rest];
      return number < 0 ? -1 : number * block.l.class_pitch + column;
    }
    // Moves on by a number of positions, of which `columns` are whole strides and `more` are left.
    __device__ __forceinline__ void advance(int positions, int columns, int more) {
      column += NEIGHBOURS ? positions : columns;
      rest += more;
      if (NEIGHBOURS || rest < block.p.stride) return;
      rest -= block.p.stride;
      ++column;
    }
  };
  // What products never read goes where nobody looks.
  template <bool NEIGHBOURS>
  __device__ __forceinline__ uint4* written(uint4* quad, int offset) const {
    return NEIGHBOURS || offset >= 0 ? quad + offset
                                     : shared->unread + (threadIdx.x - kCopyThreads);
  }

  // Where a piece of a row begins, from the row on.
  __device__ __forceinline__ int place_of(int piece) const {
    const auto block = static_cast<int>(__umulhi(piece, p.block_reciprocal));
    return piece * 16 + block * p.block_gap;
  }

  // Makes 4 quads of a window from those of an input stage from `number` on. EDGE: not all that they need
  // exists; the rest becomes zeros. NEIGHBOURS: columns are neighbouring positions. Here a thread takes 4
  // words of 4 positions; 8 lanes in a row, 2 pieces of 4 quads, write to different banks.
  template <bool EDGE, bool NEIGHBOURS>
  __device__ __forceinline__ void convert_32bit(const char* rows, const Source& from, int number,
                                                int warp, uint4* quads) const {
    constexpr int batch = 8 / rows_of_quad, step = 8 * kConvertWarps;
    const int lane = threadIdx.x % 32;
    const Quad quad = quad_of_input(number + lane / 2 % 4);
    const int before = ahead(from, quad.kind), pieces = l.pieces;
    quads += lane / 2 % 4 * l.quad_pitch;
    rows += (quad.first * rows_of_quad + quad.row) * l.row_pitch;
    const int pitch = l.row_step * l.row_pitch;
    for (int first = lane % 2 + lane / 8 * 2 + 8 * warp; first < pieces; first += batch * step) {
      float4 value[batch][rows_of_quad];
#pragma unroll
      for (int b = 0; b < batch; ++b)
#pragma unroll
        for (int i = 0; i < rows_of_quad; ++i)
          if (b == 0 || first + b * step < pieces)
            value[b][i] =
                *reinterpret_cast<const float4*>(rows + i * pitch + place_of(first + b * step));
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (b > 0 && first + b * step >= pieces) break;
        const int position = (first + b * step) * of_piece - before;
        Column<NEIGHBOURS> column(*this, position);
        int offsets[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          offsets[e] = column.offset();
          column.advance(1, 0, 1);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          uint32_t words[4][M::planes];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float of_word[values];
#pragma unroll
            for (int v = 0; v < values; ++v) {
              const float4& x = value[b][i * values + v];
              of_word[v] = e == 0 ? x.x : e == 1 ? x.y : e == 2 ? x.z : x.w;
              if (EDGE && !exists(from, quad, i * values + v, position + e)) of_word[v] = 0;
            }
            M::split(of_word, words[i]);
          }
#pragma unroll
          for (int plane = 0; plane < M::planes; ++plane)
            *written<NEIGHBOURS>(quads + plane * (l.words / 4) * l.quad_pitch, offsets[e]) =
                make_uint4(words[0][plane], words[1][plane], words[2][plane], words[3][plane]);
        }
      }
    }
  }

  // Of 16-bit types, 8 rows of a quad by 8 positions are a matrix to be transposed, 4 quads at a time: a
  // lane says where row lane % 8 of quad lane / 8 lies, and where column lane % 8 of it goes.
  template <bool EDGE, bool NEIGHBOURS>
  __device__ __forceinline__ void convert_16bit(const char* rows, const Source& from, int number,
                                                int warp, uint4* quads) const {
    constexpr int batch = 4, step = kConvertWarps;
    const int lane = threadIdx.x % 32;
    const Quad quad = quad_of_input(number + lane / 8);
    rows += (quad.first * rows_of_quad + quad.row + lane % 8) * l.row_pitch;
    quads += lane / 8 * l.quad_pitch;
    const int pieces = l.pieces;
    Column<NEIGHBOURS> column(*this, warp * of_piece - ahead(from, quad.kind) + lane % 8);
    for (int first = warp; first < pieces; first += batch * step) {
      uint32_t pairs[batch][4];
      int offsets[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (first + b * step < pieces) load_matrices(pairs[b], rows + place_of(first + b * step));
        offsets[b] = column.offset();
        column.advance(8 * step, p.step_columns, p.step_rest);
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (first + b * step >= pieces) break;
#pragma unroll
        for (int m = 0; m < 4 && EDGE; ++m) {
          const Quad of_pair = quad_of_input(number + m);
          const int at = (first + b * step) * of_piece - ahead(from, of_pair.kind) + lane % 4 * 2;
          if (!exists(from, of_pair, lane / 4, at)) pairs[b][m] &= 0xffff0000u;
          if (!exists(from, of_pair, lane / 4, at + 1)) pairs[b][m] &= 0x0000ffffu;
        }
        store_matrices_transposed(written<NEIGHBOURS>(quads, offsets[b]), pairs[b]);
      }
    }
  }

  template <bool EDGE, bool NEIGHBOURS>
  __device__ __forceinline__ void convert(const char* stage, const Source& from, int slice,
                                          uint4* window) const {
    for (int quad = 0; quad < l.words / 4; quad += 4) {
      // Warps take turns, since some have a piece more to move.
      const int warp = (threadIdx.x / 32 + quad / 4) % kConvertWarps,
                number = slice * (l.words / 4) + quad;
      if constexpr (element == 4)
        convert_32bit<EDGE, NEIGHBOURS>(stage, from, number, warp, window + quad * l.quad_pitch);
      else
        convert_16bit<EDGE, NEIGHBOURS>(stage, from, number, warp, window + quad * l.quad_pitch);
    }
  }

  // Warps 1-3.
  __device__ __forceinline__ void make_windows() const {
    Turn input, window;
    for_each_tile([&](const Place& place) {
      for (int alike = 0; alike < l.slices; alike += l.slices_alike)
        for (int part = 0; part < l.parts; ++part) {
          const Source from = source(place, alike, part);
          const char* const stage = inputs + input.stage * l.input_bytes;
          barrier_wait(shared->inputs.full + input.stage, input.parity);
          for (int slice = 0; slice < l.slices_alike; ++slice) {
            auto* const to = reinterpret_cast<uint4*>(windows + window.stage * l.window_bytes);
            barrier_wait(shared->windows.empty + window.stage, window.parity ^ 1);
            if (p.stride == 1) {
              if (from.whole)
                convert<false, true>(stage, from, slice, to);
              else
                convert<true, true>(stage, from, slice, to);
            } else {
              if (from.whole)
                convert<false, false>(stage, from, slice, to);
              else
                convert<true, false>(stage, from, slice, to);
            }
            fence_async_proxy();
            barrier_arrive(shared->windows.full + window.stage);
            window.advance(l.windows);
          }
          barrier_arrive(shared->inputs.empty + input.stage);
          input.advance(l.inputs);
        }
    });
  }

  // A warpgroup's sums: of each of M_TILES x N / 8 mma tiles, channels lane/4 and lane/4 + 8 of a
  // warp's 16 by two positions.
  using Sums = float[T::n / 2];

  // Warps 4-11.
  __device__ __forceinline__ void multiply() const {
    // The same for all lanes, which the compiler should know.
    const int warpgroup =
        __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - kProducerThreads) / 128, 0);
    const int m = warpgroup % T::warpgroups_m, n = warpgroup / T::warpgroups_m;
    const Operand all_weights(weights + m * T::m_tiles * 64 * 16, T::channels * 16,
                              l.words * T::channels * 4),
        all_windows(windows + (n * p.output.step_positions + l.slack) * 16, l.quad_pitch * 16,
                    l.words * l.quad_pitch * 4);
    const int steps = l.words / 8;
    Turn window, weight;
    Sums chain[T::m_tiles];
    Sums total[M::chain ? T::m_tiles : 1];
    if (l.resident && l.slices > 0) barrier_wait(shared->weights.full, 0);
    for_each_tile([&](const Place& place) {
      for_each_sum([&](int m, int i) {
        chain[m][i] = 0;
        if constexpr (M::chain > 0) total[m][i] = 0;
      });
      hold(chain);
      int chained = 0;
      // The stages that were read before, still to be given back.
      int used_weight = -1, used_window = -1;
      if (l.resident) weight.stage = 0;
      int part = 0, slice_of_alike = 0;
      for (int i = 0; i < l.slices * l.parts; ++i) {
        const int taps = taps_of_part(l, p.phase, part);
        if (++slice_of_alike == l.slices_alike) {
          slice_of_alike = 0;
          if (++part == l.parts) part = 0;
        }
        Operand left = all_weights.after(weight.stage * l.weight_bytes);
        const Operand first_column = all_windows.after(window.stage * l.window_bytes);
        int number = 0, column = 0, rest = 0;  // of the tap's class and where it begins
        barrier_wait(shared->windows.full + window.stage, window.parity);
        for (int j = 0; j < taps; ++j) {
          const Operand right = first_column.after((number * l.class_pitch + column) * 16);
          if (++number == l.classes) number = 0;
          column += l.shift_columns;
          rest += l.shift_rest;
          if (rest >= p.stride) {
            rest -= p.stride;
            ++column;
          }
          if (!l.resident) barrier_wait(shared->weights.full + weight.stage, weight.parity);
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
          if (l.resident) {
            left = left.after(l.weight_bytes);
            if (j > 0) continue;
          }
          wgmma_wait<1>();
          give_back(shared->windows.empty, used_window);
          used_window = -1;
          if (l.resident) continue;
          give_back(shared->weights.empty, used_weight);
          used_weight = weight.stage;
          weight.advance(l.weights);
          left = all_weights.after(weight.stage * l.weight_bytes);
        }
        if (l.resident) weight.stage += l.taps;
        used_window = window.stage;
        window.advance(l.windows);
      }
      wgmma_wait<0>();
      hold(chain);
      give_back(shared->windows.empty, used_window);
      give_back(shared->weights.empty, used_weight);
      if constexpr (M::chain > 0) for_each_sum([&](int m, int i) { chain[m][i] += total[m][i]; });
#pragma unroll
      for (int i = 0; i < T::m_tiles; ++i) write(chain[i], place, m * T::m_tiles + i, n);
    });
  }

  static __device__ __forceinline__ void hold(Sums (&sums)[T::m_tiles]) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m) wgmma_hold(sums[m]);
  }

  template <class Visit>
  static __device__ __forceinline__ void for_each_sum(const Visit& visit) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int i = 0; i < T::n / 2; ++i) visit(m, i);
  }

  // Nobody but wgmma has read the stage, so one thread speaks for its warp.
  static __device__ __forceinline__ void give_back(uint64_t* empty, int stage) {
    if (stage < 0) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + stage);
  }

  // Writes the sums of 64 channels, the m-th such, bias added.
  __device__ __forceinline__ void write(Sums& sums, const Place& place, int m, int n) const {
    const int first_row = m * 64 + threadIdx.x / 32 % 4 * 16;  // of the warp's 16
    const int64_t first_channel = static_cast<int64_t>(channel_block) * T::channels + first_row;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float bias = biases[first_row + threadIdx.x % 32 / 4 + 8 * h];
#pragma unroll
      for (int i = 0; i < T::n / 8; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) sums[i * 4 + h * 2 + e] += bias;
    }
    const OutputRows rows{
        (place.batch * p.groups + group) * p.channels_out + first_channel,
        static_cast<int>(smaller(16, p.channels_out - first_channel)),
        (static_cast<int64_t>(place.tile) * T::warpgroups_n + n) * p.output.step_positions};
    const OutputWriter<M, T::n> writer{
        p.output,
        output_stages + (threadIdx.x - kProducerThreads) / 32 * OutputLayout<M>::stage_bytes};
    writer.write(sums, rows);
  }
};

template <class M, class T>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_kernel(const __grid_constant__ HopperParams p) {
  FASTCONV1D_SHARED(memory);
  const HopperBlock<M, T> block(p, memory);
  HopperShared& shared = *block.shared;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kMostStages; ++i) {
      barrier_init(shared.inputs.full + i, kCopyThreads);
      barrier_init(shared.inputs.empty + i, kConvertThreads);
      barrier_init(shared.windows.full + i, kConvertThreads);
      barrier_init(shared.windows.empty + i, kConsumerThreads / 32);
      barrier_init(shared.weights.full + i, 1);
      barrier_init(shared.weights.empty + i, kConsumerThreads / 32);
    }
    fence_async_proxy();
    for (int rest = 0; rest < p.stride; ++rest) shared.class_of[rest] = -1;
    for (int number = 0, rest = 0; number < p.pipeline.classes; ++number) {
      shared.class_of[rest] = static_cast<int8_t>(number);
      rest = (rest + p.pipeline.shift_rest) % p.stride;
    }
  }
  for (int i = threadIdx.x; i < T::channels; i += kHopperThreads)
    block.biases[i] =
        bias_of<M>(p.bias, block.group, static_cast<int64_t>(block.channel_block) * T::channels + i,
                   p.channels_out);
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
    constexpr int aligned = OutputLayout<M>::aligned_outputs;
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
         M::values_per_word, sizeof(Element),
         rows_alike(a.input_channel_stride * static_cast<int64_t>(sizeof(Element))),
         shared_budget(1) - hopper_fixed_bytes<M, T>(), ceil_div(a.batch * c.tiles, c.runs) >= 4},
        c.phase, c.channels_in);
    const Pipeline& l = c.pipeline;
    c.packed_threads =
        a.groups * c.channel_blocks * l.slices * l.parts * l.taps * (l.words / 4) * T::channels;
    return c;
  }

  static int64_t packed_bytes(const Cut& c) { return c.packed_threads * 16 * M::planes; }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    const Pipeline& l = c.pipeline;
    if (l.taps == 0) return 1;  // cudaErrorInvalidValue: `why_not` should have said so
    auto* const packed = static_cast<uint32_t*>(a.workspace);
    int error = 0;
    if (c.packed_threads > 0)
      error = fastconv1d::launch(
          hopper_pack_kernel<M, T>, dim3(static_cast<unsigned>(ceil_div(c.packed_threads, 128))),
          dim3(128), 0, stream,
          HopperPackParams{{a.weight, packed, c.phase, c.channels_in, c.channels_out, a.groups,
                            a.kernel_size, a.transposed, c.channel_blocks, c.packed_threads},
                           l});
    if (error != 0) return error;
    const int64_t bytes = hopper_fixed_bytes<M, T>() + stage_bytes(l);
    const auto kernel = hopper_kernel<M, T>;
    error = set_shared_limit(kernel, bytes);
    if (error != 0) return error;
    const OutputParams output{a.output,
                              a.length_out,
                              c.phase.positions,
                              c.phase.out_offset,
                              c.phase.out_step,
                              static_cast<int>(c.step_positions),
                              static_cast<int>(c.most_shift),
                              static_cast<int>(c.most_overhang),
                              a.length_out % 2 != 0};
    HopperParams p{};
    p.input = a.input;
    p.weights = packed;
    p.bias = a.bias;
    p.output = output;
    p.phase = c.phase;
    p.pipeline = l;
    p.batch = a.batch;
    p.length = a.length;
    p.input_batch_stride = a.input_batch_stride;
    p.input_channel_stride = a.input_channel_stride;
    p.channels_in = c.channels_in;
    p.channels_out = c.channels_out;
    p.groups = a.groups;
    p.channel_blocks = c.channel_blocks;
    p.tiles = c.tiles;
    p.runs = c.runs;
    p.step = {static_cast<int>(c.runs / c.tiles), static_cast<int>(c.runs % c.tiles)};
    p.first_position = c.phase.first_shift - c.most_shift * c.phase.in_step;
    p.row_bytes = a.input_channel_stride * static_cast<int64_t>(sizeof(Element));
    p.tile_step = T::warpgroups_n * c.step_positions * c.phase.in_step;
    p.in_boxes = make_boxes(a, l, p);
    p.stride = static_cast<int>(c.phase.in_step);
    p.step_columns = 8 * kConvertWarps / p.stride;
    p.step_rest = 8 * kConvertWarps % p.stride;
    p.stride_reciprocal = static_cast<uint32_t>(ceil_div(int64_t{1} << 32, c.phase.in_step));
    p.block_reciprocal = static_cast<uint32_t>(ceil_div(int64_t{1} << 32, l.row_pitch / 16));
    p.block_gap = l.input_bytes / l.blocks - l.row_pitch;
    return fastconv1d::launch(kernel,
                              dim3(static_cast<unsigned>(a.groups * c.channel_blocks * c.runs)),
                              dim3(kHopperThreads), bytes, stream, p);
  }

  // Whether the input's rows, those of all batches one after the other, can be copied in boxes.
  static bool make_boxes(const ConvArgs& a, const Pipeline& l, HopperParams& p) {
    if (a.input_channel_stride <= 0 || a.length >= INT32_MAX / 2) return false;
    if (a.batch > 1 && (a.input_batch_stride < 0 || a.input_batch_stride % a.input_channel_stride))
      return false;
    p.rows_per_batch = a.batch > 1 ? a.input_batch_stride / a.input_channel_stride : 0;
    const int64_t rows = (a.batch - 1) * p.rows_per_batch + a.channels_in;
    if (rows >= INT32_MAX) return false;
    for (int kind = 0; kind < 1 << l.alike_log2; ++kind) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(a.input),
                      first = begin + kind * static_cast<uintptr_t>(p.row_bytes);
      p.box_leads[kind] = static_cast<int>(first % 16 / sizeof(Element));
      // A kind may have no rows, and a map of it then nothing that anybody looks at.
      const uintptr_t of_map = kind < rows ? first : begin;
      if (make_box_map(
              p.boxes + kind, sizeof(Element),
              reinterpret_cast<const void*>(of_map & ~uintptr_t{15}), a.length + p.box_leads[kind],
              larger(1, ceil_div(rows - kind, 1 << l.alike_log2)), p.row_bytes << l.alike_log2,
              l.block_positions, (4 * M::values_per_word) << l.quads_of_kind_log2) != 0)
        return false;
    }
    return true;
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_HOPPER_LIBRARY(...) FASTCONV1D_TILE_LIBRARY(fastconv1d::Hopper, __VA_ARGS__)
