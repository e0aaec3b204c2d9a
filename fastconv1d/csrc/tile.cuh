// What the kernels on tensor cores share: where tiles lie, the weight's values, the way of sums out.
#pragma once
#include "modes.cuh"
#include "schedule.h"

namespace fastconv1d {

// A tile of the output, `tiles` of which make a row.
struct Place {
  int batch, tile;
  __device__ __forceinline__ void advance(const Place& by, int64_t tiles) {
    batch += by.batch;
    tile += by.tile;
    if (tile < tiles) return;
    tile -= static_cast<int>(tiles);
    ++batch;
  }
};

// What the rewriting of the weight needs, in the order in which a kernel reads it.
struct WeightParams {
  const void* weight;
  uint32_t* packed;
  Phase phase;
  int64_t channels_in, channels_out, groups, kernel_size, transposed, channel_blocks;
  int64_t count;  // of threads
};

// Where the taps between channel `out` and channel `in` of a group lie in the weight.
__device__ __forceinline__ int64_t weight_row(const WeightParams& p, int64_t group, int64_t out,
                                              int64_t in) {
  const int64_t row = p.transposed ? (group * p.channels_in + in) * p.channels_out + out
                                   : (group * p.channels_out + out) * p.channels_in + in;
  return row * p.kernel_size;
}

// The weight of the phase's tap `tap` there; zero where there is none.
template <class Element>
__device__ __forceinline__ Element weight_of(const WeightParams& p, int64_t group, int64_t out,
                                             int64_t in, int64_t tap) {
  if (tap >= p.phase.taps || out >= p.channels_out || in >= p.channels_in) return 0;
  return static_cast<const Element*>(
      p.weight)[weight_row(p, group, out, in) + p.phase.first_tap + tap * p.phase.tap_step];
}

// The bias of channel `out` of a group; zero where there is none.
template <class M>
__device__ __forceinline__ float bias_of(const void* bias, int64_t group, int64_t out,
                                         int64_t channels_out) {
  if (bias == nullptr || out >= channels_out) return 0;
  return M::from(static_cast<const typename M::Element*>(bias)[group * channels_out + out]);
}

// The mixed-radix digits of an index, the last one first. Divisions of 64 bits take some hundred
// instructions, four times as many as those of 32.
template <class Index>
struct Digits {
  Index rest;
  __device__ __forceinline__ Index take(int64_t count) {
    const Index radix = static_cast<Index>(count), digit = rest % radix;
    rest /= radix;
    return digit;
  }
};

// What a thread of mma.sync adds up: four sums of each mma tile, a chain of products cut off where a mode says
// so.
template <class M, class T>
struct TileSums {
  float chain[T::m_tiles][T::n_tiles][4];
  float total[M::chain ? T::m_tiles : 1][M::chain ? T::n_tiles : 1][4];
  int steps;

  __device__ __forceinline__ void clear() {
    steps = 0;
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < T::n_tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          chain[m][n][i] = 0;
          if constexpr (M::chain > 0) total[m][n][i] = 0;
        }
  }

  __device__ __forceinline__ void end_chain() {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int n = 0; n < T::n_tiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total[m][n][i] += chain[m][n][i];
          chain[m][n][i] = 0;
        }
    steps = 0;
  }

  __device__ __forceinline__ float value(int m, int n, int i) const {
    if constexpr (M::chain > 0) return total[m][n][i] + chain[m][n][i];
    return chain[m][n][i];
  }
};

// A mode's tiles, numbered from 0, on a KERNEL, which cuts a convolution phase by phase.
template <template <class, class> class Kernel, class M, class... Tiles>
struct TileLibrary {
  template <class Cutter>
  static int launch_phases(const ConvArgs& a, void* stream) {
    int error = 0;
    for (int64_t r = 0; r < Cutter::phases(a) && error == 0; ++r)
      error = Cutter::launch_phase(a, Cutter::cut(a, r), stream);
    return error;
  }
  template <class Cutter>
  static int64_t packed_bytes(const ConvArgs& a) {
    int64_t bytes = 0;
    for (int64_t r = 0; r < Cutter::phases(a); ++r)
      bytes = larger(bytes, Cutter::packed_bytes(a, Cutter::cut(a, r)));
    return bytes;
  }
  static int launch(int64_t variant, const ConvArgs& a, void* stream) {
    int result = 1;
    int64_t index = 0;
    (void)((index++ == variant && (result = launch_phases<Kernel<M, Tiles>>(a, stream), true)) ||
           ...);
    return result;
  }
  static int64_t workspace(int64_t variant, const ConvArgs& a) {
    int64_t result = 0, index = 0;
    (void)((index++ == variant && (result = packed_bytes<Kernel<M, Tiles>>(a), true)) || ...);
    return result;
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_TILE_LIBRARY(...)                                                       \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::TileLibrary<__VA_ARGS__>::launch(variant, *args, stream);           \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t variant, const fastconv1d::ConvArgs* args) {        \
    return fastconv1d::TileLibrary<__VA_ARGS__>::workspace(variant, *args);                \
  }
