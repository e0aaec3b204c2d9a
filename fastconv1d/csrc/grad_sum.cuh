// Adds up what blocks left of the gradients of a weight and a bias, and rounds once.
//
// Partial sums are fp32 and lie [split][element]. A block has 32 neighbouring elements: each of its 8 warps
// adds up every 8th split of these, in turn, and then one warp the sums of all, from shared memory:
// [warp][element]. So the order is that of the splits alone. DRAM or L2 sees each partial sum once,
// in whole lines.
#pragma once
#include "device.cuh"
#include "schedule.h"

namespace fastconv1d {

constexpr int kSumElements = 32, kSumWarps = 8;

// The parts of `count` elements, and where their sums go.
struct Partials {
  const float* parts;
  int64_t count;
  void* to;
};

template <class M>
__global__ void __launch_bounds__(kSumElements* kSumWarps)
    grad_sum_kernel(const Partials weight, const Partials bias, int64_t splits) {
  FASTCONV1D_SHARED(memory);
  auto* const sums = reinterpret_cast<float*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % kSumElements,
            warp = static_cast<int>(threadIdx.x) / kSumElements;
  const int64_t weight_blocks = ceil_div(weight.count, kSumElements);
  const bool of_bias = blockIdx.x >= weight_blocks;
  const int64_t count = of_bias ? bias.count : weight.count;
  const int64_t element = (blockIdx.x - (of_bias ? weight_blocks : 0)) * kSumElements + lane,
                step = kSumWarps * count;
  float sum = 0;
  if (element < count) {
    constexpr int at_once = 8;  // reads on their way together
    const float* at = (of_bias ? bias.parts : weight.parts) + warp * count + element;
    int64_t left = ceil_div(splits - warp, kSumWarps);
    for (; left >= at_once; left -= at_once) {
      float part[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) part[i] = at[i * step];
#pragma unroll
      for (int i = 0; i < at_once; ++i) sum += part[i];
      at += at_once * step;
    }
    for (; left > 0; --left, at += step) sum += *at;
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || element >= count) return;
#pragma unroll
  for (int other = 1; other < kSumWarps; ++other) sum += sums[other * kSumElements + lane];
  static_cast<typename M::Element*>(of_bias ? bias.to : weight.to)[element] = M::to(sum);
}

// Either may have no elements.
template <class M>
int sum_partials(const Partials& weight, const Partials& bias, int64_t splits, void* stream) {
  const int64_t blocks = ceil_div(weight.count, kSumElements) + ceil_div(bias.count, kSumElements);
  if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  return launch(grad_sum_kernel<M>, dim3(static_cast<unsigned>(blocks)),
                dim3(kSumElements * kSumWarps), kSumElements * kSumWarps * 4, stream, weight, bias,
                splits);
}

}  // namespace fastconv1d
