// Triplets without a list of them: distances, the selection, and how per-anchor figures add up.
//
// Every selection mode is a function of pairs: an anchor-positive pair counts the negatives it is
// selected with, an anchor-negative pair the positives.  Those two counts, the means and the number
// of triplets give the loss and its whole gradient.
#pragma once

#include "noise.h"

#include <cmath>
#include <limits>

namespace occfast {

enum class Distance : int { kSquared, kEuclidean, kCosine };
enum class Select : int { kAll, kViolating, kSemihard, kSemihardRandom, kHardest };

struct TripletLaw {
  Distance distance;
  Select select;
  bool hinge;      // mean of max(0, d_ap - d_an + margin) over the mined triplets, else Eq. 9
  bool statistics; // also what the loss itself does not need
  double margin, beta;
  uint64_t seed; // of kSemihardRandom, with the number of the step
  uint32_t step;
};

// rows anchors against columns candidates.  own: the candidates are the anchors, so pair (i, i) is
// none.  The candidates of anchor i's class are members[start[i]] ... members[stop[i] - 1].
struct Pairs {
  int64_t rows, columns, dim;
  bool own;
  const int64_t *members, *start, *stop;
};

// What one anchor, or the batch, adds up to.  A moment is a count (a weight), a mean and a sum of
// squared deviations, in three doubles.
enum Slot : int {
  kPositivePairs = 0, // moments over pairs
  kNegativePairs = 3,
  kMinedPositive = 6, // moments over mined triplets
  kMinedNegative = 9,
  kActivePositive = 12, // of d_ap and d_an over the triplets that the loss weighs
  kActiveNegative = 15,
  kCandidates = 18, // counts of triplets
  kViolating = 19,
  kHard = 20,
  kLoss = 21, // of the batch only
  kSlots = 22,
};
constexpr int kMoments = 6;
constexpr int kPieces = 64; // runs of anchors that are added up side by side; fixed, so the result is

template <class T> OCCFAST_HD T infinity() {
#if defined(__CUDA_ARCH__)
  return static_cast<T>(__longlong_as_double(0x7FF0000000000000LL));
#else
  return std::numeric_limits<T>::infinity();
#endif
}

OCCFAST_HD float root(float x) { return square_root(x); }
OCCFAST_HD double root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}

// -- distances ----------------------------------------------------------------------------------------

// Distances do not depend on the origin, and products lose least about the center.  A mean of few bits is
// near enough, and keeps the differences of coordinates of few bits exact, so that equal distances stay equal.
// Rounded to 20 bits for float64, 8 for float32 (Veltkamp's splitting).
template <class T> OCCFAST_HD double near_mean(double mean) {
  const double spread = mean * (sizeof(T) == 8 ? 8589934593.0 : 35184372088833.0); // 2^33 + 1, 2^45 + 1
  return spread - (spread - mean);
}

// |a - b|^2 from a b and the squared lengths.  NaN stays NaN.
template <class T> OCCFAST_HD T square_from_product(T product, T a_square, T b_square) {
  const T square = (a_square + b_square) - (product + product);
  return square < 0 ? T{0} : square;
}

// Where a b is this near to the lengths, the subtraction has lost more than the six bits that the
// tolerance of 1e-5 leaves, and |a - b|^2 is summed directly.
template <class T> OCCFAST_HD bool is_close(T square, T a_square, T b_square) {
  return square * T{64} < a_square + b_square;
}

// The cosine distance of unit vectors is |a - b|^2 / 2.  A negative "squared length" marks an
// embedding of length 0: its cosine with anything is taken as 0, its distance as 1.
template <class T> OCCFAST_HD T distance_of(Distance kind, T square, T a_square, T b_square) {
  if (kind == Distance::kEuclidean) return root(square);
  if (kind == Distance::kCosine) return a_square < 0 || b_square < 0 ? T{1} : square * T{0.5};
  return square;
}

// What turns the derivative by the distance of a, b into c: the gradient by a is 2 c (a - b).
template <class T> OCCFAST_HD T chain(Distance kind, T slope, T distance, T a_square, T b_square) {
  if (kind == Distance::kEuclidean) return distance > 0 ? slope / (distance + distance) : T{0};
  if (kind == Distance::kCosine) return a_square < 0 || b_square < 0 ? T{0} : slope * T{0.5};
  return slope;
}

