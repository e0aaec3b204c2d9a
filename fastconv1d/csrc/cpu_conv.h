// The convolution on the CPU: taps and phases, as csrc/phases.h has them, on vectors of positions.
//
//   input rows ──copy, widen or pair, split into residues──> tile (L2)
//   weight ──pack──> [unit][class][block][c][tap][row]
//   block of rows x a few vectors of positions, in registers, += broadcast weight x tile[c][place of tap + q]
//   registers ──narrow──> output, or rows of a buffer (L1) ──interleave phases, narrow──> output
//
// Where the processor adds up pairs of products of bf16, c and tap are words: two neighbouring channels at a tap, or of
// a group's only channel two neighbouring taps. A channel or tap that has no partner is beside a zero on both sides.
//
// Where it has tile registers for these (cpu_tiles.h), blocks are of 32 rows, and weights are packed as
// [unit][class][16 rows][chunk of 16 words of channels][tap][row][word]; rows and words that fill these up are zeros,
// and an output's products are one chain, chunk by chunk and tap by tap.
//
// A row is the outputs of one channel in one phase. Phases whose taps have the same shifts are a class, and any rows
// of a class may share a block. An output's products are added up channel by channel, in chains that then are added
// up in order: nothing depends on tiles, threads or the width of vectors. Taps and channels that do not exist meet no
// data: blocks are 8, 4, 2 or 1 rows, exactly those that there are. A row's last vector ends where its outputs end.
//
// Roofline: a block of 8 rows by 3 vectors reads 3 vectors and 8 weights for 24 fused multiply-adds.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu_tiles.h"
#include "im2col_cpu.h"
#include "parallel.h"
#include "simd.h"

namespace fastconv1d {

constexpr int kMostRows = kVectorRegisters >= 32 ? 8 : 4;
// Vectors of positions of a block: its sums, one vector of each and a weight are in registers.
constexpr int most_vectors(int rows) {
  return rows == 8 ? 3 : rows == 4 ? (kVectorRegisters >= 32 ? 6 : 3) : rows == 2 ? 5 : 6;
}

constexpr int kMostSums = kMostRows * most_vectors(kMostRows);  // vectors

constexpr int64_t kTileBytes = 256 << 10;    // of the input, kept in L2
constexpr int64_t kBufferBytes = 128 << 10;  // of outputs on their way
constexpr int64_t kMostSteps = 16;           // of positions in a tile, each of most_vectors
constexpr int64_t kDirectChannels = 32;      // of the input that are read where they lie
constexpr int64_t kLeastDirect = 512;        // positions that are worth it
constexpr int64_t kChain = 128;              // products that are added up one after the other
constexpr int64_t kWorkPerThread = 1 << 16;  // multiplications that are worth another thread
constexpr int64_t kWorkPerTask = 1 << 16;
constexpr int64_t kLeastTiled = 12;  // channels on either side that are worth tile registers

// Columns of a tile that some taps share: column q is input position `first + q * in_step` of the tile's own start;
// there are `extra` more than outputs.
struct Piece {
  int64_t first, extra, place;
  bool alone;  // words of one tap, where others have two
};

struct PhaseClass {
  int64_t first_shift, taps;
  std::vector<int64_t> phases;
  // Of each word of taps: in a channel's tile, and from the input's own position.
  std::vector<int64_t> places, shifts;

  int64_t tap_words() const { return static_cast<int64_t>(shifts.size()); }
};

// How a convolution is walked.
struct CpuWalk {
  int64_t channels_in, channels_out;  // of a group
  int64_t channel_words;              // of the input
  int64_t chunks_of_words;            // for tile registers, or none
  int64_t taps_of_word, next_tap;     // how many, and how far the second is from the first
  int64_t phases, positions, in_step;
  std::vector<PhaseClass> classes;
  std::vector<Piece> pieces;
  int64_t tile_positions, tiles, pitch;
  int64_t unit, units, chunk, chunks;  // channels of a unit, units of a task
  int64_t run, runs;                   // groups of a task
  int64_t taps_of_unit;                // words of taps of one channel, all phases
  int64_t unit_weights, weights_of_group;
  int64_t tile_size, buffer_size, sums, scratch;  // in sums, of a worker
  int64_t packed_size;                            // in sums
  int64_t threads;
  int64_t least_shift, most_shift;
  bool direct;          // reads the input where it lies
  bool packed_in_turn;  // weights that one task alone reads are packed by it

