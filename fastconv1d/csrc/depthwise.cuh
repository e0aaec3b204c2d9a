// Rows of few taps that share no input with others, which take the time that memory does: depthwise layers, and a layer's
// last, to one channel.
//
// A thread computes 32 bytes of outputs of one row, or 16 where that is much, and threads follow each other as outputs do
// in memory. Of each channel of its input, one if the layer is depthwise, it has a window in registers:
//
//   sum of output i  +=  weight of tap n  *  window[i / OUT_STEP * IN_STEP + n]
//
// Rows of the input and of the output begin at any element: a thread's outputs begin where they fill so many bytes, and
// the pieces of 16 bytes that it reads are shifted by what its window is off. The outputs of a transposed convolution of
// stride OUT_STEP are those of all its phases. A row's weights come from the first-level cache, those of several channels
// from shared memory.
//
// Roofline: DRAM sees the input and the output once; some rows of the output may read the same one of the input, the
// later ones from L2. What counts is in which order: the nearer to each other all that is on its way, the faster memory
// is. So blocks are small, and do what is next in memory, and no block does more than that.
#pragma once
#include "stream.cuh"
#include "tile.cuh"

namespace fastconv1d {

constexpr int kDepthwiseThreads = 128;

struct DepthwiseParams {
  const void *input, *weight, *bias;
  void* output;
  int64_t input_batch_stride, input_group_stride, input_channel_stride, length_out;
  int64_t tap_step;  // from a window's tap to the next in the weight, if there is one phase
  int threads;       // of all rows of the output
  int length, channels_in, channels_out;  // channels_in: of a group
  int kernel_size, stride, dilation;      // positions from output to output, and from tap to tap
  int first_shift, out_shift;             // positions that tap 0 and output 0 are off
  int taps;                               // as many a window has
  int first_tap;                          // a window's first one, of phase 0
  Divisor by_threads_of_row, by_channels_out, by_channels_of_group;
};

// What a thread computes: PIECES x 16 bytes of outputs. A window has up to TAPS taps, which see neighbouring positions;
// or, where these are 0, each tap has one of its own. If there are SEVERAL channels, the products of some are added up
// apart.
template <class MODE, int PIECES, int IN_STEP, int OUT_STEP, int TAPS, bool SEVERAL>
struct Depthwise {
  using M = MODE;
  using Element = typename M::Element;
  static constexpr int of_piece = 16 / sizeof(Element), outputs = PIECES * of_piece,
                       out_step = OUT_STEP;
  static constexpr bool several = SEVERAL;
  using Sums = float[outputs];
  static_assert(outputs % OUT_STEP == 0 && (TAPS > 0 || IN_STEP * OUT_STEP == 1));

  const DepthwiseParams& p;
  int first, phase;  // the position that output 0 sees of tap 0; which phase's output that is

  // Adds one channel of the input, whose weights are `weight`, those of tap 0 first.
  __device__ __forceinline__ void add(Sums& sums, const Element* row, const Element* weight) const {
    if constexpr (TAPS == 0) {
#pragma unroll 1
      for (int n = 0; n < p.taps; ++n) {
        float window[outputs];
        const Span<M, PIECES, true> seen(row, p.length, first + n * p.dilation);
        const float of_tap = M::from(__ldg(weight + p.first_tap + n * p.tap_step));
        seen.values(window, p.length);
#pragma unroll
        for (int i = 0; i < outputs; ++i) sums[i] = fmaf(of_tap, window[i], sums[i]);
      }
    } else {
      const Element* at = weight + p.first_tap;
      add_window(sums, row, [&](int n, int o) {
        // Any other where there is no tap, so that nothing has to be asked before it is read.
        if constexpr (OUT_STEP > 1) at = weight + (exists(tap_of(n, o)) ? tap_of(n, o) : 0);
        const float of_tap = M::from(__ldg(at));
        if constexpr (OUT_STEP == 1) at += n + 1 < p.taps ? p.tap_step : 0;
        return of_tap;
      });
    }
  }

  // The same with weights that are kept in the order of a window's taps.
  __device__ __forceinline__ void add(Sums& sums, const Element* row, const float4* weight) const {
    static_assert(TAPS == 8);
    const float4 some = weight[0], others = weight[1];
    const float weights[TAPS] = {some.x,   some.y,   some.z,   some.w,
                                 others.x, others.y, others.z, others.w};
    add_window(sums, row, [&](int n, int) { return weights[n]; });
  }

