// The gradient of a convolution's weight on tensor cores, from sm_80 on.
//
//   tile of the gradient = sum over slices of  grad_output (rows x positions)  *  input (positions x columns)
//
// A row is an output channel of a group, a column a pair (input channel, tap); the product runs along
// positions, which both tensors hold as neighbours: nothing is transposed. One block computes a tile for a
// part of batch x positions, slice by slice, and adds it to its place in the workspace; `grad_sum_kernel`
// adds up the parts. Splits, and so the order of all additions, follow from the shape alone.
//
// Shared memory: two buffers, of which one is multiplied while the next slice travels through registers.
// Each has 32 words of positions of every row of grad_output, a pitch of 36 words keeping banks apart, and
// rows of the input. A word is one fp32 value or two neighbouring positions of a 16-bit type. A tap is the
// same row of the input read some positions further on. So that a pair of 16-bit values may begin at any
// position, there is a second plane of rows, one position further on. With a stride, or taps so far apart
// that a slice of one shares nothing with the next one's, a channel has several rows: each holds every
// stride-th position, from some tap's first on, and serves the taps that fall on these.
//
//   buffer = [row of grad_output][36 words]  [plane][class of taps][channel][pitch words]
//
// Behind both lie sums of grad_output's vectors, for the bias.
//
// Roofline: grad_output is read once for each block of columns, the input once for each block of rows (both
// mostly from L2, as blocks of one part run at a time). Shared memory serves M_TILES * 4 + N_TILES * 2 words
// for M_TILES * N_TILES products of a warp and keeps up with mma.sync where both are large.
//
// Workspace: at most kGradWorkspace bytes, or one fp32 gradient where that is larger.
#pragma once
#include <type_traits>

#include "grad_tile.cuh"

