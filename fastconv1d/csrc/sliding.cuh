// The convolution on ordinary FMA units, for groups with few channels: depthwise, and a layer's last. Where memory is all
// that counts, the kernel is that of depthwise.cuh.
//
// A block has some rows of a channel, or of neighbouring channels, and their weights, as fp32, in shared
// memory. A thread computes some neighbouring outputs of a row, or of several rows of a group, and then
// others. Tap by tap it multiplies a window of the input, kept in registers, which slides on as taps do:
//
//   sum of output i  +=  weight of tap n  *  window[i / OUT_STEP * IN_STEP + n]
//
// Rows of the input and of the output begin at any element. A thread's outputs begin where they fill 16
// bytes. Of the input it reads the pieces of 16 bytes that its window lies in; two neighbouring pieces,
// shifted by what the window is off, are its next values. The outputs of a transposed convolution of
// stride OUT_STEP are those of all its phases.
//
// Roofline: DRAM sees the input and the output once, since windows overlap in L1 only. With few channels
// and taps nothing else counts, if few instructions do the rest; with many the FMA units do. Where there
// are few outputs, threads of a block share out the channels of the input, and add up their sums in a fixed
// order.
#pragma once
#include "depthwise.cuh"
#include "stream.cuh"
#include "tile.cuh"

namespace fastconv1d {

constexpr int kSlidingThreads = 128;

struct SlidingParams {
  const void *input, *weight, *bias;
  void* output;
  int64_t input_batch_stride, input_channel_stride, length_out;
  int64_t weight_group, weight_row,
      weight_channel;                 // elements from one's weights to the next one's
  int length, windows;                // of a row of the input; of a row of the output
  int kernel_size, stride, dilation;  // positions from output to output, and from tap to tap
  int first_shift, out_shift;         // positions that tap 0 and output 0 are off
  int taps;
  int first_weight, weight_step, weights, weight_shift;  // see `keep_weights`
  int channels_in, channels_out;                         // of a group
  int batches, groups, row_blocks;                       // blocks of a group's rows
  int row_step;                                          // from one row of a thread to its next
  int parts;                          // in which threads share out the channels of the input
  int threads_of_row, rows_of_block;  // rows: ROWS of them each
  int windows_of_thread, batches_of_block;
  int channels_at_once;  // in shared memory
  Divisor by_window_blocks, by_batch_blocks, by_threads_of_row, by_row_blocks, by_weights,
      by_channels;
};

// How a thread reads its windows: taps see neighbouring positions of the input; or each tap has a window
// of its own; or each value is read by itself.
enum class Reading { kSliding, kTapByTap, kOneByOne };

// How many channels of the input a group has: one; few; or so many that their products are added up in chains,
// and these apart.
enum class Channels { kOne, kFew, kMany };

// Taps whose weights are read together.
constexpr int kTapsAtOnce = 4;

// What a thread computes: ROWS rows of PIECES x 16 bytes of outputs.
template <class MODE, int PIECES, int ROWS, int IN_STEP, int OUT_STEP, Reading READING,
          Channels CHANNELS>
struct Sliding {
  using M = MODE;
  using Element = typename M::Element;
  static constexpr int of_piece = 16 / sizeof(Element), outputs = PIECES * of_piece;
  static constexpr int rows = ROWS, out_step = OUT_STEP;
  static constexpr Channels channels = CHANNELS;
  static constexpr bool chains = CHANNELS == Channels::kMany,
                        sliding = READING == Reading::kSliding;
  static_assert(outputs % OUT_STEP == 0);
  // Taps whose values are read together.
  static constexpr int at_once = sliding ? of_piece : 1;
  // Positions from the first that the outputs see of a tap to the last; pieces of a window.
  static constexpr int span = (outputs / OUT_STEP - 1) * IN_STEP;
  static constexpr int pieces = (span + at_once + of_piece - 1) / of_piece;
  using Sums = float[ROWS][outputs];

