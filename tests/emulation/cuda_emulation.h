// Runs CUDA kernels on the CPU, for tests: device.cuh includes this file in place of PTX.
//
// Each CUDA thread is a fiber, and all fibers of a block share one operating-system thread. A fiber
// runs until it must wait for others, so an ordering that a kernel forgot shows in its results:
// whatever a thread may not rely on has not happened yet. ThreadSanitizer sees each fiber as a
// thread of its own, ordered by __syncthreads, __syncwarp and barriers in shared memory alone
// (shuffles and mma.sync order no memory), so it names the races that one schedule happens to
// survive.
//
// What is stricter than a kind machine: shared memory is a heap block of the size asked for, filled
// with NaN before each block runs; an asynchronous copy destroys its destination when it is issued
// and delivers no earlier than its wait; a warp's lanes must meet at the same collective operation;
// blocks and threads can run backwards (`reverse`).
//
// One kernel at a time: the state below is global and not locked.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
// The alignment of CUDA's vector types, so that -fsanitize=alignment judges vector accesses.
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) int2 {
  int32_t x, y;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;
using cudaStream_t = void*;

namespace fastconv1d::emulation {

// Functions of the emulator itself, which ThreadSanitizer must not mistake for the kernel's.
#define FASTCONV1D_EMULATOR __attribute__((noinline, no_sanitize("thread")))

inline constexpr int kLanes = 32;
inline constexpr size_t kStackBytes = 256 << 10;
inline constexpr int64_t kSharedDefault = 48 << 10;  // without set_shared_limit
inline constexpr int64_t kSharedReserved = 1 << 10;  // for each block
inline constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;

// The collective operations of a warp.
inline constexpr char kSyncWarp[] = "__syncwarp", kShuffle[] = "__shfl_sync", kMma[] = "mma.sync";

enum class State { kReady, kAtBlock, kAtWarp, kAtBarrier, kExited };

struct Copy {
  void* to;
  const void* from;
};

// Those of mma.sync, decoded: rows of the left matrix, columns of the right one.
struct Operands {
  double left[16][16], right[8][16];
};

struct Warp {
  int first = 0, lanes = 0, arrived = 0;
  unsigned meetings = 0;  // so far: their parity picks the buffer and ThreadSanitizer's key
  const char* operation = nullptr;  // that the arrived lanes wait in
  alignas(16) uint32_t buffer[2][kLanes][8];
  Operands operands[2];
  char order[2];
};

struct Fiber {
  State state = State::kExited;
  uint3 index{};
  Warp* warp = nullptr;
  int lane = 0;
  const void* barrier = nullptr;  // that it waits at
  const void* stack = nullptr;
  size_t stack_bytes = kStackBytes;
  bool started = false;
  void* registers[5];  // of __builtin_setjmp
  ucontext_t entry;
  void* sanitizer = nullptr;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  std::vector<std::function<void()>> open_products;
  std::deque<std::vector<std::function<void()>>> products;
};

inline bool reverse = false;
inline int64_t processor_shared_bytes = 228 << 10;             // of a multiprocessor: sm_90
inline const char *written = nullptr, *written_end = nullptr;  // what kernels write and read again
inline std::vector<std::unique_ptr<Fiber>> pool;
inline std::vector<Warp> warps;
inline Fiber* current = nullptr;
inline Fiber scheduler;
inline std::function<void()>* body = nullptr;
inline char* shared_memory = nullptr;
inline int64_t shared_bytes = 0;
inline int alive = 0, at_block = 0;
inline unsigned block_meetings = 0;
inline char block_order[2], launch_order[2];
inline const char* failure = nullptr;
inline std::map<const void*, int64_t> shared_limits;

// Bulk copies and wgmma happen as late as they may: when a thread waits for them.
struct BulkCopy {
  void* to;
  const void* from;
  uint32_t bytes;
  bool rounds;  // fp32 values, to TF32
};
constexpr int kMostBulkCopies = 2048;
// Plain arrays, which only functions touch that ThreadSanitizer does not watch.
struct BulkState {
  const void* barrier;
  int64_t expected, issued;  // bytes of the barrier's phase
  int count;
  BulkCopy copies[kMostBulkCopies];
};
inline BulkState bulk[64];

void fail(const char* message);

FASTCONV1D_EMULATOR inline BulkState& bulk_of(const void* barrier) {
  for (BulkState& state : bulk)
    if (state.barrier == barrier || state.barrier == nullptr) {
      state.barrier = barrier;
      return state;
    }
  fail("more barriers than the emulation has room for");
  std::abort();
}

inline void order_release([[maybe_unused]] void* key) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(key);
#endif
}
inline void order_acquire([[maybe_unused]] void* key) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(key);
#endif
}

FASTCONV1D_EMULATOR inline void jump(Fiber& to) {
  if (to.started) __builtin_longjmp(to.registers, 1);
  to.started = true;
  setcontext(&to.entry);
}

