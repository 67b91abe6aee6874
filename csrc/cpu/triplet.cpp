// Batch triplet loss on the CPU.  The row of distances of one anchor at a time stays in the cache.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "gemm.h"

namespace occfast {
namespace {

constexpr int64_t kLanes = 16; // partial sums of a loop, so that it vectorizes with a fixed order of its sums
constexpr int64_t kBlock = 64; // columns per step
constexpr int64_t kFew = 192;  // number of positives up to which compare() is faster than rank()
constexpr int kSquareBins = 64;

template <class T> using Lanes = Vector<T, kLanes>;

template <class Lane> auto add_lanes(const Lane& lane) {
  std::decay_t<decltype(lane[0])> sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lane[k];
  return sum;
}

template <class T> T direct_square(const T* a, const T* b, int64_t dim) {
  T sum[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= dim; k += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) sum[l] += (a[k + l] - b[k + l]) * (a[k + l] - b[k + l]);
  for (; k < dim; ++k) sum[0] += (a[k] - b[k]) * (a[k] - b[k]);
  return add_lanes(sum);
}

// Products become distances, in place.
template <Distance kind, class T> void distances_of_row(T* row, int64_t columns, int64_t own, const T* a,
                                                        const T* b, T a_square, const T* b_squares, int64_t dim) {
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int64_t last = smaller(columns, first + kBlock);
    int close = 0;
    for (int64_t j = first; j < last; ++j) {
      const T square = square_from_product(row[j], a_square, b_squares[j]);
      close += is_close(square, a_square, b_squares[j]);
      row[j] = square;
    }
    if (first <= own && own < last) row[own] = 0;
    if (close > 0)
      for (int64_t j = first; j < last; ++j)
        if (j != own && is_close(row[j], a_square, b_squares[j])) row[j] = direct_square(a, b + j * dim, dim);
    for (int64_t j = first; j < last; ++j) row[j] = distance_of(kind, row[j], a_square, b_squares[j]);
  }
}

// With few bins, negatives are counted in pairs, as a cell of a square table. This halves the increments, and
// fewer of them wait for the previous one, which is often in the same bin.
struct Histograms {
  explicit Histograms(int bins)
      : bins(bins), positive(static_cast<size_t>(bins)), negative(static_cast<size_t>(bins)),
        cells(bins <= kSquareBins ? static_cast<size_t>(bins * bins) : 0) {}

  // Adds the counts of the table to negative.
  void flush() {
    if (cells.empty()) return;
    for (int64_t k = 0; k < bins * bins; ++k) {
      negative[k / bins] += cells[k];
      negative[k % bins] += cells[k];
    }
    std::fill(cells.begin(), cells.end(), 0);
    held = 0;
  }

