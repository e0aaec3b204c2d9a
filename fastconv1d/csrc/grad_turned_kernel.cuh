// The gradient of a convolution's weight in 16-bit types on Hopper (sm_90a, wgmma).
//
//   grad_weight[out][(channel, tap)] = sum over slices of  grad_output (outs x positions) * input (positions x channels),
//
// the latter some positions further on for each tap. wgmma reads its right operand from shared memory, where rows of
// neighbouring positions would have to begin at multiples of 16 bytes, which taps and odd lengths leave none. So rows of
// the input are turned on their way: a row of shared memory is a position, with channels as neighbours, and a tap begins some
// rows further on, whatever it sees. To one product the taps of a warpgroup are more columns: the same rows, a dilation on.
// Of a strided convolution positions go to a tile for each residue, and each tap has a product of its own. The left operand,
// grad_output, lanes read from its rows, where these begin. A block computes a tile of the gradient for a part of batch x
// positions. Its warps have roles, and hand stages of shared memory, a slice of positions each, to each other by barriers:
//
//   warp 0     has boxes of grad_output copied, some slices ahead -> grads
//   warps 1-3  have boxes of the input copied -> inputs, and turn these, 8 x 8 values at a time (ldmatrix, stmatrix) ->
//              turned: what is beside a row is zero
//   others     warpgroups of 64 output channels and some units each: taps, or, of one tap, further channels
//
//   grads  = [kind][row of a kind][positions] of grad_output; kinds are rows that begin alike modulo 16 bytes, see `RowBoxes`
//   inputs = [class of units][kind][row of a kind][vectors] of the input
//   turned = [class of units][residue][position][channel], pieces of 16 bytes interchanged as wgmma wants them
//
// Taps near each other share a row of the input; if they are so far apart that a row for each is shorter, a channel has as
// many rows, its classes. The bias is a product of grad_output and ones, by the warps that have it in registers anyway.
//
// Sums leave by way of shared memory as neighbours: a part for each split, in the gradient's order, that
// `grad_sum_kernel` adds up, or the gradient itself. So do those of a chain, since tensor cores cut off what they add.
//
// Roofline: as that of grad_dense.cuh. A warp that waits for few others takes some 5 cycles an instruction, so consumers
// have few: what shared memory and tensor cores could do is twice of what they leave.
#pragma once
#include "grad_boxes.cuh"