  int64_t tasks(const ConvArgs& a) const { return a.batch * runs * tiles * chunks; }
  bool tiled() const { return chunks_of_words > 0; }
  // Words of a class's weights for so many rows.
  int64_t class_weights(int64_t rows, int64_t tap_words) const {
    return tiled() ? round_up(rows, kSide) * chunks_of_words * kSide * tap_words
                   : rows * channel_words * tap_words;
  }
  int64_t packed_place(int64_t group, int64_t number) const {
    return group * weights_of_group + number * unit_weights;
  }
};

inline std::vector<PhaseClass> classes_of(const ConvArgs& a, int64_t taps_of_word) {
  std::vector<PhaseClass> classes;
  for (int64_t r = 0; r < phase_count(a); ++r) {
    const Phase phase = phase_of(a, r);
    const auto alike = std::find_if(classes.begin(), classes.end(), [&](const PhaseClass& c) {
      return c.taps == phase.taps && (c.first_shift == phase.first_shift || c.taps == 0);
    });
    if (alike != classes.end()) {
      alike->phases.push_back(r);
      continue;
    }
    classes.push_back({phase.first_shift, phase.taps, {r}, {}, {}});
    for (int64_t j = 0; j < phase.taps; j += taps_of_word)
      classes.back().shifts.push_back(phase.first_shift + j * phase.shift_step);
  }
  return classes;
}

// Finds the places of all taps in a channel's tile of so many positions.
inline void place_taps(CpuWalk& w, int64_t lanes) {
  // Words may share a piece that are alone both, or neither, and see the same residue.
  using Kind = std::pair<bool, int64_t>;
  const auto kind_of = [&](bool alone, int64_t shift) {
    return Kind{alone, (shift % w.in_step + w.in_step) % w.in_step};
  };
  const auto is_alone = [&](const PhaseClass& c, size_t number) {
    return static_cast<int64_t>(number + 1) * w.taps_of_word > c.taps;
  };
  std::vector<std::pair<Kind, int64_t>> words;
  for (const PhaseClass& c : w.classes)
    for (size_t number = 0; number < c.shifts.size(); ++number)
      words.emplace_back(kind_of(is_alone(c, number), c.shifts[number]), c.shifts[number]);
  std::sort(words.begin(), words.end());
  w.pieces.clear();
  w.pitch = 0;
  for (const auto& [kind, shift] : words) {
    if (!w.pieces.empty()) {
      Piece& last = w.pieces.back();
      const int64_t end = last.first + last.extra * w.in_step;
      if (kind == kind_of(last.alone, last.first) &&
          (shift - end) / w.in_step <= w.tile_positions) {
        last.extra = (shift - last.first) / w.in_step;
        continue;
      }
    }
    w.pieces.push_back({shift, 0, 0, kind.first});
  }
  for (Piece& piece : w.pieces) {
    piece.place = w.pitch;
    w.pitch += round_up(w.tile_positions + piece.extra, lanes);
  }
  for (PhaseClass& c : w.classes) {
    c.places.clear();
    for (size_t number = 0; number < c.shifts.size(); ++number)
      for (const Piece& piece : w.pieces) {
        const int64_t apart = c.shifts[number] - piece.first;
        if (kind_of(is_alone(c, number), c.shifts[number]) == kind_of(piece.alone, piece.first) &&
            apart >= 0 && apart <= piece.extra * w.in_step) {
          c.places.push_back(piece.place + apart / w.in_step);
          break;
        }
      }
  }
}

template <class Element>
CpuWalk cpu_walk_of(const ConvArgs& a) {
  constexpr int64_t lanes = kLanes<Sum<Element>>, size = sizeof(Sum<Element>);
  CpuWalk w{};
  w.channels_in = a.channels_in / a.groups;
  w.channels_out = a.channels_out / a.groups;
  constexpr int64_t values = WordOf<Element>::values;
  w.channel_words = ceil_div(w.channels_in, values);
  w.taps_of_word = w.channels_in == 1 ? values : 1;
  if (values > 1 && smaller(w.channels_in, w.channels_out) >= kLeastTiled && has_tiles())
    w.chunks_of_words = ceil_div(w.channel_words, kSide);
  w.next_tap = phase_of(a, 0).shift_step;
  w.phases = phase_count(a);
  w.positions = ceil_div(a.length_out, w.phases);
  w.in_step = a.transposed ? 1 : a.stride;
  w.classes = classes_of(a, w.taps_of_word);
  w.least_shift = INT64_MAX, w.most_shift = INT64_MIN;
  int64_t most_taps = 0, span = 0, rows = 0;
  for (const PhaseClass& c : w.classes) {
    w.taps_of_unit += c.tap_words() * static_cast<int64_t>(c.phases.size());
    most_taps += c.tap_words();
    if (c.taps == 0) continue;
    span = larger(span, (c.shifts.back() - c.shifts.front()) / w.in_step);
    w.least_shift = smaller(w.least_shift, c.shifts.front());
    w.most_shift = larger(w.most_shift, c.shifts.back());
  }
  w.unit = smaller(w.tiled() ? kTileRows : kMostRows, w.channels_out);
  // All of a channel's phases leave together; of many, few channels at a time.
  while (w.unit > 1 && w.unit * w.phases * most_vectors(1) * lanes * size > kBufferBytes)
    w.unit /= 2;
  w.units = ceil_div(w.channels_out, w.unit);
  for (const PhaseClass& c : w.classes)
    w.unit_weights +=
        w.class_weights(w.unit * static_cast<int64_t>(c.phases.size()), c.tap_words());
  w.weights_of_group =
      w.tiled() ? w.units * w.unit_weights : w.channels_out * w.channel_words * w.taps_of_unit;
  rows = w.unit * w.phases;

  const int64_t residues = smaller(w.in_step, larger(1, most_taps));
  const int64_t step =
      w.tiled() ? kTileRows : lanes * most_vectors(rows >= kMostRows ? kMostRows : 1);
  // Rows that few outputs are made of are read at memory's pace, which is that of neighbouring addresses.
  const bool few = w.units == 1 && rows <= kMostRows && w.channels_in <= kDirectChannels;
  w.direct = few && sizeof(Element) == size && w.in_step == 1;
  const int64_t rows_of_tile = larger(w.channel_words, w.chunks_of_words * kSide);
  const int64_t most_steps = w.direct ? 4 * kMostSteps : few ? 2 * kMostSteps : kMostSteps;
  int64_t steps = smaller(most_steps, ceil_div(w.positions, step));
  for (; steps > 1; --steps) {
    const int64_t pitch =
        smaller(residues * (steps * step + span), larger(1, most_taps) * steps * step);
    if (rows_of_tile * pitch * size <= kTileBytes && rows * steps * step * size <= kBufferBytes)
      break;
  }
  w.tiles = ceil_div(w.positions, steps * step);
  const int64_t even = ceil_div(w.positions, w.tiles);
  w.tile_positions = round_up(even, w.tiles > 1 && even > step ? step : lanes);
  w.tiles = ceil_div(w.positions, w.tile_positions);
  place_taps(w, lanes);

  const int64_t work = a.batch * a.groups * w.weights_of_group * w.positions;
  w.threads = smaller(larger(1, a.multiprocessors), 1 + work / kWorkPerThread);
  const int64_t tasks = a.batch * a.groups * w.tiles;
  w.chunks = w.threads == 1 ? 1 : smaller(ceil_div(w.units, 4), ceil_div(8 * w.threads, tasks));
  w.chunk = ceil_div(w.units, larger(1, w.chunks));
  w.chunks = ceil_div(w.units, w.chunk);
  // Tasks of some microseconds, but enough of them for all threads.
  const int64_t of_group = w.weights_of_group * w.tile_positions;
  w.run = smaller(ceil_div(kWorkPerTask, of_group), larger(1, tasks / (8 * w.threads)));
  w.run = smaller(a.groups, w.run);
  w.runs = ceil_div(a.groups, w.run);
  w.tile_size = round_up(rows_of_tile * w.pitch, 16);
  w.buffer_size = w.phases == 1 ? 0 : round_up(rows * w.tile_positions, 16);
  w.packed_in_turn = tasks == a.groups;
  w.packed_size = w.packed_in_turn ? 0 : round_up(a.groups * w.weights_of_group, 16);
  w.sums = w.tiled() ? kTileSums : kMostSums * lanes;
  w.scratch = w.tile_size + w.buffer_size + w.sums +
              round_up((w.phases + 2 * static_cast<int64_t>(w.classes.size() +
                                                            w.taps_of_word * w.pieces.size())) *
                           8 / size,
                       16) +
              (w.packed_in_turn ? round_up(w.unit_weights, 16) : 0);
  return w;
}

// Calls block(rows, first row) for the blocks of so many rows.
template <class Block>
void for_each_block(int64_t rows, const Block& block) {
  for (int64_t first = 0, size = kMostRows; first < rows; first += size) {
    while (size > rows - first) size /= 2;
    block(size, first);
  }
}

// Deals `count` values of each of ROWS rows, `step` apart, out to neighbours: to[i * ROWS + m] = rows[m][i * step].
template <int ROWS, class From, class To>
void interleave(const From* const* rows, int64_t count, int64_t step, To* to) {
  const From* from[ROWS];
  for (int m = 0; m < ROWS; ++m) from[m] = rows[m];
  const auto deal = [&](int64_t apart) {
    for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) convert(from[m][i * apart], to[i * ROWS + m]);
  };
  if (step == 1)
    deal(1);
  else
    deal(step);
}
template <class From, class To>
void interleave(const From* const* rows, int64_t number, int64_t count, int64_t step, To* to) {
  switch (number) {
    case 1:
      return interleave<1>(rows, count, step, to);
    case 2:
      return interleave<2>(rows, count, step, to);
    case 4:
      return interleave<4>(rows, count, step, to);
    case 8:
      return interleave<8>(rows, count, step, to);
    default:
      for (int64_t m = 0; m < number; ++m)
        for (int64_t i = 0; i < count; ++i) convert(rows[m][i * step], to[i * number + m]);
  }
}

