// Convolutions of few positions and large weights (sm_90a), written out as a matrix product (product.cuh): the weight,
// as it lies, times columns of the input.
//
//   ordinary:    output[o][(n, q)] = sum over (c, k) of weight[o][(c, k)] * input[n][c][q * stride + k * dilation - padding]
//   transposed:  product[(o, k)][(n, i)] = sum over c of weight[c][(o, k)] * input[n][c][i]
//                output[n][o][j] = sum over k and i with i * stride + k * dilation - padding = j of product[(o, k)][(n, i)]
//
// Three kernels: one packs the columns, in the order in which products read them and rounded; the product; and one
// adds up the sums of its splits, those of all taps where the convolution is transposed, and the bias. Rows of the batch are
// one row of columns, so that short ones fill tiles, and weights are read once, without rewriting.
//
// Roofline: weights once; columns and sums come and go through L2.
#pragma once
#include "product.cuh"

namespace fastconv1d {

struct ColumnsParams {
  const void* input;
  uint32_t* packed;
  int64_t batch_stride, channel_stride, length;
  int64_t channels, groups;                              // channels of one
  int64_t depth, columns, column_blocks, slices, count;  // count: of threads
  int taps, stride, dilation, padding, positions;        // positions: columns of a batch
};

// A value of a depth that the product's left operand reads as number `i` of a piece of 4 words. Turned fp32 rows
// are read 2 apart by neighbouring lanes, which keeps banks apart.
template <class M, bool TURNED>
__device__ __forceinline__ uint32_t depth_of(uint32_t slice, uint32_t quad, int i) {
  constexpr int of_quad = 4 * M::values_per_word;
  if (TURNED && M::values_per_word == 1)
    return (slice * 8 + (quad & ~1u)) * of_quad + 2 * i + (quad & 1);
  return (slice * 8 + quad) * of_quad + i;
}

// A thread makes 4 words of a column. TURNED: a column is a position, its depth channels; else both of them have taps.
template <class M, class T, bool TURNED>
__global__ void __launch_bounds__(256) explicit_columns_kernel(const ColumnsParams p) {
  using Element = typename M::Element;
  constexpr int values = M::values_per_word;
  let_next_kernel_begin();
  const int64_t thread = blockIdx.x * int64_t{256} + threadIdx.x;
  if (thread >= p.count) return;
  Digits<uint32_t> digits{static_cast<uint32_t>(thread)};
  const uint32_t of_tile = digits.take(T::columns), quad = digits.take(kProductPieces),
                 slice = digits.take(p.slices), block = digits.take(p.column_blocks),
                 group = digits.rest, column = block * T::columns + of_tile,
                 batch = column / p.positions, position = column - batch * p.positions;
  const auto* const rows = static_cast<const Element*>(p.input) + batch * p.batch_stride +
                           group * p.channels * p.channel_stride;
  const int first = static_cast<int>(position) * p.stride - p.padding;
  uint32_t channel = depth_of<M, TURNED>(slice, quad, 0), tap = 0;
  if (!TURNED) {
    tap = channel % p.taps;
    channel /= p.taps;
  }
  Element value[4][values];
#pragma unroll
  for (int i = 0; i < 4 * values; ++i) {
    if (TURNED) channel = depth_of<M, TURNED>(slice, quad, i);
    const int at = first + static_cast<int>(tap) * p.dilation;
    const bool exists = column < p.columns && channel < p.channels && at >= 0 && at < p.length;
    value[i / values][i % values] =
        exists ? __ldg(rows + channel * p.channel_stride + at) : Element{0};
    if (!TURNED && ++tap == p.taps) {
      tap = 0;
      ++channel;
    }
  }
  store_right<M, T>(p.packed, thread, value);
}

struct ExplicitSumParams {
  const float* parts;
  const void* bias;
  void* output;
  uint32_t of_split, pitch, splits;  // of_split: sums of one
  uint32_t channels_out, count;      // of all groups; outputs, or chunks of a warp
  int batch, length, length_out;
  int taps, stride, dilation, padding;
  int first,
      steps;  // the first step of `stride` padded positions that outputs lie in, and how many
};

// A thread has an output of an ordinary convolution.
template <class M>
__global__ void __launch_bounds__(256) explicit_sum_kernel(const ExplicitSumParams p) {
  const uint32_t thread = blockIdx.x * 256 + threadIdx.x;
  if (thread >= p.count) return;
  Digits<uint32_t> digits{thread};
  const uint32_t position = digits.take(p.length_out), channel = digits.take(p.channels_out);
  const float* const from = p.parts + channel * p.pitch + digits.rest * p.length_out + position;
  float sum = bias_of<M>(p.bias, 0, channel, p.channels_out);
  wait_for_kernel_before();
#pragma unroll 4
  for (uint32_t split = 0; split < p.splits; ++split) sum += from[split * p.of_split];
  static_cast<typename M::Element*>(p.output)[thread] = M::to(sum);
}

constexpr int kExplicitWarps = 4, kMostExplicitStride = 16;
// Outputs of a warp: [residue][step], with 4 more steps, which keep banks apart.
constexpr int kExplicitPitch = 36, kExplicitStaged = kMostExplicitStride * kExplicitPitch;

// A lane has a channel's outputs of one step of a transposed convolution, `step * stride + residue - padding`, and reads
// the product's sums of neighbouring positions, as its neighbours do. A warp's outputs meet in shared memory, to leave as
// neighbours.
template <class M>
__global__ void __launch_bounds__(32 * kExplicitWarps)
    explicit_weave_kernel(const ExplicitSumParams p) {
  using Element = typename M::Element;
  constexpr int at_once = 4;  // residues, whose reads are on their way together
  FASTCONV1D_SHARED(memory);
  // Of each residue the first tap that meets it, and how many positions before the step that one sees.
  int* const first_taps = reinterpret_cast<int*>(memory);
  int* const shifts = first_taps + kMostExplicitStride;
  float* const staged =
      reinterpret_cast<float*>(shifts + kMostExplicitStride) + threadIdx.x / 32 * kExplicitStaged;
  const int every = p.stride / static_cast<int>(gcd(p.stride, p.dilation)),
            shift_step = every * p.dilation / p.stride, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x < kMostExplicitStride) {
    const int residue = static_cast<int>(threadIdx.x);
    int tap = 0;
    while (tap < every && (tap * p.dilation - residue) % p.stride != 0) ++tap;
    first_taps[residue] = tap < every && residue < p.stride ? tap : p.taps;
    shifts[residue] = (tap * p.dilation - residue) / p.stride;
  }
  __syncthreads();
  wait_for_kernel_before();
  const uint32_t all = static_cast<uint32_t>(p.batch) * p.steps, of_channel = (all + 31) / 32,
                 chunk = blockIdx.x * kExplicitWarps + threadIdx.x / 32,
                 channel = chunk / of_channel, first = (chunk - channel * of_channel) * 32;
  if (chunk >= p.count) return;
  const uint32_t number = first + lane, batch = number / p.steps;
  const int step = static_cast<int>(number - batch * p.steps) + p.first,
            length = number < all ? p.length : 0;
  const float bias = bias_of<M>(p.bias, 0, channel, p.channels_out);
  const float* const rows = p.parts + channel * p.taps * p.pitch + batch * p.length;
#pragma unroll 1
  for (int residue = 0; residue < p.stride; residue += at_once) {
    float sum[at_once];
    int tap[at_once], position[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      sum[i] = bias;
      tap[i] = first_taps[residue + i];
      position[i] = step - shifts[residue + i];
    }
#pragma unroll 1
    for (int turn = 0; turn < p.taps; turn += every) {
#pragma unroll 2
      for (uint32_t split = 0; split < p.splits; ++split) {
        float part[at_once];
#pragma unroll
        for (int i = 0; i < at_once; ++i)
          part[i] = tap[i] < p.taps && position[i] >= 0 && position[i] < length
                        ? rows[split * p.of_split + tap[i] * p.pitch + position[i]]
                        : 0.f;
#pragma unroll
        for (int i = 0; i < at_once; ++i) sum[i] += part[i];
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        tap[i] += every;
        position[i] -= shift_step;
      }
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) staged[(residue + i) * kExplicitPitch + lane] = sum[i];
  }
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < 32 * p.stride; i += 32) {
    const int of_warp = i / p.stride, residue = i - of_warp * p.stride;
    const uint32_t to = first + of_warp, to_batch = to / p.steps;
    const int position =
        (static_cast<int>(to - to_batch * p.steps) + p.first) * p.stride + residue - p.padding;
    if (to < all && position >= 0 && position < p.length_out)
      static_cast<Element*>(
          p.output)[(int64_t{to_batch} * p.channels_out + channel) * p.length_out + position] =
          M::to(staged[residue * kExplicitPitch + of_warp]);
  }
}

