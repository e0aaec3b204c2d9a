// Products of bf16 by a processor's tile registers (AMX): 16 rows of weights by 16 positions, each of 16 words.
//
//   sums (16 rows x 16 positions)  +=  weights [row][16 words of channels]  x  input [16 words of channels][position]
//
// The input's words lie in a convolution's tile as its taps see them, one channel's row behind the other, so that a
// tap is an address. Weights are packed as [16 rows][16 words] for each tap. Two by two registers of sums take two of
// either operand.
#pragma once
#include "phases.h"
#include "simd.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define FASTCONV1D_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastconv1d {

constexpr int64_t kSide = 16;             // rows, words and positions of a register
constexpr int64_t kTileRows = 2 * kSide;  // of a block
constexpr int64_t kTileSums = kTileRows * kTileRows;

// What a block multiplies: so many chunks of channels' words by all that taps see.
struct TileFactors {
  const uint32_t* input;  // of the first channel
  int64_t input_pitch, chunks;
  const int64_t* places;  // of the taps that see something
  int64_t taps;
  const uint32_t* weight;                   // of the first of these
  int64_t chunk_weights, register_weights;  // from one chunk, and one register's rows, to the next
};

#ifdef FASTCONV1D_AMX

// Whether the system lets this process have them.
inline bool has_tiles() {
  static const bool has = [] {
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return has;
}

// GCC's intrinsics do not say what they read: all that was written before is in memory then.
inline void write_all() { __asm__ volatile("" ::: "memory"); }

// While it lives, the thread's tile registers have 16 rows of 64 bytes each.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = kSide;
    }
    write_all();
    _tile_loadconfig(&config);
    write_all();  // not before it what may lie in its place
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// Sums of ROWS registers of rows by COLUMNS of positions, 1 or 2: those from `first` and from `second` on. They are
// [row][position].
template <int ROWS, int COLUMNS>
inline void multiply_tiles(const TileFactors& f, int64_t first, int64_t second, float* sums) {
  constexpr int64_t sums_pitch = kTileRows * sizeof(float);
  write_all();
  const int64_t input_bytes = f.input_pitch * static_cast<int64_t>(sizeof(uint32_t));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t chunk = 0; chunk < f.chunks; ++chunk) {
    const uint32_t* const rows = f.input + chunk * kSide * f.input_pitch;
    const uint32_t* weight = f.weight + chunk * f.chunk_weights;
    for (int64_t t = 0; t < f.taps; ++t, weight += kSide * kSide) {
      const uint32_t* const from = rows + f.places[t];
      _tile_loadd(4, weight, 64);
      _tile_loadd(6, from + first, input_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (COLUMNS > 1) {
        _tile_loadd(7, from + second, input_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (ROWS > 1) {
        _tile_loadd(5, weight + f.register_weights, 64);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (COLUMNS > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, sums_pitch);
  if constexpr (COLUMNS > 1) _tile_stored(1, sums + kSide, sums_pitch);
  if constexpr (ROWS > 1) {
    _tile_stored(2, sums + kSide * kTileRows, sums_pitch);
    if constexpr (COLUMNS > 1) _tile_stored(3, sums + kSide * kTileRows + kSide, sums_pitch);
  }
}

#else

inline bool has_tiles() { return false; }
class TileRegisters {};
template <int ROWS, int COLUMNS>
inline void multiply_tiles(const TileFactors&, int64_t, int64_t, float*) {}

#endif

// A block's rows, all of `count` positions, biases added.
template <class To>
inline void multiply_tile_rows(int64_t rows, const TileFactors& f, const float* bias, int64_t count,
                               float* sums, To* out, int64_t out_pitch) {
  // A row's last vector ends where its positions do.
  const int64_t last = larger(0, count - kSide);
  for (int64_t q = 0; q < count; q += kTileRows) {
    const int64_t first = smaller(q, last), second = smaller(q + kSide, last);
    const bool two_rows = rows > kSide, two_columns = second > first;
    if (two_rows && two_columns)
      multiply_tiles<2, 2>(f, first, second, sums);
    else if (two_rows)
      multiply_tiles<2, 1>(f, first, second, sums);
    else if (two_columns)
      multiply_tiles<1, 2>(f, first, second, sums);
    else
      multiply_tiles<1, 1>(f, first, second, sums);
    for (int64_t m = 0; m < rows; ++m) {
      To* const to = out + m * out_pitch;
      const auto leave_vector = [&](const float* from, int64_t at) {
        for (int64_t i = 0; i < kSide; i += kLanes<float>)
          leave<float>(to + at + i, load(from + i) + broadcast(bias[m]), count - at - i);
      };
      leave_vector(sums + m * kTileRows, first);
      if (two_columns) leave_vector(sums + m * kTileRows + kSide, second);
    }
  }
}

}  // namespace fastconv1d