  // A thread's first row in a group, of its number: the rows of a thread begin alike.
  static __device__ __forceinline__ int row_of(const SlidingParams& p, int number) {
    const int in_step = number & (p.row_step - 1);
    return (number - in_step) * ROWS + in_step;
  }

  const SlidingParams& p;
  int first, phase;  // the position that output 0 sees of tap 0; which phase's output that is
  int length;        // of the input's row; less than 0 where none is to be read
  int begin, end;    // taps that count, the same for all lanes

  __device__ __forceinline__ void follow(const Sliding& next) {
    first = next.first;
    phase = next.phase;
    length = next.length;
    begin = next.begin;
    end = next.end;
  }

  template <class Visit>
  static __device__ __forceinline__ void for_each_sum(const Visit& visit) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int i = 0; i < outputs; ++i) visit(r, i);
  }

  // Two pieces are read before any is used.
  using Input = Stream<M, 2>;
  __device__ __forceinline__ Input read(const Element* row) const {
    return Input(row, length, first + begin);
  }

  // Adds one channel of the input, neighbouring taps at a time. Weights are those of tap 0 and of a thread's
  // first row.
  __device__ __forceinline__ void add(Sums& sums, Input input, const float* weight) const {
    float window[pieces * of_piece];
    input.use(input.ahead[0], input.before);
    const auto next = [&](float* value) {
      const uint4 piece = input.ahead[1];
      input.ahead[1] = input.read(1);
      input.next(piece, value);
    };
#pragma unroll
    for (int i = 1; i < pieces; ++i) next(window + i * of_piece);
#pragma unroll 1
    for (int n = begin; n < end; n += of_piece) {
#pragma unroll
      for (int i = 0; i < (pieces - 1) * of_piece; ++i) window[i] = window[i + of_piece];
      next(window + (pieces - 1) * of_piece);
      multiply_taps<0>(sums, window, weight, n);
    }
  }

  // The same tap by tap.
  __device__ __forceinline__ void add(Sums& sums, const Element* row, const float* weight) const {
#pragma unroll 1
    for (int n = begin; n < end; ++n) {
      const int at = first + n * p.dilation;
      float window[READING == Reading::kOneByOne ? outputs : pieces * of_piece];
      if constexpr (READING == Reading::kTapByTap) {
        Stream<M, pieces + 1> input(row, p.length, at);
        input.use(input.ahead[0], input.before);
#pragma unroll
        for (int i = 0; i < pieces; ++i) input.next(input.ahead[i + 1], window + i * of_piece);
      } else {
#pragma unroll
        for (int i = 0; i < outputs; ++i) {
          const int position = at + i * p.stride;
          const bool exists = position >= 0 && position < p.length;
          window[i] = exists ? M::from(__ldg(row + position)) : 0;
        }
      }
      multiply_taps<0>(sums, window, weight, n);
    }
  }

 private:
  // Taps n + TAP, n + TAP + 1, ... as far as the window has them. What no tap sees is not multiplied by a
  // zero either: it may be infinite.
  template <int TAP>
  __device__ __forceinline__ void multiply_taps(Sums& sums, const float* window,
                                                const float* weight, int n) const {
    if constexpr (TAP < at_once) {
      if (TAP > 0 && n + TAP >= end) return;
      if constexpr (at_once == 1 || OUT_STEP > 1) {
        multiply<TAP, at_once == 1 ? 1 : kTapsAtOnce>(sums, window, weight, n);
      } else if (n + TAP + kTapsAtOnce <= p.taps) {
        multiply<TAP, kTapsAtOnce>(sums, window, weight, n);
      } else {
        const int left = p.taps - n - TAP;
        if (left > 0) multiply<TAP, 1>(sums, window, weight, n);
        if (left > 1) multiply<TAP + 1, 1>(sums, window, weight, n);
        if (left > 2) multiply<TAP + 2, 1>(sums, window, weight, n);
      }
      multiply_taps<TAP + kTapsAtOnce>(sums, window, weight, n);
    }
  }

  // So many taps from n + TAP on.
  template <int TAP, int COUNT>
  __device__ __forceinline__ void multiply(Sums& sums, const float* window, const float* weight,
                                           int n) const {
    constexpr int in_step = READING == Reading::kOneByOne ? 1 : IN_STEP;
    // The weight of tap 0 and of output 0, counted in the kernel's.
    const int first_tap = p.first_weight + p.weight_shift + phase;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float* const of_row = weight + r * p.channels_at_once * p.weights;
      float weights[COUNT][OUT_STEP];
      if constexpr (OUT_STEP == 1 && COUNT == 4) {
        const auto four = *reinterpret_cast<const float4*>(of_row + n + TAP);
        weights[0][0] = four.x;
        weights[1][0] = four.y;
        weights[2][0] = four.z;
        weights[3][0] = four.w;
      } else {
#pragma unroll
        for (int t = 0; t < COUNT; ++t)
#pragma unroll
          for (int o = 0; o < OUT_STEP; ++o)
            weights[t][o] = of_row[(OUT_STEP == 1 ? n + TAP + t : -OUT_STEP * (n + TAP + t)) + o];
      }
#pragma unroll
      for (int t = 0; t < COUNT; ++t)
#pragma unroll
        for (int o = 0; o < OUT_STEP; ++o) {
          const int tap = first_tap - OUT_STEP * (n + TAP + t) + o;
          if (OUT_STEP > 1 && (tap < 0 || tap >= p.kernel_size)) continue;
#pragma unroll
          for (int i = o; i < outputs; i += OUT_STEP)
            sums[r][i] = fmaf(weights[t][o], window[i / OUT_STEP * in_step + TAP + t], sums[r][i]);
        }
    }
  }
};

