// A matrix product on the tensor cores of Hopper (sm_90a, wgmma), for convolutions written out as one:
//
//   sums (rows x columns) = sum over depth of  left (rows x depth) * right (depth x columns)
//
// The left matrix is read as it lies in memory, along depth or, TURNED, along rows: a weight needs no
// rewriting then. Boxes of it come to shared memory, and lanes read the fragments that wgmma takes from
// registers, rounding them on the way. The right matrix, columns of an input, was packed by the kernel before in the
// order in which wgmma reads it, so that a slice of a tile is one copy.
//
//   stage = [row][36 words of depth] of left, TURNED [depth][rows and 4 words more]: a pitch that keeps banks
//           apart; then [plane][4 words of depth][column][4 words] of right
//
// fp32-accurate mode (Ieee) splits each value in a high and a low TF32 part, of which right has a plane each, and adds
// three products. A slice's products are a chain, and chains are added up in registers apart.
//
// One warp has stages copied, WARPGROUPS multiply them, 64 rows by N columns each. Blocks take tiles in turn; stages of
// the next one come while sums of one are written. Few tiles split the depth: each split leaves fp32 sums of its own,
// which the kernel that comes next adds up in order.
//
// Roofline: each matrix comes from memory once; a tile reads (rows + columns) x depth from L2.
#pragma once
#include "tile.cuh"

namespace fastconv1d {

template <int WARPGROUPS, int N>
struct ProductTile {
  static constexpr int warpgroups = WARPGROUPS, rows = 64 * WARPGROUPS, columns = N;
  static constexpr int threads = 128 * (WARPGROUPS + 1);
  static constexpr int registers = 65536 / threads / 8 * 8;  // of a thread, at first
  static constexpr int producer_registers = 40;
  static constexpr int consumer_registers =
      (threads * registers - 128 * producer_registers) / (128 * WARPGROUPS) / 8 * 8;
};

constexpr int kProductSteps = 4, kProductWords = 8 * kProductSteps,
              kProductPieces = kProductWords / 4;  // of a slice
constexpr int kProductStages = 6, kProductBarrierBytes = 128;

struct ProductParams {
  BoxMap left;
  const uint32_t* right;
  void* output;                  // [group][row][column]; or null: parts
  float* parts;                  // [split][group][row][pitch]
  int64_t rows, columns, depth;  // of a group
  int64_t pitch;                 // of rows of parts or the output; even, as are columns
  int64_t row_blocks, column_blocks, groups, splits, slices;
  int stages, tiles;     // tiles: of all splits
  int left_comes_first;  // it was there before the kernel before this one
};

// Writes 4 words of a column of the right matrix, of which there are kProductPieces in a slice: [group][column
// block][slice][piece][column] is `number`.
template <class M, class T>
__device__ __forceinline__ void store_right(
    uint32_t* right, int64_t number, const typename M::Element (&value)[4][M::values_per_word]) {
  uint32_t packed[4], word[M::planes][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) packed[i] = M::pack(value[i]);
  unpack_four<M>(packed, word);
  constexpr int of_plane = kProductPieces * T::columns;
  if (M::planes > 1) number += number / of_plane * of_plane * (M::planes - 1);
#pragma unroll
  for (int plane = 0; plane < M::planes; ++plane) {
    const auto& of = word[plane];
    store_16(right + 4 * (number + plane * of_plane), make_uint4(of[0], of[1], of[2], of[3]));
  }
}

template <class M, class T, bool TURNED>
struct ProductBlock {
  using Element = typename M::Element;
  static constexpr int values = M::values_per_word, depth = kProductWords * values;  // of a slice
  static constexpr int box_columns = TURNED ? T::rows + 4 * values : depth + 4 * values,
                       box_rows = TURNED ? depth : T::rows;
  static constexpr int pitch = box_columns * static_cast<int>(sizeof(Element));
  static constexpr int left_bytes = box_rows * pitch, plane_bytes = 4 * kProductWords * T::columns,
                       right_bytes = M::planes * plane_bytes,
                       stage_bytes = left_bytes + right_bytes;
  static constexpr bool cuts = M::chain > 0;  // chains of products, after each slice
  static_assert(!cuts || kProductSteps <= M::chain);
  static_assert(left_bytes % 128 == 0 && box_columns <= 256 && box_rows <= 256);

