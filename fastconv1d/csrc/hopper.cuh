// The dense convolution on Hopper (hopper_kernel.cuh): each phase cut for a tile, its workspace, and the launches.
#pragma once
#include "hopper_kernel.cuh"

namespace fastconv1d {

template <class M, class T>
struct Hopper {
  using Element = typename M::Element;
  using Layout = OutputLayout<M, T::m_tiles>;
  static constexpr int64_t kSector = Layout::aligned_outputs;
  static constexpr int64_t kFewProducts = 256;  // of an output

  // A phase of a convolution, cut for this tile.
  struct Cut {
    Phase phase;
    Weave weave;
    Pipeline pipeline;
    int64_t groups, channels_in, channels_out;  // channels of one group
    int64_t block_channels, channel_blocks;
    int64_t overlap;  // positions that neighbouring tiles share
    int64_t tiles, runs, slices_of_share;
    int64_t packed_quads;  // of all columns: 4 words of each plane
  };

  static int64_t phases(const ConvArgs& a) { return is_woven(a) ? 1 : phase_count(a); }

  static bool is_aligned(const ConvArgs& a, const Cut& c) {
    return a.length_out % kSector == 0 && c.weave.skipped % kSector == 0;
  }
  // Tiles overlap where rows begin within a sector, whose parts take memory longer than whole ones, and products take
  // less time than writing their sums. In 16 bits a sector is an eighth of a tile, and more warpgroups than two issue as
  // much as they can.
  static int64_t overlap_of(const ConvArgs& a, const Cut& c) {
    constexpr bool may = Layout::may_overlap && (sizeof(Element) == 4 || T::warpgroups == 2);
    const bool writes_neighbours = c.weave.stride == 1 && c.phase.out_step == 1;
    return may && writes_neighbours && !is_aligned(a, c) &&
                   c.channels_in * c.phase.taps <= kFewProducts
               ? kSector
               : 0;
  }

  // The convolution of the words that the input is split to.
  static ConvArgs of_words(ConvArgs a) {
    a.input_channel_stride = round_up(a.length, 4);
    a.input_batch_stride = a.channels_in * a.input_channel_stride;
    return a;
  }

  static Cut cut(const ConvArgs& args, int64_t r) {
    const ConvArgs a = T::presplit ? of_words(args) : args;
    Cut c{};
    c.phase = is_woven(a) ? woven_phase(a) : phase_of(a, r);
    c.weave = weave_of(a);
    c.groups = a.groups;
    c.channels_in = a.channels_in / a.groups;
    c.channels_out = a.channels_out / a.groups;
    c.block_channels = T::channels / kWeave * c.weave.channels;
    c.channel_blocks = ceil_div(c.channels_out, c.block_channels);
    c.overlap = overlap_of(a, c);
    c.tiles = ceil_div(c.phase.positions, T::positions - c.overlap);
    const int64_t tiles = ceil_div(a.batch * c.tiles, T::warpgroups);  // of blocks
    c.runs = runs_of(tiles, a.groups * c.channel_blocks, a.multiprocessors);
    c.pipeline = pipeline_of(
        {T::warpgroups, T::positions, T::channels, M::planes, M::values_per_word, sizeof(Element),
         rows_alike(a.input_channel_stride * static_cast<int64_t>(sizeof(Element))),
         16 * steps_at_once<M, T>(), HopperBlock<M, T>::folds && c.weave.stride == 1,
         shared_budget(1) - hopper_fixed_bytes<M, T>(), ceil_div(tiles, c.runs) >= 4},
        c.phase, c.channels_in);
    Pipeline& l = c.pipeline;
    const int64_t steps = (l.folded > 0 ? 1 : larger(c.phase.taps, 0)) * (l.words / 8);
    if (M::chain > 0 && !cuts_chains<M, T>() && l.slices * steps > M::chain) l.taps = 0;
    c.slices_of_share =
        slices_of_share(a.groups * c.channel_blocks * c.runs, l.slices, steps, a.multiprocessors);
    c.packed_quads = a.groups * c.channel_blocks * l.slices * l.parts * l.taps * (l.words / 4) *
                     int64_t{T::channels};
    return c;
  }

