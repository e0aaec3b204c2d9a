// The convolution with long kernels on tensor cores, for groups of one input channel (mma.sync, sm_80 on): stride
// and dilation 1, ordinary and transposed.
//
// A row of the output is cut into stretches of 64 positions, of the input into lines of as many. The sums of a
// stretch are products of its lines and a Toeplitz matrix, which all stretches of a channel share:
//
//   y[stretch][m] = sum over k of x[stretch * 64 + k + origin] * T[k][m],   T[k][m] = w[k - m - skew]
//
// A warp has 16 stretches, the rows of a product, and their 64 positions, 8 mma tiles. A fragment of T depends on
// k - m alone: for 8 values of k more, a lane reads two words, and has the other 14 from before. So does one of
// x serve 8 products. All that limits it are the tensor cores, and memory.
//
//                  m: 8 tiles                    A line in shared memory is 16 pieces of 16 bytes (8 of 16-bit
//              +--+--+--+--+ . .                 types), the i-th of row r in the place of piece i ^ r % 8: so
//   k: 8 steps |e0|-1|-2|-3|                     the rows of 8 neighbouring stretches lie in different banks,
//   a line     +--+--+--+--+                     and those of batches, which are 1, 2, 4 or 8 modulo twice as
//              |e1|e0|-1|-2|                     many rows apart as a warp has stretches of each.
//              +--+--+--+--+
//              . .                               16-bit values: a word has those of k and k + 1. Lanes with an
//                                                odd k - m have a copy of the weights that begins one earlier.
//
// fp32-accurate mode (Ieee) splits both where they are used, three products for one, and adds up lines apart.
//
// Shared memory: [weights of a piece's lines], [batch][line], [warp] flags, sums between pieces. Stretches begin where
// sectors of the output do, and what a row is behind these, its copy of the input is as well. What is too much for
// shared memory comes piece by piece, some lines of taps each. Lines in which all stretches of a warp see padding are
// left out. A piece with a value that is not finite is multiplied one by one: zeros of T must not meet it. So is one
// with such a weight where both are split.
//
// Roofline: 64 * (taps + 63) products for 64 outputs, on mma.sync; DRAM sees input and output once.
#pragma once
#include "stream.cuh"
#include "tile.cuh"

namespace fastconv1d {

constexpr int kStretch = 64, kStretches = 16, kToeplitzWarps = 8;

template <class M>
struct ToeplitzParams {
  using Element = typename M::Element;
  const Element *input, *weight, *bias;
  Element* output;
  int64_t input_batch_stride, input_channel_stride;
  int channels_out, channels_per_input;  // of the output, all and for one channel of the input
  int batch, length, length_out;
  int taps, first_tap, tap_step;
  int origin, skew;    // see above
  int row_lead;        // outputs by which a row lies further behind a sector than the one before
  int stretches_log2;  // of a batch, that a warp has
  int first_line, last_line;  // that have values of the input
  int row_step;               // lines in shared memory from one batch to the next
  int tiles, tiles_of_block;  // of a row; of a row in a block
  int batch_groups, parts;    // blocks of a channel: of its batches, of its rows
  int lines, lines_of_piece;  // that a stretch sees
};

// Sizes, in words of shared memory unless something else is said.
template <class M>
struct ToeplitzShape {
  static constexpr int of_word = M::values_per_word, of_piece = 4 * of_word;  // values
  static constexpr int line_words = kStretch / of_word, pieces = kStretch / of_piece;
  static constexpr int step = 8 * of_word, steps = kStretch / step, tiles = kStretch / 8;
  static constexpr int sector = 8 * of_word;   // values that memory writes at once
  static constexpr int of_tile = 2 / of_word;  // reads of weights from one tile to the next
  static constexpr int behind = of_tile * (tiles - 1);  // that the last tile needs from before
  static constexpr int at_once = 4;                     // pieces that a lane reads
  // The weights of so many lines, once or twice: 16 words behind, other banks have them.
  FASTCONV1D_HD static constexpr int copy_words(int lines) { return (lines + 1) * line_words; }
  FASTCONV1D_HD static constexpr int weight_words(int lines) {
    return of_word == 1 ? copy_words(lines) : 2 * copy_words(lines) + 16;
  }
};

template <class M>
struct ToeplitzBlock : ToeplitzShape<M> {
  using S = ToeplitzShape<M>;
  using Element = typename M::Element;
  using Sums = float[S::tiles][4];
  const ToeplitzParams<M>& p;
  int warp, warps, lane;
  int stretches, batches;  // of a warp
  int channel, first_batch;
  uint32_t *weights, *lines, *flags;
  float4* kept;
  float zero = 0;  // or a NaN, where a piece has what is not finite, or would not be when rounded

