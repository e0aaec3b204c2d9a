// All gradients of a depthwise layer in one pass, on ordinary FMA units: pieces of the kernel in `grad_sliding.cuh`.
//
// The gradient of the input needs the rows that the weight's does, with no other channels to add up: in `GradBoth` a
// piece is one of the input, and of its gradient, and the window one of grad_output,
//
//   sum of tap K - 1 - t  +=  input[i]  *  window[i + t]
//   grad_input[i]         +=  weight[K - 1 - t]  *  window[i + t]
//
// whose first values are those that the bias counts: pieces go on until they have had all. Where taps are apart, in
// `GradBothApart`, each has a window of its own, which other taps' have left in L1 if they are not too far apart. That is
// faster than reading values one by one even if the gradient of the input is not wanted.
//
// Roofline: DRAM sees three tensors once where two kernels would have it see four.
#pragma once
#include <type_traits>

#include "grad_unit.cuh"
#include "modes.cuh"
#include "stream.cuh"

namespace fastconv1d {

// All gradients of a depthwise layer whose outputs are neighbours: a thread's piece is 32 bytes of the gradient of the
// input, and the input's positions there. What neighbouring taps and taps APART have in common.
template <class MODE, int TAPS, int BLOCKS, bool APART>
struct GradAll {
  using M = MODE;
  using Element = typename M::Element;
  static constexpr int taps = TAPS, blocks = BLOCKS;
  static constexpr bool ahead = false, with_input = true;
  static constexpr int pieces = 2, of_piece = 16 / sizeof(Element), positions = pieces * of_piece;
  static constexpr int of_worker = positions, worker_threads = 1;
  // Taps are numbered as positions of grad_output ascend; the first one's are so many further on than the input's.
  static int64_t shift(const ConvArgs& a) { return a.padding - (a.kernel_size - 1) * a.dilation; }
  // The tap whose positions the bias counts: of taps apart the one that is least off.
  static int64_t counted(const ConvArgs& a) {
    const int64_t nearest = (a.dilation / 2 - shift(a)) / a.dilation;
    return APART ? smaller(larger(nearest, 0), a.kernel_size - 1) : 0;
  }
  static int64_t counted_shift(const ConvArgs& a) { return shift(a) + counted(a) * a.dilation; }
  // That tap sees all of grad_output, which a bias needs, and pieces begin where 16 bytes do.
  static int64_t before(const ConvArgs& a) {
    return a.grad_bias != nullptr ? round_up(larger(0, counted_shift(a)), of_piece) : 0;
  }
  static int64_t covered(const ConvArgs& a) {
    const int64_t seen = a.grad_bias != nullptr ? a.length_out - counted_shift(a) : 0;
    return before(a) + larger(a.length, seen) + most_lead(a);
  }
  // Positions that a row's first piece may lack: none where all rows begin at 16 bytes.
  static int64_t most_lead(const ConvArgs& a) {
    const bool aligned =
        reinterpret_cast<uintptr_t>(a.grad_input) % 16 == 0 && a.length % of_piece == 0;
    return aligned ? 0 : of_piece - 1;
  }

  const GradSlidingParams<M>& p;
  const GradUnit<M>& unit;
  float weight[TAPS];

