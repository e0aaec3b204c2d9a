// The way of a tile's sums out of the registers of a warpgroup that holds wgmma's sums.
//
// Rows of the output begin at any element, and stores that fill part of a 32-byte sector cost up to
// three times as much as whole ones. So sums go through shared memory, where each row lies as far
// behind a sector's boundary as in memory, and leave 16 bytes a lane, neighbours in a row, and what is in
// a row's first and last sector one by one. Where writing is what takes longest, neighbouring tiles overlap by a
// sector instead, and each leaves whole sectors alone. Woven outputs, those of a transposed convolution, become
// neighbours there: a stage has fewer rows then, and longer ones.
#pragma once
#include "modes.cuh"
#include "schedule.h"

namespace fastconv1d {

// Of a warpgroup's sums on their way out: two stages of some channels, each a row of all positions with
// room for a sector more. The pitch is one for which lanes of 4 channels meet all banks. As many channels
// as outputs in a sector, or a multiple: rows with the same number in a stage begin alike.
template <class M, int M_TILES>
struct OutputLayout {
  using Element = typename M::Element;
  static constexpr int aligned_outputs = 32 / sizeof(Element);  // in a sector
  // Whether tiles may overlap: of short ones that would be too large a share.
  static constexpr bool may_overlap = M_TILES > 1;
  static constexpr int staged_channels = kWeave;
  static constexpr int row_bytes = 64 * M_TILES * sizeof(Element);
  static constexpr int row_pitch = row_bytes + 32 + 16;
  static constexpr int stage_bytes = staged_channels * row_pitch;
  static constexpr int bytes = 2 * stage_bytes;
  // Of a woven row. A warp's lanes meet all banks for strides 2, 4 and 8, where rows in memory are whole sectors
  // long, if half of the lanes take their two sums the other way around.
  static __device__ __forceinline__ int woven_pitch(int stride) {
    return stride * (row_bytes + 16);
  }
  static_assert(staged_channels * (row_bytes + 16) <= stage_bytes);
};

struct OutputParams {
  void* output;
  int64_t length_out, positions, out_offset, out_step;  // positions of the phase
  Weave weave;
  int overlap;  // positions that a tile shares with the next one, those of a sector, or none
  int aligned;  // whether all rows begin, and so whole tiles end, where sectors do
  int odd;      // whether outputs that a lane has side by side may begin at odd ones of a row
  int apart;    // whether a lane's positions are not neighbours, though two of them make a word

  // The first piece of 16 bytes of a row in a stage that a whole tile writes, and whether it writes parts of sectors
  // too.
  __device__ __forceinline__ int first_piece() const { return aligned ? 0 : 2; }
  __device__ __forceinline__ bool has_ends() const { return !aligned && overlap == 0; }
};

// A tile's rows of the output, of which `count` exist, and its first position.
struct OutputRows {
  int64_t row;
  int count;
  int64_t first;
};

// Writes sums of M_TILES x 64 positions by N channels, biases added, and leaves others in their place.
template <class M, int M_TILES, int N>
struct OutputWriter {
  using Element = typename M::Element;
  using L = OutputLayout<M, M_TILES>;
  using Sums = float[M_TILES][M::sets][N / 2];  // of which the first set counts
  static constexpr int positions = 64 * M_TILES, of_piece = 16 / sizeof(Element);
  // Whether a lane's two positions of an mma tile may be neighbours: one word of a 16-bit type.
  static constexpr bool pairs = sizeof(Element) == 2;
  // Whether its instructions, for so many sums of a thread, take longer to come than to run.
  static constexpr bool is_long = M_TILES * N >= 256;
  // Chunks of a stage's channels leave in rounds of the same code, since it takes long to come when it runs for the
  // first time: a round's sums are those of the first chunks, to whose registers the next ones' move.
  static constexpr int
      chunks = N / L::staged_channels,
      // Of two mma tiles in 16 bits the moves take longer than the code.
      of_round = M_TILES > 1 && pairs ? chunks
                 : chunks % 4 == 0    ? 4
                 : chunks % 3 == 0    ? 3
                                      : chunks,
      // Of two mma tiles there are no registers to keep what a round needs of woven rows.
      of_woven = M_TILES > 1 ? chunks : of_round;
  // A tile, or a rehearsal, ends with the second stage, and what comes next begins with the first.
  static_assert(chunks % 2 == 0 && (!is_long || of_round % 2 == 0));
  const OutputParams& p;
  char* stages;
  int barrier;  // of the warpgroup

