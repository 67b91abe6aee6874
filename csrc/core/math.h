// Scalar helpers with the same result on every device: bits of a float, correctly rounded roots, minima.
#pragma once

#include <limits>

#include "portable.h"

#if !defined(__CUDA_ARCH__)
#include <cmath>
#include <cstring>
#endif

namespace occfast {

template <class T> OCCFAST_HD T smaller(T a, T b) { return a < b ? a : b; }
template <class T> OCCFAST_HD T larger(T a, T b) { return a > b ? a : b; }

OCCFAST_HD float select(bool condition, float a, float b) { return condition ? a : b; }

OCCFAST_HD float from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

OCCFAST_HD uint32_t to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

// The value of a word below 2^31.
OCCFAST_HD float number(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)); }

OCCFAST_HD float square_root(float value) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(value);
#else
  return std::sqrt(value);
#endif
}

OCCFAST_HD double square_root(double value) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(value);
#else
  return std::sqrt(value);
#endif
}

template <class T> OCCFAST_HD T infinity() {
#if defined(__CUDA_ARCH__)
  return static_cast<T>(__longlong_as_double(0x7FF0000000000000LL));
#else
  return std::numeric_limits<T>::infinity();
#endif
}

} // namespace occfast
