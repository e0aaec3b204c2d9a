// The arithmetic of slices and tiles on GPUs: shared by kernels, launchers and CPU tests.
#pragma once
#include "phases.h"

namespace fastconv1d {

// Outputs woven: a transposed convolution of stride s, whole, is also one phase of stride 1, s columns for each
// output channel. Column r of position q is output `q * stride + r - skipped` of its row; it meets the weight's tap
// t at shift j where `first_tap + j * tap_step + r == t * dilation`. Of kWeave neighbouring columns, `channels`
// channels have `stride` each; those left over nobody looks at. Ordinary outputs have {1, kWeave, 0, 1}.
constexpr int kWeave = 16;
struct Weave {
  int stride, channels, skipped, dilation;
};

// Shifts of the woven phase: all between the last tap's and the first one's, but those that no tap meets where
// the stride divides the dilation.
FASTCONV1D_HD constexpr int64_t weave_step(const ConvArgs& a) {
  return a.dilation % a.stride == 0 ? a.dilation / a.stride : 1;
}
FASTCONV1D_HD constexpr int64_t woven_taps(const ConvArgs& a) {
  return (a.kernel_size - 1) * a.dilation / (a.stride * weave_step(a)) + 1;
}

// Whether outputs are woven: a chunk of columns has all of a channel's, and there are no more shifts than taps.
FASTCONV1D_HD constexpr bool is_woven(const ConvArgs& a) {
  return a.transposed && a.stride > 1 && a.stride <= kWeave && woven_taps(a) <= a.kernel_size;
}

FASTCONV1D_HD constexpr Weave weave_of(const ConvArgs& a) {
  if (!is_woven(a)) return {1, kWeave, 0, 1};
  return {static_cast<int>(a.stride), static_cast<int>(kWeave / a.stride),
          static_cast<int>(a.padding % a.stride), static_cast<int>(a.dilation)};
}

FASTCONV1D_HD constexpr Phase woven_phase(const ConvArgs& a) {
  const int64_t step = weave_step(a), last = woven_taps(a) - 1, of_step = step * a.stride;
  return {last * of_step,
          -of_step,
          last + 1,
          a.padding / a.stride - last * step,
          step,
          1,
          0,
          1,
          ceil_div(a.length_out + a.padding % a.stride, a.stride)};
}

// What a column is: a channel's outputs `r` of each stride.
struct Column {
  int64_t channel;
  int r;
};
FASTCONV1D_HD constexpr Column column_of(const Weave& w, int64_t column) {
  if (w.stride == 1) return {column, 0};
  const int place = static_cast<int>(column % kWeave), channel = place / w.stride;
  return {column / kWeave * w.channels + channel, place - channel * w.stride};
}

// The tap that a column meets at shift `j` of the phase; beyond the kernel where there is none.
FASTCONV1D_HD constexpr int64_t tap_of(const Phase& p, const Weave& w, int r, int64_t j) {
  const auto scaled = static_cast<uint32_t>(p.first_tap + j * p.tap_step + r),
             dilation = static_cast<uint32_t>(w.dilation);
  if (dilation == 1) return scaled;
  return scaled % dilation == 0 ? scaled / dilation : INT32_MAX;
}

// How a block of the dense kernel walks one phase: the reduction is cut in slices, one slice being
// `slice_words` words of channels times one group of taps that read the same window of the input.
//
// A window in shared memory has `columns` columns, `load_step` input positions apart; output q of the
// tile reads column lead + (most_shift + q) * read_step + j * column_step for the j-th tap of the
// group, where lead < 4 lets a window of neighbouring positions begin at a multiple of 4, and
// most_shift lets q be negative (see below). Where the whole stride would not
// fit (classes > 1), taps are grouped by the residue of their shift instead, and neighbouring columns
// are a whole stride apart.
struct Schedule {
  int classes, load_step, read_step, column_step;
  int taps_per_group, groups;
  int slice_words, channel_slices, channel_words;
  int columns, pitch;
  int resident;  // whether shared memory keeps all slices' weights from tile to tile
};

// Rows of the output begin at any element. Stores are fast where eight neighbouring outputs of a row
// fill one aligned piece of memory, so each warp moves its part of the tile back to such a boundary.
// For that its channels must be aligned alike: of the row_classes(length_out) alignments that there
// are, a tile keeps apart at most one for each row of warps, and takes its channels class by class.
constexpr int kAlignedOutputs = 8;

FASTCONV1D_HD constexpr int64_t row_classes(int64_t length_out) {
  return kAlignedOutputs / gcd(kAlignedOutputs, length_out % kAlignedOutputs);
}

// The channel of a tile's row. All rows of a row of warps are of one class, so that from one row to
// the next of them the channel grows by the number of classes, 1 << classes_log2.
FASTCONV1D_HD constexpr int channel_of_row(int row, int channels_log2, int classes_log2) {
  const int of_class_log2 = channels_log2 - classes_log2;
  return ((row & ((1 << of_class_log2) - 1)) << classes_log2) + (row >> of_class_log2);
}

FASTCONV1D_HD constexpr int log2_of(int64_t power) {
  int log2 = 0;
  while (power >>= 1) ++log2;
  return log2;
}

// What a tile of the dense kernel offers to a schedule.
struct TileLimits {
  int64_t positions, channels;  // of the output tile
  int64_t most_shift;           // positions by which a row's tile may begin earlier
  int64_t window_vectors;       // of 4 columns, that its threads can hold on their way in
  int64_t planes;               // words of a window for one value: 2 where fp32 is split in two
  int64_t values_per_word;      // channels in a word: 2 for 16-bit types
  int64_t shared_words;         // of shared memory
  bool many_tiles;              // a block computes enough tiles to keep the weights
};

FASTCONV1D_HD constexpr int64_t weight_words(const TileLimits& t, int64_t taps,
                                             int64_t slice_words) {
  return taps * slice_words * t.channels;
}

// Of which 2 are used: asynchronous copies of 128 bytes are slower where these cross a line.
constexpr int kBarrierWords = 32;

// A warp may be a slice ahead of another where weights are resident: a third window for it.
FASTCONV1D_HD constexpr int window_count(const Schedule& s) { return s.resident ? 3 : 2; }

// Of shared memory: a barrier, the bias, the windows, and the weights of two slices or of all.
FASTCONV1D_HD constexpr int64_t shared_words(const TileLimits& t, const Schedule& s) {
  const int64_t slices = s.resident ? s.channel_slices * s.groups : 2;
  return kBarrierWords + t.channels + window_count(s) * t.planes * s.slice_words * s.pitch +
         slices * weight_words(t, s.taps_per_group, s.slice_words);
}

// A row pitch of at least `columns`, a multiple of 4, for which a fragment read, 4 rows by 8 columns
// `read_step` apart, meets each of the 32 banks once where read_step is odd: 8 or 24 modulo 32.
FASTCONV1D_HD constexpr int64_t window_pitch(int64_t columns) {
  return round_up(larger(columns - 8, 0), 16) + 8;
}

FASTCONV1D_HD constexpr bool fits(const TileLimits& t, const Schedule& s) {
  if (s.slice_words * (s.pitch / 4) > t.window_vectors) return false;
  return shared_words(t, s) <= t.shared_words;
}

// Positions farther apart than this are not walked: offsets in a window stay within 32 bits.
constexpr int64_t kMostLoadStep = 1 << 22;

// A schedule with `taps` taps in a group; its taps_per_group is 0 where that does not fit.
FASTCONV1D_HD constexpr Schedule try_schedule(const TileLimits& t, const Phase& p,
                                              int64_t channels_in, bool by_residue,
                                              int64_t slice_words, int64_t taps, bool resident) {
  Schedule s{};
  s.resident = resident;
  const int64_t g = p.taps > 1 ? gcd(p.in_step, p.shift_step) : p.in_step;
  const int64_t load_step = by_residue ? p.in_step : g, read_step = by_residue ? 1 : p.in_step / g;
  const int64_t column_step = taps > 1 ? p.shift_step / g : 0;
  const int64_t span = (t.positions - 1 + t.most_shift) * read_step + (taps - 1) * column_step + 1;
  const int64_t columns = round_up(3 + span, 4);
  if (columns > t.window_vectors || load_step > kMostLoadStep) return s;
  s.classes = static_cast<int>(by_residue ? p.in_step / g : 1);
  s.load_step = static_cast<int>(load_step);
  s.read_step = static_cast<int>(read_step);
  s.column_step = static_cast<int>(column_step);
  s.slice_words = static_cast<int>(slice_words);
  s.channel_words = static_cast<int>(ceil_div(channels_in, t.values_per_word));
  s.channel_slices = static_cast<int>(ceil_div(s.channel_words, slice_words));
  s.columns = static_cast<int>(columns);
  s.pitch = static_cast<int>(window_pitch(columns));
  s.groups = static_cast<int>(s.classes * ceil_div(ceil_div(larger(p.taps, 1), s.classes), taps));
  s.taps_per_group = static_cast<int>(taps);
  if (!fits(t, s)) s.taps_per_group = 0;
  return s;
}

// The schedule of a phase: all taps in one group where they fit (the window is then loaded once),
// else as many as fit, spread evenly; windows before residues; wide slices before narrow ones;
// resident weights before travelling ones.
FASTCONV1D_HD constexpr Schedule schedule_of(const TileLimits& t, const Phase& p,
                                             int64_t channels_in) {
  const int64_t words = round_up(ceil_div(channels_in, t.values_per_word), 8);
  for (int by_residue = 0; by_residue < 2; ++by_residue) {
    const int64_t g = p.taps > 1 ? gcd(p.in_step, p.shift_step) : p.in_step;
    const int64_t classes = by_residue ? p.in_step / g : 1;
    const int64_t taps_in_class = ceil_div(larger(p.taps, 1), classes);
    const int64_t most = t.shared_words / 2 / weight_words(t, 1, 8);
    if (most == 0) return Schedule{};
    int64_t parts = ceil_div(taps_in_class, most);
    for (int64_t taps = ceil_div(taps_in_class, parts);; taps = ceil_div(taps_in_class, ++parts)) {
      // Slices of equal width, as few as may be.
      for (int64_t slices = ceil_div(words, taps >= 4 ? 8 : 32), width = words + 8; width > 8;
           ++slices) {
        const int64_t slice_words = round_up(ceil_div(words, slices), 8);
        if (slice_words == width) continue;
        width = slice_words;
        for (int resident = t.many_tiles; resident >= 0; --resident) {
          const Schedule s =
              try_schedule(t, p, channels_in, by_residue, slice_words, taps, resident);
          if (s.taps_per_group > 0) return s;
        }
      }
      if (taps == 1) break;
    }
  }
  return Schedule{};
}

constexpr int64_t kMostWaves = 32;

// How many blocks take turns on the tiles of each of `rows` channel blocks: as many as run at a time,
// unless in several waves they leave less of the GPU idle. A block's start costs about half a tile.
FASTCONV1D_HD constexpr int64_t runs_of(int64_t tiles, int64_t rows, int64_t at_a_time) {
  int64_t least = INT64_MAX, best = 1;
  for (int64_t waves = 1; waves <= kMostWaves; ++waves) {
    const int64_t runs = smaller(tiles, larger(1, waves * at_a_time / rows));
    const int64_t time = ceil_div(rows * runs, at_a_time) * (2 * ceil_div(tiles, runs) + 1);
    if (time >= least) continue;
    least = time;
    best = runs;
  }
  return best;
}

// How many slices of a reduction each of several blocks takes that share a tile: all of them, where there are
// tiles enough for every multiprocessor, or sharing would take longer than it saves.
constexpr int64_t kMostShares = 8, kLeastSteps = 192;
FASTCONV1D_HD constexpr int64_t slices_of_share(int64_t blocks, int64_t slices, int64_t steps,
                                                int64_t multiprocessors) {
  if (2 * blocks > multiprocessors || slices * steps < kLeastSteps) return larger(1, slices);
  return ceil_div(slices, smaller(smaller(multiprocessors / blocks, slices), kMostShares));
}

// The number of parts into which a product's depth of so many slices is split where it has few tiles: that with which
// blocks, one to a multiprocessor, are over soonest; each takes some slices' time to begin and to end.
constexpr int64_t kProductStart = 8, kMostProductSplits = 16;
constexpr int64_t kExplicitParts = int64_t{64} << 20;  // bytes of sums of all splits, or one split
FASTCONV1D_HD constexpr int64_t product_splits(int64_t tiles, int64_t slices,
                                               int64_t multiprocessors, int64_t most) {
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1;
       splits <= smaller(smaller(most, kMostProductSplits), larger(1, slices / 2)); ++splits) {
    const int64_t time =
        ceil_div(tiles * splits, multiprocessors) * (ceil_div(slices, splits) + kProductStart);
    if (time >= least) continue;
    best = splits;
    least = time;
  }
  return best;
}

