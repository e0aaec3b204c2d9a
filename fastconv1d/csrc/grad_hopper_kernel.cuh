// The gradient of a convolution's weight on the tensor cores of Hopper (sm_90a, wgmma).
//
//   tile of the gradient = sum over slices of  input (pairs x positions)  *  grad_output (positions x channels)
//
// A pair is an input channel and a tap: a row of the product, which runs along positions. wgmma takes its
// left operand from registers, so a lane reads a pair's positions where they lie, at any shift, and the taps
// share a row of the input. The right operand is grad_output, a channel's positions as neighbours, as in
// memory. A block computes a tile for a part of batch x positions. Its warps have roles, and hand stages of
// shared memory, a slice of positions each, to each other by barriers:
//
//   warp 0     has boxes of both tensors' rows copied, some slices ahead -> raw, inputs
//   warps 1-3  make what products read of grad_output, a slice each in turn -> ready: rows begin where
//              positions do, values are TF32, what does not exist is zero; and zeros where boxes of the input
//              show padding alone, which are not copied. They add up grad_output's values for the bias.
//   others     warpgroups of M_TILES x 64 pairs by N output channels each; they round the input's values
//
//   raw    = [kind][row of a kind][36 words] of grad_output; kinds are rows that begin alike modulo 16 bytes,
//            see `RowBoxes`
//   ready  = [4 words of positions][N channels and one more, for the banks][4 words], channels kind by kind
//   inputs = [class of taps][kind][row of a kind][vectors] of the input
//
// Where rows of grad_output begin at 16 bytes, DIRECT, boxes come as products read them, in pieces of 16 bytes that are
// interchanged (a "swizzle"), and as TF32. Warps 1-3 then only make zeros of what boxes show before rows of the input,
// and add up the bias of 16-bit values: those of fp32 have been rounded. Where there are many pairs, this takes longer, or
// keeps rows from being direct for longer, than another kernel takes that adds it up apart (grad_bias.cuh).
//
// A word is one fp32 value or two positions of a 16-bit type. Taps near each other share a row of the input;
// if they are so far apart that a row for each is shorter, a channel has as many rows, its classes.
//
// Pairs are numbered tap by tap, and those of a tap kind by kind: the 8 rows of a product that a warp reads at once lie
// an odd number of vectors apart then, in banks of their own, and begin alike within a word. Where a block has four or
// more taps that are neighbours in memory, these are innermost instead: the 8 rows then are neighbouring words of two
// or three channels, where few channels, tap by tap, would be rows of different kinds, which meet in the same banks.
//
// Sums leave by way of shared memory as neighbours: a part for each split, in the gradient's order, that
// `grad_sum_kernel` adds up, or the gradient itself.
//
// Roofline: as that of grad_dense.cuh. Of shared memory's bandwidth a warpgroup's product takes N x 32 bytes
// in the time of 64 x N x 8 words, and grad_output's way through it three times its size where it is not direct: the
// widest tiles keep the tensor cores at two thirds to three quarters.
#pragma once
#include <type_traits>

#include "grad_bias.cuh"
#include "grad_boxes.cuh"

