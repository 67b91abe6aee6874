// Philox for many counters side by side.
//
// A word lives in the low half of a 64-bit lane, where one instruction multiplies 32 x 32 -> 64 bits;
// compilers do not find that by themselves for 512-bit registers.  High halves hold leftovers, which
// neither the products nor the stored low halves see.
#pragma once

#include "../core/philox.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace occfast {

#if defined(__AVX512F__)

struct Lanes {
  static constexpr int64_t kCount = 8;
  __m512i v;
  static Lanes load(const uint32_t* from) {
    return {_mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static Lanes all(uint32_t value) { return {_mm512_set1_epi64(value)}; }
  void store(uint32_t* to) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(v)); }
};
inline Lanes product(Lanes a, Lanes b) { return {_mm512_mul_epu32(a.v, b.v)}; }
inline Lanes high_xor(Lanes p, Lanes a, Lanes b) {
  return {_mm512_ternarylogic_epi64(_mm512_srli_epi64(p.v, 32), a.v, b.v, 0x96)};
}

#elif defined(__AVX2__)

struct Lanes {
  static constexpr int64_t kCount = 4;
  __m256i v;
  static Lanes load(const uint32_t* from) {
    return {_mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  static Lanes all(uint32_t value) { return {_mm256_set1_epi64x(value)}; }
  void store(uint32_t* to) const {
    const __m256i low = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(low));
  }
};
inline Lanes product(Lanes a, Lanes b) { return {_mm256_mul_epu32(a.v, b.v)}; }
inline Lanes high_xor(Lanes p, Lanes a, Lanes b) {
  return {_mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p.v, 32), a.v), b.v)};
}

#else

struct Lanes {
  static constexpr int64_t kCount = 1;
  uint64_t v;
  static Lanes load(const uint32_t* from) { return {*from}; }
  static Lanes all(uint32_t value) { return {value}; }
  void store(uint32_t* to) const { *to = static_cast<uint32_t>(v); }
};
inline Lanes product(Lanes a, Lanes b) { return {(a.v & 0xFFFFFFFFu) * (b.v & 0xFFFFFFFFu)}; }
inline Lanes high_xor(Lanes p, Lanes a, Lanes b) { return {(p.v >> 32) ^ a.v ^ b.v}; }

#endif

// word[k * count + q] = word k of philox({block[q], rest.y, rest.z, rest.w}, key); count is a multiple
// of Lanes::kCount.
inline void philox_lanes(const uint32_t* block, int64_t count, Words rest, Key key, uint32_t* word) {
  const Lanes m0 = Lanes::all(0xD2511F53u), m1 = Lanes::all(0xCD9E8D57u);
  for (int64_t q = 0; q < count; q += Lanes::kCount) {
    Lanes x = Lanes::load(block + q), y = Lanes::all(rest.y), z = Lanes::all(rest.z), w = Lanes::all(rest.w);
    Key k = key;
    for (int round = 0; round < 10; ++round) {
      const Lanes a = product(m0, x), b = product(m1, z);
      x = high_xor(b, y, Lanes::all(k.low));
      z = high_xor(a, w, Lanes::all(k.high));
      y = b;
      w = a;
      k.low += 0x9E3779B9u;
      k.high += 0xBB67AE85u;
    }
    x.store(word + q);
    y.store(word + count + q);
    z.store(word + 2 * count + q);
    w.store(word + 3 * count + q);
  }
}

} // namespace occfast
