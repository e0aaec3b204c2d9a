// What the kernels of a weight's gradient share that copy rows of both tensors in boxes (grad_hopper_kernel.cuh,
// grad_turned_kernel.cuh): how blocks share the work out, what one of them computes, and where its rows lie.
//
// A block has a tile of the gradient: channels of the output, channels of the input and taps, for a split of the slices of
// positions that all batches have. Sums of splits, or of several chains of products, are parts of fp32 that grad_sum_kernel
// adds up; of a single one they are the gradient.
#pragma once
#include "grad_tile.cuh"

namespace fastconv1d {

constexpr int kMostBoxPositions = 256;

// How channels of the input and taps are shared out: so many of a block, at most.
struct GradBlocks {
  int channels, taps;
  int64_t channel_blocks, tap_blocks;
};

// And channels of the output, and slices.
struct GradBoxCut {
  int64_t out_blocks, tiles;
  int64_t slices;            // of a row of grad_output
  int64_t splits, elements;  // elements: of the gradient
  int block_outs;
  bool whole;  // whether blocks' sums are the gradient

  GradBoxCut() = default;
  GradBoxCut(const ConvArgs& a, const GradBlocks& b, int most_outs, int positions)
      : out_blocks(ceil_div(a.channels_out / a.groups, most_outs)),
        tiles(a.groups * out_blocks * b.channel_blocks * b.tap_blocks),
        slices(ceil_div(a.length_out, positions)),
        splits(splits_of(a, tiles, a.batch * slices, a.multiprocessors)),
        elements(weight_elements(a)),
        block_outs(static_cast<int>(ceil_div(a.channels_out / a.groups, out_blocks))),
        whole(splits == 1 && a.batch * slices * positions <= kGradChain) {}

  int64_t weight_parts() const { return whole ? 0 : splits * elements; }
};

// What a launch knows of that. Boxes are counted in 32 bits, and so is what is within a row.
struct GradBoxParams {
  RowBoxes input_boxes, grad_boxes;
  void* output;       // the gradient, or null: parts
  float* parts;       // [split]
  float* bias_parts;  // or null: [split][group][channel_out]
  int64_t batch, kernel_size, channels_in, channels_out, groups;  // channels of one group
  int64_t out_blocks, splits, elements;
  int block_outs, slices;
  int length, length_out, stride, dilation, padding;

  void set(const ConvArgs& a, const GradBoxCut& c, float* of_weight, float* of_bias) {
    output = c.whole ? a.output : nullptr;
    parts = of_weight;
    bias_parts = of_bias;
    batch = a.batch;
    kernel_size = a.kernel_size;
    channels_in = a.channels_in / a.groups;
    channels_out = a.channels_out / a.groups;
    groups = a.groups;
    out_blocks = c.out_blocks;
    splits = c.splits;
    elements = c.elements;
    block_outs = c.block_outs;
    slices = static_cast<int>(c.slices);
    length = static_cast<int>(a.length);
    length_out = static_cast<int>(a.length_out);
    stride = static_cast<int>(a.stride);
    dilation = static_cast<int>(a.dilation);
    padding = static_cast<int>(a.padding);
  }
};

// A slice of a batch.
struct GradSlice {
  int batch, number;
  __device__ __forceinline__ void advance(int slices, int by = 1) {
    for (number += by; number >= slices; number -= slices) ++batch;
  }
};

// What a block computes. In shared memory, since those who multiply have no registers to keep it in.
struct GradBoxPart {
  int64_t split, group, first_out, first_channel, first_tap;
  int64_t begin;  // its first slice, of all the batch has
  int count;
  int outs, channels, taps;  // that exist
  int adds_bias;