  // Of so many warps, one of which this is, that share `memory`.
  __device__ __forceinline__ ToeplitzBlock(const ToeplitzParams<M>& p, uint32_t* memory, int warp,
                                           int warps)
      : p(p), warp(warp), warps(warps) {
    lane = static_cast<int>(threadIdx.x) % 32;
    stretches = 1 << p.stretches_log2;
    batches = kStretches >> p.stretches_log2;
    weights = memory;
    lines = weights + S::weight_words(p.lines_of_piece);
    flags = lines + batches * p.row_step * S::line_words;
    kept = reinterpret_cast<float4*>(flags + kToeplitzWarps);
  }

  __device__ __forceinline__ int row_of_output(int batch) const {
    return batch * p.channels_out + channel;
  }
  // Elements by which a row's stretches begin before it.
  __device__ __forceinline__ int lead_of(int batch) const {
    return row_of_output(batch) % S::sector * p.row_lead % S::sector;
  }
  static __device__ __forceinline__ int place(int row, int piece) {
    return row * S::line_words + 4 * (piece ^ (row & 7));
  }

  // Copies the weights of a piece, whose first line of taps this is, and those that reach into it. Calls
  // visit(weight) for each.
  template <class Visit>
  __device__ __forceinline__ void keep_weights(const Element* of_channel, int first,
                                               const Visit& visit) {
    const auto weight = [&](int at) {
      const int tap = at + (first - 1) * kStretch - p.skew;
      return tap >= 0 && tap < p.taps ? __ldg(of_channel + p.first_tap + tap * p.tap_step)
                                      : Element{};
    };
    const int words = S::copy_words(p.lines_of_piece);
#pragma unroll 4
    for (int i = warp * 32 + lane; i < words; i += warps * 32) {
      if constexpr (S::of_word == 1) {
        const Element value = weight(i);
        weights[i] = M::pack({value});
        visit(value);
        // Infinity is a high part without a low one.
        if constexpr (M::planes > 1) zero = fmaf(float_of(round_tf32(value)), 0, zero);
      } else {
        const Element before = weight(2 * i - 1), even = weight(2 * i), odd = weight(2 * i + 1);
        visit(even);
        visit(odd);
        weights[i] = M::pack({even, odd});
        weights[words + 16 + i] = M::pack({before, even});
      }
    }
  }

  // Copies these lines of the input, behind the weights of their piece.
  __device__ __forceinline__ void keep_lines(int first, int end) {
    const int of_batch = (end - first) * S::pieces,
              parts = static_cast<int>(ceil_div(of_batch, 32 * S::at_once)),
              count = static_cast<int>(smaller(batches, p.batch - first_batch)) * parts;
    // Each warp takes a part of a row: pieces of 16 bytes of memory, in which those of the row begin `off` bytes on.
#pragma unroll 1
    for (int i = warp; i < count; i += warps) {
      const int b = i / parts, batch = first_batch + b,
                first_piece = (i - b * parts) * 32 * S::at_once + lane;
      const auto from =
          reinterpret_cast<uint64_t>(p.input + batch * p.input_batch_stride +
                                     channel / p.channels_per_input * p.input_channel_stride +
                                     first * kStretch + p.origin - lead_of(batch));
      const int off = static_cast<int>(from & 15),
                position = first * kStretch + p.origin - lead_of(batch) -
                           off / static_cast<int>(sizeof(Element));
      const auto* const row = reinterpret_cast<const uint4*>(from - off);
      uint32_t word[S::at_once + 1][4];
#pragma unroll
      for (int number = 0; number <= S::at_once; ++number) {
        const int piece = first_piece + 32 * number, at = position + piece * S::of_piece;
        const bool exists = piece <= of_batch && at > -S::of_piece && at < p.length &&
                            (number < S::at_once || lane == 0);
        const uint4 four = exists ? __ldg(row + piece) : make_uint4(0, 0, 0, 0);
        word[number][0] = four.x;
        word[number][1] = four.y;
        word[number][2] = four.z;
        word[number][3] = four.w;
      }
#pragma unroll
      for (int number = 0; number <= S::at_once; ++number) {
        const int at = position + (first_piece + 32 * number) * S::of_piece;
        clear_beside<Element>(word[number], at, p.length);
      }
#pragma unroll
      for (int number = 0; number < S::at_once; ++number) {
        // What lies in two pieces: the next one has the next lane.
        uint32_t of_row[8];
#pragma unroll
        for (int w = 0; w < 4; ++w) of_row[w] = of_row[4 + w] = word[number][w];
        if (off != 0) {
#pragma unroll
          for (int w = 0; w < 4; ++w)
            of_row[4 + w] = __shfl_sync(
                0xffffffffu, lane == 0 ? word[number + 1][w] : word[number][w], (lane + 1) % 32);
        }
        shift_words(of_row, off);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          if constexpr (S::of_word == 1) {
            of_row[w] = M::pack({float_of(of_row[w])});
            const float value = float_of(of_row[w]);
            zero = fmaf(M::planes > 1 ? float_of(round_tf32(value)) : value, 0, zero);
          } else {
            of_row[w] = shifted_right(of_row[w], of_row[w + 1], off % 4 * 8);
            const float2 both = M::pair(of_row[w]);
            zero = fmaf(both.x, 0, fmaf(both.y, 0, zero));
          }
        }
        const int piece = first_piece + 32 * number;
        if (piece >= of_batch) continue;
        const int to = place(b * p.row_step + piece / S::pieces, piece % S::pieces);
        *reinterpret_cast<uint4*>(lines + to) =
            make_uint4(of_row[0], of_row[1], of_row[2], of_row[3]);
      }
    }
    const uint32_t flag = largest_of_warp(zero == 0 ? 0 : 1);
    if (lane == 0) flags[warp] = flag;
    zero = 0;
  }