// Keeps the weights of some channels in shared memory: [block's row][thread's row][channel][weight], as
// many weights as taps need and zeros around them, in the order in which positions ascend.
template <class S>
__device__ __forceinline__ void keep_weights(const SlidingParams& p, float* shared, int first_row,
                                             int first_channel) {
  using M = typename S::M;
  const int count = p.rows_of_block * S::rows * p.channels_at_once * p.weights;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSlidingThreads) {
    const int of_channels = p.by_weights.quotient(i), of_rows = p.by_channels.quotient(of_channels),
              at = (i - of_channels * p.weights) * p.weight_step + p.first_weight,
              in = first_channel + of_channels - of_rows * p.channels_at_once,
              number = first_row + of_rows / S::rows, group = p.by_row_blocks.quotient(number),
              row = S::row_of(p, number - group * p.row_blocks) + of_rows % S::rows * p.row_step;
    const bool exists = at >= 0 && at < p.kernel_size && in < p.channels_in &&
                        row < p.channels_out && group < p.groups;
    shared[i] = exists ? M::from(static_cast<const typename M::Element*>(
                             p.weight)[group * p.weight_group + row * p.weight_row +
                                       in * p.weight_channel + at])
                       : 0;
  }
}

// Blocks that share a multiprocessor at least, so that no registers are spilled.
template <class S>
FASTCONV1D_HD constexpr int sliding_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  constexpr int most = 4;
#else
  constexpr int most = 5;
#endif
  if (S::rows * S::outputs * (S::chains ? 2 : 1) > 32) return S::span > 20 ? 2 : 3;
  return S::chains ? 4 : most;
}