// Leaves `from` and continues `to`. __builtin_setjmp costs 12 ns where swapcontext costs 280.
FASTCONV1D_EMULATOR inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_bytes);
#endif
  if (__builtin_setjmp(from.registers) == 0) jump(to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

FASTCONV1D_EMULATOR inline void yield() { switch_fiber(*current, scheduler); }

// Ends the launch: the other fibers are left where they are.
FASTCONV1D_EMULATOR inline void fail(const char* message) {
  failure = message;
  yield();
  std::abort();
}

FASTCONV1D_EMULATOR inline void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
#endif
  for (;;) {
    order_acquire(&launch_order[0]);
    (*body)();
    order_release(&launch_order[1]);
    current->state = State::kExited;
    --alive;
    yield();
  }
}

FASTCONV1D_EMULATOR inline void meet_block() {
  char* key = &block_order[block_meetings & 1];
  order_release(key);
  current->state = State::kAtBlock;
  ++at_block;
  yield();
  order_acquire(key);
}

// Named barriers, numbered from 1.
struct NamedBarrier {
  int arrived;
  unsigned meetings;
  char order[2];
};
inline NamedBarrier named_barriers[16];

FASTCONV1D_EMULATOR inline void meet_threads(int id, int threads) {
  NamedBarrier& group = named_barriers[id];
  char* key = &group.order[group.meetings & 1];
  order_release(key);
  if (++group.arrived < threads) {
    current->barrier = &group;
    current->state = State::kAtBarrier;
    yield();
  } else {
    group.arrived = 0;
    ++group.meetings;
    for (auto& fiber : pool)
      if (fiber->state == State::kAtBarrier && fiber->barrier == &group)
        fiber->state = State::kReady;
  }
  order_acquire(key);
}

// Waits for the warp's other lanes; returns the parity of this meeting.
FASTCONV1D_EMULATOR inline unsigned meet_warp(const char* operation) {
  Warp& warp = *current->warp;
  const unsigned parity = warp.meetings & 1;
  if (warp.arrived++ == 0) warp.operation = operation;
  if (warp.operation != operation) fail("lanes of one warp meet in different operations");
  if (warp.arrived < warp.lanes) {
    current->state = State::kAtWarp;
    yield();
  } else {
    warp.arrived = 0;
    ++warp.meetings;
    for (int t = warp.first; t < warp.first + warp.lanes; ++t)
      if (pool[t].get() != current) pool[t]->state = State::kReady;
  }
  return parity;
}

// Shows each lane's words to the whole warp, until the lane's second operation after this one.
FASTCONV1D_EMULATOR inline const uint32_t (*exchange(const char* operation, const uint32_t* words,
                                                     int count))[8] {
  Warp& warp = *current->warp;
  uint32_t* mine = warp.buffer[warp.meetings & 1][current->lane];
  for (int i = 0; i < count; ++i) mine[i] = words[i];
  return warp.buffer[meet_warp(operation)];
}

// An mbarrier, in 8 bytes of shared memory that the kernel touches through these functions alone.
struct Barrier {
  uint16_t count, pending;
  uint32_t phase;
};

FASTCONV1D_EMULATOR inline Barrier& barrier_at(uint64_t* address) {
  const auto* at = reinterpret_cast<const char*>(address);
  if (at < shared_memory || at + 8 > shared_memory + shared_bytes) fail("a barrier out of place");
  return *reinterpret_cast<Barrier*>(address);
}

// ThreadSanitizer's key of a phase: two are in use at a time.
inline char* barrier_order(uint64_t* barrier, uint32_t phase) {
  return reinterpret_cast<char*>(barrier) + phase % 2;
}

// Whether the phase can end: all have arrived and all bytes were asked for.
FASTCONV1D_EMULATOR inline bool is_complete(uint64_t* address) {
  const BulkState& state = bulk_of(address);
  return barrier_at(address).pending == 0 && state.expected == state.issued;
}

// Ends the phase if it can. Its bulk copies happen now, when a thread asks for them.
FASTCONV1D_EMULATOR inline void try_to_end_phase(uint64_t* address) {
  if (!is_complete(address)) return;
  Barrier& barrier = barrier_at(address);
  BulkState& state = bulk_of(address);
  if (state.count > 0) order_acquire(barrier_order(address, barrier.phase));
  for (int i = 0; i < state.count; ++i) {
    const BulkCopy& copy = state.copies[i];
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.bytes);
    auto* const words = static_cast<uint32_t*>(copy.to);
    for (uint32_t w = 0; copy.rounds && w < copy.bytes / 4; ++w)
      if ((words[w] & 0x7f800000u) != 0x7f800000u) words[w] = (words[w] + 0x1000u) & ~0x1fffu;
  }
  if (state.count > 0) order_release(barrier_order(address, barrier.phase));
  state.expected = state.issued = state.count = 0;
  barrier.pending = barrier.count;
  ++barrier.phase;
}

