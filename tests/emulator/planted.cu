// Kernels with a known outcome, right and wrong, to test the emulator and the sanitizers.
#include <string>
#include <vector>

#include "cuda/launch.cuh"

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
  std::vector<int> out(32);
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
