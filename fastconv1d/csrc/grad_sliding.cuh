// The gradients of weight and bias on ordinary FMA units, for groups with few channels: depthwise layers first.
//
// A unit of work is a pair (output channel, input channel of its group) and some neighbouring taps:
//
//   sum of tap t  +=  grad_output[i]  *  window[i * IN_STEP + t]
//
// One warp or a whole block has a unit. A thread has a sum for each of the unit's taps, and takes pieces of the
// rows of all batches in turn: 16 bytes of grad_output, or 32, and the window of the input that these
// positions see. Pieces of grad_output begin where memory's pieces of 16 bytes do; those of the input are
// shifted by what they are off. What is read next is on its way while this is multiplied (`ahead`), or its registers
// are left to more warps, one of which multiplies while others wait. Where taps are apart, or strides long, lanes take
// neighbouring positions instead and read values one by one. A piece's products are added up before they join the
// sums, which keeps rounding errors down. At the end the lanes of a warp add up their sums, and the warps of a unit
// theirs in shared memory: [warp][tap, and one for the bias].
//
// Where units are few, or blocks had better be short, blocks share out the pieces of one, and `grad_sum.cuh` adds up
// what they leave in the workspace, [split][element] of the weight and then of the bias: at most 16 MiB where there
// are several. The order of additions depends on the shape, the multiprocessors, where pieces begin and whether there
// is a bias.
//
// Blocks are numbered [split][unit], or where splits are parts of a row [row][unit][part]: blocks begin in that order, so
// those at work together read what lies together.
//
// What no pair of position and tap sees is not multiplied, by a zero either: it may be infinite. Pieces at a row's
// ends have zeros in them; if they also have a value that is not finite, products are chosen one by one.
//
// Kernels of more than 32 neighbouring taps are `grad_long.cuh`'s.
//
// Roofline: DRAM sees grad_output and the input once, since windows overlap in L1 only: 2 FMAs a byte of
// fp32 with 16 taps. With more taps, reading and shifting take as many instructions as multiplying does.
//
// Depthwise layers, of which the gradient of the input needs the same rows, are `grad_depthwise.cuh`'s where that is
// wanted as well or taps are apart: the kernel is the same, pieces are others.
#pragma once
#include "grad_depthwise.cuh"
#include "grad_long.cuh"
#include "grad_unit.cuh"
#include "modes.cuh"
#include "stream.cuh"

