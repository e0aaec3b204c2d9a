"""KernelBench level 1, problem 67, on its own CUDA kernels: written by `fastconv1d export`.

ModelNew is the problem's Model: same constructor, same weights from the same seed, same state_dict.
Its forward is one operator of our own, straight from (batch, channels, length) to the same layout:
an implicit matrix product on tensor cores (mma.sync) with the bias fused. fp32 follows torch's
switch (TF32 or fp32-accurate, as three TF32 products); bf16 and fp16 accumulate in fp32. Any
stride, padding, dilation, groups and length; compute capability 8.0 on. Gradients are ATen's.

Needs torch and nvcc. The kernels are compiled at the first call for the device of its input, so
that this file loads, and its weights can be compared, where there is neither compiler nor GPU.
"""

import functools
import hashlib
import math

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.utils.cpp_extension import load_inline

CUDA_SOURCE = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define FASTCONV1D_SHARED(name) extern __shared__ __align__(16) uint32_t name[]
namespace fastconv1d {
#define FASTCONV1D_MMA(name, shape)                                                        \
  __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, \
                                       uint32_t b1) {                                      \
    asm("mma.sync.aligned." shape                                                          \
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                   \
  }
FASTCONV1D_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
FASTCONV1D_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
FASTCONV1D_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
#undef FASTCONV1D_MMA
template <int OFFSET = 0>
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(address), "l"(global),
               "n"(OFFSET)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int count) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(address)
               : "memory");
}
#if __CUDA_ARCH__ >= 900
#define FASTCONV1D_WAIT "mbarrier.try_wait"
#else
#define FASTCONV1D_WAIT "mbarrier.test_wait"
#endif
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  uint32_t over;
  do {
    asm volatile("{ .reg .pred p; " FASTCONV1D_WAIT
                 ".parity.shared.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(address), "r"(parity)
                 : "memory");
  } while (over == 0);
}
#undef FASTCONV1D_WAIT
__device__ __forceinline__ uint16_t float_to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ uint16_t float_to_fp16(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
__device__ __forceinline__ float bf16_to_float(uint16_t x) {
  return __bfloat162float(__ushort_as_bfloat16(x));
}
__device__ __forceinline__ float fp16_to_float(uint16_t x) {
  return __half2float(__ushort_as_half(x));
}
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes, void* stream,
           const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}