  int64_t bins, held = 0;
  std::vector<int64_t> positive, negative;
  std::vector<uint32_t> cells; // [bin][bin]
};

// Buffers of one thread for one anchor.
template <class T> struct Work {
  Work(int64_t columns, int bins)
      : negative(columns + kBlock), count(static_cast<size_t>(columns + kBlock)),
        below(static_cast<size_t>(columns + kBlock)), under(static_cast<size_t>(columns + kBlock)),
        histograms(bins) {
    std::fill(negative.data, negative.data + columns + kBlock, infinity<T>());
  }

  Scratch<T> negative;               // distances; infinite for columns that are not negatives, and in the padding
  std::vector<int32_t> count;        // number of positives that select the column
  std::vector<int32_t> below, under; // numbers of positives, see rank()
  std::vector<int64_t> positive;     // columns
  std::vector<T> distance;           // to the positives
  std::vector<int64_t> selected;     // number of negatives that each positive is selected with
  std::vector<int32_t> lane;         // [positive][kLanes]
  std::vector<T> sorted, hard_below;
  std::vector<int64_t> order;
  int64_t violating = 0, hard = 0; // triplets
  Histograms histograms;
};

// Compares every positive with every negative.
template <bool semihard, class T> void compare(Work<T>& work, int64_t columns, T margin) {
  const int64_t positives = static_cast<int64_t>(work.positive.size());
  work.lane.assign(static_cast<size_t>(positives * kLanes), 0);
  int32_t hard[kLanes] = {};
  for (int64_t first = 0; first < columns; first += kBlock) {
    const T* negative = work.negative.data + first;
    int32_t* count = work.count.data() + first;
    int32_t sum[kBlock] = {};
    for (int64_t p = 0; p < positives; ++p) {
      const T near = work.distance[p], far = near + margin;
      int32_t* lane = work.lane.data() + p * kLanes;
      for (int64_t k = 0; k < kBlock; k += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) {
          const T distance = negative[k + l];
          const int32_t violates = distance < far, is_hard = violates & (distance <= near);
          const int32_t chosen = semihard ? violates - is_hard : violates;
          sum[k + l] += chosen;
          lane[l] += chosen;
          hard[l] += is_hard;
        }
    }
    for (int64_t k = 0; k < kBlock; ++k) count[k] = sum[k];
  }
  work.hard = add_lanes(hard);
  work.violating = semihard ? work.hard : 0;
  for (int64_t p = 0; p < positives; ++p) {
    work.selected[p] = add_lanes(work.lane.data() + p * kLanes);
    work.violating += work.selected[p];
  }
}

template <class T> using Mask = decltype(Lanes<T>{} < Lanes<T>{}); // true is -1

// A step of a binary search: advances `at` by step in lanes where not (table[at + step - 1] > x).
template <class T> void advance(const T* table, int step, const Lanes<T>& x, Mask<T>& at) {
  for (int64_t l = 0; l < kLanes; ++l) at[l] += table[at[l] + step - 1] > x[l] ? 0 : step;
}
#if defined(__AVX512F__)
inline void advance(const float* table, int step, const Lanes<float>& x, Mask<float>& at) {
  const __m512 probe =
      _mm512_permutexvar_ps((__m512i)at, _mm512_castps256_ps512(_mm256_loadu_ps(table + step - 1)));
  const __mmask16 not_above = _mm512_cmp_ps_mask(probe, (__m512)x, _CMP_NGT_UQ);
  at = (Mask<float>)_mm512_mask_add_epi32((__m512i)at, not_above, (__m512i)at, _mm512_set1_epi32(step));
}
#elif defined(__AVX2__)
inline void advance(const float* table, int step, const Lanes<float>& x, Mask<float>& at) {
  const __m256 eight = _mm256_loadu_ps(table + step - 1);
  for (int half = 0; half < 2; ++half) {
    __m256 values;
    __m256i place;
    std::memcpy(&values, reinterpret_cast<const char*>(&x) + 32 * half, 32);
    std::memcpy(&place, reinterpret_cast<const char*>(&at) + 32 * half, 32);
    const __m256 probe = _mm256_permutevar8x32_ps(eight, place);
    const __m256i not_above = _mm256_castps_si256(_mm256_cmp_ps(probe, values, _CMP_NGT_UQ));
    place = _mm256_add_epi32(place, _mm256_and_si256(not_above, _mm256_set1_epi32(step)));
    std::memcpy(reinterpret_cast<char*>(&at) + 32 * half, &place, 32);
  }
}
#endif

// The number of pairs (negative, limit) with the negative below the limit, for `finite` finite negatives. A
// binary search in a register treats seven limits at a time.
template <class T>
int64_t count_below(const Work<T>& work, int64_t columns, std::vector<T>& limits, int64_t finite) {
  constexpr int64_t kLimits = 7;
  const T none = infinity<T>();
  for (T& limit : limits) limit = limit == limit ? limit : -none; // no negative is below NaN
  std::sort(limits.begin(), limits.end());
  int64_t below = 0;
  for (size_t first = 0; first < limits.size(); first += kLimits) {
    T table[kLimits + 4];                        // a step of the search reads eight numbers from its start
    std::fill(table, table + kLimits + 4, none); // the padding is above every finite number
    const int64_t used = smaller(kLimits, static_cast<int64_t>(limits.size() - first));
    std::copy(limits.begin() + first, limits.begin() + first + used, table);
    Mask<T> rank = {};
    int64_t lanes = 0;
    for (int64_t j = 0; j < columns; j += kLanes, lanes += kLanes) {
      const auto x = load<T, kLanes>(work.negative.data + j);
      Mask<T> at = {};
      for (int step = 4; step > 0; step /= 2) advance(table, step, x, at);
      rank += at;
    }
    below += kLimits * lanes - static_cast<int64_t>(add_lanes(rank)) - (kLimits - used) * finite;
  }
  return below;
}

// Counts the violating and the hard triplets, without the counts of each pair. A negative is hard if it is below
// both limits of is_hard(): the number after the distance of the positive, and the limit of a violation.
template <class T> void compare_totals(Work<T>& work, int64_t columns, T margin, T closest, int64_t finite) {
  std::vector<T>&far = work.sorted, &hard = work.hard_below;
  far.clear();
  hard.clear();
  for (const T near : work.distance) {
    const T after = std::nextafter(near, infinity<T>());
    if (closest < near + margin) far.push_back(near + margin);
    if (closest < near + margin && closest < after) hard.push_back(after < near + margin ? after : near + margin);
  }
  work.violating = count_below(work, columns, far, finite);
  work.hard = count_below(work, columns, hard, finite);
}

// rank[j] = the number of sorted thresholds below value[j] (or_equal: below or equal to it).  sorted is padded
// with NaN to a power of two minus one.
template <bool or_equal, class T>
void search(const std::vector<T>& sorted, const T* value, int64_t columns, int32_t* rank) {
  const T* threshold = sorted.data();
  for (int64_t first = 0; first < columns; first += kBlock) {
    int32_t position[kBlock] = {};
    for (auto step = static_cast<int32_t>((sorted.size() + 1) / 2); step > 0; step /= 2)
      for (int64_t k = 0; k < kBlock; ++k) {
        // Arithmetic instead of a branch, which could not be predicted.
        const T limit = threshold[position[k] + step - 1], x = value[first + k];
        position[k] += step & -static_cast<int32_t>(or_equal ? limit <= x : limit < x);
      }
    for (int64_t k = 0; k < kBlock; ++k) rank[first + k] = position[k];
  }
}

// Puts NaN last: sorting needs an order, and the loss is NaN in any case.
template <class T> T sort_key(T distance) { return distance == distance ? distance : infinity<T>(); }

// The counts of compare(), from sorted positives. Adding the margin keeps their order, so the positives that a
// negative does not violate come first, and so do those nearer than it.
template <bool semihard, class T> void rank(Work<T>& work, int64_t columns, T margin) {
  const auto positives = static_cast<int32_t>(work.positive.size());
  work.order.resize(static_cast<size_t>(positives));
  for (int32_t p = 0; p < positives; ++p) work.order[p] = p;
  std::sort(work.order.begin(), work.order.end(),
            [&](int64_t p, int64_t q) { return sort_key(work.distance[p]) < sort_key(work.distance[q]); });
  size_t size = 1;
  while (size < static_cast<size_t>(positives) + 1) size *= 2;
  work.sorted.assign(size - 1, std::numeric_limits<T>::quiet_NaN());
  for (int32_t p = 0; p < positives; ++p) work.sorted[p] = work.distance[work.order[p]];
  search<false>(work.sorted, work.negative.data, columns, work.below.data());
  for (int32_t p = 0; p < positives; ++p) work.sorted[p] += margin;
  search<true>(work.sorted, work.negative.data, columns, work.under.data());

  // selected, of the p-th nearest positive: a running sum of the ranges that begin and end at it.
  std::vector<int64_t>& selected = work.selected;
  std::vector<int64_t> change(static_cast<size_t>(positives) + 1);
  work.violating = work.hard = 0;
  for (int64_t j = 0; j < columns; ++j) {
    const int32_t from = work.under[j], to = semihard ? work.below[j] : positives;
    const int32_t chosen = larger(to - from, 0);
    work.count[j] = chosen;
    work.violating += positives - from;
    work.hard += positives - larger(from, work.below[j]);
    change[from] += chosen > 0;
    change[to] -= chosen > 0;
  }
  int64_t sum = 0;
  for (int32_t p = 0; p < positives; ++p) selected[work.order[p]] = sum += change[p];
}

template <bool semihard, class T> void count_pairs(Work<T>& work, int64_t columns, T margin) {
  if (static_cast<int64_t>(work.positive.size()) <= kFew)
    compare<semihard>(work, columns, margin);
  else
    rank<semihard>(work, columns, margin);
}

template <class T> T smallest(const T* value, int64_t columns) {
  T lane[kBlock];
  for (int64_t l = 0; l < kBlock; ++l) lane[l] = infinity<T>();
  for (int64_t j = 0; j < columns; j += kBlock) // reads the padding, which is infinite
    for (int64_t l = 0; l < kBlock; ++l) lane[l] = value[j + l] < lane[l] ? value[j + l] : lane[l];
  return *std::min_element(lane, lane + kBlock);
}

// Draws one semi-hard negative for each positive that has any.
template <class T>
void draw(Work<T>& work, const TripletParams& params, int64_t anchor, int64_t columns, T margin) {
  std::fill(work.count.begin(), work.count.end(), 0);
  for (size_t p = 0; p < work.positive.size(); ++p) {
    const T near = work.distance[p];
    int32_t lane[kLanes] = {};
    for (int64_t j = 0; j < columns; j += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) lane[l] += is_semihard(near, work.negative.data[j + l], margin);
    const int64_t found = add_lanes(lane);
    work.selected[p] = found > 0;
    if (found == 0) continue;
    int64_t left = draw_negative(params, anchor, work.positive[p], found), j = 0;
    for (;; ++j)
      if (is_semihard(near, work.negative.data[j], margin) && left-- == 0) break;
    ++work.count[j];
  }
}

// The moment of weighted numbers from sums shifted by one of them. The square of the mean, which is subtracted,
// is then at most the number of them times the variance.
void store_moment(double weight, double first, double second, double shift, double* moment) {
  moment[0] = weight;
  moment[1] = weight > 0 ? shift + first / weight : 0.0;
  moment[2] = weight > 0 ? larger(second - first * (first / weight), 0.0) : 0.0;
}

struct Sums {
  double weight[kLanes] = {}, first[kLanes] = {}, second[kLanes] = {};

