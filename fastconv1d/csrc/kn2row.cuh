// The convolution of groups with few output channels and many input channels, on tensor cores (mma.sync, sm_80 on):
// a vocoder's last layer, the gradient of a first layer's input. Any stride, ordinary or transposed.
//
// A tap by itself is a convolution of kernel size 1. The product of all of them reads the input once ("kn2row"), and
// an output is a sum of its rows, each from where its tap sees the input:
//
//   P[(o, t)][p] = sum over c of w[o][c][t] * x[c][p],   y[o][u] = sum over taps t of P[(o, t)][p], t sees p for u
//
//        rows: pairs (o, t)      columns: 32 positions of a warp, 4 neighbours
//        TILES x 16              a lane, one in each of 4 mma tiles
//      +---+                   +-- -- --+-- -- --+-- ..
//      | w |  x  channels of   |        |        |
//      |   |     the input     | window | window |        warps: windows of positions by parts of the channels
//      +---+                   +-- -- --+-- -- --+-- ..
//
// A lane reads 4 neighbouring values of a row with one instruction, some steps of channels before it multiplies
// them; the input sees neither shared memory nor a barrier. Rows of odd length begin anywhere: channels whose rows
// begin alike modulo 4 values are of one kind, and a part has channels of one kind, so that its columns are the same
// positions in all of them. Blocks stay, with all the weights in shared memory, for one tile of outputs after the other.
//
// Shared memory: [weights: kind][step][tile] as lanes' fragments, [products: part][row][position] of as many tiles as
// all taps of an output channel take. Products of what the row has beside it are in columns that no sum takes.
//
// Roofline: DRAM sees the input once, but what two tiles see comes from L2.
#pragma once
#include "tile.cuh"

namespace fastconv1d {

constexpr int kWindow = 32;   // positions of a warp
constexpr int kRowKinds = 4;  // ways of rows to begin, modulo as many values

template <class M>
struct Kn2rowParams {
  using Element = typename M::Element;
  const Element *input, *weight, *bias;
  Element* output;
  int64_t input_batch_stride, input_channel_stride;
  int64_t weight_group, weight_out,
      weight_channel;             // elements from one's weights to the next one's
  int channels_in, channels_out;  // of a group
  int length, length_out;
  int taps, stride, padding, dilation;
  int tap_step, shift_step, common, inverse;   // of a transposed convolution: see `write`
  int kinds, parts, steps, steps_of_part;      // steps of a kind's channels
  int stretch_tiles, stretch_outs, stretches;  // mma tiles of some output channels
  int outputs, positions;                      // of a row: that a tile has, that these see at most
  int tiles, all_tiles;                        // of a row; of all batches
};

template <class M, int TILES>
struct Kn2rowShape {
  using Element = typename M::Element;
  static constexpr int of_word = M::values_per_word;
  static constexpr int of_lane = 2 * of_word, of_step = 4 * of_lane;  // channels
  static constexpr int sector = 32 / static_cast<int>(sizeof(Element));
  static constexpr bool splits = M::planes > 1;  // which takes registers
  static constexpr int warps = TILES > 2 ? 16 : 8, blocks = (TILES > 2 ? 1 : 4 - TILES) - splits;
  static_assert(blocks > 0);
  static constexpr int ahead = TILES > 2 ? 3 : 4;  // steps that are read before one is multiplied
  static constexpr int threads = 32 * warps, fragment = 128;  // words of a mma tile's weights
  // Words from a row of products to the next: 8 rows lie in different banks.
  FASTCONV1D_HD static constexpr int pitch(int parts) { return warps / parts * kWindow + 4; }
  FASTCONV1D_HD static constexpr int part_words(int parts, int tiles) {
    return tiles * 16 * pitch(parts);
  }
};

template <class M, int TILES, bool TRANSPOSED>
struct Kn2rowBlock : Kn2rowShape<M, TILES> {
  using S = Kn2rowShape<M, TILES>;
  using Element = typename M::Element;
  using Sums = float[TILES][4][4];
  const Kn2rowParams<M>& p;
  uint32_t* weights;
  // What the lane reads next: the first of its channels, and how many the part has from there on.
  const Element* at;
  int left;
  uint32_t x[S::ahead][8];  // words of its channels, in turn