namespace fastconv1d {

// Unpacks 16 bytes.
template <class M>
__device__ __forceinline__ void unpack_piece(const uint32_t* word, float* value) {
  if constexpr (sizeof(typename M::Element) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = float_of(word[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 both = M::pair(word[i]);
      value[2 * i] = both.x;
      value[2 * i + 1] = both.y;
    }
  }
}

// Neighbouring taps, which see neighbouring positions: a thread's piece is PIECES x 16 bytes of grad_output.
template <class MODE, int PIECES, int IN_STEP, int TAPS, int BLOCKS, bool AHEAD>
struct GradWindow {
  using M = MODE;
  using Element = typename M::Element;
  static constexpr int taps = TAPS, blocks = BLOCKS;
  static constexpr bool ahead = AHEAD, with_input = false;
  static constexpr int of_piece = 16 / sizeof(Element), positions = PIECES * of_piece;
  static constexpr int span = (positions - 1) * IN_STEP + TAPS;  // positions of a window
  static constexpr int windows = (span + of_piece - 1) / of_piece;
  // Positions of a row that a worker takes at a time, and that may be missing at a row's begin; who a worker is.
  static constexpr int of_worker = positions, most_lead = of_piece - 1, worker_threads = 1;
  // Of a row that pieces cover.
  static int64_t covered(const ConvArgs& a) { return a.length_out + most_lead; }

  const GradSlidingParams<M>& p;
  const GradUnit<M>& unit;

  // What is read of a piece, some time before it is used.
  struct Values {
    int batch;
    Stream<M, PIECES> grad;
    Stream<M, windows + 1> input;
  };

  __device__ __forceinline__ Values read(const GradPlace& place, bool exists) const {
    const Element* const grad_row = unit.grad + place.batch * unit.grad_batch_stride;
    const Element* const input_row = unit.input + place.batch * unit.input_batch_stride;
    const int lead = static_cast<int>(reinterpret_cast<uint64_t>(grad_row) % 16 / sizeof(Element)),
              first = place.piece * positions - lead,
              seen = first * IN_STEP + unit.first_tap - p.padding;
    const bool sees = seen + span > 0 && seen < p.length;
    return {place.batch,
            Stream<M, PIECES>(grad_row,
                              exists && (sees || unit.has_bias) ? p.length_out : -of_piece, first),
            Stream<M, windows + 1>(input_row, exists && sees ? p.length : -of_piece, seen)};
  }

  __device__ __forceinline__ void add(Values& values, float (&sums)[TAPS], float& bias) const {
    float grad[positions], window[windows * of_piece];
    const int first = values.grad.position,
              seen = values.input.position + values.input.off / static_cast<int>(sizeof(Element));
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      uint32_t word[4];
      values.grad.use(values.grad.ahead[i], word);
      unpack_piece<M>(word, grad + i * of_piece);
    }
    if (unit.has_bias) {
      float sum = grad[0];
#pragma unroll
      for (int i = 1; i < positions; ++i) sum += grad[i];
      bias += sum;
    }
    if (values.input.length < 0) return;
    values.input.use(values.input.ahead[0], values.input.before);
#pragma unroll
    for (int i = 0; i < windows; ++i)
      values.input.next(values.input.ahead[i + 1], window + i * of_piece);
    if (first < 0 || first + positions > p.length_out || seen < 0 || seen + span > p.length) {
      if (!all_finite<positions>(grad) || !all_finite<span>(window))
        return add_one_by_one(values.batch, first, seen, sums);
    }
    add_products<positions, IN_STEP>(grad, window, sums);
  }

 private:
  __device__ __forceinline__ void add_one_by_one(int batch, int first, int seen,
                                                 float (&sums)[TAPS]) const {
    const Element* const grad_row = unit.grad + batch * unit.grad_batch_stride;
    const Element* const input_row = unit.input + batch * unit.input_batch_stride;
#pragma unroll 1
    for (int i = 0; i < positions; ++i, seen += IN_STEP) {
      if (first + i < 0 || first + i >= p.length_out) continue;
      const float grad = M::from(grad_row[first + i]);
#pragma unroll
      for (int t = 0; t < TAPS; ++t)
        if (seen + t >= 0 && seen + t < p.length)
          sums[t] = fmaf(grad, M::from(input_row[seen + t]), sums[t]);
    }
  }
};

// Any taps, at any stride: a warp's piece is POSITIONS times 32 positions, its lanes' neighbours.
template <class MODE, int POSITIONS, int TAPS, int BLOCKS>
struct GradApart {
  using M = MODE;
  using Element = typename M::Element;
  static constexpr int taps = TAPS, blocks = BLOCKS;
  static constexpr bool ahead = false, with_input = false;
  static constexpr int of_worker = 32 * POSITIONS, most_lead = 0, worker_threads = 32;
  // Of a row that pieces cover.
  static int64_t covered(const ConvArgs& a) { return a.length_out + most_lead; }

  const GradSlidingParams<M>& p;
  const GradUnit<M>& unit;

  using Values = GradPlace;
  __device__ __forceinline__ Values read(const GradPlace& place, bool) const { return place; }