namespace fastconv1d {

// OUT_TILES x 64 output channels and UNIT_TILES x UNITS units of so many input channels; a warpgroup has 64 and UNITS.
template <int OUT_TILES, int UNIT_TILES, int CHANNELS, int UNITS>
struct GradTurnedTile {
  static constexpr int out_tiles = OUT_TILES, unit_tiles = UNIT_TILES, channels = CHANNELS;
  static constexpr int units_each = UNITS, units = UNIT_TILES * UNITS, outs = 64 * OUT_TILES;
  static constexpr int most_strided =
      192 / CHANNELS;  // whose sums leave registers for a product each
  static constexpr int strided_each = UNITS < most_strided ? UNITS : most_strided;
  static constexpr int warpgroups = OUT_TILES * UNIT_TILES, threads = 128 * (warpgroups + 1);
  static constexpr int registers = 65536 / threads / 8 * 8;  // of a thread, at first
  static constexpr int producer_registers = 72;
  static constexpr int consumer_registers =
      (threads * registers - 128 * producer_registers) / (128 * warpgroups) / 8 * 8;
};

constexpr int kTurnedStages = 8, kLeastTurnedStages = 2;  // of a ring; of grad_output at least
constexpr int kTurners = 3;                               // warps
constexpr int kOnesBytes = 256;                           // of ones, in 16 bits
constexpr int kTurnedPartBytes = 5 * 8 * kTurnedStages + 4 * kTurnedStages + 96 + kOnesBytes;

// Channels of a block as rows of shared memory: kind by kind, each of which has whole groups of 8 rows.
struct RowKinds {
  int log2;
  int rows;   // of a kind, in its box
  int pitch;  // from one kind to the next
  static constexpr RowKinds of(int channels, int log2) {
    const int rows = (channels + (1 << log2) - 1) >> log2;
    return {log2, rows, (rows + 7) / 8 * 8};
  }
  FASTCONV1D_HD constexpr int count() const { return 1 << log2; }
  FASTCONV1D_HD constexpr int row_of(int channel) const {
    return (channel & (count() - 1)) * pitch + (channel >> log2);
  }
  // Whether a row is a channel's.
  FASTCONV1D_HD constexpr bool has(int row) const {
    return row / pitch < count() && row % pitch < rows;
  }
  FASTCONV1D_HD constexpr int channel_of(int row) const {
    return ((row % pitch) << log2) + row / pitch;
  }
};

// How a tile's channels and taps lie in the input.
struct TurnedForm : GradBlocks {
  int units;        // taps, or tiles of channels
  int by_channels;  // which of them
  int classes;      // rows of a channel: one, or one for each unit
  int vectors;      // of a row as it lies in memory: an odd number, which keeps banks apart
  int tile_rows;    // positions of a residue's tile
};

struct GradTurnedParams : GradBoxParams {
  TurnedForm form;
  RowKinds input_kinds, grad_kinds;
  int stride_factor;              // position / stride = position * factor / 65536
  int aligned;                    // whether rows of grad_output begin at 16 bytes
  int units_each;                 // units of a warpgroup
  int grad_stages, input_stages;  // there are kTurners of `turned`
  int residue_bytes;              // of `turned`
};

template <class M, class T>
struct GradTurnedBlock {
  using Element = typename M::Element;
  static constexpr int positions = 64, vector = 8, steps = 4;  // of a slice; of 16 bytes
  // Bytes of a row of grad_output where it begins at 16 bytes, and pieces are interchanged; else one piece of 16 more.
  static constexpr int aligned_pitch = 2 * positions, odd_pitch = aligned_pitch + 16;
  static constexpr int row_bytes = 2 * T::channels;  // of `turned`
  static constexpr int64_t fixed_bytes = round_up(kTurnedPartBytes, kOperandAlignment);
  // Of sums on their way out: from one output channel to the next, which keeps banks apart.
  static constexpr int out_pitch = T::units * T::channels + 8;
  static constexpr int64_t out_bytes = 4 * T::outs * out_pitch;
  static constexpr int chain = kGradChain / positions;  // slices

  struct Part : GradBoxPart {
    alignas(16) uint32_t ones[kOnesBytes / 4];
    StageBarriers<kTurnedStages> grads, turned;
    struct {
      uint64_t full[kTurnedStages];
    } inputs;
    int tails[kTurnedStages];  // see `has_tail`
  };
  static_assert(sizeof(Part) <= kTurnedPartBytes);

  const GradTurnedParams& p;
  Part* part;
  int grad_pitch, grad_bytes;  // of a row, and a stage
  int input_bytes, turned_bytes;
  char *grad_stages, *input_stages, *turned_stages;  // the first of each

  static FASTCONV1D_HD constexpr int class_bytes(const TurnedForm& f) {
    return T::channels * 16 * f.vectors;
  }

  __device__ __forceinline__ GradTurnedBlock(const GradTurnedParams& params, uint32_t* memory)
      : p(params),
        part(reinterpret_cast<Part*>(memory)),
        grad_pitch(p.aligned ? aligned_pitch : odd_pitch),
        grad_bytes(T::outs * grad_pitch),
        input_bytes(p.form.classes * class_bytes(p.form)),
        turned_bytes(p.form.classes * p.stride * p.residue_bytes),
        turned_stages(reinterpret_cast<char*>(memory) + fixed_bytes) {
    grad_stages = turned_stages + kTurners * turned_bytes;
    input_stages = grad_stages + p.grad_stages * grad_bytes;
  }

  // Before anybody looks: a warp has a thread for each stage, another warp's first thread finds out what the block computes.
  __device__ __forceinline__ void begin() const {
    if (threadIdx.x == 32) part->find(p, p.form);
    if (threadIdx.x >= 64 && threadIdx.x < 64 + kOnesBytes / 4)
      part->ones[threadIdx.x - 64] = M::one * 0x10001u;
    fence_async_proxy();
    if (threadIdx.x >= kTurnedStages) return;
    const int stage = static_cast<int>(threadIdx.x);
    barrier_init(part->grads.full + stage, 1);
    barrier_init(part->grads.empty + stage, 4 * T::warpgroups);
    barrier_init(part->inputs.full + stage, 1);
    barrier_init(part->turned.full + stage, 1);
    barrier_init(part->turned.empty + stage, 4 * T::warpgroups);
    fence_async_proxy();
  }
  // Positions of a slice that grad_output has, up to all of them.
  __device__ __forceinline__ int left_of(const GradSlice& slice) const {
    return static_cast<int>(smaller(positions, p.length_out - slice.number * positions));
  }
  // Everybody waits at the end of a chain, whose sums take the stages' place: those who have done all before a slice.
  struct Chains {
    int end = chain;  // of this one
  };
  __device__ __forceinline__ void meet_before(int number, Chains& chains) const {
    for (; chains.end <= number && chains.end < part->count; chains.end += chain)
      threads_sync(3, T::threads);
  }

