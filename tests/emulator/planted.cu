// Kernels with a known outcome, right and wrong, to test the emulator and the sanitizers.
#include <string>
#include <vector>

#include "cuda/mma.cuh"

using namespace occfast;

namespace {

// Sum of a block through shared memory: correct only if barriers hold all threads back.
__global__ void block_sum(const int* values, int* sum) {
  __shared__ int part[256];
  const unsigned me = threadIdx.x;
  part[me] = values[blockIdx.x * blockDim.x + me];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (me < half) part[me] += part[me + half];
    __syncthreads();
  }
  if (me == 0) sum[blockIdx.x] = part[0];
}

// The same without the barriers.
__global__ void hasty_sum(const int* values, int* sum) {
  __shared__ int part[256];
  const unsigned me = threadIdx.x;
  part[me] = values[blockIdx.x * blockDim.x + me];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2)
    if (me < half) part[me] += part[me + half];
  if (me == 0) sum[blockIdx.x] = part[0];
}

// Warp sums by shuffles, then the block's through dynamic shared memory.
__global__ void shuffled_sum(const int* values, int* sum) {
  int* part = dynamic_shared<int>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int value = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kAllLanes, value, offset);
  if (lane == 0) part[warp] = value;
  __syncthreads();
  if (warp > 0) return;
  value = lane < static_cast<int>(blockDim.x) / kWarp ? part[lane] : 0;
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  if (lane == 0) sum[blockIdx.x] = value;
}

__global__ void past_the_end(int* values, int count) {
  if (static_cast<int>(threadIdx.x) <= count) values[threadIdx.x] = 1; // one element too many
}
__global__ void past_shared(int* out) {
  int* shared = dynamic_shared<int>();
  shared[threadIdx.x + 1] = 1; // the last thread writes past the end
  out[threadIdx.x] = shared[threadIdx.x];
}
__global__ void past_static(int* out) {
  __shared__ int shared[32];
  shared[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}
__global__ void past_stack(int* out) {
  int local[4] = {0, 1, 2, 3};
  __syncthreads();
  volatile int index = static_cast<int>(threadIdx.x); // 4 and more: outside
  out[threadIdx.x] = local[index];
}
__global__ void overflow(int* out) { out[threadIdx.x] = 0x7FFFFFFF + static_cast<int>(threadIdx.x); }
__global__ void misaligned(const int* values, int4* out) {
  out[threadIdx.x] = *reinterpret_cast<const int4*>(values + 1);
}
__global__ void trap(int*) {
  if (threadIdx.x == 3) __trap();
  __syncthreads();
}
__global__ void lonely_barrier(int* out) {
  if (threadIdx.x < 16) {
    __syncwarp();
    out[threadIdx.x] = 1;
  }
  __syncthreads();
}
__global__ void absent_lane(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xFFu, static_cast<int>(threadIdx.x), 9);
}
__global__ void votes(int* out) {
  const int odd = threadIdx.x & 1;
  const unsigned ballot = __ballot_sync(kAllLanes, odd);
  const bool right = ballot == 0xAAAAAAAAu && __any_sync(kAllLanes, odd) && !__all_sync(kAllLanes, odd) &&
                     __syncthreads_count(odd) == static_cast<int>(blockDim.x) / 2 &&
                     __shfl_up_sync(kAllLanes, static_cast<int>(threadIdx.x % 8), 1, 8) ==
                         (threadIdx.x % 8 ? static_cast<int>(threadIdx.x % 8) - 1 : 0);
  if (right) atomicAdd(out, 1);
}

// A neighbor's number through shared memory, copied asynchronously.
template <bool waits> __global__ void copied(const int* values, int* out) {
  __shared__ int shared[32];
  copy_async<4>(&shared[threadIdx.x], values + threadIdx.x);
  if (waits) wait_for_copies();
  __syncthreads();
  out[threadIdx.x] = shared[31 - threadIdx.x];
}
__global__ void misaligned_copy(const int* values, int* out) {
  __shared__ __align__(16) int shared[32];
  copy_async<16>(&shared[4 * threadIdx.x], values + 1);
  wait_for_copies();
  out[threadIdx.x] = shared[4 * threadIdx.x];
}
__global__ void some_lanes(float* out) {
  if (threadIdx.x >= 16) return;
  float sums[4] = {};
  add_product<float>(sums, {0, 0, 0, 0}, {0, 0});
  out[threadIdx.x] = sums[0];
}

// out [16, 8] = a [16, k] b [k, 8] + 1, with both matrices in shared memory, b with its rows beside one another.
template <class T, int k> __global__ void product(const T* a, const T* b, float* out) {
  __shared__ __align__(16) T left[16][k], right[2 * k][8]; // rows beyond k are not read
  for (int n = threadIdx.x; n < 16 * k; n += 32) left[n / k][n % k] = a[n];
  for (int n = threadIdx.x; n < 8 * k; n += 32) right[n / 8][n % 8] = b[n];
  __syncthreads();
  const int lane = threadIdx.x, row = lane / 4, column = lane % 4;
  uint32_t x[4], y[4];
  load_matrices<false>(x, reinterpret_cast<const unsigned char*>(left[lane % 16]) + lane / 16 * 16);
  if constexpr (sizeof(T) == 4) {
    for (int n = 0; n < 4; ++n) x[n] = tf32_bits(from_bits(x[n]));
    for (int n = 0; n < 2; ++n) y[n] = tf32_bits(right[column + 4 * n][row]);
  } else {
    load_matrices<true>(y, right[lane % 16]);
  }
  float sums[4] = {1, 1, 1, 1};
  add_product<T>(sums, x, {y[0], y[1]});
  for (int n = 0; n < 4; ++n) out[(row + n / 2 * 8) * 8 + 2 * column + n % 2] = sums[n];
}

