// The gradients of weight and bias on the CPU, of an ordinary convolution: vectors of positions, as in cpu_conv.h.
//
//   input rows of some channels ──copy, widen, split into residues──> tile (L2)    grad_output rows: where they lie
//   a few rows of grad_output x a few pairs (channel, tap), in registers, += grad_output * input, along a tile
//   registers ──sum of lanes──> sums of a part, in the workspace ──add up in order──> gradients
//
// Parts are runs of tiles, batch by batch, which the shape alone decides; each is summed up by one task after the
// other, so that results are the same for any number of threads. Positions that do not exist are not multiplied.
#pragma once
#include "cpu_conv.h"

namespace fastconv1d {

constexpr int kGradRows = 4;
// Pairs of a channel and a tap for so many rows: their sums, a vector of each and one more are in registers.
constexpr int most_pairs(int rows) {
  return kVectorRegisters >= 32 ? (rows == 4 ? 6 : 8) : (rows == 4 ? 2 : rows == 2 ? 4 : 6);
}

constexpr int64_t kGradPositions = 1024;           // of a tile
constexpr int64_t kGradTileBytes = 128 << 10;      // of the input
constexpr int64_t kGradTasks = 64;                 // that keep threads busy
constexpr int64_t kGradParts = int64_t{32} << 20;  // bytes of all parts

struct GradWalk {
  CpuWalk input;               // how a tile of the input is laid out
  int64_t slices;              // tiles of all of the batch
  int64_t chunk, chunks;       // channels of the input that a task takes
  int64_t run, runs;           // groups that it takes
  int64_t part, parts;         // slices
  int64_t weights, sums;       // of a part: those of the weight, and all
  int64_t tile_size, scratch;  // in sums, of a worker
  int64_t threads;
};

template <class Element>
GradWalk grad_walk_of(const ConvArgs& a) {
  constexpr int64_t lanes = kLanes<Sum<Element>>, size = sizeof(Sum<Element>);
  GradWalk g{};
  CpuWalk& w = g.input;
  w.channels_in = a.channels_in / a.groups;
  w.channels_out = a.channels_out / a.groups;
  w.channel_words = w.channels_in;
  w.taps_of_word = 1;
  w.in_step = a.stride;
  w.positions = a.length_out;
  w.classes.push_back({-a.padding, a.kernel_size, {0}, {}, {}});
  for (int64_t t = 0; t < a.kernel_size; ++t)
    w.classes[0].shifts.push_back(t * a.dilation - a.padding);
  w.tiles = ceil_div(w.positions, kGradPositions);
  w.tile_positions = round_up(ceil_div(w.positions, w.tiles), lanes);
  w.tiles = ceil_div(w.positions, w.tile_positions);
  place_taps(w, lanes);

  g.slices = a.batch * w.tiles;
  g.chunk = larger(1, smaller(w.channels_in, kGradTileBytes / (w.pitch * size)));
  g.chunks = ceil_div(w.channels_in, g.chunk);
  g.chunk = ceil_div(w.channels_in, g.chunks);
  g.run = larger(1, a.groups / kGradTasks);
  g.runs = ceil_div(a.groups, g.run);
  g.weights = a.groups * w.channels_out * w.channels_in * a.kernel_size;
  g.sums = round_up(g.weights + a.channels_out, 16);
  const int64_t wanted = ceil_div(kGradTasks, g.runs * g.chunks);
  g.parts = larger(1, smaller(smaller(wanted, g.slices), kGradParts / (g.sums * size)));
  g.part = ceil_div(g.slices, g.parts);
  g.parts = ceil_div(g.slices, g.part);
  g.tile_size = round_up(g.chunk * w.pitch, 16);
  g.scratch = g.tile_size + kGradRows * w.tile_positions +
              round_up(2 * static_cast<int64_t>(w.pieces.size()) * 8 / size, 16);
  const int64_t work = g.weights * a.batch * w.positions;
  g.threads = smaller(larger(1, a.multiprocessors), 1 + work / kWorkPerThread);
  return g;
}

// Sums of products along a tile, of each of ROWS rows with each of PAIRS pairs.
template <class Value, int ROWS, int PAIRS>
inline void correlate(const Value* const* rows, const Value* const* pairs, int64_t count,
                      Value* to) {
  constexpr int lanes = kLanes<Value>;
  Vector<Value> sum[ROWS][PAIRS] = {};
  const Value *g[ROWS], *x[PAIRS];
  for (int m = 0; m < ROWS; ++m) g[m] = rows[m];
  for (int p = 0; p < PAIRS; ++p) x[p] = pairs[p];
  const auto multiply = [&](const auto& load_one, int64_t q) {
    Vector<Value> one[ROWS];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) one[m] = load_one(g[m] + q);
#pragma GCC unroll 8
    for (int p = 0; p < PAIRS; ++p) {
      const Vector<Value> other = load_one(x[p] + q);
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) sum[m][p] += one[m] * other;
    }
  };
  int64_t q = 0;
  for (; q + lanes <= count; q += lanes) multiply([](const Value* at) { return load(at); }, q);
  if (q < count) multiply([count, q](const Value* at) { return load_some(at, count - q); }, q);
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
    for (int p = 0; p < PAIRS; ++p) to[m * PAIRS + p] = sum_of<Value>(sum[m][p]);
}

