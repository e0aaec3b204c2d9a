// The convolution on ordinary FMA units, for groups with few channels: depthwise, and a layer's last.
//
// A thread computes some neighbouring outputs of a row, or of several rows of a group. Tap by tap it
// multiplies a window of the input, kept in registers, which slides on by 16 bytes at a time:
//
//   sum of output i  +=  weight of tap n  *  window[i / OUT_STEP * IN_STEP + n]
//
// Rows of the input and of the output begin at any element. A thread's outputs begin where they fill 16
// bytes. Of the input it reads the pieces of 16 bytes that its window lies in; two neighbouring pieces,
// shifted by what the window is off, are its next values. The outputs of a transposed convolution of
// stride OUT_STEP are those of all its phases.
//
// Roofline: DRAM sees the input and the output once, since windows overlap in L1 only. With few channels
// and taps nothing else counts; with many the FMA units do. Where there are few outputs, threads of a
// block share out the channels of the input, and add up their sums in a fixed order.
#pragma once
#include "tile.cuh"

namespace fastconv1d {

constexpr int kSlidingThreads = 128;

// Divides numbers below 2^31 by one that the launcher knows.
struct Divisor {
  uint32_t by, factor, shift;
  explicit Divisor(int64_t divisor)
      : by(static_cast<uint32_t>(divisor)), factor(0), shift(31 + log2_of(2 * divisor - 1)) {
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ int quotient(uint32_t number) const {
    return static_cast<int>((static_cast<uint64_t>(number) * factor) >> shift);
  }
};

struct SlidingParams {
  const void *input, *weight, *bias;
  void* output;
  int64_t input_batch_stride, input_channel_stride, length_out;
  int64_t weight_group, weight_row,
      weight_channel;                 // elements from one's weights to the next one's
  int length, windows;                // of a row of the input; of a row of the output
  int kernel_size, stride, dilation;  // positions from output to output, and from tap to tap
  int first_shift, out_shift;         // positions that tap 0 and output 0 are off
  int taps, first_tap, tap_step;      // tap n has the weights from first_tap + n * tap_step on
  int channels_in, channels_out;      // of a group
  int batches, groups, row_blocks;    // blocks of a group's rows
  int row_step;                       // from one row of a thread to its next
  int parts;                          // in which threads share out the channels of the input
  int threads_of_row, rows_of_block;
  Divisor by_window_blocks, by_threads_of_row, by_rows_of_batch, by_row_blocks;
};

// A row's values from some position on, 16 bytes at a time; zeros beside the row.
template <class M>
struct Stream {
  using Element = typename M::Element;
  static constexpr int of_piece = 16 / sizeof(Element), of_word = 4 / sizeof(Element);
  uint64_t at, begin, end;  // of the next piece; of the row
  uint32_t before[4];
  int off;  // bytes by which values begin behind a piece

  __device__ __forceinline__ Stream(const Element* row, int length, int64_t first)
      : begin(reinterpret_cast<uint64_t>(row)), end(begin + length * sizeof(Element)) {
    const uint64_t from = begin + first * sizeof(Element);
    at = from & ~uint64_t{15};
    off = static_cast<int>(from & 15);
    load(before);
  }

  // A piece may be read that has a part of the row.
  __device__ __forceinline__ void load(uint32_t (&word)[4]) {
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (at + 16 > begin && at < end) piece = __ldg(reinterpret_cast<const uint4*>(at));
    word[0] = piece.x;
    word[1] = piece.y;
    word[2] = piece.z;
    word[3] = piece.w;
    if (at < begin || at + 16 > end) {
#pragma unroll
      for (int i = 0; i < of_piece; ++i) {
        const uint64_t address = at + i * sizeof(Element);
        if (address < begin || address >= end)
          word[i / of_word] &= of_word == 1 ? 0 : i % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
      }
    }
    at += 16;
  }