  __device__ __forceinline__ bool is_finite() const {
    uint32_t any = 0;
#pragma unroll 1
    for (int w = 0; w < warps; ++w) any |= flags[w];
    return any == 0;
  }

  // Adds lines `line` to `end` of taps, of a piece that begins with `first`. Stretch z of the warp sees the first of
  // them in line row_of(z).
  template <class Row>
  __device__ __forceinline__ void multiply(Sums& sums, int first, int line, int end,
                                           const Row& row_of) const {
    int own = lane;
    keep_in_register(own);
    const int g = own / 4, c = own % 4, half = own / 16;
    const uint32_t* at = weights + c + (line - first + 1) * S::line_words;
    if constexpr (S::of_word == 1)
      at -= g;
    else
      at += (g % 2 != 0 ? S::copy_words(p.lines_of_piece) + 16 : 0) - g / 2;
    int row = row_of(own % 16);
    uint32_t word[S::behind + 2 * S::steps][M::planes];
#pragma unroll
    for (int i = 0; i < S::behind; ++i) M::unpack(at[4 * (i - S::behind)], word[i]);
    Sums of_line{};
    Sums& to = M::chain > 0 ? of_line : sums;
#pragma unroll 1
    for (; line < end; ++line) {
#pragma unroll
      for (int step = 0; step < S::steps; ++step) {
        uint32_t raw[4], values[M::planes][4];
        load_matrices(raw, lines + place(row, 2 * step + half));
        unpack_four<M>(raw, values);
        M::unpack(at[8 * step], word[S::behind + 2 * step]);
        M::unpack(at[8 * step + 4], word[S::behind + 2 * step + 1]);
        // One product of all tiles after the other: they do not wait for each other.
#pragma unroll
        for (int product = 0; product < M::products; ++product)
#pragma unroll
          for (int i = 0; i < S::tiles; ++i) {
            const int w = S::behind + 2 * step - S::of_tile * i;
            uint32_t pair[M::planes][2];
#pragma unroll
            for (int plane = 0; plane < M::planes; ++plane) {
              pair[plane][0] = word[w][plane];
              pair[plane][1] = word[w + 1][plane];
            }
            M::multiply(product, to[i], values, pair);
          }
      }
#pragma unroll
      for (int i = 0; i < S::behind; ++i)
#pragma unroll
        for (int plane = 0; plane < M::planes; ++plane)
          word[i][plane] = word[i + 2 * S::steps][plane];
      if constexpr (M::chain > 0)
#pragma unroll
        for (int i = 0; i < S::tiles; ++i) end_chain(sums[i], of_line[i]);
      at += S::line_words;
      ++row;
    }
  }