namespace fastconv1d {

// WARPGROUPS of M_TILES x 64 pairs by N output channels each.
template <int WARPGROUPS, int M_TILES, int N>
struct GradHopperTile {
  static constexpr int warpgroups = WARPGROUPS, m_tiles = M_TILES, channels = N;
  static constexpr int pairs_of_warpgroup = 64 * M_TILES, pairs = WARPGROUPS * 64 * M_TILES;
  static constexpr int threads = 128 * (WARPGROUPS + 1);
  static constexpr int registers = 65536 / threads / 8 * 8;  // of a thread, at first
  static constexpr int producer_registers = 96;
  static constexpr int consumer_registers =
      (threads * registers - 128 * producer_registers) / (128 * WARPGROUPS) / 8 * 8;
};

constexpr int kGradStages = 8, kLeastInputStages = 3;  // of a ring at most; of inputs at least
constexpr int kGradMakers = 3;                         // warps
constexpr int64_t kBiasApart = 512;  // pairs of a group from which on the bias is added up apart
constexpr int kGradPartBytes = 6 * 8 * kGradStages + 96;

// How a tile's pairs lie in the input.
struct GradPairs : GradBlocks {
  int classes;  // rows of a channel: one, or one for each tap
  int vectors;  // of a raw row: an odd number, which keeps banks apart
  int kinds_log2;
  bool taps_innermost;
  FASTCONV1D_HD constexpr int row_bytes() const { return 16 * vectors; }
  FASTCONV1D_HD constexpr int kinds() const { return 1 << kinds_log2; }
  FASTCONV1D_HD constexpr int rows_of_kind() const {
    return (channels + kinds() - 1) >> kinds_log2;
  }
  // Channels are numbered kind by kind: the first so many kinds have `rows_of_kind`, the others one less.
  FASTCONV1D_HD constexpr int full_kinds() const {
    return channels - ((rows_of_kind() - 1) << kinds_log2);
  }
  FASTCONV1D_HD constexpr int number_of(int channel) const {
    const int kind = channel & (kinds() - 1), missing = kind - full_kinds();
    return kind * rows_of_kind() + (channel >> kinds_log2) - (missing > 0 ? missing : 0);
  }
  FASTCONV1D_HD constexpr int channel_of(int number) const {
    const int rows = rows_of_kind(), of_full = full_kinds() * rows;
    if (number < of_full) return number % rows << kinds_log2 | number / rows;
    const int beyond = number - of_full;
    return beyond % (rows - 1) << kinds_log2 | (full_kinds() + beyond / (rows - 1));
  }
  // The row of the block's product that a pair is, and the pair that a row is: none of the block's behind the last.
  FASTCONV1D_HD constexpr int row_of(int channel, int tap) const {
    const int number = number_of(channel);
    return taps_innermost ? number * taps + tap : tap * channels + number;
  }
  struct Pair {
    int channel, tap;
  };
  FASTCONV1D_HD constexpr Pair pair_of(int row) const {
    if (row >= channels * taps) return {channels, taps};
    const int inner = taps_innermost ? taps : channels, outer = row / inner,
              rest = row - outer * inner;
    return taps_innermost ? Pair{channel_of(outer), rest} : Pair{channel_of(rest), outer};
  }
  // There is a box for each kind of each class.
  FASTCONV1D_HD constexpr int boxes() const { return classes << kinds_log2; }
  FASTCONV1D_HD constexpr int box_bytes() const { return rows_of_kind() * row_bytes(); }
  // From one box to the next: a multiple of 128.
  FASTCONV1D_HD constexpr int box_step() const { return (box_bytes() + 127) / 128 * 128; }
};

struct GradHopperParams : GradBoxParams {
  GradPairs pairs;
  int grad_kinds_log2;
  int leads;   // whether boxes of the input show what is before a row
  int skips;   // whether those that show nothing of one are not copied
  int rounds;  // whether what comes raw of grad_output is still to be rounded
  int raw_stages, ready_stages, input_stages, input_bytes;
};

template <class M, class T, bool DIRECT>
struct GradHopperBlock {
  using Element = typename M::Element;
  static constexpr int element = sizeof(Element), values = M::values_per_word;
  static constexpr int positions = kGradWords * values, vector = 4 * values;
  static constexpr int quad_bytes = 16 * (T::channels + 1);
  // Bytes of a raw row of grad_output: one piece of 16 more if some begin within one.
  static constexpr int raw_pitch = 16 * (kGradWords / 4 + !DIRECT);
  static constexpr int raw_bytes = T::channels * raw_pitch,
                       ready_bytes =
                           DIRECT ? raw_bytes : (kGradWords / 4 * quad_bytes + 127) / 128 * 128;
  // Lanes that make a row of grad_output ready, or add it up, together; rows that a warp has at once.
  static constexpr int row_lanes = 8, rows_of_warp = 32 / row_lanes;
  static constexpr int bias_bytes = 4 * T::channels * row_lanes * kGradMakers;
  static constexpr int64_t fixed_bytes =
      round_up(kGradPartBytes + bias_bytes, DIRECT ? kOperandAlignment : 128);

  // Of sums on their way out, in shared memory: columns at a time, and from one to the next, which keeps banks apart.
  static constexpr int out_columns = T::channels / 4, out_pitch = T::pairs + 4;

  static constexpr int log2_of_channels = T::channels == 128 ? 7 : 6;
  static_assert(T::channels == 1 << log2_of_channels && kGradWords == 4 * 8);

  struct Part : GradBoxPart {
    StageBarriers<kGradStages> raw, ready, inputs;
  };
  static_assert(sizeof(Part) <= kGradPartBytes);

  const GradHopperParams& p;
  Part* part;
  float* bias;                                     // [warp][row of grad_output][lane]: its sums
  char *raw_stages, *ready_stages, *input_stages;  // the first of each

  __device__ __forceinline__ GradHopperBlock(const GradHopperParams& params, uint32_t* memory)
      : p(params),
        part(reinterpret_cast<Part*>(memory)),
        bias(reinterpret_cast<float*>(reinterpret_cast<char*>(memory) + kGradPartBytes)),
        raw_stages(reinterpret_cast<char*>(memory) + fixed_bytes),
        ready_stages(DIRECT ? raw_stages : raw_stages + params.raw_stages * raw_bytes),
        input_stages(ready_stages + params.ready_stages * ready_bytes) {}

