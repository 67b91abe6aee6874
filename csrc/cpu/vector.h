// The vector type of the CPU kernels, by the vector extensions of GCC and Clang.
#pragma once

#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace occfast {

#if defined(__AVX512F__)
constexpr int64_t kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kRegisterBytes = 32;
#else
constexpr int64_t kRegisterBytes = 16;
#endif

template <class T> constexpr int64_t kLanesOf = kRegisterBytes / static_cast<int64_t>(sizeof(T));

template <class T, int64_t kLanes> struct VectorTypes {
  typedef T Value __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T Memory __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
};

// kLanes numbers of type T: by default one register, otherwise as many registers as they need.
template <class T, int64_t kLanes = kLanesOf<T>> using Vector = typename VectorTypes<T, kLanes>::Value;

// Loads and stores at any address that suits one T.
template <class T, int64_t kLanes = kLanesOf<T>> inline Vector<T, kLanes> load(const T* from) {
  return *reinterpret_cast<const typename VectorTypes<T, kLanes>::Memory*>(from);
}
template <class T, int64_t kLanes = kLanesOf<T>> inline void store(const Vector<T, kLanes>& value, T* to) {
  *reinterpret_cast<typename VectorTypes<T, kLanes>::Memory*>(to) = value;
}

// a * b + c, rounded once where the processor can.  (The build forbids contraction, for the noise.)
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Vector<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (Vector<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined(__AVX512F__)
  return (Vector<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Vector<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (Vector<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// The register tile of the products: sums[r] += factor(r, k) * b[k] over k, where b [depth] holds rows of two
// registers.  factor returns a number, which every lane is multiplied with.
template <int kRows, class T, class Factor> inline __attribute__((always_inline)) void
add_products(Vector<T> (&sums)[kRows][2], int64_t depth, const T* b, const Factor& factor) {
  constexpr int64_t kLanes = kLanesOf<T>;
  for (int64_t k = 0; k < depth; ++k, b += 2 * kLanes) {
    const Vector<T> low = load(b), high = load(b + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vector<T> x = factor(r, k) - Vector<T>{};
      sums[r][0] = multiply_add(x, low, sums[r][0]);
      sums[r][1] = multiply_add(x, high, sums[r][1]);
    }
  }
}

} // namespace occfast