// How the Hopper kernel walks one phase: tile by tile, slices of channels by slices, part of the taps by
// part. Shared memory has `inputs` stages of rows of the input as they lie in memory, and `weights`
// stages of the weights of one tap and slice, or all of them where they are resident.
//
// A slice has `words` words of channels, a power of two, in quads of 4. Rows that begin alike modulo 16
// bytes, of one kind, are 1 << alike_log2 channels apart, and are copied together: a stage has kind after
// kind, and a quad has rows of one kind. The k-th row of a kind is channel `kind + (k << alike_log2)` of
// the slice. A stage has a block of all rows for each `block_outputs` positions of the output, so that
// lanes know theirs once and for all; what two of them read is there twice. Or it has a block for each tap, where
// these are apart.
//
// Where a group has few channels, these would leave most of a slice's words empty. Its taps are words then
// (`folded`): value `channel * taps + tap` of a phase is the channel's row, the tap's shift further on, and products
// see one tap of so many channels. A stage has each channel's row alone, and one of zeros, for words beyond.
struct Pipeline {
  int parts, taps;  // of the phase; taps of one part, 0 where nothing fits
  int slices, words;
  int folded;  // taps that are words, or 0
  int alike_log2, quads_of_kind_log2;
  int kinds_log2, box_rows_log2;                          // boxes of a block, and rows of a box
  int block_outputs, blocks, block_positions, row_pitch;  // blocks of a warpgroup; pitch in bytes
  int block_rows;                                         // of a stage
  int block_step;     // positions of the input from one block to the next
  int64_t tap_bytes;  // of a stage, from one tap's values to the next one's
  int resident;
  int inputs, weights;
  int input_bytes, weight_bytes;  // of one stage
};

