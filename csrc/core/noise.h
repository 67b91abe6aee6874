// The noise of one occluder pixel and the random numbers of one occluder, from (seed, sample, pixel).
//
// The functions use IEEE addition, subtraction, multiplication and square root in a fixed order, and both
// compilers run without contraction of multiply and add. So the CPU, a GPU and the PyTorch twin in
// occfast/native/reference/ return the same bits. F is float or a pack of floats, W uint32_t or a pack of
// words (cpu/lanes.h): one definition serves the threads of a GPU and the vector registers of a CPU.
#pragma once

#include "math.h"
#include "philox.h"

namespace occfast {

enum NoiseKind : int { kSaltAndPepper = 0, kSpeckle = 1, kGaussian = 2, kNoNoise = 3 };
constexpr int kNoiseKinds = 4;
constexpr uint8_t kNotOccluded = 255; // stored in place of a kind for a sample without an occluder

// A Philox counter is (block, stream, low half of the sample id, high half). Each purpose has its own stream.
enum Stream : uint32_t { kPixels = 0, kOccluder = 1, kTriplet = 2 };

// The 24 high bits of a word as a float32 in [0, 1): every value is exact.
template <class W> OCCFAST_HD auto uniform24(W word) { return number(word >> 8) * 5.9604644775390625e-08f; }

// Natural logarithm of a positive, normal float32. The absolute error is below 1e-6 for x in (0, 1].
template <class F> OCCFAST_HD F natural_log(F x) {
  // Split x = m 2^e with m in [sqrt(1/2), sqrt(2)). The offset shifts the octaves that the exponent field
  // counts, so that each begins at sqrt(1/2).
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

// A standard normal from one word. The low bit is the sign and the 23 high bits give the tail probability p in
// (0, 1/2), so the values are exactly symmetric and at most 5.42. With x = 1 - 2p and w = -ln(4p(1 - p)), the
// quantile is x times a polynomial, in w below kTail and in sqrt(w) from kTail on.
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
  // Rounding can leave w slightly below zero next to the median.
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
  // uniform24 ignores the low bit, so salt or pepper is independent of whether the pixel is noisy.
  return select(uniform24(word) < level, number(word & 1u), intensity);
}

// Standard deviation of Gaussian and speckle noise.
OCCFAST_HD float deviation(int kind, float intensity, float level) {
  return kind == kSpeckle ? intensity * level : level;
}

// One occluder pixel in [0, 1], from an intensity and a noise level in [0, 1].
template <class W> OCCFAST_HD auto noisy_pixel(int kind, float intensity, float level, W word) {
  using F = decltype(number(word));
  if (kind == kSaltAndPepper) return salt_and_pepper_pixel(intensity, level, word);
  if (kind == kGaussian || kind == kSpeckle)
    return in_unit(normal_from_word(word) * deviation(kind, intensity, level) + intensity);
  return F(intensity);
}

// The counter whose four words are the noise of pixels (channel, row, 4 * quad ... 4 * quad + 3).
OCCFAST_HD Words pixel_counter(int64_t sample, int64_t height, int64_t quads, int64_t channel, int64_t row,
                               int64_t quad) {
  return Words{static_cast<uint32_t>((channel * height + row) * quads + quad), kPixels,
               static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)};
}

OCCFAST_HD Words occluder_counter(int64_t sample, uint32_t block) {
  return Words{block, kOccluder, static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)};
}

OCCFAST_HD float between(float low, float high, float u) { return low + (high - low) * u; }

// An integer in [low, high], uniform to within 2^-32.
OCCFAST_HD int64_t integer_between(int64_t low, int64_t high, uint32_t word) {
  return low + static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(high - low + 1)) >> 32);
}

// The first index whose cumulative probability exceeds u. Cells of probability 0 are never drawn.
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