 private:
  template <class WeightOf>
  __device__ __forceinline__ void add_window(Sums& sums, const Element* row,
                                             const WeightOf& weight_of) const {
    constexpr int span = (outputs / OUT_STEP - 1) * IN_STEP + TAPS,
                  pieces = (span + of_piece - 1) / of_piece;
    float window[pieces * of_piece], weights[TAPS][OUT_STEP];
    const Span<M, pieces, true> seen(row, p.length, first);
#pragma unroll
    for (int n = 0; n < TAPS; ++n)
#pragma unroll
      for (int o = 0; o < OUT_STEP; ++o) weights[n][o] = weight_of(n, o);
    seen.values(window, p.length);
    // What no tap sees is not multiplied by a zero either: it may be infinite.
#pragma unroll
    for (int n = 0; n < TAPS; ++n)
      if (n < p.taps)
#pragma unroll
        for (int o = 0; o < OUT_STEP; ++o)
          if (OUT_STEP == 1 || exists(tap_of(n, o)))
#pragma unroll
            for (int i = o; i < outputs; i += OUT_STEP)
              sums[i] = fmaf(weights[n][o], window[i / OUT_STEP * IN_STEP + n], sums[i]);
  }
  __device__ __forceinline__ int tap_of(int n, int o) const {
    return p.first_tap + phase + o - OUT_STEP * n;
  }
  __device__ __forceinline__ bool exists(int tap) const { return tap >= 0 && tap < p.kernel_size; }
};

// Channels of the input in a chain: short sums keep the rounding errors of long ones down. Weights that are kept of
// each.
constexpr int kChannelChain = 16, kTapsOfChannel = 8;

// Blocks that share a multiprocessor, so that no registers are spilled.
template <class D>
FASTCONV1D_HD constexpr int depthwise_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (D::out_step > 1 || D::several) return 4;
#endif
  return 8;
}

template <class D>
__global__ void __launch_bounds__(kDepthwiseThreads, (depthwise_blocks<D>()))
    depthwise_kernel(const DepthwiseParams p) {
  using M = typename D::M;
  using Element = typename M::Element;
  FASTCONV1D_SHARED(memory);
  auto* const kept = reinterpret_cast<float*>(memory);
  if constexpr (D::several) {
    // All rows have the same weights.
    for (int i = static_cast<int>(threadIdx.x); i < p.channels_in * kTapsOfChannel;
         i += kDepthwiseThreads) {
      const int in = i / kTapsOfChannel, n = i % kTapsOfChannel;
      kept[i] = n < p.taps ? M::from(static_cast<const Element*>(
                                 p.weight)[in * p.kernel_size + p.first_tap + n * p.tap_step])
                           : 0;
    }
    __syncthreads();
  }
  const auto number = blockIdx.x * kDepthwiseThreads + threadIdx.x;
  if (number >= static_cast<uint32_t>(p.threads)) return;
  const int row = p.by_threads_of_row.quotient(number),
            of_row = static_cast<int>(number - row * p.by_threads_of_row.by),
            batch = p.by_channels_out.quotient(row), channel = row - batch * p.channels_out;
  // A row's first outputs begin before it, unless the row begins where they do.
  const int lead = static_cast<int>(static_cast<uint32_t>(row) *
                                    static_cast<uint32_t>(p.length_out) % D::outputs),
            first = of_row * D::outputs - lead, shifted = first + p.out_shift,
            phase = shifted & (D::out_step - 1);
  const D thread{p, (shifted - phase) / D::out_step * p.stride + p.first_shift, phase};
  const auto* input = static_cast<const Element*>(p.input) + batch * p.input_batch_stride +
                      p.by_channels_of_group.quotient(channel) * p.input_group_stride;
  const float bias = bias_of<M>(p.bias, 0, channel, p.channels_out);
  typename D::Sums sums{};
  if constexpr (D::several) {
#pragma unroll 1
    for (int begin = 0; begin < p.channels_in; begin += kChannelChain) {
      typename D::Sums chain{};
#pragma unroll 1
      for (int in = begin; in < begin + kChannelChain && in < p.channels_in; ++in) {
        thread.add(chain, input, reinterpret_cast<const float4*>(kept + in * kTapsOfChannel));
        input += p.input_channel_stride;
      }
#pragma unroll
      for (int i = 0; i < D::outputs; ++i) sums[i] += chain[i];
    }
  } else {
    thread.add(sums, input,
               static_cast<const Element*>(p.weight) + int64_t{channel} * p.kernel_size);
  }
  write_row<M, D::outputs>([&](int i) { return sums[i] + bias; },
                           static_cast<Element*>(p.output) + row * p.length_out + first, first,
                           static_cast<int>(p.length_out));
}

