// The noise of one occluder pixel, and the draw of one occluder, from (seed, sample, pixel).
//
// Only IEEE add, subtract, multiply and sqrt are used, in a fixed order, and both compilers are
// told not to contract a multiply and an add, so that the CPU, a GPU and the PyTorch twin in
// occfast/native/reference.py give the same bits.  F is float or a pack of floats, W uint32_t or a pack of
// words (cpu/lanes.h): one definition for a GPU's threads and a CPU's vector registers.
#pragma once

#include "philox.h"

#if !defined(__CUDA_ARCH__)
#include <cmath>
#include <cstring>
#endif

namespace occfast {

enum NoiseKind : int { kSaltAndPepper = 0, kSpeckle = 1, kGaussian = 2, kNoNoise = 3 };

// Philox counters are (block, stream, sample low, sample high); one stream for each purpose.
enum Stream : uint32_t { kPixels = 0, kOccluder = 1, kTriplet = 2 };

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

// The value of a word below 2^31.
OCCFAST_HD float number(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)); }

OCCFAST_HD float select(bool condition, float a, float b) { return condition ? a : b; }

// The 24 high bits of a word as a float32 in [0, 1): every value is exact.
template <class W> OCCFAST_HD auto uniform24(W word) { return number(word >> 8) * 5.9604644775390625e-08f; }

// Natural logarithm of a normal positive float32; absolute error below 1e-6 for x in (0, 1].
template <class F> OCCFAST_HD F natural_log(F x) {
  // Split x = m 2^e with m in [sqrt(1/2), sqrt(2)): adding the offset makes the exponent field
  // count the octaves that begin at sqrt(1/2).
  const auto bits = to_bits(x) + (0x3F800000u - 0x3F3504F3u);
  const F e = number(bits >> 23) - 127.0f;
  const F d = from_bits((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  F q = d * -7.607288310e-02f + 1.305818967e-01f; // tools/fit_normal.py
  q = q * d + -1.333290805e-01f;
  q = q * d + 1.416027158e-01f;
  q = q * d + -1.659345053e-01f;
  q = q * d + 2.000278360e-01f;
  q = q * d + -2.500242983e-01f;
  q = q * d + 3.333331938e-01f;
  q = q * d + -4.999997502e-01f;
  q = q * d + 1.0f;
  return q * d + e * 0.693147181f;
}

// A standard normal from one word: the low bit is the sign, the 23 high bits the tail probability p in
// (0, 1/2), so the values are exactly symmetric and end at 5.42.  With x = 1 - 2p and w = -ln(4p(1 - p))
// the quantile is x times a polynomial in w below kTail, in sqrt(w) above.
constexpr float kTail = 5.0f;

template <class F> OCCFAST_HD F normal_center(F w) {
  const F t = w - 2.5f;
  F value = t * 2.456995785e-08f + 4.965131134e-07f; // tools/fit_normal.py
  value = value * t + -4.808387681e-06f;
  value = value * t + -6.313119523e-06f;
  value = value * t + 3.084979156e-04f;
  value = value * t + -1.772771396e-03f;
  value = value * t + -5.907430313e-03f;
  value = value * t + 3.488025191e-01f;
  return value * t + 2.123313437e+00f;
}

template <class F> OCCFAST_HD F normal_tail(F w) {
  // w is a rounded number and may be a few units below zero next to the median.
  const F r = square_root(larger(w, 0.0f)) - 3.0f;
  F value = r * -2.704886203e-04f + 1.285836146e-04f;
  value = value * r + 1.894430586e-03f;
  value = value * r + -5.179641827e-03f;
  value = value * r + 8.121799341e-03f;
  value = value * r + -1.078455142e-02f;
  value = value * r + 1.334796022e-02f;
  value = value * r + 1.416581458e+00f;
  return value * r + 4.006434395e+00f;
}

OCCFAST_HD float normal_ratio(float w) { return w < kTail ? normal_center(w) : normal_tail(w); }

template <class W> OCCFAST_HD auto normal_from_word(W word) {
  const auto p = (number(word >> 9) + 0.5f) * 5.9604644775390625e-08f;
  const auto value = normal_ratio(-natural_log(p * 4.0f * (1.0f - p))) * (1.0f - p * 2.0f);
  return from_bits(to_bits(value) ^ (word << 31));
}

template <class F> OCCFAST_HD F in_unit(F value) { return smaller(larger(value, 0.0f), 1.0f); }

template <class W> OCCFAST_HD auto salt_and_pepper_pixel(float intensity, float level, W word) {
  // The low bit takes no part in uniform24, so which of the two it is, is independent of it.
  return select(uniform24(word) < level, number(word & 1u), intensity);
}

// The standard deviation of Gaussian and speckle noise.
OCCFAST_HD float deviation(int kind, float intensity, float level) {
  return kind == kSpeckle ? intensity * level : level;
}

// One occluder pixel in [0, 1]: intensity and level in the same unit interval.
template <class W> OCCFAST_HD auto noisy_pixel(int kind, float intensity, float level, W word) {
  using F = decltype(number(word));
  if (kind == kSaltAndPepper) return salt_and_pepper_pixel(intensity, level, word);
  if (kind == kGaussian || kind == kSpeckle)
    return in_unit(normal_from_word(word) * deviation(kind, intensity, level) + intensity);
  return F(intensity);
}

// The counter that holds the noise of pixels (channel, row, 4 * quad ... 4 * quad + 3).
OCCFAST_HD Words pixel_counter(int64_t sample, int64_t height, int64_t quads, int64_t channel, int64_t row,
                               int64_t quad) {
  return Words{static_cast<uint32_t>((channel * height + row) * quads + quad), kPixels,
               static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)};
}

OCCFAST_HD Words occluder_counter(int64_t sample, uint32_t block) {
  return Words{block, kOccluder, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)};
}

OCCFAST_HD float between(float low, float high, float u) { return low + (high - low) * u; }

// A number in [low, high], each as likely as the next but for 2^-32.
OCCFAST_HD int64_t integer_between(int64_t low, int64_t high, uint32_t word) {
  return low + static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(high - low + 1)) >> 32);
}

// The first index whose cumulative probability exceeds u: cells of probability 0 are never drawn.
OCCFAST_HD int64_t inverse_cdf(const double* cdf, int64_t count, double u) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cdf[middle] > u) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

} // namespace occfast
