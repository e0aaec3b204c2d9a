// What the kernels of a weight's gradient on tensor cores share: slices of positions, splits of the batch, how
// rows are read that begin anywhere.
#pragma once
#include <type_traits>

#include "grad_sum.cuh"
#include "tile.cuh"

namespace fastconv1d {

constexpr int kGradSteps = 4, kGradWords = 8 * kGradSteps;  // of a slice
constexpr int64_t kGradWorkspace = int64_t{64} << 20;
// Positions after which sums are added up apart: tensor cores cut off what they add.
constexpr int64_t kGradChain = 1 << 15;

// 16 bytes of a row that begin at a multiple of ALIGNMENT.
template <int ALIGNMENT, class Element>
__device__ __forceinline__ uint4 load_words(const Element* from) {
  if constexpr (ALIGNMENT == 16) {
    return __ldg(reinterpret_cast<const uint4*>(from));
  } else {
    using Half = std::conditional_t<ALIGNMENT == 4, uint32_t, uint16_t>;
    using Word = std::conditional_t<ALIGNMENT == 8, uint2, Half>;
    Word value[16 / sizeof(Word)];
#pragma unroll
    for (int e = 0; e < static_cast<int>(16 / sizeof(Word)); ++e)
      value[e] = __ldg(reinterpret_cast<const Word*>(from) + e);
    uint4 words;
    memcpy(&words, value, sizeof words);
    return words;
  }
}

// Calls function(alignment), an integral constant.
template <class Element, class Function>
__device__ __forceinline__ void with_alignment(int alignment, const Function& function) {
  if (alignment >= 16) return function(std::integral_constant<int, 16>{});
  if (alignment == 8) return function(std::integral_constant<int, 8>{});
  if (sizeof(Element) == 4 || alignment == 4) return function(std::integral_constant<int, 4>{});
  if constexpr (sizeof(Element) == 2) function(std::integral_constant<int, 2>{});
}

// Adds to a sum whose rounding errors are kept beside it.
__device__ __forceinline__ void add_compensated(float2& sum, float x) {
  const float corrected = x - sum.y, next = sum.x + corrected;
  sum = make_float2(next, (next - sum.x) - corrected);
}

// The number of parts into which `all` slices of each of the `tiles` are split, at most a fourth of them: that
// with which the last wave of blocks, `at_once` at a time, is the fullest.
inline int64_t splits_of(const ConvArgs& a, int64_t tiles, int64_t all, int64_t at_once) {
  constexpr int64_t start = 12;  // slices' time that a block takes for its start and its end
  const int64_t elements = a.channels_out * ((a.channels_in / a.groups) * a.kernel_size + 1),
                most = larger(1, smaller(all / 4, kGradWorkspace / (4 * elements)));
  int64_t best = 1, least = INT64_MAX;
  for (int waves = 1; waves <= 4 && tiles > 0; ++waves) {
    const int64_t splits = smaller(most, larger(1, waves * at_once / tiles));
    const int64_t time = ceil_div(tiles * splits, at_once) * (ceil_div(all, splits) + start);
    if (time >= least) continue;
    best = splits;
    least = time;
  }
  return best;
}

// Bytes, of 16 at most, by multiples of which rows lie apart, from an address that is one.
template <class Element>
int alignment_of(const void* first, int64_t row, int64_t batch) {
  const int64_t bytes = gcd(16, gcd(row, batch) * static_cast<int64_t>(sizeof(Element)));
  return static_cast<int>(
      gcd(bytes, static_cast<int64_t>(reinterpret_cast<uintptr_t>(first) % 16 + 16)));
}
template <class Element>
int input_alignment(const ConvArgs& a) {
  return alignment_of<Element>(a.input, a.input_channel_stride,
                               a.batch > 1 ? a.input_batch_stride : 0);
}
template <class Element>
int grad_alignment(const ConvArgs& a) {
  return alignment_of<Element>(a.grad_output, a.length_out, 0);
}

}  // namespace fastconv1d