  // --- the way in ---------------------------------------------------------------------------------

  // Where in the input's row a slice's first class begins to see, and by how much others begin behind it.
  __device__ __forceinline__ int first_of(int slice) const {
    return static_cast<int>(part->first_tap) * p.dilation - p.padding +
           slice * positions * p.stride;
  }
  __device__ __forceinline__ int class_step() const { return p.form.by_channels ? 0 : p.dilation; }
  // Whether a class's boxes may show something of a row. Those that do not are not copied: the copy engine makes some 5 bytes
  // of zeros in a cycle.
  __device__ __forceinline__ bool shows(int first) const {
    return first + p.form.vectors * vector > 0 && first - vector < p.length;
  }

  // Warp 0. Lanes have a box each.
  __device__ __forceinline__ void copy_grads() const {
    const int lane = threadIdx.x % 32, kinds = p.grad_kinds.count(), count = part->count;
    const auto bytes = static_cast<uint32_t>(kinds * p.grad_kinds.rows * grad_pitch);
    char* const to = grad_stages + lane * p.grad_kinds.pitch * grad_pitch;
    GradSlice slice = part->first_slice(p);
    Chains chains;
    Turn grads;
    const BoxMap* map = nullptr;
    int of_batch = -1, row = 0;
#pragma unroll 1
    for (int number = 0; number < count; ++number) {
      meet_before(number, chains);
      if (of_batch != slice.batch) {
        of_batch = slice.batch;
        row = part->first_grad_row(p, of_batch) + lane;
        map = &p.grad_boxes.maps[row & (kinds - 1)];
      }
      uint64_t* const full = part->grads.full + grads.stage;
      barrier_wait(part->grads.empty + grads.stage, grads.parity ^ 1);
      if (lane == 0) barrier_arrive_expecting(full, bytes);
      if (lane < kinds)
        copy_box(to + grads.stage * grad_bytes, map, slice.number * positions,
                 row >> p.grad_kinds.log2, full);
      reconverge();
      grads.advance(p.grad_stages);
      slice.advance(p.slices);
    }
  }

  // A warp has the boxes of a slice of the input copied, a lane each of them.
  __device__ __forceinline__ void copy_input(const GradSlice& slice, int stage) const {
    const int lane = threadIdx.x % 32, classes = p.form.classes, kinds = p.input_kinds.count(),
              first_class = first_of(slice.number),
              first_row = part->first_input_row(p, slice.batch);
    uint64_t* const full = part->inputs.full + stage;
    if (lane == 0) {
      int shown = 0;
      for (int i = 0; i < classes; ++i) shown += shows(first_class + i * class_step());
      barrier_arrive_expecting(
          full, static_cast<uint32_t>(shown * kinds * p.input_kinds.rows * 16 * p.form.vectors));
    }
    for (int i = lane; i < classes * kinds; i += 32) {
      const int kind = i & (kinds - 1), number = i >> p.input_kinds.log2,
                first = first_class + number * class_step(),
                row = first_row + kind + (p.form.by_channels ? number * T::channels : 0),
                lead = p.input_boxes.leads[row & (kinds - 1)];
      if (!shows(first)) continue;
      copy_box(input_stages + stage * input_bytes + number * class_bytes(p.form) +
                   kind * p.input_kinds.pitch * 16 * p.form.vectors,
               &p.input_boxes.maps[row & (kinds - 1)],
               first + lead - ((lead + first) & (vector - 1)), row >> p.input_kinds.log2, full);
    }
    reconverge();
  }

