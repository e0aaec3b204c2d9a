// Rows that begin at any element, read 16 bytes at a time.
#pragma once
#include "device.cuh"

namespace fastconv1d {

// A row's values from some position on, in pieces of 16 bytes that are read some time before they are used;
// zeros beside the row.
template <class M, int PIECES>
struct Stream {
  using Element = typename M::Element;
  static constexpr int of_piece = 16 / sizeof(Element), of_word = 4 / sizeof(Element);
  const uint4* at;       // the next piece to be read
  int position, length;  // of the next piece to be used, in the row; of the row
  int off;               // bytes by which values begin behind a piece
  uint4 ahead[PIECES];   // pieces to be used
  uint32_t before[4];    // the piece before them

  __device__ __forceinline__ Stream(const Element* row, int length, int first) : length(length) {
    const auto from = reinterpret_cast<uint64_t>(row + first);
    off = static_cast<int>(from & 15);
    at = reinterpret_cast<const uint4*>(from - off);
    position = first - off / static_cast<int>(sizeof(Element));
    ahead[0] = read(0);
#pragma unroll
    for (int i = 1; i < PIECES; ++i) ahead[i] = read(i);
  }

  // A piece may be read that has a part of the row.
  __device__ __forceinline__ uint4 read(int pieces_on) {
    const int behind = position + pieces_on * of_piece;
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (behind > -of_piece && behind < length) piece = __ldg(at);
    ++at;
    return piece;
  }

  __device__ __forceinline__ void use(const uint4& piece, uint32_t* word) {
    word[0] = piece.x;
    word[1] = piece.y;
    word[2] = piece.z;
    word[3] = piece.w;
    if (position < 0 || position + of_piece > length) {
#pragma unroll
      for (int i = 0; i < of_piece; ++i)
        if (position + i < 0 || position + i >= length)
          word[i / of_word] &= of_word == 1 ? 0 : i % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
    }
    position += of_piece;
  }

  // The values of the piece before and of this one, from where they begin.
  __device__ __forceinline__ void next(const uint4& piece, float* value) {
    uint32_t word[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = before[i];
    use(piece, word + 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) before[i] = word[i + 4];
#pragma unroll
    for (int i = 0; i < 6; ++i) word[i] = off & 8 ? word[i + 2] : word[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) word[i] = off & 4 ? word[i + 1] : word[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (of_word == 1) {
        value[i] = float_of(word[i]);
      } else {
        const uint32_t both = shifted_right(word[i], word[i + 1], off % 4 * 8);
        value[2 * i] = M::from(static_cast<Element>(both & 0xffff));
        value[2 * i + 1] = M::from(static_cast<Element>(both >> 16));
      }
    }
  }
};

}  // namespace fastconv1d