  __device__ __forceinline__ void next(float* value) {
    uint32_t after[4];
    load(after);
    uint32_t word[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      word[i] = before[i];
      word[i + 4] = before[i] = after[i];
    }
#pragma unroll
    for (int i = 0; i < 6; ++i) word[i] = off & 8 ? word[i + 2] : word[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) word[i] = off & 4 ? word[i + 1] : word[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (of_word == 1) {
        value[i] = float_of(word[i]);
      } else {
        const uint32_t both = off & 2 ? word[i] >> 16 | word[i + 1] << 16 : word[i];
        value[2 * i] = M::from(static_cast<Element>(both & 0xffff));
        value[2 * i + 1] = M::from(static_cast<Element>(both >> 16));
      }
    }
  }
};

// How a thread reads its windows: taps see neighbouring positions of the input; or each tap has a window
// of its own; or each value is read by itself.
enum class Reading { kSliding, kTapByTap, kOneByOne };

// What a thread computes: ROWS rows of PIECES x 16 bytes of outputs. CHAINS: of so many channels that their
// products are added up in chains, and these apart.
template <class MODE, int PIECES, int ROWS, int IN_STEP, int OUT_STEP, Reading READING, bool CHAINS>
struct Sliding {
  using M = MODE;
  using Element = typename M::Element;
  static constexpr int of_piece = 16 / sizeof(Element), outputs = PIECES * of_piece;
  static constexpr int rows = ROWS, out_step = OUT_STEP;
  static constexpr bool chains = CHAINS, sliding = READING == Reading::kSliding;
  static_assert(outputs % OUT_STEP == 0);
  // Positions from the first that the outputs see of a tap to the last; pieces of a window.
  static constexpr int span = (outputs / OUT_STEP - 1) * IN_STEP;
  static constexpr int pieces = (span + of_piece - 1) / of_piece + 1;
  using Sums = float[ROWS][outputs];

  const SlidingParams& p;
  int count;         // of rows that exist
  int first, phase;  // the position that output 0 sees of tap 0; by how much its weights are off
  int begin, end;    // taps that count, the same for all lanes

  template <class Visit>
  static __device__ __forceinline__ void for_each_sum(const Visit& visit) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int i = 0; i < outputs; ++i) visit(r, i);
  }

  // Adds one channel of the input.
  __device__ __forceinline__ void add(Sums& sums, const Element* row, const Element* weight) const {
    float window[READING == Reading::kOneByOne ? outputs : pieces * of_piece];
    if constexpr (sliding) {
      Stream<M> stream(row, p.length, first + begin);
#pragma unroll
      for (int i = 1; i < pieces; ++i) stream.next(window + i * of_piece);
#pragma unroll 1
      for (int n = begin; n < end; n += of_piece) {
#pragma unroll
        for (int i = 0; i < (pieces - 1) * of_piece; ++i) window[i] = window[i + of_piece];
        stream.next(window + (pieces - 1) * of_piece);
        multiply_piece<0>(sums, window, weight, n);
      }
    } else {
#pragma unroll 1
      for (int n = begin; n < end; ++n) {
        const int at = first + n * p.dilation;
        if constexpr (READING == Reading::kTapByTap) {
          Stream<M> stream(row, p.length, at);
#pragma unroll
          for (int i = 0; i < pieces; ++i) stream.next(window + i * of_piece);
        } else {
#pragma unroll
          for (int i = 0; i < outputs; ++i) {
            const int position = at + i * p.stride;
            const bool exists = position >= 0 && position < p.length;
            window[i] = exists ? M::from(__ldg(row + position)) : 0;
          }
        }
        multiply<0>(sums, window, weight, n);
      }
    }
  }

 private:
  // Taps n + TAP, n + TAP + 1, ... as far as the window has them.
  template <int TAP>
  __device__ __forceinline__ void multiply_piece(Sums& sums, const float* window,
                                                 const Element* weight, int n) const {
    if constexpr (TAP < of_piece) {
      if (n + TAP >= end) return;
      multiply<TAP>(sums, window, weight, n + TAP);
      multiply_piece<TAP + 1>(sums, window, weight, n);
    }
  }