  // From the first of a lane's positions in an mma tile to the second.
  __device__ __forceinline__ int between() const { return pairs && !p.apart ? 1 : 8; }
  // Of the warpgroup's positions, where the sums of row lane / 4 + 8 * h of mma tile `m` belong.
  __device__ __forceinline__ int position_of_lane(int m, int h) const {
    const int group = threadIdx.x % 32 / 4, first = pairs && !p.apart ? 2 * group : group;
    return (threadIdx.x / 32 % 4 * M_TILES + m) * 16 + first + h * between();
  }

  // A rehearsal, of outputs that are neighbours, runs the same code and leaves memory alone.
  __device__ __forceinline__ void write(Sums& sums, const float* biases, const OutputRows& rows,
                                        bool rehearses = false) const {
    if (p.out_step != 1)
      write_apart(sums, biases, rows);
    else if (p.weave.stride > 1)
      write_woven(sums, biases, rows);
    else if (pairs && !p.odd && !p.apart)
      write_neighbours<pairs>(sums, biases, rows, rehearses);
    else
      write_neighbours<false>(sums, biases, rows, rehearses);
  }

 private:
  // Of a chunk of a round: two stages, in turn.
  template <int OF_ROUND>
  static __device__ __forceinline__ int stage_of(int round, int chunk) {
    return (OF_ROUND % 2 == 0 ? chunk : round + chunk) % 2 * L::stage_bytes;
  }
  template <int OF_ROUND>
  static __device__ __forceinline__ void move_sums(Sums& sums) {
    constexpr int by = OF_ROUND * L::staged_channels / 2;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
      for (int i = 0; i + by < N / 2; ++i) sums[m][0][i] = sums[m][0][i + by];
  }

  __device__ __forceinline__ Element* row_of_output(int64_t row) const {
    return static_cast<Element*>(p.output) + row * p.length_out + p.out_offset;
  }

  __device__ __forceinline__ bool overlaps() const { return L::may_overlap && p.overlap > 0; }

  static __device__ __forceinline__ OutputRows none(const OutputRows& rows) {
    return {rows.row, 0, rows.first};
  }

  // WORDS: what a lane has of a row of an mma tile is one word.
  template <bool WORDS>
  __device__ __forceinline__ void write_neighbours(Sums& sums, const float* biases,
                                                   const OutputRows& rows, bool rehearses) const {
    if (rows.count == N && rows.first + positions <= p.positions && (!overlaps() || rows.first > 0))
      write_neighbours<WORDS, true>(sums, biases, rows, rehearses);
    else
      write_neighbours<WORDS, false>(sums, biases, rehearses ? none(rows) : rows, rehearses);
  }

