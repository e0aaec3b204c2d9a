// The instructions that the kernels use and C++ has no name for. With FASTCONV1D_EMULATE the same
// names run on the CPU, one fiber per CUDA thread, for tests.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(FASTCONV1D_EMULATE)
#include "cuda_emulation.h"
#else
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

// OFFSET, in bytes, is added to both addresses; part of the instruction, it costs none.
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

// An mbarrier in shared memory: a phase ends when `count` threads have arrived; who waits for a phase
// (parity 0 for the first, 1 for the second, 0 for the third, ...) sees what they wrote before.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int count) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(address)
               : "memory");
}
#if __CUDA_ARCH__ >= 900  // the thread sleeps a while
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

// Bytes of shared memory that one block may take where `blocks` of them share a multiprocessor.
inline int64_t shared_budget(int blocks) {
  int device = 0, per_block = 0, per_processor = 0, reserved = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  const int64_t share = per_processor / blocks - reserved;
  return share < per_block ? share : per_block;
}

}  // namespace fastconv1d
#endif

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

// The nearest TF32 number, ties away from zero: the rounding that cuDNN applies to both operands. By
// integers, so a NaN may become another number.
__device__ __forceinline__ float nearest_tf32(float x) {
  return float_of((bits_of(x) + 0x1000u) & 0xffffe000u);
}

// The same, and a NaN stays one: the product added is a NaN then, and vanishes otherwise. cvt.rna
// takes one instruction more.
__device__ __forceinline__ uint32_t round_tf32(float x) {
  return bits_of(fmaf(x, 1.4e-45f, nearest_tf32(x)));
}

}  // namespace fastconv1d
