// The gradient of a convolution's weight on Hopper (grad_hopper_kernel.cuh): cut for a tile, its workspace, and the
// launches.
#pragma once
#include "grad_hopper_kernel.cuh"

namespace fastconv1d {

template <class M, class T>
struct GradHopper {
  using Element = typename M::Element;
  using Block = GradHopperBlock<M, T, false>;
  using DirectBlock = GradHopperBlock<M, T, true>;

  // Stages of each ring; none if they do not fit.
  struct Rings {
    int64_t raw, ready, inputs, bytes;
  };
  struct Cut {
    GradPairs pairs;
    Rings rings;
    GradBoxCut blocks;
    int64_t shared_bytes;  // that a block may take
    bool copied;           // whether the input is copied first
  };

  static int64_t input_bytes(const GradPairs& c) { return int64_t{c.boxes()} * c.box_step(); }
  static Rings rings_of(const GradPairs& c, int64_t shared_bytes) {
    const int64_t room = shared_bytes - Block::fixed_bytes;
    Rings best{};
    // Each of the warps that make them has stages of its own: others' phases would not be waited for. With two ready
    // ones it makes one while products read the other; with two raw ones, one comes while it makes the other ready.
    constexpr int64_t twice = 2 * kGradMakers;
    const struct {
      int64_t raw, ready;
    } ways[] = {
        {twice, twice}, {kGradMakers, twice}, {twice, kGradMakers}, {kGradMakers, kGradMakers}};
    for (const auto& way : ways) {
      const int64_t bytes = way.raw * Block::raw_bytes + way.ready * Block::ready_bytes,
                    inputs = smaller(kGradStages, (room - bytes) / input_bytes(c));
      if (inputs < kLeastInputStages) continue;
      best = {way.raw, way.ready, inputs, Block::fixed_bytes + bytes + inputs * input_bytes(c)};
      if (inputs >= kGradMakers + 1) break;
    }
    return best;
  }

  // The same of direct ones, which take less.
  static Rings direct_rings_of(const GradPairs& c, int64_t shared_bytes) {
    const int64_t of_stage = DirectBlock::raw_bytes + input_bytes(c),
                  stages =
                      smaller(kGradStages, (shared_bytes - DirectBlock::fixed_bytes) / of_stage);
    return {stages, stages, stages, DirectBlock::fixed_bytes + stages * of_stage};
  }

  // The pairs of blocks with so many taps; no channels if they do not fit.
  static GradPairs pairs_of(const ConvArgs& a, int64_t taps, int kinds_log2, int64_t shared_bytes) {
    const int64_t channels_in = a.channels_in / a.groups;
    GradPairs c{};
    const GradRows rows = GradRows::of(a, taps, Block::positions, Block::vector, true);
    if (rows.vectors == 0) return c;
    c.taps = static_cast<int>(taps);
    c.tap_blocks = ceil_div(a.kernel_size, taps);
    c.classes = rows.shared ? 1 : static_cast<int>(taps);
    c.vectors = static_cast<int>(rows.vectors);
    c.kinds_log2 = kinds_log2;
    c.taps_innermost = taps >= 4 && c.classes == 1 && a.dilation == 1;
    for (int64_t channels = smaller(channels_in, T::pairs / taps); channels > 0; --channels) {
      c.channels = static_cast<int>(channels);
      if (rings_of(c, shared_bytes).inputs > 0) break;
      c.channels = 0;
    }
    if (c.channels == 0) return c;
    c.channel_blocks = ceil_div(channels_in, c.channels);
    c.channels = static_cast<int>(ceil_div(channels_in, c.channel_blocks));
    c.channel_blocks = ceil_div(channels_in, c.channels);
    return c;
  }

  // What a slice takes for all pairs, in cycles: products, or the traffic of shared memory.
  static int64_t cost_of(const GradPairs& c) {
    const int64_t products = int64_t{T::pairs} * T::channels * kGradWords / 1024,
                  traffic = (2 * Block::raw_bytes + Block::ready_bytes + input_bytes(c)) / 128 +
                            products * 3 / 4;
    return c.channel_blocks * c.tap_blocks * larger(products, traffic);
  }

  static GradPairs best_pairs(const ConvArgs& a, int kinds_log2, int64_t shared_bytes) {
    return best_of_taps(
        a.kernel_size, T::pairs,
        [&](int64_t taps) { return pairs_of(a, taps, kinds_log2, shared_bytes); }, cost_of);
  }