  __device__ __forceinline__ Kn2rowBlock(const Kn2rowParams<M>& p, uint32_t* memory)
      : p(p), weights(memory) {}

  // Registers are short: who a thread is, is worked out where it matters.
  struct Self {
    int thread, lane, window, part, kind;
    __device__ __forceinline__ explicit Self(const Kn2rowParams<M>& p) {
      thread = static_cast<int>(threadIdx.x);
      keep_in_register(thread);
      lane = thread % 32;
      const int windows = S::warps / p.parts;
      part = thread / 32 / windows;
      window = thread / 32 - part * windows;
      kind = part & (p.kinds - 1);
    }
  };
  static __device__ __forceinline__ int group() { return static_cast<int>(blockIdx.y); }
  __device__ __forceinline__ float* products() const {
    return reinterpret_cast<float*>(weights + p.kinds * p.steps * TILES * S::fragment);
  }

  // Each thread has words of one place in a fragment.
  __device__ __forceinline__ void keep_weights() const {
    constexpr int of_all = TILES * S::fragment;
    const auto thread = static_cast<int>(threadIdx.x);
    const int place = thread % of_all, tile = place / S::fragment, of_lane = place / 4 % 32,
              row = tile % p.stretch_tiles * 16 + of_lane / 4 + place % 2 * 8,
              out_of_stretch = row / p.taps, tap = row - out_of_stretch * p.taps,
              out = tile / p.stretch_tiles * p.stretch_outs + out_of_stretch,
              first = of_lane % 4 * S::of_lane + place % 4 / 2 * S::of_word;
    const bool exists = out_of_stretch < p.stretch_outs && out < p.channels_out;
    const Element* const of_row = p.weight + group() * p.weight_group + out * p.weight_out + tap;
    constexpr int apart = S::threads / of_all, at_once = 6;
#pragma unroll 1
    for (int of_kind = 0; of_kind < p.kinds; ++of_kind)
#pragma unroll 1
      for (int step = thread / of_all; step < p.steps; step += at_once * apart) {
        Element value[at_once][S::of_word];
#pragma unroll
        for (int i = 0; i < at_once; ++i)
#pragma unroll
          for (int k = 0; k < S::of_word; ++k) {
            const int channel = of_kind + ((step + i * apart) * S::of_step + first + k) * p.kinds;
            value[i][k] = Element{};
            if (exists && channel < p.channels_in)
              value[i][k] = __ldg(of_row + channel * p.weight_channel);
          }
#pragma unroll
        for (int i = 0; i < at_once; ++i)
          if (step + i * apart < p.steps)
            weights[(of_kind * p.steps + step + i * apart) * of_all + place] = M::pack(value[i]);
      }
  }

  __device__ __forceinline__ int first_output(int tile) const { return tile % p.tiles * p.outputs; }
  // The first position that a tile of outputs sees, perhaps before the row.
  __device__ __forceinline__ int first_position(int tile) const {
    if constexpr (!TRANSPOSED) return first_output(tile) * p.stride - p.padding;
    const int last = first_output(tile) + p.padding - (p.taps - 1) * p.dilation;
    return last >= 0 ? (last + p.stride - 1) / p.stride : -(-last / p.stride);
  }
  // Elements from a sector's boundary to that position of a kind's first row.
  __device__ __forceinline__ const Element* row_of(int tile, int of_kind) const {
    return p.input + tile / p.tiles * p.input_batch_stride +
           (int64_t{group()} * p.channels_in + of_kind) * p.input_channel_stride;
  }
  __device__ __forceinline__ int lead_of(int tile, int of_kind, int position) const {
    const auto from = reinterpret_cast<uint64_t>(row_of(tile, of_kind) + position);
    return static_cast<int>(from % 32 / sizeof(Element));
  }