  struct Part {
    StageBarriers<kProductStages> barriers;
  };
  static_assert(sizeof(Part) <= kProductBarrierBytes);

  const ProductParams& p;
  Part* part;
  char* stages;

  __device__ __forceinline__ ProductBlock(const ProductParams& params, uint32_t* memory)
      : p(params),
        part(reinterpret_cast<Part*>(memory)),
        stages(reinterpret_cast<char*>(memory) + kProductBarrierBytes) {}

  // One of all splits' tiles. Those that read the same of the left matrix run together.
  struct Tile {
    int row_block, column_block, group, split, begin, count;  // begin: the first slice
  };
  __device__ __forceinline__ Tile tile_of(int number) const {
    Digits<uint32_t> digits{static_cast<uint32_t>(number)};
    Tile tile;
    tile.column_block = static_cast<int>(digits.take(p.column_blocks));
    tile.row_block = static_cast<int>(digits.take(p.row_blocks));
    tile.split = static_cast<int>(digits.take(p.splits));
    tile.group = static_cast<int>(digits.rest);
    const auto each = static_cast<int>(ceil_div(p.slices, p.splits));
    tile.begin = tile.split * each;
    tile.count = static_cast<int>(smaller(each, larger(0, p.slices - tile.begin)));
    return tile;
  }

  __device__ __forceinline__ void init() const {
    if (threadIdx.x >= kProductStages) return;
    barrier_init(part->barriers.full + threadIdx.x, 1);
    barrier_init(part->barriers.empty + threadIdx.x, 4 * T::warpgroups);
    fence_async_proxy();
  }

  __device__ __forceinline__ void copy_left(const Tile& tile, int slice, int stage) const {
    uint64_t* const full = part->barriers.full + stage;
    barrier_arrive_expecting(full, stage_bytes);
    const int across = tile.row_block * T::rows, along = (tile.begin + slice) * depth;
    if (TURNED)
      copy_box(stages + stage * stage_bytes, &p.left, across,
               static_cast<int>(tile.group * p.depth) + along, full);
    else
      copy_box(stages + stage * stage_bytes, &p.left, along,
               static_cast<int>(tile.group * p.rows) + across, full);
  }
  __device__ __forceinline__ void copy_right(const Tile& tile, int slice, int stage) const {
    const int64_t number =
        (int64_t{tile.group} * p.column_blocks + tile.column_block) * p.slices + tile.begin + slice;
    copy_bulk(stages + stage * stage_bytes + left_bytes, p.right + number * (right_bytes / 4),
              right_bytes, part->barriers.full + stage);
  }
  // One thread.
  __device__ __forceinline__ void produce() const {
    if (!p.left_comes_first) wait_for_kernel_before();
    int number = static_cast<int>(blockIdx.x), slice = 0;
    Tile tile = tile_of(number);
    Turn turn;
    const auto first = static_cast<int>(smaller(p.stages, tile.count));
    for (; slice < first; ++slice) copy_left(tile, slice, slice);
    if (p.left_comes_first) wait_for_kernel_before();
    for (int i = 0; i < first; ++i) {
      copy_right(tile, i, i);
      turn.advance(p.stages);
    }
#pragma unroll 1
    while (true) {
#pragma unroll 1
      for (; slice < tile.count; ++slice) {
        barrier_wait(part->barriers.empty + turn.stage, turn.parity ^ 1);
        copy_left(tile, slice, turn.stage);
        copy_right(tile, slice, turn.stage);
        turn.advance(p.stages);
      }
      number += static_cast<int>(gridDim.x);
      if (number >= p.tiles) break;
      tile = tile_of(number);
      slice = 0;
    }
  }