  __device__ __forceinline__ GradAll(const GradSlidingParams<M>& p, const GradUnit<M>& unit)
      : p(p), unit(unit) {
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
      const bool exists = writes() && unit.channel < p.channels_out && t < p.kernel_size;
      const int of_row = p.kernel_size - 1 - t;
      weight[t] = exists ? M::from(p.weight[unit.channel * p.kernel_size + of_row]) : 0;
    }
  }
  using Values = GradPlace;
  __device__ __forceinline__ Values read(const GradPlace& place, bool) const { return place; }
  // Of taps apart, the gradient of the input may not be wanted.
  __device__ __forceinline__ bool writes() const { return !APART || p.grad_input != nullptr; }
  // Positions from tap to tap.
  __device__ __forceinline__ int step() const { return APART ? p.dilation : 1; }
  // The first element of a batch's row. Rows are counted with 32 bits: `has_one_pass` sees to that.
  __device__ __forceinline__ uint64_t begin_of(int batch, int length) const {
    const uint32_t row = batch * static_cast<uint32_t>(p.channels_out) + unit.channel;
    return uint64_t{row} * static_cast<uint32_t>(length);
  }
  __device__ __forceinline__ const Element* input_row(int batch) const {
    return unit.input + batch * unit.input_batch_stride;
  }
  __device__ __forceinline__ const Element* grad_row(int batch) const {
    return p.grad_output + begin_of(batch, p.length_out);
  }
  // The first position of a piece.
  __device__ __forceinline__ int first_of(const GradPlace& place) const {
    const uint64_t begin = reinterpret_cast<uint64_t>(p.grad_input) +
                           begin_of(place.batch, p.length) * sizeof(Element);
    return place.piece * positions - static_cast<int>(begin % 16 / sizeof(Element)) - p.before;
  }
  // Whether a piece that begins there has positions of the row, and whether a tap of theirs may see nothing.
  __device__ __forceinline__ bool in_row(int first) const {
    return first + positions > 0 && first < p.length;
  }
  __device__ __forceinline__ bool at_an_end(int first) const {
    return first < 0 || first + positions > p.length || first + p.shift < 0 ||
           first + positions + p.padding > p.length_out;  // the first tap, and the last one
  }
  __device__ __forceinline__ void write(const uint32_t (&word)[4 * pieces], int batch,
                                        int first) const {
    if (writes())
      write_words<M>(word, p.grad_input + begin_of(batch, p.length) + first, first, p.length);
  }

  __device__ __forceinline__ void add_one_by_one(int batch, int first, float (&sums)[TAPS]) const {
    const Element *const inputs = input_row(batch), *const grads = grad_row(batch);
#pragma unroll 1
    for (int i = first > 0 ? first : 0; i < first + positions && i < p.length; ++i) {
      const float input = M::from(inputs[i]);
      float sum = 0;
#pragma unroll
      for (int t = 0; t < TAPS; ++t) {
        if (t >= p.kernel_size) break;  // where it were need not be a number of 32 bits
        const int at = i + p.shift + t * step();
        if (at < 0 || at >= p.length_out) continue;
        const float grad = M::from(grads[at]);
        sums[t] = fmaf(input, grad, sums[t]);
        sum = fmaf(weight[t], grad, sum);
      }
      if (writes()) p.grad_input[begin_of(batch, p.length) + i] = M::to(sum);
    }
  }
};

// Neighbouring taps share a window. The input's rows may begin anywhere within 16 bytes if they are SHIFTED, else where
// its gradient's do.
template <class MODE, int TAPS, int BLOCKS, bool SHIFTED>
struct GradBoth : GradAll<MODE, TAPS, BLOCKS, false> {
  using Base = GradAll<MODE, TAPS, BLOCKS, false>;
  using Base::Base, Base::p, Base::unit, Base::weight, Base::of_piece, Base::pieces,
      Base::positions;
  using typename Base::M;
  static constexpr int span = positions - 1 + TAPS;  // positions of a window
  static constexpr int windows = (span + of_piece - 1) / of_piece;
  // Of blocks that have whole rows or parts of one, and of others: the fewer the more memory is waited for.
  static constexpr int turns_in_rows = TAPS <= 8 ? 4 : 10;
  static constexpr int turns = of_piece == 4 ? turns_in_rows : 10;
  // fp32 of few taps has so few instructions a byte that threads may idle in a last turn.
  static constexpr bool always_in_rows = of_piece == 4 && TAPS <= 8;

  __device__ __forceinline__ void add(const GradPlace& place, float (&sums)[TAPS],
                                      float& bias) const {
    const int batch = place.batch, first = this->first_of(place);
    float input[positions], window[windows * of_piece];
    const Span<M, pieces, SHIFTED> inputs(this->input_row(batch), p.length, first);
    const Span<M, windows, true> grads(this->grad_row(batch), p.length_out, first + p.shift);
    inputs.values(input, p.length);
    grads.values(window, p.length_out);
    // Short kernels take so many at a time, with fewer registers.
    constexpr int at_once = TAPS > 4 ? positions : of_piece;
    if (this->at_an_end(first)) {
      const bool in_row = this->in_row(first);
      if (!in_row || !all_finite<positions>(input) || !all_finite<span>(window) ||
          !all_finite<TAPS>(weight)) {
        if (unit.has_bias) bias += sum_of<positions>(window);
        if (in_row) this->add_one_by_one(batch, first, sums);
        return;
      }
    }
    uint32_t word[4 * pieces];
#pragma unroll
    for (int from = 0; from < positions; from += at_once) {
      const float* const near = window + from;
      if (unit.has_bias) bias += sum_of<at_once>(near);
      float grad_input[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) grad_input[i] = weight[0] * near[i];
#pragma unroll
      for (int t = 1; t < TAPS; ++t) {
        if (t >= p.kernel_size) break;
#pragma unroll
        for (int i = 0; i < at_once; ++i)
          grad_input[i] = fmaf(weight[t], near[i + t], grad_input[i]);
      }
      pack_words<M, at_once * 4 / of_piece>(grad_input, word + from * 4 / of_piece);
      add_products<at_once, 1>(input + from, near, sums);
    }
    this->write(word, batch, first);
  }
};