  template <int TAP>
  __device__ __forceinline__ void multiply(Sums& sums, const float* window, const Element* weight,
                                           int n) const {
    constexpr int in_step = READING == Reading::kOneByOne ? 1 : IN_STEP;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float weights[OUT_STEP];
#pragma unroll
      for (int o = 0; o < OUT_STEP; ++o) {
        const int at = p.first_tap + n * p.tap_step + phase + o;
        const bool exists = r < count && (OUT_STEP == 1 || (at >= 0 && at < p.kernel_size));
        weights[o] = exists ? M::from(__ldg(weight + r * p.row_step * p.weight_row + at)) : 0;
      }
#pragma unroll
      for (int i = 0; i < outputs; ++i)
        sums[r][i] = fmaf(weights[i % OUT_STEP], window[i / OUT_STEP * in_step + TAP], sums[r][i]);
    }
  }
};

// Channels whose products are added up apart: short sums keep the rounding errors of long ones down.
constexpr int kSlidingChain = 16;

// Writes a piece of a row, its bias added, of which outputs from `first` on exist.
template <class S>
__device__ __forceinline__ void write_outputs(const SlidingParams& p, const float* sums, float bias,
                                              int64_t row, int first) {
  using M = typename S::M;
  using Element = typename M::Element;
  Element* const out = static_cast<Element*>(p.output) + row * p.length_out + first;
  if (first >= 0 && first + S::outputs <= p.length_out &&
      reinterpret_cast<uint64_t>(out) % 16 == 0) {
#pragma unroll
    for (int piece = 0; piece < S::outputs; piece += S::of_piece) {
      alignas(16) uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const sum = sums + piece + i * S::of_piece / 4;
        if constexpr (S::of_piece == 4)
          word[i] = bits_of(sum[0] + bias);
        else
          word[i] = M::pack({M::to(sum[0] + bias), M::to(sum[1] + bias)});
      }
      *reinterpret_cast<uint4*>(out + piece) = make_uint4(word[0], word[1], word[2], word[3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < S::outputs; ++i)
    if (first + i >= 0 && first + i < p.length_out) out[i] = M::to(sums[i] + bias);
}

template <class S>
__global__ void __launch_bounds__(kSlidingThreads, (S::rows > 4 ? 2 : 5))
    sliding_kernel(const SlidingParams p) {
  using M = typename S::M;
  using Element = typename M::Element;
  FASTCONV1D_SHARED(memory);
  const int of_part = kSlidingThreads / p.parts, part = static_cast<int>(threadIdx.x) / of_part,
            thread = static_cast<int>(threadIdx.x) % of_part;
  const int block = p.by_window_blocks.quotient(blockIdx.x),
            window_block = static_cast<int>(blockIdx.x - block * p.by_window_blocks.by),
            row_of_block = p.by_threads_of_row.quotient(thread),
            window = (window_block - row_of_block) * p.threads_of_row + thread,
            number = block * p.rows_of_block + row_of_block,
            batch = p.by_rows_of_batch.quotient(number),
            of_batch = static_cast<int>(number - batch * p.by_rows_of_batch.by),
            group = p.by_row_blocks.quotient(of_batch), of_rows = of_batch - group * p.row_blocks,
            in_step = of_rows & (p.row_step - 1),
            of_group = (of_rows - in_step) * S::rows + in_step;
  const bool exists = row_of_block < p.rows_of_block && batch < p.batches &&
                      of_group < p.channels_out && window < p.windows;
  // The thread's first row of the output, and its first output there. Its rows begin alike.
  const int64_t row = (static_cast<int64_t>(batch) * p.groups + group) * p.channels_out + of_group;
  const int first = window * S::outputs - static_cast<int>(row * p.length_out % S::of_piece);

  const int shifted = first + p.out_shift, phase = shifted & (S::out_step - 1);
  S of_thread{p,
              static_cast<int>(ceil_div(p.channels_out - of_group, p.row_step)),
              (shifted - phase) / S::out_step * p.stride + p.first_shift,
              phase,
              0,
              p.taps};
  if (S::sliding && p.taps > S::of_piece) {
    // Of long kernels, taps that see nothing but padding take no time.
    const int before = -of_thread.first - S::span, behind = p.length - of_thread.first;
    const uint32_t begin = before > 0 ? before : 0, end = behind > 0 ? behind : 0;
    of_thread.begin = static_cast<int>(smallest_of_warp(exists ? begin : INT32_MAX));
    of_thread.end = static_cast<int>(smaller(p.taps, largest_of_warp(exists ? end : 0)));
  }

  typename S::Sums sums{};
  if (exists) {
    const auto* const input = static_cast<const Element*>(p.input) + batch * p.input_batch_stride +
                              group * p.channels_in * p.input_channel_stride;
    const auto* const weight =
        static_cast<const Element*>(p.weight) + group * p.weight_group + of_group * p.weight_row;
    typename S::Sums chain{};
    const auto end_chain = [&] {
      S::for_each_sum([&](int r, int i) {
        sums[r][i] += chain[r][i];
        chain[r][i] = 0;
      });
    };
    int chained = 0;
#pragma unroll 1
    for (int in = part; in < p.channels_in; in += p.parts) {
      of_thread.add(S::chains ? chain : sums, input + in * p.input_channel_stride,
                    weight + in * p.weight_channel);
      if (!S::chains || ++chained < kSlidingChain) continue;
      end_chain();
      chained = 0;
    }
    if (S::chains) end_chain();
  }
  if constexpr (S::chains) {
    auto* const shared = reinterpret_cast<float*>(memory);
    const auto place = [&](int of, int r, int i) -> float& {
      return shared[(((of - 1) * S::rows + r) * S::outputs + i) * of_part + thread];
    };
    if (part > 0) S::for_each_sum([&](int r, int i) { place(part, r, i) = sums[r][i]; });
    if (p.parts > 1) __syncthreads();
    for (int other = 1; part == 0 && other < p.parts; ++other)
      S::for_each_sum([&](int r, int i) { sums[r][i] += place(other, r, i); });
  }
  if (!exists || part > 0) return;
#pragma unroll
  for (int r = 0; r < S::rows; ++r) {
    const int further = r * p.row_step;
    if (r < of_thread.count)
      write_outputs<S>(p, sums[r], bias_of<M>(p.bias, group, of_group + further, p.channels_out),
                       row + further, first);
  }
}

// The kernels of a mode, one for each way of reading and writing, and what they take.
template <class M>
struct SlidingKernels {
  static constexpr int of_piece = 16 / sizeof(typename M::Element);
  // Taps from which on, and output channels of a group from which on, outputs share what is read.
  static constexpr int kLongKernel = 16, kManyRows = 8;

  static int launch(const ConvArgs& a, void* stream) {
    const bool neighbours = a.dilation == 1 || a.kernel_size == 1;
    if (a.transposed && a.stride > 1) {
      if (!neighbours) return 1;  // cudaErrorInvalidValue: `why_not` should have said so
      switch (a.stride) {
        case 2:
          return of_channels<1, 1, 1, 2, Reading::kSliding>(a, stream);
        case 4:
          return of_channels<1, 1, 1, 4, Reading::kSliding>(a, stream);
        case 8:
          return of_channels<8 / of_piece, 1, 1, 8, Reading::kSliding>(a, stream);
        default:
          return 1;
      }
    }
    const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups;
    if (channels_in <= kSlidingChain && channels_out >= kManyRows) {
      constexpr int rows = 64 / of_piece;
      if (neighbours) switch (a.stride) {
          case 1:
            return run<Sliding<M, 1, rows, 1, 1, Reading::kSliding, false>>(a, stream);
          case 2:
            return run<Sliding<M, 1, rows, 2, 1, Reading::kSliding, false>>(a, stream);
          case 5:
            return run<Sliding<M, 1, rows, 5, 1, Reading::kSliding, false>>(a, stream);
          case 8:
            return run<Sliding<M, 1, rows, 8, 1, Reading::kSliding, false>>(a, stream);
        }
      return run<Sliding<M, 1, rows, 1, 1, Reading::kOneByOne, false>>(a, stream);
    }
    if (!neighbours || a.stride > 2)
      return a.stride == 1 ? of_channels<1, 1, 1, 1, Reading::kTapByTap>(a, stream)
                           : of_channels<1, 1, 1, 1, Reading::kOneByOne>(a, stream);
    if (a.stride == 2) return of_channels<1, 1, 2, 1, Reading::kSliding>(a, stream);
    if (channels_in > 1 && channels_out > 1)
      return of_channels<1, 16 / of_piece, 1, 1, Reading::kSliding>(a, stream);
    if (of_piece == 4 && channels_in == 1 && a.kernel_size >= kLongKernel)
      return run<Sliding<M, 2, 1, 1, 1, Reading::kSliding, false>>(a, stream);
    return of_channels<1, 1, 1, 1, Reading::kSliding>(a, stream);
  }

 private:
  template <int PIECES, int ROWS, int IN_STEP, int OUT_STEP, Reading READING>
  static int of_channels(const ConvArgs& a, void* stream) {
    if (a.channels_in > kSlidingChain * a.groups)
      return run<Sliding<M, PIECES, ROWS, IN_STEP, OUT_STEP, READING, true>>(a, stream);
    return run<Sliding<M, PIECES, ROWS, IN_STEP, OUT_STEP, READING, false>>(a, stream);
  }

  template <class S>
  static int run(const ConvArgs& a, void* stream) {
    const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups,
                  row_step = S::rows > 1 ? of_piece / gcd(of_piece, a.length_out % of_piece) : 1,
                  row_blocks = ceil_div(channels_out, S::rows * row_step) * row_step,
                  rows = a.batch * a.groups * row_blocks,
                  lead = of_piece - gcd(of_piece, a.length_out % of_piece),
                  windows = ceil_div(a.length_out + lead, S::outputs);
    int64_t parts = 1;
    while (S::chains && parts < 4 && channels_in >= 8 * parts &&
           rows * windows * parts < a.multiprocessors * kThreadsEnough)
      parts *= 2;
    const int64_t of_part = kSlidingThreads / parts, window_blocks = ceil_div(windows, of_part),
                  threads_of_row = ceil_div(windows, window_blocks),
                  rows_of_block = smaller(rows, of_part / threads_of_row),
                  blocks = ceil_div(rows, rows_of_block) * window_blocks;
    if (rows > INT32_MAX / 2 || blocks > INT32_MAX) return 1;
    const int64_t most_taps = (a.kernel_size - 1) / S::out_step;  // behind the first, of a phase
    SlidingParams p{a.input,
                    a.weight,
                    a.bias,
                    a.output,
                    a.input_batch_stride,
                    a.input_channel_stride,
                    a.length_out,
                    channels_out * channels_in * a.kernel_size,
                    (a.transposed ? 1 : channels_in) * a.kernel_size,
                    (a.transposed ? channels_out : 1) * a.kernel_size,
                    static_cast<int>(a.length),
                    static_cast<int>(windows),
                    static_cast<int>(a.kernel_size),
                    static_cast<int>(S::out_step > 1 ? 1 : a.stride),
                    static_cast<int>(a.dilation),
                    static_cast<int>(-a.padding),
                    0,
                    static_cast<int>(a.kernel_size),
                    0,
                    1,
                    static_cast<int>(channels_in),
                    static_cast<int>(channels_out),
                    static_cast<int>(a.batch),
                    static_cast<int>(a.groups),
                    static_cast<int>(row_blocks),
                    static_cast<int>(row_step),
                    static_cast<int>(parts),
                    static_cast<int>(threads_of_row),
                    static_cast<int>(rows_of_block),
                    Divisor(window_blocks),
                    Divisor(threads_of_row),
                    Divisor(a.groups * row_blocks),
                    Divisor(row_blocks)};
    if (a.transposed) {
      // Taps run backwards, so that the positions that they see ascend. Outputs may begin with any
      // phase: their last weights then belong to one tap more.
      p.first_tap = static_cast<int>(most_taps * S::out_step);
      p.tap_step = -S::out_step;
      p.taps = static_cast<int>(most_taps + (S::out_step > 1 ? 2 : 1));
      p.first_shift = static_cast<int>(-most_taps * a.dilation);
      p.out_shift = static_cast<int>(a.padding);
    }
    const int64_t shared = 4 * (parts - 1) * S::rows * S::outputs * of_part;
    return fastconv1d::launch(sliding_kernel<S>, dim3(static_cast<unsigned>(blocks)),
                              dim3(kSlidingThreads), shared, stream, p);
  }

  static constexpr int64_t kThreadsEnough = 512;  // of a multiprocessor
};

}  // namespace fastconv1d

#define FASTCONV1D_SLIDING_LIBRARY(MODE)                                           \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::SlidingKernels<MODE>::launch(*args, stream);                \
  }                                                                                \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