namespace fastconv1d {

// Adds to a sum whose rounding errors are kept beside it.
__device__ __forceinline__ void add_compensated(float2& sum, float x) {
  const float corrected = x - sum.y, next = sum.x + corrected;
  sum = make_float2(next, (next - sum.x) - corrected);
}

constexpr int kGradPitch = kGradWords + 4;  // of rows of grad_output

// WARPS_M x WARPS_N warps of M_TILES x N_TILES mma tiles of 16 rows by 8 columns each, BLOCKS of which share a
// multiprocessor: one moves its next slice while another multiplies.
template <int WARPS_M, int WARPS_N, int M_TILES, int N_TILES, int BLOCKS>
struct GradTile {
  static constexpr int blocks = BLOCKS;
  static constexpr int warps_m = WARPS_M, warps_n = WARPS_N, m_tiles = M_TILES, n_tiles = N_TILES;
  static constexpr int warps = WARPS_M * WARPS_N, threads = 32 * warps;
  static constexpr int rows = 16 * WARPS_M * M_TILES, columns = 8 * WARPS_N * N_TILES;
};

// What follows from a mode and a tile together.
template <class M, class T>
struct GradLayout {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int blocks = 1;  // or the compiler would spill registers for sm_100
#else
  static constexpr int blocks = T::blocks;
#endif
  static constexpr int values = M::values_per_word;
  static constexpr int positions = kGradWords * values;  // of a slice
  static constexpr int vector = 4 * values;              // positions that a thread moves at a time
  static constexpr int planes = values;                  // of rows of the input
  static constexpr int chain_slices = kGradChain / positions;
  static constexpr int row_vectors = T::rows * kGradWords / 4;
  static constexpr int row_items = static_cast<int>(ceil_div(row_vectors, T::threads));
  // Enough for a slice of as many channels as there are columns.
  static constexpr int items = static_cast<int>(ceil_div(T::columns * kGradWords / 4, T::threads));
};

// How a tile's columns lie in the input.
struct GradColumns {
  int channels, taps;  // of a block
  int classes;         // rows of a channel
  int shift;           // of a row, from one of its taps to the next
  int load_step;       // of the input, from one position of a row to the next
  int lead;            // whether rows begin at a multiple of a vector, before what is read
  int vectors;         // of a row
  int64_t channel_blocks, tap_blocks;
  FASTCONV1D_HD constexpr int pitch() const { return 4 * vectors + 4 * (vectors % 2 == 0); }
  FASTCONV1D_HD constexpr int rows() const { return channels * classes; }
};

struct GradParams {
  const void* input;
  const void* grad_output;
  void* output;     // parts of fp32 where `parts`, else the gradient
  void* grad_bias;  // the same, or null
  GradColumns columns;
  int64_t batch, length, length_out, kernel_size, input_batch_stride, input_channel_stride;
  int64_t channels_in, channels_out, groups;  // channels of one group
  int64_t row_blocks, tiles, splits, slices;  // slices: of a row of grad_output
  int64_t elements;                           // of the gradient
  int stride, dilation;
  int64_t padding;
  int input_alignment, grad_alignment;  // bytes, by multiples of which rows lie apart
  int parts;
  int near;  // whether 32 bits are enough from where a slice begins to all that a block reads
};

// 16 bytes of a row that begin at a multiple of ALIGNMENT.
template <int ALIGNMENT, class Element>
__device__ __forceinline__ uint4 load_words(const Element* from) {
  if constexpr (ALIGNMENT == 16) {
    return __ldg(reinterpret_cast<const uint4*>(from));
  } else {
    using Half = std::conditional_t<ALIGNMENT == 4, uint32_t, uint16_t>;
    using Word = std::conditional_t<ALIGNMENT == 8, uint2, Half>;
    Word value[16 / sizeof(Word)];
#pragma unroll
    for (int e = 0; e < static_cast<int>(16 / sizeof(Word)); ++e)
      value[e] = __ldg(reinterpret_cast<const Word*>(from) + e);
    uint4 words;
    memcpy(&words, value, sizeof words);
    return words;
  }
}

// Calls function(alignment), an integral constant.
template <class Element, class Function>
__device__ __forceinline__ void with_alignment(int alignment, const Function& function) {
  if (alignment >= 16) return function(std::integral_constant<int, 16>{});
  if (alignment == 8) return function(std::integral_constant<int, 8>{});
  if (sizeof(Element) == 4 || alignment == 4) return function(std::integral_constant<int, 4>{});
  if constexpr (sizeof(Element) == 2) function(std::integral_constant<int, 2>{});
}

// 16 bytes of values that lie `step` apart.
template <class Element>
__device__ __forceinline__ uint4 load_apart(const Element* from, int step) {
  Element value[16 / sizeof(Element)];
#pragma unroll
  for (int e = 0; e < static_cast<int>(16 / sizeof(Element)); ++e, from += step)
    value[e] = __ldg(from);
  uint4 words;
  memcpy(&words, value, sizeof words);
  return words;
}

// The same of [0, length), zero beside it; `from` is at `position`.
template <class Element>
__device__ __forceinline__ uint4 load_inside(const Element* from, int64_t position, int step,
                                             int64_t length) {
  Element value[16 / sizeof(Element)];
#pragma unroll
  for (int e = 0; e < static_cast<int>(16 / sizeof(Element)); ++e) {
    const int64_t at = position + static_cast<int64_t>(e) * step;
    value[e] = at >= 0 && at < length ? __ldg(from + static_cast<int64_t>(e) * step) : Element{0};
  }
  uint4 words;
  memcpy(&words, value, sizeof words);
  return words;
}

template <class M, class T>
struct GradBlock {
  using Element = typename M::Element;
  using L = GradLayout<M, T>;
  static constexpr int row_step = T::threads / (kGradWords / 4);  // from a thread's row to its next
  static_assert(T::threads % (kGradWords / 4) == 0, "a thread's vectors lie below each other");

