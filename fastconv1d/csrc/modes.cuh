// What a mode of arithmetic is: how values become words of the tensor cores, how these multiply, and
// how sums become values again.
#pragma once
#include "device.cuh"

namespace fastconv1d {

// The right operand of wgmma in one or two planes of shared memory.
struct Operand {
  uint64_t descriptor;
  uint32_t step_bytes, plane_bytes;
  __device__ __forceinline__ Operand(const char* shared, uint32_t half_bytes, uint32_t plane_bytes)
      : descriptor(wgmma_operand(shared, half_bytes)),
        step_bytes(2 * half_bytes),
        plane_bytes(plane_bytes) {}
  // Columns of 128 bytes, as boxes for operands have them.
  static __device__ __forceinline__ Operand swizzled(const char* shared) {
    Operand operand(shared, 16, 0);
    operand.descriptor = wgmma_swizzled_operand(shared);
    return operand;
  }
  // So many bytes further: the address is in the low bits, in pieces of 16.
  __device__ __forceinline__ Operand after(uint32_t bytes) const {
    Operand moved = *this;
    moved.descriptor += bytes / 16;
    return moved;
  }
  // After so many steps of 8 words.
  __device__ __forceinline__ Operand step(int steps) const { return after(steps * step_bytes); }
  __device__ __forceinline__ uint64_t plane(int number) const {
    return after(number * plane_bytes).descriptor;
  }
};

struct Fp32 {
  using Element = float;
  static constexpr BoxForm boxes = BoxForm::plain;  // of a left operand
  static __device__ __forceinline__ float from(Element x) { return x; }
  static __device__ __forceinline__ Element to(float x) { return x; }
  static __device__ __forceinline__ void store_pair(void* to, float first, float second) {
    *static_cast<float2*>(to) = make_float2(first, second);
  }
  // Stores the sums that 4 neighbouring lanes hold of two mma tiles, 16 positions of a row, if that
  // `exists`; `to` is where the lane's own pair of the first tile belongs. All lanes call it.
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    if (!exists) return;
    store_pair(to, sum[0], sum[1]);
    store_pair(to + 8, sum[2], sum[3]);
  }
};

struct Tf32 : Fp32 {
  static constexpr BoxForm boxes = BoxForm::rounded;
  static constexpr int planes = 1, products = 1, values_per_word = 1, chain = 0, sets = 1;
  static constexpr bool keeps_places = true;
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[1]) {
    word[0] = round_tf32(v[0]);
  }
  // The same for wgmma, whose values boxes have rounded.
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[1], float) {
    word[0] = bits_of(v[0]);
  }
  static __device__ __forceinline__ uint32_t pack(const Element (&v)[1]) {
    return round_tf32(v[0]);
  }
  static __device__ __forceinline__ void unpack(uint32_t weight, uint32_t (&word)[1]) {
    word[0] = weight;
  }
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_tf32(d, a[0], b[0][0], b[0][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[1][4],
                                                  const Operand& b) {
    wgmma_tf32(d[0], a[0], b.plane(0));
  }
};