template <class Value, int ROWS, int PAIRS>
void correlate_pairs(int64_t pairs_now, const Value* const* rows, const Value* const* pairs,
                     int64_t count, Value* to) {
  if (pairs_now == PAIRS) return correlate<Value, ROWS, PAIRS>(rows, pairs, count, to);
  if constexpr (PAIRS > 1)
    correlate_pairs<Value, ROWS, PAIRS - 1>(pairs_now, rows, pairs, count, to);
}

// Adds up one part for a run of groups and a chunk of channels.
template <class Element>
class GradTask {
 public:
  using Value = Sum<Element>;

  GradTask(const GradWalk& walk, const ConvArgs& args, int64_t task, Value* all_sums,
           Value* scratch)
      : g(walk), w(walk.input), a(args), tile(scratch), widened(scratch + g.tile_size) {
    columns = reinterpret_cast<Seen*>(widened + kGradRows * w.tile_positions);
    const int64_t part = task / (g.chunks * g.runs), run = task / g.chunks % g.runs;
    first_channel = task % g.chunks * g.chunk;
    channels = smaller(g.chunk, w.channels_in - first_channel);
    sums = all_sums + part * g.sums;
    for (int64_t group = run * g.run; group < smaller(a.groups, (run + 1) * g.run); ++group)
      for (int64_t slice = part * g.part; slice < smaller(g.slices, (part + 1) * g.part); ++slice)
        add(group, slice / w.tiles, slice % w.tiles * w.tile_positions, slice == part * g.part);
  }

 private:
  const GradWalk& g;
  const CpuWalk& w;
  const ConvArgs& a;
  Value *const tile, *const widened;
  Seen* columns;
  Value* sums;
  int64_t first_channel, channels;

  void add(int64_t group, int64_t batch, int64_t first, bool is_first) {
    const int64_t count = smaller(w.tile_positions, w.positions - first);
    for (size_t number = 0; number < w.pieces.size(); ++number) {
      const Piece& piece = w.pieces[number];
      const Inside in =
          inside_of(count + piece.extra, a.stride, first * a.stride + piece.first, a.length);
      columns[number] = {in.first, in.last};
    }
    const auto* const input = static_cast<const Element*>(a.input) + batch * a.input_batch_stride +
                              (group * w.channels_in + first_channel) * a.input_channel_stride;
    for (int64_t c = 0; c < channels; ++c)
      copy_channel(w, input + c * a.input_channel_stride, columns, first * a.stride, count,
                   tile + c * w.pitch);
    for (int64_t o = 0; o < w.channels_out;) {
      const int64_t left = w.channels_out - o, rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const int64_t channel = group * w.channels_out + o;
      const Value* grads[kGradRows];
      for (int64_t m = 0; m < rows; ++m) {
        const Element* const from = static_cast<const Element*>(a.grad_output) +
                                    (batch * a.channels_out + channel + m) * a.length_out + first;
        if constexpr (sizeof(Element) == sizeof(Value)) {
          grads[m] = from;
        } else {
          convert(from, widened + m * w.tile_positions, count);
          grads[m] = widened + m * w.tile_positions;
        }
        if (a.grad_bias != nullptr && first_channel == 0)
          keep(sums + g.weights + channel + m, sum_of_row(grads[m], count), is_first);
      }
      Value* const to = sums + (channel * w.channels_in + first_channel) * a.kernel_size;
      switch (rows) {
        case 1:
          multiply<1>(grads, count, to, is_first);
          break;
        case 2:
          multiply<2>(grads, count, to, is_first);
          break;
        default:
          multiply<4>(grads, count, to, is_first);
      }
      o += rows;
    }
  }