  const GradParams& p;
  int slice;                   // of a row, that is read next
  const Element* grad_output;  // this thread's first vector of it
  const Element* input;        // where it begins in the block's first channel
  int own_rows;                // of the thread, that exist
  int channels;                // that exist
  int64_t first_tap;
  int whole_rows;                  // slices that are whole in grad_output
  int first_inside, first_beyond;  // slices from the first on that lie inside of the input
  bool adds_bias;
  int offset[L::items];  // of the thread's vectors, from where a slice begins in the input
  uint32_t
      places[(L::items + 1) / 2];  // of these in a buffer, in pieces of 16 bytes; two in a word
  // On their way.
  uint4 row_words[L::row_items];
  uint4 words[L::items];
  uint32_t next[(L::items + 1) / 2];  // the 16-bit value behind each of `words`, two in a word

  __device__ __forceinline__ GradBlock(const GradParams& params, int64_t group, int64_t first_row,
                                       int64_t first_channel, int64_t first_tap, int64_t batch,
                                       int64_t first_slice)
      : p(params), first_tap(first_tap), slice(static_cast<int>(first_slice)) {
    const GradColumns& c = p.columns;
    const int row = threadIdx.x / (kGradWords / 4), vector = threadIdx.x % (kGradWords / 4);
    const auto rows = static_cast<int>(smaller(T::rows, p.channels_out - first_row));
    own_rows = row < rows ? (rows - row + row_step - 1) / row_step : 0;
    grad_output = static_cast<const Element*>(p.grad_output) +
                  ((batch * p.groups + group) * p.channels_out + first_row + row) * p.length_out +
                  first_slice * L::positions + vector * L::vector;
    channels = static_cast<int>(smaller(c.channels, p.channels_in - first_channel));
    const int64_t step = int64_t{L::positions} * p.stride;
    input = static_cast<const Element*>(p.input) + batch * p.input_batch_stride +
            (group * p.channels_in + first_channel) * p.input_channel_stride + first_slice * step;
    whole_rows = static_cast<int>(p.length_out / L::positions);
    // What a slice sees of the input's row, from its first position on.
    const int64_t first = first_tap * p.dilation - p.padding, begin = first - (L::vector - 1),
                  end = first + static_cast<int64_t>(c.classes - 1) * p.dilation +
                        static_cast<int64_t>(c.vectors * L::vector) * c.load_step + 1;
    first_inside = begin < 0 ? static_cast<int>(smaller(p.slices, ceil_div(-begin, step))) : 0;
    first_beyond = p.near && end <= p.length
                       ? static_cast<int>(smaller(p.slices, (p.length - end) / step + 1))
                       : 0;
#pragma unroll
    for (int i = 0; i < (L::items + 1) / 2; ++i) places[i] = ~0u;
    for_each([&](int i, int row, int vector) {
      const int tap_class = row / c.channels;
      // A channel that does not exist gives columns that nobody writes: the first one will do.
      int channel = row - tap_class * c.channels;
      if (channel >= channels) channel = 0;
      const int place = (T::rows * kGradPitch + row * c.pitch()) / 4 + vector;
      places[i / 2] ^= (kNoPlace ^ place) << i % 2 * 16;
      offset[i] = static_cast<int>(channel * p.input_channel_stride + in_row(tap_class, vector));
    });
#pragma unroll
    for (int i = 0; i < L::row_items; ++i) row_words[i] = make_uint4(0, 0, 0, 0);
  }

  static constexpr uint32_t kNoPlace = 0xffff;
  __device__ __forceinline__ uint32_t place_of(int item) const {
    return places[item / 2] >> item % 2 * 16 & 0xffff;
  }

  __device__ __forceinline__ void set_next(int item, uint32_t value) {
    next[item / 2] = item % 2 == 0 ? value : next[item / 2] | value << 16;
  }

  // Calls visit(item, row, vector) for the thread's vectors of the input.
  template <class Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    const int vectors = p.columns.vectors, count = p.columns.rows();
    int index = threadIdx.x;
    // Or the compiler would keep all that follows from it, item by item, over the whole loop.
    keep_in_register(index);
#pragma unroll
    for (int i = 0; i < L::items; ++i) {
      const int row = index / vectors;
      if (row < count) visit(i, row, index - row * vectors);
      index += T::threads;
    }
  }

