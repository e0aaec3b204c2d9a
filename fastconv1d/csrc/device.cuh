// The instructions that the kernels use and C++ has no name for. With FASTCONV1D_EMULATE the same
// names run on the CPU, one fiber per CUDA thread, for tests.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastconv1d {
// How boxes of a matrix come to shared memory: as they lie in memory; of fp32 the nearest TF32 numbers; these, swizzled as
// `wgmma_swizzled_operand` has rows of 128 bytes.
enum class BoxForm { plain, rounded, swizzled };
}  // namespace fastconv1d

#if defined(FASTCONV1D_EMULATE)
#include "cuda_emulation.h"
#else
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

// Four matrices of 8 rows of 4 words in shared memory: the lanes' addresses, multiples of 16, are those of the
// rows in turn; each lane gets word lane % 4 of row lane / 4 of all four.
__device__ __forceinline__ void load_matrices(uint32_t (&word)[4], const uint32_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
}

// The same of 8 rows of 8 16-bit values, turned: a lane gets column lane / 4 of rows 2 * (lane % 4) and the next one.
__device__ __forceinline__ void load_matrices_turned(uint32_t (&word)[4], const uint32_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
}

// The other way round: a lane has what `load_matrices` gave it, and says where a row of the turned matrices belongs.
__device__ __forceinline__ void store_matrices_turned(void* row, const uint32_t (&word)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
      : "memory");
}

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
// Whether a phase is over, without waiting for it. What the answer takes can be spent otherwise.
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

// Adds to what is there, without waiting for it.
__device__ __forceinline__ void add_to(float* to, float x) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(x) : "memory");
}

// Stores 16 bytes at a multiple of 16, with one instruction whatever the compiler thinks of the address.
__device__ __forceinline__ void store_16(void* to, const uint4& words) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w)
               : "memory");
}

// What follows is for sm_90 and, from wgmma on, sm_90a.

// Copies a multiple of 16 bytes from and to addresses that are multiples of 16, and tells the barrier.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(bytes), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
      : "memory");
}
// A matrix in memory, of which boxes are copied; what they have beside it becomes zeros.
struct BoxMap {
  CUtensorMap map;
};
// `first` and `pitch`, in bytes, are multiples of 16; so are a box's rows. Returns a cudaError_t.
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
  // A map belongs to a context, which a thread that has not used the GPU yet, as autograd's, does not have: this makes
  // the device's its own.
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
// Copies the box that begins with this column, a multiple of 16 bytes, and row to an address that is a
// multiple of 128.
__device__ __forceinline__ void copy_box(void* shared, const BoxMap* box, int column, int row,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(reinterpret_cast<uint64_t>(box)), "r"(column), "r"(row),
      "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier)))
      : "memory");
}
// Has the phase end no sooner than `bytes` more have been copied.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(bytes)
               : "memory");
}
// The same, and arrives.
__device__ __forceinline__ void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(address),
      "r"(bytes)
      : "memory");
}
// What this thread wrote to shared memory is there for wgmma and bulk copies after a barrier.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// So many threads, of whole warps, wait for each other; `id`, from 1 to 15, is their own.
__device__ __forceinline__ void threads_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void warpgroup_sync(int id) { threads_sync(id, 128); }

// Lets the next kernel of the stream begin, if it was launched as one that may, and has this one wait
// until the kernel before it is over. What that one wrote is read by plain loads: the compiler takes what
// __ldg reads for constant, and moves such loads to before the wait.
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

// The nearest TF32 number, ties away from zero, with bits below that wgmma ignores; infinities and NaNs
// stay. Two instructions, where C++ makes three.
__device__ __forceinline__ uint32_t nearest_tf32_bits(float x) {
  uint32_t bits = __float_as_uint(x);
  asm("{ .reg .pred p; .reg .f32 size; abs.f32 size, %1; setp.lt.f32 p, size, 0f7f800000; "
      "@p add.u32 %0, %0, 4096; }"
      : "+r"(bits)
      : "f"(x));
  return bits;
}

// Two fp32 values as fp16 ones, rounded, the first in the low half; and back.
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

