// What both backends share of the sweep's scores.
#pragma once

#include "noise.h"

namespace occfast {

// Cosine of two vectors from their product and squared lengths; 0 where a length is 0.
OCCFAST_HD double cosine(double dot, double own, double other) {
  return dot / square_root(larger(own * other, 1e-300));
}

// Whether (value, index) comes before (best, at) as the place of the largest: larger, or as large and earlier.
template <class T> OCCFAST_HD bool outranks(T value, int64_t index, T best, int64_t at) {
  return value > best || (value == best && index < at);
}

} // namespace occfast
