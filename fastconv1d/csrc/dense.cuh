// The dense convolution on tensor cores, NCL to NCL, from sm_80 on.
//
// One block computes a tile of CHANNELS output channels by POSITIONS output positions of one phase,
// and then more, so that its start is paid once. Blocks take turns on the tiles: what is read and
// written at a time lies together.
//
//   output tile = sum over slices of  weights (channels x slice)  *  window (slice x positions)
//
// A slice is some words of input channels times a group of taps (see schedule.h). The input is kept
// as 32-bit words [channel word][column]: one fp32 value, or two neighbouring channels of a 16-bit
// type. So a tap is the same window read some columns further on, whatever shift, dilation or
// alignment, and m16n8k8 (TF32) and m16n8k16 (16-bit) share one fragment pattern. fp32-accurate mode
// splits each value in a high and a low TF32 part, kept in two planes, and adds three products.
//
// Shared memory: a barrier; the bias; windows of planes x slice_words x pitch words; the weights,
// fragment-major, ready for LDS.128. Where all weights fit, they stay, and there are 3 windows: a
// warp may then be a slice ahead of another, so that some write their sums while others multiply.
// Else there are 2 windows and 2 slices of weights, and while a slice is multiplied the next one
// travels. Windows travel through registers, weights by cp.async.
//
// Roofline: what the kernel reads and writes once is what DRAM sees (windows overlap in L1/L2 only).
// Output rows are rarely 32-byte aligned, and stores that fill part of a sector cost up to three
// times as much. An mma tile holds 8 positions of a row in 4 lanes: just a sector of fp32, if only it
// begins at one. So each warp takes channels whose rows are aligned alike and computes positions that
// begin at a boundary (see schedule.h): sums go straight from registers to whole sectors.
#pragma once
#include "tile.cuh"

namespace fastconv1d {

// WARPS_M x WARPS_N warps of M_TILES x N_TILES mma tiles of 16 channels by 8 positions each.
template <int WARPS_M, int WARPS_N, int M_TILES, int N_TILES>
struct Tile {
  static constexpr int warps_m = WARPS_M, warps_n = WARPS_N, m_tiles = M_TILES, n_tiles = N_TILES;
  static constexpr int warps = WARPS_M * WARPS_N, threads = 32 * warps;
  static constexpr int channels = 16 * WARPS_M * M_TILES, positions = 8 * WARPS_N * N_TILES;
  static constexpr int channels_log2 = log2_of(channels);
  static_assert(n_tiles % 2 == 0, "stores and products take two tiles at a time");
  static_assert(channels == 1 << channels_log2 && warps_m == 1 << log2_of(warps_m),
                "powers of two");
};

// What follows from a mode and a tile together.
template <class M, class T>
struct Layout {
  using Element = typename M::Element;
  // Blocks that share a multiprocessor: one writes while another multiplies.
  static constexpr int sums = 4 * T::m_tiles * T::n_tiles * (M::chain ? 2 : 1);
  static constexpr int blocks =
      static_cast<int>(larger(1, smaller(2, 65536 / (T::threads * (sums + 64)))));

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // For sm_100 the compiler would spill some registers: TF32 gives up its places, the others the
  // second block.
  static constexpr int launch_blocks = M::keeps_places ? blocks : 1;
  static constexpr bool keeps_places = false;
#else
  static constexpr int launch_blocks = blocks;
  static constexpr bool keeps_places = M::keeps_places;
#endif