  // Blocks of one split run together.
  __device__ __forceinline__ void find(const GradBoxParams& p, const GradBlocks& b) {
    Digits<uint32_t> digits{blockIdx.x};
    const auto out_block = digits.take(p.out_blocks), tap_block = digits.take(b.tap_blocks),
               channel_block = digits.take(b.channel_blocks);
    group = digits.take(p.groups);
    split = digits.rest;
    first_out = static_cast<int64_t>(out_block) * p.block_outs;
    first_tap = static_cast<int64_t>(tap_block) * b.taps;
    first_channel = static_cast<int64_t>(channel_block) * b.channels;
    outs = static_cast<int>(smaller(p.block_outs, p.channels_out - first_out));
    taps = static_cast<int>(smaller(b.taps, p.kernel_size - first_tap));
    channels = static_cast<int>(smaller(b.channels, p.channels_in - first_channel));
    adds_bias = p.bias_parts != nullptr && tap_block == 0 && channel_block == 0;
    const int64_t all = p.batch * p.slices, each = ceil_div(all, p.splits);
    begin = smaller(all, split * each);
    count = static_cast<int>(smaller(all, begin + each) - begin);
  }
  __device__ __forceinline__ GradSlice first_slice(const GradBoxParams& p) const {
    return {static_cast<int>(begin / p.slices), static_cast<int>(begin % p.slices)};
  }
  // Its first rows of a batch, counted as those of boxes are.
  __device__ __forceinline__ int first_grad_row(const GradBoxParams& p, int batch) const {
    return static_cast<int>((batch * p.groups + group) * p.channels_out + first_out);
  }
  __device__ __forceinline__ int first_input_row(const GradBoxParams& p, int batch) const {
    return static_cast<int>(batch * p.input_boxes.rows_per_batch + group * p.channels_in +
                            first_channel);
  }
  // Where the gradient of one of its pairs of a channel and a tap lies, for its first channel of the output.
  __device__ __forceinline__ int64_t element_of(const GradBoxParams& p, int channel,
                                                int tap) const {
    return ((group * p.channels_out + first_out) * p.channels_in + first_channel + channel) *
               p.kernel_size +
           first_tap + tap;
  }
  // Where the block's sums of a weight go, and those of a bias.
  __device__ __forceinline__ float* parts_of(const GradBoxParams& p) const {
    return p.parts + split * p.elements;
  }
  __device__ __forceinline__ float* bias_part_of(const GradBoxParams& p) const {
    return p.bias_parts + (split * p.groups + group) * p.channels_out + first_out;
  }
};

// Rows of the input in which some taps see a slice of so many positions.
struct GradRows {
  // Of 16 bytes, of a row: an odd number, which keeps banks apart; none if no box has so many.
  int64_t vectors = 0;
  // Whether taps share a row, or each has its own, which is shorter where they are far apart.
  bool shared = false;

  static GradRows of(const ConvArgs& a, int64_t taps, int positions, int vector, bool may_share) {
    // One vector more, since rows begin within one; of 16-bit values a lane may read one behind its last.
    const auto vectors_of = [&](int64_t reach) {
      return ceil_div((positions - 1) * a.stride + 1 + reach + vector - 1, vector) | 1;
    };
    const int64_t apart = vectors_of(0), together = vectors_of((taps - 1) * a.dilation);
    GradRows rows;
    rows.shared = may_share && together <= taps * apart && together * vector <= kMostBoxPositions;
    const int64_t vectors = rows.shared ? together : apart;
    if (vectors * vector <= kMostBoxPositions) rows.vectors = vectors;
    return rows;
  }
};

// The kind of rows, as the logarithm of how many there are, that lie so many elements apart.
template <class Element>
int kinds_log2_of(int64_t row) {
  return log2_of(rows_alike(row * int64_t{sizeof(Element)}));
}

// Copies rows to where each begins at 16 bytes: the way of those that cannot be copied in boxes.
template <class Element>
__global__ void __launch_bounds__(256)
    grad_copy_kernel(const TensorRows from, Element* __restrict__ to, int64_t pitch,
                     int64_t count) {
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < count;
       i += gridDim.x * int64_t{256}) {
    const int64_t position = i % from.length, row = i / from.length;
    to[row * pitch + position] = static_cast<const Element*>(
        from.first)[row / from.channels * from.batch_stride +
                    row % from.channels * from.channel_stride + position];
  }
}

// The input's rows in boxes: they, or, `copied`, a copy of them in the workspace.
template <class Element>
int64_t copy_pitch(const ConvArgs& a) {
  return round_up(a.length, 16 / static_cast<int64_t>(sizeof(Element)));
}
template <class Element>
TensorRows input_in_boxes(const ConvArgs& a, bool copied, const void* copy) {
  if (!copied) return rows_of_input(a);
  const int64_t pitch = copy_pitch<Element>(a);
  return {copy, a.batch, a.channels_in, a.length, a.channels_in * pitch, pitch};
}
template <class Element>
int64_t input_copy_bytes(const ConvArgs& a, bool copied) {
  return copied ? a.batch * a.channels_in * copy_pitch<Element>(a) * int64_t{sizeof(Element)} : 0;
}
template <class Element>
int copy_input(const ConvArgs& a, bool copied, void* copy, void* stream) {
  if (!copied) return 0;
  const int64_t count = a.batch * a.channels_in * a.length;
  return launch(grad_copy_kernel<Element>,
                dim3(static_cast<unsigned>(smaller(ceil_div(count, 256), 16 * a.multiprocessors))),
                dim3(256), 0, stream, rows_of_input(a), static_cast<Element*>(copy),
                copy_pitch<Element>(a), count);
}

}  // namespace fastconv1d
