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

// A barrier for each stage that is full, and one for each that is empty again.
template <int STAGES>
struct StageBarriers {
  uint64_t full[STAGES], empty[STAGES];
};
// The stage whose turn it is, and the parity of its phase.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// One thread speaks for its warp, which has read all that it will of a stage; of none if that is negative.
__device__ __forceinline__ void give_back(uint64_t* empty, int stage) {
  if (stage < 0) return;
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(empty + stage);
}

// A tensor's rows, all of the same length.
struct TensorRows {
  const void* first;
  int64_t batch, channels, length, batch_stride, channel_stride;  // in elements
  int64_t rows_per_batch() const { return batch > 1 ? batch_stride / channel_stride : 0; }
  // From the first batch's first one to the last batch's last one.
  int64_t all() const { return (batch - 1) * rows_per_batch() + channels; }
  // Whether all lie one after the other, with what lies between batches, so that boxes can be copied.
  bool in_boxes() const {
    if (channel_stride <= 0 || channel_stride >= int64_t{1} << 36) return false;
    if (batch > 1 && (batch_stride < 0 || batch_stride % channel_stride != 0)) return false;
    return all() < INT32_MAX;
  }
};
inline TensorRows rows_of_input(const ConvArgs& a) {
  return {a.input, a.batch, a.channels_in, a.length, a.input_batch_stride, a.input_channel_stride};
}

inline TensorRows rows_of_grad_output(const ConvArgs& a) {
  return {a.grad_output, a.batch, a.channels_out, a.length_out, a.channels_out * a.length_out,
          a.length_out};
}

// Maps of a tensor's rows, those of all batches one after the other: one for each kind of rows, which begin
// alike modulo 16 bytes, as every 2^n-th does. Boxes begin at multiples of 16 bytes.
struct RowBoxes {
  BoxMap maps[kMostKinds];
  int leads[kMostKinds];  // positions by which maps begin before their rows
  int64_t rows_per_batch;
  bool lead() const {
    int any = 0;
    for (const int lead : leads) any |= lead;
    return any != 0;
  }
};

// Whether rows can be copied in boxes of so many positions and rows of a kind.
template <class Element>
bool make_row_boxes(RowBoxes& boxes, const TensorRows& r, int kinds_log2, int box_positions,
                    int box_rows, BoxForm form) {
  boxes = {};
  if (!r.in_boxes()) return false;
  const int64_t rows = r.all(),
                row_bytes = r.channel_stride * static_cast<int64_t>(sizeof(Element));
  for (int kind = 0; kind < 1 << kinds_log2; ++kind) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(r.first),
                    first = begin + kind * static_cast<uintptr_t>(row_bytes);
    boxes.leads[kind] = static_cast<int>(first % 16 / sizeof(Element));
    // A kind may have no rows, and a map of it then nothing that anybody looks at, but within the tensor.
    const uintptr_t of_map = kind < rows ? first : begin;
    const int64_t columns = r.length + (kind < rows ? boxes.leads[kind] : 0);
    if (make_box_map(boxes.maps + kind, sizeof(Element),
                     reinterpret_cast<const void*>(of_map & ~uintptr_t{15}), columns,
                     larger(1, ceil_div(rows - kind, 1 << kinds_log2)), row_bytes << kinds_log2,
                     box_positions, box_rows, form) != 0)
      return false;
  }
  boxes.rows_per_batch = r.rows_per_batch();
  return true;
}

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
      for (int n = 0; n < T::n_tiles; ++n) fastconv1d::end_chain(total[m][n], chain[m][n]);
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
