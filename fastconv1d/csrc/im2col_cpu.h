// The columns of the explicit algorithm on the CPU; see im2col.cuh.
#pragma once
#include <algorithm>
#include <cstdint>

#include "schedule.h"

namespace fastconv1d {

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
    // Positions [inside, outside) read the input; the rest is padding.
    const int64_t inside = smaller(a.length_out, start < 0 ? ceil_div(-start, a.stride) : 0);
    const int64_t outside = larger(
        inside, smaller(a.length_out, start < a.length ? ceil_div(a.length - start, a.stride) : 0));
    std::fill(columns, columns + inside, Element{0});
    if (a.stride == 1) {
      std::copy(input + start + inside, input + start + outside, columns + inside);
    } else {
      for (int64_t q = inside; q < outside; ++q) columns[q] = input[q * a.stride + start];
    }
    std::fill(columns + outside, columns + a.length_out, Element{0});
  }
}

}  // namespace fastconv1d