// The largest and the smallest of a warp's values.
__device__ __forceinline__ uint32_t largest_of_warp(uint32_t value) {
  return __reduce_max_sync(0xffffffffu, value);
}
__device__ __forceinline__ uint32_t smallest_of_warp(uint32_t value) {
  return __reduce_min_sync(0xffffffffu, value);
}

// A warpgroup keeps COUNT registers a thread, and gives the others back, or takes so many.
template <int COUNT>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// An operand of wgmma in shared memory, columns of 32 bytes of the reduction ("K-major", no swizzle): the
// 16 bytes of a column, then those of the next; the second 16 bytes of all columns `half_bytes` further.
__device__ __forceinline__ uint64_t wgmma_operand(const void* shared, uint32_t half_bytes) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(half_bytes >> 4) << 16 |
         static_cast<uint64_t>(128 >> 4) << 32;
}
// The same of columns of 128 bytes, one after the other, whose pieces of 16 bytes are interchanged: a piece's number in
// its column is xored with the column's in 8, counted from a multiple of kOperandAlignment on. It may begin with
// every second piece.
constexpr int kOperandAlignment = 1024;
__device__ __forceinline__ uint64_t wgmma_swizzled_operand(const void* shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 |
         static_cast<uint64_t>(kOperandAlignment >> 4) << 32 | uint64_t{1} << 62;
}
// An operand whose columns are turned ("MN-major"): a row for each place of the reduction, of 64 or 32 columns of 2 bytes,
// whose pieces of 16 bytes are interchanged likewise, or by every second row's number in 4. It may begin with any row, and
// the next columns' rows `next_bytes` further: not much further where they are the same ones some places on.
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
// Ends all products, for the compiler's sake: it may let two pieces of code that read fragments in different
// ways use the same registers for them.
__device__ __forceinline__ void wgmma_settle() { wgmma_wait<0>(); }
// Keeps the compiler from moving what reads or writes these sums across: it does not know that wgmma
// writes them later.
template <int COUNT>
__device__ __forceinline__ void wgmma_hold(float (&sums)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// The same for a fragment that products will read: it is complete before what follows.
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

// d += a (64 rows, one warpgroup, a fragment as mma.sync's in each warp) * b (N columns), some time before
// the next wgmma_wait; neither may be touched until then.
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

// Whether all architectures that this is compiled for know how a kernel waits for the one before it.
constexpr bool kernels_wait() {
  for (const int architecture : {__CUDA_ARCH_LIST__})
    if (architecture < 900) return false;
  return true;
}

// A kernel that may begin before the one before it in the stream is over, if it is `early`, and waits for that itself
// (see above) where it can.
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

// Lets a kernel take that much. Its limit never goes down, so that threads of the host do not lower each other's.
template <class... Parameters>
int set_shared_limit(void (*kernel)(Parameters...), int64_t bytes) {
  if (bytes <= 48 << 10) return 0;
  const int64_t most = shared_budget(1);
  if (bytes > most) return cudaErrorInvalidValue;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(most));
}

}  // namespace fastconv1d
#endif

namespace fastconv1d {

// The low halves of two words, or the high ones, in one.
__device__ __forceinline__ uint32_t halves_of(uint32_t first, uint32_t second, bool high) {
#if defined(__CUDACC__)
  return __byte_perm(first, second, high ? 0x7632 : 0x5410);
#else
  return high ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
#endif
}

// The low word of two, shifted right by so many bits, less than 32.
__device__ __forceinline__ uint32_t shifted_right(uint32_t low, uint32_t high, int bits) {
#if defined(__CUDACC__)
  return __funnelshift_r(low, high, bits);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> bits);
#endif
}

// What each LANES neighbouring lanes have, added up for all of them; all lanes of a warp call it.
template <int LANES = 32, class T>
__device__ __forceinline__ T sum_of_lanes(T value) {
#pragma unroll
  for (int bits = LANES / 2; bits > 0; bits /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, bits);
  return value;
}

// Reads 16 bytes that nobody reads again: what L1 has is kept for others.
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

// Keeps a value where it is: the compiler would rather work it out again and again.
__device__ __forceinline__ void keep_in_register(int& value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#else
  (void)value;
#endif
}

// Brings the threads of a warp together again, for speed alone: no result depends on it.
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

// Clears what of a piece of 16 bytes, which begins at this position of a row, lies beside the row.
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