  __device__ __forceinline__ void read(uint32_t (&word)[8]) {
    constexpr int words = 4 / S::of_word;  // of a channel
    const int64_t channel = p.kinds * p.input_channel_stride;
#pragma unroll
    for (int i = 0; i < S::of_lane; ++i) {
      const Element* const from = at + i * channel;
      if constexpr (words == 4) {
        uint4 four = make_uint4(0, 0, 0, 0);
        if (i < left) four = __ldg(reinterpret_cast<const uint4*>(from));
        word[4 * i] = four.x;
        word[4 * i + 1] = four.y;
        word[4 * i + 2] = four.z;
        word[4 * i + 3] = four.w;
      } else {
        uint2 two = make_uint2(0, 0);
        if (i < left) two = __ldg(reinterpret_cast<const uint2*>(from));
        word[2 * i] = two.x;
        word[2 * i + 1] = two.y;
      }
    }
    at += S::of_step * channel;
    left -= S::of_step;
  }

  // Reads a tile's first steps.
  __device__ __forceinline__ void begin(int tile) {
    const Self self(p);
    const int first = first_position(tile),
              position = first - lead_of(tile, self.kind, first) + self.window * kWindow +
                         self.lane / 4 * 4,
              channel = self.part / p.kinds * p.steps_of_part * S::of_step,
              channels =
                  static_cast<int>(smaller((p.channels_in - self.kind + p.kinds - 1) / p.kinds,
                                           channel + p.steps_of_part * S::of_step));
    const int own = channel + self.lane % 4 * S::of_lane;
    at = row_of(tile, self.kind) + position + own * p.kinds * p.input_channel_stride;
    const int end = static_cast<int>(smaller(p.length, first + p.positions));
    left = position > -4 && position < end ? channels - own : 0;
#pragma unroll
    for (int i = 0; i < S::ahead; ++i) read(x[i]);
  }

