// Batch triplet loss on a GPU, one block per anchor. Counts are integers, so the order of their sums is free. The
// order of every floating-point sum depends neither on the grid nor on the device.
#include "launch.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 256;
constexpr int kShare = 128; // positives in shared memory at a time
constexpr int kTile = 32;

// Returns the sum over the block, in a fixed order, to every thread.
template <class T> __device__ __forceinline__ T block_sum(T value) {
  __shared__ T partial[kThreads];
  __syncthreads(); // until the results of the previous call have been read
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  return partial[0];
}

// The smallest value over the block and the lowest index that has it.
template <class T> struct Best {
  T value;
  int64_t index;
  __device__ void take(T other, int64_t at) {
    if (other < value || (other == value && at < index)) {
      value = other;
      index = at;
    }
  }
};
template <class T> __device__ __forceinline__ Best<T> block_best(Best<T> mine) {
  __shared__ T value[kThreads];
  __shared__ int64_t index[kThreads];
  __syncthreads();
  value[threadIdx.x] = mine.value;
  index[threadIdx.x] = mine.index;
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      mine.take(value[threadIdx.x + half], index[threadIdx.x + half]);
      value[threadIdx.x] = mine.value;
      index[threadIdx.x] = mine.index;
    }
    __syncthreads();
  }
  return Best<T>{value[0], index[0]};
}

// -- preparation --------------------------------------------------------------------------------------