// -- selection ----------------------------------------------------------------------------------------

template <class T> OCCFAST_HD bool is_violating(T positive, T negative, T margin) {
  return negative < positive + margin;
}
template <class T> OCCFAST_HD bool is_semihard(T positive, T negative, T margin) {
  return negative < positive + margin && negative > positive;
}
template <class T> OCCFAST_HD bool is_hard(T positive, T negative, T margin) {
  return negative < positive + margin && negative <= positive;
}

// Which of `count` semi-hard negatives the pair (anchor, positive) takes.
OCCFAST_HD int64_t draw_negative(const TripletLaw& law, int64_t anchor, int64_t positive, int64_t count) {
  const Words counter{static_cast<uint32_t>(positive), kTriplet, static_cast<uint32_t>(anchor), law.step};
  return integer_between(0, count - 1, philox(counter, key_of(law.seed)).x);
}

// -- sums ---------------------------------------------------------------------------------------------

// into += from, both {weight, mean, sum of squared deviations}: Chan, Golub, LeVeque 1979.
OCCFAST_HD void add_moment(double* into, const double* from) {
  if (from[0] == 0) return;
  const double weight = into[0] + from[0], apart = from[1] - into[1];
  into[2] += from[2] + apart * apart * (into[0] * (from[0] / weight));
  into[1] += apart * (from[0] / weight);
  into[0] = weight;
}

OCCFAST_HD void add_record(double* into, const double* from) {
  for (int k = 0; k < kMoments; ++k) add_moment(into + 3 * k, from + 3 * k);
  for (int k = kCandidates; k < kLoss; ++k) into[k] += from[k];
}

// One of the kPieces runs of the anchors' records.
OCCFAST_HD void add_piece(const double* records, int64_t rows, int piece, double* into) {
  for (int k = 0; k < kSlots; ++k) into[k] = 0;
  for (int64_t i = rows * piece / kPieces; i < rows * (piece + 1) / kPieces; ++i)
    add_record(into, records + i * kSlots);
}

OCCFAST_HD double variance(const double* moment) { return moment[0] > 0 ? moment[2] / moment[0] : 0.0; }

// The batch's record from its pieces, with the loss: Eq. 9, or the mean hinge of Eq. 6.
OCCFAST_HD void finish_totals(const double* pieces, const TripletLaw& law, double* totals) {
  for (int k = 0; k < kSlots; ++k) totals[k] = 0;
  for (int piece = 0; piece < kPieces; ++piece) add_record(totals, pieces + piece * kSlots);
  const double mined = totals[kMinedPositive];
  const double apart = totals[kActivePositive + 1] - totals[kActiveNegative + 1] + law.margin;
  if (mined == 0)
    totals[kLoss] = 0;
  else if (law.hinge)
    totals[kLoss] = totals[kActivePositive] / mined * apart;
  else
    totals[kLoss] = (1.0 - law.beta) * apart +
                    law.beta * (variance(totals + kActivePositive) + variance(totals + kActiveNegative));
}

// -- gradient -----------------------------------------------------------------------------------------

// dL/dd of a pair from its count: a positive pair's is stored as -w, a negative pair's as w.
template <class T> struct Slope {
  T even, steep, positive, negative;

  OCCFAST_HD Slope(const TripletLaw& law, const double* totals) {
    const double per = totals[kMinedPositive] > 0 ? 1.0 / totals[kMinedPositive] : 0.0;
    const double beta = law.hinge ? 0.0 : law.beta;
    even = static_cast<T>((1.0 - beta) * per);
    steep = static_cast<T>(2.0 * beta * per);
    positive = static_cast<T>(totals[kActivePositive + 1]);
    negative = static_cast<T>(totals[kActiveNegative + 1]);
  }

  OCCFAST_HD T operator()(int32_t count, T distance) const {
    const T weight = static_cast<T>(count), size = weight < 0 ? -weight : weight;
    return size * (steep * (distance - (weight < 0 ? positive : negative))) - weight * even;
  }
};

} // namespace occfast