  void add(int64_t l, double w, double x) {
    weight[l] += w;
    first[l] += w * x;
    second[l] += w * x * x;
  }
  void store(double shift, double* moment) const {
    store_moment(add_lanes(weight), add_lanes(first), add_lanes(second), shift, moment);
  }
};

template <class T> void negative_moments(const Work<T>& work, const T* row, int64_t columns, double* selected) {
  int64_t start = 0;
  while (start < columns && work.count[start] == 0) ++start;
  if (start == columns) return;
  Sums sums;
  const double shift = row[start];
  int64_t j = start / kLanes * kLanes;
  for (; j + kLanes <= columns; j += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) sums.add(l, work.count[j + l], static_cast<double>(row[j + l]) - shift);
  for (; j < columns; ++j) sums.add(0, work.count[j], static_cast<double>(row[j]) - shift);
  sums.store(shift, selected);
}

// Computes the moment of the finite negatives and returns the least (infinite if there is none). Differences and
// the sums of the four steps of a block are in T, at a cost of a few units in the last place. Blocks are summed
// in double.
template <class T> T all_negatives(const Work<T>& work, int64_t columns, double* moment) {
  using Values = Lanes<T>;
  using Doubles = Lanes<double>;
  int64_t start = 0;
  while (start < columns && !(work.negative.data[start] < infinity<T>())) ++start;
  if (start == columns) return infinity<T>();
  const T shift = work.negative.data[start];
  const Values zero = {};
  Values least = zero + infinity<T>();
  auto count = zero < zero;
  Doubles first = {}, second = {};
  for (int64_t block = start / kBlock * kBlock; block < columns; block += kBlock) { // reads the padding: infinite
    Values sum = zero, squares = zero;
    for (int64_t j = block; j < block + kBlock; j += kLanes) {
      const auto distance = load<T, kLanes>(work.negative.data + j);
      const auto used = distance < infinity<T>();
      const Values apart = used ? distance - shift : zero;
      least = distance < least ? distance : least;
      count += used; // true is -1
      sum += apart;
      squares += apart * apart;
    }
    first += __builtin_convertvector(sum, Doubles);
    second += __builtin_convertvector(squares, Doubles);
  }
  double weight = 0;
  T closest = infinity<T>();
  for (int64_t l = 0; l < kLanes; ++l) {
    weight -= static_cast<double>(count[l]);
    closest = least[l] < closest ? least[l] : closest;
  }
  store_moment(weight, add_lanes(first), add_lanes(second), static_cast<double>(shift), moment);
  return closest;
}

template <class T>
void positive_moments(const Work<T>& work, const std::vector<int64_t>* weights, double* moment) {
  double total = 0, mean = 0, apart = 0;
  for (size_t p = 0; p < work.positive.size(); ++p) {
    const double weight = weights ? static_cast<double>((*weights)[p]) : 1.0;
    total += weight;
    mean += weight * work.distance[p];
  }
  if (total == 0) return;
  mean /= total;
  for (size_t p = 0; p < work.positive.size(); ++p) {
    const double weight = weights ? static_cast<double>((*weights)[p]) : 1.0, off = work.distance[p] - mean;
    apart += weight * off * off;
  }
  moment[0] = total;
  moment[1] = mean;
  moment[2] = apart;
}

template <class T> void add_histogram(const T* row, int64_t first, int64_t columns,
                                      const std::vector<int64_t>& positive, double top, Histograms& into) {
  const int64_t bins = into.bins;
  const T scale = top > 0 ? static_cast<T>(bins / top) : T{0}, limit = static_cast<T>(bins - 1);
  const auto bin_of = [&](T distance) {
    const T place = distance * scale;
    return static_cast<int32_t>(place < limit ? place : limit);
  };
  int64_t j = first;
  if (!into.cells.empty()) {
    if (into.held + columns > std::numeric_limits<uint32_t>::max()) into.flush();
    into.held += columns;
    uint32_t* cells = into.cells.data();
    const auto side = static_cast<int32_t>(bins);
    int32_t bin[kBlock], cell[kBlock / 2];
    for (; j + kBlock <= columns; j += kBlock) {
      for (int64_t k = 0; k < kBlock; ++k) bin[k] = bin_of(row[j + k]);
      for (int64_t k = 0; k < kBlock / 2; ++k) cell[k] = bin[k] * side + bin[k + kBlock / 2];
      for (int64_t k = 0; k < kBlock / 2; ++k) ++cells[cell[k]];
    }
  }
  for (; j < columns; ++j) ++into.negative[bin_of(row[j])];
  for (const int64_t p : positive)
    if (p >= first) {
      --into.negative[bin_of(row[p])];
      ++into.positive[bin_of(row[p])];
    }
}

// Computes the distances, the counts and the record of one anchor.
template <class T> void mine_anchor(int64_t i, T* row, const T* a, const T* b, const T* a_squares,
                                    const T* b_squares, const Pairs& pairs, const TripletParams& params,
                                    double top, Work<T>& work, int32_t* counts, double* record, T* nearest) {
  const int64_t columns = pairs.columns, anchor = pairs.first + i, own = pairs.own ? anchor : -1;
  const auto margin = static_cast<T>(params.margin);
  const auto convert = params.distance == Distance::kSquaredEuclidean
                           ? &distances_of_row<Distance::kSquaredEuclidean, T>
                       : params.distance == Distance::kEuclidean ? &distances_of_row<Distance::kEuclidean, T>
                                                                 : &distances_of_row<Distance::kCosine, T>;
  convert(row, columns, own, a + i * pairs.dim, b, a_squares[i], b_squares, pairs.dim);

  std::copy(row, row + columns, work.negative.data);
  work.positive.clear();
  work.distance.clear();
  for (int64_t m = pairs.start[i]; m < pairs.stop[i]; ++m) {
    const int64_t j = pairs.members[m];
    work.negative.data[j] = infinity<T>();
    if (j == own) continue;
    work.positive.push_back(j);
    work.distance.push_back(row[j]);
  }
  const auto positives = static_cast<int64_t>(work.positive.size());
  const int64_t negatives = columns - (pairs.stop[i] - pairs.start[i]);
  work.selected.assign(static_cast<size_t>(positives), 0);
  std::fill(record, record + kSlots, 0.0);

  const T none = infinity<T>();
  T closest = none;
  double negative_pairs[3] = {};
  if (params.statistics || params.mining == Mining::kAll)
    closest = all_negatives(work, columns, negative_pairs);
  else if (params.mining == Mining::kHardest)
    closest = smallest(work.negative.data, columns);
  const bool semihard = params.mining == Mining::kSemihard;
  const bool hinge_all = params.hinge && params.mining == Mining::kAll;
  if (params.statistics || semihard || params.mining == Mining::kViolating || hinge_all) {
    if (semihard)
      count_pairs<true>(work, columns, margin);
    else if (params.mining != Mining::kViolating && !hinge_all && positives <= kFew)
      compare_totals(work, columns, margin, closest, static_cast<int64_t>(negative_pairs[0]));
    else
      count_pairs<false>(work, columns, margin);
    record[kViolatingTriplets] = static_cast<double>(work.violating);
    record[kHardTriplets] = static_cast<double>(work.hard);
  }
  if (params.statistics) {
    record[kCandidates] = static_cast<double>(positives) * static_cast<double>(negatives);
    std::copy(negative_pairs, negative_pairs + 3, record + kNegativePairs);
    nearest[i] = positives > 0 ? *std::min_element(work.distance.begin(), work.distance.end()) : none;
    nearest[pairs.rows + i] = closest;
    add_histogram(row, own + 1, columns, work.positive, top, work.histograms);
  }
  positive_moments(work, nullptr, record + kPositivePairs);

  // The counts of the pairs: with how many negatives (positives) each is selected.
  bool mined_is_active = true;
  if (params.mining == Mining::kAll) {
    if (!hinge_all) {
      for (int64_t j = 0; j < columns; ++j)
        work.count[j] = work.negative.data[j] < none ? static_cast<int32_t>(positives) : 0;
      std::fill(work.selected.begin(), work.selected.end(), negatives);
    }
    if (positives > 0 && negatives > 0) {
      // All triplets are mined, so the weight of a pair is the same along the row.
      for (int k = 0; k < 3; ++k) {
        record[kMinedPositive + k] = record[kPositivePairs + k] * (k == 1 ? 1.0 : static_cast<double>(negatives));
        record[kMinedNegative + k] = negative_pairs[k] * (k == 1 ? 1.0 : static_cast<double>(positives));
      }
      if (!hinge_all) std::copy(record + kMinedPositive, record + kMinedPositive + 6, record + kActivePositive);
    }
    mined_is_active = false;
  } else if (params.mining == Mining::kSemihardRandom) {
    draw(work, params, anchor, columns, margin);
  } else if (params.mining == Mining::kHardest) {
    std::fill(work.count.begin(), work.count.end(), 0);
    std::fill(work.selected.begin(), work.selected.end(), 0);
    if (positives > 0 && negatives > 0) {
      const auto p = std::max_element(work.distance.begin(), work.distance.end()) - work.distance.begin();
      const auto n = std::find(work.negative.data, work.negative.data + columns, closest) - work.negative.data;
      const bool active = !params.hinge || is_violating(work.distance[p], closest, margin);
      work.selected[p] = work.count[n == columns ? 0 : n] = active;
      record[kMinedPositive] = record[kMinedNegative] = 1;
      record[kMinedPositive + 1] = work.distance[p];
      record[kMinedNegative + 1] = closest;
      mined_is_active = false;
    }
  }
  if (params.mining != Mining::kAll || hinge_all) {
    positive_moments(work, &work.selected, record + kActivePositive);
    negative_moments(work, row, columns, record + kActiveNegative);
  }
  if (mined_is_active) std::copy(record + kActivePositive, record + kActivePositive + 6, record + kMinedPositive);

  std::copy(work.count.begin(), work.count.begin() + columns, counts);
  for (size_t p = 0; p < work.positive.size(); ++p)
    counts[work.positive[p]] = -static_cast<int32_t>(work.selected[p]);
}

template <class T> void mine(const MineTriplets& args, ExecContext context) {
  constexpr int64_t kRows = 8; // a task
  const Pairs& pairs = args.pairs;
  const TripletParams& params = args.params;
  std::vector<std::unique_ptr<Work<T>>> works(static_cast<size_t>(larger(context.threads, 1)));
  parallel_tasks((pairs.rows + kRows - 1) / kRows, context, [&](int64_t task) {
    std::unique_ptr<Work<T>>& work = works[omp_in_parallel() ? omp_get_thread_num() : 0];
    if (!work) work = std::make_unique<Work<T>>(pairs.columns, args.bins);
    for (int64_t i = task * kRows; i < smaller(pairs.rows, (task + 1) * kRows); ++i)
      mine_anchor(i, static_cast<T*>(args.values) + i * pairs.columns, static_cast<const T*>(args.a),
                  static_cast<const T*>(args.b), static_cast<const T*>(args.a_squares),
                  static_cast<const T*>(args.b_squares), pairs, params, params.statistics ? *args.top : 0.0, *work,
                  args.counts + i * pairs.columns, args.records + i * kSlots, static_cast<T*>(args.nearest));
  });
  if (!params.statistics) return;
  for (const auto& work : works)
    if (work) {
      work->histograms.flush();
      for (int k = 0; k < args.bins; ++k) {
        args.histogram[k] += work->histograms.positive[k];
        args.histogram[args.bins + k] += work->histograms.negative[k];
      }
    }
}

// out[r][c] = the derivative of the loss by the squared distance, for a tile.
template <class T> void tile_slopes(const T* values, const int32_t* counts, int64_t pitch, int64_t rows,
                                    int64_t columns, const Slope<T>& slope, Distance kind, const T* a_squares,
                                    const T* b_squares, T* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* value = values + r * pitch;
    const int32_t* count = counts + r * pitch;
    T* target = out + r * kBlock;
    const T a_square = a_squares[r];
    for (int64_t c = 0; c < columns; ++c)
      target[c] = chain(kind, slope(count[c], value[c]), value[c], a_square, b_squares[c]);
  }
}