// What a tile of the Hopper kernel offers to a pipeline, and what the input's rows ask for.
struct PipelineLimits {
  int64_t warpgroups;
  int64_t outputs, channels;  // of a warpgroup: positions, and channels
  int64_t planes, values_per_word, element_bytes;
  int64_t alike;         // rows from one to the next that begins alike modulo 16 bytes
  int64_t least_words;   // of a slice: one fragment is read while products need the one before
  bool folds;            // whether taps may be words
  int64_t shared_bytes;  // for stages
  bool many_tiles;
};

constexpr int kMostStages = 8;
constexpr int64_t kInputBytes = 48 << 10;  // on their way, at which more stages help no more

constexpr int64_t kMostBlockPositions = 256;  // a box may have no more
constexpr int kMostKinds = 8;

// Channels of a group whose taps are words, and values that these are at most. Where each lies in a stage is
// kept in shared memory: 8 bytes.
constexpr int kMostFoldedChannels = 8, kMostFoldedValues = 128;

// How many rows lie between those that begin alike modulo 16 bytes.
FASTCONV1D_HD constexpr int64_t rows_alike(int64_t row_bytes) {
  return 16 / gcd(16, row_bytes % 16);
}

FASTCONV1D_HD constexpr int64_t stage_bytes(const Pipeline& l) {
  return int64_t{l.inputs} * l.input_bytes + int64_t{l.weights} * l.weight_bytes +
         (l.folded > 0 ? 8 * kMostFoldedValues : 0);
}