  // Where a lane's words of a fragment begin in a stage, in bytes.
  static __device__ __forceinline__ int place_of_lane(int warpgroup) {
    const int lane = threadIdx.x % 32, row = warpgroup * 64 + threadIdx.x / 32 % 4 * 16;
    if (!TURNED) return (row + lane / 4) * pitch + lane % 4 * 4;
    if (values == 1) return lane % 4 * 2 * pitch + (row + lane / 4) * 4;
    const int matrix =
        lane / 8;  // of 8 x 8 values: two of 8 rows each, then those of greater depth
    return (matrix / 2 * 8 + lane % 8) * pitch + (row + matrix % 2 * 8) * 2;
  }
  static __device__ __forceinline__ void read(uint32_t (&word)[M::planes][4], const char* left,
                                              int step) {
    if constexpr (TURNED && values == 2) {
      load_matrices_turned(word[0], reinterpret_cast<const uint32_t*>(left + step * 16 * pitch));
    } else {
      constexpr int to_half = TURNED ? pitch : 16, to_rows = TURNED ? 32 : 8 * pitch,
                    to_step = TURNED ? 8 * pitch : 32;
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        packed[i] = *reinterpret_cast<const uint32_t*>(left + step * to_step + i / 2 * to_half +
                                                       i % 2 * to_rows);
      unpack_four<M>(packed, word);
    }
  }

  __device__ __forceinline__ void consume() const {
    // The same for all lanes, which the compiler should know.
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x - 128) / 128, 0);
    float sums[1][T::columns / 2], total[cuts ? T::columns / 2 : 1];
    uint32_t fragments[2][M::planes][4];
    const int place = place_of_lane(warpgroup);
    Turn turn;
#pragma unroll 1
    for (int number = static_cast<int>(blockIdx.x); number < p.tiles;
         number += static_cast<int>(gridDim.x)) {
      const Tile tile = tile_of(number);
#pragma unroll
      for (int i = 0; i < T::columns / 2; ++i) {
        sums[0][i] = 0;
        if constexpr (cuts) total[i] = 0;
      }
      wgmma_hold(sums[0]);
      int before = -1;
#pragma unroll 1
      for (int slice = 0; slice < tile.count; ++slice) {
        barrier_wait(part->barriers.full + turn.stage, turn.parity);
        const char* const stage = stages + turn.stage * stage_bytes;
        const Operand right(stage + left_bytes, 16 * T::columns, plane_bytes);
#pragma unroll
        for (int step = 0; step < kProductSteps; ++step) {
          // The products of what was here before are over.
          wgmma_wait<1>();
          auto& fragment = fragments[step % 2];
          read(fragment, stage + place, step);
#pragma unroll
          for (int plane = 0; plane < M::planes; ++plane) wgmma_hold(fragment[plane]);
          wgmma_fence();
          M::multiply(sums, fragment, right.step(step));
          wgmma_commit();
          if (step == 1) give_back(part->barriers.empty, before);
        }
        if constexpr (cuts) {
          wgmma_wait<0>();
          wgmma_hold(sums[0]);
          give_back(part->barriers.empty, turn.stage);
          end_chain(total, sums[0]);
          wgmma_hold(sums[0]);
        } else {
          before = turn.stage;
        }
        turn.advance(p.stages);
      }
      if constexpr (cuts) {
        store(total, tile, warpgroup);
      } else {
        wgmma_wait<0>();
        wgmma_hold(sums[0]);
        give_back(part->barriers.empty, before);
        store(sums[0], tile, warpgroup);
      }
    }
  }

  __device__ __forceinline__ void store(const float (&sums)[T::columns / 2], const Tile& tile,
                                        int warpgroup) const {
    const int lane = threadIdx.x % 32, row = tile.row_block * T::rows + warpgroup * 64 +
                                             static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;
    const int64_t column = int64_t{tile.column_block} * T::columns + lane % 4 * 2;
    const auto left = static_cast<int>(p.columns - column);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row + h * 8 >= p.rows) continue;
      const int64_t of_group = int64_t{tile.group} * p.rows + row + h * 8;
      if (p.output != nullptr) {
        auto* const to = static_cast<Element*>(p.output) + of_group * p.pitch + column;
#pragma unroll
        for (int i = 0; i < T::columns / 8; ++i)
          if (i * 8 < left) M::store_pair(to + i * 8, sums[i * 4 + h * 2], sums[i * 4 + h * 2 + 1]);
      } else {
        float* const to = p.parts + (tile.split * p.groups * p.rows + of_group) * p.pitch + column;
#pragma unroll
        for (int i = 0; i < T::columns / 8; ++i)
          if (i * 8 < left)
            Fp32::store_pair(to + i * 8, sums[i * 4 + h * 2], sums[i * 4 + h * 2 + 1]);
      }
    }
  }
};