  // The same product by product. `g` is lane / 4.
  template <class Row>
  __device__ __forceinline__ void multiply_one_by_one(Sums& sums, int g, int first, int line,
                                                      int end, const Row& row_of) const {
    const auto value_of = [](uint32_t word, bool odd) {
      if constexpr (S::of_word == 1)
        return float_of(word);
      else
        return odd ? M::pair(word).y : M::pair(word).x;
    };
    const int rows[2] = {row_of(g), row_of(g + 8)};
#pragma unroll 1
    for (int k = 0; k < (end - line) * kStretch; ++k) {
      const int of_line = k % kStretch;
      const auto value = [&](int row) {
        const int to = place(row + k / kStretch, of_line / S::of_piece);
        return value_of(lines[to + of_line % S::of_piece / S::of_word], of_line % 2 != 0);
      };
      const float values[2] = {value(rows[0]), value(rows[1])};
#pragma unroll
      for (int i = 0; i < S::tiles; ++i)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int at = line * kStretch + k - (8 * i + lane % 4 * 2 + odd), tap = at - p.skew,
                    to = at - (first - 1) * kStretch;
          if (tap < 0 || tap >= p.taps) continue;
          const float weight = value_of(weights[to / S::of_word], to % 2 != 0);
          sums[i][odd] = fmaf(weight, values[0], sums[i][odd]);
          sums[i][2 + odd] = fmaf(weight, values[1], sums[i][2 + odd]);
        }
    }
  }

  __device__ __forceinline__ void write(const Sums& sums, float bias, int g,
                                        int first_stretch) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int z = g + 8 * h, batch = first_batch + (z >> p.stretches_log2),
                first = (first_stretch + (z & (stretches - 1))) * kStretch - lead_of(batch),
                own = first + lane % 4 * 2;
      const bool exists = batch < p.batch;
      Element* const out = p.output + int64_t{row_of_output(batch)} * p.length_out + own;
#pragma unroll
      for (int i = 0; i < S::tiles; i += 2) {
        const float sum[4] = {sums[i][2 * h] + bias, sums[i][2 * h + 1] + bias,
                              sums[i + 1][2 * h] + bias, sums[i + 1][2 * h + 1] + bias};
        const bool whole = first + 8 * i >= 0 && first + 8 * i + 16 <= p.length_out;
        M::store(out + 8 * i, sum, exists && whole);
        if (!exists || whole) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int at = 8 * (i + e / 2) + e % 2;
          if (own + at >= 0 && own + at < p.length_out) out[at] = M::to(sum[e]);
        }
      }
    }
  }
};

// Blocks that share a multiprocessor at least, so that no registers are spilled.
template <class M>
FASTCONV1D_HD constexpr int toeplitz_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  return M::planes > 1 ? 1 : 2;
#else
  return M::planes > 1 ? 1 : 3;
#endif
}

template <class M>
__global__ void __launch_bounds__(32 * kToeplitzWarps, toeplitz_blocks<M>())
    toeplitz_kernel(const ToeplitzParams<M> p) {
  using Block = ToeplitzBlock<M>;
  using Element = typename M::Element;
  FASTCONV1D_SHARED(memory);
  Block block(p, memory, static_cast<int>(threadIdx.x) / 32, static_cast<int>(blockDim.x) / 32);
  const auto part = static_cast<int>(blockIdx.x % p.parts),
             rest = static_cast<int>(blockIdx.x / p.parts);
  block.channel = rest / p.batch_groups;
  block.first_batch = rest % p.batch_groups * block.batches;
  const float bias = bias_of<M>(p.bias, 0, block.channel, p.channels_out);
  const int stretches = block.stretches, first_tile = part * p.tiles_of_block,
            end_tile = static_cast<int>(smaller(first_tile + p.tiles_of_block, p.tiles)),
            first_stretch = first_tile * stretches,
            end_stretch = first_stretch + p.tiles_of_block * stretches;
#pragma unroll 1
  for (int first = 0; first < p.lines; first += p.lines_of_piece) {
    const int end = static_cast<int>(smaller(first + p.lines_of_piece, p.lines)),
              // Of the input. Some of a warp's stretches see lines without values, others do not.
        low = static_cast<int>(larger(first_stretch + first, p.first_line - stretches + 1)),
              high = static_cast<int>(smaller(end_stretch - 1 + end, p.last_line + stretches));
    if (first > 0) __syncthreads();
    block.keep_weights(p.weight + int64_t{block.channel} * p.taps, first, [](Element) {});
    block.keep_lines(low, high);
    __syncthreads();
    const bool finite = block.is_finite();
#pragma unroll 1
    for (int tile = first_tile + block.warp; tile < end_tile; tile += block.warps) {
      const int of_tile = tile * stretches,
                from = static_cast<int>(larger(first, p.first_line - of_tile - stretches + 1)),
                to = static_cast<int>(smaller(end, p.last_line + 1 - of_tile));
      // Registers are short: what lanes do with sums is worked out tile by tile.
      int g = block.lane / 4, begin = first;
      keep_in_register(g);
      keep_in_register(begin);
      float4* const kept = block.kept + (tile - first_tile) * Block::tiles * 32 + block.lane;
      typename Block::Sums sums{};
      if (first > 0) {
#pragma unroll
        for (int i = 0; i < Block::tiles; ++i) {
          const float4 sum = kept[32 * i];
          sums[i][0] = sum.x;
          sums[i][1] = sum.y;
          sums[i][2] = sum.z;
          sums[i][3] = sum.w;
        }
      }
      const auto row_of = [&](int z) {
        return (z >> p.stretches_log2) * p.row_step + of_tile + (z & (stretches - 1)) + from - low;
      };
      if (from < to) {
        if (finite)
          block.multiply(sums, begin, from, to, row_of);
        else
          block.multiply_one_by_one(sums, g, begin, from, to, row_of);
      }
      if (end == p.lines) {
        block.write(sums, bias, g, of_tile);
      } else {
#pragma unroll
        for (int i = 0; i < Block::tiles; ++i)
          kept[32 * i] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
      }
    }
  }
}