  // Before anybody looks: a warp has a thread for each stage, since one takes 20 cycles a barrier, another warp's
  // first thread finds out what the block computes.
  __device__ __forceinline__ void begin() const {
    if (threadIdx.x == 32) part->find(p, p.pairs);
    if (threadIdx.x >= kGradStages) return;
    const int stage = static_cast<int>(threadIdx.x);
    barrier_init(part->raw.full + stage, 1);
    barrier_init(part->raw.empty + stage, 1);
    barrier_init(part->ready.full + stage, DIRECT ? kGradMakers : 1);
    barrier_init(part->ready.empty + stage, 4 * T::warpgroups);
    barrier_init(part->inputs.full + stage, 1);
    barrier_init(part->inputs.empty + stage, 4 * T::warpgroups);
    fence_async_proxy();
  }

  // --- the way in ---------------------------------------------------------------------------------

  // Where in the input's row a class of taps begins to see, for a slice.
  __device__ __forceinline__ int first_of(int tap_class, int slice) const {
    return static_cast<int>((part->first_tap + tap_class) * p.dilation - p.padding) +
           slice * positions * p.stride;
  }
  // By how many positions a row of the input begins behind its raw one.
  __device__ __forceinline__ int ahead_of(int row, int first) const {
    return (p.input_boxes.leads[row & (p.pairs.kinds() - 1)] + first) & (vector - 1);
  }

  // The classes of taps whose boxes show something of a row: those beside have zeros made for them. The copy engine
  // makes some 5 bytes of these in a cycle, and taps far apart may have no more than that.
  struct Seen {
    int begin = 0, end = 0, slice = -1;
    __device__ __forceinline__ bool all(const GradPairs& c) const {
      return begin == 0 && end == c.classes;
    }
  };
  // Moves on to a later slice of a row, of which fewer classes are before the row's begin and more behind its end, or to
  // another row's.
  __device__ __forceinline__ void see(Seen& seen, int slice) const {
    const GradPairs& c = p.pairs;
    if (slice <= seen.slice || seen.slice < 0) {
      seen.begin = p.skips ? c.classes : 0;
      seen.end = c.classes;
    }
    seen.slice = slice;
    if (!p.skips) return;
    const int dilation = p.dilation, first = first_of(0, slice) - dilation,
              end = p.length + vector - 1;
    while (seen.begin > 0 && first + seen.begin * dilation + c.vectors * vector > 0) --seen.begin;
    while (seen.end > 0 && first + seen.end * dilation >= end) --seen.end;
  }

  // One of the boxes of a slice: where it goes in a stage, and where it lies for the first slice of a batch.
  struct Box {
    const BoxMap* map;
    int place, column, row;
  };
  __device__ __forceinline__ Box grad_box(int kind, int batch) const {
    const int row = part->first_grad_row(p, batch) + kind;
    return {&p.grad_boxes.maps[row & ((1 << p.grad_kinds_log2) - 1)],
            kind * (T::channels >> p.grad_kinds_log2) * raw_pitch, 0, row >> p.grad_kinds_log2};
  }
  __device__ __forceinline__ Box input_box(int unit, int batch) const {
    const GradPairs& c = p.pairs;
    const int row = part->first_input_row(p, batch) + (unit & (c.kinds() - 1)),
              of_row = row & (c.kinds() - 1), first = first_of(unit >> c.kinds_log2, 0);
    return {&p.input_boxes.maps[of_row], unit * c.box_step(),
            first + p.input_boxes.leads[of_row] - ahead_of(row, first), row >> c.kinds_log2};
  }

  // Warp 0. A lane keeps what it knows of its first boxes as long as the batch is the same.
  __device__ __forceinline__ void copy() const {
    const int lane = threadIdx.x % 32, grad_kinds = 1 << p.grad_kinds_log2, boxes = p.pairs.boxes(),
              input_step = positions * p.stride;
    const auto class_bytes = static_cast<uint32_t>(p.pairs.box_bytes() << p.pairs.kinds_log2);
    GradSlice slice = part->first_slice(p);
    int of_batch = -1;
    Box grad{}, input{};
    Seen seen;
    Turn raw, inputs;
#pragma unroll 1
    for (int number = 0; number < part->count; ++number) {
      if (of_batch != slice.batch) {
        of_batch = slice.batch;
        grad = grad_box(lane % grad_kinds, of_batch);
        input = input_box(lane < boxes ? lane : 0, of_batch);
      }
      uint64_t *const raw_full = part->raw.full + raw.stage, *const inputs_full =
                                                                 part->inputs.full + inputs.stage;
      barrier_wait((DIRECT ? part->ready : part->raw).empty + raw.stage, raw.parity ^ 1);
      // DIRECT, rings are equally long, and who gives a stage of grad_output back has read that of the input.
      if (!DIRECT) barrier_wait(part->inputs.empty + inputs.stage, inputs.parity ^ 1);
      see(seen, slice.number);
      const int begin = seen.begin << p.pairs.kinds_log2, end = seen.end << p.pairs.kinds_log2;
      if (lane == 0) {
        barrier_arrive_expecting(raw_full, T::channels * raw_pitch);
        barrier_arrive_expecting(inputs_full, (seen.end - seen.begin) * class_bytes);
      }
      if (lane < grad_kinds)
        copy_box(raw_stages + raw.stage * raw_bytes + grad.place, grad.map,
                 slice.number * positions, grad.row, raw_full);
      char* const to = input_stages + inputs.stage * p.input_bytes;
      for (int i = lane; i < end; i += 32) {
        if (i < begin) continue;
        const Box box = i < 32 ? input : input_box(i, of_batch);
        copy_box(to + box.place, box.map, box.column + slice.number * input_step, box.row,
                 inputs_full);
      }
      reconverge();
      raw.advance(p.raw_stages);
      inputs.advance(p.input_stages);
      slice.advance(p.slices);
    }
  }

