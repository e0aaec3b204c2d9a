// What a mode of arithmetic is: how values become words of the tensor cores, how these multiply, and
// how sums become values again.
#pragma once
#include "device.cuh"

namespace fastconv1d {

// An operand of wgmma in one or two planes of shared memory.
struct Operand {
  uint64_t descriptor;
  uint32_t step_bytes, plane_bytes;
  __device__ __forceinline__ Operand(const char* shared, uint32_t half_bytes, uint32_t plane_bytes)
      : descriptor(wgmma_operand(shared, half_bytes)),
        step_bytes(2 * half_bytes),
        plane_bytes(plane_bytes) {}
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
  static constexpr int planes = 1, products = 1, values_per_word = 1, chain = 0;
  static constexpr bool keeps_places = true;
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[1]) {
    word[0] = round_tf32(v[0]);
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
  static __device__ __forceinline__ void multiply(float (&d)[SUMS], const Operand& a,
                                                  const Operand& b) {
    wgmma_tf32(d, a.plane(0), b.plane(0));
  }
};

// fp32-accurate. The tensor cores truncate where they accumulate, so chains are cut after 6 steps
// (48 products) and added up in ordinary fp32 registers.
struct Ieee : Fp32 {
  static constexpr int planes = 2, products = 3, values_per_word = 1, chain = 6;
  static constexpr bool keeps_places = false;
  static __device__ __forceinline__ void split(const Element (&v)[1], uint32_t (&word)[2]) {
    // A NaN survives in the low part, which the tensor cores truncate.
    const float high = nearest_tf32(v[0]);
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
  static __device__ __forceinline__ void multiply(float (&d)[SUMS], const Operand& a,
                                                  const Operand& b) {
#pragma unroll
    for (int product = 0; product < products; ++product)
      wgmma_tf32(d, a.plane(product == 0), b.plane(product == 1));
  }
};

struct Half16 {
  using Element = uint16_t;
  static constexpr int planes = 1, products = 1, values_per_word = 2, chain = 0;
  static constexpr bool keeps_places = false;
  static __device__ __forceinline__ void split(const Element (&v)[2], uint32_t (&word)[1]) {
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
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_bf16(d, a[0], b[0][0], b[0][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[SUMS], const Operand& a,
                                                  const Operand& b) {
    wgmma_bf16(d, a.plane(0), b.plane(0));
  }
  static __device__ __forceinline__ float from(Element x) { return bf16_to_float(x); }
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
  static __device__ __forceinline__ void multiply(int, float (&d)[4], const uint32_t (&a)[1][4],
                                                  const uint32_t (&b)[1][2]) {
    mma_fp16(d, a[0], b[0][0], b[0][1]);
  }
  template <int SUMS>
  static __device__ __forceinline__ void multiply(float (&d)[SUMS], const Operand& a,
                                                  const Operand& b) {
    wgmma_fp16(d, a.plane(0), b.plane(0));
  }
  static __device__ __forceinline__ float from(Element x) { return fp16_to_float(x); }
  static __device__ __forceinline__ Element to(float x) { return float_to_fp16(x); }
  static __device__ __forceinline__ void store_pair(void* to, float first, float second) {
    *static_cast<uint32_t*>(to) = pack({float_to_fp16(first), float_to_fp16(second)});
  }
  static __device__ __forceinline__ void store(Element* to, const float (&sum)[4], bool exists) {
    store_words(to, pack({float_to_fp16(sum[0]), float_to_fp16(sum[1])}),
                pack({float_to_fp16(sum[2]), float_to_fp16(sum[3])}), exists);
  }
};

}  // namespace fastconv1d
