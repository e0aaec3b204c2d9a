// The gradient of a convolution's weight in 16-bit types on Hopper (grad_turned_kernel.cuh): cut for a tile, its
// workspace, and the launches.
#pragma once
#include "grad_turned_kernel.cuh"

namespace fastconv1d {

constexpr int64_t kTurnedSlice = 500;  // cycles of a slice's instructions

template <class M, class T>
struct GradTurned {
  using Element = typename M::Element;
  using Block = GradTurnedBlock<M, T>;

  // Stages of each ring; none if they do not fit.
  struct Rings {
    int64_t grads, inputs, bytes;
  };
  struct Cut {
    TurnedForm form;
    Rings rings;
    GradBoxCut blocks;
    bool copied;  // whether the input is copied first
  };

  static int64_t residue_bytes(const TurnedForm& f) {
    return round_up(int64_t{f.tile_rows} * Block::row_bytes, kOperandAlignment);
  }

  // Known of a launch alone: how its work is cut must not depend on where tensors lie.
  static bool is_aligned(const ConvArgs& a) {
    return kinds_log2_of<Element>(a.length_out) == 0 &&
           reinterpret_cast<uintptr_t>(a.grad_output) % 16 == 0;
  }
  static Rings rings_of(const ConvArgs& a, const TurnedForm& f, bool aligned,
                        int64_t shared_bytes) {
    const int64_t of_grads = T::outs * int64_t{aligned ? Block::aligned_pitch : Block::odd_pitch},
                  room = shared_bytes - Block::fixed_bytes,
                  of_input = int64_t{f.classes} * Block::class_bytes(f),
                  of_turned = f.classes * a.stride * residue_bytes(f);
    // Whole turns of the warps that turn; what comes from memory has the rest.
    Rings best{};
    for (const int64_t inputs : {2 * kTurners, kTurners}) {
      const int64_t bytes = inputs * of_input + kTurners * of_turned,
                    grads = smaller(kTurnedStages, (room - bytes) / of_grads);
      if (grads < kLeastTurnedStages) continue;
      best = {grads, inputs,
              Block::fixed_bytes + larger(bytes + grads * of_grads, Block::out_bytes)};
      if (grads > kTurners) break;
    }
    return best;
  }

  // The form of blocks with so many units; no channels if they do not fit.
  static TurnedForm form_of(const ConvArgs& a, int64_t units, int kinds_log2,
                            int64_t shared_bytes) {
    const int64_t channels_in = a.channels_in / a.groups;
    TurnedForm f{};
    f.by_channels = a.kernel_size == 1;
    const GradRows rows = GradRows::of(a, units, Block::positions, Block::vector, !f.by_channels);
    if (rows.vectors == 0) return f;
    f.units = static_cast<int>(units);
    f.taps = f.by_channels ? 1 : f.units;
    f.tap_blocks = ceil_div(a.kernel_size, f.taps);
    f.classes = rows.shared ? 1 : f.units;
    f.vectors = static_cast<int>(rows.vectors);
    f.tile_rows = static_cast<int>(
        round_up((rows.vectors * Block::vector - 1) / a.stride + Block::vector + 1, 8));
    // Whole groups of 8 of each kind must find room.
    const int64_t of_kind = (T::channels >> kinds_log2) / 8 * 8;
    if (f.by_channels) {
      f.channel_blocks = ceil_div(channels_in, units * T::channels);
      f.channels = static_cast<int>(units * T::channels);
    } else {
      f.channel_blocks = ceil_div(ceil_div(channels_in, 1 << kinds_log2), of_kind);
      f.channels = static_cast<int>(ceil_div(channels_in, f.channel_blocks));
    }
    if (rings_of(a, f, false, shared_bytes).grads == 0) f.channels = 0;
    return f;
  }

  // What a slice takes for all channels and taps, in cycles: products, the traffic of shared memory, or instructions.
  static int64_t cost_of(const TurnedForm& f) {
    const int64_t products = T::warpgroups * ceil_div(f.units, T::unit_tiles) * T::channels * 2,
                  traffic = T::outs * Block::odd_pitch / 128 + T::warpgroups * 96 + products / 2 +
                            3 * f.classes * Block::class_bytes(f) / 128;
    return f.channel_blocks * f.tap_blocks * larger(kTurnedSlice, larger(products, traffic));
  }

