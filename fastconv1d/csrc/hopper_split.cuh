// The input as the Hopper kernel's tiles with `presplit` read it: each fp32 value split for Halves once, before any tap
// and any block of channels sees it.
//
// A word has a value's high part in its low half, its low part in the other. All values of a batch are scaled by the same
// power of two, after its largest finite one: a first kernel finds that, a second one splits; both do as much for the
// weights. Where values are too small for this scale, blocks of them are marked; tiles go back to the input there, and
// everywhere in a batch some of whose blocks are so small that larger scales could not make up for it.
#pragma once
#include <type_traits>

#include "hopper_pack.cuh"

namespace fastconv1d {

// Channels and positions of a block of values; a thread has four rows, and of each four positions.
constexpr int kSplitChannels = 32, kSplitPositions = 128, kSplitThreads = 256;
constexpr int kSplitShared = 4 * (2 + kSplitThreads / 32);  // bytes
constexpr int kMostSplitParts = 64;  // blocks that look for a batch's largest value
// log2 of how much smaller than a batch's largest value that of a block may be, whatever else it has.
constexpr int kNearLargest = 10;

struct SplitParams {
  const float* input;
  int64_t batch_stride, channel_stride;  // of the input, in elements
  int64_t batch, channels, length;       // of all groups
  uint32_t* parts;                       // [batch][part]: the largest values, as bits of fp32
  int64_t parts_of_batch;
  int* scales;  // [batch]: log2
  int* wide;    // [batch]: whether one scale cannot do
  // [batch][block of positions][block of channels]: the exponent of the largest value, and whether some are too small.
  uint16_t* marks;
  uint32_t* words;  // [batch][channel][pitch]
  int64_t pitch;    // a multiple of 4: all rows begin at 16 bytes

  FASTCONV1D_HD int64_t channel_blocks() const { return ceil_div(channels, kSplitChannels); }
  FASTCONV1D_HD int64_t position_blocks() const { return ceil_div(length, kSplitPositions); }
  FASTCONV1D_HD int64_t blocks() const { return channel_blocks() * position_blocks(); }

  static __device__ __forceinline__ uint16_t mark_of(uint32_t exponent, bool small) {
    return static_cast<uint16_t>(exponent | (small ? 256 : 0));
  }
  static __device__ __forceinline__ uint32_t exponent_of(uint16_t mark) { return mark & 255; }
  static __device__ __forceinline__ bool is_small(uint16_t mark) { return mark > 255; }

  // Of a workspace from `at` on, a multiple of 32 bytes; returns where it ends.
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

// A thread's values of a block; zeros beside the input.
struct SplitValues {
  float of[4][4];
  __device__ __forceinline__ SplitValues(const SplitParams& p, int64_t batch, uint32_t block) {
    visit(p, block, [&](int i, int j, int64_t channel, int64_t position, bool exists) {
      of[i][j] =
          exists ? __ldg(p.input + batch * p.batch_stride + channel * p.channel_stride + position)
                 : 0.f;
    });
  }
  // Calls visit(row, column, channel, position, whether they exist).
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

// Blocks of a batch take turns on its values and find the largest.
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

// A block splits one of values.
template <class M>
__device__ __forceinline__ void split_values(const SplitParams& p, uint32_t number,
                                             uint32_t* memory) {
  Digits<uint32_t> digits{number};
  const uint32_t block = digits.take(p.blocks()), batch = digits.rest;
  const SplitValues values(p, batch, block);
  if (threadIdx.x < 2) memory[threadIdx.x] = 0;
  wait_for_kernel_before();  // that finds the largest values
  const uint32_t* const parts = p.parts + batch * p.parts_of_batch;
  uint32_t most = 0;
  for (int64_t part = threadIdx.x % 32; part < p.parts_of_batch; part += 32)
    most = parts[part] > most ? parts[part] : most;
  most = largest_of_warp(most);
  const int log2 = Scale::log2_for(static_cast<int>(smaller(most >> 23, Scale::most)));
  const float scale = Scale::power_of_two(log2);
  const uint32_t least = Scale::least_whole(log2);
  // What the last of the scales that tiles try makes whole.
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

// What has to be known of the input and of the weight before either is split, and then both: some blocks do the one, those
// behind them the other.
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

}  // namespace fastconv1d