template <class S>
__global__ void __launch_bounds__(kSlidingThreads, (sliding_blocks<S>()))
    sliding_kernel(const SlidingParams p) {
  using M = typename S::M;
  using Element = typename M::Element;
  FASTCONV1D_SHARED(memory);
  auto* const shared = reinterpret_cast<float*>(memory);
  float* const parts_shared = shared + p.rows_of_block * S::rows * p.channels_at_once * p.weights;
  const int of_part = kSlidingThreads / p.parts, part = static_cast<int>(threadIdx.x) / of_part,
            thread = static_cast<int>(threadIdx.x) % of_part;
  // The block's rows, batches and windows.
  const int of_windows = p.by_window_blocks.quotient(blockIdx.x),
            window_block =
                static_cast<int>(blockIdx.x) - of_windows * static_cast<int>(p.by_window_blocks.by),
            row_block = p.by_batch_blocks.quotient(of_windows),
            batch_block = of_windows - row_block * static_cast<int>(p.by_batch_blocks.by),
            first_row = row_block * p.rows_of_block;
  const int row_of_block = p.by_threads_of_row.quotient(thread), number = first_row + row_of_block,
            group = p.by_row_blocks.quotient(number),
            row_of_group = S::row_of(p, number - group * p.row_blocks),
            first_window = window_block * p.windows_of_thread * p.threads_of_row + thread -
                           row_of_block * p.threads_of_row;
  const bool has_row =
      row_of_block < p.rows_of_block && group < p.groups && row_of_group < p.channels_out;
  const float* const weights =
      shared + row_of_block * S::rows * p.channels_at_once * p.weights + p.weight_shift;
  const auto* const input = static_cast<const Element*>(p.input) +
                            int64_t{group} * p.channels_in * p.input_channel_stride;
  const auto bias_of_row = [&](int row) {
    return has_row ? bias_of<M>(p.bias, group, row, p.channels_out) : 0;
  };
  const float first_bias = bias_of_row(row_of_group);
  const bool one_chunk = p.channels_at_once >= p.channels_in;

  // A thread's window of a row.
  struct Item {
    int batch, turn, window, first;  // turn: of the windows of this batch
    Element* out;
    const Element* row;  // of the group's first channel
  };
  const auto item_of = [&](int batch) {
    const int64_t row =
        int64_t{batch} * p.groups * p.channels_out + int64_t{group} * p.channels_out + row_of_group;
    const int first = first_window * S::outputs -
                      static_cast<int>(static_cast<uint32_t>(row) *
                                       static_cast<uint32_t>(p.length_out) % S::of_piece);
    return Item{batch,
                0,
                first_window,
                first,
                static_cast<Element*>(p.output) + row * p.length_out + first,
                input + batch * p.input_batch_stride};
  };
  const auto after = [&](Item item) {
    if (++item.turn == p.windows_of_thread) return item_of(item.batch + 1);
    item.window += p.threads_of_row;
    item.first += p.threads_of_row * S::outputs;
    item.out += p.threads_of_row * S::outputs;
    return item;
  };
  const auto exists = [&](const Item& item) {
    return has_row && item.batch < p.batches && item.window < p.windows;
  };
  const auto view = [&](const Item& item) {
    // Which of a transposed convolution's phases comes first.
    const int shifted = item.first + p.out_shift, phase = shifted & (S::out_step - 1);
    S seen{p,     (shifted - phase) / S::out_step * p.stride + p.first_shift,
           phase, exists(item) ? p.length : -S::of_piece,
           0,     p.taps};
    if constexpr (S::sliding) {
      // Of long kernels, taps that see nothing but padding take no time.
      const int before = -seen.first - S::span, behind = seen.length - seen.first;
      const uint32_t begin = before > 0 ? before : 0, end = behind > 0 ? behind : 0;
      seen.begin = static_cast<int>(smallest_of_warp(exists(item) ? begin : p.taps) / kTapsAtOnce *
                                    kTapsAtOnce);
      seen.end = static_cast<int>(smaller(p.taps, largest_of_warp(exists(item) ? end : 0)));
    }
    return seen;
  };
  const auto write = [&](const Item& item, const typename S::Sums& sums) {
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      if (r > 0 && row_of_group + r * p.row_step >= p.channels_out) continue;
      const float bias = r == 0 ? first_bias : bias_of_row(row_of_group + r * p.row_step);
      write_row<M, S::outputs>([&](int i) { return sums[r][i] + bias; },
                               item.out + r * p.row_step * p.length_out, item.first,
                               static_cast<int>(p.length_out));
    }
  };
  Item item = item_of(batch_block * p.batches_of_block);
  const int items = p.batches_of_block * p.windows_of_thread;

  if constexpr (S::channels == Channels::kOne && S::sliding) {
    // What is read next is on its way while this is multiplied.
    S seen = view(item);
    auto values = seen.read(item.row);
    keep_weights<S>(p, shared, first_row, 0);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < items; ++i) {
      const Item next = after(item);
      const S next_seen = view(next);
      auto next_values = next_seen.read(next.row);
      typename S::Sums sums{};
      if (exists(item)) {
        seen.add(sums, values, weights + seen.phase);
        write(item, sums);
      }
      item = next;
      seen.follow(next_seen);
      values = next_values;
    }
  } else {
    if (one_chunk) {
      keep_weights<S>(p, shared, first_row, 0);
      __syncthreads();
    }
#pragma unroll 1
    for (int i = 0; i < items; ++i) {
      const S seen = view(item);
      typename S::Sums sums{}, chain{};
      const auto end_chain = [&] {
        S::for_each_sum([&](int r, int o) {
          sums[r][o] += chain[r][o];
          chain[r][o] = 0;
        });
      };
      int chained = 0;
#pragma unroll 1
      for (int chunk = 0; chunk < p.channels_in; chunk += p.channels_at_once) {
        if (!one_chunk) {
          __syncthreads();
          keep_weights<S>(p, shared, first_row, chunk);
          __syncthreads();
        }
        if (!exists(item)) continue;
        const int end = static_cast<int>(smaller(chunk + p.channels_at_once, p.channels_in));
        const float* of_channel = weights + part * p.weights + seen.phase;
        const auto channel = [&](int in) { return item.row + in * p.input_channel_stride; };
        const auto add = [&](auto from) {
          seen.add(S::chains ? chain : sums, from, of_channel);
          of_channel += p.parts * p.weights;
          if (!S::chains || ++chained < kChannelChain) return;
          end_chain();
          chained = 0;
        };
        if constexpr (S::sliding && S::chains) {
          // What is read next is on its way while this is multiplied.
          if (chunk + part >= end) continue;
          auto values = seen.read(channel(chunk + part));
#pragma unroll 1
          for (int in = chunk + part; in < end; in += p.parts) {
            auto next_values = seen.read(channel(in + p.parts < end ? in + p.parts : in));
            add(values);
            values = next_values;
          }
        } else if constexpr (S::sliding) {
#pragma unroll 1
          for (int in = chunk + part; in < end; in += p.parts) add(seen.read(channel(in)));
        } else {
#pragma unroll 1
          for (int in = chunk + part; in < end; in += p.parts) add(channel(in));
        }
      }
      if constexpr (S::chains) {
        end_chain();
        const auto place = [&](int of, int r, int o) -> float& {
          return parts_shared[(((of - 1) * S::rows + r) * S::outputs + o) * of_part + thread];
        };
        if (p.parts > 1) __syncthreads();
        if (part > 0) S::for_each_sum([&](int r, int o) { place(part, r, o) = sums[r][o]; });
        if (p.parts > 1) __syncthreads();
        for (int other = 1; part == 0 && other < p.parts; ++other)
          S::for_each_sum([&](int r, int o) { sums[r][o] += place(other, r, o); });
      }
      if (exists(item) && part == 0) write(item, sums);
      item = after(item);
    }
  }
}