// The weights of an output channel of a group in a phase, of its first tap and the input's first channel.
template <class Element>
const Element* weights_of(const CpuWalk& w, const ConvArgs& a, int64_t group, int64_t out,
                          const Phase& phase) {
  const int64_t row = a.transposed ? group * w.channels_in * w.channels_out + out
                                   : (group * w.channels_out + out) * w.channels_in;
  return static_cast<const Element*>(a.weight) + phase.first_tap + row * a.kernel_size;
}

// Packs what a unit of a group multiplies channels `first` to `last` of the input with.
template <class Element>
void pack_weights(const CpuWalk& w, const ConvArgs& a, int64_t group, int64_t unit, int64_t first,
                  int64_t last, Word<Element>* packed) {
  constexpr int64_t kTaps = 64;   // at a time, words of them
  constexpr int64_t kAhead = 12;  // channels of a transposed weight
  const auto* const weight = static_cast<const Element*>(a.weight);
  const int64_t first_channel = unit * w.unit;
  const int64_t channels = smaller(w.unit, w.channels_out - first_channel);
  const int64_t channels_of_word = WordOf<Element>::values / w.taps_of_word;
  const int64_t channel_step = (a.transposed ? w.channels_out : 1) * a.kernel_size;
  for (const PhaseClass& c : w.classes) {
    const auto members = static_cast<int64_t>(c.phases.size());
    for_each_block(channels * members, [&](int64_t rows, int64_t first_row) {
      int64_t of_row[kMostRows], tap_step = 1;
      for (int64_t m = 0; m < rows; ++m) {
        const Phase phase = phase_of(a, c.phases[(first_row + m) % members]);
        const int64_t out = first_channel + (first_row + m) / members;
        tap_step = phase.tap_step;
        of_row[m] = weights_of<Element>(w, a, group, out, phase) - weight;
      }
      for (int64_t first_tap = 0; first_tap < c.tap_words(); first_tap += kTaps) {
        // Where each word's first value lies in the weight, of the first channel.
        int64_t places[kTaps * kMostRows], words = 0;
        for (int64_t t = first_tap; t < smaller(c.tap_words(), first_tap + kTaps); ++t)
          for (int64_t m = 0; m < rows; ++m)
            places[words++] = of_row[m] + t * w.taps_of_word * tap_step;
        for (int64_t in = first; in < last; in += channels_of_word) {
          Word<Element>* const to =
              packed + (in / channels_of_word * c.tap_words() + first_tap) * rows;
          const Element* const from = weight + in * channel_step;
          // Channels of a transposed weight lie far apart, and their lines come one by one.
          for (int64_t c = 0; a.transposed && c < channels_of_word; ++c)
            for (int64_t m = 0; m < rows; ++m)
              __builtin_prefetch(from + of_row[m] + (kAhead + c) * channel_step);
          int64_t number = 0;
          if constexpr (WordOf<Element>::values > 1) {
            const int64_t taps = c.taps / w.taps_of_word - first_tap;
            const int64_t pairs = in + channels_of_word > last ? 0 : smaller(words, taps * rows);
            const Element* const second = from + (w.taps_of_word > 1 ? tap_step : channel_step);
            for (; number < pairs; ++number)
              convert(from[places[number]], second[places[number]], to[number]);
          }
          for (; number < words; ++number) {
            convert(from[places[number]], to[number]);
            __asm__("" : "+r"(number));  // no instructions that gather: they take longer
          }
        }
      }
      packed += rows * w.channel_words * c.tap_words();
    });
  }
}