  static Cut cut(const ConvArgs& a, int64_t) {
    Cut c{};
    c.shared_bytes = shared_budget(1);  // asks the driver
    c.copied = !rows_of_input(a).in_boxes();
    c.pairs = best_pairs(
        a, kinds_log2_of<Element>(input_in_boxes<Element>(a, c.copied, nullptr).channel_stride),
        c.shared_bytes);
    if (c.pairs.channels > 0) c.rings = rings_of(c.pairs, c.shared_bytes);
    c.blocks = GradBoxCut(a, c.pairs, T::channels, Block::positions);
    return c;
  }

  static int64_t phases(const ConvArgs&) { return 1; }
  static int64_t parts_bytes(const ConvArgs& a, const Cut& c) {
    const int64_t of_bias = larger(c.blocks.splits, grad_bias_splits(a)) * a.channels_out;
    return round_up(4 * (c.blocks.weight_parts() + of_bias), 256);
  }
  // Parts, and behind them a copy of the input.
  static int64_t packed_bytes(const ConvArgs& a, const Cut& c) {
    return parts_bytes(a, c) + input_copy_bytes<Element>(a, c.copied);
  }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    // cudaErrorInvalidValue: `why_not` should have said so.
    const int64_t splits = c.blocks.splits, blocks = c.blocks.tiles * splits;
    if (c.pairs.channels == 0 || blocks > INT32_MAX) return 1;
    auto* const parts = static_cast<float*>(a.workspace);
    char* const copy = static_cast<char*>(a.workspace) + parts_bytes(a, c);
    if (const int error = copy_input<Element>(a, c.copied, copy, stream)) return error;
    int error = 0;
    GradHopperParams p{};
    p.pairs = c.pairs;
    p.grad_kinds_log2 = kinds_log2_of<Element>(a.length_out);
    const bool aligned =
                   p.grad_kinds_log2 == 0 && reinterpret_cast<uintptr_t>(a.grad_output) % 16 == 0,
               apart = a.grad_bias != nullptr && (Block::values == 1 || aligned) &&
                       a.channels_in / a.groups * a.kernel_size >= kBiasApart,
               adds_bias = a.grad_bias != nullptr && !apart,
               direct = aligned && (Block::values == 2 || !adds_bias);
    float* const bias_parts = parts + c.blocks.weight_parts();
    GradParts bias{bias_parts, adds_bias ? a.channels_out : 0, a.grad_bias, splits};
    if (apart) error = grad_bias_parts(a, bias_parts, bias, stream);
    if (error != 0) return error;
    // A bias is added up unrounded.
    const BoxForm form = direct ? BoxForm::swizzled : adds_bias ? BoxForm::plain : M::boxes;
    p.rounds = form == BoxForm::plain;
    const int raw_pitch = direct ? DirectBlock::raw_pitch : Block::raw_pitch;
    const Rings rings = direct ? direct_rings_of(c.pairs, c.shared_bytes) : c.rings;
    if (!make_row_boxes<Element>(p.input_boxes, input_in_boxes<Element>(a, c.copied, copy),
                                 c.pairs.kinds_log2, c.pairs.vectors * Block::vector,
                                 c.pairs.rows_of_kind(), M::boxes) ||
        !make_row_boxes<Element>(p.grad_boxes, rows_of_grad_output(a), p.grad_kinds_log2,
                                 raw_pitch / Block::element, T::channels >> p.grad_kinds_log2,
                                 form))
      return 1;
    p.set(a, c.blocks, parts, adds_bias ? bias_parts : nullptr);
    p.leads = p.input_boxes.lead();
    p.skips = c.pairs.classes > 1 && a.padding >= c.pairs.vectors * Block::vector;
    p.raw_stages = static_cast<int>(rings.raw);
    p.ready_stages = static_cast<int>(rings.ready);
    p.input_stages = static_cast<int>(rings.inputs);
    p.input_bytes = static_cast<int>(input_bytes(c.pairs));
    const auto kernel = direct ? grad_hopper_kernel<M, T, true> : grad_hopper_kernel<M, T, false>;
    error = set_shared_limit(kernel, rings.bytes);
    if (error != 0) return error;
    // Nobody waits for what the bias is added up by but the last kernel.
    error = launch_early(apart, kernel, dim3(static_cast<unsigned>(blocks)), dim3(T::threads),
                         rings.bytes, stream, p);
    if (error != 0) return error;
    return add_parts<M>({parts, c.blocks.whole ? 0 : c.blocks.elements, a.output, splits}, bias,
                        stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_HOPPER_LIBRARY(...) \
  FASTCONV1D_TILE_LIBRARY(fastconv1d::GradHopper, __VA_ARGS__)
