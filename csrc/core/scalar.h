// Element types of images, and the conversion of a value in [0, 1] to each. Conversion rounds to nearest, with
// ties to even for the 16-bit floats and upwards for uint8.
#pragma once

#include "noise.h"

namespace occfast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// float32 to IEEE binary16 in integer arithmetic, so that every compiler and device returns the same bits.
OCCFAST_HD Half half_from_float(float value) {
  const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return Half{static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return Half{static_cast<uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal: the sum with 0.5 moves the remaining bits to the bottom and rounds them.
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

// The value of a binary16, exactly.
OCCFAST_HD float float_from_half(Half half) {
  const uint32_t sign = uint32_t{half.bits & 0x8000u} << 16, magnitude = half.bits & 0x7FFFu;
  // The product shifts the exponent. It is exact and turns subnormals into normals.
  const float value = from_bits(magnitude << 13) * 5.192296858534828e+33f; // 2^112
  return from_bits(sign | (magnitude >= 0x7C00u ? 0x7F800000u | (magnitude << 13) : to_bits(value)));
}

OCCFAST_HD float float_from_bfloat16(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

template <class T> struct Scalar;

template <> struct Scalar<uint8_t> {
  OCCFAST_HD static uint8_t from_unit(float value, float, float) {
    return static_cast<uint8_t>(static_cast<int32_t>(value * 255.0f + 0.5f));
  }
  OCCFAST_HD static bool is_outside(uint8_t, float, float) { return false; }
};
template <> struct Scalar<float> {
  OCCFAST_HD static float from_unit(float value, float low, float high) { return between(low, high, value); }
  OCCFAST_HD static bool is_outside(float value, float low, float high) {
    return !(value >= low && value <= high); // NaN as well
  }
};
template <> struct Scalar<Half> {
  OCCFAST_HD static Half from_unit(float value, float low, float high) {
    return half_from_float(between(low, high, value));
  }
  OCCFAST_HD static bool is_outside(Half value, float low, float high) {
    return Scalar<float>::is_outside(float_from_half(value), low, high);
  }
};
template <> struct Scalar<BFloat16> {
  OCCFAST_HD static BFloat16 from_unit(float value, float low, float high) {
    return bfloat16_from_float(between(low, high, value));
  }
  OCCFAST_HD static bool is_outside(BFloat16 value, float low, float high) {
    return Scalar<float>::is_outside(float_from_bfloat16(value), low, high);
  }
};

} // namespace occfast
