// The weight as the Hopper kernel reads it: tap by tap and slice by slice in words of the tensor cores, each
// output channel scaled where the arithmetic asks for it.
#pragma once
#include "tile.cuh"

namespace fastconv1d {

// [group][channel block][slice][part][tap][plane][quad][column][4 words], a column being an output channel or
// the woven part of one; one thread makes 4 words of each plane for COLUMNS columns, a share of the block's apart.
// Threads of a warp take 4 columns, and of each what lies together in the weight: neighbouring taps and quads.
// To find its place takes a thread longer than its work, and so it has several columns, unless there are so few
// threads that all run at once: then what counts is how long one takes.
template <class T>
FASTCONV1D_HD constexpr int packed_columns() {
  return T::channels % 64 == 0 ? 4 : 2;
}
struct HopperPackParams : WeightParams {
  Pipeline pipeline;
  Weave weave;
  int* scales;
};

// A value's bits of fp32 without its sign, or 0 where it is not finite.
__device__ __forceinline__ uint32_t finite_size(uint32_t bits) {
  const uint32_t size = bits & 0x7fffffffu;
  return size < 0x7f800000u ? size : 0;
}
// The largest number of a block of so many threads, for all of them.
template <int THREADS>
__device__ __forceinline__ uint32_t largest_of_block(uint32_t number, uint32_t* memory) {
  number = largest_of_warp(number);
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = number;
  __syncthreads();
  for (int warp = 0; warp < THREADS / 32; ++warp)
    number = memory[warp] > number ? memory[warp] : number;
  return number;
}

// A block of so many threads finds the scale of a column's weights.
template <class T, int THREADS>
__device__ __forceinline__ void find_scale(const HopperPackParams& p, uint32_t number,
                                           uint32_t* memory) {
  const int64_t block = number / T::channels, row = number % T::channels;
  const int64_t group = block / p.channel_blocks;
  const Column column = column_of(p.weave, block % p.channel_blocks * T::channels + row);
  uint32_t most = 0;
  // Several at a time: there is little else to hide their latency.
  constexpr int at_once = 8;
  const auto count = static_cast<uint32_t>(p.channels_in * p.phase.taps);
#pragma unroll 1
  for (uint32_t first = threadIdx.x; first < count; first += THREADS * at_once) {
    float weight[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      Digits<uint32_t> digits{first + THREADS * i};
      const int64_t tap = digits.take(p.phase.taps),
                    of_column = tap_of(p.phase, p.weave, column.r, tap);
      const bool exists = first + THREADS * i < count && column.channel < p.channels_out &&
                          of_column < p.kernel_size;
      weight[i] = exists ? __ldg(static_cast<const float*>(p.weight) +
                                 weight_row(p, group, column.channel, digits.rest) + of_column)
                         : 0.f;
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const uint32_t bits = bits_of(weight[i]) & 0x7fffffffu;
      most = bits > most ? bits : most;
    }
  }
  most = largest_of_block<THREADS>(most, memory);
  if (threadIdx.x == 0)
    p.scales[number] = Scale::log2_for(static_cast<int>(smaller(most >> 23, Scale::most)));
}
template <class M, class T>
__global__ void __launch_bounds__(128) hopper_scale_kernel(const HopperPackParams p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  find_scale<T, 128>(p, blockIdx.x, memory);
}

// A thread packs its columns.
template <class M, class T, int COLUMNS>
__device__ __forceinline__ void pack_columns(const HopperPackParams& p, int64_t index) {
  if (index >= p.count) return;
  const Pipeline& l = p.pipeline;
  const int quads = l.words / 4;
  constexpr int values = M::values_per_word;
  Digits<uint32_t> digits{static_cast<uint32_t>(index)};
  const uint32_t row_of_4 = digits.take(4), tap = digits.take(l.taps), part = digits.take(l.parts),
                 quad = digits.take(quads), slice = digits.take(l.slices),
                 row = digits.take(T::channels / (4 * COLUMNS)) * 4 + row_of_4,
                 channel_block = digits.take(p.channel_blocks), group = digits.rest;
  const int64_t stage =
      (((static_cast<int64_t>(group) * p.channel_blocks + channel_block) * l.slices + slice) *
           l.parts +
       part) *
          l.taps +
      tap;
  uint32_t* const packed = p.packed + 4 * ((stage * M::planes * quads + quad) * T::channels + row);
  const bool folded = l.folded > 0;
  const uint32_t kind = folded ? 0 : quad >> l.quads_of_kind_log2,
                 j = quad - (kind << l.quads_of_kind_log2), alike_log2 = folded ? 0 : l.alike_log2;

  using Element = typename M::Element;
  // The thread's columns are so many apart: whole chunks of a woven row, so that all are the same part of a channel.
  constexpr int apart = T::channels / COLUMNS;
  static_assert(apart % kWeave == 0);
  const int of_phase = static_cast<int>(part * l.taps + tap);
  const Column column = column_of(p.weave, int64_t{channel_block} * T::channels + row);
  const int64_t of_kernel = tap_of(p.phase, p.weave, column.r, of_phase);
  const bool has_tap = of_phase < p.phase.taps && of_kernel < p.kernel_size;
  const int channels_apart = apart / kWeave * p.weave.channels;
  // From a channel of the output, or of the input, to the next one.
  const int64_t to_out = (p.transposed ? 1 : p.channels_in) * p.kernel_size,
                to_in = (p.transposed ? p.channels_out : 1) * p.kernel_size;
  const auto* const first = static_cast<const Element*>(p.weight) +
                            group * p.channels_in * p.channels_out * p.kernel_size +
                            column.channel * to_out + of_kernel;
  const Element* weights[4][values];
  bool exists[4][values];
  const auto for_each_value = [&](const auto& visit) {
    const uint32_t first_value = slice * (l.words * values) + kind;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int v = 0; v < values; ++v)
        visit(i, v, first_value + (((j * 4 + i) * values + v) << alike_log2));
  };
  if (folded)
    for_each_value([&](int i, int v, uint32_t value) {
      const uint32_t in = value / l.folded;
      exists[i][v] = has_tap && in < p.channels_in;
      weights[i][v] =
          first + in * to_in + static_cast<int>(value - in * l.folded) * p.phase.tap_step;
    });
  else
    for_each_value([&](int i, int v, uint32_t in) {
      exists[i][v] = has_tap && in < p.channels_in;
      weights[i][v] = first + in * to_in;
    });