  // Where the kinds of a lane's channels, 8 of each 32, begin in their boxes.
  static constexpr int quads = T::channels / 32;
  struct Leads {
    int of[quads];
  };
  __device__ __forceinline__ void find_leads(Leads& leads, int batch) const {
    const int first = part->first_input_row(p, batch), kinds = p.input_kinds.count();
#pragma unroll
    for (int quad = 0; quad < quads; ++quad) {
      const int row = (quad * 4 + static_cast<int>(threadIdx.x) % 32 / 8) * 8,
                kind = static_cast<int>(smaller(row / p.input_kinds.pitch, kinds - 1));
      leads.of[quad] = p.input_boxes.leads[(first + kind) & (kinds - 1)];
    }
  }

  // Where a piece of 16 bytes of a row of `turned` lies.
  static __device__ __forceinline__ int piece_of(int row, int piece) {
    return row * row_bytes + (T::channels == 64 ? (piece ^ row) & 7 : (piece ^ row >> 1) & 3) * 16;
  }
  // Whether one of two values is infinite or none.
  static __device__ __forceinline__ bool is_special(uint32_t word) {
    return (word & M::exponent) == M::exponent || (word >> 16 & M::exponent) == M::exponent;
  }
  // Clears what is before the row of 8 positions of 4 groups of channels, those of each some positions `ahead`. Returns
  // whether some value from the position `beyond` on, of the class's, is infinite or none.
  __device__ __forceinline__ bool settle(uint32_t (&word)[4], int quad, int v, int ahead, int first,
                                         int beyond) const {
    bool special = false;
#pragma unroll
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int lane = threadIdx.x % 32,
                position = v * vector + lane % 4 * 2 - __shfl_sync(0xffffffffu, ahead, matrix * 8);
      if (first + position < 0) word[matrix] &= first + position == -1 ? 0xffff0000u : 0;
      special |= position + 1 >= beyond && is_special(word[matrix]) &&
                 p.input_kinds.has((quad * 4 + matrix) * 8 + lane / 4);
    }
    return special;
  }
  // Turns COUNT x 8 positions of 32 channels.
  template <int COUNT>
  static __device__ __forceinline__ void turn_some(const char* from, char* to, int step) {
    uint32_t word[COUNT][4];
#pragma unroll
    for (int i = 0; i < COUNT; ++i, from += step)
      load_matrices(word[i], reinterpret_cast<const uint32_t*>(from));
#pragma unroll
    for (int i = 0; i < COUNT; ++i) store_matrices_turned(to + i * 8 * row_bytes, word[i]);
  }
  // Turns 32 channels of a class. `beyond`: a position from which on what the first tap does not see might be infinite,
  // where products would meet it with zeros, or none of a box; returns whether something is.
  __device__ __forceinline__ bool turn(const char* raw, char* to, int quad, int lead, int first,
                                       int beyond) const {
    constexpr int at_once = 4;
    const int lane = threadIdx.x % 32, group = quad * 4 + lane / 8,
              ahead = (lead + first) & (vector - 1), vectors = p.form.vectors, stride = p.stride;
    const char* const row_of_lane = raw + (group * 8 + lane % 8) * 16 * vectors;
    const bool settles = first < 0 || beyond < vectors * vector;
    bool special = false;
    // Of every so many vectors as the stride the same residue's 8 rows are 8 further on.
#pragma unroll 1
    for (int phase = 0; phase < stride; ++phase) {
      // Of the row of 8 positions that this lane stores, counted from 8 strides before the first.
      const int position = lane % 8 - ahead + vector * (stride + phase),
                row = position * p.stride_factor >> 16, residue = position - row * stride;
      char* at = to + residue * p.residue_bytes + piece_of(row, group);
      const char* from = row_of_lane + phase * 16;
      int v = phase;
      if (settles) {
#pragma unroll 1
        for (; v < vectors; v += stride, from += 16 * stride, at += 8 * row_bytes) {
          uint32_t word[4];
          load_matrices(word, reinterpret_cast<const uint32_t*>(from));
          if (first + (v - 1) * vector < 0 || (v + 1) * vector > beyond)
            special |= settle(word, quad, v, ahead, first, beyond);
          store_matrices_turned(at, word);
        }
        continue;
      }
#pragma unroll 1
      for (; v + (at_once - 1) * stride < vectors; v += at_once * stride) {
        turn_some<at_once>(from, at, 16 * stride);
        from += at_once * 16 * stride;
        at += at_once * 8 * row_bytes;
      }
#pragma unroll 1
      for (; v < vectors; v += stride, from += 16 * stride, at += 8 * row_bytes)
        turn_some<1>(from, at, 0);
    }
    return special;
  }