  // WHOLE: all rows and positions exist.
  template <bool WORDS, bool WHOLE>
  __device__ __forceinline__ void write_neighbours(Sums& sums, const float* biases,
                                                   const OutputRows& rows, bool rehearses) const {
    constexpr int channels = L::staged_channels, of_sector = L::aligned_outputs;
    static_assert(channels % of_sector == 0 && N % channels == 0);
    constexpr int lanes = L::row_bytes / 16, rows_at_once = 32 / lanes,
                  ends_at_once = 32 / of_sector;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    if constexpr (is_long) {
      // What follows from these is found tile by tile, else it takes registers and comes before the first products.
      keep_in_register(lane);
      keep_in_register(warp);
    }
    // How many outputs the first position of a row lies behind a sector's boundary: a tile begins at one
    // in the first row of all.
    const auto length = static_cast<uint32_t>(p.length_out),
               of_first = static_cast<uint32_t>(rows.row) * length;
    const auto behind = [&](int row) {
      return static_cast<int>((of_first + row * length) % of_sector);
    };

    // Where this lane's sums go in a stage.
    char* to[2][2];
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * c + lane % 4 * 2 + e;
        to[c][e] =
            stages + row * L::row_pitch + (position_of_lane(0, 0) + behind(row)) * sizeof(Element);
      }
    const int second = between();
    // What it copies from there: whole sectors but for a row's first, 16 bytes a lane; and of the first
    // sector and the one behind the last an element a lane, as many in both as one sector has. Rows begin
    // alike from chunk to chunk of channels, so that pointers go on by a constant.
    constexpr int step = 4 * rows_at_once, pieces = channels / step, end_step = 4 * ends_at_once,
                  ends = channels / end_step;
    const int row = warp * rows_at_once + lane / lanes, piece = lane % lanes;
    const int end_row = warp * ends_at_once + lane / of_sector, in_sector = lane % of_sector;
    const char* const from = stages + row * L::row_pitch + piece * 16;
    const char* end_from[ends];
    Element *out[pieces], *end_out[ends];
    int behind_row[pieces], behind_end[ends];
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      behind_row[i] = behind(row + i * step);
      out[i] =
          row_of_output(rows.row + row + i * step) + rows.first + piece * of_piece - behind_row[i];
    }
#pragma unroll
    for (int i = 0; i < ends; ++i) {
      behind_end[i] = behind(end_row + i * end_step);
      const int at = in_sector + (WHOLE && in_sector < behind_end[i] ? positions : 0);
      end_from[i] = stages + (end_row + i * end_step) * L::row_pitch + at * sizeof(Element);
      end_out[i] =
          row_of_output(rows.row + end_row + i * end_step) + rows.first + at - behind_end[i];
    }
    const int first_piece = rehearses ? lanes : WHOLE ? p.first_piece() : 2;
    const bool has_ends = !rehearses && p.has_ends();
    // Of tiles that overlap a row's first alone writes what it has of its first sector.
    const bool has_first = !overlaps() || rows.first == 0;
    const int exist =
        WHOLE ? positions : static_cast<int>(smaller(positions, p.positions - rows.first));

    int left = rows.count;
#pragma unroll 1
    for (int round = 0; round < (rehearses ? 1 : chunks / of_round); ++round) {
#pragma unroll
      for (int chunk = 0; chunk < of_round; ++chunk) {
        const int stage = stage_of<of_round>(round, chunk);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const auto bias = *reinterpret_cast<const float2*>(biases + 8 * c + lane % 4 * 2);
#pragma unroll
          for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
              const float* const of_tile = sums[m][0] + chunk * channels / 2 + 4 * c + e;
              const float of_channel = e > 0 ? bias.y : bias.x, low = of_tile[0] + of_channel,
                          high = of_tile[2] + of_channel;
              auto* const to_tile = reinterpret_cast<Element*>(to[c][e] + stage) + m * 16;
              if constexpr (WORDS) {
                M::store_pair(to_tile, low, high);
              } else {
                to_tile[0] = M::to(low);
                to_tile[second] = M::to(high);
              }
            }
        }
        // Two stages: what a thread writes next nobody reads any more when all have come here.
        warpgroup_sync(barrier);
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
          if (piece >= first_piece &&
              (WHOLE || (row + i * step < left && (piece + 1) * of_piece <= behind_row[i] + exist)))
            *reinterpret_cast<uint4*>(out[i]) =
                *reinterpret_cast<const uint4*>(from + stage + i * step * L::row_pitch);
          out[i] += channels * p.length_out;
        }
        biases += channels;
        left -= channels;
        if (WHOLE && !has_ends) continue;