  // All is read before anything is written.
  Element value[COLUMNS][4][values];
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    const bool has_channel = column.channel + c * channels_apart < p.channels_out;
    const int64_t further = c * channels_apart * to_out;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int v = 0; v < values; ++v)
        value[c][i][v] = has_channel && exists[i][v] ? __ldg(weights[i][v] + further) : Element{0};
  }
  if constexpr (M::sets > 1) wait_for_kernel_before();  // that finds the scales
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    float scale = 1;
    if constexpr (M::sets > 1)
      scale = Scale::power_of_two(
          p.scales[(int64_t{group} * p.channel_blocks + channel_block) * T::channels + row +
                   c * apart]);
    uint32_t words[M::planes][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t of_plane[M::planes];
      if constexpr (M::sets > 1)
        M::split(value[c][i], of_plane, scale);
      else
        M::split(value[c][i], of_plane);
#pragma unroll
      for (int plane = 0; plane < M::planes; ++plane) words[plane][i] = of_plane[plane];
    }
#pragma unroll
    for (int plane = 0; plane < M::planes; ++plane)
      store_16(packed + 4 * (plane * quads * T::channels + c * apart),
               make_uint4(words[plane][0], words[plane][1], words[plane][2], words[plane][3]));
  }
}

template <class M, class T, int COLUMNS>
__global__ void __launch_bounds__(128) hopper_pack_kernel(const HopperPackParams p) {
  let_next_kernel_begin();
  pack_columns<M, T, COLUMNS>(p, static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x);
}

}  // namespace fastconv1d