  // How far behind a vector's boundary the row of a class of taps begins.
  __device__ __forceinline__ int lead_of(int tap_class) const {
    if (!p.columns.lead) return 0;
    const int64_t first = (first_tap + tap_class) * p.dilation - p.padding;
    return static_cast<int>(first & (L::vector - 1));
  }
  // Where in the input's row a vector begins, from where the slice does.
  __device__ __forceinline__ int64_t in_row(int tap_class, int vector) const {
    return (first_tap + tap_class) * p.dilation - p.padding - lead_of(tap_class) +
           static_cast<int64_t>(vector * L::vector) * p.columns.load_step;
  }

  // On to the next slice, of the same row or the next batch's.
  __device__ __forceinline__ void advance() {
    ++slice;
    grad_output += L::positions;
    input += int64_t{L::positions} * p.stride;
    if (slice < p.slices) return;
    slice = 0;
    grad_output += p.groups * p.channels_out * p.length_out - p.slices * L::positions;
    input += p.input_batch_stride - p.slices * L::positions * p.stride;
  }

  __device__ __forceinline__ void fetch() {
    fetch_rows();
    fetch_input();
  }

  __device__ __forceinline__ void fetch_rows() {
    const Element* from = grad_output;
    const int64_t step = row_step * p.length_out;
    if (slice < whole_rows) {
      with_alignment<Element>(p.grad_alignment, [&](auto alignment) {
#pragma unroll
        for (int i = 0; i < L::row_items; ++i, from += step)
          if (i < own_rows) row_words[i] = load_words<alignment.value>(from);
      });
    } else {
      const int64_t first =
          static_cast<int64_t>(slice) * L::positions + threadIdx.x % (kGradWords / 4) * L::vector;
#pragma unroll
      for (int i = 0; i < L::row_items; ++i, from += step)
        if (i < own_rows) row_words[i] = load_inside(from, first, 1, p.length_out);
    }
  }

  __device__ __forceinline__ void fetch_input() {
    const GradColumns& c = p.columns;
    const int behind_vector = L::vector * c.load_step;
    if (slice >= first_inside && slice < first_beyond) {
      const auto load = [&](const auto& words_at) {
#pragma unroll
        for (int i = 0; i < L::items; ++i) {
          if (place_of(i) == kNoPlace) continue;
          const Element* const from = input + offset[i];
          words[i] = words_at(from);
          if constexpr (L::planes == 2) set_next(i, __ldg(from + behind_vector));
        }
      };
      if (c.load_step == 1)
        with_alignment<Element>(p.input_alignment, [&](auto alignment) {
          load([&](const Element* from) { return load_words<alignment.value>(from); });
        });
      else
        load([&](const Element* from) { return load_apart(from, c.load_step); });
      return;
    }
    const int64_t start = static_cast<int64_t>(slice) * L::positions * p.stride;
    for_each([&](int i, int row, int vector) {
      const int tap_class = row / c.channels, channel = row - tap_class * c.channels;
      const int64_t at = start + in_row(tap_class, vector);
      const Element* const from =
          input + (channel < channels ? channel : 0) * p.input_channel_stride + (at - start);
      words[i] = load_inside(from, at, c.load_step, p.length);
      if constexpr (L::planes == 2) {
        const int64_t last = at + behind_vector;
        set_next(i, last >= 0 && last < p.length ? __ldg(from + behind_vector) : Element{0});
      }
    });
  }

  static __device__ __forceinline__ uint4 packed(const uint4& words) {
    if constexpr (M::values_per_word == 2) return words;
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
    uint32_t result[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      typename M::Element value[M::values_per_word];
      memcpy(value, &word[e], 4);
      result[e] = M::pack(value);
    }
    return make_uint4(result[0], result[1], result[2], result[3]);
  }

  static __device__ __forceinline__ float sum_of(const uint4& words) {
    Element value[16 / sizeof(Element)];
    memcpy(value, &words, sizeof value);
    float sum = 0;
#pragma unroll
    for (int e = 0; e < static_cast<int>(16 / sizeof(Element)); ++e) sum += M::from(value[e]);
    return sum;
  }