// Wakes those that wait for the phase if it can end; it does so at once where nothing was copied.
FASTCONV1D_EMULATOR inline void wake_if_complete(uint64_t* address) {
  if (!is_complete(address)) return;
  if (bulk_of(address).count == 0) try_to_end_phase(address);
  for (auto& fiber : pool)
    if (fiber->state == State::kAtBarrier && fiber->barrier == address)
      fiber->state = State::kReady;
}

FASTCONV1D_EMULATOR inline void arrive(uint64_t* address, int64_t expected = 0) {
  Barrier& barrier = barrier_at(address);
  order_release(barrier_order(address, barrier.phase));
  if (barrier.pending == 0) fail("more threads arrive at a barrier than it counts");
  --barrier.pending;
  bulk_of(address).expected += expected;
  wake_if_complete(address);
}

FASTCONV1D_EMULATOR inline void wait(uint64_t* address, uint32_t parity) {
  const Barrier& barrier = barrier_at(address);
  for (;;) {
    if (barrier.phase % 2 == parity) try_to_end_phase(address);
    if (barrier.phase % 2 != parity) break;
    current->barrier = address;
    current->state = State::kAtBarrier;
    yield();
  }
  order_acquire(barrier_order(address, parity));
}
// As late as it may be: a phase that nobody waited for is not over.
FASTCONV1D_EMULATOR inline bool is_over(uint64_t* address, uint32_t parity) {
  if (barrier_at(address).phase % 2 == parity) return false;
  order_acquire(barrier_order(address, parity));
  return true;
}

template <class T>
FASTCONV1D_EMULATOR T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if (mask != 0xffffffffu) fail("a shuffle needs the full mask");
  uint32_t words[2];
  __builtin_memcpy(words, &value, sizeof(T));
  const auto* lanes = exchange(kShuffle, words, sizeof(T) / 4);
  if (source >= current->warp->lanes) fail("a shuffle reads a lane that does not exist");
  __builtin_memcpy(&value, lanes[source], sizeof(T));
  return value;
}

// d += a·b with 16×K by K×8 operands, each value put where the PTX ISA says the lane's register lies.
// `value(word, half)` decodes an operand; a word holds K/8 neighbouring values of K.
template <int K, class Value>
FASTCONV1D_EMULATOR void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             Value value) {
  constexpr int kPerWord = K / 8;
  const uint32_t b[2] = {b0, b1};
  Warp& warp = *current->warp;
  if (warp.lanes != kLanes) fail("mma.sync needs 32 lanes");
  Operands& operands = warp.operands[warp.meetings & 1];
  const int group = current->lane / 4, quad = current->lane % 4;
  for (int half = 0; half < kPerWord; ++half) {
    for (int i = 0; i < 4; ++i)
      operands.left[group + 8 * (i % 2)][(i / 2 * 4 + quad) * kPerWord + half] = value(a[i], half);
    for (int i = 0; i < 2; ++i)
      operands.right[group][(i * 4 + quad) * kPerWord + half] = value(b[i], half);
  }
  meet_warp(kMma);
  for (int i = 0; i < 4; ++i) {
    const double* const left = operands.left[group + 8 * (i / 2)];
    const double* const right = operands.right[2 * quad + i % 2];
    double sum = d[i];
    for (int k = 0; k < K; ++k) sum += left[k] * right[k];
    d[i] = float(sum);
  }
}

// The 8 words (values_per_word values each) of a column of a wgmma operand.
inline void operand_column(uint64_t operand, int column, uint32_t (&words)[8]) {
  const int64_t start = int64_t(operand & 0x3fff) << 4, half = int64_t(operand >> 16 & 0x3fff) << 4,
                eight = int64_t(operand >> 32 & 0x3fff) << 4;
  const bool swizzled = operand >> 62 == 1;
  for (int h = 0; h < 2; ++h) {
    const int64_t plain = start + column / 8 * eight +
                          (swizzled ? h * 16 + column % 8 * 128 : h * half + column % 8 * 16),
                  at = swizzled ? plain ^ (plain >> 3 & 0x70) : plain;
    if (at + 16 > shared_bytes) fail("wgmma reads beyond the shared memory that was asked for");
    for (int i = 0; i < 4; ++i)
      words[4 * h + i] = reinterpret_cast<const uint32_t*>(shared_memory + at)[i];
  }
}

// The same of a turned one, of 16-bit values.
inline void turned_column(uint64_t operand, int column, uint32_t (&words)[8]) {
  const int64_t start = int64_t(operand & 0x3fff) << 4, next = int64_t(operand >> 16 & 0x3fff) << 4,
                eight = int64_t(operand >> 32 & 0x3fff) << 4;
  const int columns = operand >> 62 == 1 ? 64 : 32;
  for (int k = 0; k < 16; ++k) {
    const int64_t plain = start + column / columns * next + k / 8 * eight + k % 8 * columns * 2 +
                          column % columns * 2,
                  at = plain ^ (plain >> 3 & (columns == 64 ? 0x70 : 0x30));
    if (at + 2 > shared_bytes) fail("wgmma reads beyond the shared memory that was asked for");
    uint16_t value;
    std::memcpy(&value, shared_memory + at, 2);
    words[k / 2] = k % 2 ? words[k / 2] | uint32_t(value) << 16 : value;
  }
}

