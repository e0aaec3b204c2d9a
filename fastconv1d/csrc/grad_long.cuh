// The gradients of weight and bias where a kernel has many neighbouring taps, for groups with few channels.
//
// A block has a pair (output channel, input channel of its group) and up to 16 x 12 neighbouring taps. It copies
// some positions of grad_output, of one row or of several batches' rows, and of the input all that these see, to
// shared memory as fp32. A thread has 12 taps and a segment of the positions, 12 at a time:
//
//   sum of tap t  +=  grad_output[i]  *  window[i + t],   i, t < 12
//
// Half of the window slides on in registers, so 144 FMAs take 6 reads of 16 bytes. Neighbouring threads have
// neighbouring taps: 12 values apart, they read different banks, and share what they read of grad_output.
// Segments' sums are added up before they join the thread's, which keeps rounding errors down, and at the end
// those of threads with the same taps, in turn. Positions that see only padding are left out.
//
// Shared memory: [row][grad_output's positions], [row][input's positions], [warp] flags; at the end
// [segment][tap], [warp] of the bias. A block that finds a value that is not finite chooses products one by
// one, since zeros stand in for what does not exist.
//
// Roofline: FMA units; copying takes 1 instruction for some 10 of theirs, the fewer taps the more.
#pragma once
#include "grad_sum.cuh"