template <class T> void weights(const TripletWeights& args, ExecContext context) {
  T* values = static_cast<T*>(args.values);
  const int32_t* counts = args.counts;
  const T* a_squares = static_cast<const T*>(args.a_squares);
  const T* b_squares = static_cast<const T*>(args.b_squares);
  const Pairs& pairs = args.pairs;
  const int64_t rows = pairs.rows, columns = pairs.columns;
  const int64_t tile_rows = (rows + kBlock - 1) / kBlock, tile_columns = (columns + kBlock - 1) / kBlock;
  const Slope<T> slope(args.params, args.totals);
  const Distance kind = args.params.distance;
  const T minus_two = -2;
  parallel_tasks(tile_rows, context, [&](int64_t tile_row) {
    T upper[kBlock * kBlock], lower[kBlock * kBlock];
    const int64_t i = tile_row * kBlock, height = smaller(kBlock, rows - i);
    for (int64_t tile_column = pairs.own ? tile_row : 0; tile_column < tile_columns; ++tile_column) {
      const int64_t j = tile_column * kBlock, width = smaller(kBlock, columns - j);
      T* target = values + i * columns + j;
      tile_slopes(target, counts + i * columns + j, columns, height, width, slope, kind, a_squares + i,
                  b_squares + j, upper);
      if (!pairs.own) {
        for (int64_t r = 0; r < height; ++r)
          for (int64_t c = 0; c < width; ++c) target[r * columns + c] = minus_two * upper[r * kBlock + c];
        continue;
      }
      T* mirror = values + j * columns + i;
      tile_slopes(mirror, counts + j * columns + i, columns, width, height, slope, kind, a_squares + j,
                  b_squares + i, lower);
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) upper[r * kBlock + c] += lower[c * kBlock + r];
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) target[r * columns + c] = minus_two * upper[r * kBlock + c];
      if (tile_row == tile_column) continue;
      for (int64_t c = 0; c < width; ++c)
        for (int64_t r = 0; r < height; ++r) mirror[c * columns + r] = minus_two * upper[r * kBlock + c];
    }
  });
  parallel_for(rows, 1, context, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      double lane[kLanes] = {};
      const T* row = values + i * columns;
      int64_t j = 0;
      for (; j + kLanes <= columns; j += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lane[l] += row[j + l];
      for (; j < columns; ++j) lane[0] += row[j];
      const T sum = static_cast<T>(-add_lanes(lane)); // the pair of an anchor with itself is still zero
      if (pairs.own)
        values[i * columns + i] = sum;
      else
        static_cast<T*>(args.row_sums)[i] = sum;
    }
  });
  if (pairs.own) return;
  parallel_for(tile_columns, 1, context, [&](int64_t first, int64_t last) {
    for (int64_t tile_column = first; tile_column < last; ++tile_column) {
      const int64_t j = tile_column * kBlock, width = smaller(kBlock, columns - j);
      double sum[kBlock] = {};
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < width; ++c) sum[c] -= values[i * columns + j + c];
      for (int64_t c = 0; c < width; ++c) static_cast<T*>(args.column_sums)[j + c] = static_cast<T>(sum[c]);
    }
  });
}

