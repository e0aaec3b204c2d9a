"""KernelBench level 1, problem 67, on its own CUDA kernels: written by `fastconv1d export`.

ModelNew is the problem's Model: same constructor, same weights from the same seed, same state_dict.
Its forward is one operator of our own, straight from (batch, channels, length) to the same layout:
an implicit matrix product on tensor cores with the bias fused
(wgmma; compute capability 9.0 only).
fp32 follows torch's switch (TF32 or fp32-accurate, as three TF32 products); bf16 and fp16
accumulate in fp32. Any stride, padding, dilation, groups and length. Gradients are ATen's.

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
namespace fastconv1d {
enum class BoxForm { plain, rounded, swizzled };
}
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define FASTCONV1D_SHARED(name)                  \
  extern __shared__ __align__(kOperandAlignment) \
  uint32_t name[]
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
__device__ __forceinline__ void load_matrices(uint32_t (&word)[4], const uint32_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_turned(uint32_t (&word)[4], const uint32_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void store_matrices_turned(void* row, const uint32_t (&word)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
      : "memory");
}
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
__device__ __forceinline__ bool barrier_is_over(uint64_t* barrier, uint32_t parity) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  uint32_t over;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
      : "=r"(over)
      : "r"(address), "r"(parity)
      : "memory");
  return over != 0;
}
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
__device__ __forceinline__ void add_to(float* to, float x) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(x) : "memory");
}
__device__ __forceinline__ void store_16(void* to, const uint4& words) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
}
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(bytes), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
      : "memory");
}
struct BoxMap {
  CUtensorMap map;
};
inline int make_box_map(BoxMap* box, int element_bytes, const void* first, int64_t columns,
                        int64_t rows, int64_t pitch, int box_columns, int box_rows, BoxForm form) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                     &found);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  thread_local const cudaError_t begun = [] {
    int device = 0;
    const cudaError_t error = cudaGetDevice(&device);
    return error != cudaSuccess ? error : cudaSetDevice(device);
  }();
  if (begun != cudaSuccess) return begun;
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                   pitches[1] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t box_size[2] = {static_cast<cuuint32_t>(box_columns),
                                  static_cast<cuuint32_t>(box_rows)},
                   steps[2] = {1, 1};
  const CUresult error = encode(
      &box->map,
      element_bytes == 2       ? CU_TENSOR_MAP_DATA_TYPE_UINT16
      : form == BoxForm::plain ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                               : CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
      2, const_cast<void*>(first), size, pitches, box_size, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      form == BoxForm::swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error == CUDA_SUCCESS ? 0 : cudaErrorInvalidValue;
}
__device__ __forceinline__ void copy_box(void* shared, const BoxMap* box, int column, int row,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(reinterpret_cast<uint64_t>(box)), "r"(column), "r"(row),
      "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
      : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(address),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void threads_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void warpgroup_sync(int id) { threads_sync(id, 128); }
__device__ __forceinline__ void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ uint32_t nearest_tf32_bits(float x) {
  uint32_t bits = __float_as_uint(x);
  asm("{ .reg .pred p; .reg .f32 size; abs.f32 size, %1; setp.lt.f32 p, size, 0f7f800000; "
      "@p add.u32 %0, %0, 4096; }"
      : "+r"(bits)
      : "f"(x));
  return bits;
}
__device__ __forceinline__ uint32_t pack_fp16(float first, float second) {
  const __half2 halves = __floats2half2_rn(first, second);
  uint32_t word;
  memcpy(&word, &halves, 4);
  return word;
}
__device__ __forceinline__ float2 unpack_fp16(uint32_t word) {
  __half2 halves;
  memcpy(&halves, &word, 4);
  return __half22float2(halves);
}
__device__ __forceinline__ uint32_t largest_of_warp(uint32_t value) {
  return __reduce_max_sync(0xffffffffu, value);
}
__device__ __forceinline__ uint32_t smallest_of_warp(uint32_t value) {
  return __reduce_min_sync(0xffffffffu, value);
}
template <int COUNT>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
__device__ __forceinline__ uint64_t wgmma_operand(const void* shared, uint32_t half_bytes) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(half_bytes >> 4) << 16 |
         static_cast<uint64_t>(128 >> 4) << 32;
}
constexpr int kOperandAlignment = 1024;
__device__ __forceinline__ uint64_t wgmma_swizzled_operand(const void* shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 |
         static_cast<uint64_t>(kOperandAlignment >> 4) << 32 | uint64_t{1} << 62;
}
template <int COLUMNS>
__device__ __forceinline__ uint64_t wgmma_turned_operand(const void* shared, uint32_t next_bytes) {
  static_assert(COLUMNS == 64 || COLUMNS == 32);
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(next_bytes >> 4) << 16 |
         static_cast<uint64_t>(16 * COLUMNS >> 4) << 32 | uint64_t{COLUMNS == 64 ? 1 : 2} << 62;
}
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ void wgmma_settle() { wgmma_wait<0>(); }
template <int COUNT>
__device__ __forceinline__ void wgmma_hold(float (&sums)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
template <int COUNT>
__device__ __forceinline__ void wgmma_hold(uint32_t (&words)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(words[i])::"memory");
}
#define FASTCONV1D_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FASTCONV1D_NAMES_1 \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTCONV1D_NAMES_2 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define FASTCONV1D_NAMES_3 \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTCONV1D_NAMES_4 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FASTCONV1D_NAMES_5 \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FASTCONV1D_NAMES_6 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define FASTCONV1D_NAMES_7 \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FASTCONV1D_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FASTCONV1D_SUMS(i)                                                  \
  FASTCONV1D_SUMS_4(i), FASTCONV1D_SUMS_4(i + 4), FASTCONV1D_SUMS_4(i + 8), \
      FASTCONV1D_SUMS_4(i + 12)
#define FASTCONV1D_NAMES_OF_8 "%0, %1, %2, %3"
#define FASTCONV1D_SUMS_OF_8 FASTCONV1D_SUMS_4(0)
#define FASTCONV1D_NAMES_OF_32 FASTCONV1D_NAMES_0
#define FASTCONV1D_SUMS_OF_32 FASTCONV1D_SUMS(0)
#define FASTCONV1D_NAMES_OF_64 FASTCONV1D_NAMES_0 ", " FASTCONV1D_NAMES_1
#define FASTCONV1D_SUMS_OF_64 FASTCONV1D_SUMS(0), FASTCONV1D_SUMS(16)
#define FASTCONV1D_NAMES_OF_96 FASTCONV1D_NAMES_OF_64 ", " FASTCONV1D_NAMES_2
#define FASTCONV1D_SUMS_OF_96 FASTCONV1D_SUMS_OF_64, FASTCONV1D_SUMS(32)
#define FASTCONV1D_NAMES_OF_128 FASTCONV1D_NAMES_OF_96 ", " FASTCONV1D_NAMES_3
#define FASTCONV1D_SUMS_OF_128 FASTCONV1D_SUMS_OF_96, FASTCONV1D_SUMS(48)
#define FASTCONV1D_NAMES_OF_160 FASTCONV1D_NAMES_OF_128 ", " FASTCONV1D_NAMES_4
#define FASTCONV1D_SUMS_OF_160 FASTCONV1D_SUMS_OF_128, FASTCONV1D_SUMS(64)
#define FASTCONV1D_NAMES_OF_192 \
  FASTCONV1D_NAMES_OF_128 ", " FASTCONV1D_NAMES_4 ", " FASTCONV1D_NAMES_5
#define FASTCONV1D_SUMS_OF_192 FASTCONV1D_SUMS_OF_128, FASTCONV1D_SUMS(64), FASTCONV1D_SUMS(80)
#define FASTCONV1D_NAMES_OF_224 FASTCONV1D_NAMES_OF_192 ", " FASTCONV1D_NAMES_6
#define FASTCONV1D_SUMS_OF_224 FASTCONV1D_SUMS_OF_192, FASTCONV1D_SUMS(96)
#define FASTCONV1D_NAMES_OF_256 \
  FASTCONV1D_NAMES_OF_192 ", " FASTCONV1D_NAMES_6 ", " FASTCONV1D_NAMES_7
#define FASTCONV1D_SUMS_OF_256 FASTCONV1D_SUMS_OF_192, FASTCONV1D_SUMS(96), FASTCONV1D_SUMS(112)
#define FASTCONV1D_WGMMA(name, N, sums, a0, a1, a2, a3, right, depth_and_types, tail)          \
  __device__ __forceinline__ void name(float (&d)[sums], const uint32_t (&a)[4], uint64_t b) { \
    asm volatile(                                                                              \
        "{ .reg .pred p; setp.eq.u32 p, 0, 0; "                                                \
        "wgmma.mma_async.sync.aligned.m64n" #N depth_and_types " {" FASTCONV1D_NAMES_OF_##N    \
        "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #right ", p, 1, 1" tail "; }"         \
        : FASTCONV1D_SUMS_OF_##N                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
  }
#define FASTCONV1D_WGMMA_TYPES(N, sums, ...)                                            \
  FASTCONV1D_WGMMA(wgmma_tf32, N, sums, __VA_ARGS__, "k8.f32.tf32.tf32", "")            \
  FASTCONV1D_WGMMA(wgmma_bf16, N, sums, __VA_ARGS__, "k16.f32.bf16.bf16", ", 0")        \
  FASTCONV1D_WGMMA(wgmma_fp16, N, sums, __VA_ARGS__, "k16.f32.f16.f16", ", 0")          \
  FASTCONV1D_WGMMA(wgmma_bf16_turned, N, sums, __VA_ARGS__, "k16.f32.bf16.bf16", ", 1") \
  FASTCONV1D_WGMMA(wgmma_fp16_turned, N, sums, __VA_ARGS__, "k16.f32.f16.f16", ", 1")
FASTCONV1D_WGMMA_TYPES(8, 4, 4, 5, 6, 7, 8)
FASTCONV1D_WGMMA_TYPES(32, 16, 16, 17, 18, 19, 20)
FASTCONV1D_WGMMA_TYPES(64, 32, 32, 33, 34, 35, 36)
FASTCONV1D_WGMMA_TYPES(96, 48, 48, 49, 50, 51, 52)
FASTCONV1D_WGMMA_TYPES(128, 64, 64, 65, 66, 67, 68)
FASTCONV1D_WGMMA_TYPES(160, 80, 80, 81, 82, 83, 84)
FASTCONV1D_WGMMA_TYPES(192, 96, 96, 97, 98, 99, 100)
FASTCONV1D_WGMMA_TYPES(224, 112, 112, 113, 114, 115, 116)
FASTCONV1D_WGMMA_TYPES(256, 128, 128, 129, 130, 131, 132)
#undef FASTCONV1D_NAMES_0
#undef FASTCONV1D_NAMES_1
#undef FASTCONV1D_NAMES_2
#undef FASTCONV1D_NAMES_3
#undef FASTCONV1D_NAMES_4
#undef FASTCONV1D_NAMES_5
#undef FASTCONV1D_NAMES_6
#undef FASTCONV1D_NAMES_7
#undef FASTCONV1D_NAMES_OF_8
#undef FASTCONV1D_SUMS_OF_8
#undef FASTCONV1D_NAMES_OF_32
#undef FASTCONV1D_SUMS_OF_32
#undef FASTCONV1D_NAMES_OF_64
#undef FASTCONV1D_SUMS_OF_64
#undef FASTCONV1D_NAMES_OF_96
#undef FASTCONV1D_SUMS_OF_96
#undef FASTCONV1D_NAMES_OF_128
#undef FASTCONV1D_SUMS_OF_128
#undef FASTCONV1D_NAMES_OF_160
#undef FASTCONV1D_SUMS_OF_160
#undef FASTCONV1D_NAMES_OF_192
#undef FASTCONV1D_SUMS_OF_192
#undef FASTCONV1D_NAMES_OF_224
#undef FASTCONV1D_SUMS_OF_224
#undef FASTCONV1D_NAMES_OF_256
#undef FASTCONV1D_SUMS_OF_256
#undef FASTCONV1D_SUMS
#undef FASTCONV1D_SUMS_4
#undef FASTCONV1D_WGMMA
#undef FASTCONV1D_WGMMA_TYPES
constexpr bool kernels_wait() {
  for (const int architecture : {__CUDA_ARCH_LIST__})
    if (architecture < 900) return false;
  return true;
}
template <class... Parameters, class... Arguments>
int launch_early(bool early, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                 int64_t shared_bytes, void* stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early && kernels_wait();
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared_bytes, void* stream,
           const Arguments&... arguments) {
  return launch_early(false, kernel, grid, block, shared_bytes, stream, arguments...);
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
template <class... Parameters>
int set_shared_limit(void (*kernel)(Parameters...), int64_t bytes) {
  if (bytes <= 48 << 10) return 0;
  const int64_t most = shared_budget(1);
  if (bytes > most) return cudaErrorInvalidValue;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(most));
}
}
namespace fastconv1d {
__device__ __forceinline__ uint32_t halves_of(uint32_t first, uint32_t second, bool high) {
#if defined(__CUDACC__)
  return __byte_perm(first, second, high ? 0x7632 : 0x5410);
#else
  return high ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
#endif
}
__device__ __forceinline__ uint32_t shifted_right(uint32_t low, uint32_t high, int bits) {
#if defined(__CUDACC__)
  return __funnelshift_r(low, high, bits);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> bits);
#endif
}
template <int LANES = 32, class T>
__device__ __forceinline__ T sum_of_lanes(T value) {
#pragma unroll
  for (int bits = LANES / 2; bits > 0; bits /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, bits);
  return value;
}
__device__ __forceinline__ uint4 read_once(const uint4* from) {
#if defined(__CUDACC__)
  uint4 piece;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
               : "l"(from));
  return piece;
#else
  return __ldg(from);
#endif
}
__device__ __forceinline__ void keep_in_register(int& value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#else
  (void)value;
#endif
}
__device__ __forceinline__ void reconverge() { __syncwarp(); }
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
template <class Element, class Piece, class Position, class Length>
__device__ __forceinline__ void clear_beside(Piece& piece, Position position, Length length) {
  constexpr int count = 16 / sizeof(Element);
  static_assert(sizeof(Piece) == 16);
  if (position >= 0 && position + count <= length) return;
  Element value[count];
  memcpy(value, &piece, 16);
#pragma unroll
  for (int i = 0; i < count; ++i)
    if (position + i < 0 || position + i >= length) value[i] = Element{0};
  memcpy(&piece, value, 16);
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
  const void* grad_output;
  void* grad_bias;
  void* grad_input;
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
}
namespace fastconv1d {
constexpr int kWeave = 16;
struct Weave {
  int stride, channels, skipped, dilation;
};
FASTCONV1D_HD constexpr int64_t weave_step(const ConvArgs& a) {
  return a.dilation % a.stride == 0 ? a.dilation / a.stride : 1;
}
FASTCONV1D_HD constexpr int64_t woven_taps(const ConvArgs& a) {
  return (a.kernel_size - 1) * a.dilation / (a.stride * weave_step(a)) + 1;
}
FASTCONV1D_HD constexpr bool is_woven(const ConvArgs& a) {
  return a.transposed && a.stride > 1 && a.stride <= kWeave && woven_taps(a) <= a.kernel_size;
}
FASTCONV1D_HD constexpr Weave weave_of(const ConvArgs& a) {
  if (!is_woven(a)) return {1, kWeave, 0, 1};
  return {static_cast<int>(a.stride), static_cast<int>(kWeave / a.stride),
          static_cast<int>(a.padding % a.stride), static_cast<int>(a.dilation)};
}
FASTCONV1D_HD constexpr Phase woven_phase(const ConvArgs& a) {
  const int64_t step = weave_step(a), last = woven_taps(a) - 1, of_step = step * a.stride;
  return {last * of_step,
          -of_step,
          last + 1,
          a.padding / a.stride - last * step,
          step,
          1,
          0,
          1,
          ceil_div(a.length_out + a.padding % a.stride, a.stride)};
}
struct Column {
  int64_t channel;
  int r;
};
FASTCONV1D_HD constexpr Column column_of(const Weave& w, int64_t column) {
  if (w.stride == 1) return {column, 0};
  const int place = static_cast<int>(column % kWeave), channel = place / w.stride;
  return {column / kWeave * w.channels + channel, place - channel * w.stride};
}
FASTCONV1D_HD constexpr int64_t tap_of(const Phase& p, const Weave& w, int r, int64_t j) {
  const auto scaled = static_cast<uint32_t>(p.first_tap + j * p.tap_step + r),
             dilation = static_cast<uint32_t>(w.dilation);
  if (dilation == 1) return scaled;
  return scaled % dilation == 0 ? scaled / dilation : INT32_MAX;
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
constexpr int64_t kMostWaves = 32;
FASTCONV1D_HD constexpr int64_t runs_of(int64_t tiles, int64_t rows, int64_t at_a_time) {
  int64_t least = INT64_MAX, best = 1;
  for (int64_t waves = 1; waves <= kMostWaves; ++waves) {
    const int64_t runs = smaller(tiles, larger(1, waves * at_a_time / rows));
    const int64_t time = ceil_div(rows * runs, at_a_time) * (2 * ceil_div(tiles, runs) + 1);
    if (time >= least) continue;
    least = time;
    best = runs;
  }
  return best;
}
constexpr int64_t kMostShares = 8, kLeastSteps = 192;
FASTCONV1D_HD constexpr int64_t slices_of_share(int64_t blocks, int64_t slices, int64_t steps,
                                                int64_t multiprocessors) {
  if (2 * blocks > multiprocessors || slices * steps < kLeastSteps) return larger(1, slices);
  return ceil_div(slices, smaller(smaller(multiprocessors / blocks, slices), kMostShares));
}
constexpr int64_t kProductStart = 8, kMostProductSplits = 16;
constexpr int64_t kExplicitParts = int64_t{64} << 20;
FASTCONV1D_HD constexpr int64_t product_splits(int64_t tiles, int64_t slices,
                                               int64_t multiprocessors, int64_t most) {
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1;
       splits <= smaller(smaller(most, kMostProductSplits), larger(1, slices / 2)); ++splits) {
    const int64_t time =
        ceil_div(tiles * splits, multiprocessors) * (ceil_div(slices, splits) + kProductStart);
    if (time >= least) continue;
    best = splits;
    least = time;
  }
  return best;
}
struct Pipeline {
  int parts, taps;
  int slices, words;
  int folded;
  int alike_log2, quads_of_kind_log2;
  int kinds_log2, box_rows_log2;
  int block_outputs, blocks, block_positions, row_pitch;
  int block_rows;
  int block_step;
  int64_t tap_bytes;
  int resident;
  int inputs, weights;
  int input_bytes, weight_bytes;
};
struct PipelineLimits {
  int64_t warpgroups;
  int64_t outputs, channels;
  int64_t planes, values_per_word, element_bytes;
  int64_t alike;
  int64_t least_words;
  bool folds;
  int64_t shared_bytes;
  bool many_tiles;
};
constexpr int kMostStages = 8;
constexpr int64_t kInputBytes = 48 << 10;
constexpr int64_t kMostBlockPositions = 256;
constexpr int kMostKinds = 8;
constexpr int kMostFoldedChannels = 8, kMostFoldedValues = 128;
FASTCONV1D_HD constexpr int64_t rows_alike(int64_t row_bytes) {
  return 16 / gcd(16, row_bytes % 16);
}
FASTCONV1D_HD constexpr int64_t stage_bytes(const Pipeline& l) {
  return int64_t{l.inputs} * l.input_bytes + int64_t{l.weights} * l.weight_bytes +
         (l.folded > 0 ? 8 * kMostFoldedValues : 0);
}
FASTCONV1D_HD constexpr int64_t block_positions_of(const PipelineLimits& t, const Phase& p,
                                                   int64_t outputs, int64_t taps, bool folded) {
  const int64_t positions =
      (outputs - 1) * p.in_step + (larger(taps, 1) - 1) * p.shift_step + 16 / t.element_bytes;
  if (folded) return round_up(positions, 128 / t.element_bytes);
  const int64_t whole = 32 / t.element_bytes / t.values_per_word,
                unit = t.values_per_word == 1 && t.alike <= 2 && p.in_step % 8 == 0 ? whole / 2
                                                                                    : whole;
  return round_up(larger(positions - unit, 0), 2 * unit) + unit;
}
FASTCONV1D_HD constexpr int64_t block_outputs_of(const PipelineLimits& t, const Phase& p,
                                                 int64_t taps, bool folded) {
  int64_t best = 0, least = INT64_MAX;
  for (int64_t outputs = t.outputs; outputs >= t.outputs / 4; outputs /= 2) {
    const int64_t positions = block_positions_of(t, p, outputs, taps, folded);
    const int64_t copied = t.outputs / outputs * positions;
    if (positions > kMostBlockPositions || copied >= least) continue;
    least = copied;
    best = outputs;
  }
  return best;
}
enum class Taps { kTogether, kApart, kFolded };
FASTCONV1D_HD constexpr Pipeline try_pipeline(const PipelineLimits& t, const Phase& p,
                                              int64_t channels_in, int64_t words, int64_t taps,
                                              bool resident, int inputs, Taps are) {
  Pipeline l{};
  const bool folded = are == Taps::kFolded, apart = are == Taps::kApart;
  const int64_t seen = folded  ? p.taps
                       : apart ? 1
                               : taps,
                outputs = apart ? t.outputs : block_outputs_of(t, p, seen, folded);
  if (outputs == 0 || block_positions_of(t, p, outputs, seen, folded) > kMostBlockPositions)
    return l;
  l.parts = static_cast<int>(folded ? 1 : ceil_div(larger(p.taps, 1), taps));
  l.words = static_cast<int>(words);
  l.folded = static_cast<int>(folded ? p.taps : 0);
  l.slices = static_cast<int>(
      p.taps == 0 ? 0 : ceil_div(channels_in * (folded ? p.taps : 1), words * t.values_per_word));
  l.alike_log2 = log2_of(t.alike);
  l.quads_of_kind_log2 = log2_of(words / 4 / t.alike);
  l.kinds_log2 = folded ? log2_of(2 * channels_in - 1) : l.alike_log2;
  l.box_rows_log2 = folded ? 0 : log2_of(4 * t.values_per_word) + l.quads_of_kind_log2;
  l.block_outputs = static_cast<int>(outputs);
  l.blocks = static_cast<int>(apart ? taps : t.outputs / outputs);
  l.block_positions = static_cast<int>(block_positions_of(t, p, outputs, seen, folded));
  l.row_pitch = static_cast<int>(l.block_positions * t.element_bytes);
  l.block_rows = (1 << (l.kinds_log2 + l.box_rows_log2)) + folded;
  l.block_step = static_cast<int>(apart ? p.shift_step : outputs * p.in_step);
  l.tap_bytes = apart ? int64_t{l.block_rows} * l.row_pitch : p.shift_step * t.element_bytes;
  l.input_bytes = static_cast<int>(t.warpgroups * l.blocks * l.block_rows * l.row_pitch);
  l.weight_bytes = static_cast<int>(t.planes * words * t.channels * 4);
  const int64_t all_weights = int64_t{l.slices} * l.parts * taps;
  if (resident && all_weights * l.weight_bytes > t.shared_bytes) return l;
  l.resident = resident;
  l.inputs = inputs;
  l.weights = static_cast<int>(resident ? all_weights : 3);
  if (stage_bytes(l) > t.shared_bytes) return l;
  l.taps = static_cast<int>(taps);
  for (bool more = true; more;) {
    const int64_t left = t.shared_bytes - stage_bytes(l);
    more = true;
    if (l.inputs < kMostStages && l.inputs * l.input_bytes < kInputBytes && left >= l.input_bytes)
      ++l.inputs;
    else if (!resident && l.weights < kMostStages && left >= l.weight_bytes)
      ++l.weights;
    else if (l.inputs < kMostStages && left >= l.input_bytes)
      ++l.inputs;
    else
      more = false;
  }
  return l;
}
FASTCONV1D_HD constexpr Pipeline pipeline_of(const PipelineLimits& t, const Phase& p,
                                             int64_t channels_in) {
  const int64_t all_words = round_up(ceil_div(channels_in, t.values_per_word), 16);
  const int64_t least = larger(t.least_words, 4 * t.alike);
  if (t.folds && p.taps > 1 && channels_in <= kMostFoldedChannels &&
      channels_in * p.taps <= kMostFoldedValues) {
    const int64_t words = channels_in * p.taps > 16 * t.values_per_word ? 32 : t.least_words;
    for (int inputs = 2; inputs >= 1; --inputs)
      for (int resident = t.many_tiles; resident >= 0; --resident) {
        const Pipeline l =
            try_pipeline(t, p, channels_in, words, 1, resident, inputs, Taps::kFolded);
        if (l.taps > 0) return l;
      }
  }
  const auto widest = [&](int64_t taps, int inputs, Taps are) {
    for (int resident = t.many_tiles; resident >= 0; --resident)
      for (int64_t words = ceil_div(all_words, 16) % 2 == 0 ? 32 : least; words >= least;
           words /= 2) {
        const Pipeline l = try_pipeline(t, p, channels_in, words, taps, resident, inputs, are);
        if (l.taps > 0) return l;
      }
    return Pipeline{};
  };
  const int64_t of_tile = t.outputs * p.in_step;
  const bool apart = p.shift_step >= of_tile;
  if (p.taps > 1 && p.shift_step > of_tile && p.shift_step * t.element_bytes % 16 == 0) {
    const Pipeline l = widest(p.taps, 2, Taps::kApart);
    if (l.taps > 0) return l;
  }
  for (int64_t parts = 1;; parts = apart ? p.taps : parts + 1) {
    const int64_t taps = ceil_div(larger(p.taps, 1), parts);
    for (int inputs = 2; inputs >= 1; --inputs) {
      const Pipeline l = widest(taps, inputs, Taps::kTogether);
      if (l.taps > 0) return l;
    }
    if (taps == 1) return Pipeline{};
  }
}
FASTCONV1D_HD constexpr int taps_of_part(const Pipeline& l, const Phase& p, int part) {
  if (l.folded > 0) return 1;
  return static_cast<int>(smaller(l.taps, larger(p.taps, 0) - int64_t{part} * l.taps));
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
template <class Function>
int with_plain(int64_t mode, const Function& function) {
  switch (mode) {
    case kBf16:
      return function(PlainBf16{});
    case kFp16:
      return function(PlainFp16{});
    case kFp64:
      return function(PlainFp64{});
    default:
      return function(PlainFp32{});
  }
}
struct Reading {
  Phase phase;
  int64_t start, first, last;
};
__device__ __forceinline__ Reading reading_of(const ConvArgs& a, int64_t position) {
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
  return {phase, start, first, last};
}
}
namespace fastconv1d {
template <class M>
__global__ void __launch_bounds__(128) direct_kernel(const ConvArgs a) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= a.batch * a.channels_out * a.length_out) return;
  const int64_t position = index % a.length_out, row = index / a.length_out;
  const int64_t out = row % a.channels_out, batch = row / a.channels_out;
  const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups;
  const int64_t group = out / channels_out;
  const Reading reading = reading_of(a, position);
  const Phase& phase = reading.phase;
  const auto* input = static_cast<const typename M::Element*>(a.input) +
                      batch * a.input_batch_stride + group * channels_in * a.input_channel_stride +
                      reading.start;
  const auto* weight = static_cast<const typename M::Element*>(a.weight) + phase.first_tap;
  typename M::Sum total = 0, part = 0;
  for (int64_t in = 0; in < channels_in; ++in) {
    const int64_t row_of_weight =
        a.transposed ? (group * channels_in + in) * channels_out + out % channels_out
                     : out * channels_in + in;
    for (int64_t tap = reading.first; tap < reading.last; ++tap)
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
  return with_plain(mode, [&](auto m) { return direct_launch<decltype(m)>(a, stream); });
}
}
#define FASTCONV1D_DIRECT_LIBRARY                                                          \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::direct_launch(variant, *args, stream);                              \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
#include <type_traits>
#include <type_traits>
namespace fastconv1d {
struct Operand {
  uint64_t descriptor;
  uint32_t step_bytes, plane_bytes;
  __device__ __forceinline__ Operand(const char* shared, uint32_t half_bytes, uint32_t plane_bytes)
      : descriptor(wgmma_operand(shared, half_bytes)),
        step_bytes(2 * half_bytes),
        plane_bytes(plane_bytes) {}
  static __device__ __forceinline__ Operand swizzled(const char* shared) {
    Operand operand(shared, 16, 0);
    operand.descriptor = wgmma_swizzled_operand(shared);
    return operand;
  }
  __device__ __forceinline__ Operand after(uint32_t bytes) const {
    Operand moved = *this;
    moved.descriptor += bytes / 16;
    return moved;
  }
  __device__ __forceinline__ Operand step(int steps) const { return after(steps * step_bytes); }
  __device__ __forceinline__ uint64_t plane(int number) const {
    return after(number * plane_bytes).descriptor;
  }
};
struct Fp32 {
  using Element = float;
  static constexpr BoxForm boxes = BoxForm::plain;
  static __device__ __forceinline__ float from(Element x) { return x; }
  static __device__ __forceinline__ Element to(float x) { return x; }
  static __device__ __forceinline__ void store_pair(void* to, float first, float second) {
    *static_cast<float2*>(to) = make_float2(first, second);
  }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    if (!exists) return;
    store_pair(to, sum[0], sum[1]);
    store_pair(to + 8, sum[2], sum[3]);
  }
};
struct Tf32 : Fp32 {
  static constexpr BoxForm boxes = BoxForm::rounded;
  static constexpr int planes = 1, products = 1, values_per_word = 1, chain = 0, sets = 1;
  static constexpr bool keeps_places = true;
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[1]) {
    word[0] = round_tf32(v[0]);
  }
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[1], float) {
    word[0] = bits_of(v[0]);
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
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[1][4],
                                                  const Operand& b) {
    wgmma_tf32(d[0], a[0], b.plane(0));
  }
};
struct Ieee : Fp32 {
  static constexpr int planes = 2, products = 3, values_per_word = 1, chain = 6;
  static constexpr float most_rounded = 0x1.ffep127f;
  static constexpr bool keeps_places = false;
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[2]) {
    const uint32_t bits = bits_of(v[0]), half = fabsf(v[0]) < most_rounded ? 0x1000u : 0u;
    const float high = float_of((bits + half) & 0xffffe000u);
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
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[2][4],
                                                  const Operand& b) {
    wgmma_tf32(d[0], a[1], b.plane(0));
    wgmma_tf32(d[0], a[0], b.plane(1));
    wgmma_tf32(d[0], a[0], b.plane(0));
  }
};
struct Halves : Fp32 {
  static constexpr int planes = 2, products = 3, values_per_word = 2, chain = 18, sets = 2;
  static constexpr float low = 2048;
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[2],
                                               float scale) {
    const float first = v[0] * scale, second = v[1] * scale;
    word[0] = pack_fp16(first, second);
    const float2 high = unpack_fp16(word[0]);
    word[1] = pack_fp16((first - high.x) * low, (second - high.y) * low);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[2][SUMS], const uint32_t (&a)[2][4],
                                                  const Operand& b) {
    wgmma_fp16(d[0], a[0], b.plane(0));
    wgmma_fp16(d[1], a[1], b.plane(0));
    wgmma_fp16(d[1], a[0], b.plane(1));
  }
};
struct Scale {
  static constexpr int most = 254;
  static __device__ __forceinline__ float power_of_two(int exponent) {
    return float_of(static_cast<uint32_t>(exponent + 127) << 23);
  }
  static constexpr int step = 28;
  static __device__ __forceinline__ int next(int log2) {
    return log2 + step < 126 ? log2 + step : 126;
  }
  static __device__ __forceinline__ int log2_for(int exponent) {
    return exponent < 15 ? 126 : 141 - exponent;
  }
  static __device__ __forceinline__ uint32_t least_whole(int log2) {
    return log2 < 113 ? static_cast<uint32_t>(113 - log2) << 23 : 0;
  }
  static constexpr int most_steps = 3;
  static __device__ __forceinline__ float without(float sum, int log2) {
    const int half = log2 / 2;
    return sum * power_of_two(-half) * power_of_two(half - log2);
  }
};
struct Half16 {
  using Element = uint16_t;
  static constexpr BoxForm boxes = BoxForm::plain;
  static constexpr int planes = 1, products = 1, values_per_word = 2, chain = 0, sets = 1;
  static constexpr bool keeps_places = false;
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[1]) {
    word[0] = pack(v);
  }
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[1], float) {
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
  static constexpr uint32_t one = 0x3f80, exponent = 0x7f80;
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_bf16(d, a[0], b[0][0], b[0][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[1][4],
                                                  const Operand& b) {
    wgmma_bf16(d[0], a[0], b.plane(0));
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply_turned(float (&d)[SUMS], const uint32_t (&a)[4],
                                                         uint64_t b) {
    wgmma_bf16_turned(d, a, b);
  }
  static __device__ __forceinline__ float from(Element x) { return bf16_to_float(x); }
  static __device__ __forceinline__ float2 pair(uint32_t word) {
    return make_float2(float_of(word << 16), float_of(word & 0xffff0000u));
  }
  static __device__ __forceinline__ Element to(float x) { return float_to_bf16(x); }
  static __device__ __forceinline__ void store_pair(void* to, float first, float second) {
    *static_cast<uint32_t*>(to) = pack({float_to_bf16(first), float_to_bf16(second)});
  }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    store_words(to, pack({float_to_bf16(sum[0]), float_to_bf16(sum[1])}),
                pack({float_to_bf16(sum[2]), float_to_bf16(sum[3])}), exists);
  }
};
struct Fp16 : Half16 {
  static constexpr uint32_t one = 0x3c00, exponent = 0x7c00;
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_fp16(d, a[0], b[0][0], b[0][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[1][4],
                                                  const Operand& b) {
    wgmma_fp16(d[0], a[0], b.plane(0));
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply_turned(float (&d)[SUMS], const uint32_t (&a)[4],
                                                         uint64_t b) {
    wgmma_fp16_turned(d, a, b);
  }
  static __device__ __forceinline__ float from(Element x) { return fp16_to_float(x); }
  static __device__ __forceinline__ float2 pair(uint32_t word) { return unpack_fp16(word); }
  static __device__ __forceinline__ Element to(float x) { return float_to_fp16(x); }
  static __device__ __forceinline__ void store_pair(void* to, float first, float second) {
    *static_cast<uint32_t*>(to) = pack({float_to_fp16(first), float_to_fp16(second)});
  }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    store_words(to, pack({float_to_fp16(sum[0]), float_to_fp16(sum[1])}),
                pack({float_to_fp16(sum[2]), float_to_fp16(sum[3])}), exists);
  }
};
template <class M>
__device__ __forceinline__ void unpack_four(const uint32_t (&word)[4],
                                            uint32_t (&of_plane)[M::planes][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t planes[M::planes];
    M::unpack(word[i], planes);
#pragma unroll
    for (int plane = 0; plane < M::planes; ++plane) of_plane[plane][i] = planes[plane];
  }
}
template <int COUNT>
__device__ __forceinline__ void end_chain(float (&sum)[COUNT], float (&of_chain)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    sum[i] += of_chain[i];
    of_chain[i] = 0;
  }
}
}
namespace fastconv1d {
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
struct WeightParams {
  const void* weight;
  uint32_t* packed;
  Phase phase;
  int64_t channels_in, channels_out, groups, kernel_size, transposed, channel_blocks;
  int64_t count;
};
__device__ __forceinline__ int64_t weight_row(const WeightParams& p, int64_t group, int64_t out,
                                              int64_t in) {
  const int64_t row = p.transposed ? (group * p.channels_in + in) * p.channels_out + out
                                   : (group * p.channels_out + out) * p.channels_in + in;
  return row * p.kernel_size;
}
template <class Element>
__device__ __forceinline__ Element weight_of(const WeightParams& p, int64_t group, int64_t out,
                                             int64_t in, int64_t tap) {
  if (tap >= p.phase.taps || out >= p.channels_out || in >= p.channels_in) return 0;
  return static_cast<const Element*>(
      p.weight)[weight_row(p, group, out, in) + p.phase.first_tap + tap * p.phase.tap_step];
}
template <class M>
__device__ __forceinline__ float bias_of(const void* bias, int64_t group, int64_t out,
                                         int64_t channels_out) {
  if (bias == nullptr || out >= channels_out) return 0;
  return M::from(static_cast<const typename M::Element*>(bias)[group * channels_out + out]);
}
template <class Index>
struct Digits {
  Index rest;
  __device__ __forceinline__ Index take(int64_t count) {
    const Index radix = static_cast<Index>(count), digit = rest % radix;
    rest /= radix;
    return digit;
  }
};
template <int STAGES>
struct StageBarriers {
  uint64_t full[STAGES], empty[STAGES];
};
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};
__device__ __forceinline__ void give_back(uint64_t* empty, int stage) {
  if (stage < 0) return;
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(empty + stage);
}
struct TensorRows {
  const void* first;
  int64_t batch, channels, length, batch_stride, channel_stride;
  int64_t rows_per_batch() const { return batch > 1 ? batch_stride / channel_stride : 0; }
  int64_t all() const { return (batch - 1) * rows_per_batch() + channels; }
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
struct RowBoxes {
  BoxMap maps[kMostKinds];
  int leads[kMostKinds];
  int64_t rows_per_batch;
  bool lead() const {
    int any = 0;
    for (const int lead : leads) any |= lead;
    return any != 0;
  }
};
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
}
#define FASTCONV1D_TILE_LIBRARY(...)                                                       \
  int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::TileLibrary<__VA_ARGS__>::launch(variant, *args, stream);           \
  }                                                                                        \
  int64_t fastconv1d_workspace(int64_t variant, const fastconv1d::ConvArgs* args) {        \
    return fastconv1d::TileLibrary<__VA_ARGS__>::workspace(variant, *args);                \
  }
namespace fastconv1d {
template <class T>
FASTCONV1D_HD constexpr int packed_columns() {
  return T::channels % 64 == 0 ? 4 : 2;
}
struct HopperPackParams : WeightParams {
  Pipeline pipeline;
  Weave weave;
  int* scales;
};
__device__ __forceinline__ uint32_t finite_size(uint32_t bits) {
  const uint32_t size = bits & 0x7fffffffu;
  return size < 0x7f800000u ? size : 0;
}
template <int THREADS>
__device__ __forceinline__ uint32_t largest_of_block(uint32_t number, uint32_t* memory) {
  number = largest_of_warp(number);
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = number;
  __syncthreads();
  for (int warp = 0; warp < THREADS / 32; ++warp)
    number = memory[warp] > number ? memory[warp] : number;
  return number;
}
template <class T, int THREADS>
__device__ __forceinline__ void find_scale(const HopperPackParams& p, uint32_t number,
                                           uint32_t* memory) {
  const int64_t block = number / T::channels, row = number % T::channels;
  const int64_t group = block / p.channel_blocks;
  const Column column = column_of(p.weave, block % p.channel_blocks * T::channels + row);
  uint32_t most = 0;
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
  constexpr int apart = T::channels / COLUMNS;
  static_assert(apart % kWeave == 0);
  const int of_phase = static_cast<int>(part * l.taps + tap);
  const Column column = column_of(p.weave, int64_t{channel_block} * T::channels + row);
  const int64_t of_kernel = tap_of(p.phase, p.weave, column.r, of_phase);
  const bool has_tap = of_phase < p.phase.taps && of_kernel < p.kernel_size;
  const int channels_apart = apart / kWeave * p.weave.channels;
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
  if constexpr (M::sets > 1) wait_for_kernel_before();
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
}
namespace fastconv1d {
constexpr int kSplitChannels = 32, kSplitPositions = 128, kSplitThreads = 256;
constexpr int kSplitShared = 4 * (2 + kSplitThreads / 32);
constexpr int kMostSplitParts = 64;
constexpr int kNearLargest = 10;
struct SplitParams {
  const float* input;
  int64_t batch_stride, channel_stride;
  int64_t batch, channels, length;
  uint32_t* parts;
  int64_t parts_of_batch;
  int* scales;
  int* wide;
  uint16_t* marks;
  uint32_t* words;
  int64_t pitch;
  FASTCONV1D_HD int64_t channel_blocks() const { return ceil_div(channels, kSplitChannels); }
  FASTCONV1D_HD int64_t position_blocks() const { return ceil_div(length, kSplitPositions); }
  FASTCONV1D_HD int64_t blocks() const { return channel_blocks() * position_blocks(); }
  static __device__ __forceinline__ uint16_t mark_of(uint32_t exponent, bool small) {
    return static_cast<uint16_t>(exponent | (small ? 256 : 0));
  }
  static __device__ __forceinline__ uint32_t exponent_of(uint16_t mark) { return mark & 255; }
  static __device__ __forceinline__ bool is_small(uint16_t mark) { return mark > 255; }
  template <class Byte>
  FASTCONV1D_HD Byte* place(Byte* at) {
    const auto take = [&](auto*& part, int64_t count) {
      part = reinterpret_cast<std::decay_t<decltype(part)>>(at);
      at += round_up(count * static_cast<int64_t>(sizeof(*part)), 32);
    };
    take(parts, batch * parts_of_batch);
    take(scales, batch);
    take(wide, batch);
    take(marks, batch * blocks());
    take(words, batch * channels * pitch);
    return at;
  }
};
struct SplitValues {
  float of[4][4];
  __device__ __forceinline__ SplitValues(const SplitParams& p, int64_t batch, uint32_t block) {
    visit(p, block, [&](int i, int j, int64_t channel, int64_t position, bool exists) {
      of[i][j] =
          exists ? __ldg(p.input + batch * p.batch_stride + channel * p.channel_stride + position)
                 : 0.f;
    });
  }
  template <class Visit>
  static __device__ __forceinline__ void visit(const SplitParams& p, uint32_t block,
                                               const Visit& visit) {
    Digits<uint32_t> digits{block};
    const int64_t channel =
                      int64_t{digits.take(p.channel_blocks())} * kSplitChannels + threadIdx.x / 32,
                  position = int64_t{digits.rest} * kSplitPositions + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t c = channel + i * (kSplitThreads / 32), at = position + j * 32;
        visit(i, j, c, at, c < p.channels && at < p.length);
      }
  }
};
inline __device__ void find_largest(const SplitParams& p, uint32_t number, uint32_t* memory) {
  Digits<uint32_t> digits{number};
  const int64_t part = digits.take(p.parts_of_batch), batch = digits.rest;
  uint32_t most = 0;
#pragma unroll 1
  for (int64_t block = part; block < p.blocks(); block += p.parts_of_batch) {
    const SplitValues values(p, batch, static_cast<uint32_t>(block));
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t size = finite_size(bits_of(values.of[i / 4][i % 4]));
      most = size > most ? size : most;
    }
  }
  most = largest_of_block<kSplitThreads>(most, memory);
  if (threadIdx.x == 0) {
    p.parts[number] = most;
    if (part == 0) p.wide[batch] = 0;
  }
}
template <class M>
__device__ __forceinline__ void split_values(const SplitParams& p, uint32_t number,
                                             uint32_t* memory) {
  Digits<uint32_t> digits{number};
  const uint32_t block = digits.take(p.blocks()), batch = digits.rest;
  const SplitValues values(p, batch, block);
  if (threadIdx.x < 2) memory[threadIdx.x] = 0;
  wait_for_kernel_before();
  const uint32_t* const parts = p.parts + batch * p.parts_of_batch;
  uint32_t most = 0;
  for (int64_t part = threadIdx.x % 32; part < p.parts_of_batch; part += 32)
    most = parts[part] > most ? parts[part] : most;
  most = largest_of_warp(most);
  const int log2 = Scale::log2_for(static_cast<int>(smaller(most >> 23, Scale::most)));
  const float scale = Scale::power_of_two(log2);
  const uint32_t least = Scale::least_whole(log2);
  constexpr uint32_t steps = (Scale::most_steps * Scale::step) << 23;
  const uint32_t least_of_all = least > steps ? least - steps : 0;
  uint32_t largest = 0;
  bool small = false, tiny = false;
  SplitValues::visit(p, block, [&](int i, int j, int64_t channel, int64_t position, bool exists) {
    if (!exists || j % 2 != 0) return;
    const float of[2] = {values.of[i][j], values.of[i][j + 1]};
    uint32_t planes[2];
    M::split(of, planes, scale);
    uint32_t* const to = p.words + (batch * p.channels + channel) * p.pitch + position;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (k > 0 && position + 32 >= p.length) break;
      to[k * 32] = halves_of(planes[0], planes[1], k > 0);
      const uint32_t size = bits_of(of[k]) & 0x7fffffffu;
      small |= size > 0 && size < least;
      tiny |= size > 0 && size < least_of_all;
      largest = finite_size(size) > largest ? size : largest;
    }
  });
  largest = largest_of_block<kSplitThreads>(largest, memory + 2);
  if (small) memory[0] = 1;
  if (tiny) memory[1] = 1;
  __syncthreads();
  if (threadIdx.x > 0) return;
  const uint32_t exponent = largest >> 23;
  p.marks[number] = SplitParams::mark_of(exponent, memory[0] != 0);
  if (memory[1] != 0 && exponent + kNearLargest < most >> 23) p.wide[batch] = 1;
  if (block == 0) p.scales[batch] = log2;
}
template <class T>
__global__ void __launch_bounds__(kSplitThreads)
    hopper_largest_kernel(const SplitParams split, const HopperPackParams pack) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const auto of_input = static_cast<uint32_t>(split.batch * split.parts_of_batch);
  if (blockIdx.x < of_input)
    find_largest(split, blockIdx.x, memory);
  else
    find_scale<T, kSplitThreads>(pack, blockIdx.x - of_input, memory);
}
template <class M, class T, int COLUMNS>
__global__ void __launch_bounds__(kSplitThreads)
    hopper_split_kernel(const SplitParams split, const HopperPackParams pack) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const auto of_input = static_cast<uint32_t>(split.batch * split.blocks());
  if (blockIdx.x < of_input)
    split_values<M>(split, blockIdx.x, memory);
  else
    pack_columns<M, T, COLUMNS>(pack, int64_t{blockIdx.x - of_input} * kSplitThreads + threadIdx.x);
}
}
namespace fastconv1d {
template <class M, int M_TILES>
struct OutputLayout {
  using Element = typename M::Element;
  static constexpr int aligned_outputs = 32 / sizeof(Element);
  static constexpr bool may_overlap = M_TILES > 1;
  static constexpr int staged_channels = kWeave;
  static constexpr int row_bytes = 64 * M_TILES * sizeof(Element);
  static constexpr int row_pitch = row_bytes + 32 + 16;
  static constexpr int stage_bytes = staged_channels * row_pitch;
  static constexpr int bytes = 2 * stage_bytes;
  static __device__ __forceinline__ int woven_pitch(int stride) {
    return stride * (row_bytes + 16);
  }
  static_assert(staged_channels * (row_bytes + 16) <= stage_bytes);
};
struct OutputParams {
  void* output;
  int64_t length_out, positions, out_offset, out_step;
  Weave weave;
  int overlap;
  int aligned;
  int odd;
  int apart;
  __device__ __forceinline__ int first_piece() const { return aligned ? 0 : 2; }
  __device__ __forceinline__ bool has_ends() const { return !aligned && overlap == 0; }
};
struct OutputRows {
  int64_t row;
  int count;
  int64_t first;
};
template <class M, int M_TILES, int N>
struct OutputWriter {
  using Element = typename M::Element;
  using L = OutputLayout<M, M_TILES>;
  using Sums = float[M_TILES][M::sets][N / 2];
  static constexpr int positions = 64 * M_TILES, of_piece = 16 / sizeof(Element);
  static constexpr bool pairs = sizeof(Element) == 2;
  static constexpr bool is_long = M_TILES * N >= 256;
  static constexpr int
      chunks = N / L::staged_channels,
      of_round = M_TILES > 1 && pairs ? chunks
                 : chunks % 4 == 0    ? 4
                 : chunks % 3 == 0    ? 3
                                      : chunks,
      of_woven = M_TILES > 1 ? chunks : of_round;
  static_assert(chunks % 2 == 0 && (!is_long || of_round % 2 == 0));
  const OutputParams& p;
  char* stages;
  int barrier;
  __device__ __forceinline__ int between() const { return pairs && !p.apart ? 1 : 8; }
  __device__ __forceinline__ int position_of_lane(int m, int h) const {
    const int group = threadIdx.x % 32 / 4, first = pairs && !p.apart ? 2 * group : group;
    return (threadIdx.x / 32 % 4 * M_TILES + m) * 16 + first + h * between();
  }
  __device__ __forceinline__ void write(Sums& sums, const float* biases, const OutputRows& rows,
                                        bool rehearses = false) const {
    if (p.out_step != 1)
      write_apart(sums, biases, rows);
    else if (p.weave.stride > 1)
      write_woven(sums, biases, rows);
    else if (pairs && !p.odd && !p.apart)
      write_neighbours<pairs>(sums, biases, rows, rehearses);
    else
      write_neighbours<false>(sums, biases, rows, rehearses);
  }
 private:
  template <int OF_ROUND>
  static __device__ __forceinline__ int stage_of(int round, int chunk) {
    return (OF_ROUND % 2 == 0 ? chunk : round + chunk) % 2 * L::stage_bytes;
  }
  template <int OF_ROUND>
  static __device__ __forceinline__ void move_sums(Sums& sums) {
    constexpr int by = OF_ROUND * L::staged_channels / 2;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
      for (int i = 0; i + by < N / 2; ++i) sums[m][0][i] = sums[m][0][i + by];
  }
  __device__ __forceinline__ Element* row_of_output(int64_t row) const {
    return static_cast<Element*>(p.output) + row * p.length_out + p.out_offset;
  }
  __device__ __forceinline__ bool overlaps() const { return L::may_overlap && p.overlap > 0; }
  static __device__ __forceinline__ OutputRows none(const OutputRows& rows) {
    return {rows.row, 0, rows.first};
  }
  template <bool WORDS>
  __device__ __forceinline__ void write_neighbours(Sums& sums, const float* biases,
                                                   const OutputRows& rows, bool rehearses) const {
    if (rows.count == N && rows.first + positions <= p.positions && (!overlaps() || rows.first > 0))
      write_neighbours<WORDS, true>(sums, biases, rows, rehearses);
    else
      write_neighbours<WORDS, false>(sums, biases, rehearses ? none(rows) : rows, rehearses);
  }
  template <bool WORDS, bool WHOLE>
  __device__ __forceinline__ void write_neighbours(Sums& sums, const float* biases,
                                                   const OutputRows& rows, bool rehearses) const {
    constexpr int channels = L::staged_channels, of_sector = L::aligned_outputs;
    static_assert(channels % of_sector == 0 && N % channels == 0);
    constexpr int lanes = L::row_bytes / 16, rows_at_once = 32 / lanes,
                  ends_at_once = 32 / of_sector;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    if constexpr (is_long) {
      keep_in_register(lane);
      keep_in_register(warp);
    }
    const auto length = static_cast<uint32_t>(p.length_out),
               of_first = static_cast<uint32_t>(rows.row) * length;
    const auto behind = [&](int row) {
      return static_cast<int>((of_first + row * length) % of_sector);
    };
    char* to[2][2];
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * c + lane % 4 * 2 + e;
        to[c][e] =
            stages + row * L::row_pitch + (position_of_lane(0, 0) + behind(row)) * sizeof(Element);
      }
    const int second = between();
    constexpr int step = 4 * rows_at_once, pieces = channels / step, end_step = 4 * ends_at_once,
                  ends = channels / end_step;
    const int row = warp * rows_at_once + lane / lanes, piece = lane % lanes;
    const int end_row = warp * ends_at_once + lane / of_sector, in_sector = lane % of_sector;
    const char* const from = stages + row * L::row_pitch + piece * 16;
    const char* end_from[ends];
    Element *out[pieces], *end_out[ends];
    int behind_row[pieces], behind_end[ends];
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      behind_row[i] = behind(row + i * step);
      out[i] =
          row_of_output(rows.row + row + i * step) + rows.first + piece * of_piece - behind_row[i];
    }
#pragma unroll
    for (int i = 0; i < ends; ++i) {
      behind_end[i] = behind(end_row + i * end_step);
      const int at = in_sector + (WHOLE && in_sector < behind_end[i] ? positions : 0);
      end_from[i] = stages + (end_row + i * end_step) * L::row_pitch + at * sizeof(Element);
      end_out[i] =
          row_of_output(rows.row + end_row + i * end_step) + rows.first + at - behind_end[i];
    }
    const int first_piece = rehearses ? lanes : WHOLE ? p.first_piece() : 2;
    const bool has_ends = !rehearses && p.has_ends();
    const bool has_first = !overlaps() || rows.first == 0;
    const int exist =
        WHOLE ? positions : static_cast<int>(smaller(positions, p.positions - rows.first));
    int left = rows.count;
#pragma unroll 1
    for (int round = 0; round < (rehearses ? 1 : chunks / of_round); ++round) {
#pragma unroll
      for (int chunk = 0; chunk < of_round; ++chunk) {
        const int stage = stage_of<of_round>(round, chunk);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const auto bias = *reinterpret_cast<const float2*>(biases + 8 * c + lane % 4 * 2);
#pragma unroll
          for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
              const float* const of_tile = sums[m][0] + chunk * channels / 2 + 4 * c + e;
              const float of_channel = e > 0 ? bias.y : bias.x, low = of_tile[0] + of_channel,
                          high = of_tile[2] + of_channel;
              auto* const to_tile = reinterpret_cast<Element*>(to[c][e] + stage) + m * 16;
              if constexpr (WORDS) {
                M::store_pair(to_tile, low, high);
              } else {
                to_tile[0] = M::to(low);
                to_tile[second] = M::to(high);
              }
            }
        }
        warpgroup_sync(barrier);
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
          if (piece >= first_piece &&
              (WHOLE || (row + i * step < left && (piece + 1) * of_piece <= behind_row[i] + exist)))
            *reinterpret_cast<uint4*>(out[i]) =
                *reinterpret_cast<const uint4*>(from + stage + i * step * L::row_pitch);
          out[i] += channels * p.length_out;
        }
        biases += channels;
        left -= channels;
        if (WHOLE && !has_ends) continue;
#pragma unroll
        for (int i = 0; i < ends; ++i) {
          const auto copy = [&](int further) {
            end_out[i][further] = reinterpret_cast<const Element*>(end_from[i] + stage)[further];
          };
          if constexpr (WHOLE) {
            copy(0);
          } else if (end_row + i * end_step < left + channels) {
            int end = behind_end[i] + exist;
            if (overlaps() && end > positions) end = positions;
            if (has_first && in_sector >= behind_end[i] && in_sector < end) copy(0);
            const int whole =
                static_cast<int>(larger(of_sector, smaller(positions, end / of_piece * of_piece)));
            if (whole + in_sector < end) copy(whole);
          }
          end_out[i] += channels * p.length_out;
        }
      }
      move_sums<of_round>(sums);
    }
  }
  __device__ __forceinline__ void write_woven(Sums& sums, const float* biases,
                                              const OutputRows& rows) const {
    const int64_t first = rows.first * p.weave.stride - p.weave.skipped;
    const bool whole = rows.count == N / L::staged_channels * p.weave.channels && first >= 0 &&
                       first + positions * p.weave.stride <= p.length_out;
    if (whole && !p.odd)
      write_woven<true, true>(sums, biases, rows, first);
    else if (whole)
      write_woven<false, true>(sums, biases, rows, first);
    else
      write_woven<false, false>(sums, biases, rows, first);
  }
  template <bool WORDS, bool WHOLE>
  __device__ __forceinline__ void write_woven(Sums& sums, const float* biases,
                                              const OutputRows& rows, int64_t first) const {
    constexpr int size = sizeof(Element), sector = 32;
    int thread = static_cast<int>(threadIdx.x % 128), stride = p.weave.stride;
    keep_in_register(thread);
    keep_in_register(stride);
    const int lane = thread % 32;
    const int channels = p.weave.channels, pitch = L::woven_pitch(stride);
    const int outputs = positions * stride * size,
              before = first < 0 ? static_cast<int>(-first) * size : 0,
              exist = WHOLE ? outputs
                            : static_cast<int>(smaller(outputs, (p.length_out - first) * size));
    char* const first_row = reinterpret_cast<char*>(row_of_output(rows.row) + first);
    const int64_t to_row = p.length_out * size, to_chunk = channels * to_row;
    const auto behind = [](const char* out) {
      return static_cast<int>(static_cast<uint32_t>(reinterpret_cast<uint64_t>(out)) % sector);
    };
    const int around = lane / 16, second = between() * stride * size,
              turned = pairs ? around : 0;
    constexpr bool turns_columns = !pairs && !WORDS;
    const int to_second = turned ? -second : second, to_next = 16 * stride * size;
    const auto further = static_cast<uint32_t>(to_chunk);
    char* to[2][2];
    uint32_t begin[2][2];
    bool exists[2][2];
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int e = 0; e < (WORDS ? 1 : 2); ++e) {
        const int column = 8 * c + lane % 4 * 2 + (turns_columns ? e ^ around : e),
                  row = column / stride;
        exists[c][e] = row < channels;
        begin[c][e] = behind(first_row + row * to_row);
        to[c][e] = stages + row * pitch +
                   (position_of_lane(0, 0) * stride + column - row * stride) * size +
                   turned * second;
      }
    constexpr int pieces = L::staged_channels * L::row_bytes / (16 * 128),
                  end_lanes = (WHOLE ? 1 : 2) * L::aligned_outputs, end_rows = 128 / end_lanes,
                  ends = (8 + end_rows - 1) / end_rows;
    const int of_row = stride * (L::row_bytes / 16);
    int row_of_piece[pieces], piece[pieces];
    char* out[pieces];
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const int row = (thread + i * 128) / of_row;
      row_of_piece[i] = row;
      piece[i] = (thread + i * 128 - row * of_row) * 16;
      out[i] = first_row + row * to_row + piece[i] / sector * sector;
    }
    const int in_sector = thread % L::aligned_outputs * size, end_row = thread / end_lanes;
    const bool at_end = thread % end_lanes >= L::aligned_outputs;
    char* end_out = first_row + end_row * to_row;
    int left = rows.count;
#pragma unroll 1
    for (int round = 0; round < chunks / of_woven; ++round) {
#pragma unroll
      for (int chunk = 0; chunk < of_woven; ++chunk) {
        const int stage = stage_of<of_woven>(round, chunk);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const auto bias = *reinterpret_cast<const float2*>(biases + 8 * c + lane % 4 * 2);
#pragma unroll
          for (int m = 0; m < M_TILES; ++m) {
            const float* const of_tile = sums[m][0] + chunk * L::staged_channels / 2 + 4 * c;
            const auto sum = [&](int e, int h) {
              return of_tile[h * 2 + e] + (e > 0 ? bias.y : bias.x);
            };
            float in_turn[2][2];
#pragma unroll
            for (int e = 0; e < 2; ++e)
#pragma unroll
              for (int h = 0; h < 2; ++h)
                in_turn[e][h] = turns_columns ? (around ? sum(1 - e, h) : sum(e, h))
                                              : (turned ? sum(e, 1 - h) : sum(e, h));
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
              for (int e = 0; e < (WORDS ? 1 : 2); ++e) {
                char* const at = to[c][e] + begin[c][e] + stage + m * to_next + h * to_second;
                if (!exists[c][e]) continue;
                if constexpr (WORDS)
                  M::store_pair(at, in_turn[0][h], in_turn[1][h]);
                else
                  *reinterpret_cast<Element*>(at) = M::to(in_turn[e][h]);
              }
          }
#pragma unroll
          for (int e = 0; e < (WORDS ? 1 : 2); ++e) begin[c][e] = (begin[c][e] + further) % sector;
        }
        warpgroup_sync(barrier);
        const int count = WHOLE ? channels : static_cast<int>(smaller(left, channels));
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
          const int begins = behind(out[i]), from = begins + before, end = begins + exist;
          if (row_of_piece[i] < count &&
              (WHOLE ? piece[i] >= 16 * p.first_piece()
                     : piece[i] >= (from + sector - 1) / sector * sector &&
                           piece[i] + 16 <= end / sector * sector))
            *reinterpret_cast<uint4*>(out[i] - begins + piece[i] % sector) =
                *reinterpret_cast<const uint4*>(stages + stage + row_of_piece[i] * pitch +
                                                piece[i]);
          out[i] += to_chunk;
        }
#pragma unroll
        for (int i = 0; i < ends; ++i) {
          if (WHOLE && !p.has_ends()) continue;
          const int row = end_row + i * end_rows;
          char* const row_out = end_out + i * end_rows * to_row;
          const int begins = behind(row_out), from = begins + before, end = begins + exist;
          int at = in_sector;
          bool mine = row < count;
          if constexpr (WHOLE) {
            if (at < from) at += outputs;
          } else {
            const int whole = (from + sector - 1) / sector * sector;
            at += (at_end ? end : from) / sector * sector;
            mine = mine && at >= from && at < end && (at_end ? at >= whole : at < whole);
          }
          if (mine)
            *reinterpret_cast<Element*>(row_out - begins + at) =
                *reinterpret_cast<const Element*>(stages + stage + row * pitch + at);
        }
        end_out += to_chunk;
        left -= channels;
        biases += L::staged_channels;
      }
      move_sums<of_woven>(sums);
    }
  }
  __device__ __forceinline__ void write_apart(Sums& sums, const float* biases,
                                              const OutputRows& rows) const {
    int channel = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int round = 0; round < chunks / of_round; ++round) {
#pragma unroll
      for (int i = 0; i < of_round * L::staged_channels / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (channel + e >= rows.count) continue;
          const float bias = biases[channel + e];
          Element* const to = row_of_output(rows.row + channel + e);
#pragma unroll
          for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int64_t position = rows.first + position_of_lane(m, h);
              if (position < p.positions)
                to[position * p.out_step] = M::to(sums[m][0][i * 4 + h * 2 + e] + bias);
            }
        }
        channel += 8;
      }
      move_sums<of_round>(sums);
    }
  }
};
}
namespace fastconv1d {
template <int WARPGROUPS, int M_TILES, int N, bool PRESPLIT = false, bool FOLDED = false>
struct HopperTile {
  static constexpr bool presplit = PRESPLIT, folded = FOLDED;
  static constexpr int warpgroups = WARPGROUPS, m_tiles = M_TILES, channels = N;
  static constexpr int positions = 64 * M_TILES;
  static constexpr int threads = 128 + 128 * WARPGROUPS;
  static constexpr int producer_registers = WARPGROUPS > 3 ? 48 : 40,
                       consumer_registers =
                           (threads * (65536 / threads / 8 * 8) - 128 * producer_registers) /
                           (128 * WARPGROUPS) / 8 * 8;
  static constexpr int room = consumer_registers - M_TILES * N / 2;
};
template <class M, class T>
FASTCONV1D_HD constexpr int steps_at_once() {
  return T::m_tiles * T::channels > 128 || T::m_tiles > 1 || M::sets > 1 ? 1 : 2;
}
template <class M, class T>
FASTCONV1D_HD constexpr bool cuts_chains() {
  return M::chain > 0 && T::m_tiles * T::channels <= 96;
}
constexpr int kInputWarps = 3;
constexpr int kProducerThreads = 128, kMostWarpgroups = 4;
struct Range {
  uint32_t most, least;
};
struct HopperShared {
  StageBarriers<kMostStages> inputs, weights;
  int channel_block, group;
  Place first;
  Range ranges[kMostWarpgroups][2][4];
};
constexpr int64_t kHopperSharedBytes = 640;
static_assert(sizeof(HopperShared) <= kHopperSharedBytes);
template <class M, class T>
FASTCONV1D_HD constexpr int64_t hopper_fixed_bytes() {
  return round_up(kHopperSharedBytes + T::warpgroups * ((M::sets > 1 ? 8 : 4) * T::channels +
                                                        OutputLayout<M, T::m_tiles>::bytes),
                  128);
}
struct HopperParams {
  RowBoxes boxes;
  const void* input;
  const uint32_t* weights;
  const int* scales;
  const void* bias;
  OutputParams output;
  Phase phase;
  Pipeline pipeline;
  int64_t batch, length, input_batch_stride;
  int64_t channels_in, channels_out, groups;
  int64_t block_channels;
  int64_t channel_blocks, tiles, runs;
  int slices_of_share;
  float* shares;
  Place step;
  Place of_warpgroup[kMostWarpgroups];
  int64_t first_position;
  int64_t row_bytes;
  int64_t tile_step;
  int in_boxes;
  int leads;
  int reach;
  SplitParams split;
};
template <class M, class T>
struct HopperBlock {
  using Element = typename M::Element;
  static constexpr int64_t element = sizeof(Element);
  static constexpr int values = M::values_per_word;
  static constexpr int rows_of_quad = 4 * values;
  static constexpr bool folds = M::sets > 1 ? T::folded : T::room >= (values > 1 ? 72 : 80);
  static constexpr bool scans = M::sets > 1 && !T::presplit;
  static constexpr bool skips = M::sets == 1;
  const HopperParams& p;
  const Pipeline& l;
  HopperShared* shared;
  float* biases;
  int* scales;
  char *output_stages, *inputs, *weights;
  __device__ __forceinline__ HopperBlock(const HopperParams& params, uint32_t* memory)
      : p(params), l(params.pipeline) {
    auto* const bytes = reinterpret_cast<char*>(memory);
    shared = reinterpret_cast<HopperShared*>(bytes);
    biases = reinterpret_cast<float*>(bytes + kHopperSharedBytes);
    scales = reinterpret_cast<int*>(biases + T::warpgroups * T::channels);
    output_stages =
        bytes + kHopperSharedBytes + T::warpgroups * (M::sets > 1 ? 8 : 4) * T::channels;
    inputs = bytes + hopper_fixed_bytes<M, T>();
    weights = inputs + l.inputs * l.input_bytes;
  }
  __device__ __forceinline__ int slices() const {
    const int left = l.slices - first_slice();
    return left < p.slices_of_share ? left : p.slices_of_share;
  }
  __device__ __forceinline__ int first_slice() const {
    return static_cast<int>(blockIdx.y) * p.slices_of_share;
  }
  template <class Visit>
  __device__ __forceinline__ void for_each_tile(Visit visit) const {
    for (Place place = shared->first; place.batch < p.batch; place.advance(p.step, p.tiles))
      visit(place);
  }
  __device__ __forceinline__ Place tile_of(Place place, int warpgroup) const {
    place.advance(p.of_warpgroup[warpgroup], p.tiles);
    return place;
  }
  __device__ __forceinline__ int busy(const Place& place) const {
    int count = 1;
    while (count < T::warpgroups && tile_of(place, count).batch < p.batch) ++count;
    return count;
  }
  struct Source {
    int row;
    uint32_t address;
    int position;
    int before, left;
    int rows;
    bool
        within;
    bool whole;
  };
  __device__ __forceinline__ Source source(const Place& place, int slice, int part) const {
    const int position = static_cast<int>(p.first_position) +
                         place.tile * static_cast<int>(p.tile_step) +
                         part * l.taps * static_cast<int>(p.phase.shift_step);
    const int channels = l.words * values, channel = l.folded > 0 ? 0 : slice * channels,
              left = static_cast<int>(p.length) - position,
              rows = skips && (position < -p.reach || left <= 0)
                         ? 0
                         : static_cast<int>(p.channels_in) - channel;
    const int row = shared->group * static_cast<int>(p.channels_in) + channel;
    int needed = channels;
    if (folds && l.folded > 0) needed = scans ? 1 << (l.kinds_log2 + l.box_rows_log2) : 0;
    const bool within = (position >= (scans ? 16 / element : 0) || !p.leads) &&
                        (p.in_boxes || first_of_block(l.blocks - 1) + l.block_positions <= left);
    return {place.batch * static_cast<int>(p.boxes.rows_per_batch) + row,
            static_cast<uint32_t>(reinterpret_cast<uint64_t>(p.input)) +
                static_cast<uint32_t>(element) *
                    (place.batch * static_cast<uint32_t>(p.input_batch_stride) + position) +
                row * static_cast<uint32_t>(p.row_bytes),
            position,
            position < 0 ? -position : 0,
            left < 0 ? 0 : left,
            rows,
            within,
            within && rows >= needed};
  }
  __device__ __forceinline__ Source next_slice(Source from) const {
    from.rows -= l.words * values;
    from.whole = from.within && from.rows >= l.words * values;
    return from;
  }
  __device__ __forceinline__ int ahead(const Source& from, int kind) const {
    return static_cast<int>((from.address + kind * static_cast<uint32_t>(p.row_bytes)) % 16 /
                            static_cast<uint32_t>(element));
  }
  __device__ __forceinline__ int first_of_block(int block) const { return block * l.block_step; }
  __device__ __forceinline__ void copy_boxes(int warp, const Place& place, int slice, int part,
                                             char* stage, uint64_t* full) const {
    const int kinds = 1 << l.kinds_log2, of_warpgroup = l.blocks * kinds;
    const int box_bytes = l.row_pitch << l.box_rows_log2;
    const int boxes = busy(place) * of_warpgroup;
#pragma unroll 1
    for (int i = warp + kInputWarps * static_cast<int>(threadIdx.x % 32); i < boxes;
         i += kInputWarps * 32) {
      const int warpgroup = i / of_warpgroup;
      const Source from = source(tile_of(place, warpgroup), slice, part);
      if (skips && from.rows <= 0) continue;
      const int kind = i & (kinds - 1), row = from.row + kind,
                of_row = row & ((1 << l.alike_log2) - 1),
                block = (i - warpgroup * of_warpgroup) >> l.kinds_log2;
      barrier_expect(full, box_bytes);
      copy_box(stage + (i >> l.kinds_log2) * l.block_rows * l.row_pitch + kind * box_bytes,
               &p.boxes.maps[of_row],
               from.position + first_of_block(block) + p.boxes.leads[of_row] - ahead(from, kind),
               row >> l.alike_log2, full);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void copy_rows(int warp, const Place& place, int slice, int part,
                                            char* stage, uint64_t* full) const {
    const int kinds = 1 << l.kinds_log2, blocks = busy(place) * l.blocks;
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
      const int warpgroup = block / l.blocks;
      const Place tile = tile_of(place, warpgroup);
      const Source from = source(tile, slice, part);
      const char* const first =
          static_cast<const char*>(p.input) + tile.batch * p.input_batch_stride * element +
          (shared->group * p.channels_in + (l.folded > 0 ? 0 : slice * l.words * values)) *
              p.row_bytes;
      const int begin_of_block = from.position + first_of_block(block - warpgroup * l.blocks);
#pragma unroll 1
      for (int row = warp; row < from.rows && row < kinds << l.box_rows_log2; row += kInputWarps) {
        const int kind = row & (kinds - 1),
                  place_of_row =
                      block * l.block_rows + (kind << l.box_rows_log2) + (row >> l.kinds_log2);
        const char* const of_row = first + row * p.row_bytes;
        const char* const origin = of_row + (begin_of_block - ahead(from, kind)) * element;
        const char* const begin = origin < of_row ? piece_of(of_row) : origin;
        const char* const end_of_row = piece_of(of_row + p.length * element + 15);
        const char* const end =
            origin + l.row_pitch < end_of_row ? origin + l.row_pitch : end_of_row;
        if (begin >= end) continue;
        const auto bytes = static_cast<uint32_t>(end - begin);
        barrier_expect(full, bytes);
        copy_bulk(stage + place_of_row * l.row_pitch + (begin - origin), begin, bytes, full);
      }
    }
  }
  static __device__ __forceinline__ const char* piece_of(const char* address) {
    return reinterpret_cast<const char*>(reinterpret_cast<uint64_t>(address) & ~uint64_t{15});
  }
  template <bool BOXES>
  __device__ __forceinline__ void copy_inputs(int warp) const {
    if constexpr (T::presplit) wait_for_kernel_before();
    Turn input;
    for_each_tile([&](const Place& place) {
#pragma unroll 1
      for (int slice = 0; slice < slices(); ++slice)
#pragma unroll 1
        for (int part = 0; part < l.parts; ++part) {
          char* const stage = inputs + input.stage * l.input_bytes;
          uint64_t* const full = shared->inputs.full + input.stage;
          barrier_wait(shared->inputs.empty + input.stage, input.parity ^ 1);
          const int of_tile = first_slice() + slice;
          if (BOXES)
            copy_boxes(warp, place, of_tile, part, stage, full);
          else
            copy_rows(warp, place, of_tile, part, stage, full);
          if (threadIdx.x % 32 == 0) barrier_arrive(full);
          input.advance(l.inputs);
        }
    });
  }
  __device__ __forceinline__ void copy_weights() const {
    wait_for_kernel_before();
    const int taps = l.slices * l.parts * l.taps;
    const auto* const from =
        reinterpret_cast<const char*>(p.weights) +
        (shared->group * p.channel_blocks + shared->channel_block) * taps * int64_t{l.weight_bytes};
    if (l.resident) {
      barrier_arrive_expecting(shared->weights.full, taps * l.weight_bytes);
#pragma unroll 1
      for (int tap = 0; tap < taps; ++tap)
        copy_bulk(weights + tap * l.weight_bytes, from + tap * int64_t{l.weight_bytes},
                  l.weight_bytes, shared->weights.full);
      return;
    }
    Turn weight;
    for_each_tile([&](const Place&) {
      const char* of_part = from + first_slice() * l.parts * l.taps * int64_t{l.weight_bytes};
      for (int slice = 0; slice < slices(); ++slice)
        for (int part = 0; part < l.parts; ++part) {
          const int count = taps_of_part(l, p.phase, part);
#pragma unroll 1
          for (int j = 0; j < count; ++j) {
            uint64_t* const full = shared->weights.full + weight.stage;
            barrier_wait(shared->weights.empty + weight.stage, weight.parity ^ 1);
            barrier_arrive_expecting(full, l.weight_bytes);
            copy_bulk(weights + weight.stage * l.weight_bytes, of_part + j * l.weight_bytes,
                      l.weight_bytes, full);
            weight.advance(l.weights);
          }
          of_part += l.taps * int64_t{l.weight_bytes};
        }
    });
  }
  __device__ __forceinline__ void clear(char* stage, const Source& from, int warpgroup) const {
    const int rows = 1 << (l.kinds_log2 + l.box_rows_log2), of_row = 128 / rows,
              row = threadIdx.x % 128 / of_row, lane = threadIdx.x % of_row,
              kind = row >> l.box_rows_log2, k = row - (kind << l.box_rows_log2);
    const bool exists = kind + (k << l.alike_log2) < from.rows, has_zeros = !p.leads;
#pragma unroll 1
    for (int block = 0; block < l.blocks; ++block) {
      const int first = first_of_block(block) - ahead(from, kind),
                begin = has_zeros ? 0 : from.before - first,
                end = exists ? has_zeros ? l.block_positions : from.left - first : 0;
      char* const of_stage =
          stage + ((warpgroup * l.blocks + block) * l.block_rows + row) * l.row_pitch;
      if (begin >= l.block_positions || end <= 0) {
        for (int piece = lane; piece < l.row_pitch / 16; piece += of_row)
          reinterpret_cast<uint4*>(of_stage)[piece] = make_uint4(0, 0, 0, 0);
        continue;
      }
      auto* const to = reinterpret_cast<Element*>(of_stage);
      for (int position = lane; position < begin; position += of_row) to[position] = 0;
      for (int position = end + lane; position < l.block_positions; position += of_row)
        to[position] = 0;
    }
    fence_async_proxy();
    warpgroup_sync(warpgroup + 1);
  }
  __device__ __forceinline__ void round_values(char* stage, int warpgroup) const {
    const int words = l.input_bytes / T::warpgroups / 4;
    auto* const word = reinterpret_cast<uint32_t*>(stage) + warpgroup * words;
#pragma unroll 4
    for (int i = threadIdx.x % 128; i < words; i += 128) word[i] = round_tf32(float_of(word[i]));
    fence_async_proxy();
    warpgroup_sync(warpgroup + 1);
  }
  __device__ __forceinline__ int reach(int taps) const {
    return (T::positions - 1) * static_cast<int>(p.phase.in_step) +
           (taps - 1) * static_cast<int>(p.phase.shift_step);
  }
  struct SplitBlocks {
    const uint16_t* first;
    int count;
  };
  static constexpr int split_lanes = 4;
  __device__ __forceinline__ SplitBlocks split_blocks(const Place& place, const Source& from,
                                                      int taps) const {
    const int last = from.position + reach(taps),
              first_block = from.before > 0 ? 0 : from.position / kSplitPositions,
              end = (last < p.length ? last : static_cast<int>(p.length) - 1) / kSplitPositions + 1;
    return {p.split.marks +
                (place.batch * p.split.position_blocks() + first_block) * p.split.channel_blocks(),
            place.batch >= p.batch || last < 0 ? 0 : end - first_block};
  }
  __device__ __forceinline__ uint32_t small_of_lane(const SplitBlocks& blocks, int slice) const {
    const int channels = l.words * values,
              first = shared->group * static_cast<int>(p.channels_in) + slice * channels,
              lane = threadIdx.x % 32, block = first / kSplitChannels + lane % split_lanes,
              all = static_cast<int>(p.split.channel_blocks());
    uint32_t small = 0;
    if (block * kSplitChannels < first + channels && block < all)
#pragma unroll 1
      for (int i = lane / split_lanes; i < blocks.count; i += 32 / split_lanes)
        small |= SplitParams::is_small(blocks.first[i * all + block]);
    return small;
  }
  __device__ __forceinline__ int scale_of_tile(const Place& place) const {
    const auto taps = static_cast<int>(larger(p.phase.taps, 1));
    const SplitBlocks blocks = split_blocks(place, source(place, 0, 0), taps);
    const int all = static_cast<int>(p.split.channel_blocks()),
              channels = static_cast<int>(p.channels_in), first = shared->group * channels,
              end = (first + channels - 1) / kSplitChannels + 1;
    uint32_t exponent = 0;
#pragma unroll 1
    for (int i = 0; i < blocks.count; ++i)
#pragma unroll 1
      for (int block = first / kSplitChannels + static_cast<int>(threadIdx.x % 32); block < end;
           block += 32) {
        const uint32_t of_block = SplitParams::exponent_of(blocks.first[i * all + block]);
        exponent = of_block > exponent ? of_block : exponent;
      }
    return Scale::log2_for(static_cast<int>(largest_of_warp(exponent)));
  }
  __device__ __forceinline__ void restore(char* stage, const Source& from, const Place& place,
                                          int slice, int warpgroup) const {
    const int rows = l.words * values, of_row = 128 / rows,
              row = static_cast<int>(threadIdx.x) % 128 / of_row, lane = threadIdx.x % of_row,
              channel = slice * rows + row;
    const bool exists = channel < p.channels_in;
    const float* const input = p.split.input + place.batch * p.split.batch_stride +
                               (shared->group * p.channels_in + channel) * p.split.channel_stride;
#pragma unroll 1
    for (int block = 0; block < l.blocks; ++block) {
      auto* const of_stage = reinterpret_cast<float*>(
          stage + ((warpgroup * l.blocks + block) * l.block_rows + row) * l.row_pitch);
      const int first = from.position + first_of_block(block) - ahead(from, 0);
#pragma unroll 1
      for (int i = lane; i < l.block_positions; i += of_row) {
        const int position = first + i;
        of_stage[i] = exists && position >= 0 && position < p.length ? input[position] : 0.f;
      }
    }
    fence_async_proxy();
    warpgroup_sync(warpgroup + 1);
  }
  __device__ __forceinline__ void pass_weights(Turn& weight, int taps) const {
    if (l.resident) {
      weight.stage += l.taps;
      return;
    }
#pragma unroll 1
    for (int j = 0; j < taps; ++j) {
      barrier_wait(shared->weights.full + weight.stage, weight.parity);
      give_back(shared->weights.empty, weight.stage);
      weight.advance(l.weights);
    }
  }
  __device__ __forceinline__ Range range_of(const char* stage, int warpgroup, int turn) const {
    const int pieces = l.input_bytes / T::warpgroups / 16, warp = threadIdx.x / 32 % 4;
    const auto* const from = reinterpret_cast<const uint4*>(stage) + warpgroup * pieces;
    Range range{0, ~0u};
    const auto widen = [&](const Range& by) {
      range.most = by.most > range.most ? by.most : range.most;
      range.least = by.least < range.least ? by.least : range.least;
    };
#pragma unroll 2
    for (int i = threadIdx.x % 128; i < pieces; i += 128) {
      const uint4 piece = from[i];
      for (const uint32_t word : {piece.x, piece.y, piece.z, piece.w}) {
        widen({finite_size(word), (word & 0x7fffffffu) - 1});
      }
    }
    range = {largest_of_warp(range.most), smallest_of_warp(range.least)};
    Range* const ranges = shared->ranges[warpgroup][turn];
    if (threadIdx.x % 32 == 0) ranges[warp] = range;
    warpgroup_sync(warpgroup + 1);
#pragma unroll 1
    for (int i = 0; i < 4; ++i) widen(ranges[i]);
    return range;
  }
  using Fragment = uint32_t[T::m_tiles][M::planes][4];
  static constexpr int at_once = steps_at_once<M, T>();
  using Fragments = Fragment[2][at_once];
  static constexpr int sums_of_tile = 128 * T::m_tiles * T::channels / 2;
  using Sums = float[T::m_tiles][M::sets][T::channels / 2];
  using Writer = OutputWriter<M, T::m_tiles, T::channels>;
  static constexpr int kept = folds ? 2 : 1;
  template <int STEPS>
  struct Quads {
    int at[kept][2 * STEPS];
    int from_value, from_row,
        from_tile;
  };
  struct FoldedValue {
    int at, row_bytes;
  };
  __device__ __forceinline__ FoldedValue* folded_values() const {
    return reinterpret_cast<FoldedValue*>(weights + l.weights * l.weight_bytes);
  }
  __device__ __forceinline__ void begin_folded() const {
    const int thread = static_cast<int>(threadIdx.x), of_row = l.row_pitch / 16,
              zeros = 1 << l.kinds_log2;
    for (int i = thread; i < l.slices * l.words * values; i += T::threads) {
      const int channel = i / l.folded, tap = i - channel * l.folded;
      const bool exists = channel < p.channels_in;
      folded_values()[i] = {
          exists ? channel * l.row_pitch + tap * static_cast<int>(p.phase.shift_step * element)
                 : zeros * l.row_pitch,
          exists ? static_cast<int>(channel * p.row_bytes % 16) : 0};
    }
    for (int i = thread; i < l.inputs * T::warpgroups * l.blocks * of_row; i += T::threads) {
      const int block = i / of_row;
      reinterpret_cast<uint4*>(inputs +
                               (block * l.block_rows + zeros) * l.row_pitch)[i - block * of_row] =
          make_uint4(0, 0, 0, 0);
    }
  }
  struct Slice {
    const char* rows;
    float scale;
    uint32_t least, span;
  };
  template <bool PAIRS, bool SOME = false>
  struct Way {};
  template <bool PAIRS>
  struct Raw {
    std::conditional_t<PAIRS, uint32_t, Element> of[T::m_tiles][2][PAIRS ? 1 : 2][values];
  };
  template <bool PAIRS, int STEPS>
  __device__ __forceinline__ void read(Raw<PAIRS>& raw, const Slice& slice, int step,
                                       const Quads<STEPS>& quads) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
        for (int h = 0; h < (PAIRS ? 1 : 2); ++h)
#pragma unroll
          for (int v = 0; v < values; ++v) {
            auto& value = raw.of[m][half][h][v];
            const bool of_value = values > 1 && v > 0, of_row = h > 0;
            const bool found = kept > 1 && (values > 1 ? of_value : of_row);
            const char* from = slice.rows + quads.at[found][2 * step + half];
            if (of_value && !found) from += quads.from_value;
            if (of_row && (values > 1 || !found)) from += quads.from_row;
            if (m > 0) from += quads.from_tile;
            value = *reinterpret_cast<const std::decay_t<decltype(value)>*>(from);
          }
  }
  template <bool PAIRS, bool SOME>
  static __device__ __forceinline__ void split(Way<PAIRS, SOME>, const Raw<PAIRS>& raw,
                                               Fragment& fragment, const Slice& slice) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t words[M::planes];
          if constexpr (PAIRS) {
            words[0] = halves_of(raw.of[m][half][0][0], raw.of[m][half][0][1], h);
          } else {
            Element value[values];
#pragma unroll
            for (int v = 0; v < values; ++v) value[v] = raw.of[m][half][h][v];
            if constexpr (SOME)
#pragma unroll
              for (int v = 0; v < values; ++v)
                if ((bits_of(value[v]) & 0x7fffffffu) - slice.least >= slice.span) value[v] = 0;
            if constexpr (T::presplit && !SOME) {
              words[0] = halves_of(bits_of(value[0]), bits_of(value[values - 1]), false);
              words[M::planes - 1] = halves_of(bits_of(value[0]), bits_of(value[values - 1]), true);
            } else {
              M::split(value, words, slice.scale);
            }
          }
#pragma unroll
          for (int plane = 0; plane < M::planes; ++plane)
            fragment[m][plane][half * 2 + h] = words[plane];
        }
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int plane = 0; plane < M::planes; ++plane) wgmma_hold(fragment[m][plane]);
  }
  template <bool PAIRS, bool SOME, int STEPS>
  __device__ __forceinline__ void multiply_tap(Way<PAIRS, SOME> way, Sums& sums,
                                               Fragments& fragments, const Slice& slice,
                                               const Quads<STEPS>& quads,
                                               const Operand& right) const {
    constexpr int groups = STEPS / at_once;
    static_assert(groups % 2 == 0);
    constexpr bool early = values > 1;
    Raw<PAIRS> raw[at_once];
    const auto read_group = [&](int group) {
#pragma unroll
      for (int i = 0; i < at_once; ++i)
        read<PAIRS, STEPS>(raw[i], slice, group * at_once + i, quads);
    };
    if (early) read_group(0);
#pragma unroll
    for (int group = 0; group < groups; ++group) {
      wgmma_wait<1>();
      if (!early) read_group(group);
      auto& fragment = fragments[group % 2];
#pragma unroll
      for (int i = 0; i < at_once; ++i) split(way, raw[i], fragment[i], slice);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < at_once; ++i)
#pragma unroll
        for (int m = 0; m < T::m_tiles; ++m)
          M::multiply(sums[m], fragment[i][m], right.step(group * at_once + i));
      wgmma_commit();
      if (early && group + 1 < groups) read_group(group + 1);
    }
  }
  __device__ __forceinline__ void keep_biases() const {
    const int thread = static_cast<int>(threadIdx.x) - kProducerThreads, warpgroup = thread / 128;
    for (int i = thread % 128; i < T::channels; i += 128)
      biases[warpgroup * T::channels + i] = bias_of<M>(
          p.bias, shared->group,
          column_of(p.output.weave, static_cast<int64_t>(shared->channel_block) * T::channels + i)
              .channel,
          p.channels_out);
    if constexpr (M::sets > 1) {
      wait_for_kernel_before();
      for (int i = thread % 128; i < T::channels; i += 128)
        scales[warpgroup * T::channels + i] =
            p.scales[(shared->group * p.channel_blocks + shared->channel_block) * T::channels + i];
    }
    warpgroup_sync(warpgroup + 1);
  }
  template <int STEPS>
  __device__ __forceinline__ void multiply() const {
    const int warpgroup =
        __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - kProducerThreads) / 128, 0);
    const Writer writer{p.output, output_stages + warpgroup * OutputLayout<M, T::m_tiles>::bytes,
                        warpgroup + 1};
    const Operand all_weights(weights, T::channels * 16, l.words * T::channels * 4);
    const bool in_pairs = element == 2 && p.phase.in_step == 1 && p.row_bytes % 4 == 0 &&
                          p.input_batch_stride % 2 == 0 && l.folded == 0;
    const int stride_bytes = static_cast<int>(p.phase.in_step * element);
    const int output = writer.position_of_lane(0, 0),
              block = warpgroup * l.blocks + output / l.block_outputs,
              lane_word = static_cast<int>(threadIdx.x % 4),
              first_row =
                  block * l.block_rows * l.row_pitch + output % l.block_outputs * stride_bytes,
              first_word = first_row + lane_word * values * l.row_pitch;
    Quads<STEPS> quads;
    quads.from_value = l.row_pitch;
    quads.from_row = stride_bytes * writer.between();
    quads.from_tile = stride_bytes * 16;
    const int second = values > 1 ? quads.from_value : quads.from_row;
    keep_in_register(quads.from_value);
    keep_in_register(quads.from_row);
    keep_in_register(quads.from_tile);
    const auto find_quads = [&](const Source& from, int slice) {
      if constexpr (folds)
        if (l.folded > 0) {
          const FoldedValue* const folded =
              folded_values() + (slice * l.words + lane_word) * values;
#pragma unroll
          for (int quad = 0; quad < 2 * STEPS; ++quad)
#pragma unroll
            for (int i = 0; i < kept; ++i) {
              const FoldedValue value = folded[quad * 4 * values + (values > 1 ? i : 0)];
              quads.at[i][quad] = first_row + (values > 1 ? 0 : i * second) + value.at +
                                  static_cast<int>((from.address + value.row_bytes) % 16);
              keep_in_register(quads.at[i][quad]);
            }
          return;
        }
#pragma unroll
      for (int quad = 0; quad < 2 * STEPS; ++quad)
#pragma unroll
        for (int i = 0; i < kept; ++i) {
          quads.at[i][quad] = first_word + i * second + quad * (rows_of_quad * l.row_pitch) +
                              ahead(from, quad >> l.quads_of_kind_log2) * static_cast<int>(element);
          keep_in_register(quads.at[i][quad]);
        }
    };
    Turn input, weight;
    Sums sums;
    constexpr bool cuts = cuts_chains<M, T>();
    float total[cuts ? T::m_tiles : 1][cuts ? T::channels / 2 : 1];
    Fragments fragments;
    int turn = 0;
    bool paired = false;
    bool ready = false;
    if (l.resident && l.slices > 0) barrier_wait(shared->weights.full, 0);
    bool rehearses = M::sets == 1 && Writer::is_long && p.shares == nullptr &&
                     p.output.weave.stride == 1 && p.output.out_step == 1 &&
                     warpgroup == T::warpgroups - 1 &&
                     tile_of(shared->first, warpgroup).batch < p.batch;
    for (Place of_block = shared->first; of_block.batch < p.batch;
         rehearses ? void(rehearses = false) : of_block.advance(p.step, p.tiles)) {
      const Place place = tile_of(of_block, warpgroup);
      int exponent = 0, scale = Scale::log2_for(0);
      bool wide = false;
      if constexpr (T::presplit)
        if (place.batch < p.batch) {
          wide = p.split.wide[place.batch] != 0;
          scale = wide ? scale_of_tile(place) : p.split.scales[place.batch];
        }
      for_each_sum([&](int m, int i) {
#pragma unroll
        for (int set = 0; set < M::sets; ++set) sums[m][set][i] = 0;
        if constexpr (cuts) total[m][i] = 0;
      });
      hold(sums);
      int chained = 0;
      Source from;
      uint32_t next_small = 0;
      int used_weight = -1;
      if (l.resident) weight.stage = 0;
#pragma unroll 1
      for (int slice = 0; slice < slices() && !rehearses; ++slice)
#pragma unroll 1
        for (int part = 0; part < l.parts; ++part) {
          const int taps = taps_of_part(l, p.phase, part);
          char* const stage = inputs + input.stage * l.input_bytes;
          const bool anew = l.parts > 1 || l.folded > 0 || slice == 0;
          from =
              anew || M::sets > 1 ? source(place, first_slice() + slice, part) : next_slice(from);
          if (anew) find_quads(from, first_slice() + slice);
          if constexpr (T::presplit)
            if (anew) {
              next_small = small_of_lane(split_blocks(place, from, taps), first_slice() + slice);
            }
          Slice seen{stage, 1, 0, 0};
          int first = static_cast<int>(reinterpret_cast<uint64_t>(p.input) / 2 + p.first_position +
                                       part * l.taps * p.phase.shift_step);
          barrier_wait(shared->inputs.full + input.stage, input.parity);
          if (skips && from.rows <= 0) {
            wgmma_settle();
            give_back(shared->weights.empty, used_weight);
            used_weight = -1;
            pass_weights(weight, taps);
            ready = false;
            give_back(shared->inputs.empty, input.stage);
            input.advance(l.inputs);
            continue;
          }
          if (!from.whole) clear(stage, from, warpgroup);
          if (M::boxes == BoxForm::rounded && !p.in_boxes) round_values(stage, warpgroup);
          uint32_t smallest = ~0u;
          bool small = false;
          if constexpr (T::presplit) {
            small = wide || largest_of_warp(next_small) > 0;
            if (slice + 1 < slices())
              next_small =
                  small_of_lane(split_blocks(place, from, taps), first_slice() + slice + 1);
            if (small) restore(stage, from, place, first_slice() + slice, warpgroup);
          }
          if (M::sets > 1 && (scans || small)) {
            const Range range = range_of(stage, warpgroup, turn);
            turn ^= 1;
            smallest = range.least;
            const int largest = static_cast<int>(smaller(range.most >> 23, Scale::most));
            if (scans && largest > exponent) {
              const int old = scale;
              exponent = largest < Scale::most ? largest + 1 : largest;
              scale = Scale::log2_for(exponent);
              if (slice + part > 0) {
                scale_sums(sums, scale - old);
                if constexpr (cuts)
                  for_each_sum([&](int m, int i) {
                    total[m][i] = Scale::without(total[m][i], old - scale);
                  });
              }
            }
            seen.scale = Scale::power_of_two(scale);
            if (scans) small = smallest + 1 > 0 && smallest + 1 < Scale::least_whole(scale);
          }
#pragma unroll 1
          for (int j = 0; j < taps; ++j) {
            if (!l.resident && !ready)
              barrier_wait(shared->weights.full + weight.stage, weight.parity);
            const Operand right = all_weights.after(weight.stage * l.weight_bytes);
            if constexpr (M::sets > 1) {
              if (small)
                multiply_small<STEPS>(sums, fragments, seen, quads, right, scale, smallest + 1);
              else
                multiply_tap(Way<false>(), sums, fragments, seen, quads, right);
            } else if constexpr (element == 2) {
              const bool pairs = in_pairs && first % 2 == 0;
              if (pairs != paired) wgmma_settle();
              paired = pairs;
              if (pairs)
                multiply_tap(Way<true>(), sums, fragments, seen, quads, right);
              else
                multiply_tap(Way<false>(), sums, fragments, seen, quads, right);
            } else {
              multiply_tap(Way<false>(), sums, fragments, seen, quads, right);
            }
            const int stage_before = used_weight;
            if (l.resident) {
              ++weight.stage;
            } else {
              used_weight = weight.stage;
              weight.advance(l.weights);
              ready = barrier_is_over(shared->weights.full + weight.stage, weight.parity);
            }
            give_back(shared->weights.empty, stage_before);
            if constexpr (cuts) {
              chained += STEPS;
              if (chained + STEPS > M::chain) {
                wgmma_wait<0>();
                hold(sums);
                chained = 0;
                for_each_sum([&](int m, int i) {
                  total[m][i] += sums[m][0][i];
                  sums[m][0][i] = 0;
                });
                hold(sums);
              }
            }
            first += static_cast<int>(p.phase.shift_step);
            seen.rows += l.tap_bytes;
          }
          if (l.resident) weight.stage += l.taps - taps;
          give_back(shared->inputs.empty, input.stage);
          input.advance(l.inputs);
        }
      wgmma_wait<0>();
      hold(sums);
      give_back(shared->weights.empty, used_weight);
      if constexpr (M::sets > 1) {
        const int* const of_channels = scales + warpgroup * T::channels + threadIdx.x % 4 * 2;
        for_each_sum([&](int m, int i) {
          float sum = sums[m][0][i] + sums[m][1][i] * (1 / M::low);
          if constexpr (cuts) sum += total[m][i];
          sums[m][0][i] = Scale::without(sum, scale + of_channels[i / 4 * 8 + i % 2]);
        });
      }
      if (place.batch >= p.batch) continue;
      if (p.shares == nullptr)
        write(writer, sums, place, warpgroup, rehearses);
      else
        keep(sums, place);
    }
  }
  static __device__ __forceinline__ void scale_sums(Sums& sums, int log2) {
    wgmma_wait<0>();
    hold(sums);
    for_each_sum([&](int m, int i) {
#pragma unroll
      for (int set = 0; set < M::sets; ++set)
        sums[m][set][i] = Scale::without(sums[m][set][i], -log2);
    });
    hold(sums);
  }
  template <int STEPS>
  __device__ __forceinline__ void multiply_small(Sums& sums, Fragments& fragments, Slice seen,
                                                 const Quads<STEPS>& quads, const Operand& right,
                                                 int scale, uint32_t smallest) const {
    seen.least = Scale::least_whole(scale);
    seen.span = 0x80000000u - seen.least;
    int of_these = scale;
    wgmma_settle();
    hold(sums);
    for_each_sum([&](int m, int i) {
      sums[m][0][i] += sums[m][1][i] * (1 / M::low);
      sums[m][1][i] = 0;
    });
    hold(sums);
    for (int step = 0;; ++step) {
      multiply_tap(Way<false, true>(), sums, fragments, seen, quads, right);
      if (seen.least <= smallest || step == Scale::most_steps) break;
      const int next = Scale::next(of_these);
      scale_sums(sums, next - of_these);
      of_these = next;
      seen.scale = Scale::power_of_two(next);
      const uint32_t least = step + 1 < Scale::most_steps ? Scale::least_whole(next) : 0;
      seen.span = seen.least - least;
      seen.least = least;
    }
    scale_sums(sums, scale - of_these);
  }
  static __device__ __forceinline__ void hold(Sums& sums) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int set = 0; set < M::sets; ++set) wgmma_hold(sums[m][set]);
  }
  template <class Visit>
  static __device__ __forceinline__ void for_each_sum(const Visit& visit) {
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int i = 0; i < T::channels / 2; ++i) visit(m, i);
  }
  __device__ __forceinline__ void keep(const Sums& sums, const Place& place) const {
    const int64_t tiles = p.batch * p.tiles,
                  tile = (shared->group * p.channel_blocks + shared->channel_block) * tiles +
                         place.batch * p.tiles + place.tile,
                  all = p.groups * p.channel_blocks * tiles;
    float* const to = p.shares + (blockIdx.y * all + tile) * sums_of_tile + threadIdx.x % 128;
    for_each_sum([&](int m, int i) { to[(m * T::channels / 2 + i) * 128] = sums[m][0][i]; });
  }
  __device__ __forceinline__ void write(const Writer& writer, Sums& sums, const Place& place,
                                        int warpgroup, bool rehearses) const {
    const int64_t first_channel = static_cast<int64_t>(shared->channel_block) * p.block_channels;
    writer.write(sums, biases + warpgroup * T::channels,
                 {(place.batch * p.groups + shared->group) * p.channels_out + first_channel,
                  static_cast<int>(smaller(p.block_channels, p.channels_out - first_channel)),
                  static_cast<int64_t>(place.tile) * (T::positions - p.output.overlap)},
                 rehearses);
  }
};
template <class M, class T>
__global__ void __launch_bounds__(T::threads, 1)
    hopper_kernel(const __grid_constant__ HopperParams p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  auto& shared = *reinterpret_cast<HopperShared*>(memory);
  if (threadIdx.x < kMostStages) {
    const int stage = static_cast<int>(threadIdx.x);
    barrier_init(shared.inputs.full + stage, kInputWarps);
    barrier_init(shared.inputs.empty + stage, 4 * T::warpgroups);
    barrier_init(shared.weights.full + stage, 1);
    barrier_init(shared.weights.empty + stage, 4 * T::warpgroups);
    fence_async_proxy();
  } else if (threadIdx.x == 32) {
    Digits<uint32_t> digits{blockIdx.x};
    shared.channel_block = static_cast<int>(digits.take(p.channel_blocks));
    const uint32_t run = digits.take(p.runs);
    shared.group = static_cast<int>(digits.rest);
    Digits<uint32_t> first{T::warpgroups * run};
    shared.first.tile = static_cast<int>(first.take(p.tiles));
    shared.first.batch = static_cast<int>(first.rest);
  }
  if constexpr (HopperBlock<M, T>::folds)
    if (p.pipeline.folded > 0) HopperBlock<M, T>(p, memory).begin_folded();
  __syncthreads();
  if (threadIdx.x < kProducerThreads) {
    keep_registers<T::producer_registers>();
    const HopperBlock<M, T> block(p, memory);
    const int warp = static_cast<int>(threadIdx.x / 32);
    if (warp < kInputWarps && p.in_boxes)
      block.template copy_inputs<true>(warp);
    else if (threadIdx.x % 32 > 0)
      return;
    else if (warp < kInputWarps)
      block.template copy_inputs<false>(warp);
    else
      block.copy_weights();
  } else {
    take_registers<T::consumer_registers>();
    const HopperBlock<M, T> block(p, memory);
    block.keep_biases();
    if constexpr (HopperBlock<M, T>::at_once > 1)
      block.template multiply<4>();
    else if (p.pipeline.words == 32)
      block.template multiply<4>();
    else
      block.template multiply<2>();
  }
}
struct SharesParams {
  const float* shares;
  const void* bias;
  OutputParams output;
  int64_t batch, tiles, channels_out, groups, block_channels, channel_blocks;
  int count;
};
template <class M, class T>
__global__ void __launch_bounds__(128, 2) hopper_add_kernel(const SharesParams p) {
  FASTCONV1D_SHARED(memory);
  using Writer = OutputWriter<M, T::m_tiles, T::channels>;
  constexpr int64_t sums_of_tile = HopperBlock<M, T>::sums_of_tile;
  auto* const biases = reinterpret_cast<float*>(memory);
  const int64_t rows = p.batch * p.tiles, tile = blockIdx.x, row = tile % rows, block = tile / rows,
                group = block / p.channel_blocks, channel_block = block % p.channel_blocks,
                channel = channel_block * p.block_channels;
  const Place place{static_cast<int>(row / p.tiles), static_cast<int>(row % p.tiles)};
  for (int i = static_cast<int>(threadIdx.x); i < T::channels; i += 128)
    biases[i] = bias_of<M>(p.bias, group,
                           column_of(p.output.weave, channel_block * T::channels + i).channel,
                           p.channels_out);
  wait_for_kernel_before();
  typename Writer::Sums sums;
  const float* from = p.shares + tile * sums_of_tile + threadIdx.x;
#pragma unroll
  for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
    for (int i = 0; i < T::channels / 2; ++i) sums[m][0][i] = from[(m * T::channels / 2 + i) * 128];
#pragma unroll 1
  for (int share = 1; share < p.count; ++share) {
    from += p.groups * p.channel_blocks * rows * sums_of_tile;
#pragma unroll
    for (int m = 0; m < T::m_tiles; ++m)
#pragma unroll
      for (int i = 0; i < T::channels / 2; ++i)
        sums[m][0][i] += from[(m * T::channels / 2 + i) * 128];
  }
  warpgroup_sync(1);
  const Writer writer{p.output, reinterpret_cast<char*>(biases + T::channels), 1};
  writer.write(sums, biases,
               {(place.batch * p.groups + group) * p.channels_out + channel,
                static_cast<int>(smaller(p.block_channels, p.channels_out - channel)),
                static_cast<int64_t>(place.tile) * (T::positions - p.output.overlap)});
}
}
namespace fastconv1d {
template <class M, class T>
struct Hopper {
  using Element = typename M::Element;
  using Layout = OutputLayout<M, T::m_tiles>;
  static constexpr int64_t kSector = Layout::aligned_outputs;
  static constexpr int64_t kFewProducts = 256;
  struct Cut {
    Phase phase;
    Weave weave;
    Pipeline pipeline;
    int64_t groups, channels_in, channels_out;
    int64_t block_channels, channel_blocks;
    int64_t overlap;
    int64_t tiles, runs, slices_of_share;
    int64_t packed_quads;
  };
  static int64_t phases(const ConvArgs& a) { return is_woven(a) ? 1 : phase_count(a); }
  static bool is_aligned(const ConvArgs& a, const Cut& c) {
    return a.length_out % kSector == 0 && c.weave.skipped % kSector == 0;
  }
  static int64_t overlap_of(const ConvArgs& a, const Cut& c) {
    constexpr bool may = Layout::may_overlap && (sizeof(Element) == 4 || T::warpgroups == 2);
    const bool writes_neighbours = c.weave.stride == 1 && c.phase.out_step == 1;
    return may && writes_neighbours && !is_aligned(a, c) &&
                   c.channels_in * c.phase.taps <= kFewProducts
               ? kSector
               : 0;
  }
  static ConvArgs of_words(ConvArgs a) {
    a.input_channel_stride = round_up(a.length, 4);
    a.input_batch_stride = a.channels_in * a.input_channel_stride;
    return a;
  }
  static Cut cut(const ConvArgs& args, int64_t r) {
    const ConvArgs a = T::presplit ? of_words(args) : args;
    Cut c{};
    c.phase = is_woven(a) ? woven_phase(a) : phase_of(a, r);
    c.weave = weave_of(a);
    c.groups = a.groups;
    c.channels_in = a.channels_in / a.groups;
    c.channels_out = a.channels_out / a.groups;
    c.block_channels = T::channels / kWeave * c.weave.channels;
    c.channel_blocks = ceil_div(c.channels_out, c.block_channels);
    c.overlap = overlap_of(a, c);
    c.tiles = ceil_div(c.phase.positions, T::positions - c.overlap);
    const int64_t tiles = ceil_div(a.batch * c.tiles, T::warpgroups);
    c.runs = runs_of(tiles, a.groups * c.channel_blocks, a.multiprocessors);
    c.pipeline = pipeline_of(
        {T::warpgroups, T::positions, T::channels, M::planes, M::values_per_word, sizeof(Element),
         rows_alike(a.input_channel_stride * static_cast<int64_t>(sizeof(Element))),
         16 * steps_at_once<M, T>(), HopperBlock<M, T>::folds && c.weave.stride == 1,
         shared_budget(1) - hopper_fixed_bytes<M, T>(), ceil_div(tiles, c.runs) >= 4},
        c.phase, c.channels_in);
    Pipeline& l = c.pipeline;
    const int64_t steps = (l.folded > 0 ? 1 : larger(c.phase.taps, 0)) * (l.words / 8);
    if (M::chain > 0 && !cuts_chains<M, T>() && l.slices * steps > M::chain) l.taps = 0;
    c.slices_of_share =
        slices_of_share(a.groups * c.channel_blocks * c.runs, l.slices, steps, a.multiprocessors);
    c.packed_quads = a.groups * c.channel_blocks * l.slices * l.parts * l.taps * (l.words / 4) *
                     int64_t{T::channels};
    return c;
  }
  static int64_t packed_bytes(const ConvArgs& a, const Cut& c) {
    return before_shares(a, c) + (shares(c) > 1 ? 4 * shares(c) * all_sums(a, c) : 0);
  }
  static int64_t before_split(const Cut& c) {
    return round_up(weight_bytes(c) + (M::sets > 1 ? 4 * scales(c) : 0), 32);
  }
  static int64_t before_shares(const ConvArgs& a, const Cut& c) {
    char* const none = nullptr;
    return before_split(c) + (T::presplit ? split_of(a).place(none) - none : 0);
  }
  static SplitParams split_of(const ConvArgs& a) {
    SplitParams split{};
    split.input = static_cast<const float*>(a.input);
    split.batch_stride = a.input_batch_stride;
    split.channel_stride = a.input_channel_stride;
    split.batch = a.batch;
    split.channels = a.channels_in;
    split.length = a.length;
    split.pitch = of_words(a).input_channel_stride;
    split.parts_of_batch = larger(
        1, smaller(smaller(kMostSplitParts, split.blocks()), 8 * a.multiprocessors / a.batch));
    return split;
  }
  static int64_t shares(const Cut& c) {
    return larger(1, ceil_div(c.pipeline.slices, c.slices_of_share));
  }
  static int64_t all_sums(const ConvArgs& a, const Cut& c) {
    return c.groups * c.channel_blocks * a.batch * c.tiles * HopperBlock<M, T>::sums_of_tile;
  }
  static int64_t weight_bytes(const Cut& c) { return c.packed_quads * 16 * M::planes; }
  static int64_t scales(const Cut& c) { return c.groups * c.channel_blocks * T::channels; }
  static int launch_phase(const ConvArgs& args, const Cut& c, void* stream) {
    const Pipeline& l = c.pipeline;
    if (l.taps == 0 || c.packed_quads > UINT32_MAX) return 1;
    ConvArgs a = args;
    HopperParams p{};
    if constexpr (T::presplit) {
      p.split = split_of(args);
      p.split.place(static_cast<char*>(a.workspace) + before_split(c));
      a = of_words(args);
      a.input = p.split.words;
    }
    auto* const packed = static_cast<uint32_t*>(a.workspace);
    auto* const scales = static_cast<int*>(a.workspace) + weight_bytes(c) / 4;
    constexpr int at_once = packed_columns<T>();
    const int columns = c.packed_quads <= 512 * a.multiprocessors ? 1 : at_once;
    const int64_t threads = c.packed_quads / columns;
    const HopperPackParams pack{{a.weight, packed, c.phase, c.channels_in, c.channels_out, a.groups,
                                 a.kernel_size, a.transposed, c.channel_blocks, threads},
                                l,
                                c.weave,
                                scales};
    int error = 0;
    const auto blocks_of = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
    if constexpr (T::presplit) {
      error = fastconv1d::launch(hopper_largest_kernel<T>,
                                 blocks_of(a.batch * p.split.parts_of_batch + Hopper::scales(c)),
                                 dim3(kSplitThreads), kSplitShared, stream, p.split, pack);
      if (error == 0)
        error = launch_early(
            true, columns == 1 ? hopper_split_kernel<M, T, 1> : hopper_split_kernel<M, T, at_once>,
            blocks_of(a.batch * p.split.blocks() + ceil_div(threads, kSplitThreads)),
            dim3(kSplitThreads), kSplitShared, stream, p.split, pack);
    } else {
      if constexpr (M::sets > 1)
        error = fastconv1d::launch(hopper_scale_kernel<M, T>, blocks_of(Hopper::scales(c)),
                                   dim3(128), 16, stream, pack);
      if (error == 0 && threads > 0)
        error = launch_early(
            M::sets > 1,
            columns == 1 ? hopper_pack_kernel<M, T, 1> : hopper_pack_kernel<M, T, at_once>,
            blocks_of(ceil_div(threads, 128)), dim3(128), 0, stream, pack);
    }
    if (error != 0) return error;
    const int64_t bytes = hopper_fixed_bytes<M, T>() + stage_bytes(l);
    const auto kernel = hopper_kernel<M, T>;
    error = set_shared_limit(kernel, bytes);
    if (error != 0) return error;
    p.input = a.input;
    p.weights = packed;
    p.scales = scales;
    p.bias = a.bias;
    const bool odd = (a.length_out | c.weave.skipped) % 2 != 0 ||
                     (c.weave.stride > 1 && c.weave.stride % 2 != 0);
    p.output = {a.output,
                a.length_out,
                c.phase.positions,
                c.phase.out_offset,
                c.phase.out_step,
                c.weave,
                static_cast<int>(c.overlap),
                is_aligned(a, c),
                odd,
                c.phase.in_step % 2 == 0};
    p.phase = c.phase;
    p.pipeline = l;
    p.batch = a.batch;
    p.length = a.length;
    p.input_batch_stride = a.input_batch_stride;
    p.channels_in = c.channels_in;
    p.channels_out = c.channels_out;
    p.groups = a.groups;
    p.block_channels = c.block_channels;
    p.channel_blocks = c.channel_blocks;
    p.tiles = c.tiles;
    p.runs = c.runs;
    const auto place = [&](int64_t tiles) {
      return Place{static_cast<int>(tiles / c.tiles), static_cast<int>(tiles % c.tiles)};
    };
    p.step = place(T::warpgroups * c.runs);
    for (int i = 0; i < T::warpgroups; ++i) p.of_warpgroup[i] = place(i);
    p.first_position = c.phase.first_shift;
    p.row_bytes = a.input_channel_stride * static_cast<int64_t>(sizeof(Element));
    p.tile_step = (T::positions - c.overlap) * c.phase.in_step;
    p.in_boxes = make_row_boxes<Element>(p.boxes, rows_of_input(a), l.alike_log2, l.block_positions,
                                         1 << l.box_rows_log2, M::boxes);
    p.leads = !p.in_boxes || p.boxes.lead();
    const int64_t seen = l.folded > 0 ? l.folded : l.taps;
    p.reach =
        static_cast<int>((T::positions - 1) * c.phase.in_step + (seen - 1) * c.phase.shift_step);
    p.slices_of_share = static_cast<int>(c.slices_of_share);
    if (shares(c) > 1)
      p.shares = reinterpret_cast<float*>(static_cast<char*>(a.workspace) + before_shares(args, c));
    const dim3 blocks(static_cast<unsigned>(a.groups * c.channel_blocks * c.runs),
                      static_cast<unsigned>(shares(c)));
    error = launch_early(threads > 0 || M::sets > 1, kernel, blocks, dim3(T::threads), bytes,
                         stream, p);
    return error != 0 || p.shares == nullptr ? error : add_shares(a, c, p, stream);
  }
  static int add_shares(const ConvArgs& a, const Cut& c, const HopperParams& p, void* stream) {
    const int64_t tiles = a.groups * c.channel_blocks * a.batch * c.tiles;
    return launch_early(
        true, hopper_add_kernel<M, T>, dim3(static_cast<unsigned>(tiles)), dim3(128),
        4 * T::channels + OutputLayout<M, T::m_tiles>::bytes, stream,
        SharesParams{p.shares, a.bias, p.output, a.batch, c.tiles, c.channels_out, a.groups,
                     c.block_channels, c.channel_blocks, static_cast<int>(shares(c))});
  }
};
}
#define FASTCONV1D_HOPPER_LIBRARY(...) FASTCONV1D_TILE_LIBRARY(fastconv1d::Hopper, __VA_ARGS__)
namespace fastconv1d {
using Tf32Kernel = TileLibrary<Hopper, Tf32, fastconv1d::HopperTile<2, 2, 128, false, false>>;
using IeeeKernel = TileLibrary<Hopper, Halves, fastconv1d::HopperTile<2, 1, 128, false, false>>;
using Bf16Kernel = TileLibrary<Hopper, Bf16, fastconv1d::HopperTile<2, 2, 128, false, false>>;
using Fp16Kernel = TileLibrary<Hopper, Fp16, fastconv1d::HopperTile<2, 2, 128, false, false>>;
}
namespace fastconv1d {
template <class Function>
int64_t with_kernel(const ConvArgs& args, const Function& function) {
  switch (args.mode) {
    case kTf32:
      return function(Tf32Kernel{});
    case kIeee:
      return function(IeeeKernel{});
    case kBf16:
      return function(Bf16Kernel{});
    default:
      return function(Fp16Kernel{});
  }
}
}
int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {
  return fastconv1d::with_kernel(*args, [&](auto kernel) { return kernel.workspace(0, *args); });
}
int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) {
  const int64_t error =
      fastconv1d::with_kernel(*args, [&](auto kernel) { return kernel.launch(0, *args, stream); });
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
#include <algorithm>
#include <cstdint>
namespace fastconv1d {
enum Mode : int64_t { kTf32 = 0, kIeee = 1, kBf16 = 2, kFp16 = 3, kFp64 = 4 };
struct ConvArgs {
  const void* input;
  const void* weight;
  const void* bias;
  void* output;
  void* workspace;
  const void* grad_output;
  void* grad_bias;
  void* grad_input;
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
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, int64_t stride, int64_t padding,
                       int64_t dilation, bool transposed, int64_t output_padding, int64_t groups,
                       bool allow_tf32) {
  TORCH_CHECK(input.dim() == 3, "input has ", input.dim(), " dimensions, expected 3");
  TORCH_CHECK(weight.dim() == 3, "weight has ", weight.dim(), " dimensions, expected 3");
  TORCH_CHECK(stride > 0 && dilation > 0 && groups > 0 && padding >= 0, "stride is ", stride,
              ", dilation ", dilation, ", groups ", groups, ", padding ", padding,
              ", expected positive ones and padding of at least 0");
  TORCH_CHECK(output_padding >= 0 && output_padding < std::max(stride, dilation) &&
                  (transposed || output_padding == 0),
              "output_padding is ", output_padding, ", expected less than stride=", stride,
              " or dilation=", dilation, ", and 0 unless transposed");
  const int64_t channels_in = transposed ? weight.size(0) : weight.size(1) * groups;
  const int64_t channels_out = transposed ? weight.size(1) * groups : weight.size(0);
  TORCH_CHECK(input.size(1) == channels_in, "input has ", input.size(1), " channels, expected ",
              channels_in);
  TORCH_CHECK(weight.size(0) % groups == 0, "weight has shape ", weight.sizes(),
              ", expected a first dimension that groups=", groups, " divides");
  TORCH_CHECK(weight.device() == input.device(), "weight is on ", weight.device(),
              ", expected input's device ", input.device());
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight is ", weight.scalar_type(),
              ", expected input's dtype ", input.scalar_type());
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels_out && bias->is_contiguous(),
                "bias has shape ", bias->sizes(), ", expected (", channels_out, ")");
    TORCH_CHECK(bias->device() == input.device() && bias->scalar_type() == input.scalar_type(),
                "bias is ", bias->scalar_type(), " on ", bias->device(), ", expected ",
                input.scalar_type(), " on ", input.device());
  }
  int64_t mode = allow_tf32 ? fastconv1d::kTf32 : fastconv1d::kIeee;
  if (input.scalar_type() == at::kBFloat16) mode = fastconv1d::kBf16;
  if (input.scalar_type() == at::kHalf) mode = fastconv1d::kFp16;
  TORCH_CHECK(mode > fastconv1d::kIeee || input.scalar_type() == at::kFloat, "input is ",
              input.scalar_type(), ", expected float32, bfloat16 or float16");
  const int64_t length = input.size(2), reach = dilation * (weight.size(2) - 1) + 1;
  int64_t length_out = (length - 1) * stride - 2 * padding + reach + output_padding;
  if (!transposed) {
    const int64_t room = length + 2 * padding - reach;
    length_out = room >= 0 ? room / stride + 1 : 0;
  }
  TORCH_CHECK(length_out > 0, "input has length ", length, ", expected a longer one with padding ",
              padding, " and a kernel's reach of ", reach);
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = at::empty({input.size(0), channels_out, length_out}, input.options());
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
  args.channels_out = channels_out;
  args.length = x.size(2);
  args.length_out = length_out;
  args.kernel_size = w.size(2);
  args.stride = stride;
  args.padding = padding;
  args.dilation = dilation;
  args.groups = groups;
  args.transposed = transposed;
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
#define CONVOLUTION_LIBRARY(name, library) TORCH_LIBRARY(name, library)
CONVOLUTION_LIBRARY(TORCH_EXTENSION_NAME, library) {
  library.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, int stride, int padding, "
      "int dilation, bool transposed, int output_padding, int groups, bool allow_tf32) -> Tensor");
  library.impl("convolution", c10::DispatchKey::CUDA, TORCH_FN(convolution));
}
"""


