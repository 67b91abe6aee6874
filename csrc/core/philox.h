// Philox 4x32-10: four independent 32-bit words from a counter and a key.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "portable.h"

namespace occfast {

struct Words {
  uint32_t x, y, z, w;
};

struct Key {
  uint32_t low, high;
};

OCCFAST_HD Key key_of(uint64_t seed) {
  return Key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

OCCFAST_HD Words philox(Words counter, Key key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter.x;
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter.z;
    counter = Words{static_cast<uint32_t>(b >> 32) ^ counter.y ^ key.low, static_cast<uint32_t>(b),
                    static_cast<uint32_t>(a >> 32) ^ counter.w ^ key.high, static_cast<uint32_t>(a)};
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  return counter;
}

// The 53 high bits of two words as a float64 in [0, 1).
OCCFAST_HD double uniform53(uint32_t high, uint32_t low) {
  const uint64_t bits = (uint64_t{high} << 32 | low) >> 11;
  return static_cast<double>(bits) * 1.1102230246251565e-16;
}

} // namespace occfast