  __device__ __forceinline__ void add(const Values& place, float (&sums)[TAPS], float& bias) const {
    const Element* const grad_row = unit.grad + place.batch * unit.grad_batch_stride;
    const Element* const input_row = unit.input + place.batch * unit.input_batch_stride;
    const int first = place.piece * of_worker + static_cast<int>(threadIdx.x) % 32;
    float grad[POSITIONS];
#pragma unroll
    for (int i = 0; i < POSITIONS; ++i)
      grad[i] = first + 32 * i < p.length_out ? M::from(__ldg(grad_row + first + 32 * i)) : 0;
#pragma unroll
    for (int i = 0; i < POSITIONS; ++i) bias += grad[i];
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
      const int tap = unit.first_tap + t, length = tap < p.kernel_size ? p.length : 0,
                seen = first * p.stride - p.padding +
                       (tap < p.kernel_size ? tap : p.kernel_size - 1) * p.dilation;
      float value[POSITIONS];
      bool exists[POSITIONS];
#pragma unroll
      for (int i = 0; i < POSITIONS; ++i) {
        const int position = seen + 32 * i * p.stride;
        exists[i] = first + 32 * i < p.length_out && position >= 0 && position < length;
        value[i] = exists[i] ? M::from(__ldg(input_row + position)) : 0;
      }
      float sum = 0;
#pragma unroll
      for (int i = 0; i < POSITIONS; ++i)
        if (exists[i]) sum = fmaf(grad[i], value[i], sum);
      sums[t] += sum;
    }
  }
};

// The unit of a number. Of a depthwise layer that is a channel with all its taps: there is nothing to divide.
template <class S>
__device__ __forceinline__ GradUnit<typename S::M> grad_unit(
    const GradSlidingParams<typename S::M>& p, uint32_t number) {
  uint32_t pair = number, out = number, in = number, chunk = 0, in_of_group = 0;
  if constexpr (!S::with_input) {
    pair = number / p.chunks;
    chunk = number - pair * p.chunks;
    out = pair / p.channels_in_of_group;
    in_of_group = pair - out * p.channels_in_of_group;
    in = out / p.channels_out_of_group * p.channels_in_of_group + in_of_group;
  }
  return {
      p.grad_output + int64_t{out} * p.length_out,
      p.input + in * p.input_channel_stride,
      p.channels_out * p.length_out,
      p.input_batch_stride,
      int64_t{pair},
      static_cast<int>(chunk) * S::taps,
      static_cast<int>(out),
      chunk == 0 && in_of_group == 0 && p.sums.bias != nullptr,
  };
}

// Blocks that share a multiprocessor, so that no registers are spilled.
template <class S>
FASTCONV1D_HD constexpr int grad_sliding_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  constexpr int most = S::taps > 16 ? 3 : S::taps > 8 ? 4 : S::blocks;
  return S::blocks < most ? S::blocks : most;
#else
  return S::blocks;
#endif
}