float value_of(float x) { return x; }
float value_of(Half x) { return float_from_half(x); }
float value_of(BFloat16 x) { return float_from_bfloat16(x); }

template <class T, int k, class Convert> int multiplied(Convert convert) {
  std::vector<T> a(16 * k), b(8 * k);
  std::vector<float> out(16 * 8);
  for (int n = 0; n < 16 * k; ++n) a[n] = convert(static_cast<float>(n * n % 13 - 6));
  for (int n = 0; n < 8 * k; ++n) b[n] = convert(static_cast<float>(n * 7 % 11 - 5) / 4);
  launch(&product<T, k>, 1, 32, 0, ExecContext{1, nullptr}, a.data(), b.data(), out.data());
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 1;
      for (int c = 0; c < k; ++c) sum += value_of(a[i * k + c]) * value_of(b[c * 8 + j]);
      if (sum != out[i * 8 + j]) return 3;
    }
  return 0;
}

} // namespace

int main(int, char** arguments) {
  const std::string what = arguments[1];
  const ExecContext context{1, nullptr};
  constexpr int blocks = 3, threads = 256;
  std::vector<int> values(blocks * threads), sums(blocks), expected(blocks);
  for (int k = 0; k < blocks * threads; ++k) {
    values[k] = k * k % 101;
    expected[k / threads] += values[k];
  }
  const auto sum = [&](auto kernel, size_t shared) {
    const int status = launch(kernel, blocks, threads, shared, context, values.data(), sums.data());
    return status == 0 && sums == expected ? 0 : 3;
  };
  if (what == "block_sum") return sum(&block_sum, 0);
  if (what == "hasty_sum") return sum(&hasty_sum, 0);
  if (what == "warp_sum") return sum(&shuffled_sum, threads / 32 * sizeof(int));
  if (what == "votes") {
    sums[0] = 0;
    launch(&votes, 1, 64, 0, context, sums.data());
    return sums[0] == 64 ? 0 : 3;
  }
  if (what == "trap") {
    // The launch fails, and the next one succeeds.
    const bool failed = launch(&trap, 1, 64, 0, context, values.data()) == cudaErrorLaunchFailure;
    return failed && cudaGetLastError() == cudaSuccess ? sum(&block_sum, 0) : 3;
  }
  if (what == "limits")
    return launch(&trap, 1, 1025, 0, context, values.data()) == cudaErrorInvalidConfiguration &&
                   launch(&trap, 1, 32, 50000, context, values.data()) == cudaErrorInvalidValue &&
                   launch(&trap, 0, 32, 0, context, values.data()) == cudaSuccess
               ? 0
               : 3;
  if (what == "products") {
    const bool right = multiplied<float, 8>([](float x) { return x; }) == 0 &&
                       multiplied<Half, 16>([](float x) { return half_from_float(x); }) == 0 &&
                       multiplied<BFloat16, 16>([](float x) { return bfloat16_from_float(x); }) == 0;
    const bool rounds = emulator::tf32_bits(1.0f + 0x1p-11f) == to_bits(1.0f + 0x1p-10f) &&
                        emulator::tf32_bits(1.0f + 0x1.ep-12f) == to_bits(1.0f);
    return right && rounds ? 0 : 3;
  }
  std::vector<int> out(32);
  if (what == "copy" || what == "hasty_copy") {
    launch(what == "copy" ? &copied<true> : &copied<false>, 1, 32, 0, context, values.data(), out.data());
    for (int k = 0; k < 32; ++k)
      if (out[k] != values[31 - k]) return 3;
    return 0;
  }
  if (what == "misaligned_copy") launch(&misaligned_copy, 1, 4, 0, context, values.data(), out.data());
  if (what == "some_lanes") {
    std::vector<float> sums(32);
    launch(&some_lanes, 1, 32, 0, context, sums.data());
  }
  if (what == "past_the_end") launch(&past_the_end, 1, 64, 0, context, out.data(), 32);
  if (what == "past_shared") launch(&past_shared, 1, 32, 32 * sizeof(int), context, out.data());
  if (what == "past_static") launch(&past_static, 1, 32, 0, context, out.data());
  if (what == "past_stack") launch(&past_stack, 1, 32, 0, context, out.data());
  if (what == "overflow") launch(&overflow, 1, 2, 0, context, out.data());
  if (what == "misaligned") {
    static int4 vectors[4];
    launch(&misaligned, 1, 1, 0, context, &vectors[0].x, vectors + 2);
  }
  if (what == "lonely_barrier") launch(&lonely_barrier, 1, 32, 0, context, out.data());
  if (what == "absent_lane") launch(&absent_lane, 1, 32, 0, context, out.data());
  return 4; // unreachable if the error is reported
}
