// The last step of gradients that blocks computed in parts.
#pragma once
#include "device.cuh"
#include "schedule.h"

namespace fastconv1d {

// Adds up the parts of each element in turn, [part][element], and rounds once. In fp64, which costs nothing
// here: there may be hundreds of parts.
template <class M>
__global__ void __launch_bounds__(128)
    grad_sum_kernel(const float* parts, int64_t count, int64_t splits, void* output) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (element >= count) return;
  double sum = 0;
#pragma unroll 16
  for (int64_t split = 0; split < splits; ++split) sum += parts[split * count + element];
  static_cast<typename M::Element*>(output)[element] = M::to(static_cast<float>(sum));
}

// Returns a cudaError_t.
template <class M>
int add_parts(const float* parts, int64_t count, int64_t splits, void* output, void* stream) {
  return launch(grad_sum_kernel<M>, dim3(static_cast<unsigned>(ceil_div(count, 128))), dim3(128), 0,
                stream, parts, count, splits, output);
}

}  // namespace fastconv1d