  __device__ __forceinline__ void multiply_step(Sums& sums, const uint32_t (&word)[8],
                                                const uint32_t* fragments) const {
    uint32_t b[4][M::planes][2];
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t of_plane[M::planes];
        if constexpr (S::of_word == 1)
          M::split({float_of(word[4 * half + j])}, of_plane);
        else
          of_plane[0] = halves_of(word[4 * half + j / 2], word[4 * half + 2 + j / 2], j % 2 != 0);
#pragma unroll
        for (int plane = 0; plane < M::planes; ++plane) b[j][plane][half] = of_plane[plane];
      }
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(fragments + i * S::fragment);
      uint32_t a[M::planes][4];
      unpack_four<M>({four.x, four.y, four.z, four.w}, a);
#pragma unroll
      for (int product = 0; product < M::products; ++product)
#pragma unroll
        for (int j = 0; j < 4; ++j) M::multiply(product, sums[i][j], a, b[j]);
    }
  }

  // Multiplies a tile whose first steps have been read.
  __device__ __forceinline__ void multiply(Sums& sums) {
    const Self self(p);
    const int first = self.part / p.kinds * p.steps_of_part,
              steps = static_cast<int>(smaller(p.steps_of_part, p.steps - first));
    const uint32_t* fragments =
        weights + (self.kind * p.steps + first) * TILES * S::fragment + 4 * self.lane;
    static_assert(M::chain == 0 || S::ahead <= M::chain);
    Sums of_chain{};
    Sums& to = M::chain > 0 ? of_chain : sums;
#pragma unroll 1
    for (int step = 0; step < steps; step += S::ahead) {
#pragma unroll
      for (int i = 0; i < S::ahead; ++i) {
        if (step + i < steps) multiply_step(to, x[i], fragments);
        fragments += TILES * S::fragment;
        read(x[i]);
      }
      if constexpr (M::chain > 0)
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) end_chain(sums[i][j], of_chain[i][j]);
    }
  }

  // Puts the products of a mma tile where those that write outputs find them.
  __device__ __forceinline__ void keep_products(const float (&sums)[4][4], int of_stretch) const {
    const Self self(p);
    const int pitch = S::pitch(p.parts);
    float* const to = products() + self.part * S::part_words(p.parts, p.stretch_tiles) +
                      (of_stretch * 16 + self.lane / 4) * pitch + self.window * kWindow +
                      self.lane % 4 * 8;
#pragma unroll
    for (int below = 0; below < 2; ++below)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int i = 2 * below + odd;
        *reinterpret_cast<float4*>(to + below * 8 * pitch + odd * 4) =
            make_float4(sums[0][i], sums[1][i], sums[2][i], sums[3][i]);
      }
  }

  // Adds up and writes the outputs of a stretch of mma tiles. Output u of a transposed convolution meets the taps t with
  // u + padding = position * stride + t * dilation: every tap_step-th, if any, from the one on for which the rest is 0.
  __device__ __forceinline__ void write(int tile, int stretch) const {
    const int pitch = S::pitch(p.parts), first = first_position(tile),
              outs = static_cast<int>(
                  smaller(p.stretch_outs, p.channels_out - stretch * p.stretch_outs)),
              begin = first_output(tile),
              end = static_cast<int>(smaller(begin + p.outputs, p.length_out));
    const float* const of_tile = products() - first;
    int leads[kRowKinds];
#pragma unroll
    for (int i = 0; i < kRowKinds; ++i) leads[i] = lead_of(tile, i, first);
#pragma unroll 1
    for (int of_stretch = 0; of_stretch < outs; ++of_stretch) {
      const int out = stretch * p.stretch_outs + of_stretch;
      const float bias = bias_of<M>(p.bias, group(), out, p.channels_out);
      Element* const row =
          p.output +
          ((int64_t{tile / p.tiles} * gridDim.y + group()) * p.channels_out + out) * p.length_out;
#pragma unroll 1
      for (int u = begin + static_cast<int>(threadIdx.x); u < end; u += S::threads) {
        int tap = 0, tap_step = 1, position = u * p.stride - p.padding, step = p.dilation;
        if constexpr (TRANSPOSED) {
          const int shifted = u + p.padding, rest = shifted % p.stride;
          tap = rest % p.common == 0 ? rest / p.common * p.inverse % p.tap_step : p.taps;
          position = (shifted - tap * p.dilation) / p.stride;
          tap_step = p.tap_step;
          step = -p.shift_step;
        }
        float sum = bias;
#pragma unroll 1
        for (int from = 0; from < p.parts; from += p.kinds)
#pragma unroll
          for (int of_kind = 0; of_kind < kRowKinds; ++of_kind) {
            if (of_kind >= p.kinds) break;
            const float* const of_part =
                of_tile + (from + of_kind) * S::part_words(p.parts, p.stretch_tiles) +
                of_stretch * p.taps * pitch + leads[of_kind];
            int at_position = position;
#pragma unroll 2
            for (int t = tap; t < p.taps; t += tap_step) {
              if (at_position >= 0 && at_position < p.length)
                sum += of_part[t * pitch + at_position];
              at_position += step;
            }
          }
        row[u] = M::to(sum);
      }
    }
  }
};

template <class M, int TILES, bool TRANSPOSED>
__global__ void __launch_bounds__(Kn2rowShape<M, TILES>::threads, Kn2rowShape<M, TILES>::blocks)
    kn2row_kernel(const Kn2rowParams<M> p) {
  using Block = Kn2rowBlock<M, TILES, TRANSPOSED>;
  FASTCONV1D_SHARED(memory);
  Block block(p, memory);
  int tile = static_cast<int>(blockIdx.x);
  block.begin(tile);
  block.keep_weights();
  __syncthreads();
#pragma unroll 1
  while (tile < p.all_tiles) {
    typename Block::Sums sums{};
    block.multiply(sums);
    const int now = tile;
    tile += static_cast<int>(gridDim.x);
    if (tile < p.all_tiles) block.begin(tile);
    int of_stretch = 0, stretch = 0;
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      if (stretch >= p.stretches) break;
      if (of_stretch == 0) __syncthreads();
      block.keep_products(sums[i], of_stretch);
      if (++of_stretch < p.stretch_tiles) continue;
      __syncthreads();
      block.write(now, stretch);
      of_stretch = 0;
      ++stretch;
    }
  }
}