  // Packed weights, behind them scales, what the input is split to, and behind these the sums of shares.
  static int64_t packed_bytes(const ConvArgs& a, const Cut& c) {
    return before_shares(a, c) + (shares(c) > 1 ? 4 * shares(c) * all_sums(a, c) : 0);
  }
  static int64_t before_split(const Cut& c) {
    return round_up(weight_bytes(c) + (M::sets > 1 ? 4 * scales(c) : 0), 32);
  }
  static int64_t before_shares(const ConvArgs& a, const Cut& c) {
    char* const none = nullptr;
    return before_split(c) + (T::presplit ? split_of(a).place(none) - none : 0);
  }
  static SplitParams split_of(const ConvArgs& a) {
    SplitParams split{};
    split.input = static_cast<const float*>(a.input);
    split.batch_stride = a.input_batch_stride;
    split.channel_stride = a.input_channel_stride;
    split.batch = a.batch;
    split.channels = a.channels_in;
    split.length = a.length;
    split.pitch = of_words(a).input_channel_stride;
    // As many blocks as run at a time.
    split.parts_of_batch = larger(
        1, smaller(smaller(kMostSplitParts, split.blocks()), 8 * a.multiprocessors / a.batch));
    return split;
  }
  static int64_t shares(const Cut& c) {
    return larger(1, ceil_div(c.pipeline.slices, c.slices_of_share));
  }
  static int64_t all_sums(const ConvArgs& a, const Cut& c) {
    return c.groups * c.channel_blocks * a.batch * c.tiles * HopperBlock<M, T>::sums_of_tile;
  }
  static int64_t weight_bytes(const Cut& c) { return c.packed_quads * 16 * M::planes; }
  static int64_t scales(const Cut& c) { return c.groups * c.channel_blocks * T::channels; }

