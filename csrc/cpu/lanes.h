// Eight vector registers of floats or of words as one value, for the templates of core/noise.h.
//
// A polynomial is a chain of products and sums, each of which waits for the one before. A step of the chain takes
// six cycles, in which the units of a core start 24 operations, so eight registers are processed at a time.
#pragma once

#include <type_traits>

#include "../core/noise.h"
#include "vector.h"

namespace occfast {

constexpr int64_t kLanes = kLanesOf<float>;         // floats, or words, of a register
constexpr int kRegisters = 8;                       // of a pack
constexpr int64_t kQuads = kRegisters * kLanes / 4; // counters of a pack: four words each

using FloatLanes = Vector<float>;
using WordLanes = Vector<uint32_t>;
using MaskLanes = Vector<int32_t>;

template <class V, int N> struct Pack {
  V v[N];
  Pack() = default;
  template <class S> explicit Pack(S all) {
    for (V& one : v) one = V{} + all;
  }
};
template <int N> using Floats = Pack<FloatLanes, N>;
template <int N> using PackedWords = Pack<WordLanes, N>;
template <int N> using Mask = Pack<MaskLanes, N>;

// A pack whose register k is operation(register k of x, ...).
template <class V, class Operation, int N, class... P>
OCCFAST_HD Pack<V, N> each(Operation operation, const Pack<P, N>&... x) {
  Pack<V, N> out;
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) out.v[k] = operation(x.v[k]...);
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
  // Keeps GCC from scheduling the chains one after the other.
  if constexpr (!std::is_same_v<V, MaskLanes>) {
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) asm("" : "+v"(out.v[k]));
  }
#endif
  return out;
}

#define OCCFAST_LANES(V, R, name)                                                                                 \
  template <int N> OCCFAST_HD Pack<R, N> operator name(const Pack<V, N>& x, const Pack<V, N>& y) {                \
    return each<R>([](V u, V v) { return (R)(u name v); }, x, y);                                                 \
  }                                                                                                               \
  template <int N> OCCFAST_HD Pack<R, N> operator name(const Pack<V, N>& x, decltype(V{}[0] + 0) y) {             \
    return each<R>([y](V u) { return (R)(u name y); }, x);                                                        \
  }
OCCFAST_LANES(FloatLanes, FloatLanes, +)
OCCFAST_LANES(FloatLanes, FloatLanes, -)
OCCFAST_LANES(FloatLanes, FloatLanes, *)
OCCFAST_LANES(FloatLanes, MaskLanes, <)
OCCFAST_LANES(WordLanes, WordLanes, +)
OCCFAST_LANES(WordLanes, WordLanes, &)
OCCFAST_LANES(WordLanes, WordLanes, ^)
OCCFAST_LANES(WordLanes, WordLanes, >>)
OCCFAST_LANES(WordLanes, WordLanes, <<)
#undef OCCFAST_LANES

template <int N> OCCFAST_HD Floats<N> operator-(float x, const Floats<N>& y) {
  return each<FloatLanes>([x](FloatLanes v) { return x - v; }, y);
}
template <int N> OCCFAST_HD Floats<N> operator-(const Floats<N>& x) {
  return each<FloatLanes>([](FloatLanes v) { return -v; }, x);
}
template <int N> OCCFAST_HD PackedWords<N> to_bits(const Floats<N>& x) {
  return each<WordLanes>([](FloatLanes v) { return (WordLanes)v; }, x);
}
template <int N> OCCFAST_HD Floats<N> from_bits(const PackedWords<N>& x) {
  return each<FloatLanes>([](WordLanes v) { return (FloatLanes)v; }, x);
}
template <int N> OCCFAST_HD Floats<N> number(const PackedWords<N>& x) {
  return each<FloatLanes>([](WordLanes v) { return __builtin_convertvector((MaskLanes)v, FloatLanes); }, x);
}
template <int N> OCCFAST_HD Floats<N> select(const Mask<N>& where, const Floats<N>& x, float y) {
  return each<FloatLanes>([y](MaskLanes m, FloatLanes v) { return m ? v : FloatLanes{} + y; }, where, x);
}
template <int N> OCCFAST_HD Floats<N> larger(const Floats<N>& x, float y) {
  return each<FloatLanes>([y](FloatLanes v) { return v > y ? v : FloatLanes{} + y; }, x);
}
template <int N> OCCFAST_HD Floats<N> smaller(const Floats<N>& x, float y) {
  return each<FloatLanes>([y](FloatLanes v) { return v < y ? v : FloatLanes{} + y; }, x);
}
template <int N> OCCFAST_HD Floats<N> square_root(Floats<N> x) {
  float value[N * kLanes];
  std::memcpy(value, &x, sizeof value);
  for (float& v : value) v = std::sqrt(v);
  std::memcpy(&x, value, sizeof value);
  return x;
}
// 0, 1, 2, ...
OCCFAST_HD WordLanes counting() {
  WordLanes v;
  for (int64_t k = 0; k < kLanes; ++k) v[k] = static_cast<uint32_t>(k);
  return v;
}
OCCFAST_HD bool any(MaskLanes m) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)m) != 0;
#else
  uint64_t halves[2];
  std::memcpy(halves, &m, sizeof halves);
  return (halves[0] | halves[1]) != 0;
#endif
}

