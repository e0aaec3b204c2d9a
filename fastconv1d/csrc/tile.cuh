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
struct PackParams {
  const void* weight;
  uint32_t* packed;
  Phase phase;
  Schedule schedule;
  int64_t channels_in, channels_out, groups, kernel_size, transposed, channel_blocks;
  int64_t count;  // of threads
  int classes_log2;
};

// The weight of tap `j` of a group of taps, between output channel `out` of a group of channels and
// the input channels of word `word`; zeros where there is none.
template <class M>
__device__ __forceinline__ void weight_word(const PackParams& p, int64_t group, int64_t out,
                                            int64_t word, int tap_group_index, int64_t j,
                                            typename M::Element (&value)[M::values_per_word]) {
  const Schedule& s = p.schedule;
  const TapGroup taps = tap_group(s, p.phase.taps, tap_group_index);
  const int64_t tap = p.phase.first_tap + (taps.first + j * s.classes) * p.phase.tap_step;
  const auto* weight = static_cast<const typename M::Element*>(p.weight);
#pragma unroll
  for (int v = 0; v < M::values_per_word; ++v) {
    const int64_t in = word * M::values_per_word + v;
    value[v] = 0;
    if (j < taps.count && out < p.channels_out && in < p.channels_in) {
      const int64_t row = p.transposed ? (group * p.channels_in + in) * p.channels_out + out
                                       : (group * p.channels_out + out) * p.channels_in + in;
      value[v] = weight[row * p.kernel_size + tap];
    }
  }
}

// A mode's tiles, numbered from 0, on a KERNEL.
template <template <class, class> class Kernel, class M, class... Tiles>
struct TileLibrary {
  static int launch(int64_t variant, const ConvArgs& a, void* stream) {
    int result = 1;
    int64_t index = 0;
    (void)((index++ == variant && (result = Kernel<M, Tiles>::launch(a, stream), true)) || ...);
    return result;
  }
  static int64_t workspace(int64_t variant, const ConvArgs& a) {
    int64_t result = 0, index = 0;
    (void)((index++ == variant && (result = Kernel<M, Tiles>::workspace(a), true)) || ...);
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