  // Vectors of 4 columns of the next window that a thread, and all of them, hold on their way in:
  // enough for 32 rows of a short window of fp32, for 24 of a 16-bit type.
  static constexpr int rows = sizeof(Element) == 4 ? 32 : 24;
  static constexpr int items =
      static_cast<int>(ceil_div(rows * (T::positions + 24), 4 * T::threads));
  static constexpr int window_vectors = items * T::threads;
};

struct DenseParams {
  const void* input;
  const uint32_t* weights;  // packed
  const void* bias;
  void* output;
  Phase phase;
  Schedule schedule;
  int64_t batch, length, length_out, input_batch_stride, input_channel_stride;
  int64_t channels_in, channels_out, groups;  // channels of one group, less than 2^31
  int64_t channel_blocks, tiles, runs;        // `runs` blocks take turns on batch x tiles
  Place step;                                 // from a block's tile to its next
  int64_t first_position;        // of the input, that the first tile's window begins with
  int64_t slice_stride;          // of the input, from one slice's channels to the next one's
  int tile_step;                 // of the input, from one tile to the next
  int classes_log2, most_shift;  // of the alignment of rows, see schedule.h
  int aligned_input;             // windows may be read in vectors of 4 columns
  int aligned_output;            // every row's part of a tile, to 8 bytes
};

struct PackParams : WeightParams {
  Schedule schedule;
  int classes_log2;
};

// Rewrites the weight in the order in which the dense kernel reads it:
// [group][channel block][slice][tap][step of 8 words][16 channels][lane][4 words].
// One thread makes one lane's fragment.
template <class M, class T>
__global__ void __launch_bounds__(128) pack_kernel(const PackParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.count) return;
  const Schedule& s = p.schedule;
  Digits<int64_t> digits{index};
  const int64_t lane = digits.take(32), block16 = digits.take(T::channels / 16),
                step = digits.take(s.slice_words / 8), j = digits.take(s.taps_per_group),
                tap_group_index = digits.take(s.groups),
                channel_slice = digits.take(s.channel_slices),
                channel_block = digits.take(p.channel_blocks), group = digits.rest;
  const TapGroup taps = tap_group(s, p.phase.taps, static_cast<int>(tap_group_index));

  uint32_t fragment[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = static_cast<int>(block16 * 16 + lane / 4 + (i % 2) * 8);
    const int64_t out =
        channel_block * T::channels + channel_of_row(row, T::channels_log2, p.classes_log2);
    const int64_t word = channel_slice * s.slice_words + step * 8 + lane % 4 + (i / 2) * 4;
    typename M::Element value[M::values_per_word];
#pragma unroll
    for (int v = 0; v < M::values_per_word; ++v)
      value[v] = j < taps.count
                     ? weight_of<typename M::Element>(p, group, out, word * M::values_per_word + v,
                                                      taps.first + j * s.classes)
                     : typename M::Element{0};
    fragment[i] = M::pack(value);
  }
  store_16(p.packed + 4 * index, make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]));
}

// Where a slice's window comes from.
template <class Element>
struct Source {
  const Element* window;  // first channel, first column
  int64_t position;       // of the first column
  int channels;           // left in the group, this slice's included
  bool whole;             // inside the input, aligned, columns one position apart
};

// A slice's window on its way through registers, 4 columns of a row at a time. Threads take
// such vectors in the order in which they lie in shared memory.
template <class M, class T>
struct Incoming {
  using L = Layout<M, T>;
  using Element = typename M::Element;
  static constexpr int words = 4 * M::values_per_word * sizeof(Element) / 4;
  uint32_t word[L::items][words];  // for each channel of the row in turn, 4 neighbouring columns
  // Row << 16 | column of each vector or, where registers are too scarce, of the first.
  int place[L::keeps_places ? L::items : 1];

  __device__ __forceinline__ explicit Incoming(const Schedule& s) {
    const int vectors = s.pitch / 4;
#pragma unroll
    for (int i = 0; i < (L::keeps_places ? L::items : 1); ++i) {
      const int index = threadIdx.x + i * T::threads;
      place[i] = index / vectors << 16 | index % vectors * 4;
    }
  }

  // Calls visit(item, row, column) for the thread's vectors.
  template <class Visit>
  __device__ __forceinline__ void for_each(const Schedule& s, Visit visit) const {
    const int vectors = s.pitch / 4, step = T::threads / vectors << 16 | T::threads % vectors * 4;
    int at = place[0];
#pragma unroll
    for (int i = 0; i < L::items; ++i) {
      if constexpr (L::keeps_places) at = place[i];
      // What lies between the last column and the pitch is never read: any input does.
      const int column = (at & 0xffff) < s.columns ? at & 0xffff : 0;
      if (at >> 16 < s.slice_words) visit(i, at >> 16, column);
      at += step;
      if ((at & 0xffff) >= s.pitch) at += (1 << 16) - s.pitch;
    }
  }

