// Batch triplet loss on the CPU: an anchor's row of distances at a time, which stays in the cache.
#include <algorithm>
#include <memory>
#include <vector>

#include "gemm.h"

namespace occfast {
namespace {

constexpr int64_t kLanes = 16; // partial sums side by side, so that loops vectorise in a fixed order
constexpr int64_t kBlock = 64; // columns a step
constexpr int64_t kFew = 192;  // positives up to which comparing beats searching
constexpr int64_t kTurns = 8;
constexpr int64_t kMaxBins = 1024; // occfast/native/ops.py checks it

template <class T> T add_lanes(const T* lane) {
  T sum = 0;
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

struct Histograms {
  int64_t positive[kMaxBins] = {}, negative[kMaxBins][kTurns] = {};
};

// What one thread needs for the anchor at hand.
template <class T> struct Work {
  explicit Work(int64_t columns)
      : negative(static_cast<size_t>(columns + kBlock), infinity<T>()),
        count(static_cast<size_t>(columns + kBlock)), below(static_cast<size_t>(columns + kBlock)),
        under(static_cast<size_t>(columns + kBlock)) {}

  std::vector<T> negative;           // distances, infinite where the column is no negative or none at all
  std::vector<int32_t> count;        // of positives that select the column
  std::vector<int32_t> below, under; // of positives, see search()
  std::vector<int64_t> positive;     // columns
  std::vector<T> distance;           // to the positives
  std::vector<int64_t> selected;     // negatives of each positive
  std::vector<int32_t> lane;         // [positive][kLanes]
  std::vector<T> sorted;
  std::vector<int64_t> order;
  int64_t violating = 0, hard = 0; // triplets
  Histograms histograms;
};

// Every positive against every negative.
template <bool semihard, class T> void compare(Work<T>& work, int64_t columns, T margin) {
  const int64_t positives = static_cast<int64_t>(work.positive.size());
  work.lane.assign(static_cast<size_t>(positives * kLanes), 0);
  int32_t hard[kLanes] = {};
  for (int64_t first = 0; first < columns; first += kBlock) {
    const T* negative = work.negative.data() + first;
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

// rank[j] = how many of the sorted thresholds are below (or_equal: or at) value[j].  `sorted` is filled up
// with NaN to a power of two less one.
template <bool or_equal, class T>
void search(const std::vector<T>& sorted, const T* value, int64_t columns, int32_t* rank) {
  const T* threshold = sorted.data();
  for (int64_t first = 0; first < columns; first += kBlock) {
    int32_t position[kBlock] = {};
    for (auto step = static_cast<int32_t>((sorted.size() + 1) / 2); step > 0; step /= 2)
      for (int64_t k = 0; k < kBlock; ++k) {
        // Arithmetic and no branch: which way it goes is as good as random.
        const T limit = threshold[position[k] + step - 1], x = value[first + k];
        position[k] += step & -static_cast<int32_t>(or_equal ? limit <= x : limit < x);
      }
    for (int64_t k = 0; k < kBlock; ++k) rank[first + k] = position[k];
  }
}

// NaN last: the loss is NaN then, but sorting needs an order.
template <class T> T sort_key(T distance) { return distance == distance ? distance : infinity<T>(); }

// The same counts from sorted positives: adding the margin keeps their order, so the positives that a
// negative does not violate are the first ones, and so are those that are nearer than it.
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
  search<false>(work.sorted, work.negative.data(), columns, work.below.data());
  for (int32_t p = 0; p < positives; ++p) work.sorted[p] += margin;
  search<true>(work.sorted, work.negative.data(), columns, work.under.data());

  // selected of the p-th nearest: a running sum of what begins and ends at it.
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
  for (int64_t j = 0; j < columns; j += kBlock) // reads the filling, which is infinite
    for (int64_t l = 0; l < kBlock; ++l) lane[l] = value[j + l] < lane[l] ? value[j + l] : lane[l];
  return *std::min_element(lane, lane + kBlock);
}

// One semi-hard negative for each positive that has any.
template <class T> void draw(Work<T>& work, const TripletLaw& law, int64_t anchor, int64_t columns, T margin) {
  std::fill(work.count.begin(), work.count.end(), 0);
  for (size_t p = 0; p < work.positive.size(); ++p) {
    const T near = work.distance[p];
    int32_t lane[kLanes] = {};
    for (int64_t j = 0; j < columns; j += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) lane[l] += is_semihard(near, work.negative[j + l], margin);
    const int64_t found = add_lanes(lane);
    work.selected[p] = found > 0;
    if (found == 0) continue;
    int64_t left = draw_negative(law, anchor, work.positive[p], found), j = 0;
    for (;; ++j)
      if (is_semihard(near, work.negative[j], margin) && left-- == 0) break;
    ++work.count[j];
  }
}

// Moments of weighted numbers.  The shift is one of the numbers, so the square of the mean that is taken
// away is at most the number of them times the variance.
struct Sums {
  double weight[kLanes] = {}, first[kLanes] = {}, second[kLanes] = {};

  void add(int64_t l, double w, double x) {
    weight[l] += w;
    first[l] += w * x;
    second[l] += w * x * x;
  }
  void store(double shift, double* moment) const {
    const double w = add_lanes(weight), sum = add_lanes(first);
    moment[0] = w;
    moment[1] = w > 0 ? shift + sum / w : 0.0;
    moment[2] = w > 0 ? larger(add_lanes(second) - sum * (sum / w), 0.0) : 0.0;
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

template <class T> void all_negatives(const Work<T>& work, int64_t columns, double* moment) {
  int64_t start = 0;
  while (start < columns && !(work.negative[start] < infinity<T>())) ++start;
  if (start == columns) return;
  Sums sums;
  const double shift = work.negative[start];
  for (int64_t j = start / kLanes * kLanes; j < columns; j += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) {
      const T distance = work.negative[j + l];
      const bool used = distance < infinity<T>();
      sums.add(l, used ? 1.0 : 0.0, used ? static_cast<double>(distance) - shift : 0.0);
    }
  sums.store(shift, moment);
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

// Columns take turns at kTurns histograms, since neighbours often fall into one bin and an increment
// would wait for the one before.
template <class T> void add_histogram(const T* row, int64_t first, int64_t columns,
                                      const std::vector<int64_t>& positive, double top, int bins,
                                      Histograms& into) {
  const T scale = top > 0 ? static_cast<T>(bins / top) : T{0}, limit = static_cast<T>(bins - 1);
  const auto bin_of = [&](T distance) {
    const T place = distance * scale;
    return static_cast<int32_t>(place < limit ? place : limit);
  };
  int32_t bin[kBlock];
  int64_t j = first;
  for (; j + kBlock <= columns; j += kBlock) {
    for (int64_t k = 0; k < kBlock; ++k) bin[k] = bin_of(row[j + k]);
    for (int64_t k = 0; k < kBlock; k += kTurns)
      for (int64_t turn = 0; turn < kTurns; ++turn) ++into.negative[bin[k + turn]][turn];
  }
  for (; j < columns; ++j) ++into.negative[bin_of(row[j])][0];
  for (const int64_t p : positive)
    if (p >= first) {
      --into.negative[bin_of(row[p])][0];
      ++into.positive[bin_of(row[p])];
    }
}

// One anchor: its distances, its counts and its record.
template <class T> void mine_anchor(int64_t i, T* row, const T* a, const T* b, const T* a_squares,
                                    const T* b_squares, const Pairs& pairs, const TripletLaw& law, double top,
                                    int bins, Work<T>& work, int32_t* counts, double* record, T* nearest) {
  const int64_t columns = pairs.columns, own = pairs.own ? i : -1;
  const auto margin = static_cast<T>(law.margin);
  const auto convert = law.distance == Distance::kSquared     ? &distances_of_row<Distance::kSquared, T>
                       : law.distance == Distance::kEuclidean ? &distances_of_row<Distance::kEuclidean, T>
                                                              : &distances_of_row<Distance::kCosine, T>;
  convert(row, columns, own, a + i * pairs.dim, b, a_squares[i], b_squares, pairs.dim);

  std::copy(row, row + columns, work.negative.begin());
  work.positive.clear();
  work.distance.clear();
  for (int64_t m = pairs.start[i]; m < pairs.stop[i]; ++m) {
    const int64_t j = pairs.members[m];
    work.negative[j] = infinity<T>();
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
  if (law.statistics || law.select == Select::kHardest) closest = smallest(work.negative.data(), columns);
  const bool semihard = law.select == Select::kSemihard;
  const bool hinge_all = law.hinge && law.select == Select::kAll;
  if (law.statistics || semihard || law.select == Select::kViolating || hinge_all) {
    if (semihard)
      count_pairs<true>(work, columns, margin);
    else
      count_pairs<false>(work, columns, margin);
    record[kViolating] = static_cast<double>(work.violating);
    record[kHard] = static_cast<double>(work.hard);
  }
  if (law.statistics) {
    record[kCandidates] = static_cast<double>(positives) * static_cast<double>(negatives);
    all_negatives(work, columns, record + kNegativePairs);
    nearest[i] = positives > 0 ? *std::min_element(work.distance.begin(), work.distance.end()) : none;
    nearest[pairs.rows + i] = closest;
    add_histogram(row, pairs.own ? i + 1 : 0, columns, work.positive, top, bins, work.histograms);
  }
  positive_moments(work, nullptr, record + kPositivePairs);

  // Which negatives each positive is selected with, as counts.
  bool mined_is_active = true;
  if (law.select == Select::kAll && !hinge_all) {
    for (int64_t j = 0; j < columns; ++j)
      work.count[j] = work.negative[j] < none ? static_cast<int32_t>(positives) : 0;
    std::fill(work.selected.begin(), work.selected.end(), negatives);
  } else if (law.select == Select::kSemihardRandom) {
    draw(work, law, i, columns, margin);
  } else if (law.select == Select::kHardest) {
    std::fill(work.count.begin(), work.count.end(), 0);
    std::fill(work.selected.begin(), work.selected.end(), 0);
    if (positives > 0 && negatives > 0) {
      const auto p = std::max_element(work.distance.begin(), work.distance.end()) - work.distance.begin();
      const auto n =
          std::find(work.negative.begin(), work.negative.begin() + columns, closest) - work.negative.begin();
      const bool active = !law.hinge || is_violating(work.distance[p], closest, margin);
      work.selected[p] = work.count[n == columns ? 0 : n] = active;
      record[kMinedPositive] = record[kMinedNegative] = 1;
      record[kMinedPositive + 1] = work.distance[p];
      record[kMinedNegative + 1] = closest;
      mined_is_active = false;
    }
  } else if (hinge_all && positives > 0 && negatives > 0) {
    // Mined are all triplets: a pair's weight is one number for the whole row.
    double pairs_of_row[3] = {};
    all_negatives(work, columns, pairs_of_row);
    for (int k = 0; k < 3; ++k) {
      record[kMinedPositive + k] = record[kPositivePairs + k] * (k == 1 ? 1.0 : static_cast<double>(negatives));
      record[kMinedNegative + k] = pairs_of_row[k] * (k == 1 ? 1.0 : static_cast<double>(positives));
    }
    mined_is_active = false;
  }
  positive_moments(work, &work.selected, record + kActivePositive);
  negative_moments(work, row, columns, record + kActiveNegative);
  if (mined_is_active) std::copy(record + kActivePositive, record + kActivePositive + 6, record + kMinedPositive);

  std::copy(work.count.begin(), work.count.begin() + columns, counts);
  for (size_t p = 0; p < work.positive.size(); ++p)
    counts[work.positive[p]] = -static_cast<int32_t>(work.selected[p]);
}

template <class T> void mine(void* values, const void* a, const void* b, const void* a_squares,
                             const void* b_squares, Pairs pairs, TripletLaw law, const double* top, int bins,
                             int32_t* counts, double* records, void* nearest, int64_t* histogram, Where where) {
  constexpr int64_t kRows = 8; // a task
  std::vector<std::unique_ptr<Work<T>>> works(static_cast<size_t>(larger(where.threads, 1)));
  parallel_tasks((pairs.rows + kRows - 1) / kRows, where, [&](int64_t task) {
    std::unique_ptr<Work<T>>& work = works[omp_in_parallel() ? omp_get_thread_num() : 0];
    if (!work) work = std::make_unique<Work<T>>(pairs.columns);
    for (int64_t i = task * kRows; i < smaller(pairs.rows, (task + 1) * kRows); ++i)
      mine_anchor(i, static_cast<T*>(values) + i * pairs.columns, static_cast<const T*>(a),
                  static_cast<const T*>(b), static_cast<const T*>(a_squares), static_cast<const T*>(b_squares),
                  pairs, law, law.statistics ? *top : 0.0, bins, *work, counts + i * pairs.columns,
                  records + i * kSlots, static_cast<T*>(nearest));
  });
  if (!law.statistics) return;
  for (const auto& work : works)
    if (work)
      for (int k = 0; k < bins; ++k) {
        histogram[k] += work->histograms.positive[k];
        for (const int64_t turn : work->histograms.negative[k]) histogram[bins + k] += turn;
      }
}

// Slopes of a tile by the square of its distances: out[r][c].
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

template <class T> void weights(void* matrix, const int32_t* counts, const double* totals, const void* a_lengths,
                                const void* b_lengths, Pairs pairs, TripletLaw law, void* row_sums,
                                void* column_sums, Where where) {
  T* values = static_cast<T*>(matrix);
  const T *a_squares = static_cast<const T*>(a_lengths), *b_squares = static_cast<const T*>(b_lengths);
  const int64_t rows = pairs.rows, columns = pairs.columns;
  const int64_t tile_rows = (rows + kBlock - 1) / kBlock, tile_columns = (columns + kBlock - 1) / kBlock;
  const Slope<T> slope(law, totals);
  const Distance kind = law.distance;
  const T minus_two = -2;
  parallel_tasks(tile_rows, where, [&](int64_t tile_row) {
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
  parallel_for(rows, 1, where, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      double lane[kLanes] = {};
      const T* row = values + i * columns;
      int64_t j = 0;
      for (; j + kLanes <= columns; j += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lane[l] += row[j + l];
      for (; j < columns; ++j) lane[0] += row[j];
      const T sum = static_cast<T>(-add_lanes(lane)); // an anchor's own pair is still zero here
      if (pairs.own)
        values[i * columns + i] = sum;
      else
        static_cast<T*>(row_sums)[i] = sum;
    }
  });
  if (pairs.own) return;
  parallel_for(tile_columns, 1, where, [&](int64_t first, int64_t last) {
    for (int64_t tile_column = first; tile_column < last; ++tile_column) {
      const int64_t j = tile_column * kBlock, width = smaller(kBlock, columns - j);
      double sum[kBlock] = {};
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < width; ++c) sum[c] -= values[i * columns + j + c];
      for (int64_t c = 0; c < width; ++c) static_cast<T*>(column_sums)[j + c] = static_cast<T>(sum[c]);
    }
  });
}

template <class T> void centre(const void* source, int64_t n, int64_t dim, bool given, bool unit, double* mean,
                               void* out, void* squares, double* lengths, Where where) {
  const T* rows = static_cast<const T*>(source);
  if (!given)
    parallel_for((dim + kBlock - 1) / kBlock, 1, where, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t k = block * kBlock, width = smaller(kBlock, dim - k);
        double sum[kBlock] = {};
        for (int64_t i = 0; i < n; ++i)
          for (int64_t c = 0; c < width; ++c) sum[c] += rows[i * dim + k + c];
        for (int64_t c = 0; c < width; ++c)
          mean[k + c] = n > 0 ? near_mean<T>(sum[c] / static_cast<double>(n)) : 0.0;
      }
    });
  parallel_for(n, 64, where, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T* row = rows + i * dim;
      T* centred = static_cast<T*>(out) + i * dim;
      double length[kLanes] = {}, square[kLanes] = {};
      for (int64_t k = 0; k < dim; ++k) centred[k] = static_cast<T>(row[k] - mean[k]);
      int64_t k = 0;
      for (; k + kLanes <= dim; k += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) {
          const double before = row[k + l], after = centred[k + l];
          length[l] += before * before;
          square[l] += after * after;
        }
      for (; k < dim; ++k) {
        const double before = row[k], after = centred[k];
        length[0] += before * before;
        square[0] += after * after;
      }
      lengths[i] = add_lanes(length);
      static_cast<T*>(squares)[i] = unit && lengths[i] == 0 ? T{-1} : static_cast<T>(add_lanes(square));
    }
  });
}

} // namespace

int centre_rows(const void* rows, Dtype dtype, int64_t n, int64_t dim, bool given, bool unit, double* mean,
                void* centred, void* squares, double* lengths, Where where) {
  const auto run = dtype == Dtype::kFloat64 ? &centre<double> : &centre<float>;
  run(rows, n, dim, given, unit, mean, centred, squares, lengths, where);
  return 0;
}

int multiply(const void* a, int64_t a_row, int64_t a_column, const void* b, int64_t b_row, int64_t b_column,
             Dtype dtype, int64_t m, int64_t n, int64_t k, bool symmetric, void* out, Where where) {
  if (dtype == Dtype::kFloat64)
    matrix_product<double>({static_cast<const double*>(a), a_row, a_column},
                           {static_cast<const double*>(b), b_row, b_column}, m, n, k, symmetric,
                           static_cast<double*>(out), where);
  else
    matrix_product<float>({static_cast<const float*>(a), a_row, a_column},
                          {static_cast<const float*>(b), b_row, b_column}, m, n, k, symmetric,
                          static_cast<float*>(out), where);
  return 0;
}

int mine_triplets(void* values, Dtype dtype, const void* a, const void* b, const void* a_squares,
                  const void* b_squares, Pairs pairs, TripletLaw law, const double* top, int bins, int32_t* counts,
                  double* records, double* pieces, double* totals, void* nearest, int64_t* histogram,
                  Where where) {
  const auto run = dtype == Dtype::kFloat64 ? &mine<double> : &mine<float>;
  run(values, a, b, a_squares, b_squares, pairs, law, top, bins, counts, records, nearest, histogram, where);
  for (int piece = 0; piece < kPieces; ++piece) add_piece(records, pairs.rows, piece, pieces + piece * kSlots);
  finish_totals(pieces, law, totals);
  return 0;
}

int triplet_weights(void* values, Dtype dtype, const int32_t* counts, const double* totals, const void* a_squares,
                    const void* b_squares, Pairs pairs, TripletLaw law, void* row_sums, void* column_sums,
                    Where where) {
  const auto run = dtype == Dtype::kFloat64 ? &weights<double> : &weights<float>;
  run(values, counts, totals, a_squares, b_squares, pairs, law, row_sums, column_sums, where);
  return 0;
}

} // namespace occfast
