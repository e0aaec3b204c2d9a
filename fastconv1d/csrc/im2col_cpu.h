// The columns of the explicit algorithm on the CPU; see im2col.cuh.
#pragma once
#include <algorithm>
#include <cstdint>

#include "phases.h"

namespace fastconv1d {

// The positions q, first <= q < last, of `count` for which q * step + start lies in [0, length).
struct Inside {
  int64_t first, last;
};
inline Inside inside_of(int64_t count, int64_t step, int64_t start, int64_t length) {
  const int64_t first = smaller(count, start < 0 ? ceil_div(-start, step) : 0);
  const int64_t last = smaller(count, start < length ? ceil_div(length - start, step) : 0);
  return {first, larger(first, last)};
}

// Fills rows [first, last) of columns[(batch, channel, tap)][position]; `args.output` holds them.
template <class Element>
void im2col_rows(const ConvArgs& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t tap = row % a.kernel_size, channel = row / a.kernel_size % a.channels_in;
    const int64_t batch = row / a.kernel_size / a.channels_in;
    const auto* input = static_cast<const Element*>(a.input) + batch * a.input_batch_stride +
                        channel * a.input_channel_stride;
    auto* columns = static_cast<Element*>(a.output) + row * a.length_out;
    const int64_t start = tap * a.dilation - a.padding;
    // Positions inside read the input; the rest is padding.
    const Inside inside = inside_of(a.length_out, a.stride, start, a.length);
    std::fill(columns, columns + inside.first, Element{0});
    if (a.stride == 1) {
      std::copy(input + start + inside.first, input + start + inside.last, columns + inside.first);
    } else {
      for (int64_t q = inside.first; q < inside.last; ++q) columns[q] = input[q * a.stride + start];
    }
    std::fill(columns + inside.last, columns + a.length_out, Element{0});
  }
}

// Sums up rows [first, last) of the output, (batch, channel), tap by tap; `args.input` holds the
// columns.
template <class Element>
void col2im_rows(const ConvArgs& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t channel = row % a.channels_out, batch = row / a.channels_out;
    const auto* columns = static_cast<const Element*>(a.input) + batch * a.input_batch_stride +
                          channel * a.kernel_size * a.input_channel_stride;
    auto* output = static_cast<Element*>(a.output) + row * a.length_out;
    std::fill(output, output + a.length_out,
              a.bias == nullptr ? Element{0} : static_cast<const Element*>(a.bias)[channel]);
    for (int64_t tap = 0; tap < a.kernel_size; ++tap, columns += a.input_channel_stride) {
      const int64_t start = tap * a.dilation - a.padding;
      const Inside inside = inside_of(a.length, a.stride, start, a.length_out);
      for (int64_t q = inside.first; q < inside.last; ++q)
        output[q * a.stride + start] += columns[q];
    }
  }
}

}  // namespace fastconv1d
