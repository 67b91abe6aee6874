// Scalar parts of the scores of a sweep.
#pragma once

#include "math.h"

namespace occfast {

// The cosine of two vectors from their product and squared lengths; 0 if a length is 0.
OCCFAST_HD double cosine(double dot, double own, double other) {
  return dot / square_root(larger(own * other, 1e-300));
}

// Returns whether value at index replaces best at index `at` as the largest: larger, or equal and earlier.
template <class T> OCCFAST_HD bool outranks(T value, int64_t index, T best, int64_t at) {
  return value > best || (value == best && index < at);
}

} // namespace occfast