  // How far rows begin behind a multiple of 16 bytes: not at all, or so many words and maybe a 16-bit value, of
  // `bits`. Banks are apart where whole vectors are read.
  static constexpr int nowhere = -1;
  template <int WORDS>
  static __device__ __forceinline__ uint4 read(const char* from, int bits) {
    const auto* const vectors = reinterpret_cast<const uint4*>(from);
    const uint4 first = vectors[0];
    if constexpr (WORDS == nowhere) {
      return first;
    } else {
      const uint4 second = vectors[1];
      const uint32_t both[8] = {first.x,  first.y,  first.z,  first.w,
                                second.x, second.y, second.z, second.w};
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        word[i] = values == 1 ? both[WORDS + i]
                              : shifted_right(both[WORDS + i], both[WORDS + i + 1], bits);
      return make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
  // Calls function(words), an integral constant as `read` wants it, for rows that begin so many values behind 16 bytes.
  template <class Function>
  static __device__ __forceinline__ void with_words_of(int ahead, const Function& function) {
    const int bytes = ahead * element;
    if (bytes == 0) return function(std::integral_constant<int, nowhere>{});
    if constexpr (element == 2)
      if (bytes < 4) return function(std::integral_constant<int, 0>{});
    if (bytes < 8) return function(std::integral_constant<int, 1>{});
    if (bytes < 12) return function(std::integral_constant<int, 2>{});
    function(std::integral_constant<int, 3>{});
  }
  static __device__ __forceinline__ float sum_of(const uint4& words) {
    Element value[vector];
    memcpy(value, &words, 16);
    float sum = 0;
#pragma unroll
    for (int e = 0; e < vector; ++e) sum += M::from(value[e]);
    return sum;
  }
  static __device__ __forceinline__ uint4 rounded(const uint4& words) {
    return make_uint4(nearest_tf32_bits(float_of(words.x)), nearest_tf32_bits(float_of(words.y)),
                      nearest_tf32_bits(float_of(words.z)), nearest_tf32_bits(float_of(words.w)));
  }

  // Makes the rows of a kind, some at a time, with some lanes for each. All positions exist if they are WHOLE. A lane
  // adds what it has of a row to `sums`, if any.
  template <bool WHOLE>
  __device__ __forceinline__ void make_rows(const char* raw, char* ready, float* sums, int ahead,
                                            int first) const {
    // At once as many as a kind has at least, where there are most kinds, but 4.
    constexpr int fewest = T::channels / (16 / element) / rows_of_warp,
                  at_once = fewest < 4 ? fewest : 4;
    const int lane = threadIdx.x % 32, at = lane % row_lanes,
              rows = T::channels >> p.grad_kinds_log2, bits = ahead * element * 8 & 31;
    const char* from = raw + at * 16 + lane / row_lanes * raw_pitch;
    char* to = ready + at * quad_bytes + lane / row_lanes * 16;
    with_words_of(ahead, [&](auto behind) {
#pragma unroll 1
      for (int row = 0; row < rows; row += rows_of_warp * at_once) {
        uint4 words[at_once];
#pragma unroll
        for (int i = 0; i < at_once; ++i)
          words[i] = read<behind.value>(from + i * rows_of_warp * raw_pitch, bits);
        if (!WHOLE)
#pragma unroll
          for (int i = 0; i < at_once; ++i)
            clear_beside<Element>(words[i], first + at * vector, p.length_out);
        if (sums != nullptr)
#pragma unroll
          for (int i = 0; i < at_once; ++i)
            sums[(row + i * rows_of_warp) * row_lanes + lane] += sum_of(words[i]);
        if (values == 1 && p.rounds)
#pragma unroll
          for (int i = 0; i < at_once; ++i) words[i] = rounded(words[i]);
#pragma unroll
        for (int i = 0; i < at_once; ++i)
          *reinterpret_cast<uint4*>(to + i * rows_of_warp * 16) = words[i];
        from += at_once * rows_of_warp * raw_pitch;
        to += at_once * rows_of_warp * 16;
      }
    });
  }
  // Whether some rows of the input begin behind what their boxes show, or some boxes show nothing.
  __device__ __forceinline__ bool needs_zeros(const GradSlice& slice, Seen& seen) const {
    see(seen, slice.number);
    return (p.leads != 0 && first_of(0, slice.number) < 0) || !seen.all(p.pairs);
  }
  // Makes these: a warp, of so many, in some of the boxes.
  __device__ __forceinline__ void make_zeros(const GradSlice& slice, const Seen& seen,
                                             const Turn& inputs, int warp, int warps) const {
    const GradPairs& c = p.pairs;
    barrier_wait(part->inputs.full + inputs.stage, inputs.parity);
#pragma unroll 1
    for (int unit = warp; unit < c.boxes(); unit += warps) {
      char* const box = input_stages + inputs.stage * p.input_bytes + unit * c.box_step();
      const int tap_class = unit >> c.kinds_log2;
      if (tap_class < seen.begin || tap_class >= seen.end) {
        for (int i = threadIdx.x % 32; i < c.box_bytes() / 16; i += 32)
          reinterpret_cast<uint4*>(box)[i] = make_uint4(0, 0, 0, 0);
      } else {
        make_lead_zero(box, part->first_input_row(p, slice.batch) + (unit & (c.kinds() - 1)),
                       first_of(tap_class, slice.number));
      }
    }
  }
  __device__ __forceinline__ void make_lead_zero(char* box, int row, int first) const {
    const GradPairs& c = p.pairs;
    const int lead = p.input_boxes.leads[row & (c.kinds() - 1)],
              begin = ahead_of(row, first) - first - lead;  // of these, in the box's rows
    for (int i = threadIdx.x % 32; i < c.rows_of_kind() * lead; i += 32) {
      const int of_kind = i / lead, at = begin + i - of_kind * lead;
      if (at >= 0 && at < c.vectors * vector)
        reinterpret_cast<Element*>(box + of_kind * c.row_bytes())[at] = 0;
    }
  }

  // Whether products wait for the makers, who have something to do for each slice.
  __device__ __forceinline__ bool waits_for_makers() const {
    return !DIRECT || p.leads != 0 || p.skips != 0 || part->adds_bias;
  }

  // One of warps 1-3 where grad_output comes as products read it.
  __device__ __forceinline__ void add_up(int warp) const {
    if (!waits_for_makers()) return;
    constexpr int most = (T::channels / rows_of_warp + kGradMakers - 1) / kGradMakers;
    const int lane = threadIdx.x % 32;
    // Of a lane's rows, every so many.
    const auto row_of = [&](int i) { return (warp + i * kGradMakers) * rows_of_warp; };
    float sums[most]{};
    GradSlice slice = part->first_slice(p);
    Seen seen;
    Turn raw, inputs;
#pragma unroll 1
    for (int number = 0; number < part->count; ++number) {
      barrier_wait(part->raw.full + raw.stage, raw.parity);
      if (part->adds_bias) {
        const char* const from = raw_stages + raw.stage * raw_bytes + lane * 16;
#pragma unroll
        for (int i = 0; i < most; ++i)
          if (row_of(i) < T::channels)
            sums[i] += sum_of(*reinterpret_cast<const uint4*>(from + row_of(i) * raw_pitch));
      }
      if (needs_zeros(slice, seen)) {
        make_zeros(slice, seen, inputs, warp, kGradMakers);
        fence_async_proxy();
      }
      give_back(part->ready.full, raw.stage);
      raw.advance(p.raw_stages);
      inputs.advance(p.input_stages);
      slice.advance(p.slices);
    }
#pragma unroll
    for (int i = 0; i < most; ++i)
      if (row_of(i) < T::channels) bias[row_of(i) * row_lanes + lane] = sums[i];
  }

  // One of warps 1-3.
  __device__ __forceinline__ void make(int warp) const {
    const int grad_kinds = 1 << p.grad_kinds_log2, rows = T::channels >> p.grad_kinds_log2;
    constexpr int bias_sums = T::channels * row_lanes;
    float* const sums = part->adds_bias ? bias + warp * bias_sums : nullptr;
    // By the lanes that add to them.
    for (int i = threadIdx.x % 32; i < bias_sums; i += 32) bias[warp * bias_sums + i] = 0;
    GradSlice slice = part->first_slice(p);
    Seen seen;
    Turn raw, ready, inputs;
    const auto advance = [&] {
      raw.advance(p.raw_stages);
      ready.advance(p.ready_stages);
      inputs.advance(p.input_stages);
      slice.advance(p.slices);
    };
    for (int i = 0; i < warp; ++i) advance();
#pragma unroll 1
    for (int number = warp; number < part->count; number += kGradMakers) {
      const char* const from = raw_stages + raw.stage * raw_bytes;
      char* const to = ready_stages + ready.stage * ready_bytes;
      const int first_row = part->first_grad_row(p, slice.batch),
                position = slice.number * positions;
      const bool whole = position + positions <= p.length_out;
      barrier_wait(part->raw.full + raw.stage, raw.parity);
      barrier_wait(part->ready.empty + ready.stage, ready.parity ^ 1);
#pragma unroll 1
      for (int kind = 0; kind < grad_kinds; ++kind) {
        const int row = kind * rows,
                  ahead = p.grad_boxes.leads[(first_row + kind) & (grad_kinds - 1)];
        float* const of_kind = sums == nullptr ? nullptr : sums + row * row_lanes;
        if (whole)
          make_rows<true>(from + row * raw_pitch, to + row * 16, of_kind, ahead, position);
        else
          make_rows<false>(from + row * raw_pitch, to + row * 16, of_kind, ahead, position);
      }
      if (needs_zeros(slice, seen)) make_zeros(slice, seen, inputs, 0, 1);
      fence_async_proxy();
      give_back(part->ready.full, ready.stage);
      give_back(part->raw.empty, raw.stage);
      for (int i = 0; i < kGradMakers; ++i) advance();
    }
  }

  __device__ __forceinline__ void produce() const {
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    if (warp == 0)
      copy();
    else if (DIRECT)
      add_up(warp - 1);
    else
      make(warp - 1);
    if (part->adds_bias) write_bias();
    wait_for_kernel_before();  // so that both are over for the kernel after this one
  }

  // The channel of the block that a row of grad_output, or a column of the products, has.
  __device__ __forceinline__ int out_of(int row) const {
    const int of_kind = T::channels >> p.grad_kinds_log2;  // a power of two
    return ((row & (of_kind - 1)) << p.grad_kinds_log2) +
           (row >> (log2_of_channels - p.grad_kinds_log2));
  }

  __device__ __forceinline__ void write_bias() const {
    warpgroup_sync(1);
    for (int row = threadIdx.x; row < T::channels; row += 128) {
      const int out = out_of(row);
      float sum = 0;
      for (int warp = 0; warp < (DIRECT ? 1 : kGradMakers); ++warp)
#pragma unroll
        for (int lane = 0; lane < row_lanes; ++lane)
          sum += bias[(warp * T::channels + row) * row_lanes + lane];
      if (out < part->outs) part->bias_part_of(p)[out] = sum;
    }
  }

  // --- products -----------------------------------------------------------------------------------

  using Sums = float[T::m_tiles][1][T::channels / 2];
  using Fragments = uint32_t[2][T::m_tiles][1][4];

  static __device__ __forceinline__ void hold(Sums& sums) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m) wgmma_hold(sums[m][0]);
  }
  static __device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int i = 0; i < T::channels / 2; ++i) sums[m][0][i] = 0;
    hold(sums);
  }

  // The number of a lane's row in the tile.
  static __device__ __forceinline__ int row_of(int warpgroup, int m, int h) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    return warpgroup * T::pairs_of_warpgroup + m * 64 + warp * 16 + lane / 4 + h * 8;
  }

  using Pair = GradPairs::Pair;
  __device__ __forceinline__ bool exists(const Pair& pair) const {
    return pair.channel < part->channels && pair.tap < part->taps;
  }

  // Where a lane's first value of each of its rows lies in a stage of inputs, in bytes.
  struct Rows {
    int at[T::m_tiles][2];
    __device__ __forceinline__ int word(int m, int h) const {
      return values == 1 ? at[m][h] : at[m][h] & ~3;
    }
    // How far behind its word's beginning.
    __device__ __forceinline__ int bits(int m, int h) const { return at[m][h] * 8 & 31; }
  };
  __device__ __forceinline__ void find_rows(Rows& rows, int warpgroup, int batch) const {
    const GradPairs& c = p.pairs;
    const int first_row = part->first_input_row(p, batch);
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Pair pair = c.pair_of(row_of(warpgroup, m, h));
        if (!exists(pair)) pair = {};  // any word will do
        const int channel = pair.channel, tap = pair.tap, tap_class = c.classes > 1 ? tap : 0,
                  kind = channel & (c.kinds() - 1), unit = (tap_class << c.kinds_log2) + kind,
                  ahead = ahead_of(first_row + kind, first_of(tap_class, 0)),
                  value = ahead + (c.classes > 1 ? 0 : tap * p.dilation) +
                          static_cast<int>(threadIdx.x % 4) * values * p.stride;
        rows.at[m][h] =
            unit * c.box_step() + (channel >> c.kinds_log2) * c.row_bytes() + value * element;
        keep_in_register(rows.at[m][h]);
      }
  }

  // What a lane reads for a step: of each mma tile, half and row, a word and what follows it.
  using Raw = uint32_t[T::m_tiles][2][2][values];

  // UNIT: positions are neighbours in the input.
  template <bool UNIT>
  __device__ __forceinline__ void read_step(Raw& raw, const char* inputs, const Rows& rows,
                                            int step) const {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const char* const from =
              inputs + rows.word(m, h) + (step * 8 + half * 4) * 4 * (UNIT ? 1 : p.stride);
          auto& words = raw[m][half][h];
          words[0] = *reinterpret_cast<const uint32_t*>(from);
          if constexpr (values == 2 && UNIT)
            words[1] = rows.bits(m, h) > 0 ? reinterpret_cast<const uint32_t*>(from)[1] : 0;
          else if constexpr (values == 2)
            words[1] =
                *reinterpret_cast<const uint16_t*>(from + rows.bits(m, h) / 8 + 2 * p.stride);
        }
  }
  // Makes words as wgmma takes them. WHOLE: all positions of the slice exist in grad_output; or those beyond
  // the `left` must not meet what the input has there, which may be infinite.
  template <bool UNIT, bool WHOLE>
  __device__ __forceinline__ void make_fragment(uint32_t (&fragment)[T::m_tiles][1][4],
                                                const Raw& raw, const Rows& rows, int step,
                                                int left) const {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const auto& words = raw[m][half][h];
          uint32_t word = words[0];
          if constexpr (values == 2 && UNIT)
            word = shifted_right(word, words[1], rows.bits(m, h));
          else if constexpr (values == 2)
            word = halves_of(word >> rows.bits(m, h), words[1], false);
          if constexpr (!WHOLE) {
            const int number = step * 8 + half * 4 + static_cast<int>(threadIdx.x % 4),
                      exist = left - number * values;
            if (exist <= 0) word = 0;
            if (values == 2 && exist == 1) word &= 0xffffu;
          }
          fragment[m][0][half * 2 + h] = word;
        }
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m) wgmma_hold(fragment[m][0]);
  }

  // The stages that a slice is in, and those of the slice before; the latter are given back.
  struct Stages {
    int input, ready;
  };
  template <bool UNIT, bool WHOLE>
  __device__ __forceinline__ void multiply_slice(Sums& sums, Fragments& fragments,
                                                 const Stages& stages, const Stages& before,
                                                 const Rows& rows, int left) const {
    const char* const inputs = input_stages + stages.input * p.input_bytes;
    const char* const ready = ready_stages + stages.ready * ready_bytes;
    const Operand right = DIRECT ? Operand::swizzled(ready) : Operand(ready, quad_bytes, 0);
    // Words are read while products of the step before are made, unless one instruction after another makes
    // a word where it is: ptxas serialises products then.
    constexpr bool early =
        values > 1 && T::m_tiles * T::channels <= 128;  // or there are no registers
    Raw raw;
    if (early) read_step<UNIT>(raw, inputs, rows, 0);
#pragma unroll
    for (int step = 0; step < kGradSteps; ++step) {
      // The products of what was here before are over.
      wgmma_wait<1>();
      if (!early) read_step<UNIT>(raw, inputs, rows, step);
      auto& fragment = fragments[step % 2];
      make_fragment<UNIT, WHOLE>(fragment, raw, rows, step, left);
      wgmma_fence();
#pragma unroll
      for (int m = 0; m < T::m_tiles; ++m) M::multiply(sums[m], fragment[m], right.step(step));
      wgmma_commit();
      if (early && step + 1 < kGradSteps) read_step<UNIT>(raw, inputs, rows, step + 1);
      // All products of the slice before are over.
      if (step == 1) {
        give_back(part->ready.empty, before.ready);
        if (!DIRECT) give_back(part->inputs.empty, before.input);
      }
    }
  }

  template <bool UNIT>
  __device__ __forceinline__ void consume() const {
    // The same for all lanes, which the compiler should know.
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - 128) / 128, 0);
    GradSlice slice = part->first_slice(p);
    Rows rows;
    find_rows(rows, warpgroup, slice.batch);
    Sums sums;
    Fragments fragments;
    clear(sums);
    Turn inputs, ready;
    Stages before{-1, -1};
    int chained = 0;
    bool first_chain = true, was_whole = true;
    uint64_t* const full = waits_for_makers() ? part->ready.full : part->raw.full;