  static void keep(Value* to, Value sum, bool is_first) { *to = is_first ? sum : *to + sum; }

  static Value sum_of_row(const Value* row, int64_t count) {
    constexpr int lanes = kLanes<Value>;
    Vector<Value> sum[2] = {};
    int64_t q = 0;
    for (; q + 2 * lanes <= count; q += 2 * lanes) {
      sum[0] += load(row + q);
      sum[1] += load(row + q + lanes);
    }
    for (; q < count; q += lanes) sum[0] += load_some(row + q, smaller(lanes, count - q));
    return sum_of<Value>(sum[0] + sum[1]);
  }

  // All pairs of the chunk's channels and taps, in even shares; the weight has them side by side.
  template <int ROWS>
  void multiply(const Value* const* grads, int64_t count, Value* to, bool is_first) {
    constexpr int64_t most = most_pairs(ROWS);
    const int64_t pairs = channels * a.kernel_size, pitch = w.channels_in * a.kernel_size;
    const int64_t* const places = w.classes[0].places.data();
    int64_t channel = 0, tap = 0, first = 0;
    for (int64_t shares = ceil_div(pairs, most); shares > 0; --shares) {
      const int64_t now = ceil_div(pairs - first, shares);
      const Value* from[most];
      Value of_tile[ROWS * most];
      for (int64_t p = 0; p < now; ++p) {
        from[p] = tile + channel * w.pitch + places[tap];
        if (++tap == a.kernel_size) ++channel, tap = 0;
      }
      correlate_pairs<Value, ROWS, most>(now, grads, from, count, of_tile);
      for (int64_t m = 0; m < ROWS; ++m)
        for (int64_t p = 0; p < now; ++p)
          keep(to + m * pitch + first + p, of_tile[m * now + p], is_first);
      first += now;
    }
  }
};

template <class Element>
int64_t gradient_workspace(const ConvArgs& a) {
  const GradWalk g = grad_walk_of<Element>(a);
  return sizeof(Sum<Element>) * (g.parts * g.sums + g.threads * g.scratch);
}

template <class Element>
void gradient(const ConvArgs& a, const Parallel& parallel) {
  using Value = Sum<Element>;
  const GradWalk g = grad_walk_of<Element>(a);
  auto* const sums = static_cast<Value*>(a.workspace);
  Value* const scratch = sums + g.parts * g.sums;
  for_each(parallel, g.threads, g.parts * g.runs * g.chunks, [&](int64_t task, int64_t worker) {
    GradTask<Element>(g, a, task, sums, scratch + worker * g.scratch);
  });
  const int64_t elements = g.weights + (a.grad_bias == nullptr ? 0 : a.channels_out);
  constexpr int64_t at_once = 1 << 12;
  const int64_t threads = smaller(g.threads, 1 + elements * g.parts / kWorkPerThread);
  for_each(parallel, threads, ceil_div(elements, at_once), [&](int64_t task, int64_t) {
    const int64_t first = task * at_once, last = smaller(elements, first + at_once);
    for (int64_t part = 1; part < g.parts; ++part)
      for (int64_t i = first; i < last; ++i) sums[i] += sums[part * g.sums + i];
    const int64_t end = smaller(last, g.weights);
    if (first < end) convert(sums + first, static_cast<Element*>(a.output) + first, end - first);
    const int64_t begin = larger(first, g.weights);
    if (begin < last)
      convert(sums + begin, static_cast<Element*>(a.grad_bias) + begin - g.weights, last - begin);
  });
}

}  // namespace fastconv1d

#define FASTCONV1D_GRAD_SIMD_LIBRARY \
  FASTCONV1D_CPU_LIBRARY(fastconv1d::gradient, fastconv1d::gradient_workspace)