  static int launch_phase(const ConvArgs& args, const Cut& c, void* stream) {
    const Pipeline& l = c.pipeline;
    // cudaErrorInvalidValue: `why_not` should have said so.
    if (l.taps == 0 || c.packed_quads > UINT32_MAX) return 1;
    ConvArgs a = args;
    HopperParams p{};
    if constexpr (T::presplit) {
      p.split = split_of(args);
      p.split.place(static_cast<char*>(a.workspace) + before_split(c));
      a = of_words(args);
      a.input = p.split.words;
    }
    auto* const packed = static_cast<uint32_t*>(a.workspace);
    auto* const scales = static_cast<int*>(a.workspace) + weight_bytes(c) / 4;
    constexpr int at_once = packed_columns<T>();
    const int columns = c.packed_quads <= 512 * a.multiprocessors ? 1 : at_once;
    const int64_t threads = c.packed_quads / columns;
    const HopperPackParams pack{{a.weight, packed, c.phase, c.channels_in, c.channels_out, a.groups,
                                 a.kernel_size, a.transposed, c.channel_blocks, threads},
                                l,
                                c.weave,
                                scales};
    int error = 0;
    const auto blocks_of = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
    if constexpr (T::presplit) {
      error = fastconv1d::launch(hopper_largest_kernel<T>,
                                 blocks_of(a.batch * p.split.parts_of_batch + Hopper::scales(c)),
                                 dim3(kSplitThreads), kSplitShared, stream, p.split, pack);
      if (error == 0)
        error = launch_early(
            true, columns == 1 ? hopper_split_kernel<M, T, 1> : hopper_split_kernel<M, T, at_once>,
            blocks_of(a.batch * p.split.blocks() + ceil_div(threads, kSplitThreads)),
            dim3(kSplitThreads), kSplitShared, stream, p.split, pack);
    } else {
      if constexpr (M::sets > 1)
        error = fastconv1d::launch(hopper_scale_kernel<M, T>, blocks_of(Hopper::scales(c)),
                                   dim3(128), 16, stream, pack);
      if (error == 0 && threads > 0)
        error = launch_early(
            M::sets > 1,
            columns == 1 ? hopper_pack_kernel<M, T, 1> : hopper_pack_kernel<M, T, at_once>,
            blocks_of(ceil_div(threads, 128)), dim3(128), 0, stream, pack);
    }
    if (error != 0) return error;
    const int64_t bytes = hopper_fixed_bytes<M, T>() + stage_bytes(l);
    const auto kernel = hopper_kernel<M, T>;
    error = set_shared_limit(kernel, bytes);
    if (error != 0) return error;
    p.input = a.input;
    p.weights = packed;
    p.scales = scales;
    p.bias = a.bias;
    const bool odd = (a.length_out | c.weave.skipped) % 2 != 0 ||
                     (c.weave.stride > 1 && c.weave.stride % 2 != 0);
    // Lanes that read strided neighbours meet fewer banks than those that read every second one.
    p.output = {a.output,
                a.length_out,
                c.phase.positions,
                c.phase.out_offset,
                c.phase.out_step,
                c.weave,
                static_cast<int>(c.overlap),
                is_aligned(a, c),
                odd,
                c.phase.in_step % 2 == 0};
    p.phase = c.phase;
    p.pipeline = l;
    p.batch = a.batch;
    p.length = a.length;
    p.input_batch_stride = a.input_batch_stride;
    p.channels_in = c.channels_in;
    p.channels_out = c.channels_out;
    p.groups = a.groups;
    p.block_channels = c.block_channels;
    p.channel_blocks = c.channel_blocks;
    p.tiles = c.tiles;
    p.runs = c.runs;
    const auto place = [&](int64_t tiles) {
      return Place{static_cast<int>(tiles / c.tiles), static_cast<int>(tiles % c.tiles)};
    };
    p.step = place(T::warpgroups * c.runs);
    for (int i = 0; i < T::warpgroups; ++i) p.of_warpgroup[i] = place(i);
    p.first_position = c.phase.first_shift;
    p.row_bytes = a.input_channel_stride * static_cast<int64_t>(sizeof(Element));
    p.tile_step = (T::positions - c.overlap) * c.phase.in_step;
    p.in_boxes = make_row_boxes<Element>(p.boxes, rows_of_input(a), l.alike_log2, l.block_positions,
                                         1 << l.box_rows_log2, M::boxes);
    p.leads = !p.in_boxes || p.boxes.lead();
    const int64_t seen = l.folded > 0 ? l.folded : l.taps;
    p.reach =
        static_cast<int>((T::positions - 1) * c.phase.in_step + (seen - 1) * c.phase.shift_step);
    p.slices_of_share = static_cast<int>(c.slices_of_share);
    if (shares(c) > 1)
      p.shares = reinterpret_cast<float*>(static_cast<char*>(a.workspace) + before_shares(args, c));
    const dim3 blocks(static_cast<unsigned>(a.groups * c.channel_blocks * c.runs),
                      static_cast<unsigned>(shares(c)));
    // Nothing but the packing comes before it then, and what came before that is over.
    error = launch_early(threads > 0 || M::sets > 1, kernel, blocks, dim3(T::threads), bytes,
                         stream, p);
    return error != 0 || p.shares == nullptr ? error : add_shares(a, c, p, stream);
  }

  static int add_shares(const ConvArgs& a, const Cut& c, const HopperParams& p, void* stream) {
    const int64_t tiles = a.groups * c.channel_blocks * a.batch * c.tiles;
    return launch_early(
        true, hopper_add_kernel<M, T>, dim3(static_cast<unsigned>(tiles)), dim3(128),
        4 * T::channels + OutputLayout<M, T::m_tiles>::bytes, stream,
        SharesParams{p.shares, a.bias, p.output, a.batch, c.tiles, c.channels_out, a.groups,
                     c.block_channels, c.channel_blocks, static_cast<int>(shares(c))});
  }
};

}  // namespace fastconv1d

#define FASTCONV1D_HOPPER_LIBRARY(...) FASTCONV1D_TILE_LIBRARY(fastconv1d::Hopper, __VA_ARGS__)