typedef double Pair __attribute__((vector_size(16)));

// The values of a column of a wgmma operand. They are kept for the other threads that read it, 32 in
// all, until a column of this number has other words.
template <int PER_WORD, class Value>
FASTCONV1D_EMULATOR const double* decode(const uint32_t (&words)[8], int column, Value value) {
  static struct {
    uint32_t words[8];
    double values[8 * PER_WORD];
  } columns[256];  // whose words are zeros at first, as their values
  auto& kept = columns[column];
  uint32_t differences = 0;
  for (int i = 0; i < 8; ++i) differences |= kept.words[i] ^ words[i];
  if (differences)
    for (int i = 0; i < 8; ++i) {
      kept.words[i] = words[i];
      for (int part = 0; part < PER_WORD; ++part)
        kept.values[i * PER_WORD + part] = value(words[i], part);
    }
  return kept.values;
}

// d += a·b of a warpgroup, the part of this thread, when it waits for it. The warp's fragment of `a`,
// that of mma.sync, must be the same then.
template <int SUMS, int PER_WORD, class Value, class Column = decltype(operand_column)>
FASTCONV1D_EMULATOR void wgmma(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b, Value value,
                               Column& column_of = operand_column) {
  constexpr int kValues = 8 * PER_WORD;
  struct Rows {
    Pair values[kValues];  // of the rows `group` and `group` + 8
  } left;
  struct Words {
    uint32_t words[4];
  } mine;
  std::memcpy(mine.words, a, sizeof a);
  const uint32_t* const fragment = a;
  float* const sums = d;
  const int quad = current->lane % 4, group = current->lane / 4;
  const auto* lanes = exchange(kMma, a, 4);
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < kValues; ++k) {
      const int word = k / PER_WORD;
      left.values[k][h] = value(lanes[group * 4 + word % 4][h + word / 4 * 2], k % PER_WORD);
    }
  current->open_products.push_back([=, &column_of] {
    if (std::memcmp(fragment, mine.words, sizeof mine.words))
      fail("a fragment changed while wgmma may still read it");
    for (int n = 0; n < SUMS / 4; ++n)
      for (int e = 0; e < 2; ++e) {
        uint32_t words[8];
        const int column = n * 8 + quad * 2 + e;
        column_of(b, column, words);
        const double* const right = decode<PER_WORD>(words, column, value);
        float *const first = &sums[n * 4 + e], *const second = first + 2;
        Pair total = {*first, *second};
        for (int k = 0; k < kValues; ++k) total += left.values[k] * right[k];
        *first = float(total[0]), *second = float(total[1]);
      }
  });
}

FASTCONV1D_EMULATOR inline Fiber* make_fiber() {
  auto* fiber = new Fiber;
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) std::abort();
  fiber->stack = stack;
  getcontext(&fiber->entry);
  fiber->entry.uc_stack.ss_sp = stack;
  fiber->entry.uc_stack.ss_size = kStackBytes;
  fiber->entry.uc_link = nullptr;
  makecontext(&fiber->entry, run_fiber, 0);
#if defined(__SANITIZE_THREAD__)
  fiber->sanitizer = __tsan_create_fiber(0);
#endif
  return fiber;
}

// Runs each thread of the block until it waits, again and again until all have left the kernel.
FASTCONV1D_EMULATOR inline void run_block(int threads) {
  alive = threads;
  at_block = 0;
  while (alive > 0 && !failure) {
    bool progress = false;
    const int count = int(warps.size());
    for (int w = 0; w < count; ++w) {
      const Warp& warp = warps[reverse ? count - 1 - w : w];
      for (bool ready = true; ready && !failure;) {
        ready = false;
        for (int i = 0; i < warp.lanes && !failure; ++i) {
          Fiber& fiber = *pool[warp.first + (reverse ? warp.lanes - 1 - i : i)];
          if (fiber.state != State::kReady) continue;
          ready = progress = true;
          current = &fiber;
          threadIdx = fiber.index;
          switch_fiber(scheduler, fiber);
        }
      }
    }
    if (alive > 0 && at_block == alive) {
      at_block = 0;
      ++block_meetings;
      for (int t = 0; t < threads; ++t)
        if (pool[t]->state == State::kAtBlock) pool[t]->state = State::kReady;
    } else if (!progress) {
      failure = "deadlock: some threads wait for others that never come";
    }
  }
}

