// What kernels of gradients on FMA units have in common: a launch's parameters, a unit of its work, sums of products.
#pragma once
#include "grad_sum.cuh"

namespace fastconv1d {

constexpr int kGradThreads = 128, kGradWarps = kGradThreads / 32;

template <class M>
struct GradSlidingParams {
  const typename M::Element *input, *weight, *grad_output;
  typename M::Element* grad_input;
  GradStore<M> sums;
  int64_t input_batch_stride, input_channel_stride, batch, channels_out;
  int64_t pieces_of_slab, pieces_of_split;  // slab: a split, or a row whose parts are splits
  uint32_t channels_in_of_group, channels_out_of_group;
  uint32_t units, unit_blocks;
  int batch_step, piece_step;  // from a worker's piece to its next: so many batches, so many pieces
  int pieces_of_row, unit_warps, chunks;  // chunks: of the taps
  int length, length_out, kernel_size, stride, dilation, padding;
  int before, shift, counted;  // of `GradAll`
  uint32_t parts;              // likewise: splits of a slab
};

// What the pieces of a unit have in common.
template <class M>
struct GradUnit {
  using Element = typename M::Element;
  const Element *grad, *input;  // rows of batch 0
  int64_t grad_batch_stride, input_batch_stride;
  int64_t pair;
  int first_tap, channel;  // channel: of the output
  bool has_bias;
};

// Where in the rows of all batches a worker is.
struct GradPlace {
  int batch, piece;
};

template <int COUNT>
__device__ __forceinline__ float sum_of(const float* value) {
  float sum = value[0];
#pragma unroll
  for (int i = 1; i < COUNT; ++i) sum += value[i];
  return sum;
}

template <int COUNT>
__device__ __forceinline__ bool all_finite(const float* value) {
  float zero = 0;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) zero = fmaf(value[i], 0, zero);
  return zero == 0;
}

// Adds up the products of COUNT values with the windows of neighbouring taps.
template <int COUNT, int STEP, int TAPS>
__device__ __forceinline__ void add_products(const float* value, const float* window,
                                             float (&sums)[TAPS]) {
#pragma unroll
  for (int t = 0; t < TAPS; ++t) {
    float sum = value[0] * window[t];
#pragma unroll
    for (int i = 1; i < COUNT; ++i) sum = fmaf(value[i], window[i * STEP + t], sum);
    sums[t] += sum;
  }
}

}  // namespace fastconv1d