  // One of warps 1-3: they take slices in turn, with stages of their own.
  __device__ __forceinline__ void turn_slices(int warp) const {
    const int of_class = p.stride * p.residue_bytes, nowhere = p.form.vectors * vector,
              count = part->count;
    GradSlice slice = part->first_slice(p), copied{};
    Chains chains;
    Turn inputs, copies, turned;
    // Whole turns of a ring are as many stages.
    const auto advance = [&](Turn& turn, int by, int stages) {
      turn.stage += by;
      if (turn.stage < stages) return;
      turn.stage -= stages;
      turn.parity ^= 1;
    };
    slice.advance(p.slices, warp);
    copied = slice;
    inputs.stage = copies.stage = turned.stage = warp;
    int of_batch = -1, next = warp;  // `next`: to be copied
    Leads leads{};
#pragma unroll 1
    for (int number = warp; number < count; number += kTurners) {
      meet_before(number, chains);
      // As many slices ahead as there are stages, of this chain.
      const auto most = static_cast<int>(smaller(number + p.input_stages, chains.end));
#pragma unroll 1
      for (; next < most && next < count; next += kTurners) {
        copy_input(copied, copies.stage);
        copied.advance(p.slices, kTurners);
        advance(copies, kTurners, p.input_stages);
      }
      if (of_batch != slice.batch) {
        of_batch = slice.batch;
        find_leads(leads, of_batch);
      }
      barrier_wait(part->inputs.full + inputs.stage, inputs.parity);
      barrier_wait(part->turned.empty + turned.stage, turned.parity ^ 1);
      const int left = left_of(slice),
                beyond = left < positions ? (left - 1) * p.stride + 1 : nowhere;
      bool special = false;
#pragma unroll 1
      for (int i = 0; i < p.form.classes; ++i) {
        const int first = first_of(slice.number) + i * class_step();
        const char* const raw = input_stages + inputs.stage * input_bytes + i * class_bytes(p.form);
        char* const to = turned_stages + turned.stage * turned_bytes + i * of_class;
        if (shows(first)) {
#pragma unroll
          for (int quad = 0; quad < quads; ++quad)
            special |= turn(raw, to, quad, leads.of[quad], first, beyond);
        } else {
          for (int at = threadIdx.x % 32; at < of_class / 16; at += 32)
            reinterpret_cast<uint4*>(to)[at] = make_uint4(0, 0, 0, 0);
        }
      }
      if (left < positions) {
        const uint32_t any = largest_of_warp(special);
        if (threadIdx.x % 32 == 0) part->tails[turned.stage] = static_cast<int>(any);
      }
      fence_async_proxy();
      give_back(part->turned.full, turned.stage);
      slice.advance(p.slices, kTurners);
      advance(inputs, kTurners, p.input_stages);
      turned.parity ^= 1;
    }
    meet_before(count, chains);
  }

  __device__ __forceinline__ void produce() const {
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    if (warp == 0)
      copy_grads();
    else
      turn_slices(warp - 1);
  }

  // --- products -----------------------------------------------------------------------------------

  // RUNS products, of UNITS units each.
  template <int RUNS, int UNITS>
  using Sums = float[RUNS][UNITS * T::channels / 2];

  template <int RUNS, int SUMS>
  static __device__ __forceinline__ void hold(float (&sums)[RUNS][SUMS]) {
#pragma unroll
    for (int run = 0; run < RUNS; ++run) wgmma_hold(sums[run]);
  }
  template <int RUNS, int SUMS>
  static __device__ __forceinline__ void clear(float (&sums)[RUNS][SUMS]) {
#pragma unroll
    for (int run = 0; run < RUNS; ++run)
#pragma unroll
      for (int i = 0; i < SUMS; ++i) sums[run][i] = 0;
    hold(sums);
  }
  // Whether a slice's input has something behind what the first tap sees that must not meet a zero of grad_output.
  // One lane reads it, which also gives the stage back.
  __device__ __forceinline__ bool has_tail(int stage) const {
    int tail = 0;
    if (threadIdx.x % 32 == 0) tail = part->tails[stage];
    return __shfl_sync(0xffffffffu, tail, 0) != 0;
  }
  // Where the rows of `turned` begin that a unit of the block sees, in a stage.
  __device__ __forceinline__ int place_of(int unit) const {
    const int of_class = p.form.classes > 1 ? unit : 0,
              position = (unit - of_class) * p.dilation + vector * p.stride,
              row = position * p.stride_factor >> 16;
    return (of_class * p.stride + position - row * p.stride) * p.residue_bytes + row * row_bytes;
  }