// The kernels of a mode, one for each way of reading and writing, and what they take.
template <class M>
struct SlidingKernels {
  static constexpr int of_piece = 16 / sizeof(typename M::Element);
  static constexpr int kManyRows =
      8;  // output channels of a group from which on these share what is read
  static constexpr int kEight = 8 / of_piece;  // pieces of 8 outputs
  static constexpr int64_t kMostTurns = 64;
  static constexpr int64_t kThreadsEnough = 512;   // of a multiprocessor
  static constexpr int64_t kBlocksEnough = 32;     // likewise
  static constexpr int64_t kSharedWeights = 6144;  // in shared memory
  static constexpr auto kSlides = Reading::kSliding;

  static int launch(const ConvArgs& a, void* stream) {
    const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups;
    const bool neighbours = has_neighbours(a), many = channels_in > kChannelChain;
    if (channels_out < kManyRows && DepthwiseKernels<M>::takes(a))
      return DepthwiseKernels<M>::launch(a, stream);
    if (a.transposed && a.stride > 1) {
      if (!neighbours) return 1;  // cudaErrorInvalidValue: `why_not` should have said so
      switch (a.stride) {
        case 2:
          return run<kEight, 1, 1, 2, kSlides>(a, stream);
        case 4:
          return run<kEight, 1, 1, 4, kSlides>(a, stream);
        case 8:
          return many ? run<Sliding<M, 32 / of_piece, 1, 1, 8, kSlides, Channels::kMany>>(a, stream)
                      : run<kEight, 1, 1, 8, kSlides>(a, stream);
        default:
          return 1;
      }
    }
    if (!many && channels_out >= kManyRows) {
      constexpr int rows = 64 / of_piece;
      if (neighbours) switch (a.stride) {
          case 1:
            return run<Sliding<M, 1, rows, 1, 1, kSlides, Channels::kFew>>(a, stream);
          case 2:
            return run<Sliding<M, 1, rows, 2, 1, kSlides, Channels::kFew>>(a, stream);
          case 5:
            return run<Sliding<M, 1, rows, 5, 1, kSlides, Channels::kFew>>(a, stream);
          case 8:
            return run<Sliding<M, 1, rows, 8, 1, kSlides, Channels::kFew>>(a, stream);
        }
      return run<Sliding<M, 1, rows, 1, 1, Reading::kOneByOne, Channels::kFew>>(a, stream);
    }
    if (a.stride > 2 || (a.stride == 2 && !neighbours))
      return run<kEight, 1, 1, 1, Reading::kOneByOne>(a, stream);
    if (!neighbours) return run<kEight, 1, 1, 1, Reading::kTapByTap>(a, stream);
    if (a.stride == 2) return run<kEight, 1, 2, 1, kSlides>(a, stream);
    if (many && channels_out > 1)
      return run<Sliding<M, 1, 16 / of_piece, 1, 1, kSlides, Channels::kMany>>(a, stream);
    if (many) return run<Sliding<M, kEight, 1, 1, 1, kSlides, Channels::kMany>>(a, stream);
    if (channels_in > 1)
      return run<Sliding<M, kEight, 1, 1, 1, kSlides, Channels::kFew>>(a, stream);
    return run<Sliding<M, 2, 1, 1, 1, kSlides, Channels::kOne>>(a, stream);
  }