@functools.cache
def compiled_operator(device_index):
    """The operator, compiled for one CUDA device."""
    capability = torch.cuda.get_device_capability(device_index)
    oldest, exactly = (9, 0), True
    if capability < oldest or (exactly and capability != oldest):
        expected = f"{oldest}" if exactly else f"at least {oldest}"
        raise RuntimeError(f"device has compute capability {capability}, expected {expected}")
    arch = "90a" if capability == (9, 0) else "%d%d" % capability
    made_from = "\n".join((torch.__version__, arch, CPP_SOURCE, CUDA_SOURCE))
    # A name of its own for every source: torch can load two of these files side by side.
    name = "convolution_" + hashlib.sha256(made_from.encode()).hexdigest()[:16]
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
    return getattr(torch.ops, name).convolution.default


class Convolution(torch.autograd.Function):
    """Our forward with ATen's gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias, *geometry):
        if not x.is_cuda:
            raise RuntimeError(f"input is on {x.device}, expected a CUDA device")
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else [bias.numel()]
        stride, padding, dilation, transposed, output_padding, groups = geometry
        ctx.geometry = [stride], [padding], [dilation], transposed, [output_padding], groups
        tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
        convolution = compiled_operator(x.get_device())
        return convolution(x, weight, bias, *geometry, tf32)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        gradients = torch.ops.aten.convolution_backward(
            grad_output, x, weight, ctx.bias_sizes, *ctx.geometry, ctx.needs_input_grad[:3]
        )
        return *gradients, *(None for number in ctx.geometry)


class Conv1d(nn.Module):
    """weight (out_channels, in_channels/groups, kernel_size) and bias (out_channels,), initialised
    by the draws that torch's own layer makes."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        bias,
    ):
        super().__init__()
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if count % groups:
                raise ValueError(f"{name} is {count}, expected a multiple of groups={groups}")
        self.geometry = stride, padding, dilation, False, output_padding, groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.register_parameter("bias", None)
        if bias:
            bound = 1 / math.sqrt(in_channels // groups * kernel_size)
            self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))

    def forward(self, x):
        return Convolution.apply(x, self.weight, self.bias, *self.geometry)


class ModelNew(nn.Module):
    """(batch, in_channels, length) to (batch, out_channels, length_out) with length_out =
    floor((length + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1."""

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
            in_channels, out_channels, kernel_size, stride, padding, 0, dilation, groups, bias
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1d(x)


def get_inputs():
    return [torch.rand(32, 64, 131072)]


def get_init_inputs():
    return [64, 128, 3]
