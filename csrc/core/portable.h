// The macro that compiles one scalar function for the CPU, for CUDA and for the emulator of the tests.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define OCCFAST_HD __host__ __device__ __forceinline__
#else
#define OCCFAST_HD inline __attribute__((always_inline))
#endif