// Taps apart have a window each, those of few are read together.
template <class MODE, int TAPS, int BLOCKS, bool SHIFTED>
struct GradBothApart : GradAll<MODE, TAPS, BLOCKS, true> {
  using Base = GradAll<MODE, TAPS, BLOCKS, true>;
  using Base::Base, Base::p, Base::unit, Base::weight, Base::of_piece, Base::pieces,
      Base::positions;
  using typename Base::M;
  static constexpr bool together = TAPS <= 3;
  static constexpr int turns_in_rows = 32, turns = 32;
  static constexpr bool always_in_rows = false;
  // Where windows are kept as they were read, half of the piece at a time takes fewer registers.
  static constexpr int at_once = together ? 1 : pieces;
  using Window = Span<M, pieces, true>;

  __device__ __forceinline__ void add(const GradPlace& place, float (&sums)[TAPS],
                                      float& bias) const {
    const int batch = place.batch, first = this->first_of(place);
    Span<M, pieces, SHIFTED> inputs(this->input_row(batch), p.length, first);
    const auto read = [&](int t) {
      return Window(this->grad_row(batch), p.length_out, first + p.shift + t * p.dilation);
    };
    Window windows[together ? TAPS : 1];
    if constexpr (together) {
#pragma unroll
      for (int t = 0; t < TAPS; ++t)
        if (t < p.kernel_size) windows[t] = read(t);
    }
    inputs.settle(p.length);
    if constexpr (together) {
#pragma unroll
      for (int t = 0; t < TAPS; ++t)
        if (t < p.kernel_size) windows[t].settle(p.length_out);
    }
    const auto window_of = [&](int t) {
      if constexpr (together) {
        return windows[t];
      } else {
        Window window = read(t);
        window.settle(p.length_out);
        return window;
      }
    };
    if (this->at_an_end(first)) {
      float value[positions], counted = 0;
      inputs.template unpack<0, pieces>(value);
      bool finite = all_finite<TAPS>(weight) && all_finite<positions>(value);
#pragma unroll(together ? TAPS : 1)
      for (int t = 0; t < TAPS && t < p.kernel_size; ++t) {
        window_of(t).template unpack<0, pieces>(value);
        finite = finite && all_finite<positions>(value);
        if (t == p.counted) counted = sum_of<positions>(value);
      }
      const bool in_row = this->in_row(first);
      if (!in_row || !finite) {
        bias += counted;
        if (in_row) this->add_one_by_one(batch, first, sums);
        return;
      }
    }
    uint32_t word[4 * pieces];
    const auto multiply = [&](auto number) {
      constexpr int from = decltype(number)::value, count = at_once * of_piece;
      float input[count], grad_input[count]{};
      inputs.template unpack<from, at_once>(input);
#pragma unroll
      for (int t = 0; t < TAPS; ++t) {
        if (t > 0 && t >= p.kernel_size) break;
        float grad[count], sum = 0;
        window_of(t).template unpack<from, at_once>(grad);
        if (t == p.counted) bias += sum_of<count>(grad);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          grad_input[i] = fmaf(weight[t], grad[i], grad_input[i]);
          sum = fmaf(input[i], grad[i], sum);
        }
        sums[t] += sum;
      }
      pack_words<M, 4 * at_once>(grad_input, word + 4 * from);
    };
    multiply(std::integral_constant<int, 0>());
    if constexpr (at_once < pieces) multiply(std::integral_constant<int, at_once>());
    this->write(word, batch, first);
  }
};

}  // namespace fastconv1d
