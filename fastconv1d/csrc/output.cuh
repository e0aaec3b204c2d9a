// The way of a tile's sums out of the registers of warps that hold wgmma's sums.
//
// Rows of the output begin at any element, and stores that fill part of a 32-byte sector cost up to
// three times as much as whole ones. So sums go through shared memory, where each row lies as far
// behind a sector's boundary as in memory, and leave 16 bytes a lane, neighbours in a row.
#pragma once
#include "modes.cuh"
#include "schedule.h"

namespace fastconv1d {

// Of a warp's sums on their way out: positions, bytes of a row, of all 16. Pitches for which the pairs
// of 8 rows (fp32: of 4) meet all banks.
template <class M>
struct OutputLayout {
  using Element = typename M::Element;
  static constexpr int aligned_outputs = 32 / sizeof(Element);  // in a sector
  static constexpr int staged = 128 / sizeof(Element);
  static constexpr int stage_pitch = staged * sizeof(Element) + (sizeof(Element) == 4 ? 32 : 16);
  static constexpr int stage_bytes = 16 * stage_pitch;
};

struct OutputParams {
  void* output;
  int64_t length_out, positions, out_offset, out_step;  // positions of the phase
  int step_positions;  // from one warpgroup's tile to the next one's
  int most_shift;      // positions by which sums begin earlier, where tiles overlap
  int most_overhang;   // outputs by which a tile may lie behind its rows' boundaries, where not
  int odd;             // whether rows may begin at odd outputs
};

// A warp's 16 rows of the output, of which `count` exist, and the first position of the tile. Where
// tiles overlap, sums begin `most_shift` positions earlier, and each row writes `step_positions` from
// its last boundary before `first` on: whole sectors.
struct OutputRows {
  int64_t row;
  int count;
  int64_t first;
};

// Writes sums of M64 x N tiles, with a stage of shared memory for each warp.
template <class M, int N>
struct OutputWriter {
  using Element = typename M::Element;
  using L = OutputLayout<M>;
  using Sums = float[N / 2];
  const OutputParams& p;
  char* stage;

  __device__ __forceinline__ void write(const Sums& sums, const OutputRows& rows) const {
    if (p.out_step != 1)
      write_apart(sums, rows);
    else if (p.most_overhang == 0 && p.odd == 0 && rows.count == 16 && rows.first >= p.most_shift &&
             rows.first + p.step_positions <= p.positions)
      write_neighbours<true>(sums, rows);
    else
      write_neighbours<false>(sums, rows);
  }

 private:
  __device__ __forceinline__ Element* row_of_output(int64_t row) const {
    return static_cast<Element*>(p.output) + row * p.length_out + p.out_offset;
  }
  // How many outputs a row begins behind a sector's boundary. Tiles begin at one, seen from the row.
  __device__ __forceinline__ int behind(int64_t row) const {
    return static_cast<int>(row * p.length_out % L::aligned_outputs);
  }

  // Through shared memory, where rows lie as far behind a boundary as in memory: 16 bytes a lane,
  // neighbours in a row, are what memory takes fastest. 128 bytes of a row at a time. WHOLE: all rows
  // begin at even outputs and write whole sectors only.
  template <bool WHOLE>
  __device__ __forceinline__ void write_neighbours(const Sums& sums, const OutputRows& rows) const {
    const int lane = threadIdx.x % 32, row_of_lane = lane / 8, piece = lane % 8;
    constexpr int element = sizeof(Element), outputs = 16 / element;
    // Where this lane's pairs go.
    int at[2];
    char* to[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      at[h] = lane % 4 * 2 + behind(rows.row + row) - p.most_shift;
      to[h] = stage + row * L::stage_pitch + at[h] * element;
    }
    // And what it writes: where, and from which output to which one counted from there.
    Element* out[4];
    int begin[4], end[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = rows.row + row_of_lane + 4 * i, boundary = rows.first - behind(row);
      const int64_t first = p.most_shift > 0 ? larger(boundary, 0) : rows.first;
      const int64_t last =
          smaller((p.most_shift > 0 ? boundary : rows.first) + p.step_positions, p.positions);
      out[i] = row_of_output(row) + boundary + piece * outputs;
      begin[i] = static_cast<int>(first - boundary) - piece * outputs;
      end[i] = row_of_lane + 4 * i < rows.count
                   ? static_cast<int>(last - boundary) - piece * outputs
                   : begin[i];
    }
    const char* const from = stage + row_of_lane * L::stage_pitch + piece * 16;
#pragma unroll
    for (int chunk = 0; chunk < N + (WHOLE ? 0 : L::staged); chunk += L::staged) {
      if (chunk == N && p.most_overhang == 0) break;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = WHOLE ? 0 : -L::aligned_outputs; i < L::staged + L::aligned_outputs; i += 8) {
          const int tile = (chunk + i) / 8;
          if (chunk + i < 0 || tile >= N / 8) continue;
          // Only the first and the last tiles may lie outside.
          const auto inside = [&](int e) {
            return (i >= L::aligned_outputs || at[h] + i + e >= 0) &&
                   (i + 8 + (WHOLE ? 0 : L::aligned_outputs) <= L::staged ||
                    at[h] + i + e < L::staged);
          };
          const float first = sums[tile * 4 + h * 2], second = sums[tile * 4 + h * 2 + 1];
          if (!WHOLE && p.odd) {
            if (inside(0)) reinterpret_cast<Element*>(to[h])[i] = M::to(first);
            if (inside(1)) reinterpret_cast<Element*>(to[h])[i + 1] = M::to(second);
          } else if (inside(0)) {
            M::store_pair(to[h] + i * element, first, second);
          }
        }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const char* const sixteen = from + 4 * i * L::stage_pitch;
        const uint4 vector = *reinterpret_cast<const uint4*>(sixteen);
        if (WHOLE ? chunk + L::staged + L::aligned_outputs <= N || chunk < end[i]
                  : begin[i] <= chunk && chunk + outputs <= end[i])
          *reinterpret_cast<uint4*>(out[i] + chunk) = vector;
        else if (!WHOLE && begin[i] < chunk + outputs && chunk < end[i])
#pragma unroll 1
          for (int e = 0; e < outputs; ++e)
            if (begin[i] <= chunk + e && chunk + e < end[i])
              out[i][chunk + e] = reinterpret_cast<const Element*>(sixteen)[e];
      }
      __syncwarp();
    }
  }

  // Where a row's positions are not neighbours.
  __device__ __forceinline__ void write_apart(const Sums& sums, const OutputRows& rows) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      const int64_t position = rows.first + lane % 4 * 2;
      Element* const to = row_of_output(rows.row + row) + position * p.out_step;
      const int64_t end = row < rows.count ? p.positions - position : 0;
#pragma unroll
      for (int i = 0; i < N / 8; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (i * 8 + e < end) to[(i * 8 + e) * p.out_step] = M::to(sums[i * 4 + h * 2 + e]);
    }
  }
};

}  // namespace fastconv1d