// Positions of a block for so many outputs and taps; its rows may begin within 16 bytes of it. Lanes read
// 4 rows side by side, 8 neighbouring words of each: these lie in different banks where rows are an odd
// multiple of 8 words apart; words 8 apart lie in most banks where rows are an odd multiple of 4 apart. Where taps
// are words, lanes read one row or few, each of which is a box, and boxes begin at multiples of 128 bytes.
FASTCONV1D_HD constexpr int64_t block_positions_of(const PipelineLimits& t, const Phase& p,
                                                   int64_t outputs, int64_t taps, bool folded) {
  const int64_t positions =
      (outputs - 1) * p.in_step + (larger(taps, 1) - 1) * p.shift_step + 16 / t.element_bytes;
  if (folded) return round_up(positions, 128 / t.element_bytes);
  const int64_t whole = 32 / t.element_bytes / t.values_per_word,
                unit = t.values_per_word == 1 && t.alike <= 2 && p.in_step % 8 == 0 ? whole / 2
                                                                                    : whole;
  return round_up(larger(positions - unit, 0), 2 * unit) + unit;
}

// How many outputs have a block, a warp's or more, so that least is copied for so many taps; 0 if no block is
// large enough.
FASTCONV1D_HD constexpr int64_t block_outputs_of(const PipelineLimits& t, const Phase& p,
                                                 int64_t taps, bool folded) {
  int64_t best = 0, least = INT64_MAX;
  for (int64_t outputs = t.outputs; outputs >= t.outputs / 4; outputs /= 2) {
    const int64_t positions = block_positions_of(t, p, outputs, taps, folded);
    const int64_t copied = t.outputs / outputs * positions;
    if (positions > kMostBlockPositions || copied >= least) continue;
    least = copied;
    best = outputs;
  }
  return best;
}

