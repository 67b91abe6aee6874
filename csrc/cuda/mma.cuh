// Copies into shared memory that a thread does not wait for, and products of small matrices by a warp.
//
// Each function wraps one PTX instruction of sm_80 and later. The emulator of the tests (tests/emulator/mma.h) has
// a function of its own for each.
#pragma once

#include "../core/scalar.h"
#include "launch.cuh"

namespace occfast {

// Starts to copy 4, 8 or 16 bytes from global to shared memory, both aligned to as many. 2 bytes are copied at
// once.
template <int bytes> __device__ __forceinline__ void copy_async(void* to, const void* from) {
  if constexpr (bytes == 2) {
    *static_cast<uint16_t*>(to) = __ldg(static_cast<const uint16_t*>(from));
  } else {
#if !defined(__CUDACC__)
    emulator::copy_async<bytes>(to, from);
#elif __CUDA_ARCH__ >= 800
    const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (bytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(bytes) : "memory");
    }
#else
    *static_cast<Word<bytes>*>(to) = __ldg(static_cast<const Word<bytes>*>(from));
#endif
  }
}

// Waits until every copy that this thread has started is done.
__device__ __forceinline__ void wait_for_copies() {
#if !defined(__CUDACC__)
  emulator::wait_for_copies();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Whether the functions below exist on the current device.
inline bool has_tensor_cores() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 8;
}

// Loads four 8 x 16-byte matrices of shared memory. Lane 8 m + r gives the address of row r of matrix m. Lane 4 r
// + c receives 4-byte word c of row r of each. If they are transposed, of 8 x 8 2-byte numbers: lane 4 c + r
// receives rows 2 r and 2 r + 1 of column c.
template <bool transposed> __device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
#if !defined(__CUDACC__)
  emulator::load_matrices(out, row, transposed);
#elif __CUDA_ARCH__ >= 750
#define OCCFAST_LOAD(kind)                                                                                        \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" kind ".shared.b16 {%0, %1, %2, %3}, [%4];"                         \
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])                                           \
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))                                        \
               : "memory")
  if constexpr (transposed) {
    OCCFAST_LOAD(".trans");
  } else {
    OCCFAST_LOAD("");
  }
#undef OCCFAST_LOAD
#else
  __trap();
#endif
}

// The number in TF32 nearest to a float, with ties away from zero, as the bits of a float.
__device__ __forceinline__ uint32_t tf32_bits(float value) {
#if !defined(__CUDACC__)
  return emulator::tf32_bits(value);
#elif __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  return __float_as_uint(value);
#endif
}

// sums += A B by a warp, with sums in float: A [16, 32 bytes], B [32 bytes, 8]. T: float stands for TF32, of which
// A has 8 columns, Half or BFloat16, of which it has 16. With r = lane / 4, c = lane % 4, in 4-byte words: a holds
// words [r, c], [r + 8, c], [r, c + 4] and [r + 8, c + 4] of A, b those of column r of B, c and c + 4, and sums
// the numbers [r, 2 c], [r, 2 c + 1], [r + 8, 2 c] and [r + 8, 2 c + 1].
template <class T>
__device__ __forceinline__ void add_product(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  emulator::add_product<T>(sums, a, b);
#elif __CUDA_ARCH__ >= 800
#define OCCFAST_MMA(types)                                                                                        \
  asm volatile("mma.sync.aligned." types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (sizeof(T) == 4) {
    OCCFAST_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (std::is_same_v<T, Half>) {
    OCCFAST_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    OCCFAST_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  }
#undef OCCFAST_MMA
#else
  __trap();
#endif
}

} // namespace occfast