template <class... Parameters>
int set_shared_limit(void (*kernel)(Parameters...), int64_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}
inline int64_t shared_budget(int blocks) {
  int device = 0, per_block = 0, per_processor = 0, reserved = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  const int64_t share = per_processor / blocks - reserved;
  return share < per_block ? share : per_block;
}
}
namespace fastconv1d {
__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
__device__ __forceinline__ float nearest_tf32(float x) {
  return float_of((bits_of(x) + 0x1000u) & 0xffffe000u);
}
__device__ __forceinline__ uint32_t round_tf32(float x) {
  return bits_of(fmaf(x, 1.4e-45f, nearest_tf32(x)));
}
}
#include <cstdint>
#include <cstdint>
namespace fastconv1d {
enum Mode : int64_t { kTf32 = 0, kIeee = 1, kBf16 = 2, kFp16 = 3, kFp64 = 4 };
struct ConvArgs {
  const void* input;
  const void* weight;
  const void* bias;
  void* output;
  void* workspace;
  int64_t batch, channels_in, channels_out, length, length_out;
  int64_t kernel_size, stride, padding, dilation, groups, transposed;
  int64_t input_batch_stride, input_channel_stride;
  int64_t mode;
  int64_t multiprocessors;
};
}
extern "C" {
int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream);
int64_t fastconv1d_workspace(int64_t variant, const fastconv1d::ConvArgs* args);
}
#if defined(__CUDACC__)
#define FASTCONV1D_HD __host__ __device__
#else
#define FASTCONV1D_HD
#endif
namespace fastconv1d {
FASTCONV1D_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTCONV1D_HD constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
FASTCONV1D_HD constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCONV1D_HD constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTCONV1D_HD constexpr int64_t gcd(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}
struct Phase {
  int64_t first_tap, tap_step, taps;
  int64_t first_shift, shift_step;
  int64_t in_step, out_offset, out_step, positions;
};
FASTCONV1D_HD constexpr int64_t phase_count(const ConvArgs& a) {
  return a.transposed ? smaller(a.stride, a.length_out) : 1;
}
FASTCONV1D_HD constexpr Phase phase_of(const ConvArgs& a, int64_t r) {
  if (!a.transposed)
    return {0, 1, a.kernel_size, -a.padding, a.dilation, a.stride, 0, 1, a.length_out};
  const int64_t g = gcd(a.stride, a.dilation), every = a.stride / g;
  Phase phase{
      0, -every, 0, 0, a.dilation / g, 1, r, a.stride, ceil_div(a.length_out - r, a.stride)};
  for (int64_t t = 0; t < every && t < a.kernel_size; ++t) {
    if ((r + a.padding - t * a.dilation) % a.stride != 0) continue;
    phase.taps = ceil_div(a.kernel_size - t, every);
    phase.first_tap = t + (phase.taps - 1) * every;
    phase.first_shift = (r + a.padding - phase.first_tap * a.dilation) / a.stride;
  }
  return phase;
}
struct Schedule {
  int classes, load_step, read_step, column_step;
  int taps_per_group, groups;
  int slice_words, channel_slices, channel_words;
  int columns, pitch;
  int resident;
};
constexpr int kAlignedOutputs = 8;
FASTCONV1D_HD constexpr int64_t row_classes(int64_t length_out) {
  return kAlignedOutputs / gcd(kAlignedOutputs, length_out % kAlignedOutputs);
}
FASTCONV1D_HD constexpr int channel_of_row(int row, int channels_log2, int classes_log2) {
  const int of_class_log2 = channels_log2 - classes_log2;
  return ((row & ((1 << of_class_log2) - 1)) << classes_log2) + (row >> of_class_log2);
}
FASTCONV1D_HD constexpr int log2_of(int64_t power) {
  int log2 = 0;
  while (power >>= 1) ++log2;
  return log2;
}
struct TileLimits {
  int64_t positions, channels;
  int64_t most_shift;
  int64_t window_vectors;
  int64_t planes;
  int64_t values_per_word;
  int64_t shared_words;
  bool many_tiles;
};
FASTCONV1D_HD constexpr int64_t weight_words(const TileLimits& t, int64_t taps,
                                             int64_t slice_words) {
  return taps * slice_words * t.channels;
}
constexpr int kBarrierWords = 32;
FASTCONV1D_HD constexpr int window_count(const Schedule& s) { return s.resident ? 3 : 2; }
FASTCONV1D_HD constexpr int64_t shared_words(const TileLimits& t, const Schedule& s) {
  const int64_t slices = s.resident ? s.channel_slices * s.groups : 2;
  return kBarrierWords + t.channels + window_count(s) * t.planes * s.slice_words * s.pitch +
         slices * weight_words(t, s.taps_per_group, s.slice_words);
}
FASTCONV1D_HD constexpr int64_t window_pitch(int64_t columns) {
  return round_up(larger(columns - 8, 0), 16) + 8;
}
FASTCONV1D_HD constexpr bool fits(const TileLimits& t, const Schedule& s) {
  if (s.slice_words * (s.pitch / 4) > t.window_vectors) return false;
  return shared_words(t, s) <= t.shared_words;
}
constexpr int64_t kMostLoadStep = 1 << 22;
FASTCONV1D_HD constexpr Schedule try_schedule(const TileLimits& t, const Phase& p,
                                              int64_t channels_in, bool by_residue,
                                              int64_t slice_words, int64_t taps, bool resident) {
  Schedule s{};
  s.resident = resident;
  const int64_t g = p.taps > 1 ? gcd(p.in_step, p.shift_step) : p.in_step;
  const int64_t load_step = by_residue ? p.in_step : g, read_step = by_residue ? 1 : p.in_step / g;
  const int64_t column_step = taps > 1 ? p.shift_step / g : 0;
  const int64_t span = (t.positions - 1 + t.most_shift) * read_step + (taps - 1) * column_step + 1;
  const int64_t columns = round_up(3 + span, 4);
  if (columns > t.window_vectors || load_step > kMostLoadStep) return s;
  s.classes = static_cast<int>(by_residue ? p.in_step / g : 1);
  s.load_step = static_cast<int>(load_step);
  s.read_step = static_cast<int>(read_step);
  s.column_step = static_cast<int>(column_step);
  s.slice_words = static_cast<int>(slice_words);
  s.channel_words = static_cast<int>(ceil_div(channels_in, t.values_per_word));
  s.channel_slices = static_cast<int>(ceil_div(s.channel_words, slice_words));
  s.columns = static_cast<int>(columns);
  s.pitch = static_cast<int>(window_pitch(columns));
  s.groups = static_cast<int>(s.classes * ceil_div(ceil_div(larger(p.taps, 1), s.classes), taps));
  s.taps_per_group = static_cast<int>(taps);
  if (!fits(t, s)) s.taps_per_group = 0;
  return s;
}
FASTCONV1D_HD constexpr Schedule schedule_of(const TileLimits& t, const Phase& p,
                                             int64_t channels_in) {
  const int64_t words = round_up(ceil_div(channels_in, t.values_per_word), 8);
  for (int by_residue = 0; by_residue < 2; ++by_residue) {
    const int64_t g = p.taps > 1 ? gcd(p.in_step, p.shift_step) : p.in_step;
    const int64_t classes = by_residue ? p.in_step / g : 1;
    const int64_t taps_in_class = ceil_div(larger(p.taps, 1), classes);
    const int64_t most = t.shared_words / 2 / weight_words(t, 1, 8);
    if (most == 0) return Schedule{};
    int64_t parts = ceil_div(taps_in_class, most);
    for (int64_t taps = ceil_div(taps_in_class, parts);; taps = ceil_div(taps_in_class, ++parts)) {
      for (int64_t slices = ceil_div(words, taps >= 4 ? 8 : 32), width = words + 8; width > 8;
           ++slices) {
        const int64_t slice_words = round_up(ceil_div(words, slices), 8);
        if (slice_words == width) continue;
        width = slice_words;
        for (int resident = t.many_tiles; resident >= 0; --resident) {
          const Schedule s =
              try_schedule(t, p, channels_in, by_residue, slice_words, taps, resident);
          if (s.taps_per_group > 0) return s;
        }
      }
      if (taps == 1) break;
    }
  }
  return Schedule{};
}
FASTCONV1D_HD constexpr int channel_slice_of(const Schedule& s, int slice) {
  return s.groups == 1 ? slice : slice / s.groups;
}
struct TapGroup {
  int first, count;
};
FASTCONV1D_HD constexpr TapGroup tap_group(const Schedule& s, int64_t taps, int group) {
  if (s.groups == 1) return {0, static_cast<int>(taps)};
  const int first = group % s.classes + s.classes * s.taps_per_group * (group / s.classes);
  const int left = first < taps ? (static_cast<int>(taps) - first + s.classes - 1) / s.classes : 0;
  return {first, left < s.taps_per_group ? left : s.taps_per_group};
}
}
namespace fastconv1d {
struct Fp32 {
  using Element = float;
  static __device__ __forceinline__ float from(Element x) { return x; }
  static __device__ __forceinline__ Element to(float x) { return x; }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    if (!exists) return;
    *reinterpret_cast<float2*>(to) = make_float2(sum[0], sum[1]);
    *reinterpret_cast<float2*>(to + 8) = make_float2(sum[2], sum[3]);
  }
};
struct Tf32 : Fp32 {
  static constexpr int planes = 1, products = 1, values_per_word = 1, chain = 0;
  static constexpr bool keeps_places = true;
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[1]) {
    word[0] = round_tf32(v[0]);
  }
  static __device__ __forceinline__ uint32_t pack(const Element (&v)[1]) {
    return round_tf32(v[0]);
  }
  static __device__ __forceinline__ void unpack(uint32_t weight, uint32_t (&word)[1]) {
    word[0] = weight;
  }
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_tf32(d, a[0], b[0][0], b[0][1]);
  }
};
struct Ieee : Fp32 {
  static constexpr int planes = 2, products = 3, values_per_word = 1, chain = 6;
  static constexpr bool keeps_places = false;
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[2]) {
    const float high = nearest_tf32(v[0]);
    word[0] = bits_of(high);
    word[1] = bits_of(v[0] - high);
  }
  static __device__ __forceinline__ uint32_t pack(const Element (&v)[1]) { return bits_of(v[0]); }
  static __device__ __forceinline__ void unpack(uint32_t weight, uint32_t (&word)[2]) {
    split({float_of(weight)}, word);
  }
  static __device__ __forceinline__ void multiply(int product, float (&d)[4],
                                                  const uint32_t (&a)[2][4],
                                                  const uint32_t (&b)[2][2]) {
    mma_tf32(d, a[product == 0], b[product == 1][0], b[product == 1][1]);
  }
};
struct Half16 {
  using Element = uint16_t;
  static constexpr int planes = 1, products = 1, values_per_word = 2, chain = 0;
  static constexpr bool keeps_places = false;
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[1]) {
    word[0] = pack(v);
  }
  static __device__ __forceinline__ uint32_t pack(const Element (&v)[2]) {
    return v[0] | static_cast<uint32_t>(v[1]) << 16;
  }
  static __device__ __forceinline__ void unpack(uint32_t weight, uint32_t (&word)[1]) {
    word[0] = weight;
  }
  static __device__ __forceinline__ void store_words(Element* to, uint32_t first, uint32_t second,
                                                     bool exists) {
    const bool odd = threadIdx.x % 2 != 0;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    if (exists)
      *reinterpret_cast<uint2*>(to + (odd ? 6 : 0)) =
          make_uint2(odd ? other : first, odd ? second : other);
  }
};
struct Bf16 : Half16 {
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_bf16(d, a[0], b[0][0], b[0][1]);
  }
  static __device__ __forceinline__ float from(Element x) { return bf16_to_float(x); }
  static __device__ __forceinline__ Element to(float x) { return float_to_bf16(x); }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    store_words(to, pack({float_to_bf16(sum[0]), float_to_bf16(sum[1])}),
                pack({float_to_bf16(sum[2]), float_to_bf16(sum[3])}), exists);
  }
};
struct Fp16 : Half16 {
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_fp16(d, a[0], b[0][0], b[0][1]);
  }
  static __device__ __forceinline__ float from(Element x) { return fp16_to_float(x); }
  static __device__ __forceinline__ Element to(float x) { return float_to_fp16(x); }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    store_words(to, pack({float_to_fp16(sum[0]), float_to_fp16(sum[1])}),
                pack({float_to_fp16(sum[2]), float_to_fp16(sum[3])}), exists);
  }
};
template <int WARPS_M, int WARPS_N, int M_TILES, int N_TILES>
struct Tile {
  static constexpr int warps_m = WARPS_M, warps_n = WARPS_N, m_tiles = M_TILES, n_tiles = N_TILES;
  static constexpr int warps = WARPS_M * WARPS_N, threads = 32 * warps;
  static constexpr int channels = 16 * WARPS_M * M_TILES, positions = 8 * WARPS_N * N_TILES;
  static constexpr int channels_log2 = log2_of(channels);
  static_assert(n_tiles % 2 == 0, "stores and products take two tiles at a time");
  static_assert(channels == 1 << channels_log2 && warps_m == 1 << log2_of(warps_m),
                "powers of two");
};
template <class M, class T>
struct Layout {
  using Element = typename M::Element;
  static constexpr int sums = 4 * T::m_tiles * T::n_tiles * (M::chain ? 2 : 1);
  static constexpr int blocks =
      static_cast<int>(larger(1, smaller(2, 65536 / (T::threads * (sums + 64)))));
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int launch_blocks = M::keeps_places ? blocks : 1;
  static constexpr bool keeps_places = false;
#else
  static constexpr int launch_blocks = blocks;
  static constexpr bool keeps_places = M::keeps_places;
#endif
  static constexpr int rows = sizeof(Element) == 4 ? 32 : 24;
  static constexpr int items =
      static_cast<int>(ceil_div(rows * (T::positions + 24), 4 * T::threads));
  static constexpr int window_vectors = items * T::threads;
};
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
struct DenseParams {
  const void* input;
  const uint32_t* weights;
  const void* bias;
  void* output;
  Phase phase;
  Schedule schedule;
  int64_t batch, length, length_out, input_batch_stride, input_channel_stride;
  int64_t channels_in, channels_out, groups;
  int64_t channel_blocks, tiles, runs;
  Place step;
  int64_t first_position;
  int64_t slice_stride;
  int tile_step;
  int classes_log2, most_shift;
  int aligned_input;
  int aligned_output;
};
struct PackParams {
  const void* weight;
  uint32_t* packed;
  Phase phase;
  Schedule schedule;
  int64_t channels_in, channels_out, groups, kernel_size, transposed, channel_blocks, fragments;
  int classes_log2;
};
template <class M, class T>
__global__ void __launch_bounds__(128) pack_kernel(const PackParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= p.fragments) return;
  const Schedule& s = p.schedule;
  constexpr int rows16 = T::channels / 16;
  int64_t rest = index;
  const int64_t lane = rest % 32;
  rest /= 32;
  const int64_t block16 = rest % rows16;
  rest /= rows16;
  const int64_t step = rest % (s.slice_words / 8);
  rest /= s.slice_words / 8;
  const int64_t j = rest % s.taps_per_group;
  rest /= s.taps_per_group;
  const int64_t tap_group_index = rest % s.groups;
  rest /= s.groups;
  const int64_t channel_slice = rest % s.channel_slices;
  rest /= s.channel_slices;
  const int64_t channel_block = rest % p.channel_blocks;
  const int64_t group = rest / p.channel_blocks;
  const TapGroup taps = tap_group(s, p.phase.taps, static_cast<int>(tap_group_index));
  const int64_t tap = p.phase.first_tap + (taps.first + j * s.classes) * p.phase.tap_step;
  const auto* weight = static_cast<const typename M::Element*>(p.weight);
  uint32_t fragment[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = static_cast<int>(block16 * 16 + lane / 4 + (i % 2) * 8);
    const int64_t out =
        channel_block * T::channels + channel_of_row(row, T::channels_log2, p.classes_log2);
    const int64_t word = channel_slice * s.slice_words + step * 8 + lane % 4 + (i / 2) * 4;
    typename M::Element value[M::values_per_word];
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
    fragment[i] = M::pack(value);
  }
  *reinterpret_cast<uint4*>(p.packed + 4 * index) =
      make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
}
template <class Element>
struct Source {
  const Element* window;
  int64_t position;
  int channels;
  bool whole;
};
template <class M, class T>
struct Incoming {
  using L = Layout<M, T>;
  using Element = typename M::Element;
  static constexpr int words = 4 * M::values_per_word * sizeof(Element) / 4;
  uint32_t word[L::items][words];
  int place[L::keeps_places ? L::items : 1];
  __device__ __forceinline__ explicit Incoming(const Schedule& s) {
    const int vectors = s.pitch / 4;
#pragma unroll
    for (int i = 0; i < (L::keeps_places ? L::items : 1); ++i) {
      const int index = threadIdx.x + i * T::threads;
      place[i] = index / vectors << 16 | index % vectors * 4;
    }
  }
  template <class Visit>
  __device__ __forceinline__ void for_each(const Schedule& s, Visit visit) const {
    const int vectors = s.pitch / 4, step = T::threads / vectors << 16 | T::threads % vectors * 4;
    int at = place[0];
#pragma unroll
    for (int i = 0; i < L::items; ++i) {
      if constexpr (L::keeps_places) at = place[i];
      const int column = (at & 0xffff) < s.columns ? at & 0xffff : 0;
      if (at >> 16 < s.slice_words) visit(i, at >> 16, column);
      at += step;
      if ((at & 0xffff) >= s.pitch) at += (1 << 16) - s.pitch;
    }
  }
  __device__ __forceinline__ void fetch(const Schedule& s, const Source<Element>& from,
                                        int64_t channel_stride, int64_t length) {
    if (from.whole) {
      const auto row_stride = static_cast<uint32_t>(channel_stride) * M::values_per_word;
      for_each(s, [&](int i, int row, int column) {
        const uint32_t offset = row * row_stride + column;
        if constexpr (M::values_per_word == 1) {
          const uint4 v = __ldg(reinterpret_cast<const uint4*>(from.window + offset));
          word[i][0] = v.x;
          word[i][1] = v.y;
          word[i][2] = v.z;
          word[i][3] = v.w;
        } else {
          const uint2 low = __ldg(reinterpret_cast<const uint2*>(from.window + offset));
          const uint2 high =
              __ldg(reinterpret_cast<const uint2*>(from.window + channel_stride + offset));
          word[i][0] = low.x;
          word[i][1] = low.y;
          word[i][2] = high.x;
          word[i][3] = high.y;
        }
      });
      return;
    }
    for_each(s, [&](int i, int row, int column) {
#pragma unroll
      for (int v = 0; v < M::values_per_word; ++v) {
        const int channel = row * M::values_per_word + v;
        const int64_t first = static_cast<int64_t>(column) * s.load_step;
        const Element* const begin = from.window + channel * channel_stride + first;
        Element value[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t position = from.position + first + e * s.load_step;
          const bool inside = position >= 0 && position < length && channel < from.channels;
          value[e] = inside ? __ldg(begin + e * s.load_step) : Element{0};
        }
        memcpy(&word[i][v * words / M::values_per_word], value, sizeof value);
      }
    });
  }
  __device__ __forceinline__ void store(const Schedule& s, uint32_t* window) const {
    const int vectors = s.slice_words * (s.pitch / 4) - threadIdx.x;
#pragma unroll
    for (int i = 0; i < L::items; ++i) {
      if (i * T::threads >= vectors) break;
      Element value[M::values_per_word][4];
      memcpy(value, word[i], sizeof value);
      uint32_t split[M::planes][4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Element of_column[M::values_per_word];
#pragma unroll
        for (int v = 0; v < M::values_per_word; ++v) of_column[v] = value[v][e];
        uint32_t of_plane[M::planes];
        M::split(of_column, of_plane);
#pragma unroll
        for (int p = 0; p < M::planes; ++p) split[p][e] = of_plane[p];
      }
#pragma unroll
      for (int p = 0; p < M::planes; ++p)
        *reinterpret_cast<uint4*>(window + p * s.slice_words * s.pitch +
                                  4 * (threadIdx.x + i * T::threads)) =
            make_uint4(split[p][0], split[p][1], split[p][2], split[p][3]);
    }
  }
};
template <class M, class T>
struct Sums {
  int column, fragment;
  float chain[T::m_tiles][T::n_tiles][4];
  float total[M::chain ? T::m_tiles : 1][M::chain ? T::n_tiles : 1][4];
  int steps;
  __device__ __forceinline__ Sums(const Schedule& s, int most_shift) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp % T::warps_m, warp_n = warp / T::warps_m;
    column = lane % 4 * s.pitch + (most_shift + warp_n * T::n_tiles * 8 + lane / 4) * s.read_step;
    fragment = (warp_m * T::m_tiles * 32 + lane) * 4;
  }
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
  template <bool UNIT_STEP>
  __device__ __forceinline__ void add(const Schedule& s, const uint32_t* window,
                                      const uint32_t* weights, int taps, int steps_used) {
    const int read_step = UNIT_STEP ? 1 : s.read_step;
    constexpr int step_words = T::channels * 8;
    const int plane_words = s.slice_words * s.pitch;
    const uint32_t* column_of_tap = window + column;
    const uint32_t* fragment_of_tap = weights + fragment;
    for (int tap = 0; tap < taps; ++tap) {
      const uint32_t* column = column_of_tap;
      const uint32_t* fragment = fragment_of_tap;
#pragma unroll(UNIT_STEP ? 2 : 1)
      for (int step = 0; step < steps_used; ++step) {
        uint32_t a[T::m_tiles][M::planes][4];
#pragma unroll
        for (int m = 0; m < T::m_tiles; ++m) {
          const uint4 v = *reinterpret_cast<const uint4*>(fragment + m * 128);
          const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint32_t of_plane[M::planes];
            M::unpack(word[i], of_plane);
#pragma unroll
            for (int plane = 0; plane < M::planes; ++plane) a[m][plane][i] = of_plane[plane];
          }
        }
        constexpr int turns = static_cast<int>(smaller(UNIT_STEP ? 8 : 4, T::n_tiles));
        static_assert(T::n_tiles % turns == 0, "mma tiles take turns in equal groups");
        const uint32_t* at = column;
#pragma unroll
        for (int n0 = 0; n0 < T::n_tiles; n0 += turns) {
          uint32_t b[turns][M::planes][2];
#pragma unroll
          for (int n = 0; n < turns; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
              for (int plane = 0; plane < M::planes; ++plane)
                b[n][plane][half] = at[plane * plane_words + half * 4 * s.pitch];
            at += 8 * read_step;
          }
#pragma unroll
          for (int product = 0; product < M::products; ++product)
#pragma unroll
            for (int n = 0; n < turns; ++n)
#pragma unroll
              for (int m = 0; m < T::m_tiles; ++m)
                M::multiply(product, chain[m][n0 + n], a[m], b[n]);
        }
        if constexpr (M::chain > 0)
          if (++steps == M::chain) end_chain();
        column += 8 * s.pitch;
        fragment += step_words;
      }
      column_of_tap += s.column_step;
      fragment_of_tap += s.slice_words / 8 * step_words;
    }
  }
};
template <class M, class T>
__device__ __forceinline__ void write_sums(const DenseParams& p, const Sums<M, T>& sums,
                                           const float* biases, int channels, int64_t row,
                                           int64_t position) {
  using Element = typename M::Element;
  const int64_t first = position - threadIdx.x % 4 * 2;
  const bool whole = p.aligned_output && first >= 0 && first + T::n_tiles * 8 <= p.phase.positions;
  const int begin = position < 0 ? static_cast<int>(-position) : 0;
  const auto end = static_cast<int>(smaller(p.phase.positions - position, T::n_tiles * 8));
  int channel =
      channel_of_row(threadIdx.x / 32 % T::warps_m * T::m_tiles * 16 + threadIdx.x % 32 / 4,
                     T::channels_log2, p.classes_log2);
  Element* out = static_cast<Element*>(p.output) + (row + channel) * p.length_out +
                 p.phase.out_offset + position * p.phase.out_step;
#pragma unroll
  for (int i = 0; i < 2 * T::m_tiles; ++i) {
    const bool exists = channel < channels;
    const float bias = biases[channel];
    const auto sum = [&](int n, int e) { return sums.value(i / 2, n, i % 2 * 2 + e) + bias; };
    if (whole) {
#pragma unroll
      for (int n = 0; n < T::n_tiles; n += 2)
        M::store(out + n * 8, {sum(n, 0), sum(n, 1), sum(n + 1, 0), sum(n + 1, 1)}, exists);
    } else if (exists) {
#pragma unroll
      for (int n = 0; n < T::n_tiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (n * 8 + e >= begin && n * 8 + e < end)
            out[(n * 8 + e) * p.phase.out_step] = M::to(sum(n, e));
    }
    channel += 8 << p.classes_log2;
    out += (p.length_out * 8) << p.classes_log2;
  }
}
template <int THREADS>
__device__ __forceinline__ void copy_words(uint32_t* to, const uint32_t* from, int words) {
  constexpr int step = 4 * THREADS;
  int i = 4 * threadIdx.x;
  to += i;
  from += i;
#pragma unroll 1
  for (; i + 3 * step < words; i += 4 * step) {
    copy_async_16(to, from);
    copy_async_16<4 * step>(to, from);
    copy_async_16<8 * step>(to, from);
    copy_async_16<12 * step>(to, from);
    to += 4 * step;
    from += 4 * step;
  }
#pragma unroll 1
  for (; i < words; i += step) {
    copy_async_16(to, from);
    to += step;
    from += step;
  }
}
template <class M, class T, bool UNIT_STEP>
__global__ void __launch_bounds__(T::threads, (Layout<M, T>::launch_blocks))
    dense_kernel(const DenseParams p) {
  using Element = typename M::Element;
  FASTCONV1D_SHARED(shared);
  const Schedule& s = p.schedule;
  const int64_t rest = blockIdx.x / p.channel_blocks, first_tile = rest % p.runs;
  const auto channel_block = static_cast<int>(blockIdx.x % p.channel_blocks),
             group = static_cast<int>(rest / p.runs);
  const int window_words = M::planes * s.slice_words * s.pitch;
  const int slice_weights = s.taps_per_group * s.slice_words * T::channels;
  auto* const filled = reinterpret_cast<uint64_t*>(shared);
  auto* const biases = reinterpret_cast<float*>(shared + kBarrierWords);
  uint32_t* const windows = shared + kBarrierWords + T::channels;
  uint32_t* const shared_weights = windows + window_count(s) * window_words;
  const int64_t channel_stride = p.input_channel_stride;
  const Element* const input =
      static_cast<const Element*>(p.input) + group * p.channels_in * channel_stride;
  const uint32_t* const weights = p.weights + (group * p.channel_blocks + channel_block) *
                                                  s.channel_slices * s.groups * slice_weights;
  const int slice_channels = s.slice_words * M::values_per_word;
  Incoming<M, T> incoming(s);
  Place place{static_cast<int>(first_tile / p.tiles), static_cast<int>(first_tile % p.tiles)};
  const int slices = s.channel_slices * s.groups;
  const auto lead_of = [&](unsigned tile, const TapGroup& taps) {
    unsigned position = tile * p.tile_step + static_cast<unsigned>(p.first_position);
    position += taps.first * static_cast<unsigned>(p.phase.shift_step);
    return s.load_step == 1 ? static_cast<int>(position % 4) : 0;
  };
  const auto fetch = [&](int slice) {
    Place at = place;
    for (; slice >= slices; slice -= slices) at.advance(p.step, p.tiles);
    const int channel_slice = channel_slice_of(s, slice);
    const TapGroup taps = tap_group(s, p.phase.taps, slice - channel_slice * s.groups);
    Source<Element> from;
    from.position = at.tile * static_cast<int64_t>(p.tile_step) + p.first_position;
    from.position += taps.first * p.phase.shift_step;
    from.position -= lead_of(at.tile, taps);
    from.window =
        input + at.batch * p.input_batch_stride + channel_slice * p.slice_stride + from.position;
    from.channels = static_cast<int>(p.channels_in) - channel_slice * slice_channels;
    from.whole = p.aligned_input && from.position >= 0 && from.position + s.columns <= p.length &&
                 from.channels >= slice_channels;
    incoming.fetch(s, from, channel_stride, p.length);
  };
  const auto all =
      static_cast<unsigned>(ceil_div(p.batch * p.tiles - first_tile, p.runs) * slices);
  copy_words<T::threads>(shared_weights, weights, (s.resident ? slices : 1) * slice_weights);
  copy_async_commit();
  if (threadIdx.x == 0) barrier_init(filled, T::threads);
  for (int i = threadIdx.x; i < T::channels; i += T::threads) {
    const int64_t channel = channel_block * T::channels + i;
    const bool exists = p.bias != nullptr && channel < p.channels_out;
    biases[i] =
        exists ? M::from(static_cast<const Element*>(p.bias)[group * p.channels_out + channel]) : 0;
  }
  fetch(0);
  incoming.store(s, windows);
  copy_async_wait<0>();
  __syncthreads();
  if (s.resident) {
    barrier_arrive(filled);
    if (all > 1) fetch(1);
  }
  const int warp = threadIdx.x / 32;
  const int warp_channel =
      channel_block * T::channels +
      channel_of_row(warp % T::warps_m * T::m_tiles * 16, T::channels_log2, p.classes_log2);
  const auto shift_of = [&](unsigned batch) {
    const unsigned row =
        (batch * static_cast<unsigned>(p.groups) + group) * static_cast<unsigned>(p.channels_out) +
        warp_channel;
    return p.most_shift == 0
               ? 0
               : static_cast<int>(row * static_cast<unsigned>(p.length_out) % kAlignedOutputs);
  };
  Sums<M, T> sums(s, p.most_shift);
  const auto window_of = [&](unsigned number) {
    return windows + (s.resident ? number % 3 : number % 2) * window_words;
  };
  unsigned number = 0;
  while (number < all) {
    sums.clear();
    for (int slice = 0; slice < slices; ++slice, ++number) {
      if (s.resident) barrier_wait(filled, number % 2);
      if (s.resident && number + 1 < all) {
        incoming.store(s, window_of(number + 1));
        barrier_arrive(filled);
      }
      if (!s.resident && number + 1 < all) {
        const int64_t next = slice + 1 < slices ? slice + 1 : 0;
        copy_words<T::threads>(shared_weights + (number + 1) % 2 * slice_weights,
                               weights + next * slice_weights, slice_weights);
        copy_async_commit();
      }
      if (number + 1 + s.resident < all) fetch(slice + 1 + s.resident);
      const int channel_slice = channel_slice_of(s, slice);
      const TapGroup taps = tap_group(s, p.phase.taps, slice - channel_slice * s.groups);
      const int words = s.channel_words - channel_slice * s.slice_words;
      const int steps = (words < s.slice_words ? words + 7 : s.slice_words) / 8;
      const uint32_t* const window =
          window_of(number) + lead_of(place.tile, taps) - shift_of(place.batch) * s.read_step;
      const int turn = s.resident ? slice : number % 2;
      sums.template add<UNIT_STEP>(s, window, shared_weights + turn * slice_weights, taps.count,
                                   steps);
      if (!s.resident && number + 1 < all) {
        incoming.store(s, window_of(number + 1));
        copy_async_wait<0>();
        __syncthreads();
      }
    }
    const int position = warp / T::warps_m * T::n_tiles * 8 + threadIdx.x % 4 * 2;
    const int64_t channel = channel_block * T::channels;
    write_sums<M, T>(
        p, sums, biases, static_cast<int>(smaller(T::channels, p.channels_out - channel)),
        (place.batch * p.groups + group) * p.channels_out + channel,
        static_cast<int64_t>(place.tile) * T::positions + position - shift_of(place.batch));
    place.advance(p.step, p.tiles);
  }
}
constexpr int64_t kMostWaves = 32;
template <class M, class T>
struct Dense {
  using L = Layout<M, T>;
  struct Cut {
    Phase phase;
    TileLimits limits;
    Schedule schedule;
    int64_t channels_in, channels_out, channel_blocks;
    int64_t tiles, runs;
    int64_t packed_words;
  };
  static Cut cut(const ConvArgs& a, int64_t r) {
    Cut c{};
    c.phase = phase_of(a, r);
    c.channels_in = a.channels_in / a.groups;
    c.channels_out = a.channels_out / a.groups;
    c.channel_blocks = ceil_div(c.channels_out, T::channels);
    const int64_t most_shift =
        c.phase.out_step == 1 ? kAlignedOutputs - kAlignedOutputs / row_classes(a.length_out) : 0;
    c.tiles = ceil_div(c.phase.positions + most_shift, T::positions);
    const int64_t tiles = a.batch * c.tiles, rows = a.groups * c.channel_blocks;
    const int64_t at_a_time = a.multiprocessors * L::blocks;
    int64_t least = INT64_MAX;
    for (int64_t waves = 1; waves <= kMostWaves; ++waves) {
      const int64_t runs = smaller(tiles, larger(1, waves * at_a_time / rows));
      const int64_t time = ceil_div(rows * runs, at_a_time) * (2 * ceil_div(tiles, runs) + 1);
      if (time >= least) continue;
      least = time;
      c.runs = runs;
    }
    for (int blocks = L::blocks; blocks >= 1; --blocks) {
      c.limits = {T::positions,
                  T::channels,
                  most_shift,
                  L::window_vectors,
                  M::planes,
                  M::values_per_word,
                  shared_budget(blocks) / 4,
                  ceil_div(tiles, c.runs) >= 4};
      c.schedule = schedule_of(c.limits, c.phase, c.channels_in);
      if (c.schedule.taps_per_group > 0) break;
    }
    if (ceil_div(tiles, c.runs) * c.schedule.channel_slices * c.schedule.groups > INT32_MAX)
      c.schedule = Schedule{};
    c.packed_words = a.groups * c.channel_blocks * c.schedule.channel_slices * c.schedule.groups *
                     weight_words(c.limits, c.schedule.taps_per_group, c.schedule.slice_words);
    return c;
  }
  static int64_t workspace(const ConvArgs& a) {
    int64_t words = 0;
    for (int64_t r = 0; r < phase_count(a); ++r) words = larger(words, cut(a, r).packed_words);
    return 4 * words;
  }
  static int launch(const ConvArgs& a, void* stream) {
    for (int64_t r = 0; r < phase_count(a); ++r) {
      const int error = launch_phase(a, cut(a, r), stream);
      if (error != 0) return error;
    }
    return 0;
  }
  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    const Schedule& s = c.schedule;
    if (s.taps_per_group == 0) return 1;
    const int classes_log2 =
        c.phase.out_step == 1 ? log2_of(smaller(row_classes(a.length_out), T::warps_m)) : 0;
    auto* const packed = static_cast<uint32_t*>(a.workspace);
    const int64_t fragments = c.packed_words / 4;
    const int64_t step = (a.length_out << classes_log2) % kAlignedOutputs;
    const int aligned_output =
        c.phase.out_step == 1 && gcd(kAlignedOutputs, step) * sizeof(typename M::Element) >= 8;
    int error = fastconv1d::launch(
        pack_kernel<M, T>, dim3(static_cast<unsigned>(ceil_div(fragments, 128))), dim3(128), 0,
        stream,
        PackParams{a.weight, packed, c.phase, s, c.channels_in, c.channels_out, a.groups,
                   a.kernel_size, a.transposed, c.channel_blocks, fragments, classes_log2});
    if (error != 0) return error;
    const int64_t first_position = c.phase.first_shift - c.limits.most_shift * c.phase.in_step;
    const int64_t slice_stride = s.slice_words * M::values_per_word * a.input_channel_stride;
    const int aligned_input =
        reinterpret_cast<uintptr_t>(a.input) % (4 * sizeof(typename M::Element)) == 0 &&
        s.load_step == 1 && a.input_channel_stride % 4 == 0 &&
        (a.batch == 1 || a.input_batch_stride % 4 == 0) && slice_stride < int64_t{1} << 31;
    const int64_t bytes = 4 * shared_words(c.limits, s);
    const auto kernel = s.read_step == 1 ? dense_kernel<M, T, true> : dense_kernel<M, T, false>;
    error = set_shared_limit(kernel, bytes);
    if (error != 0) return error;
    return fastconv1d::launch(
        kernel, dim3(static_cast<unsigned>(a.groups * c.channel_blocks * c.runs)), dim3(T::threads),
        bytes, stream,
        DenseParams{a.input,
                    packed,
                    a.bias,
                    a.output,
                    c.phase,
                    s,
                    a.batch,
                    a.length,
                    a.length_out,
                    a.input_batch_stride,
                    a.input_channel_stride,
                    c.channels_in,
                    c.channels_out,
                    a.groups,
                    c.channel_blocks,
                    c.tiles,
                    c.runs,
                    Place{static_cast<int>(c.runs / c.tiles), static_cast<int>(c.runs % c.tiles)},
                    first_position,
                    slice_stride,
                    static_cast<int>(T::positions * c.phase.in_step),
                    classes_log2,
                    static_cast<int>(c.limits.most_shift),
                    aligned_input,
                    aligned_output});
  }
};
template <class M, class... Tiles>
struct DenseLibrary {
  static int launch(int64_t variant, const ConvArgs& a, void* stream) {
    int result = 1;
    int64_t index = 0;
    (void)((index++ == variant && (result = Dense<M, Tiles>::launch(a, stream), true)) || ...);
    return result;
  }
  static int64_t workspace(int64_t variant, const ConvArgs& a) {
    int64_t result = 0, index = 0;
    (void)((index++ == variant && (result = Dense<M, Tiles>::workspace(a), true)) || ...);
    return result;
  }
};
}
#define FASTCONV1D_DENSE_LIBRARY(...)                                                      \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::DenseLibrary<__VA_ARGS__>::launch(variant, *args, stream);          \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t variant, const fastconv1d::ConvArgs* args) {        \
    return fastconv1d::DenseLibrary<__VA_ARGS__>::workspace(variant, *args);               \
  }