// A block sums kTile columns. Each of its eight rows of threads sums every eighth row.
template <class T> __global__ void __launch_bounds__(kThreads)
    mean_kernel(const T* rows, int64_t n, int64_t dim, double* mean) {
  constexpr int height = kThreads / kTile;
  __shared__ double partial[height][kTile];
  const int lane = threadIdx.x % kTile, strip = threadIdx.x / kTile;
  for (int64_t first = int64_t{blockIdx.x} * kTile; first < dim; first += int64_t{gridDim.x} * kTile) {
    const int64_t k = first + lane;
    double sum = 0;
    if (k < dim)
      for (int64_t i = strip; i < n; i += height) sum += rows[i * dim + k];
    __syncthreads();
    partial[strip][lane] = sum;
    __syncthreads();
    if (strip != 0 || k >= dim) continue;
    for (int other = 1; other < height; ++other) sum += partial[other][lane];
    mean[k] = n > 0 ? near_mean<T>(sum / static_cast<double>(n)) : 0.0;
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    center_kernel(const T* rows, int64_t n, int64_t dim, bool unit, const double* mean, T* centered, T* squares,
                  double* lengths) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    double length = 0, square = 0;
    for (int64_t k = threadIdx.x; k < dim; k += kThreads) {
      const double before = rows[i * dim + k];
      const T after = static_cast<T>(before - mean[k]);
      centered[i * dim + k] = after;
      length += before * before;
      square += static_cast<double>(after) * after;
    }
    length = block_sum(length);
    square = block_sum(square);
    if (threadIdx.x > 0) continue;
    lengths[i] = length;
    squares[i] = unit && length == 0 ? T{-1} : static_cast<T>(square);
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    distance_kernel(T* values, const T* a, const T* b, const T* a_squares, const T* b_squares, Pairs pairs,
                    Distance kind) {
  const int64_t count = pairs.rows * pairs.columns;
  for (int64_t k = grid_first(); k < count; k += grid_step()) {
    const int64_t i = k / pairs.columns, j = k - i * pairs.columns;
    T square = square_from_product(values[k], a_squares[i], b_squares[j]);
    if (pairs.own && pairs.first + i == j) {
      square = 0;
    } else if (is_close(square, a_squares[i], b_squares[j])) {
      square = 0;
      for (int64_t d = 0; d < pairs.dim; ++d) {
        const T apart = a[i * pairs.dim + d] - b[j * pairs.dim + d];
        square += apart * apart;
      }
    }
    values[k] = distance_of(kind, square, a_squares[i], b_squares[j]);
  }
}

// -- mining -------------------------------------------------------------------------------------------

// While a row is mined, a count below kMarked belongs to a positive or to the anchor itself, and is INT32_MIN plus
// the number of negatives that select it. The last step turns it into the -w of api.h.
constexpr int32_t kMarked = INT32_MIN / 2;

// The row of an anchor, for its block.  own is the column of the anchor, or -1.
template <class T> struct Row {
  const T* distance;
  int32_t* count;
  int64_t columns, own, start, stop;
  const int64_t* members;

  __device__ bool is_negative(int64_t j) const { return count[j] > kMarked; }
  __device__ double selected(int64_t j) const { // negatives of a positive
    return static_cast<double>(static_cast<int64_t>(count[j]) - INT32_MIN);
  }
};

// The moment of the distances of columns column_of(k) >= 0, shifted by the first distance that has weight.
template <class T, class Column, class Weigh>
__device__ __forceinline__ void moments(const Row<T>& row, int64_t items, const Column& column_of,
                                        const Weigh& weigh, double* moment, double* moment_shift) {
  Best<T> start{infinity<T>(), row.columns};
  for (int64_t k = threadIdx.x; k < items && start.index == row.columns; k += kThreads) {
    const int64_t j = column_of(k);
    if (j >= 0 && weigh(j) > 0) start = Best<T>{0, j};
  }
  start = block_best(start);
  const double shift = start.index < row.columns ? static_cast<double>(row.distance[start.index]) : 0.0;
  double weight = 0, first = 0, second = 0;
  for (int64_t k = threadIdx.x; k < items; k += kThreads) {
    const int64_t j = column_of(k);
    const double w = j >= 0 ? weigh(j) : 0.0;
    if (w == 0) continue;
    const double apart = static_cast<double>(row.distance[j]) - shift;
    weight += w;
    first += w * apart;
    second += w * apart * apart;
  }
  weight = block_sum(weight);
  first = block_sum(first);
  second = block_sum(second);
  if (threadIdx.x > 0) return;
  moment[0] = weight;
  moment[1] = first;
  moment[2] = second;
  *moment_shift = shift;
}

// Turns the shifted sums of moments() into {weight, mean, sum of squared deviations}.
__device__ __forceinline__ void finish_moment(double shift, double* moment) {
  const double first = moment[1], mean = moment[0] > 0 ? first / moment[0] : 0.0;
  moment[1] = moment[0] > 0 ? shift + mean : 0.0;
  moment[2] = moment[0] > 0 ? larger(moment[2] - first * mean, 0.0) : 0.0;
}

template <class T, class Weigh> __device__ __forceinline__ void
moments_of_negatives(const Row<T>& row, const Weigh& weigh, double* moment, double* moment_shift) {
  moments(
      row, row.columns, [&](int64_t k) { return row.is_negative(k) ? k : int64_t{-1}; }, weigh, moment,
      moment_shift);
}

template <class T, class Weigh> __device__ __forceinline__ void
moments_of_positives(const Row<T>& row, const Weigh& weigh, double* moment, double* moment_shift) {
  const auto column = [&](int64_t k) {
    const int64_t j = row.members[row.start + k];
    return j == row.own ? int64_t{-1} : j;
  };
  moments(row, row.stop - row.start, column, weigh, moment, moment_shift);
}

// Compares every positive with every negative. A thread counts for its own columns. The counts of a positive are
// summed over the threads, as integers in any order.
template <class T>
__device__ __forceinline__ void compare(const Row<T>& row, T margin, bool semihard, bool write, double* record) {
  __shared__ T near[kShare];
  __shared__ int selected[kShare];
  double violating = 0, hard = 0; // exact: a row's counts are far below 2^53
  for (int64_t first = row.start; first < row.stop; first += kShare) {
    const int held = static_cast<int>(smaller<int64_t>(kShare, row.stop - first));
    __syncthreads();
    for (int p = threadIdx.x; p < held; p += kThreads) {
      const int64_t j = row.members[first + p];
      near[p] = j == row.own ? -infinity<T>() : row.distance[j]; // no negative is nearer
      selected[p] = 0;
    }
    __syncthreads();
    for (int64_t j = threadIdx.x; j < row.columns; j += kThreads) {
      if (!row.is_negative(j)) continue;
      const T distance = row.distance[j];
      int chosen = 0;
      for (int p = 0; p < held; ++p) {
        if (!is_violating(near[p], distance, margin)) continue;
        const bool is_hard_one = distance <= near[p];
        violating += 1;
        hard += is_hard_one;
        if (!write || (semihard && is_hard_one)) continue;
        ++chosen;
        atomicAdd(&selected[p], 1);
      }
      if (write) row.count[j] += chosen;
    }
    __syncthreads();
    for (int p = threadIdx.x; write && p < held; p += kThreads) row.count[row.members[first + p]] += selected[p];
  }
  violating = block_sum(violating); // also makes the counts visible to every thread
  hard = block_sum(hard);
  if (threadIdx.x > 0) return;
  record[kViolatingTriplets] = violating;
  record[kHardTriplets] = hard;
}

// Draws one semi-hard negative for each positive that has any. Each thread searches one run of columns.
template <class T>
__device__ __forceinline__ void draw(const Row<T>& row, const TripletParams& params, int64_t anchor, T margin) {
  __shared__ int found[kThreads];
  const int64_t first = row.columns * threadIdx.x / kThreads, last = row.columns * (threadIdx.x + 1) / kThreads;
  for (int64_t m = row.start; m < row.stop; ++m) {
    const int64_t p = row.members[m];
    if (p == row.own) continue;
    const T near = row.distance[p];
    int mine = 0;
    for (int64_t j = first; j < last; ++j)
      mine += row.is_negative(j) && is_semihard(near, row.distance[j], margin);
    __syncthreads();
    found[threadIdx.x] = mine;
    __syncthreads();
    int before = 0, all = 0;
    for (int t = 0; t < kThreads; ++t) {
      before += t < static_cast<int>(threadIdx.x) ? found[t] : 0;
      all += found[t];
    }
    if (all == 0) continue;
    int64_t left = draw_negative(params, anchor, p, all) - before;
    if (left >= 0 && left < mine)
      for (int64_t j = first; j < last; ++j)
        if (row.is_negative(j) && is_semihard(near, row.distance[j], margin) && left-- == 0) {
          row.count[j] += 1;
          row.count[p] = INT32_MIN + 1;
          break;
        }
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ void add_to_histogram(const Row<T>& row, double top, int bins, int64_t* histogram) {
  auto* held = dynamic_shared<int>(); // [2][bins] of this row
  const T scale = top > 0 ? static_cast<T>(bins / top) : T{0}, limit = static_cast<T>(bins - 1);
  __syncthreads();
  for (int k = threadIdx.x; k < 2 * bins; k += kThreads) held[k] = 0;
  __syncthreads();
  for (int64_t j = row.own + 1 + threadIdx.x; j < row.columns; j += kThreads) {
    const T place = row.distance[j] * scale;
    atomicAdd(&held[(row.is_negative(j) ? bins : 0) + static_cast<int>(place < limit ? place : limit)], 1);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < 2 * bins; k += kThreads)
    if (held[k] > 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(histogram + k), static_cast<unsigned long long>(held[k]));
}

// Two blocks to a multiprocessor leave registers enough that none is spilled.
template <class T> __global__ void __launch_bounds__(kThreads, 2)
    mine_kernel(const T* values, Pairs pairs, TripletParams params, const double* top, int bins, int32_t* counts,
                double* records, T* nearest, int64_t* histogram) {
  __shared__ double shift[kMoments];
  const auto margin = static_cast<T>(params.margin);
  for (int64_t i = blockIdx.x; i < pairs.rows; i += gridDim.x) {
    const Row<T> row{values + i * pairs.columns,
                     counts + i * pairs.columns,
                     pairs.columns,
                     pairs.own ? pairs.first + i : -1,
                     pairs.start[i],
                     pairs.stop[i],
                     pairs.members};
    double* record = records + i * kSlots;
    const int64_t positives = row.stop - row.start - pairs.own, negatives = row.columns - (row.stop - row.start);
    __syncthreads();
    for (int64_t j = threadIdx.x; j < row.columns; j += kThreads) row.count[j] = 0;
    for (int k = threadIdx.x; k < kSlots; k += kThreads) record[k] = 0;
    for (int k = threadIdx.x; k < kMoments; k += kThreads) shift[k] = 0;
    __syncthreads();
    for (int64_t m = row.start + threadIdx.x; m < row.stop; m += kThreads) row.count[row.members[m]] = INT32_MIN;
    __syncthreads();

    const auto one = [](int64_t) { return 1.0; };
    moments_of_positives(row, one, record + kPositivePairs, shift + kPositivePairs / 3);
    Best<T> closest{infinity<T>(), row.columns}, furthest{infinity<T>(), row.columns}, nearer = furthest;
    if (params.statistics || params.mining == Mining::kHardest) {
      for (int64_t j = threadIdx.x; j < row.columns; j += kThreads)
        if (row.is_negative(j)) closest.take(row.distance[j], j);
      for (int64_t m = row.start + threadIdx.x; m < row.stop; m += kThreads) {
        const int64_t j = row.members[m];
        if (j == row.own) continue;
        nearer.take(row.distance[j], j);
        furthest.take(-row.distance[j], j);
      }
      closest = block_best(closest);
      nearer = block_best(nearer);
      furthest = block_best(furthest);
    }
    if (params.statistics) {
      moments_of_negatives(row, one, record + kNegativePairs, shift + kNegativePairs / 3);
      add_to_histogram(row, *top, bins, histogram);
      if (threadIdx.x == 0) {
        record[kCandidates] = static_cast<double>(positives) * static_cast<double>(negatives);
        nearest[i] = nearer.value;
        nearest[pairs.rows + i] = closest.value;
      }
    }
    const bool semihard = params.mining == Mining::kSemihard,
               hinge_all = params.hinge && params.mining == Mining::kAll;
    const bool write = semihard || params.mining == Mining::kViolating || hinge_all;
    if (hinge_all && positives > 0 && negatives > 0) { // all triplets are mined: weights are equal along the row
      const auto each_positive = [&](int64_t) { return static_cast<double>(negatives); };
      const auto each_negative = [&](int64_t) { return static_cast<double>(positives); };
      moments_of_positives(row, each_positive, record + kMinedPositive, shift + kMinedPositive / 3);
      moments_of_negatives(row, each_negative, record + kMinedNegative, shift + kMinedNegative / 3);
    }
    if (write || params.statistics) compare(row, margin, semihard, write, record);
    if (params.mining == Mining::kSemihardRandom) draw(row, params, pairs.first + i, margin);
    if (params.mining == Mining::kAll && !hinge_all) {
      for (int64_t j = threadIdx.x; j < row.columns; j += kThreads)
        row.count[j] += static_cast<int32_t>(row.is_negative(j) ? positives : negatives);
      __syncthreads();
    }
    bool mined_is_active = !(hinge_all && positives > 0 && negatives > 0);
    if (params.mining == Mining::kHardest && positives > 0 && negatives > 0) {
      mined_is_active = false;
      if (threadIdx.x == 0) {
        // NaN is never taken: the loss is NaN then, but the columns must exist.
        const int64_t p = furthest.index < row.columns ? furthest.index : row.members[row.start];
        const T distance = row.distance[p];
        const bool found = closest.index < row.columns && p != row.own;
        if (found && (!params.hinge || is_violating(distance, closest.value, margin))) {
          row.count[p] += 1;
          row.count[closest.index] = 1;
        }
        record[kMinedPositive] = record[kMinedNegative] = 1;
        shift[kMinedPositive / 3] = distance;
        shift[kMinedNegative / 3] = closest.value;
      }
      __syncthreads();
    }
    moments_of_positives(
        row, [&](int64_t j) { return row.selected(j); }, record + kActivePositive, shift + kActivePositive / 3);
    moments_of_negatives(
        row, [&](int64_t j) { return static_cast<double>(row.count[j]); }, record + kActiveNegative,
        shift + kActiveNegative / 3);
    __syncthreads();
    if (threadIdx.x < kMoments) finish_moment(shift[threadIdx.x], record + 3 * threadIdx.x);
    __syncthreads();
    if (mined_is_active && threadIdx.x < 6)
      record[kMinedPositive + threadIdx.x] = record[kActivePositive + threadIdx.x];
    for (int64_t m = row.start + threadIdx.x; m < row.stop; m += kThreads) {
      const int64_t j = row.members[m];
      row.count[j] = j == row.own ? 0 : -(row.count[j] - INT32_MIN);
    }
  }
}

__global__ void pieces_kernel(const double* records, int64_t rows, double* pieces) {
  const int piece = static_cast<int>(threadIdx.x);
  if (piece < kPieces) add_piece(records, rows, piece, pieces + piece * kSlots);
}

__global__ void totals_kernel(const double* pieces, TripletParams params, double* totals) {
  if (threadIdx.x == 0) finish_totals(pieces, params, totals);
}

// -- gradient -----------------------------------------------------------------------------------------

// A block computes a tile and, if the matrix is symmetric, its mirror image, in place.
template <class T> __global__ void __launch_bounds__(kTile* kTile / 4)
    weights_kernel(T* values, const int32_t* counts, const double* totals, const T* a_squares, const T* b_squares,
                   Pairs pairs, TripletParams params) {
  __shared__ T upper[kTile][kTile + 1], lower[kTile][kTile + 1];
  const Slope<T> slope(params, totals);
  const int64_t down = (pairs.rows + kTile - 1) / kTile, across = (pairs.columns + kTile - 1) / kTile;
  const int lane = threadIdx.x % kTile, strip = threadIdx.x / kTile;
  constexpr int height = kTile / 4;
  const auto load = [&](int64_t top, int64_t left, T(*to)[kTile + 1]) {
#pragma unroll 1
    for (int r = strip; r < kTile; r += height) {
      const int64_t i = top + r, j = left + lane, k = i * pairs.columns + j;
      to[r][lane] = i < pairs.rows && j < pairs.columns ? chain(params.distance, slope(counts[k], values[k]),
                                                                values[k], a_squares[i], b_squares[j])
                                                        : T{0};
    }
  };
  for (int64_t tile = blockIdx.x; tile < down * across; tile += gridDim.x) {
    const int64_t row = tile / across, column = tile - row * across;
    if (pairs.own && column < row) continue;
    const int64_t top = row * kTile, left = column * kTile;
    __syncthreads();
    load(top, left, upper);
    if (pairs.own) load(left, top, lower);
    __syncthreads();
    for (int r = strip; r < kTile; r += height) {
      const T here = pairs.own ? upper[r][lane] + lower[lane][r] : upper[r][lane];
      if (top + r < pairs.rows && left + lane < pairs.columns)
        values[(top + r) * pairs.columns + left + lane] = T{-2} * here;
      if (pairs.own && row != column && left + r < pairs.rows && top + lane < pairs.columns)
        values[(left + r) * pairs.columns + top + lane] = T{-2} * (upper[lane][r] + lower[r][lane]);
    }
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    row_sums_kernel(T* values, Pairs pairs, T* row_sums) {
  for (int64_t i = blockIdx.x; i < pairs.rows; i += gridDim.x) {
    T* row = values + i * pairs.columns;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < pairs.columns; j += kThreads) sum -= row[j];
    sum = block_sum(sum); // the pair of an anchor with itself was still zero
    if (threadIdx.x > 0) continue;
    if (pairs.own)
      row[i] = static_cast<T>(sum);
    else
      row_sums[i] = static_cast<T>(sum);
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    column_sums_kernel(const T* values, int64_t rows, int64_t columns, T* column_sums) {
  constexpr int height = kThreads / kTile;
  __shared__ double partial[height][kTile];
  const int lane = threadIdx.x % kTile, strip = threadIdx.x / kTile;
  for (int64_t first = int64_t{blockIdx.x} * kTile; first < columns; first += int64_t{gridDim.x} * kTile) {
    const int64_t j = first + lane;
    double sum = 0;
    if (j < columns)
      for (int64_t i = strip; i < rows; i += height) sum -= values[i * columns + j];
    __syncthreads();
    partial[strip][lane] = sum;
    __syncthreads();
    if (strip != 0 || j >= columns) continue;
    for (int other = 1; other < height; ++other) sum += partial[other][lane];
    column_sums[j] = static_cast<T>(sum);
  }
}

// -- launching ----------------------------------------------------------------------------------------

template <class T> int center(const CenterRows& args, ExecContext context) {
  const T* rows = static_cast<const T*>(args.rows);
  if (!args.given)
    if (const int status = launch(&mean_kernel<T>, blocks_for(args.dim, kTile), kThreads, 0, context, rows, args.n,
                                  args.dim, args.mean))
      return status;
  return launch(&center_kernel<T>, blocks_for(args.n, 1), kThreads, 0, context, rows, args.n, args.dim, args.unit,
                args.mean, static_cast<T*>(args.centered), static_cast<T*>(args.squares), args.lengths);
}

template <class T> int mine(const MineTriplets& args, ExecContext context) {
  const Pairs& pairs = args.pairs;
  T* values = static_cast<T*>(args.values);
  if (const int status = launch(&distance_kernel<T>, blocks_for(pairs.rows * pairs.columns, kThreads), kThreads, 0,
                                context, values, static_cast<const T*>(args.a), static_cast<const T*>(args.b),
                                static_cast<const T*>(args.a_squares), static_cast<const T*>(args.b_squares),
                                pairs, args.params.distance))
    return status;
  return launch(&mine_kernel<T>, blocks_for(pairs.rows, 1), kThreads, 2 * args.bins * sizeof(int), context, values,
                pairs, args.params, args.top, args.bins, args.counts, args.records, static_cast<T*>(args.nearest),
                args.histogram);
}

template <class T> int weights(const TripletWeights& args, ExecContext context) {
  const Pairs& pairs = args.pairs;
  T* values = static_cast<T*>(args.values);
  const int64_t tiles = (pairs.rows + kTile - 1) / kTile * ((pairs.columns + kTile - 1) / kTile);
  if (const int status = launch(&weights_kernel<T>, blocks_for(tiles, 1), kTile * kTile / 4, 0, context, values,
                                args.counts, args.totals, static_cast<const T*>(args.a_squares),
                                static_cast<const T*>(args.b_squares), pairs, args.params))
    return status;
  if (const int status = launch(&row_sums_kernel<T>, blocks_for(pairs.rows, 1), kThreads, 0, context, values,
                                pairs, static_cast<T*>(args.row_sums)))
    return status;
  if (pairs.own) return cudaSuccess;
  return launch(&column_sums_kernel<T>, blocks_for(pairs.columns, kTile), kThreads, 0, context, values, pairs.rows,
                pairs.columns, static_cast<T*>(args.column_sums));
}

} // namespace

int center_rows(const CenterRows& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &center<double> : &center<float>;
  return run(args, context);
}

int mine_triplets(const MineTriplets& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &mine<double> : &mine<float>;
  return run(args, context);
}

int sum_triplets(const SumTriplets& args, ExecContext context) {
  if (const int status = launch(&pieces_kernel, 1, kPieces, 0, context, args.records, args.rows, args.pieces))
    return status;
  return launch(&totals_kernel, 1, kWarp, 0, context, args.pieces, args.params, args.totals);
}

int triplet_weights(const TripletWeights& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &weights<double> : &weights<float>;
  return run(args, context);
}

} // namespace occfast