// One normal in 148 lies in the tail. The root and the polynomial of the tail are computed only for registers
// that contain one.
template <int N> OCCFAST_HD Floats<N> normal_ratio(const Floats<N>& w) {
  Floats<N> value = normal_center(w);
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) {
    const MaskLanes tail = w.v[k] >= kTail;
    if (!any(tail)) continue;
    Floats<1> one;
    one.v[0] = w.v[k];
    value.v[k] = tail ? normal_tail(one).v[0] : value.v[k];
  }
  return value;
}

template <int N> OCCFAST_HD void store(const Floats<N>& x, float* to) {
  for (int k = 0; k < N; ++k) std::memcpy(to + k * kLanes, &x.v[k], kRegisterBytes);
}

// -- Philox --------------------------------------------------------------------------------------------
//
// A word occupies the low half of a 64-bit lane, where one instruction multiplies 32 x 32 -> 64 bits. Compilers
// do not find this for 512-bit registers. The high halves hold leftovers, which neither the products nor the
// interleaving at the end read.

#if defined(__AVX512F__)

using Wide = __m512i;
OCCFAST_HD Wide wide_of(uint64_t value) { return _mm512_set1_epi64(static_cast<int64_t>(value)); }
OCCFAST_HD Wide product(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
OCCFAST_HD Wide high(Wide a) { return _mm512_srli_epi64(a, 32); }
OCCFAST_HD Wide xor3(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
OCCFAST_HD Wide load_blocks(const uint32_t* offset, uint32_t first) {
  const Wide order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
  return _mm512_permutexvar_epi32(
      order, _mm512_add_epi32(_mm512_loadu_si512(offset), _mm512_set1_epi32(static_cast<int>(first))));
}
OCCFAST_HD Wide pairs(Wide a, Wide b) { return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_CCAA); }
OCCFAST_HD WordLanes quads_low(Wide a, Wide b) { return (WordLanes)_mm512_unpacklo_epi64(a, b); }
OCCFAST_HD WordLanes quads_high(Wide a, Wide b) { return (WordLanes)_mm512_unpackhi_epi64(a, b); }

#elif defined(__AVX2__)

using Wide = __m256i;
OCCFAST_HD Wide wide_of(uint64_t value) { return _mm256_set1_epi64x(static_cast<int64_t>(value)); }
OCCFAST_HD Wide product(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
OCCFAST_HD Wide high(Wide a) { return _mm256_srli_epi64(a, 32); }
OCCFAST_HD Wide xor3(Wide a, Wide b, Wide c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
OCCFAST_HD Wide load_blocks(const uint32_t* offset, uint32_t first) {
  const Wide order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
  const Wide loaded = _mm256_loadu_si256(reinterpret_cast<const Wide*>(offset));
  return _mm256_permutevar8x32_epi32(_mm256_add_epi32(loaded, _mm256_set1_epi32(static_cast<int>(first))), order);
}
OCCFAST_HD Wide pairs(Wide a, Wide b) { return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA); }
OCCFAST_HD WordLanes quads_low(Wide a, Wide b) { return (WordLanes)_mm256_unpacklo_epi64(a, b); }
OCCFAST_HD WordLanes quads_high(Wide a, Wide b) { return (WordLanes)_mm256_unpackhi_epi64(a, b); }

#endif

// Lane 4 q + k is word k of philox({first.x + offset[q], first.y, first.z, first.w}, key), for kQuads offsets.
OCCFAST_HD PackedWords<kRegisters> philox_pack(const uint32_t* offset, Words first, Key key) {
  PackedWords<kRegisters> out;
#if defined(__AVX512F__) || defined(__AVX2__)
  constexpr int kWides = kRegisters / 2;
  // The blocks are loaded in the order that the interleaving at the end undoes.
  const Wide m0 = wide_of(0xD2511F53u), m1 = wide_of(0xCD9E8D57u);
  Wide x[kWides], y[kWides], z[kWides], w[kWides];
#pragma GCC unroll 8
  for (int k = 0; k < kWides; k += 2) {
    x[k] = load_blocks(offset + k * kRegisterBytes / 8, first.x);
    x[k + 1] = high(x[k]);
  }
#pragma GCC unroll 8
  for (int k = 0; k < kWides; ++k) y[k] = wide_of(first.y), z[k] = wide_of(first.z), w[k] = wide_of(first.w);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Wide low = wide_of(key.low), top = wide_of(key.high);
#pragma GCC unroll 8
    for (int k = 0; k < kWides; ++k) {
      const Wide a = product(m0, x[k]), b = product(m1, z[k]);
      x[k] = xor3(high(b), y[k], low);
      z[k] = xor3(high(a), w[k], top);
      y[k] = b;
      w[k] = a;
    }
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
#pragma GCC unroll 8
  for (int k = 0; k < kWides; ++k) {
    const Wide xy = pairs(x[k], y[k]), zw = pairs(z[k], w[k]);
    out.v[2 * k] = quads_low(xy, zw);
    out.v[2 * k + 1] = quads_high(xy, zw);
  }
#else
  Words word[kQuads];
  for (int64_t q = 0; q < kQuads; ++q)
    word[q] = philox(Words{first.x + offset[q], first.y, first.z, first.w}, key);
  static_assert(sizeof out == sizeof word);
  std::memcpy(&out, word, sizeof out);
#endif
  return out;
}

} // namespace occfast