FASTCONV1D_EMULATOR inline int run_grid(dim3 grid, dim3 block, int64_t bytes,
                                        std::function<void()>& kernel) {
  const int threads = block.x * block.y * block.z;
  while (pool.size() < size_t(threads)) pool.emplace_back(make_fiber());
  warps.assign((threads + kLanes - 1) / kLanes, Warp{});
  for (int t = 0; t < threads; t += kLanes) {
    warps[t / kLanes].first = t;
    warps[t / kLanes].lanes = std::min(kLanes, threads - t);
  }
#if defined(__SANITIZE_THREAD__)
  scheduler.sanitizer = __tsan_get_current_fiber();
#endif
  failure = nullptr;
  scheduler.started = true;
  body = &kernel;
  shared_bytes = bytes;
  blockDim = block;
  gridDim = grid;
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  for (int64_t b = 0; b < blocks && !failure; ++b) {
    const int64_t number = reverse ? blocks - 1 - b : b;
    blockIdx = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                unsigned(number / grid.x / grid.y)};
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, size_t(std::max<int64_t>(bytes, 1)))) std::abort();
    shared_memory = static_cast<char*>(memory);
    for (NamedBarrier& group : named_barriers) group.arrived = 0;
    for (BulkState& state : bulk)
      state.barrier = nullptr, state.expected = state.issued = state.count = 0;
    std::memset(shared_memory, 0xff, bytes);  // NaN in every floating-point type
    for (int t = 0; t < threads; ++t) {
      Fiber& fiber = *pool[t];
      fiber.state = State::kReady;
      fiber.index = {unsigned(t % block.x), unsigned(t / block.x % block.y),
                     unsigned(t / block.x / block.y)};
      fiber.warp = &warps[t / kLanes];
      fiber.lane = t % kLanes;
      fiber.open.clear();
      fiber.groups.clear();
      fiber.open_products.clear();
      fiber.products.clear();
    }
    order_release(&launch_order[0]);
    run_block(threads);
    order_acquire(&launch_order[1]);
    std::free(memory);
  }
  if (!failure) return 0;
  std::fprintf(stderr, "emulation: block (%u, %u, %u), thread (%u, %u, %u): %s\n", blockIdx.x,
               blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, failure);
  for (auto& fiber : pool) fiber.release();  // abandoned where they are
  pool.clear();
  return kLaunchFailure;
}

}  // namespace fastconv1d::emulation

inline void __syncthreads() { fastconv1d::emulation::meet_block(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  using namespace fastconv1d::emulation;
  if (mask != 0xffffffffu) fail("__syncwarp needs the full mask");
  Warp& warp = *current->warp;
  char* key = &warp.order[warp.meetings & 1];
  order_release(key);
  meet_warp(kSyncWarp);
  order_acquire(key);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int lane = fastconv1d::emulation::current->lane;
  return fastconv1d::emulation::shuffle(mask, value, (lane & -width) + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  const int lane = fastconv1d::emulation::current->lane, source = lane ^ bits;
  const bool inside = source < (lane & -width) + width;
  return fastconv1d::emulation::shuffle(mask, value, inside ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int lane = fastconv1d::emulation::current->lane, source = lane + int(delta);
  const bool inside = source < (lane & -width) + width;
  return fastconv1d::emulation::shuffle(mask, value, inside ? source : lane);
}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

// The compiler takes what this reads for constant, and reads it before a kernel has waited for the one before.
template <class T>
T __ldg(const T* address) {
  using namespace fastconv1d::emulation;
  const auto* const at = reinterpret_cast<const char*>(address);
  if (at >= written && at < written_end) fail("__ldg of what another kernel writes");
  if (reinterpret_cast<uintptr_t>(at) % alignof(T) != 0) fail("__ldg of what is not aligned");
  return *address;
}

namespace fastconv1d {

// The block's dynamic shared memory.
#define FASTCONV1D_SHARED(name) \
  uint32_t* name = reinterpret_cast<uint32_t*>(fastconv1d::emulation::shared_memory)

inline float word_as_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline uint32_t float_as_word(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

inline float bf16_to_float(uint16_t bits) { return word_as_float(uint32_t(bits) << 16); }
inline uint16_t float_to_bf16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t word = float_as_word(value);
  return uint16_t((word + 0x7fffu + (word >> 16 & 1)) >> 16);
}

inline float fp16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = uint32_t(bits & 0x7fff) << 13;
  if ((bits & 0x7c00) == 0x7c00) return word_as_float(sign | magnitude | 0x7f800000u);
  return word_as_float(sign | float_as_word(word_as_float(magnitude) * 0x1p112f));
}
inline uint16_t float_to_fp16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  // A fraction that rounds up to 2048 carries into the exponent, as it should.
  return sign | uint16_t(((exponent + 14) << 10) +
                         int(std::nearbyint(std::ldexp(magnitude, 10 - exponent))));
}

// The tensor core ignores the 13 low bits of a TF32 operand.
FASTCONV1D_EMULATOR inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  emulation::mma<8>(d, a, b0, b1,
                    [](uint32_t word, int) { return word_as_float(word & ~0x1fffu); });
}
FASTCONV1D_EMULATOR inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  emulation::mma<16>(d, a, b0, b1, [](uint32_t word, int half) {
    return bf16_to_float(uint16_t(word >> 16 * half));
  });
}
FASTCONV1D_EMULATOR inline void mma_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  emulation::mma<16>(d, a, b0, b1, [](uint32_t word, int half) {
    return fp16_to_float(uint16_t(word >> 16 * half));
  });
}