template <class T> void product(const MatrixProduct& args, ExecContext context) {
  const Matrix<T> a{static_cast<const T*>(args.a), args.a_row, args.a_column};
  const Matrix<T> b{static_cast<const T*>(args.b), args.b_row, args.b_column};
  matrix_product(a, b, args.m, args.n, args.k, args.symmetric, static_cast<T*>(args.out), context);
}

template <class T> void center(const CenterRows& args, ExecContext context) {
  const T* rows = static_cast<const T*>(args.rows);
  const int64_t n = args.n, dim = args.dim;
  double* mean = args.mean;
  if (!args.given)
    parallel_for((dim + kBlock - 1) / kBlock, 1, context, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t k = block * kBlock, width = smaller(kBlock, dim - k);
        double sum[kBlock] = {};
        for (int64_t i = 0; i < n; ++i)
          for (int64_t c = 0; c < width; ++c) sum[c] += rows[i * dim + k + c];
        for (int64_t c = 0; c < width; ++c)
          mean[k + c] = n > 0 ? near_mean<T>(sum[c] / static_cast<double>(n)) : 0.0;
      }
    });
  parallel_for(n, 64, context, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T* row = rows + i * dim;
      T* centered = static_cast<T*>(args.centered) + i * dim;
      double length[kLanes] = {}, square[kLanes] = {};
      for (int64_t k = 0; k < dim; ++k) centered[k] = static_cast<T>(row[k] - mean[k]);
      int64_t k = 0;
      for (; k + kLanes <= dim; k += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) {
          const double before = row[k + l], after = centered[k + l];
          length[l] += before * before;
          square[l] += after * after;
        }
      for (; k < dim; ++k) {
        const double before = row[k], after = centered[k];
        length[0] += before * before;
        square[0] += after * after;
      }
      args.lengths[i] = add_lanes(length);
      static_cast<T*>(args.squares)[i] =
          args.unit && args.lengths[i] == 0 ? T{-1} : static_cast<T>(add_lanes(square));
    }
  });
}

} // namespace

int center_rows(const CenterRows& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &center<double> : &center<float>;
  run(args, context);
  return 0;
}

int multiply(const MatrixProduct& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &product<double> : &product<float>;
  run(args, context);
  return 0;
}

int mine_triplets(const MineTriplets& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &mine<double> : &mine<float>;
  run(args, context);
  return 0;
}

int sum_triplets(const SumTriplets& args, ExecContext) {
  for (int piece = 0; piece < kPieces; ++piece)
    add_piece(args.records, args.rows, piece, args.pieces + piece * kSlots);
  finish_totals(args.pieces, args.params, args.totals);
  return 0;
}

int triplet_weights(const TripletWeights& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &weights<double> : &weights<float>;
  run(args, context);
  return 0;
}

} // namespace occfast