namespace fastconv1d {

constexpr int kLongThreads = 128, kLongWarps = kLongThreads / 32, kLongTaps = 12, kLongLanes = 16;

template <class M>
struct GradLongParams {
  using Element = typename M::Element;
  const Element *input, *grad_output;
  GradStore<M> sums;
  int64_t input_batch_stride, input_channel_stride, units;
  int64_t batch, channels_out, channels_in_of_group, channels_out_of_group;
  int64_t items_of_split;
  int length, length_out, kernel_size, padding;
  int chunks, tap_threads;          // of the taps; threads with different taps
  int segment, segments, rows;      // positions; segments of a row; rows at once
  int position_chunks, row_groups;  // an item is one of each
};

template <class M>
__global__ void __launch_bounds__(kLongThreads, 6) grad_long_kernel(const GradLongParams<M> p) {
  let_next_kernel_begin();
  using Element = typename M::Element;
  FASTCONV1D_SHARED(memory);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            taps_of_chunk = p.tap_threads * kLongTaps, positions = p.segments * p.segment,
            window = positions + taps_of_chunk;
  auto* const grads = reinterpret_cast<float*>(memory);
  float* const inputs = grads + p.rows * positions;
  auto* const flags = reinterpret_cast<uint32_t*>(inputs + p.rows * window);

  const int64_t split = blockIdx.x / p.units, number = blockIdx.x - split * p.units,
                pair = number / p.chunks, out = pair / p.channels_in_of_group,
                in_of_group = pair - out * p.channels_in_of_group,
                in = out / p.channels_out_of_group * p.channels_in_of_group + in_of_group;
  const int first_tap = static_cast<int>(number - pair * p.chunks) * taps_of_chunk,
            // Positions that see something.
      first_seen = p.padding - first_tap - taps_of_chunk + 1,
            last_seen = p.length + p.padding - first_tap, begin = first_seen > 0 ? first_seen : 0,
            end = last_seen < p.length_out ? last_seen : p.length_out;
  const Element* const grad_of_batch_0 = p.grad_output + out * p.length_out;
  const Element* const input_of_batch_0 = p.input + in * p.input_channel_stride;

  const int tap_thread = thread % p.tap_threads, segment = thread / p.tap_threads,
            row = segment / p.segments, segment_of_row = segment - row * p.segments;
  const bool works = row < p.rows;
  float sums[kLongTaps]{};
  const int64_t first_item = split * p.items_of_split,
                last_item = smaller(first_item + p.items_of_split,
                                    int64_t{p.row_groups} * p.position_chunks);
#pragma unroll 1
  for (int64_t item = first_item; item < last_item; ++item) {
    const int row_group = static_cast<int>(item / p.position_chunks),
              first = begin + static_cast<int>(item % p.position_chunks) * positions,
              seen = first + first_tap - p.padding;
    if (first >= end) continue;
    float zero = 0;  // or a NaN
    __syncthreads();
#pragma unroll 1
    for (int r = 0; r < p.rows; ++r) {
      const int64_t batch = int64_t{row_group} * p.rows + r;
      const bool exists = batch < p.batch;
      const Element* const grad_row =
          grad_of_batch_0 + batch * p.channels_out * p.length_out + first;
      const Element* const input_row = input_of_batch_0 + batch * p.input_batch_stride + seen;
#pragma unroll 4
      for (int i = thread; i < positions; i += kLongThreads) {
        const float value = exists && first + i < end ? M::from(__ldg(grad_row + i)) : 0;
        grads[r * positions + i] = value;
        zero = fmaf(value, 0, zero);
      }
#pragma unroll 4
      for (int i = thread; i < window; i += kLongThreads) {
        const float value =
            exists && seen + i >= 0 && seen + i < p.length ? M::from(__ldg(input_row + i)) : 0;
        inputs[r * window + i] = value;
        zero = fmaf(value, 0, zero);
      }
    }
    const uint32_t flag = largest_of_warp(zero == 0 ? 0 : 1);
    if (lane == 0) flags[warp] = flag;
    __syncthreads();
    // This thread's positions, from the first of the item.
    const int from = segment_of_row * p.segment, sees = seen + from + tap_thread * kLongTaps;
    if (!works || first + from >= end || sees >= p.length || sees + p.segment + kLongTaps - 1 <= 0)
      continue;
    const float* const grad = grads + row * positions + from;
    const float* const input = inputs + row * window + from + tap_thread * kLongTaps;
    float part[kLongTaps]{};
    uint32_t any = 0;
#pragma unroll
    for (int w = 0; w < kLongWarps; ++w) any |= flags[w];
    if (any == 0) {
      const auto read = [](const float* at, float (&to)[kLongTaps]) {
#pragma unroll
        for (int i = 0; i < kLongTaps; i += 4) {
          const auto four = *reinterpret_cast<const float4*>(at + i);
          to[i] = four.x;
          to[i + 1] = four.y;
          to[i + 2] = four.z;
          to[i + 3] = four.w;
        }
      };
      float low[kLongTaps], high[kLongTaps], of[kLongTaps];
      const auto multiply = [&](const float (&near)[kLongTaps], const float (&far)[kLongTaps]) {
#pragma unroll
        for (int i = 0; i < kLongTaps; ++i)
#pragma unroll
          for (int t = 0; t < kLongTaps; ++t)
            part[t] =
                fmaf(of[i], i + t < kLongTaps ? near[i + t] : far[i + t - kLongTaps], part[t]);
      };
      read(input, low);
#pragma unroll 1
      for (int i = 0; i < p.segment; i += 2 * kLongTaps) {
        read(grad + i, of);
        read(input + i + kLongTaps, high);
        multiply(low, high);
        read(grad + i + kLongTaps, of);
        read(input + i + 2 * kLongTaps, low);
        multiply(high, low);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < p.segment && first + from + i < end; ++i)
#pragma unroll
        for (int t = 0; t < kLongTaps; ++t)
          if (sees + i + t >= 0 && sees + i + t < p.length)
            part[t] = fmaf(grad[i], input[i + t], part[t]);
    }
#pragma unroll
    for (int t = 0; t < kLongTaps; ++t) sums[t] += part[t];
  }

  // The bias sees all positions, of some of the batches.
  const bool has_bias = p.sums.bias != nullptr && first_tap == 0 && in_of_group == 0;
  float bias = 0;
  if (has_bias) {
    const int64_t last = p.batch * (split + 1) / p.sums.splits;
#pragma unroll 1
    for (int64_t batch = p.batch * split / p.sums.splits; batch < last; ++batch) {
      const Element* const grad_row = grad_of_batch_0 + batch * p.channels_out * p.length_out;
      float part = 0;
#pragma unroll 4
      for (int i = thread; i < p.length_out; i += kLongThreads)
        part += M::from(__ldg(grad_row + i));
      bias += part;
    }
  }
  bias = sum_of_lanes(bias);

  const int all_segments = kLongThreads / p.tap_threads;
  float* const bias_of_warps = grads + all_segments * taps_of_chunk;
  __syncthreads();
  if (segment < all_segments) {
#pragma unroll
    for (int t = 0; t < kLongTaps; ++t)
      grads[segment * taps_of_chunk + tap_thread * kLongTaps + t] = sums[t];
  }
  if (lane == 0) bias_of_warps[warp] = bias;
  __syncthreads();
  for (int t = thread; t < taps_of_chunk && first_tap + t < p.kernel_size; t += kLongThreads) {
    float sum = 0;
    for (int s = 0; s < all_segments; ++s) sum += grads[s * taps_of_chunk + t];
    p.sums.store_weight(split, pair * p.kernel_size + first_tap + t, sum);
  }
  if (thread != 0 || !has_bias) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kLongWarps; ++w) sum += bias_of_warps[w];
  p.sums.store_bias(split, out, sum);
}