// The line that has a position, counted from where lines begin; they do before it, too.
inline int64_t toeplitz_line_of(int64_t position) {
  return position >= 0 ? position / kStretch : -ceil_div(-position, kStretch);
}

// Who does what, as the shape, the multiprocessors and shared memory say.
template <class M>
struct ToeplitzWork {
  using T = ToeplitzShape<M>;
  int64_t skew, origin, first_line, last_line, lines;
  int64_t stretches_log2 = 0, row_step = 0, tiles = 0, tiles_of_block = 0, batch_groups = 0,
          parts = 0, lines_of_piece = 0, warps = 0, blocks = 0, shared_bytes = 0;

  explicit ToeplitzWork(const ConvArgs& a) {
    const Phase phase = phase_of(a, 0);
    const int64_t most_lead = T::sector - gcd(T::sector, a.length_out % T::sector),
                  stretches = ceil_div(a.length_out + most_lead, kStretch);
    skew = (phase.first_shift % T::sector + T::sector) % T::sector;
    origin = phase.first_shift - skew;
    first_line = toeplitz_line_of(-origin);
    last_line = toeplitz_line_of(a.length - 1 + most_lead - origin);
    lines = ceil_div(kStretch + a.kernel_size - 1 + skew, kStretch);
    // A warp's stretches are as many of as few batches, and a block has as many tiles of a row, as take least time.
    const int64_t budgets[] = {shared_budget(1), shared_budget(2)};
    int64_t least = 0;
    for (int64_t log2 = 0; 1 << log2 <= kStretches; ++log2) {
      const int64_t of_warp = 1 << log2, batches = kStretches >> log2,
                    groups = ceil_div(a.batch, batches), of_row = ceil_div(stretches, of_warp),
                    with_values = last_line - first_line + of_warp;
      for (int64_t in_row = 1, before = 0; in_row <= of_row; in_row += ceil_div(in_row, 2)) {
        const int64_t of_block = ceil_div(of_row, in_row);
        if (of_block == before) continue;
        before = of_block;
        int64_t piece = lines,
                rows = rows_of(smaller(of_block * of_warp + lines - 1, with_values + of_warp - 1),
                               log2);
        if (bytes(rows, batches, piece) > budgets[0]) {
          const int64_t most_more = log2 < 3 ? 2 * of_warp : 0,
                        fixed =
                            bytes(of_block * of_warp + most_more, batches, 0) + of_block * kKept;
          piece = (budgets[1] - fixed) / (bytes(1, batches, 1) - bytes(0, batches, 0));
          if (piece < 1) continue;
          piece = ceil_div(lines, ceil_div(lines, piece));
          rows = rows_of(of_block * of_warp + piece - 1, log2);
        }
        const int64_t all = a.channels_out * groups * ceil_div(of_row, of_block),
                      of_processor = ceil_div(all, a.multiprocessors),
                      shared = bytes(rows, batches, piece) + (piece < lines ? of_block * kKept : 0),
                      pieces = ceil_div(lines, piece), copied = smaller(a.batch, batches) * pieces,
                      reads = copied * ceil_div(rows * T::pieces, 32 * T::at_once),
                      busy = kLine * of_block * smaller(lines, with_values) + kCopy * copied * rows;
        // As many warps in each quarter of a multiprocessor.
        for (int64_t of_these = 4; of_these <= kToeplitzWarps; of_these += 4) {
          const int64_t at_a_time = smaller(toeplitz_blocks<M>() * kToeplitzWarps / of_these,
                                            larger(1, budgets[0] / shared)),
                        waits = kStart + kRead * ceil_div(reads, of_these) +
                                kTile * ceil_div(of_block, of_these),
                        time = of_processor * busy + ceil_div(of_processor, at_a_time) * waits;
          if (blocks > 0 && time >= least) continue;
          least = time;
          stretches_log2 = log2;
          row_step = rows;
          tiles = of_row;
          tiles_of_block = of_block;
          batch_groups = groups;
          parts = ceil_div(of_row, of_block);
          lines_of_piece = piece;
          warps = of_these;
          blocks = all;
          shared_bytes = shared;
        }
      }
    }
  }