  __device__ __forceinline__ void store(uint32_t* buffer, uint32_t* bias_words) const {
    uint32_t* const to =
        buffer + threadIdx.x / (kGradWords / 4) * kGradPitch + threadIdx.x % (kGradWords / 4) * 4;
#pragma unroll
    for (int i = 0; i < L::row_items; ++i) {
      if (T::rows % row_step != 0 &&
          static_cast<int>(threadIdx.x) / (kGradWords / 4) + i * row_step >= T::rows)
        break;
      if (adds_bias)
        add_compensated(reinterpret_cast<float2*>(bias_words)[threadIdx.x + i * T::threads],
                        sum_of(row_words[i]));
      *reinterpret_cast<uint4*>(to + i * row_step * kGradPitch) = packed(row_words[i]);
    }
    const int plane = p.columns.rows() * p.columns.pitch();
#pragma unroll
    for (int i = 0; i < L::items; ++i) {
      const uint32_t place = place_of(i);
      if (place == kNoPlace) continue;
      uint32_t* const to = buffer + 4 * place;
      *reinterpret_cast<uint4*>(to) = packed(words[i]);
      if constexpr (L::planes == 2)
        *reinterpret_cast<uint4*>(to + plane) = make_uint4(
            shifted_right(words[i].x, words[i].y, 16), shifted_right(words[i].y, words[i].z, 16),
            shifted_right(words[i].z, words[i].w, 16),
            i % 2 == 0 ? shifted_right(words[i].w, next[i / 2], 16)
                       : halves_of(words[i].w, next[i / 2], true));
    }
  }
};

// The sums of one thread: for each mma tile, rows lane/4 and lane/4 + 8 by columns 2 (lane % 4) and one on.
template <class M, class T>
struct GradSums : TileSums<M, T> {
  int row;                                 // of grad_output, whose address the thread gives
  uint32_t columns[(T::n_tiles + 1) / 2];  // its first words of the input, two in a register
  using TileSums<M, T>::chain, TileSums<M, T>::steps;

  // Adds 8 words of positions, of which `positions` exist: what the input has beyond them may be infinite.
  template <bool WHOLE>
  __device__ __forceinline__ void add(const uint32_t* buffer, int step, int positions) {
    uint32_t a[T::m_tiles][M::planes][4], b[T::n_tiles][M::planes][2];
    const uint32_t* const rows = buffer + row + step * 8;
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m) {
      uint32_t word[4];
      load_matrices(word, rows + m * 16 * kGradPitch);
      unpack_four<M>(word, a[m]);
    }
#pragma unroll
    for (int n = 0; n < T::n_tiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t word = buffer[(columns[n / 2] >> n % 2 * 16 & 0xffff) + step * 8 + half * 4];
        if constexpr (!WHOLE) {
          const int left = positions - (threadIdx.x % 4 + half * 4) * M::values_per_word;
          if (left <= 0) word = 0;
          if (M::values_per_word == 2 && left == 1) word &= 0xffffu;
        }
        uint32_t of_plane[M::planes];
        M::unpack(word, of_plane);
#pragma unroll
        for (int plane = 0; plane < M::planes; ++plane) b[n][plane][half] = of_plane[plane];
      }
#pragma unroll
    for (int product = 0; product < M::products; ++product)
#pragma unroll
      for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
        for (int n = 0; n < T::n_tiles; ++n) M::multiply(product, chain[m][n], a[m], b[n]);
    if constexpr (M::chain > 0)
      if (++steps == M::chain) this->end_chain();
  }
};