template <class M, class T>
struct Explicit {
  using Element = typename M::Element;

  static int64_t phases(const ConvArgs&) { return 1; }
  static ProductCut cut(const ConvArgs& a, int64_t) {
    const int64_t in = a.channels_in / a.groups, out = a.channels_out / a.groups,
                  rows = a.transposed ? out * a.kernel_size : out,
                  columns = a.batch * (a.transposed ? a.length : a.length_out);
    return Product<M, T>::cut(a.groups, rows, columns, a.transposed ? in : in * a.kernel_size,
                              a.multiprocessors, kExplicitParts / (4 * a.groups * rows * columns));
  }
  static int64_t pitch_of(const ProductCut& c) { return c.column_blocks * T::columns; }
  static int64_t parts_of_split(const ProductCut& c) { return c.groups * c.rows * pitch_of(c); }
  static int64_t packed_bytes(const ConvArgs&, const ProductCut& c) {
    return c.right_bytes + 4 * c.splits * parts_of_split(c);
  }

  template <bool TRANSPOSED>
  static int launch(const ConvArgs& a, const ProductCut& c, void* stream) {
    const auto blocks_of = [](int64_t threads) {
      return dim3(static_cast<unsigned>(ceil_div(threads, 256)));
    };
    const auto packed = static_cast<uint32_t*>(a.workspace);
    auto* const parts = reinterpret_cast<float*>(static_cast<char*>(a.workspace) + c.right_bytes);
    const auto number = [](int64_t n) { return static_cast<int>(n); };
    ColumnsParams columns{a.input,
                          packed,
                          a.input_batch_stride,
                          a.input_channel_stride,
                          a.length,
                          a.channels_in / a.groups,
                          a.groups,
                          c.depth,
                          c.columns,
                          c.column_blocks,
                          c.slices,
                          c.right_pieces,
                          number(a.kernel_size),
                          number(a.stride),
                          number(a.dilation),
                          number(a.padding),
                          number(a.length_out)};
    if (TRANSPOSED) {
      columns.taps = columns.stride = columns.dilation = 1;
      columns.padding = 0;
      columns.positions = number(a.length);
    }
    if (columns.count > UINT32_MAX) return 1;  // cudaErrorInvalidValue
    if (const int error =
            fastconv1d::launch(explicit_columns_kernel<M, T, TRANSPOSED>, blocks_of(columns.count),
                               dim3(256), 0, stream, columns))
      return error;
    ProductParams p{};
    p.right = packed;
    p.parts = parts;
    p.pitch = pitch_of(c);
    p.left_comes_first = 1;
    const int64_t line = TRANSPOSED ? c.rows : c.depth,
                  lines = c.groups * (TRANSPOSED ? c.depth : c.rows);
    if (const int error = Product<M, T>::template launch<TRANSPOSED>(
            p, c, a.weight, lines, line, line, a.multiprocessors, stream))
      return error;
    const auto size = [](int64_t n) { return static_cast<uint32_t>(n); };
    ExplicitSumParams sum{parts,
                          a.bias,
                          a.output,
                          size(parts_of_split(c)),
                          size(p.pitch),
                          size(c.splits),
                          size(a.channels_out),
                          0,
                          number(a.batch),
                          number(a.length),
                          number(a.length_out),
                          number(a.kernel_size),
                          number(a.stride),
                          number(a.dilation),
                          number(a.padding),
                          0,
                          0};
    const int64_t outputs = a.batch * a.channels_out * a.length_out;
    if (c.splits * parts_of_split(c) > INT32_MAX || outputs > INT32_MAX) return 1;
    if (!TRANSPOSED) {
      sum.count = size(outputs);
      return launch_early(true, explicit_sum_kernel<M>, blocks_of(outputs), dim3(256), 0, stream,
                          sum);
    }
    sum.first = sum.padding / sum.stride;
    sum.steps = (sum.padding + sum.length_out - 1) / sum.stride - sum.first + 1;
    sum.count = size(a.channels_out * ceil_div(a.batch * sum.steps, 32));
    return launch_early(true, explicit_weave_kernel<M>,
                        dim3(size(ceil_div(sum.count, kExplicitWarps))), dim3(32 * kExplicitWarps),
                        8 * kMostExplicitStride + 4 * kExplicitWarps * kExplicitStaged, stream,
                        sum);
  }
  static int launch_phase(const ConvArgs& a, const ProductCut& c, void* stream) {
    return a.transposed ? launch<true>(a, c, stream) : launch<false>(a, c, stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_EXPLICIT_LIBRARY(...) FASTCONV1D_TILE_LIBRARY(fastconv1d::Explicit, __VA_ARGS__)