  // A lane's two rows of grad_output: where their words begin in a stage, in bytes, and values in these, in bits. Or,
  // aligned, where the row of 16 bytes begins that it reads for all, and by what its pieces are interchanged.
  struct Rows {
    int at[2], bits[2];
  };
  __device__ __forceinline__ void find_rows(Rows& rows, int first_row, int batch) const {
    const int lane = threadIdx.x % 32;
    rows.bits[0] = rows.bits[1] = 0;
    if (p.aligned) {
      const int row = first_row - lane / 4 + lane % 16;
      rows.at[0] = row * aligned_pitch;
      rows.at[1] = (row & 7) * 16 ^ lane / 16 * 16;
    } else {
      const int first = part->first_grad_row(p, batch), kinds = p.grad_kinds.count();
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_row + h * 8,
                  kind = static_cast<int>(smaller(row / p.grad_kinds.pitch, kinds - 1)),
                  at = row * odd_pitch +
                       (p.grad_boxes.leads[(first + kind) & (kinds - 1)] + lane % 4 * 2) * 2;
        rows.at[h] = at & ~3;
        rows.bits[h] = at * 8 & 31;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      keep_in_register(rows.at[h]);
      keep_in_register(rows.bits[h]);
    }
  }
  // Of the position `q` of a lane's row, one by one.
  __device__ __forceinline__ float grad_of(const char* grads, const Rows& rows, int first_row,
                                           int h, int q) const {
    const int row = first_row + h * 8,
              at = p.aligned ? row * aligned_pitch + ((q / 8 ^ row) & 7) * 16 + q % 8 * 2
                             : rows.at[h] + rows.bits[h] / 8 -
                                   static_cast<int>(threadIdx.x) % 4 * 4 + q * 2;
    return M::from(*reinterpret_cast<const Element*>(grads + at));
  }
  using Raw = uint32_t[2][4];  // words of a fragment, and what follows them
  __device__ __forceinline__ void read_step(Raw& raw, const char* grads, const Rows& rows,
                                            int step) const {
    if (p.aligned) {
      load_matrices(
          raw[0], reinterpret_cast<const uint32_t*>(grads + rows.at[0] + (step * 32 ^ rows.at[1])));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto* const from =
            reinterpret_cast<const uint32_t*>(grads + rows.at[i % 2] + step * 32 + i / 2 * 16);
        raw[0][i] = from[0];
        raw[1][i] = from[1];
      }
    }
  }
  static __device__ __forceinline__ void make_fragment(uint32_t (&fragment)[1][4], const Raw& raw,
                                                       const Rows& rows) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      fragment[0][i] = shifted_right(raw[0][i], raw[1][i], rows.bits[i % 2]);
    wgmma_hold(fragment[0]);
  }

  // The products of a slice one by one, of the positions that exist alone.
  template <int RUNS, int UNITS>
  __device__ __forceinline__ void add_slice(Sums<RUNS, UNITS>& sums, float (&bias)[4],
                                            const char* grads, const char* turned, const Rows& rows,
                                            int first_row, int first_unit, int left) const {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int q = 0; q < left; ++q) {
      float grad[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        grad[h] = grad_of(grads, rows, first_row, h, q);
        bias[h * 2] += grad[h];
      }
#pragma unroll
      for (int run = 0; run < RUNS; ++run)
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
          // What does not exist may be anything, of this block's memory.
          const int place = place_of(static_cast<int>(
                                smaller(first_unit + run + unit, p.form.units - 1))) +
                            q * row_bytes,
                    row = place / row_bytes;
#pragma unroll
          for (int i = 0; i < T::channels / 8; ++i) {
            const float2 value = M::pair(
                *reinterpret_cast<const uint32_t*>(turned + piece_of(row, i) + lane % 4 * 4));
            float* const sum = sums[run] + unit * T::channels / 2 + i * 4;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              sum[h * 2] += grad[h] * value.x;
              sum[h * 2 + 1] += grad[h] * value.y;
            }
          }
        }
    }
  }

  // A warpgroup of so many units; what those that do not exist make of other memory is not stored.
  template <int RUNS, int UNITS>
  __device__ __forceinline__ void consume() const {
    static_assert(RUNS == 1 || UNITS == 1);
    // The same for all lanes, which the compiler should know.
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - 128) / 128, 0);
    const int first_row = warpgroup % T::out_tiles * 64 +
                          static_cast<int>(threadIdx.x) / 32 % 4 * 16 +
                          static_cast<int>(threadIdx.x) % 32 / 4,
              first_unit = warpgroup / T::out_tiles * RUNS * UNITS, count = part->count;
    const bool adds_bias = part->adds_bias && first_unit == 0;
    const auto place_at = [&](int unit) {
      return __shfl_sync(0xffffffffu, place_of(static_cast<int>(smaller(unit, p.form.units - 1))),
                         0);
    };
    // From one unit to the next. Where there is no next one, it is the same.
    const int unit_step = p.form.units > 1 ? place_at(1) - place_at(0) : 0;
    int places[RUNS];