// Where a part's taps are: in blocks that all of them see, in one of its own each, or words of one.
enum class Taps { kTogether, kApart, kFolded };

// A pipeline with `taps` taps in a part; its own are 0 where that does not fit.
FASTCONV1D_HD constexpr Pipeline try_pipeline(const PipelineLimits& t, const Phase& p,
                                              int64_t channels_in, int64_t words, int64_t taps,
                                              bool resident, int inputs, Taps are) {
  Pipeline l{};
  const bool folded = are == Taps::kFolded, apart = are == Taps::kApart;
  const int64_t seen = folded  ? p.taps
                       : apart ? 1
                               : taps,
                outputs = apart ? t.outputs : block_outputs_of(t, p, seen, folded);
  if (outputs == 0 || block_positions_of(t, p, outputs, seen, folded) > kMostBlockPositions)
    return l;
  l.parts = static_cast<int>(folded ? 1 : ceil_div(larger(p.taps, 1), taps));
  l.words = static_cast<int>(words);
  l.folded = static_cast<int>(folded ? p.taps : 0);
  // A phase without taps sums up nothing.
  l.slices = static_cast<int>(
      p.taps == 0 ? 0 : ceil_div(channels_in * (folded ? p.taps : 1), words * t.values_per_word));
  l.alike_log2 = log2_of(t.alike);
  l.quads_of_kind_log2 = log2_of(words / 4 / t.alike);
  l.kinds_log2 = folded ? log2_of(2 * channels_in - 1) : l.alike_log2;
  l.box_rows_log2 = folded ? 0 : log2_of(4 * t.values_per_word) + l.quads_of_kind_log2;
  l.block_outputs = static_cast<int>(outputs);
  l.blocks = static_cast<int>(apart ? taps : t.outputs / outputs);
  l.block_positions = static_cast<int>(block_positions_of(t, p, outputs, seen, folded));
  l.row_pitch = static_cast<int>(l.block_positions * t.element_bytes);
  l.block_rows = (1 << (l.kinds_log2 + l.box_rows_log2)) + folded;
  l.block_step = static_cast<int>(apart ? p.shift_step : outputs * p.in_step);
  l.tap_bytes = apart ? int64_t{l.block_rows} * l.row_pitch : p.shift_step * t.element_bytes;
  l.input_bytes = static_cast<int>(t.warpgroups * l.blocks * l.block_rows * l.row_pitch);
  l.weight_bytes = static_cast<int>(t.planes * words * t.channels * 4);
  const int64_t all_weights = int64_t{l.slices} * l.parts * taps;
  if (resident && all_weights * l.weight_bytes > t.shared_bytes) return l;
  l.resident = resident;
  l.inputs = inputs;
  l.weights = static_cast<int>(resident ? all_weights : 3);
  if (stage_bytes(l) > t.shared_bytes) return l;
  l.taps = static_cast<int>(taps);
  // What is left goes where it hides latency.
  for (bool more = true; more;) {
    const int64_t left = t.shared_bytes - stage_bytes(l);
    more = true;
    if (l.inputs < kMostStages && l.inputs * l.input_bytes < kInputBytes && left >= l.input_bytes)
      ++l.inputs;
    else if (!resident && l.weights < kMostStages && left >= l.weight_bytes)
      ++l.weights;
    else if (l.inputs < kMostStages && left >= l.input_bytes)
      ++l.inputs;
    else
      more = false;
  }
  return l;
}