// Who does what, as the shape, the multiprocessors and shared memory say.
template <class M, int TILES>
struct Kn2rowWork {
  using S = Kn2rowShape<M, TILES>;
  int64_t kinds, steps, stretch_tiles, stretch_outs, stretches;
  int64_t parts = 0, steps_of_part = 0, outputs = 0, positions = 0, tiles = 0, blocks_of_group = 0,
          shared_bytes = 0;

  explicit Kn2rowWork(const ConvArgs& a) {
    const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups,
                  reach = (a.kernel_size - 1) * a.dilation,
                  apart = (a.input_channel_stride % 4 + 4) % 4;
    kinds = 4 / gcd(4, apart);
    steps = ceil_div(ceil_div(channels_in, kinds), S::of_step);
    stretch_tiles = ceil_div(a.kernel_size, 16);
    stretch_outs = 16 * stretch_tiles / a.kernel_size;
    stretches = ceil_div(channels_out, stretch_outs);
    if (stretch_tiles * stretches > TILES) return;
    const int64_t weight_words = kinds * steps * TILES * S::fragment, budget = shared_budget(1);
    int64_t least = 0;
    for (int64_t these = kinds; these <= S::warps; these *= 2) {
      // Positions that are in all kinds' columns, wherever rows begin.
      const int64_t columns = S::warps / these * kWindow - (S::sector - 1),
                    most = a.transposed ? columns * a.stride - reach
                                        : (columns - 1 - reach) / a.stride + 1,
                    bytes =
                        4 * (weight_words + these * S::part_words(static_cast<int>(these),
                                                                  static_cast<int>(stretch_tiles)));
      if (most < 1 || (!a.transposed && columns <= reach) || bytes > budget) continue;
      // Tiles are as many as end together, at least half as long as they can be.
      const int64_t rows = larger(1, a.batch * a.groups),
                    resident = smaller(S::blocks, budget / bytes),
                    at_a_time = resident * a.multiprocessors,
                    turns = ceil_div(rows * ceil_div(a.length_out, most), at_a_time),
                    of_tile = smaller(
                        most, larger(ceil_div(most, 2),
                                     ceil_div(a.length_out, larger(1, turns * at_a_time / rows)))),
                    seen = a.transposed ? (of_tile - 1 + reach) / a.stride + 1
                                        : (of_tile - 1) * a.stride + reach + 1,
                    of_part = ceil_div(steps, these / kinds),
                    taps = a.kernel_size / (a.transposed ? a.stride : 1),
                    instructions = kOutput + these * (kPart + kProduct * taps),
                    busy = kOwn + kStep * these * of_part * ceil_div(seen + 8, kWindow) +
                           channels_out * of_tile * instructions / 128,
                    time = turns * (kTile + resident * busy);
      if (parts > 0 && time >= least) continue;
      least = time;
      parts = these;
      steps_of_part = of_part;
      outputs = of_tile;
      positions = seen;
      tiles = ceil_div(a.length_out, of_tile);
      blocks_of_group = smaller(tiles * a.batch, larger(1, at_a_time / a.groups));
      shared_bytes = bytes;
    }
  }

 private:
  // Cycles that a block waits with each tile; that its multiprocessor is busy with one, and with a warp's step.
  static constexpr int64_t kSplit = 2;  // times as long takes a step whose values are split
  static constexpr int64_t kTile = 1600, kOwn = 1700,
                           kStep = (TILES > 2 ? 90 : 40) * (S::splits ? kSplit : 1);
  // Instructions for an output, for each part of its sum, and for each product in it; 128 threads have one done in a
  // cycle.
  static constexpr int64_t kOutput = 60, kPart = 12, kProduct = 5;
};