template <class M, class T>
__global__ void __launch_bounds__(T::threads, (GradLayout<M, T>::blocks))
    grad_dense_kernel(const GradParams p) {
  let_next_kernel_begin();
  using Element = typename M::Element;
  using L = GradLayout<M, T>;
  FASTCONV1D_SHARED(shared);
  const GradColumns& c = p.columns;

  // Blocks of one part of the positions run together.
  const int64_t split = blockIdx.x / p.tiles;
  int64_t rest = blockIdx.x % p.tiles;
  const auto row_block = rest % p.row_blocks;
  rest /= p.row_blocks;
  const int64_t tap_block = rest % c.tap_blocks,
                channel_block = rest / c.tap_blocks % c.channel_blocks,
                group = rest / c.tap_blocks / c.channel_blocks;
  const int64_t first_row = row_block * T::rows, first_channel = channel_block * c.channels;

  // The block's slices, of all the batch has.
  const int64_t all = p.batch * p.slices, each = ceil_div(all, p.splits);
  const int64_t begin = smaller(all, split * each);
  const auto count = static_cast<int>(smaller(all, begin + each) - begin);
  GradBlock<M, T> block(p, group, first_row, first_channel, tap_block * c.taps, begin / p.slices,
                        begin % p.slices);
  const auto rows = static_cast<int>(smaller(T::rows, p.channels_out - first_row));
  block.adds_bias = p.grad_bias != nullptr && tap_block == 0 && channel_block == 0;

  int buffer_words = T::rows * kGradPitch + L::planes * c.rows() * c.pitch();
  keep_in_register(buffer_words);  // worked out again and again, it would make sm_100 spill others
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp % T::warps_m * T::m_tiles * 16,
            warp_column = warp / T::warps_m * T::n_tiles * 8;
  const auto taps = static_cast<int>(smaller(c.taps, p.kernel_size - block.first_tap));
  GradSums<M, T> sums;
  sums.row = (warp_row + lane % 16) * kGradPitch + lane / 16 * 4;
#pragma unroll
  for (int n = 0; n < T::n_tiles; ++n) {
    const int number = warp_column + n * 8 + lane / 4;
    int tap = number / c.channels, channel = number % c.channels;
    if (tap >= taps) tap = channel = 0;  // any word will do
    const int tap_class = tap % c.classes;
    const int first = block.lead_of(tap_class) + tap / c.classes * c.shift;
    const int plane = first % L::planes;
    const uint32_t word = T::rows * kGradPitch + lane % 4 + first / M::values_per_word +
                          ((plane * c.classes + tap_class) * c.channels + channel) * c.pitch();
    sums.columns[n / 2] = n % 2 == 0 ? word : sums.columns[n / 2] | word << 16;
  }

  auto* const parts = static_cast<float*>(p.output) + split * p.elements;
  bool first_chain = true;
  // Writes the sums, or adds them to what was written of this part before.
  const auto write = [&] {
#pragma unroll
    for (int n = 0; n < T::n_tiles; ++n)
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int number = warp_column + n * 8 + lane % 4 * 2 + side;
        const int tap = number / c.channels, channel = number % c.channels;
        if (tap >= taps || channel >= block.channels) continue;
#pragma unroll
        for (int i = 0; i < 2 * T::m_tiles; ++i) {
          const int row = warp_row + lane / 4 + i * 8;
          if (row >= rows) continue;
          const int64_t element = ((group * p.channels_out + first_row + row) * p.channels_in +
                                   first_channel + channel) *
                                      p.kernel_size +
                                  block.first_tap + tap;
          const float sum = sums.value(i / 2, n, i % 2 * 2 + side);
          if (!p.parts)
            static_cast<Element*>(p.output)[element] = M::to(sum);
          else
            parts[element] = first_chain ? sum : parts[element] + sum;
        }
      }
    first_chain = false;
  };

  uint32_t* const bias = shared + 2 * buffer_words;