  __device__ __forceinline__ void fetch(const Schedule& s, const Source<Element>& from,
                                        int64_t channel_stride, int64_t length) {
    if (from.whole) {
      const auto row_stride = static_cast<uint32_t>(channel_stride) * M::values_per_word;
      for_each(s, [&](int i, int row, int column) {
        const uint32_t offset = row * row_stride + column;
        if constexpr (M::values_per_word == 1) {
          const uint4 v = __ldg(reinterpret_cast<const uint4*>(from.window + offset));
          word[i][0] = v.x;
          word[i][1] = v.y;
          word[i][2] = v.z;
          word[i][3] = v.w;
        } else {
          const uint2 low = __ldg(reinterpret_cast<const uint2*>(from.window + offset));
          const uint2 high =
              __ldg(reinterpret_cast<const uint2*>(from.window + channel_stride + offset));
          word[i][0] = low.x;
          word[i][1] = low.y;
          word[i][2] = high.x;
          word[i][3] = high.y;
        }
      });
      return;
    }
    for_each(s, [&](int i, int row, int column) {
#pragma unroll
      for (int v = 0; v < M::values_per_word; ++v) {
        const int channel = row * M::values_per_word + v;
        const int64_t first = static_cast<int64_t>(column) * s.load_step;
        const Element* const begin = from.window + channel * channel_stride + first;
        Element value[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t position = from.position + first + e * s.load_step;
          const bool inside = position >= 0 && position < length && channel < from.channels;
          value[e] = inside ? __ldg(begin + e * s.load_step) : Element{0};
        }
        memcpy(&word[i][v * words / M::values_per_word], value, sizeof value);
      }
    });
  }

  __device__ __forceinline__ void store(const Schedule& s, uint32_t* window) const {
    const int vectors = s.slice_words * (s.pitch / 4) - threadIdx.x;
#pragma unroll
    for (int i = 0; i < L::items; ++i) {
      if (i * T::threads >= vectors) break;
      Element value[M::values_per_word][4];
      memcpy(value, word[i], sizeof value);
      uint32_t split[M::planes][4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Element of_column[M::values_per_word];
#pragma unroll
        for (int v = 0; v < M::values_per_word; ++v) of_column[v] = value[v][e];
        uint32_t of_plane[M::planes];
        M::split(of_column, of_plane);
#pragma unroll
        for (int p = 0; p < M::planes; ++p) split[p][e] = of_plane[p];
      }
#pragma unroll
      for (int p = 0; p < M::planes; ++p)
        *reinterpret_cast<uint4*>(window + p * s.slice_words * s.pitch +
                                  4 * (threadIdx.x + i * T::threads)) =
            make_uint4(split[p][0], split[p][1], split[p][2], split[p][3]);
    }
  }
};

// The sums of one thread: for each mma tile, channels lane/4 and lane/4 + 8 by two positions.
template <class M, class T>
struct Sums : TileSums<M, T> {
  int column, fragment;  // this thread's first words in a window and in the weights
  using TileSums<M, T>::chain, TileSums<M, T>::steps;

