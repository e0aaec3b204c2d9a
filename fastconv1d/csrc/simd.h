// Vectors of the CPU, from compiler extensions alone: one source for AVX-512, AVX2, NEON and plain code.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastconv1d {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kVectorRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int kVectorBytes = 16, kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16, kVectorRegisters = 16;
#endif

template <class Value, int BYTES>
struct VectorOf {
  typedef Value type __attribute__((vector_size(BYTES)));
};
template <class Value, int BYTES = kVectorBytes>
using Vector = typename VectorOf<Value, BYTES>::type;
template <class Value>
constexpr int kLanes = kVectorBytes / sizeof(Value);

template <class Value>
inline Vector<Value> load(const Value* from) {
  Vector<Value> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}
template <class Value>
inline void store(Value* to, Vector<Value> vector) {
  std::memcpy(to, &vector, sizeof vector);
}
// Minus zero stays what it is: x - 0 is x.
template <class Value>
inline Vector<Value> broadcast(Value x) {
  return x - Vector<Value>{};
}

// The first `count` values; the rest is zero.
template <class Value>
inline Vector<Value> load_some(const Value* from, int64_t count) {
  Vector<Value> vector{};
  std::memcpy(&vector, from, count * sizeof(Value));
  return vector;
}
// The sum of all lanes, by halves.
template <class Value, int BYTES = kVectorBytes>
inline Value sum_of(Vector<Value, BYTES> vector) {
  if constexpr (BYTES == 2 * sizeof(Value)) {
    return vector[0] + vector[1];
  } else {
    Vector<Value, BYTES / 2> halves[2];
    std::memcpy(halves, &vector, BYTES);
    return sum_of<Value, BYTES / 2>(halves[0] + halves[1]);
  }
}

// Elements of 16 bits; sums of theirs are fp32.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};
template <class Element>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class Element>
using Sum = typename SumOf<Element>::type;

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline void convert(float x, float& to) { to = x; }
inline void convert(double x, double& to) { to = x; }
inline void convert(Bf16 x, float& to) { to = float_of(uint32_t{x.bits} << 16); }
// To nearest, ties to even; a NaN stays one.
inline void convert(float x, Bf16& to) {
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
}

// What products take from either side: a value, of the type of sums, or two of bf16 where the processor adds up their
// two products at once. The first is in the lower half.
template <class Element>
struct WordOf {
  using type = Sum<Element>;
  static constexpr int64_t values = 1;
};
#if defined(__AVX512BF16__)
template <>
struct WordOf<Bf16> {
  using type = uint32_t;
  static constexpr int64_t values = 2;
};
#endif
template <class Element>
using Word = typename WordOf<Element>::type;

inline void convert(Bf16 x, uint32_t& to) { to = x.bits; }
inline void join(Bf16 second, uint32_t& to) { to |= uint32_t{second.bits} << 16; }
inline void convert(Bf16 first, Bf16 second, uint32_t& to) {
  to = first.bits | uint32_t{second.bits} << 16;
}

template <class Vector>
inline void add_product(Vector& sum, Vector one, Vector other) {
  sum += one * other;
}
#if defined(__AVX512BF16__)
// Two steps of a chain, each rounded to nearest; subnormal operands and results count as zero.
inline void add_product(Vector<float>& sum, Vector<uint32_t> one, Vector<uint32_t> other) {
  sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)one, (__m512bh)other);
}
#endif

#if defined(__F16C__) || defined(__AVX512F__)
inline void convert(Fp16 x, float& to) { to = _cvtsh_ss(x.bits); }
inline void convert(float x, Fp16& to) { to.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__ARM_NEON)
inline void convert(Fp16 x, float& to) {
  __fp16 half;
  std::memcpy(&half, &x, sizeof half);
  to = half;
}
inline void convert(float x, Fp16& to) {
  const __fp16 half = x;
  std::memcpy(&to, &half, sizeof half);
}
#else
inline void convert(Fp16 x, float& to) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, rest = x.bits & 0x7fffu;
  // The exponent's bias is 112 larger in fp32; a subnormal is an integer times 2^-24.
  if (rest >= 0x7c00)
    to = float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  else if (rest >= 0x400)
    to = float_of(sign | ((rest << 13) + (112u << 23)));
  else
    to = float_of(sign | bits_of(static_cast<float>(rest) * 0x1p-24f));
}
inline void convert(float x, Fp16& to) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000)
    half = 0x7e00;
  else if (rest >= 0x477ff000)  // 65520 and more round to infinity
    half = 0x7c00;
  else if (rest >= 0x38800000)
    half = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
  else  // an addition rounds to a multiple of 2^-24
    half = bits_of(float_of(rest) + 0.5f) - bits_of(0.5f);
  to.bits = static_cast<uint16_t>(sign | half);
}
#endif

template <class From, class To>
inline void convert(const From* from, To* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) convert(from[i], to[i]);
}
#if defined(__F16C__) || defined(__AVX512F__)
// 8 at a time: compilers make no vectors of the instructions above.
inline void convert(const Fp16* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (; i < count; ++i) convert(from[i], to[i]);
}
inline void convert(const float* from, Fp16* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) convert(from[i], to[i]);
}
#endif

// Elements of 16 bits that a vector of sums is rounded to.
using Narrow = Vector<uint16_t, kVectorBytes / 2>;
template <class To>
inline Narrow narrowed(Vector<float> sums) {
  Narrow narrow;
#if defined(__AVX512BF16__)
  // Subnormal sums become zero, like those of products.
  if constexpr (std::is_same_v<To, Bf16>) return (Narrow)_mm512_cvtneps_pbh((__m512)sums);
#endif
#if defined(__AVX512F__)
  // Without a mask, GCC 12 warns of a value that does not matter.
  if constexpr (std::is_same_v<To, Fp16>)
    return (Narrow)_mm512_maskz_cvtps_ph(0xffff, (__m512)sums, _MM_FROUND_TO_NEAREST_INT);
#endif
  To values[kLanes<float>];
  convert(reinterpret_cast<const float*>(&sums), values, kLanes<float>);
  std::memcpy(&narrow, values, sizeof narrow);
  return narrow;
}

// Stores the first `count` of a vector of sums.
template <class Value, class To>
inline void leave(To* to, Vector<Value> sums, int64_t count) {
  const auto store_first = [&](auto vector) {
    if (count >= kLanes<Value>)
      std::memcpy(to, &vector, sizeof vector);
    else
      std::memcpy(to, &vector, count * sizeof(To));
  };
  if constexpr (sizeof(To) == sizeof(Value))
    store_first(sums);
  else
    store_first(narrowed<To>(sums));
}

}  // namespace fastconv1d