FASTCONV1D_HD constexpr Pipeline pipeline_of(const PipelineLimits& t, const Phase& p,
                                             int64_t channels_in) {
  const int64_t all_words = round_up(ceil_div(channels_in, t.values_per_word), 16);
  const int64_t least = larger(t.least_words, 4 * t.alike);
  if (t.folds && p.taps > 1 && channels_in <= kMostFoldedChannels &&
      channels_in * p.taps <= kMostFoldedValues) {
    const int64_t words = channels_in * p.taps > 16 * t.values_per_word ? 32 : t.least_words;
    for (int inputs = 2; inputs >= 1; --inputs)
      for (int resident = t.many_tiles; resident >= 0; --resident) {
        const Pipeline l =
            try_pipeline(t, p, channels_in, words, 1, resident, inputs, Taps::kFolded);
        if (l.taps > 0) return l;
      }
  }
  // Wide slices have fewer handovers than narrow ones, but may have more channels that do not exist.
  const auto widest = [&](int64_t taps, int inputs, Taps are) {
    for (int resident = t.many_tiles; resident >= 0; --resident)
      for (int64_t words = ceil_div(all_words, 16) % 2 == 0 ? 32 : least; words >= least;
           words /= 2) {
        const Pipeline l = try_pipeline(t, p, channels_in, words, taps, resident, inputs, are);
        if (l.taps > 0) return l;
      }
    return Pipeline{};
  };
  // Taps as far apart as a tile is long see nothing in common, and what lies between them would be copied for nobody. In
  // one part they have fewer handovers all the same, best in blocks of their own, where all of these begin alike.
  const int64_t of_tile = t.outputs * p.in_step;
  const bool apart = p.shift_step >= of_tile;
  if (p.taps > 1 && p.shift_step > of_tile && p.shift_step * t.element_bytes % 16 == 0) {
    const Pipeline l = widest(p.taps, 2, Taps::kApart);
    if (l.taps > 0) return l;
  }
  for (int64_t parts = 1;; parts = apart ? p.taps : parts + 1) {
    const int64_t taps = ceil_div(larger(p.taps, 1), parts);
    // One input stage alone is better than copying its rows again for every part.
    for (int inputs = 2; inputs >= 1; --inputs) {
      const Pipeline l = widest(taps, inputs, Taps::kTogether);
      if (l.taps > 0) return l;
    }
    if (taps == 1) return Pipeline{};
  }
}

FASTCONV1D_HD constexpr int taps_of_part(const Pipeline& l, const Phase& p, int part) {
  if (l.folded > 0) return 1;
  return static_cast<int>(smaller(l.taps, larger(p.taps, 0) - int64_t{part} * l.taps));
}

// Slices come channel slice by channel slice, and group of taps by group of taps.
FASTCONV1D_HD constexpr int channel_slice_of(const Schedule& s, int slice) {
  return s.groups == 1 ? slice : slice / s.groups;
}

// The taps of tap group `group`: the j-th, j < count, is tap `first + j * classes` of the phase.
struct TapGroup {
  int first, count;
};

FASTCONV1D_HD constexpr TapGroup tap_group(const Schedule& s, int64_t taps, int group) {
  if (s.groups == 1) return {0, static_cast<int>(taps)};
  const int first = group % s.classes + s.classes * s.taps_per_group * (group / s.classes);
  const int left = first < taps ? (static_cast<int>(taps) - first + s.classes - 1) / s.classes : 0;
  return {first, left < s.taps_per_group ? left : s.taps_per_group};
}

}  // namespace fastconv1d