namespace fastconv1d {
struct PlainFp32 {
  using Element = float;
  using Sum = float;
  static __device__ __forceinline__ Sum from(Element x) { return x; }
  static __device__ __forceinline__ Element to(Sum x) { return x; }
};
struct PlainBf16 {
  using Element = uint16_t;
  using Sum = float;
  static __device__ __forceinline__ Sum from(Element x) { return bf16_to_float(x); }
  static __device__ __forceinline__ Element to(Sum x) { return float_to_bf16(x); }
};
struct PlainFp16 {
  using Element = uint16_t;
  using Sum = float;
  static __device__ __forceinline__ Sum from(Element x) { return fp16_to_float(x); }
  static __device__ __forceinline__ Element to(Sum x) { return float_to_fp16(x); }
};
struct PlainFp64 {
  using Element = double;
  using Sum = double;
  static __device__ __forceinline__ Sum from(Element x) { return x; }
  static __device__ __forceinline__ Element to(Sum x) { return x; }
};
template <class M>
__global__ void __launch_bounds__(128) direct_kernel(const ConvArgs a) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= a.batch * a.channels_out * a.length_out) return;
  const int64_t position = index % a.length_out, row = index / a.length_out;
  const int64_t out = row % a.channels_out, batch = row / a.channels_out;
  const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups;
  const int64_t group = out / channels_out;
  int64_t r = 0, q = position;
  if (a.transposed) {
    r = position % a.stride;
    q = position / a.stride;
  }
  const Phase phase = phase_of(a, r);
  const int64_t start = q * phase.in_step + phase.first_shift;
  const int64_t first = start < 0 ? ceil_div(-start, phase.shift_step) : 0;
  const int64_t last =
      smaller(phase.taps, start < a.length ? ceil_div(a.length - start, phase.shift_step) : 0);
  const auto* input = static_cast<const typename M::Element*>(a.input) +
                      batch * a.input_batch_stride + group * channels_in * a.input_channel_stride +
                      start;
  const auto* weight = static_cast<const typename M::Element*>(a.weight) + phase.first_tap;
  typename M::Sum total = 0, part = 0;
  for (int64_t in = 0; in < channels_in; ++in) {
    const int64_t row_of_weight =
        a.transposed ? (group * channels_in + in) * channels_out + out % channels_out
                     : out * channels_in + in;
    for (int64_t tap = first; tap < last; ++tap)
      part += M::from(weight[row_of_weight * a.kernel_size + tap * phase.tap_step]) *
              M::from(input[in * a.input_channel_stride + tap * phase.shift_step]);
    if (in % 16 == 15) {
      total += part;
      part = 0;
    }
  }
  total += part;
  if (a.bias != nullptr) total += M::from(static_cast<const typename M::Element*>(a.bias)[out]);
  static_cast<typename M::Element*>(a.output)[index] = M::to(total);
}
template <class M>
int direct_launch(const ConvArgs& a, void* stream) {
  const int64_t outputs = a.batch * a.channels_out * a.length_out;
  return launch(direct_kernel<M>, dim3(static_cast<unsigned>(ceil_div(outputs, 128))), dim3(128), 0,
                stream, a);
}
inline int direct_launch(int64_t mode, const ConvArgs& a, void* stream) {
  switch (mode) {
    case kBf16:
      return direct_launch<PlainBf16>(a, stream);
    case kFp16:
      return direct_launch<PlainFp16>(a, stream);
    case kFp64:
      return direct_launch<PlainFp64>(a, stream);
    default:
      return direct_launch<PlainFp32>(a, stream);
  }
}
}
#define FASTCONV1D_DIRECT_LIBRARY                                                          \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::direct_launch(variant, *args, stream);                              \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
namespace fastconv1d {
using DenseTf32 = Dense<Tf32, fastconv1d::Tile<4, 4, 2, 8>>;
using DenseIeee = Dense<Ieee, fastconv1d::Tile<4, 2, 2, 8>>;
using DenseBf16 = Dense<Bf16, fastconv1d::Tile<4, 2, 2, 8>>;
using DenseFp16 = Dense<Fp16, fastconv1d::Tile<4, 2, 2, 8>>;
}
namespace fastconv1d {
template <class Function>
int64_t with_dense(const ConvArgs& args, const Function& function) {
  switch (args.mode) {
    case kTf32:
      return function(DenseTf32{});
    case kIeee:
      return function(DenseIeee{});
    case kBf16:
      return function(DenseBf16{});
    default:
      return function(DenseFp16{});
  }
}
}
int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {
  return fastconv1d::with_dense(*args, [&](auto dense) { return dense.workspace(*args); });
}
int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) {
  const int64_t error =
      fastconv1d::with_dense(*args, [&](auto dense) { return dense.launch(*args, stream); });
  if (error != cudaErrorInvalidValue) return static_cast<int>(error);
  return fastconv1d::direct_launch(args->mode, *args, stream);
}
"""

CPP_SOURCE = r"""
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>
#include <cstdint>
namespace fastconv1d {
enum Mode : int64_t { kTf32 = 0, kIeee = 1, kBf16 = 2, kFp16 = 3, kFp64 = 4 };
struct ConvArgs {
  const void* input;
  const void* weight;
  const void* bias;
  void* output;
  void* workspace;
  int64_t batch, channels_in, channels_out, length, length_out;
  int64_t kernel_size, stride, padding, dilation, groups, transposed;
  int64_t input_batch_stride, input_channel_stride;
  int64_t mode;
  int64_t multiprocessors;
};
}
extern "C" {
int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream);
int64_t fastconv1d_workspace(int64_t variant, const fastconv1d::ConvArgs* args);
}
namespace {
at::Tensor conv1d(const at::Tensor& input, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias, int64_t stride, int64_t padding,
                  int64_t dilation, int64_t groups, bool allow_tf32) {
  TORCH_CHECK(input.dim() == 3, "input has ", input.dim(), " dimensions, expected 3");
  TORCH_CHECK(weight.dim() == 3, "weight has ", weight.dim(), " dimensions, expected 3");
  TORCH_CHECK(stride > 0 && dilation > 0 && groups > 0 && padding >= 0, "stride is ", stride,
              ", dilation ", dilation, ", groups ", groups, ", padding ", padding,
              ", expected positive ones and padding of at least 0");
  TORCH_CHECK(input.size(1) == weight.size(1) * groups, "input has ", input.size(1),
              " channels, expected ", weight.size(1) * groups);
  TORCH_CHECK(weight.size(0) % groups == 0, "weight has ", weight.size(0),
              " output channels, expected a multiple of groups=", groups);
  TORCH_CHECK(weight.device() == input.device(), "weight is on ", weight.device(),
              ", expected input's device ", input.device());
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight is ", weight.scalar_type(),
              ", expected input's dtype ", input.scalar_type());
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->is_contiguous(),
                "bias has shape ", bias->sizes(), ", expected (", weight.size(0), ")");
    TORCH_CHECK(bias->device() == input.device() && bias->scalar_type() == input.scalar_type(),
                "bias is ", bias->scalar_type(), " on ", bias->device(), ", expected ",
                input.scalar_type(), " on ", input.device());
  }
  int64_t mode = allow_tf32 ? fastconv1d::kTf32 : fastconv1d::kIeee;
  if (input.scalar_type() == at::kBFloat16) mode = fastconv1d::kBf16;
  if (input.scalar_type() == at::kHalf) mode = fastconv1d::kFp16;
  TORCH_CHECK(mode > fastconv1d::kIeee || input.scalar_type() == at::kFloat, "input is ",
              input.scalar_type(), ", expected float32, bfloat16 or float16");
  const int64_t reach = dilation * (weight.size(2) - 1) + 1;
  const int64_t room = input.size(2) + 2 * padding - reach;
  TORCH_CHECK(room >= 0, "input has length ", input.size(2), ", with padding ",
              input.size(2) + 2 * padding, ", expected at least the kernel's reach ", reach);
  const c10::cuda::CUDAGuard guard(input.device());
  const int64_t length_out = room / stride + 1;
  at::Tensor output = at::empty({input.size(0), weight.size(0), length_out}, input.options());
  if (output.numel() == 0) return output;
  const at::Tensor x = input.stride(2) == 1 ? input : input.contiguous();
  const at::Tensor w = weight.contiguous();
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                                        input.device().index()));
  fastconv1d::ConvArgs args{};
  args.input = x.const_data_ptr();
  args.weight = w.const_data_ptr();
  args.bias = bias.has_value() ? bias->const_data_ptr() : nullptr;
  args.output = output.mutable_data_ptr();
  args.batch = x.size(0);
  args.channels_in = x.size(1);
  args.channels_out = w.size(0);
  args.length = x.size(2);
  args.length_out = length_out;
  args.kernel_size = w.size(2);
  args.stride = stride;
  args.padding = padding;
  args.dilation = dilation;
  args.groups = groups;
  args.input_batch_stride = x.stride(0);
  args.input_channel_stride = x.stride(1);
  args.mode = mode;
  args.multiprocessors = multiprocessors;
  const at::Tensor workspace =
      at::empty({fastconv1d_workspace(0, &args)}, input.options().dtype(at::kByte));
  args.workspace = workspace.mutable_data_ptr();
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(static_cast<cudaError_t>(fastconv1d_launch(0, &args, stream.stream())));
  return output;
}
}
#define CONV1D_LIBRARY(name, library) TORCH_LIBRARY(name, library)
CONV1D_LIBRARY(TORCH_EXTENSION_NAME, library) {
  library.def(
      "conv1d(Tensor input, Tensor weight, Tensor? bias, int stride, int padding, int dilation, "
      "int groups, bool allow_tf32) -> Tensor");
  library.impl("conv1d", c10::DispatchKey::CUDA, TORCH_FN(conv1d));
}
"""


@functools.cache
def compiled_operator(device_index):
    """The operator, compiled for one CUDA device."""
    capability = torch.cuda.get_device_capability(device_index)
    if capability < (8, 0):
        raise RuntimeError(f"device has compute capability {capability}, expected at least (8, 0)")
    arch = "90a" if capability == (9, 0) else "%d%d" % capability
    made_from = "\n".join((torch.__version__, arch, CPP_SOURCE, CUDA_SOURCE))
    # A name of its own for every source: torch can load two of these files side by side.
    name = "conv1d_" + hashlib.sha256(made_from.encode()).hexdigest()[:16]
    load_inline(
        name=name,
        cpp_sources=CPP_SOURCE,
        cuda_sources=CUDA_SOURCE,
        extra_cflags=["-O2", "-fvisibility=hidden"],
        extra_cuda_cflags=[
            "-O3",
            "-Xcompiler=-fvisibility=hidden",
            f"-gencode=arch=compute_{arch},code=sm_{arch}",
        ],
        no_implicit_headers=True,
        is_python_module=False,
    )
    return getattr(torch.ops, name).conv1d.default


class Convolution(torch.autograd.Function):
    """Our forward with ATen's gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups):
        if not x.is_cuda:
            raise RuntimeError(f"input is on {x.device}, expected a CUDA device")
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else [weight.size(0)]
        ctx.geometry = [stride], [padding], [dilation], False, [0], groups
        tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
        conv1d = compiled_operator(x.get_device())
        return conv1d(x, weight, bias, stride, padding, dilation, groups, tf32)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        gradients = torch.ops.aten.convolution_backward(
            grad_output, x, weight, ctx.bias_sizes, *ctx.geometry, ctx.needs_input_grad[:3]
        )
        return *gradients, None, None, None, None


class Conv1d(nn.Module):
    """weight (out_channels, in_channels/groups, kernel_size) and bias (out_channels,), initialised
    by the draws that torch's own layer makes."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
    ):
        super().__init__()
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if count % groups:
                raise ValueError(f"{name} is {count}, expected a multiple of groups={groups}")
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.register_parameter("bias", None)
        if bias:
            bound = 1 / math.sqrt(in_channels // groups * kernel_size)
            self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))

    def forward(self, x):
        return Convolution.apply(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class ModelNew(nn.Module):
    """(batch, in_channels, length) to (batch, out_channels, length_out) with
    length_out = floor((length + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        self.conv1d = Conv1d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1d(x)


def get_inputs():
    return [torch.rand(32, 64, 131072)]


def get_init_inputs():
    return [64, 128, 3]
