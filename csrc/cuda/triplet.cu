// Batch triplet loss on a GPU, one block per anchor. Counts are integers, so the order of their sums is free. The
// order of every floating-point sum depends neither on the grid nor on the device.
#include "launch.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = 32;

// Replaces each value by its sum over the block, in a fixed order.
template <int kValues> __device__ __forceinline__ void block_sums(double (&values)[kValues]) {
  __shared__ double partial[kValues][kWarps];
#pragma unroll
  for (double& value : values) value = warp_sum(value);
  __syncthreads(); // until the results of the previous call have been read
  if (threadIdx.x % kWarp == 0)
#pragma unroll
    for (int k = 0; k < kValues; ++k) partial[k][threadIdx.x / kWarp] = values[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    values[k] = partial[k][0];
    for (int warp = 1; warp < kWarps; ++warp) values[k] += partial[k][warp];
  }
}

// The smallest value and the lowest index that has it.
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
template <class T> __device__ __forceinline__ Best<T> warp_best(Best<T> mine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const T value = __shfl_xor_sync(kAllLanes, mine.value, offset);
    mine.take(value, __shfl_xor_sync(kAllLanes, mine.index, offset));
  }
  return mine;
}

// Sums of weights and weighted distances about a shift, which is the first distance that has weight.
struct Sums {
  double shift, weight, first, second;

  __device__ void add(double distance, double w) {
    if (w == 0) return;
    if (weight == 0) shift = distance;
    const double apart = distance - shift;
    weight += w;
    first += w * apart;
    second += w * apart * apart;
  }

  // Changes the shift.
  __device__ void move(double to) {
    if (weight == 0) return;
    const double apart = shift - to;
    second += apart * (2 * first + weight * apart);
    first += weight * apart;
    shift = to;
  }
};

__device__ __forceinline__ Sums warp_total(Sums mine) {
  const unsigned found = __ballot_sync(kAllLanes, mine.weight > 0);
  if (found == 0) return Sums{};
  const double shift = __shfl_sync(kAllLanes, mine.shift, __ffs(static_cast<int>(found)) - 1);
  mine.move(shift);
  return Sums{shift, warp_sum(mine.weight), warp_sum(mine.first), warp_sum(mine.second)};
}

// The moment {weight, mean, sum of squared deviations} of the sums of all warps.
__device__ __forceinline__ void finish_moment(const Sums* warps, double* moment) {
  Sums all{};
  for (int warp = 0; warp < kWarps; ++warp) {
    Sums part = warps[warp];
    if (part.weight == 0) continue;
    if (all.weight == 0) all.shift = part.shift;
    part.move(all.shift);
    all.weight += part.weight;
    all.first += part.first;
    all.second += part.second;
  }
  const double mean = all.weight > 0 ? all.first / all.weight : 0.0;
  moment[0] = all.weight;
  moment[1] = all.weight > 0 ? all.shift + mean : 0.0;
  moment[2] = larger(all.second - all.first * mean, 0.0);
}

// -- preparation --------------------------------------------------------------------------------------

// A block sums the few columns that one sector of memory holds. Each of its strips of threads sums some of the
// rows.
constexpr int kMeanThreads = 512, kMeanColumns = 8;

