// Rows that begin at any element, read and written 16 bytes at a time.
#pragma once
#include "device.cuh"
#include "schedule.h"

namespace fastconv1d {

// Divides numbers below 2^31 by one that the launcher knows.
struct Divisor {
  uint32_t by, factor, shift;
  explicit Divisor(int64_t divisor)
      : by(static_cast<uint32_t>(divisor)), factor(0), shift(31 + log2_of(2 * divisor - 1)) {
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ int quotient(uint32_t number) const {
    return static_cast<int>((static_cast<uint64_t>(number) * factor) >> shift);
  }
};

// Whether taps see neighbouring positions, if there are several.
inline bool has_neighbours(const ConvArgs& a) { return a.dilation == 1 || a.kernel_size == 1; }

// The values of WORDS words, which begin `off` bytes behind these where it is no multiple of 4.
template <class M, int WORDS>
__device__ __forceinline__ void unpack_words(const uint32_t* word, int off, float* value) {
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    if constexpr (sizeof(typename M::Element) == 4) {
      value[i] = float_of(word[i]);
    } else {
      const float2 both = M::pair(shifted_right(word[i], word[i + 1], off % 4 * 8));
      value[2 * i] = both.x;
      value[2 * i + 1] = both.y;
    }
  }
}

// Has two pieces' words begin where values do that begin `off` bytes behind the first piece; 16-bit ones within a word.
__device__ __forceinline__ void shift_words(uint32_t (&word)[8], int off) {
#pragma unroll
  for (int i = 0; i < 6; ++i) word[i] = off & 8 ? word[i + 2] : word[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) word[i] = off & 4 ? word[i + 1] : word[i];
}

// A row's values from some position on, read and used piece by piece: 16 bytes each, so many of them on their way.
// There are zeros beside the row.
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
    shift_words(word, off);
    unpack_words<M, 4>(word, off, value);
  }
};

// The values of so many pieces of a row, from some position on, all read at once. They may begin within a piece if they
// are SHIFTED. Far from the row's ends, where most are, nothing is asked of each piece; elsewhere what is beside the row
// counts as zeros once they are settled.
template <class M, int PIECES, bool SHIFTED>
struct Span {
  using Element = typename M::Element;
  static constexpr int of_piece = 16 / sizeof(Element), of_word = 4 / sizeof(Element);
  static constexpr int pieces = PIECES + SHIFTED;
  int position;  // of the first piece, in the row
  int off;       // bytes by which values begin behind it
  uint4 piece[pieces];

  Span() = default;
  __device__ __forceinline__ Span(const Element* row, int length, int first) {
    const auto from = reinterpret_cast<uint64_t>(row + first);
    off = SHIFTED ? static_cast<int>(from & 15) : 0;
    position = first - off / static_cast<int>(sizeof(Element));
    const auto* const at = reinterpret_cast<const uint4*>(from - off);
    if (inside(length)) {
#pragma unroll
      for (int i = 0; i < pieces; ++i) piece[i] = __ldg(at + i);
    } else {
#pragma unroll
      for (int i = 0; i < pieces; ++i) {
        const int behind = position + i * of_piece;
        piece[i] = make_uint4(0, 0, 0, 0);
        if (behind > -of_piece && behind < length) piece[i] = __ldg(at + i);
      }
    }
  }

  __device__ __forceinline__ bool inside(int length) const {
    return position >= 0 && position + pieces * of_piece <= length;
  }

  // Clears what is beside the row, before values are unpacked.
  __device__ __forceinline__ void settle(int length) {
    if (inside(length)) return;
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      uint32_t word[4] = {piece[i].x, piece[i].y, piece[i].z, piece[i].w};
#pragma unroll
      for (int k = 0; k < of_piece; ++k) {
        const int at = position + i * of_piece + k;
        if (at < 0 || at >= length)
          word[k / of_word] &= of_word == 1 ? 0 : k % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
      }
      piece[i] = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }

  // The values of COUNT pieces from the FIRST on.
  template <int FIRST, int COUNT>
  __device__ __forceinline__ void unpack(float* value) const {
    constexpr int words = 4 * (COUNT + SHIFTED);
    uint32_t word[4 * COUNT + 4];
#pragma unroll
    for (int i = 0; i < COUNT + SHIFTED; ++i) {
      word[4 * i] = piece[FIRST + i].x;
      word[4 * i + 1] = piece[FIRST + i].y;
      word[4 * i + 2] = piece[FIRST + i].z;
      word[4 * i + 3] = piece[FIRST + i].w;
    }
    if constexpr (SHIFTED) {
      const auto shift = [&] {
        if (off & 8) {
#pragma unroll
          for (int i = 0; i + 2 < words; ++i) word[i] = word[i + 2];
        }
        if (off & 4) {
#pragma unroll
          for (int i = 0; i + 1 < words; ++i) word[i] = word[i + 1];
        }
      };
      // Two values a word are shifted within it as well: there a branch is worth its while.
      if (of_word == 1 || off != 0) shift();
    }
    unpack_words<M, 4 * COUNT>(word, off, value);
  }
  __device__ __forceinline__ void values(float* value, int length) const {
    Span settled = *this;
    settled.settle(length);
    settled.template unpack<0, PIECES>(value);
  }
};

// The words of the values that unpack_words makes of them.
template <class M, int WORDS>
__device__ __forceinline__ void pack_words(const float* value, uint32_t* word) {
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    if constexpr (sizeof(typename M::Element) == 4)
      word[i] = bits_of(value[i]);
    else
      word[i] = M::pack({M::to(value[2 * i]), M::to(value[2 * i + 1])});
  }
}

// Writes packed values of a row, from its position `first` on, whose place is `out`, a multiple of 16 bytes. Pieces that
// share a sector of memory's are written one right after the other: apart, each takes as long as a whole one.
template <class M, int WORDS>
__device__ __forceinline__ void write_words(const uint32_t (&word)[WORDS], typename M::Element* out,
                                            int first, int length) {
  using Element = typename M::Element;
  constexpr int of_word = 4 / sizeof(Element), count = WORDS * of_word;
  if (first >= 0 && first + count <= length) {
#pragma unroll
    for (int i = 0; i < WORDS; i += 4)
      store_16(out + i * of_word, make_uint4(word[i], word[i + 1], word[i + 2], word[i + 3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (first + i < 0 || first + i >= length) continue;
    if constexpr (of_word == 1)
      out[i] = float_of(word[i]);
    else
      out[i] = static_cast<Element>(word[i / 2] >> i % 2 * 16);
  }
}

// Writes `value(i)` for COUNT positions of a row, from its position `first` on, whose place is `out`.
template <class M, int COUNT, class Value>
__device__ __forceinline__ void write_row(const Value& value, typename M::Element* out, int first,
                                          int length) {
  constexpr int of_piece = 16 / sizeof(typename M::Element);
  if (first >= 0 && first + COUNT <= length && reinterpret_cast<uint64_t>(out) % 16 == 0) {
#pragma unroll
    for (int piece = 0; piece < COUNT; piece += of_piece) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = piece + i * of_piece / 4;
        if constexpr (of_piece == 4)
          word[i] = bits_of(value(at));
        else
          word[i] = M::pack({M::to(value(at)), M::to(value(at + 1))});
      }
      store_16(out + piece, make_uint4(word[0], word[1], word[2], word[3]));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
    if (first + i >= 0 && first + i < length) out[i] = M::to(value(i));
}

}  // namespace fastconv1d