 private:
  static constexpr int64_t kKept = T::tiles * 32 * 16;  // bytes of a tile's sums
  // Cycles in which a multiprocessor is busy: for a tile and a line, for a line copied. Those that a block waits, which
  // others beside it do as well: at its start, for its warps' reads, for their tiles.
  static constexpr int64_t kLine = 128 * M::products / T::of_word, kCopy = 10 / T::of_word;
  static constexpr int64_t kStart = 3000, kRead = 1200, kTile = 5000;
  // Rows of a batch, as many modulo what a warp has of it that all lie in different banks.
  static int64_t rows_of(int64_t least, int64_t log2) {
    const int64_t of_warp = 1 << log2;
    return log2 >= 3 ? least : round_up(larger(least - of_warp, 0), 2 * of_warp) + of_warp;
  }
  static int64_t bytes(int64_t rows, int64_t batches, int64_t piece) {
    return 4 * (T::weight_words(static_cast<int>(piece)) + batches * rows * T::line_words +
                kToeplitzWarps);
  }
};

template <class M>
int toeplitz_launch(const ConvArgs& a, void* stream) {
  using Element = typename M::Element;
  const ToeplitzWork<M> work(a);
  if (work.blocks == 0 || work.blocks > INT32_MAX) return 1;  // cudaErrorInvalidValue
  const Phase phase = phase_of(a, 0);
  const ToeplitzParams<M> p{static_cast<const Element*>(a.input),
                            static_cast<const Element*>(a.weight),
                            static_cast<const Element*>(a.bias),
                            static_cast<Element*>(a.output),
                            a.input_batch_stride,
                            a.input_channel_stride,
                            static_cast<int>(a.channels_out),
                            static_cast<int>(a.channels_out / a.groups),
                            static_cast<int>(a.batch),
                            static_cast<int>(a.length),
                            static_cast<int>(a.length_out),
                            static_cast<int>(a.kernel_size),
                            static_cast<int>(phase.first_tap),
                            static_cast<int>(phase.tap_step),
                            static_cast<int>(work.origin),
                            static_cast<int>(work.skew),
                            static_cast<int>(a.length_out % ToeplitzShape<M>::sector),
                            static_cast<int>(work.stretches_log2),
                            static_cast<int>(work.first_line),
                            static_cast<int>(work.last_line),
                            static_cast<int>(work.row_step),
                            static_cast<int>(work.tiles),
                            static_cast<int>(work.tiles_of_block),
                            static_cast<int>(work.batch_groups),
                            static_cast<int>(work.parts),
                            static_cast<int>(work.lines),
                            static_cast<int>(work.lines_of_piece)};
  const auto kernel = toeplitz_kernel<M>;
  if (const int error = set_shared_limit(kernel, work.shared_bytes)) return error;
  return launch(kernel, dim3(static_cast<unsigned>(work.blocks)),
                dim3(static_cast<unsigned>(32 * work.warps)), work.shared_bytes, stream, p);
}

}  // namespace fastconv1d

#define FASTCONV1D_TOEPLITZ_LIBRARY(MODE)                                          \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::toeplitz_launch<MODE>(*args, stream);                       \
  }                                                                                \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