// fp32-accurate. The tensor cores truncate where they accumulate, so chains are cut after 6 steps
// (48 products; toeplitz.cuh after a line's 64) and added up in ordinary fp32 registers.
struct Ieee : Fp32 {
  static constexpr int planes = 2, products = 3, values_per_word = 1, chain = 6;
  static constexpr float most_rounded = 0x1.ffep127f;  // what is less is finite when rounded
  static constexpr bool keeps_places = false;
  // What would be infinite when rounded is cut off instead; a NaN survives in the low part, which the tensor cores
  // truncate. Low parts are multiples of 2^-136, whose subnormal numbers end there: below 2^-113 a value has fewer bits.
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[2]) {
    const uint32_t bits = bits_of(v[0]), half = fabsf(v[0]) < most_rounded ? 0x1000u : 0u;
    const float high = float_of((bits + half) & 0xffffe000u);
    word[0] = bits_of(high);
    word[1] = bits_of(v[0] - high);
  }
  // Weights are split where they are used: their way through L2 and shared memory is the longer one.
  static __device__ __forceinline__ uint32_t pack(const Element (&v)[1]) { return bits_of(v[0]); }
  static __device__ __forceinline__ void unpack(uint32_t weight, uint32_t (&word)[2]) {
    split({float_of(weight)}, word);
  }
  // Products low x high, high x low, high x high: small ones first.
  static __device__ __forceinline__ void multiply(int product, float (&d)[4],
                                                  const uint32_t (&a)[2][4],
                                                  const uint32_t (&b)[2][2]) {
    mma_tf32(d, a[product == 0], b[product == 1][0], b[product == 1][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[2][4],
                                                  const Operand& b) {
    wgmma_tf32(d[0], a[1], b.plane(0));
    wgmma_tf32(d[0], a[0], b.plane(1));
    wgmma_tf32(d[0], a[0], b.plane(0));
  }
};

// fp32-accurate on wgmma: a value is (high + low / 2048) / scale with two fp16 numbers, 22 bits; an fp16
// product takes twice as many values as a TF32 one. Of the products, high x high and the two that have a
// low part are added up apart; the former, which the tensor cores truncate, are cut after 18 steps.
// High and low have all their bits from the smallest normal fp16 number on, 2^-14. Where a tile's sums
// leave no registers for those added up so far, 18 steps are all.
struct Halves : Fp32 {
  static constexpr int planes = 2, products = 3, values_per_word = 2, chain = 18, sets = 2;
  static constexpr float low = 2048;
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[2],
                                               float scale) {
    const float first = v[0] * scale, second = v[1] * scale;
    word[0] = pack_fp16(first, second);
    const float2 high = unpack_fp16(word[0]);
    word[1] = pack_fp16((first - high.x) * low, (second - high.y) * low);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[2][SUMS], const uint32_t (&a)[2][4],
                                                  const Operand& b) {
    wgmma_fp16(d[0], a[0], b.plane(0));
    wgmma_fp16(d[1], a[1], b.plane(0));
    wgmma_fp16(d[1], a[0], b.plane(1));
  }
};

// Powers of two by which fp32 values are scaled for Halves. The largest value is below 2^(e - 126), e the
// exponent as fp32 has it, and below 2^15 after scaling.
struct Scale {
  static constexpr int most = 254;  // exponents, as fp32 has them
  static __device__ __forceinline__ float power_of_two(int exponent) {
    return float_of(static_cast<uint32_t>(exponent + 127) << 23);
  }
  // From one scale to the next for values that are too small for it.
  static constexpr int step = 28;
  static __device__ __forceinline__ int next(int log2) {
    return log2 + step < 126 ? log2 + step : 126;
  }
  // log2 of the scale for values up to those with this exponent.
  static __device__ __forceinline__ int log2_for(int exponent) {
    return exponent < 15 ? 126 : 141 - exponent;
  }
  // The smallest value, as bits of fp32, that has all its bits when scaled so.
  static __device__ __forceinline__ uint32_t least_whole(int log2) {
    return log2 < 113 ? static_cast<uint32_t>(113 - log2) << 23 : 0;
  }
  // So many steps leave sums of the values scaled first within fp32.
  static constexpr int most_steps = 3;
  // Takes a scale away again, in two steps: one factor may be beyond fp32.
  static __device__ __forceinline__ float without(float sum, int log2) {
    const int half = log2 / 2;
    return sum * power_of_two(-half) * power_of_two(half - log2);
  }
};