#pragma unroll
    for (int run = 0; run < RUNS; ++run) places[run] = place_at(first_unit + run);
    const Operand ones(reinterpret_cast<const char*>(part->ones), 128, 0);
    GradSlice slice = part->first_slice(p);
    Rows rows, next_rows;
    find_rows(next_rows, first_row, slice.batch);
    Sums<RUNS, UNITS> sums;
    uint32_t fragments[2][1][4];
    float bias[4]{}, of_chain[1][4];
    Turn grads, turned;
    int before = -1;
    bool first_chain = true;
    clear(sums);
    clear(of_chain);
    const auto advance = [&] {
      give_back(part->grads.empty, grads.stage);
      before = turned.stage;
      grads.advance(p.grad_stages);
      turned.advance(kTurners);
      slice.advance(p.slices);
    };
    int number = 0;
#pragma unroll 1
    while (number < count) {
      const auto end = static_cast<int>(smaller(count, (number / chain + 1) * chain));
      bool tail = false;
      // Two steps are read ahead, so that nobody waits for shared memory: [step % 2].
      Raw raw[2]{};
      const auto read_begin = [&](const Turn& of) {
        barrier_wait(part->grads.full + of.stage, of.parity);
        return grad_stages + of.stage * grad_bytes;
      };
      const char* from = read_begin(grads);
      read_step(raw[0], from, next_rows, 0);
      read_step(raw[1], from, next_rows, 1);
#pragma unroll 1
      for (; number < end; ++number) {
        rows = next_rows;
        barrier_wait(part->turned.full + turned.stage, turned.parity);
        tail = slice.number + 1 == p.slices && left_of(slice) < positions && has_tail(turned.stage);
        if (tail) break;
        const uint64_t operand = wgmma_turned_operand<T::channels>(
            turned_stages + turned.stage * turned_bytes, static_cast<uint32_t>(unit_step));
        // Another batch's rows may begin otherwise.
        if (slice.number + 1 == p.slices && p.grad_kinds.log2 > 0)
          find_rows(next_rows, first_row, slice.batch + 1);
#pragma unroll
        for (int step = 0; step < steps; ++step) {
          // The products of what was here before are over.
          wgmma_wait<1>();
          auto& fragment = fragments[step % 2];
          make_fragment(fragment, raw[step % 2], rows);
          wgmma_fence();
          if (adds_bias) M::multiply(of_chain, fragment, ones);
#pragma unroll
          for (int run = 0; run < RUNS; ++run)
            M::multiply_turned(sums[run], fragment[0],
                               operand + (places[run] + step * 16 * row_bytes) / 16);
          wgmma_commit();
          // All products of the slice before are over.
          if (step == 1) give_back(part->turned.empty, before);
          if (step + 2 < steps) {
            read_step(raw[step % 2], from, rows, step + 2);
          } else if (number + 1 < end) {
            if (step + 2 == steps) {
              Turn following = grads;
              following.advance(p.grad_stages);
              from = read_begin(following);
            }
            read_step(raw[step % 2], from, next_rows, step + 2 - steps);
          }
        }
        advance();
      }
      wgmma_wait<0>();
      hold(sums);
      hold(of_chain);
      give_back(part->turned.empty, before);
      before = -1;
      if (tail) {
        add_slice<RUNS, UNITS>(sums, of_chain[0], from, turned_stages + turned.stage * turned_bytes,
                               rows, first_row, first_unit, left_of(slice));
        hold(sums);
        hold(of_chain);
        advance();
        if (slice.number == 0) find_rows(next_rows, first_row, slice.batch);
        give_back(part->turned.empty, before);
        before = -1;
        ++number;
      }
      if (number < end) continue;
      fastconv1d::end_chain(bias, of_chain[0]);
      hold(of_chain);
      leave<RUNS, UNITS>(sums, first_unit, first_row, first_chain);
      first_chain = false;
      clear(sums);
      if (number == count) break;
      fence_async_proxy();
      threads_sync(3, T::threads);
    }
    if (count == 0) leave<RUNS, UNITS>(sums, first_unit, first_row, true);
    if (adds_bias && threadIdx.x % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_row + h * 8, out = p.grad_kinds.channel_of(row);
        if (p.grad_kinds.has(row) && out < part->outs) part->bias_part_of(p)[out] = bias[h * 2];
      }
    }
  }

  // Writes sums by way of shared memory, where threads then find them in the gradient's order.
  template <int RUNS, int UNITS>
  __device__ __forceinline__ void leave(const Sums<RUNS, UNITS>& sums, int first_unit,
                                        int first_row, bool first) const {
    constexpr int threads = 128 * T::warpgroups;
    auto* const memory = reinterpret_cast<float*>(turned_stages);
    threads_sync(2, threads);  // all have read what was here
    float* const to =
        memory + first_row * out_pitch + first_unit * T::channels + threadIdx.x % 4 * 2;
#pragma unroll
    for (int run = 0; run < RUNS; ++run)
#pragma unroll
      for (int i = 0; i < UNITS * T::channels / 4; ++i)
        *reinterpret_cast<float2*>(to + i % 2 * 8 * out_pitch + run * T::channels + i / 2 * 8) =
            make_float2(sums[run][i * 2], sums[run][i * 2 + 1]);
    threads_sync(2, threads);
    const int pairs = part->channels * part->taps,
              lanes = static_cast<int>(smaller(threads, (pairs + 31) / 32 * 32)),
              shares = threads / lanes, thread = static_cast<int>(threadIdx.x) - 128,
              share = thread / lanes;
    if (share >= shares) return;
    const int64_t row_step = p.channels_in * p.kernel_size;  // from a channel_out to the next
#pragma unroll 1
    for (int number = thread % lanes; number < pairs; number += lanes) {
      const int channel = number / part->taps, tap = number - channel * part->taps,
                unit = p.form.by_channels ? channel / T::channels : tap;
      const float* const from =
          memory + unit * T::channels + p.input_kinds.row_of(channel % T::channels);
      const int64_t element = part->element_of(p, channel, tap);
      const auto copy = [&](auto* place, const auto& write) {
#pragma unroll 4
        for (int out = share; out < part->outs; out += shares)
          write(place + out * row_step, from[p.grad_kinds.row_of(out) * out_pitch]);
      };
      if (p.output != nullptr)
        copy(static_cast<Element*>(p.output) + element,
             [](Element* at, float sum) { *at = M::to(sum); });
      else if (first)
        copy(part->parts_of(p) + element, [](float* at, float sum) { *at = sum; });
      else
        copy(part->parts_of(p) + element, add_to);
    }
  }
};

// Warpgroups have as many units as a block's need, at most so many: code for each number.
template <class M, class T, int UNITS>
__device__ __forceinline__ void consume_units(const GradTurnedBlock<M, T>& block) {
  if constexpr (UNITS > 1)
    if (block.p.units_each < UNITS) return consume_units<M, T, UNITS - 1>(block);
  if constexpr (UNITS > 1 && UNITS <= T::strided_each)
    if (block.p.stride > 1) return block.template consume<UNITS, 1>();
  block.template consume<1, UNITS>();
}

template <class M, class T>
__global__ void __launch_bounds__(T::threads, 1)
    grad_turned_kernel(const __grid_constant__ GradTurnedParams p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const GradTurnedBlock<M, T> block(p, memory);
  block.begin();
  __syncthreads();
  if (threadIdx.x < 128) {
    keep_registers<T::producer_registers>();
    block.produce();
  } else {
    take_registers<T::consumer_registers>();
    consume_units<M, T, T::units_each>(block);
  }
}

}  // namespace fastconv1d