template <class T> __global__ void __launch_bounds__(kMeanThreads)
    mean_kernel(const T* __restrict__ rows, int64_t n, int64_t dim, double* __restrict__ mean) {
  constexpr int kStrips = kMeanThreads / kMeanColumns, kMeanWarps = kMeanThreads / kWarp;
  __shared__ double partial[kMeanWarps][kMeanColumns];
  const int column = threadIdx.x % kMeanColumns, strip = threadIdx.x / kMeanColumns;
  for (int64_t first = int64_t{blockIdx.x} * kMeanColumns; first < dim;
       first += int64_t{gridDim.x} * kMeanColumns) {
    const int64_t k = first + column;
    double sum = 0;
    if (k < dim)
#pragma unroll 8
      for (int64_t i = strip; i < n; i += kStrips) sum += rows[i * dim + k];
#pragma unroll
    for (int offset = kMeanColumns; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    __syncthreads(); // until the sums of the previous columns have been read
    if (threadIdx.x % kWarp < kMeanColumns) partial[threadIdx.x / kWarp][column] = sum;
    __syncthreads();
    if (strip != 0 || k >= dim) continue;
    for (int warp = 1; warp < kMeanWarps; ++warp) sum += partial[warp][column];
    mean[k] = n > 0 ? near_mean<T>(sum / static_cast<double>(n)) : 0.0;
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    center_kernel(const T* __restrict__ rows, int64_t n, int64_t dim, bool unit, const double* __restrict__ mean,
                  T* __restrict__ centered, T* __restrict__ squares, double* __restrict__ lengths) {
  for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    double sums[2] = {0, 0}; // of squares, before and after
    for (int64_t k = threadIdx.x; k < dim; k += kThreads) {
      const double before = rows[i * dim + k];
      const T after = static_cast<T>(before - mean[k]);
      centered[i * dim + k] = after;
      sums[0] += before * before;
      sums[1] += static_cast<double>(after) * after;
    }
    block_sums(sums);
    if (threadIdx.x > 0) continue;
    lengths[i] = sums[0];
    squares[i] = unit && sums[0] == 0 ? T{-1} : static_cast<T>(sums[1]);
  }
}

// The grid is (tiles of columns, rows). A warp sums the terms of a close pair together, so that its reads
// coalesce.
template <class T> __global__ void __launch_bounds__(kThreads)
    distance_kernel(T* __restrict__ values, const T* __restrict__ a, const T* __restrict__ b,
                    const T* __restrict__ a_squares, const T* __restrict__ b_squares, Pairs pairs, Distance kind) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = blockIdx.y; i < pairs.rows; i += gridDim.y) {
    T* row = values + i * pairs.columns;
    for (int64_t first = grid_first() - lane; first < pairs.columns; first += grid_step()) {
      const int64_t j = first + lane;
      const bool inside = j < pairs.columns;
      T square = 0;
      bool close = false;
      if (inside && !(pairs.own && pairs.first + i == j)) {
        square = square_from_product(row[j], a_squares[i], b_squares[j]);
        close = is_close(square, a_squares[i], b_squares[j]);
      }
      for (unsigned left = __ballot_sync(kAllLanes, close); left != 0; left &= left - 1) {
        const int source = __ffs(static_cast<int>(left)) - 1;
        const T *from = a + i * pairs.dim, *to = b + (first + source) * pairs.dim;
        T sum = 0;
        for (int64_t d = lane; d < pairs.dim; d += kWarp) {
          const T apart = from[d] - to[d];
          sum += apart * apart;
        }
        sum = warp_sum(sum);
        if (lane == source) square = sum;
      }
      if (inside) row[j] = distance_of(kind, square, a_squares[i], b_squares[j]);
    }
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

// Draws one semi-hard negative for each positive that has any. Each warp searches one run of columns.
template <class T>
__device__ __forceinline__ void draw(const Row<T>& row, const TripletParams& params, int64_t anchor, T margin) {
  __shared__ int found[2][kWarps]; // of this positive and of the one before, which other warps may still read
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first = row.columns * warp / kWarps, last = row.columns * (warp + 1) / kWarps;
  int turn = 0;
  for (int64_t m = row.start; m < row.stop; ++m) {
    const int64_t p = row.members[m];
    if (p == row.own) continue;
    const T near = row.distance[p];
    const auto fits = [&](int64_t j) {
      return j < last && row.is_negative(j) && is_semihard(near, row.distance[j], margin);
    };
    int mine = 0;
    for (int64_t j = first + lane; j < last; j += kWarp) mine += fits(j);
    mine = warp_sum(mine);
    if (lane == 0) found[turn][warp] = mine;
    __syncthreads();
    int before = 0, all = 0;
    for (int other = 0; other < kWarps; ++other) {
      before += other < warp ? found[turn][other] : 0;
      all += found[turn][other];
    }
    turn ^= 1;
    if (all == 0) continue;
    int64_t left = draw_negative(params, anchor, p, all) - before;
    if (left < 0 || left >= mine) continue;
    for (int64_t start = first; start < last; start += kWarp) {
      const bool fit = fits(start + lane);
      const unsigned some = __ballot_sync(kAllLanes, fit);
      const int number = __popc(some);
      if (left < number) {
        if (fit && __popc(some & ((1u << lane) - 1u)) == left) {
          row.count[start + lane] += 1;
          row.count[p] = INT32_MIN + 1;
        }
        break;
      }
      left -= number;
    }
  }
}

// Six barriers an anchor, and two more for each further kThreads positives; random negatives take one a positive.
// Two blocks to a multiprocessor leave registers enough that none is spilled.
template <class T> __global__ void __launch_bounds__(kThreads, 2)
    mine_kernel(const T* __restrict__ values, Pairs pairs, TripletParams params, const double* __restrict__ top,
                int bins, int32_t* __restrict__ counts, double* __restrict__ records, T* __restrict__ nearest,
                int64_t* __restrict__ histogram) {
  __shared__ Sums sums[2][kWarps]; // of positives and of negatives
  __shared__ Best<T> best[3][kWarps];
  __shared__ int64_t compared[2][kWarps];
  __shared__ T near[kThreads]; // some positives, and the numbers of negatives that select them
  __shared__ int selected[kThreads];
  auto* held = dynamic_shared<int>(); // [2][bins], the histogram of this row
  const int me = static_cast<int>(threadIdx.x), lane = me % kWarp, warp = me / kWarp;
  const auto margin = static_cast<T>(params.margin);
  const bool statistics = params.statistics, semihard = params.mining == Mining::kSemihard,
             hardest = params.mining == Mining::kHardest, all = params.mining == Mining::kAll;
  const bool search = statistics || hardest;
  const bool write = semihard || params.mining == Mining::kViolating || (params.hinge && all);
  T scale = 0;
  if (statistics && *top > 0) scale = static_cast<T>(bins / *top);
  const auto limit = static_cast<T>(bins - 1);
  for (int64_t i = blockIdx.x; i < pairs.rows; i += gridDim.x) {
    const Row<T> row{values + i * pairs.columns,
                     counts + i * pairs.columns,
                     pairs.columns,
                     pairs.own ? pairs.first + i : -1,
                     pairs.start[i],
                     pairs.stop[i],
                     pairs.members};
    double* record = records + i * kSlots;
    const int64_t members = row.stop - row.start, positives = members - pairs.own,
                  negatives = row.columns - members;
    const bool triplets = positives > 0 && negatives > 0;
    // All triplets are mined: the weights are equal along the row.
    const bool even = params.hinge && all && triplets;
    for (int64_t j = me; j < row.columns; j += kThreads) row.count[j] = 0;
    if (me < kSlots) record[me] = 0;
    for (int k = me; statistics && k < 2 * bins; k += kThreads) held[k] = 0;
    __syncthreads();
    for (int64_t m = row.start + me; m < row.stop; m += kThreads) row.count[row.members[m]] = INT32_MIN;
    __syncthreads();

    // One pass over the row for its moments, the nearest and the histogram.
    const auto bin = [&](int64_t j, T distance, int from) {
      if (!statistics || j <= row.own) return; // own: each pair once
      const T place = distance * scale;
      atomicAdd(&held[from + static_cast<int>(place < limit ? place : limit)], 1);
    };
    Sums positive{}, negative{};
    Best<T> closest{infinity<T>(), row.columns}, furthest{infinity<T>(), row.columns}, nearer = furthest;
    for (int64_t m = row.start + me; m < row.stop; m += kThreads) {
      const int64_t j = row.members[m];
      if (j == row.own) continue;
      const T distance = row.distance[j];
      positive.add(distance, 1);
      nearer.take(distance, j);
      furthest.take(-distance, j);
      bin(j, distance, 0);
    }
    if (search || even)
      for (int64_t j = me; j < row.columns; j += kThreads) {
        if (!row.is_negative(j)) continue;
        const T distance = row.distance[j];
        negative.add(distance, 1);
        closest.take(distance, j);
        bin(j, distance, bins);
      }
    const auto load = [&](int64_t first) {
      if (first + me >= row.stop) return;
      const int64_t j = row.members[first + me];
      near[me] = j == row.own ? -infinity<T>() : row.distance[j]; // no negative is nearer
      selected[me] = 0;
    };
    load(row.start);
    positive = warp_total(positive);
    negative = warp_total(negative);
    if (search) {
      closest = warp_best(closest);
      nearer = warp_best(nearer);
      furthest = warp_best(furthest);
    }
    if (lane == 0) {
      sums[0][warp] = positive;
      sums[1][warp] = negative;
      best[0][warp] = closest;
      best[1][warp] = nearer;
      best[2][warp] = furthest;
    }
    __syncthreads();
    if (me < 2) {
      double moment[3];
      finish_moment(sums[me], moment);
      if (me == 0 || statistics)
        for (int k = 0; k < 3; ++k) record[kPositivePairs + 3 * me + k] = moment[k];
      if (even) {
        const auto each = static_cast<double>(me == 0 ? negatives : positives);
        record[kMinedPositive + 3 * me] = moment[0] * each;
        record[kMinedPositive + 3 * me + 1] = moment[1];
        record[kMinedPositive + 3 * me + 2] = moment[2] * each;
      }
    }
    if (search && me == kWarp) {
      for (int other = 0; other < kWarps; ++other) {
        closest.take(best[0][other].value, best[0][other].index);
        nearer.take(best[1][other].value, best[1][other].index);
        furthest.take(best[2][other].value, best[2][other].index);
      }
      if (statistics) {
        record[kCandidates] = static_cast<double>(positives) * static_cast<double>(negatives);
        nearest[i] = nearer.value;
        nearest[pairs.rows + i] = closest.value;
      }
    }
    for (int k = me; statistics && k < 2 * bins; k += kThreads)
      if (held[k] > 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(histogram + k), static_cast<unsigned long long>(held[k]));

    // Every positive is compared with every negative. A thread counts for its own columns. The counts of a
    // positive are summed over the threads, as integers in any order.
    int64_t violating = 0, hard = 0;
    for (int64_t first = row.start; (write || statistics) && first < row.stop; first += kThreads) {
      const int count = static_cast<int>(smaller<int64_t>(kThreads, row.stop - first));
      if (first > row.start) {
        load(first);
        __syncthreads();
      }
      for (int64_t j = me; j < row.columns; j += kThreads) {
        if (!row.is_negative(j)) continue;
        const T distance = row.distance[j];
        int within = 0, behind = 0, chosen = 0;
        for (int p = 0; p < count; ++p) {
          if (!is_violating(near[p], distance, margin)) continue;
          const bool is_hard_one = distance <= near[p];
          ++within;
          behind += is_hard_one;
          if (!write || (semihard && is_hard_one)) continue;
          ++chosen;
          atomicAdd(&selected[p], 1);
        }
        violating += within;
        hard += behind;
        if (write) row.count[j] += chosen;
      }
      __syncthreads();
      if (write && me < count) row.count[row.members[first + me]] += selected[me];
    }
    if (params.mining == Mining::kSemihardRandom) draw(row, params, pairs.first + i, margin);
    if (all && !params.hinge)
      for (int64_t j = me; j < row.columns; j += kThreads)
        row.count[j] += static_cast<int32_t>(row.is_negative(j) ? positives : negatives);
    if (hardest && triplets && me == kWarp) {
      // NaN is never taken: the loss is NaN then, but the columns must exist.
      const int64_t p = furthest.index < row.columns ? furthest.index : row.members[row.start];
      const T distance = row.distance[p];
      const bool found = closest.index < row.columns && p != row.own;
      if (found && (!params.hinge || is_violating(distance, closest.value, margin))) {
        row.count[p] += 1;
        row.count[closest.index] = 1;
      }
      record[kMinedPositive] = record[kMinedNegative] = 1;
      record[kMinedPositive + 1] = distance;
      record[kMinedNegative + 1] = closest.value;
    }
    __syncthreads();

    // The triplets that the loss weighs.
    positive = negative = Sums{};
    for (int64_t m = row.start + me; m < row.stop; m += kThreads) {
      const int64_t j = row.members[m];
      if (j != row.own) positive.add(row.distance[j], row.selected(j));
    }
    for (int64_t j = me; j < row.columns; j += kThreads)
      if (row.is_negative(j)) negative.add(row.distance[j], row.count[j]);
    positive = warp_total(positive);
    negative = warp_total(negative);
    violating = warp_sum(violating);
    hard = warp_sum(hard);
    if (lane == 0) {
      sums[0][warp] = positive;
      sums[1][warp] = negative;
      compared[0][warp] = violating;
      compared[1][warp] = hard;
    }
    __syncthreads();
    if (me < 2) {
      double moment[3];
      finish_moment(sums[me], moment);
      for (int k = 0; k < 3; ++k) {
        record[kActivePositive + 3 * me + k] = moment[k];
        if (!even && !(hardest && triplets)) record[kMinedPositive + 3 * me + k] = moment[k];
      }
      int64_t number = 0;
      for (int other = 0; other < kWarps; ++other) number += compared[me][other];
      record[kViolatingTriplets + me] = static_cast<double>(number); // exact: far below 2^53
    }
    for (int64_t m = row.start + me; m < row.stop; m += kThreads) {
      const int64_t j = row.members[m];
      row.count[j] = j == row.own ? 0 : -(row.count[j] - INT32_MIN);
    }
  }
}

// A warp for each moment of a record, and one for the numbers of triplets.
constexpr int kTailThreads = (kMoments + 1) * kWarp;

// Writes the sum of records first ... last - 1, without the loss. The lanes of a warp add every 32nd record, and
// their sums meet in a tree.
__device__ __forceinline__ void add_records(const double* __restrict__ records, int64_t first, int64_t last,
                                            double* __restrict__ to) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double mine[3] = {0, 0, 0};
  for (int64_t i = first + lane; i < last; i += kWarp) {
    const double* record = records + i * kSlots + 3 * warp;
    const double more[3] = {record[0], record[1], record[2]};
    if (warp < kMoments)
      add_moment(mine, more);
    else
      for (int k = 0; k < 3; ++k) mine[k] += more[k];
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    double more[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) more[k] = __shfl_down_sync(kAllLanes, mine[k], offset);
    if (warp < kMoments)
      add_moment(mine, more);
    else
      for (int k = 0; k < 3; ++k) mine[k] += more[k];
  }
  if (lane == 0)
    for (int k = 0; k < 3; ++k) to[3 * warp + k] = mine[k];
}
static_assert(kCandidates == 3 * kMoments && kLoss == kCandidates + 3);

__global__ void __launch_bounds__(kTailThreads)
    pieces_kernel(const double* __restrict__ records, int64_t rows, double* __restrict__ pieces) {
  for (int64_t piece = blockIdx.x; piece < kPieces; piece += gridDim.x)
    add_records(records, rows * piece / kPieces, rows * (piece + 1) / kPieces, pieces + piece * kSlots);
}

__global__ void __launch_bounds__(kTailThreads)
    totals_kernel(const double* __restrict__ pieces, TripletParams params, double* __restrict__ totals) {
  add_records(pieces, 0, kPieces, totals);
  __syncthreads();
  if (threadIdx.x == 0) totals[kLoss] = loss_of(totals, params);
}

// -- gradient -----------------------------------------------------------------------------------------

// A block computes a tile and, if the matrix is symmetric, its mirror image, in place.
template <class T> __global__ void __launch_bounds__(kTile* kTile / 4)
    weights_kernel(T* values, const int32_t* __restrict__ counts, const double* __restrict__ totals,
                   const T* __restrict__ a_squares, const T* __restrict__ b_squares, Pairs pairs,
                   TripletParams params) {
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
    row_sums_kernel(T* values, Pairs pairs, T* __restrict__ row_sums) {
  for (int64_t i = blockIdx.x; i < pairs.rows; i += gridDim.x) {
    T* row = values + i * pairs.columns;
    double sum[1] = {0};
    for (int64_t j = threadIdx.x; j < pairs.columns; j += kThreads) sum[0] -= row[j];
    block_sums(sum); // the pair of an anchor with itself was still zero
    if (threadIdx.x > 0) continue;
    if (pairs.own)
      row[i] = static_cast<T>(sum[0]);
    else
      row_sums[i] = static_cast<T>(sum[0]);
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    column_sums_kernel(const T* __restrict__ values, int64_t rows, int64_t columns, T* __restrict__ column_sums) {
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
    if (const int status = launch(&mean_kernel<T>, blocks_for(args.dim, kMeanColumns), kMeanThreads, 0, context,
                                  rows, args.n, args.dim, args.mean))
      return status;
  return launch(&center_kernel<T>, blocks_for(args.n, 1), kThreads, 0, context, rows, args.n, args.dim, args.unit,
                args.mean, static_cast<T*>(args.centered), static_cast<T*>(args.squares), args.lengths);
}

template <class T> int mine(const MineTriplets& args, ExecContext context) {
  const Pairs& pairs = args.pairs;
  T* values = static_cast<T*>(args.values);
  if (const int status =
          launch(&distance_kernel<T>, dim3(blocks_for(pairs.columns, kThreads), blocks_for(pairs.rows, 1)),
                 kThreads, 0, context, values, static_cast<const T*>(args.a), static_cast<const T*>(args.b),
                 static_cast<const T*>(args.a_squares), static_cast<const T*>(args.b_squares), pairs,
                 args.params.distance))
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
  if (const int status = launch(&pieces_kernel, blocks_for(kPieces, 1), kTailThreads, 0, context, args.records,
                                args.rows, args.pieces))
    return status;
  return launch(&totals_kernel, 1, kTailThreads, 0, context, args.pieces, args.params, args.totals);
}

int triplet_weights(const TripletWeights& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &weights<double> : &weights<float>;
  return run(args, context);
}

} // namespace occfast
