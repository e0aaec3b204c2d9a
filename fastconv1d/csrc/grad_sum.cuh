// Where blocks leave their sums of the gradients of a weight and a bias, and the kernel that adds up those of
// blocks that share an element.
//
// With one split sums are rounded and go where they belong. With more they go to the workspace, as fp32:
// [split][element of the weight], and then [split][channel] of the bias. A warp of the kernel has 32 neighbouring
// elements, or four times as many, and with many splits some share the same ones: each adds up every n-th split, in
// turn, and one of them the sums of all, from shared memory: [lane's element][warp][lane]. In fp64, which costs
// nothing here: there may be hundreds of parts. The order is that of the splits alone. DRAM or L2 sees each part
// once, in whole lines.
#pragma once
#include "device.cuh"
#include "schedule.h"

namespace fastconv1d {

constexpr int kSumLanes = 32;
// Warps of a block; of one for so many splits as only first and last layers' gradients have, whose elements are few.
constexpr int kSumWarps = 8, kMostSumWarps = 32;
constexpr int64_t kManySplits = 128;

inline int64_t weight_elements(const ConvArgs& a) {
  return a.channels_out * (a.channels_in / a.groups) * a.kernel_size;
}

template <class M>
struct GradStore {
  using Element = typename M::Element;
  Element *weight, *bias;             // bias: null where it has no gradient
  float *weight_parts, *bias_parts;   // null: one split
  int64_t weights, channels, splits;  // weights: elements of one

  GradStore(const ConvArgs& a, int64_t splits)
      : weight(static_cast<Element*>(a.output)),
        bias(static_cast<Element*>(a.grad_bias)),
        weight_parts(nullptr),
        bias_parts(nullptr),
        weights(weight_elements(a)),
        channels(a.channels_out),
        splits(splits) {
    if (splits == 1) return;
    weight_parts = static_cast<float*>(a.workspace);
    bias_parts = weight_parts + splits * weights;
  }

  // Bytes of the workspace.
  static int64_t bytes(const ConvArgs& a, int64_t splits) {
    return splits == 1 ? 0 : 4 * splits * (weight_elements(a) + a.channels_out);
  }