// The same for tile registers; `first` begins a chunk.
template <class Element>
void pack_tiles(const CpuWalk& w, const ConvArgs& a, int64_t group, int64_t unit, int64_t first,
                int64_t last, uint32_t* packed) {
  constexpr int64_t of_register = kSide * kSide;
  const int64_t first_channel = unit * w.unit;
  const int64_t channels = smaller(w.unit, w.channels_out - first_channel);
  const int64_t channel_step = (a.transposed ? w.channels_out : 1) * a.kernel_size;
  for (const PhaseClass& c : w.classes) {
    const auto members = static_cast<int64_t>(c.phases.size());
    const int64_t rows = channels * members, taps = c.tap_words();
    for (int64_t first_row = 0; first_row < rows; first_row += kSide) {
      const Element* of_row[kSide];
      int64_t tap_step = 1;
      for (int64_t m = 0; m < smaller(kSide, rows - first_row); ++m) {
        const Phase phase = phase_of(a, c.phases[(first_row + m) % members]);
        const int64_t out = first_channel + (first_row + m) / members;
        tap_step = phase.tap_step;
        of_row[m] = weights_of<Element>(w, a, group, out, phase);
      }
      for (int64_t chunk = first / (2 * kSide); 2 * kSide * chunk < last; ++chunk) {
        const int64_t left = w.channels_in - 2 * kSide * chunk, pairs = smaller(kSide, left / 2);
        uint32_t* const of_chunk =
            packed + (first_row / kSide * w.chunks_of_words + chunk) * taps * of_register;
        for (int64_t m = 0; m < kSide; ++m)
          for (int64_t t = 0; t < taps; ++t) {
            uint32_t* const to = of_chunk + t * of_register + m * kSide;
            int64_t words = 0;
            if (first_row + m < rows) {
              const Element* const from =
                  of_row[m] + 2 * kSide * chunk * channel_step + t * tap_step;
              for (; words < pairs; ++words)
                convert(from[2 * words * channel_step], from[(2 * words + 1) * channel_step],
                        to[words]);
              if (words < kSide && 2 * words < left)
                convert(from[2 * words * channel_step], to[words]), ++words;
            }
            std::fill(to + words, to + kSide, 0);
          }
      }
    }
    packed += w.class_weights(rows, taps);
  }
}