FASTCONV1D_EMULATOR inline void load_matrices(uint32_t (&word)[4], const uint32_t* row) {
  using namespace emulation;
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix of a row at an unaligned address");
  const int lane = current->lane;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto address = reinterpret_cast<uintptr_t>(row);
    const uintptr_t other = shuffle(0xffffffffu, address, 8 * matrix + lane / 4);
    word[matrix] = reinterpret_cast<const uint32_t*>(other)[lane % 4];
  }
}

FASTCONV1D_EMULATOR inline void store_matrices_turned(void* row, const uint32_t (&word)[4]) {
  using namespace emulation;
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("stmatrix of a row at an unaligned address");
  const int lane = current->lane;
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int half = 0; half < 2; ++half) {
      const auto address = reinterpret_cast<uintptr_t>(row);
      const uintptr_t other = shuffle(0xffffffffu, address, 8 * matrix + lane % 4 * 2 + half);
      reinterpret_cast<uint16_t*>(other)[lane / 4] = uint16_t(word[matrix] >> 16 * half);
    }
}

FASTCONV1D_EMULATOR inline void load_matrices_turned(uint32_t (&word)[4], const uint32_t* row) {
  using namespace emulation;
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix of a row at an unaligned address");
  const int lane = current->lane;
  for (int matrix = 0; matrix < 4; ++matrix) {
    word[matrix] = 0;
    for (int half = 0; half < 2; ++half) {
      const auto address = reinterpret_cast<uintptr_t>(row);
      const uintptr_t other = shuffle(0xffffffffu, address, 8 * matrix + lane % 4 * 2 + half);
      word[matrix] |= uint32_t(reinterpret_cast<const uint16_t*>(other)[lane / 4]) << 16 * half;
    }
  }
}

// cp.async: the destination is lost at once, and written when the thread waits for its group.
template <int OFFSET = 0>
void copy_async_16(void* shared, const void* global) {
  using namespace emulation;
  shared = static_cast<char*>(shared) + OFFSET;
  global = static_cast<const char*>(global) + OFFSET;
  const auto* to = static_cast<const char*>(shared);
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("cp.async of 16 bytes at an unaligned address");
  if (to < shared_memory || to + 16 > shared_memory + shared_bytes)
    fail("cp.async beyond the shared memory that was asked for");
  std::memset(shared, 0xff, 16);
  current->open.push_back({shared, global});
}
inline void copy_async_commit() {
  emulation::current->groups.push_back(std::move(emulation::current->open));
  emulation::current->open.clear();
}
template <int N>
void copy_async_wait() {
  auto& groups = emulation::current->groups;
  for (; groups.size() > N; groups.pop_front())
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
}

FASTCONV1D_EMULATOR inline void barrier_init(uint64_t* barrier, int count) {
  emulation::barrier_at(barrier) = {uint16_t(count), uint16_t(count), 0};
}
inline void barrier_arrive(uint64_t* barrier) { emulation::arrive(barrier); }
inline void barrier_wait(uint64_t* barrier, uint32_t parity) { emulation::wait(barrier, parity); }
inline bool barrier_is_over(uint64_t* barrier, uint32_t parity) {
  return emulation::is_over(barrier, parity);
}
FASTCONV1D_EMULATOR inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  emulation::bulk_of(barrier).expected += bytes;
}
inline void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  emulation::arrive(barrier, bytes);
}

FASTCONV1D_EMULATOR inline void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  using namespace emulation;
  const auto* to = static_cast<const char*>(shared);
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16 ||
      bytes % 16)
    fail("a bulk copy that is not of whole pieces of 16 bytes");
  if (to < shared_memory || to + bytes > shared_memory + shared_bytes)
    fail("a bulk copy beyond the shared memory that was asked for");
  for (uint32_t i = 0; i < bytes; i += 4) reinterpret_cast<uint32_t*>(shared)[i / 4] = 0xffffffffu;
  BulkState& state = bulk_of(barrier);
  if (state.count == emulation::kMostBulkCopies)
    fail("more bulk copies of a phase than the emulation has room for");
  state.issued += bytes;
  state.copies[state.count++] = {shared, global, bytes, false};
  wake_if_complete(barrier);
}