#pragma unroll
        for (int i = 0; i < ends; ++i) {
          const auto copy = [&](int further) {
            end_out[i][further] = reinterpret_cast<const Element*>(end_from[i] + stage)[further];
          };
          if constexpr (WHOLE) {
            copy(0);
          } else if (end_row + i * end_step < left + channels) {
            int end = behind_end[i] + exist;  // in the stage
            if (overlaps() && end > positions) end = positions;
            if (has_first && in_sector >= behind_end[i] && in_sector < end) copy(0);
            const int whole =
                static_cast<int>(larger(of_sector, smaller(positions, end / of_piece * of_piece)));
            if (whole + in_sector < end) copy(whole);
          }
          end_out[i] += channels * p.length_out;
        }
      }
      move_sums<of_round>(sums);
    }
  }

  __device__ __forceinline__ void write_woven(Sums& sums, const float* biases,
                                              const OutputRows& rows) const {
    const int64_t first = rows.first * p.weave.stride - p.weave.skipped;
    const bool whole = rows.count == N / L::staged_channels * p.weave.channels && first >= 0 &&
                       first + positions * p.weave.stride <= p.length_out;
    if (whole && !p.odd)
      write_woven<true, true>(sums, biases, rows, first);
    else if (whole)
      write_woven<false, true>(sums, biases, rows, first);
    else
      write_woven<false, false>(sums, biases, rows, first);
  }

  // Outputs that are woven; the tile's begin at output `first` of each row. WORDS: two columns side by side are
  // neighbours in a row, and begin at an even output. WHOLE: all rows and outputs exist.
  template <bool WORDS, bool WHOLE>
  __device__ __forceinline__ void write_woven(Sums& sums, const float* biases,
                                              const OutputRows& rows, int64_t first) const {
    constexpr int size = sizeof(Element), sector = 32;
    // What follows from these is found tile by tile: products leave no registers to keep it in.
    int thread = static_cast<int>(threadIdx.x % 128), stride = p.weave.stride;
    keep_in_register(thread);
    keep_in_register(stride);
    const int lane = thread % 32;
    const int channels = p.weave.channels, pitch = L::woven_pitch(stride);
    // A stage has a row as far behind a sector's boundary as memory. In bytes from there on: what exists.
    const int outputs = positions * stride * size,
              before = first < 0 ? static_cast<int>(-first) * size : 0,
              exist = WHOLE ? outputs
                            : static_cast<int>(smaller(outputs, (p.length_out - first) * size));
    char* const first_row = reinterpret_cast<char*>(row_of_output(rows.row) + first);
    const int64_t to_row = p.length_out * size, to_chunk = channels * to_row;
    const auto behind = [](const char* out) {
      return static_cast<int>(static_cast<uint32_t>(reinterpret_cast<uint64_t>(out)) % sector);
    };

    // Where this lane's sums go in a stage. The upper half of a warp takes its positions, or columns, the other
    // way around: else two lanes would meet in a bank.
    const int around = lane / 16, second = between() * stride * size,
              turned = pairs ? around : 0;  // positions
    constexpr bool turns_columns = !pairs && !WORDS;
    const int to_second = turned ? -second : second, to_next = 16 * stride * size;
    const auto further = static_cast<uint32_t>(to_chunk);
    char* to[2][2];
    uint32_t begin[2][2];
    bool exists[2][2];
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int e = 0; e < (WORDS ? 1 : 2); ++e) {
        const int column = 8 * c + lane % 4 * 2 + (turns_columns ? e ^ around : e),
                  row = column / stride;
        exists[c][e] = row < channels;
        begin[c][e] = behind(first_row + row * to_row);
        to[c][e] = stages + row * pitch +
                   (position_of_lane(0, 0) * stride + column - row * stride) * size +
                   turned * second;
      }
    // What it copies from there: 16 bytes of whole sectors, and an element of a row's first or last one.
    constexpr int pieces = L::staged_channels * L::row_bytes / (16 * 128),
                  end_lanes = (WHOLE ? 1 : 2) * L::aligned_outputs, end_rows = 128 / end_lanes,
                  ends = (8 + end_rows - 1) / end_rows;
    const int of_row = stride * (L::row_bytes / 16);
    int row_of_piece[pieces], piece[pieces];
    char* out[pieces];  // at a row's begin, or whole sectors further
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const int row = (thread + i * 128) / of_row;
      row_of_piece[i] = row;
      piece[i] = (thread + i * 128 - row * of_row) * 16;
      out[i] = first_row + row * to_row + piece[i] / sector * sector;
    }
    const int in_sector = thread % L::aligned_outputs * size, end_row = thread / end_lanes;
    const bool at_end = thread % end_lanes >= L::aligned_outputs;
    char* end_out = first_row + end_row * to_row;

    int left = rows.count;