// Either, as a convolution is walked.
template <class Element>
void pack(const CpuWalk& w, const ConvArgs& a, int64_t group, int64_t unit, int64_t first,
          int64_t last, Word<Element>* packed) {
  if constexpr (WordOf<Element>::values > 1)
    if (w.tiled()) return pack_tiles<Element>(w, a, group, unit, first, last, packed);
  pack_weights<Element>(w, a, group, unit, first, last, packed);
}

// What a block of rows multiplies.
template <class Word, class Value>
struct Factors {
  const Word* input;              // of the first channel and position
  int64_t input_pitch, channels;  // words of channels
  const int64_t* places;          // of words of taps
  int64_t taps;
  const Word* weight;
  int64_t weight_pitch;  // from channel to channel
  int64_t chain;         // channels whose products are added up before they join the others
  Value* earlier;        // room for the sums of a block's chains
};

// Sums of a block of rows and vectors, for the first of `count` positions. A function of its own: inside of a large
// one GCC keeps some sums in memory.
template <class Word, class Value, class To, int ROWS, int VECTORS>
[[gnu::noinline]] void multiply(const Factors<Word, Value>& f, const Value* bias, int64_t count,
                                To* out, int64_t out_pitch) {
  constexpr int lanes = kLanes<Value>;
  Vector<Value> sum[ROWS][VECTORS];
  const int64_t tail = smaller(VECTORS * lanes, larger(lanes, count)) - lanes;
  const auto place = [tail](int v) { return v + 1 < VECTORS ? v * lanes : tail; };
  // The output's lines come while products are added up.
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
    for (int64_t q = 0; q < VECTORS * lanes; q += 64 / sizeof(To))
      __builtin_prefetch(out + m * out_pitch + q, 1);
  for (int64_t first = 0; first < f.channels; first += f.chain) {
    const int64_t last = smaller(f.channels, first + f.chain);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[m][v] = Vector<Value>{};
    for (int64_t c = first; c < last; ++c) {
      const Word* const row = f.input + c * f.input_pitch;
      const Word* weight = f.weight + c * f.weight_pitch;
      for (int64_t t = 0; t < f.taps; ++t, weight += ROWS) {
        const Word* const from = row + f.places[t];
        __builtin_prefetch(weight + 16 * ROWS);
        Vector<Word> x[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) x[v] = load(from + place(v));
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) {
          const Vector<Word> one = broadcast(weight[m]);
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; ++v) add_product(sum[m][v], one, x[v]);
        }
      }
    }
    // The bias joins the first chain's sum, and the others' are added to that.
    const auto each = [&](const auto& visit) {
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) visit(m, v, sum[m][v]);
    };
    const auto kept = [&](int m, int v) { return f.earlier + (m * VECTORS + v) * lanes; };
    if (first == 0)
      each([&](int m, int, auto& one) { one += broadcast(bias[m]); });
    else
      each([&](int m, int v, auto& one) { one += load(kept(m, v)); });
    if (last < f.channels)
      each([&](int m, int v, auto& one) { store(kept(m, v), one); });
    else
      each([&](int m, int v, auto& one) {
        leave<Value>(out + m * out_pitch + place(v), one, count);
      });
  }
}

template <class Word, class Value, class To, int ROWS, int VECTORS>
void multiply_vectors(int64_t vectors, const Factors<Word, Value>& f, const Value* bias,
                      int64_t count, To* out, int64_t out_pitch) {
  if (vectors == VECTORS)
    return multiply<Word, Value, To, ROWS, VECTORS>(f, bias, count, out, out_pitch);
  if constexpr (VECTORS > 1)
    multiply_vectors<Word, Value, To, ROWS, VECTORS - 1>(vectors, f, bias, count, out, out_pitch);
}

