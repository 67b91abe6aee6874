// What lets one scalar function be compiled for the CPU, for CUDA and for the emulator of the tests.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define OCCFAST_HD __host__ __device__ __forceinline__
#else
#define OCCFAST_HD inline __attribute__((always_inline))
#endif

namespace occfast {

template <class T> OCCFAST_HD T smaller(T a, T b) { return a < b ? a : b; }
template <class T> OCCFAST_HD T larger(T a, T b) { return a > b ? a : b; }
OCCFAST_HD int64_t clamp(int64_t value, int64_t most) { return smaller(larger(value, int64_t{0}), most); }

} // namespace occfast