// A matrix in memory, and the boxes that are copied of it.
struct BoxMap {
  const char* first;
  int64_t columns, rows, pitch;
  int element_bytes, box_columns, box_rows;
  BoxForm form;
};
inline int make_box_map(BoxMap* box, int element_bytes, const void* first, int64_t columns,
                        int64_t rows, int64_t pitch, int box_columns, int box_rows, BoxForm form) {
  if (reinterpret_cast<uintptr_t>(first) % 16 || pitch % 16 || pitch <= 0 || columns < 1 ||
      rows < 1 || box_columns < 1 || box_columns > 256 || box_rows < 1 || box_rows > 256 ||
      box_columns * element_bytes % 16 ||
      (form == BoxForm::swizzled && box_columns * element_bytes != 128))
    return emulation::kInvalidValue;
  *box = {static_cast<const char*>(first),
          columns,
          rows,
          pitch,
          element_bytes,
          box_columns,
          box_rows,
          form};
  return 0;
}
// Part of a bulk copy: zeros where `from` is null. Returns where the next part goes.
FASTCONV1D_EMULATOR inline char* copy_part(char* to, const char* from, int64_t bytes,
                                           uint64_t* barrier, bool rounds) {
  using namespace emulation;
  BulkState& state = bulk_of(barrier);
  if (bytes <= 0) return to;
  if (state.count == kMostBulkCopies)
    fail("more bulk copies of a phase than the emulation has room for");
  for (int64_t i = 0; i < bytes; ++i) to[i] = char(0xff);
  state.issued += bytes;
  state.copies[state.count++] = {to, from, uint32_t(bytes), rounds};
  return to + bytes;
}
FASTCONV1D_EMULATOR inline void copy_box(void* shared, const BoxMap* box, int column, int row,
                                         uint64_t* barrier) {
  using namespace emulation;
  auto* to = static_cast<char*>(shared);
  const int row_bytes = box->box_columns * box->element_bytes;
  const bool swizzled = box->form == BoxForm::swizzled;
  if ((to - shared_memory) % (swizzled ? 1024 : 128))
    fail("a box is copied to an unaligned address");
  if (column * box->element_bytes % 16) fail("a box begins at an unaligned column");
  if (to < shared_memory || to + box->box_rows * row_bytes > shared_memory + shared_bytes)
    fail("a box is copied beyond the shared memory that was asked for");
  // Those of an operand in pieces of 16 bytes.
  const int of_piece = swizzled ? 16 / box->element_bytes : box->box_columns,
            pieces = box->box_columns / of_piece;
  const bool rounds = box->form != BoxForm::plain && box->element_bytes == 4;
  for (int r = 0; r < box->box_rows; ++r)
    for (int piece = 0; piece < pieces; ++piece) {
      const int64_t begin = column + piece * of_piece, end = begin + of_piece;
      const bool exists = row + r >= 0 && row + r < box->rows;
      const int64_t first = exists ? std::clamp<int64_t>(0, begin, end) : end,
                    last = std::clamp<int64_t>(box->columns, first, end);
      const char* const from = box->first + (row + r) * box->pitch;
      char* at = to + r * row_bytes + (swizzled ? piece ^ (r & 7) : piece) * 16;
      at = copy_part(at, nullptr, (first - begin) * box->element_bytes, barrier, false);
      at = copy_part(at, from + first * box->element_bytes, (last - first) * box->element_bytes,
                     barrier, rounds);
      copy_part(at, nullptr, (end - last) * box->element_bytes, barrier, false);
    }
  wake_if_complete(barrier);
}

inline uint32_t nearest_tf32_bits(float x) {
  return float_as_word(x) + (std::fabs(x) < std::numeric_limits<float>::infinity() ? 0x1000u : 0u);
}

inline void add_to(float* to, float x) { *to += x; }
inline void store_16(void* to, const uint4& words) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulation::fail("a store of what is not aligned");
  *static_cast<uint4*>(to) = words;
}

inline uint32_t pack_fp16(float first, float second) {
  return float_to_fp16(first) | uint32_t(float_to_fp16(second)) << 16;
}
inline float2 unpack_fp16(uint32_t word) {
  return {fp16_to_float(uint16_t(word)), fp16_to_float(uint16_t(word >> 16))};
}
inline uint32_t largest_of_warp(uint32_t value) {
  for (int bits = 16; bits > 0; bits /= 2)
    value = std::max(value, __shfl_xor_sync(0xffffffffu, value, bits));
  return value;
}
inline uint32_t smallest_of_warp(uint32_t value) {
  for (int bits = 16; bits > 0; bits /= 2)
    value = std::min(value, __shfl_xor_sync(0xffffffffu, value, bits));
  return value;
}

inline void fence_async_proxy() {}
inline void threads_sync(int id, int threads) { emulation::meet_threads(id, threads); }
inline void warpgroup_sync(int id) { threads_sync(id, 128); }
// Kernels run one after the other.
inline void let_next_kernel_begin() {}
inline void wait_for_kernel_before() {}
template <int COUNT>
void keep_registers() {}
template <int COUNT>
void take_registers() {}