// Sums of a block of rows, all positions, in even shares.
template <class Word, class Value, class To, int ROWS>
void multiply_rows(const Factors<Word, Value>& factors, const Value* bias, int64_t count, To* out,
                   int64_t out_pitch) {
  constexpr int most = most_vectors(ROWS);
  Factors<Word, Value> f = factors;
  int64_t vectors = ceil_div(count, kLanes<Value>);
  for (int64_t shares = ceil_div(vectors, most); shares > 0; --shares) {
    const int64_t now = ceil_div(vectors, shares);
    multiply_vectors<Word, Value, To, ROWS, most>(now, f, bias, count, out, out_pitch);
    f.input += now * kLanes<Value>;
    out += now * kLanes<Value>;
    count -= now * kLanes<Value>;
    vectors -= now;
  }
}

template <class Word, class Value, class To>
void multiply_block(int64_t rows, const Factors<Word, Value>& f, const Value* bias, int64_t count,
                    To* out, int64_t out_pitch) {
  switch (rows) {
    case 1:
      return multiply_rows<Word, Value, To, 1>(f, bias, count, out, out_pitch);
    case 2:
      return multiply_rows<Word, Value, To, 2>(f, bias, count, out, out_pitch);
    case 4:
      return multiply_rows<Word, Value, To, 4>(f, bias, count, out, out_pitch);
    default:
      return multiply_rows<Word, Value, To, kMostRows>(f, bias, count, out, out_pitch);
  }
}

// What a tile's taps see of a row: of a class, taps that see something else than padding (others would add
// zeros); of a piece, columns inside of the row.
struct Seen {
  int64_t first, last;
};

// Every `step`-th value, for a step that the compiler knows where it is small.
template <int64_t STEP = 2, class Element, class Put>
inline void put_columns(const Element* from, int64_t step, int64_t count, const Put& put) {
  if (step == 1) {
    for (int64_t q = 0; q < count; ++q) put(from[q], q);
  } else if (step == STEP) {
    for (int64_t q = 0; q < count; ++q) put(from[q * STEP], q);
  } else if constexpr (STEP < 4) {
    put_columns<STEP + 1>(from, step, count, put);
  } else {
    for (int64_t q = 0; q < count; ++q) put(from[q * step], q);
  }
}

// Copies the columns of one channel; those outside of its row are zero.
template <class Element, class To>
void copy_channel(const CpuWalk& w, const Element* row, const Seen* inside, int64_t start,
                  int64_t count, To* tile) {
  for (const Piece& piece : w.pieces) {
    const Seen in = *inside++;
    To* const to = tile + piece.place;
    std::fill(to, to + in.first, 0);
    const Element* const from = row + start + piece.first + in.first * w.in_step;
    if (w.in_step == 1)
      convert(from, to + in.first, in.last - in.first);
    else
      put_columns(from, w.in_step, in.last - in.first,
                  [&](Element x, int64_t q) { convert(x, to[in.first + q]); });
    std::fill(to + in.last, to + count + piece.extra, 0);
  }
}

// Joins what is in each column the words' other half.
template <class Element, class To>
void join_channel(const CpuWalk& w, const Element* row, const Seen* inside, int64_t start,
                  To* tile) {
  for (const Piece& piece : w.pieces) {
    const Seen in = *inside++;
    if (piece.alone) continue;
    To* const to = tile + piece.place + in.first;
    put_columns(row + start + piece.first + in.first * w.in_step, w.in_step, in.last - in.first,
                [&](Element x, int64_t q) { join(x, to[q]); });
  }
}

// Computes a tile of positions for some units of a group, or for a run of groups.
template <class Element>
class ConvolutionTask {
 public:
  using Value = Sum<Element>;
  using Factor = Word<Element>;

  ConvolutionTask(const CpuWalk& walk, const ConvArgs& args, int64_t task,
                  const Factor* packed_weights, Value* scratch)
      : w(walk),
        a(args),
        packed(packed_weights),
        copied(reinterpret_cast<Factor*>(scratch)),
        buffer(scratch + w.tile_size),
        earlier(buffer + w.buffer_size) {
    rows_of_phases = reinterpret_cast<const Value**>(earlier + w.sums);
    taps = reinterpret_cast<Seen*>(rows_of_phases + w.phases);
    columns = taps + w.classes.size();
    own_weights = reinterpret_cast<Factor*>(scratch + w.scratch - round_up(w.unit_weights, 16));
    const int64_t chunk = task % w.chunks, tile = task / w.chunks % w.tiles;
    const int64_t run = task / (w.chunks * w.tiles) % w.runs;
    batch = task / (w.chunks * w.tiles * w.runs);
    const int64_t end = smaller((tile + 1) * w.tile_positions, w.positions);
    for (first = tile * w.tile_positions; first < end; first += count) {
      look(end);
      for (int64_t group = run * w.run; group < smaller(a.groups, (run + 1) * w.run); ++group)
        convolve(group, chunk * w.chunk, smaller(w.units, (chunk + 1) * w.chunk));
    }
  }