  __device__ __forceinline__ Sums(const Schedule& s, int most_shift) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp % T::warps_m, warp_n = warp / T::warps_m;
    column = lane % 4 * s.pitch + (most_shift + warp_n * T::n_tiles * 8 + lane / 4) * s.read_step;
    fragment = (warp_m * T::m_tiles * 32 + lane) * 4;
  }

  // Adds one slice.
  template <bool UNIT_STEP>
  __device__ __forceinline__ void add(const Schedule& s, const uint32_t* window,
                                      const uint32_t* weights, int taps, int steps_used) {
    const int read_step = UNIT_STEP ? 1 : s.read_step;
    constexpr int step_words = T::channels * 8;
    const int plane_words = s.slice_words * s.pitch;
    const uint32_t* column_of_tap = window + column;
    const uint32_t* fragment_of_tap = weights + fragment;

    for (int tap = 0; tap < taps; ++tap) {
      const uint32_t* column = column_of_tap;
      const uint32_t* fragment = fragment_of_tap;
#pragma unroll(UNIT_STEP ? 2 : 1)
      for (int step = 0; step < steps_used; ++step) {
        uint32_t a[T::m_tiles][M::planes][4];
#pragma unroll
        for (int m = 0; m < T::m_tiles; ++m) {
          const uint4 v = *reinterpret_cast<const uint4*>(fragment + m * 128);
          unpack_four<M>({v.x, v.y, v.z, v.w}, a[m]);
        }
        // Some mma tiles take turns, so that neighbouring instructions wait neither for each
        // other's sums nor for the window.
        constexpr int turns = static_cast<int>(smaller(UNIT_STEP ? 8 : 4, T::n_tiles));
        static_assert(T::n_tiles % turns == 0, "mma tiles take turns in equal groups");
        const uint32_t* at = column;
#pragma unroll
        for (int n0 = 0; n0 < T::n_tiles; n0 += turns) {
          uint32_t b[turns][M::planes][2];
#pragma unroll
          for (int n = 0; n < turns; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
              for (int plane = 0; plane < M::planes; ++plane)
                b[n][plane][half] = at[plane * plane_words + half * 4 * s.pitch];
            at += 8 * read_step;
          }
#pragma unroll
          for (int product = 0; product < M::products; ++product)
#pragma unroll
            for (int n = 0; n < turns; ++n)
#pragma unroll
              for (int m = 0; m < T::m_tiles; ++m)
                M::multiply(product, chain[m][n0 + n], a[m], b[n]);
        }
        if constexpr (M::chain > 0)
          if (++steps == M::chain) this->end_chain();
        column += 8 * s.pitch;
        fragment += step_words;
      }
      column_of_tap += s.column_step;
      fragment_of_tap += s.slice_words / 8 * step_words;
    }
  }
};