#pragma unroll
  for (int i = 0; i < L::row_items; ++i)
    reinterpret_cast<float2*>(bias)[threadIdx.x + i * T::threads] = make_float2(0, 0);
  sums.clear();
  if (count > 0) {
    block.fetch();
    block.store(shared, bias);
  }
  __syncthreads();
  for (int number = 0; number < count; ++number) {
    const uint32_t* const buffer = shared + number % 2 * buffer_words;
    const int slice = block.slice;
    const bool more = number + 1 < count;
    block.advance();
    if (more) block.fetch();
    if (slice < block.whole_rows) {
#pragma unroll 1
      for (int step = 0; step < kGradSteps; ++step) sums.template add<true>(buffer, step, 0);
    } else {
      const auto left = static_cast<int>(p.length_out - static_cast<int64_t>(slice) * L::positions);
#pragma unroll 1
      for (int step = 0; step * 8 * L::values < left; ++step)
        sums.template add<false>(buffer, step, left - step * 8 * L::values);
    }
    if (more) block.store(shared + (number + 1) % 2 * buffer_words, bias);
    __syncthreads();
    if ((number + 1) % L::chain_slices == 0 && more && p.parts) {
      write();
      sums.clear();
    }
  }
  write();

  if (block.adds_bias) {
    // Each row's vectors in turn.
    const auto* const of_vectors = reinterpret_cast<const float2*>(bias);
    for (int row = threadIdx.x; row < rows; row += T::threads) {
      float sum = 0;
      for (int i = 0; i < kGradWords / 4; ++i) sum += of_vectors[row * (kGradWords / 4) + i].x;
      const int64_t channel = group * p.channels_out + first_row + row;
      if (p.parts)
        static_cast<float*>(p.grad_bias)[split * p.groups * p.channels_out + channel] = sum;
      else
        static_cast<Element*>(p.grad_bias)[channel] = M::to(sum);
    }
  }
}

// Bytes, of 16 at most, by multiples of which rows lie apart, from an address that is one.
template <class Element>
int alignment_of(const void* first, int64_t row, int64_t batch) {
  const int64_t bytes = gcd(16, gcd(row, batch) * static_cast<int64_t>(sizeof(Element)));
  return static_cast<int>(
      gcd(bytes, static_cast<int64_t>(reinterpret_cast<uintptr_t>(first) % 16 + 16)));
}
template <class Element>
int input_alignment(const ConvArgs& a) {
  return alignment_of<Element>(a.input, a.input_channel_stride,
                               a.batch > 1 ? a.input_batch_stride : 0);
}
template <class Element>
int grad_alignment(const ConvArgs& a) {
  return alignment_of<Element>(a.grad_output, a.length_out, 0);
}

template <class M, class T>
struct GradDense {
  using Element = typename M::Element;
  using L = GradLayout<M, T>;

  struct Cut {
    GradColumns columns;
    int64_t row_blocks, tiles, splits, slices, elements, bytes;  // bytes: of shared memory
  };

  static int64_t buffer_bytes(const GradColumns& c) {
    const int64_t buffer = T::rows * kGradPitch + L::planes * c.rows() * c.pitch();
    return 4 * (2 * buffer + 2 * L::row_items * T::threads);
  }

  // The columns of blocks with so many taps; no channels if they do not fit.
  static GradColumns columns_of(const ConvArgs& a, int64_t taps, int64_t shared_bytes) {
    const int64_t channels_in = a.channels_in / a.groups, common = gcd(a.stride, a.dilation);
    GradColumns c{};
    int64_t classes = a.stride / common, shift = a.dilation / common;
    if (shift >= L::positions || classes >= taps) {  // no tap shares a row with another one
      classes = taps;
      shift = 0;
    }
    c.taps = static_cast<int>(taps);
    c.classes = static_cast<int>(classes);
    c.shift = static_cast<int>(shift);
    c.load_step = static_cast<int>(a.stride);
    c.lead = a.stride == 1;
    const int64_t last =
        L::positions + (ceil_div(taps, classes) - 1) * shift + (c.lead ? L::vector - 1 : 0);
    c.vectors = static_cast<int>(ceil_div(last, L::vector));
    c.tap_blocks = ceil_div(a.kernel_size, taps);
    const int64_t most_rows = L::items * T::threads / c.vectors;
    int64_t channels = smaller(smaller(channels_in, T::columns / taps), most_rows / classes);
    for (; channels > 0; channels = channels > 8 ? (channels - 1) / 8 * 8 : channels - 1) {
      c.channels = static_cast<int>(channels);
      if (buffer_bytes(c) <= shared_bytes) break;
    }
    c.channels = static_cast<int>(channels);
    if (channels == 0) return c;
    // As even as may be, in eights, which keep banks apart.
    c.channel_blocks = ceil_div(channels_in, channels);
    const int64_t even = ceil_div(channels_in, c.channel_blocks);
    c.channels = static_cast<int>(smaller(channels, even > 8 ? ceil_div(even, 8) * 8 : even));
    c.channel_blocks = ceil_div(channels_in, c.channels);
    return c;
  }