template <class M, class T, bool TURNED>
__global__ void __launch_bounds__(T::threads, 1)
    product_kernel(const __grid_constant__ ProductParams p) {
  let_next_kernel_begin();
  FASTCONV1D_SHARED(memory);
  const ProductBlock<M, T, TURNED> block(p, memory);
  block.init();
  __syncthreads();
  if (threadIdx.x < 128) {
    keep_registers<T::producer_registers>();
    if (threadIdx.x == 0) block.produce();
  } else {
    take_registers<T::consumer_registers>();
    block.consume();
  }
}

// How a product is cut.
struct ProductCut {
  int64_t groups, rows, columns, depth;  // rows, columns and depth of a group
  int64_t row_blocks, column_blocks, slices, splits;
  int64_t right_pieces, right_bytes;  // of 4 words of a column, whose planes count once
};

template <class M, class T>
struct Product {
  static constexpr int64_t slice_depth = kProductWords * M::values_per_word;

  // `most`: splits, or fewer.
  static ProductCut cut(int64_t groups, int64_t rows, int64_t columns, int64_t depth,
                        int64_t multiprocessors, int64_t most) {
    ProductCut c{groups, rows, columns, depth};
    c.row_blocks = ceil_div(rows, T::rows);
    c.column_blocks = ceil_div(columns, T::columns);
    c.slices = ceil_div(depth, slice_depth);
    c.splits =
        product_splits(groups * c.row_blocks * c.column_blocks, c.slices, multiprocessors, most);
    c.right_pieces = groups * c.column_blocks * c.slices * kProductPieces * T::columns;
    c.right_bytes = 16 * M::planes * c.right_pieces;
    return c;
  }

  // `lines` of the left matrix lie `line` elements apart and have `length` of them; all groups' one after the other.
  template <bool TURNED>
  static int launch(ProductParams& p, const ProductCut& c, const void* left, int64_t lines,
                    int64_t length, int64_t line, int64_t multiprocessors, void* stream) {
    using Block = ProductBlock<M, T, TURNED>;
    constexpr int64_t size = sizeof(typename M::Element);
    if (const int error = make_box_map(&p.left, size, left, length, lines, line * size,
                                       Block::box_columns, Block::box_rows, M::boxes))
      return error;
    p.rows = c.rows;
    p.columns = c.columns;
    p.depth = c.depth;
    p.row_blocks = c.row_blocks;
    p.column_blocks = c.column_blocks;
    p.groups = c.groups;
    p.splits = c.splits;
    p.slices = c.slices;
    p.stages = static_cast<int>(
        smaller(kProductStages, (shared_budget(1) - kProductBarrierBytes) / Block::stage_bytes));
    const int64_t bytes = kProductBarrierBytes + p.stages * Block::stage_bytes,
                  tiles = c.groups * c.row_blocks * c.column_blocks * c.splits;
    if (tiles > INT32_MAX - multiprocessors) return 1;  // cudaErrorInvalidValue
    p.tiles = static_cast<int>(tiles);
    if (const int error = set_shared_limit(product_kernel<M, T, TURNED>, bytes)) return error;
    return launch_early(true, product_kernel<M, T, TURNED>,
                        dim3(static_cast<unsigned>(smaller(tiles, multiprocessors))),
                        dim3(T::threads), bytes, stream, p);
  }
};

}  // namespace fastconv1d