template <class S>
__global__ void __launch_bounds__(kGradThreads, (grad_sliding_blocks<S>()))
    grad_sliding_kernel(const GradSlidingParams<typename S::M> p) {
  let_next_kernel_begin();
  using M = typename S::M;
  using Element = typename M::Element;
  FASTCONV1D_SHARED(memory);
  auto* const shared = reinterpret_cast<float*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  // [slab][block of units][part]
  const uint32_t parts = S::with_input ? p.parts : 1, of_slabs = blockIdx.x / parts,
                 part = blockIdx.x - of_slabs * parts, slab = of_slabs / p.unit_blocks,
                 unit_block = of_slabs - slab * p.unit_blocks, split = slab * parts + part,
                 number = unit_block * (kGradWarps / p.unit_warps) + warp / p.unit_warps;
  const GradUnit<M> unit = grad_unit<S>(p, number);
  float sums[S::taps]{}, bias = 0;

  // This worker's pieces.
  const int thread = static_cast<int>(threadIdx.x) % (32 * p.unit_warps),
            worker = thread / S::worker_threads, workers = 32 * p.unit_warps / S::worker_threads;
  const int64_t begin = slab * p.pieces_of_slab + part * p.pieces_of_split,
                end = smaller(smaller(begin + p.pieces_of_split, (slab + 1) * p.pieces_of_slab),
                              p.batch * p.pieces_of_row);
  const int after = static_cast<int>(end - begin) - worker;
  int left = number < p.units ? (after + workers - 1) / workers : 0;
  // A slab in parts is one batch's row, which needs no division of 64 bits.
  GradPlace place{static_cast<int>(slab), static_cast<int>(part * p.pieces_of_split) + worker};
  if (parts == 1) {
    place.batch = static_cast<int>((begin + worker) / p.pieces_of_row);
    place.piece = static_cast<int>((begin + worker) % p.pieces_of_row);
  }
  const S pieces{p, unit};
  const auto advance = [&] {
    place.batch += p.batch_step;
    place.piece += p.piece_step;
    if (place.piece >= p.pieces_of_row) {
      place.piece -= p.pieces_of_row;
      ++place.batch;
    }
  };
  if constexpr (S::ahead) {
    auto values = pieces.read(place, left > 0);
#pragma unroll 1
    for (; left > 0; --left) {
      advance();
      auto next = pieces.read(place, left > 1);
      pieces.add(values, sums, bias);
      values = next;
    }
  } else {
#pragma unroll 1
    for (; left > 0; --left) {
      auto values = pieces.read(place, true);
      pieces.add(values, sums, bias);
      advance();
    }
  }

  // Lanes, then warps.
  constexpr int of_warp = S::taps + 1;
#pragma unroll
  for (int t = 0; t < S::taps; ++t) {
    const float sum = sum_of_lanes(sums[t]);
    if (lane == t) shared[warp * of_warp + t] = sum;
  }
  bias = sum_of_lanes(bias);
  if (lane == 0) shared[warp * of_warp + S::taps] = bias;
  __syncthreads();
  if (number >= p.units) return;
  for (int t = thread; t < of_warp; t += 32 * p.unit_warps) {
    float sum = 0;
    for (int other = 0; other < p.unit_warps; ++other)
      sum += shared[(warp / p.unit_warps * p.unit_warps + other) * of_warp + t];
    const int tap = S::with_input ? p.kernel_size - 1 - t : unit.first_tap + t;
    if (t == S::taps) {
      if (unit.has_bias) p.sums.store_bias(split, unit.channel, sum);
    } else if (tap >= 0 && tap < p.kernel_size) {
      p.sums.store_weight(split, unit.pair * p.kernel_size + tap, sum);
    }
  }
}

// The kernels of a mode, one for each way of reading and number of taps, and what they take.
template <class M>
struct GradSlidingKernels {
  static constexpr int of_piece = 16 / sizeof(typename M::Element);
  static constexpr int64_t kWarpsEnough = 64;  // of a multiprocessor, for units to take one each
  static constexpr int64_t kLeastPieces = 4;   // of a worker in a block that shares a unit
  static constexpr int64_t kLongKernel = 32;   // taps that `grad_long.cuh` has more of
  // Beside the gradient of the input: of neighbouring taps, and where they are apart.
  static constexpr int64_t kMostTaps = 16, kMostTapsApart = 8;
  static constexpr int kEight = 8 / of_piece;  // pieces of 8 positions

  static int launch(const ConvArgs& a, void* stream) {
    if (a.grad_input != nullptr && !has_one_pass(a))
      return 1;  // cudaErrorInvalidValue: `grad_costs.has_one_pass` should have said so
    if (is_long(a)) return grad_long_launch<M>(a, stream);
    return with_kernel(a, [&](auto s) { return run(s, a, stream); });
  }
  static int64_t workspace(const ConvArgs& a) {
    if (is_long(a)) return GradStore<M>::bytes(a, GradLongWork(a).splits);
    return with_kernel(a, [&](auto s) { return GradStore<M>::bytes(a, Work(a, s).splits); });
  }

 private:
  template <class S>
  struct Of {
    using Type = S;
  };
  template <int PIECES, int IN_STEP, int TAPS, int BLOCKS, bool AHEAD>
  using Window = Of<GradWindow<M, PIECES, IN_STEP, TAPS, BLOCKS, AHEAD>>;

  static bool has_one_pass(const ConvArgs& a) {
    const bool neighbours = has_neighbours(a);
    return a.channels_in == a.groups && a.channels_out == a.groups && a.stride == 1 &&
           a.kernel_size <= (neighbours ? kMostTaps : kMostTapsApart) &&
           a.batch * a.channels_out <= INT32_MAX;
  }
  static bool is_long(const ConvArgs& a) {
    return a.stride == 1 && a.dilation == 1 && a.kernel_size > kLongKernel;
  }