template <class M, int TILES>
int kn2row_launch_tiles(const ConvArgs& a, void* stream) {
  using Element = typename M::Element;
  const Kn2rowWork<M, TILES> work(a);
  if (work.parts == 0) return 1;  // cudaErrorInvalidValue
  const int64_t channels_in = a.channels_in / a.groups, channels_out = a.channels_out / a.groups,
                common = gcd(a.stride, a.dilation), every = a.stride / common;
  // The tap, modulo `every`, that moves an output by `common`.
  int64_t inverse = 0;
  while ((inverse * (a.dilation / common) - 1) % every != 0) ++inverse;
  Kn2rowParams<M> p{};
  p.input = static_cast<const Element*>(a.input);
  p.weight = static_cast<const Element*>(a.weight);
  p.bias = static_cast<const Element*>(a.bias);
  p.output = static_cast<Element*>(a.output);
  p.input_batch_stride = a.input_batch_stride;
  p.input_channel_stride = a.input_channel_stride;
  p.weight_group = channels_in * channels_out * a.kernel_size;
  p.weight_out = (a.transposed ? 1 : channels_in) * a.kernel_size;
  p.weight_channel = (a.transposed ? channels_out : 1) * a.kernel_size;
  p.channels_in = static_cast<int>(channels_in);
  p.channels_out = static_cast<int>(channels_out);
  p.length = static_cast<int>(a.length);
  p.length_out = static_cast<int>(a.length_out);
  p.taps = static_cast<int>(a.kernel_size);
  p.stride = static_cast<int>(a.stride);
  p.padding = static_cast<int>(a.padding);
  p.dilation = static_cast<int>(a.dilation);
  p.tap_step = static_cast<int>(every);
  p.shift_step = static_cast<int>(a.dilation / common);
  p.common = static_cast<int>(common);
  p.inverse = static_cast<int>(inverse);
  p.kinds = static_cast<int>(work.kinds);
  p.parts = static_cast<int>(work.parts);
  p.steps = static_cast<int>(work.steps);
  p.steps_of_part = static_cast<int>(work.steps_of_part);
  p.stretch_tiles = static_cast<int>(work.stretch_tiles);
  p.stretch_outs = static_cast<int>(work.stretch_outs);
  p.stretches = static_cast<int>(work.stretches);
  p.outputs = static_cast<int>(work.outputs);
  p.positions = static_cast<int>(work.positions);
  p.tiles = static_cast<int>(work.tiles);
  p.all_tiles = static_cast<int>(work.tiles * a.batch);
  const auto kernel = a.transposed ? kn2row_kernel<M, TILES, true> : kn2row_kernel<M, TILES, false>;
  if (const int error = set_shared_limit(kernel, work.shared_bytes)) return error;
  return launch(kernel,
                dim3(static_cast<unsigned>(work.blocks_of_group), static_cast<unsigned>(a.groups)),
                dim3(Kn2rowShape<M, TILES>::threads), work.shared_bytes, stream, p);
}

template <class M>
int kn2row_launch(const ConvArgs& a, void* stream) {
  const int64_t height = ceil_div(a.kernel_size, 16), outs = 16 * height / a.kernel_size,
                tiles = height * ceil_div(a.channels_out / a.groups, outs);
  if (tiles <= 1) return kn2row_launch_tiles<M, 1>(a, stream);
  if (tiles <= 2) return kn2row_launch_tiles<M, 2>(a, stream);
  if constexpr (M::planes > 1)  // whose sums are twice as many
    return 1;                   // cudaErrorInvalidValue
  else
    return kn2row_launch_tiles<M, 4>(a, stream);
}

}  // namespace fastconv1d

#define FASTCONV1D_KN2ROW_LIBRARY(MODE)                                            \
  int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* args, void* stream) { \
    return fastconv1d::kn2row_launch<MODE>(*args, stream);                         \
  }                                                                                \
  int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs*) { return 0; }