#pragma unroll 1
    for (int round = 0; round < chunks / of_woven; ++round) {
#pragma unroll
      for (int chunk = 0; chunk < of_woven; ++chunk) {
        const int stage = stage_of<of_woven>(round, chunk);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const auto bias = *reinterpret_cast<const float2*>(biases + 8 * c + lane % 4 * 2);
#pragma unroll
          for (int m = 0; m < M_TILES; ++m) {
            const float* const of_tile = sums[m][0] + chunk * L::staged_channels / 2 + 4 * c;
            const auto sum = [&](int e, int h) {
              return of_tile[h * 2 + e] + (e > 0 ? bias.y : bias.x);
            };
            float in_turn[2][2];
#pragma unroll
            for (int e = 0; e < 2; ++e)
#pragma unroll
              for (int h = 0; h < 2; ++h)
                in_turn[e][h] = turns_columns ? (around ? sum(1 - e, h) : sum(e, h))
                                              : (turned ? sum(e, 1 - h) : sum(e, h));
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
              for (int e = 0; e < (WORDS ? 1 : 2); ++e) {
                char* const at = to[c][e] + begin[c][e] + stage + m * to_next + h * to_second;
                if (!exists[c][e]) continue;
                if constexpr (WORDS)
                  M::store_pair(at, in_turn[0][h], in_turn[1][h]);
                else
                  *reinterpret_cast<Element*>(at) = M::to(in_turn[e][h]);
              }
          }
#pragma unroll
          for (int e = 0; e < (WORDS ? 1 : 2); ++e) begin[c][e] = (begin[c][e] + further) % sector;
        }
        // Two stages, as above.
        warpgroup_sync(barrier);
        const int count = WHOLE ? channels : static_cast<int>(smaller(left, channels));
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
          const int begins = behind(out[i]), from = begins + before, end = begins + exist;
          if (row_of_piece[i] < count &&
              (WHOLE ? piece[i] >= 16 * p.first_piece()
                     : piece[i] >= (from + sector - 1) / sector * sector &&
                           piece[i] + 16 <= end / sector * sector))
            *reinterpret_cast<uint4*>(out[i] - begins + piece[i] % sector) =
                *reinterpret_cast<const uint4*>(stages + stage + row_of_piece[i] * pitch +
                                                piece[i]);
          out[i] += to_chunk;
        }
#pragma unroll
        for (int i = 0; i < ends; ++i) {
          if (WHOLE && !p.has_ends()) continue;
          const int row = end_row + i * end_rows;
          char* const row_out = end_out + i * end_rows * to_row;
          const int begins = behind(row_out), from = begins + before, end = begins + exist;
          int at = in_sector;
          bool mine = row < count;
          if constexpr (WHOLE) {
            if (at < from) at += outputs;
          } else {
            const int whole = (from + sector - 1) / sector * sector;
            at += (at_end ? end : from) / sector * sector;
            mine = mine && at >= from && at < end && (at_end ? at >= whole : at < whole);
          }
          if (mine)
            *reinterpret_cast<Element*>(row_out - begins + at) =
                *reinterpret_cast<const Element*>(stages + stage + row * pitch + at);
        }
        end_out += to_chunk;
        left -= channels;
        biases += L::staged_channels;
      }
      move_sums<of_woven>(sums);
    }
  }

  // Where a row's positions are not neighbours.
  __device__ __forceinline__ void write_apart(Sums& sums, const float* biases,
                                              const OutputRows& rows) const {
    int channel = threadIdx.x % 4 * 2;
#pragma unroll 1
    for (int round = 0; round < chunks / of_round; ++round) {
#pragma unroll
      for (int i = 0; i < of_round * L::staged_channels / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (channel + e >= rows.count) continue;
          const float bias = biases[channel + e];
          Element* const to = row_of_output(rows.row + channel + e);
#pragma unroll
          for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int64_t position = rows.first + position_of_lane(m, h);
              if (position < p.positions)
                to[position * p.out_step] = M::to(sums[m][0][i * 4 + h * 2 + e] + bias);
            }
        }
        channel += 8;
      }
      move_sums<of_round>(sums);
    }
  }
};

}  // namespace fastconv1d