#pragma unroll 1
    for (int number = 0; number < part->count; ++number) {
      barrier_wait(part->inputs.full + inputs.stage, inputs.parity);
      barrier_wait(full + ready.stage, ready.parity);
      const auto left = static_cast<int>(
          smaller(positions, p.length_out - static_cast<int64_t>(slice.number) * positions));
      const bool whole = left == positions;
      if (whole != was_whole) wgmma_settle();
      was_whole = whole;
      const Stages stages{inputs.stage, ready.stage};
      if (whole)
        multiply_slice<UNIT, true>(sums, fragments, stages, before, rows, left);
      else
        multiply_slice<UNIT, false>(sums, fragments, stages, before, rows, left);
      before = stages;
      inputs.advance(p.input_stages);
      ready.advance(p.ready_stages);
      slice.advance(p.slices);
      // Another batch's rows may begin otherwise.
      if (slice.number == 0 && p.pairs.kinds_log2 > 0) find_rows(rows, warpgroup, slice.batch);
      if (++chained == kGradChain / positions && number + 1 < part->count) {
        wgmma_wait<0>();
        hold(sums);
        end_chain(sums, warpgroup, first_chain);
        clear(sums);
        first_chain = false;
        chained = 0;
      }
    }
    wgmma_wait<0>();
    hold(sums);
    leave(sums, warpgroup, first_chain);
  }

  // Writes the last sums, by way of shared memory: some columns of all warpgroups at a time, of which a thread then has
  // pairs in the gradient's order. Code that runs once takes longer to be fetched than to run, and so chunks share
  // all but the choice of their registers.
  __device__ __forceinline__ void leave(const Sums& sums, int warpgroup, bool first) const {
    constexpr int columns = out_columns, chunks = T::channels / columns, pitch = out_pitch;
    static_assert(4 * columns * pitch <= kGradMakers * raw_bytes);
    // All that came here has been made ready, or multiplied.
    float* const chunk_sums = reinterpret_cast<float*>(raw_stages);
    float* const to = chunk_sums + threadIdx.x % 4 * 2 * pitch + row_of(warpgroup, 0, 0);
    const int thread = static_cast<int>(threadIdx.x) - 128, number = thread % T::pairs,
              share = thread / T::pairs, channel = number / part->taps,
              tap = number - channel * part->taps;
    const bool has_pair = channel < part->channels;
    const float* const from = chunk_sums + p.pairs.row_of(channel, tap);
    const int64_t element = part->element_of(p, channel, tap);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      threads_sync(2, 128 * T::warpgroups);  // all have read what was here
#pragma unroll
      for (int which = 0; which < chunks; ++which)
        if (which == chunk)
#pragma unroll
          for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
            for (int i = 0; i < columns / 2; ++i)
              to[(i / 4 * 8 + i % 2) * pitch + m * 64 + i / 2 % 2 * 8] =
                  sums[m][0][which * columns / 2 + i];
      threads_sync(2, 128 * T::warpgroups);
      if (!has_pair) continue;
      const int column = chunk * columns;
      if (p.output != nullptr)
        copy_columns(from, column, share, static_cast<Element*>(p.output) + element,
                     [](Element* at, float sum) { *at = M::to(sum); });
      else if (first)
        copy_columns(from, column, share, part->parts_of(p) + element,
                     [](float* at, float sum) { *at = sum; });
      else
        copy_columns(from, column, share, part->parts_of(p) + element, add_to);
    }
  }
  // Calls write(place, sum) for a thread's pair and its share of a chunk's columns; `to` is the place of the block's
  // first channel_out.
  template <class Place, class Write>
  __device__ __forceinline__ void copy_columns(const float* from, int column, int share, Place* to,
                                               const Write& write) const {
    constexpr int of_run =
        8;  // columns of one kind, at least: their channels are equally far apart
    constexpr int shares = 128 * T::warpgroups / T::pairs;
    static_assert(T::channels >> 3 >= of_run && shares * T::pairs == 128 * T::warpgroups);
    const int64_t row_step = p.channels_in * p.kernel_size;  // from a channel_out to the next
    const int step = shares << p.grad_kinds_log2;
    from += share * out_pitch;
#pragma unroll 1
    for (int run = 0; run < out_columns; run += of_run) {
      const int first = out_of(column + run) + (share << p.grad_kinds_log2);
      Place* at = to + first * row_step;
#pragma unroll
      for (int i = 0; i < of_run / shares; ++i, at += step * row_step, from += shares * out_pitch)
        if (first + i * step < part->outs) write(at, *from);
    }
  }

  // Adds a chain's sums to the part, or begins it, while shared memory is in use.
  __device__ __forceinline__ void end_chain(const Sums& sums, int warpgroup, bool first) const {
    const int64_t row_step = p.channels_in * p.kernel_size;
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Pair pair = p.pairs.pair_of(row_of(warpgroup, m, h));
        if (!exists(pair)) continue;
        float* const to = part->parts_of(p) + part->element_of(p, pair.channel, pair.tap);
        int first_column = static_cast<int>(threadIdx.x % 4) * 2;
        keep_in_register(first_column);  // or all columns' channels would be, from row to row
#pragma unroll
        for (int i = 0; i < T::channels / 4; ++i) {
          const int out = out_of(first_column + i / 2 * 8 + i % 2);
          if (out >= part->outs) continue;
          const float sum = sums[m][0][i / 2 * 4 + h * 2 + i % 2];
          if (first)
            to[out * row_step] = sum;
          else
            add_to(to + out * row_step, sum);
        }
      }
  }
};

template <class M, class T, bool DIRECT>
__global__ void __launch_bounds__(T::threads, 1)
    grad_hopper_kernel(const __grid_constant__ GradHopperParams p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const GradHopperBlock<M, T, DIRECT> block(p, memory);
  block.begin();
  __syncthreads();
  if (threadIdx.x < 128) {
    keep_registers<T::producer_registers>();
    block.produce();
  } else {
    take_registers<T::consumer_registers>();
    if (p.stride == 1)
      block.template consume<true>();
    else
      block.template consume<false>();
  }
}

}  // namespace fastconv1d