  static Cut cut(const ConvArgs& a, int64_t) {
    Cut c{};
    const int64_t shared_bytes = shared_budget(1);  // asks the driver
    // Where batches do not line up, or kinds of rows are more than groups of 8 channels.
    const TensorRows input = rows_of_input(a);
    c.copied = !input.in_boxes() || T::channels >> kinds_log2_of<Element>(input.channel_stride) < 8;
    const int kinds_log2 =
        kinds_log2_of<Element>(input_in_boxes<Element>(a, c.copied, nullptr).channel_stride);
    const int64_t units = a.kernel_size == 1 ? ceil_div(a.channels_in / a.groups, T::channels)
                                             : a.kernel_size,
                  most = T::unit_tiles * (a.stride > 1 ? T::strided_each : T::units_each);
    c.form = best_of_taps(
        units, most, [&](int64_t n) { return form_of(a, n, kinds_log2, shared_bytes); }, cost_of);
    if (c.form.channels > 0) c.rings = rings_of(a, c.form, is_aligned(a), shared_bytes);
    c.blocks = GradBoxCut(a, c.form, T::outs, Block::positions);
    return c;
  }

  static int64_t phases(const ConvArgs&) { return 1; }
  static int64_t parts_bytes(const ConvArgs& a, const Cut& c) {
    return round_up(4 * (c.blocks.weight_parts() + c.blocks.splits * a.channels_out), 256);
  }
  // Parts, and behind them a copy of the input.
  static int64_t packed_bytes(const ConvArgs& a, const Cut& c) {
    return parts_bytes(a, c) + input_copy_bytes<Element>(a, c.copied);
  }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    // cudaErrorInvalidValue: `why_not` should have said so.
    const int64_t splits = c.blocks.splits, blocks = c.blocks.tiles * splits;
    if (c.form.channels == 0 || blocks > INT32_MAX) return 1;
    auto* const parts = static_cast<float*>(a.workspace);
    char* const copy = static_cast<char*>(a.workspace) + parts_bytes(a, c);
    if (const int error = copy_input<Element>(a, c.copied, copy, stream)) return error;
    const TensorRows input = input_in_boxes<Element>(a, c.copied, copy);
    GradTurnedParams p{};
    p.form = c.form;
    const int channels = c.form.by_channels ? T::channels : c.form.channels;
    p.input_kinds = RowKinds::of(channels, kinds_log2_of<Element>(input.channel_stride));
    p.aligned = is_aligned(a);
    p.units_each = static_cast<int>(ceil_div(c.form.units, T::unit_tiles));
    p.grad_kinds = RowKinds::of(c.blocks.block_outs, kinds_log2_of<Element>(a.length_out));
    if (!make_row_boxes<Element>(p.input_boxes, input, p.input_kinds.log2,
                                 c.form.vectors * Block::vector, p.input_kinds.rows,
                                 BoxForm::plain) ||
        !make_row_boxes<Element>(p.grad_boxes, rows_of_grad_output(a), p.grad_kinds.log2,
                                 (p.aligned ? Block::aligned_pitch : Block::odd_pitch) / 2,
                                 p.grad_kinds.rows, p.aligned ? BoxForm::swizzled : BoxForm::plain))
      return 1;
    float* const bias_parts = parts + c.blocks.weight_parts();
    p.set(a, c.blocks, parts, a.grad_bias != nullptr ? bias_parts : nullptr);
    p.stride_factor = static_cast<int>(ceil_div(1 << 16, a.stride));
    p.grad_stages = static_cast<int>(c.rings.grads);
    p.input_stages = static_cast<int>(c.rings.inputs);
    p.residue_bytes = static_cast<int>(residue_bytes(c.form));
    const auto kernel = grad_turned_kernel<M, T>;
    int error = set_shared_limit(kernel, c.rings.bytes);
    if (error != 0) return error;
    error = launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(T::threads), c.rings.bytes,
                   stream, p);
    if (error != 0) return error;
    return add_parts<M>(
        {parts, c.blocks.whole ? 0 : c.blocks.elements, a.output, splits},
        {bias_parts, a.grad_bias != nullptr ? a.channels_out : 0, a.grad_bias, splits}, stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_TURNED_LIBRARY(...) \
  FASTCONV1D_TILE_LIBRARY(fastconv1d::GradTurned, __VA_ARGS__)