// The kernels of a mode, one for each way of reading and writing, and what they take.
template <class M>
struct DepthwiseKernels {
  // Taps that it takes; of a phase, or of several channels.
  static constexpr int64_t kMostTaps = 16, kMostOfPhase = 8, kMostChannels = 1024;
  static_assert(kMostOfPhase <= kTapsOfChannel && kMostChannels * kTapsOfChannel * 4 <= 48 << 10);
  // Threads of a multiprocessor from which on they have much to do each: several channels, two pieces.
  static constexpr int64_t kThreadsEnough = 512;
  static constexpr int of_piece = 16 / sizeof(typename M::Element);
  // A thread's pieces; fewer where registers hold no more.
  static constexpr int kPieces = 2, kOfSteps = of_piece == 4 ? 2 : 1;

  static bool takes(const ConvArgs& a) {
    const bool several = a.channels_in > a.groups;
    if (threads_of(a, 1) > INT32_MAX) return false;
    if (taps_of(a) > (woven(a) || several ? kMostOfPhase : kMostTaps)) return false;
    if (!several) return a.stride == 1 || (a.stride == 2 && has_neighbours(a));
    return a.channels_out == 1 && a.channels_in <= kMostChannels && a.stride == 1 &&
           has_neighbours(a) && has_threads_enough(a);
  }

  static int launch(const ConvArgs& a, void* stream) {
    const int64_t taps = taps_of(a);
    if (a.channels_in > a.groups) return run<kPieces, 1, 1, kTapsOfChannel, true>(a, stream);
    if (woven(a))
      return taps <= 4 ? run<kPieces, 1, 2, 4>(a, stream) : run<kPieces, 1, 2, 8>(a, stream);
    if (!has_neighbours(a)) return run<kPieces, 1, 1, 0>(a, stream);
    if (a.stride == 2) return run<kOfSteps, 2, 1, 16>(a, stream);
    return taps <= 4               ? run<kPieces, 1, 1, 4>(a, stream)
           : taps > 8              ? run<kPieces, 1, 1, 16>(a, stream)
           : has_threads_enough(a) ? run<kPieces, 1, 1, 8>(a, stream)
                                   : run<1, 1, 1, 8>(a, stream);
  }

 private:
  static bool woven(const ConvArgs& a) { return a.transposed && a.stride > 1; }
  // In a window; outputs may begin with any phase, their last weights belong to one tap more.
  static int64_t taps_of(const ConvArgs& a) {
    return woven(a) ? (a.kernel_size - 1) / a.stride + 2 : a.kernel_size;
  }
  static int64_t threads_of_row(const ConvArgs& a, int pieces) {
    const int64_t outputs = pieces * of_piece;
    return ceil_div(a.length_out + outputs - gcd(outputs, a.length_out % outputs), outputs);
  }
  static int64_t threads_of(const ConvArgs& a, int pieces) {
    return a.batch * a.channels_out * threads_of_row(a, pieces);
  }
  static bool has_threads_enough(const ConvArgs& a) {
    return threads_of(a, kPieces) >= a.multiprocessors * kThreadsEnough;
  }

  template <int PIECES, int IN_STEP, int OUT_STEP, int TAPS, bool SEVERAL = false>
  static int run(const ConvArgs& a, void* stream) {
    using D = Depthwise<M, PIECES, IN_STEP, OUT_STEP, TAPS, SEVERAL>;
    // Taps of a transposed convolution run backwards, so that the positions that they see ascend: a window's first one
    // is the last of its phase.
    const int64_t behind = a.transposed ? (a.kernel_size - 1) / OUT_STEP : 0,
                  threads = threads_of(a, PIECES);
    const DepthwiseParams p{a.input,
                            a.weight,
                            a.bias,
                            a.output,
                            a.input_batch_stride,
                            a.channels_in / a.groups * a.input_channel_stride,
                            a.input_channel_stride,
                            a.length_out,
                            a.transposed ? -1 : 1,
                            static_cast<int>(threads),
                            static_cast<int>(a.length),
                            static_cast<int>(a.channels_in / a.groups),
                            static_cast<int>(a.channels_out),
                            static_cast<int>(a.kernel_size),
                            static_cast<int>(woven(a) ? 1 : a.stride),
                            static_cast<int>(a.dilation),
                            static_cast<int>(woven(a)       ? -behind
                                             : a.transposed ? a.padding - behind * a.dilation
                                                            : -a.padding),
                            static_cast<int>(woven(a) ? a.padding : 0),
                            static_cast<int>(taps_of(a)),
                            static_cast<int>(behind * OUT_STEP),
                            Divisor(threads_of_row(a, PIECES)),
                            Divisor(a.channels_out),
                            Divisor(a.channels_out / a.groups)};
    return fastconv1d::launch(
        depthwise_kernel<D>, dim3(static_cast<unsigned>(ceil_div(threads, kDepthwiseThreads))),
        dim3(kDepthwiseThreads), D::several ? 4 * kTapsOfChannel * a.channels_in : 0, stream, p);
  }
};

}  // namespace fastconv1d
