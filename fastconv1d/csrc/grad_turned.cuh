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
    int64_t out_blocks, tiles, splits, slices, elements;
    bool copied;  // whether the input is copied first
  };

  static int kinds_log2_of(int64_t row) { return fastconv1d::kinds_log2_of(row, sizeof(Element)); }
  static int64_t residue_bytes(const TurnedForm& f) {
    return round_up(int64_t{f.tile_rows} * Block::row_bytes, kOperandAlignment);
  }

  // Known of a launch alone: how its work is cut must not depend on where tensors lie.
  static bool is_aligned(const ConvArgs& a) {
    return kinds_log2_of(a.length_out) == 0 && reinterpret_cast<uintptr_t>(a.grad_output) % 16 == 0;
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
    // One more, since rows begin within one.
    const auto vectors_of = [&](int64_t reach) {
      return ceil_div((Block::positions - 1) * a.stride + 1 + reach + Block::vector - 1,
                      Block::vector) |
             1;
    };
    TurnedForm f{};
    f.by_channels = a.kernel_size == 1;
    const int64_t apart = vectors_of(0), together = vectors_of((units - 1) * a.dilation);
    const bool shares = !f.by_channels && together <= units * apart &&
                        together * Block::vector <= kMostTurnedPositions;
    const int64_t vectors = shares ? together : apart;
    if (vectors * Block::vector > kMostTurnedPositions) return f;
    f.units = static_cast<int>(units);
    f.taps = f.by_channels ? 1 : f.units;
    f.tap_blocks = ceil_div(a.kernel_size, f.taps);
    f.classes = shares ? 1 : f.units;
    f.vectors = static_cast<int>(vectors);
    f.tile_rows =
        static_cast<int>(round_up((vectors * Block::vector - 1) / a.stride + Block::vector + 1, 8));
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
    c.copied = !input.in_boxes() || T::channels >> kinds_log2_of(input.channel_stride) < 8;
    const int kinds_log2 =
        kinds_log2_of(input_in_boxes<Element>(a, c.copied, nullptr).channel_stride);
    const int64_t units = a.kernel_size == 1 ? ceil_div(a.channels_in / a.groups, T::channels)
                                             : a.kernel_size,
                  most = T::unit_tiles * (a.stride > 1 ? T::strided_each : T::units_each);
    c.form = best_of_taps(
        units, most, [&](int64_t n) { return form_of(a, n, kinds_log2, shared_bytes); }, cost_of);
    if (c.form.channels > 0) c.rings = rings_of(a, c.form, is_aligned(a), shared_bytes);
    c.out_blocks = ceil_div(a.channels_out / a.groups, T::outs);
    c.tiles = a.groups * c.out_blocks * c.form.channel_blocks * c.form.tap_blocks;
    c.slices = ceil_div(a.length_out, Block::positions);
    c.elements = GradStore<M>::weights_of(a);
    c.splits = splits_of(a, c.tiles, a.batch * c.slices, a.multiprocessors);
    return c;
  }

  static int64_t phases(const ConvArgs&) { return 1; }
  static int64_t parts_bytes(const ConvArgs& a, const Cut& c) {
    return round_up(4 * c.splits * (c.elements + a.channels_out), 256);
  }
  // Parts, and behind them a copy of the input.
  static int64_t packed_bytes(const ConvArgs& a, const Cut& c) {
    return parts_bytes(a, c) + input_copy_bytes<Element>(a, c.copied);
  }

  static int launch_phase(const ConvArgs& a, const Cut& c, void* stream) {
    // cudaErrorInvalidValue: `why_not` should have said so.
    if (c.form.channels == 0 || c.tiles * c.splits > INT32_MAX) return 1;
    auto* const parts = static_cast<float*>(a.workspace);
    char* const copy = static_cast<char*>(a.workspace) + parts_bytes(a, c);
    if (const int error = copy_input<Element>(a, c.copied, copy, stream)) return error;
    const TensorRows input = input_in_boxes<Element>(a, c.copied, copy);
    GradTurnedParams p{};
    p.form = c.form;
    const int channels = c.form.by_channels ? T::channels : c.form.channels;
    p.input_kinds = RowKinds::of(channels, kinds_log2_of(input.channel_stride));
    p.block_outs = static_cast<int>(ceil_div(a.channels_out / a.groups, c.out_blocks));
    p.aligned = is_aligned(a);
    p.units_each = static_cast<int>(ceil_div(c.form.units, T::unit_tiles));
    p.grad_kinds = RowKinds::of(p.block_outs, kinds_log2_of(a.length_out));
    if (!make_row_boxes<Element>(p.input_boxes, input, p.input_kinds.log2,
                                 c.form.vectors * Block::vector, p.input_kinds.rows,
                                 BoxForm::plain) ||
        !make_row_boxes<Element>(p.grad_boxes, rows_of_grad_output(a), p.grad_kinds.log2,
                                 (p.aligned ? Block::aligned_pitch : Block::odd_pitch) / 2,
                                 p.grad_kinds.rows, p.aligned ? BoxForm::swizzled : BoxForm::plain))
      return 1;
    float* const bias_parts = parts + c.splits * c.elements;
    p.output =
        c.splits == 1 && a.batch * c.slices * Block::positions <= kGradChain ? a.output : nullptr;
    p.parts = parts;
    p.bias_parts = a.grad_bias != nullptr ? bias_parts : nullptr;
    p.batch = a.batch;
    p.length = static_cast<int>(a.length);
    p.length_out = static_cast<int>(a.length_out);
    p.kernel_size = a.kernel_size;
    p.channels_in = a.channels_in / a.groups;
    p.channels_out = a.channels_out / a.groups;
    p.groups = a.groups;
    p.out_blocks = c.out_blocks;
    p.splits = c.splits;
    p.slices = static_cast<int>(c.slices);
    p.elements = c.elements;
    p.dilation = static_cast<int>(a.dilation);
    p.padding = static_cast<int>(a.padding);
    p.stride = static_cast<int>(a.stride);
    p.stride_factor = static_cast<int>(ceil_div(1 << 16, a.stride));
    p.grad_stages = static_cast<int>(c.rings.grads);
    p.input_stages = static_cast<int>(c.rings.inputs);
    p.residue_bytes = static_cast<int>(residue_bytes(c.form));
    const auto kernel = grad_turned_kernel<M, T>;
    int error = set_shared_limit(kernel, c.rings.bytes);
    if (error != 0) return error;
    error = launch(kernel, dim3(static_cast<unsigned>(c.tiles * c.splits)), dim3(T::threads),
                   c.rings.bytes, stream, p);
    if (error != 0) return error;
    return add_parts<M>(
        {parts, p.output != nullptr ? 0 : c.elements, a.output, c.splits},
        {bias_parts, p.bias_parts != nullptr ? a.channels_out : 0, a.grad_bias, c.splits}, stream);
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_TURNED_LIBRARY(...) \
  FASTCONV1D_TILE_LIBRARY(fastconv1d::GradTurned, __VA_ARGS__)
