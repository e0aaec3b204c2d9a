// What the kernels of a weight's gradient on tensor cores share: slices of positions, and how these are split.
#pragma once
#include "grad_sum.cuh"
#include "tile.cuh"

namespace fastconv1d {

constexpr int kGradSteps = 4, kGradWords = 8 * kGradSteps;  // of a slice
constexpr int64_t kGradWorkspace = int64_t{64} << 20;
// Positions after which sums are added up apart: tensor cores cut off what they add.
constexpr int64_t kGradChain = 1 << 15;

// Of the ways in which blocks can share the taps out, at most `most` each, the one that costs least: of_taps(taps)
// says how such a block looks, without channels if it does not fit, and cost_of what all of them take.
template <class OfTaps, class CostOf>
auto best_of_taps(int64_t kernel_size, int64_t most, const OfTaps& of_taps, const CostOf& cost_of) {
  decltype(of_taps(most)) best{};
  int64_t least = 0, tried = 0;
  for (int64_t blocks = ceil_div(kernel_size, most), taps = 0; taps != 1; ++blocks) {
    const int64_t next = ceil_div(kernel_size, blocks);
    if (next == taps) continue;
    taps = ++tried > 40 ? 1 : next;
    const auto c = of_taps(taps);
    if (c.channels == 0) continue;
    const int64_t cost = cost_of(c);
    if (best.channels == 0 || cost < least) {
      best = c;
      least = cost;
    }
  }
  return best;
}

// The number of parts into which `all` steps of each of the `tiles` are split, at most so many: that with which the
// last wave of blocks, `at_once` at a time, is the fullest. A block takes the time of `start` steps for its start and end.
inline int64_t fullest_splits(int64_t tiles, int64_t all, int64_t at_once, int64_t most,
                              int64_t start) {
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

// The same of slices of positions, at most a fourth of them.
inline int64_t splits_of(const ConvArgs& a, int64_t tiles, int64_t all, int64_t at_once) {
  const int64_t elements = weight_elements(a) + a.channels_out,
                most = larger(1, smaller(all / 4, kGradWorkspace / (4 * elements)));
  return fullest_splits(tiles, all, at_once, most, 12);
}

}  // namespace fastconv1d