struct Half16 {
  using Element = uint16_t;
  static constexpr BoxForm boxes = BoxForm::plain;
  static constexpr int planes = 1, products = 1, values_per_word = 2, chain = 0, sets = 1;
  static constexpr bool keeps_places = false;
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[1]) {
    word[0] = pack(v);
  }
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[1], float) {
    word[0] = pack(v);
  }
  static __device__ __forceinline__ uint32_t pack(const Element (&v)[2]) {
    return v[0] | static_cast<uint32_t>(v[1]) << 16;
  }
  static __device__ __forceinline__ void unpack(uint32_t weight, uint32_t (&word)[1]) {
    word[0] = weight;
  }
  // As `store` of the fp32 modes. Even lanes give their word of the second tile for their neighbour's
  // of the first, so that each lane writes 8 bytes and all four 32 neighbouring ones.
  static __device__ __forceinline__ void store_words(Element* to, uint32_t first, uint32_t second,
                                                     bool exists) {
    const bool odd = threadIdx.x % 2 != 0;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    if (exists)
      *reinterpret_cast<uint2*>(to + (odd ? 6 : 0)) =
          make_uint2(odd ? other : first, odd ? second : other);
  }
};

struct Bf16 : Half16 {
  static constexpr uint32_t one = 0x3f80, exponent = 0x7f80;  // bits: of 1, and all of an exponent
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_bf16(d, a[0], b[0][0], b[0][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[1][4],
                                                  const Operand& b) {
    wgmma_bf16(d[0], a[0], b.plane(0));
  }
  // `b`: a turned operand.
  template <int SUMS>
  static __device__ __forceinline__ void multiply_turned(float (&d)[SUMS], const uint32_t (&a)[4],
                                                         uint64_t b) {
    wgmma_bf16_turned(d, a, b);
  }
  static __device__ __forceinline__ float from(Element x) { return bf16_to_float(x); }
  static __device__ __forceinline__ float2 pair(uint32_t word) {
    return make_float2(float_of(word << 16), float_of(word & 0xffff0000u));
  }
  static __device__ __forceinline__ Element to(float x) { return float_to_bf16(x); }
  static __device__ __forceinline__ void store_pair(void* to, float first, float second) {
    *static_cast<uint32_t*>(to) = pack({float_to_bf16(first), float_to_bf16(second)});
  }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    store_words(to, pack({float_to_bf16(sum[0]), float_to_bf16(sum[1])}),
                pack({float_to_bf16(sum[2]), float_to_bf16(sum[3])}), exists);
  }
};

struct Fp16 : Half16 {
  static constexpr uint32_t one = 0x3c00, exponent = 0x7c00;  // as those of Bf16
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_fp16(d, a[0], b[0][0], b[0][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[1][SUMS], const uint32_t (&a)[1][4],
                                                  const Operand& b) {
    wgmma_fp16(d[0], a[0], b.plane(0));
  }
  // `b`: a turned operand.
  template <int SUMS>
  static __device__ __forceinline__ void multiply_turned(float (&d)[SUMS], const uint32_t (&a)[4],
                                                         uint64_t b) {
    wgmma_fp16_turned(d, a, b);
  }
  static __device__ __forceinline__ float from(Element x) { return fp16_to_float(x); }
  static __device__ __forceinline__ float2 pair(uint32_t word) { return unpack_fp16(word); }
  static __device__ __forceinline__ Element to(float x) { return float_to_fp16(x); }
  static __device__ __forceinline__ void store_pair(void* to, float first, float second) {
    *static_cast<uint32_t*>(to) = pack({float_to_fp16(first), float_to_fp16(second)});
  }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    store_words(to, pack({float_to_fp16(sum[0]), float_to_fp16(sum[1])}),
                pack({float_to_fp16(sum[2]), float_to_fp16(sum[3])}), exists);
  }
};

// What four words are in each plane.
template <class M>
__device__ __forceinline__ void unpack_four(const uint32_t (&word)[4],
                                            uint32_t (&of_plane)[M::planes][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t planes[M::planes];
    M::unpack(word[i], planes);
#pragma unroll
    for (int plane = 0; plane < M::planes; ++plane) of_plane[plane][i] = planes[plane];
  }
}

// Adds up sums of a chain of products apart, which begins anew.
template <int COUNT>
__device__ __forceinline__ void end_chain(float (&sum)[COUNT], float (&of_chain)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    sum[i] += of_chain[i];
    of_chain[i] = 0;
  }
}

}  // namespace fastconv1d
