// The launch of kernels, and helpers that every kernel needs.
//
// A launch calls cudaLaunchKernelEx, which is plain C++, so the emulator of the tests
// (tests/emulator/cuda_runtime.h) compiles and runs the same files without a GPU.
#pragma once

#include <cuda_runtime.h>

#undef NDEBUG // the checks of arguments belong to every build
#include <cassert>

#include "../api.h"

// In a kernel: ends the launch if an argument in device memory is wrong. The message, which names the function and
// the argument, is printed by each thread that finds it wrong, so one thread checks for all.
#if defined(__CUDACC__)
#define OCCFAST_REQUIRE(holds, message) assert((holds) && message)
#else
#define OCCFAST_REQUIRE(holds, message) ((holds) ? void() : emulator::assertion_failed(message))
#endif

// The largest number of blocks along an axis. Kernels loop over their grid, so any cap is correct; the tests set
// a small one to make them loop.
#ifndef OCCFAST_MAX_BLOCKS
#define OCCFAST_MAX_BLOCKS 65535
#endif

namespace occfast {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// The number of blocks along one axis of a grid for a number of items.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(smaller<int64_t>((items + per_block - 1) / per_block, OCCFAST_MAX_BLOCKS));
}

// Enqueues a kernel on the stream and returns the error of doing so, without waiting for the kernel. An empty
// grid is a success without a launch.
template <class... Parameters, class... Arguments> int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                                              size_t shared_bytes, ExecContext context,
                                                              Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (status != cudaSuccess) cudaGetLastError(); // clears the error: PyTorch must not report it a second time
  return status;
}

// The dynamic shared memory of the block, 16-byte aligned.
template <class T> __device__ __forceinline__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char occfast_shared[];
  return reinterpret_cast<T*>(occfast_shared);
#else
  return static_cast<T*>(emulator::dynamic_shared());
#endif
}

// for (int64_t k = grid_first(); k < count; k += grid_step()) visits each index once, in a 1-D grid.
__device__ __forceinline__ int64_t grid_first() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_step() { return int64_t{gridDim.x} * blockDim.x; }

// Returns the sum over the warp to every lane. The butterfly has a fixed order, the same for all of them.
template <class T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// The type that moves a number of bytes, a power of two up to 16, in one access.
template <int bytes> struct WordOf;
template <> struct WordOf<16> {
  using Type = uint4;
};
template <> struct WordOf<8> {
  using Type = uint2;
};
template <> struct WordOf<4> {
  using Type = uint32_t;
};
template <> struct WordOf<2> {
  using Type = uint16_t;
};
template <> struct WordOf<1> {
  using Type = uint8_t;
};
template <int bytes> using Word = typename WordOf<bytes>::Type;

} // namespace occfast