inline uint64_t wgmma_operand(const void* shared, uint32_t half_bytes) {
  const auto address = uint64_t(static_cast<const char*>(shared) - emulation::shared_memory);
  if (address % 16 || half_bytes % 16)
    emulation::fail("an operand of wgmma at an unaligned address");
  return address >> 4 | uint64_t(half_bytes >> 4) << 16 | uint64_t(128 >> 4) << 32;
}
constexpr int kOperandAlignment = 1024;
inline uint64_t wgmma_swizzled_operand(const void* shared) {
  const auto address = uint64_t(static_cast<const char*>(shared) - emulation::shared_memory);
  if (address % kOperandAlignment) emulation::fail("an operand of wgmma at an unaligned address");
  return address >> 4 | uint64_t(1) << 16 | uint64_t(kOperandAlignment >> 4) << 32 |
         uint64_t(1) << 62;
}
template <int COLUMNS>
uint64_t wgmma_turned_operand(const void* shared, uint32_t next_bytes) {
  const auto address = uint64_t(static_cast<const char*>(shared) - emulation::shared_memory);
  if (address % (2 * COLUMNS) || next_bytes % (2 * COLUMNS))
    emulation::fail("an operand of wgmma at an unaligned address");
  return address >> 4 | uint64_t(next_bytes >> 4) << 16 | uint64_t(COLUMNS) << 32 |
         uint64_t(COLUMNS == 64 ? 1 : 2) << 62;
}
inline void wgmma_fence() {}
inline void wgmma_commit() {
  emulation::current->products.push_back(std::move(emulation::current->open_products));
  emulation::current->open_products.clear();
}
template <int N>
void wgmma_wait() {
  auto& groups = emulation::current->products;
  for (; groups.size() > N; groups.pop_front())
    for (const auto& product : groups.front()) product();
}
inline void wgmma_settle() { wgmma_wait<0>(); }
// Nobody may look at sums while products are under way.
template <int COUNT>
void wgmma_hold(float (&)[COUNT]) {
  const emulation::Fiber& fiber = *emulation::current;
  if (!fiber.open_products.empty() || !fiber.products.empty())
    emulation::fail("sums are used while wgmma may still write them");
}
template <int COUNT>
void wgmma_hold(uint32_t (&)[COUNT]) {}
template <int SUMS>
void wgmma_tf32(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {
  emulation::wgmma<SUMS, 1>(d, a, b,
                            [](uint32_t word, int) { return word_as_float(word & ~0x1fffu); });
}
template <int SUMS>
void wgmma_bf16(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {
  emulation::wgmma<SUMS, 2>(
      d, a, b, [](uint32_t word, int half) { return bf16_to_float(uint16_t(word >> 16 * half)); });
}
template <int SUMS>
void wgmma_bf16_turned(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {
  emulation::wgmma<SUMS, 2>(
      d, a, b, [](uint32_t word, int half) { return bf16_to_float(uint16_t(word >> 16 * half)); },
      emulation::turned_column);
}
template <int SUMS>
void wgmma_fp16(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {
  emulation::wgmma<SUMS, 2>(
      d, a, b, [](uint32_t word, int half) { return fp16_to_float(uint16_t(word >> 16 * half)); });
}
template <int SUMS>
void wgmma_fp16_turned(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b) {
  emulation::wgmma<SUMS, 2>(
      d, a, b, [](uint32_t word, int half) { return fp16_to_float(uint16_t(word >> 16 * half)); },
      emulation::turned_column);
}

inline int64_t shared_budget(int blocks) {
  return emulation::processor_shared_bytes / blocks - emulation::kSharedReserved;
}

template <class... P>
int set_shared_limit(void (*kernel)(P...), int64_t bytes) {
  if (bytes > shared_budget(1)) return emulation::kInvalidValue;
  emulation::shared_limits[reinterpret_cast<const void*>(kernel)] = bytes;
  return 0;
}

// Runs the grid to its end; returns a cudaError_t.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, dim3 block, int64_t bytes, void*, const A&... args) {
  using namespace emulation;
  const auto limit = shared_limits.find(reinterpret_cast<const void*>(kernel));
  if (bytes < 0 || bytes > (limit == shared_limits.end() ? kSharedDefault : limit->second))
    return kInvalidValue;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return kInvalidConfiguration;
  if (const auto threads = uint64_t(block.x) * block.y * block.z;
      !threads || threads > 1024 || block.z > 64)
    return kInvalidConfiguration;
  std::function<void()> call = [&] { kernel(P(args)...); };
  return run_grid(grid, block, bytes, call);
}
template <class... P, class... A>
int launch_early(bool, void (*kernel)(P...), dim3 grid, dim3 block, int64_t bytes, void* stream,
                 const A&... args) {
  return launch(kernel, grid, block, bytes, stream, args...);
}

}  // namespace fastconv1d