// Who does what, as the shape and the multiprocessors alone say.
struct GradLongWork {
  int64_t chunks, tap_threads, segment, segments, rows, position_chunks, row_groups, units, splits,
      items_of_split;
  explicit GradLongWork(const ConvArgs& a) {
    const int64_t threads = ceil_div(a.kernel_size, kLongTaps);
    chunks = ceil_div(threads, kLongLanes);
    tap_threads = ceil_div(threads, chunks);
    // Segments of 4 steps, or of 2 where this many are too many for a row.
    const int64_t taps = tap_threads * kLongTaps, most = kLongThreads / tap_threads,
                  positions = smaller(a.length_out, a.length + taps - 1), step = 2 * kLongTaps;
    segment = positions > most * step ? 2 * step : step;
    position_chunks = ceil_div(positions, most * segment);
    segments = ceil_div(ceil_div(positions, position_chunks), segment);
    rows = larger(1, smaller(a.batch, most / segments));
    row_groups = ceil_div(a.batch, rows);
    units = a.channels_out * (a.channels_in / a.groups) * chunks;
    const int64_t items = row_groups * position_chunks;
    splits = grad_splits(a, units, items);
    items_of_split = larger(1, ceil_div(items, splits));
    splits = larger(1, ceil_div(items, items_of_split));
  }
};

template <class M>
int grad_long_launch(const ConvArgs& a, void* stream) {
  const GradLongWork work(a);
  const int64_t blocks = work.units * work.splits, positions = work.segments * work.segment,
                taps = work.tap_threads * kLongTaps,
                copied = work.rows * (2 * positions + taps) + kLongWarps,
                kept = kLongThreads / work.tap_threads * taps + kLongWarps;
  if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  using Element = typename M::Element;
  const GradLongParams<M> p{static_cast<const Element*>(a.input),
                            static_cast<const Element*>(a.grad_output),
                            GradStore<M>(a, work.splits),
                            a.input_batch_stride,
                            a.input_channel_stride,
                            work.units,
                            a.batch,
                            a.channels_out,
                            a.channels_in / a.groups,
                            a.channels_out / a.groups,
                            work.items_of_split,
                            static_cast<int>(a.length),
                            static_cast<int>(a.length_out),
                            static_cast<int>(a.kernel_size),
                            static_cast<int>(a.padding),
                            static_cast<int>(work.chunks),
                            static_cast<int>(work.tap_threads),
                            static_cast<int>(work.segment),
                            static_cast<int>(work.segments),
                            static_cast<int>(work.rows),
                            static_cast<int>(work.position_chunks),
                            static_cast<int>(work.row_groups)};
  if (const int error = launch(grad_long_kernel<M>, dim3(static_cast<unsigned>(blocks)),
                               dim3(kLongThreads), 4 * larger(copied, kept), stream, p))
    return error;
  return add_parts(p.sums, stream);
}

}  // namespace fastconv1d