 private:
  template <int PIECES, int ROWS, int IN_STEP, int OUT_STEP, Reading READING>
  static int run(const ConvArgs& a, void* stream) {
    if (a.channels_in == a.groups)
      return run<Sliding<M, PIECES, ROWS, IN_STEP, OUT_STEP, READING, Channels::kOne>>(a, stream);
    if (a.channels_in <= kChannelChain * a.groups)
      return run<Sliding<M, PIECES, ROWS, IN_STEP, OUT_STEP, READING, Channels::kFew>>(a, stream);
    return run<Sliding<M, PIECES, ROWS, IN_STEP, OUT_STEP, READING, Channels::kMany>>(a, stream);
  }

  template <class S>
  static int run(const ConvArgs& a, void* stream) {
    const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups,
                  row_step = S::rows > 1 ? of_piece / gcd(of_piece, a.length_out % of_piece) : 1,
                  row_blocks = ceil_div(channels_out, S::rows * row_step) * row_step,
                  rows = a.groups * row_blocks,
                  lead = of_piece - gcd(of_piece, a.length_out % of_piece),
                  windows = ceil_div(a.length_out + lead, S::outputs);
    int64_t parts = 1;
    while (S::chains && parts < 4 &&
           a.batch * rows * windows * parts < a.multiprocessors * kThreadsEnough)
      parts *= 2;
    // Taps behind the first of a phase; those of transposed convolutions run backwards, so that the positions
    // that they see ascend. Outputs may begin with any phase: their last weights belong to one tap more.
    const int64_t most_taps = (a.kernel_size - 1) / S::out_step;
    const bool woven = S::out_step > 1;
    const int64_t taps = woven ? most_taps + 2 : a.kernel_size,
                  around = woven ? kTapsAtOnce * S::out_step : 0,
                  weights = woven ? round_up(around + (most_taps + 2) * S::out_step, 4)
                                  : round_up(taps, kTapsAtOnce);
    const int64_t channels_at_once =
        smaller(channels_in, larger(1, kSharedWeights / (S::rows * weights)));
    // A block has as many rows, and its threads as many turns on these, as leave few threads idle.
    const int64_t of_part = kSlidingThreads / parts,
                  most_rows = larger(
                      1, smaller(rows, kSharedWeights / (S::rows * weights * channels_at_once)));
    int64_t turns = 0, threads_of_row = 0, rows_of_block = 0, idle = INT64_MAX;
    for (int64_t t = ceil_div(windows, of_part); turns == 0 || (t <= windows && t <= kMostTurns);
         ++t) {
      const int64_t threads = ceil_div(windows, t),
                    rows_at_once = smaller(most_rows, of_part / threads),
                    // Of all threads, in thousandths; a turn more costs some.
          of_these = 1000 - 1000 * windows * rows_at_once / (t * of_part) + 6 * t;
      if (of_these >= idle) continue;
      idle = of_these;
      turns = t;
      threads_of_row = threads;
      rows_of_block = rows_at_once;
    }
    // A block's start is shared by some turns and some batches, if this leaves blocks enough.
    const int64_t row_groups = ceil_div(rows, rows_of_block),
                  enough = a.multiprocessors * kBlocksEnough,
                  most = larger(1, row_groups * a.batch * turns / enough),
                  windows_of_thread = ceil_div(turns, ceil_div(turns, most)),
                  window_blocks = ceil_div(turns, windows_of_thread),
                  batches_of_block =
                      larger(1, smaller(smaller(a.batch, 8), most / windows_of_thread)),
                  batch_blocks = ceil_div(a.batch, batches_of_block),
                  blocks = row_groups * window_blocks * batch_blocks;
    if (rows > INT32_MAX / 2 || blocks > INT32_MAX) return 1;
    const int first_weight = static_cast<int>(woven          ? -around
                                              : a.transposed ? a.kernel_size - 1
                                                             : 0);
    const SlidingParams p{a.input,
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
                          static_cast<int>(woven ? 1 : a.stride),
                          static_cast<int>(a.dilation),
                          static_cast<int>(woven          ? -most_taps
                                           : a.transposed ? a.padding - most_taps * a.dilation
                                                          : -a.padding),
                          static_cast<int>(woven ? a.padding : 0),
                          static_cast<int>(taps),
                          first_weight,
                          a.transposed && !woven ? -1 : 1,
                          static_cast<int>(weights),
                          static_cast<int>(woven ? around + most_taps * S::out_step : 0),
                          static_cast<int>(channels_in),
                          static_cast<int>(channels_out),
                          static_cast<int>(a.batch),
                          static_cast<int>(a.groups),
                          static_cast<int>(row_blocks),
                          static_cast<int>(row_step),
                          static_cast<int>(parts),
                          static_cast<int>(threads_of_row),
                          static_cast<int>(rows_of_block),
                          static_cast<int>(windows_of_thread),
                          static_cast<int>(batches_of_block),
                          static_cast<int>(channels_at_once),
                          Divisor(window_blocks),
                          Divisor(batch_blocks),
                          Divisor(threads_of_row),
                          Divisor(row_blocks),
                          Divisor(weights),
                          Divisor(channels_at_once)};
    const int64_t kept = rows_of_block * S::rows * channels_at_once * weights,
                  shared = 4 * (kept + (parts - 1) * S::rows * S::outputs * of_part);
    const auto kernel = sliding_kernel<S>;
    if (const int error = set_shared_limit(kernel, shared)) return error;
    return fastconv1d::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kSlidingThreads),
                              shared, stream, p);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_SLIDING_LIBRARY(MODE)                                           \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::SlidingKernels<MODE>::launch(*args, stream);                \
  }                                                                                \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