 private:
  const CpuWalk& w;
  const ConvArgs& a;
  const Factor* const packed;
  Factor *const copied, *own_weights;
  Value *const buffer, *const earlier;
  const Value** rows_of_phases;
  Seen *taps, *columns;
  int64_t batch, first, count, vectors;
  bool sees_nothing, direct;

  // Takes positions from `first` to `end`, or those alone that can, or cannot, be read where they lie.
  void look(int64_t end) {
    constexpr int64_t lanes = kLanes<Value>;
    count = end - first;
    direct = false;
    if (w.direct && w.least_shift <= w.most_shift) {
      const int64_t before = -(first + w.least_shift);
      const int64_t inside = a.length - w.most_shift - first;
      if (before > 0 && round_up(before, lanes) + kLeastDirect < inside) {
        count = smaller(count, round_up(before, lanes));
      } else if (before <= 0 && inside > kLeastDirect) {
        count = smaller(count, inside);
        direct = count >= lanes;
      }
    }
    vectors = ceil_div(count, lanes);
    sees_nothing = true;
    for (size_t number = 0; number < w.classes.size(); ++number) {
      const PhaseClass& c = w.classes[number];
      Seen s{0, c.tap_words()};
      const int64_t last_shift =
          (first + count - 1) * w.in_step + (w.taps_of_word - 1) * w.next_tap;
      while (s.first < s.last && last_shift + c.shifts[s.first] < 0) ++s.first;
      while (s.last > s.first && first * w.in_step + c.shifts[s.last - 1] >= a.length) --s.last;
      sees_nothing = sees_nothing && s.first == s.last;
      taps[number] = s;
    }
    Seen* inside = columns;
    for (int64_t half = 0; half < w.taps_of_word; ++half)
      for (const Piece& piece : w.pieces) {
        const int64_t start = first * w.in_step + piece.first + half * w.next_tap;
        const Inside in = inside_of(vectors * lanes + piece.extra, w.in_step, start, a.length);
        *inside++ = {in.first, in.last};
      }
  }

  void copy(const Element* input) {
    constexpr int64_t values = WordOf<Element>::values;
    const int64_t start = first * w.in_step;
    for (int64_t c = 0; c < w.channels_in; c += values) {
      const Element* const row = input + c * a.input_channel_stride;
      Factor* const to = copied + c / values * w.pitch;
      copy_channel(w, row, columns, start, vectors * kLanes<Value>, to);
      if constexpr (values > 1) {
        if (w.taps_of_word > 1)
          join_channel(w, row, columns + w.pieces.size(), start + w.next_tap, to);
        else if (c + 1 < w.channels_in)
          join_channel(w, row + a.input_channel_stride, columns, start, to);
      }
    }
    if (w.tiled())
      std::fill(copied + w.channel_words * w.pitch, copied + w.chunks_of_words * kSide * w.pitch,
                Factor{0});
  }

  void convolve(int64_t group, int64_t first_unit, int64_t last_unit) {
    const auto* const input = static_cast<const Element*>(a.input) + batch * a.input_batch_stride +
                              group * w.channels_in * a.input_channel_stride;
    if (!direct && !sees_nothing) copy(input);
    for (int64_t unit = first_unit; unit < last_unit; ++unit) {
      const int64_t first_channel = unit * w.unit;
      const int64_t channels = smaller(w.unit, w.channels_out - first_channel);
      const int64_t channel = group * w.channels_out + first_channel;
      auto* const output = static_cast<Element*>(a.output) +
                           (batch * a.channels_out + channel) * a.length_out + first * w.phases;
      const auto* const bias =
          a.bias == nullptr ? nullptr : static_cast<const Element*>(a.bias) + channel;
      const Factor* weight = packed + w.packed_place(group, unit);
      if (w.packed_in_turn) {
        pack<Element>(w, a, group, unit, 0, w.channels_in, own_weights);
        weight = own_weights;
      }
      if (w.phases == 1) {
        multiply_unit(channels, input, weight, bias, output, a.length_out);
      } else {
        multiply_unit(channels, input, weight, bias, buffer, w.tile_positions);
        leave(channels, output);
      }
    }
  }

  // Biases of some rows of a class.
  void find_biases(const Element* bias, int64_t members, int64_t first_row, int64_t rows,
                   Value* biases) const {
    for (int64_t m = 0; m < rows; ++m) {
      biases[m] = 0;
      if (bias != nullptr) convert(bias[(first_row + m) / members], biases[m]);
    }
  }