  __device__ __forceinline__ void store_weight(int64_t split, int64_t element, float sum) const {
    if (weight_parts != nullptr)
      weight_parts[split * weights + element] = sum;
    else
      weight[element] = M::to(sum);
  }
  __device__ __forceinline__ void store_bias(int64_t split, int64_t channel, float sum) const {
    if (bias_parts != nullptr)
      bias_parts[split * channels + channel] = sum;
    else
      bias[channel] = M::to(sum);
  }
};

// How many blocks share each unit of work where `units` of a kernel's blocks do all, in `items` steps, so that
// the GPU is full; one where it is anyway. At most kMostGradParts partial sums, 16 MiB, if that is more than one split's.
constexpr int64_t kMostGradParts = 4 << 20, kMostGradSplits = 1024;
constexpr int64_t kGradBlocksEnough = 16, kGradBlocksWanted = 32;  // of a multiprocessor
inline int64_t most_splits(const ConvArgs& a) {
  return smaller(kMostGradParts / (weight_elements(a) + a.channels_out), kMostGradSplits);
}
inline int64_t grad_splits(const ConvArgs& a, int64_t units, int64_t items) {
  if (units >= a.multiprocessors * kGradBlocksEnough) return 1;
  const int64_t wanted = ceil_div(a.multiprocessors * kGradBlocksWanted, units);
  return larger(1, smaller(smaller(wanted, items), most_splits(a)));
}

// Neighbours' parts.
template <int WIDTH>
struct alignas(4 * WIDTH) GradPart {
  float of[WIDTH];
};

// The parts of some elements, [split][element], and where their sums go.
struct GradParts {
  const float* parts = nullptr;
  int64_t count = 0;
  void* output = nullptr;
  int64_t splits = 1;
};

// How many of a block's warps, a power of two, share the splits of the same elements, and elements that a block has then.
template <int WARPS>
FASTCONV1D_HD constexpr int sum_shares(int64_t splits) {
  int shares = 1;
  while (shares < WARPS && 4 * shares < splits) shares *= 2;
  return shares;
}
template <int WIDTH, int WARPS>
FASTCONV1D_HD constexpr int64_t sum_elements(int64_t splits) {
  return kSumLanes * WARPS * WIDTH / sum_shares<WARPS>(splits);
}

// A lane has WIDTH neighbours, read together.
template <class M, int WIDTH, int WARPS>
__global__ void __launch_bounds__(kSumLanes* WARPS)
    grad_sum_kernel(const GradParts first, const GradParts second) {
  FASTCONV1D_SHARED(memory);
  auto* const sums = reinterpret_cast<double*>(memory);
  constexpr int lanes = kSumLanes * WARPS;
  const int64_t first_blocks = ceil_div(first.count, sum_elements<WIDTH, WARPS>(first.splits));
  const bool of_second = blockIdx.x >= first_blocks;
  const int64_t count = of_second ? second.count : first.count,
                splits = of_second ? second.splits : first.splits;
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes,
            warp = static_cast<int>(threadIdx.x) / kSumLanes, shares = sum_shares<WARPS>(splits),
            share = warp & (shares - 1);
  const int64_t element = (blockIdx.x - (of_second ? first_blocks : 0)) *
                              sum_elements<WIDTH, WARPS>(splits) +
                          (warp / shares * kSumLanes + lane) * WIDTH,
                step = shares * count;
  double sum[WIDTH]{};
  const auto add = [&](const GradPart<WIDTH>& part) {
#pragma unroll
    for (int e = 0; e < WIDTH; ++e) sum[e] += part.of[e];
  };
  wait_for_kernel_before();
  if (element < count) {
    constexpr int at_once = 8;  // reads on their way together
    const float* at = (of_second ? second.parts : first.parts) + share * count + element;
    const auto read = [](const float* from) {
      return *reinterpret_cast<const GradPart<WIDTH>*>(from);
    };
    int64_t left = ceil_div(splits - share, shares);
    for (; left >= at_once; left -= at_once) {
      GradPart<WIDTH> part[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) part[i] = read(at + i * step);
#pragma unroll
      for (int i = 0; i < at_once; ++i) add(part[i]);
      at += at_once * step;
    }
#pragma unroll 4
    for (; left > 0; --left, at += step) add(read(at));
  }
#pragma unroll
  for (int e = 0; e < WIDTH; ++e) sums[e * lanes + threadIdx.x] = sum[e];
  __syncthreads();
  if (share > 0 || element >= count) return;
  auto* const output =
      static_cast<typename M::Element*>(of_second ? second.output : first.output) + element;
#pragma unroll
  for (int e = 0; e < WIDTH; ++e) {
    for (int other = 1; other < shares; ++other)
      sum[e] += sums[e * lanes + threadIdx.x + other * kSumLanes];
    output[e] = M::to(static_cast<float>(sum[e]));
  }
}

// Adds up the splits' parts of two sets of elements, either of which may be empty, once the kernel before is over.
// Returns a cudaError_t.
template <class M, int WIDTH, int WARPS>
int add_parts_of(const GradParts& first, const GradParts& second, void* stream) {
  constexpr int lanes = kSumLanes * WARPS;
  const int64_t blocks = ceil_div(first.count, sum_elements<WIDTH, WARPS>(first.splits)) +
                         ceil_div(second.count, sum_elements<WIDTH, WARPS>(second.splits));
  if (blocks == 0) return 0;
  if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  return launch_early(true, grad_sum_kernel<M, WIDTH, WARPS>, dim3(static_cast<unsigned>(blocks)),
                      dim3(lanes), lanes * WIDTH * 8, stream, first, second);
}
template <class M>
int add_parts(const GradParts& first, const GradParts& second, void* stream) {
  // Few elements have too few lanes that way; and all splits' must begin at multiples of 16 bytes.
  constexpr int64_t many = 1 << 14;
  const bool aligned =
      first.count % 4 == 0 && second.count % 4 == 0 &&
      (reinterpret_cast<uintptr_t>(first.parts) | reinterpret_cast<uintptr_t>(second.parts)) % 16 ==
          0;
  if (first.count >= many && aligned) return add_parts_of<M, 4, kSumWarps>(first, second, stream);
  return larger(first.splits, second.splits) < kManySplits
             ? add_parts_of<M, 1, kSumWarps>(first, second, stream)
             : add_parts_of<M, 1, kMostSumWarps>(first, second, stream);
}
// The same of what a kernel stored, if there are several splits.
template <class M>
int add_parts(const GradStore<M>& s, void* stream) {
  if (s.splits == 1) return 0;
  const int64_t channels = s.bias != nullptr ? s.channels : 0;
  return add_parts<M>({s.weight_parts, s.weights, s.weight, s.splits},
                      {s.bias_parts, channels, s.bias, s.splits}, stream);
}

}  // namespace fastconv1d