// Writes a thread's sums, bias added, rounded once, as pairs of neighbouring positions, from
// `position` on. The tile has `channels` channels, the first of them in row `row` of the output.
template <class M, class T>
__device__ __forceinline__ void write_sums(const DenseParams& p, const Sums<M, T>& sums,
                                           const float* biases, int channels, int64_t row,
                                           int64_t position) {
  using Element = typename M::Element;
  const int64_t first = position - threadIdx.x % 4 * 2;  // of the warp
  const bool whole = p.aligned_output && first >= 0 && first + T::n_tiles * 8 <= p.phase.positions;
  const int begin = position < 0 ? static_cast<int>(-position) : 0;
  const auto end = static_cast<int>(smaller(p.phase.positions - position, T::n_tiles * 8));
  // Eight rows of the tile further on, the channel has grown by 8 << classes_log2.
  int channel =
      channel_of_row(threadIdx.x / 32 % T::warps_m * T::m_tiles * 16 + threadIdx.x % 32 / 4,
                     T::channels_log2, p.classes_log2);
  Element* out = static_cast<Element*>(p.output) + (row + channel) * p.length_out +
                 p.phase.out_offset + position * p.phase.out_step;
#pragma unroll
  for (int i = 0; i < 2 * T::m_tiles; ++i) {
    const bool exists = channel < channels;
    const float bias = biases[channel];
    const auto sum = [&](int n, int e) { return sums.value(i / 2, n, i % 2 * 2 + e) + bias; };
    if (whole) {
#pragma unroll
      for (int n = 0; n < T::n_tiles; n += 2)
        M::store(out + n * 8, {sum(n, 0), sum(n, 1), sum(n + 1, 0), sum(n + 1, 1)}, exists);
    } else if (exists) {
#pragma unroll
      for (int n = 0; n < T::n_tiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (n * 8 + e >= begin && n * 8 + e < end)
            out[(n * 8 + e) * p.phase.out_step] = M::to(sum(n, e));
    }
    channel += 8 << p.classes_log2;
    out += (p.length_out * 8) << p.classes_log2;
  }
}

// Starts copying `words` words, a multiple of 4, by all threads.
template <int THREADS>
__device__ __forceinline__ void copy_words(uint32_t* to, const uint32_t* from, int words) {
  constexpr int step = 4 * THREADS;
  int i = 4 * threadIdx.x;
  to += i;
  from += i;
#pragma unroll 1
  for (; i + 3 * step < words; i += 4 * step) {
    copy_async_16(to, from);
    copy_async_16<4 * step>(to, from);
    copy_async_16<8 * step>(to, from);
    copy_async_16<12 * step>(to, from);
    to += 4 * step;
    from += 4 * step;
  }
#pragma unroll 1
  for (; i < words; i += step) {
    copy_async_16(to, from);
    to += step;
    from += step;
  }
}

// UNIT_STEP: the schedule's read_step is 1.
template <class M, class T, bool UNIT_STEP>
__global__ void __launch_bounds__(T::threads, (Layout<M, T>::launch_blocks))
    dense_kernel(const DenseParams p) {
  using Element = typename M::Element;
  FASTCONV1D_SHARED(shared);
  const Schedule& s = p.schedule;

  const int64_t rest = blockIdx.x / p.channel_blocks, first_tile = rest % p.runs;
  const auto channel_block = static_cast<int>(blockIdx.x % p.channel_blocks),
             group = static_cast<int>(rest / p.runs);

  const int window_words = M::planes * s.slice_words * s.pitch;
  const int slice_weights = s.taps_per_group * s.slice_words * T::channels;
  auto* const filled = reinterpret_cast<uint64_t*>(shared);
  auto* const biases = reinterpret_cast<float*>(shared + kBarrierWords);
  uint32_t* const windows = shared + kBarrierWords + T::channels;
  uint32_t* const shared_weights = windows + window_count(s) * window_words;

  const int64_t channel_stride = p.input_channel_stride;
  const Element* const input =
      static_cast<const Element*>(p.input) + group * p.channels_in * channel_stride;
  const uint32_t* const weights = p.weights + (group * p.channel_blocks + channel_block) *
                                                  s.channel_slices * s.groups * slice_weights;

  const int slice_channels = s.slice_words * M::values_per_word;
  Incoming<M, T> incoming(s);
  // The tile that is computed.
  Place place{static_cast<int>(first_tile / p.tiles), static_cast<int>(first_tile % p.tiles)};
  const int slices = s.channel_slices * s.groups;
  // How far behind a multiple of 4 a window begins. 32 bits are enough for that.
  const auto lead_of = [&](unsigned tile, const TapGroup& taps) {
    unsigned position = tile * p.tile_step + static_cast<unsigned>(p.first_position);
    position += taps.first * static_cast<unsigned>(p.phase.shift_step);
    return s.load_step == 1 ? static_cast<int>(position % 4) : 0;
  };
  // Starts the journey of the window of slice `slice` of `place`, or of a tile that follows it.
  const auto fetch = [&](int slice) {
    Place at = place;
    for (; slice >= slices; slice -= slices) at.advance(p.step, p.tiles);
    const int channel_slice = channel_slice_of(s, slice);
    const TapGroup taps = tap_group(s, p.phase.taps, slice - channel_slice * s.groups);
    Source<Element> from;
    from.position = at.tile * static_cast<int64_t>(p.tile_step) + p.first_position;
    from.position += taps.first * p.phase.shift_step;
    from.position -= lead_of(at.tile, taps);
    from.window =
        input + at.batch * p.input_batch_stride + channel_slice * p.slice_stride + from.position;
    from.channels = static_cast<int>(p.channels_in) - channel_slice * slice_channels;
    from.whole = p.aligned_input && from.position >= 0 && from.position + s.columns <= p.length &&
                 from.channels >= slice_channels;
    incoming.fetch(s, from, channel_stride, p.length);
  };

  const auto all =  // slices to multiply
      static_cast<unsigned>(ceil_div(p.batch * p.tiles - first_tile, p.runs) * slices);

  copy_words<T::threads>(shared_weights, weights, (s.resident ? slices : 1) * slice_weights);
  copy_async_commit();
  if (threadIdx.x == 0) barrier_init(filled, T::threads);
  for (int i = threadIdx.x; i < T::channels; i += T::threads) {
    const int64_t channel = channel_block * T::channels + i;
    biases[i] = bias_of<M>(p.bias, group, channel, p.channels_out);
  }
  fetch(0);
  incoming.store(s, windows);
  copy_async_wait<0>();
  __syncthreads();
  if (s.resident) {
    barrier_arrive(filled);
    if (all > 1) fetch(1);
  }

  const int warp = threadIdx.x / 32;
  const int warp_channel =
      channel_block * T::channels +
      channel_of_row(warp % T::warps_m * T::m_tiles * 16, T::channels_log2, p.classes_log2);
  // How far the warp's rows, which are aligned alike, begin behind a boundary. Multiples of 8 do not
  // matter, so 32 bits are enough.
  const auto shift_of = [&](unsigned batch) {
    const unsigned row =
        (batch * static_cast<unsigned>(p.groups) + group) * static_cast<unsigned>(p.channels_out) +
        warp_channel;
    return p.most_shift == 0
               ? 0
               : static_cast<int>(row * static_cast<unsigned>(p.length_out) % kAlignedOutputs);
  };
  Sums<M, T> sums(s, p.most_shift);
  const auto window_of = [&](unsigned number) {
    return windows + (s.resident ? number % 3 : number % 2) * window_words;
  };
  unsigned number = 0;  // of the slice
  while (number < all) {
    sums.clear();
    for (int slice = 0; slice < slices; ++slice, ++number) {
      // Then the slice is there, and all warps are done with the one before the last.
      if (s.resident) barrier_wait(filled, number % 2);
      if (s.resident && number + 1 < all) {
        incoming.store(s, window_of(number + 1));
        barrier_arrive(filled);
      }
      if (!s.resident && number + 1 < all) {
        const int64_t next = slice + 1 < slices ? slice + 1 : 0;
        copy_words<T::threads>(shared_weights + (number + 1) % 2 * slice_weights,
                               weights + next * slice_weights, slice_weights);
        copy_async_commit();
      }
      if (number + 1 + s.resident < all) fetch(slice + 1 + s.resident);

      const int channel_slice = channel_slice_of(s, slice);
      const TapGroup taps = tap_group(s, p.phase.taps, slice - channel_slice * s.groups);
      const int words = s.channel_words - channel_slice * s.slice_words;
      const int steps = (words < s.slice_words ? words + 7 : s.slice_words) / 8;
      const uint32_t* const window =
          window_of(number) + lead_of(place.tile, taps) - shift_of(place.batch) * s.read_step;
      const int turn = s.resident ? slice : number % 2;
      sums.template add<UNIT_STEP>(s, window, shared_weights + turn * slice_weights, taps.count,
                                   steps);
      if (!s.resident && number + 1 < all) {
        incoming.store(s, window_of(number + 1));
        copy_async_wait<0>();
        __syncthreads();
      }
    }

    const int position = warp / T::warps_m * T::n_tiles * 8 + threadIdx.x % 4 * 2;
    const int64_t channel = channel_block * T::channels;
    write_sums<M, T>(
        p, sums, biases, static_cast<int>(smaller(T::channels, p.channels_out - channel)),
        (place.batch * p.groups + group) * p.channels_out + channel,
        static_cast<int64_t>(place.tile) * T::positions + position - shift_of(place.batch));
    place.advance(p.step, p.tiles);
  }
}

template <class M, class T>
struct Dense {
  using L = Layout<M, T>;

  // A phase of a convolution, cut for this tile.
  struct Cut {
    Phase phase;
    TileLimits limits;
    Schedule schedule;
    int64_t channels_in, channels_out, channel_blocks;  // of one group
    int64_t tiles, runs;  // of a row; blocks that take turns on batch x tiles
    int64_t packed_words;
  };

  static Cut cut(const ConvArgs& a, int64_t r) {
    Cut c{};
    c.phase = phase_of(a, r);
    c.channels_in = a.channels_in / a.groups;
    c.channels_out = a.channels_out / a.groups;
    c.channel_blocks = ceil_div(c.channels_out, T::channels);
    const int64_t most_shift =
        c.phase.out_step == 1 ? kAlignedOutputs - kAlignedOutputs / row_classes(a.length_out) : 0;
    c.tiles = ceil_div(c.phase.positions + most_shift, T::positions);
    const int64_t tiles = a.batch * c.tiles;
    c.runs = runs_of(tiles, a.groups * c.channel_blocks, a.multiprocessors * L::blocks);
    for (int blocks = L::blocks; blocks >= 1; --blocks) {
      c.limits = {T::positions,
                  T::channels,
                  most_shift,
                  L::window_vectors,
                  M::planes,
                  M::values_per_word,
                  shared_budget(blocks) / 4,
                  ceil_div(tiles, c.runs) >= 4};
      c.schedule = schedule_of(c.limits, c.phase, c.channels_in);
      if (c.schedule.taps_per_group > 0) break;
    }
    // A block counts its slices in 32 bits.
    if (ceil_div(tiles, c.runs) * c.schedule.channel_slices * c.schedule.groups > INT32_MAX)
      c.schedule = Schedule{};
    c.packed_words = a.groups * c.channel_blocks * c.schedule.channel_slices * c.schedule.groups *
                     weight_words(c.limits, c.schedule.taps_per_group, c.schedule.slice_words);
    return c;
  }

  static int64_t phases(const ConvArgs& a) { return phase_count(a); }
  static int64_t packed_bytes(const ConvArgs&, const Cut& c) { return 4 * c.packed_words; }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    const Schedule& s = c.schedule;
    if (s.taps_per_group == 0) return 1;  // cudaErrorInvalidValue: `why_not` should have said so
    const int classes_log2 =
        c.phase.out_step == 1 ? log2_of(smaller(row_classes(a.length_out), T::warps_m)) : 0;
    auto* const packed = static_cast<uint32_t*>(a.workspace);
    const int64_t fragments = c.packed_words / 4;
    const int64_t step = (a.length_out << classes_log2) % kAlignedOutputs;  // between a warp's rows
    const int aligned_output =
        c.phase.out_step == 1 && gcd(kAlignedOutputs, step) * sizeof(typename M::Element) >= 8;
    int error = fastconv1d::launch(
        pack_kernel<M, T>, dim3(static_cast<unsigned>(ceil_div(fragments, 128))), dim3(128), 0,
        stream,
        PackParams{{a.weight, packed, c.phase, c.channels_in, c.channels_out, a.groups,
                    a.kernel_size, a.transposed, c.channel_blocks, fragments},
                   s,
                   classes_log2});
    if (error != 0) return error;
    const int64_t first_position = c.phase.first_shift - c.limits.most_shift * c.phase.in_step;
    const int64_t slice_stride = s.slice_words * M::values_per_word * a.input_channel_stride;
    const int aligned_input =
        reinterpret_cast<uintptr_t>(a.input) % (4 * sizeof(typename M::Element)) == 0 &&
        s.load_step == 1 && a.input_channel_stride % 4 == 0 &&
        (a.batch == 1 || a.input_batch_stride % 4 == 0) && slice_stride < int64_t{1} << 31;
    const int64_t bytes = 4 * shared_words(c.limits, s);
    const auto kernel = s.read_step == 1 ? dense_kernel<M, T, true> : dense_kernel<M, T, false>;
    error = set_shared_limit(kernel, bytes);
    if (error != 0) return error;
    return fastconv1d::launch(
        kernel, dim3(static_cast<unsigned>(a.groups * c.channel_blocks * c.runs)), dim3(T::threads),
        bytes, stream,
        DenseParams{a.input,
                    packed,
                    a.bias,
                    a.output,
                    c.phase,
                    s,
                    a.batch,
                    a.length,
                    a.length_out,
                    a.input_batch_stride,
                    a.input_channel_stride,
                    c.channels_in,
                    c.channels_out,
                    a.groups,
                    c.channel_blocks,
                    c.tiles,
                    c.runs,
                    Place{static_cast<int>(c.runs / c.tiles), static_cast<int>(c.runs % c.tiles)},
                    first_position,
                    slice_stride,
                    static_cast<int>(T::positions * c.phase.in_step),
                    classes_log2,
                    static_cast<int>(c.limits.most_shift),
                    aligned_input,
                    aligned_output});
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_DENSE_LIBRARY(...) FASTCONV1D_TILE_LIBRARY(fastconv1d::Dense, __VA_ARGS__)
