// Mining and statistics of triplets without a list of triplets.
//
// Every mining strategy is a function of pairs: an anchor-positive pair counts the negatives it is selected
// with, an anchor-negative pair the positives. The two counts, the mean distances and the number of triplets
// determine the loss and its whole gradient.
#pragma once

#include "noise.h"

namespace occfast {

enum class Distance : int { kSquaredEuclidean, kEuclidean, kCosine };
enum class Mining : int { kAll, kViolating, kSemihard, kSemihardRandom, kHardest };

struct TripletParams {
  Distance distance;
  Mining mining;
  bool hinge;      // the loss is the mean of max(0, d_ap - d_an + margin) over the mined triplets, else Eq. 9
  bool statistics; // compute the figures that the loss itself does not need
  double margin, beta;
  uint64_t seed; // with step: the random numbers of kSemihardRandom
  uint32_t step;
};

// rows anchors against columns candidates, both with dim coordinates. The candidates of the class of anchor i
// are members[start[i]] ... members[stop[i] - 1].  own: anchor i is candidate first + i, which is not its pair.
struct Pairs {
  int64_t rows, columns, dim;
  int64_t first; // number of the first anchor in its batch
  bool own;
  const int64_t *members, *start, *stop;
};

// Layout of a record: the sums over one anchor, or over the batch. A moment takes three doubles: a weight, a
// mean and a sum of squared deviations.
enum Slot : int {
  kPositivePairs = 0, // moments over pairs
  kNegativePairs = 3,
  kMinedPositive = 6, // moments of d_ap and d_an over the mined triplets
  kMinedNegative = 9,
  kActivePositive = 12, // moments of d_ap and d_an over the triplets that the loss weighs
  kActiveNegative = 15,
  kCandidates = 18, // numbers of triplets
  kViolatingTriplets = 19,
  kHardTriplets = 20,
  kLoss = 21, // in the record of the batch only
};
constexpr int kSlots = 22;
constexpr int kMoments = 6;
constexpr int kPieces = 64; // runs of anchors that are summed in parallel; a constant, so that sums have one order

// -- distances ----------------------------------------------------------------------------------------

// A value near the mean of a coordinate, to be subtracted before products are taken. Distances do not depend
// on the origin, and products lose least precision about the center. Few bits suffice, and they keep the
// differences of coordinates of few bits exact, so that equal distances stay equal. The mean is rounded to 20
// bits for float64 and 8 for float32 by Veltkamp's splitting.
template <class T> OCCFAST_HD double near_mean(double mean) {
  const double spread = mean * (sizeof(T) == 8 ? 8589934593.0 : 35184372088833.0); // 2^33 + 1, 2^45 + 1
  return spread - (spread - mean);
}

// |a - b|^2 from the product a b and the squared lengths. NaN stays NaN.
template <class T> OCCFAST_HD T square_from_product(T product, T a_square, T b_square) {
  const T square = (a_square + b_square) - (product + product);
  return square < 0 ? T{0} : square;
}

// If a b is this near to the lengths, the subtraction has lost more than the six bits that the
// tolerance of 1e-5 leaves, and |a - b|^2 is summed directly.
template <class T> OCCFAST_HD bool is_close(T square, T a_square, T b_square) {
  return square * T{64} < a_square + b_square;
}

// The cosine distance of unit vectors is |a - b|^2 / 2. A negative squared length marks an embedding of length
// 0, whose cosine with any other is defined as 0 and whose distance is therefore 1.
template <class T> OCCFAST_HD T distance_of(Distance kind, T square, T a_square, T b_square) {
  if (kind == Distance::kEuclidean) return square_root(square);
  if (kind == Distance::kCosine) return a_square < 0 || b_square < 0 ? T{1} : square * T{0.5};
  return square;
}

// The factor c for which the gradient with respect to a is 2 c (a - b), from the derivative by the distance.
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

// The index, below count, of the semi-hard negative that the pair (anchor, positive) takes.
OCCFAST_HD int64_t draw_negative(const TripletParams& params, int64_t anchor, int64_t positive, int64_t count) {
  const Words counter{static_cast<uint32_t>(positive), kTriplet, static_cast<uint32_t>(anchor), params.step};
  return integer_between(0, count - 1, philox(counter, key_of(params.seed)).x);
}

// -- sums ---------------------------------------------------------------------------------------------

// into += from, for moments {weight, mean, sum of squared deviations} (Chan, Golub, LeVeque 1979).
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

// The sum of one of the kPieces runs of the anchors' records.
OCCFAST_HD void add_piece(const double* records, int64_t rows, int piece, double* into) {
  for (int k = 0; k < kSlots; ++k) into[k] = 0;
  for (int64_t i = rows * piece / kPieces; i < rows * (piece + 1) / kPieces; ++i)
    add_record(into, records + i * kSlots);
}

OCCFAST_HD double variance(const double* moment) { return moment[0] > 0 ? moment[2] / moment[0] : 0.0; }

// The loss of a batch from its record: Eq. 9, or the mean hinge loss of Eq. 6.
OCCFAST_HD double loss_of(const double* totals, const TripletParams& params) {
  const double mined = totals[kMinedPositive];
  if (mined == 0) return 0;
  const double apart = totals[kActivePositive + 1] - totals[kActiveNegative + 1] + params.margin;
  if (params.hinge) return totals[kActivePositive] / mined * apart;
  return (1.0 - params.beta) * apart +
         params.beta * (variance(totals + kActivePositive) + variance(totals + kActiveNegative));
}

// The record of the batch from its pieces, with the loss.
OCCFAST_HD void finish_totals(const double* pieces, const TripletParams& params, double* totals) {
  for (int k = 0; k < kSlots; ++k) totals[k] = 0;
  for (int piece = 0; piece < kPieces; ++piece) add_record(totals, pieces + piece * kSlots);
  totals[kLoss] = loss_of(totals, params);
}

// -- gradient -----------------------------------------------------------------------------------------

// dL/dd of a pair from its count, which is stored as -w for a positive pair and as w for a negative one.
template <class T> struct Slope {
  T even, steep, positive, negative;

  OCCFAST_HD Slope(const TripletParams& params, const double* totals) {
    const double per = totals[kMinedPositive] > 0 ? 1.0 / totals[kMinedPositive] : 0.0;
    const double beta = params.hinge ? 0.0 : params.beta;
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