  // What a slice takes for all columns: products, and moving both tensors to shared memory.
  static int64_t cost_of(const GradColumns& c) {
    const int64_t moved = T::rows * kGradWords / 4 + L::planes * c.rows() * c.vectors;
    return c.channel_blocks * c.tap_blocks * (int64_t{2} * T::rows * T::columns + 64 * moved);
  }

  static GradColumns best_columns(const ConvArgs& a) {
    const int64_t shared_bytes = shared_budget(T::blocks);
    return best_of_taps(
        a.kernel_size, T::columns, [&](int64_t taps) { return columns_of(a, taps, shared_bytes); },
        cost_of);
  }

  static Cut cut(const ConvArgs& a, int64_t) {
    Cut c{};
    c.columns = best_columns(a);
    const int64_t channels_out = a.channels_out / a.groups;
    c.row_blocks = ceil_div(channels_out, T::rows);
    c.tiles = a.groups * c.row_blocks * c.columns.channel_blocks * c.columns.tap_blocks;
    c.slices = ceil_div(a.length_out, L::positions);
    c.elements = weight_elements(a);
    c.bytes = buffer_bytes(c.columns);
    c.splits = splits_of(a, c.tiles, a.batch * c.slices, a.multiprocessors * T::blocks);
    return c;
  }

  static bool is_near(const ConvArgs& a, const GradColumns& c) {
    const int64_t in_row = (a.kernel_size + c.classes) * a.dilation + a.padding +
                           int64_t{c.vectors + 1} * L::vector * a.stride;
    return c.channels * a.input_channel_stride + in_row < int64_t{1} << 31;
  }
  static bool in_parts(const ConvArgs& a, const Cut& c) {
    return c.splits > 1 || a.batch * c.slices * L::positions > kGradChain;
  }

  static int64_t phases(const ConvArgs&) { return 1; }
  static int64_t packed_bytes(const ConvArgs& a, const Cut& c) {
    return in_parts(a, c) ? 4 * c.splits * (c.elements + a.channels_out) : 0;
  }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    if (c.columns.channels == 0) return 1;  // cudaErrorInvalidValue: `why_not` should have said so
    const bool parts = in_parts(a, c);
    auto* const sums = static_cast<float*>(a.workspace);
    int error = set_shared_limit(grad_dense_kernel<M, T>, c.bytes);
    if (error != 0) return error;
    error = fastconv1d::launch(
        grad_dense_kernel<M, T>, dim3(static_cast<unsigned>(c.tiles * c.splits)), dim3(T::threads),
        c.bytes, stream,
        GradParams{a.input,
                   a.grad_output,
                   parts ? sums : a.output,
                   parts && a.grad_bias != nullptr ? sums + c.splits * c.elements : a.grad_bias,
                   c.columns,
                   a.batch,
                   a.length,
                   a.length_out,
                   a.kernel_size,
                   a.input_batch_stride,
                   a.input_channel_stride,
                   a.channels_in / a.groups,
                   a.channels_out / a.groups,
                   a.groups,
                   c.row_blocks,
                   c.tiles,
                   c.splits,
                   c.slices,
                   c.elements,
                   static_cast<int>(a.stride),
                   static_cast<int>(a.dilation),
                   a.padding,
                   input_alignment<Element>(a),
                   grad_alignment<Element>(a),
                   parts,
                   is_near(a, c.columns)});
    if (error != 0 || !parts) return error;
    return add_parts<M>({sums, c.elements, a.output, c.splits},
                        {sums + c.splits * c.elements, a.grad_bias != nullptr ? a.channels_out : 0,
                         a.grad_bias, c.splits},
                        stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_DENSE_LIBRARY(...) \
  FASTCONV1D_TILE_LIBRARY(fastconv1d::GradDense, __VA_ARGS__)