  // Whether the input's rows lie within 16 bytes as those of its gradient do.
  static bool rows_begin_alike(const ConvArgs& a) {
    const auto apart =
        reinterpret_cast<uintptr_t>(a.input) - reinterpret_cast<uintptr_t>(a.grad_input);
    return apart % 16 == 0 && (a.input_channel_stride - a.length) % of_piece == 0 &&
           (a.input_batch_stride - a.channels_in * a.length) % of_piece == 0;
  }

  template <class Function>
  static auto with_kernel(const ConvArgs& a, const Function& function) {
    const bool neighbours = has_neighbours(a);
    if (!neighbours && has_one_pass(a)) {
      if (a.kernel_size <= 3 && rows_begin_alike(a))
        return function(Of<GradBothApart<M, 3, of_piece == 4 ? 5 : 4, false>>{});
      return function(Of<GradBothApart<M, 8, of_piece == 4 ? 6 : 5, true>>{});
    }
    if (a.grad_input != nullptr) {
      if (!rows_begin_alike(a)) {
        if (a.kernel_size <= 4) return function(Of<GradBoth<M, 4, 7, true>>{});
        return function(Of<GradBoth<M, 16, 4, true>>{});
      }
      if (a.kernel_size <= 4) return function(Of<GradBoth<M, 4, 7, false>>{});
      if (a.kernel_size <= 8) return function(Of<GradBoth<M, 8, of_piece == 4 ? 6 : 5, false>>{});
      return function(Of<GradBoth<M, 16, of_piece == 4 ? 5 : 4, false>>{});
    }
    if (neighbours && a.stride == 1) {
      if (a.kernel_size <= 4)
        return function(Window<2, 1, 4, sizeof(typename M::Element) == 4 ? 5 : 4, true>{});
      if (a.kernel_size <= 8) return function(Window<2, 1, 8, of_piece == 4 ? 6 : 5, false>{});
      if (a.kernel_size <= 16) return function(Window<kEight, 1, 16, 3, true>{});
      return function(Window<kEight, 1, 32, 4, false>{});
    }
    if (neighbours && a.stride == 2) {
      if (a.kernel_size <= 4) return function(Window<kEight, 2, 4, 4, true>{});
      if (a.kernel_size <= 8) return function(Window<kEight, 2, 8, 4, true>{});
      return function(Window<kEight, 2, 16, 4, false>{});
    }
    if (a.kernel_size <= 4) return function(Of<GradApart<M, 4, 4, 5>>{});
    return function(Of<GradApart<M, 4, 8, 5>>{});
  }