  template <class To>
  void multiply_unit(int64_t channels, const Element* input, const Factor* weight,
                     const Element* bias, To* to, int64_t to_pitch) {
    if constexpr (WordOf<Element>::values > 1)
      if (w.tiled()) return multiply_tiled_unit(channels, weight, bias, to, to_pitch);
    for (size_t number = 0; number < w.classes.size(); ++number) {
      const PhaseClass& c = w.classes[number];
      const auto members = static_cast<int64_t>(c.phases.size());
      const Seen& s = taps[number];
      for_each_block(channels * members, [&](int64_t rows, int64_t first_row) {
        Value biases[kMostRows];
        find_biases(bias, members, first_row, rows, biases);
        const Factors<Factor, Value> factors{
            direct ? reinterpret_cast<const Factor*>(input + first) : copied,
            direct ? a.input_channel_stride : w.pitch,
            w.channel_words,
            (direct ? c.shifts.data() : c.places.data()) + s.first,
            s.last - s.first,
            weight + s.first * rows,
            c.tap_words() * rows,
            larger(1, kChain / WordOf<Element>::values / larger(1, c.tap_words())),
            earlier};
        multiply_block(rows, factors, biases, count, to + first_row * to_pitch, to_pitch);
        weight += rows * w.channel_words * c.tap_words();
      });
      to += channels * members * to_pitch;
    }
  }

  template <class To>
  void multiply_tiled_unit(int64_t channels, const Factor* weight, const Element* bias, To* to,
                           int64_t to_pitch) {
    [[maybe_unused]] const TileRegisters registers;
    for (size_t number = 0; number < w.classes.size(); ++number) {
      const PhaseClass& c = w.classes[number];
      const auto members = static_cast<int64_t>(c.phases.size());
      const Seen& s = taps[number];
      const int64_t all = channels * members, of_chunk = c.tap_words() * kSide * kSide;
      for (int64_t first_row = 0; first_row < all; first_row += kTileRows) {
        const int64_t rows = smaller(kTileRows, all - first_row);
        Value biases[kTileRows];
        find_biases(bias, members, first_row, rows, biases);
        const TileFactors factors{
            copied,
            w.pitch,
            w.chunks_of_words,
            c.places.data() + s.first,
            s.last - s.first,
            weight + w.class_weights(first_row, c.tap_words()) + s.first * kSide * kSide,
            of_chunk,
            w.chunks_of_words * of_chunk};
        multiply_tile_rows(rows, factors, biases, count, earlier, to + first_row * to_pitch,
                           to_pitch);
      }
      weight += w.class_weights(all, c.tap_words());
      to += all * to_pitch;
    }
  }

  // From the buffer's rows to those of the output, which have all phases' values in turn.
  void leave(int64_t channels, Element* output) {
    // The last position may have no output in some phases.
    const int64_t outputs = smaller(count * w.phases, a.length_out - first * w.phases);
    const int64_t even = outputs / w.phases;
    for (int64_t o = 0; o < channels; ++o, output += a.length_out) {
      const Value* of_class = buffer;
      for (const PhaseClass& c : w.classes) {
        const auto members = static_cast<int64_t>(c.phases.size());
        for (int64_t m = 0; m < members; ++m)
          rows_of_phases[c.phases[m]] = of_class + (o * members + m) * w.tile_positions;
        of_class += channels * members * w.tile_positions;
      }
      interleave(rows_of_phases, w.phases, even, 1, output);
      for (int64_t r = 0; r < outputs - even * w.phases; ++r)
        convert(rows_of_phases[r][even], output[even * w.phases + r]);
    }
  }
};

template <class Element>
int64_t convolution_workspace(const ConvArgs& a) {
  const CpuWalk w = cpu_walk_of<Element>(a);
  return sizeof(Sum<Element>) * (w.packed_size + w.threads * w.scratch);
}

template <class Element>
void convolve(const ConvArgs& a, const Parallel& parallel) {
  const CpuWalk w = cpu_walk_of<Element>(a);
  auto* const packed = static_cast<Word<Element>*>(a.workspace);
  auto* const scratch = static_cast<Sum<Element>*>(a.workspace) + w.packed_size;
  // A transposed weight has the values of a channel of the input side by side: few of these at a time, so that
  // their pages are at hand for some units.
  const int64_t at_once = a.transposed ? (w.tiled() ? 2 * kSide : 16) : w.channels_in,
                some = a.transposed ? 8 : 1;
  const int64_t packs = ceil_div(w.units, some);
  if (!w.packed_in_turn)
    for_each(parallel, w.threads, a.groups * packs, [&](int64_t task, int64_t) {
      const int64_t group = task / packs, unit = task % packs * some;
      for (int64_t first = 0; first < w.channels_in; first += at_once)
        for (int64_t one = unit; one < smaller(w.units, unit + some); ++one)
          pack<Element>(w, a, group, one, first, smaller(w.channels_in, first + at_once),
                        packed + w.packed_place(group, one));
    });
  for_each(parallel, w.threads, w.tasks(a), [&](int64_t task, int64_t worker) {
    ConvolutionTask<Element>(w, a, task, packed, scratch + worker * w.scratch);
  });
}

}  // namespace fastconv1d

#define FASTCONV1D_SIMD_LIBRARY \
  FASTCONV1D_CPU_LIBRARY(fastconv1d::convolve, fastconv1d::convolution_workspace)
