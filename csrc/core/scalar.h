// Image element types: how a value in [0, 1] is stored, rounding to nearest, ties to even for the
// 16-bit floats and upwards for uint8.
#pragma once

#include "noise.h"

namespace occfast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// float32 -> IEEE binary16 without hardware, so that every compiler and device agrees.
OCCFAST_HD Half half_from_float(float value) {
  const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return Half{static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return Half{static_cast<uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 puts the bits that remain at the bottom, rounded by the addition.
    const uint32_t rounded = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000u;
    return Half{static_cast<uint16_t>(sign | rounded)};
  }
  magnitude += 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return Half{static_cast<uint16_t>(sign | (magnitude >> 13))};
}

OCCFAST_HD BFloat16 bfloat16_from_float(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return BFloat16{static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <class T> struct Scalar;

template <> struct Scalar<uint8_t> {
  OCCFAST_HD static uint8_t from_unit(float value, float, float) {
    return static_cast<uint8_t>(static_cast<int32_t>(value * 255.0f + 0.5f));
  }
};
template <> struct Scalar<float> {
  OCCFAST_HD static float from_unit(float value, float low, float high) { return between(low, high, value); }
};
template <> struct Scalar<Half> {
  OCCFAST_HD static Half from_unit(float value, float low, float high) {
    return half_from_float(between(low, high, value));
  }
};
template <> struct Scalar<BFloat16> {
  OCCFAST_HD static BFloat16 from_unit(float value, float low, float high) {
    return bfloat16_from_float(between(low, high, value));
  }
};

} // namespace occfast