  // Who does what, as the shape and the multiprocessors alone say.
  struct Work {
    int64_t chunks, units, pieces_of_row, unit_warps, unit_blocks;
    int64_t splits, parts = 1, pieces_of_slab, pieces_of_split;
    template <class S>
    Work(const ConvArgs& a, Of<S>)
        : chunks(ceil_div(a.kernel_size, S::taps)),
          units(a.channels_out * (a.channels_in / a.groups) * chunks),
          pieces_of_row(ceil_div(S::covered(a), S::of_worker)) {
      const int64_t pieces = a.batch * pieces_of_row, of_warp = 32 / S::worker_threads;
      const bool many = !S::with_input && units >= a.multiprocessors * kWarpsEnough;
      // A block would leave threads idle; but where no block has to wait for another, one is done sooner.
      const bool few = pieces <= of_warp ||
                       (pieces <= kLeastPieces * of_warp && units > a.multiprocessors * S::blocks);
      unit_warps = many || few ? 1 : kGradWarps;
      unit_blocks = ceil_div(units, kGradWarps / unit_warps);
      const int64_t workers = of_warp * unit_warps;
      if constexpr (S::with_input) {
        // Memory is the faster the nearer to each other all is that is on its way: so blocks do little, but enough for
        // their start and end to count for less, unless they are few.
        const int64_t evenly = pieces * unit_blocks / (workers * a.multiprocessors * S::blocks),
                      least = ceil_div(pieces, larger(1, most_splits(a)));
        const auto pieces_of = [&](int64_t turns) {
          return larger(workers * larger(kLeastPieces, smaller(evenly, turns)), least);
        };
        // Whole rows, or even parts of one, are the nearest, where their last turn leaves few threads idle.
        const int64_t wanted = pieces_of(S::turns_in_rows);
        const int64_t nearest = (pieces_of_row + wanted / 2) / wanted;
        parts = larger(1, smaller(nearest, pieces_of_row / least));
        pieces_of_split =
            parts > 1 ? ceil_div(pieces_of_row, parts) : round_up(wanted, pieces_of_row);
        if (!S::always_in_rows && 16 * pieces_of_split < 15 * round_up(pieces_of_split, workers)) {
          parts = 1;
          pieces_of_split = pieces_of(S::turns);
        }
      } else {
        splits = grad_splits(a, unit_blocks, pieces / (workers * kLeastPieces));
        pieces_of_split = larger(1, ceil_div(pieces, splits));
      }
      pieces_of_slab = parts > 1 ? pieces_of_row : pieces_of_split;
      splits = parts * larger(1, ceil_div(pieces, pieces_of_slab));
    }
  };

  template <class S>
  static int run(Of<S> s, const ConvArgs& a, void* stream) {
    const Work work(a, s);
    const int64_t blocks = work.unit_blocks * work.splits,
                  workers = 32 * work.unit_warps / S::worker_threads;
    if (blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
    const bool neighbours = has_neighbours(a);
    using Element = typename M::Element;
    int64_t before = 0, shift = 0, counted = 0;
    if constexpr (S::with_input) {
      before = S::before(a);
      shift = S::shift(a);
      counted = a.grad_bias != nullptr ? S::counted(a) : -1;
    }
    const GradSlidingParams<M> p{static_cast<const Element*>(a.input),
                                 static_cast<const Element*>(a.weight),
                                 static_cast<const Element*>(a.grad_output),
                                 static_cast<Element*>(a.grad_input),
                                 GradStore<M>(a, work.splits),
                                 a.input_batch_stride,
                                 a.input_channel_stride,
                                 a.batch,
                                 a.channels_out,
                                 work.pieces_of_slab,
                                 work.pieces_of_split,
                                 static_cast<uint32_t>(a.channels_in / a.groups),
                                 static_cast<uint32_t>(a.channels_out / a.groups),
                                 static_cast<uint32_t>(work.units),
                                 static_cast<uint32_t>(work.unit_blocks),
                                 static_cast<int>(workers / work.pieces_of_row),
                                 static_cast<int>(workers % work.pieces_of_row),
                                 static_cast<int>(work.pieces_of_row),
                                 static_cast<int>(work.unit_warps),
                                 static_cast<int>(work.chunks),
                                 static_cast<int>(a.length),
                                 static_cast<int>(a.length_out),
                                 static_cast<int>(a.kernel_size),
                                 static_cast<int>(a.stride),
                                 static_cast<int>(neighbours ? 1 : a.dilation),
                                 static_cast<int>(a.padding),
                                 static_cast<int>(before),
                                 static_cast<int>(shift),
                                 static_cast<int>(counted),
                                 static_cast<uint32_t>(work.parts)};
    if (const int error =
            fastconv1d::launch(grad_sliding_kernel<S>, dim3(static_cast<unsigned>(blocks)),
                               dim3(kGradThreads), kGradWarps * (S::taps + 1) * 4, stream, p))
      return error;
    return add_parts(p.sums, stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_SLIDING_LIBRARY(MODE)                                      \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::GradSlidingKernels<MODE>::launch(*args, stream);            \
  }                                                                                \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* args) {        \
    return fastconv1d::GradSlidingKernels<MODE>::workspace(*args);                 \
  }
